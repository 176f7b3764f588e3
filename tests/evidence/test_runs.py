"""The list of runs: what a folder, a store and the server's ledger have, newest first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from backlogs import GROUP, seed
from books import at, live
from conftest import Cli
from playwright.sync_api import Browser
from runs import flip
from servers import Server
from test_edits import ANN, DRY, LIVE, NEW_LIVE, SIGNED, Evidence, edit

from drainkit import files
from drainkit.evidence.verify import ROW

OPEN, GONE = "20260105T000000Z-live-00000f", "20260105T000000Z-live-0000aa"


@pytest.fixture
def made(tmp_path: Path) -> Evidence:
    """A dry run, two live ones (the second names an approver), and one that was killed."""
    made = Evidence(tmp_path / "reports", tmp_path)
    for name in (DRY, SIGNED, LIVE):
        made.make(name, consumer_group=GROUP)
        edit(made / name / "run.json", approvers=[ANN] if name == LIVE else [])
        made.seal(name)
    files.make_folder(made / OPEN)
    files.write_json(made / OPEN / "run.json", {"outcome": "interrupted", "total_read": "\x1b[31m"})
    return made


def listed(cli: Cli, *args: object) -> dict[str, dict[str, Any]]:
    """The runs by id, in the order in which they are told."""
    found = cli("runs", "--json", *args)
    assert found.rc == 0, found
    assert found.json().keys() == {"runs"}
    return {run["run_id"]: run for run in found.json()["runs"]}


def test_each_run_is_a_line_with_the_state_of_its_seal(made: Evidence, cli: Cli) -> None:
    """Newest first, with exactly the contract's keys; what was changed, archived or killed."""
    flip(made / SIGNED / "report.html")
    for path in (made / DRY).iterdir():
        if path.name != "statement.json":
            path.unlink()
    found = listed(cli)
    assert [*found] == [OPEN, LIVE, SIGNED, DRY]
    assert all([*run] == [*ROW] for run in found.values())
    assert [run["seal"] for run in found.values()] == ["interrupted", "ok", "broken", "archived"]
    assert found[LIVE] == {
        "run_id": LIVE, "started_at": "2026-01-01T00:00:00+00:00", "stream": "s",
        "consumer_group": GROUP, "mode": "live", "outcome": "done", "total_read": 7,
        "drained_ok": 3, "operator": "olga", "approvers": [ANN], "evidence": f"reports/{LIVE}",
        "seal": "ok",
    }  # fmt: skip
    assert (found[DRY]["mode"], found[DRY]["total_read"]) == ("dry-run", 7)
    assert found[OPEN]["total_read"] is None
    lines = cli("runs").out.splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["interrupted", "ok", "broken", "archived"]
    assert cli("runs", "nowhere").rc == 2


def test_the_ledger_adds_live_runs_without_evidence(
    made: Evidence, valkey: Server, stream: str, cli: Cli
) -> None:
    """A plain drain, and a run whose folder is gone; not one that lies in another folder here."""
    seed(valkey, stream, 60, delivered=0)
    drain = cli.done(*live(valkey, stream, "--max-events", 7, "--operator", "olga")).json()
    ledger = f"{stream}.drain_runs"
    start = valkey.client().xrange(ledger, count=1)[0][1]
    elsewhere = files.make_folder(cli.cwd / "others" / NEW_LIVE)
    for name, folder in ((LIVE, made / LIVE), (GONE, made / GONE), (NEW_LIVE, elsewhere)):
        valkey.client().xadd(ledger, start | {b"run_id": name, b"folder": str(folder)})
    assert [*listed(cli)] == [OPEN, LIVE, SIGNED, DRY]
    where = at(valkey, stream)
    found = listed(cli, *where)
    assert {*found} == {OPEN, LIVE, SIGNED, DRY, GONE, drain["run_id"]}
    for name in (GONE, drain["run_id"]):
        assert (found[name]["evidence"], found[name]["seal"]) == (None, None)
    told = found[drain["run_id"]]
    assert [told[k] for k in ROW[2:9]] == [
        stream, GROUP, "live", "done", 7, drain["drained_ok"], "olga",
    ]  # fmt: skip
    assert "no evidence" in cli("runs", *where).out


@pytest.mark.browser
def test_the_page_leads_to_each_report(made: Evidence, cli: Cli, browser: Browser) -> None:
    """One page without a script, in which axe finds no fault; a link for each report there is."""
    files.write_json(made / OPEN / "run.json", {"stream": "<img src=x onerror=alert(1)>"})
    path = cli.cwd / "pages" / "runs of <b>.html"
    path.parent.mkdir()
    assert cli("runs", "--html", path).rc == 0
    page = browser.new_page()
    page.goto(path.as_uri())
    assert Axe().run(page).response["violations"] == []
    assert page.locator("script").count() == page.locator("img").count() == 0
    links = [link.evaluate("a => a.href") for link in page.locator("tbody a").all()]
    assert links == [(made / name / "report.html").as_uri() for name in (LIVE, SIGNED, DRY)]
    page.locator("tbody a").first.click()
    assert page.inner_text("p") == LIVE
