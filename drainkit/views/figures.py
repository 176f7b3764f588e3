"""The figures of notebooks and report: binned, so their size does not grow with the backlog.

Each is the JSON that plotly draws in a browser; `svg` draws it for pages without plotly (a report,
an exported page). Each title says the finding. Colours are Okabe and Ito's, which colour-blind
people can tell apart (Color Universal Design, 2008). Texts from events are escaped: plotly reads
some HTML in labels; a picture escapes all once more.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import HTML, display

from ..core.frame import decisions_of, microseconds
from ..core.policy import ACTIONS, COLOURS, NAMES, Moments, Policy, passing_at
from ..core.summary import amount, span
from ..core.values import NO_TIME
from ..safe import label, share
from .session import macros

Json = dict[str, Any]
READ = "#0072B2"
TOP = 12  # rows of a figure
MAX_BINS = 80
MINUTE_US = 60_000_000
CONFIDENCE_STEP = 0.02
# of a picture, in pixels; a character's width is about that
WIDTH, LEFT_MIN, RIGHT, BOTTOM, CHARACTER = 760, 62, 44, 46, 6.6
# of the events on either side of a limit: what they are called, and what becomes of them
BELOW_MOST = (("young enough", "drained_ok"), ("too old", "dropped_old"))
FROM_LEAST = (("too low", "dropped_low_conf"), ("high enough", "drained_ok"))
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


class Canvas(Json):
    """A figure that shows itself in the colours of the page it is on."""

    def show(self, *_: object, **__: object) -> None:
        """Show it in a notebook."""
        display(HTML(STYLE))  # type: ignore[no-untyped-call]
        display(self.bundle(), raw=True)  # type: ignore[no-untyped-call]

    _ipython_display_ = show

    def bundle(self) -> Json:
        """The figure by MIME type: for plotly, and as a picture for pages without it."""
        drawn = {**self, "config": {"typesetMath": False}}  # `$` in a name is no formula
        return {"application/vnd.plotly.v1+json": drawn, "image/svg+xml": svg(self)}


def canvas(
    title: str, x_title: str, y_title: str, traces: Sequence[Json], *, most: int,
    rows: Sequence[str] | None = None, height: int = 340, x: Json | None = None,
    y: Json | None = None, annotations: Sequence[Json] = (), **more: Any,
) -> Canvas:  # fmt: skip
    """A figure of events, of which the longest bar holds `most`; with 0 it says so, without axes.

    `rows` are the names of horizontal bars, from top to bottom; else counts go up. `x` and `y` say
    more of the axes.
    """
    legend = any("name" in trace for trace in traces)
    axis: Json = {"automargin": True, "gridcolor": GRID, "zerolinecolor": GRID}
    if not most:
        axis |= {"showticklabels": False, "showgrid": False, "zeroline": False}
        annotations = [*annotations, {"text": "no events", "x": 0.5, "y": 0.5, "xref": "paper",
                                      "yref": "paper", "showarrow": False}]  # fmt: skip
    titles = [{"text": name, "font": {"size": 13}, "standoff": 12} for name in (x_title, y_title)]
    axes = [{"title": one, **axis} for one in titles]
    axes[rows is None] |= {"tickformat": ",", **({"dtick": 1} if 0 < most <= 5 else {})}
    if rows is not None:
        height = 110 + 40 * legend + 26 * max(2, len(rows))
        axes[0] |= {"rangemode": "tozero"}
        axes[1] |= _named([f"{name} " for name in rows], range=[max(len(rows), 2) - 0.5, -0.5])
    return Canvas(data=[*traces], layout={
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
        "xaxis": axes[0] | (x or {}), "yaxis": axes[1] | (y or {}),
        "annotations": [*annotations], **more,
    })  # fmt: skip


def _named(names: Sequence[str], **more: object) -> Json:
    """An axis on which places have names."""
    places = {"tickvals": [*range(len(names))], "ticktext": [*names]}
    return {**places, "showgrid": False, "zeroline": False, **more}


def _bars(
    x: Sequence[object], y: Sequence[object], colour: object, said: Sequence[str], **more: object
) -> Json:
    """Bars; `said` is what each says when pointed at."""
    told = {"hovertext": said, "hoverinfo": "text"}
    return {"type": "bar", "x": x, "y": y, "marker": {"color": colour}, **told, **more}


def _limit(axis: str, at: float, words: str, **place: str) -> Json:
    """A dashed line across the figure at a value of one axis, and its name at the line's end."""
    across = "y" if axis == "x" else "x"
    where = {f"{axis}ref": axis, f"{across}ref": f"{across} domain"}
    ends = {f"{axis}0": at, f"{axis}1": at, f"{across}0": 0, f"{across}1": 1}
    line = {"type": "line", "line": {"color": LINE, "dash": "dash"}, **where, **ends}
    note = {"text": words, "showarrow": False, **where, axis: at, across: 1, **place}
    return {"shapes": [line], "annotations": [note]}


