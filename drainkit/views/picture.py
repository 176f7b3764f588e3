"""What the figures are drawn on: a plotly figure in JupyterLab's colours, and as a picture (SVG).

The picture is for pages that have no plotly (an exported page, a page printed without scripts). It
draws what figures.py makes, and nothing else of what plotly can do. Its text takes the colour
of the page's. Texts in a figure are escaped when they are made; here the tags that plotly would
read are not needed, so all of it is escaped once more where it is not yet.
"""

from __future__ import annotations

import datetime as dt
import html
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
import plotly.io

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
    traces, layout = figure["data"], figure["layout"]
    height, top = int(layout.get("height") or 340), int(layout["margin"]["t"])
    across = any(trace.get("orientation") == "h" for trace in traces)
    maps = [trace for trace in traces if trace["type"] == "heatmap"]
    bars = [*_bars([t for t in traces if t["type"] == "bar"], layout, across=across)]
    places = [place for bar in bars for place in bar[:2]]
    sizes = [size for bar in bars for size in bar[2:4]]
    xs, ys = (sizes, places) if across else (places, sizes)
    names: tuple[Any, Any] = (None, None)
    for trace in maps:
        names = (trace["x"], trace["y"])
        xs, ys = ([-0.5, len(some) - 0.5] for some in names)
    y = _Axis(layout["yaxis"], ys, names[1], height - BOTTOM, top)
    longest = max((len(html.unescape(name)) for _, name in y.ticks), default=0)
    left = max(LEFT_MIN, min(300, 30 + _CHARACTER * longest))
    x = _Axis(layout["xaxis"], xs, names[0], left, WIDTH - RIGHT)
    title = _text(layout["title"]["text"])
    marks = [
        f"<svg class='{UNTYPESET}' xmlns='http://www.w3.org/2000/svg' "
        f"viewBox='0 0 {WIDTH} {height}' width='{WIDTH}' height='{height}' "
        f"role='img' style='max-width:100%' {_STYLE}><title>{title}</title>",
        f"<text x='0' y='24' font-size='16'>{title}</text>",
    ]
    for trace in traces if layout.get("showlegend") else ():
        marks += [_box(left, top - 37, 11, 11, trace["marker"]["color"]),
                  _label(left + 16, top - 27, trace["name"])]  # fmt: skip
        left += 40 + _CHARACTER * len(trace["name"])
    marks += [_label(x.at(value), y.start + 17, name, "middle") for value, name in x.ticks]
    for value, name in y.ticks:
        marks.append(_label(x.start - 8, y.at(value) + 4, name, "end"))
        if not y.is_named:
            marks.append(_line(x.start, y.at(value), x.end, y.at(value), GRID))
    marks += [_label((x.start + x.end) / 2, height - 8, x.title, "middle"),
              _label(0, top - 8, y.title)]  # fmt: skip
    for first, last, low, high, colour, text in bars:
        along, sides = (y, x) if across else (x, y)
        ends, reach = sorted(map(along.at, (first, last))), sorted(map(sides.at, (low, high)))
        (x0, x1), (y0, y1) = (reach, ends) if across else (ends, reach)
        marks.append(_box(x0, y0, x1 - x0, y1 - y0, colour))
        if text and across:
            marks.append(_label(x1 + 5, (y0 + y1) / 2 + 4, text))
        elif text:
            marks.append(_label((x0 + x1) / 2, y0 - 5, text, "middle"))
    for trace in maps:
        marks += _cells(trace["z"], x, y)
    marks += [_shape(shape, x, y) for shape in layout.get("shapes", ())]
    marks += [_note(note, x, y) for note in layout.get("annotations", ())]
    return "".join([*marks, "</svg>"])


class _Axis:
    """Places along one axis: from values to pixels, and its ticks."""

    def __init__(
        self, layout: Mapping[str, Any], values: Sequence[float], names: Sequence[str] | None,
        start: float, end: float,
    ) -> None:  # fmt: skip
        self.start, self.end = start, end
        self.title = (layout.get("title") or {}).get("text") or ""
        low, high = layout.get("range") or (min(values, default=0), max(values, default=1))
        self.low, self.high = float(low), float(high) if high != low else float(low) + 1
        names = layout.get("ticktext") or names
        self.is_named = names is not None
        ticks = self._numbers(layout.get("type") == "date") if names is None else enumerate(names)
        self.ticks = [] if layout.get("showticklabels") is False else [*ticks]

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def _numbers(self, is_time: bool) -> Iterator[tuple[float, str]]:
        """Round numbers, or times (milliseconds)."""
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


def _bars(
    traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any], *, across: bool
) -> Iterator[tuple[float, float, float, float, str, str]]:
    """From where to where along the axis of places, and along that of sizes; colour and text."""
    reached: dict[float, float] = {}  # of those that stand one on the other

    def of(values: Any, k: int, otherwise: Any) -> Any:
        if values is None:
            return otherwise
        return values[k] if isinstance(values, list) else values

    for trace in traces:
        for k, pair in enumerate(zip(trace["x"], trace["y"], strict=True)):
            size, at = pair if across else pair[::-1]
            width, low = of(trace.get("width"), k, 0.75), of(trace.get("base"), k, 0.0)
            if layout.get("barmode") == "stack":
                low += reached.get(at, 0.0)
            reached[at] = low + size
            yield (
                at - width / 2, at + width / 2, low, low + size,
                of(trace["marker"]["color"], k, ""), of(trace.get("text"), k, ""),
            )  # fmt: skip


