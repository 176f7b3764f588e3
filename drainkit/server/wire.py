"""One connection's requests in the order of sending, and where they go when their slot moves.

A Cluster may hand the stream's slot, side keys and all, to another of its primaries while a drain
is at work. What the old owner refuses then did not run, so it goes to the new one. While a slot is
half moved (SETSLOT MIGRATING), both refuse a script of several keys: it waits for the end of that.

Clocks of two primaries can differ. Where the new one's is behind, the next commit waits until it
has passed the audit's last id; where it is ahead, ages grow by the difference. By the audit's ids
the throttle holds in both cases.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import redis
from redis.connection import Connection

from ..errors import UnreachableError
from . import topology
from .topology import ERROR_REPLIES, REPLY_TIMEOUT_SEC, ServerInfo

# the request did not run: the slot is elsewhere, half moved, or served by nobody
# (redis-py's MovedError is an AskError)
SLOT_ERRORS = (
    redis.exceptions.AskError,
    redis.exceptions.TryAgainError,
    redis.exceptions.ClusterDownError,
)
_FIRST_WAIT_SEC, _LONGEST_WAIT_SEC = 0.02, 0.5


class Wire:
    """The connection to the primary that serves `key`; raises redis-py's errors.

    No request is sent twice, unless its reply says that it did not run because of its slot.
    """

    info: ServerInfo  # once opened

    def __init__(self, url: str, key: bytes) -> None:
        self._url = url
        self._key = key
        self._link: Connection | None = None
        self._sent: deque[bytes] = deque()  # requests whose replies nobody took yet
        self._replies: deque[Any] = deque()  # to the first of these, errors too
        self.takeovers = 0  # how often a server restarted, or another one took its place
        self._place: tuple[str, int] | None = None  # of the server; None: a unix socket

    @property
    def connected(self) -> bool:
        """Whether the connection is up, as far as this side knows."""
        return self._link is not None

    @property
    def reply_timeout_sec(self) -> float:
        """After how long without a reply the connection counts as lost."""
        return getattr(self._link, "socket_timeout", None) or REPLY_TIMEOUT_SEC

    @property
    def in_flight(self) -> int:
        """How many requests wait for their replies to be taken."""
        return len(self._sent)

    def close(self) -> None:
        """Drop the connection; what the server still works on goes on there."""
        self._sent.clear()
        self._replies.clear()
        if self._link is not None:
            self._link.disconnect()
            self._link = None

    def open(self, place: tuple[str, int] | None = None) -> None:
        """Connect to the primary that serves the key, or to the Cluster's node at `place`."""
        link = topology.node(self._url, *place) if place else topology.find(self._url)
        info = topology.read_info(link)
        if info.cluster and not place:
            link = topology.owner_node(self._url, link, self._key)
            info = topology.read_info(link)
        self._link, self.info = link, info
        self._place = None if self._url.startswith("unix:") else (link.host, link.port)

    def reopen(self) -> None:
        """Connect anew, resolving Sentinel and Cluster again."""
        before, place = self.info, self._place
        self.close()
        self.open()
        if self.info.run_id != before.run_id and not self._has_handed_over(place, before):
            self.takeovers += 1

    def send(self, requests: list[bytes]) -> None:
        """Send packed requests at once, without waiting for replies."""
        self._fresh().send_packed_command(requests, check_health=False)
        self._sent.extend(requests)

    def receive(self) -> Any:
        """The reply to the oldest request; raised if it is an error."""
        if not self._replies:
            self._replies.append(self._read())
        if self.info.cluster and isinstance(self._replies[0], SLOT_ERRORS):
            self._send_refused()
        self._sent.popleft()
        reply = self._replies.popleft()
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _send_refused(self) -> None:
        """Send what was refused because of its slot to the slot's owner, until that takes it.

        Gives up when a reply would have been due; the requests then keep their errors.
        """
        until, wait = time.monotonic() + self.reply_timeout_sec, _FIRST_WAIT_SEC
        sent, replies = self._sent.copy(), self._replies.copy()
        replies.extend(self._read() for _ in range(len(sent) - len(replies)))
        while time.monotonic() < until and any(isinstance(r, SLOT_ERRORS) for r in replies):
            owner, takeovers = self.info.run_id, self.takeovers
            self.reopen()
            if self.takeovers != takeovers:
                raise redis.ConnectionError("another server took over")
            if self.info.run_id == owner:
                time.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT_SEC)
            refused = [at for at, reply in enumerate(replies) if isinstance(reply, SLOT_ERRORS)]
            self._connected().send_packed_command([sent[at] for at in refused], check_health=False)
            for at in refused:
                replies[at] = self._read()
        self._sent, self._replies = sent, replies

    def _read(self) -> Any:
        try:
            return self._connected().read_response(disable_decoding=True)
        except ERROR_REPLIES as error:
            return error

    def _connected(self) -> Connection:
        if self._link is None:
            raise redis.ConnectionError("not connected")
        return self._link

    def _fresh(self) -> Connection:
        """The connection for a request; with none in flight, opened anew if the server closed it.

        Not to another server than before: the caller has to know that it restarted.
        """
        if self._sent:
            return self._connected()
        try:
            if self._link is not None and not self._link.can_read(timeout=0):
                return self._link
        except (redis.RedisError, OSError):
            pass
        takeovers = self.takeovers
        self.reopen()
        if self.takeovers != takeovers:
            raise redis.ConnectionError("the server restarted, or another one took over")
        return self._connected()

    def _has_handed_over(self, place: tuple[str, int] | None, before: ServerInfo) -> bool:
        """Whether the server before this one gave the slot away, with all that was in it.

        It did if it is still the same process and a primary, and itself says whose the slot is.
        One that was replaced after a failure became a replica, or still takes the slot for its
        own: then what it did last may be lost.
        """
        if place is None or not self.info.cluster:
            return False
        try:
            old = topology.node(self._url, *place)
            info = topology.read_info(old)
            owner = topology.owner_node(self._url, old, self._key)
            owner_info = topology.read_info(owner)
            owner.disconnect()
        except (redis.RedisError, OSError, UnreachableError):
            return False
        return (info.run_id, info.role, owner_info.run_id) == (
            before.run_id, "master", self.info.run_id,
        )  # fmt: skip
