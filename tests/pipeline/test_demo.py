"""The demo: one command on a machine without a server, every action, balanced books."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
from conftest import Cli
from servers import Server, wait_until

from drainkit.core.events import Decoder
from drainkit.core.policy import ACTIONS
from drainkit.demo import SYMBOLS, EmbeddedServer, fill, sample_entries


def test_the_demo_shows_every_action_and_balances(cli: Cli) -> None:
    """`drainkit demo` ends with 0 within 60 s; every action occurs; nothing stays pending."""
    started = time.monotonic()
    run = cli.done("demo", "--json")
    assert time.monotonic() - started < 60
    summary = run.json()
    assert all(summary[action] > 0 for action in ACTIONS)
    assert summary["total_read"] == sum(summary[action] for action in ACTIONS)
    assert summary["pending_own"] == summary["remaining"] == summary["errors"] == 0


def test_the_sample_backlog_is_what_the_readme_says(valkey: Server) -> None:
    """10,012 entries in four wire shapes, 20 symbols, dead consumers, the same every time."""
    entries = sample_entries(1_800_000_000_000)
    assert entries == sample_entries(1_800_000_000_000)
    shapes = Counter(tuple(entry[1][::2]) for entry in entries)
    for shape in ((b"event_type", b"correlation_id", b"timestamp", b"source", b"payload"),
                  (b"data",), (b"payload",)):  # fmt: skip
        assert shapes[shape] > 1000
    events = Decoder().decode(entries)
    assert set(SYMBOLS) <= set(events.symbols)
    assert len(SYMBOLS) == 20
    from drainkit.server.connection import Server as Link

    with Link(valkey.url, "sample") as link:
        fill(link, stream="sample", group="g", consumer="me")
        assert link.call("XLEN", "sample") == 10_012
        assert len(link.call("XINFO", "CONSUMERS", "sample", "g")) == 35


def test_the_embedded_server_is_gone_with_its_parent() -> None:
    """SIGKILL of the process that started it ends the server, and its folder is removed."""
    code = (
        "from drainkit.demo import EmbeddedServer\nimport time\n"
        "with EmbeddedServer() as server:\n print(server.url, flush=True)\n time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    folder = folder_of(parent.stdout.readline())
    servers = psutil.Process(parent.pid).children(recursive=True)
    assert folder.is_dir()
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    wait_until("the server is gone", lambda: not any(_alive(p) for p in servers))
    wait_until("its folder is gone", lambda: not folder.exists())


def folder_of(url: str) -> Path:
    return Path(url.removeprefix("unix://").partition("?")[0]).parent


def _runs_in(process: psutil.Process, folder: Path) -> bool:
    return process.cwd() == str(folder)


def _alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_the_embedded_server_listens_on_no_port() -> None:
    """Nobody but this user reaches the demo's server: no TCP port, a private folder."""
    with EmbeddedServer() as server:
        folder = folder_of(server.url)
        assert folder.stat().st_mode & 0o077 == 0
        own = [p for p in psutil.Process().children(recursive=True) if _runs_in(p, folder)]
        assert own
        ports = [c for p in own for c in p.net_connections("inet") if c.status == "LISTEN"]
        assert ports == []
