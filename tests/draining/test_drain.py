"""The drain on real servers: what is drained, in which order, how evenly, what is left alone."""

from __future__ import annotations

import random
import signal
import time
from contextlib import suppress
from datetime import datetime, timedelta
from functools import cache, partial
from typing import Any

import pytest
from backlogs import ALLOW, GROUP, ME, original_backlog, producing
from books import key
from conftest import Cli, intent
from faults import at_once
from place import BUNDLED, Place
from servers import Server

from drainkit.server import writing
from drainkit.server.connection import Server as Link


def test_live_run_of_undelivered_balances(place: Place) -> None:
    """A live drain audits and acknowledges each entry after the position once, and no other; a
    record has the contract's fields in order, and its times fit its age within 0.05 s."""
    ids = place.seed()
    summary = place.live("--allowlist", ALLOW)
    records = place.audit()
    assert (summary["total_read"], summary["remaining"]) == (200, 0)
    assert [record["original_id"] for record in records] == ids[100:]
    place.balanced(summary)
    assert (place.waiting(), place.alter("XLEN")) == ([], 300)
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


@BUNDLED
def test_a_small_drain_asks_little(place: Place) -> None:
    """For ten entries the server gets 28 requests at most: what it told once is not asked again.

    Not counted are what scripts call by themselves and the handshake of a connection.
    """
    place.seed(110)
    found: list[str] = []
    with place.server.client().monitor() as monitor:
        place.live()
        place.ask("ECHO", "over")
        while (line := monitor.next_command())["command"] != "ECHO over":
            if line["client_type"] != "lua":
                found.append(line["command"][:60])
    handshake = ("HELLO", "AUTH", "CLIENT", "SELECT")
    assert len(place.audit()) == 10
    assert len([one for one in found if not one.startswith(handshake)]) <= 28, found


def test_live_run_of_pending_takes_idle_entries_only(place: Place) -> None:
    """Scope pending drains what idles long enough, bodies gone included, of those consumers alone
    that --from-consumer names, one that is named twice too, and leaves the rest."""
    place.seed()
    dead, other, third = (place.deliver(*given) for given in
                          (("dead", 20), ("other", 5), ("third", 5)))  # fmt: skip
    for name, ids in (("dead", dead), ("other", other), ("third", third)):
        place.alter("XCLAIM", GROUP, name, 0, *ids, "IDLE", 3_600_000, "JUSTID")
    place.alter("XDEL", dead[3], dead[7])
    alive = place.deliver("alive", 10)
    idle = ("--scope", "pending", "--min-idle-min", "30")
    named = [word for name in ("third", "dead", "third") for word in ("--from-consumer", name)]
    assert place.dry(*idle, *named)["total_read"] == 25
    summary = place.live(*idle, *named)
    assert sorted(place.recorded()) == sorted(dead + third)
    assert summary["dropped_missing"] == 2
    place.balanced(summary)
    assert len(place.waiting()) == 5 + 10
    place.live(*idle)
    assert place.recorded()[25:] == other
    assert place.waiting() == [(entry, "alive") for entry in alive]


@pytest.mark.parametrize("named", [False, True])
def test_history_is_drained_in_batches_once(place: Place, named: bool) -> None:
    """Scope history keeps its group, of whatever name, between batches, ends it when exhausted
    and repeats nothing."""
    ids = place.seed()
    name = "mine" if named else f"{GROUP}.drain_history"
    history = ("--scope", "history", *(("--history-group", name) if named else ()))
    for most, told, groups in (("60", (60, 40), {GROUP, name}), ("all", (40, 0), {GROUP}),
                               ("all", (0, 0), {GROUP})):  # fmt: skip
        found = place.live(*history, "--max-events", most)
        assert (found["total_read"], found["remaining"]) == told
        assert {*place.groups} == groups
    assert place.recorded() == ids[:100]


@BUNDLED
def test_the_story_of_the_original_report(place: Place) -> None:
    """2 of the 3 entries were too old; the third had passed, and the original tool lost it."""
    place.fill(original_backlog(), "1766594572014-0")
    place.live("--as-of", "2025-12-24T19:49:58+00:00", "--throttle", "5", "--max-events", "500",
               "--allowlist", "BTCUSDT,ETHUSDT,SOLUSDT,RENDERUSDT")  # fmt: skip
    assert place.alter("XLEN") == 10_012
    assert [(r["symbol"], r["action"], r["age_sec"]) for r in place.audit()] == [
        ("TESTUSDT", "dropped_old", "2971.24"),
        ("TESTUSDT", "dropped_old", "2905.23"),
        ("RENDERUSDT", "drained_ok", "1731.99"),
    ]


