"""The notebooks as committed, checked by nbval: lax, and strictly where they are golden."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from backlogs import GROUP, fill, original_backlog, seed
from books import ask, everything
from conftest import ROOT, Cli
from papermill.inspection import inspect_notebook
from servers import Server

from drainkit.errors import UsageError
from drainkit.views.maintenance import Maintenance

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


def test_the_golden_notebook_passes_strictly(valkey: Server, tmp_path: Path) -> None:
    """Each output of the replayed original report is what it was when it was approved; of a copy
    with one changed number it is noticed: the comparison is not switched off."""
    fill(valkey, STREAM, original_backlog(), group=GROUP, position="1766594572014-0")
    golden = GOLDEN.read_text()
    assert all(
        c["execution_count"] for c in json.loads(golden)["cells"] if c["cell_type"] == "code"
    )
    changed = golden.replace("2971.245", "2971.246")
    assert changed != golden
    (tmp_path / "golden.ipynb").write_text(golden)
    (tmp_path / "changed.ipynb").write_text(changed)
    run = nbval(valkey, "--nbval", tmp_path)
    assert run.returncode == 1, run.stdout[-3000:]
    failed = [line for line in run.stdout.splitlines() if line.startswith("FAILED ")]
    assert failed, run.stdout[-3000:]
    assert all("changed.ipynb" in line for line in failed), run.stdout[-6000:]


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_parameters_explain_themselves(path: Path) -> None:
    """What papermill --help-notebook shows: each parameter with type, default and comment."""
    found = inspect_notebook(str(path))
    if path.stem in ("01_analyse_backlog", "02_dry_run"):
        assert found.keys() >= {
            "redis_url_env", "stream", "consumer_group", "consumer_name", "audit_stream", "scope",
            "allowlist", "min_conf", "max_age_min", "throttle", "max_events", "as_of", "until",
            "from_", "run_dir",
        }  # fmt: skip
        assert all(known["help"] for known in found.values())
        assert "maximum age, minutes" in found["max_age_min"]["help"]
    for name, known in found.items():
        assert known["inferred_type_name"] not in ("None", ""), name
        assert known["default"] != "None" or "default" in known["help"], name


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


def test_maintenance_acts_only_when_told(
    valkey: Server, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quoted "false" is no yes, "maybe" is refused; told to (by papermill), it removes the empty
    consumer and keeps the other."""
    seed(valkey, STREAM)
    ask(valkey, "XREADGROUP", "GROUP", GROUP, "busy", "COUNT", 3, "STREAMS", STREAM, ">")
    ask(valkey, "XGROUP", "CREATECONSUMER", STREAM, GROUP, "empty")
    before = everything(valkey)
    monkeypatch.setenv("DRAINKIT_REDIS_URL", valkey.url)
    assert "off" in Maintenance.open({"delete_consumers": "false"}).delete_dead().data
    with pytest.raises(UsageError, match="apply_trim"):
        Maintenance.open({"apply_trim": "maybe"})
    assert everything(valkey) == before
    done = cli.papermill(ROOT / "notebooks" / "maintenance.ipynb", "out.ipynb",
                         "-p", "min_idle_min", "0", "-p", "delete_consumers", "True")  # fmt: skip
    assert done.rc == 0, done.err
    left = [row[1] for row in ask(valkey, "XINFO", "CONSUMERS", STREAM, GROUP)]
    assert left == [b"busy"]
