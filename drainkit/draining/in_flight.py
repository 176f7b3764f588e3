"""What a live drain sent and has no reply to yet, and what became of it when a reply is lost."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..core.audit import Records
from ..core.events import Events
from ..core.policy import Decisions
from ..core.timestamps import iso
from ..core.values import RawEntry
from ..errors import ConnectionLostError, DrainkitError
from ..server import reading, writing
from ..server.connection import Clock, Server
from ..server.writing import Batch, Committed
from .job import Job


@dataclass(frozen=True)
class ReadRequest:
    """New entries after an id were asked for; with the stream's counters as known then."""

    after: str
    counters: bytes


@dataclass(frozen=True)
class CommitRequest:
    """A batch was sent to be committed; `fresh` of its entries have no record yet."""

    batch: Batch
    events: Events
    decisions: Decisions
    fresh: int


class InFlight:
    """Requests of one connection in the order of sending, which is that of their replies.

    A request of unknown outcome is never sent again: the group itself says later what was done.
    """

    def __init__(self, server: Server, job: Job, clock: Clock) -> None:
        self._server = server
        self._job = job
        self._reach = job.reach
        self._clock = clock
        self._requests: deque[ReadRequest | CommitRequest] = deque()
        self._takeovers = server.takeovers
        self._deadline = self._unknown_until = 0  # us, by the server's clock
        self.uncertain = False  # a commit's outcome was unknown: the audit itself must be counted

    @property
    def reading(self) -> bool:
        """Whether a read is in flight."""
        return any(isinstance(request, ReadRequest) for request in self._requests)

    @property
    def events(self) -> int:
        """How many entries wait for the reply to their commit, of those without a record."""
        return sum(r.fresh for r in self._requests if isinstance(r, CommitRequest))

    def oldest(self) -> ReadRequest | CommitRequest | None:
        """The request whose reply comes next."""
        return self._requests[0] if self._requests else None

    def read_request(self, after: str, counters: bytes, last: str, count: int) -> None:
        """Ask for up to `count` new entries after an id."""
        reading.send_page(self._server, after, last, count)
        self._requests.append(ReadRequest(after, counters))

    def commit(
        self,
        batch: Batch,
        events: Events,
        decisions: Decisions,
        made: Records,
        *,
        now_us: int,
        credit_us: int,
    ) -> None:
        """Send a batch to be committed, as decided at `now_us`, with the records made of that."""
        job = self._job
        writing.send_commit(
            self._server, self._reach, batch, made, drained_at=iso(now_us),
            rate=job.settings.throttle, run_id=job.run_id, deadline_us=self.deadline_us(),
            credit_us=credit_us, alone=job.alone,
        )  # fmt: skip
        fresh = len(events) - len(batch.recorded)
        self._requests.append(CommitRequest(batch, events, decisions, fresh))

    def receive_page(self) -> list[RawEntry]:
        """The reply to the oldest request, a read."""
        with self._reply():
            return reading.receive_page(self._server)

    def receive_commit(self) -> Committed:
        """The reply to the oldest request, a commit."""
        with self._reply():
            reply = writing.receive_commit(self._server)
            self._clock.sync(reply.now_us)
            return reply

    @contextmanager
    def _reply(self) -> Iterator[None]:
        """Take one reply: it settles the oldest request, as an error too; a lost one does not.

        Whoever waits for the reply of a request that is already settled waits in vain.
        """
        try:
            yield
        except ConnectionLostError:
            raise
        except DrainkitError:
            self._requests.popleft()
            raise
        self._requests.popleft()

    def deadline_us(self) -> int:
        """When a request sent now would be given up; the server refuses it after that."""
        self._deadline = self._clock.now_us() + round(self._server.reply_timeout_sec * 1e6)
        return self._deadline

    def mark_unknown(self) -> None:
        """Note that what is in flight may be done or not, or may even be done later."""
        if any(isinstance(request, CommitRequest) for request in self._requests):
            self._unknown_until = self._deadline
            self.uncertain = True
        self._requests.clear()

    def wait_out(self) -> None:
        """Wait until no request of unknown outcome can still reach the server it was sent to.

        A network may deliver a request long after its connection broke; the books close after it.
        """
        if self.is_same_server:
            time.sleep(max(0.0, self._unknown_until - self._clock.now_us()) / 1e6)

    @property
    def is_same_server(self) -> bool:
        """Whether the server is what it was at the start, or has the slot from it as it was."""
        return self._server.takeovers == self._takeovers
