"""In a real browser: monitor.ipynb as a dashboard, served by Voila, offline, read only."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from backlogs import GROUP, seed
from books import ask, everything
from browsers import Watched, hostile_events, serving
from conftest import ROOT
from playwright.sync_api import Browser
from servers import Server

pytestmark = pytest.mark.browser
NOTEBOOK = ROOT / "notebooks" / "monitor.ipynb"
STREAM = "quantum:stream:trade.intent"


def test_voila_serves_the_monitor(valkey: Server, tmp_path: Path, browser: Browser) -> None:
    """The served copy's limits judge a hostile backlog, all is drawn; no code, no error; events
    inert, data kept."""
    seed(valkey, STREAM, 400)
    hostile_events(valkey.client(), STREAM)
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
