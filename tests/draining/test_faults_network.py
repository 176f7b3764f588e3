"""The network breaks at each place: the group itself says afterwards what was done."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from books import GROUP, ask, audit, pending, seed
from faults import COMMIT, LOOK, READ, Attempt, assert_settled, attempt, complete
from proxy import FaultKind, Proxy
from servers import Server

StartProxy = Callable[..., Proxy]

FAULTS: list[FaultKind] = [
    "cut_before", "cut_after", "half_reply", "delay_request", "delay_reply", "black_hole",
]  # fmt: skip


def impatient(url: str, seconds: float = 0.5) -> str:
    """The URL with a shorter patience than the usual ten seconds."""
    return f"{url}&socket_timeout={seconds}"


@pytest.mark.parametrize("throttle", ["2000", "none"])
@pytest.mark.parametrize("match", [READ, COMMIT], ids=["read", "commit"])
@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_is_settled_within_the_run(
    valkey: Server,
    stream: str,
    start_proxy: StartProxy,
    fault: FaultKind,
    match: bytes,
    throttle: str,
) -> None:
    """Whatever happens to one read or commit, the run goes on and audits each entry once."""
    ids = seed(valkey, stream, 1100, delivered=100)[100:]
    proxy = start_proxy(valkey)
    proxy.arm(fault, match=match, nth=2, delay_sec=0.8)
    run = attempt(impatient(proxy.url), stream, throttle=throttle)
    assert proxy.fired == 1
    assert run.rc == 0, run.error
    assert_settled(valkey, stream, ids, [run])
    assert pending(valkey, stream) == 0


@pytest.mark.parametrize("fault", ["cut_before", "cut_after", "half_reply"])
@pytest.mark.parametrize("kind", ["redis", "redis62"])
def test_other_servers_settle_alike(
    clean: Callable[[str], Server],
    stream: str,
    start_proxy: StartProxy,
    fault: FaultKind,
    kind: str,
) -> None:
    """The same on Redis 7 and 6.2, for the fault that leaves a commit's outcome open."""
    server = clean(kind)
    ids = seed(server, stream, 500, delivered=100)[100:]
    proxy = start_proxy(server)
    proxy.arm(fault, match=COMMIT, nth=3)
    run = attempt(impatient(proxy.url), stream)
    assert (run.rc, proxy.fired) == (0, 1), run.error
    assert_settled(server, stream, ids, [run])


@pytest.mark.parametrize("scope", ["pending", "history"])
@pytest.mark.parametrize("fault", ["cut_before", "cut_after"])
@pytest.mark.parametrize("match", [READ, COMMIT], ids=["read", "commit"])
def test_other_scopes_settle_alike(
    valkey: Server,
    stream: str,
    start_proxy: StartProxy,
    scope: str,
    fault: FaultKind,
    match: bytes,
) -> None:
    """A cut in scope pending (some bodies gone) or history loses and doubles nothing either."""
    ids = seed(valkey, stream, 400, delivered=200)
    ask(valkey, "XREADGROUP", "GROUP", GROUP, "dead", "COUNT", 200, "STREAMS", stream, ">")
    if scope == "pending":
        ask(valkey, "XDEL", stream, ids[205], ids[300])
    proxy = start_proxy(valkey)
    proxy.arm(fault, match=match, nth=2)
    run = attempt(impatient(proxy.url), stream, scope=scope, min_idle_min=0)
    assert (run.rc, proxy.fired) == (0, 1), run.error
    if scope == "pending":
        assert_settled(valkey, stream, ids[200:], [run])
        assert run.books["dropped_missing"] == 2
    else:
        records = audit(valkey, stream)
        assert [r["original_id"] for r in records] == ids
        assert run.books["total_read"] == 400
        assert len(ask(valkey, "XINFO", "GROUPS", stream)) == 1


@pytest.mark.parametrize("fault", ["cut_before", "cut_after"])
@pytest.mark.parametrize(
    "match",
    [b"XGROUP', 'DESTROY", b"XGROUP', 'CREATE", b"\r\nXADD\r\n", LOOK],
    ids=["history's end", "history's begin", "ledger", "probe"],
)
def test_a_cut_outside_the_loop_ends_the_run_harmlessly(
    valkey: Server,
    stream: str,
    start_proxy: StartProxy,
    fault: FaultKind,
    match: bytes,
) -> None:
    """Cut at its first or last steps, a run exits 3, and the same command again finishes it."""
    ids = seed(valkey, stream, 100, delivered=100)
    proxy = start_proxy(valkey)
    proxy.arm(fault, match=match)
    first = attempt(impatient(proxy.url), stream, scope="history")
    assert (first.rc, proxy.fired) == (3, 1)
    again = complete(proxy.url, stream, scope="history")
    assert_settled(valkey, stream, ids, [first, again])
    assert len(ask(valkey, "XINFO", "GROUPS", stream)) == 1


def test_two_seconds_are_only_slow(valkey: Server, stream: str, start_proxy: StartProxy) -> None:
    """2 s of delay on a request and on a reply are waited for: nothing is asked twice."""
    ids = seed(valkey, stream, 140, delivered=100)[100:]
    proxy = start_proxy(valkey)
    proxy.arm("delay_reply", match=COMMIT, delay_sec=2)
    run = complete(proxy.url, stream, throttle="none")
    assert run.books["elapsed_sec"] >= 2
    assert "audit_records" not in run.summary  # no recount: no outcome was ever unknown
    assert_settled(valkey, stream, ids, [run])


