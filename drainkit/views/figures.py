"""The figures of notebooks and report: binned, so their size does not grow with the backlog.

Each title says the finding. Colours are Okabe and Ito's, which colour-blind people can tell apart
(Color Universal Design, 2008). Texts from events are escaped: plotly reads some HTML in labels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io
from IPython.display import HTML, display

from ..core.frame import decisions_of, microseconds
from ..core.policy import ACTIONS, COLOURS, NAMES, Moments, Policy, passing_at
from ..core.summary import amount, span
from ..core.timestamps import NO_TIME
from ..safe import label, share
from .picture import TIME_STEPS_SEC, moment, round_step, svg

READ = "#0072B2"
TOP = 12  # rows of a figure
MAX_BINS = 80
MINUTE_US = 60_000_000
CONFIDENCE_STEP = 0.02
# middle grey: as far from white as from JupyterLab's dark paper; where a page knows better, STYLE
# gives its own text colour
TEXT, GRID, LINE, NONE = "#787878", "rgba(128,128,128,0.25)", "#808080", "rgba(0,0,0,0)"
# JupyterLab (4.6) hides cells that are out of sight, and a figure made anew in a hidden cell is
# 700 px wide for good: cut off in a narrow window
STYLE = (
    "<style>.jp-content-visibility-mode .jp-Cell{content-visibility:visible!important}"
    ".js-plotly-plot .main-svg :is(.gtitle,.xtitle,.ytitle,.legendtext,.annotation-text,"
    ".bartext-outside,.xtick text,.ytick text,.heatmap-label text)"
    "{fill:var(--jp-content-font-color1,currentColor)!important}</style>"
)


class Canvas(go.Figure):  # type: ignore[misc]
    """A plotly figure that shows itself in the colours of the page it is on."""

    def show(self, *_: object, **__: object) -> None:
        """Show it in a notebook."""
        display(HTML(STYLE))  # type: ignore[no-untyped-call]
        display(self.bundle(), raw=True)  # type: ignore[no-untyped-call]

    def bundle(self) -> dict[str, Any]:
        """The figure by MIME type: for plotly, and as a picture for pages without it."""
        figure = json.loads(self.to_json())
        renderer = plotly.io.renderers["plotly_mimetype"]
        renderer.config["typesetMath"] = False  # `$` in a name is no formula
        return {**renderer.to_mimebundle(figure), "image/svg+xml": svg(figure)}


def canvas(
    title: str, x_title: str, y_title: str, traces: Sequence[object], *, most: int,
    rows: Sequence[str] | None = None, legend: bool = False, height: int = 340, **more: Any,
) -> Canvas:  # fmt: skip
    """A figure of events, of which the longest bar holds `most`; with 0 it says so, without axes.

    `rows` are the names of horizontal bars, from top to bottom; else counts go up.
    """
    axis = {"automargin": True, "gridcolor": GRID, "zerolinecolor": GRID}
    if not most:
        axis |= {"showticklabels": False, "showgrid": False, "zeroline": False}
    axes = [{"title": {"text": name, "font": {"size": 13}}, **axis} for name in (x_title, y_title)]
    counts = {"tickformat": ",", "dtick": 1 if 0 < most <= 5 else None}
    axes[rows is None] |= counts
    if rows is not None:
        height = 110 + 40 * legend + 26 * max(2, len(rows))
        axes[0] |= {"rangemode": "tozero"}
        axes[1] |= {
            "tickvals": [*range(len(rows))], "ticktext": [f"{name} " for name in rows],
            "range": [max(len(rows), 2) - 0.5, -0.5], "showgrid": False, "zeroline": False,
        }  # fmt: skip
    # all at once: plotly checks a layout again whenever something of it changes
    figure = Canvas([*traces], {
        "template": "none",  # plotly's own would be 7 KB in each figure
        "title": {"text": title, "x": 0, "xanchor": "left", "y": 1, "yanchor": "top",
                  "pad": {"t": 14}, "font": {"size": 17}},
        "height": height,
        "margin": {"l": 60, "r": 20, "t": 84 if legend else 60, "b": 50},
        "paper_bgcolor": NONE, "plot_bgcolor": NONE,
        "modebar": {"bgcolor": NONE, "color": TEXT, "activecolor": LINE},
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": TEXT},
        "showlegend": legend,
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom",
                   "traceorder": "normal"},
        "xaxis": axes[0], "yaxis": axes[1], **more,
    })  # fmt: skip
    if not most:
        figure.add_annotation(text="no events", x=0.5, y=0.5, xref="paper", yref="paper",
                              showarrow=False)  # fmt: skip
    return figure


def _bars(x: Sequence[object], y: Sequence[object], colour: object, said: Sequence[str] | str,
          **more: object) -> go.Bar:  # fmt: skip
    """Bars; `said` is what each says when pointed at, or the form of it for all."""
    if isinstance(said, str):
        return go.Bar(x=x, y=y, marker_color=colour, hovertemplate=f"{said}<extra></extra>", **more)
    return go.Bar(x=x, y=y, marker_color=colour, hovertext=said, hoverinfo="text", **more)


def without_outliers(values: np.ndarray, limit: float) -> float:
    """How far an axis reaches, so that a few wrong clocks do not squeeze all others into a bar."""
    if not len(values):
        return limit
    most, usual = float(values.max()), float(np.quantile(values, 0.99))
    return most if most <= 3 * usual else max(1.5 * usual, 2 * limit)


def histogram(
    values: np.ndarray, limit: float, step: float, *, over: bool
) -> tuple[int, np.ndarray]:
    """Number of the first bin, and the counts: bin k reaches from limit + k step to the next.

    The limit is an edge. Exactly at it passes: it is counted below with a maximum (`over`), above
    with a minimum.
    """
    if not len(values):
        return 0, np.zeros(0, dtype=np.int64)
    places = values - limit  # from here on in place: of a million events each array has 8 MB
    places /= step
    # rounded: 0.58 is an edge, though its last binary digits may say a hair less
    np.round(places, 9, out=places)
    (np.ceil if over else np.floor)(places, out=places)
    places -= over
    # no rounding carries an event over the limit
    beyond = values > limit if over else values >= limit
    np.maximum(places, 0, out=places, where=beyond)
    np.minimum(places, -1, out=places, where=~beyond)
    first = int(places.min())
    places -= first
    return first, np.bincount(places.astype(np.int64))


def _against_limit(
    title: str, x_title: str, values: np.ndarray, limit: float, step: float, said: str,
    names: tuple[str, str], *, over: bool, ends: tuple[float, float] | None = None,
) -> Canvas:  # fmt: skip
    """Bars on both sides of a dashed line at the limit, in the colours of their fate."""
    first, counts = histogram(values, limit, step, over=over)
    edges = np.maximum(limit + step * (first + np.arange(len(counts) + 1)), 0)
    middles, widths = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
    # the limit is in sight, however far the bars are from it
    low, high = ends or (max(0, min(edges[0], limit) - step), max(edges[-1], limit) + step)
    fates = ("drained_ok", "dropped_old") if over else ("dropped_low_conf", "drained_ok")
    beyond, traces = np.arange(len(counts)) + first >= 0, []
    for part, name, fate in zip((~beyond, beyond), names, fates, strict=True):
        if counts[part].any():
            told = [f"{edges[k]:.4g} to {edges[k + 1]:.4g}{' min' * over}: "
                    f"{amount(counts[k], 'events')}" for k in np.flatnonzero(part)]  # fmt: skip
            traces.append(_bars(middles[part].round(6).tolist(), counts[part].tolist(),
                                COLOURS[fate], told, name=name,
                                width=widths[part].round(6).tolist()))  # fmt: skip
    most = int(counts.max(initial=0))
    figure = canvas(
        title, x_title, "events", traces, most=most, legend=True, bargap=0, barmode="overlay",
        xaxis_range=[low, high], yaxis_range=[0, 1.18 * most or 1],  # room for the limit's name
    )  # fmt: skip
    figure.add_vline(
        x=limit, line_dash="dash", line_color=LINE, annotation_text=f" {said} ",
        annotation_position="top left" if limit - low > 0.7 * (high - low) else "top right",
    )  # fmt: skip
    return figure


def age(ages_sec: np.ndarray, policy: Policy) -> Canvas:
    """How old the events are, against the maximum age."""
    ages_us = microseconds(ages_sec)
    old = int(policy.is_old(ages_us).sum())
    minutes, limit = ages_us[ages_us != NO_TIME] / MINUTE_US, policy.max_age_us / MINUTE_US
    del ages_us
    high, x_title = without_outliers(minutes, limit), "age (minutes)"
    if beyond := int((minutes > high).sum()):
        x_title += f"; the last bar also holds {beyond:,} up to {span(minutes.max() * 60)}"
    said = f"{policy.max_age_min:g} min"
    title = f"{share(old, len(ages_sec))} of the events are older than {said}"
    step = round_step(max(high, limit, 1) / MAX_BINS)
    shown = np.clip(minutes, min(step, limit) / 2, high)  # none is below the first bar
    return _against_limit(title if old else f"No event is older than {said}", x_title, shown,
                          limit, step, f"max age {said}", ("young enough", "too old"),
                          over=True)  # fmt: skip


def confidence(values: np.ndarray, policy: Policy) -> Canvas:
    """How confident the signals are, against the minimum."""
    valid, limit = values[np.isfinite(values)], policy.min_conf
    low = int((valid < limit).sum())
    title = f"{share(low, len(values))} of the events are below confidence {limit:g}"
    title = title if low else f"No event is below confidence {limit:g}"
    # 1.0 belongs into the last bar below 1, unless it is the limit itself
    shown = np.minimum(valid, max(limit, 1 - CONFIDENCE_STEP / 2))
    return _against_limit(title, "confidence (0 to 1)", shown, limit, CONFIDENCE_STEP,
                          f"min confidence {limit:g}", ("too low", "high enough"), over=False,
                          ends=(0, 1 + CONFIDENCE_STEP))  # fmt: skip


def _by_action(actions: pd.Series, bins: np.ndarray, n: int) -> Iterator[tuple[str, np.ndarray]]:
    """For each action that occurs, how many of its events lie in each of `n` bins."""
    for action in ACTIONS:
        counts = np.bincount(bins[(actions == action).to_numpy()], minlength=n)
        if counts.any():
            yield action, counts


def by_category(frame: pd.DataFrame, column: str) -> Canvas:
    """Events by symbol, source or side, split by what becomes of them."""
    values = frame[column].astype("category").cat
    names, codes = values.categories.astype(str), values.codes.to_numpy()
    order = np.argsort(-np.bincount(codes[codes >= 0], minlength=len(names)), kind="stable")
    order = order[:TOP]
    # rows by number, not by name: an event may call itself "(none)"
    row_of = np.full(len(names) + 1, len(order))
    row_of[order] = np.arange(len(order))
    row_of[-1] = len(order) + 1  # where code -1, no value, points to
    rows = row_of[codes]
    shown = [*map(label, names[order]), f"({len(names) - len(order):,} others)", "(none)"]
    totals = np.bincount(rows, minlength=len(shown))
    passing = np.bincount(rows[(frame["action"] == "drained_ok").to_numpy()], minlength=len(shown))
    kept, best = np.flatnonzero(totals), int(passing.argmax())
    told = "no event passes"
    if passing[best]:
        told = f"most that pass are of {shown[best]}, {passing[best]:,} of {totals[best]:,}"
    traces = []
    for action, counts in _by_action(frame["action"], rows, len(shown)):
        said = [f"{shown[k]}, {NAMES[action]}: {amount(counts[k], 'events')}" for k in kept]
        traces.append(_bars(counts[kept].tolist(), [*range(len(kept))], COLOURS[action], said,
                            orientation="h", name=NAMES[action]))  # fmt: skip
    return canvas(
        f"By {label(column)}: {told}", "events", "", traces, most=int(totals.max()),
        rows=[shown[k] for k in kept], legend=True, barmode="stack",
    )  # fmt: skip


def arrivals(frame: pd.DataFrame, x_title: str = "event time (UTC)") -> Canvas:
    """When the events were made (or drained), split by what becomes of them."""
    known = frame.loc[frame["event_time"].notna(), ["event_time", "action"]]
    if not len(known):
        title = "No event has a usable time" if len(frame) else "There is no event"
        return canvas(title, x_title, "events", [], most=0)
    times = known["event_time"].dt.as_unit("us").astype("int64").to_numpy() / 1e6
    reach = without_outliers(times.max() - times, 0)
    year = TIME_STEPS_SEC[-1]
    years = math.ceil(reach / year / MAX_BINS) * year  # wrong clocks reach from year 1 to 9999
    step = next((s for s in TIME_STEPS_SEC if reach / s <= MAX_BINS), years)
    start = math.floor((times.max() - reach) / step) * step
    bins = np.maximum((times - start) // step, 0).astype(np.int64)
    counts = np.bincount(bins)
    peak = moment(start + int(counts.argmax()) * step)
    began = f"{peak:%d %b %H:%M:%S}" if step < 86_400 else peak.date().isoformat()
    title = f"The busiest {span(step)} began {began}: {amount(counts.max(), 'events')}"
    if before := int((times < start).sum()):
        x_title += f"; the first bar also holds {before:,} back to {moment(times.min()):%Y-%m-%d}"
    middles = [(start + (k + 0.5) * step) * 1000 for k in range(len(counts))]
    traces = [
        _bars(middles, part.tolist(), COLOURS[action],
              f"{span(step)} around %{{x}}: %{{y:,}} events, {NAMES[action]}",
              name=NAMES[action], width=step * 1000)
        for action, part in _by_action(known["action"], bins, len(counts))
    ]  # fmt: skip
    return canvas(title, x_title, f"events per {span(step)}", traces, most=int(counts.max()),
                  legend=True, barmode="stack", bargap=0, xaxis_type="date")  # fmt: skip


def overlap(frame: pd.DataFrame) -> Canvas:
    """How the filters overlap: which combinations of them the events fail."""
    counts = frame["failed"].value_counts()
    counts = counts[counts > 0]
    several = int(sum(n for names, n in counts.items() if "," in str(names)))
    counts = counts[:TOP]
    title = f"{share(several, len(frame))} of the events fail more than one filter"
    failed = [str(key).split(",") if key else ["drained_ok"] for key in counts.index]
    names = [" + ".join(NAMES[part] for part in parts) for parts in failed]
    said = [f"{name}: {amount(n, 'events')}" for name, n in zip(names, counts, strict=True)]
    traces = [_bars(counts.tolist(), [*range(len(names))], [COLOURS[part[0]] for part in failed],
                    said, orientation="h", text=[f"{n:,}" for n in counts],
                    textposition="outside", cliponaxis=False)]  # fmt: skip
    most = int(counts.max()) if len(counts) else 0
    return canvas(
        title if several else "No event fails more than one filter", "events", "", traces,
        most=most, rows=names, xaxis_range=[0, 1.12 * most or 1],  # room for the longest's number
    )  # fmt: skip


def what_if_limits(policy: Policy) -> tuple[list[float], list[float]]:
    """Nine ages (minutes) and ten confidences, ascending, the policy's own among them."""
    own, factors = policy.max_age_min, (1 / 6, 1 / 3, 1 / 2, 1, 2, 4, 8, 24, 48)
    tenths = [n / 10 for n in range(10)]
    nearest = min(tenths, key=lambda tenth: abs(tenth - policy.min_conf))
    return [own * factor for factor in factors], sorted({*tenths} - {nearest} | {policy.min_conf})


