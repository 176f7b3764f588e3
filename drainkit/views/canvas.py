"""What the figures are drawn on: colours that read well on light and dark paper, axes, limits.

A figure follows JupyterLab's theme. Where there is no plotly (an exported page, a page printed
without scripts) a picture of it stands in its place.
"""

from __future__ import annotations

import json

import numpy as np
import plotly.graph_objects as go
import plotly.io

from ..core.policy import COLOURS
from .picture import svg

# middle grey: as far from white as from JupyterLab's dark paper; where a page knows better, STYLE
# gives its own text colour
TEXT, GRID, LINE = "#787878", "rgba(128,128,128,0.25)", "#808080"
_TEXTS = (".gtitle", ".xtitle", ".ytitle", ".legendtext", ".annotation-text", ".bartext-outside",
          ".xtick text", ".ytick text", ".heatmap-label text")  # fmt: skip
STYLE = (
    "<style>.js-plotly-plot .main-svg :is("
    + ",".join(_TEXTS)
    + "){fill:var(--jp-content-font-color1,currentColor)!important}</style>"
)


class Canvas(go.Figure):  # type: ignore[misc]
    """A plotly figure that shows itself in the colours of the page it is on."""

    def show(self, *_: object, **__: object) -> None:
        """Show it in a notebook: for plotly, and as a picture for pages without it."""
        from IPython.display import HTML, display

        figure = json.loads(self.to_json())
        renderer = plotly.io.renderers["plotly_mimetype"]
        renderer.config["typesetMath"] = False  # `$` in a name is no formula
        bundle = renderer.to_mimebundle(figure)
        display(HTML(STYLE))  # type: ignore[no-untyped-call]
        display({**bundle, "image/svg+xml": svg(figure)}, raw=True)  # type: ignore[no-untyped-call]


def canvas(
    title: str, x_title: str, y_title: str, *, height: int = 340, legend: bool = False
) -> Canvas:
    """An empty figure with its title and axes."""
    figure = Canvas(layout={"template": "none"})  # plotly's own would be 7 KB in each figure
    figure.update_layout(
        title={"text": title, "x": 0, "xanchor": "left", "y": 1, "yanchor": "top",
               "pad": {"t": 14}, "font": {"size": 17}},
        height=height,
        margin={"l": 60, "r": 20, "t": 84 if legend else 60, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": TEXT, "activecolor": LINE},
        font={"family": "system-ui, sans-serif", "size": 13, "color": TEXT},
        showlegend=legend,
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "traceorder": "normal"},
    )  # fmt: skip
    axis = {"automargin": True, "gridcolor": GRID, "zerolinecolor": GRID, "title_font_size": 13}
    figure.update_xaxes(title_text=x_title, **axis)
    figure.update_yaxes(title_text=y_title, **axis)
    return figure


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


def two_colours(
    figure: Canvas, edges: np.ndarray, counts: np.ndarray, first: int,
    names: tuple[str, str], *, over: bool, unit: str = "",
) -> None:  # fmt: skip
    """Bars below and from bin 0 on, which begins at the limit, in the colours of their fate."""
    middles, widths = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
    colours = [COLOURS["drained_ok"], COLOURS["dropped_old" if over else "dropped_low_conf"]]
    beyond = np.arange(len(counts)) + first >= 0
    said = [
        f"{low:.4g} to {high:.4g}{unit}: {events(n)}"
        for low, high, n in zip(edges[:-1], edges[1:], counts.tolist(), strict=True)
    ]
    for chosen, name, colour in zip(
        (~beyond, beyond), names, colours if over else reversed(colours), strict=True
    ):
        if counts[chosen].any():
            figure.add_trace(
                go.Bar(x=middles[chosen].round(6).tolist(), y=counts[chosen].tolist(), name=name,
                       marker_color=colour, width=widths[chosen].round(6).tolist(),
                       hovertext=[said[k] for k in np.flatnonzero(chosen)], hoverinfo="text")
            )  # fmt: skip
    figure.update_layout(bargap=0, barmode="overlay")
    most = int(counts.max()) if len(counts) else 0
    figure.update_yaxes(range=[0, 1.18 * most or 1])  # room for the limit's name
    counted(figure, "y", most)


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


def limit_at(figure: Canvas, at: float, text: str, *, left: bool) -> Canvas:
    """A dashed line at a limit, with its name."""
    figure.add_vline(
        x=at, line_dash="dash", line_color=LINE, annotation_text=f" {text} ",
        annotation_position="top left" if left else "top right",
    )  # fmt: skip
    return figure


def events(n: int) -> str:
    """A number of events in words."""
    return f"{n:,} event" if n == 1 else f"{n:,} events"
