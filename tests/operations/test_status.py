"""The first screen of status: its facts are those of check, of a dry run and of the ledger; and
which drains run, and which died, by the ledger."""

from __future__ import annotations

import json
import signal
import time
from datetime import datetime

import pytest
from backlogs import ALLOW, GROUP
from books import ledger_of
from conftest import intent
from place import BUNDLED, Place


def test_it_says_what_check_dry_run_and_ledger_say(place: Place) -> None:
    """The verdict is check's; what passes, by symbol, and what cannot be read are a dry run's; the
    last run is the ledger's; the next command carries what was given."""
    place.seed(900, 0)
    allowed = ("--allowlist", ALLOW)
    place.live(*allowed, "--max-events", 40, "--operator", "olga")
    found = place.says("status", "--json", *allowed).json()
    dry, check = place.dry("--max-events", "all", *allowed), place.says("check", "--json").json()
    decided, last = found["decided"], found["last_run"]
    assert found["verdict"] == {key: check[key] for key in ("status", "exit_code", "findings")}
    assert (decided["would_pass"], decided["events"]) == (dry["drained_ok"], dry["total_read"])
    assert sum(decided["symbols"].values()) == dry["drained_ok"] > 0
    assert set(decided["symbols"]) == {"BTCUSDT", "ETHUSDT"}
    assert sum(decided["unreadable"].values()) == dry["dropped_invalid"] > 0
    assert (last["operator"], last["outcome"], last["total_read"]) == ("olga", "done", 40)
    assert found["groups"][0]["oldest_age_sec"] > 0
    text = place.says("status", *allowed).out
    why, n = next(iter(decided["unreadable"].items()))  # what may be cut is the reason
    for said in (
        f"Would pass now: {dry['drained_ok']:,} of 860: ", "by olga: done, 40 read, ",
        "Next drain: the first 500 of 860, 100 s at 5 per second: 860 undelivered",
        f"Unreadable: {dry['dropped_invalid']} of 860: {n} {why}",
    ):  # fmt: skip
        assert said in text
    assert len(text.splitlines()) <= 15
    assert text.startswith("WARNING: 860 entries undelivered, limit 1,000")
    assert text.splitlines()[-1].endswith(f"--allowlist {ALLOW}")
    assert "Newest: " not in text
    assert "Newest: " in place.says("status", "-v", *allowed).out


@BUNDLED
def test_a_large_backlog_is_sampled_from_end_to_end(place: Place) -> None:
    """Of a burst in a quiet month whose older half cannot be read about half is told unreadable."""
    now = place.now_ms()
    quiet = [(now - 30 * 86_400_000 + i * 3_600_000, intent()) for i in range(600)]
    burst = [(now - 20_000 + i, intent() if i > 10_000 else {"x": "y"}) for i in range(20_000)]
    place.fill([*quiet, *burst])
    found = place.says("status", "--json").json()
    decided = found["decided"]
    share = sum(decided["unreadable"].values()) / decided["events"]
    assert (decided["is_sample"], decided["undelivered"]) == (True, 20_600)
    assert 3_000 < decided["events"] < 6_000
    assert 0.4 < share < 0.6, share
    assert found["unreadable"]
    assert " sampled" in place.says("status").out


@BUNDLED
def test_it_names_the_next_command(place: Place) -> None:
    """The command is that of the worst that is there; a password of the URL is not in it."""
    mine = ("--consumer-group", "mine")

    def told(*options: str) -> str:
        return place.says("status", *options).out.splitlines()[-1]

    (entry,) = place.fill([(place.now_ms(), {"x": "y"})], None)
    place.ask("XGROUP", "CREATE", place.stream, "mine", "0")
    assert "drainkit status --consumer-group mine --redis-url" in told()
    assert "drainkit fields " in told(*mine)
    place.deliver("c", 1, "mine")
    pending = told(*mine)
    assert "run --scope pending" in pending
    assert pending.endswith("--consumer-group mine") or "--consumer-group mine " in pending
    place.ask("XACK", place.stream, "mine", entry)
    text = place.says("status", *mine).out
    assert "nothing waits" in text
    assert "Next drain: nothing; 0 undelivered" in text
    assert place.says("stop", "--reason", "r").rc == 0
    assert "drainkit resume --redis-url" in told()
    url = place.server.tcp_url.replace("redis://", "redis://default:pw@")
    assert "redis-url" not in place.cli("status", "--redis-url", url, "--stream", place.stream).out