def what_if(frame: pd.DataFrame, policy: Policy) -> Canvas:
    """How many events would pass at other limits; only those that no other filter drops."""
    ages, confidences = what_if_limits(policy)
    oldest_min = frame["age_sec"].max() / 60  # nan without an age
    enough = next((age for age in ages if age >= max(oldest_min, policy.max_age_min)), ages[-1])
    ages = [age for age in ages if age <= enough]
    passing = passing_at(decisions_of(frame), frame["confidence"].to_numpy(), ages, confidences)
    row, column = ages.index(policy.max_age_min), confidences.index(policy.min_conf)
    names = [f"{c:.15g}" for c in confidences], [span(minutes * 60) for minutes in ages]
    cells = go.Heatmap(
        z=passing.tolist(), x=names[0], y=names[1], texttemplate="%{z:,}", showscale=False,
        colorscale=[[0, "rgba(0,158,115,0)"], [1, "rgba(0,158,115,0.6)"]],
        zmin=0, zmax=max(1, int(passing.max())), xgap=1, ygap=1,
        hovertemplate="at most %{y} old, confidence at least %{x}: "
                      "%{z:,} would pass<extra></extra>",
    )  # fmt: skip
    figure = canvas(
        f"{passing[row, column]:,} would pass as set; at most {passing.max():,} within these "
        "limits", "minimum confidence", "maximum age", [cells], most=len(cells.z), height=400,
    )  # fmt: skip
    figure.add_shape(
        type="rect", x0=column - 0.5, x1=column + 0.5, y0=row - 0.5, y1=row + 0.5,
        line={"color": COLOURS["dropped_invalid"], "width": 3},
    )  # fmt: skip
    for axis, texts in zip((figure.layout.xaxis, figure.layout.yaxis), names, strict=True):
        axis.update(type="category", tickvals=[*range(len(texts))], ticktext=texts, dtick=None,
                    showgrid=False, range=[-0.5, len(texts) - 0.5], title_standoff=14)  # fmt: skip
    return figure


