"""A figure as a picture (SVG), for pages that have no plotly: bars, heat maps, limits, names.

It draws what figures.py makes, and nothing else of what plotly can do. Its text takes the colour
of the page's. Texts in a figure are escaped when they are made; here the tags that plotly would
read are not needed, so all of it is escaped once more where it is not yet.
"""

from __future__ import annotations

import datetime as dt
import html
import math
from collections.abc import Mapping
from typing import Any

from ..safe import UNTYPESET

WIDTH, LEFT_MIN, RIGHT, BOTTOM = 760, 62, 44, 46
TIME_STEPS_SEC = (
    1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 21_600, 43_200,
    86_400, 7 * 86_400, 30 * 86_400, 365 * 86_400,
)  # fmt: skip
_STYLE = (
    "font-family='system-ui,sans-serif' font-size='12' fill='currentColor' "
    "shape-rendering='crispEdges'"  # or seams show between bars
)
_ANCHORS = {"left": ("start", 4), "right": ("end", -4)}  # beside a line, not on it
_CHARACTER = 6.6  # pixels, about


def svg(figure: Mapping[str, Any]) -> str:
    """The figure (as its JSON says) as SVG."""
    return _Picture(figure).draw()


class _Axis:
    """Places along one axis: from values to pixels, and its ticks."""

    def __init__(self, layout: Mapping[str, Any], values: list[float], start: float, end: float):
        self.layout, self.start, self.end = layout, start, end
        low, high = layout.get("range") or (min(values, default=0), max(values, default=1))
        self.low, self.high = float(low), float(high) if high != low else float(low) + 1

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, is_time: bool) -> list[tuple[float, str]]:
        if self.layout.get("showticklabels") is False:
            return []
        if "tickvals" in self.layout:
            texts = self.layout["ticktext"]
            return [(float(v), str(t)) for v, t in zip(self.layout["tickvals"], texts, strict=True)]
        least = abs(self.high - self.low) / 6
        step = next((s for s in TIME_STEPS_SEC if is_time and s >= least), round_step(least))
        first = math.ceil(min(self.low, self.high) / step)
        last = math.floor(max(self.low, self.high) / step)
        return [(n * step, _tick(n * step, step, is_time)) for n in range(first, last + 1)]