def histogram(
    values: np.ndarray, limit: float, step: float, *, over: bool
) -> tuple[int, np.ndarray]:
    """Number of the first bin, and the counts: bin k reaches from limit + k step to the next.

    The limit is an edge. Exactly at it passes: it is counted below with a maximum (`over`), above
    with a minimum.
    """
    # rounded: 0.58 is an edge, though its last binary digits may say a hair less
    places = np.round((values - limit) / step, 9)
    (np.ceil if over else np.floor)(places, out=places)  # in place: a million events are 8 MB
    places -= over
    # no rounding carries an event over the limit
    beyond = values > limit if over else values >= limit
    np.maximum(places, 0, out=places, where=beyond)
    np.minimum(places, -1, out=places, where=~beyond)
    bins = places.astype(np.int32)
    first = int(bins.min(initial=0))
    return first, np.bincount(bins - first)


def _against_limit(
    whose: str, out: int, total: int, x_title: str, values: np.ndarray, limit: float, step: float,
    said: str, *, over: bool,
) -> Canvas:  # fmt: skip
    """Bars on both sides of a dashed line at the limit, in the colours of their fate.

    The title says that `out` of `total` events are `whose` (`older than 30 min`).
    """
    first, counts = histogram(values, limit, step, over=over)
    edges = np.maximum(limit + step * (first + np.arange(len(counts) + 1)), 0)
    middles, widths = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
    # the limit is in sight, however far the bars are from it
    low, high = max(0, min(edges[0], limit) - step), max(edges[-1], limit) + step
    beyond, traces = np.arange(len(counts)) + first >= 0, []
    sides = BELOW_MOST if over else FROM_LEAST
    for part, (name, fate) in zip((~beyond, beyond), sides, strict=True):
        if len(shown := np.flatnonzero(part & (counts > 0))):
            told = [f"{edges[k]:.4g} to {edges[k + 1]:.4g}{' min' * over}: "
                    f"{amount(counts[k], 'events')}" for k in shown]  # fmt: skip
            traces.append(_bars(middles[shown].round(6).tolist(), counts[shown].tolist(),
                                COLOURS[fate], told, name=name,
                                width=widths[shown].round(6).tolist()))  # fmt: skip
    most = int(counts.max(initial=0))
    side = "right" if limit - low > 0.7 * (high - low) else "left"
    return canvas(
        f"{share(out, total)} of the events are {whose}" if out else f"No event is {whose}",
        x_title, "events", traces, most=most, bargap=0, barmode="overlay", x={"range": [low, high]},
        y={"range": [0, 1.18 * most or 1]},  # room for the limit's name
        **_limit("x", limit, f" {said} ", xanchor=side, yanchor="top"),
    )  # fmt: skip


def age(ages_sec: np.ndarray, policy: Policy) -> Canvas:
    """How old the events are, against the maximum age."""
    ages_us = microseconds(ages_sec)
    old, said = int((ages_us > policy.max_age_us).sum()), f"{policy.max_age_min:g} min"
    minutes, limit = ages_us[ages_us != NO_TIME] / MINUTE_US, policy.max_age_us / MINUTE_US
    most, usual = (float(np.quantile(minutes, q)) if len(minutes) else limit for q in (1, 0.99))
    # a few wrong clocks are not to squeeze all others into one bar
    high = most if most <= 3 * usual else max(1.5 * usual, 2 * limit)
    x_title = "age (minutes)"
    if beyond := int((minutes > high).sum()):
        x_title += f"; the last bar also holds {beyond:,} up to {span(most * 60)}"
    step = round_step(max(high, limit, 1) / MAX_BINS)
    shown = np.clip(minutes, min(step, limit) / 2, high)  # none is below the first bar
    return _against_limit(f"older than {said}", old, len(ages_sec), x_title, shown, limit, step,
                          f"max age {said}", over=True)  # fmt: skip


