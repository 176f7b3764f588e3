"""The figures of notebooks and report: binned, so their size does not grow with the backlog.

Each title says the finding. Colours are Okabe and Ito's, which colour-blind people can tell apart
(Color Universal Design, 2008). Texts from events are escaped: plotly reads some HTML in labels.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .errors import one_line
from .policy import ACTIONS, Policy

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLOURS = {
    "dropped_missing": "#999999",
    "dropped_old": "#E69F00",
    "dropped_invalid": "#D55E00",
    "dropped_not_allowlisted": "#CC79A7",
    "dropped_low_conf": "#56B4E9",
    "drained_ok": "#009E73",
}
NAMES = {
    "dropped_missing": "missing",
    "dropped_old": "too old",
    "dropped_invalid": "invalid",
    "dropped_not_allowlisted": "not allowlisted",
    "dropped_low_conf": "low confidence",
    "drained_ok": "passes",
}
INK, LIMIT = "#222222", "#000000"
TOP = 12
MAX_BINS = 60
MAX_COMBINATIONS = 12


def label(text: object) -> str:
    """A text from outside, fit for a label."""
    return html.escape(one_line(str(text), 40))


def share(part: int, whole: int) -> str:
    """`part` of `whole` in percent, as a reader says it."""
    if not whole:
        return "none"
    percent = 100 * part / whole
    return f"{percent:.0f} %" if percent >= 1 or part == 0 else "under 1 %"


def age(ages_sec: np.ndarray, policy: Policy) -> go.Figure:
    """How old the events are (minutes), against the maximum age."""
    minutes = ages_sec[np.isfinite(ages_sec)] / 60
    old = int((minutes > policy.max_age_min).sum())
    title = f"{share(old, len(minutes))} of the events are older than {policy.max_age_min:g} min"
    figure = _figure(title, "age (minutes)", "events")
    _histogram(figure, minutes, policy.max_age_min, ("young enough", "too old"), over=True)
    return _limit(figure, policy.max_age_min, f"max age {policy.max_age_min:g} min")


def confidence(values: np.ndarray, policy: Policy) -> go.Figure:
    """How confident the signals are, against the minimum."""
    valid = values[np.isfinite(values)]
    low = int((valid < policy.min_conf).sum())
    title = f"{share(low, len(valid))} of the events are below confidence {policy.min_conf:g}"
    figure = _figure(title, "confidence (0 to 1)", "events")
    _histogram(
        figure, valid, policy.min_conf, ("high enough", "too low"), over=False, limits=(0, 1)
    )
    return _limit(figure, policy.min_conf, f"min confidence {policy.min_conf:g}")


def by_category(frame: pd.DataFrame, column: str) -> go.Figure:
    """Events by symbol, source or side, split by what becomes of them."""
    import plotly.graph_objects as go

    names = frame[column].astype(object).where(frame[column].notna(), "(none)")
    counts = names.value_counts()
    top = [str(name) for name in counts.index[:TOP]]
    shown = names.where(names.isin(top), "(other)")
    table = pd.crosstab(shown, frame["action"])
    order = [*top, *(["(other)"] if len(counts) > TOP else [])]
    table = table.reindex(order).fillna(0)
    passing = table.get("drained_ok", pd.Series(0, index=table.index))
    best = str(passing.idxmax()) if len(table) and passing.max() > 0 else None
    title = f"By {column}: " + (f"{label(best)} has the most that pass" if best else "none passes")
    figure = _figure(title, "events", column, height=120 + 26 * max(4, len(order)))
    for action in ACTIONS:
        if action in table and table[action].sum():
            figure.add_trace(
                go.Bar(
                    y=[label(name) for name in table.index],
                    x=table[action].astype(int).tolist(),
                    orientation="h",
                    name=NAMES[action],
                    marker_color=COLOURS[action],
                )
            )
    figure.update_layout(barmode="stack", showlegend=True)
    figure.update_yaxes(autorange="reversed", type="category")
    return figure


def arrivals(frame: pd.DataFrame) -> go.Figure:
    """When the events were made, split by what becomes of them."""
    import plotly.graph_objects as go

    known = frame[frame["event_time"].notna()]
    figure = _figure("No event has a usable time", "event time (UTC)", "events")
    if not len(known):
        return figure
    times = known["event_time"].dt.as_unit("us").astype("int64").to_numpy() / 1e6
    edges = np.linspace(times.min(), max(times.max(), times.min() + 60), MAX_BINS + 1)
    counts, _ = np.histogram(times, edges)
    peak = pd.Timestamp(edges[int(counts.argmax())], unit="s", tz="UTC")
    step_sec = edges[1] - edges[0]
    title = f"Most events arrived around {peak:%d %b %H:%M} UTC"
    figure = _figure(title, "event time (UTC)", f"events per {_duration(step_sec)}")
    middles = [pd.Timestamp(t, unit="s").isoformat() for t in (edges[:-1] + edges[1:]) / 2]
    for action in ACTIONS:
        part, _ = np.histogram(times[(known["action"] == action).to_numpy()], edges)
        if part.any():
            figure.add_trace(
                go.Bar(x=middles, y=part.tolist(), name=NAMES[action], marker_color=COLOURS[action])
            )
    figure.update_layout(barmode="stack", bargap=0, showlegend=True)
    return figure


def overlap(frame: pd.DataFrame) -> go.Figure:
    """How the filters overlap: which combinations of them the events fail."""
    import plotly.graph_objects as go

    counts = frame["failed"].astype(str).value_counts()
    counts = counts[counts > 0][:MAX_COMBINATIONS]
    several = int(sum(n for names, n in counts.items() if "," in str(names)))
    title = f"{share(several, len(frame))} of the events fail more than one filter"
    figure = _figure(title, "events", "filters failed", height=140 + 28 * max(3, len(counts)))
    names = [
        " + ".join(NAMES[part] for part in str(key).split(",")) if key else "passes all"
        for key in counts.index
    ]
    colours = [
        COLOURS[str(key).split(",")[0]] if key else COLOURS["drained_ok"] for key in counts.index
    ]
    figure.add_trace(
        go.Bar(y=names, x=[int(n) for n in counts], orientation="h", marker_color=colours,
               text=[f"{n:,}" for n in counts], textposition="auto")
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed", type="category")
    return figure


def what_if(frame: pd.DataFrame, policy: Policy) -> go.Figure:
    """How many events would pass at other limits; only those that no other filter drops."""
    import plotly.graph_objects as go

    others = frame["failed"].astype(str)
    open_ = ~(others.str.contains("missing") | others.str.contains("invalid")
              | others.str.contains("allowlisted"))  # fmt: skip
    part = frame[open_.to_numpy() & frame["confidence"].notna().to_numpy()]
    ages, confidences = what_if_limits(policy)
    limits_min, minimums = np.array(ages), np.array(confidences)
    age_bin = np.searchsorted(limits_min, part["age_sec"].to_numpy() / 60, side="left")
    conf_bin = np.searchsorted(minimums, part["confidence"].to_numpy(), side="right") - 1
    grid = np.zeros((len(ages) + 1, len(confidences)), dtype=np.int64)
    fits = conf_bin >= 0
    np.add.at(grid, (age_bin[fits], conf_bin[fits]), 1)
    passing = grid[:-1].cumsum(axis=0)[:, ::-1].cumsum(axis=1)[:, ::-1]
    here = int(passing[ages.index(policy.max_age_min), confidences.index(policy.min_conf)])
    most = int(passing.max()) if passing.size else 0
    title = f"{here:,} would pass as set; at most {most:,} within these limits"
    figure = _figure(title, "minimum confidence", "maximum age", height=420)
    figure.add_trace(
        go.Heatmap(
            x=[f"{value:g}" for value in confidences],
            y=[_duration(value * 60) for value in ages],
            z=passing.tolist(),
            text=[[f"{n:,}" for n in row] for row in passing.tolist()],
            texttemplate="%{text}",
            colorscale="Cividis",
            colorbar={"title": {"text": "events"}},
        )
    )
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category")
    return figure


def what_if_limits(policy: Policy) -> tuple[list[float], list[float]]:
    """Limits around the policy's own, which are among them."""
    factors = (1 / 6, 1 / 3, 1 / 2, 1, 2, 4, 8, 24, 48)
    ages = sorted(
        {round(policy.max_age_min * f, 4) if f != 1 else policy.max_age_min for f in factors}
    )
    steps = {round(0.1 * n, 1) for n in range(10)} | {policy.min_conf}
    return ages, sorted(steps)


