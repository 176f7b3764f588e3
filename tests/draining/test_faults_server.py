"""The server fails, is refused its means, or has its keys changed under a drain at work."""

from __future__ import annotations

import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from books import GROUP, ME, ask, audit, pending, seed
from conftest import Fill, intent
from faults import Attempt, assert_once, assert_settled, attempt, key
from servers import Server, wait_until

Clean = Callable[[str], Server]
StartServer = Callable[..., Server]

MAX_ID = "18446744073709551615-18446744073709551615"


def settings_of(server: Server, **values: object) -> None:
    """CONFIG SET, one by one."""
    for name, value in values.items():
        ask(server, "CONFIG", "SET", name.replace("_", "-"), str(value))


def consumers(server: Server, stream: str) -> list[Any]:
    return list(ask(server, "XINFO", "CONSUMERS", stream, GROUP))


# ---------------------------------------------------------------- crashes


@pytest.mark.parametrize(
    ("kind", "fsync"), [("valkey", "always"), ("redis", "everysec"), ("redis62", "everysec")]
)
@pytest.mark.parametrize("throttle", ["1000", "none"])
def test_a_crash_of_the_server(
    start_server: StartServer, stream: str, fill: Fill, kind: str, fsync: str, throttle: str
) -> None:
    """Killed and restarted from its AOF, the server ends the run (exit 3); the next finishes."""
    server = start_server(kind, config={"appendonly": "yes", "appendfsync": fsync})
    ids = seed(server, stream, fill, 2500, delivered=100)[100:]

    def crash() -> None:
        server.kill()
        server.start()

    first = attempt(server.url, stream, throttle=throttle, at=(400, crash))
    assert first.rc == 3
    assert "run the same command again" in first.error
    again = attempt(server.url, stream, throttle="none")
    assert again.rc == 0, again.error
    assert_settled(server, stream, ids, [first, again])
    assert pending(server, stream) == 0


def test_a_server_that_is_loading(start_server: StartServer, stream: str, fill: Fill) -> None:
    """While the server loads its data, a run exits 3 and says so; afterwards it works."""
    slow = {"key-load-delay": "20000", "loading-process-events-interval-bytes": "1024"}
    server = start_server("redis", config=slow)
    ids = seed(server, stream, fill, 150, delivered=100)[100:]
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
    again = attempt(server.url, stream)
    assert again.rc == 0, again.error
    assert_settled(server, stream, ids, [early, again])


def endless_script(server: Server) -> threading.Thread:
    """A script that blocks the server until it is killed; by now the server answers BUSY."""
    settings_of(server, busy_reply_threshold=50)
    blocker = server.client()

    def loop() -> None:
        with pytest.raises(redis.ResponseError):
            blocker.eval("while true do end", 0)

    thread = threading.Thread(target=loop)
    thread.start()
    time.sleep(0.3)
    return thread


def test_a_busy_script(valkey: Server, stream: str, fill: Fill) -> None:
    """While somebody's script blocks the server, the run waits and then goes on."""
    ids = seed(valkey, stream, fill, 300, delivered=100)[100:]

    def block() -> None:
        endless_script(valkey)
        threading.Timer(0.8, lambda: valkey.client().script_kill()).start()

    run = attempt(valkey.url, stream, at=(80, block))
    assert run.rc == 0, run.error
    assert_settled(valkey, stream, ids, [run])