def confidence(values: np.ndarray, policy: Policy) -> Canvas:
    """How confident the signals are, against the minimum."""
    valid, limit = values[np.isfinite(values)], policy.min_conf
    # 1.0 belongs into the last bar below 1, unless it is the limit itself
    shown = np.minimum(valid, max(limit, 1 - CONFIDENCE_STEP / 2))
    return _against_limit(f"below confidence {limit:g}", int((valid < limit).sum()), len(values),
                          "confidence (0 to 1)", shown, limit, CONFIDENCE_STEP,
                          f"min confidence {limit:g}", over=False)  # fmt: skip


def by_category(frame: pd.DataFrame, column: str) -> Canvas:
    """Events by symbol, source or side, split by what becomes of them."""
    values = frame[column].astype("category").cat
    names, codes = values.categories.astype(str), values.codes.to_numpy()
    order = np.argsort(-np.bincount(codes[codes >= 0], minlength=len(names)), kind="stable")[:TOP]
    # rows by number, not by name: an event may call itself "(none)"
    row_of = np.full(len(names) + 1, len(order))
    row_of[order] = np.arange(len(order))
    row_of[-1] = len(order) + 1  # where code -1, no value, points to
    shown = [*map(label, names[order]), f"({len(names) - len(order):,} others)", "(none)"]
    rows, actions, n = row_of[codes], frame["action"], len(shown)
    found = {a: np.bincount(rows[(actions == a).to_numpy()], minlength=n) for a in ACTIONS}
    parts, none = {a: k for a, k in found.items() if k.any()}, np.zeros(n, int)
    totals, passing = sum(parts.values(), none), parts.get("drained_ok", none)
    kept, best = np.flatnonzero(totals), int(passing.argmax())
    told = "no event passes"
    if passing[best]:
        told = f"most that pass are of {shown[best]}, {passing[best]:,} of {totals[best]:,}"
    traces = []
    for action, counts in parts.items():
        said = [f"{shown[k]}, {NAMES[action]}: {amount(counts[k], 'events')}" for k in kept]
        traces.append(_bars(counts[kept].tolist(), [*range(len(kept))], COLOURS[action], said,
                            orientation="h", name=NAMES[action]))  # fmt: skip
    return canvas(f"By {label(column)}: {told}", "events", "", traces, most=int(totals.max()),
                  rows=[shown[k] for k in kept], barmode="stack")  # fmt: skip


def overlap(frame: pd.DataFrame) -> Canvas:
    """How the filters overlap: which combinations of them the events fail."""
    counts = frame["failed"].value_counts()
    counts = counts[counts > 0]
    several = int(sum(n for names, n in counts.items() if "," in str(names)))
    title = f"{share(several, len(frame))} of the events fail more than one filter"
    counts = counts[:TOP]
    failed = [str(key).split(",") if key else ["drained_ok"] for key in counts.index]
    names = [" + ".join(NAMES[part] for part in parts) for parts in failed]
    said = [f"{name}: {amount(n, 'events')}" for name, n in zip(names, counts, strict=True)]
    bars = _bars(counts.tolist(), [*range(len(names))], [COLOURS[part[0]] for part in failed],
                 said, orientation="h", text=[f"{n:,}" for n in counts], textposition="outside",
                 cliponaxis=False)  # fmt: skip
    most = int(counts.max()) if len(counts) else 0
    return canvas(
        title if several else "No event fails more than one filter", "events", "", [bars],
        most=most, rows=names, x={"range": [0, 1.12 * most or 1]},  # room for the longest's number
    )  # fmt: skip


