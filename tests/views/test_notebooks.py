"""The notebooks as committed, and the golden one, checked strictly by nbval; the monitor's board:
states in words and colour, names inert, numbers that stay fresh."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from backlogs import GROUP, deliver, fill, original_backlog, seed
from books import ask, everything, ledger_of
from conftest import ROOT, Cli
from faults import attempt
from papermill.inspection import inspect_notebook
from servers import Server

from drainkit.errors import UsageError
from drainkit.views.maintenance import Maintenance
from drainkit.views.monitor import Monitor
from drainkit.views.verify import Verification

STREAM = "quantum:stream:trade.intent"
GOLDEN = ROOT / "tests" / "views" / "golden" / "original_report.ipynb"


def test_notebooks_run_with_their_defaults(
    valkey: Server, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """03 by papermill, without any parameter, and 04: asserts hold, nothing is armed or changed.
    The others: maintenance below, monitor in test_acl, all of a run in test_readme."""
    seed(valkey, STREAM)
    before = everything(valkey)
    monkeypatch.setenv("DRAINKIT_REDIS_URL", valkey.url)
    done = cli.papermill(ROOT / "notebooks" / "03_live_drain.ipynb", "out.ipynb")
    assert done.rc == 0, done.err
    assert "Not armed" in (cli.cwd / "out.ipynb").read_text()
    check = Verification.open({})
    check.assert_balanced()
    assert "Nothing was drained, and nothing changed" in check.bottom_line().data
    assert everything(valkey) == before


def test_the_golden_notebook_passes_strictly(valkey: Server, tmp_path: Path) -> None:
    """Each output of the replayed original report is what it was when it was approved; the cell
    with one changed number is noticed: the comparison is not switched off."""
    fill(valkey, STREAM, original_backlog(), group=GROUP, position="1766594572014-0")
    book = json.loads(GOLDEN.read_text())
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code)
    (changed,) = (k for k, cell in enumerate(code) if "dry.samples()" in cell["source"])
    text = json.dumps(code[changed]).replace("2971.245", "2971.246")
    assert text != json.dumps(code[changed])
    code[changed].update(json.loads(text))
    (tmp_path / "golden.ipynb").write_text(json.dumps(book))
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider",
         "-W", "ignore", "-c", os.devnull, "--rootdir", tmp_path, "--nbval",
         "--nbval-current-env", tmp_path],
        env={**os.environ, "DRAINKIT_REDIS_URL": valkey.url},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert run.returncode == 1, run.stdout[-3000:]
    (failed,) = [line for line in run.stdout.splitlines() if line.startswith("FAILED ")]
    assert f"golden.ipynb::Cell {changed}" in failed, run.stdout[-6000:]


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
        assert "maximum age, minutes" in found["max_age_min"]["help"]
    for name, known in found.items():
        assert known["help"], name
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


def opened(
    server: Server, stream: str, monkeypatch: pytest.MonkeyPatch, most: int, pattern: str = ""
) -> Monitor:
    """A monitor of one stream or a pattern's; critical above `most` undelivered entries."""
    monkeypatch.setenv("DRAINKIT_REDIS_URL", server.url)
    limits = {"max_backlog": most, "max_backlog_age_min": 10**6, "pattern": pattern}
    return Monitor.open({"redis_url_env": "DRAINKIT_REDIS_URL", "stream": stream, **limits})


def test_a_board_says_its_state(
    valkey: Server, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the limit a group is critical in word and colour, another OK; names are text."""
    seed(valkey, stream)
    deliver(valkey, stream, "me", 3)
    ask(valkey, "XGROUP", "CREATE", stream, "<img src=x onerror=alert(1)>", "$")
    monitor = opened(valkey, stream, monkeypatch, most=100)
    assert "**CRITICAL**; streams looked at: 1; findings: 1." in monitor.bottom_line().data
    shown = monitor.board().data
    sections = re.findall("<section.*?</section>", shown)
    (bad,) = (s for s in sections if GROUP in s)
    assert "critical</span>" in bad
    assert "#D55E00" in bad
    assert "<b>197</b>undelivered" in bad
    assert "<b>3</b>pending" in bad
    assert "<p>197 entries undelivered, limit 100" in bad
    (good,) = (s for s in sections if GROUP not in s)
    assert "OK</span>" in good
    assert "&lt;img src=x" in good
    assert "<img" not in shown
    assert re.search(r"As of \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", shown)


@pytest.mark.parametrize("who", ["voila", "person"])
def test_a_board_looks_again(
    valkey: Server, stream: str, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """Where a kernel serves somebody the board asks the server anew by itself; where the server
    does not answer, old numbers do not stay."""
    seed(valkey, stream)
    if who == "voila":
        monkeypatch.setenv("SERVER_SOFTWARE", "voila/0.5")
    else:
        monkeypatch.setattr("drainkit.views.monitor.person_is_here", lambda: True)
    monkeypatch.setattr("drainkit.views.monitor.REFRESH_SEC", 0.1)
    monitor = opened(valkey, stream, monkeypatch, most=1000)

    async def watched() -> list[str]:
        shown, seen = monitor.board(), []
        for change in (
            lambda: deliver(valkey, stream, "me", 50),
            lambda: ask(valkey, "DEL", stream),
        ):
            change()
            await asyncio.sleep(0.5)
            seen.append(shown.value)
        return seen

    first, then = asyncio.run(watched())
    assert "<b>150</b>undelivered" in first
    assert "<b>150</b>" not in then


def test_a_pattern_is_shown(valkey: Server, stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a pattern each stream's runs, records and drains under way are shown, by its name."""
    names = [f"{stream}:{letter}" for letter in "ab"]
    for name in names:
        seed(valkey, name, 20, delivered=0)
        attempt(valkey.url, name, throttle="none")
    start = ledger_of(valkey, names[0])[0] | {"consumer": "gone"}
    flat = [part for pair in start.items() for part in pair]
    ask(valkey, "XADD", f"{names[0]}.drain_runs", "*", *flat)
    monitor = opened(valkey, "no-such", monkeypatch, most=9, pattern=f"{stream}:*")
    assert [*monitor.runs_table().columns][:4] == ["at", "stream", "event", "outcome"]
    assert {name: len(rows) for name, rows in monitor.runs_table().groupby("stream")} == {
        names[0]: 3, names[1]: 2,
    }  # fmt: skip
    assert sum(sum(bar.y) for bar in monitor.audit_growth().data) == 40
    assert f"{names[0]} drain {start['run_id']}" in monitor.board().data
