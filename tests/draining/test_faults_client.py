"""The network breaks, or a drain is killed, paused or doubled, at each step; others are at work."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable
from itertools import product

import msgspec
import pytest
from backlogs import GROUP, ME
from conftest import intent
from faults import COMMIT, LOOK, READ, WIRE, Attempt, at_once
from place import BUNDLED, Place
from proxy import FaultKind, Proxy

StartProxy = Callable[..., Proxy]


def impatient(url: str, seconds: float = 0.8) -> str:
    """The URL with a shorter patience than the usual ten seconds."""
    return f"{url}&socket_timeout={seconds}"


# ---------------------------------------------------------------- the network

MOMENTS = {"read": READ, "commit": COMMIT}
HITS = [  # server, scope, throttle, fault, at which request
    *product(["valkey"], ["undelivered"], ["2000"], WIRE, MOMENTS),
    *product(["valkey"], ["undelivered"], ["none"], WIRE, ["commit"]),
    # elsewhere those that leave a commit's outcome open
    *product(["redis", "redis62"], ["undelivered"], ["2000"], WIRE[:3], ["commit"]),
    *product(["valkey"], ["pending", "history"], ["2000"], WIRE[:2], ["commit"]),
]


@pytest.mark.parametrize(
    ("place", "scope", "throttle", "fault", "moment"), HITS, indirect=["place"]
)
def test_one_fault_is_settled_within_the_run(
    place: Place, start_proxy: StartProxy, scope: str, throttle: str, fault: FaultKind, moment: str
) -> None:
    """Whatever happens to one read or commit, the run goes on and audits each entry once."""
    ids = place.seed(800)
    if scope == "pending":  # some without their bodies
        place.deliver("dead", 700)
        place.alter("XDEL", ids[205], ids[300])
    elif scope == "history":
        place.set_position(ids[-1])
    proxy = start_proxy(place.server)
    proxy.arm(fault, match=MOMENTS[moment], nth=2, delay_sec=0.9)
    run = place.attempt(impatient(proxy.url, 0.6), scope=scope, throttle=throttle, min_idle_min=0)
    assert (run.rc, proxy.fired) == (0, 1), run.error
    place.settled(ids if scope == "history" else ids[100:], run)
    assert run.books["dropped_missing"] == (2 if scope == "pending" else 0)
    assert (place.waiting(), len(place.groups)) == ([], 1)


@BUNDLED
@pytest.mark.parametrize("fault", ["cut_before", "cut_after"])
@pytest.mark.parametrize(
    "match",
    [b"XGROUP', 'DESTROY", b"XGROUP', 'CREATE", b"\r\nXADD\r\n", LOOK],
    ids=["history's end", "history's begin", "ledger", "probe"],
)
def test_a_cut_outside_the_loop_ends_the_run_harmlessly(
    place: Place, start_proxy: StartProxy, fault: FaultKind, match: bytes
) -> None:
    """Cut at its first or last steps, a run exits 3, and the same command again finishes it."""
    ids = place.seed(100)
    proxy = start_proxy(place.server)
    proxy.arm(fault, match=match)
    first = place.attempt(impatient(proxy.url), scope="history")
    assert (first.rc, proxy.fired) == (3, 1)
    place.settled(ids, first, place.complete(proxy.url, scope="history"))
    assert len(place.groups) == 1


@BUNDLED
@pytest.mark.parametrize("ends", ["by its budget", "interrupted"])
def test_a_late_request_does_nothing(place: Place, start_proxy: StartProxy, ends: str) -> None:
    """A commit that arrives after its run went on or ended without it is refused by the server."""
    ids = place.seed(200)[100:]
    proxy, stopping = start_proxy(place.server), threading.Event()
    proxy.arm("delay_request", match=COMMIT, nth=2, delay_sec=2)
    if ends == "interrupted":
        threading.Timer(0.3, stopping.set).start()
    run = place.attempt(
        impatient(proxy.url), max_events="60", throttle="200", stopping=stopping
    )  # at most 40 a commit
    assert (run.rc, proxy.fired) == (130 if ends == "interrupted" else 0, 1), run.error
    time.sleep(1.4)
    assert run.books["total_read"] == len(place.audit()) <= 60
    place.settled(ids, run, place.complete())


# ---------------------------------------------------------------- the drain itself

#: where a drain is when the signal reaches it: what its proxy does to which request
STEPS: dict[str, tuple[bytes, FaultKind]] = {
    "before the read": (READ, "black_hole"),
    "between read and reply": (READ, "delay_reply"),
    "before the commit": (COMMIT, "black_hole"),
    "between commit and reply": (COMMIT, "delay_reply"),
}


def outcome(place: Place, process: subprocess.Popen[str]) -> Attempt:
    run = place.cli.finish(process)
    return Attempt(run.rc, run.json() if run.out else None, run.err)


@BUNDLED
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("how", "throttle"),
    [(signal.SIGKILL, "none"), (signal.SIGTERM, "200"), (signal.SIGINT, "none")],
)
def test_a_signal_at_each_step(
    place: Place, start_proxy: StartProxy, how: signal.Signals, step: str, throttle: str
) -> None:
    """Killed or stopped there, and run again: each entry audited once, the books true each time."""
    ids = place.seed(1500 if throttle == "none" else 140)[100:]
    proxy = start_proxy(place.server)
    match, fault = STEPS[step]
    proxy.arm(fault, match=match, nth=3, delay_sec=0.7)
    process = place.start("--allow-invalid", "--redis-url", impatient(proxy.url, 1.4),
                          "--throttle", throttle)  # fmt: skip
    proxy.wait_fired()
    later = place.alter("XADD", "*", "symbol", "BTCUSDT", "confidence", "0.9").decode()
    process.send_signal(how)
    first = outcome(place, process)
    assert first.rc == (-how if how == signal.SIGKILL else 130), first.error
    assert (first.summary is None) == (how == signal.SIGKILL)
    assert later not in place.recorded()
    place.settled([*ids, later], first, place.complete(throttle="none"))
    assert place.waiting() == []


@BUNDLED
@pytest.mark.parametrize(
    ("match", "takeover", "scope"),
    [(READ, "other", "undelivered"), (READ, ME, "pending"),
     (COMMIT, "other", "pending"), (COMMIT, ME, "undelivered")],
    ids=["deciding", "deciding, pending", "committing, pending", "committing"],
)  # fmt: skip
def test_a_worker_that_slept_through_its_takeover(
    place: Place, start_proxy: StartProxy, takeover: str, match: bytes, scope: str
) -> None:
    """Woken after another drain took its entries, it neither acknowledges nor records them again.

    Once it slept with the entries before it, once with a commit on its way to the server.
    """
    ids = place.seed(280)[100:]
    if scope == "pending":
        place.deliver("dead", 180)
    proxy = start_proxy(place.server)
    held: FaultKind = "delay_reply" if match == READ else "delay_request"
    proxy.arm(held, match=match, nth=2, delay_sec=1)
    process = place.start("--allow-invalid", "--redis-url", proxy.url, "--throttle", "400",
                          "--scope", scope, "--min-idle-min", "0")  # fmt: skip
    proxy.wait_fired()
    process.send_signal(signal.SIGSTOP)
    before = len(place.audit())
    other = place.complete(scope=scope, min_idle_min=0, consumer_name=takeover, throttle="none",
                           allow_active_consumers=True)  # fmt: skip
    assert len(place.audit()) == 180 > before
    time.sleep(1)  # what was on its way arrives
    process.send_signal(signal.SIGCONT)
    first = outcome(place, process)
    assert first.rc == 0, first.error
    place.settled(ids, first, other)
    assert place.waiting() == []


#: whose the entries are, and what happens to some of them while their commit is on its way
MEDDLING: dict[str, tuple[str, str, slice]] = {
    "undelivered, read by another": ("", "read", slice(60, 60)),  # what comes next
    "pending, claimed by another": ("dead", "claimed", slice(60, 77)),
    "its own, claimed by another": (ME, "claimed", slice(60, 77)),
    "pending, their owner came back": ("dead", "touched", slice(60, 77)),
    "pending, all idle": ("dead", "", slice(60, 60)),
    "undelivered, deleted": ("", "deleted", slice(60, 155)),  # ends of batches, and whole ones
    "undelivered, the last deleted": ("", "deleted", slice(140, 157)),
}


@pytest.mark.parametrize(
    ("place", "case"),
    [*product(["valkey"], MEDDLING), ("redis", "pending, claimed by another"),
     ("redis62", "undelivered, read by another"), ("redis62", "pending, their owner came back"),
     ("redis", "undelivered, deleted"), ("redis62", "undelivered, the last deleted")],
    indirect=["place"],
)  # fmt: skip
def test_what_happens_to_entries_before_their_commit(
    place: Place, start_proxy: StartProxy, case: str
) -> None:
    """What others took meanwhile is left to them, what was deleted is gone and counted as vanished,
    nothing else is taken in their place, nor what came after the boundary; asked in the commit
    itself."""
    owner, what, which = MEDDLING[case]
    ids = place.seed(260)[100:]
    if owner:
        place.deliver(owner, 160)
        place.alter("XCLAIM", GROUP, owner, 0, *ids, "IDLE", 3_600_000, "JUSTID")
    some = ids[which]
    proxy = start_proxy(place.server)  # the commit that has a record of the first: of 40 or more
    proxy.arm("delay_request", match=msgspec.msgpack.encode(ids[which.start]), delay_sec=0.6)
    later: list[bytes] = []

    def meddle() -> None:
        proxy.wait_fired()
        if what == "read":
            some.extend(place.deliver("live", 30))
        elif what == "deleted":
            place.alter("XDEL", *some)
        elif what:
            who = "live" if what == "claimed" else owner
            place.alter("XCLAIM", GROUP, who, 0, *some, "JUSTID")
        later.extend(place.alter("XADD", "*", "symbol", "BTCUSDT") for _ in range(9))

    scope = "pending" if owner == "dead" else "undelivered"
    run, _ = at_once(lambda: place.attempt(proxy.url, scope=scope, min_idle_min=30), meddle)
    assert run.rc == 0, run.error
    holder = owner if what == "touched" else "live"
    assert place.waiting() == [(entry, holder) for entry in some if what != "deleted"]
    assert run.books["vanished"] == (len(some) if what == "deleted" else 0)
    place.settled([i for i in ids if i not in some], run)
    assert place.deliver("live", 99) == [entry.decode() for entry in later]


# ---------------------------------------------------------------- the host's clock


@BUNDLED
@pytest.mark.parametrize("days", [1, -1])
def test_a_host_whose_clock_is_wrong_by_a_day(
    place: Place, days: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ages, records and the run's id follow the server's clock; the host's plays no part."""
    real, real_ns = time.time, time.time_ns
    now = place.now_ms()
    monkeypatch.setattr(time, "time", lambda: real() + days * 86400)
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + days * 86400 * 10**9)
    ids = [f"{now - 3_600_000}-0", *(f"{now - 30 + i}-0" for i in range(30))]
    place.fill((entry, intent()) for entry in ids)
    run = place.complete(throttle="none")
    assert (run.books["dropped_old"], run.books["drained_ok"]) == (1, 30)
    hours = [time.strftime("%Y%m%dT%H", time.gmtime(now // 1000 + sec)) for sec in (0, 60)]
    assert run.books["run_id"].startswith(tuple(hours))
    place.settled(ids, run)