def _cells(rows: Sequence[Sequence[int]], x: _Axis, y: _Axis) -> Iterator[str]:
    width, height, most = x.at(1) - x.at(0), y.at(0) - y.at(1), max(1, *map(max, rows))
    for row, cells in enumerate(rows):
        for column, n in enumerate(cells):
            colour = f"rgba(0,158,115,{0.6 * n / most:.2f})"
            left, upper = x.at(column) - width / 2, y.at(row) - height / 2
            yield _box(left, upper, width - 1, height - 1, colour)
            yield _label(x.at(column), y.at(row) + 4, f"{n:,}", "middle")


def _shape(shape: Mapping[str, Any], x: _Axis, y: _Axis) -> str:
    """A limit, or the frame of a cell."""
    whole_y, whole_x = "y " in shape.get("yref", ""), "x " in shape.get("xref", "")
    x0, x1 = (x.start, x.end) if whole_x else (x.at(shape["x0"]), x.at(shape["x1"]))
    y0, y1 = (y.end, y.start) if whole_y else (y.at(shape["y0"]), y.at(shape["y1"]))
    colour = shape["line"]["color"]
    if shape["type"] == "rect":
        return _box(x0, min(y0, y1), x1 - x0, abs(y1 - y0), "none", colour)
    return _line(x0, y0, x1, y1, colour, dashed="dash" in shape["line"])


def _note(note: Mapping[str, Any], x: _Axis, y: _Axis) -> str:
    """A text beside a limit, or in the middle; its place is a value's, or a share of the axis."""
    across = x.at(note["x"])
    if note.get("xref") not in ("x", None):
        across = x.start + note["x"] * (x.end - x.start)
    up = y.at(note["y"]) if note.get("yref") == "y" else y.start - note["y"] * (y.start - y.end)
    anchor, beside = _ANCHORS.get(note.get("xanchor", ""), ("middle", 0))
    return _label(across + beside, up - 5 + 12 * (note["y"] == 1), note["text"], anchor)


def moment(epoch_sec: float) -> dt.datetime:
    """The time (UTC, naive) of any year that datetime knows; pandas ends in 1677 and 2262."""
    from_year_1, to_year_9999 = -62_135_596_800, 253_402_300_799
    sec = min(max(float(epoch_sec), from_year_1), to_year_9999)
    return dt.datetime(1970, 1, 1) + dt.timedelta(seconds=sec)


def round_step(least: float) -> float:
    """The first of 1, 2, 5, 10, ... that is at least that."""
    decade: float = 10.0 ** math.floor(math.log10(least))
    return next(n * decade for n in (1, 2, 5, 10) if n * decade >= least * 0.999)


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
    ends = f"x1='{x0:.1f}' y1='{y0:.1f}' x2='{x1:.1f}' y2='{y1:.1f}'"
    return f"<line {ends} stroke='{colour}'{dash}/>"


# ---------------------------------------------------------------- for plotly

# middle grey: as far from white as from JupyterLab's dark paper; where a page knows better, STYLE
# gives its own text colour
TEXT, GRID, LINE, NONE = "#787878", "rgba(128,128,128,0.25)", "#808080", "rgba(0,0,0,0)"
_TEXTS = (".gtitle", ".xtitle", ".ytitle", ".legendtext", ".annotation-text", ".bartext-outside",
          ".xtick text", ".ytick text", ".heatmap-label text")  # fmt: skip
# JupyterLab (4.6) hides cells that are out of sight, and a figure made anew in a hidden cell is
# 700 px wide for good: cut off in a narrow window
_SHOWN = ".jp-content-visibility-mode .jp-Cell{content-visibility:visible!important}"
STYLE = (
    f"<style>{_SHOWN}.js-plotly-plot .main-svg :is("
    + ",".join(_TEXTS)
    + "){fill:var(--jp-content-font-color1,currentColor)!important}</style>"
)


class Canvas(go.Figure):  # type: ignore[misc]
    """A plotly figure that shows itself in the colours of the page it is on."""

    def show(self, *_: object, **__: object) -> None:
        """Show it in a notebook."""
        from IPython.display import HTML, display

        display(HTML(STYLE))  # type: ignore[no-untyped-call]
        display(self.bundle(), raw=True)  # type: ignore[no-untyped-call]

    def bundle(self) -> dict[str, Any]:
        """The figure by MIME type: for plotly, and as a picture for pages without it."""
        figure = json.loads(self.to_json())
        renderer = plotly.io.renderers["plotly_mimetype"]
        renderer.config["typesetMath"] = False  # `$` in a name is no formula
        return {**renderer.to_mimebundle(figure), "image/svg+xml": svg(figure)}


def canvas(
    title: str, x_title: str, y_title: str, *, height: int = 340, legend: bool = False
) -> Canvas:
    """An empty figure with its title and axes."""
    axis = {"automargin": True, "gridcolor": GRID, "zerolinecolor": GRID}
    titles = [{"text": text, "font": {"size": 13}} for text in (x_title, y_title)]
    # all at once: plotly checks a layout again whenever something of it changes
    return Canvas(layout={
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
        "xaxis": {"title": titles[0], **axis}, "yaxis": {"title": titles[1], **axis},
    })  # fmt: skip


def counted(figure: Canvas, axis: str, most: int) -> Canvas:
    """Whole numbers along the axis of counts; where nothing is drawn, a word instead of axes."""
    figure.update_layout(
        {f"{axis}axis": {"tickformat": ",", "dtick": 1 if 0 < most <= 5 else None}}
    )
    if not figure.data or not most:
        hidden = {"showticklabels": False, "showgrid": False, "zeroline": False}
        figure.update_layout(xaxis=hidden, yaxis=hidden)
        figure.add_annotation(text="no events", x=0.5, y=0.5, xref="paper", yref="paper",
                              showarrow=False)  # fmt: skip
    return figure
