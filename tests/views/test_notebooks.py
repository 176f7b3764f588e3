"""The notebooks as committed, checked by nbval: lax, and strictly where they are golden."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from books import GROUP, ask, everything, fill, original_backlog, seed
from conftest import ROOT
from servers import Server

STREAM = "quantum:stream:trade.intent"
GOLDEN = ROOT / "tests" / "views" / "golden" / "original_report.ipynb"


def nbval(server: Server, how: str, path: Path) -> subprocess.CompletedProcess[str]:
    """pytest with nbval on one notebook or folder, in a process and folder of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider",
         "-W", "ignore", "-c", os.devnull, "--rootdir", str(path if path.is_dir() else path.parent),
         how, "--nbval-current-env", str(path)],
        env={**os.environ, "DRAINKIT_REDIS_URL": server.url},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def test_committed_notebooks_pass_lax(valkey: Server) -> None:
    """Every committed notebook runs with its defaults, its asserts hold, nothing changes."""
    seed(valkey, STREAM)
    before = everything(valkey)
    run = nbval(valkey, "--nbval-lax", ROOT / "notebooks")
    assert run.returncode == 0, run.stdout[-3000:]
    assert everything(valkey) == before


def test_the_golden_notebook_passes_strictly(valkey: Server) -> None:
    """Each output of the replayed original report is what it was when it was approved."""
    fill(valkey, STREAM, original_backlog(), group=GROUP, position="1766594572014-0")
    run = nbval(valkey, "--nbval", GOLDEN)
    assert run.returncode == 0, run.stdout[-3000:]


def test_the_golden_comparison_can_fail(valkey: Server, tmp_path: Path) -> None:
    """A golden notebook with one changed number is noticed: the comparison is not switched off."""
    fill(valkey, STREAM, original_backlog(), group=GROUP, position="1766594572014-0")
    book = json.loads(GOLDEN.read_text())
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code)
    changed = GOLDEN.read_text().replace("2971.245", "2971.246")
    assert changed != GOLDEN.read_text()
    (tmp_path / "changed.ipynb").write_text(changed)
    run = nbval(valkey, "--nbval", tmp_path / "changed.ipynb")
    assert run.returncode == 1, run.stdout[-3000:]


@pytest.mark.parametrize("name", ["01_analyse_backlog", "02_dry_run"])
def test_parameters_explain_themselves(name: str, tmp_path: Path) -> None:
    """papermill --help-notebook lists every parameter with its comment."""
    path = ROOT / "notebooks" / f"{name}.ipynb"
    help_text = subprocess.run(
        [sys.executable, "-m", "papermill", "--help-notebook", str(path)],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    ).stdout  # fmt: skip
    for parameter in ("redis_url_env", "stream", "consumer_group", "consumer_name", "audit_stream",
                      "scope", "allowlist", "min_conf", "max_age_min", "throttle", "max_events",
                      "as_of", "until", "from_", "run_dir"):  # fmt: skip
        line = next(
            (row for row in help_text.splitlines() if row.strip().startswith(parameter)), ""
        )
        assert line, parameter
    assert "maximum age, minutes" in help_text


def test_notebooks_speak_of_what_is_there() -> None:
    """01, 02 and 04 begin with a title of one line, parameters and bottom line; none speaks of a
    command to repeat, or promises a seal to who works by hand."""
    for path in sorted((ROOT / "notebooks").glob("0*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        sources = ["".join(cell["source"]) for cell in cells]
        assert "same command" not in "".join(sources)
        if "03" not in path.name:
            assert len(sources[0]) <= 40
            assert cells[1]["metadata"]["tags"] == ["parameters"]
            assert sources[2].endswith(".bottom_line()")
        if "04" in path.name:
            assert sources[-1].endswith("A folder that was worked on by hand has no seal.")


def papermill(server: Server, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "papermill", str(ROOT / "notebooks" / "maintenance.ipynb"),
         str(folder / "out.ipynb"), *options],
        env={**os.environ, "DRAINKIT_REDIS_URL": server.url}, cwd=folder,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_maintenance_acts_only_when_told(valkey: Server, tmp_path: Path) -> None:
    """A quoted "false" is no yes; told to, it removes the empty consumer and keeps the other."""
    seed(valkey, STREAM)
    ask(valkey, "XREADGROUP", "GROUP", GROUP, "busy", "COUNT", 3, "STREAMS", STREAM, ">")
    ask(valkey, "XGROUP", "CREATECONSUMER", STREAM, GROUP, "empty")
    before = everything(valkey)
    idle = ("-p", "min_idle_min", "0")
    assert papermill(valkey, tmp_path, *idle, "-p", "delete_consumers", "false").returncode == 0
    assert papermill(valkey, tmp_path, *idle, "-p", "apply_trim", "maybe").returncode != 0
    assert everything(valkey) == before
    assert papermill(valkey, tmp_path, *idle, "-p", "delete_consumers", "True").returncode == 0
    left = [row[1] for row in ask(valkey, "XINFO", "CONSUMERS", STREAM, GROUP)]
    assert left == [b"busy"]
