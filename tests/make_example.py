"""Makes reports/example and its pictures: the original report's drain, replayed.

Run it in a checkout with the development environment:  .venv/bin/python tests/make_example.py
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import servers
from books import GROUP, original_backlog
from playwright.sync_api import sync_playwright

from drainkit.demo.embedded import EmbeddedServer
from drainkit.pipeline import runner
from drainkit.server import writing
from drainkit.server.connection import Server
from drainkit.settings import build

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "reports" / "example"
MAKING = ROOT / "reports" / "making"  # a folder of its own: the example follows no other run


def main() -> None:
    os.chdir(ROOT)
    # the example says nothing of the machine that made it
    socket.gethostname = lambda: "example-host"
    getpass.getuser = lambda: "operator"
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
                "reports_dir": str(MAKING.relative_to(ROOT)),
            }
        )
        with Server(embedded.url, settings.stream) as server:
            key = settings.stream.encode()
            entries = [
                [entry_id.encode(), [str(part).encode() for pair in f.items() for part in pair]]
                for entry_id, f in original_backlog()
            ]
            writing.add_entries(server, key, entries)
            writing.seed_group(server, key, GROUP, position="1766594572014-0", deliver={})
        result, folder = runner.run(settings, confirm=lambda *_: None, announce=print)
    if result["exit_code"] != 0:
        sys.exit(str(result.get("error")))
    return folder


def take_pictures() -> None:
    """The first page of the example's report, and two figures of the demo's."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        demo = [sys.executable, "-m", "drainkit", "demo", "--reports-dir", folder]
        subprocess.run(demo, check=True, stdout=subprocess.DEVNULL)
        (of_demo,) = Path(folder).glob("*-live-*/report.html")
        browser = playwright.chromium.launch(
            executable_path=str(servers.chromium()), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1000, "height": 760})
        page.goto(f"file://{EXAMPLE}/report.html")
        page.wait_for_timeout(2000)
        page.screenshot(path=ROOT / "reports" / "example-report.png")
        page.goto(f"file://{of_demo}")
        page.wait_for_timeout(2500)
        for picture, said in (("age", "older than"), ("what-if", "would pass as set")):
            figure = page.locator(f"figure[aria-label*='{said}']")
            figure.screenshot(path=ROOT / "reports" / f"example-{picture}.png")
        browser.close()


if __name__ == "__main__":
    main()
