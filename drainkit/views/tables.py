"""Tables and texts as notebooks show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..core.policy import ACTIONS
from ..core.summary import Summary
from ..operations.facts import cell, group_rows
from ..safe import UNTYPESET, one_line, share

if TYPE_CHECKING:
    from IPython.display import Markdown

pd.set_option("display.html.use_mathjax", False)  # a plain frame's `$` is no formula either
SAMPLE_ROWS = 8


class Table(pd.DataFrame):
    """A DataFrame that shows itself for a reader: text to the left, numbers with separators, and
    nothing where there is nothing. All of it is escaped."""

    def _repr_html_(self) -> str:
        named = not isinstance(self.index, pd.RangeIndex)
        frame = self.reset_index(names=str(self.index.name or "")) if named else self
        right = [_is_number(frame[name]) for name in frame.columns]
        return str(macros().table([*frame.columns], frame.itertuples(index=False), right))


def _is_number(values: pd.Series) -> bool:
    known = [value for value in values.tolist() if value == value]  # noqa: PLR0124 - nan
    return bool(known) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in known
    )


@cache
def macros() -> Any:
    """The macros of views.html.j2, which escape whatever they are given."""
    from jinja2 import Environment, PackageLoader

    pages = Environment(loader=PackageLoader(__package__, ""), autoescape=True)
    template = pages.get_template("views.html.j2")
    return template.make_module({"untypeset": UNTYPESET})


def markdown(text: str) -> Markdown:
    """Text as a notebook shows it."""
    from IPython.display import Markdown

    return Markdown(text)  # type: ignore[no-untyped-call]


def safe(frame: pd.DataFrame) -> Table:
    """Texts from outside without control and bidi characters; HTML is escaped when shown."""
    shown = frame.copy()
    for column in shown:
        if not pd.api.types.is_numeric_dtype(shown[column]):
            texts = shown[column].astype(object)
            shown[column] = texts.map(lambda v: "" if pd.isna(v) else one_line(str(v), 60))
    return Table(shown.reset_index(drop=True))


GROUP_COLUMNS = (
    "group", "position", "undelivered", "pending", "history", "lost", "lag reported", "consumers",
)  # fmt: skip


def groups_frame(*states: Mapping[str, Any], columns: Sequence[str] = GROUP_COLUMNS) -> Table:
    """The groups of states (or of a baseline.json), one row each; what is unknown says so."""
    frame = pd.DataFrame(
        [
            {name: cell(row[name]) for name in columns}
            for state in states
            for row in group_rows(state)
        ],
        columns=list(columns),
    )
    return Table(frame.set_index(columns[0]))


def counts_frame(summary: Summary | None) -> pd.DataFrame:
    """Events by action, with shares."""
    counts = [getattr(summary, action) if summary else 0 for action in ACTIONS]
    shares = [share(n, sum(counts)) for n in counts]
    return Table({"events": counts, "share": shares}, index=pd.Index(ACTIONS, name="action"))


def read_json(run_dir: Path | None, name: str) -> dict[str, Any] | None:
    import json

    if run_dir is None or not (run_dir / name).exists():
        return None
    found = json.loads((run_dir / name).read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else None
