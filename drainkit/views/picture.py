"""Figures as pictures (SVG), for pages without plotly: the report, an exported page, paper.

It draws what figures.py makes, and nothing else of what plotly can do; text takes the page's
colour. Texts in a figure are escaped when they are made, for plotly; here all are once more.
"""

from __future__ import annotations

import datetime as dt
import html
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .session import macros

WIDTH, LEFT_MIN, RIGHT, BOTTOM = 760, 62, 44, 46
CHARACTER = 6.6  # pixels, about
TIME_STEPS_SEC = (
    1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 21_600, 43_200,
    86_400, 7 * 86_400, 30 * 86_400, *(years * 365 * 86_400 for years in (1, 5, 25, 125)),
)  # fmt: skip
YEARS_SEC = (-62_135_596_800, 253_402_300_799)  # the years 1 to 9999, all that datetime knows


def svg(figure: Mapping[str, Any]) -> str:
    """The figure (as its JSON says) as SVG."""
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
        ticks = enumerate(layout["ticktext"]) if self.is_named else self._numbers(layout)
        self.ticks = [*ticks] if layout.get("showticklabels", True) else []

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def _numbers(self, layout: Mapping[str, Any]) -> Iterator[tuple[float, str]]:
        """Round numbers, or times (milliseconds)."""
        is_time = layout.get("type") == "date"
        least = abs(self.high - self.low) / 6
        times = (sec * 1000 for sec in TIME_STEPS_SEC if is_time and sec * 1000 >= least)
        step = next(times, round_step(least))
        low, high = sorted((self.low, self.high))
        sec = step / 1000
        form = "%Y-%m-%d" if sec >= 86_400 else "%d %b %H:%M" if sec >= 60 else "%H:%M:%S"
        for n in range(math.ceil(low / step), math.floor(high / step) + 1):
            if is_time:
                yield n * step, moment(n * step / 1000).strftime(form)
            else:
                yield n * step, f"{n * step:,.0f}" if step >= 1 else f"{n * step:.3g}"


def moment(epoch_sec: float) -> dt.datetime:
    """The time (UTC, naive) of any year that datetime knows; pandas ends in 1677 and 2262."""
    sec = min(max(float(epoch_sec), YEARS_SEC[0]), YEARS_SEC[1])
    return dt.datetime(1970, 1, 1) + dt.timedelta(seconds=sec)


def round_step(least: float) -> float:
    """The first of 1, 2, 5, 10, ... that is at least that."""
    decade: float = 10.0 ** math.floor(math.log10(least))
    return next(n * decade for n in (1, 2, 5, 10) if n * decade >= least * 0.999)
