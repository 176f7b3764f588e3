"""In a real browser: a person at the desk (`drainkit lab --demo`; 01 opened, run, played with), and
monitor.ipynb as a dashboard, served by Voila, offline, read only."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from backlogs import GROUP
from books import ask, everything
from browsers import Watched, demo_lab, hostile_backlog, run_in_lab, serving
from conftest import ROOT
from playwright.sync_api import Browser, Page, expect
from servers import Server

pytestmark = pytest.mark.browser
FIGURES = "[...document.querySelectorAll('.js-plotly-plot')]"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """The address of a Lab with the demo's server; both are gone afterwards."""
    with demo_lab(tmp_path) as address:
        yield address


def passing(page: Page) -> int:
    """How many events pass, as the exploration shows it."""
    row = page.locator("tr[data-action=drained_ok]").inner_text()
    return int(re.findall(r"[\d,]+", row)[0].replace(",", ""))


def test_a_person_can_explore_a_backlog(lab: str, browser: Browser) -> None:
    """From the file list: figures drawn, a slider moves counts, a search filters, a row opens."""
    watched = Watched(browser, lab)
    page = watched.page
    run_in_lab(page, lab, "01_analyse_backlog")
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
    table = page.locator("table.dataTable").last
    table.locator("tbody tr").first.evaluate("row => row.classList.add('before')")
    page.locator(".noUi-handle").first.click()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.wait_for_function(
        f"!document.querySelector('tr[data-action=drained_ok]').innerText.includes('{before:,}')"
    )
    assert passing(page) > before
    # the table follows the slider: its rows are made anew
    expect(page.locator("tr.before")).to_have_count(0, timeout=60_000)
    page.wait_for_timeout(2000)
    for way in ("ascending", "descending"):  # a click on the words, not on the arrows beside them
        table.locator("th", has_text="age, min").locator(".dt-column-title").click()
        expect(table.locator("th", has_text="age, min")).to_have_attribute("aria-sort", way)
    page.get_by_role("searchbox", name="Search:").fill("invalid")
    expect(page.locator(".dt-info")).to_contain_text("filtered from 3,174", timeout=10_000)
    shown = table.locator("tbody tr")
    assert all("invalid" in text for text in shown.all_inner_texts())
    # one of them carries a script as its symbol
    hostile = page.locator("tr", has_text="<script>alert(1)</script>")
    page.on("dialog", lambda dialog: pytest.fail(f"a script of an event ran: {dialog.message}"))
    for _ in range(40):
        if hostile.count():
            break
        page.mouse.wheel(0, 400)
        page.wait_for_timeout(250)
    (entry_id,) = re.findall(r"\d{13}-\d+", hostile.first.inner_text())
    page.get_by_role("searchbox", name="Search:").fill(entry_id)
    expect(table.locator("tbody tr")).to_have_count(1)
    table.locator("tbody tr").click()
    shown = page.locator(".drainkit-shown").last
    expect(shown).to_contain_text("<script>alert(1)</script>", timeout=15_000)
    expect(shown).to_contain_text("dropped_invalid")
    assert watched.outside == []
    assert "Traceback" not in page.content()
    # run again in a narrow window, figures out of sight too are as wide as their place
    page.set_viewport_size({"width": 1000, "height": 700})
    page.evaluate(f"{FIGURES}.forEach(figure => figure.classList.add('before'))")
    for item in ("Run", "Run All Cells"):
        page.get_by_role("menuitem", name=item, exact=True).click()
    page.wait_for_function(
        f"{FIGURES}.length == 8 && {FIGURES}.every(figure => !figure.matches('.before') &&"
        " figure.clientWidth && Math.abs(figure.clientWidth - "
        "figure.querySelector('.main-svg').getAttribute('width')) < 2)",
        timeout=60_000,
    )


NOTEBOOK = ROOT / "notebooks" / "monitor.ipynb"
STREAM = "quantum:stream:trade.intent"


def test_voila_serves_the_monitor(valkey: Server, tmp_path: Path, browser: Browser) -> None:
    """The served copy's limits judge a hostile backlog, all is drawn; no code, no error; events
    inert, data kept."""
    hostile_backlog(valkey, STREAM)
    ask(valkey, "XREADGROUP", "GROUP", GROUP, "<b>dead</b>", "COUNT", 5, "STREAMS", STREAM, ">")
    ask(valkey, "XGROUP", "CREATE", STREAM, "<b>group</b>", "0")
    copy = tmp_path / "monitor.ipynb"
    copy.write_text(
        NOTEBOOK.read_text().replace("max_backlog: int = 1000", "max_backlog: int = 123")
    )
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
