"""The server fails, is refused its means, or has its keys changed under a drain at work."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import redis
from backlogs import GROUP
from clusters import SentinelSetup
from conftest import Cli, intent
from faults import assert_once, follow, in_step, replace_stream, unrecorded
from place import BUNDLED, Place
from servers import KINDS, Server

OwnPlace = Callable[..., Place]
MAX_ID = "18446744073709551615-18446744073709551615"
SIDE_KEYS = ["audit", "runs", "state", "recorded"]


def crash(place: Place) -> None:
    place.server.kill()
    place.server.start()


def old_copy(place: Place) -> None:
    """As after a failover to a replica that lagged: fewer entries, and the group at the last."""
    ids = [entry[0] for entry in place.alter("XRANGE", "-", "+")][:150]
    place.alter("DEL")
    place.fill([(entry, intent()) for entry in ids], "$")


@dataclass(frozen=True)
class Fault:
    """What happens in the middle of a drain, and how that has to end.

    `then`: "mended", the same command does all; "over", another stream or group is there, and
    nothing new is recorded; "same ids" and "other ids", of a larger stream nothing is acknowledged
    without its record; "lost", the audit is no longer whole, and "at once", which the next commit
    sees.
    """

    strike: str | Callable[[Place], None]  # commands, of the names of `struck`
    rc: int | None = 0  # None: whatever the run says of it
    says: str = ""
    kinds: tuple[str, ...] = KINDS
    then: str = "mended"
    mend: str = ""
    config: dict[str, str] = field(default_factory=dict)  # of a server of its own
    scope: str = "undelivered"


def struck(fault: Fault, place: Place) -> Callable[[], None]:
    """Let it happen; answers what mends it."""
    names = {"stream": place.stream, "group": GROUP, "at": place.position, "now": place.now_ms()}
    names |= {name: place.side(name) for name in SIDE_KEYS}

    def say(commands: str) -> None:
        for command in filter(None, commands.split("; ")):
            place.ask(*command.format(**names).split())

    if callable(fault.strike):
        fault.strike(place)
    else:
        say(fault.strike)
    return partial(say, fault.mend)


def aof(fsync: str, *kinds: str) -> Fault:
    config = {"appendonly": "yes", "appendfsync": fsync}
    return Fault(crash, 3, "run the same command again", kinds, config=config)


def setting(name: str, value: str, says: str) -> Fault:
    return Fault(f"CONFIG SET {name} {value}", 1, says, mend=f"CONFIG SET {name} 0")


def over(strike: str | Callable[[Place], None], says: str, *kinds: str) -> Fault:
    return Fault(strike, 4, says, kinds or KINDS, "over")


def larger(how: str, which: str, *kinds: str) -> Fault:
    """Replaced by a stream that is larger."""
    strike = partial(replace_stream, how=how, same_ids=which == "same")
    return Fault(strike, None, "", kinds, f"{which} ids")


ANEW = "DEL {stream}; XADD {stream} * symbol B; XADD {stream} * symbol B; XGROUP CREATE {stream} "
FAULTS = {
    "crash, AOF always": aof("always", "valkey"),
    "crash, AOF every second": aof("everysec", "redis", "redis62"),
    "OOM": setting("maxmemory", "100kb", "out of memory"),
    "NOREPLICAS": setting("min-replicas-to-write", "1", "too few replicas"),
    # nobody is there, so its data stays
    "READONLY": Fault("REPLICAOF 127.0.0.1 1", 4, "replica", mend="REPLICAOF NO ONE"),
    "scripts flushed": Fault("SCRIPT FLUSH"),
    **{f"no right to {name}": Fault(f"ACL SETUSER default -{name}", 4, "drainkit acl", ("redis",),
                                    mend=f"ACL SETUSER default +{name}")
       for name in ("xack", "xadd", "hset", "xreadgroup")},
    "group moved back": Fault("XGROUP SETID {stream} {group} 0-0", 4, "moved back",
                              mend="XGROUP SETID {stream} {group} {at}"),
    "group moved back, pending": Fault("XGROUP SETID {stream} {group} 0-0", None, scope="pending",
                                       mend="XGROUP SETID {stream} {group} {at}"),
    "audit of another type": Fault("RENAME {audit} kept; SET {audit} text", 4, "type",
                                   mend="RENAME kept {audit}"),
    "no record in the audit": Fault("XADD {audit} {now}-987654321 \x1b[2J \xff",
                                    mend="XDEL {audit} {now}-987654321"),
    "recorded gone": Fault("DEL {recorded}"),
    "state gone": Fault("DEL {state}", kinds=("valkey", "redis62")),
    "state and recorded gone": Fault("DEL {state} {recorded}"),
    "ledger gone": Fault("DEL {runs}", kinds=("redis",)),
    "audit gone": Fault("DEL {audit}", 1, "audit", ("valkey", "redis"), "at once"),
    "all gone": Fault("DEL {audit} {state} {recorded}", 1, "audit", KINDS, "at once"),
    "audit trimmed": Fault("XTRIM {audit} MAXLEN 1", 1, "audit", KINDS, "lost"),
    "group destroyed": over("XGROUP DESTROY {stream} {group}", "group"),
    "stream deleted": over("DEL {stream}", "stream"),
    "another type": over("SET {stream} text", "stream"),
    "made anew": over(ANEW + "{group} 0-0", "moved back|made anew"),
    # without counters (6.2) a group that wants only what is to come looks like one that is done
    "made anew for the new": over(ANEW + "{group} $", "made anew", "valkey", "redis"),
    "an old copy": over(old_copy, "made anew"),
    **{f"{how}, {which} ids": larger(how, which, "valkey", other)
       for how, other in (("made anew", "redis"), ("renamed over", "redis"),
                          ("restored over", "redis62"), ("moved away", "redis62"))
       for which in ("same", "other")},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind", "throttle"),
    [(name, kind, throttle) for name, fault in FAULTS.items() for kind in fault.kinds
     for throttle in ("2000", "none")[: 2 if kind == fault.kinds[0] else 1]],
)  # fmt: skip
def test_a_fault_midway(
    clean: Callable[[str], Server], own_place: OwnPlace, stream: str, cli: Cli,
    name: str, kind: str, throttle: str,
) -> None:  # fmt: skip
    """The run goes on or ends soon, and says why; then it is as its row says. Where another stream
    or group is there its books are those of what was."""
    fault = FAULTS[name]
    own = fault.config
    place = own_place(kind, config=own) if own else Place(clean(kind), stream, cli)
    ids = place.seed(2500 if throttle == "none" else 1100)[100:]
    if fault.scope == "pending":
        place.deliver("dead", len(ids))
    options: dict[str, Any] = {"scope": fault.scope, "min_idle_min": 0}
    mends: list[Callable[[], None]] = []
    at_strike: list[int] = []

    def strike() -> None:
        mends.append(struck(fault, place))
        if fault.then == "over":
            at_strike.append(len(place.audit()))

    started = time.monotonic()
    first = place.attempt(throttle=throttle, at=(400, strike), **options)
    assert time.monotonic() - started < 10  # 4 s at work at most, and what a busy machine adds
    assert fault.rc in (None, first.rc), first.error
    assert re.search(fault.says, first.error), first.error
    if fault.then == "mended":
        mends[0]()
        assert fault.rc is None or first.books["errors"] == (fault.rc in (1, 3))
        place.settled(ids, first, place.complete(throttle="none", **options))
        assert place.waiting() == []
    elif fault.then == "over":
        records = place.audit()
        assert [len(records)] == at_strike
        assert_once(records, ids[: len(records)])
        assert first.books["total_read"] == len(records)
        if name in ("group destroyed", "stream deleted"):
            assert first.books["remaining"] is None  # without its group nobody knows
    elif fault.then == "at once":
        assert first.books["remaining"] > 0
    elif fault.then != "lost":
        assert first.rc != 0
        assert unrecorded(place) == []
        if fault.then == "same ids":  # an id's record would be the old stream's
            assert place.position == "0-0"


@pytest.mark.parametrize(
    ("place", "name"),
    [*((kind, name) for kind in KINDS for name in ("OOM", "NOREPLICAS", "READONLY")),
     *(("valkey", name) for name in SIDE_KEYS)],
    indirect=["place"],
)  # fmt: skip
def test_refused_from_the_start(place: Place, name: str) -> None:
    """Writes refused, a side key of another type, a replica though it lets itself be written to:
    named before anything is written."""
    ids = place.seed(200)
    side_key = Fault(f"SET {{{name}}} text", 4, f".drain_{name} is a string")
    fault = FAULTS.get(name, side_key)
    mend = struck(fault, place)
    if name == "READONLY":
        place.ask("CONFIG", "SET", "replica-read-only", "no")
    run = place.attempt()
    if name == "READONLY":  # a dry run may read from a replica
        assert place.rehearse()["total_read"] == 100
        place.ask("CONFIG", "SET", "replica-read-only", "yes")
    mend()
    # what memory it needs is held against maxmemory before that is met
    rc, text = (4, "maxmemory") if name == "OOM" else (fault.rc, fault.says)
    assert (run.rc, run.summary) == (rc, None)
    assert text in run.error
    assert place.groups == {GROUP: ids[99]}
    assert place.ask("XINFO", "CONSUMERS", place.stream, GROUP) == []


# ---------------------------------------------------------------- replicas, restarts


@pytest.mark.parametrize("kind", KINDS)
def test_data_that_went_back_in_a_process(own_place: OwnPlace, kind: str) -> None:
    """A first replica gives its primary a new replication id, and nothing went back: the run goes
    on. A primary that was its replica's replica meanwhile has lost records: exit 3, then all."""
    place, other = own_place(kind, port=True), own_place(kind, port=True).server
    ids = place.seed(900)[100:]

    def come() -> None:
        follow(other, place.server)
        place.ask("CLIENT", "KILL", "TYPE", "normal")

    calm = place.complete(throttle="1000", at=(100, come), max_events=300)
    in_step(other, place.server)

    def back() -> None:
        follow(place.server, other)
        place.ask("REPLICAOF", "NO", "ONE")
        place.ask("CLIENT", "KILL", "TYPE", "normal")

    first = place.attempt(throttle="1000", at=(80, lambda: other.ask("REPLICAOF", "NO", "ONE")),
                          then=(240, back))  # fmt: skip
    assert first.rc == 3
    place.settled(ids, calm, first, place.complete(throttle="none"))


