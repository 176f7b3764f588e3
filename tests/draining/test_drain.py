"""The drain on real servers: what is drained, in which order, how evenly, what is left alone."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial

from backlogs import ALLOW, GROUP, ME, original_backlog
from conftest import intent
from place import BUNDLED, Place


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
    that --from-consumer names, one that is named twice too, and leaves the rest, to be recorded
    later: also one without its body that lies among those that are taken."""
    place.seed()
    dead, other, third = (place.deliver(*given) for given in
                          (("dead", 20), ("other", 5), ("third", 5)))  # fmt: skip
    for name, ids in (("dead", dead), ("other", other), ("third", third)):
        place.alter("XCLAIM", GROUP, name, 0, *ids, "IDLE", 3_600_000, "JUSTID")
    held = dead.pop(5)
    place.alter("XCLAIM", GROUP, "alive", 0, held, "JUSTID")
    place.alter("XDEL", dead[3], held, dead[6])
    alive = [held, *place.deliver("alive", 10)]
    idle = ("--scope", "pending", "--min-idle-min", "30")
    named = [word for name in ("third", "dead", "third") for word in ("--from-consumer", name)]
    assert place.dry(*idle, *named)["total_read"] == 24
    summary = place.live(*idle, *named)
    assert sorted(place.recorded()) == sorted(dead + third)
    assert summary["dropped_missing"] == 2
    place.balanced(summary)
    assert len(place.waiting()) == 5 + 11
    place.live(*idle)
    assert place.recorded()[24:] == other
    assert place.waiting() == [(entry, "alive") for entry in alive]
    place.live("--scope", "pending", "--min-idle-min", "0")
    assert place.recorded()[29:] == alive


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


@BUNDLED
def test_large_entries_hold_up_nobody(place: Place) -> None:
    """Of entries of 1 MiB drain and dry run ask for 8 at most from the start, and no commit takes
    100 ms."""
    large, now = intent(x="x" * (1 << 20)), place.now_ms()
    place.fill((now + i, large) for i in range(48))
    place.ask("CONFIG", "SET", "slowlog-log-slower-than", "0", "slowlog-max-len", "1000")
    for drain in (partial(place.dry, "--throttle", "none", "--max-events", "all"), place.live):
        place.ask("SLOWLOG", "RESET")
        drain()
        told = [(row[2], row[3]) for row in place.ask("SLOWLOG", "GET", 1000)]
        assert max(int(c[-1]) for _, c in told if c[0] == b"XRANGE" and b"COUNT" in c) <= 8
    assert max(took for took, c in told if c[0] == b"EVAL") < 100_000
    assert len(place.audit()) == 48
