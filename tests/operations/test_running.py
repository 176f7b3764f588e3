"""Which drains run, and which died, by the run ledger."""

from __future__ import annotations

import time
from datetime import datetime

import pytest
from backlogs import GROUP, seed
from books import ask, at, live, wait_for
from conftest import Cli
from servers import Server


def test_status_shows_running_drains(valkey: Server, stream: str, cli: Cli) -> None:
    """While a drain runs, status tells its progress and ETA; then no more; a dead one it names."""
    seed(valkey, stream, 600, delivered=0)
    command = live(valkey, stream, "--throttle", 10, "--max-events", 400)
    process = cli.start(*command)
    wait_for(valkey, stream, 20)
    asked = time.time()
    (found,) = cli("status", "--json", *at(valkey, stream)).json()["running_drains"]
    answered = time.time()
    assert found["alive"]
    assert found["done"] >= 20
    assert found["done"] + found["remaining"] == 400
    started = datetime.fromisoformat(found["started_at"]).timestamp()
    # a rate over the whole run, whatever its pace was until then on a busy machine
    ran_sec = found["done"] / found["events_per_sec"]
    assert asked - started - 0.01 <= ran_sec <= answered - started + 0.01
    assert found["eta_sec"] == pytest.approx(found["remaining"] / found["events_per_sec"], rel=0.1)
    assert found["run_id"] in cli("status", *at(valkey, stream)).out
    process.kill()
    cli.finish(process)
    assert cli("status", "--json", *at(valkey, stream)).json()["running_drains"]
    assert cli(*live(valkey, stream)).rc == 0
    assert cli("status", "--json", *at(valkey, stream)).json()["running_drains"] == []


#: What may be wrong with a start entry that is right otherwise.
ODD = [
    ("throttle", "0"), ("throttle", "nan"), ("throttle", "?"), ("boundary_id", "?"),
    ("boundary_id", ""), ("max_events", "?"), ("at", "?"), ("at", "0001-01-01T00:00:00"),
    ("scope", "?"), ("consumer_group", "nobody"), ("run_id", "x\x1b[31m"),
]  # fmt: skip


def test_odd_ledgers_do_not_break_status(valkey: Server, stream: str, cli: Cli) -> None:
    """A start entry that is right but for one value costs at most its own line, as a foreign entry
    does; a key of another type in the ledger's place is no obstacle."""
    ids = seed(valkey, stream, 5, delivered=0)
    good = {
        "event": "start", "run_id": "20260101T000000Z-live-abc123", "consumer_group": GROUP,
        "consumer": "c", "scope": "undelivered", "boundary_id": ids[-1], "throttle": "5",
        "max_events": "5", "at": "2026-01-01T00:00:00Z", "plan_digest": "",
    }  # fmt: skip
    ask(valkey, "XADD", f"{stream}.drain_runs", "*", "event", "start", "run_id", "x\x1b[31m")
    for i, (field, value) in enumerate([*ODD, ("consumer", "right")]):
        start = good | {"run_id": f"20260101T000000Z-live-abc{i:03}", "consumer": f"c{i}"}
        flat = [part for pair in (start | {field: value}).items() for part in pair]
        ask(valkey, "XADD", f"{stream}.drain_runs", "*", *flat)
    found = cli.done("status", "--json", *at(valkey, stream)).json()["running_drains"]
    assert "right" in {drain["consumer"] for drain in found}
    cli.done("status", *at(valkey, stream))
    ask(valkey, "DEL", f"{stream}.drain_runs")
    ask(valkey, "SET", f"{stream}.drain_runs", "x")
    cli.done("status", *at(valkey, stream))
