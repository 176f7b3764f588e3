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
from ..server.writing import Batch, Committed
from .run import Run

ROUND_TRIPS = 8  # of so many commits the shortest counts


@dataclass(frozen=True)
class ReadRequest:
    """New entries after an id were asked for; with the stream's counters as known then."""

    after: str
    counters: bytes


@dataclass(frozen=True)
class CommitRequest:
    """A batch was sent to be committed."""

    batch: Batch
    events: Events
    decisions: Decisions
    sent_sec: float  # time.monotonic()


class InFlight:
    """Requests of one connection in the order of sending, which is that of their replies.

    A request of unknown outcome is never sent again: the group itself says later what was done.
    """

    def __init__(self, run: Run, audit_id: str, round_trip_sec: float) -> None:
        self._server, self._clock = run.server, run.clock
        self._reach, self._rate, self._run_id = run.reach, run.settings.throttle, run.run_id
        self._requests: deque[ReadRequest | CommitRequest] = deque()
        self.reading = False  # whether one of them is a read
        self.events = 0  # entries that wait for the reply to their commit
        self.round_trip_sec = (
            round_trip_sec  # of a commit and its reply: the shortest of the last ones
        )
        self.takeovers = run.server.takeovers  # of the server, when the run began
        self._deadline = self._unknown_until = 0  # us, by the server's clock
        self._round_trips = deque([round_trip_sec], maxlen=ROUND_TRIPS)
        self.audit_id = audit_id  # the audit's last id, as seen last
        self.uncertain = False  # a commit's outcome was unknown: the audit itself must be counted

    def oldest(self) -> ReadRequest | CommitRequest | None:
        """The request whose reply comes next."""
        return self._requests[0] if self._requests else None

    def read(self, after: str, counters: bytes, last: str, count: int) -> None:
        """Ask for up to `count` new entries after an id."""
        reading.send_page(self._server, after, last, count)
        self._requests.append(ReadRequest(after, counters))
        self.reading = True

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
        writing.send_commit(
            self._server, self._reach, batch, made, drained_at=iso(now_us), rate=self._rate,
            run_id=self._run_id, deadline_us=self._new_deadline_us(), audit_id=self.audit_id,
            credit_us=credit_us,
        )  # fmt: skip
        self._requests.append(CommitRequest(batch, events, decisions, time.monotonic()))
        self.events += batch.size

    def probe(self, after: str, counters: bytes) -> Committed:
        """A commit without records; the drains at work learn of this one's throttle."""
        sent_sec = time.monotonic()
        reply = writing.probe(
            self._server, self._reach, after=after, counters=counters, audit_id=self.audit_id,
            deadline_us=self._new_deadline_us(), rate=self._rate,
        )  # fmt: skip
        self._note(reply, sent_sec)
        return reply

    def receive_page(self) -> list[RawEntry]:
        """The reply to the oldest request, a read."""
        with self._reply():
            return reading.receive_page(self._server)

    def receive_commit(self) -> Committed:
        """The reply to the oldest request, a commit."""
        request = self._requests[0]
        with self._reply():
            reply = writing.receive_commit(self._server)
            if isinstance(request, CommitRequest):
                self._note(reply, request.sent_sec)
            return reply

    def _note(self, reply: Committed, sent_sec: float) -> None:
        self._round_trips.append(time.monotonic() - sent_sec)
        self.round_trip_sec = min(self._round_trips)
        self._clock.sync(reply.now_us)
        if reply.done:
            self.audit_id = reply.audit_id

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
            self._settle()
            raise
        self._settle()

    def _settle(self) -> None:
        request = self._requests.popleft()
        if isinstance(request, CommitRequest):
            self.events -= request.batch.size
        else:
            self.reading = False

    def _new_deadline_us(self) -> int:
        """When a request sent now will be given up; the server refuses it after that."""
        self._deadline = self._clock.now_us() + round(self._server.reply_timeout_sec * 1e6)
        return self._deadline

    def mark_unknown(self) -> None:
        """Note that what is in flight may be done or not, or may even be done later."""
        if self.events:
            self._unknown_until = self._deadline
            self.uncertain = True
        self._requests.clear()
        self.reading, self.events = False, 0

    def wait_out(self) -> None:
        """Wait until no request of unknown outcome can still reach the server it was sent to.

        A network may deliver a request long after its connection broke; the books close after it.
        """
        if self.is_same_server:
            time.sleep(max(0.0, self._unknown_until - self._clock.now_us()) / 1e6)

    @property
    def is_same_server(self) -> bool:
        """Whether the server is what it was at the start, or has the slot from it as it was."""
        return self._server.takeovers == self.takeovers
