"""The one connection to Redis: single server, Sentinel, Cluster, TLS, unix socket.

A run talks to the primary that holds the stream, over one connection that never retries by
itself: redis-py's own retries would send a commit twice. Replies stay bytes as they came, because
decoding one invalid byte would raise for a whole batch that the pending list already holds.
"""

from __future__ import annotations

import contextlib
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import hiredis
import redis
from redis.connection import Connection

from ..errors import (
    ConnectionLostError,
    RefusedError,
    ServerBusyError,
    UnreachableError,
    UsageError,
)
from ..safe import one_line
from .topology import (
    REPLY_TIMEOUT_SEC,
    SCHEMES,
    URL_FORMS,
    ServerInfo,
    check_owner,
    connect,
    first_answering,
    hash_tag,
    netloc,
    read_info,
    slot_owner,
)
from .translate import network_reason, translate


@dataclass(frozen=True)
class Keys:
    """The stream and its side keys; all in one slot, so that one script may touch them."""

    stream: bytes
    audit: bytes
    runs: bytes  # the run ledger
    stop: bytes  # the kill switch
    state: bytes  # pace of all drains together, and how far scope history came


class Server:
    """A connection to the primary of `stream`'s slot; errors come out as drainkit's own."""

    def __init__(self, url: str, stream: str) -> None:
        self._url = url
        self._stream = stream.encode()
        self._link: Connection | None = None
        self._under_way = 0  # requests whose replies are still to come
        self.shown_url = one_line(url)
        self.info = self._open()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection; what the server still works on goes on there."""
        self._under_way = 0
        if self._link is not None:
            self._link.disconnect()
            self._link = None

    @property
    def connected(self) -> bool:
        """Whether the connection is up, as far as this side knows."""
        return self._link is not None

    @property
    def reply_timeout_sec(self) -> float:
        """After how long without a reply the connection counts as lost."""
        return getattr(self._link, "socket_timeout", None) or REPLY_TIMEOUT_SEC

    def reconnect(self) -> ServerInfo:
        """Connect anew, resolving Sentinel and Cluster again; the caller compares `run_id`."""
        self.close()
        self.info = self._open()
        return self.info

    def call(self, *args: bytes | str | int) -> Any:
        """Send one command and return its reply, bytes undecoded."""
        self._check_order()
        self.send(*args)
        return self.receive()

    def send(self, *args: bytes | str | int) -> None:
        """Send one command without waiting; replies come in the order of sending."""
        with self._translated():
            link = self._connected()
            # link.pack_command would look at each of a commit's thousands of arguments in Python
            packed = hiredis.pack_command(args)  # type: ignore[arg-type] # its stub: one argument
            link.send_packed_command([packed], check_health=False)
            self._under_way += 1

    def receive(self) -> Any:
        """The oldest reply not yet received."""
        with self._translated():
            link = self._connected()
            self._under_way -= 1
            return link.read_response(disable_decoding=True)

    def pipeline(self, commands: list[tuple[bytes | str | int, ...]]) -> list[Any]:
        """Replies to `commands`, sent at once; the first error among them is raised at the end."""
        self._check_order()
        with self._translated():
            link = self._connected()
            link.send_packed_command(link.pack_commands(commands), check_health=False)
            replies: list[Any] = []
            errors: list[redis.ResponseError] = []
            for _ in commands:
                try:
                    replies.append(link.read_response(disable_decoding=True))
                except redis.ResponseError as error:
                    errors.append(error)
            if errors:
                raise errors[0]
            return replies

    def _check_order(self) -> None:
        """A command here would get the reply of another that is under way."""
        if self._under_way:
            raise RuntimeError(f"{self._under_way} replies are still to come")

    def now_us(self) -> int:
        """The server's clock (TIME), microseconds since the epoch."""
        seconds, micros = self.call("TIME")
        return int(seconds) * 1_000_000 + int(micros)

    def keys(self, audit_stream: str | None = None) -> Keys:
        """The stream's side keys; an audit stream in another slot is refused."""
        base = self._stream
        if self.info.cluster and not hash_tag(base):
            if b"}" in base:
                raise RefusedError(
                    "the stream's name has a } and no hash tag, so on a Cluster no key can share "
                    "its slot, and acknowledging and auditing could not be one step"
                )
            base = b"{" + base + b"}"
        audit = audit_stream.encode() if audit_stream else base + b".drain_audit"
        side = [base + suffix for suffix in (b".drain_runs", b".drain_stop", b".drain_state")]
        if audit in (self._stream, *side):
            raise UsageError("--audit-stream: this key has another use; name a key of its own")
        if self.info.cluster:
            self._check_slots(audit, side)
        return Keys(self._stream, audit, *side)

    def check_slot(self, key: bytes) -> None:
        """Refuse a key that, on a Cluster, is elsewhere than the stream."""
        if self.info.cluster:
            slots = [self.call("CLUSTER", "KEYSLOT", name) for name in (key, self._stream)]
            if slots[0] != slots[1]:
                shown = one_line(key.decode("utf-8", "backslashreplace"))
                raise RefusedError(
                    f"{shown} is in another Cluster slot than the stream; give it a name with the "
                    "stream's hash tag"
                )

    def primaries(self) -> list[Server]:
        """A connection to each primary of a Cluster, or to this server alone; close them."""
        if not self.info.cluster:
            return [Server(self._url, self._stream.decode())]
        opened = []
        for _, _, (host, port, *_), *_ in self.call("CLUSTER", "SLOTS"):
            node = object.__new__(Server)
            node._url, node._stream, node._under_way = self._url, self._stream, 0
            node.shown_url = self.shown_url
            node._link = self._node(host.decode(), int(port))
            with node._translated():
                node.info = read_info(node._link)
            opened.append(node)
        return opened

    def _check_slots(self, audit: bytes, side: list[bytes]) -> None:
        slots = {key: self.call("CLUSTER", "KEYSLOT", key) for key in (self._stream, audit, *side)}
        if len(set(slots.values())) > 1:
            odd = next(key for key in slots if slots[key] != slots[self._stream])
            shown = one_line(odd.decode("utf-8", "backslashreplace"))
            raise RefusedError(
                f"{shown} is in another Cluster slot than the stream, so acknowledging and "
                "auditing could not be one step; give it the stream's hash tag"
            )

    def _connected(self) -> Connection:
        if self._link is None:
            raise redis.ConnectionError("not connected")
        return self._link

    def _open(self) -> ServerInfo:
        with self._translated():
            if not SCHEMES.match(self._url):
                raise UsageError(f"--redis-url must start with one of {URL_FORMS}")
            self._link = self._find()
            info = read_info(self._link)
            if info.cluster and self._url.startswith("unix:"):
                check_owner(self._link, self._stream)
            elif info.cluster:
                host, port = slot_owner(self._link, self._stream)
                self._link.disconnect()
                self._link = self._node(host, port)
                info = read_info(self._link)
            return info

    def _find(self) -> Connection:
        """The first connection that opens: the server, a Cluster's node, or Sentinel's primary."""
        scheme, _, rest = self._url.partition("://")
        if "+" not in scheme:
            return connect(self._url)
        base, _, topology = scheme.partition("+")
        credentials, _, hosts = rest.rpartition("@")
        hosts, _, path = hosts.partition("/")
        login = f"{credentials}@" if credentials else ""
        seeds = hosts.split(",")
        if topology == "cluster":
            return first_answering([f"{base}://{login}{seed}/{path}" for seed in seeds])
        path, _, query = path.partition("?")
        service, _, db = path.partition("/")
        if not service:
            raise UsageError("--redis-url: name the service, redis+sentinel://HOST:PORT/SERVICE")
        tail = f"/{db or 0}" + (f"?{query}" if query else "")
        sentinel = first_answering(
            [f"{base}://{seed}{tail.replace(f'/{db or 0}', '/0')}" for seed in seeds]
        )
        try:
            sentinel.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)
            address = sentinel.read_response(disable_decoding=True)
        finally:
            sentinel.disconnect()
        if address is None:
            raise UnreachableError(f"Sentinel knows no service {one_line(service)}; check the URL")
        host, port = address[0].decode(), int(address[1])
        return connect(f"{base}://{login}{netloc(host, port)}{tail}")

    def _node(self, host: str, port: int) -> Connection:
        """A connection to one Cluster node with the URL's own login and TLS options."""
        scheme, _, rest = self._url.partition("://")
        credentials, _, tail = rest.rpartition("@")
        login = f"{credentials}@" if credentials else ""
        seed, slash, path = tail.partition("/")
        first = urllib.parse.urlsplit(f"//{seed.split(',')[0]}").hostname or "localhost"
        return connect(
            f"{scheme.partition('+')[0]}://{login}{netloc(host or first, port)}{slash}{path}"
        )

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn redis-py's exceptions into drainkit's, each one line that says what to do."""
        try:
            yield
        except redis.ResponseError as error:
            raise translate(error) from error
        except (redis.AuthenticationError, redis.exceptions.AuthorizationError) as error:
            raise UnreachableError(
                f"Redis at {self.shown_url} refuses the login ({one_line(str(error))}); "
                "check user and password in DRAINKIT_REDIS_URL"
            ) from error
        except redis.BusyLoadingError as error:
            raise ServerBusyError("Redis is loading its data; try again in a while") from error
        except redis.exceptions.InvalidResponse as error:
            self.close()
            raise UnreachableError(
                f"what answers at {self.shown_url} does not speak Redis's protocol; "
                "check host, port and TLS in --redis-url"
            ) from error
        except (redis.RedisError, OSError) as error:
            self.close()
            raise ConnectionLostError(
                f"cannot reach Redis at {self.shown_url}: {network_reason(error)}; "
                "check that it runs and --redis-url (or DRAINKIT_REDIS_URL)"
            ) from error


class Clock:
    """The server's time without asking each time: its last TIME plus this host's monotonic clock.

    The host's wall clock plays no part, so a host that is a day off drains correctly.
    """

    def __init__(self, now_us: int) -> None:
        self.sync(now_us)

    def sync(self, now_us: int) -> None:
        """Take `now_us`, which a reply just brought, as the present (never going back)."""
        self._offset_us = now_us - time.monotonic_ns() // 1000

    def now_us(self) -> int:
        """Microseconds since the epoch, by the server's clock."""
        return self._offset_us + time.monotonic_ns() // 1000
