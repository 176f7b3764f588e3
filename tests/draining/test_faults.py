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
from backlogs import GROUP, deliver, fill, seed
from books import ask, audit, pending, positions
from clusters import SentinelSetup
from conftest import intent
from faults import (
    Clock,
    assert_once,
    assert_settled,
    attempt,
    complete,
    follow,
    in_step,
    rehearse,
)
from servers import KINDS, Server, wait_until

Clean = Callable[[str], Server]
StartServer = Callable[..., Server]
Mend = Callable[[], Any]
MAX_ID = "18446744073709551615-18446744073709551615"


def refuse(*settings: object) -> Callable[[Server, str], Mend]:
    """CONFIG SET of names and values, until it is mended."""

    def strike(server: Server, _: str) -> Mend:
        for name, value in zip(settings[::2], settings[1::2], strict=True):
            ask(server, "CONFIG", "SET", str(name), str(value))
        return lambda: ask(server, "CONFIG", "SET", str(settings[0]), "0")

    return strike


def demote(server: Server, _: str) -> Mend:
    ask(server, "REPLICAOF", "127.0.0.1", "1")  # nobody is there, so its data stays
    return lambda: ask(server, "REPLICAOF", "NO", "ONE")


def crash(server: Server, _: str) -> Mend:
    server.kill()
    server.start()
    return lambda: None


def lose_disk(server: Server, _: str) -> Mend:
    shutil.rmtree(ask(server, "CONFIG", "GET", "dir")[1])  # where even root cannot write then
    ask(server, "BGSAVE")
    failed = b"rdb_last_bgsave_status:err"
    wait_until("the save failed", lambda: failed in ask(server, "INFO", "persistence"))

    def mend() -> None:
        ask(server, "CONFIG", "SET", "stop-writes-on-bgsave-error", "no")
        ask(server, "CONFIG", "SET", "save", "")  # an orderly end would try again

    return mend


def endless_script(server: Server) -> threading.Thread:
    """A script that blocks the server until it is killed; by now the server answers BUSY."""
    ask(server, "CONFIG", "SET", "busy-reply-threshold", "50")
    blocker = server.client()

    def loop() -> None:
        with pytest.raises(redis.ResponseError):
            blocker.eval("while true do end", 0)

    thread = threading.Thread(target=loop)
    thread.start()
    time.sleep(0.3)
    return thread


def block(server: Server, _: str) -> Mend:
    thread = endless_script(server)
    threading.Timer(0.8, lambda: server.client().script_kill()).start()
    return thread.join


def flush(server: Server, _: str) -> Mend:
    done = threading.Event()

    def again_and_again() -> None:
        client = server.client()
        while not done.wait(0.005):
            client.script_flush()

    flusher = threading.Thread(target=again_and_again)
    flusher.start()
    return lambda: (done.set(), flusher.join())


def move_back(server: Server, stream: str) -> Mend:
    before = positions(server, stream)[GROUP]
    ask(server, "XGROUP", "SETID", stream, GROUP, "0-0")
    return lambda: ask(server, "XGROUP", "SETID", stream, GROUP, before)


def another_audit(server: Server, stream: str) -> Mend:
    name = f"{stream}.drain_audit"
    ask(server, "RENAME", name, "kept")
    ask(server, "SET", name, "text")
    return lambda: ask(server, "RENAME", "kept", name)


def foreign_entries(server: Server, stream: str) -> Mend:
    name = f"{stream}.drain_audit"
    ids = [ask(server, "XADD", name, "*", *two) for two in (("\xff", "\x1b[2J"), ("a", "b"))]
    return lambda: ask(server, "XDEL", name, *ids)


def stream_anew(n: int, position: str) -> Callable[[Server, str], Any]:
    """Deleted and made anew, with n new entries and a group at `position`."""

    def strike(server: Server, stream: str) -> None:
        ask(server, "DEL", stream)
        fill(server, stream, [("*", intent())] * n, group=GROUP, position=position)

    return strike


def old_copy(server: Server, stream: str) -> None:
    """As after a failover to a replica that lagged: fewer entries, and the group at the last."""
    ids = [entry[0] for entry in ask(server, "XRANGE", stream, "-", "+")][:150]
    ask(server, "DEL", stream)
    fill(server, stream, [(entry, intent()) for entry in ids], group=GROUP, position="$")


def another_type(server: Server, stream: str) -> None:
    ask(server, "DEL", stream)
    ask(server, "SET", stream, "text")


