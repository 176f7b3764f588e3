"""In a real browser: monitor.ipynb as a dashboard, served by Voila, offline, read only."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from backlogs import GROUP, seed
from books import ask, everything
from browsers import Watched, hostile_events, serving
from conftest import ROOT
from servers import Server

pytestmark = pytest.mark.browser
NOTEBOOK = ROOT / "notebooks" / "monitor.ipynb"
STREAM = "quantum:stream:trade.intent"


@pytest.fixture
def voila(valkey: Server, tmp_path: Path) -> Iterator[str]:
    """Voila's address, serving the notebook on a hostile backlog with pending entries."""
    seed(valkey, STREAM, 400)
    hostile_events(valkey.client(), STREAM)
    ask(valkey, "XREADGROUP", "GROUP", GROUP, "<b>dead</b>", "COUNT", 5, "STREAMS", STREAM, ">")
    for action in ("drained_ok", "dropped_old", "dropped_old"):
        ask(valkey, "XADD", f"{STREAM}.drain_audit", "*", "action", action)
    copy = tmp_path / "monitor.ipynb"
    copy.write_text(
        NOTEBOOK.read_text().replace("max_backlog: int = 1000", "max_backlog: int = 123")
    )
    command = [sys.executable, "-m", "voila", str(copy), "--no-browser", "--Voila.ip=127.0.0.1"]
    env = {**os.environ, "DRAINKIT_REDIS_URL": valkey.url, "IPYTHONDIR": str(tmp_path)}
    with serving(command, tmp_path, env, ready="/voila/static/voila.js") as (address, _):
        yield f"{address}/"


def test_voila_serves_the_monitor(valkey: Server, voila: str, browser: object) -> None:
    """The served copy's limits judge, all is drawn; no code, no error; events inert, data kept."""
    before = everything(valkey)
    watched = Watched(browser, voila)  # type: ignore[arg-type]
    page = watched.page
    page.goto(voila, wait_until="load", timeout=120_000)
    page.wait_for_selector("text=looked at", timeout=60_000)
    page.wait_for_selector(".js-plotly-plot .main-svg", timeout=60_000)
    page.wait_for_selector("text=limit 123", timeout=60_000)  # it looks again each minute
    text = page.inner_text("body")
    assert GROUP in text
    assert "<b>dead</b>" in text
    assert "limit 123" in text
    assert "Traceback" not in text
    assert "Monitor.open" not in text
    assert page.evaluate("window.pwned") is None
    # Voila's own template asks for an icon font; blocked, nothing is missing
    assert [url for url in watched.outside if "fontawesome" not in url] == []
    # after drawing, plotly's extension would like to keep a picture, for which Voila has no place
    assert [error for error in watched.errors if "setData is not a function" not in error] == []
    assert everything(valkey) == before