def test_a_busy_script_that_outlasts_the_patience(
    valkey: Server, stream: str, fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the run ends with exit code 3 and says why; the same command finishes it later."""
    monkeypatch.setattr("drainkit.draining.worker.RECOVERY_WAITS_SEC", (0.05, 0.1))
    ids = seed(valkey, stream, fill, 300, delivered=100)[100:]
    blocked: list[threading.Thread] = []
    first = attempt(valkey.url, stream, at=(80, lambda: blocked.append(endless_script(valkey))))
    valkey.client().script_kill()
    blocked[0].join()
    assert first.rc == 3
    assert "busy" in first.error
    again = attempt(valkey.url, stream)
    assert again.rc == 0, again.error
    assert_settled(valkey, stream, ids, [first, again])


def test_scripts_are_flushed(server: Server, stream: str, fill: Fill) -> None:
    """SCRIPT FLUSH at any time does not matter: each script travels with its call."""
    ids = seed(server, stream, fill, 500, delivered=100)[100:]
    done = threading.Event()

    def flush() -> None:
        client = server.client()
        while not done.wait(0.005):
            client.script_flush()

    flusher = threading.Thread(target=flush)
    flusher.start()
    try:
        run = attempt(server.url, stream)
    finally:
        done.set()
        flusher.join()
    assert run.rc == 0, run.error
    assert_settled(server, stream, ids, [run])


# ---------------------------------------------------------------- writes refused


def out_of_memory(server: Server) -> Callable[[], None]:
    settings_of(server, maxmemory="100kb", maxmemory_policy="noeviction")
    return lambda: settings_of(server, maxmemory=0)


def too_few_replicas(server: Server) -> Callable[[], None]:
    settings_of(server, min_replicas_to_write=1)
    return lambda: settings_of(server, min_replicas_to_write=0)


def demoted(server: Server) -> Callable[[], None]:
    ask(server, "REPLICAOF", "127.0.0.1", "1")  # nobody is there, so its data stays
    return lambda: ask(server, "REPLICAOF", "NO", "ONE")


REFUSALS: dict[str, tuple[Callable[[Server], Callable[[], None]], int, str]] = {
    "OOM": (out_of_memory, 1, "out of memory"),
    "NOREPLICAS": (too_few_replicas, 1, "too few replicas"),
    "READONLY": (demoted, 4, "replica"),
}


@pytest.mark.parametrize("throttle", ["2000", "none"])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_writes_refused_midway(
    server: Server, stream: str, fill: Fill, refusal: str, throttle: str
) -> None:
    """The run ends with a clear line, at once; when writes work again, it is finished."""
    refuse, rc, text = REFUSALS[refusal]
    ids = seed(server, stream, fill, 2500, delivered=100)[100:]
    undo: list[Callable[[], None]] = []
    started = time.monotonic()
    first = attempt(
        server.url, stream, throttle=throttle, at=(80, lambda: undo.append(refuse(server)))
    )
    assert time.monotonic() - started < 8
    assert first.rc == rc
    assert text in first.error
    assert first.summary is not None
    assert first.summary["errors"] == (rc == 1)
    undo[0]()
    again = attempt(server.url, stream)
    assert again.rc == 0, again.error
    assert_settled(server, stream, ids, [first, again])


@pytest.mark.parametrize("refusal", REFUSALS)
def test_writes_refused_from_the_start(
    server: Server, stream: str, fill: Fill, refusal: str
) -> None:
    """A server that refuses writes ends the run before anything is written."""
    refuse, rc, text = REFUSALS[refusal]
    seed(server, stream, fill, 200)
    undo = refuse(server)
    run = attempt(server.url, stream)
    undo()
    assert (run.rc, run.summary) == (rc, None)
    assert text in run.error
    assert pending(server, stream) == 0
    assert consumers(server, stream) == []


@pytest.mark.parametrize("kind", ["valkey", "redis", "redis62"])
def test_a_disk_that_cannot_be_written(
    start_server: StartServer, stream: str, fill: Fill, tmp_path: Path, kind: str
) -> None:
    """MISCONF ends the run with a clear line; once the disk is back, it is finished."""
    folder = tmp_path / "data"
    folder.mkdir()
    server = start_server(kind, config={"dir": str(folder), "save": "3600 1"})
    ids = seed(server, stream, fill, 400, delivered=100)[100:]

    def lose_disk() -> None:
        shutil.rmtree(folder)  # even root cannot write into a folder that is gone
        ask(server, "BGSAVE")
        wait_until(
            "the save failed",
            lambda: b"rdb_last_bgsave_status:err" in ask(server, "INFO", "persistence"),
        )

    try:
        first = attempt(server.url, stream, at=(80, lose_disk))
        assert first.rc == 1
        assert "disk" in first.error
        settings_of(server, stop_writes_on_bgsave_error="no")
        again = attempt(server.url, stream)
        assert again.rc == 0, again.error
        assert_settled(server, stream, ids, [first, again])
    finally:
        server.kill()  # an orderly end would try to save


def test_rights_taken_away_midway(clean: Clean, stream: str, fill: Fill) -> None:
    """Without the right to one of its commands any more, nothing is recorded without its ACK."""
    server = clean("redis")
    ids = seed(server, stream, fill, 600, delivered=100)[100:]
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
    runs.append(attempt(url, stream))
    assert runs[-1].rc == 0, runs[-1].error
    assert_settled(server, stream, ids, runs)


# ---------------------------------------------------------------- the stream and its group


def test_entries_trimmed_midway(server: Server, stream: str, fill: Fill) -> None:
    """What is committed by then is recorded as decided; what is trimmed before is simply gone."""
    ids = seed(server, stream, fill, 500, delivered=100)[100:]
    run = attempt(server.url, stream, at=(80, lambda: ask(server, "XTRIM", stream, "MAXLEN", 50)))
    assert run.rc == 0, run.error
    got = [r["original_id"] for r in audit(server, stream)]
    assert got[:80] == ids[:80]
    assert got[-50:] == ids[-50:]
    assert len(got) < 400
    assert_settled(server, stream, got, [run])


def test_entries_deleted_while_pending(server: Server, stream: str, fill: Fill) -> None:
    """Delivered to this drain's consumer long ago and deleted now, each is recorded as missing."""
    ids = seed(server, stream, fill, 200, delivered=100)[100:]
    ask(server, "XREADGROUP", "GROUP", GROUP, ME, "COUNT", 60, "STREAMS", stream, ">")
    run = attempt(
        server.url,
        stream,
        throttle="1000",
        at=(10, lambda: ask(server, "XDEL", stream, *ids[40:50])),
    )
    assert run.rc == 0, run.error
    assert run.summary is not None
    assert run.summary["dropped_missing"] == 10
    assert_settled(server, stream, ids, [run])


def group_destroyed(server: Server, stream: str) -> None:
    ask(server, "XGROUP", "DESTROY", stream, GROUP)


def stream_deleted(server: Server, stream: str) -> None:
    ask(server, "DEL", stream)


def stream_recreated(server: Server, stream: str) -> None:
    """As a producer and its consumer do it: new entries, a group that starts at the beginning."""
    ask(server, "DEL", stream)
    for _ in range(5):
        ask(server, "XADD", stream, "*", "symbol", "BTCUSDT", "confidence", "0.9")
    ask(server, "XGROUP", "CREATE", stream, GROUP, "0-0")


def recreated_for_the_new(server: Server, stream: str) -> None:
    """With a group that wants only what is still to come: nothing of ours is undelivered there."""
    ask(server, "DEL", stream)
    ask(server, "XADD", stream, "*", "symbol", "BTCUSDT", "confidence", "0.9")
    ask(server, "XGROUP", "CREATE", stream, GROUP, "$")


def old_copy_restored(server: Server, stream: str) -> None:
    """As after a failover to a replica that lagged: fewer entries, and the group at the last."""
    ids = [entry[0] for entry in ask(server, "XRANGE", stream, "-", "+")][:150]
    ask(server, "DEL", stream)
    for entry in ids:
        ask(server, "XADD", stream, entry, "symbol", "BTCUSDT", "confidence", "0.9")
    ask(server, "XGROUP", "CREATE", stream, GROUP, "$")


def another_type(server: Server, stream: str) -> None:
    ask(server, "DEL", stream)
    ask(server, "SET", stream, "no stream")


def moved_back(server: Server, stream: str) -> None:
    ask(server, "XGROUP", "SETID", stream, GROUP, "0-0")


@pytest.mark.parametrize("throttle", ["2000", "none"])
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (group_destroyed, "group"),
        (stream_deleted, "stream"),
        (stream_recreated, "moved back|made anew"),
        (old_copy_restored, "made anew"),
        (another_type, "stream"),
        (moved_back, "moved back"),
    ],
)
def test_another_stream_or_group_midway(
    server: Server,
    stream: str,
    fill: Fill,
    change: Callable[[Server, str], None],
    text: str,
    throttle: str,
) -> None:
    """The run refuses to go on (exit 4): nothing new is recorded, what was recorded is counted."""
    ids = seed(server, stream, fill, 2500, delivered=100)[100:]
    at_change: list[int] = []

    def happen() -> None:
        change(server, stream)
        at_change.append(len(audit(server, stream)))

    run = attempt(server.url, stream, throttle=throttle, at=(400, happen))
    assert run.rc == 4, run.error
    assert re.search(text, run.error)
    records = audit(server, stream)
    assert len(records) == at_change[0]
    assert_once(records, ids[: len(records)])
    assert run.summary is not None
    assert run.summary["total_read"] == len(records)
    if change in (group_destroyed, stream_deleted):
        assert run.summary["remaining"] is None  # without its group nobody knows


