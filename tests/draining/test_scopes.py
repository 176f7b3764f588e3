"""None is recorded twice for one consumer group, by whatever scopes and runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import permutations, product

import pytest
from backlogs import GROUP, ME, deliver, seed
from books import ask, at, audit, everything, pending, positions, recorded, wait_for
from conftest import Cli
from faults import MIXED, complete, rehearse
from servers import Server

LIVE = ("drain", "--mode", "live", "--yes", "--json", "--throttle", "none")
ALL = ("--max-events", "all", "--min-idle-min", "0")
SCOPES = ("undelivered", "pending", "history")


def each_once(server: Server, stream: str, expected: list[str]) -> None:
    assert Counter(recorded(server, stream)) == Counter(expected)
    assert {r["consumer_group"] for r in audit(server, stream)} == {GROUP}


@pytest.mark.parametrize("order", [*permutations(SCOPES)], ids="-".join)
def test_scopes_one_after_another_record_each_entry_once(
    server: Server, stream: str, cli: Cli, order: tuple[str, ...]
) -> None:
    """In whatever order, in batches: each id once, and each dry run says what the live run does."""
    ids = seed(server, stream, 120, delivered=60)
    deliver(server, stream, b"dead", 20)
    for scope, budget in product(order, ("15", "all")):
        options = {"scope": scope, "max_events": budget, "min_idle_min": 0,
                   "allow_active_consumers": True}  # fmt: skip
        before = everything(server)
        dry = rehearse(server.url, stream, **options)
        assert everything(server) == before
        live = complete(server.url, stream, throttle="none", **options)
        for name in ("total_read", "drained_ok", "dropped_invalid", "dropped_low_conf"):
            assert dry[name] == live.books[name]
        if budget == "all":
            assert live.books["remaining"] == 0
    each_once(server, stream, ids)
    if order.index("history") < order.index("pending"):
        assert pending(server, stream) == 0  # recorded by history, then acknowledged


def test_a_planned_history_ends_before_its_tail(valkey: Server, stream: str, cli: Cli) -> None:
    """What scope undelivered drained is history, too: not planned again, and no reason to stay."""
    ids = seed(valkey, stream, 120, delivered=60)
    assert cli(*LIVE, *ALL, *at(valkey, stream)).rc == 0
    history = (*ALL, "--throttle", "none", "--scope", "history", "--plan", "plan.json",
               *at(valkey, stream))  # fmt: skip
    assert cli("drain", "--json", *history).json()["total_read"] == 60
    assert cli(*LIVE, *history).json()["remaining"] == 0
    each_once(valkey, stream, ids)
    assert [*positions(valkey, stream)] == [GROUP]


def test_killed_within_and_between_scopes(valkey: Server, stream: str, cli: Cli) -> None:
    """SIGKILL in scope undelivered and in history, by turns: in the end each id has one record."""
    ids = seed(valkey, stream, 120, delivered=60)
    for scope in ("undelivered", "history") * 2:
        begun = len(audit(valkey, stream))
        process = cli.start(*LIVE[:-1], "100", *at(valkey, stream), "--scope", scope)
        wait_for(valkey, stream, begun + 6)
        process.kill()
        process.communicate()
    assert len(audit(valkey, stream)) < len(ids)
    for scope in ("undelivered", "history"):
        cli.done(*LIVE, *ALL, *at(valkey, stream), "--scope", scope)
    each_once(valkey, stream, ids)
    assert pending(valkey, stream) == 0


def test_after_setid_back_nothing_is_recorded_again(server: Server, stream: str, cli: Cli) -> None:
    """Entries drained before the position was moved back are passed without a second record."""
    ids = seed(server, stream, 120, delivered=60)
    assert cli(*LIVE, *ALL, *at(server, stream)).rc == 0
    ask(server, "XGROUP", "SETID", stream, GROUP, ids[29])
    deliver(server, stream, ME.encode(), 40)  # 30 that have no record, and 10 that have one
    dry = cli("drain", "--json", *ALL, *at(server, stream))
    assert dry.json()["total_read"] == 30
    live = cli.done(*LIVE, *ALL, *at(server, stream))
    assert (live.json()["total_read"], live.json()["remaining"]) == (30, 0)
    each_once(server, stream, ids[30:])
    assert pending(server, stream) == 0


@pytest.mark.parametrize(("first", "second"), [("history", "pending"), ("pending", "history")])
@pytest.mark.parametrize(("kind", "throttle"), MIXED["none", "400"])
def test_what_another_scope_records_meanwhile_is_not_recorded_again(
    clean: Callable[[str], Server], stream: str, first: str, second: str, kind: str, throttle: str
) -> None:
    """A drain of another scope runs in the middle of this one: the commit sees it."""
    server = clean(kind)
    ids = seed(server, stream, 500, delivered=0)
    deliver(server, stream, b"dead", 500)
    options = {"min_idle_min": 0, "throttle": throttle}

    def between() -> None:
        complete(server.url, stream, scope=second, max_events=200, min_idle_min=0,
                 consumer_name="other", throttle="none")  # fmt: skip

    complete(server.url, stream, scope=first, at=(40, between), **options)
    complete(server.url, stream, scope=second, **options)
    each_once(server, stream, ids)


def test_a_history_group_of_others_is_refused(server: Server, stream: str, cli: Cli) -> None:
    """In a dry run too one that drainkit did not make is neither drained nor destroyed, also one of
    the default name; nor is there a second one of the same consumer group."""
    seed(server, stream, 60, delivered=40)
    for name, *given in ((f"{GROUP}.drain_history",), ("risk", "--history-group", "risk")):
        ask(server, "XGROUP", "CREATE", stream, name, "0")
        before = everything(server)
        for mode in ("dry-run", "live"):
            history = (*at(server, stream), "--scope", "history", *given)
            said = cli.fails(4, "drain", "--mode", mode, "--yes", *ALL, *history)
            assert f"{name}: drainkit did not make" in said
        assert everything(server) == before
    mine = (*LIVE, *at(server, stream), "--scope", "history", "--history-group")
    assert cli(*mine, "mine", "--max-events", "10").rc == 0
    second = cli(*mine, "other", "--max-events", "10")
    assert second.rc == 4
    assert "mine" in second.out + second.err


def test_a_history_group_destroyed_goes_on(server: Server, stream: str, cli: Cli) -> None:
    """Made anew it stands where its last commit left it, not at 0-0."""
    ids = seed(server, stream, 60, delivered=40)
    history = (*LIVE, *at(server, stream), "--scope", "history", "--max-events", "10")
    assert cli(*history).rc == 0
    ask(server, "XGROUP", "DESTROY", stream, f"{GROUP}.drain_history")
    assert cli(*history).rc == 0
    assert positions(server, stream)[f"{GROUP}.drain_history"] == ids[19]
    each_once(server, stream, ids[:20])
