"""The drain on real servers: what issue "The drain works, end to end" must show."""

from __future__ import annotations

import json
import random
import signal
import time
from contextlib import suppress
from datetime import datetime, timedelta

import pytest
from backlogs import ALLOW, GROUP, ME, deliver, fill, now_ms, original_backlog, producing, seed
from books import (
    ask,
    assert_books_balance,
    at,
    audit,
    everything,
    pending,
    positions,
    recorded,
    wait_for,
)
from conftest import Cli, intent
from faults import key
from servers import Server

from drainkit.ids import LAST_ID
from drainkit.server import reading
from drainkit.server.connection import Server as Link

LIVE = ("drain", "--mode", "live", "--yes", "--json")
FAST = ("--throttle", "none", "--max-events", "all")


def test_live_run_of_undelivered_balances(server: Server, stream: str, cli: Cli) -> None:
    """A live drain audits and acknowledges each entry after the position once, and no other; a
    record has the contract's fields in order, and its times fit its age within 0.05 s."""
    ids = seed(server, stream)
    run = cli.done(*LIVE, *at(server, stream), *FAST, "--allowlist", ALLOW)
    summary, records = run.json(), audit(server, stream)
    assert (summary["total_read"], summary["remaining"]) == (200, 0)
    assert [record["original_id"] for record in records] == ids[100:]
    assert_books_balance(server, stream, summary)
    assert pending(server, stream) == 0
    assert ask(server, "XLEN", stream) == 300
    for record in records:
        assert list(record) == [
            "audit_id", "original_id", "symbol", "age_sec", "confidence", "action",
            "drained_at_ts", "reason", "consumer_group", "run_id",
        ]  # fmt: skip
        event_sec = int(record["original_id"].partition("-")[0]) / 1000
        drained_at = datetime.fromisoformat(record["drained_at_ts"])
        assert drained_at.utcoffset() == timedelta(0)
        assert abs(drained_at.timestamp() - event_sec - float(record["age_sec"])) <= 0.05
        audit_sec = int(record["audit_id"].partition("-")[0]) / 1000
        assert abs(audit_sec - drained_at.timestamp()) < 5  # decided a moment before; one clock


def test_a_small_drain_asks_little(valkey: Server, stream: str, cli: Cli) -> None:
    """For ten entries the server gets 28 requests at most: what it told once is not asked again.

    Not counted are what scripts call by themselves and the handshake of a connection.
    """
    seed(valkey, stream, 110)
    found: list[str] = []
    with valkey.client().monitor() as monitor:
        cli.done(*LIVE, *at(valkey, stream), *FAST)
        ask(valkey, "ECHO", "over")
        while (line := monitor.next_command())["command"] != "ECHO over":
            if line["client_type"] != "lua":
                found.append(line["command"][:60])
    handshake = ("HELLO", "AUTH", "CLIENT", "SELECT")
    assert len(audit(valkey, stream)) == 10
    assert len([one for one in found if not one.startswith(handshake)]) <= 28, found


def test_dry_run_and_live_run_agree(server: Server, stream: str, cli: Cli) -> None:
    """With a fixed time, the dry run counts exactly what the live run then does."""
    seed(server, stream)
    options = (
        *at(server, stream), *FAST, "--allowlist", ALLOW, "--max-age-min", "0.2",
        "--as-of", time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()),
    )  # fmt: skip
    dry = cli("drain", "--json", *options).json()
    live = cli(*LIVE, *options).json()
    for name, value in dry.items():
        if name.startswith("dropped") or name in ("drained_ok", "total_read"):
            assert live[name] == value, name
    assert dry["dropped_old"] > 0
    assert dry["drained_ok"] > 0


def test_live_run_of_pending_takes_idle_entries_only(server: Server, stream: str, cli: Cli) -> None:
    """Scope pending drains what idles long enough, bodies gone included, of those consumers alone
    that --from-consumer names, and leaves the rest."""
    seed(server, stream)
    dead, other, third = (deliver(server, stream, name, n) for name, n in
                          (("dead", 20), ("other", 5), ("third", 5)))  # fmt: skip
    for name, ids in (("dead", dead), ("other", other), ("third", third)):
        ask(server, "XCLAIM", stream, GROUP, name, 0, *ids, "IDLE", 3_600_000, "JUSTID")
    ask(server, "XDEL", stream, dead[3], dead[7])
    alive = deliver(server, stream, "alive", 10)
    command = (*LIVE, *at(server, stream), *FAST, "--scope", "pending", "--min-idle-min", "30")
    summary = cli.done(*command, "--from-consumer", "third", "--from-consumer", "dead").json()
    assert sorted(recorded(server, stream)) == sorted(dead + third)
    assert summary["dropped_missing"] == 2
    assert_books_balance(server, stream, summary)
    assert pending(server, stream) == 5 + 10
    cli.done(*command)
    assert recorded(server, stream)[25:] == other
    left = ask(server, "XPENDING", stream, GROUP, "-", "+", 100)
    assert [row[0].decode() for row in left] == alive


