"""Cluster, Sentinel, TLS, passwords and unix sockets, on real servers that the tests start."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from backlogs import GROUP, backlog, seed
from books import ask, at, audit, everything, pending, worst_window
from clusters import Cluster, SentinelSetup
from conftest import Cli, need, one_line_error
from faults import Attempt, assert_once, assert_settled, attempt, complete, in_step
from servers import Server, wait_until
from tls import start_tls

StartServer = Callable[..., Server]
PASSWORD = "s3cr:t/p@ss?#é"


def fill_cluster(cluster: Cluster, stream: str, n: int) -> list[str]:
    """A backlog of n recent entries, its group at the beginning; answers the ids."""
    entries = backlog(int(time.time() * 1000), n)
    node = cluster.primary_of(stream)
    # over one node's own connection: a thousand redirections would only be slow
    client = node.client()
    with client.pipeline(transaction=False) as pipe:
        for entry, fields in entries:
            flat = [part for pair in fields.items() for part in pair]
            pipe.execute_command("XADD", stream, entry, *flat)
        pipe.execute_command("XGROUP", "CREATE", stream, GROUP, "0-0")
        pipe.execute()
    return [entry for entry, _ in entries]


# ---------------------------------------------------------------- cluster


@pytest.mark.parametrize("tagged", [False, True], ids=["no tag", "a tag"])
def test_side_keys_share_the_slot(cluster: Cluster, stream: str, cli: Cli, tagged: bool) -> None:
    """On a Cluster a drain works from any node; its side keys have the stream's hash tag."""
    name = f"{{{stream}}}.intents" if tagged else stream
    ids = fill_cluster(cluster, name, 60)
    run = cli.done(
        "drain", "--mode", "live", "--yes", "--json", "--throttle", "none", "--max-events", "all",
        "--redis-url", cluster.nodes[-1].tcp_url, "--stream", name,
    )  # fmt: skip
    home = cluster.primary_of(name)
    base = name if tagged else f"{{{stream}}}"
    side = {f"{base}.drain_{name}" for name in ("audit", "runs", "state", "recorded")}
    assert {key.decode() for key in ask(home, "KEYS", "*")} == {name, *side}
    slots = {ask(home, "CLUSTER", "KEYSLOT", key) for key in (name, *side, f"{base}.drain_stop")}
    assert len(slots) == 1
    once = Attempt(0, run.json(), "")
    assert_settled(home, name, ids, [once], audit_key=f"{base}.drain_audit")


def test_an_audit_stream_elsewhere_is_refused(cluster: Cluster, stream: str, cli: Cli) -> None:
    """It is refused with the reason, before anything is written; with the tag it is taken."""
    ids = fill_cluster(cluster, stream, 20)
    home = cluster.primary_of(stream)
    before = everything(home)
    options = (
        "drain", "--mode", "live", "--yes", "--json", "--throttle", "none",
        *at(cluster, stream), "--audit-stream",
    )  # fmt: skip
    run = cli(*options, "elsewhere")
    assert run.rc == 4
    assert "another Cluster slot" in run.err
    assert "hash tag" in run.err
    assert run.err.count("\n") == 1
    assert everything(home) == before
    run = cli.done(*options, f"{{{stream}}}:mine")
    assert_once(audit(home, stream, f"{{{stream}}}:mine"), ids)


def test_an_allowlist_in_another_slot_is_refused(cluster: Cluster, stream: str, cli: Cli) -> None:
    """It is refused with the reason; with the stream's hash tag it is taken."""
    fill_cluster(cluster, stream, 20)
    drain = ("drain", "--json", *at(cluster, stream), "--allowlist")
    near = f"{{{stream}}}:allowed"
    ask(cluster.primary_of(near), "SADD", near, "BTCUSDT")
    far = next(
        name for i in range(99) if cluster.primary_of(name := f"allowed{i}")
        is not cluster.primary_of(stream)
    )  # fmt: skip
    assert "hash tag" in cli.fails(4, *drain, f"redis:{far}")
    assert cli(*drain, f"redis:{near}").rc == 0