def what_if(frame: pd.DataFrame, policy: Policy) -> Canvas:
    """How many events would pass at other limits; only those that no other filter drops.

    Nine ages and ten confidences, the policy's own among them.
    """
    own, factors = policy.max_age_min, (1 / 6, 1 / 3, 1 / 2, 1, 2, 4, 8, 24, 48)
    ages, tenths = [own * factor for factor in factors], [n / 10 for n in range(10)]
    nearest = min(tenths, key=lambda tenth: abs(tenth - policy.min_conf))
    confidences = sorted({*tenths} - {nearest} | {policy.min_conf})
    passing = passing_at(decisions_of(frame), frame["confidence"].to_numpy(), ages, confidences)
    row, column = ages.index(own), confidences.index(policy.min_conf)
    names = [f"{c:.15g}" for c in confidences], [span(minutes * 60) for minutes in ages]
    cells = {
        "type": "heatmap", "z": passing.tolist(), "x": names[0], "y": names[1],
        "texttemplate": "%{z:,}", "showscale": False, "zmin": 0, "xgap": 1, "ygap": 1,
        "colorscale": [[0, "rgba(0,158,115,0)"], [1, "rgba(0,158,115,0.6)"]],
        "zmax": max(1, int(passing.max())),
        "hovertemplate": "at most %{y} old, confidence at least %{x}: %{z:,} pass<extra></extra>",
    }  # fmt: skip
    frame_of_own = {
        "type": "rect", "x0": column - 0.5, "x1": column + 0.5, "y0": row - 0.5, "y1": row + 0.5,
        "line": {"color": COLOURS["dropped_invalid"], "width": 3},
    }  # fmt: skip
    x, y = (_named(one, type="category", range=[-0.5, len(one) - 0.5]) for one in names)
    now, most = passing[row, column], passing.max()
    title = f"{now:,} would pass as set; at most {most:,} within these limits"
    return canvas(title, "minimum confidence", "maximum age", [cells], most=1, height=400,
                  shapes=[frame_of_own], x=x, y=y)  # fmt: skip


def waterfall(counts: Mapping[str, int]) -> Canvas:
    """From all that was read to what passed, one step for each filter."""
    read, ok = sum(counts.values()), counts["drained_ok"]
    what = "event passes" if read == 1 else "events pass"
    heights = [read, *[counts[action] for action in ACTIONS]]
    base = [0, *(read - np.cumsum(heights[1:])).tolist()]  # after each filter
    names = ["read", *NAMES.values()]
    texts = [f"{'-' if 0 < k < len(ACTIONS) and n else ''}{n:,}" for k, n in enumerate(heights)]
    said = [f"{name}: {amount(n, 'events')}" for name, n in zip(names, heights, strict=True)]
    bars = _bars([*range(len(names))], heights, [READ, *COLOURS.values()], said, base=base,
                 text=texts, textposition="outside", cliponaxis=False)  # fmt: skip
    return canvas(f"{ok:,} of {read:,} {what} ({share(ok, read)})", "", "events", [bars], most=read,
                  height=380, x=_named(names), y={"range": [0, read * 1.12 or 1]})  # fmt: skip


