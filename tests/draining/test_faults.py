"""The server fails, is refused its means, or has its keys changed under a drain at work."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from backlogs import GROUP, fill
from clusters import SentinelSetup
from conftest import Cli, intent
from faults import Clock, assert_once, follow, in_step, key, unrecorded
from place import BUNDLED, Place
from proxy import Proxy
from servers import KINDS, Server, wait_until

OwnPlace = Callable[..., Place]
Strike = Callable[[Place], Any]  # what it answers mends it, where that can be called
MAX_ID = "18446744073709551615-18446744073709551615"


def refuse(*settings: str) -> Strike:
    """CONFIG SET of names and values, until it is mended."""

    def strike(place: Place) -> Any:
        for name, value in zip(settings[::2], settings[1::2], strict=True):
            place.ask("CONFIG", "SET", name, value)
        return partial(place.ask, "CONFIG", "SET", settings[0], "0")

    return strike


def demote(place: Place) -> Any:
    place.ask("REPLICAOF", "127.0.0.1", "1")  # nobody is there, so its data stays
    return partial(place.ask, "REPLICAOF", "NO", "ONE")


def crash(place: Place) -> None:
    place.server.kill()
    place.server.start()


def lose_disk(place: Place) -> Any:
    shutil.rmtree(place.ask("CONFIG", "GET", "dir")[1])  # where even root cannot write then
    place.ask("BGSAVE")
    failed = b"rdb_last_bgsave_status:err"
    wait_until("the save failed", lambda: failed in place.ask("INFO", "persistence"))

    def mend() -> None:
        place.ask("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")
        place.ask("CONFIG", "SET", "save", "")  # an orderly end would try again

    return mend


def endless_script(place: Place) -> Any:
    """A script that blocks the server until it is killed; by now the server answers BUSY."""
    place.ask("CONFIG", "SET", "busy-reply-threshold", "50")
    blocker = place.server.client()

    def loop() -> None:
        with pytest.raises(redis.ResponseError):
            blocker.eval("while true do end", 0)

    thread = threading.Thread(target=loop)
    thread.start()
    time.sleep(0.3)

    def mend() -> None:
        place.server.client().script_kill()
        thread.join()

    return mend


def block(place: Place) -> Any:
    timer = threading.Timer(0.8, endless_script(place))
    timer.start()
    return timer.join


def flush(place: Place) -> Any:
    done = threading.Event()

    def again_and_again() -> None:
        while not done.wait(0.005):
            place.ask("SCRIPT", "FLUSH")

    flusher = threading.Thread(target=again_and_again)
    flusher.start()

    def mend() -> None:
        done.set()
        flusher.join()

    return mend


def move_back(place: Place) -> Any:
    before = place.position
    place.set_position("0-0")
    return partial(place.set_position, before)


def another_audit(place: Place) -> Any:
    place.ask("RENAME", place.side("audit"), "kept")
    place.ask("SET", place.side("audit"), "text")
    return partial(place.ask, "RENAME", "kept", place.side("audit"))


def foreign_entries(place: Place) -> Any:
    name = place.side("audit")
    ids = [place.ask("XADD", name, "*", *two) for two in (("\xff", "\x1b[2J"), ("a", "b"))]
    return partial(place.ask, "XDEL", name, *ids)


def delete(*names: str) -> Strike:
    return lambda place: place.ask("DEL", *map(place.side, names))


def delete_record(place: Place) -> None:
    name = place.side("audit")
    place.ask("XDEL", name, place.ask("XRANGE", name, "-", "+", "COUNT", 1)[0][0])


def anew(place: Place, entries: Any, position: str) -> None:
    """Deleted and made anew."""
    place.alter("DEL")
    place.fill(entries, position)


def old_copy(place: Place) -> None:
    """As after a failover to a replica that lagged: fewer entries, and the group at the last."""
    ids = [entry[0] for entry in place.alter("XRANGE", "-", "+")][:150]
    anew(place, [(entry, intent()) for entry in ids], "$")


def larger(how: str, which: str) -> Strike:
    """Replaced by a larger stream, of which nobody has read anything."""

    def strike(place: Place) -> None:
        ids = [entry[0].decode() for entry in place.alter("XRANGE", "-", "+")]
        after_ms = key(ids[-1])[0] + 1
        new = [*(ids if which == "same" else ()), *(f"{after_ms + i}-7" for i in range(2000))]
        entries = [(entry, {"n": str(i)}) for i, entry in enumerate(new)]
        beside = place.stream if how == "deleted" else f"{place.stream}:new"
        if how == "deleted":
            place.alter("DEL")
        fill(place.server, beside, entries, group=GROUP)
        if how == "moved away":
            place.alter("MOVE", 1)
        if how == "restored over":
            place.alter("RESTORE", 0, place.ask("DUMP", beside), "REPLACE")
        elif beside != place.stream:
            place.ask("RENAME", beside, place.stream)

    return strike


@dataclass(frozen=True)
class Fault:
    """What happens in the middle of a drain, and how that has to end.

    `then`: "mended", the same command does all; "over", another stream or group is there, and
    nothing new is recorded; "same ids" and "other ids", of a larger stream nothing is acknowledged
    without its record; "lost", the audit is no longer whole, and "at once", which the next commit
    sees.
    """

    strike: Strike
    rc: int | None = 0  # None: whatever the run says of it
    says: str = ""
    kinds: tuple[str, ...] = KINDS
    then: str = "mended"
    config: dict[str, str] = field(default_factory=dict)  # of a server of its own
    scope: str = "undelivered"


def aof(fsync: str, *kinds: str) -> Fault:
    config = {"appendonly": "yes", "appendfsync": fsync}
    return Fault(crash, 3, "run the same command again", kinds, config=config)


def over(strike: Strike, says: str, kinds: tuple[str, ...] = KINDS) -> Fault:
    return Fault(strike, 4, says, kinds, "over")


ONE = [("*", intent())]
FAULTS = {
    "crash, AOF always": aof("always", "valkey"),
    "crash, AOF every second": aof("everysec", "redis", "redis62"),
    "OOM": Fault(
        refuse("maxmemory", "100kb", "maxmemory-policy", "noeviction"), 1, "out of memory"
    ),
    "NOREPLICAS": Fault(refuse("min-replicas-to-write", "1"), 1, "too few replicas"),
    "READONLY": Fault(demote, 4, "replica"),
    "a disk that is gone": Fault(lose_disk, 1, "disk", config={"save": "3600 1"}),
    "a script that blocks": Fault(block, kinds=("valkey",)),
    "scripts flushed": Fault(flush),
    "group moved back": Fault(move_back, 4, "moved back"),
    "group moved back, pending": Fault(move_back, None, scope="pending"),
    "audit of another type": Fault(another_audit, 4, "type"),
    "no records in the audit": Fault(foreign_entries),
    "recorded gone": Fault(delete("recorded")),
    "state gone": Fault(delete("state"), kinds=("valkey", "redis62")),
    "state and recorded gone": Fault(delete("state", "recorded")),
    "ledger gone": Fault(delete("runs"), kinds=("redis",)),
    "audit gone": Fault(delete("audit"), 1, "audit", ("valkey", "redis"), "at once"),
    "all gone": Fault(delete("audit", "state", "recorded"), 1, "audit", KINDS, "at once"),
    "audit trimmed": Fault(lambda place: place.ask("XTRIM", place.side("audit"), "MAXLEN", 1), 1,
                           "audit", KINDS, "lost"),
    "a record deleted": Fault(delete_record, 1, "audit", ("valkey", "redis62"), "lost"),
    "group destroyed": over(lambda place: place.ask("XGROUP", "DESTROY", place.stream, GROUP),
                            "group"),
    "stream deleted": over(lambda place: place.alter("DEL"), "stream"),
    "another type": over(lambda place: place.alter("SET", "text"), "stream"),
    "made anew": over(lambda place: anew(place, ONE * 5, "0-0"), "moved back|made anew"),
    # without counters (6.2) a group that wants only what is to come looks like one that is done
    "made anew for the new": over(lambda place: anew(place, ONE, "$"), "made anew", KINDS[:2]),
    "an old copy": over(old_copy, "made anew"),
    **{f"{how} and larger, {ids} ids": Fault(larger(how, ids), None, "", kinds, f"{ids} ids")
       for how, kinds in (("deleted", ("valkey", "redis")), ("renamed over", ("valkey", "redis")),
                          ("restored over", ("valkey", "redis62")), ("moved away", KINDS[::2]))
       for ids in ("same", "other")},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind", "throttle"),
    [(name, kind, throttle) for name, fault in FAULTS.items() for kind in fault.kinds
     for throttle in ("2000", "none")[: 2 if kind == fault.kinds[0] else 1]],
)  # fmt: skip
def test_a_fault_midway(
    clean: Callable[[str], Server], own_place: OwnPlace, stream: str, cli: Cli, tmp_path: Path,
    name: str, kind: str, throttle: str,
) -> None:  # fmt: skip
    """The run goes on or ends soon, and says why; then it is as its row says. Where another stream
    or group is there its books are those of what was."""
    fault = FAULTS[name]
    (folder := tmp_path / "data").mkdir()
    own = {**fault.config, "dir": str(folder)}
    place = own_place(kind, config=own) if fault.config else Place(clean(kind), stream, cli)
    ids = place.seed(2500 if throttle == "none" else 1100)[100:]
    if fault.scope == "pending":
        place.deliver("dead", len(ids))
    options: dict[str, Any] = {"scope": fault.scope, "min_idle_min": 0}
    mends: list[Any] = []
    at_strike: list[int] = []

    def strike() -> None:
        mends.append(fault.strike(place))
        if fault.then == "over":
            at_strike.append(len(place.audit()))

    started = time.monotonic()
    first = place.attempt(throttle=throttle, at=(400, strike), **options)
    assert time.monotonic() - started < 10  # 4 s at work at most, and what a busy machine adds
    assert fault.rc in (None, first.rc), first.error
    assert re.search(fault.says, first.error), first.error
    if fault.then == "mended":
        if callable(mends[0]):
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


@pytest.mark.parametrize("place", ["redis"], indirect=True)
def test_rights_taken_away_midway(place: Place) -> None:
    """Without the right to one of its commands any more, nothing is recorded without its ACK."""
    ids = place.seed(600)[100:]
    place.ask("ACL", "SETUSER", "d", "on", ">word", "~*", "+@all")
    url = place.server.url.replace("unix://", "unix://d:word@")
    runs = []
    for command in ("xack", "xadd", "hset", "xreadgroup"):
        take = partial(place.ask, "ACL", "SETUSER", "d", f"-{command}")
        runs.append(place.attempt(url, max_events="150", throttle="1000", at=(20, take)))
        assert runs[-1].rc == 4
        assert "drainkit acl" in runs[-1].error
        assert "word" not in runs[-1].error
        place.ask("ACL", "SETUSER", "d", f"+{command}")
    place.settled(ids, *runs, place.complete(url))


SIDE_KEYS = ["audit", "runs", "state", "recorded"]


@pytest.mark.parametrize(
    ("place", "name"),
    [*((kind, name) for kind in KINDS for name in ("OOM", "NOREPLICAS", "READONLY")),
     *(("valkey", name) for name in SIDE_KEYS)],
    indirect=["place"],
)  # fmt: skip
def test_refused_from_the_start(place: Place, name: str) -> None:
    """Writes refused, a side key of another type: named before anything is written."""
    ids = place.seed(200)
    if name in SIDE_KEYS:
        place.ask("SET", place.side(name), "text")
        mend, rc, text = partial(place.ask, "PING"), 4, f"{place.side(name)} is a string"
    else:
        fault = FAULTS[name]
        mend, rc, text = fault.strike(place), fault.rc, fault.says
    if name == "OOM":  # what memory it needs is held against maxmemory before it is met
        rc, text = 4, "maxmemory"
    run = place.attempt()
    if name == "READONLY":  # a dry run may read from a replica
        assert place.rehearse()["total_read"] == 100
    mend()
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
@pytest.mark.parametrize(
    ("how", "says"), [("a script", "busy"), ("the network", "cannot reach Redis")]
)
def test_what_outlasts_us(
    place: Place, start_proxy: Callable[[Server], Proxy], monkeypatch: pytest.MonkeyPatch,
    how: str, says: str,
) -> None:  # fmt: skip
    """A run that gets no answer any more gives up with exit code 3 and says why; its books say what
    was confirmed, or nothing; the same command finishes it later."""
    monkeypatch.setattr("drainkit.draining.loop.RECOVERY_WAITS_SEC", (0.05, 0.3))
    ids = place.seed()[100:]
    proxy, mends = start_proxy(place.server), list[Any]()

    def strike() -> None:
        if how == "a script":
            mends.append(endless_script(place))
        else:
            proxy.arm("cut_before", times=None)

    url = f"{proxy.url}&socket_timeout=0.8"
    first = place.attempt(url, throttle="200", at=(80, strike))  # 40 a commit
    for mend in mends:
        mend()
    assert (first.rc, says in first.error) == (3, True), first.error
    counted, done = first.books["total_read"], len(place.audit())
    assert counted is not None or "is not known" in first.error
    assert 80 <= (counted or 80) <= done < 160
    place.settled(ids, place.complete())


# ---------------------------------------------------------------- ids and clocks


def test_audit_ids_that_are_used_up(place: Place) -> None:
    """Without ids to give, nothing is recorded or acknowledged, from the start or midway; another
    audit stream helps."""
    ids = place.seed(400)[100:]
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


def test_ids_at_their_ends(place: Place) -> None:
    """A stream whose own last id is the greatest there is is drained like any other; audit ids that
    run out within one millisecond go on in the next, and the batch is whole."""
    place.fill((entry, intent()) for entry in ("1-0", "2-0", MAX_ID))
    place.settled(["1-0", "2-0", MAX_ID], place.complete())
    place.stream = place.base = f"{place.stream}:next"
    ids = place.seed(900)[100:]
    used: list[bytes] = []

    def fill_up() -> None:
        last = f"{place.now_ms()}-18446744073709551610"
        used.append(place.ask("XADD", place.side("audit"), last, "original_id", "0-1"))

    run = place.complete(throttle="none", at=(400, fill_up))
    place.ask("XDEL", place.side("audit"), *used)
    place.settled(ids, run)


@pytest.mark.parametrize("kind", KINDS)
def test_the_servers_clock_goes_back(clock: Clock, own_place: OwnPlace, kind: str) -> None:
    """A drain waits until its records' ids are later than the last; nothing is lost or doubled."""
    place = own_place(kind)
    ids = place.seed(200)[100:]
    started = time.monotonic()
    run = place.complete(throttle="1000", at=(40, lambda: clock.step(-2)))
    assert time.monotonic() - started > 1.5
    place.settled(ids, run)