def test_a_name_without_side_keys_is_one_finding(cluster: Cluster, stream: str, cli: Cli) -> None:
    """A stream `x{}y` is unknown to `check --all-streams`, and the others are judged."""
    fill_cluster(cluster, stream, 20)
    odd = f"{stream}{{}}odd"
    home = cluster.primary_of(odd)
    ask(home, "XADD", odd, "*", "a", "b")
    ask(home, "XGROUP", "CREATE", odd, GROUP, "0")
    checked = cli("check", "--json", "--redis-url", cluster.url, "--all-streams", f"{stream}*",
                  "--max-backlog", "5")  # fmt: skip
    found = {(f["stream"], f["severity"]) for f in checked.json()["findings"]}
    assert (odd, "unknown") in found
    assert (stream, "critical") in found
    assert "no hash tag" in cli.fails(4, "drain", *at(cluster, odd))


def test_the_socket_of_another_node_is_no_way(cluster: Cluster, stream: str, cli: Cli) -> None:
    """The socket of the stream's own node is; of another one it is bad usage, which says so."""
    fill_cluster(cluster, stream, 20)
    home = cluster.primary_of(stream)
    other = next(n for n in cluster.nodes if n is not home and _is_primary(n))
    for node, rc in ((home, 0), (other, 2)):
        url = f"unix://{ask(node, 'CONFIG', 'GET', 'unixsocket')[1].decode()}"
        run = cli("status", "--redis-url", url, "--stream", stream)
        assert run.rc == rc, run
    assert "host and port" in run.err


@pytest.mark.parametrize("atomically", [True, False], ids=["MIGRATESLOTS", "SETSLOT"])
def test_a_slot_that_moves_midway(cluster: Cluster, stream: str, atomically: bool) -> None:
    """A drain goes on where its slot went, and back: one run, nothing lost, throttle kept."""
    ids = fill_cluster(cluster, stream, 900)
    home = cluster.primary_of(stream)
    visited: list[Server] = []

    def records() -> int:
        return int(ask(visited[-1], "XLEN", f"{{{stream}}}.drain_audit"))

    def go_round() -> None:
        for _ in range(3):
            cluster.move_slot(stream, atomically=atomically, pause_sec=0.05)
            visited.append(cluster.primary_of(stream))
            begun = records()
            wait_until("it drains there", lambda begun=begun: records() > begun)  # type: ignore

    moving = threading.Thread(target=go_round)
    run = attempt(cluster.url, stream, throttle="300", at=(50, moving.start))
    moving.join()
    assert run.rc == 0, run.error
    assert len({node.port for node in visited}) == 3
    assert visited[-1] is home
    assert_settled(home, stream, ids, [run], audit_key=f"{{{stream}}}.drain_audit")
    found = audit(home, stream, f"{{{stream}}}.drain_audit")
    assert {record["run_id"] for record in found} == {run.summary and run.summary["run_id"]}
    assert worst_window(found, 1000) <= 300
    assert worst_window(found, 100) <= 60


def test_a_failover_is_no_move(cluster: Cluster, stream: str) -> None:
    """Where a replica takes over a drain ends with 3: what its primary did last may be lost."""
    ids = fill_cluster(cluster, stream, 300)
    home = cluster.primary_of(stream)
    replica = next(
        node for node in cluster.nodes
        if ask(node, "ROLE")[0] == b"slave" and ask(node, "ROLE")[2] == home.port
    )  # fmt: skip

    def take_over() -> None:
        ask(replica, "CLUSTER", "FAILOVER")
        wait_until("the old one follows", lambda: ask(home, "ROLE")[0] == b"slave")

    first = attempt(cluster.url, stream, at=(120, take_over))
    assert first.rc == 3
    assert "another took over" in first.error
    again = complete(cluster.url, stream)
    assert_settled(replica, stream, ids, [first, again], audit_key=f"{{{stream}}}.drain_audit")


def _is_primary(node: Server) -> bool:
    return bool(ask(node, "ROLE")[0] == b"master")


def test_a_primary_killed_midway(cluster: Cluster, stream: str) -> None:
    """Its replica takes over and the run ends with exit code 3; the same command finishes it."""
    ids = fill_cluster(cluster, stream, 600)
    home = cluster.primary_of(stream)
    others = [node for node in cluster.nodes if node is not home]
    hosts = ",".join(f"127.0.0.1:{node.port}" for node in (home, *others))
    url = f"redis+cluster://{hosts}/0"

    def crash() -> None:
        # what the replica has not got yet is lost with its primary; here it has everything
        assert ask(home, "WAIT", 1, 2000) >= 1
        home.kill()

    first = attempt(url, stream, at=(120, crash))
    assert first.rc == 3

    def taken_over() -> bool:
        infos = [node.ask("CLUSTER", "NODES").decode() for node in others if _is_primary(node)]
        return len(infos) == 3 and all(
            b"cluster_state:ok" in node.ask("CLUSTER", "INFO") for node in others
        )

    wait_until("the replica has taken over", taken_over, timeout_sec=30)
    again = complete(url, stream)
    new_home = next(n for n in others if _is_primary(n) and ask(n, "KEYS", stream))
    assert_settled(new_home, stream, ids, [first, again], audit_key=f"{{{stream}}}.drain_audit")


