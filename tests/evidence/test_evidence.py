"""Evidence: whatever is changed, missing, added or removed later is named; secrets stay out."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import lacking
from plan_samples import plan_of, table_of, table_sha256

from drainkit import files
from drainkit.core.summary import RUN_ID, new_run_id
from drainkit.draining.plan_files import load_plan, save_plan
from drainkit.errors import DrainkitError, RefusedError, UsageError
from drainkit.evidence import seal as sealing
from drainkit.evidence.signature import sign, verify_signature
from drainkit.evidence.statement import statement_digest
from drainkit.evidence.verify import is_run, verify_reports, verify_run

RUN = {
    "outcome": "done",
    "exit_code": 0,
    "started_at": "2025-12-24T19:49:58.000000+00:00",
    "finished_at": "2025-12-24T19:50:00.000000+00:00",
    "drained_ok": 1,
}
SECRET = 'p"ä/s&<w>ord'


def make_run(reports: Path, number: int = 0, mode: str = "live") -> Path:
    """A run's folder with every kind of file, not sealed yet."""
    folder = sealing.open_run(reports, f"2025122{number}T194958Z-{mode}-00000{number}")
    files.write_text(folder / "report.html", "<p>report</p>")
    files.write_json(folder / "run.json", RUN)
    files.write_json(folder / "01_analyse_backlog.ipynb", {"cells": []})
    save_plan(folder / "plan.json", plan_of(), [table_of()])
    return folder


def seal(folder: Path, **other: Any) -> str:
    values: dict[str, Any] = {
        "run": RUN,
        "parameters": {"stream": "s", "throttle": 5.0},
        "server": {"kind": "valkey", "version": "9.1.0"},
    }
    return sealing.seal(folder, **{**values, **other})


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    return tmp_path / "reports"


@pytest.fixture
def sealed(reports: Path) -> Path:
    folder = make_run(reports)
    seal(folder)
    return folder


@pytest.fixture
def chain(reports: Path) -> list[Path]:
    """Four sealed runs; the names' times go backwards, as after a clock step."""
    runs = [make_run(reports, 9 - i) for i in range(4)]
    for run in runs:
        seal(run)
    return runs


