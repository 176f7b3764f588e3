"""Scopes one after another and beside one another; groups of others; entries that go meanwhile;
--until and --from: a part of a backlog, the same in every count, and nothing twice."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from datetime import datetime
from typing import Any

import pytest
from backlogs import GROUP, ME, producing
from books import key
from conftest import intent
from place import BUNDLED, Place
from pyarrow import parquet

from drainkit.core.values import iso


def counts(summary: dict[str, int]) -> tuple[int, int]:
    return summary["total_read"], summary["remaining"]


def test_a_planned_history_ends_before_its_recorded_tail(place: Place) -> None:
    """After SETID back what is pending is acknowledged with its record, and its own counted once;
    only what has no record is planned, and when that is done the group goes."""
    ids = place.seed(90, 60)
    place.deliver("dead", 20)
    assert place.deliver(ME, 5) == ids[80:85]
    place.set_position(ids[29])
    assert counts(place.dry("--max-events", "all")) == (60, 60)
    assert counts(place.live("--max-events", "1", "--allow-active-consumers")) == (1, 59)
    assert counts(place.live("--allow-active-consumers")) == (59, 0)
    assert place.waiting() == []
    history = ("--scope", "history", "--max-events", "all", "--throttle", "none", "--plan",
               "plan.json")  # fmt: skip
    assert place.dry(*history)["total_read"] == 30
    assert place.live(*history)["remaining"] == 0
    assert place.recorded() == ids[80:85] + ids[30:80] + ids[85:] + ids[:30]
    assert [*place.groups] == [GROUP]


def test_a_history_group_of_others_is_refused(place: Place) -> None:
    """In a dry run too one that drainkit did not make is neither drained nor destroyed, also one of
    the default name; nor is there a second one of the same consumer group, nor one for two. Its
    own, destroyed and made anew, stands where its last commit left it, not at 0-0; exhausted it is
    gone, and another group's of that name begins at 0-0."""
    ids = place.seed(60, 0)
    place.deliver("dead", 40)
    for name, *given in ((f"{GROUP}.drain_history",), ("risk", "--history-group", "risk")):
        place.ask("XGROUP", "CREATE", place.stream, name, "0")
        before = place.everything()
        for mode in ("dry-run", "live"):
            said = place.refused("--mode", mode, "--scope", "history", *given)
            assert f"{name}: drainkit did not make" in said
        assert place.everything() == before
    mine = ("--scope", "history", "--max-events", "10", "--history-group")
    place.live(*mine, "mine")
    assert "mine" in place.refused(*mine, "other")
    place.ask("XGROUP", "CREATE", place.stream, "two", "$")
    two = (*mine, "mine", "--max-events", "all", "--consumer-group", "two")
    assert "did not make this group for two" in place.refused(*two)
    assert "--scope history" in place.refused("--consumer-group", "mine")
    place.ask("XGROUP", "DESTROY", place.stream, "mine")
    place.live(*mine, "mine")
    assert place.groups["mine"] == ids[19]
    place.live(*mine, "mine", "--max-events", "all")
    assert "mine" not in place.groups
    assert place.recorded() == ids[:40]
    assert place.live(*two)["total_read"] == 60


# ---------------------------------------------------------------- entries that go meanwhile

CAPPED: dict[str, Any] = {"maxlen": 1000, "approximate": True}


@pytest.mark.parametrize(
    ("place", "throttle", "per_sec"),
    [("valkey", "100", 100), ("valkey", "100", 1000), ("redis62", "100", 1000),
     ("valkey", "none", 1000), ("redis", "none", 1000)], indirect=["place"],
)  # fmt: skip
def test_a_drain_on_a_capped_stream_ends_by_itself(
    place: Place, per_sec: int, throttle: str
) -> None:
    """However busy the producer, each undelivered entry is recorded, vanished or left; none past
    the boundary is touched."""
    ids = place.seed(1100, 600)[600:]
    place.alter("XADD", "*", "note", "the last")
    begin = threading.Event()

    def produce() -> None:
        if per_sec == 1000:  # a second's entries at once, however busy the machine is
            place.fill([("*", {"note": "new"})] * 1000, None)
            place.alter("XTRIM", "MAXLEN", "~", 1000)
        begin.set()

    with producing(place.server, place.stream, per_sec, begin=begin, **CAPPED):
        if throttle == "none":
            begin.set()
            time.sleep(0.3)
        found = place.complete(throttle=throttle, at=(3, produce), max_events=150).books
    place.balanced(found)
    done = place.recorded()
    assert all(key(entry) <= key(found["boundary_id"]) for entry in [*done, place.position])
    assert len({*done}) == len(done)
    assert place.waiting() == []
    if throttle != "none":  # the producer began after the run
        assert found["total_read"] + found["vanished"] + found["remaining"] == len(ids) + 1
        assert (found["vanished"] > 0) == (per_sec == 1000)


