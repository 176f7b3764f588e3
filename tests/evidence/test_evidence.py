"""One run: whatever is changed, missing or added later is named."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import RUN, all_findings, flip, names, rewrite, statement

from drainkit.errors import UsageError
from drainkit.evidence.verify import is_run, verify_reports, verify_run


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
