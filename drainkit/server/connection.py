"""The one connection to Redis: requests, replies, and its errors as drainkit's own.

A run talks to the primary that holds the stream, over one connection that never retries by
itself: redis-py's own retries would send a commit twice. Replies stay bytes as they came, because
decoding one invalid byte would raise for a whole batch that the pending list already holds.

A Cluster may hand the stream's slot, side keys and all, to another of its primaries while a drain
is at work. What the old owner refuses then did not run, also while a slot is half moved (SETSLOT
MIGRATING): the drain looks again, as after any fault, and goes on at the new one.
Clocks of two primaries can differ. Where the new one's is behind, the next commit waits until it
has passed the audit's last id; where it is ahead, ages grow by the difference. By the audit's ids
the throttle holds in both cases.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any

import hiredis
import redis
from redis.connection import Connection
from redis.exceptions import InvalidResponse

from ..errors import (
    ConnectionLostError,
    DrainkitError,
    RefusedError,
    ReplyTooLargeError,
    ServerBusyError,
    SlotMovedError,
    UnreachableError,
    UsageError,
)
from ..safe import keep_secret, one_line, secret_words
from ..settings import Settings
from . import topology
from .keys import side_keys
from .topology import Place, ServerInfo

Command = tuple[bytes | str | int, ...]
# what an error reply holds -> the error it becomes and what it says; the first that fits counts
_MEANINGS: tuple[tuple[str, type[DrainkitError], str], ...] = (
    # the request did not run: the slot is elsewhere, half moved, or nowhere
    ("(Ask|Moved|TryAgain|ClusterDown|MasterDown)Error", SlotMovedError,
     "the Cluster does not serve the stream's slot now; run the same command again"),
    ("(Authentication|Authorization)Error", UnreachableError,
     "Redis at {} refuses the login; check user and password in DRAINKIT_REDIS_URL"),
    ("InvalidResponse", UnreachableError, "what answers at {} does not speak Redis's protocol; "
     "check host, port and TLS in --redis-url"),
    ("NoPermissionError|NOPERM|ACL failure|can't run this command", RefusedError,
     "Redis denies a command; grant what `drainkit acl` prints"),
    ("ReadOnlyError|READONLY", RefusedError,
     "this Redis is a read-only replica; point --redis-url at a primary"),
    ("no such key", RefusedError, "the stream is gone; check --stream and the database number"),
    ("NOGROUP", RefusedError, "the stream or the group is gone; check --stream, --consumer-group"),
    ("WRONGTYPE", RefusedError,
     "a key is not of the type it must have; check --stream and --audit-stream"),
    ("BusyLoadingError|LOADING|BUSY", ServerBusyError,
     "Redis is busy (it loads, or a script runs); try again"),
    ("DB index is out of range", UsageError,
     "--redis-url names a database that this server does not have"),
    ("OutOfMemoryError|OOM", DrainkitError,
     "Redis is out of memory (maxmemory) and refuses writes; free some"),
    ("MISCONF", DrainkitError, "Redis cannot save to disk and refuses writes; see its log"),
    ("NOREPLICAS", DrainkitError, "Redis has too few replicas and refuses writes; see its log"),
)  # fmt: skip


@dataclass
class _Counted:
    """A connection's socket that counts what it brings, and ends a reply that grows too large."""

    sock: Any
    received: int = 0  # bytes since a request was sent with no other in flight
    most: int | None = None

    def recv_into(self, buffer: bytearray) -> int:
        """As a socket's; raises ReplyTooLargeError once more than `most` bytes came."""
        size: int = self.sock.recv_into(buffer)
        self.received += size
        if self.most is not None and self.received > self.most:
            raise ReplyTooLargeError("a reply holds more than was wanted")
        return size

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