@BUNDLED
def test_watch_goes_on_until_it_is_interrupted(place: Place) -> None:
    """Each second one screen, or one JSON object, of the state then; an interrupt ends with 130."""
    place.seed(30, 10)
    watch = ("status", "--watch", 1, *place.where)
    processes = [place.cli.start(*watch), place.cli.start(*watch, "--json")]
    time.sleep(2.5)
    place.alter("XADD", "*", "x", "y")
    time.sleep(2)
    for process in processes:
        process.send_signal(signal.SIGINT)
    text, objects = (place.cli.finish(process) for process in processes)
    lines = [line.split() for line in text.out.splitlines() if line.startswith("Backlog: ")]
    for run, counts in (
        (text, [int(line[1]) for line in lines]),
        (objects, [json.loads(o)["decided"]["undelivered"] for o in objects.out.splitlines()]),
    ):
        assert (run.rc, counts[0], counts[-1]) == (130, 20, 21), run
        assert len(counts) > 2


# ---------------------------------------------------------------- drains at work


@BUNDLED
def test_it_shows_running_drains(place: Place) -> None:
    """While a drain runs, status tells its progress and ETA; then no more; a dead one it names."""
    place.seed(600, 0)
    process = place.start("--throttle", 20, "--max-events", 400)
    place.wait_for(20)
    asked = time.time()
    (found,) = place.says("status", "--json").json()["running_drains"]
    answered = time.time()
    assert found["alive"]
    assert found["done"] >= 20
    assert found["done"] + found["remaining"] == 400
    started = datetime.fromisoformat(found["started_at"]).timestamp()
    # a rate over the whole run, whatever its pace was until then on a busy machine
    ran_sec = found["done"] / found["events_per_sec"]
    assert asked - started - 0.01 <= ran_sec <= answered - started + 0.01
    assert found["eta_sec"] == pytest.approx(found["remaining"] / found["events_per_sec"], rel=0.1)
    process.kill()
    place.cli.finish(process)
    assert found["run_id"] in place.says("status").out
    place.live()
    assert place.says("status", "--json").json()["running_drains"] == []


#: What may be wrong with a start entry that is right otherwise.
ODD = [
    ("throttle", "0"), ("throttle", "nan"), ("throttle", "?"), ("boundary_id", "?"),
    ("boundary_id", ""), ("max_events", "?"), ("at", "?"), ("at", "0001-01-01T00:00:00"),
    ("scope", "?"), ("consumer_group", "nobody"), ("run_id", "x\x1b[31m"),
]  # fmt: skip


@BUNDLED
def test_odd_ledgers_do_not_break_it(place: Place) -> None:
    """A start entry that is right but for one value costs at most its own line, as a foreign entry
    does; a key of another type in the ledger's place is no obstacle."""
    ids = place.seed(5, 0)
    good = {
        "event": "start", "run_id": "20260101T000000Z-live-abc123", "consumer_group": GROUP,
        "consumer": "c", "scope": "undelivered", "boundary_id": ids[-1], "throttle": "5",
        "max_events": "5", "at": "2026-01-01T00:00:00Z", "plan_digest": "",
    }  # fmt: skip
    place.ask("XADD", place.side("runs"), "*", "event", "start", "run_id", "x\x1b[31m")
    for i, (field, value) in enumerate([*ODD, ("consumer", "right")]):
        start = good | {"run_id": f"20260101T000000Z-live-abc{i:03}", "consumer": f"c{i}"}
        flat = [part for pair in (start | {field: value}).items() for part in pair]
        place.ask("XADD", place.side("runs"), "*", *flat)
    assert len(ledger_of(place.server, place.stream)) == len(ODD) + 2
    found = place.says("status", "--json").json()["running_drains"]
    assert "right" in {drain["consumer"] for drain in found}
    assert place.says("status").rc == 0
    place.ask("DEL", place.side("runs"))
    place.ask("SET", place.side("runs"), "x")
    assert place.says("status").rc == 0
