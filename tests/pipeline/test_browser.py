"""What a person sees, in a real browser with the outside blocked: figures drawn, events inert."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from books import GROUP, at
from browsers import LAB, Watched, hostile_backlog, serving
from conftest import Cli
from playwright.sync_api import Browser
from servers import Server

pytestmark = pytest.mark.browser


@pytest.fixture
def folder(valkey: Server, stream: str, cli: Cli) -> Path:
    """The evidence of a live run over a hostile backlog."""
    hostile_backlog(valkey, stream)
    run = cli.done(
        "run", "--mode", "live", "--yes", "--json", "--throttle", "none", "--max-events", "all",
        *at(valkey, stream), "--consumer-group", GROUP,
    )  # fmt: skip
    return cli.cwd / "reports" / run.json()["run_id"]


def test_the_evidence_opens_offline(folder: Path, browser: Browser) -> None:
    """report.html and notebooks of one run. Without scripts every figure is there and nothing is
    fetched; whatever the width and the theme, axe finds no fault, nothing is cut off, and the
    verdict is on the first screen."""
    address = f"file://{folder}/report.html"
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
    opens_in_jupyterlab(folder, browser)


def opens_in_jupyterlab(folder: Path, browser: Browser) -> None:
    """Its executed analysis opens offline with its figures drawn, and events are inert."""
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", *LAB]
    command.append(f"--ServerApp.root_dir={folder}")
    with serving(command, folder.parent, os.environ) as (address, _):
        watched = Watched(browser, address)
        page = watched.page
        page.goto(f"{address}/lab/tree/01_analyse_backlog.ipynb")
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
        assert watched.outside == []
