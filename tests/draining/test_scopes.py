"""Scopes one after another and beside one another; groups of others; entries that go meanwhile."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import permutations, product
from typing import Any

import pytest
from backlogs import GROUP, ME, producing
from conftest import CliResult
from faults import key
from place import BUNDLED, Place
from pyarrow import parquet

SCOPES = ("undelivered", "pending", "history")


def each_once(place: Place, expected: list[str]) -> None:
    """For the one consumer group, by whatever scopes and runs."""
    assert Counter(place.recorded()) == Counter(expected)
    assert {r["consumer_group"] for r in place.audit()} == {GROUP}


@pytest.mark.parametrize("order", [*permutations(SCOPES)], ids="-".join)
def test_scopes_one_after_another_record_each_entry_once(
    place: Place, order: tuple[str, ...]
) -> None:
    """In whatever order, in batches: each id once, and each dry run says what the live run does."""
    ids = place.seed(120, 60)
    place.deliver("dead", 20)
    for scope, budget in product(order, ("15", "all")):
        options = {"scope": scope, "max_events": budget, "min_idle_min": 0,
                   "allow_active_consumers": True}  # fmt: skip
        before = place.everything()
        dry = place.rehearse(**options)
        assert place.everything() == before
        live = place.complete(throttle="none", **options).books
        for name in ("total_read", "drained_ok", "dropped_invalid", "dropped_low_conf"):
            assert dry[name] == live[name]
        if budget == "all":
            assert live["remaining"] == 0
    each_once(place, ids)
    if order.index("history") < order.index("pending"):
        assert place.waiting() == []  # recorded by history, then acknowledged


@BUNDLED
def test_a_planned_history_ends_before_its_tail(place: Place) -> None:
    """What scope undelivered drained is history, too: not planned again, and no reason to stay."""
    ids = place.seed(120, 60)
    place.live()
    history = ("--scope", "history", "--max-events", "all", "--throttle", "none", "--plan",
               "plan.json")  # fmt: skip
    assert place.dry(*history)["total_read"] == 60
    assert place.live(*history)["remaining"] == 0
    each_once(place, ids)
    assert [*place.groups] == [GROUP]


@BUNDLED
def test_killed_within_and_between_scopes(place: Place) -> None:
    """SIGKILL in scope undelivered and in history, by turns: in the end each id has one record."""
    ids = place.seed(120, 60)
    for scope in ("undelivered", "history") * 2:
        begun = len(place.audit())
        process = place.start("--throttle", "100", "--scope", scope)
        place.wait_for(begun + 6)
        process.kill()
        process.communicate()
    assert len(place.audit()) < len(ids)
    for scope in ("undelivered", "history"):
        place.live("--scope", scope)
    each_once(place, ids)
    assert place.waiting() == []


def test_after_setid_back_nothing_is_recorded_again(place: Place) -> None:
    """Entries drained before the position was moved back are passed without a second record."""
    ids = place.seed(120, 60)
    place.live()
    place.set_position(ids[29])
    place.deliver(ME, 40)  # 30 that have no record, and 10 that have one
    assert place.dry("--max-events", "all")["total_read"] == 30
    live = place.live()
    assert (live["total_read"], live["remaining"]) == (30, 0)
    each_once(place, ids[30:])
    assert place.waiting() == []


def test_a_history_group_of_others_is_refused(place: Place) -> None:
    """In a dry run too one that drainkit did not make is neither drained nor destroyed, also one of
    the default name; nor is there a second one of the same consumer group. Its own, destroyed and
    made anew, stands where its last commit left it, not at 0-0."""
    ids = place.seed(60, 40)
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
    place.ask("XGROUP", "DESTROY", place.stream, "mine")
    place.live(*mine, "mine")
    assert place.groups["mine"] == ids[19]
    each_once(place, ids[:20])


# ---------------------------------------------------------------- entries that go meanwhile

SLOW = [pytest.param("5", n, marks=pytest.mark.chaos) for n in (100, 1000)]  # the default
CAPPED: dict[str, Any] = {"maxlen": 1000, "approximate": True}


@pytest.mark.parametrize(
    ("throttle", "per_sec"), [("100", 100), ("100", 1000), ("none", 1000), *SLOW]
)
def test_a_drain_on_a_capped_stream_ends_by_itself(
    place: Place, per_sec: int, throttle: str
) -> None:
    """Each undelivered entry is recorded, vanished or left; none past the boundary is touched."""
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
        most = 500 if throttle == "5" else 150
        found = place.complete(throttle=throttle, at=(3, produce), max_events=most).books
    place.balanced(found)
    done = place.recorded()
    assert all(key(entry) <= key(found["boundary_id"]) for entry in done)
    assert len({*done}) == len(done)
    assert place.waiting() == []
    if throttle != "none":  # the producer began after the run
        assert found["total_read"] + found["vanished"] + found["remaining"] == len(ids) + 1
        assert (found["vanished"] > 0) == (per_sec == 1000 or throttle == "5")


def test_a_group_moved_forward_is_told(place: Place) -> None:
    """SETID forward during a drain skips entries: they are counted as passed over."""
    ids = place.seed()[100:]

    def forward() -> None:
        place.alter("XDEL", ids[150])
        place.set_position(ids[80])

    found = place.complete(throttle="1000", at=(40, forward)).books
    assert found["passed_over"] == len({*ids[:81]} - {*place.recorded()}) > 20
    assert (found["vanished"], found["remaining"]) == (1, 0)


def plan_and_apply(place: Place, between: Callable[[], object], *options: object) -> CliResult:
    place.dry("--plan", "plan.json", *options)
    between()
    return place.cli("drain", "--mode", "live", "--yes", "--json", *place.where,
                     "--plan", "plan.json")  # fmt: skip


@pytest.mark.parametrize(
    ("throttle", "events"), [("50", 80), pytest.param("5", 500, marks=pytest.mark.chaos)]
)
def test_a_plan_on_a_capped_stream_is_applied(place: Place, throttle: str, events: int) -> None:
    """What was trimmed before and during the run is vanished and drift; the rest is drained."""
    place.seed(1100, 1000 if events == 80 else 500)
    begin = threading.Event()

    def produce() -> None:
        if events == 80:  # most of what it takes at once, however busy the machine is
            place.fill([("*", {"note": "new"})] * 700, None)
        begin.set()

    with producing(place.server, place.stream, 1000, begin=begin, **CAPPED):
        run = plan_and_apply(place, produce, "--throttle", throttle, "--max-events", events)
    assert run.rc == 0, run.err
    found = run.json()
    assert found["total_read"] + found["vanished"] == events
    place.balanced(found)
    happened = Counter[str]()
    for row in found["drift"]:
        happened[row["happened"]] += row["events"]
    assert happened["vanished"] == found["vanished"] > 0
    planned = parquet.read_table(place.cli.cwd / "decisions.parquet")["id"].to_pylist()
    assert {*place.recorded()} <= {*planned}


def test_a_plan_whose_middle_is_gone_is_refused(place: Place) -> None:
    """Trimmed from the front: applied. Deleted in the middle before the run: refused, none done."""
    ids = place.seed()

    def front_and_middle() -> None:
        place.alter("XTRIM", "MINID", "=", ids[110])
        place.alter("XDEL", ids[130])

    run = plan_and_apply(place, front_and_middle, "--throttle", "none")
    assert (run.rc, ids[130] in run.err, place.audit()) == (4, True, []), run