def test_a_group_moved_forward_is_told(place: Place) -> None:
    """SETID forward during a drain skips entries: they are counted as passed over. As many of its
    own that were pending hide none that vanished, nor does --from."""
    ids = place.seed()[100:]

    def forward() -> None:
        place.alter("XDEL", ids[150])
        place.set_position(ids[80])

    found = place.complete(throttle="1000", at=(40, forward)).books
    assert found["passed_over"] == len({*ids[:81]} - {*place.recorded()}) > 20
    assert (found["vanished"], found["remaining"]) == (1, 0)
    later = place.fill([("*", intent())] * 40, None)
    place.deliver(ME, 1)
    found = place.complete(throttle="50", at=(4, lambda: place.alter("XDEL", later[30]))).books
    assert (found["total_read"], found["vanished"], found["passed_over"]) == (39, 1, 0)
    skipped = len({*ids[50:81]} - {*place.recorded()})
    found = place.complete(throttle="50", at=(1, lambda: place.alter("XDEL", ids[80])),
                           scope="history", from_=ids[50]).books  # fmt: skip
    assert (found["total_read"], found["vanished"], found["passed_over"]) == (skipped - 1, 1, 0)


def test_a_plan_on_a_capped_stream_is_applied(place: Place) -> None:
    """What was trimmed before and during the run is vanished and drift; the rest is drained."""
    place.seed(1100, 1000)
    begin = threading.Event()
    with producing(place.server, place.stream, 1000, begin=begin, **CAPPED):
        place.dry("--plan", "plan.json", "--throttle", "50", "--max-events", "80")
        # most of what it takes at once, however busy the machine is
        place.fill([("*", {"note": "new"})] * 700, None)
        begin.set()
        found = place.cli.done("drain", "--mode", "live", "--yes", "--json", *place.where,
                               "--plan", "plan.json").json()  # fmt: skip
    assert found["total_read"] + found["vanished"] == 80
    place.balanced(found)
    happened = Counter[str]()
    for row in found["drift"]:
        happened[row["happened"]] += row["events"]
    assert happened["vanished"] == found["vanished"] > 0
    planned = parquet.read_table(place.cli.cwd / "decisions.parquet")["id"].to_pylist()
    assert {*place.recorded()} <= {*planned}


# ---------------------------------------------------------------- --until and --from

APPLY = ("drain", "--mode", "live", "--yes", "--json", "--plan", "p.json")
EVERY_AGE = ("--max-age-min", "100000", "--allow-active-consumers")
HISTORY = ("--scope", "history", *EVERY_AGE)


def old_and_new(place: Place) -> tuple[list[str], int]:
    """120 entries of the last 20 minutes, one each 10 s; and when 10 minutes ago was, in ms."""
    now = place.now_ms()
    ids = [f"{now - (120 - i) * 10_000}-1" for i in range(120)]
    place.fill((entry, intent()) for entry in ids)
    return ids, now - 600_000


def test_until_leaves_the_fresh_to_consumers(place: Place) -> None:
    """Beside a producer only what is older than 10 minutes goes, and a restarted consumer gets
    all the rest; audit and consumer together hold each entry once."""
    ids, ten_ago = old_and_new(place)
    with producing(place.server, place.stream, 500):
        summary = place.live("--until", iso(ten_ago * 1000), *EVERY_AGE)
    old = [entry for entry in ids if int(entry.partition("-")[0]) <= ten_ago]
    assert 0 < len(old) < len(ids)
    assert place.recorded() == old
    assert counts(summary) == (len(old), 0)
    place.balanced(summary)
    everything = [entry[0].decode() for entry in place.alter("XRANGE", "-", "+")]
    assert len(everything) > len(ids)
    assert old + place.deliver("restarted", 10**6) == everything


@BUNDLED
def test_until_counts_alike(place: Place) -> None:
    """An id as --until is included, in dry run, export, plan and live run alike; what is pending
    for the drain's own consumer beyond it stays."""
    ids, _ = old_and_new(place)
    assert place.deliver(ME, 60) == ids[:60]
    until = ("--until", ids[49])
    dry = place.dry(*until)
    assert (dry["total_read"], dry["boundary_id"]) == (50, ids[49])
    exported = place.cli("export", "part.csv", "--json", *place.where, *until)
    assert exported.json()["entries"] == 50
    assert counts(place.live(*until, "--max-events", "20", *EVERY_AGE)) == (20, 30)
    assert counts(place.live(*until, *EVERY_AGE)) == (30, 0)
    assert place.recorded() == ids[:50]
    assert place.waiting(ME) == [(entry, ME) for entry in ids[50:60]]