def pace(moments: Moments, rate: float | None) -> Canvas:
    """Events that reached the audit over time, against the throttle (events/s).

    The title says whether it was kept: per second, or by the gap where it is below 1/s.
    """
    title, traces, limit = "Nothing was drained, so there is no pace to measure", [], {}
    top = 0.0
    width = 1.0 if rate is None or rate >= 1 else 10 / rate  # ten events' worth
    if len(moments):
        ms, n = moments.counts()
        # whole seconds: a bar of 1.7 s could show more than the throttle where none was broken
        width = math.ceil(max(width, int(ms[-1] - ms[0]) / 1000 / MAX_BINS))
        counts = np.bincount((ms - ms[0]) // (1000 * width), n)
        middles, rates = [(k + 0.5) * width for k in range(len(counts))], (counts / width).tolist()
        said = [f"around second {at:.4g}: {one:.4g} events per second"
                for at, one in zip(middles, rates, strict=True)]  # fmt: skip
        traces = [_bars(middles, rates, COLOURS["drained_ok"], said, width=width * 0.95)]
        top = max(rates)
        allowed = "no throttle" if rate is None else f"{math.ceil(rate):,} allowed"
        worst = amount(moments.busiest_second(), "events")
        title = f"The busiest second holds {worst} ({allowed})"
        if rate is not None and rate < 1 and len(moments) > 1:
            gap = f"{moments.closest_ms() / 1000:.1f} s apart (at least {1 / rate:.1f} s demanded)"
            title = f"The closest two events are {gap}"
    if rate is not None:  # a bar may hold as many whole events as the rate begins in it
        most = math.ceil(round(rate * width, 9)) / width
        limit = _limit("y", most, f"throttle {rate:g}/s", xanchor="right", yanchor="bottom")
        top = max(top, most)
    return canvas(title, "seconds since the first", "events per second", traces, most=len(moments),
                  y={"range": [0, 1.08 * top or 1]}, **limit)  # fmt: skip


# ---------------------------------------------------------------- as a picture


def svg(figure: Mapping[str, Any]) -> str:
    """The figure as SVG: what is made here, and nothing else of what plotly can do."""
    traces, layout = figure["data"], figure["layout"]
    boxes = [*_boxes(traces, is_stacked=layout.get("barmode") == "stack")]
    bottom, top = layout["height"] - BOTTOM, layout["margin"]["t"]
    y = _Axis(layout["yaxis"], [end for box in boxes for end in box[2:4]], bottom, top)
    longest = max((len(html.unescape(name)) for _, name in y.ticks), default=0)
    left = max(LEFT_MIN, min(300, 30 + CHARACTER * longest))
    x = _Axis(layout["xaxis"], [end for box in boxes for end in box[:2]], left, WIDTH - RIGHT)
    return str(macros().picture(layout, traces, boxes, x, y, WIDTH, CHARACTER))


def _boxes(
    traces: Sequence[Mapping[str, Any]], *, is_stacked: bool
) -> Iterator[tuple[float, float, float, float, str, str]]:
    """Bars and cells: from where to where along x and y, in the axes' units; colour and text."""
    reached: dict[float, float] = {}  # of bars that stand one on the other, by place
    for trace in traces:
        if trace["type"] == "heatmap":
            most = max(1, *map(max, trace["z"]))
            for row, cells in enumerate(trace["z"]):
                for k, n in enumerate(cells):
                    colour = f"rgba(0,158,115,{0.6 * n / most:.2f})"
                    yield k - 0.5, k + 0.5, row - 0.5, row + 0.5, colour, f"{n:,}"
            continue
        given = (trace.get("width", 0.75), trace.get("base", 0.0), trace["marker"]["color"],
                 trace.get("text", ""))  # fmt: skip
        is_across = trace.get("orientation") == "h"
        for k, pair in enumerate(zip(trace["x"], trace["y"], strict=True)):
            size, at = pair if is_across else pair[::-1]
            width, base, colour, words = (v[k] if isinstance(v, list) else v for v in given)
            base += reached.get(at, 0.0) if is_stacked else 0
            reached[at] = base + size
            ends, sides = (base, base + size), (at - width / 2, at + width / 2)
            yield *(ends if is_across else sides), *(sides if is_across else ends), colour, words


class _Axis:
    """Places along one axis: from values to pixels, and its ticks."""

    def __init__(
        self, layout: Mapping[str, Any], values: Sequence[float], start: float, end: float
    ) -> None:
        self.start, self.end = start, end
        self.title = layout["title"].get("text", "")
        low, high = layout.get("range") or (min(values, default=0), max(values, default=1))
        self.low, self.high = float(low), float(high) if high != low else float(low) + 1
        self.is_named = "ticktext" in layout
        step, ends = round_step(abs(self.high - self.low) / 6), sorted((self.low, self.high))
        round_ones = range(math.ceil(ends[0] / step), math.floor(ends[1] / step) + 1)
        form = "{:,.0f}" if step >= 1 else "{:.3g}"
        ticks = [(n * step, form.format(n * step)) for n in round_ones]
        if self.is_named:
            ticks = [*enumerate(layout["ticktext"])]
        self.ticks = ticks if layout.get("showticklabels", True) else []

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def round_step(least: float) -> float:
    """The first of 1, 2, 5, 10, ... that is at least that."""
    decade: float = 10.0 ** math.floor(math.log10(least))
    return next(n * decade for n in (1, 2, 5, 10) if n * decade >= least * 0.999)
