"""Names and events that are TeX: nothing of them becomes a formula, wherever it is shown."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from books import GROUP, at, fill, seed
from browsers import Watched, demo_lab, run_in_lab
from conftest import Cli
from playwright.sync_api import Browser, Page
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


def tex_backlog(server: Server, stream: str) -> None:
    seed(server, stream)
    now = int(time.time() * 1000)
    fill(server, stream, [
        (now + i, {"symbol": text.replace(" ", ""), "side": text, "source": text,
                   "confidence": 0.9, "more": text})
        for i, text in enumerate(TEX * 10)
    ])  # fmt: skip
    for text in TEX:
        server.client().execute_command("XGROUP", "CREATE", stream, text, "0")
        server.client().execute_command("XGROUP", "CREATECONSUMER", stream, GROUP, text)


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


def test_nothing_in_lab_is_typeset_and_its_folder_is_not_imported(
    valkey: Server, stream: str, tmp_path: Path, browser: Browser
) -> None:
    """01 and the monitor run in Lab: no formula; a calendar.py beside them runs nowhere."""
    tex_backlog(valkey, stream)
    (tmp_path / "mine").mkdir()
    ran = tmp_path / "ran"
    (tmp_path / "mine" / "calendar.py").write_text(f"open({str(ran)!r}, 'a').write('ran')")
    where = (*at(valkey, stream), "--consumer-group", GROUP)
    with demo_lab(tmp_path, *where) as address:
        watched = Watched(browser, address)
        run_in_lab(watched.page, address, "01_analyse_backlog")
        texts, formulas = seen_in(watched.page)
        assert "$\\color{white}{x}$" in {text.strip() for text in texts}
        assert formulas == set()
    assert not ran.exists()


def test_no_exported_page_is_typeset(
    valkey: Server, stream: str, cli: Cli, browser: Browser
) -> None:
    """nbconvert's page of 01 and 04 holds no TeX of an event where its MathJax would look."""
    tex_backlog(valkey, stream)
    run = cli(
        "run", "--json", "--max-events", "all", *at(valkey, stream), "--consumer-group", GROUP
    )
    folder = cli.cwd / "reports" / run.json()["run_id"]
    names = ["01_analyse_backlog", "02_dry_run", "04_verify"]
    subprocess.run(
        [sys.executable, "-m", "nbconvert", "--to", "html", "--output-dir", str(cli.cwd),
         *(str(folder / f"{name}.ipynb") for name in names)], check=True, capture_output=True,
    )  # fmt: skip
    for path in (folder / "report.html", *(cli.cwd / f"{name}.html" for name in names)):
        page = Watched(browser, f"file://{path}").page
        page.goto(f"file://{path}")
        assert TEX[0] in page.content() or "href" in page.content()
        if path.name == "report.html":
            assert page.evaluate("window.MathJax === undefined")
        else:
            assert page.evaluate(f"({TYPESET})(document.body)") == []
