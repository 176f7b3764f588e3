"""Cluster, Sentinel, TLS, passwords and unix sockets, on real servers that the tests start: how the
server is found, through nodes that hang, by whatever name; and how a link ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import quote

import clusters
import pytest
from backlogs import backlog
from books import worst_window
from clusters import Cluster, SentinelSetup, make_certificates
from conftest import Cli, need, one_line_error
from faults import Attempt, assert_once, in_step
from place import BUNDLED, Place
from servers import Server, wait_until

PASSWORD = "s3cr:t/p@ss?#é"


def on_cluster(cluster: Cluster, stream: str, cli: Cli, n: int) -> tuple[Place, list[str]]:
    """The stream on its primary, reached by any node; n recent entries, and their ids."""
    base = stream if "{" in stream else f"{{{stream}}}"
    place = Place(cluster.primary_of(stream), stream, cli, cluster.url, base)
    ids = place.fill(backlog(int(time.time() * 1000), n))
    return place, [entry.decode() for entry in ids]


def is_primary(node: Server) -> bool:
    return bool(node.ask("ROLE")[0] == b"master")


# ---------------------------------------------------------------- cluster


@pytest.mark.parametrize("tagged", [False, True], ids=["no tag", "a tag"])
def test_side_keys_share_the_slot(cluster: Cluster, stream: str, cli: Cli, tagged: bool) -> None:
    """On a Cluster a drain works from any node; its side keys have the stream's hash tag."""
    name = f"{{{stream}}}.intents" if tagged else stream
    place, ids = on_cluster(cluster, name, cli, 60)
    run = place.live("--redis-url", cluster.nodes[-1].tcp_url)
    side = {*map(place.side, ("audit", "runs", "state", "recorded"))}
    assert {key.decode() for key in place.ask("KEYS", "*")} == {name, *side}
    slots = {place.ask("CLUSTER", "KEYSLOT", key) for key in (name, *side, place.side("stop"))}
    assert len(slots) == 1
    place.settled(ids, Attempt(0, run, ""))


def test_a_key_elsewhere_is_refused(cluster: Cluster, stream: str, cli: Cli) -> None:
    """An audit stream, or an allowlist, in another slot is refused with the reason, before anything
    is written; with the tag it is taken. A stream that can have no side keys (`x{}y`) is unknown to
    `check --all-streams`, and the others are judged."""
    place, ids = on_cluster(cluster, stream, cli, 20)
    before, near = place.everything(), f"{{{stream}}}:allowed"
    cluster.primary_of(near).ask("SADD", near, "BTCUSDT")
    far = next(name for i in range(99)
               if cluster.primary_of(name := f"allowed{i}") is not place.server)  # fmt: skip
    said = place.refused("--audit-stream", "elsewhere")
    assert "another Cluster slot" in said
    assert "hash tag" in said
    assert "hash tag" in place.refused("--allowlist", f"redis:{far}")
    place.dry("--allowlist", f"redis:{near}")
    place.ask("DEL", near)
    assert {**place.everything(), "changes": 0} == {**before, "changes": 0}
    place.live("--audit-stream", f"{{{stream}}}:mine")
    assert_once(place.audit(f"{{{stream}}}:mine"), ids)
    odd = Place(cluster.primary_of(f"{stream}{{}}odd"), f"{stream}{{}}odd", cli, cluster.url)
    odd.fill([("*", {"a": "b"})])
    more = [("*", {"a": "b"})] * 6
    place.fill(more, None)
    checked = cli("check", "--json", "--redis-url", cluster.url, "--all-streams", f"{stream}*",
                  "--max-backlog", "5")  # fmt: skip
    found = {(f["stream"], f["severity"]) for f in checked.json()["findings"]}
    assert {(odd.stream, "unknown"), (stream, "critical")} <= found
    assert "no hash tag" in odd.refused()


