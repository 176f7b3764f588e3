"""A plan and its decisions stand for each other, or the plan is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from plan_samples import plan_of, table_of, table_sha256
from runs import flip, names

from drainkit import files
from drainkit.draining.plan_files import load_plan, save_plan
from drainkit.errors import RefusedError, UsageError


@pytest.mark.parametrize(
    ("name", "beside"),
    [("plan.json", "decisions.parquet"), ("monday.json", "monday.decisions.parquet")],
)
def test_a_plan_is_loaded_with_its_decisions(tmp_path: Path, name: str, beside: str) -> None:
    """By its file's name, and the decisions stand beside it."""
    save_plan(tmp_path / name, plan_of(), [table_of()])
    assert names(tmp_path) == sorted([name, beside])
    plan, decisions = load_plan(tmp_path / name)
    assert plan == plan_of()
    assert decisions.table().equals(table_of())


def test_a_plan_is_loaded_from_its_evidence_folder(sealed: Path) -> None:
    """A folder's name is enough."""
    assert load_plan(sealed)[0] == plan_of()


def test_folders_named_like_columns_add_none(tmp_path: Path) -> None:
    """`env=prod/` in the path is no partition of the decisions."""
    folder = tmp_path / "env=prod"
    folder.mkdir()
    save_plan(folder / "plan.json", plan_of(), [table_of()])
    assert load_plan(folder)[1].table().equals(table_of())


def write_other(path: Path, table: pa.Table) -> None:
    files.write_table(path, table)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: p.unlink(),
        lambda p: flip(p, p.stat().st_size // 2),
        lambda p: p.write_bytes(p.read_bytes()[:-9]),
        lambda p: p.write_bytes(b""),
        lambda p: write_other(p, table_of().slice(1)),
        lambda p: write_other(p, table_of().drop(["failed"])),
        lambda p: write_other(p, pa.table({"id": ["1-0"]})),
        lambda p: write_other(
            p, table_of().set_column(3, "symbol", pa.array([["x"]] * 5, pa.list_(pa.string())))
        ),
        lambda p: write_other(
            p,
            table_of().set_column(1, "event_time", pa.array([1, 2, 3, 4, 5], pa.timestamp("ns"))),
        ),
    ],
    ids=["gone", "flipped", "cut", "empty", "row", "column", "other", "nested", "nanoseconds"],
)
def test_decisions_that_do_not_fit_are_refused(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    """Decisions that are gone, broken or edited are named, exit code 4, never a traceback."""
    save_plan(tmp_path / "plan.json", plan_of(), [table_of()])
    spoil(tmp_path / "decisions.parquet")
    with pytest.raises(RefusedError, match=r"decisions\.parquet"):
        load_plan(tmp_path)


def test_decisions_and_plan_stand_for_each_other(tmp_path: Path) -> None:
    """Edited decisions with a new digest in the plan still do not fit: the plan was edited."""
    save_plan(tmp_path / "plan.json", plan_of(), [table_of()])
    other = table_of().slice(1)
    files.write_table(tmp_path / "decisions.parquet", other)
    data = json.loads((tmp_path / "plan.json").read_text())
    data["decisions_sha256"] = table_sha256(other)
    files.write_json(tmp_path / "plan.json", data)
    with pytest.raises(RefusedError, match="edited"):
        load_plan(tmp_path)


def test_no_such_plan_is_bad_usage(tmp_path: Path) -> None:
    """A missing file, a folder without a plan and a file of bytes: exit code 2, the path named."""
    (tmp_path / "bytes.json").write_bytes(b"\xff")
    for path in (tmp_path / "no.json", tmp_path, tmp_path / "bytes.json"):
        with pytest.raises(UsageError, match=re.escape(path.name)):
            load_plan(path)
