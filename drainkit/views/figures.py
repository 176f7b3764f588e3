"""The figures of notebooks and report: binned, so their size does not grow with the backlog.

Each title says the finding. Colours are Okabe and Ito's, which colour-blind people can tell apart
(Color Universal Design, 2008). Texts from events are escaped: plotly reads some HTML in labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ..core.audit import Moments
from ..core.frame import decisions_of, microseconds
from ..core.policy import ACTIONS, COLOURS, NAMES, Policy, passing_at
from ..core.summary import amount, span
from ..core.timestamps import NO_TIME
from ..safe import label, share
from .picture import LINE, TIME_STEPS_SEC, Canvas, canvas, counted, moment, round_step

READ = "#0072B2"
TOP = 12
MAX_BINS = 80
MINUTE_US = 60_000_000
MAX_COMBINATIONS = 12
# of a signal's confidence; the first of which the limit is a multiple, so that no bin is cut
CONFIDENCE_STEPS = (0.02, 0.05, 0.03, 0.01)


def without_outliers(values: np.ndarray, limit: float) -> float:
    """How far an axis reaches, so that a few wrong clocks do not squeeze all others into a bar."""
    if not len(values):
        return limit
    most, usual = float(values.max()), float(np.quantile(values, 0.99))
    return most if most <= 3 * usual else max(1.5 * usual, 2 * limit)


def age_step_min(limit: float, high: float) -> float:
    """The width of a bin (minutes): a whole part or a multiple of the limit, at most 80 bins."""
    least = high / MAX_BINS
    parts = (60, 50, 40, 30, 20, 15, 12, 10, 6, 5, 4, 3, 2, 1)
    fits = (limit / part for part in parts if limit / part >= least)
    return next(fits, None) or limit * round_step(least / limit)


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


def _bars(figure: Canvas, x: Sequence[object], y: Sequence[object], colour: object,
          said: Sequence[str] | str, **more: object) -> None:  # fmt: skip
    """A trace of bars; `said` is what each says when pointed at, or the form of it for all."""
    if isinstance(said, str):
        told: dict[str, object] = {"hovertemplate": f"{said}<extra></extra>"}
    else:
        told = {"hovertext": said, "hoverinfo": "text"}
    figure.add_trace(go.Bar(x=x, y=y, marker_color=colour, **told, **more))


def _named_rows(figure: Canvas, names: Sequence[str], most: int) -> Canvas:
    """Horizontal bars from top to bottom, a name beside each; counts along the axis."""
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=[f"{name} " for name in names],
        range=[max(len(names), 2) - 0.5, -0.5], showgrid=False, zeroline=False,
    )  # fmt: skip
    figure.update_xaxes(rangemode="tozero")
    figure.update_layout(bargap=0.25)
    return counted(figure, "x", most)


def _against_limit(
    figure: Canvas, values: np.ndarray, limit: float, step: float, said: str,
    names: tuple[str, str], *, over: bool, left: bool, size: float = 1, unit: str = "",
) -> float:  # fmt: skip
    """Bars on both sides of a dashed line at the limit, in the colours of their fate; how far they
    reach. An axis of other units has `size` of the values' in each."""
    first, counts = histogram(values, limit, step, over=over)
    edges = np.maximum(limit + step * (first + np.arange(len(counts) + 1)), 0) / size
    middles, widths = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
    fates = ("drained_ok", "dropped_old") if over else ("dropped_low_conf", "drained_ok")
    beyond = np.arange(len(counts)) + first >= 0
    for rows, name, fate in zip((~beyond, beyond), names, fates, strict=True):
        if counts[rows].any():
            told = [f"{edges[k]:.4g} to {edges[k + 1]:.4g}{unit}: {amount(counts[k], 'events')}"
                    for k in np.flatnonzero(rows)]  # fmt: skip
            _bars(figure, middles[rows].round(6).tolist(), counts[rows].tolist(), COLOURS[fate],
                  told, name=name, width=widths[rows].round(6).tolist())  # fmt: skip
    most = int(counts.max(initial=0))
    figure.update_layout(
        bargap=0,
        barmode="overlay",
        yaxis_range=[0, 1.18 * most or 1],  # room for the limit's name
    )
    counted(figure, "y", most)
    figure.add_vline(
        x=limit / size, line_dash="dash", line_color=LINE, annotation_text=f" {said} ",
        annotation_position="top left" if left else "top right",
    )  # fmt: skip
    return float(edges[-1])


