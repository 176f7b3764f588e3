"""What a person sees, in a real browser with the outside blocked: figures drawn, events inert."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from books import GROUP, at
from browsers import LAB, Watched, hostile_backlog, serving
from conftest import Cli
from playwright.sync_api import Browser
from servers import Server

pytestmark = pytest.mark.browser


def a_run(server: Server, stream: str, cli: Cli) -> Path:
    run = cli.done(
        "run", "--mode", "live", "--yes", "--json", "--throttle", "none", "--max-events", "all",
        *at(server, stream), "--consumer-group", GROUP,
    )  # fmt: skip
    return cli.cwd / "reports" / run.json()["run_id"]


def test_the_report_opens_offline(valkey: Server, stream: str, cli: Cli, browser: Browser) -> None:
    """Without scripts every figure is there and nothing is fetched; whatever the width and the
    theme, axe finds no fault, nothing is cut off, and the verdict is on the first screen."""
    hostile_backlog(valkey, stream)
    folder = a_run(valkey, stream, cli)
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


@pytest.fixture
def jupyterlab(tmp_path: Path) -> Iterator[str]:
    """A JupyterLab over the test's folder; answers its address."""
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", *LAB]
    with serving([*command, f"--ServerApp.root_dir={tmp_path}"], tmp_path, os.environ) as (at, _):
        yield at


def test_an_executed_notebook_opens_in_jupyterlab(
    valkey: Server, stream: str, cli: Cli, browser: Browser, jupyterlab: str
) -> None:
    """The analysis opens in JupyterLab offline with its figures drawn, and events are inert."""
    hostile_backlog(valkey, stream)
    folder = a_run(valkey, stream, cli)
    watched = Watched(browser, jupyterlab)
    page = watched.page
    page.goto(f"{jupyterlab}/lab/tree/reports/{folder.name}/01_analyse_backlog.ipynb")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    drawn: set[str] = set()
    page.mouse.move(700, 600)
    for step in range(400):  # cells that are out of sight are not drawn; slow machines draw late
        drawn.update(page.locator(".js-plotly-plot .gtitle").all_text_contents())
        if len(drawn) >= 8:
            break
        page.mouse.wheel(0, 700 if step // 40 % 2 == 0 else -700)
        page.wait_for_timeout(250)
    assert len(drawn) >= 8, drawn
    assert page.evaluate("window.pwned") is None
    assert watched.outside == []