@dataclass(frozen=True)
class Fault:
    """What happens in the middle of a drain, and how that has to end before it is mended."""

    strike: Callable[[Server, str], Any]  # answers what mends it
    rc: int | None = 0  # None: whatever the run says of it
    says: str = ""
    kinds: tuple[str, ...] = KINDS
    config: dict[str, str] = field(default_factory=dict)  # of a server of its own
    scope: str = "undelivered"
    is_mended: bool = True  # else it is over, with another stream or group there


def aof(fsync: str) -> dict[str, str]:
    return {"appendonly": "yes", "appendfsync": fsync}


def over(strike: Callable[[Server, str], Any], says: str, kinds: tuple[str, ...] = KINDS) -> Fault:
    return Fault(strike, 4, says, kinds, is_mended=False)


AGAIN = "run the same command again"
FAULTS = {
    "crash, AOF always": Fault(crash, 3, AGAIN, ("valkey",), aof("always")),
    "crash, AOF every second": Fault(crash, 3, AGAIN, ("redis", "redis62"), aof("everysec")),
    "OOM": Fault(
        refuse("maxmemory", "100kb", "maxmemory-policy", "noeviction"), 1, "out of memory"
    ),
    "NOREPLICAS": Fault(refuse("min-replicas-to-write", 1), 1, "too few replicas"),
    "READONLY": Fault(demote, 4, "replica"),
    "a disk that is gone": Fault(lose_disk, 1, "disk", config={"save": "3600 1"}),
    "a script that blocks": Fault(block, kinds=("valkey",)),
    "scripts flushed": Fault(flush),
    "group moved back": Fault(move_back, 4, "moved back"),
    "group moved back, pending": Fault(move_back, None, scope="pending"),
    "audit of another type": Fault(another_audit, 4, "type"),
    "no records in the audit": Fault(foreign_entries),
    "group destroyed": over(lambda *of: ask(of[0], "XGROUP", "DESTROY", of[1], GROUP), "group"),
    "stream deleted": over(lambda *of: ask(of[0], "DEL", of[1]), "stream"),
    "another type": over(another_type, "stream"),
    "made anew": over(stream_anew(5, "0-0"), "moved back|made anew"),
    # without counters (6.2) a group that wants only what is to come looks like one that is done
    "made anew for the new": over(stream_anew(1, "$"), "made anew", ("valkey", "redis")),
    "an old copy": over(old_copy, "made anew"),
}


@pytest.mark.parametrize(
    ("name", "kind", "throttle"),
    [(name, kind, throttle) for name, fault in FAULTS.items() for kind in fault.kinds
     for throttle in ("2000", "none")[: 2 if kind == fault.kinds[0] else 1]],
)  # fmt: skip
def test_a_fault_midway(
    clean: Clean, start_server: StartServer, stream: str, tmp_path: Path, name: str, kind: str,
    throttle: str,
) -> None:  # fmt: skip
    """The run goes on or ends soon, and says why; mended, the same command finishes it. Where
    another stream or group is there (exit 4) nothing new is recorded, and its books are those of
    what was."""
    fault = FAULTS[name]
    (folder := tmp_path / "data").mkdir()
    config = {**fault.config, "dir": str(folder)}
    server = start_server(kind, config=config) if fault.config else clean(kind)
    ids = seed(server, stream, 2500, delivered=100)[100:]
    if fault.scope == "pending":
        deliver(server, stream, "dead", 2400)
    options = {"scope": fault.scope, "min_idle_min": 0}
    mends: list[Mend] = []
    at_strike: list[int] = []

    def strike() -> None:
        mends.append(fault.strike(server, stream))
        if not fault.is_mended:
            at_strike.append(len(audit(server, stream)))

    started = time.monotonic()
    first = attempt(server.url, stream, throttle=throttle, at=(400, strike), **options)
    assert time.monotonic() - started < 8
    assert fault.rc in (None, first.rc), first.error
    assert re.search(fault.says, first.error), first.error
    if fault.is_mended:
        mends[0]()
        assert fault.rc is None or first.books["errors"] == (fault.rc in (1, 3))
        again = complete(server.url, stream, throttle="none", **options)
        assert_settled(server, stream, ids, [first, again])
        assert pending(server, stream) == 0
        return
    records = audit(server, stream)
    assert [len(records)] == at_strike
    assert_once(records, ids[: len(records)])
    assert first.books["total_read"] == len(records)
    if name in ("group destroyed", "stream deleted"):
        assert first.books["remaining"] is None  # without its group nobody knows