@pytest.mark.parametrize("atomically", [True, False], ids=["MIGRATESLOTS", "SETSLOT"])
def test_a_slot_that_moves_midway(
    cluster: Cluster, stream: str, cli: Cli, atomically: bool
) -> None:
    """A drain goes on where its slot went, and back: one run, nothing lost, throttle kept."""
    place, ids = on_cluster(cluster, stream, cli, 900)
    visited: list[Server] = []

    def go_round() -> None:
        for _ in range(3):
            cluster.move_slot(stream, atomically=atomically, pause_sec=0.05)
            visited.append(cluster.primary_of(stream))
            there = Place(visited[-1], stream, cli, base=place.base)
            there.wait_for(len(there.audit()) + 1, 20)

    moving = threading.Thread(target=go_round)
    run = place.attempt(throttle="300", at=(50, moving.start))
    moving.join()
    assert run.rc == 0, run.error
    assert len({node.port for node in visited}) == 3
    assert visited[-1] is place.server
    place.settled(ids, run)
    found = place.audit()
    assert {record["run_id"] for record in found} == {run.books["run_id"]}
    assert worst_window(found, 1000) <= 300
    assert worst_window(found, 100) <= 60


@pytest.mark.parametrize("how", ["failover", "killed"])
def test_a_replica_that_takes_over_is_no_move(
    cluster: Cluster, stream: str, cli: Cli, how: str
) -> None:
    """Where it does, also as its primary was killed, a drain ends with 3: what the primary did last
    may be lost; the same command finishes it."""
    place, ids = on_cluster(cluster, stream, cli, 600)
    home = place.server
    replica = next(node for node in cluster.nodes if node.ask("ROLE")[0] == b"slave"
                   and node.ask("ROLE")[2] == home.port)  # fmt: skip
    seeds = (home, *(node for node in cluster.nodes if node is not home))
    url = f"redis+cluster://{','.join(f'127.0.0.1:{node.port}' for node in seeds)}/0"

    def take_over() -> None:
        if how == "killed":  # what the replica has not got yet is lost with its primary
            assert home.ask("WAIT", 1, 2000) >= 1
            home.kill()
        else:
            replica.ask("CLUSTER", "FAILOVER")
            wait_until("the old one follows", lambda: not is_primary(home))

    first = place.attempt(url, at=(120, take_over))
    assert first.rc == 3
    if how == "failover":
        assert "another took over" in first.error

    wait_until("the replica has taken over", lambda: is_primary(replica), timeout_sec=30)
    cluster.wait()
    again = place.complete(url)
    Place(replica, stream, cli, base=place.base).settled(ids, first, again)


# ---------------------------------------------------------------- sentinel


def test_a_failover_midway(sentinel: SentinelSetup, stream: str, cli: Cli) -> None:
    """A changed run_id stops the drain (exit 3); the same command goes on at the new primary. An
    unknown or missing service name is one clear line."""
    service, _, _ = sentinel.url.rpartition(f"/{sentinel.name}/")
    assert "nobody" in cli.fails(3, "status", "--redis-url", f"{service}/nobody")
    assert "SERVICE" in cli.fails(2, "status", "--redis-url", service)
    place = Place(sentinel.primary, stream, cli, sentinel.url)
    ids = place.seed(700)[100:]

    def crash() -> None:
        in_step(sentinel.replica, sentinel.primary)
        sentinel.primary.kill()

    first = place.attempt(at=(120, crash))
    assert first.rc == 3
    port = b"%d" % (sentinel.replica.port or 0)
    wait_until("the failover", lambda: sentinel.told()[b"port"] == port)
    wait_until("the promotion", lambda: is_primary(sentinel.replica))
    # a busy machine's Sentinel may take it for down for a moment
    wait_until("Sentinel sees it", lambda: sentinel.told()[b"flags"] == b"master")
    # what the old primary recorded after its last word to the replica is lost with it: the books
    # are those of the server that lives, or say that nothing is known
    new = Place(sentinel.replica, stream, cli, sentinel.url)
    new.settled(ids, first, new.complete())
    assert new.waiting() == []


# ---------------------------------------------------------------- nodes that hang, odd names


@contextmanager
def frozen(server: Server) -> Iterator[None]:
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def assert_quick(place: Place, hanging: Server) -> None:
    """`status` takes at most 3 s longer while `hanging` hangs."""
    times: list[float] = []
    assert place.cli("status", "--help").rc == 0  # the first starts what the programs share
    for server in (None, hanging):
        with frozen(server) if server else nullcontext():
            begun = time.monotonic()
            run = place.says("status", "--json")
            times.append(time.monotonic() - begun)
            assert run.rc == 0, run.err
    assert times[1] - times[0] < 3


