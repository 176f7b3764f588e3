"""What a person sees, in a real browser with the outside blocked: figures drawn, events inert, and
nothing of them a formula; at the desk (`drainkit lab --demo`), in a report, in exported pages."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import servers
from axe_playwright_python.sync_playwright import Axe
from backlogs import GROUP, seed
from books import at
from browsers import Watched, demo_lab, hostile_events, run_in_lab
from conftest import Cli, need
from playwright.sync_api import Browser, Page, expect
from program import Programs

pytestmark = pytest.mark.browser

TEX = ("$\\href{http://203.0.113.9}{x}$", "$\\color{white}{x}$", "$$\\text{a}$$", "\\(x\\)")
# texts with TeX that MathJax would read: no parent says that it must not
TYPESET = """root => {
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT), found = [];
  const free = "script,noscript,style,textarea,pre,code,.tex2jax_ignore,.mathjax_ignore";
  while (walker.nextNode())
    if (/\\$.*\\$|\\\\\\(/.test(walker.currentNode.data) &&
        !walker.currentNode.parentElement.closest(free)) found.push(walker.currentNode.data);
  return found;
}"""
BUSY = ".jp-InputPrompt:text-is('[*]:')"


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory, _programs: Programs) -> Iterator[Path]:
    """The evidence of a live run over a hostile backlog."""
    cli = Cli(tmp_path_factory.mktemp("hostile"), _programs)
    with servers.start(need("valkey")) as server:
        seed(server, "s", 400)
        hostile_events(server.client(), "s", *TEX)
        run = cli.done(
            "run", "--mode", "live", "--yes", "--json", "--throttle", "none", "--max-events", "all",
            "--allow-active-consumers", *at(server, "s"), "--consumer-group", GROUP,
        )  # fmt: skip
    yield cli.cwd / "reports" / run.json()["run_id"]
    cli.close()


def test_the_evidence_opens_offline(evidence: Path, browser: Browser) -> None:
    """report.html of a run. Without scripts every figure is there and nothing is fetched; whatever
    the width and the theme, axe finds no fault, nothing is cut off, and the verdict is on the first
    screen."""
    address = f"file://{evidence}/report.html"
    bare = browser.new_context(java_script_enabled=False).new_page()
    bare.goto(address)
    assert bare.locator("figure svg").count() >= 9
    watched = Watched(browser, address)
    page = watched.page
    for theme in ("light", "dark"):
        for width in (400, 800, 1400):
            page.emulate_media(color_scheme=theme)
            page.set_viewport_size({"width": width, "height": 800})
            page.goto(address)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert Axe().run(page).response["violations"] == []
            for seen in (".verdict", ".verdict + p"):
                box = page.locator(seen).bounding_box()
                assert box
                assert box["y"] + box["height"] < 800
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(255, 255, 255)") == (theme == "light")
    assert page.evaluate("window.pwned") is None
    assert watched.outside == watched.failed == watched.errors == []
    text = page.inner_text("body")
    for heading in ("Executive summary", "Baseline", "Dry run", "Live drain", "Verification",
                    "Metrics"):  # fmt: skip
        assert heading in text
    assert "\u202e" not in page.content()
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 688, "height": 1000})  # what A4 leaves between its margins
    broken = "[...document.querySelectorAll('.id')].filter(e => e.getClientRects().length > 1)"
    assert page.evaluate(f"{broken}.length") == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 688
    assert page.pdf(format="A4").startswith(b"%PDF")


def passing(page: Page) -> int:
    """How many events pass, as the exploration shows it."""
    row = page.locator("tr[data-action=drained_ok]").inner_text()
    return int(re.findall(r"[\d,]+", row)[0].replace(",", ""))


def seen_in(page: Page, **wanted: str) -> dict[str, set[str]]:
    """The texts of what is `wanted`, all along the notebook; Lab draws what is looked at."""
    texts = {name: set[str]() for name in wanted}
    page.mouse.move(700, 600)
    for step in range(300):
        for name, selector in wanted.items():
            texts[name] |= set(page.locator(selector).all_text_contents())
        is_there = page.locator("tr[data-action=drained_ok]").count() > 0
        if step > 30 and is_there and not page.locator(BUSY).count():
            break
        page.mouse.wheel(0, 400)
        page.wait_for_timeout(250)
    return texts


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """The address of a Lab with the demo's server, hostile events added; beside the notebooks a
    calendar.py that must run nowhere."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "calendar.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write('ran')")
    with demo_lab(tmp_path) as (address, url):
        with redis.Redis.from_url(url) as client:
            hostile_events(client, "quantum:stream:trade.intent", *TEX)
        yield address
    assert not (tmp_path / "ran").exists()


def test_a_person_can_explore_a_backlog(lab: str, browser: Browser) -> None:
    """From the file list: figures drawn, nothing typeset, a slider moves counts, a search filters,
    a row opens. Nothing outside is asked."""
    watched = Watched(browser, lab)
    page = watched.page
    run_in_lab(page, lab, "01_analyse_backlog")
    seen = seen_in(page, titles=".js-plotly-plot .gtitle", texts=".js-plotly-plot text",
                   formulas="mjx-container,[class$=-math-group]")  # fmt: skip
    assert len(seen["titles"]) >= 6
    assert "$\\color{white}{x}$" in {text.strip() for text in seen["texts"]}
    assert seen["formulas"] == set()
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
    expect(page.locator(".dt-info")).to_contain_text("filtered from 3,275", timeout=10_000)
    shown = table.locator("tbody tr")
    assert all("invalid" in text for text in shown.all_inner_texts())
    # one of them carries a script as its symbol
    hostile = page.locator("tr", has_text="symbol not valid")  # of those an example
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
    assert "Traceback" not in page.content()
    assert watched.outside == []


def test_no_exported_page_is_typeset(evidence: Path, tmp_path: Path, browser: Browser) -> None:
    """nbconvert's page of 01 and 04 holds no TeX of an event where its MathJax would look."""
    names = ["01_analyse_backlog", "04_verify"]
    subprocess.run(
        [sys.executable, "-m", "nbconvert", "--to", "html", "--output-dir", str(tmp_path),
         *(str(evidence / f"{name}.ipynb") for name in names)], check=True, capture_output=True,
    )  # fmt: skip
    for path in (evidence / "report.html", *(tmp_path / f"{name}.html" for name in names)):
        page = Watched(browser, f"file://{path}").page
        page.goto(f"file://{path}")
        assert TEX[0] in page.content() or "href" in page.content()
        if path.name == "report.html":
            assert page.evaluate("window.MathJax === undefined")
        else:
            assert page.evaluate(f"({TYPESET})(document.body)") == []
