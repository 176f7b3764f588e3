"""What browser tests share: a Chromium that reaches one place only, a Lab, and hostile events."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import servers
from books import seed
from conftest import ROOT, Fill
from playwright.sync_api import Browser, Page, Request
from servers import Server

HOSTILE = (
    "<script>window.pwned=1</script>",
    "<img/src=x/onerror=window.pwned=1>",
    "<a/href='javascript:window.pwned=1'>x</a>",
    '"><svg/onload=window.pwned=1>',
    "=HYPERLINK('http://203.0.113.9')",
    "</script><script>window.pwned=1</script>",
)


class Watched:
    """A page that reaches only `inside`, and remembers what went wrong."""

    def __init__(self, browser: Browser, inside: str) -> None:
        self.page: Page = browser.new_page(viewport={"width": 1200, "height": 1600})
        self.outside: list[str] = []
        self.failed: list[str] = []
        self.errors: list[str] = []
        self._inside = inside
        self.page.route("**/*", self._decide)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("requestfailed", self._note)

    def _decide(self, route: object, request: Request) -> None:
        if request.url.startswith((self._inside, "data:", "blob:")):
            route.continue_()  # type: ignore[attr-defined]
        else:
            self.outside.append(request.url)
            route.abort()  # type: ignore[attr-defined]

    def _note(self, request: Request) -> None:
        self.failed.append(request.url)


def hostile_backlog(server: Server, stream: str, fill: Fill) -> None:
    """A recent backlog in which symbols, sides and sources try to get out of their place."""
    seed(server, stream, fill, 400)
    now = int(time.time() * 1000)
    entries = []
    for i, text in enumerate(HOSTILE * 10):
        event = {"symbol": text.replace(" ", ""), "side": text, "source": text + "\u202e\x1b[31m"}
        fields = {"payload": json.dumps({**event, "confidence": 0.9})}
        entries.append((now + i, fields))
    entries.append((now + 1000, {"payload": "<script>window.pwned=1</script>"}))
    fill(server, stream, entries)


@contextmanager
def demo_lab(folder: Path, *where: str) -> Iterator[str]:
    """The address of a Lab with the demo's server, or as `where` says; gone afterwards.

    In CI from the wheel, in the environment that the README's demo made; else from the checkout.
    """
    port = servers.free_port()
    python = os.environ.get("WHEEL_PYTHON")
    source = {} if python else {"PYTHONPATH": str(ROOT)}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("DRAINKIT_")}
    own = {name: str(folder / name) for name in (
        "JUPYTER_CONFIG_DIR", "IPYTHONDIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR",
    )}  # fmt: skip
    log = (folder / "lab.log").open("w")
    process = subprocess.Popen(
        [python or sys.executable, "-m", "drainkit", "lab", *(where or ["--demo"]), "--no-browser",
         "mine", "--",
         "--allow-root", f"--port={port}", "--ServerApp.token=", "--ServerApp.password=",
         "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
         "--LabApp.news_url=None"],
        env={**inherited, **own, **source}, cwd=folder,
        stdout=log, stderr=log,
    )  # fmt: skip
    log.close()
    address = f"http://127.0.0.1:{port}"
    try:
        servers.wait_until("JupyterLab answers", lambda: _answers(address), timeout_sec=60)
        started = psutil.Process(process.pid).children(recursive=True)
        assert where or any("valkey" in child.name() for child in started)
        yield address
    finally:
        end_jupyter(process)
    servers.wait_until(
        "the demo's server is gone", lambda: not any("valkey" in c.name() for c in _alive(started))
    )


def end_jupyter(process: subprocess.Popen[Any]) -> None:
    """End a server of Jupyter's, whose own ending can hang."""
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


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


def run_in_lab(page: Page, address: str, notebook: str) -> None:
    """Open a notebook from Lab's file list, and run all its cells."""
    page.goto(f"{address}/lab")
    page.locator(".jp-DirListing-item", has_text=notebook).dblclick(timeout=60_000)
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    # a notebook that is run before it has its kernel makes Lab ask for one
    for _ in range(120):
        page.wait_for_timeout(500)
        if "idle" in _text(f"{address}/api/sessions"):
            break
    page.wait_for_timeout(2000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
