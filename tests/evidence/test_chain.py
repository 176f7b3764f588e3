"""The chain of runs: one that was removed, renamed, copied or rewritten is named."""

from __future__ import annotations

import itertools
import multiprocessing
import shutil
from pathlib import Path

import pytest
from runs import all_findings, make_run, rewrite, seal, statement

from drainkit.errors import DrainkitError
from drainkit.evidence.statement import statement_digest
from drainkit.evidence.verify import is_run, verify_reports, verify_run


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
