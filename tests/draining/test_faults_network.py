"""The network breaks at each place: the group itself says afterwards what was done."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from itertools import product

import pytest
from backlogs import GROUP, deliver, seed
from books import ask, audit, pending
from faults import COMMIT, LOOK, READ, WIRE, assert_settled, attempt, complete
from proxy import FaultKind, Proxy
from servers import Server

StartProxy = Callable[..., Proxy]


def impatient(url: str, seconds: float = 0.5) -> str:
    """The URL with a shorter patience than the usual ten seconds."""
    return f"{url}&socket_timeout={seconds}"


MOMENTS = {"read": READ, "commit": COMMIT}
HITS = [  # kind, scope, throttle, fault, at which request
    *product(["valkey"], ["undelivered"], ["2000", "none"], WIRE, MOMENTS),
    # elsewhere those that leave a commit's outcome open
    *product(["redis", "redis62"], ["undelivered"], ["2000"], WIRE[:3], ["commit"]),
    *product(["valkey"], ["pending", "history"], ["2000"], WIRE[:2], MOMENTS),
]


@pytest.mark.parametrize(("kind", "scope", "throttle", "fault", "moment"), HITS)
def test_one_fault_is_settled_within_the_run(
    clean: Callable[[str], Server], stream: str, start_proxy: StartProxy, kind: str, scope: str,
    throttle: str, fault: FaultKind, moment: str,
) -> None:  # fmt: skip
    """Whatever happens to one read or commit, the run goes on and audits each entry once."""
    server = clean(kind)
    ids = seed(server, stream, 800, delivered=100)
    if scope == "pending":  # some without their bodies
        deliver(server, stream, "dead", 700)
        ask(server, "XDEL", stream, ids[205], ids[300])
    elif scope == "history":
        ask(server, "XGROUP", "SETID", stream, GROUP, ids[-1])
    proxy = start_proxy(server)
    proxy.arm(fault, match=MOMENTS[moment], nth=2, delay_sec=0.8)
    url = impatient(proxy.url)
    run = attempt(url, stream, scope=scope, throttle=throttle, min_idle_min=0)
    assert (run.rc, proxy.fired) == (0, 1), run.error
    assert_settled(server, stream, ids if scope == "history" else ids[100:], [run])
    assert run.books["dropped_missing"] == (2 if scope == "pending" else 0)
    assert pending(server, stream) == 0
    assert len(ask(server, "XINFO", "GROUPS", stream)) == 1


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
    ids = seed(valkey, stream, 240, delivered=100)[100:]
    ask(valkey, "CONFIG", "SET", "slowlog-log-slower-than", "0")
    ask(valkey, "CONFIG", "SET", "slowlog-max-len", "1000")
    ask(valkey, "SLOWLOG", "RESET")
    proxy = start_proxy(valkey)
    proxy.arm("cut_after", match=COMMIT, nth=2)
    run = complete(impatient(proxy.url), stream, throttle="500")  # 100 a commit at most
    calls = [entry[3] for entry in reversed(ask(valkey, "SLOWLOG", "GET", "-1"))]
    # after the script, five keys and their number: group, consumer, rate, run id (none in a look)
    steps = [
        "commit" if call[11] else "look" for call in calls if call[0] == b"EVAL" and len(call) > 15
    ]
    assert re.fullmatch("look commit commit look( commit)*", " ".join(steps))
    assert_settled(valkey, stream, ids, [run])


@pytest.mark.parametrize("ends", ["by its budget", "interrupted"])
def test_a_late_request_does_nothing(
    valkey: Server, stream: str, start_proxy: StartProxy, ends: str
) -> None:
    """A commit that arrives after its run went on or ended without it is refused by the server."""
    ids = seed(valkey, stream, 200, delivered=100)[100:]
    proxy, stopping = start_proxy(valkey), threading.Event()
    proxy.arm("delay_request", match=COMMIT, nth=2, delay_sec=1.5)
    if ends == "interrupted":
        threading.Timer(0.3, stopping.set).start()
    run = attempt(
        impatient(proxy.url), stream, max_events="60", throttle="200", stopping=stopping
    )  # at most 40 a commit
    assert (run.rc, proxy.fired) == (130 if ends == "interrupted" else 0, 1), run.error
    time.sleep(1.2)
    assert run.books["total_read"] == len(audit(valkey, stream)) <= 60
    assert_settled(valkey, stream, ids, [run, complete(valkey.url, stream)])


def test_a_server_that_stays_away(valkey: Server, stream: str, start_proxy: StartProxy) -> None:
    """When no new connection works either, the run gives up with exit code 3 and says so."""
    ids = seed(valkey, stream, 300, delivered=100)[100:]
    proxy = start_proxy(valkey)

    def break_all() -> None:
        proxy.arm("cut_before", times=None)

    run = attempt(impatient(proxy.url), stream, throttle="200", at=(80, break_all))  # 40 a commit
    assert run.rc == 3
    assert "cannot reach Redis" in run.error
    again = complete(valkey.url, stream)
    assert_settled(valkey, stream, ids, [again])
    counted = run.summary and run.summary["total_read"]
    own = [r for r in audit(valkey, stream) if r["run_id"] == (run.summary or {})["run_id"]]
    # with no reply to be had, the books can only say what was confirmed
    assert counted is not None or "is not known" in run.error
    assert 80 <= (counted or 80) <= len(own) < 160