def test_another_primary_is_named_midway(sentinel: SentinelSetup, stream: str, cli: Cli) -> None:
    """Though the drain's own goes on, the books are those of whom Sentinel names: exit 3."""
    old, new = (Place(one, stream, cli) for one in (sentinel.primary, sentinel.replica))
    ids = old.seed(400, 0)
    in_step(new.server, old.server)

    def name_another() -> None:
        new.ask("REPLICAOF", "NO", "ONE")
        for verb, *where in (("REMOVE",), ("MONITOR", "127.0.0.1", str(new.server.port), "1")):
            sentinel.sentinels[0].ask("SENTINEL", verb, sentinel.name, *where)

    first = new.attempt(sentinel.url, throttle="1000", at=(40, name_another))
    assert len(old.audit()) == 400
    assert first.rc == 3
    assert 0 < first.books["total_read"] == len(new.audit()) < 100
    new.settled(ids, first, new.complete(sentinel.url))


@BUNDLED
def test_a_script_that_outlasts_us(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that gets no answer any more gives up with exit code 3 and says why; its books say what
    was confirmed, or nothing; the same command finishes it later."""
    monkeypatch.setattr("drainkit.draining.loop.RECOVERY_WAITS_SEC", (0.05, 0.3))
    ids, blocker = place.seed()[100:], place.server.client()
    place.ask("CONFIG", "SET", "busy-reply-threshold", "50")

    def block() -> None:
        with pytest.raises(redis.ResponseError):
            blocker.eval("while true do end", 0)

    thread = threading.Thread(target=block)

    def strike() -> None:
        thread.start()
        time.sleep(0.3)

    url = f"{place.url}&socket_timeout=0.8"
    first = place.attempt(url, throttle="200", at=(80, strike))  # 40 a commit
    place.server.client().script_kill()
    thread.join()
    assert (first.rc, "busy" in first.error) == (3, True), first.error
    counted, done = first.books["total_read"], len(place.audit())
    assert counted is not None or "is not known" in first.error
    assert 80 <= (counted or 80) <= done < 160
    place.settled(ids, place.complete())


# ---------------------------------------------------------------- ids and clocks


def test_audit_ids_that_are_used_up(place: Place) -> None:
    """Without ids to give, nothing is recorded or acknowledged, from the start or midway; another
    audit stream helps. The stream's own last id may be the greatest there is."""
    ids = place.seed(400)[100:]
    ids.append(place.alter("XADD", MAX_ID, "symbol", "BTCUSDT").decode())
    for audit, last in (("audit", MAX_ID), ("audit2", f"{MAX_ID[:-3]}612")):
        use_up = partial(place.ask, "XADD", audit, last, "not", "a record")
        if audit == "audit":
            use_up()
        run = place.attempt(audit_stream=audit, at=(80, use_up) if audit == "audit2" else None)
        assert (run.rc, "--audit-stream" in run.error) == (1, True), run.error
        assert (run.summary is None) == (audit == "audit")
    # 80, more where round trips are slow: batches are larger
    done = run.books["total_read"]
    assert 80 <= done == place.ask("XLEN", "audit2") - 1
    place.settled(ids[done:], place.complete(audit_stream="audit3"), key="audit3")
