"""What the server does with what is recorded: room for it, eviction, disk."""

from __future__ import annotations

import re

import pytest
from backlogs import seed
from books import ask, at, audit, everything, live
from conftest import Cli
from servers import Server

EVICTS = "the server may evict any key (allkeys-lru, maxmemory "


@pytest.mark.parametrize("policy", ["noeviction", "allkeys-lru"])
def test_a_drain_without_room(server: Server, stream: str, cli: Cli, policy: str) -> None:
    """4,000 events and 2 MB: exit code 4 with both numbers, nothing written, nothing evicted."""
    seed(server, stream, 4000, delivered=0)
    used = int(server.client().info("memory")["used_memory"])
    ask(server, "CONFIG", "SET", "maxmemory", used + 2_000_000)
    ask(server, "CONFIG", "SET", "maxmemory-policy", policy)
    before = everything(server)
    run = cli(*live(server, stream))
    assert (run.rc, everything(server)) == (4, before)
    said = re.search("of 4,000 events need about (.*) KB of .* leaves (.*) KB; raise", run.err)
    assert said is not None
    needed, left = (int(number.replace(",", "")) for number in said.groups())
    assert left < 2100 < needed < 4000 * 0.4 + 1100
    assert cli(*live(server, stream, "--max-events", 200)).rc == 0
    assert len(audit(server, stream)) == 200
    assert server.client().info("stats")["evicted_keys"] == 0


def test_a_server_that_loses_things_is_named(server: Server, stream: str, cli: Cli) -> None:
    """Eviction: status and a warning of check. Nothing on disk: status. Untold: unknown."""
    seed(server, stream, 5, delivered=5)
    told = cli("status", "--json", *at(server, stream)).json()["server"]
    text = cli("status", *at(server, stream)).out
    counts_snapshots = server.kind != "redis62"
    assert (told["may_evict"], told["on_disk"]) == (False, False if counts_snapshots else None)
    assert ("has kept nothing on disk" if counts_snapshots else "on disk is unknown") in text
    assert cli("check", *at(server, stream)).rc == 0
    ask(server, "CONFIG", "SET", "maxmemory", 10**9)
    ask(server, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    ask(server, "CONFIG", "SET", "appendonly", "yes")
    told = cli("status", "--json", *at(server, stream)).json()["server"]
    assert (told["may_evict"], told["on_disk"]) == (True, True)
    text = cli("status", *at(server, stream)).out
    assert (EVICTS in text, "on disk" in text) == (True, False)
    run = cli("check", *at(server, stream))
    assert (run.rc, run.out.count(EVICTS)) == (1, 1)
    assert run.out.startswith(f"WARNING: {stream}: {EVICTS}")
