"""The test tools keep their promises: a fault suite on tools that lie proves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
import servers
from conftest import ROOT, Cli, need
from proxy import Proxy
from redis.backoff import NoBackoff
from redis.retry import Retry
from servers import Server


def test_each_kind_is_the_server_it_claims_to_be(server: Server) -> None:
    """The server that answers is the program of its kind, on the socket and the port."""
    with redis.Redis.from_url(server.tcp_url) as over_tcp:
        info: Any = over_tcp.info("server")
    number = info.get("valkey_version") or info["redis_version"]
    assert server.version.split()[1] == number
    assert info["process_id"] == server.pid
    if server.kind == "redis62":
        assert number.startswith("6.2.")


ORPHANS = """
import guard, servers, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has it ignored
started = [servers.start(kind) for kind in sys.argv[1:]]
print(guard.guard().folder, *(server.pid for server in started), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_servers_die_with_their_parent(how: signal.Signals) -> None:
    """Whatever ends a test process, SIGKILL too, its servers and their folder go with it."""
    kinds = [kind for kind in servers.KINDS if servers.version(kind)]
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHANS, *kinds],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        folder, *pids = parent.stdout.readline().split()
        assert len(pids) == len(kinds) > 0
        assert all(psutil.pid_exists(int(pid)) for pid in pids)
        parent.send_signal(how)
    try:
        servers.wait_until("the servers are gone", lambda: not any(map(_alive, map(int, pids))))
        servers.wait_until("their folder is gone", lambda: not Path(folder).exists())
    finally:
        for pid in filter(_alive, map(int, pids)):
            os.kill(pid, signal.SIGKILL)


def _alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_secret_that_is_printed_fails_its_test(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """The command line runs in a folder of its own, without DRAINKIT_* of ours, and is searched."""
    monkeypatch.setenv("DRAINKIT_REDIS_URL", "redis://:wordword@elsewhere")
    run = cli("drain", "--max-events", "wordword")
    assert (run.rc, cli.cwd) == (2, cli.cwd)
    assert "elsewhere" not in cli("status").err
    with pytest.raises(AssertionError, match="secret 'wordword' is on stderr"):
        cli("drain", "--max-events", "wordword", secret="wordword")


def test_ci_fails_where_a_laptop_skips(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """A missing server skips a test, but fails it where CI is set."""
    monkeypatch.setattr(servers, "version", lambda kind: None)
    for value, outcome in (("", pytest.skip.Exception), ("true", pytest.fail.Exception)):
        monkeypatch.setenv("CI", value)
        with pytest.raises(outcome, match="no redis server"):
            need("redis")


@pytest.mark.parametrize(
    ("kind", "ran"),
    [("cut_before", 0), ("cut_after", 1), ("half_reply", 1), ("black_hole", 0),
     ("delay_request", 0), ("delay_reply", 1)],
)  # fmt: skip
def test_a_fault_hits_the_nth_matching_request(
    valkey: Server, start_proxy: Callable[..., Proxy], kind: Any, ran: int
) -> None:
    """The third INCR is hit, none before or after; by then it ran just where the fault says so."""
    proxy = start_proxy(valkey)
    proxy.arm(kind, match=b"INCR", nth=3, delay_sec=0.6)
    options: Any = {"retry": Retry(NoBackoff(), 0), "socket_timeout": 0.3}
    with redis.Redis.from_url(proxy.url, **options) as client:
        assert [client.incr("n"), client.set("other", "x"), client.incr("n")] == [1, True, 2]
        with pytest.raises((redis.ConnectionError, redis.TimeoutError)):
            client.incr("n")
        assert valkey.client().get("n") == b"%d" % (2 + ran)
        if kind == "delay_request":
            servers.wait_until("it runs at last", lambda: valkey.client().get("n") == b"3")
            ran = 1
        assert client.incr("n") == 3 + ran
    assert proxy.fired == 1
