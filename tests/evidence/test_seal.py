"""How runs are sealed: an in-toto statement, sums, and a chain that no crash forks."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import shutil
from pathlib import Path

import pytest
from runs import RUN, all_findings, make_run, names, seal, statement, verify_run

from drainkit.errors import DrainkitError


def test_the_statement_is_an_in_toto_statement(sealed: Path, reports: Path) -> None:
    """Type, subjects with SHA-256 of every other file, and a predicate that says how it came; in
    SHA256SUMS stands every file, the statement too. A second seal would name the run as its own
    predecessor: it is refused, nothing changes."""
    listed = [line.split("  ")[1] for line in (sealed / "SHA256SUMS").read_text().splitlines()]
    assert sorted([*listed, "SHA256SUMS"]) == names(sealed)
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
    assert {key: predicate[key] for key in RUN if key != "drained_ok"} == {
        key: value for key, value in RUN.items() if key != "drained_ok"
    }
    assert predicate["parameters"] == {"stream": "s", "throttle": 5.0}
    assert predicate["versions"]["server"] == {"kind": "valkey", "version": "9.1.0"}
    assert {"python", "drainkit", "redis", "pandas"} <= set(predicate["versions"])
    assert predicate["host"]
    assert predicate["user"]
    assert predicate["previous"] is None
    before = {path.name: path.read_bytes() for path in sealed.iterdir()}
    with pytest.raises(DrainkitError, match="sealed already"):
        seal(sealed)
    assert {path.name: path.read_bytes() for path in sealed.iterdir()} == before
    assert all_findings(reports) == ""


def test_each_statement_names_the_one_sealed_before(chain: list[Path], reports: Path) -> None:
    """By run and digest, in the order of sealing, whatever the clock said; a copy under a name of
    its own, as an example, verifies too."""
    assert statement(chain[0])["predicate"]["previous"] is None
    for before, after in itertools.pairwise(chain):
        digest = hashlib.sha256((before / "statement.json").read_bytes()).hexdigest()
        link = {"run_id": before.name, "statement_sha256": digest}
        assert statement(after)["predicate"]["previous"] == link
    shutil.copytree(chain[1], reports / "example")
    assert verify_run(reports / "example") == []
    assert all_findings(reports) == ""


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"run_id": 7}', "[" * 100_000])
def test_a_broken_chain_file_stops_nobody(chain: list[Path], reports: Path, text: str) -> None:
    """verify says so; the next run still leaves evidence that follows the newest."""
    (reports / "chain.json").write_text(text)
    assert "changed: chain.json" in all_findings(reports)
    run = make_run(reports, 1)
    seal(run)
    assert statement(run)["predicate"]["previous"]["run_id"] == chain[-1].name
    assert all_findings(reports) == ""


def test_a_crash_before_the_chain_file_is_healed(chain: list[Path], reports: Path) -> None:
    """SIGKILL between statement and chain.json: the next run follows the links, with no fork."""
    behind = (reports / "chain.json").read_bytes()
    crashed = make_run(reports, 1)
    seal(crashed)
    (reports / "chain.json").write_bytes(behind)
    (reports / ".writing-0123456789abcdef").write_text("{")
    assert crashed.name in all_findings(reports)
    later = make_run(reports, 2)
    seal(later)
    assert statement(later)["predicate"]["previous"]["run_id"] == crashed.name
    assert all_findings(reports) == ""
    assert chain


def test_runs_that_end_together_do_not_fork(reports: Path) -> None:
    """Eight processes seal at once: one chain, no finding."""
    runs = [make_run(reports, i) for i in range(8)]
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        pool.map(seal, runs)
    assert all_findings(reports) == ""
    firsts = [run for run in runs if statement(run)["predicate"]["previous"] is None]
    assert len(firsts) == 1