def test_a_lost_reply_is_followed_by_a_look_not_by_a_resend(
    valkey: Server, stream: str, start_proxy: StartProxy
) -> None:
    """After a commit whose reply was lost, the next script the server sees commits nothing."""
    ids = seed(valkey, stream, 200, delivered=100)[100:]
    ask(valkey, "CONFIG", "SET", "slowlog-log-slower-than", "0")
    ask(valkey, "CONFIG", "SET", "slowlog-max-len", "1000")
    ask(valkey, "SLOWLOG", "RESET")
    proxy = start_proxy(valkey)
    proxy.arm("cut_after", match=COMMIT, nth=2)
    run = complete(impatient(proxy.url), stream)
    calls = [entry[3] for entry in reversed(ask(valkey, "SLOWLOG", "GET", "-1"))]
    # after the script, five keys and their number: group, consumer, rate, run id (none in a look)
    steps = [
        "commit" if call[11] else "look" for call in calls if call[0] == b"EVAL" and len(call) > 15
    ]
    assert " ".join(steps) == "look look commit commit look commit look"
    assert_settled(valkey, stream, ids, [run])


def test_a_late_request_does_nothing(valkey: Server, stream: str, start_proxy: StartProxy) -> None:
    """A commit that arrives after its run went on without it is refused by the server."""
    ids = seed(valkey, stream, 200, delivered=100)[100:]
    proxy = start_proxy(valkey)
    proxy.arm("delay_request", match=COMMIT, nth=2, delay_sec=1.5)
    run = attempt(impatient(proxy.url), stream, max_events="60")
    assert (run.rc, proxy.fired) == (0, 1), run.error
    time.sleep(1.2)
    assert_settled(valkey, stream, ids[:60], [run])


def test_a_late_commit_changes_no_books(
    valkey: Server, stream: str, start_proxy: StartProxy
) -> None:
    """Interrupted while a commit is lost on its way, the books hold although it arrives later."""
    ids = seed(valkey, stream, 200, delivered=100)[100:]
    proxy = start_proxy(valkey)
    stopping = threading.Event()
    proxy.arm("delay_request", match=COMMIT, nth=2, delay_sec=1.5)
    threading.Timer(0.3, stopping.set).start()
    run = attempt(impatient(proxy.url), stream, stopping=stopping)
    assert (run.rc, proxy.fired) == (130, 1), run.error
    time.sleep(1.2)
    again = complete(valkey.url, stream)
    assert_settled(valkey, stream, ids, [run, again])


def test_a_server_that_stays_away(valkey: Server, stream: str, start_proxy: StartProxy) -> None:
    """When no new connection works either, the run gives up with exit code 3 and says so."""
    ids = seed(valkey, stream, 300, delivered=100)[100:]
    proxy = start_proxy(valkey)

    def break_all() -> None:
        proxy.arm("cut_before", times=None)

    run = attempt(impatient(proxy.url), stream, at=(80, break_all))
    assert run.rc == 3
    assert "cannot reach Redis" in run.error
    again = complete(valkey.url, stream)
    assert_settled(valkey, stream, ids, [again])
    counted = run.summary and run.summary["total_read"]
    own = [r for r in audit(valkey, stream) if r["run_id"] == (run.summary or {})["run_id"]]
    # with no reply to be had, the books can only say what was confirmed
    assert counted == 80 or (counted is None and "is not known" in run.error)
    assert 80 <= len(own) <= 120


def test_a_storm_of_faults(valkey: Server, stream: str, start_proxy: StartProxy) -> None:
    """Through random faults, again and again, each entry is audited once in the end."""
    ids = seed(valkey, stream, 2100, delivered=100)[100:]
    proxy = start_proxy(valkey)
    runs = storm(valkey, proxy, stream, random.Random(), faults=12)
    assert_settled(valkey, stream, ids, runs)


def storm(
    server: Server, proxy: Proxy, stream: str, chance: random.Random, *, faults: int, **more: Any
) -> list[Attempt]:
    """Runs the same command until it is done, while `faults` random faults hit its scripts."""
    left = faults
    runs: list[Attempt] = []

    def next_fault(*_: object) -> None:
        nonlocal left
        if left:
            left -= 1
            proxy.arm(
                chance.choice(FAULTS), match=chance.choice([READ, COMMIT, b"EVAL"]),
                nth=chance.randint(1, 4), delay_sec=chance.uniform(0.1, 0.5),
            )  # fmt: skip

    while not runs or runs[-1].rc:
        assert len(runs) < 3 * faults + 3, runs[-1].error
        next_fault()
        throttle = chance.choice(["none", "3000"])
        budget = chance.choice(["all", "250"]) if left else "all"
        url = impatient(proxy.url, 0.3)
        runs.append(attempt(url, stream, max_events=budget, throttle=throttle, **more))
        if left and not runs[-1].rc:
            runs.append(Attempt(-1, None, "more faults to come"))
    return runs