def statement(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "statement.json").read_text())
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flip(path: Path, at: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def all_findings(reports: Path) -> str:
    found = verify_reports(reports)
    return "\n".join(f"{name}: {line}" for name, lines in found.items() for line in lines)


# ---------------------------------------------------------------- writing files


def test_a_run_id_has_the_contracts_form() -> None:
    """YYYYMMDDTHHMMSSZ-<mode>-<6 hex>, and two of one second differ."""
    ids = [new_run_id("dry-run", 1_766_605_798_664_912) for _ in range(2)]
    for run_id in ids:
        assert re.fullmatch(r"20251224T194958Z-dry-run-[0-9a-f]{6}", run_id)
        assert RUN_ID.fullmatch(run_id)
    assert ids[0] != ids[1]


def test_a_run_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    """Parents are made; a folder that is there already is never shared."""
    folder = sealing.open_run(tmp_path / "a" / "b", "run")
    assert folder.is_dir()
    with pytest.raises(UsageError, match="reports-dir"):
        sealing.open_run(tmp_path / "a" / "b", "run")


def test_a_place_that_cannot_be_is_bad_usage(tmp_path: Path) -> None:
    """A missing folder, a folder in the file's place, a file in the folder's: one line each."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "no" / "x.json", tmp_path, tmp_path / "file" / "x.json"):
        with pytest.raises(UsageError):
            files.write_json(path, {})
    with pytest.raises(UsageError):
        sealing.open_run(tmp_path / "file", "run")
    assert names(tmp_path) == ["file"]


def write_beyond_the_limit(path: Path, out: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        if path.suffix:
            noise = pa.array(np.random.default_rng(0).random(200_000))
            files.write_table(path, pa.table({"x": noise}))
        files.write_bytes(path, bytes(1_000_000))
    except DrainkitError as error:
        out.put((error.exit_code, str(error)))


@pytest.mark.parametrize("name", ["a", "a.parquet", "a.csv"])
def test_no_room_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    """The system takes no more bytes: exit code 1, the old file whole, nothing half written."""
    path = tmp_path / name
    files.write_text(path, "old")
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    child = context.Process(target=write_beyond_the_limit, args=(path, out))
    child.start()
    code, text = out.get(timeout=60)
    child.join(60)
    child.close()
    out.close()
    out.join_thread()
    assert code == 1
    assert "File too large" in text
    assert path.read_text() == "old"
    assert names(tmp_path) == [name]


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """Who has the old file open keeps reading the old content to its end."""
    path = tmp_path / "x.json"
    files.write_json(path, {"n": 1})
    with path.open() as old:
        files.write_json(path, {"n": 2})
        assert json.load(old) == {"n": 1}
    assert json.loads(path.read_text()) == {"n": 2}
    assert names(tmp_path) == ["x.json"]


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_the_umask_decides_who_may_read(tmp_path: Path, mask: int, mode: int) -> None:
    """A strict umask keeps evidence private; a shared one shares it."""
    before = os.umask(mask)
    try:
        files.write_text(tmp_path / "x", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == mode


FORMULAS = [
    "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\n=1", " =1", "\u00a0=1", "\u3000 =1", "\ufeff=1",
    "\uff1d1", "\uff0b1", "\uff0d1", "\uff20x",
]  # fmt: skip


def read_csv(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("text", FORMULAS)
@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_no_formula_gets_into_a_spreadsheet(tmp_path: Path, text: str, kind: pa.DataType) -> None:
    """Texts that a spreadsheet would run get an apostrophe, also after blanks and in categories."""
    column = pa.array([text, "BUY", None]).cast(kind)
    files.write_table(tmp_path / "x.csv", pa.table({"side": column}))
    rows = read_csv(tmp_path / "x.csv")
    assert rows[1:3] == [["'" + text], ["BUY"]]


def test_numbers_and_harmless_text_stay_in_csv(tmp_path: Path) -> None:
    """Only text is escaped: a negative number stays a number, quotes and newlines stay."""
    texts = ['a "b", c', "x\ny=1", "a-b"]
    files.write_table(tmp_path / "x.csv", pa.table({"n": [-1.5, 2.0, -3.0], "t": texts}))
    rows = read_csv(tmp_path / "x.csv")
    assert [row[1] for row in rows[1:]] == texts
    assert [float(row[0]) for row in rows[1:]] == [-1.5, 2.0, -3.0]


def test_no_terminal_escape_gets_into_csv(tmp_path: Path) -> None:
    """Control characters and bidi overrides are replaced, a carriage return before = too."""
    bad = ["\x1b[2J", "a\u202eb", "\r=1", "\x00"]
    files.write_table(tmp_path / "x.csv", pa.table({"t": bad}))
    text = (tmp_path / "x.csv").read_bytes().decode()
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", text)


def test_a_table_is_parquet_or_csv(tmp_path: Path) -> None:
    """Parquet comes back as it was; another ending is bad usage and leaves nothing."""
    files.write_table(tmp_path / "x.parquet", table_of())
    from pyarrow import parquet

    assert parquet.read_table(tmp_path / "x.parquet").equals(table_of())
    with pytest.raises(UsageError, match=r"\.parquet or \.csv"):
        files.write_table(tmp_path / "x.xlsx", table_of())
    assert names(tmp_path) == ["x.parquet"]


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_table_written_in_parts_is_whole_or_not_there(tmp_path: Path, suffix: str) -> None:
    """Parts of any size become the same table in row groups; what failed leaves no file."""
    from pyarrow import csv as arrow_csv
    from pyarrow import parquet

    path, whole = tmp_path / f"x.{suffix}", pa.concat_tables([table_of()] * 9)
    if suffix == "csv":  # which cannot hold bytes
        whole = whole.drop_columns(["payload_sha256"])
    with files.TableWriter(path, whole.schema, row_group=4) as out:
        for start, size in ((0, 1), (1, 0), (1, 13), (14, 31)):
            out.write(whole.slice(start, size))
        assert not path.exists()
    if suffix == "parquet":
        assert parquet.read_table(path).equals(whole)
        assert parquet.ParquetFile(path).num_row_groups == 12
    else:
        assert arrow_csv.read_csv(path)["id"].to_pylist() == whole["id"].to_pylist()
    path.unlink()
    with pytest.raises(pa.ArrowInvalid), files.TableWriter(path, whole.schema, row_group=4) as out:
        out.write(pa.concat_tables([whole, pa.table({"id": ["1-0"]})]))
    assert names(tmp_path) == []


# ---------------------------------------------------------------- plans


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


# ---------------------------------------------------------------- one run


def test_an_auditor_needs_only_sha256sum(sealed: Path) -> None:
    """`sha256sum -c SHA256SUMS` passes and covers every file, the statement too."""
    check = ["sha256sum", "--strict", "-c", "SHA256SUMS"]
    done = subprocess.run(check, cwd=sealed, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    listed = [line.partition(":")[0] for line in done.stdout.splitlines()]
    assert sorted([*listed, "SHA256SUMS"]) == names(sealed)


def test_the_statement_is_an_in_toto_statement(sealed: Path) -> None:
    """Type, subjects with SHA-256 of every other file, and a predicate that says how it came."""
    found = statement(sealed)
    assert found["_type"] == "https://in-toto.io/Statement/v1"
    assert set(found) == {"_type", "subject", "predicateType", "predicate"}
    assert ":" in found["predicateType"]  # in-toto: a type URI
    subjects = {s["name"]: s["digest"] for s in found["subject"]}
    assert sorted([*subjects, "SHA256SUMS", "statement.json"]) == names(sealed)
    for name, digest in subjects.items():
        assert digest == {"sha256": hashlib.sha256((sealed / name).read_bytes()).hexdigest()}
    predicate = found["predicate"]
    assert predicate["run_id"] == sealed.name
    assert {k: predicate[k] for k in RUN if k != "drained_ok"} == {
        k: v for k, v in RUN.items() if k != "drained_ok"
    }
    assert predicate["parameters"] == {"stream": "s", "throttle": 5.0}
    assert predicate["versions"]["server"] == {"kind": "valkey", "version": "9.1.0"}
    assert {"python", "drainkit", "redis", "pandas"} <= set(predicate["versions"])
    assert predicate["host"]
    assert predicate["user"]
    assert predicate["previous"] is None


def test_an_untouched_run_has_no_findings(sealed: Path, reports: Path) -> None:
    """Alone and in its reports folder all is well, also under another folder name."""
    assert verify_run(sealed) == []
    assert all_findings(reports) == ""
    shutil.copytree(sealed, reports / "example")
    assert is_run(reports / "example")
    assert verify_run(reports / "example") == []
    assert all_findings(reports) == ""


def test_one_flipped_byte_is_named_in_any_file(sealed: Path) -> None:
    """First, middle or last byte of each file, SHA256SUMS and statement too."""
    for name in names(sealed):
        path = sealed / name
        whole = path.read_bytes()
        for at in (0, len(whole) // 2, len(whole) - 1):
            flip(path, at)
            assert any(name in line for line in verify_run(sealed)), (name, at)
            path.write_bytes(whole)
    assert verify_run(sealed) == []


def test_only_the_changed_file_is_named(sealed: Path) -> None:
    """One changed file gives one finding."""
    flip(sealed / "report.html")
    (line,) = verify_run(sealed)
    assert line.startswith("changed: report.html")


def test_a_removed_file_is_named(sealed: Path) -> None:
    """Each file in turn, SHA256SUMS and statement too, and just that one."""
    for name in names(sealed):
        (sealed / name).rename(sealed.parent / "away")
        findings = verify_run(sealed)
        assert findings, name
        assert all(line.startswith(f"missing: {name}") for line in findings), findings
        (sealed.parent / "away").rename(sealed / name)


@pytest.mark.parametrize(
    "add",
    [
        lambda folder: (folder / "added").write_text("x"),
        lambda folder: (folder / "added").mkdir(),
        lambda folder: (folder / "added").symlink_to("/etc/passwd"),
        lambda folder: (folder / "added").symlink_to("nowhere"),
        lambda folder: os.mkfifo(folder / "added"),
        lambda folder: (folder / "line\nadded").write_text("x"),
        lambda folder: os.close(os.open(os.fsencode(folder) + b"/\xffadded", os.O_CREAT)),
    ],
    ids=["file", "folder", "symlink", "dangling", "fifo", "newline", "bytes"],
)
def test_an_added_file_is_named(sealed: Path, add: Callable[[Path], object]) -> None:
    """Whatever kind it is and however it is called, in one printable line."""
    add(sealed)
    (line,) = verify_run(sealed)
    assert line.startswith("added: ")
    assert "added" in line.removeprefix("added: ")
    assert line.isprintable()


def test_a_file_that_became_something_else_is_named(sealed: Path) -> None:
    """A link to the same bytes, or a pipe in a file's place (nothing waits for it)."""
    for name in names(sealed):
        away = sealed.parent / "away"
        (sealed / name).rename(away)
        (sealed / name).symlink_to(away)
        assert any(name in line for line in verify_run(sealed)), name
        (sealed / name).unlink()
        os.mkfifo(sealed / name)
        assert any(name in line for line in verify_run(sealed)), name
        (sealed / name).unlink()
        away.rename(sealed / name)
    assert verify_run(sealed) == []


def test_sums_made_anew_do_not_hide_a_change(sealed: Path) -> None:
    """A changed file with a fitting SHA256SUMS still differs from the statement."""
    flip(sealed / "run.json")
    sums = subprocess.run(
        ["sha256sum", *(n for n in names(sealed) if n != "SHA256SUMS")],
        cwd=sealed, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    (sealed / "SHA256SUMS").write_text(sums)
    assert any("run.json" in line for line in verify_run(sealed))


def test_a_cut_line_end_is_named(sealed: Path) -> None:
    """The one byte of SHA256SUMS that sha256sum itself would not miss."""
    sums = sealed / "SHA256SUMS"
    sums.write_bytes(sums.read_bytes()[:-1])
    assert any(line.startswith("changed: SHA256SUMS") for line in verify_run(sealed))


def rewrite(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit the statement and put its digest into SHA256SUMS, as a forger would."""
    data = statement(folder)
    old = statement_digest(folder)
    edit(data)
    (folder / "statement.json").write_text(json.dumps(data))
    sums = (folder / "SHA256SUMS").read_text()
    (folder / "SHA256SUMS").write_text(sums.replace(old, statement_digest(folder)))


@pytest.mark.parametrize("name", ["../run.json", "/etc/passwd", "..", "a/b", "SHA256SUMS"])
def test_a_subject_outside_the_folder_is_refused(sealed: Path, name: str) -> None:
    """A statement can only speak of the folder's own files; nothing else is opened."""
    (sealed.parent / "run.json").write_text("x")
    sha = hashlib.sha256(b"x").hexdigest()
    rewrite(sealed, lambda s: s["subject"].append({"name": name, "digest": {"sha256": sha}}))
    assert any("subject" in line and name in line for line in verify_run(sealed))


@pytest.mark.parametrize(
    "edit",
    [
        lambda s: s.update(subject=7),
        lambda s: s.update(subject=[7]),
        lambda s: s.update(subject=[{"name": "x"}]),
        lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"),
        lambda s: s.pop("predicate"),
        lambda s: s.update(predicate=None),
        lambda s: s["predicate"].update(previous="x"),
        lambda s: s["predicate"].update(previous=["x"]),
        lambda s: s["predicate"].update(previous={"run_id": 1, "statement_sha256": []}),
        lambda s: s["predicate"].pop("previous"),
    ],
)
def test_an_odd_statement_is_a_finding(
    sealed: Path, reports: Path, edit: Callable[[dict[str, Any]], object]
) -> None:
    """Whatever stands in it: findings, never a traceback."""
    rewrite(sealed, edit)
    assert "statement" in all_findings(reports)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "null", "\ufeff{}"])
def test_a_statement_that_is_none_is_a_finding(sealed: Path, reports: Path, text: str) -> None:
    """No JSON, another JSON, JSON nested too deep."""
    (sealed / "statement.json").write_text(text)
    assert "changed: statement.json" in "\n".join(verify_run(sealed))
    assert "changed: statement.json" in all_findings(reports)


def test_a_folder_that_is_not_there_is_bad_usage(tmp_path: Path) -> None:
    """A misspelt path is no clean bill."""
    for verify in (verify_run, verify_reports):
        with pytest.raises(UsageError, match="nowhere"):
            verify(tmp_path / "nowhere")


# ---------------------------------------------------------------- the chain


def test_each_statement_names_the_one_sealed_before(chain: list[Path], reports: Path) -> None:
    """By run and digest, in the order of sealing, whatever the clock said."""
    assert statement(chain[0])["predicate"]["previous"] is None
    for before, after in itertools.pairwise(chain):
        assert statement(after)["predicate"]["previous"] == {
            "run_id": before.name,
            "statement_sha256": statement_digest(before),
        }
    assert all_findings(reports) == ""


@pytest.mark.parametrize("which", range(4), ids=["first", "second", "third", "last"])
def test_a_removed_run_is_named(chain: list[Path], reports: Path, which: int) -> None:
    """First, middle or newest: its name stands in the findings."""
    shutil.rmtree(chain[which])
    found = verify_reports(reports)["chain"]
    assert any(f"removed: run {chain[which].name}" in line for line in found)


def test_all_runs_removed_is_noticed(chain: list[Path], reports: Path) -> None:
    """With chain.json the newest is missed; without it the folder holds nothing to vouch for."""
    for run in chain:
        shutil.rmtree(run)
    assert chain[-1].name in all_findings(reports)
    (reports / "chain.json").unlink()
    assert "there is no run" in all_findings(reports)


def test_a_renamed_run_is_named(chain: list[Path], reports: Path) -> None:
    """A folder under another run's name does not pass for it."""
    chain[1].rename(reports / "20260101T000000Z-live-abcdef")
    findings = all_findings(reports)
    assert f"removed: run {chain[1].name}" in findings
    assert "renamed: 20260101T000000Z-live-abcdef" in findings


def test_a_copied_run_is_named(chain: list[Path], reports: Path) -> None:
    """Two runs after the same one are a fork."""
    shutil.copytree(chain[1], reports / "20260101T000000Z-live-abcdef")
    assert "forked:" in all_findings(reports)


def test_a_second_beginning_is_named(chain: list[Path], reports: Path, tmp_path: Path) -> None:
    """A first run out of another reports folder does not pass for one of these."""
    stranger = make_run(tmp_path / "elsewhere", 1)
    seal(stranger)
    shutil.move(stranger, reports)
    findings = all_findings(reports)
    assert f"{stranger.name}, {chain[0].name} each claim to be the first run" in findings
    assert f"nothing follows {stranger.name}" in findings


def test_a_rewritten_run_breaks_the_chain(chain: list[Path], reports: Path) -> None:
    """A folder that fits in itself still differs from what its successor, or chain.json, names."""
    for run in (chain[1], chain[3]):
        rewrite(run, lambda s: s["predicate"].update(outcome="other"))
        assert verify_run(run) == []
        assert f"the statement of {run.name} is not the one" in all_findings(reports)


def test_a_run_that_was_never_sealed_is_named(chain: list[Path], reports: Path) -> None:
    """A crashed run's folder is a finding, not a gap in silence, and the chain goes on."""
    crashed = make_run(reports, 1)
    later = make_run(reports, 2)
    seal(later)
    found = verify_reports(reports)
    assert any("never sealed" in line for line in found.pop(crashed.name))
    assert not any(found.values())
    assert len(chain) + 2 == len(found)  # later, and the chain itself


def test_other_folders_are_no_runs(chain: list[Path], reports: Path) -> None:
    """README.md and example/ beside the runs are nobody's evidence."""
    (reports / "README.md").write_text("x")
    (reports / "example").mkdir()
    assert not is_run(reports / "example")
    assert not is_run(reports)
    assert all_findings(reports) == ""
    assert all(is_run(run) for run in chain)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"run_id": 7}', "[" * 100_000])
