"""The server fails, is refused its means, or has its keys changed under a drain at work."""

from __future__ import annotations

import re
import secrets
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
from backlogs import GROUP
from clusters import SentinelSetup
from conftest import Cli, intent
from faults import Clock, assert_once, follow, in_step
from place import BUNDLED, Place
from servers import KINDS, Server, wait_until

OwnPlace = Callable[..., Place]
Mend = Callable[[], Any]
MAX_ID = "18446744073709551615-18446744073709551615"


def refuse(*settings: str) -> Callable[[Place], Mend]:
    """CONFIG SET of names and values, until it is mended."""

    def strike(place: Place) -> Mend:
        for name, value in zip(settings[::2], settings[1::2], strict=True):
            place.ask("CONFIG", "SET", name, value)
        return lambda: place.ask("CONFIG", "SET", settings[0], "0")

    return strike


def demote(place: Place) -> Mend:
    place.ask("REPLICAOF", "127.0.0.1", "1")  # nobody is there, so its data stays
    return lambda: place.ask("REPLICAOF", "NO", "ONE")


def crash(place: Place) -> Mend:
    place.server.kill()
    place.server.start()
    return lambda: None


def lose_disk(place: Place) -> Mend:
    shutil.rmtree(place.ask("CONFIG", "GET", "dir")[1])  # where even root cannot write then
    place.ask("BGSAVE")
    failed = b"rdb_last_bgsave_status:err"
    wait_until("the save failed", lambda: failed in place.ask("INFO", "persistence"))

    def mend() -> None:
        place.ask("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")
        place.ask("CONFIG", "SET", "save", "")  # an orderly end would try again

    return mend


def endless_script(server: Server) -> threading.Thread:
    """A script that blocks the server until it is killed; by now the server answers BUSY."""
    server.ask("CONFIG", "SET", "busy-reply-threshold", "50")
    blocker = server.client()

    def loop() -> None:
        with pytest.raises(redis.ResponseError):
            blocker.eval("while true do end", 0)

    thread = threading.Thread(target=loop)
    thread.start()
    time.sleep(0.3)
    return thread


def block(place: Place) -> Mend:
    thread = endless_script(place.server)
    threading.Timer(0.8, lambda: place.server.client().script_kill()).start()
    return thread.join


def flush(place: Place) -> Mend:
    done = threading.Event()

    def again_and_again() -> None:
        client = place.server.client()
        while not done.wait(0.005):
            client.script_flush()

    flusher = threading.Thread(target=again_and_again)
    flusher.start()
    return lambda: (done.set(), flusher.join())


def move_back(place: Place) -> Mend:
    before = place.position
    place.set_position("0-0")
    return lambda: place.set_position(before)


def another_audit(place: Place) -> Mend:
    place.ask("RENAME", place.side("audit"), "kept")
    place.ask("SET", place.side("audit"), "text")
    return lambda: place.ask("RENAME", "kept", place.side("audit"))


def foreign_entries(place: Place) -> Mend:
    name = place.side("audit")
    ids = [place.ask("XADD", name, "*", *two) for two in (("\xff", "\x1b[2J"), ("a", "b"))]
    return lambda: place.ask("XDEL", name, *ids)


def anew(place: Place, entries: Any, position: str) -> None:
    """Deleted and made anew."""
    place.alter("DEL")
    place.fill(entries, position)


def old_copy(place: Place) -> None:
    """As after a failover to a replica that lagged: fewer entries, and the group at the last."""
    ids = [entry[0] for entry in place.alter("XRANGE", "-", "+")][:150]
    anew(place, [(entry, intent()) for entry in ids], "$")


@dataclass(frozen=True)
class Fault:
    """What happens in the middle of a drain, and how that has to end before it is mended."""

    strike: Callable[[Place], Any]  # answers what mends it
    rc: int | None = 0  # None: whatever the run says of it
    says: str = ""
    kinds: tuple[str, ...] = KINDS
    config: dict[str, str] = field(default_factory=dict)  # of a server of its own
    scope: str = "undelivered"
    is_mended: bool = True  # else it is over, with another stream or group there


def aof(fsync: str, *kinds: str) -> Fault:
    config = {"appendonly": "yes", "appendfsync": fsync}
    return Fault(crash, 3, "run the same command again", kinds, config)