# ---------------------------------------------------------------- sentinel


def test_a_failover_midway(sentinel: SentinelSetup, stream: str) -> None:
    """A changed run_id stops the drain (exit 3); the same command goes on at the new primary."""
    ids = seed(sentinel.primary, stream, 700, delivered=100)[100:]

    def crash() -> None:
        in_step(sentinel.replica, sentinel.primary)
        sentinel.primary.kill()

    first = attempt(sentinel.url, stream, at=(120, crash))
    assert first.rc == 3
    wait_until("the failover", lambda: sentinel.primary_port() == sentinel.replica.port)
    wait_until("the promotion", lambda: _is_primary(sentinel.replica))
    # a busy machine's Sentinel may take it for down for a moment
    wait_until("Sentinel sees it", lambda: sentinel.flags() == b"master")
    again = complete(sentinel.url, stream)
    # what the old primary recorded after its last word to the replica is lost with it: the books
    # are those of the server that lives, or say that nothing is known
    assert_settled(sentinel.replica, stream, ids, [first, again])
    assert pending(sentinel.replica, stream) == 0


def test_a_sentinel_without_the_service(sentinel: SentinelSetup, cli: Cli) -> None:
    """An unknown or missing service name is one clear line."""
    url, _, _ = sentinel.url.rpartition(f"/{sentinel.name}/")
    assert "nobody" in cli.fails(3, "status", "--redis-url", f"{url}/nobody")
    assert "SERVICE" in cli.fails(2, "status", "--redis-url", url)


# ---------------------------------------------------------------- TLS, logins, sockets


def drained(cli: Cli, url: str, stream: str, secret: tuple[str, ...] = ()) -> Any:
    return cli(
        "drain", "--mode", "live", "--yes", "--json", "--throttle", "none", "--max-events", "all",
        "--stream", stream, env={"DRAINKIT_REDIS_URL": url}, secret=secret,
    )  # fmt: skip


@pytest.mark.parametrize("client_certs", [False, True], ids=["server only", "both sides"])
def test_tls(stream: str, cli: Cli, client_certs: bool) -> None:
    """Drained over TLS with the authority's file; without it, or without a certificate, exit 3."""
    need("redis")
    with start_tls(client_certs=client_certs) as tls:
        ids = seed(tls.server, stream, 150, delivered=100)[100:]
        trusted = f"{tls.url}?ssl_ca_certs={tls.folder}/ca.crt"
        if client_certs:
            denied = drained(cli, trusted, stream)
            assert denied.rc == 3, denied.err
            own = tls.folder / "client"
            trusted += f"&ssl_certfile={own}.crt&ssl_keyfile={own}.key"
        unknown = drained(cli, tls.url, stream)
        assert unknown.rc == 3
        assert "certificate" in unknown.err
        assert pending(tls.server, stream) == 0
        run = drained(cli, trusted, stream)
        assert run.rc == 0, run.err
        assert_settled(tls.server, stream, ids, [Attempt(0, run.json(), "")])


@pytest.mark.parametrize("kind", ["valkey", "redis62"])
@pytest.mark.parametrize("over", ["tcp", "unix"])
def test_user_and_password(
    start_server: StartServer, stream: str, cli: Cli, kind: str, over: str
) -> None:
    """A login with odd characters works, a wrong one is exit 3; neither word is ever printed."""
    server = start_server(kind, port=True)
    ids = seed(server, stream, 150, delivered=100)[100:]
    ask(server, "ACL", "SETUSER", "drainer-x", "on", f">{PASSWORD}", "~*", "+@all")
    secret = (PASSWORD, quote(PASSWORD, safe=""), "drainer-x:")
    place = f"127.0.0.1:{server.port}/0" if over == "tcp" else f"{server.socket}?db=0"
    scheme = "redis" if over == "tcp" else "unix"
    login = f"drainer-x:{quote(PASSWORD, safe='')}@"
    wrong_word = quote(PASSWORD + "!", safe="")
    wrong_url = f"{scheme}://drainer-x:{wrong_word}@{place}"
    wrong = drained(cli, wrong_url, stream, (wrong_word, *secret))
    assert wrong.rc == 3
    assert "refuses the login" in wrong.err
    assert cli("--debug", "status", "--redis-url", wrong_url, secret=(wrong_word, *secret)).rc == 3
    run = drained(cli, f"{scheme}://{login}{place}", stream, secret)
    assert run.rc == 0, run.err
    assert_settled(server, stream, ids, [Attempt(0, run.json(), "")])
    cli.done(
        "status", "--json", "--stream", stream, "--redis-url", f"{scheme}://{login}{place}",
        secret=secret,
    )  # fmt: skip


