"""Tables and texts as notebooks show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..core.policy import ACTIONS
from ..core.summary import Summary
from ..operations.state import cell, group_rows
from ..safe import one_line, share

if TYPE_CHECKING:
    from IPython.display import Markdown

SAMPLE_ROWS = 8


def markdown(text: str) -> Markdown:
    """Text as a notebook shows it."""
    from IPython.display import Markdown

    return Markdown(text)  # type: ignore[no-untyped-call]


def safe(frame: pd.DataFrame) -> pd.DataFrame:
    """Texts from outside without control and bidi characters; HTML is escaped by pandas itself."""
    shown = frame.copy()
    for column in shown:
        if not pd.api.types.is_numeric_dtype(shown[column]):
            texts = shown[column].astype(object)
            shown[column] = texts.map(lambda v: "" if pd.isna(v) else one_line(str(v), 60))
    return shown.reset_index(drop=True)


GROUP_COLUMNS = (
    "group", "position", "undelivered", "pending", "history", "lost", "lag reported", "consumers",
)  # fmt: skip


def groups_frame(
    *states: Mapping[str, Any], columns: Sequence[str] = GROUP_COLUMNS
) -> pd.DataFrame:
    """The groups of states (or of a baseline.json), one row each; what is unknown says so."""
    frame = pd.DataFrame(
        [
            {name: cell(row[name]) for name in columns}
            for state in states
            for row in group_rows(state)
        ],
        columns=list(columns),
    )
    return frame.set_index(columns[0])


def counts_frame(summary: Summary | None) -> pd.DataFrame:
    """Events by action, with shares."""
    counts = [getattr(summary, action) if summary else 0 for action in ACTIONS]
    shares = [share(n, sum(counts)) for n in counts]
    return pd.DataFrame({"events": counts, "share": shares}, index=pd.Index(ACTIONS, name="action"))


def read_json(run_dir: Path | None, name: str) -> dict[str, Any] | None:
    import json

    if run_dir is None or not (run_dir / name).exists():
        return None
    found = json.loads((run_dir / name).read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else None


def span(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