def waterfall(counts: dict[str, int]) -> go.Figure:
    """From all that was read to what passed, one step for each filter."""
    import plotly.graph_objects as go

    read = sum(counts.values())
    ok = counts["drained_ok"]
    title = f"{ok:,} of {read:,} events pass ({share(ok, read)})"
    figure = _figure(title, "", "events", height=380)
    drops = [action for action in ACTIONS if action != "drained_ok"]
    figure.add_trace(
        go.Waterfall(
            x=["read", *[NAMES[action] for action in drops], "passes"],
            measure=["absolute", *["relative"] * len(drops), "total"],
            y=[read, *[-counts[action] for action in drops], ok],
            text=[f"{n:,}" for n in (read, *[counts[action] for action in drops], ok)],
            textposition="outside",
            decreasing={"marker": {"color": COLOURS["dropped_old"]}},
            totals={"marker": {"color": COLOURS["drained_ok"]}},
            increasing={"marker": {"color": "#0072B2"}},
            connector={"line": {"color": "#bbbbbb"}},
        )
    )
    figure.update_yaxes(range=[0, read * 1.12 or 1])
    return figure


def pace(audit_ms: np.ndarray, rate: float | None) -> go.Figure:
    """Events that reached the audit over time, against the throttle."""
    import plotly.graph_objects as go

    worst = busiest_second(audit_ms)
    allowed = "no limit" if rate is None else f"{rate:g} allowed"
    title = f"The busiest second holds {worst:,} events ({allowed})"
    figure = _figure(title, "seconds since the first", "events per second")
    if len(audit_ms):
        seconds = (audit_ms - audit_ms.min()) / 1000
        width = max(1.0, float(seconds.max()) / MAX_BINS)
        edges = np.arange(0, float(seconds.max()) + width, width)
        counts, edges = np.histogram(seconds, edges if len(edges) > 1 else [0.0, width])
        figure.add_trace(
            go.Bar(x=((edges[:-1] + edges[1:]) / 2).tolist(), y=(counts / width).tolist(),
                   marker_color=COLOURS["drained_ok"], width=width * 0.95)
        )  # fmt: skip
    if rate is not None:
        figure.add_hline(y=rate, line_dash="dash", line_color=LIMIT,
                         annotation_text=f"throttle {rate:g}/s")  # fmt: skip
    return figure


