"""How the server is found, through nodes that hang, by whatever name; and how a link ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import clusters
import pytest
from backlogs import GROUP, seed
from books import ask, at
from clusters import Cluster
from conftest import Cli, need
from servers import Server


def fill_cluster(cluster: Cluster, stream: str) -> None:
    """20 entries that nobody can read, and the group before them."""
    node = cluster.primary_of(stream)
    for _ in range(20):
        ask(node, "XADD", stream, "*", "a", "b")
    ask(node, "XGROUP", "CREATE", stream, GROUP, "0-0")


@contextmanager
def frozen(server: Server) -> Iterator[None]:
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def assert_quick(cli: Cli, hanging: Server, *command: str) -> None:
    """The command takes at most 3 s longer while `hanging` hangs."""
    times: list[float] = []
    assert cli("status", "--help").rc == 0  # the first one starts what the tests' programs share
    for server in (None, hanging):
        with frozen(server) if server else nullcontext():
            begun = time.monotonic()
            run = cli(*command)
            times.append(time.monotonic() - begun)
            assert run.rc == 0, run.err
    assert times[1] - times[0] < 3


@pytest.mark.parametrize("named", ["unknown-endpoint", "hostname"])
def test_how_a_clusters_nodes_are_called(stream: str, cli: Cli, named: str) -> None:
    """Nodes without a name, or with one that nobody set, are found where their Cluster says."""
    config = {"cluster-preferred-endpoint-type": named}
    with clusters.start_cluster(need("redis"), replicas=0, config=config) as cluster:
        fill_cluster(cluster, stream)
        for node in cluster.nodes:
            run = cli.done("drain", "--json", "--redis-url", node.tcp_url, "--stream", stream)
            assert run.json()["total_read"] == 20
        run = cli("check", "--json", "--redis-url", cluster.url, "--all-streams", f"{stream}*")
        assert [found["stream"] for found in run.json()["findings"]] == [stream], run


def test_a_node_that_hangs_holds_up_nobody_else(stream: str, cli: Cli) -> None:
    """A hanging seed costs at most 3 s; --all-streams goes on with the others and names it."""
    config = {"cluster-node-timeout": "600000", "cluster-require-full-coverage": "no"}
    with clusters.start_cluster(need("valkey"), replicas=0, config=config) as cluster:
        names = {
            node.port: next(name for i in range(99)
                            if cluster.primary_of(name := f"{stream}.{i}") is node)
            for node in cluster.nodes
        }  # fmt: skip
        for name in names.values():
            fill_cluster(cluster, name)
        hanging, other, _ = cluster.nodes
        seeds = ",".join(f"127.0.0.1:{node.port}" for node in cluster.nodes)
        at = ("--json", "--redis-url", f"redis+cluster://{seeds}", "--stream")
        assert_quick(cli, hanging, "status", *at, names[other.port])
        with frozen(hanging):
            for command in ("run", "check"):
                run = cli(command, *at, names[hanging.port], "--all-streams", f"{stream}*")
                assert run.rc == 3, run
                found = run.json()["streams"]
                done = {one["stream"]["name"] if command == "check" else one["stream"]
                        for one in found if not one.get("exit_code")}  # fmt: skip
                assert done == {names[node.port] for node in cluster.nodes} - {names[hanging.port]}
                assert f"127.0.0.1:{hanging.port}" in run.out


def test_a_sentinel_that_hangs(stream: str, cli: Cli) -> None:
    """It costs at most 3 s where another one answers."""
    with clusters.start_sentinel(need("valkey"), sentinels=2) as setup:
        ask(setup.primary, "XADD", stream, "*", "a", "b")
        assert_quick(cli, setup.sentinels[0], "status", *at(setup, stream))


def test_an_output_buffer_limit_is_named(valkey: Server, stream: str, cli: Cli) -> None:
    """Where the server ends a connection over a reply, the error names the limit it may have."""
    seed(valkey, stream)
    ask(valkey, "CONFIG", "SET", "client-output-buffer-limit", "normal 5kb 0 0")
    assert "client-output-buffer-limit" in cli.fails(3, "drain", *at(valkey, stream))


def test_options_of_a_url_that_cannot_be(valkey: Server, cli: Cli) -> None:
    """A timeout that is none, a database that is not there: exit code 2, which names it."""
    for name in ("socket_timeout", "socket_connect_timeout"):
        for value in ("-1", "0", "nan", "1e300"):
            url = f"{valkey.tcp_url}?{name}={value}"
            assert name in cli.fails(2, "status", "--redis-url", url), value
    url = valkey.tcp_url.removesuffix("/0") + "/99"
    assert "--redis-url" in cli.fails(2, "status", "--redis-url", url)
