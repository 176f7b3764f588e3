"""A plan and its decisions stand for each other, or the plan is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from plan_samples import plan_of, save_plan, table_of, table_sha256
from runs import flip, names

from drainkit import files
from drainkit.draining.plan_files import PlanFile
from drainkit.errors import RefusedError, UsageError


def test_a_plan_is_loaded_with_its_decisions(tmp_path: Path, sealed: Path) -> None:
    """By its file's name, and the decisions stand beside it; or by its evidence folder. `env=prod/`
    in the path is no partition of the decisions."""
    folder = tmp_path / "env=prod"
    folder.mkdir()
    for name in ("plan.json", "monday.json"):
        save_plan(folder / name, plan_of(), [table_of()])
        loaded = PlanFile.load(folder / name)
        assert loaded.plan == plan_of()
        assert loaded.table().equals(table_of())
    assert names(folder) == [
        "decisions.parquet", "monday.decisions.parquet", "monday.json", "plan.json",
    ]  # fmt: skip
    assert PlanFile.load(sealed).plan == plan_of()


def other(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], object]:
    return lambda path: files.write_table(path, change(table_of()))


NESTED = pa.array([["x"]] * 5, pa.list_(pa.string()))
SPOILT: dict[str, Callable[[Path], object]] = {
    "gone": lambda p: p.unlink(),
    "flipped": lambda p: flip(p, p.stat().st_size // 2),
    "cut": lambda p: p.write_bytes(p.read_bytes()[:-9]),
    "empty": lambda p: p.write_bytes(b""),
    "row": other(lambda table: table.slice(1)),
    "column": other(lambda table: table.drop(["failed"])),
    "other": other(lambda _: pa.table({"id": ["1-0"]})),
    "nested": other(lambda table: table.set_column(3, "symbol", NESTED)),
    "nanoseconds": other(
        lambda table: table.set_column(1, "event_time", pa.array(range(5), pa.timestamp("ns")))
    ),
}


@pytest.mark.parametrize("how", SPOILT)
def test_decisions_that_do_not_fit_are_refused(tmp_path: Path, how: str) -> None:
    """Decisions that are gone, broken or edited are named, exit code 4, never a traceback."""
    save_plan(tmp_path / "plan.json", plan_of(), [table_of()])
    SPOILT[how](tmp_path / "decisions.parquet")
    with pytest.raises(RefusedError, match=r"decisions\.parquet"):
        PlanFile.load(tmp_path)


def test_decisions_and_plan_stand_for_each_other(tmp_path: Path) -> None:
    """A plan made anew over decisions of other columns is refused, and so are decisions that
    change while they are read, though they were well when the plan was loaded."""
    less = table_of().drop(["failed"])
    save_plan(tmp_path / "other.json", plan_of(decisions_sha256=table_sha256(less)), [less])
    with pytest.raises(RefusedError, match="other types"):
        PlanFile.load(tmp_path / "other.json")
    save_plan(tmp_path / "plan.json", plan_of(), [table_of()])
    loaded = PlanFile.load(tmp_path)
    files.write_table(tmp_path / "decisions.parquet", table_of())
    with pytest.raises(RefusedError, match="edited"):
        loaded.table()


def test_no_such_plan_is_bad_usage(tmp_path: Path) -> None:
    """A missing file, a folder without a plan and a file of bytes: exit code 2, the path named."""
    (tmp_path / "bytes.json").write_bytes(b"\xff")
    for path in (tmp_path / "no.json", tmp_path, tmp_path / "bytes.json"):
        with pytest.raises(UsageError, match=re.escape(path.name)):
            PlanFile.load(path)