def busiest_second(audit_ms: np.ndarray) -> int:
    """The most records in any half-open window of one second, by the audit's ids (sorted)."""
    if not len(audit_ms):
        return 0
    first = np.searchsorted(audit_ms, audit_ms - 999, side="left")
    return int((np.arange(len(audit_ms)) - first).max()) + 1


def _figure(title: str, x_title: str, y_title: str, *, height: int = 340) -> go.Figure:
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.update_layout(
        title={"text": title, "x": 0, "xanchor": "left", "y": 0.97, "font": {"size": 17}},
        height=height,
        margin={"l": 60, "r": 20, "t": 84, "b": 50},
        template="plotly_white",
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        showlegend=False,
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "traceorder": "normal"},
    )
    figure.update_xaxes(title_text=x_title, automargin=True)
    figure.update_yaxes(title_text=y_title, automargin=True)
    return figure


def _histogram(
    figure: go.Figure, values: np.ndarray, limit: float, names: tuple[str, str], *, over: bool,
    limits: tuple[float, float] | None = None,
) -> None:  # fmt: skip
    """Bars in two colours, within the limit and beyond it; the limit is an edge of a bin."""
    import plotly.graph_objects as go

    low, high = limits or (0.0, float(values.max()) if len(values) else limit)
    high = max(high, limit) or 1.0
    step = (
        limit / max(1, round(limit / ((high - low) / MAX_BINS)))
        if limit
        else (high - low) / MAX_BINS
    )
    edges = np.arange(low, high + step, step)
    counts, edges = np.histogram(values, edges)
    middles = (edges[:-1] + edges[1:]) / 2
    beyond = middles > limit if over else middles < limit
    for chosen, name, colour in (
        (~beyond, names[0], COLOURS["drained_ok"]),
        (beyond, names[1], COLOURS["dropped_old"]),
    ):
        if counts[chosen].any():
            figure.add_trace(
                go.Bar(x=middles[chosen].round(6).tolist(), y=counts[chosen].tolist(), name=name,
                       marker_color=colour, width=step)
            )  # fmt: skip
    figure.update_layout(bargap=0, showlegend=True, barmode="overlay")


def _limit(figure: go.Figure, at: float, text: str) -> go.Figure:
    figure.add_vline(
        x=at, line_dash="dash", line_color=LIMIT, annotation_text=f" {text}",
        annotation_bgcolor="rgba(255,255,255,0.8)",
    )  # fmt: skip
    return figure


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
