"""What the figures are drawn on: colours that read well on light and dark paper, axes, limits.

A figure follows JupyterLab's theme. Where there is no plotly (an exported page, a page printed
without scripts) a picture of it stands in its place.
"""

from __future__ import annotations

import json

import plotly.graph_objects as go
import plotly.io

from .picture import svg

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