@pytest.mark.parametrize("named", [False, True])
def test_history_is_drained_in_batches_once(
    server: Server, stream: str, cli: Cli, named: bool
) -> None:
    """Scope history keeps its group, of whatever name, between batches, ends it when exhausted,
    repeats nothing; made anew by somebody else it is refused."""
    ids = seed(server, stream)
    name = "mine" if named else f"{GROUP}.drain_history"
    history = (*LIVE, *at(server, stream), "--throttle", "none", "--scope", "history",
               *(("--history-group", name) if named else ()))  # fmt: skip
    first = cli(*history, "--max-events", "60").json()
    assert (first["total_read"], first["remaining"]) == (60, 40)
    assert {*positions(server, stream)} == {GROUP, name}
    second = cli(*history, "--max-events", "all").json()
    assert (second["total_read"], second["remaining"]) == (40, 0)
    assert [*positions(server, stream)] == [GROUP]
    assert cli(*history, "--max-events", "all").json()["total_read"] == 0
    assert recorded(server, stream) == ids[:100]
    ask(server, "XGROUP", "CREATE", stream, name, "0")
    assert cli(*history).rc == 4


def test_the_story_of_the_original_report(server: Server, stream: str, cli: Cli) -> None:
    """2 of the 3 entries were too old; the third had passed, and the original tool lost it."""
    fill(server, stream, original_backlog(), group=GROUP, position="1766594572014-0")
    cli.done(
        *LIVE, *at(server, stream), "--as-of", "2025-12-24T19:49:58+00:00",
        "--allowlist", "BTCUSDT,ETHUSDT,SOLUSDT,RENDERUSDT",
    )  # fmt: skip
    assert ask(server, "XLEN", stream) == 10_012
    got = [(r["symbol"], r["action"], r["age_sec"]) for r in audit(server, stream)]
    assert got == [
        ("TESTUSDT", "dropped_old", "2971.24"),
        ("TESTUSDT", "dropped_old", "2905.23"),
        ("RENDERUSDT", "drained_ok", "1731.99"),
    ]