class _Picture:
    def __init__(self, figure: Mapping[str, Any]) -> None:
        self.traces, self.layout = figure["data"], dict(figure["layout"])
        self.layout["xaxis"] = dict(self.layout["xaxis"])
        self.height = int(self.layout.get("height") or 340)
        self.top = int(self.layout["margin"]["t"])
        self.is_time = False
        self.bars = [bar for trace in self.traces if trace["type"] == "bar" for bar in
                     self._bars(trace)]  # fmt: skip
        self._stack()
        xs = [v for bar in self.bars for v in bar[:2]]
        ys = [v for bar in self.bars for v in bar[2:4]]
        for trace in self.traces:
            if trace["type"] == "heatmap":
                ys += [-0.5, len(trace["z"]) - 0.5]
                xs += [-0.5, len(trace["z"][0]) - 0.5]
                for axis, key in (("xaxis", "x"), ("yaxis", "y")):
                    named = {"ticktext": trace[key], "tickvals": list(range(len(trace[key])))}
                    self.layout[axis] = {**self.layout[axis], **named}
        names = self.layout["yaxis"].get("ticktext") or [f"{max(ys, default=0):,.0f}"]
        widest = max(len(html.unescape(str(name))) for name in names)
        left = max(LEFT_MIN, min(300, 30 + _CHARACTER * widest))
        self.x = _Axis(self.layout["xaxis"], xs, left, WIDTH - RIGHT)
        self.y = _Axis(self.layout["yaxis"], ys, self.height - BOTTOM, self.top)

    def _bars(self, trace: Mapping[str, Any]) -> list[list[Any]]:
        """[left, right, low, high, colour, text, trace's orientation] of each bar."""
        across = trace.get("orientation") == "h"
        places, sizes = (trace["y"], trace["x"]) if across else (trace["x"], trace["y"])
        ticks = self.layout["yaxis" if across else "xaxis"].get("tickvals")
        self.is_time |= any(isinstance(p, str) and p[:4].isdigit() for p in places)
        found = []
        for k, (place, size) in enumerate(zip(places, sizes, strict=True)):
            at = float(k) if isinstance(place, str) and not self.is_time else _number(place)
            width = _of(trace.get("width"), k, 0.75)
            width = width / 1000 if self.is_time else width
            low = _of(trace.get("base"), k, 0.0)
            texts, colours = trace.get("text"), trace["marker"]["color"]
            colour = colours if isinstance(colours, str) else colours[k]
            text = texts[k] if texts else ""
            span, heap = [at - width / 2, at + width / 2], [low, low + float(size)]
            sides = [*heap, *span] if across else [*span, *heap]
            found.append([*sides, colour, text, across])
            if not across and isinstance(place, str) and not self.is_time and ticks is None:
                self.layout["xaxis"].setdefault("names", {})[at] = place
        return found

    def _stack(self) -> None:
        """Stacked bars stand one on the other."""
        if self.layout.get("barmode") != "stack":
            return
        reached: dict[float, float] = {}
        for bar in self.bars:
            place, low, high = (2, 0, 1) if bar[6] else (0, 2, 3)
            before = reached.get(bar[place], 0.0)
            bar[low], bar[high] = bar[low] + before, bar[high] + before
            reached[bar[place]] = bar[high]

    def draw(self) -> str:
        title = self.layout["title"]["text"]
        parts = [
            f"<svg class='{UNTYPESET}' xmlns='http://www.w3.org/2000/svg' "
            f"viewBox='0 0 {WIDTH} {self.height}' width='{WIDTH}' height='{self.height}' "
            f"role='img' style='max-width:100%' {_STYLE}>",
            f"<title>{_text(title)}</title>",
            f"<text x='0' y='24' font-size='16'>{_text(title)}</text>",
            *self._legend(),
            *self._axes(),
            *(self._rect(*bar) for bar in self.bars),
            *(cell for t in self.traces if t["type"] == "heatmap" for cell in self._cells(t)),
            *self._marks(),
            "</svg>",
        ]
        return "".join(parts)

    def _legend(self) -> list[str]:
        parts, x = [], self.x.start
        if not self.layout.get("showlegend"):
            return []
        for trace in self.traces:
            parts.append(_box(x, self.top - 37, 11, 11, trace["marker"]["color"]))
            parts.append(_label(x + 16, self.top - 27, trace["name"]))
            x += 40 + _CHARACTER * len(trace["name"])
        return parts

    def _axes(self) -> list[str]:
        parts = []
        names = self.layout["xaxis"].get("names")
        ticks = sorted(names.items()) if names else self.x.ticks(self.is_time)
        for value, name in ticks:
            parts.append(_label(self.x.at(value), self.y.start + 17, name, "middle"))
        for value, name in self.y.ticks(False):
            y = self.y.at(value)
            parts.append(_label(self.x.start - 8, y + 4, name, "end"))
            if "tickvals" not in self.layout["yaxis"]:
                parts.append(_line(self.x.start, y, self.x.end, y, "rgba(128,128,128,0.25)"))
        for axis, at in (("xaxis", self.height - 8), ("yaxis", self.top - 8)):
            words = (self.layout[axis].get("title") or {}).get("text") or ""
            x = (self.x.start + self.x.end) / 2 if axis == "xaxis" else 0
            parts.append(_label(x, at, words, "middle" if axis == "xaxis" else "start"))
        return parts

    def _rect(self, x0: float, x1: float, y0: float, y1: float, colour: str, text: str,
              across: bool) -> str:  # fmt: skip
        left, right = sorted((self.x.at(x0), self.x.at(x1)))
        upper, lower = sorted((self.y.at(y0), self.y.at(y1)))
        box = _box(left, upper, right - left, lower - upper, colour)
        if not text:
            return box
        if across:
            return box + _label(right + 5, (upper + lower) / 2 + 4, text)
        return box + _label((left + right) / 2, upper - 5, text, "middle")

    def _cells(self, trace: Mapping[str, Any]) -> list[str]:
        most = max(1, *map(max, trace["z"]))
        parts = []
        for row, line in enumerate(trace["z"]):
            for column, n in enumerate(line):
                left, right = self.x.at(column - 0.5), self.x.at(column + 0.5)
                upper, lower = self.y.at(row + 0.5), self.y.at(row - 0.5)
                parts.append(_box(left, upper, right - left - 1, lower - upper - 1,
                                  f"rgba(0,158,115,{0.6 * n / most:.2f})"))  # fmt: skip
                parts.append(
                    _label((left + right) / 2, (upper + lower) / 2 + 4, f"{n:,}", "middle")
                )
        return parts

    def _marks(self) -> list[str]:
        """Limits and words."""
        parts = []
        for shape in self.layout.get("shapes", ()):
            whole_y, whole_x = "y " in shape.get("yref", ""), "x " in shape.get("xref", "")
            x0, x1 = (self.x.start, self.x.end) if whole_x else map(
                self.x.at, (shape["x0"], shape["x1"]))  # fmt: skip
            y0, y1 = (self.y.end, self.y.start) if whole_y else map(
                self.y.at, (shape["y0"], shape["y1"]))  # fmt: skip
            colour = shape["line"]["color"]
            if shape["type"] == "rect":
                parts.append(_box(x0, min(y0, y1), x1 - x0, abs(y1 - y0), "none", colour))
            else:
                parts.append(_line(x0, y0, x1, y1, colour, dashed="dash" in shape["line"]))
        for note in self.layout.get("annotations", ()):
            x = self.x.at(note["x"])
            if note.get("xref") not in ("x", None):  # a share of the width
                x = self.x.start + note["x"] * (self.x.end - self.x.start)
            y = self.y.at(note["y"]) - 5
            if note.get("yref") != "y":
                y = self.y.start - note["y"] * (self.y.start - self.y.end)
            anchor, beside = _ANCHORS.get(note.get("xanchor", ""), ("middle", 0))
            parts.append(_label(x + beside, y + 12 * (note["y"] == 1), note["text"], anchor))
        return parts


