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
from typing import Any, NamedTuple

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
_EPOCH = dt.datetime(1970, 1, 1)


def svg(figure: Mapping[str, Any]) -> str:
    """The figure (as its JSON says) as SVG."""
    return _Picture(figure["data"], figure["layout"]).draw()


class _Axis:
    """Places along one axis: from values to pixels, and its ticks."""

    def __init__(
        self, layout: Mapping[str, Any], values: Sequence[float], names: Sequence[str] | None,
        start: float, end: float, *, is_time: bool = False,
    ) -> None:  # fmt: skip
        self.start, self.end, self.is_named = start, end, names is not None
        self.title = (layout.get("title") or {}).get("text") or ""
        low, high = layout.get("range") or (min(values, default=0), max(values, default=1))
        self.low, self.high = float(low), float(high) if high != low else float(low) + 1
        ticks = self._numbers(is_time) if names is None else enumerate(names)
        self.ticks = [] if layout.get("showticklabels") is False else [*ticks]

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def _numbers(self, is_time: bool) -> Iterator[tuple[float, str]]:
        least = abs(self.high - self.low) / 6
        step = next((s for s in TIME_STEPS_SEC if is_time and s >= least), round_step(least))
        low, high = sorted((self.low, self.high))
        for n in range(math.ceil(low / step), math.floor(high / step) + 1):
            value = n * step
            if not is_time:
                yield value, f"{value:,.0f}" if step >= 1 else f"{value:.3g}"
                continue
            form = "%Y-%m-%d" if step >= 86_400 else "%d %b %H:%M" if step >= 60 else "%H:%M:%S"
            yield value, (_EPOCH + dt.timedelta(seconds=value)).strftime(form)


class _Bar(NamedTuple):
    """From where to where along the axis of places, and along that of sizes."""

    first: float
    last: float
    low: float
    high: float
    colour: str
    text: str