def waterfall(counts: dict[str, int]) -> Canvas:
    """From all that was read to what passed, one step for each filter."""
    read, ok = sum(counts.values()), counts["drained_ok"]
    what = "event passes" if read == 1 else "events pass"
    heights = [read, *[counts[action] for action in ACTIONS]]
    base = (read - np.cumsum(heights[1:])).tolist()  # after each filter
    names = ["read", *NAMES.values()]
    texts = [f"{'-' if 0 < k < len(ACTIONS) and n else ''}{n:,}" for k, n in enumerate(heights)]
    said = [f"{name}: {amount(n, 'events')}" for name, n in zip(names, heights, strict=True)]
    bars = _bars([*range(len(names))], heights, [READ, *COLOURS.values()], said, base=[0, *base],
                 text=texts, textposition="outside", cliponaxis=False)  # fmt: skip
    return canvas(
        f"{ok:,} of {read:,} {what} ({share(ok, read)})", "", "events", [bars], most=read,
        height=380, yaxis_range=[0, read * 1.12 or 1], xaxis_tickvals=[*range(len(names))],
        xaxis_ticktext=names,
    )  # fmt: skip


def pace(moments: Moments, rate: float | None) -> Canvas:
    """Events that reached the audit over time, against the throttle (events/s).

    The title says whether it was kept: per second, or by the gap where it is below 1/s.
    """
    title, traces = "Nothing was drained, so there is no pace to measure", []
    if len(moments):
        ms, n = moments.counts()
        span_sec = int(ms[-1] - ms[0]) / 1000
        if rate is None or rate >= 1:
            # whole seconds: a bar of 1.7 s could show more than the throttle where none was broken
            width: float = max(1, math.ceil(span_sec / MAX_BINS))
            in_ms = int(width * 1000)
        else:  # ten events' worth; ids are whole milliseconds: each gap can look 1 ms too short
            tens = max(1, math.ceil(span_sec * rate / 10 / MAX_BINS))
            width, in_ms = tens * 10 / rate, int(tens * 10_000 / rate) - 10 * tens
        counts = np.bincount((ms - ms[0]) // in_ms, n)
        middles = [(k + 0.5) * width for k in range(len(counts))]
        traces = [_bars(middles, (counts / width).tolist(), COLOURS["drained_ok"],
                        "around second %{x:.4g}: %{y:.4g} events per second",
                        width=width * 0.95)]  # fmt: skip
        allowed = "no throttle" if rate is None else f"{math.ceil(rate):,} allowed"
        worst = amount(moments.busiest_second(), "events")
        title = f"The busiest second holds {worst} ({allowed})"
        if rate is not None and rate < 1 and len(moments) > 1:
            gap = f"{moments.closest_ms() / 1000:.1f} s apart (at least {1 / rate:.1f} s demanded)"
            title = f"The closest two events are {gap}"
    figure = canvas(title, "seconds since the first", "events per second", traces,
                    most=len(moments))  # fmt: skip
    if rate is not None:
        # a window of one second may hold the rate rounded up
        figure.add_hline(y=rate if rate < 1 else math.ceil(rate), line_dash="dash",
                         line_color=LINE, annotation_text=f"throttle {rate:g}/s")  # fmt: skip
    return figure