def test_how_a_clusters_nodes_are_called(cluster: Cluster, stream: str, cli: Cli) -> None:
    """Nodes without a name, or with one that nobody set, are found where their Cluster says."""
    place, _ = on_cluster(cluster, stream, cli, 20)
    try:
        for named in ("unknown-endpoint", "hostname"):
            for node in cluster.nodes:
                node.ask("CONFIG", "SET", "cluster-preferred-endpoint-type", named)
            for node in cluster.nodes:
                assert place.dry("--redis-url", node.tcp_url)["total_read"] == 20
            run = cli("check", "--json", "--redis-url", cluster.url, "--all-streams", f"{stream}*")
            assert {found["stream"] for found in run.json()["findings"]} == {stream}, run
    finally:
        for node in cluster.nodes:
            node.ask("CONFIG", "SET", "cluster-preferred-endpoint-type", "ip")


@pytest.mark.slow
def test_a_node_that_hangs_holds_up_nobody_else(stream: str, cli: Cli) -> None:
    """A hanging seed costs at most 3 s; --all-streams goes on with the others and names it."""
    config = {"cluster-node-timeout": "600000", "cluster-require-full-coverage": "no"}
    with clusters.start_cluster(need("valkey"), replicas=0, config=config) as cluster:
        seeds = ",".join(f"127.0.0.1:{node.port}" for node in cluster.nodes)
        places = []
        for node in cluster.nodes:
            name = next(name for i in range(99)
                        if cluster.primary_of(name := f"{stream}.{i}") is node)  # fmt: skip
            places.append(Place(node, name, cli, f"redis+cluster://{seeds}?socket_timeout=2"))
            places[-1].fill([("*", {"a": "b"})] * 20)
        hanging = places[0]
        assert_quick(places[1], hanging.server)
        with frozen(hanging.server):
            for command in ("run", "check"):
                run = hanging.says(command, "--json", "--all-streams", f"{stream}*")
                assert run.rc == 3, run
                done = {one["stream"]["name"] if command == "check" else one["stream"]
                        for one in run.json()["streams"] if not one.get("exit_code")}  # fmt: skip
                assert done == {place.stream for place in places[1:]}
                assert f"127.0.0.1:{hanging.server.port}" in run.out


def test_a_sentinel_that_hangs(stream: str, cli: Cli) -> None:
    """It costs at most 3 s where another one answers."""
    with clusters.start_sentinel(need("valkey"), sentinels=2) as setup:
        place = Place(setup.primary, stream, cli, setup.url)
        place.fill([("*", {"a": "b"})], None)
        assert_quick(place, setup.sentinels[0])


# ---------------------------------------------------------------- TLS, logins, sockets


def drained(place: Place, url: str, *secret: str) -> Any:
    return place.cli("drain", "--mode", "live", "--yes", "--json", "--throttle", "none",
                     "--stream", place.stream, env={"DRAINKIT_REDIS_URL": url},
                     secret=secret)  # fmt: skip


def test_tls(own_place: Callable[..., Place], tmp_path: Path) -> None:
    """Drained over TLS with the authority's file; without it, or without a certificate where the
    server asks for one, exit 3."""
    config = {**make_certificates(tmp_path), "tls-auth-clients": "no"}
    place = own_place("redis", port=True, config=config)
    ids, url = place.seed(150)[100:], f"rediss://localhost:{place.server.port}/0"
    unknown = drained(place, url)
    assert (unknown.rc, "certificate" in unknown.err) == (3, True)
    trusted, own = f"{url}?ssl_ca_certs={tmp_path}/ca.crt", tmp_path / "client"
    run = drained(place, trusted)
    assert run.rc == 0, run.err
    place.settled(ids, Attempt(0, run.json(), ""))
    place.ask("CONFIG", "SET", "tls-auth-clients", "yes")
    assert drained(place, trusted).rc == 3
    known = drained(place, f"{trusted}&ssl_certfile={own}.crt&ssl_keyfile={own}.key")
    assert known.rc == 0, known.err


