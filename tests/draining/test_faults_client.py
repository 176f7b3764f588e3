"""The network breaks, or a drain is killed, paused or doubled, at each step; others are at work."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from itertools import product

import msgspec
import pytest
from backlogs import GROUP, ME
from faults import ALONE, COMMIT, LOOK, READ, WIRE, Attempt, at_once
from place import BUNDLED, Place
from proxy import FaultKind, Proxy

StartProxy = Callable[..., Proxy]


def impatient(url: str, seconds: float = 0.8) -> str:
    """The URL with a shorter patience than the usual ten seconds."""
    return f"{url}&socket_timeout={seconds}"


# ---------------------------------------------------------------- the network

MOMENTS = {
    "read": READ, "commit": COMMIT, "history's end": b"XGROUP', 'DESTROY",
    "history's begin": b"XGROUP', 'CREATE", "ledger": b"\r\nXADD\r\n", "probe": LOOK,
}  # fmt: skip
HITS = [  # server, scope, throttle, fault, at which request
    *product(["valkey"], ["undelivered"], ["2000"], WIRE, ["read", "commit"]),
    *product(["valkey"], ["undelivered"], ["none"], WIRE, ["commit"]),
    # elsewhere those that leave a commit's outcome open
    *product(["redis", "redis62"], ["undelivered"], ["2000"], WIRE[:3], ["commit"]),
    *product(["valkey"], ["pending", "history"], ["2000"], WIRE[:2], ["commit"]),
    *product(["valkey"], ["history"], ["2000"], WIRE[:2], [*MOMENTS][2:]),
]


@pytest.mark.parametrize(
    ("place", "scope", "throttle", "fault", "moment"), HITS, indirect=["place"]
)
def test_one_fault_is_settled(
    place: Place, start_proxy: StartProxy, scope: str, throttle: str, fault: FaultKind, moment: str
) -> None:
    """Whatever happens to one read or commit, the run goes on and audits each entry once; cut at
    its first or last steps it exits 3, and the same command again finishes it."""
    ids = place.seed(800)
    if scope == "pending":  # some without their bodies
        place.deliver("dead", 700)
        place.alter("XDEL", ids[205], ids[300])
    elif scope == "history":
        place.set_position(ids[-1])
    proxy, within = start_proxy(place.server), moment in ("read", "commit")
    proxy.arm(fault, match=MOMENTS[moment], nth=2 if within else 1, delay_sec=0.9)
    options = {"scope": scope, "throttle": throttle, "min_idle_min": 0}
    runs = [place.attempt(impatient(proxy.url, 0.6), **options)]
    assert (runs[0].rc, proxy.fired) == (0 if within else 3, 1), runs[0].error
    if not within:
        runs.append(place.complete(proxy.url, **options))
    place.settled(ids if scope == "history" else ids[100:], *runs)
    assert runs[-1].books["dropped_missing"] == (2 if scope == "pending" else 0)
    assert (place.waiting(), len(place.groups)) == ([], 1)


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


@BUNDLED
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("how", "throttle", "scope"),
    [(signal.SIGKILL, "none", "undelivered"), (signal.SIGKILL, "none", "history"),
     (signal.SIGTERM, "200", "undelivered"), (signal.SIGINT, "none", "undelivered"),
     (signal.SIGHUP, "200", "undelivered")],
)  # fmt: skip
def test_a_signal_at_each_step(
    place: Place, start_proxy: StartProxy, how: signal.Signals, step: str, throttle: str, scope: str
) -> None:
    """Killed or stopped there, and run again: each entry audited once, the books true each time."""
    ids = place.seed(1500 if throttle == "none" else 140)
    if scope == "history":
        place.set_position(ids[-1])
    else:
        ids[:100] = []
    proxy = start_proxy(place.server)
    match, fault = STEPS[step]
    proxy.arm(fault, match=match, nth=3, delay_sec=0.7)
    process = place.start("--allow-invalid", "--redis-url", impatient(proxy.url, 1.4),
                          "--throttle", throttle, "--scope", scope)  # fmt: skip
    proxy.wait_fired()
    later = place.alter("XADD", "*", "symbol", "BTCUSDT", "confidence", "0.9").decode()
    process.send_signal(how)
    run = place.cli.finish(process)
    first = Attempt(run.rc, run.json() if run.out else None, run.err)
    assert first.rc == (-how if how == signal.SIGKILL else 130), first.error
    assert (first.summary is None) == (how == signal.SIGKILL)
    assert later not in place.recorded()
    rest = place.complete(throttle="none", scope=scope)
    place.settled(ids + [later] * (scope == "undelivered"), first, rest)
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
    "undelivered, drained by another": ("", "other", slice(60, 60)),
    "pending, drained by another": ("dead", "other", slice(60, 60)),
    "undelivered, drained by its twin": ("", ME, slice(60, 60)),
    "pending, drained by its twin": ("dead", ME, slice(60, 60)),
}


@pytest.mark.parametrize(
    ("place", "case", "held"),
    [*product(["valkey"], MEDDLING, ["commit"]),
     *product(["valkey"], [*MEDDLING][-4:], ["read"]),
     *product(["redis"], ["pending, claimed by another", "undelivered, deleted"], ["commit"]),
     *product(["redis62"], ["undelivered, read by another", "pending, their owner came back",
                            "undelivered, the last deleted"], ["commit"])],
    indirect=["place"],
)  # fmt: skip
def test_what_happens_to_entries_before_their_commit(
    place: Place, start_proxy: StartProxy, case: str, held: str
) -> None:
    """What others took meanwhile is left to them, and so is all that another drain recorded while
    this one slept; what was deleted is gone and counted as vanished; nothing else is taken in their
    place, nor what came after the boundary; asked in the commit itself."""
    owner, what, which = MEDDLING[case]
    ids = place.seed(260)[100:]
    if owner:
        place.deliver(owner, 160)
        place.alter("XCLAIM", GROUP, owner, 0, *ids, "IDLE", 3_600_000, "JUSTID")
    some, others = ids[which], list[Attempt]()
    scope = "pending" if owner == "dead" else "undelivered"
    proxy = start_proxy(place.server)
    if held == "read":  # it sleeps with entries that it has decided or is about to
        proxy.arm("delay_reply", match=READ, delay_sec=0.8)
    else:  # the commit that has a record of the first: of 40 or more
        proxy.arm("delay_request", match=msgspec.msgpack.encode(ids[which.start]), delay_sec=0.8)
    later: list[bytes] = []

    def meddle() -> None:
        proxy.wait_fired()
        if what in ("other", ME):
            others.append(place.complete(scope=scope, consumer_name=what, **ALONE))
        elif what == "read":
            some.extend(place.deliver("live", 30))
        elif what == "deleted":
            place.alter("XDEL", *some)
        elif what:
            who = "live" if what == "claimed" else owner
            place.alter("XCLAIM", GROUP, who, 0, *some, "JUSTID")
        later.extend(place.alter("XADD", "*", "symbol", "BTCUSDT") for _ in range(9))

    run, _ = at_once(lambda: place.attempt(proxy.url, scope=scope, min_idle_min=30), meddle)
    assert run.rc == 0, run.error
    assert not others or others[0].books["total_read"] > 0
    holder = owner if what == "touched" else "live"
    assert place.waiting() == [(entry, holder) for entry in some if what != "deleted"]
    assert run.books["vanished"] == (len(some) if what == "deleted" else 0)
    place.settled([i for i in ids if i not in some], run, *others)
    assert place.deliver("live", 99) == [entry.decode() for entry in later]
