"""Dead consumers: which can be removed, and that nothing pending goes with them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from backlogs import GROUP, add_consumers, deliver, seed
from books import ask, at, audit, everything, ledger_of, pending
from conftest import Cli
from proxy import Proxy
from servers import Server

from drainkit.operations.maintenance import dead_consumers, remove_consumers
from drainkit.server.connection import Server as Link

FAST = ("--throttle", "none", "--max-events", "all")


def test_dead_consumers_without_pending_go(server: Server, stream: str, cli: Cli) -> None:
    """Behind 10,012 entries, 31 of 34 dead consumers go; 3 stay for their pending until drained."""
    seed(server, stream, 10_112, delivered=50)
    for i in range(31):
        ask(server, "XGROUP", "CREATECONSUMER", stream, GROUP, f"idle-{i}")
    for name in ("worker-1", "worker-2", "worker-3"):
        deliver(server, stream, name, 50 // 3)
    deliver(server, stream, "worker-3", 2)
    time.sleep(0.7)
    options = ("consumers", "--json", "--min-idle-min", "0.01", *at(server, stream))
    before = everything(server)
    listed = cli.done(*options)
    assert len(listed.json()["dead"]) == 34
    assert len(listed.json()["removable"]) == 31
    assert everything(server) == before
    assert cli(*options, "--delete").rc == 4
    assert everything(server) == before

    ran = cli.done(*options, "--delete", "--yes")
    assert len(ran.json()["removed"]) == 31
    assert set(ran.json()["kept"]) == {"worker-1", "worker-2", "worker-3"}
    assert all("pending" in why for why in ran.json()["kept"].values())
    assert pending(server, stream) == 50
    text = cli(*options[:1], *options[2:]).out
    (kept,) = [line for line in text.splitlines() if line.startswith("worker-2 ")]
    assert "stays: 16 pending entries" in kept

    drained = cli.done("drain", "--mode", "live", "--yes", "--json", *at(server, stream), *FAST,
                       "--scope", "pending", "--min-idle-min", "0.01")  # fmt: skip
    assert drained.json()["total_read"] == 50
    ran = cli(*options, "--delete", "--yes")
    assert {"worker-1", "worker-2", "worker-3"} <= set(ran.json()["removed"])
    assert pending(server, stream) == 0
    assert len(audit(server, stream)) == 50


@pytest.fixture(params=[1000, 0])
def most_listed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to how many groups or consumers a script lists: more than there are, or none."""
    monkeypatch.setattr("drainkit.server.writing.MAX_LISTED", request.param)


@pytest.mark.usefixtures("most_listed")
def test_a_consumer_that_comes_back_keeps_its_entries(valkey: Server, stream: str) -> None:
    """Consumers that read at the very moment of their removal never lose a pending entry."""
    seed(valkey, stream, 400, delivered=0)
    names = [f"c{i}" for i in range(20)]
    for name in names:
        ask(valkey, "XGROUP", "CREATECONSUMER", stream, GROUP, name)
    got: list[str] = []
    done = threading.Event()

    def come_back() -> None:
        client = valkey.client()
        for i in range(400):
            reply = client.xreadgroup(GROUP, names[i % 20], {stream: ">"}, count=1)
            got.append(reply[0][1][0][0].decode())
        done.set()

    thread = threading.Thread(target=come_back)
    with Link(valkey.url, stream) as link:
        thread.start()
        while not done.is_set():
            remove_consumers(link, GROUP, names, min_idle_ms=0)
            assert thread.is_alive() or done.is_set()
        thread.join()
    rows = ask(valkey, "XPENDING", stream, GROUP, "-", "+", 1000)
    assert [row[0].decode() for row in rows] == got
    assert len(got) == 400


@pytest.mark.usefixtures("most_listed")
def test_an_active_consumer_stays(valkey: Server, stream: str) -> None:
    """Listed as dead but active at the moment of removal, a consumer stays and it says so."""
    seed(valkey, stream, 10, delivered=10)
    ask(valkey, "XGROUP", "CREATECONSUMER", stream, GROUP, "sleeper")
    time.sleep(0.3)
    with Link(valkey.url, stream) as link:
        assert [c.name for c in dead_consumers(link, GROUP, min_idle_ms=200)] == ["sleeper"]
        ask(valkey, "XGROUP", "CREATECONSUMER", stream, GROUP, "idle")
        time.sleep(0.2)
        ask(valkey, "XREADGROUP", "GROUP", GROUP, "sleeper", "STREAMS", stream, ">")
        names = ["sleeper", "nobody", "idle"]
        removed, kept = remove_consumers(link, GROUP, names, min_idle_ms=200)
    assert removed == ["idle"]
    assert "came back" in kept["sleeper"]
    assert "gone" in kept["nobody"]


def test_two_operators_count_only_their_own_removals(
    valkey: Server, stream: str, cli: Cli, start_proxy: Callable[..., Proxy]
) -> None:
    """Of 1,100 consumers that both have listed, each tells and notes those that it removed."""
    seed(valkey, stream, 10, delivered=10)
    add_consumers(valkey, stream, 1_100)
    proxy = start_proxy(valkey)
    proxy.arm("delay_request", match=b"EVAL", nth=2, delay_sec=2)
    command = ("consumers", "--delete", "--min-idle-min", 0, "--yes", "--json")
    slow = cli.start(*command, *at(proxy, stream))
    proxy.wait_fired()
    others = len(cli(*command, *at(valkey, stream)).json()["removed"])
    own = len(cli.finish(slow).json()["removed"])
    assert (own, others) == (500, 600)
    assert [e["removed"] for e in ledger_of(valkey, stream)] == ["600", "500"]