class _Picture:
    def __init__(self, traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any]) -> None:
        self.layout, self.traces = layout, traces
        self.height, self.top = int(layout.get("height") or 340), int(layout["margin"]["t"])
        bars = [trace for trace in traces if trace["type"] == "bar"]
        self.maps = [trace for trace in traces if trace["type"] == "heatmap"]
        self.across = any(trace.get("orientation") == "h" for trace in bars)
        named = [p for trace in bars for p in trace["y" if self.across else "x"]
                 if isinstance(p, str)]  # fmt: skip
        self.is_time = bool(named) and named[0][:4].isdigit()
        self.bars = [*self._bars(bars)]
        names = {axis: layout[axis].get("ticktext") for axis in ("xaxis", "yaxis")}
        if named and not self.is_time:
            names["xaxis"] = named
        places = [v for bar in self.bars for v in (bar.first, bar.last)]
        sizes = [v for bar in self.bars for v in (bar.low, bar.high)]
        xs, ys = (sizes, places) if self.across else (places, sizes)
        for trace in self.maps:
            names = {"xaxis": trace["x"], "yaxis": trace["y"]}
            xs, ys = ([-0.5, len(names[axis]) - 0.5] for axis in ("xaxis", "yaxis"))
        longest = max((len(html.unescape(n)) for n in names["yaxis"] or ()), default=0)
        longest = longest or len(f"{max(ys, default=0):,.0f}")
        left = max(LEFT_MIN, min(300, 30 + _CHARACTER * longest))
        self.x = _Axis(layout["xaxis"], xs, names["xaxis"], left, WIDTH - RIGHT,
                       is_time=self.is_time)  # fmt: skip
        self.y = _Axis(layout["yaxis"], ys, names["yaxis"], self.height - BOTTOM, self.top)

    def _bars(self, traces: Sequence[Mapping[str, Any]]) -> Iterator[_Bar]:
        reached: dict[float, float] = {}  # of those that stand one on the other
        for trace in traces:
            pair = ("y", "x") if self.across else ("x", "y")
            for k, (place, size) in enumerate(zip(*map(trace.get, pair), strict=True)):
                at = float(k if isinstance(place, str) else place)
                width = _of(trace.get("width"), k, 0.75)
                if self.is_time:
                    at, width = (
                        (dt.datetime.fromisoformat(place) - _EPOCH).total_seconds(),
                        width / 1000,
                    )
                low = _of(trace.get("base"), k, 0.0)
                if self.layout.get("barmode") == "stack":
                    low += reached.get(at, 0.0)
                reached[at] = high = low + float(size)
                colour, texts = trace["marker"]["color"], trace.get("text")
                yield _Bar(at - width / 2, at + width / 2, low, high,
                           colour if isinstance(colour, str) else colour[k],
                           texts[k] if texts else "")  # fmt: skip

    def draw(self) -> str:
        title = _text(self.layout["title"]["text"])
        return "".join([
            f"<svg class='{UNTYPESET}' xmlns='http://www.w3.org/2000/svg' "
            f"viewBox='0 0 {WIDTH} {self.height}' width='{WIDTH}' height='{self.height}' "
            f"role='img' style='max-width:100%' {_STYLE}><title>{title}</title>",
            f"<text x='0' y='24' font-size='16'>{title}</text>", *self._marks(), "</svg>",
        ])  # fmt: skip

    def _marks(self) -> Iterator[str]:
        """Legend, axes, bars, cells, and on top of them limits and notes."""
        x = self.x.start
        for trace in self.traces if self.layout.get("showlegend") else ():
            yield _box(x, self.top - 37, 11, 11, trace["marker"]["color"])
            yield _label(x + 16, self.top - 27, trace["name"])
            x += 40 + _CHARACTER * len(trace["name"])
        for value, name in self.x.ticks:
            yield _label(self.x.at(value), self.y.start + 17, name, "middle")
        for value, name in self.y.ticks:
            y = self.y.at(value)
            yield _label(self.x.start - 8, y + 4, name, "end")
            if not self.y.is_named:
                yield _line(self.x.start, y, self.x.end, y, "rgba(128,128,128,0.25)")
        yield _label((self.x.start + self.x.end) / 2, self.height - 8, self.x.title, "middle")
        yield _label(0, self.top - 8, self.y.title)
        yield from map(self._bar, self.bars)
        width, height = self.x.at(1) - self.x.at(0), self.y.at(0) - self.y.at(1)
        for trace in self.maps:
            most = max(1, *map(max, trace["z"]))
            for row, cells in enumerate(trace["z"]):
                for column, n in enumerate(cells):
                    x, y = self.x.at(column), self.y.at(row)
                    colour = f"rgba(0,158,115,{0.6 * n / most:.2f})"
                    yield _box(x - width / 2, y - height / 2, width - 1, height - 1, colour)
                    yield _label(x, y + 4, f"{n:,}", "middle")
        yield from map(self._shape, self.layout.get("shapes", ()))
        yield from map(self._note, self.layout.get("annotations", ()))

    def _bar(self, bar: _Bar) -> str:
        along, sides = (self.y, self.x) if self.across else (self.x, self.y)
        places = sorted(map(along.at, (bar.first, bar.last)))
        sizes = sorted(map(sides.at, (bar.low, bar.high)))
        (left, right), (upper, lower) = (sizes, places) if self.across else (places, sizes)
        box = _box(left, upper, right - left, lower - upper, bar.colour)
        if bar.text and self.across:
            box += _label(right + 5, (upper + lower) / 2 + 4, bar.text)
        elif bar.text:
            box += _label((left + right) / 2, upper - 5, bar.text, "middle")
        return box

    def _shape(self, shape: Mapping[str, Any]) -> str:
        """A limit, or the frame of a cell."""
        whole_y, whole_x = "y " in shape.get("yref", ""), "x " in shape.get("xref", "")
        xs = (self.x.start, self.x.end) if whole_x else [self.x.at(shape[k]) for k in ("x0", "x1")]
        ys = (self.y.end, self.y.start) if whole_y else [self.y.at(shape[k]) for k in ("y0", "y1")]
        colour = shape["line"]["color"]
        if shape["type"] == "rect":
            return _box(xs[0], min(ys), xs[1] - xs[0], abs(ys[1] - ys[0]), "none", colour)
        return _line(xs[0], ys[0], xs[1], ys[1], colour, dashed="dash" in shape["line"])

    def _note(self, note: Mapping[str, Any]) -> str:
        x = self.x.at(note["x"])
        if note.get("xref") not in ("x", None):  # a share of the width
            x = self.x.start + note["x"] * (self.x.end - self.x.start)
        y = self.y.at(note["y"]) - 5
        if note.get("yref") != "y":
            y = self.y.start - note["y"] * (self.y.start - self.y.end)
        anchor, beside = _ANCHORS.get(note.get("xanchor", ""), ("middle", 0))
        return _label(x + beside, y + 12 * (note["y"] == 1), note["text"], anchor)


def _of(values: Any, k: int, default: float) -> float:
    if values is None:
        return default
    return float(values[k] if isinstance(values, list) else values)


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
TEXT, GRID, LINE = "#787878", "rgba(128,128,128,0.25)", "#808080"
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
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": TEXT, "activecolor": LINE},
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": TEXT},
        "showlegend": legend,
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom",
                   "traceorder": "normal"},
        "xaxis": {"title": titles[0], **axis},
        "yaxis": {"title": titles[1], **axis},
    })  # fmt: skip


def named_rows(figure: Canvas, names: list[str]) -> None:
    """Horizontal bars from top to bottom, a name beside each; counts along the axis."""
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=[f"{name} " for name in names],
        range=[max(len(names), 2) - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
    )
    figure.update_xaxes(rangemode="tozero")
    figure.update_layout(bargap=0.25)


def counted(figure: Canvas, axis: str, most: int) -> Canvas:
    """Whole numbers along the axis of counts; where nothing is drawn, a word instead of axes."""
    update = figure.update_xaxes if axis == "x" else figure.update_yaxes
    update(tickformat=",", dtick=1 if 0 < most <= 5 else None)
    if not figure.data or not most:
        figure.update_xaxes(showticklabels=False, showgrid=False, zeroline=False)
        figure.update_yaxes(showticklabels=False, showgrid=False, zeroline=False)
        figure.add_annotation(text="no events", x=0.5, y=0.5, xref="paper", yref="paper",
                              showarrow=False)  # fmt: skip
    return figure
