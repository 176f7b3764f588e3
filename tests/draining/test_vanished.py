"""Entries that are deleted before they could be delivered: the drain goes on and counts them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

import pytest
from backlogs import GROUP, producing, seed
from books import ask, assert_books_balance, at, audit, pending, recorded
from conftest import Cli
from faults import attempt, complete, key
from pyarrow import parquet
from servers import Server

LIVE = ("drain", "--mode", "live", "--yes", "--json")
CAPPED: dict[str, Any] = {"maxlen": 1000, "approximate": True}
SLOW = pytest.param("5", marks=pytest.mark.chaos)  # the default


@pytest.mark.parametrize("per_sec", [100, 1000])
@pytest.mark.parametrize("throttle", ["100", "none", SLOW])
def test_a_drain_on_a_capped_stream_ends_by_itself(
    server: Server, stream: str, per_sec: int, throttle: str
) -> None:
    """Each undelivered entry is recorded, vanished or left; none past the boundary is touched."""
    ids = seed(server, stream, 1100, delivered=600)[600:]
    ask(server, "XADD", stream, "*", "note", "the last")
    begin = threading.Event()
    with producing(server, stream, per_sec, begin=begin, **CAPPED):
        if throttle == "none":
            begin.set()
            time.sleep(0.3)
        run = attempt(
            server.url, stream, throttle=throttle, at=(3, begin.set),
            max_events=500 if throttle == "5" else 150,
        )  # fmt: skip
    assert run.rc == 0, run.error
    found = run.books
    assert_books_balance(server, stream, found)
    ids_done = recorded(server, stream)
    assert all(key(entry) <= key(found["boundary_id"]) for entry in ids_done)
    assert len({*ids_done}) == len(ids_done)
    assert pending(server, stream) == 0
    if throttle != "none":  # the producer began after the run
        assert found["total_read"] + found["vanished"] + found["remaining"] == len(ids) + 1
        assert (found["vanished"] > 0) == (per_sec == 1000 or throttle == "5")


def test_what_is_deleted_between_read_and_commit_is_counted(server: Server, stream: str) -> None:
    """Ends of batches and whole batches: counted, and the run goes on."""
    ids = seed(server, stream, 300, delivered=100)[100:]

    def delete() -> None:  # batches of 2 at 100/s; the next is read already
        ask(server, "XDEL", stream, *ids[21:28], *ids[60:70])

    run = complete(server.url, stream, throttle="100", at=(20, delete))
    found = run.books
    assert (found["total_read"], found["vanished"], found["remaining"]) == (183, 17, 0)
    assert recorded(server, stream) == [*ids[:21], *ids[28:60], *ids[70:]]


def test_a_group_moved_forward_is_told(server: Server, stream: str) -> None:
    """SETID forward during a drain skips entries: they are counted as passed over."""
    ids = seed(server, stream, 300, delivered=100)[100:]

    def forward() -> None:
        ask(server, "XDEL", stream, ids[150])
        ask(server, "XGROUP", "SETID", stream, GROUP, ids[80])

    run = complete(server.url, stream, throttle="1000", at=(40, forward))
    found = run.books
    assert found["passed_over"] == len({*ids[:81]} - {*recorded(server, stream)}) > 20
    assert (found["vanished"], found["remaining"]) == (1, 0)


def plan_and_apply(cli: Cli, server: Server, stream: str, *options: object, **when: Any) -> Any:
    where = at(server, stream)
    cli.done("drain", "--json", *where, "--plan", "plan.json", *options)
    when.get("between", lambda: None)()
    return cli(*LIVE, *where, "--plan", "plan.json")


@pytest.mark.parametrize("per_sec", [100, 1000])
@pytest.mark.parametrize(
    ("throttle", "events"), [("50", 80), pytest.param("5", 500, marks=SLOW.marks)]
)
def test_a_plan_on_a_capped_stream_is_applied(
    server: Server, stream: str, cli: Cli, per_sec: int, throttle: str, events: int
) -> None:
    """What was trimmed before and during the run is vanished and drift; the rest is drained."""
    seed(server, stream, 1100, delivered=1000 if events == 80 else 500)
    options = ("--throttle", throttle, "--max-events", events)
    begin = threading.Event()
    with producing(server, stream, per_sec, begin=begin, **CAPPED):
        run = plan_and_apply(cli, server, stream, *options, between=begin.set)
    assert run.rc == 0, run.err
    found = run.json()
    assert found["total_read"] + found["vanished"] == events
    assert_books_balance(server, stream, found)
    if per_sec == 1000 or throttle == "5":
        assert found["vanished"] > 0
    happened = Counter()
    for row in found["drift"]:
        happened[row["happened"]] += row.get("events", 1)
    assert happened["vanished"] == found["vanished"]
    planned = parquet.read_table(cli.cwd / "decisions.parquet")["id"].to_pylist()
    assert {*recorded(server, stream)} <= {*planned}


def test_a_plan_whose_middle_is_gone_is_refused(server: Server, stream: str, cli: Cli) -> None:
    """Trimmed from the front: applied. Deleted in the middle before the run: refused, none done."""
    ids = seed(server, stream)

    def front_and_middle() -> None:
        ask(server, "XTRIM", stream, "MINID", "=", ids[110])
        ask(server, "XDEL", stream, ids[130])

    run = plan_and_apply(cli, server, stream, "--throttle", "none", between=front_and_middle)
    assert run.rc == 4
    assert ids[130] in run.err
    assert audit(server, stream) == []