def test_rights_taken_away_midway(clean: Clean, stream: str) -> None:
    """Without the right to one of its commands any more, nothing is recorded without its ACK."""
    server = clean("redis")
    ids = seed(server, stream, 600, delivered=100)[100:]
    ask(server, "ACL", "SETUSER", "d", "on", ">word", "~*", "+@all")
    url = server.url.replace("unix://", "unix://d:word@")
    runs = []
    for command in ("xack", "xadd", "hset", "xreadgroup"):
        take = partial(ask, server, "ACL", "SETUSER", "d", f"-{command}")
        runs.append(attempt(url, stream, max_events="150", throttle="1000", at=(20, take)))
        assert runs[-1].rc == 4
        assert "drainkit acl" in runs[-1].error
        assert "word" not in runs[-1].error
        ask(server, "ACL", "SETUSER", "d", f"+{command}")
    runs.append(complete(url, stream))
    assert_settled(server, stream, ids, runs)


SIDE_KEYS = ["drain_audit", "drain_runs", "drain_state", "drain_recorded"]


@pytest.mark.parametrize("name", ["OOM", "NOREPLICAS", "READONLY", *SIDE_KEYS])
def test_refused_from_the_start(server: Server, stream: str, name: str) -> None:
    """Writes refused, a side key of another type: named before anything is written."""
    ids = seed(server, stream, 200)
    if name in SIDE_KEYS:
        ask(server, "SET", f"{stream}.{name}", "text")
        mend, rc, text = partial(ask, server, "PING"), 4, f"{stream}.{name} is a string"
    else:
        fault = FAULTS[name]
        mend, rc, text = fault.strike(server, stream), fault.rc, fault.says
    if name == "OOM":  # what memory it needs is held against maxmemory before it is met
        rc, text = 4, "maxmemory"
    run = attempt(server.url, stream)
    if name == "READONLY":  # a dry run may read from a replica
        assert rehearse(server.url, stream)["total_read"] == 100
    mend()
    assert (run.rc, run.summary) == (rc, None)
    assert text in run.error
    assert positions(server, stream) == {GROUP: ids[99]}
    assert ask(server, "XINFO", "CONSUMERS", stream, GROUP) == []


@pytest.mark.parametrize("kind", KINDS)
def test_data_that_went_back_in_a_process(
    start_server: StartServer, stream: str, kind: str
) -> None:
    """A primary that was its replica's replica meanwhile has lost records: exit 3, then all."""
    server, other = start_server(kind, port=True), start_server(kind, port=True)
    follow(other, server)
    ids = seed(server, stream, 700, delivered=100)[100:]
    in_step(other, server)

    def back() -> None:
        follow(server, other)
        ask(server, "REPLICAOF", "NO", "ONE")
        ask(server, "CLIENT", "KILL", "TYPE", "normal")

    todo = [(100, lambda: ask(other, "REPLICAOF", "NO", "ONE")), (300, back)]
    first = attempt(server.url, stream, throttle="1000", at=todo[0], then=todo[1])
    assert first.rc == 3
    again = complete(server.url, stream, throttle="none")
    assert_settled(server, stream, ids, [first, again])


@pytest.mark.parametrize("kind", KINDS)
def test_a_first_replica_is_no_takeover(start_server: StartServer, stream: str, kind: str) -> None:
    """It gives its primary a new replication id, and nothing went back: the run goes on."""
    server, other = start_server(kind, port=True), start_server(kind, port=True)
    ids = seed(server, stream, 400, delivered=0)

    def come() -> None:
        follow(other, server)
        ask(server, "CLIENT", "KILL", "TYPE", "normal")

    run = complete(server.url, stream, throttle="1000", at=(100, come))
    assert_settled(server, stream, ids, [run])


def test_another_primary_is_named_midway(sentinel: SentinelSetup, stream: str) -> None:
    """Though the drain's own goes on, the books are those of whom Sentinel names: exit 3."""
    watcher, new = sentinel.sentinels[0], sentinel.replica
    ids = seed(sentinel.primary, stream, 400, delivered=0)
    in_step(new, sentinel.primary)

    def name_another() -> None:
        ask(new, "REPLICAOF", "NO", "ONE")
        ask(watcher, "SENTINEL", "REMOVE", sentinel.name)
        ask(watcher, "SENTINEL", "MONITOR", sentinel.name, "127.0.0.1", str(new.port), "1")

    first = attempt(sentinel.url, stream, throttle="1000", at=(40, name_another))
    assert len(audit(sentinel.primary, stream)) == 400
    assert first.rc == 3
    assert 0 < first.books["total_read"] == len(audit(new, stream)) < 100
    assert_settled(new, stream, ids, [first, complete(sentinel.url, stream)])