@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_a_stream_recreated_for_new_entries_only(
    clean: Clean, stream: str, fill: Fill, kind: str
) -> None:
    """Where the server counts what was ever added (7.0 and later), that is noticed, too."""
    server = clean(kind)
    ids = seed(server, stream, fill, 500, delivered=100)[100:]
    run = attempt(server.url, stream, at=(80, lambda: recreated_for_the_new(server, stream)))
    assert run.rc == 4
    assert "made anew" in run.error
    assert_once(audit(server, stream), ids[:80])


def test_a_group_moved_back_and_put_right_again(server: Server, stream: str, fill: Fill) -> None:
    """After SETID backwards the run stops; with the position put right, each is recorded once."""
    ids = seed(server, stream, fill, 500, delivered=100)[100:]
    before: list[bytes] = []

    def back() -> None:
        info = ask(server, "XINFO", "GROUPS", stream)[0]
        before.append(info[info.index(b"last-delivered-id") + 1])
        moved_back(server, stream)

    first = attempt(server.url, stream, at=(80, back))
    assert first.rc == 4
    ask(server, "XGROUP", "SETID", stream, GROUP, before[0])
    again = attempt(server.url, stream)
    assert again.rc == 0, again.error
    assert_settled(server, stream, ids, [first, again])


# ---------------------------------------------------------------- the side keys


