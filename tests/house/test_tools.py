"""The test tools keep their promises: a fault suite on tools that lie proves nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
import servers
from conftest import ROOT, Cli
from proxy import Proxy
from redis.backoff import NoBackoff
from redis.retry import Retry
from servers import Server


def test_servers_are_of_their_kind_and_die_with_their_parent(server: Server) -> None:
    """The server that answers is the program of its kind. After a SIGKILL of the process that
    started one it is gone, and its folder."""
    info: Any = server.client().info("server")
    number = info.get("valkey_version") or info["redis_version"]
    assert (server.version.split()[1], server.pid) == (number, info["process_id"])
    assert number.startswith("6.2.") == (server.kind == "redis62")
    code = f"import servers; s = servers.start({server.kind!r}); print(s.folder, s.pid); input()"
    parent = subprocess.Popen([sys.executable, "-uc", code], cwd=ROOT / "tests", text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert parent.stdout is not None
    folder, pid = parent.stdout.readline().split()
    assert psutil.pid_exists(int(pid))
    parent.kill()
    parent.communicate()
    servers.wait_until("its folder is gone", lambda: not Path(folder).exists())
    servers.wait_until("it is gone", lambda: not psutil.pid_exists(int(pid))
                       or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE)  # fmt: skip


def test_a_secret_that_is_printed_fails_its_test(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """The command line runs without DRAINKIT_* of ours, and what it says is searched."""
    monkeypatch.setenv("DRAINKIT_REDIS_URL", "redis://:wordword@elsewhere")
    assert "elsewhere" not in cli("status").err
    with pytest.raises(AssertionError, match="secret 'wordword' is on stderr"):
        cli("drain", "--max-events", "wordword", secret="wordword")


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
        assert valkey.ask("GET", "n") == b"%d" % (2 + ran)
        if kind == "delay_request":
            servers.wait_until("it runs at last", lambda: valkey.ask("GET", "n") == b"3")
            ran = 1
        assert client.incr("n") == 3 + ran
    assert proxy.fired == 1