def age(ages_sec: np.ndarray, policy: Policy) -> Canvas:
    """How old the events are, against the maximum age."""
    ages_us = microseconds(ages_sec)
    old = int(policy.is_old(ages_us).sum())
    minutes, limit = ages_us[ages_us != NO_TIME] / MINUTE_US, policy.max_age_us / MINUTE_US
    del ages_us
    high = without_outliers(minutes, limit)
    units = ((1440, "days"), (60, "hours"))
    size, unit = next((pair for pair in units if high >= 4 * pair[0]), (1, "minutes"))
    x_title, said = f"age ({unit})", f"{policy.max_age_min:g} min"
    if beyond := int((minutes > high).sum()):
        x_title += f"; the last bar also holds {beyond:,} up to {span(minutes.max() * 60)}"
    title = f"{share(old, len(ages_sec))} of the events are older than {said}"
    title = title if old else f"No event is older than {said}"
    figure = canvas(title, x_title, "events", legend=True)
    step = age_step_min(limit, high)
    shown = np.clip(minutes, min(step, limit) / 2, high)  # none is below the first bar
    _against_limit(figure, shown, limit, step, f"max age {said}", ("young enough", "too old"),
                   over=True, left=limit > 0.7 * high, size=size,
                   unit=f" {unit if size > 1 else 'min'}")  # fmt: skip
    return figure


def confidence(values: np.ndarray, policy: Policy) -> Canvas:
    """How confident the signals are, against the minimum."""
    valid, limit = values[np.isfinite(values)], policy.min_conf
    low = int((valid < limit).sum())
    title = f"{share(low, len(values))} of the events are below confidence {limit:g}"
    title = title if low else f"No event is below confidence {limit:g}"
    figure = canvas(title, "confidence (0 to 1)", "events", legend=True)
    step = next((s for s in CONFIDENCE_STEPS if abs(limit / s - round(limit / s)) < 1e-9), 0.02)
    # 1.0 belongs into the last bar below 1, unless it is the limit itself
    shown = np.minimum(valid, max(limit, 1 - step / 2))
    reach = _against_limit(figure, shown, limit, step, f"min confidence {limit:g}",
                           ("too low", "high enough"), over=False, left=limit > 0.7)  # fmt: skip
    figure.update_xaxes(range=[0, max(1.0, reach)])
    return figure


def _by_action(actions: pd.Series, bins: np.ndarray, n: int) -> Iterator[tuple[str, np.ndarray]]:
    """For each action that occurs, how many of its events lie in each of `n` bins."""
    for action in ACTIONS:
        counts = np.bincount(bins[(actions == action).to_numpy()], minlength=n)
        if counts.any():
            yield action, counts


def by_category(frame: pd.DataFrame, column: str) -> Canvas:
    """Events by symbol, source or side, split by what becomes of them."""
    whole = frame[column]
    if pd.api.types.is_numeric_dtype(whole) and whole.nunique() > TOP:
        whole = pd.qcut(whole, TOP, duplicates="drop")  # ranges that hold as many events each
    values = whole.astype("category").cat
    names, codes = values.categories.astype(str), values.codes.to_numpy()
    order = np.argsort(-np.bincount(codes[codes >= 0], minlength=len(names)), kind="stable")
    order = order[:TOP]
    # rows by number, not by name: an event may call itself "(other)"
    row_of = np.full(len(names) + 1, len(order))
    row_of[order] = np.arange(len(order))
    row_of[-1] = len(order) + 1  # where code -1, no value, points to
    rows = row_of[codes]
    shown = [*map(label, names[order]), f"({len(names) - len(order):,} others)", "(none)"]
    totals = np.bincount(rows, minlength=len(shown))
    kept = np.flatnonzero(totals)
    ok = np.bincount(rows[(frame["action"] == "drained_ok").to_numpy()], minlength=len(shown))
    named, unnamed = ok[: len(order)], ok[-1]
    best = int(named.argmax()) if len(named) else 0
    told = "no event passes"
    if len(named) and ok[best]:
        few = f"{unnamed:,} that pass name none; of the others " * bool(unnamed > ok[best])
        told = f"{few}{shown[best]} has the most that pass, {ok[best]:,} of {totals[best]:,}"
    elif ok.any():
        lacking = "is one of the most frequent" if len(named) else "names one"
        told = f"none of the {ok.sum():,} that pass {lacking}"
    height = 150 + 26 * max(2, len(kept))
    figure = canvas(f"By {label(column)}: {told}", "events", "", height=height, legend=True)
    for action, counts in _by_action(frame["action"], rows, len(shown)):
        said = [f"{shown[k]}, {NAMES[action]}: {amount(counts[k], 'events')}" for k in kept]
        _bars(figure, counts[kept].tolist(), list(range(len(kept))), COLOURS[action], said,
              orientation="h", name=NAMES[action])  # fmt: skip
    figure.update_layout(barmode="stack")
    return _named_rows(figure, [shown[k] for k in kept], int(totals.max()))