def test_sigkill_50_times_loses_and_doubles_nothing(valkey: Server, stream: str, cli: Cli) -> None:
    """Killed at 50 random moments and run again each time, every entry is audited exactly once."""
    ids = seed(valkey, stream, 30_000, delivered=1000)
    drain = (*LIVE, *at(valkey, stream), "--throttle", "4000", "--max-events", "all")
    for kill in range(50):
        before = ask(valkey, "XLEN", f"{stream}.drain_audit")
        process = cli.start(*drain)
        if kill % 2:  # half of them surely in the middle of the work
            with suppress(TimeoutError):
                wait_for(valkey, stream, before + 1, timeout_sec=5)
        time.sleep(random.uniform(0, 0.1 if kill % 2 else 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
    cli.done(*LIVE, *at(valkey, stream), *FAST)
    assert recorded(valkey, stream) == ids[1000:]
    assert pending(valkey, stream) == 0


def test_a_busy_producer_cannot_keep_the_drain_going(server: Server, stream: str, cli: Cli) -> None:
    """While a producer adds entries, the drain ends and touches nothing after its boundary."""
    seed(server, stream, 4000)
    with producing(server, stream) as produced:
        run = cli.done(*LIVE, *at(server, stream), *FAST)
    boundary = key(run.json()["boundary_id"])
    assert all(key(entry) <= boundary for entry in recorded(server, stream))
    assert key(positions(server, stream)[GROUP]) <= boundary
    assert any(key(entry.decode()) > boundary for entry in produced)
    assert pending(server, stream) == 0


def test_own_unfinished_entries_come_first(server: Server, stream: str, cli: Cli) -> None:
    """What an earlier run left pending for this consumer is drained before anything new."""
    seed(server, stream)
    mine = deliver(server, stream, ME, 7)
    ask(server, "XDEL", stream, mine[2])
    cli.done(*LIVE, *at(server, stream), "--throttle", "none", "--max-events", "10")
    records = audit(server, stream)
    assert [r["original_id"] for r in records[:7]] == mine
    assert records[2]["action"] == "dropped_missing"
    assert len(records) == 10
    assert pending(server, stream) == 0


def test_an_active_consumer_is_not_robbed(server: Server, stream: str, cli: Cli) -> None:
    """Scope undelivered refuses while another consumer was active, and changes nothing."""
    seed(server, stream)
    deliver(server, stream, "alive", 1)
    before = everything(server)
    assert "alive" in cli.fails(4, *LIVE, *at(server, stream))
    after = everything(server)
    before.pop("changes"), after.pop("changes")
    assert after == before
    assert cli(*LIVE, *at(server, stream), *FAST, "--allow-active-consumers").rc == 0


def test_the_first_pages_of_large_entries_are_small(valkey: Server, stream: str, cli: Cli) -> None:
    """Before an entry was seen, drain and dry run ask for 8 at most; then for 4 MiB."""
    fill(valkey, stream, [(i + 1, {"x": "x" * (2 << 20)}) for i in range(20)], group=GROUP)
    ask(valkey, "CONFIG", "SET", "slowlog-log-slower-than", "0", "slowlog-max-len", "1000")
    for options in ((), ("--mode", "live", "--yes", "--throttle", "none", "--allow-invalid")):
        ask(valkey, "SLOWLOG", "RESET")
        assert cli("drain", *options, *at(valkey, stream)).rc == 0
        commands = [entry[3] for entry in ask(valkey, "SLOWLOG", "GET", 1000)]
        reads = [c for c in commands if c[0] == b"XRANGE" and b"COUNT" in c]
        assert max(int(read[-1]) for read in reads) <= 8
    assert len(audit(valkey, stream)) == 20


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize("small", [0, 16])
def test_large_entries_hold_up_nobody(
    valkey: Server, stream: str, cli: Cli, small: int, planned: bool
) -> None:
    """Among entries of 1 MiB, each sixteenth small or none, no commit takes 100 ms."""
    large, tiny = intent(x="x" * (1 << 20)), intent()
    now = now_ms(valkey)
    entries = [(now + i, tiny if small and i % small == 0 else large) for i in range(80)]
    fill(valkey, stream, entries, group=GROUP)
    plan = ("--plan", "p.json") if planned else ()
    options = (*FAST, *at(valkey, stream), *plan)
    cli.done("drain", *options)
    ask(valkey, "CONFIG", "SET", "slowlog-log-slower-than", "10000")
    ask(valkey, "SLOWLOG", "RESET")
    cli.done(*LIVE, *(options[len(FAST) :] if planned else options))
    commits = [row[2] for row in ask(valkey, "SLOWLOG", "GET", 1000) if row[3][0] == b"EVAL"]
    assert max(commits, default=0) < 100_000
    assert len(audit(valkey, stream)) == 80


@pytest.mark.parametrize("ahead", [False, True])
def test_large_entries_come_in_small_pages(valkey: Server, stream: str, ahead: bool) -> None:
    """Pages bring each entry once, in order, and hold 8 MiB at most, whatever came before."""
    sizes = [10] * 6000 + [1_000_000] * 30 + [10] * 50
    ids = fill(valkey, stream, [(1000 + i, {"payload": "x" * n}) for i, n in enumerate(sizes)])
    with Link(valkey.url, stream) as link:
        whole = (link, stream.encode(), "0-0", LAST_ID)
        found = list(reading.pages(*whole, ahead=ahead))
        assert link.call("PING") == b"PONG"
        partly = reading.pages(*whole, ahead=ahead)
        next(partly)
        partly.close()  # what was asked for ahead is not left for the next call
        assert link.call("PING") == b"PONG"
    assert [entry[0] for page in found for entry in page] == ids
    assert max(sum(len(entry[1][1]) for entry in page) for page in found) < 8 << 20
    assert max(map(len, found)) > 1000


def test_producers_shapes_meet_one_fate(server: Server, stream: str, cli: Cli) -> None:
    """Flat, data, payload or a nested signal, times in ts or created_at: old is old in both, and
    what has no symbol or confidence, which the original tool let through, is dropped_invalid."""
    now, old = now_ms(server), now_ms(server) - 7_200_000
    good = {"symbol": "BTCUSDT", "confidence": "5e-1"}
    stamps = [{"ts": old // 1000}, {"created_at": old}, {"event_time": f"{old / 1000:e}"}, {}]
    shapes = [
        shape
        for stamp in stamps
        for shape in (
            {**good, **stamp},
            {"data": json.dumps({**good, **stamp})},
            {"payload": json.dumps({**good, **stamp}), "ts": now},
            {"payload": json.dumps({"signal": {**good, **stamp}})},
        )
    ]
    shapes += [{"symbol": "BTCUSDT"}, {"confidence": "0.9"}, {"note": "x"}]
    (cli.cwd / "drainkit.toml").write_text(
        '[fields]\nsymbol = "payload.signal.symbol"\nconfidence = "payload.signal.confidence"\n'
    )
    entries = [(now + i, shape) for i, shape in enumerate(shapes)]
    fill(server, stream, entries, group=GROUP)
    command = ("drain", "--json", "--throttle", "none", "--min-conf", "0.5", *at(server, stream))
    found = [cli(*command, *live).json() for live in ((), ("--mode", "live", "--yes"))]
    for run in found:
        counts = (run["dropped_old"], run["dropped_invalid"], run["drained_ok"], run["total_read"])
        assert counts == (12, 3, 4, 19)
