"""What a person sees, in a real browser with the outside blocked: figures drawn, events inert, and
nothing of them a formula."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
from axe_playwright_python.sync_playwright import Axe
from backlogs import GROUP
from books import at
from browsers import Watched, demo_lab, hostile_backlog, run_in_lab
from conftest import Cli, need
from playwright.sync_api import Browser, Page
from program import Programs
from servers import Server

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
        hostile_backlog(server, "s", *TEX)
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
    assert bare.locator("figure svg").count() >= 10
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


def seen_in(page: Page) -> tuple[set[str], set[str]]:
    """Texts of figures, and formulas, all along the notebook; Lab draws what is looked at."""
    texts: set[str] = set()
    formulas: set[str] = set()
    page.mouse.move(700, 600)
    for step in range(300):
        texts |= set(page.locator(".js-plotly-plot text").all_text_contents())
        formulas |= set(page.locator("mjx-container,[class$=-math-group]").all_inner_texts())
        is_there = page.locator("tr[data-action=drained_ok]").count() > 0
        if step > 30 and is_there and not page.locator(BUSY).count():
            break
        page.mouse.wheel(0, 400)
        page.wait_for_timeout(250)
    return texts, formulas


def opens_with_its_figures(page: Page, address: str) -> None:
    """An executed notebook opens with its figures drawn, and events are inert."""
    page.goto(f"{address}/lab/workspaces/sealed/tree/sealed.ipynb")  # Lab opens it there only
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    drawn: set[str] = set()
    page.mouse.move(700, 600)
    for step in range(400):  # what is out of sight is not drawn; slow machines draw late
        drawn.update(page.locator(".js-plotly-plot .gtitle").all_text_contents())
        if len(drawn) >= 8:
            break
        page.mouse.wheel(0, 700 if step // 40 % 2 == 0 else -700)
        page.wait_for_timeout(250)
    assert len(drawn) >= 8, drawn
    assert page.evaluate("window.pwned") is None


def test_nothing_in_lab_is_typeset_and_its_folder_is_not_imported(
    evidence: Path, valkey: Server, stream: str, tmp_path: Path, browser: Browser
) -> None:
    """01 runs in Lab: no formula; the run's executed analysis opens offline with its figures and
    inert events; a calendar.py beside them runs nowhere."""
    hostile_backlog(valkey, stream, *TEX)
    ran, mine = tmp_path / "ran", tmp_path / "mine"
    mine.mkdir()
    (mine / "calendar.py").write_text(f"open({str(ran)!r}, 'a').write('ran')")
    shutil.copy(evidence / "01_analyse_backlog.ipynb", mine / "sealed.ipynb")
    where = (*at(valkey, stream), "--consumer-group", GROUP)
    with demo_lab(tmp_path, *where) as address:
        watched = Watched(browser, address)
        run_in_lab(watched.page, address, "01_analyse_backlog")
        texts, formulas = seen_in(watched.page)
        assert "$\\color{white}{x}$" in {text.strip() for text in texts}
        assert formulas == set()
        watched.page.close()
        watched = Watched(browser, address)
        opens_with_its_figures(watched.page, address)
        assert watched.outside == []
    assert not ran.exists()


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