def over(strike: Callable[[Place], Any], says: str, kinds: tuple[str, ...] = KINDS) -> Fault:
    return Fault(strike, 4, says, kinds, is_mended=False)


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
    "group destroyed": over(lambda place: place.ask("XGROUP", "DESTROY", place.stream, GROUP),
                            "group"),
    "stream deleted": over(lambda place: place.alter("DEL"), "stream"),
    "another type": over(lambda place: place.alter("SET", "text"), "stream"),
    "made anew": over(lambda place: anew(place, ONE * 5, "0-0"), "moved back|made anew"),
    # without counters (6.2) a group that wants only what is to come looks like one that is done
    "made anew for the new": over(lambda place: anew(place, ONE, "$"), "made anew", KINDS[:2]),
    "an old copy": over(old_copy, "made anew"),
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
    """The run goes on or ends soon, and says why; mended, the same command finishes it. Where
    another stream or group is there (exit 4) nothing new is recorded, and its books are those of
    what was."""
    fault = FAULTS[name]
    (folder := tmp_path / "data").mkdir()
    own = {**fault.config, "dir": str(folder)}
    place = own_place(kind, config=own) if fault.config else Place(clean(kind), stream, cli)
    ids = place.seed(2500 if throttle == "none" else 1100)[100:]
    if fault.scope == "pending":
        place.deliver("dead", len(ids))
    options: dict[str, Any] = {"scope": fault.scope, "min_idle_min": 0}
    mends: list[Mend] = []
    at_strike: list[int] = []

    def strike() -> None:
        mends.append(fault.strike(place))
        if not fault.is_mended:
            at_strike.append(len(place.audit()))

    started = time.monotonic()
    first = place.attempt(throttle=throttle, at=(400, strike), **options)
    assert time.monotonic() - started < 10  # 4 s at work at most, and what a busy machine adds
    assert fault.rc in (None, first.rc), first.error
    assert re.search(fault.says, first.error), first.error
    if fault.is_mended:
        mends[0]()
        assert fault.rc is None or first.books["errors"] == (fault.rc in (1, 3))
        place.settled(ids, first, place.complete(throttle="none", **options))
        assert place.waiting() == []
        return
    records = place.audit()
    assert [len(records)] == at_strike
    assert_once(records, ids[: len(records)])
    assert first.books["total_read"] == len(records)
    if name in ("group destroyed", "stream deleted"):
        assert first.books["remaining"] is None  # without its group nobody knows


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


def test_a_server_that_is_loading(own_place: OwnPlace) -> None:
    """While the server loads its data, a run exits 3 and says so; afterwards it works."""
    slow = {"key-load-delay": "20000", "loading-process-events-interval-bytes": "1024"}
    place = own_place("redis", config=slow)
    ids = place.seed(150)[100:]
    for number in range(100):
        place.ask("SET", f"other:{number}", secrets.token_hex(1000))
    place.ask("SAVE")
    place.server.kill()
    starting = threading.Thread(target=place.server.start)
    starting.start()

    def loading() -> bool:
        try:
            return b"loading:1" in place.ask("INFO", "persistence")
        except redis.RedisError:
            return False

    wait_until("it loads", loading)
    early = place.attempt()
    starting.join()
    assert (early.rc, "load" in early.error) == (3, True)
    place.settled(ids, early, place.complete())


@BUNDLED
def test_a_script_that_outlasts_us(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the run ends with exit code 3 and says why; the same command finishes it later."""
    monkeypatch.setattr("drainkit.draining.loop.RECOVERY_WAITS_SEC", (0.05, 0.1))
    ids = place.seed()[100:]
    blocked: list[threading.Thread] = []
    first = place.attempt(at=(80, lambda: blocked.append(endless_script(place.server))))
    place.server.client().script_kill()
    blocked[0].join()
    assert (first.rc, "busy" in first.error) == (3, True)
    place.settled(ids, first, place.complete())


# ---------------------------------------------------------------- ids and clocks


@pytest.mark.parametrize(("last", "when"), [(MAX_ID, 0), (f"{MAX_ID[:-3]}612", 80)])
def test_audit_ids_that_are_used_up(place: Place, last: str, when: int) -> None:
    """Without ids to give, nothing is recorded or acknowledged; another audit stream helps."""
    ids = place.seed(400)[100:]
    use_up = partial(place.ask, "XADD", place.side("audit"), last, "not", "a record")
    if when == 0:
        use_up()
        first = place.attempt()
        assert first.summary is None
        assert place.ask("XINFO", "CONSUMERS", place.stream, GROUP) == []
    else:
        first = place.attempt(at=(when, use_up))
        when = first.books["total_read"]  # 80, more where round trips are slow: batches are larger
        assert 80 <= when == place.ask("XLEN", place.side("audit")) - 1
    assert first.rc == 1
    assert "--audit-stream" in first.error
    other = f"{place.stream}.audit2"
    place.settled(ids[when:], place.complete(audit_stream=other), key=other)


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