def test_an_audit_key_of_another_type(server: Server, stream: str, fill: Fill) -> None:
    """From the start: refused, nothing written. Midway: refused, and finished when put right."""
    ids = seed(server, stream, fill, 500, delivered=100)[100:]
    name = f"{stream}.drain_audit"
    ask(server, "SET", name, "text")
    run = attempt(server.url, stream)
    assert (run.rc, run.summary) == (4, None)
    assert consumers(server, stream) == []
    ask(server, "DEL", name)

    def replace() -> None:
        ask(server, "RENAME", name, "kept")
        ask(server, "SET", name, "text")

    first = attempt(server.url, stream, at=(80, replace))
    assert first.rc == 4
    assert "type" in first.error
    ask(server, "RENAME", "kept", name)
    again = attempt(server.url, stream)
    assert again.rc == 0, again.error
    assert_settled(server, stream, ids, [first, again])


@pytest.mark.parametrize("suffix", ["drain_runs", "drain_state"])
def test_another_side_key_of_another_type(
    valkey: Server, stream: str, fill: Fill, suffix: str
) -> None:
    """Ledger and state too are looked at before anything is written, and named when wrong."""
    seed(valkey, stream, fill, 200)
    ask(valkey, "SET", f"{stream}.{suffix}", "text")
    run = attempt(valkey.url, stream)
    assert (run.rc, run.summary) == (4, None)
    assert f"{stream}.{suffix} is a string" in run.error
    assert consumers(valkey, stream) == []