def arrivals(frame: pd.DataFrame, x_title: str = "event time (UTC)") -> Canvas:
    """When the events were made (or drained), split by what becomes of them."""
    known = frame.loc[frame["event_time"].notna(), ["event_time", "action"]]
    if not len(known):
        title = "No event has a usable time" if len(frame) else "There is no event"
        return counted(canvas(title, x_title, "events"), "y", 0)
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
    figure = canvas(title, x_title, f"events per {span(step)}", legend=True)
    middles = [(start + (k + 0.5) * step) * 1000 for k in range(len(counts))]
    for action, part in _by_action(known["action"], bins, len(counts)):
        said = f"{span(step)} around %{{x}}: %{{y:,}} events, {NAMES[action]}"
        _bars(figure, middles, part.tolist(), COLOURS[action], said, name=NAMES[action],
              width=step * 1000)  # fmt: skip
    figure.update_layout(barmode="stack", bargap=0, xaxis_type="date")
    return counted(figure, "y", int(counts.max()))


def overlap(frame: pd.DataFrame) -> Canvas:
    """How the filters overlap: which combinations of them the events fail."""
    counts = frame["failed"].value_counts()
    counts = counts[counts > 0]
    several = int(sum(n for names, n in counts.items() if "," in str(names)))
    counts = counts[:MAX_COMBINATIONS]
    title = f"{share(several, len(frame))} of the events fail more than one filter"
    title = title if several else "No event fails more than one filter"
    figure = canvas(title, "events", "", height=110 + 26 * max(2, len(counts)))
    failed = [str(key).split(",") if key else ["drained_ok"] for key in counts.index]
    names = [" + ".join(NAMES[part] for part in parts) for parts in failed]
    names = ["passes all" if parts == ["drained_ok"] else name
             for name, parts in zip(names, failed, strict=True)]  # fmt: skip
    said = [f"{name}: {amount(n, 'events')}" for name, n in zip(names, counts, strict=True)]
    _bars(figure, counts.tolist(), list(range(len(names))), [COLOURS[part[0]] for part in failed],
          said, orientation="h", text=[f"{n:,}" for n in counts], textposition="outside",
          cliponaxis=False)  # fmt: skip
    most = int(counts.max()) if len(counts) else 0
    figure.update_xaxes(range=[0, 1.12 * most or 1])  # room for the longest bar's number
    return _named_rows(figure, names, most)


def what_if_limits(policy: Policy) -> tuple[list[float], list[float]]:
    """Limits around the policy's own, which are among them."""
    own, factors = policy.max_age_min, (1 / 6, 1 / 3, 1 / 2, 2, 4, 8, 24, 48)
    ages = {own, *(round(own * factor, 4) for factor in factors)}
    return sorted(ages), sorted({policy.min_conf, *(n / 10 for n in range(10))})


