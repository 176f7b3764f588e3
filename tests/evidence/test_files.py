"""Files are written whole or not at all, and no text in them acts on who opens them; a plan and its
decisions stand for each other, or the plan is refused."""

from __future__ import annotations

import csv
import io
import os
import re
import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from plan_samples import plan_of, save_plan, table_of, table_sha256
from runs import names

from drainkit import files
from drainkit.draining.plan_files import PlanFile
from drainkit.errors import DrainkitError, RefusedError, UsageError


def test_a_place_that_cannot_be_is_bad_usage(tmp_path: Path) -> None:
    """A missing folder, a folder or a pipe in the file's place, a file in the folder's, a folder
    that is there already: one line each. Parents of a new folder are made."""
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    for path in (
        tmp_path / "no" / "x.json", tmp_path, tmp_path / "file" / "x.json", tmp_path / "pipe",
    ):  # fmt: skip
        with pytest.raises(UsageError):
            files.write_json(path, {})
    assert files.make_folder(tmp_path / "a" / "b" / "run").is_dir()
    for path in (tmp_path / "file" / "run", tmp_path / "a" / "b" / "run"):
        with pytest.raises(DrainkitError, match="choose another"):
            files.make_folder(path)
    assert names(tmp_path) == ["a", "file", "pipe"]
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("name", ["a", "a.parquet", "a.csv"])
def test_no_room_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    """The system takes no more bytes: exit code 1, the old file whole, nothing half written."""
    path = tmp_path / name
    files.write_text(path, "old")
    noise = pa.table({"x": np.random.default_rng(0).random(200_000)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(DrainkitError, match="File too large") as failed:
            files.write_table(path, noise) if path.suffix else files.write_bytes(path, bytes(10**6))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert failed.value.exit_code == 1
    assert path.read_text() == "old"
    assert names(tmp_path) == [name]


def test_a_strict_umask_keeps_evidence_private(tmp_path: Path) -> None:
    """The umask decides who may read a file, also one that took another's place."""
    path = tmp_path / "x.json"
    files.write_json(path, {"n": 1})
    before = os.umask(0o077)
    files.write_json(path, {"n": 2})
    os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600


FORMULAS = [
    "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\n=1", " =1", "\u00a0=1", "\u3000 =1", "\ufeff=1",
    "\uff1d1", "\uff0b1", "\uff0d1", "\uff20x",
]  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_nothing_in_a_spreadsheet_acts(tmp_path: Path, kind: pa.DataType) -> None:
    """Texts that a spreadsheet would run get an apostrophe, also after blanks and in categories;
    controls and bidi overrides are replaced. Numbers, quotes and newlines stay what they are."""
    harmless, acting = ["BUY", 'a "b", c', "x\ny=1", "a-b"], ["\x1b[2J", "a\u202eb", "\r=1", "\x00"]
    texts = [*FORMULAS, *harmless, *acting]
    numbers = [-1.5 * n for n in range(len(texts))]
    table = pa.table({"n": numbers, "side": pa.array(texts).cast(kind)})
    files.write_table(tmp_path / "x.csv", table)
    written = (tmp_path / "x.csv").read_bytes().decode()
    _, *rows = csv.reader(io.StringIO(written, newline=""))
    assert [float(row[0]) for row in rows] == numbers
    kept = [*("'" + text for text in FORMULAS), *harmless]
    assert [row[1] for row in rows[: len(kept)]] == kept
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", written.replace("\t=1", ""))


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_table_written_in_parts_is_whole_or_not_there(tmp_path: Path, suffix: str) -> None:
    """Parts of any size become the same table in row groups; what failed, or has another ending,
    leaves no file."""
    from pyarrow import csv as arrow_csv
    from pyarrow import parquet

    path, whole = tmp_path / f"x.{suffix}", table_of().take(np.arange(70_000) % 5)
    if suffix == "csv":  # which cannot hold bytes
        whole = whole.drop_columns(["payload_sha256"])
    with files.table_writer(path, whole.schema) as write:
        for start, size in ((0, 1), (1, 0), (1, 66_000), (66_001, 3_999)):
            write(whole.slice(start, size))
        assert not path.exists()
    if suffix == "parquet":
        assert parquet.read_table(path).equals(whole)
        assert parquet.ParquetFile(path).num_row_groups == 2
    else:
        assert arrow_csv.read_csv(path)["id"].to_pylist() == whole["id"].to_pylist()
    path.unlink()
    with pytest.raises(UsageError, match=r"\.parquet or \.csv"):
        files.write_table(tmp_path / "x.xlsx", table_of())
    with pytest.raises(pa.ArrowInvalid), files.table_writer(path, whole.schema) as write:
        write(pa.concat_tables([whole, pa.table({"id": ["1-0"]})]))
    assert names(tmp_path) == []


def test_decisions_and_plan_stand_for_each_other(tmp_path: Path) -> None:
    """A plan is loaded by its file, and its decisions stand beside it; `env=prod/` in the path is
    no partition of them. Over decisions of other columns it is refused, and so are decisions that
    change while they are read, though they were well when it was loaded."""
    folder = files.make_folder(tmp_path / "env=prod")
    save_plan(folder / "monday.json", plan_of(), [table_of()])
    loaded = PlanFile.load(folder / "monday.json")
    assert (loaded.plan, loaded.table()) == (plan_of(), table_of())
    less = table_of().drop(["failed"])
    save_plan(tmp_path / "other.json", plan_of(decisions_sha256=table_sha256(less)), [less])
    with pytest.raises(RefusedError, match="other types"):
        PlanFile.load(tmp_path / "other.json")
    files.write_table(folder / "monday.decisions.parquet", table_of())
    with pytest.raises(RefusedError, match="edited"):
        loaded.table()