def test_a_broken_chain_file_is_named_and_stops_nobody(
    chain: list[Path], reports: Path, text: str
) -> None:
    """verify says so; the next run still leaves evidence that follows the newest."""
    (reports / "chain.json").write_text(text)
    assert "changed: chain.json" in all_findings(reports)
    run = make_run(reports, 1)
    seal(run)
    assert statement(run)["predicate"]["previous"]["run_id"] == chain[-1].name
    assert all_findings(reports) == ""


def test_a_missing_chain_file_is_named(chain: list[Path], reports: Path) -> None:
    """Without it nobody can tell whether the newest run is there."""
    (reports / "chain.json").unlink()
    assert "missing: chain.json" in all_findings(reports)
    assert chain


def test_a_crash_before_the_chain_file_is_healed(chain: list[Path], reports: Path) -> None:
    """SIGKILL between statement and chain.json: the next run follows the links, with no fork."""
    behind = (reports / "chain.json").read_bytes()
    crashed = make_run(reports, 1)
    seal(crashed)
    (reports / "chain.json").write_bytes(behind)
    assert crashed.name in all_findings(reports)
    later = make_run(reports, 2)
    seal(later)
    assert statement(later)["predicate"]["previous"]["run_id"] == crashed.name
    assert all_findings(reports) == ""
    assert chain


