"""The notebooks as committed, and the golden one, checked strictly by nbval; the monitor: states in
words and colour, names inert, also as a page that Voila serves."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from backlogs import GROUP, deliver, fill, original_backlog, seed
from books import ask, everything, ledger_of
from browsers import Watched, hostile_events, serving
from conftest import ROOT, Cli
from faults import attempt
from papermill.inspection import inspect_notebook
from playwright.sync_api import Browser
from servers import Server

from drainkit.errors import UsageError
from drainkit.views.boards import Maintenance, Monitor
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
    """What papermill --help-notebook shows: each parameter with type, default and comment. 01, 02
    and 04 begin with a title of one line, parameters and bottom line; none speaks of a command to
    repeat, or promises a seal to who works by hand."""
    found, cells = inspect_notebook(str(path)), json.loads(path.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells]
    assert "same command" not in "".join(sources)
    if path.stem[:2] in ("01", "02", "04"):
        assert len(sources[0]) <= 40
        assert cells[1]["metadata"]["tags"] == ["parameters"]
        assert sources[2].endswith(".bottom_line()")
    if path.stem == "04_verify":
        assert sources[-1].endswith("A folder that was worked on by hand has no seal.")
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


def test_maintenance_acts_only_when_told(
    valkey: Server, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quoted "false" is no yes, "maybe" is refused; told to (by papermill), it removes the empty
    consumer and keeps the other. In Markdown a group's name stands between backticks and holds
    none."""
    seed(valkey, STREAM)
    ask(valkey, "XREADGROUP", "GROUP", GROUP, "busy", "COUNT", 3, "STREAMS", STREAM, ">")
    ask(valkey, "XGROUP", "CREATECONSUMER", STREAM, GROUP, "empty")
    ask(valkey, "XGROUP", "CREATE", STREAM, "<script>alert(9)</script>`**x**", "0-0")
    before = everything(valkey)
    monkeypatch.setenv("DRAINKIT_REDIS_URL", valkey.url)
    said = Maintenance.open({}).bottom_line().data
    assert ("<script>" in said, "<script>" in re.sub("`[^`]*`", "", said)) == (True, False)
    assert "off" in Maintenance.open({"delete_consumers": "false"}).delete_dead().data
    with pytest.raises(UsageError, match="apply_trim"):
        Maintenance.open({"apply_trim": "maybe"})
    assert everything(valkey) == before
    done = cli.papermill(ROOT / "notebooks" / "maintenance.ipynb", "out.ipynb",
                         "-p", "min_idle_min", "0", "-p", "delete_consumers", "True")  # fmt: skip
    assert done.rc == 0, done.err
    left = [row[1] for row in ask(valkey, "XINFO", "CONSUMERS", STREAM, GROUP)]
    assert left == [b"busy"]


def test_a_monitor_says_each_groups_state(
    valkey: Server, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the limit a group is critical in word and colour, with its numbers and why, another OK;
    names are text. Of a pattern each stream's runs and drains without an end are shown, by its
    name."""
    monkeypatch.setenv("DRAINKIT_REDIS_URL", valkey.url)
    limits = {"max_backlog": 100, "max_backlog_age_min": 10**6}
    seed(valkey, f"{stream}:a")
    deliver(valkey, f"{stream}:a", "me", 3)
    ask(valkey, "XGROUP", "CREATE", f"{stream}:a", "<img src=x onerror=alert(1)>", "$")
    monitor = Monitor.open({"stream": f"{stream}:a", **limits})
    assert re.match(
        r"\*\*CRITICAL\*\* as of \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC; streams looked at: 1; "
        "findings: 1.", monitor.bottom_line().data,
    )  # fmt: skip
    groups = monitor.groups_table()
    bad, good = groups.to_dict("records")
    assert (bad["group"], bad["undelivered"], bad["pending"]) == (GROUP, 197, 3)
    assert (good["undelivered"], good["oldest, min"], good["why"]) == (0, "none", "")
    shown = groups._repr_html_()
    assert "background:#D55E00;color:#000'>critical</td>" in shown
    assert "197 entries undelivered, limit 100" in shown
    assert "background:#009E73;color:#000'>ok</td>" in shown
    assert ("&lt;img src=x" in shown, "<img" in shown) == (True, False)

    seed(valkey, f"{stream}:b", 20, delivered=0)
    attempt(valkey.url, f"{stream}:b", throttle="none")
    start = ledger_of(valkey, f"{stream}:b")[0] | {"consumer": "gone"}
    flat = [part for pair in start.items() for part in pair]
    ask(valkey, "XADD", f"{stream}:b.drain_runs", "*", *flat)
    monitor = Monitor.open({"stream": "no-such", "pattern": f"{stream}:?", **limits})
    assert monitor.runs_table()["stream"].tolist() == [f"{stream}:b"] * 3
    (drain,) = monitor.drains_table().to_dict("records")
    assert drain["state"] == "never ended"
    assert (drain["stream"], drain["run_id"]) == (f"{stream}:b", start["run_id"])


@pytest.mark.browser
def test_voila_serves_the_monitor(valkey: Server, tmp_path: Path, browser: Browser) -> None:
    """The served copy's limits judge a hostile backlog, all is drawn; no code, no error; events
    inert, data kept."""
    seed(valkey, STREAM, 400)
    hostile_events(valkey.client(), STREAM)
    ask(valkey, "XREADGROUP", "GROUP", GROUP, "<b>dead</b>", "COUNT", 5, "STREAMS", STREAM, ">")
    ask(valkey, "XGROUP", "CREATE", STREAM, "<b>group</b>", "0")
    copy = tmp_path / "monitor.ipynb"
    packaged = (ROOT / "notebooks" / copy.name).read_text()
    copy.write_text(packaged.replace("max_backlog: int = 1000", "max_backlog: int = 123"))
    command = [sys.executable, "-m", "voila", str(copy), "--no-browser", "--Voila.ip=127.0.0.1"]
    env = {**os.environ, "DRAINKIT_REDIS_URL": valkey.url, "IPYTHONDIR": str(tmp_path)}
    before = everything(valkey)
    with serving(command, tmp_path, env, ready="/voila/static/voila.js") as (address, _):
        watched = Watched(browser, f"{address}/")
        page = watched.page
        page.goto(f"{address}/", wait_until="load", timeout=120_000)
        page.wait_for_selector("text=Next:", timeout=60_000)
        text = page.inner_text("body")
        assert page.evaluate("window.pwned") is None
    for there in (GROUP, "<b>group</b>", "limit 123", "looked at"):
        assert there in text
    for code in ("Traceback", "Monitor.open"):
        assert code not in text
    # Voila's own template asks for an icon font; blocked, nothing is missing
    assert [url for url in watched.outside if "fontawesome" not in url] == []
    assert watched.errors == []
    assert everything(valkey) == before
