"""Several workers drain one group together: each event once, under one pace."""

from __future__ import annotations

import signal
import time
from collections import Counter

import pytest
import servers
from books import (
    GROUP,
    ask,
    at,
    audit,
    everything,
    live,
    pending,
    seed,
    worst_window,
)
from conftest import Cli, Fill
from servers import Server


def test_four_workers_share_one_pace(server: Server, stream: str, fill: Fill, cli: Cli) -> None:
    """At --throttle 100, four workers stay at or under 100/s and above 95/s; each event once."""
    ids = seed(server, stream, fill, 900, delivered=100)
    run = cli(*live(server, stream, "--workers", 4, "--throttle", 100))
    assert run.rc == 0, run.err
    records = audit(server, stream)
    assert sorted(r["original_id"] for r in records) == sorted(ids[100:])
    times_ms = [int(r["audit_id"].split("-")[0]) for r in records]
    assert worst_window(records, 1000) <= 100
    rate = (len(times_ms) - 1) / ((times_ms[-1] - times_ms[0]) / 1000)
    assert 95 < rate <= 101
    summary = run.json()
    assert (summary["total_read"], summary["remaining"], summary["pending_own"]) == (800, 0, 0)
    assert summary["drained_ok"] == sum(r["action"] == "drained_ok" for r in records)
    assert pending(server, stream) == 0
    consumers = {c[1].decode() for c in ask(server, "XINFO", "CONSUMERS", stream, GROUP)}
    assert consumers == {f"backlog_drain_{i}" for i in (1, 2, 3, 4)}


@pytest.mark.parametrize("budget", [3, 50, 199, 200, 500])
def test_workers_share_one_budget(
    valkey: Server, stream: str, fill: Fill, cli: Cli, budget: int
) -> None:
    """--max-events is the whole run's, not each worker's; what is there within it is drained."""
    ids = seed(valkey, stream, fill, 300, delivered=100)
    run = cli(*live(valkey, stream, "--workers", 4, "--max-events", budget))
    assert run.rc == 0, run.err
    taken = min(budget, 200)
    assert run.json()["total_read"] == taken
    assert sorted(r["original_id"] for r in audit(valkey, stream)) == sorted(ids[100 : 100 + taken])
    assert run.json()["remaining"] == 200 - taken
    assert pending(valkey, stream) == 0


def test_workers_drain_pending_entries(valkey: Server, stream: str, fill: Fill, cli: Cli) -> None:
    """Scope pending by four workers audits each idle entry once."""
    seed(valkey, stream, fill, 900, delivered=0)
    ask(valkey, "XREADGROUP", "GROUP", GROUP, "dead", "COUNT", 800, "STREAMS", stream, ">")
    time.sleep(1)
    run = cli(*live(valkey, stream, "--workers", 4,
                    "--scope", "pending", "--min-idle-min", "0.015"))  # fmt: skip
    assert run.rc == 0, run.err
    counts = Counter(r["original_id"] for r in audit(valkey, stream))
    assert (len(counts), max(counts.values())) == (800, 1)
    assert pending(valkey, stream) == 0


def test_workers_die_and_the_same_command_finishes(
    valkey: Server, stream: str, fill: Fill, cli: Cli
) -> None:
    """Killed in the middle, four workers are finished by the same command at once; no doubles."""
    ids = seed(valkey, stream, fill, 600, delivered=100)
    command = live(valkey, stream, "--workers", 4, "--throttle", 200)
    process = cli.start(*command)
    while len(audit(valkey, stream)) < 100:
        time.sleep(0.05)
    process.kill()
    cli.finish(process)
    run = cli(*command)
    assert run.rc == 0, run.err
    counts = Counter(r["original_id"] for r in audit(valkey, stream))
    assert set(counts) == set(ids[100:])
    assert max(counts.values()) == 1
    assert pending(valkey, stream) == 0


def test_workers_stop_together(valkey: Server, stream: str, fill: Fill, cli: Cli) -> None:
    """SIGTERM and the kill switch end all workers, with one summary and balanced books."""
    seed(valkey, stream, fill, 600, delivered=0)
    command = live(valkey, stream, "--workers", 3, "--throttle", 50)
    for how in ("signal", "switch"):
        before = len(audit(valkey, stream))
        process = cli.start(*command)
        while len(audit(valkey, stream)) < before + 20:
            time.sleep(0.05)
        if how == "signal":
            process.send_signal(signal.SIGTERM)
        else:
            assert cli("stop", "--reason", "test", *at(valkey, stream)).rc == 0
            after_stop = len(audit(valkey, stream))
        run = cli.finish(process)
        assert run.rc == (130 if how == "signal" else 4), run
        assert run.json()["total_read"] == len(audit(valkey, stream)) - before
    assert len(audit(valkey, stream)) == after_stop


def test_workers_outlast_a_server_that_closes_idle_connections(
    stream: str, fill: Fill, cli: Cli
) -> None:
    """The connection that waits for the workers is gone at the end: the report is whole."""
    with servers.start("redis") as server:
        seed(server, stream, fill, 100, delivered=0)
        ask(server, "CONFIG", "SET", "timeout", 1)
        run = cli(*live(server, stream, "--workers", 2, "--throttle", 10, "--max-events", 40))
    assert run.rc == 0, run.err
    assert (run.json()["total_read"], run.json()["remaining"]) == (40, 60)


def test_workers_whose_server_dies_still_report(stream: str, fill: Fill, cli: Cli) -> None:
    """One summary on stdout with what is known, and exit code 3."""
    with servers.start("redis") as server:
        seed(server, stream, fill, 400, delivered=0)
        process = cli.start(*live(server, stream, "--workers", 3, "--throttle", 50,
                                  "--max-events", "all"))  # fmt: skip
        while len(audit(server, stream)) < 20:
            time.sleep(0.05)
        server.kill()
        run = cli.finish(process)
    assert run.rc == 3, run
    result = run.json()
    assert result["total_read"] >= 20
    assert (result["outcome"], result["remaining"]) == ("failed", None)


def test_scope_history_takes_one_worker(valkey: Server, stream: str, fill: Fill, cli: Cli) -> None:
    """Several workers on the history group are refused before anything is written."""
    seed(valkey, stream, fill, 20, delivered=20)
    before = everything(valkey)
    run = cli(*live(valkey, stream, "--workers", 2, "--scope", "history"))
    assert run.rc == 2
    assert everything(valkey) == before