def test_a_run_is_sealed_once(sealed: Path, reports: Path) -> None:
    """A second seal would name the run as its own predecessor; it is refused, nothing changes."""
    before = {path.name: path.read_bytes() for path in sealed.iterdir()}
    with pytest.raises(DrainkitError, match="sealed already"):
        seal(sealed)
    assert {path.name: path.read_bytes() for path in sealed.iterdir()} == before
    assert all_findings(reports) == ""


def test_runs_that_end_together_do_not_fork(reports: Path) -> None:
    """Eight processes seal at once: one chain, no finding."""
    runs = [make_run(reports, i) for i in range(8)]
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        pool.map(seal, runs)
    assert all_findings(reports) == ""
    firsts = [run for run in runs if statement(run)["predicate"]["previous"] is None]
    assert len(firsts) == 1


# ---------------------------------------------------------------- secrets


def test_a_secret_that_got_in_is_struck_out(reports: Path) -> None:
    """In whatever spelling a file has it; the JSON stays JSON, and the statement says where."""
    import html
    import urllib.parse

    folder = make_run(reports)
    twice = json.dumps({"url": f"redis://u:{SECRET}@h"})
    files.write_json(folder / "after.json", {"a": [SECRET], "output": twice, "n": 5})
    files.write_json(folder / "baseline.json", {"shown": json.dumps({"output": twice})})
    (folder / "x.log").write_text(f"{SECRET} {urllib.parse.quote(SECRET, safe='')}")
    (folder / "no_ending").write_text(SECRET)
    (folder / "report.html").write_text(f"<p>{html.escape(SECRET)}</p>")
    (folder / ".writing-half").write_text(f'{{"url": "{SECRET}')
    seal(folder, secret_words=[SECRET], parameters={"note": f"x{SECRET}x", "throttle": 5.0})
    for path in folder.iterdir():
        if path.suffix == ".parquet":
            continue
        text = path.read_text()
        for form in (SECRET, "ä/s", "u00e4/s", "w>ord", "&lt;w&gt;ord", "%C3%A4"):
            assert form not in text, (path.name, form)
    after = json.loads((folder / "after.json").read_text())
    assert after == {"a": ["***"], "output": '{"url": "redis://u:***@h"}', "n": 5}
    predicate = statement(folder)["predicate"]
    assert predicate["parameters"] == {"note": "x***x", "throttle": 5.0}
    assert predicate["secrets_struck_out_of"] == [
        "after.json", "baseline.json", "no_ending", "report.html", "x.log",
    ]  # fmt: skip
    assert ".writing-half" not in names(folder)
    assert verify_run(folder) == []