def test_a_server_that_is_loading(start_server: StartServer, stream: str) -> None:
    """While the server loads its data, a run exits 3 and says so; afterwards it works."""
    slow = {"key-load-delay": "20000", "loading-process-events-interval-bytes": "1024"}
    server = start_server("redis", config=slow)
    ids = seed(server, stream, 150, delivered=100)[100:]
    for number in range(100):
        ask(server, "SET", f"other:{number}", secrets.token_hex(1000))
    ask(server, "SAVE")
    server.kill()
    starting = threading.Thread(target=server.start)
    starting.start()

    def loading() -> bool:
        try:
            return b"loading:1" in ask(server, "INFO", "persistence")
        except redis.RedisError:
            return False

    wait_until("it loads", loading)
    early = attempt(server.url, stream)
    starting.join()
    assert early.rc == 3
    assert "load" in early.error
    again = complete(server.url, stream)
    assert_settled(server, stream, ids, [early, again])


def test_a_script_that_outlasts_us(
    valkey: Server, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the run ends with exit code 3 and says why; the same command finishes it later."""
    monkeypatch.setattr("drainkit.draining.loop.RECOVERY_WAITS_SEC", (0.05, 0.1))
    ids = seed(valkey, stream, 300, delivered=100)[100:]
    blocked: list[threading.Thread] = []
    first = attempt(valkey.url, stream, at=(80, lambda: blocked.append(endless_script(valkey))))
    valkey.client().script_kill()
    blocked[0].join()
    assert (first.rc, "busy" in first.error) == (3, True)
    assert_settled(valkey, stream, ids, [first, complete(valkey.url, stream)])


# ---------------------------------------------------------------- ids and clocks


@pytest.mark.parametrize("last", [MAX_ID, "18446744073709551615-18446744073709551612"])
@pytest.mark.parametrize("when", [0, 80])
def test_audit_ids_that_are_used_up(server: Server, stream: str, last: str, when: int) -> None:
    """Without ids to give, nothing is recorded or acknowledged; another audit stream helps."""
    ids = seed(server, stream, 400, delivered=100)[100:]
    use_up = partial(ask, server, "XADD", f"{stream}.drain_audit", last, "not", "a record")
    if when == 0:
        use_up()
        first = attempt(server.url, stream)
        assert first.summary is None
        assert ask(server, "XINFO", "CONSUMERS", stream, GROUP) == []
    else:
        first = attempt(server.url, stream, at=(when, use_up))
        when = first.books["total_read"]  # 80, more where round trips are slow: batches are larger
        assert 80 <= when == ask(server, "XLEN", f"{stream}.drain_audit") - 1
    assert first.rc == 1
    assert "--audit-stream" in first.error
    again = complete(server.url, stream, audit_stream=f"{stream}.audit2")
    assert_settled(server, stream, ids[when:], [again], audit_key=f"{stream}.audit2")


def test_an_audit_id_whose_millisecond_is_full(server: Server, stream: str) -> None:
    """Ids that run out within one millisecond go on in the next; the batch is whole."""
    ids = seed(server, stream, 900, delivered=100)[100:]
    used: list[bytes] = []

    def fill_up() -> None:
        seconds, micros = ask(server, "TIME")
        last = f"{int(seconds) * 1000 + int(micros) // 1000}-18446744073709551610"
        used.append(ask(server, "XADD", f"{stream}.drain_audit", last, "original_id", "0-1"))

    run = complete(server.url, stream, throttle="none", at=(400, fill_up))
    ask(server, "XDEL", f"{stream}.drain_audit", *used)
    assert_settled(server, stream, ids, [run])


def test_the_end_of_ids_in_the_stream_itself(server: Server, stream: str) -> None:
    """A stream whose own last id is the greatest there is is drained like any other."""
    fill(server, stream, [(1, intent()), (2, intent()), (MAX_ID, intent())], group=GROUP)
    assert_settled(server, stream, ["1-0", "2-0", MAX_ID], [complete(server.url, stream)])


@pytest.mark.parametrize("kind", KINDS)
def test_the_servers_clock_goes_back(
    start_server: StartServer, stream: str, tmp_path: Path, kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A drain waits until its records' ids are later than the last; nothing is lost or doubled."""
    clock = Clock(tmp_path, monkeypatch)
    server = start_server(kind)
    ids = seed(server, stream, 200, delivered=100)[100:]
    started = time.monotonic()
    run = complete(server.url, stream, throttle="1000", at=(40, lambda: clock.step(-2)))
    assert time.monotonic() - started > 1.5
    assert_settled(server, stream, ids, [run])
