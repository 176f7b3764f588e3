"""Plan files: plan.json and, beside it, the decisions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

from ..core.collection import give_back_freed
from ..core.plan import (
    BLOCK,
    COLUMNS,
    Plan,
    TableDigest,
    as_decisions,
    block_sha256,
    decisions_schema,
    from_json,
)
from ..errors import RefusedError, UsageError
from ..files import TableWriter, parquet_file, write_json
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


def save_plan(path: Path, plan: Plan, decisions: Iterable[pa.Table]) -> None:
    """Write the plan and, beside it, its decisions, which come in parts."""
    with TableWriter(decisions_path(path), decisions_schema()) as out:
        for part in decisions:
            out.write(part)
    write_json(path, plan.to_json())


def read_plan(path: Path) -> Plan:
    """A plan (file or evidence folder) without its decisions, which are not looked at."""
    path = path / "plan.json" if path.is_dir() else path
    try:
        return from_json(path.read_text(encoding="utf-8"), path.name)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(f"--plan {one_line(str(path))}: {one_line(reason)}") from None


class DecisionsFile:
    """The decisions beside a plan, never more than a block of them (BLOCK rows) in memory.

    It fits the plan's digest, or it is refused. What is handed out is held against that again,
    block by block, so a file that changes meanwhile is refused too.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self._path = path
        digest = TableDigest()
        with self._told():
            for block in self._blocks():
                digest.add(block)
            found = digest.hexdigest()
        if found != plan.decisions_sha256:
            self._refuse()
        self.rows = digest.rows
        self._sha256 = digest.blocks
        give_back_freed()

    def blocks(self, columns: Sequence[str] = COLUMNS) -> Iterator[pa.Table]:
        """Some of its columns, with the types that they must have."""
        known = iter(self._sha256)
        with self._told():
            for block in self._blocks():
                if block_sha256(block) != next(known, None):
                    self._refuse()
                yield self._cast(block.select(columns))
        if next(known, None) is not None:
            self._refuse()

    def table(self, columns: Sequence[str] = COLUMNS) -> pa.Table:
        """All rows of some columns."""
        import pyarrow as pa

        return pa.concat_tables(self.blocks(columns))

    def _blocks(self) -> Iterator[pa.Table]:
        """Tables of BLOCK rows, whatever the file's row groups are; the last of fewer."""
        import pyarrow as pa

        with parquet_file(self._path) as stored:
            if tuple(stored.schema_arrow.names) != COLUMNS:
                self._refuse()
            held = stored.schema_arrow.empty_table()
            for group in range(stored.num_row_groups):
                held = pa.concat_tables([held, stored.read_row_group(group)])
                while len(held) >= BLOCK:
                    yield held.slice(0, BLOCK)
                    held = held.slice(BLOCK)
            if len(held) or not stored.metadata.num_rows:
                yield held

    def _cast(self, block: pa.Table) -> pa.Table:
        try:  # another tool may have saved it otherwise
            return as_decisions(block)
        except (ValueError, NotImplementedError):
            name = one_line(self._path.name)
            raise RefusedError(f"{name} has columns of other types") from None

    def _refuse(self) -> NoReturn:
        name = one_line(self._path.name)
        raise RefusedError(f"{name} does not fit the plan's digest: it was edited")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, NotImplementedError):  # what pyarrow raises is one of these
            name = one_line(self._path.name)
            raise RefusedError(f"the plan's decisions, {name}, cannot be read") from None


def load_plan(path: Path) -> tuple[Plan, DecisionsFile]:
    """A plan (file or evidence folder) and its decisions; refuses what its digest does not fit."""
    plan = read_plan(path)
    beside = decisions_path(path / "plan.json" if path.is_dir() else path)
    return plan, DecisionsFile(beside, plan)
