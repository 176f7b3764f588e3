"""The server fails, is refused its means, or has its keys changed under a drain at work."""

from __future__ import annotations

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
from books import GROUP, ask, pending, seed
from faults import assert_settled, attempt, complete
from servers import Server, wait_until

Clean = Callable[[str], Server]
StartServer = Callable[..., Server]


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
    start_server: StartServer, stream: str, kind: str, fsync: str, throttle: str
) -> None:
    """Killed and restarted from its AOF, the server ends the run (exit 3); the next finishes."""
    server = start_server(kind, config={"appendonly": "yes", "appendfsync": fsync})
    ids = seed(server, stream, 2500, delivered=100)[100:]

    def crash() -> None:
        server.kill()
        server.start()

    first = attempt(server.url, stream, throttle=throttle, at=(400, crash))
    assert first.rc == 3
    assert "run the same command again" in first.error
    again = complete(server.url, stream, throttle="none")
    assert_settled(server, stream, ids, [first, again])
    assert pending(server, stream) == 0


@pytest.mark.parametrize("kind", ["valkey", "redis", "redis62"])
def test_data_that_went_back_in_a_process(
    start_server: StartServer, stream: str, kind: str
) -> None:
    """A primary that was its replica's replica meanwhile has lost records: exit 3, then all."""
    server, other = start_server(kind, port=True), start_server(kind, port=True)
    follow(other, server)
    ids = seed(server, stream, 700, delivered=100)[100:]
    wait_until("the other has it", lambda: ask(server, "WAIT", 1, 1000) == 1)

    def back() -> None:
        follow(server, other)
        ask(server, "REPLICAOF", "NO", "ONE")
        ask(server, "CLIENT", "KILL", "TYPE", "normal")

    todo = [(100, lambda: ask(other, "REPLICAOF", "NO", "ONE")), (300, back)]
    first = attempt(server.url, stream, throttle="1000", at=todo[0], then=todo[1])
    assert first.rc == 3
    again = complete(server.url, stream, throttle="none")
    assert_settled(server, stream, ids, [again])


def follow(replica: Server, primary: Server) -> None:
    """REPLICAOF, until all is there."""
    ask(replica, "REPLICAOF", "127.0.0.1", str(primary.port))
    wait_until("it follows", lambda: ask(replica, "ROLE")[3] == b"connected")


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


def test_a_busy_script(valkey: Server, stream: str) -> None:
    """While somebody's script blocks the server, the run waits and then goes on."""
    ids = seed(valkey, stream, 300, delivered=100)[100:]

    def block() -> None:
        endless_script(valkey)
        threading.Timer(0.8, lambda: valkey.client().script_kill()).start()

    run = complete(valkey.url, stream, at=(80, block))
    assert_settled(valkey, stream, ids, [run])


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
    assert first.rc == 3
    assert "busy" in first.error
    again = complete(valkey.url, stream)
    assert_settled(valkey, stream, ids, [first, again])


def test_scripts_are_flushed(server: Server, stream: str) -> None:
    """SCRIPT FLUSH at any time does not matter: each script travels with its call."""
    ids = seed(server, stream, 500, delivered=100)[100:]
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
def test_writes_refused_midway(server: Server, stream: str, refusal: str, throttle: str) -> None:
    """The run ends with a clear line, at once; when writes work again, it is finished."""
    refuse, rc, text = REFUSALS[refusal]
    ids = seed(server, stream, 2500, delivered=100)[100:]
    undo: list[Callable[[], None]] = []
    started = time.monotonic()
    first = attempt(
        server.url, stream, throttle=throttle, at=(80, lambda: undo.append(refuse(server)))
    )
    assert time.monotonic() - started < 8
    assert first.rc == rc
    assert text in first.error
    assert first.books["errors"] == (rc == 1)
    undo[0]()
    again = complete(server.url, stream)
    assert_settled(server, stream, ids, [first, again])


@pytest.mark.parametrize("refusal", REFUSALS)
def test_writes_refused_from_the_start(server: Server, stream: str, refusal: str) -> None:
    """A server that refuses writes ends the run before anything is written."""
    refuse, rc, text = REFUSALS[refusal]
    if refusal == "OOM":  # held against maxmemory before it is met
        rc, text = 4, "maxmemory"
    seed(server, stream, 200)
    undo = refuse(server)
    run = attempt(server.url, stream)
    undo()
    assert (run.rc, run.summary) == (rc, None)
    assert text in run.error
    assert pending(server, stream) == 0
    assert consumers(server, stream) == []


@pytest.mark.parametrize("kind", ["valkey", "redis", "redis62"])
def test_a_disk_that_cannot_be_written(
    start_server: StartServer, stream: str, tmp_path: Path, kind: str
) -> None:
    """MISCONF ends the run with a clear line; once the disk is back, it is finished."""
    folder = tmp_path / "data"
    folder.mkdir()
    server = start_server(kind, config={"dir": str(folder), "save": "3600 1"})
    ids = seed(server, stream, 400, delivered=100)[100:]

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
        again = complete(server.url, stream)
        assert_settled(server, stream, ids, [first, again])
    finally:
        server.kill()  # an orderly end would try to save


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
    runs.append(attempt(url, stream))
    assert runs[-1].rc == 0, runs[-1].error
    assert_settled(server, stream, ids, runs)