def _of(values: Any, k: int, default: float) -> float:
    if values is None:
        return default
    return float(values[k] if isinstance(values, list) else values)


def _number(place: Any) -> float:
    """A place on an axis: a number, or a time as seconds."""
    if isinstance(place, str):
        return (dt.datetime.fromisoformat(place) - dt.datetime(1970, 1, 1)).total_seconds()
    return float(place)


def round_step(least: float) -> float:
    """The first of 1, 2, 5, 10, ... that is at least that."""
    decade: float = 10.0 ** math.floor(math.log10(least))
    return next(n * decade for n in (1, 2, 5, 10) if n * decade >= least * 0.999)


def _tick(value: float, step: float, is_time: bool) -> str:
    if not is_time:
        return f"{value:,.0f}" if step >= 1 else f"{value:.3g}"
    moment = dt.datetime(1970, 1, 1) + dt.timedelta(seconds=value)
    form = "%Y-%m-%d" if step >= 86_400 else "%d %b %H:%M" if step >= 60 else "%H:%M:%S"
    return moment.strftime(form)


def _text(text: str) -> str:
    return html.escape(html.unescape(text), quote=False)


def _label(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f"<text x='{x:.0f}' y='{y:.0f}' text-anchor='{anchor}'>{_text(text.strip())}</text>"


def _box(x: float, y: float, width: float, height: float, fill: str, stroke: str = "") -> str:
    edge = f" stroke='{stroke}' stroke-width='3'" if stroke else ""
    place = f"x='{x:.5g}' y='{y:.4g}' width='{width:.3g}' height='{height:.3g}'"
    return f"<rect {place} fill='{fill}'{edge}/>"


def _line(x0: float, y0: float, x1: float, y1: float, colour: str, *, dashed: bool = False) -> str:
    dash = " stroke-dasharray='6 4'" if dashed else ""
    return (
        f"<line x1='{x0:.1f}' y1='{y0:.1f}' x2='{x1:.1f}' y2='{y1:.1f}' stroke='{colour}'{dash}/>"
    )
