"""The monitor's board: states in words and colour, names inert, a button only for a person."""

from __future__ import annotations

import asyncio
import re

import pytest
from backlogs import GROUP, deliver, seed
from books import ask, ledger_of
from faults import attempt
from servers import Server

from drainkit.views.monitor import Monitor


def opened(
    server: Server, stream: str, monkeypatch: pytest.MonkeyPatch, most: int, pattern: str = ""
) -> Monitor:
    """A monitor of one stream or a pattern's; critical above `most` undelivered entries."""
    monkeypatch.setenv("DRAINKIT_REDIS_URL", server.url)
    limits = {"max_backlog": most, "max_backlog_age_min": 10**6, "pattern": pattern}
    return Monitor.open({"redis_url_env": "DRAINKIT_REDIS_URL", "stream": stream, **limits})


def test_a_board_says_its_state(
    valkey: Server, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the limit a group is critical in word and colour, another OK; names are text."""
    seed(valkey, stream)
    deliver(valkey, stream, "me", 3)
    ask(valkey, "XGROUP", "CREATE", stream, "<img src=x onerror=alert(1)>", "$")
    shown = opened(valkey, stream, monkeypatch, most=100).board().data
    sections = re.findall("<section.*?</section>", shown)
    (bad,) = (s for s in sections if GROUP in s)
    assert "critical</span>" in bad
    assert "#D55E00" in bad
    assert "<b>197</b>undelivered" in bad
    assert "<b>3</b>pending" in bad
    assert "<p>197 entries undelivered, limit 100" in bad
    (good,) = (s for s in sections if GROUP not in s)
    assert "OK</span>" in good
    assert "&lt;img src=x" in good
    assert "<img" not in shown
    assert re.search(r"As of \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", shown)


def test_one_can_look_again(valkey: Server, stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The button asks the server anew, and where a kernel serves somebody (Voila too) the board
    does by itself; where the server does not answer, old numbers do not stay."""
    seed(valkey, stream)
    monkeypatch.setenv("SERVER_SOFTWARE", "voila/0.5")
    monkeypatch.setattr("drainkit.views.monitor.REFRESH_SEC", 0.1)
    monitor = opened(valkey, stream, monkeypatch, most=1000)

    async def watched() -> str:
        _, shown = monitor.board().children
        deliver(valkey, stream, "me", 50)
        await asyncio.sleep(1)
        return str(shown.value)

    assert "<b>150</b>undelivered" in asyncio.run(watched())
    assert [*monitor.runs_table().columns][:4] == ["at", "stream", "event", "outcome"]
    monkeypatch.delenv("SERVER_SOFTWARE")
    monkeypatch.setattr("drainkit.views.monitor.person_is_here", lambda: True)
    button, shown = monitor.board().children
    deliver(valkey, stream, "me", 20)
    button.click()
    assert "<b>130</b>undelivered" in shown.value
    ask(valkey, "DEL", stream)
    button.click()
    assert "<b>130</b>" not in shown.value


def test_a_pattern_is_shown(valkey: Server, stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a pattern each stream's runs, records and drains under way are shown, by its name."""
    names = [f"{stream}:{letter}" for letter in "ab"]
    for name in names:
        seed(valkey, name, 20, delivered=0)
        attempt(valkey.url, name, throttle="none")
    start = ledger_of(valkey, names[0])[0] | {"consumer": "gone"}
    flat = [part for pair in start.items() for part in pair]
    ask(valkey, "XADD", f"{names[0]}.drain_runs", "*", *flat)
    monitor = opened(valkey, "no-such", monkeypatch, most=9, pattern=f"{stream}:*")
    assert {name: len(rows) for name, rows in monitor.runs_table().groupby("stream")} == {
        names[0]: 3, names[1]: 2,
    }  # fmt: skip
    assert sum(sum(bar.y) for bar in monitor.audit_growth().data) == 40
    assert f"`{names[0]}: " in monitor.running().data
    assert f"{names[0]} drain {start['run_id']}" in monitor.board().data
