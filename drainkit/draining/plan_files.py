"""Plan files: plan.json and, beside it, the decisions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..core.plan import (
    COLUMNS,
    Plan,
    TableDigest,
    as_decisions,
    decisions_schema,
    from_json,
)
from ..errors import RefusedError, UsageError
from ..files import TableWriter, write_json, write_table
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


class DecisionsWriter:
    """Decisions as they come: into the file beside the plan, if there is one, and its digest.

    A context manager: the file is whole, and `sha256` known, when the block has ended.
    """

    def __init__(self, plan_path: Path | None) -> None:
        self._digest = TableDigest()
        self._digest.add(decisions_schema().empty_table())
        self._out: TableWriter | None = None
        if plan_path is not None:
            self._out = TableWriter(decisions_path(plan_path), decisions_schema())
        self.first_id: str | None = None
        self.last_id: str | None = None
        self.sha256 = ""

    def __enter__(self) -> Self:
        if self._out is not None:
            self._out.__enter__()
        return self

    def add(self, table: pa.Table) -> None:
        """The next rows."""
        if not len(table):
            return
        self._digest.add(table)
        if self._out is not None:
            self._out.write(table)
        self.first_id = self.first_id or table["id"][0].as_py()
        self.last_id = table["id"][-1].as_py()

    def __exit__(self, *failure: Any) -> None:
        if self._out is not None:
            self._out.__exit__(*failure)
        self.sha256 = self._digest.hexdigest()


def save_plan(path: Path, plan: Plan, decisions: pa.Table) -> None:
    """Write the plan and, beside it, its decisions."""
    write_table(decisions_path(path), decisions)
    write_json(path, plan.to_json())


def read_plan(path: Path) -> Plan:
    """A plan (file or evidence folder) without its decisions, which are not looked at."""
    path = path / "plan.json" if path.is_dir() else path
    try:
        return from_json(path.read_text(encoding="utf-8"), path.name)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(f"--plan {one_line(str(path))}: {one_line(reason)}") from None


def load_plan(path: Path, columns: Sequence[str] = COLUMNS) -> tuple[Plan, pa.Table]:
    """A plan (file or evidence folder) and columns of its decisions.

    Refuses what its digest does not fit; all columns are read for that, a row group at a time.
    """
    plan = read_plan(path)
    beside = decisions_path(path / "plan.json" if path.is_dir() else path)
    try:
        return plan, _read_decisions(beside, plan, columns)
    except (OSError, ValueError, NotImplementedError):  # what pyarrow raises is one of these
        raise RefusedError(
            f"the plan's decisions, {one_line(beside.name)}, cannot be read"
        ) from None


def _read_decisions(path: Path, plan: Plan, columns: Sequence[str]) -> pa.Table:
    import pyarrow as pa
    from pyarrow import parquet

    digest, parts = TableDigest(), []
    # an open file: from a path pyarrow may take a folder or read columns out of folder names
    with path.open("rb") as file:
        stored = parquet.ParquetFile(file)
        is_plan = tuple(stored.schema_arrow.names) == COLUMNS
        for group in range(stored.num_row_groups) if is_plan else ():
            part = stored.read_row_group(group)
            digest.add(part)
            parts.append(part.select(columns))
        if is_plan and not parts:
            digest.add(stored.schema_arrow.empty_table())
    if not is_plan or digest.hexdigest() != plan.decisions_sha256:
        raise RefusedError(f"{one_line(path.name)} does not fit the plan's digest: it was edited")
    schema = pa.schema([decisions_schema().field(name) for name in columns])
    try:  # another tool may have saved it otherwise
        return pa.concat_tables([schema.empty_table(), *(as_decisions(part) for part in parts)])
    except (ValueError, NotImplementedError):
        raise RefusedError(f"{one_line(path.name)} has columns of other types") from None
