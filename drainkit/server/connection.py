"""The one connection to Redis: single server, Sentinel, Cluster, TLS, unix socket.

A run talks to the primary that holds the stream, over one connection that never retries by
itself: redis-py's own retries would send a commit twice. Replies stay bytes as they came, because
decoding one invalid byte would raise for a whole batch that the pending list already holds.
"""

from __future__ import annotations

import contextlib
import time
from functools import cached_property
from typing import Any

import hiredis
import redis

from ..safe import keep_secret, one_line, secret_words
from ..settings import Settings
from .keys import Keys, side_keys
from .topology import ServerInfo
from .translate import translated
from .wire import Wire


class Server:
    """A connection to the primary of `stream`'s slot; errors come out as drainkit's own.

    A connection that the server closed while it was idle is opened anew before the next request.
    A request that was sent is never sent again: whether it ran is for the caller to find out.
    """

    def __init__(self, url: str, stream: str, audit_stream: str | None = None) -> None:
        self._url = url
        self.stream = stream.encode()  # its key
        self._audit_stream = audit_stream
        keep_secret(secret_words(url))
        self.shown_url = one_line(url)
        self._wire = Wire(url, self.stream)
        with self._translated():
            self._wire.open()

    @classmethod
    def of(cls, settings: Settings, stream: str | None = None) -> Server:
        """The settings' server and stream, or another stream of it with its own audit."""
        url = settings.redis_url.get_secret_value()
        if stream is not None:
            return cls(url, stream)
        return cls(url, settings.stream, settings.audit_stream)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection; what the server still works on goes on there."""
        self._wire.close()

    @property
    def info(self) -> ServerInfo:
        """Who is at the other end."""
        return self._wire.info

    @property
    def takeovers(self) -> int:
        """How often the server restarted or another one took over since this was opened.

        The owner of a slot that moved within its Cluster, with all that was in it, is not counted.
        """
        return self._wire.takeovers

    @property
    def connected(self) -> bool:
        """Whether the connection is up, as far as this side knows."""
        return self._wire.connected

    @property
    def reply_timeout_sec(self) -> float:
        """After how long without a reply the connection counts as lost."""
        return self._wire.reply_timeout_sec

    def reconnect(self) -> None:
        """Connect anew, resolving Sentinel and Cluster again; the caller compares `takeovers`."""
        with self._translated():
            self._wire.reopen()

    def call(self, *args: bytes | str | int) -> Any:
        """Send one command and return its reply, bytes undecoded."""
        self._check_order()
        self.send(*args)
        return self.receive()

    def send(self, *args: bytes | str | int) -> None:
        """Send one command without waiting; replies come in the order of sending."""
        with self._translated():
            # redis-py's own would look at each of a commit's thousands of arguments in Python
            self._wire.send([hiredis.pack_command(args)])  # type: ignore[arg-type] # its stub: one

    def receive(self) -> Any:
        """The oldest reply not yet received."""
        with self._translated():
            return self._wire.receive()

    def pipeline(self, commands: list[tuple[bytes | str | int, ...]]) -> list[Any]:
        """Replies to `commands`, sent at once; the first error among them is raised at the end."""
        self._check_order()
        with self._translated():
            self._wire.send([hiredis.pack_command(args) for args in commands])  # type: ignore[arg-type]
            replies: list[Any] = []
            errors: list[redis.ResponseError] = []
            for _ in commands:
                try:
                    replies.append(self._wire.receive())
                except redis.ResponseError as error:
                    errors.append(error)
            if errors:
                raise errors[0]
            return replies

    def _check_order(self) -> None:
        """A command here would get the reply of another that is under way."""
        if self._wire.in_flight:
            raise RuntimeError(f"{self._wire.in_flight} replies are still to come")

    def now_us(self) -> int:
        """The server's clock (TIME), microseconds since the epoch."""
        seconds, micros = self.call("TIME")
        return int(seconds) * 1_000_000 + int(micros)

    @cached_property
    def keys(self) -> Keys:
        """The stream and its side keys; RefusedError for one in another slot of a Cluster."""
        return side_keys(self.stream, self._audit_stream, is_cluster=self.info.cluster)

    def primaries(self) -> list[Server]:
        """A connection to each primary of a Cluster, or to this server alone; close them."""
        if not self.info.cluster:
            return [Server(self._url, self.stream.decode())]
        opened = []
        for _, _, (host, port, *_), *_ in self.call("CLUSTER", "SLOTS"):
            node = object.__new__(Server)
            node.__dict__.update(vars(self))
            node._wire = Wire(self._url, self.stream)
            with node._translated():
                node._wire.open((host.decode(), int(port)))
            opened.append(node)
        return opened

    def _translated(self) -> contextlib.AbstractContextManager[None]:
        return translated(self.shown_url, self.close)


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
