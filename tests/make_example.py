"""Makes reports/example and its pictures: the original report's drain, replayed.

Run it in a checkout with the development environment:  .venv/bin/python tests/make_example.py
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

import redis
import servers
from backlogs import GROUP, fill, original_backlog
from browsers import demo_lab, run_in_lab
from playwright.sync_api import Page, sync_playwright

from drainkit.demo import EmbeddedServer
from drainkit.evidence import seal
from drainkit.pipeline import runner
from drainkit.settings import build

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "reports" / "example"
MAKING = ROOT / "reports" / "making"  # a folder of its own: the example follows no other run


def main() -> None:
    os.chdir(ROOT)
    # the example says nothing of the machine that made it
    socket.gethostname = lambda: "example-host"
    seal.os_user = lambda: "operator"
    folder = replay()
    shutil.rmtree(EXAMPLE, ignore_errors=True)
    folder.rename(EXAMPLE)
    shutil.rmtree(MAKING)
    take_pictures()


def replay() -> Path:
    """The drain of the original report on a server of its own; answers the evidence folder."""
    with EmbeddedServer() as embedded:
        # a path that is the same wherever the example is made
        settings = build(
            {
                "mode": "live",
                "redis_url": embedded.url,
                "allowlist": "BTCUSDT,ETHUSDT,SOLUSDT,RENDERUSDT",
                "as_of": "2025-12-24T19:49:58+00:00",
                "operator": "operator",
                "reports_dir": str(MAKING.relative_to(ROOT)),
            }
        )
        with redis.Redis.from_url(embedded.url) as client:
            position = "1766594572014-0"
            fill(client, settings.stream, original_backlog(), group=GROUP, position=position)
        result = runner.run(settings, confirm=lambda *_: None, on_line=print)
    if result["exit_code"] != 0:
        sys.exit(str(result.get("error")))
    return Path(result["evidence"])


def take_pictures() -> None:
    """The first page of the example's report, and 01 in JupyterLab on the demo's backlog."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(servers.chromium()), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1000, "height": 760})
        page.goto(f"file://{EXAMPLE}/report.html")
        page.wait_for_timeout(2000)
        page.screenshot(path=ROOT / "reports" / "example-report.png")
        with demo_lab(Path(folder)) as (address, _):
            explore(browser.new_page(viewport={"width": 1500, "height": 1150}), address)
        browser.close()


def explore(page: Page, address: str) -> None:
    """A picture of 01 in Lab: a slider moved, and the table searched."""
    run_in_lab(page, address, "01_analyse_backlog")
    page.mouse.move(900, 500)
    while not page.locator("tr[data-action=drained_ok]").count():
        page.mouse.wheel(0, 400)
        page.wait_for_timeout(250)
    page.locator(".noUi-handle").first.click()
    page.keyboard.press("ArrowRight")
    page.get_by_role("searchbox", name="Search:").fill("manual")
    page.wait_for_timeout(1000)
    page.add_style_tag(content=".Toastify { display: none }")
    page.locator(".noUi-handle").first.evaluate("e => e.scrollIntoView()")
    page.mouse.wheel(0, -120)
    page.wait_for_timeout(1000)
    page.screenshot(path=ROOT / "reports" / "example-lab.png")


if __name__ == "__main__":
    main()