class Server(AbstractContextManager["Server"]):
    """A connection to the primary of `stream`'s slot; errors come out as drainkit's own.

    A connection that the server closed while it was idle is opened again before the next request.
    A request that was sent is never sent again: whether it ran is for the caller to find out.
    """

    info: ServerInfo  # who is at the other end
    reply_timeout_sec: float  # after so long without a reply the connection counts as lost
    counted: _Counted
    _link: Connection
    _place: Place | None = None  # where it is; None: behind a unix socket

    def __init__(
        self, url: str, stream: str, audit_stream: str | None = None, *,
        place: Place | None = None, anywhere: bool = False,
    ) -> None:  # fmt: skip
        """`place`: this node of a Cluster; `anywhere`: any of its nodes, to ask for the others."""
        self._url = url
        self.stream = stream.encode()  # its key
        keep_secret(secret_words(url))
        self.shown_url = one_line(topology.netloc(*place) if place else url)
        self._fixed, self._anywhere = place, anywhere
        self._offset_us = 0  # of the server's time from this host's monotonic clock
        self.connected = False  # as far as this side knows
        self._in_flight = 0  # requests whose replies were not read yet
        self.takeovers = 0
        """How often the data may have gone back since this was opened, as of the last connecting.

        Its replication id tells: a restart (an older file too), a failover, a primary that was a
        replica meanwhile, each give it a new one. The owner of a slot that moved within its
        Cluster, with all that was in it, is not counted, nor a primary's very first replica, which
        gives it a new one too: the process is the same then, and never was a replica itself.
        """
        self.reconnect()
        #: the stream and its side keys; one in another slot of a Cluster is refused
        self.keys = side_keys(self.stream, audit_stream, is_cluster=self.info.cluster)

    @classmethod
    def of(cls, settings: Settings, stream: str | None = None, *, anywhere: bool = False) -> Server:
        """The settings' server and stream, or another stream of it with its own audit."""
        url = settings.redis_url.get_secret_value()
        if stream is not None:
            return cls(url, stream)
        return cls(url, settings.stream, settings.audit_stream, anywhere=anywhere)

    def close(self, *_: object) -> None:
        """Drop the connection; what the server still works on goes on there."""
        self._in_flight = 0
        if self.connected:
            self.connected = False
            self._link.disconnect()

    __exit__ = close

    def reconnect(self) -> bool:
        """Connect, by way of Sentinel and Cluster, to the primary that serves the stream's slot.

        Or to the node that was named. False if the data may have gone back since the last time.
        """
        before: ServerInfo | None = getattr(self, "info", None)
        place = self._place
        self.close()
        try:
            if self._fixed:
                link = topology.node(self._url, *self._fixed, topology.HANGS_SEC)
            else:
                link = topology.find(self._url)
            now = topology.read_info(link)
            if now.cluster and not self._fixed and not self._anywhere:
                link = topology.owner_node(self._url, link, self.stream)
                now = topology.read_info(link)
        except (redis.RedisError, OSError) as error:
            raise self._error(error) from error
        self._link, self.info, self.connected = link, now, True
        self.reply_timeout_sec = link.socket_timeout or topology.REPLY_TIMEOUT_SEC
        self.counted = link._parser._sock = _Counted(link._parser._sock)
        self._place = None if self._url.startswith("unix:") else (link.host, int(link.port))
        if before is None:
            return True
        # a primary that stays one gets a new replication id when its first replica comes
        is_first = now.run_id == before.run_id and not now.was_replica
        is_same = now.role == before.role and (now.replid == before.replid or is_first)
        if not is_same and place and now.cluster:
            is_same = topology.has_handed_over(self._url, self.stream, place, before, now)
        self.takeovers += not is_same
        return is_same

    def call(self, *args: bytes | str | int) -> Any:
        """Send one command and return its reply, bytes undecoded."""
        self.send(args, alone=True)
        return self.receive()

    def pipeline(self, commands: Sequence[Command], most_bytes: int | None = None) -> list[Any]:
        """Replies to `commands`, sent at once; the first error among them is raised at the end."""
        self.send(*commands, alone=True)
        replies: list[Any] = []
        failure: DrainkitError | None = None
        for _ in commands:
            try:
                replies.append(self.receive(most_bytes))
            except DrainkitError as error:
                if not self.connected:
                    raise
                failure = failure or error
        if failure:
            raise failure
        return replies

    def send(self, *commands: Command, alone: bool = False) -> None:
        """Send commands without waiting; replies come in the order of sending.

        `alone`: the next reply is to be that of the first of them.
        """
        if alone and self._in_flight:
            raise RuntimeError(f"{self._in_flight} replies are still to come")
        # redis-py's own would look at each of a commit's thousands of arguments in Python
        requests = [hiredis.pack_command(args) for args in commands]  # type: ignore[arg-type] # its stub: one
        try:
            if not self._in_flight:
                self.counted.received, is_open = 0, False
                with suppress(redis.RedisError, OSError):
                    is_open = self.connected and not self._link.can_read(timeout=0)
                # the server closed it meanwhile; the caller has to know if it restarted
                if not is_open and not self.reconnect():
                    raise redis.ConnectionError("the server restarted, or another one took over")
            self._link.send_packed_command(requests, check_health=False)
        except (redis.RedisError, OSError) as error:
            raise self._error(error) from error
        self._in_flight += len(requests)

    def receive(self, most_bytes: int | None = None) -> Any:
        """The oldest reply not yet received; ReplyTooLargeError if it has more than `most_bytes`.

        Of several requests in flight the bytes of all count.
        """
        try:
            self.counted.most = most_bytes
            if not self.connected:
                raise redis.ConnectionError("not connected")
            self._in_flight -= 1
            return self._link.read_response(disable_decoding=True)
        except ReplyTooLargeError:  # its rest would be taken for the next reply
            self.close()
            raise
        except (redis.RedisError, OSError) as error:
            raise self._error(error) from error

    def clock_us(self, told_us: int | None = None) -> int:
        """Microseconds since the epoch by the server's clock, which is not asked each time.

        It is what a reply told last (`told_us`: just now) and this host's monotonic clock since.
        The host's wall clock plays no part, so a host that is a day off drains correctly.
        """
        monotonic_us = time.monotonic_ns() // 1000
        if told_us is not None:
            self._offset_us = told_us - monotonic_us
        return self._offset_us + monotonic_us

    def now_us(self) -> int:
        """The server's clock, asked now (TIME); `clock_us` goes on from there."""
        seconds, micros = self.call("TIME")
        return self.clock_us(int(seconds) * 1_000_000 + int(micros))

    def primaries(self) -> list[Place | None]:
        """Where each primary of a Cluster is, for `at`; of another server: there alone."""
        if not self.info.cluster:
            return [None]
        found = topology.slots(self.call("CLUSTER", "SLOTS"), self._link.host)
        return [*dict.fromkeys(place for _, _, place in found)]

    def at(self, place: Place | None) -> Server:
        """A connection to one primary; UnreachableError names it."""
        return Server(self._url, self.stream.decode(), place=place)

    def _error(self, error: redis.RedisError | OSError) -> DrainkitError:
        """drainkit's error for redis-py's; a link of no more use is dropped.

        What an error reply was about did not run.
        """
        is_reply = isinstance(error, topology.ERROR_REPLIES)
        if not is_reply:
            self.close()
        if is_reply or isinstance(error, InvalidResponse):
            # redis-py has a class in the place of some codes, and 6.2 wraps the errors of a script
            # in text of its own ("Error running script ... -OOM"), so all of it is searched
            words = f"{type(error).__name__} {getattr(error, 'status_code', None)} {error}"
            for codes, kind, message in _MEANINGS:
                if re.search(rf"\b({codes})\b", words):
                    more = f" ({error})" if str(error) else ""
                    return kind(message.format(self.shown_url) + more)
            return DrainkitError(f"Redis says: {error}")
        reason = str(error).rstrip(".") or type(error).__name__
        advice = "check that it runs and --redis-url (or DRAINKIT_REDIS_URL)"
        if "closed by server" in str(error):
            advice = "its log says why: it ended, or this client (client-output-buffer-limit?)"
        return ConnectionLostError(f"cannot reach Redis at {self.shown_url}: {reason}; {advice}")
