"""What browser tests share: a Chromium that reaches one place only, a Lab, and hostile events."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import redis
import servers
from backlogs import GROUP, fill
from conftest import ROOT
from playwright.sync_api import Browser, Page, Request

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
        self.page.on("requestfailed", lambda request: self.failed.append(request.url))

    def _decide(self, route: object, request: Request) -> None:
        if request.url.startswith((self._inside, "data:", "blob:")):
            route.continue_()  # type: ignore[attr-defined]
        else:
            self.outside.append(request.url)
            route.abort()  # type: ignore[attr-defined]


def hostile_events(client: redis.Redis, stream: str, *names: str) -> None:
    """Add recent events whose symbols, sides and sources try to get out of their place.

    With `names`, which do so too, there is a group and a consumer of each name.
    """
    now = int(time.time() * 1000)
    events = [
        {"symbol": text, "side": text, "source": text + "\u202e\x1b[31m", "confidence": 0.9}
        for text in HOSTILE * 10
    ]
    events += [
        {"symbol": name.replace(" ", ""), "side": name, "source": name, "confidence": 0.9}
        for name in names * 10
    ]
    payloads = [*map(json.dumps, events), "<script>window.pwned=1</script>"]
    fill(client, stream, [(now + i, {"payload": text}) for i, text in enumerate(payloads)])
    for name in names:
        client.xgroup_create(stream, name, "0")
        client.xgroup_createconsumer(stream, GROUP, name)


@contextmanager
def demo_lab(folder: Path) -> Iterator[tuple[str, str]]:
    """The addresses of a Lab and of its demo's server; both are gone afterwards.

    In CI from the wheel, in the environment that the README's demo made; else from the checkout.
    """
    python = os.environ.get("WHEEL_PYTHON")
    if python:  # the demo runs beside the tests; pip installs drainkit last
        is_there = Path(python).with_name("drainkit").exists
        servers.wait_until("the demo's environment is there", is_there, timeout_sec=200)
    source = {} if python else {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ['PYTHONPATH']}"}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("DRAINKIT_")}
    own = {name: str(folder / name) for name in (
        "JUPYTER_CONFIG_DIR", "IPYTHONDIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR",
    )}  # fmt: skip
    command = [python or sys.executable, "-m", "drainkit", "lab", "--demo", "mine", "--",
               "--no-browser", "--allow-root", "--ServerApp.token=", "--ServerApp.password=",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
               "--LabApp.news_url=None"]  # fmt: skip
    with serving(command, folder, {**inherited, **own, **source}) as (address, process):
        children = process.children(recursive=True)
        (demo,) = (child for child in children if _runs(child, "valkey"))
        urls = {one.environ().get("DRAINKIT_REDIS_URL") for one in (process, *children)}
        (url,) = urls - {None}
        yield address, str(url)
    servers.wait_until("the demo's server is gone", lambda: not _runs(demo, "valkey"))


@contextmanager
def serving(
    command: Sequence[str], folder: Path, env: Mapping[str, str], *, ready: str = "/api"
) -> Iterator[tuple[str, psutil.Process]]:
    """A server of Jupyter's on a port of its own: its address once it answers, and its process."""
    address = f"http://127.0.0.1:{(port := servers.free_port())}"
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*command, f"--port={port}"], env=env, cwd=folder, stdout=log, stderr=log
        )
    try:
        servers.wait_until("it answers", lambda: _text(f"{address}{ready}"), timeout_sec=60)
        yield address, psutil.Process(process.pid)
    finally:  # its own ending can hang
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _runs(process: psutil.Process, name: str) -> bool:
    """Whether it is there still, and has that in its name."""
    with suppress(psutil.NoSuchProcess):  # it may end just now
        return name in process.name() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _text(address: str) -> str:
    """What is there; nothing as long as nobody answers."""
    try:
        with urllib.request.urlopen(address) as reply:  # noqa: S310 - our own server
            return str(reply.read(), "utf-8")
    except OSError:
        return ""


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