@pytest.mark.slow
def test_sigkill_24_times_loses_and_doubles_nothing(valkey: Server, stream: str, cli: Cli) -> None:
    """Killed at 24 random moments, in scopes undelivered and history, and run again each time,
    every entry is audited exactly once."""

    def killed(number: int) -> None:
        place = Place(valkey, f"{stream}:{number}", cli)
        ids = place.seed(8_000, delivered=2000)
        for kill in range(12):
            before = place.ask("XLEN", place.side("audit"))
            scope = "history" if kill % 5 == 1 else "undelivered"
            process = place.start("--throttle", "4000", "--scope", scope)
            if kill % 2:  # half of them surely in the middle of the work
                with suppress(TimeoutError):
                    place.wait_for(before + 1, timeout_sec=5)
            time.sleep(random.uniform(0, 0.1 if kill % 2 else 0.5))
            process.send_signal(signal.SIGKILL)
            process.wait()
        place.live()
        place.live("--scope", "history")
        assert sorted(place.recorded(), key=key) == ids
        assert place.waiting() == []

    at_once(partial(killed, 0), partial(killed, 1))


def test_a_busy_producer_cannot_keep_the_drain_going(place: Place) -> None:
    """While a producer adds entries, the drain ends and touches nothing after its boundary."""
    place.seed(4000)
    with producing(place.server, place.stream) as produced:
        boundary = key(place.live()["boundary_id"])
    assert max(map(key, place.recorded())) <= boundary
    assert key(place.position) <= boundary
    assert any(key(entry.decode()) > boundary for entry in produced)
    assert place.waiting() == []


def test_own_unfinished_entries_come_first(place: Place) -> None:
    """While another consumer was active, scope undelivered refuses and changes nothing; allowed,
    it takes what an earlier run left pending for this consumer before anything new."""
    place.seed()
    mine = place.deliver(ME, 7)
    place.alter("XDEL", mine[2])
    alive = place.deliver("alive", 1)
    before = place.everything()
    assert "alive" in place.refused()
    assert {**place.everything(), "changes": 0} == {**before, "changes": 0}
    place.live("--max-events", "10", "--allow-active-consumers")
    records = place.audit()
    assert [r["original_id"] for r in records[:7]] == mine
    assert records[2]["action"] == "dropped_missing"
    assert len(records) == 10
    assert place.waiting() == [(alive[0], "alive")]


# ---------------------------------------------------------------- large entries


@BUNDLED
@pytest.mark.parametrize(("small", "planned"), [(0, False), (16, True)])
def test_large_entries_hold_up_nobody(place: Place, small: int, planned: bool) -> None:
    """Among entries of 1 MiB, each sixteenth small or none, no commit takes 100 ms; where all are
    large, drain and dry run ask for 8 at most from the start."""
    large, tiny, now = intent(x="x" * (1 << 20)), intent(), place.now_ms()
    place.fill((now + i, tiny if small and i % small == 0 else large) for i in range(48))
    plan = ("--plan", "p.json") if planned else ()
    place.ask("CONFIG", "SET", "slowlog-log-slower-than", "0", "slowlog-max-len", "1000")
    for drain in (partial(place.dry, "--throttle", "none", "--max-events", "all"), place.live):
        place.ask("SLOWLOG", "RESET")
        drain(*plan)
        told = [(row[2], row[3]) for row in place.ask("SLOWLOG", "GET", 1000)]
        reads = [c for _, c in told if c[0] == b"XRANGE" and b"COUNT" in c]
        assert small or max(int(read[-1]) for read in reads) <= 8
    assert max(took for took, c in told if c[0] == b"EVAL") < 100_000
    assert len(place.audit()) == 48


# ---------------------------------------------------------------- shapes of events and of servers


# what XPENDING answers in a script of Redis 8.8, which none of these servers is: entries of
# consumer "dead" were released by XNACK, are nobody's, and idle for -1 ms
AS_8_8 = """
local call_ = redis.call
local redis = setmetatable({call = function(name, ...)
  local reply = call_(name, ...)
  if name == 'XPENDING' then
    for _, row in ipairs(reply) do
      if row[2] == 'dead' then row[2] = '' row[3] = -1 end
    end
  end
  return reply
end}, {__index = redis})
"""
real_script, real_call = writing.script, Link.call


def test_released_entries_are_drained_as_idle(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planned, drained and audited by scope pending whatever --min-idle-min says."""

    def call(self: Link, *args: Any) -> Any:
        if args[0] != "XPENDING" or len(args) == 3:
            return real_call(self, *args)
        if args[3] == "IDLE":
            args = (*args[:3], *args[5:])
        rows = real_call(self, *args)
        return [[row[0], b"", -1, row[3]] if row[1] == b"dead" else row for row in rows]

    monkeypatch.setattr(writing, "script", cache(lambda name: AS_8_8 + real_script(name)))
    monkeypatch.setattr(Link, "call", call)
    ids = place.seed(150)[100:]
    assert place.deliver("dead", 50) == ids
    options: dict[str, Any] = {"scope": "pending", "min_idle_min": 60}
    assert place.rehearse(**options)["total_read"] == 50
    run = place.complete(**options)
    assert (run.books["total_read"], run.books["remaining"]) == (50, 0)
    assert (place.recorded(), place.waiting()) == (ids, [])