@pytest.mark.parametrize("last", [MAX_ID, "18446744073709551615-18446744073709551612"])
@pytest.mark.parametrize("when", [0, 80])
def test_audit_ids_that_are_used_up(
    server: Server, stream: str, fill: Fill, last: str, when: int
) -> None:
    """Without ids to give, nothing is recorded or acknowledged; another audit stream helps."""
    ids = seed(server, stream, fill, 400, delivered=100)[100:]

    def use_up() -> None:
        ask(server, "XADD", f"{stream}.drain_audit", last, "not", "a record")

    if when == 0:
        use_up()
        first = attempt(server.url, stream)
        assert first.summary is None
        assert consumers(server, stream) == []
    else:
        first = attempt(server.url, stream, at=(when, use_up))
        assert first.summary is not None
        assert first.summary["total_read"] == 80
    assert first.rc == 1
    assert "--audit-stream" in first.error
    again = attempt(server.url, stream, audit_stream=f"{stream}.audit2")
    assert again.rc == 0, again.error
    assert_settled(server, stream, ids[when:], [again], audit_key=f"{stream}.audit2")


def test_an_audit_id_whose_millisecond_is_full(server: Server, stream: str, fill: Fill) -> None:
    """Ids that run out within one millisecond go on in the next; the batch is whole."""
    ids = seed(server, stream, fill, 900, delivered=100)[100:]

    def fill_up() -> None:
        seconds, micros = ask(server, "TIME")
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        ask(
            server, "XADD", f"{stream}.drain_audit", f"{now_ms}-18446744073709551610",
            "original_id", "0-1", "run_id", "x",
        )  # fmt: skip

    run = attempt(server.url, stream, throttle="none", at=(400, fill_up))
    assert run.rc == 0, run.error
    ask(server, "XDEL", f"{stream}.drain_audit", *[
        r["audit_id"] for r in audit(server, stream) if r["original_id"] == "0-1"
    ])  # fmt: skip
    assert_settled(server, stream, ids, [run])


def test_a_foreign_entry_in_the_audit_stream(valkey: Server, stream: str, fill: Fill) -> None:
    """Something that is no record, put into the audit stream, stops no run and is never counted."""
    ids = seed(valkey, stream, fill, 300, delivered=100)[100:]
    name = f"{stream}.drain_audit"
    ask(valkey, "XADD", name, "*", "\xff", "\x1b[2J")
    run = attempt(valkey.url, stream, at=(80, lambda: ask(valkey, "XADD", name, "*", "a", "b")))
    assert run.rc == 0, run.error
    foreign = [e[0] for e in ask(valkey, "XRANGE", name, "-", "+") if len(e[1]) == 2]
    ask(valkey, "XDEL", name, *foreign)
    assert_settled(valkey, stream, ids, [run])


def test_the_servers_clock_goes_back(valkey: Server, stream: str, fill: Fill) -> None:
    """An audit stream a second ahead of the clock is waited for; its ids never stand still."""
    ids = seed(valkey, stream, fill, 300, delivered=100)[100:]
    seconds, micros = ask(valkey, "TIME")
    ahead = int(seconds) * 1000 + int(micros) // 1000 + 1000
    ask(valkey, "XADD", f"{stream}.drain_audit", f"{ahead}-0", "original_id", "0-1")
    started = time.monotonic()
    run = attempt(valkey.url, stream, throttle="1000")
    assert run.rc == 0, run.error
    assert time.monotonic() - started > 0.8
    ask(valkey, "XDEL", f"{stream}.drain_audit", f"{ahead}-0")
    assert_settled(valkey, stream, ids, [run])


def test_the_end_of_ids_in_the_stream_itself(server: Server, stream: str, fill: Fill) -> None:
    """A stream whose own last id is the greatest there is is drained like any other."""
    entries = [(1, intent()), (2, intent()), (MAX_ID, intent())]
    fill(server, stream, entries, group=GROUP)
    run = attempt(server.url, stream)
    assert run.rc == 0, run.error
    assert_settled(server, stream, ["1-0", "2-0", MAX_ID], [run])
    assert isinstance(run, Attempt)
    assert key(MAX_ID) == (2**64 - 1, 2**64 - 1)