@BUNDLED
@pytest.mark.parametrize(("until", "minutes"), [("10m", 10), ("0.15h", 9), ("0.01d", 14.4)])
def test_an_age_is_a_time_of_the_plan(place: Place, until: str, minutes: float) -> None:
    """A plan keeps its --until, an age as a time by the server's clock: a live run that comes later
    takes what the plan has."""
    ids, _ = old_and_new(place)
    before = place.now_ms()
    dry = place.says("drain", "--json", "--plan", "p.json", "--until", until, "--throttle", "none")
    plan = json.loads((place.cli.cwd / "p.json").read_text())
    bound = datetime.fromisoformat(plan["until"]).timestamp() * 1000
    assert before - 1 <= bound + minutes * 60_000 <= place.now_ms() + 1
    old = [entry for entry in ids if int(entry.partition("-")[0]) <= bound]
    assert 0 < len(old) == plan["total_read"] == dry.json()["total_read"] < 120
    assert place.cli.done(*APPLY, *place.where).json()["plan_digest"] == plan["digest"]
    assert place.recorded() == old


def test_from_takes_no_pending_entry_before_it(place: Place) -> None:
    """Scope pending from an id on: neither others' nor the drain's own entries before it go."""
    ids, _ = old_and_new(place)
    place.deliver(ME, 20)
    place.deliver("dead", 20)
    part = ("--scope", "pending", "--min-idle-min", "0", "--from", ids[10], "--until", ids[29])
    assert place.dry(*part)["total_read"] == 20
    assert counts(place.live(*part, *EVERY_AGE)) == (20, 0)
    assert sorted(place.recorded()) == ids[10:30]
    assert [entry for entry, _ in place.waiting()] == ids[:10] + ids[30:40]


@BUNDLED
def test_how_a_bound_is_understood(place: Place) -> None:
    """2025-12-24T10:00 is 10:00 UTC wherever it is said, and said so; one with its offset needs no
    word. Ages the wrong way round are bad usage."""
    old_and_new(place)
    for given, told in (("2025-12-24T10:00", True), ("2025-12-24T10:00Z", False), ("5-0", False)):
        run = place.says("drain", "--until", given, env={"TZ": "Asia/Tokyo"})
        said = "--until without an offset is UTC: 2025-12-24T10:00:00+00:00"
        assert (run.rc, said in run.err) == (0, told), run.err
    for first, last in (("1h", "2h"), ("1m", "2025-12-24T00:00Z")):
        bounds = ("--scope", "history", "--from", first, "--until", last)
        assert "--from lies after --until" in place.cli.fails(2, "drain", *place.where, *bounds)


def test_history_in_parts(place: Place) -> None:
    """A new history group begins just before --from and goes on there; what it left out remains,
    and the next one begins with it. One that --until keeps from its end outlives the run; before a
    --from it is left as it is: exit 4 says where it stands, unless nothing lies between."""
    ids, _ = old_and_new(place)
    place.set_position(ids[99])
    part = (*HISTORY, "--from", ids[60])
    assert place.dry(*part)["total_read"] == 40
    assert counts(place.live(*part, "--max-events", "15")) == (15, 25)
    assert counts(place.live(*HISTORY)) == (25, 60)
    assert place.recorded() == ids[60:100]
    assert place.groups == {GROUP: ids[99]}
    assert place.dry(*HISTORY)["total_read"] == 60
    assert counts(place.live(*HISTORY, "--until", ids[39])) == (40, 0)
    own = f"{GROUP}.drain_history"
    assert place.groups == {GROUP: ids[99], own: ids[39]}
    assert place.live(*HISTORY, "--until", ids[39])["total_read"] == 0
    for mode in ("dry-run", "live"):
        said = place.refused("--mode", mode, *HISTORY, "--from", ids[50])
        assert f"is at {ids[39]}, before it" in said
    assert place.live(*HISTORY, "--from", ids[40], "--max-events", "5")["total_read"] == 5
    assert counts(place.live(*HISTORY)) == (15, 0)
    assert sorted(place.recorded()) == ids[:100]
    assert place.groups == {GROUP: ids[99]}
    assert place.live(*HISTORY)["total_read"] == 0


def test_what_history_recorded_and_a_trim_removed_is_not_recorded_again(place: Place) -> None:
    """What consumers left pending has the record that scope history made, though the stream was
    trimmed and a slower drain made history read again: scope pending only acknowledges it."""
    ids = place.seed(600, 0)
    place.deliver("dead", 590)
    history = place.start(*HISTORY, "--throttle", "200", "--max-events", "200")
    place.wait_for(100)
    place.alter("XTRIM", "MINID", "=", ids[200])
    place.live("--throttle", "5", "--max-events", "3", "--consumer-name", "b",
               "--allow-active-consumers")  # fmt: skip
    assert place.cli.finish(history).rc == 0
    place.live("--scope", "pending", "--min-idle-min", "0")
    assert sorted(place.recorded()) == sorted({*place.recorded()})
    assert not place.waiting()