def what_if(frame: pd.DataFrame, policy: Policy) -> Canvas:
    """How many events would pass at other limits; only those that no other filter drops."""
    ages, confidences = what_if_limits(policy)
    oldest_min = frame["age_sec"].max() / 60  # nan without an age
    enough = next((age for age in ages if age >= max(oldest_min, policy.max_age_min)), ages[-1])
    ages = [age for age in ages if age <= enough]
    passing = passing_at(decisions_of(frame), frame["confidence"].to_numpy(), ages, confidences)
    row, column = ages.index(policy.max_age_min), confidences.index(policy.min_conf)
    title = (
        f"{passing[row, column]:,} would pass as set; at most {passing.max():,} within these limits"
    )
    figure = canvas(title, "minimum confidence", "maximum age", height=400)
    figure.add_trace(go.Heatmap(
        z=passing.tolist(), x=[f"{c:.15g}" for c in confidences],
        y=[span(minutes * 60) for minutes in ages], texttemplate="%{z:,}",
        hovertemplate="at most %{y} old, confidence at least %{x}: "
                      "%{z:,} would pass<extra></extra>",
        colorscale=[[0, "rgba(0,158,115,0)"], [1, "rgba(0,158,115,0.6)"]],
        zmin=0, zmax=max(1, int(passing.max())), showscale=False, xgap=1, ygap=1,
    ))  # fmt: skip
    figure.add_shape(
        type="rect", x0=column - 0.5, x1=column + 0.5, y0=row - 0.5, y1=row + 0.5,
        line={"color": COLOURS["dropped_invalid"], "width": 3},
    )  # fmt: skip
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", showgrid=False, title_standoff=14)
    return figure


def waterfall(counts: dict[str, int]) -> Canvas:
    """From all that was read to what passed, one step for each filter."""
    read, ok = sum(counts.values()), counts["drained_ok"]
    what = "event passes" if read == 1 else "events pass"
    figure = canvas(f"{ok:,} of {read:,} {what} ({share(ok, read)})", "", "events", height=380)
    heights = [read, *[counts[action] for action in ACTIONS]]
    levels = (read - np.cumsum([0, *heights[1:-1]])).tolist()  # before each filter
    names = ["read", *NAMES.values()]
    texts = [f"{'-' if 0 < k < len(ACTIONS) and n else ''}{n:,}" for k, n in enumerate(heights)]
    said = [f"{name}: {amount(n, 'events')}" for name, n in zip(names, heights, strict=True)]
    _bars(figure, list(range(len(names))), heights, [READ, *COLOURS.values()], said,
          base=[0, *levels[1:], 0], text=texts, textposition="outside",
          cliponaxis=False)  # fmt: skip
    for k, level in enumerate(levels if read else []):
        figure.add_shape(
            type="line", x0=k + 0.4, x1=k + 0.6, y0=level, y1=level, line={"color": "#888888"}
        )
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=names)
    figure.update_yaxes(range=[0, read * 1.12 or 1])
    return counted(figure, "y", read)


def pace(moments: Moments, rate: float | None) -> Canvas:
    """Events that reached the audit over time, against the throttle (events/s)."""
    figure = canvas(pace_title(moments, rate), "seconds since the first", "events per second")
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
        _bars(figure, middles, (counts / width).tolist(), COLOURS["drained_ok"],
              "around second %{x:.4g}: %{y:.4g} events per second", width=width * 0.95)  # fmt: skip
    if rate is not None:
        # a window of one second may hold the rate rounded up
        figure.add_hline(y=rate if rate < 1 else math.ceil(rate), line_dash="dash",
                         line_color=LINE, annotation_text=f"throttle {rate:g}/s")  # fmt: skip
    return counted(figure, "y", len(moments))


def pace_title(moments: Moments, rate: float | None) -> str:
    """Whether the throttle was kept, in words: per second, or by the gap where it is below 1/s."""
    if not len(moments):
        return "Nothing was drained, so there is no pace to measure"
    worst = moments.busiest_second()
    if rate is None:
        return f"The busiest second holds {amount(worst, 'events')} (no throttle)"
    if rate >= 1 or len(moments) < 2:
        return f"The busiest second holds {amount(worst, 'events')} ({math.ceil(rate):,} allowed)"
    gap = moments.closest_ms() / 1000
    return f"The closest two events are {gap:.1f} s apart (at least {1 / rate:.1f} s demanded)"