@pytest.mark.parametrize(
    ("place", "over"), [("valkey", "unix"), ("redis62", "tcp")], indirect=["place"]
)
def test_user_and_password(place: Place, over: str) -> None:
    """A login with odd characters works, a wrong one is exit 3; neither word is ever printed."""
    ids = place.seed(150)[100:]
    place.ask("ACL", "SETUSER", "drainer-x", "on", f">{PASSWORD}", "~*", "+@all")
    word, wrong_word = quote(PASSWORD, safe=""), quote(PASSWORD + "!", safe="")
    secret = (PASSWORD, word, "drainer-x:", wrong_word)
    scheme, rest = (place.server.tcp_url if over == "tcp" else place.server.url).split("://")
    wrong_url, url = (f"{scheme}://drainer-x:{one}@{rest}" for one in (wrong_word, word))
    wrong = drained(place, wrong_url, *secret)
    assert (wrong.rc, "refuses the login" in wrong.err) == (3, True), wrong
    debug = place.cli("--debug", "status", "--redis-url", wrong_url, secret=secret)
    assert debug.rc == 3
    run = drained(place, url, *secret)
    assert run.rc == 0, run.err
    place.settled(ids, Attempt(0, run.json(), ""))
    assert place.says("status", "--json", "--redis-url", url, secret=secret).rc == 0


#: URLs that lead nowhere (more forms: test_echoes), and the exit codes that they may have.
NOWHERE = {
    "redis://user:{word}@127.0.0.1:1/0": {3},
    "redis://user:{word}@nowhere.invalid:6379/0": {3},
    "redis://:{word}@127.0.0.1:port/0": {2},
    "redis://user:{word}@[::1/0": {2},
    "http://user:{word}@127.0.0.1/0": {2},
    "redis+sentinel://user:{word}@127.0.0.1:1/orders": {3},
    "redis+cluster://user:{word}@127.0.0.1:1,127.0.0.1:2/0": {3},
    "unix://user:{word}@/tmp/no-such-socket?db=0": {3},
    "redis://127.0.0.1:1?ssl_password={word}&password={word}": {2},
    "redis://user:{word} and {word}@127.0.0.1:1/0": {2, 3},
    "rediss://user:{word}@127.0.0.1:1/0?ssl_cert_reqs=none&ssl_password={word}": {3},
}
ODD = [*(f"Zq9{mark}Xw7" for mark in "#?/@&"), "77?Zq9@Xw7"]  # what nobody encoded


@pytest.mark.parametrize(("n", "url"), [*enumerate(NOWHERE)])
def test_a_url_that_leads_nowhere(cli: Cli, n: int, url: str) -> None:
    """Exit 2 or 3 with one line, and no word of the password, not even in a traceback; nor a part
    of it where it is not encoded."""
    word, odd = "s3cretw0rd", ODD[n % len(ODD)]
    env = {"DRAINKIT_REDIS_URL": url.format(word=word)}
    plain, debug = (cli(*words, env=env, secret=word)
                    for words in (("status",), ("--debug", "drain")))  # fmt: skip
    assert {plain.rc, debug.rc} <= NOWHERE[url], plain
    assert plain.err.count("\n") == 1
    if url.startswith("redis://user:{word}@127.0.0.1:1"):
        assert "127.0.0.1:1" in plain.err
        assert plain.rc == 2 or "check that it runs" in plain.err
    run = cli("status", "--redis-url", url.format(word=odd), secret=("Zq9", "Xw7"))
    assert run.rc in (2, 3)
    one_line_error(run.err)


@BUNDLED
def test_links_that_cannot_be(place: Place) -> None:
    """A reply over which the server ends the link, by the limit it may have, is exit 3 with what to
    do. A timeout that is none, a database that is not there: exit code 2, which names it. (A port
    that speaks something else: test_echoes.)"""
    cli, url = place.cli, place.server.tcp_url
    for odd in ("socket_timeout=-1", "socket_timeout=1e300", "socket_connect_timeout=nan",
                "socket_connect_timeout=0"):  # fmt: skip
        assert odd.partition("=")[0] in cli.fails(2, "status", "--redis-url", f"{url}?{odd}"), odd
    said = cli.fails(2, "status", "--redis-url", url.removesuffix("/0") + "/99")
    assert "--redis-url" in said
    place.seed()
    place.ask("CONFIG", "SET", "client-output-buffer-limit", "normal 5kb 0 0")
    assert "client-output-buffer-limit" in cli.fails(3, "drain", *place.where)
