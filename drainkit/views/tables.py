"""Tables and texts as notebooks show them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..core.policy import ACTIONS
from ..core.summary import Summary
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


def groups_frame(baseline: Mapping[str, Any]) -> pd.DataFrame:
    """The groups of a baseline, one row each."""
    rows = [
        {
            "group": one_line(g["name"]),
            "position": g["position"],
            **g["backlog"],
            "lag reported": "unknown" if g["lag_reported"] is None else g["lag_reported"],
            "consumers": g["consumers"],
        }
        for g in baseline["groups"]
    ]
    columns = [
        "group",
        "position",
        "undelivered",
        "pending",
        "history",
        "lag reported",
        "consumers",
    ]
    return pd.DataFrame(rows, columns=columns).set_index("group")


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