def test_the_longer_of_two_secrets_goes_whole(reports: Path) -> None:
    """A secret that begins like another leaves no end of itself behind."""
    folder = make_run(reports)
    (folder / "x.log").write_text("first-secret and first-secret-tail")
    seal(folder, secret_words=["first-secret", "first-secret-tail"])
    assert (folder / "x.log").read_text() == "*** and ***"


@pytest.mark.parametrize("word", ["null", "run", "live", "500", "true", "cells"])
def test_a_poor_password_does_not_break_the_evidence(reports: Path, word: str) -> None:
    """Also a password that is a word of JSON leaves files that can be read and verified."""
    folder = make_run(reports)
    seal(folder, secret_words=[word])
    for name in ("run.json", "plan.json", "01_analyse_backlog.ipynb", "statement.json"):
        json.loads((folder / name).read_text())
    assert statement(folder)["predicate"]["run_id"] == folder.name
    assert all_findings(reports) == ""


def test_without_a_leak_no_file_is_touched(reports: Path) -> None:
    """The password appears nowhere: every file keeps its bytes, and nothing is noted."""
    folder = make_run(reports)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    seal(folder, secret_words=[SECRET, ""])
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert statement(folder)["predicate"]["secrets_struck_out_of"] == []


# ---------------------------------------------------------------- signatures


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with two SSH keys, and the file that allows the first to auditor@example.com."""
    if shutil.which("ssh-keygen") is None:
        lacking("ssh-keygen")
    for name in ("key", "other"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", tmp_path / name],
            check=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    public = (tmp_path / "key.pub").read_text()
    (tmp_path / "allowed").write_text(f"auditor@example.com {public}")
    return tmp_path


def test_a_signature_says_who_sealed(sealed: Path, reports: Path, keys: Path) -> None:
    """The real ssh-keygen signs and checks; the signature is no added file; it can be made anew."""
    for _ in range(2):
        assert sign(sealed, keys / "key") == sealed / "statement.json.sig"
        verify_signature(sealed, keys / "allowed", "auditor@example.com")
        assert all_findings(reports) == ""
    check = ["sha256sum", "--strict", "--quiet", "-c", "SHA256SUMS"]
    subprocess.run(check, cwd=sealed, check=True)


def test_a_signature_of_another_does_not_count(sealed: Path, keys: Path) -> None:
    """Another key, another name, no signature, a changed statement: each is refused."""

    def refused(identity: str = "auditor@example.com") -> None:
        with pytest.raises(DrainkitError):
            verify_signature(sealed, keys / "allowed", identity)

    refused()
    sign(sealed, keys / "other")
    refused()
    sign(sealed, keys / "key")
    refused("somebody@example.com")
    rewrite(sealed, lambda s: s["predicate"].update(outcome="other"))
    refused()


def test_a_signature_for_another_purpose_does_not_count(sealed: Path, keys: Path) -> None:
    """The same key's signature for git, or for files, says nothing about a run."""
    subprocess.run(
        ["ssh-keygen", "-q", "-Y", "sign", "-n", "git", "-f", keys / "key",
         sealed / "statement.json"],
        check=True, capture_output=True,
    )  # fmt: skip
    with pytest.raises(DrainkitError):
        verify_signature(sealed, keys / "allowed", "auditor@example.com")


def test_a_changed_signature_is_named_without_knowing_the_signer(sealed: Path, keys: Path) -> None:
    """verify needs no list of signers to see that a signature is of other bytes."""
    signature = sign(sealed, keys / "key")
    whole = signature.read_bytes()
    for at in (60, len(whole) // 2):
        flip(signature, at)
        assert any("statement.json.sig" in line for line in verify_run(sealed))
        signature.write_bytes(whole)
    assert verify_run(sealed) == []
    rewrite(sealed, lambda s: s["predicate"].update(outcome="other"))
    assert any("statement.json.sig" in line for line in verify_run(sealed))


def test_what_was_never_sealed_cannot_be_signed(reports: Path, keys: Path) -> None:
    """Signing, checking and the ledger's digest say so; a key that is none leaves no file."""
    folder = make_run(reports)
    for call in (
        lambda: sign(folder, keys / "key"),
        lambda: verify_signature(folder, keys / "allowed", "auditor@example.com"),
        lambda: statement_digest(folder),
    ):
        with pytest.raises(DrainkitError, match="never sealed"):
            call()
    seal(folder)
    with pytest.raises(DrainkitError, match="ssh-keygen"):
        sign(folder, keys / "allowed")
    assert "statement.json.sig" not in names(folder)
