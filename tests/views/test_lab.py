"""A person at the desk, in a real browser: `drainkit lab --demo`; 01 opened, run, played with."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import servers
from browsers import Watched
from conftest import ROOT
from playwright.sync_api import Browser, Page, expect

pytestmark = pytest.mark.browser


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """The address of a Lab with the demo's server; both are gone afterwards."""
    port = servers.free_port()
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("DRAINKIT_")}
    own = {name: str(tmp_path / name) for name in (
        "JUPYTER_CONFIG_DIR", "IPYTHONDIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR",
    )}  # fmt: skip
    log = (tmp_path / "lab.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "drainkit", "lab", "--demo", "--no-browser", "mine", "--",
         "--allow-root", f"--port={port}", "--ServerApp.token=", "--ServerApp.password=",
         "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
         "--LabApp.news_url=None"],
        env={**inherited, **own, "PYTHONPATH": str(ROOT)}, cwd=tmp_path,
        stdout=log, stderr=log,
    )  # fmt: skip
    log.close()
    address = f"http://127.0.0.1:{port}"
    try:
        servers.wait_until("JupyterLab answers", lambda: _answers(address), timeout_sec=60)
        started = psutil.Process(process.pid).children(recursive=True)
        assert any("valkey" in child.name() for child in started)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:  # Jupyter's own ending can hang
            process.kill()
            process.wait()
    servers.wait_until(
        "the demo's server is gone", lambda: not any("valkey" in c.name() for c in _alive(started))
    )


def _alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def _text(address: str) -> str:
    with urllib.request.urlopen(address) as reply:  # noqa: S310 - our own server
        return str(reply.read(), "utf-8")


def _answers(address: str) -> bool:
    try:
        return bool(_text(f"{address}/api"))
    except OSError:
        return False


def passing(page: Page) -> int:
    """How many events pass, as the exploration shows it."""
    row = page.locator("tr[data-action=drained_ok]").inner_text()
    return int(re.findall(r"[\d,]+", row)[0].replace(",", ""))


def test_a_person_can_explore_a_backlog(lab: str, browser: Browser) -> None:
    """From the file list: figures drawn, a slider moves counts, a search filters, a row opens."""
    watched = Watched(browser, lab)
    page = watched.page
    page.goto(f"{lab}/lab")
    page.locator(".jp-DirListing-item", has_text="01_analyse_backlog").dblclick(timeout=60_000)
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    # a notebook that is run before it has its kernel makes Lab ask for one
    for _ in range(120):
        page.wait_for_timeout(500)
        if "idle" in _text(f"{lab}/api/sessions"):
            break
    page.wait_for_timeout(2000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.mouse.move(700, 600)
    drawn: set[str] = set()
    for _ in range(200):  # Lab draws what is looked at
        drawn |= set(page.locator(".js-plotly-plot .gtitle").all_text_contents())
        if page.locator("tr[data-action=drained_ok]").count():
            break
        page.mouse.wheel(0, 400)
        page.wait_for_timeout(250)
    assert len(drawn) >= 6
    before = passing(page)
    page.locator(".noUi-handle").first.click()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.wait_for_function(
        f"!document.querySelector('tr[data-action=drained_ok]').innerText.includes('{before:,}')"
    )
    assert passing(page) > before
    assert page.locator(".drainkit-shown pre").first.inner_text().startswith("drainkit run ")
    table = page.locator("table.dataTable").last
    page.get_by_role("searchbox", name="Search:").fill("invalid")
    expect(page.locator(".dt-info")).to_contain_text("filtered from 3,174", timeout=10_000)
    shown = table.locator("tbody tr")
    assert all("invalid" in text for text in shown.all_inner_texts())
    shown.first.click()
    field = page.locator("input[placeholder='1766602826755-0']")
    expect(field).to_have_value(re.compile(r"\d+-\d+"))
    # one of them carries a script as its symbol
    hostile = page.locator("tr", has_text="<script>alert(1)</script>")
    page.on("dialog", lambda dialog: pytest.fail(f"a script of an event ran: {dialog.message}"))
    for _ in range(40):
        if hostile.count():
            break
        page.mouse.wheel(0, 400)
        page.wait_for_timeout(250)
    (entry_id,) = re.findall(r"\d{13}-\d+", hostile.first.inner_text())
    field.fill(entry_id)
    field.press("Enter")
    shown = page.locator(".drainkit-shown").last
    expect(shown).to_contain_text("<script>alert(1)</script>", timeout=15_000)
    expect(shown).to_contain_text("dropped_invalid")
    assert watched.outside == []
    assert "Traceback" not in page.content()
