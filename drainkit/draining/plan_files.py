"""Plan files: plan.json and, beside it, the decisions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..core.plan import COLUMNS, Plan, empty_table, from_json, table_sha256
from ..errors import RefusedError, UsageError
from ..files import write_json, write_table
from ..safe import one_line

if TYPE_CHECKING:
    import pyarrow as pa


def decisions_path(plan_path: Path) -> Path:
    """Beside plan.json decisions.parquet, beside X.json X.decisions.parquet."""
    if plan_path.name == "plan.json":
        return plan_path.with_name("decisions.parquet")
    return plan_path.with_name(f"{plan_path.stem}.decisions.parquet")


def check_plan_path(path: Path) -> None:
    """Refuse a path that no plan can be written to."""
    if path.is_dir():
        raise UsageError(f"--plan {one_line(str(path))} is a folder; name a file in it to write to")


def save_plan(path: Path, plan: Plan, decisions: pa.Table) -> None:
    """Write the plan and, beside it, its decisions."""
    write_table(decisions_path(path), decisions)
    write_json(path, plan.to_json())


def load_plan(path: Path) -> tuple[Plan, pa.Table]:
    """A plan (file or evidence folder) and its decisions; refuses what its digest does not fit."""
    path = path / "plan.json" if path.is_dir() else path
    try:
        plan = from_json(path.read_text(encoding="utf-8"), path.name)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(f"--plan {one_line(str(path))}: {one_line(reason)}") from None
    beside = decisions_path(path)
    try:
        table, digest = _read_decisions(beside)
    except (OSError, ValueError, NotImplementedError):  # what pyarrow raises is one of these
        raise RefusedError(
            f"the plan's decisions, {one_line(beside.name)}, cannot be read"
        ) from None
    if tuple(table.column_names) != COLUMNS or digest != plan.decisions_sha256:
        raise RefusedError(f"{one_line(beside.name)} does not fit the plan's digest: it was edited")
    try:
        return plan, table.cast(empty_table().schema)  # another tool may have saved it otherwise
    except (ValueError, NotImplementedError):
        raise RefusedError(f"{one_line(beside.name)} has columns of other types") from None


def _read_decisions(path: Path) -> tuple[pa.Table, str]:
    from pyarrow import parquet

    # an open file: from a path pyarrow may take a folder or read columns out of folder names
    with path.open("rb") as file:
        table = parquet.ParquetFile(file).read()
    return table, table_sha256(table)