#: URLs that lead nowhere, and the exit codes that they may have.
NOWHERE = {
    "redis://user:{word}@127.0.0.1:1/0": {3},
    "redis://user:{word}@nowhere.invalid:6379/0": {3},
    "redis://:{word}@127.0.0.1:port/0": {2},
    "redis://:{word}@127.0.0.1:1": {3},
    "redis://user:{word}@[::1/0": {2},
    "http://user:{word}@127.0.0.1/0": {2},
    "nonsense://user:{word}@h": {2},
    "redis+sentinel://user:{word}@127.0.0.1:1/orders": {3},
    "redis+sentinel://127.0.0.1:1/s?password={word}": {3},
    "redis+cluster://user:{word}@127.0.0.1:1,127.0.0.1:2/0": {3},
    "unix://user:{word}@/tmp/no-such-socket?db=0": {3},
    "unix:///nowhere?password={word}": {3},
    "redis://127.0.0.1:1/0?username=user&password={word}": {3},
    "redis://127.0.0.1:1/0?pass%77ord={word}": {3},
    "redis://127.0.0.1:1/0?db=0&%70assword={word}": {3},
    "redis://127.0.0.1:1?ssl_password={word}&password={word}": {2},
    "redis://user:{word} and {word}@127.0.0.1:1/0": {2, 3},
    "redis://user:{word}/{word}@127.0.0.1:1/0": {2, 3},
    "rediss://user:{word}@127.0.0.1:1/0?ssl_cert_reqs=none&ssl_password={word}": {3},
}
ODD = [*(f"Zq9{mark}Xw7" for mark in "#?/@&"), "77?Zq9@Xw7"]  # what nobody encoded


@pytest.mark.parametrize(("n", "url"), [*enumerate(NOWHERE)])
def test_a_url_that_leads_nowhere(cli: Cli, n: int, url: str) -> None:
    """Exit 2 or 3 with one line, and no word of the password, not even in a traceback; nor a part
    of it where it is not encoded."""
    word, odd = "s3cretw0rd", ODD[n % len(ODD)]
    env = {"DRAINKIT_REDIS_URL": url.format(word=word)}
    plain, drain = cli("status", env=env, secret=word), cli("drain", env=env, secret=word)
    debug = cli("--debug", "status", env=env, secret=word)
    assert {plain.rc, drain.rc, debug.rc} <= NOWHERE[url], plain
    assert plain.err.count("\n") == drain.err.count("\n") == 1
    if url.startswith("redis://user:{word}@127.0.0.1:1"):
        assert "127.0.0.1:1" in plain.err
    run = cli("status", "--redis-url", url.format(word=odd), secret=("Zq9", "Xw7"))
    assert run.rc in (2, 3)
    one_line_error(run.err)


def test_a_connection_refused_or_no_server_at_all(
    stream: str, cli: Cli, start_server: StartServer
) -> None:
    """A server that is gone, or a port that speaks something else, is exit 3 with what to do."""
    server = start_server("valkey", port=True)
    server.kill()
    assert "check that it runs" in cli.fails(
        3, "status", "--redis-url", server.tcp_url, "--stream", stream
    )
    babble = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk() -> None:
            link, _ = listener.accept()
            link.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            babble.wait(20)
            link.close()

        talker = threading.Thread(target=talk)
        talker.start()
        port = listener.getsockname()[1]
        other = cli("status", "--redis-url", f"redis://127.0.0.1:{port}/0", "--stream", stream)
        babble.set()
        talker.join()
    assert other.rc == 3
    assert "protocol" in other.err
