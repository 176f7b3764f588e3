"""The turns of a live drain: when its next commit may come, and what became of each."""

from __future__ import annotations

import threading
import time

import numpy as np

from ..core.audit import records
from ..core.entries import Changes
from ..core.events import decoder_of
from ..core.policy import decide
from ..core.summary import Summary
from ..errors import ConnectionLostError, DrainkitError
from ..server.connection import Clock
from ..server.writing import Batch
from .in_flight import CommitRequest, InFlight, ReadRequest
from .job import MAX_CLOCK_WAIT_SEC, Job, Progress, future_audit
from .reader import Reader

CREDIT_US = 50_000  # a busy client makes up for so much delay of its turn


class ReadAgainError(DrainkitError):
    """A batch was not committed and has to be read anew; what was sent after it, too."""


class Turns:
    """Decides a batch when its turn comes, sends it, and takes the reply into the books."""

    def __init__(
        self,
        job: Job,
        summary: Summary,
        in_flight: InFlight,
        reader: Reader,
        clock: Clock,
        stopping: threading.Event,
        on_progress: Progress | None,
    ) -> None:
        self._job = job
        self._summary = summary
        self._in_flight = in_flight
        self._reader = reader
        self._clock = clock
        self._stopping = stopping
        self._on_progress = on_progress
        self._decoder = decoder_of(job.settings)
        self.rate = job.settings.throttle  # the lowest of all drains at work
        self._next_turn = 0.0  # time.monotonic()
        self._credit_us = 0  # a drain begins without
        self.changes = None if job.to_drain is None else Changes(job.policy)
        self.refused: set[tuple[bytes, str]] = set()  # pending ids of owners, not taken

    def wait(self) -> bool:
        """Wait for the turn; False if interrupted meanwhile."""
        seconds = self._next_turn - time.monotonic()
        return not (self._stopping.wait(seconds) if seconds > 0 else self._stopping.is_set())

    def commit(self, batch: Batch) -> None:
        """Decide at this turn's moment and send; told to wait, decide anew at the next turn."""
        events = batch.events
        if events is None:
            events = self._decoder.decode(batch.entries)
        while True:
            if self.rate is not None and not self.wait():
                return  # interrupted: the batch stays as it is for the same command run again
            now_us = self._clock.now_us()
            as_of_us = self._job.settings.as_of_us
            decisions = decide(events, self._job.policy, now_us if as_of_us is None else as_of_us)
            made = records(events, decisions, self._job.policy)
            self.settle_all()  # as late as can be: until then the server has its commit to do
            self._in_flight.commit(
                batch, events, decisions, made, now_us=now_us, credit_us=self._credit_us
            )
            request = self._in_flight.oldest()
            if self.rate is None or not isinstance(request, CommitRequest):
                return
            if self.settle(request, may_wait=True):
                return

    def settle_all(self) -> None:
        while isinstance(request := self._in_flight.oldest(), CommitRequest):
            self.settle(request)

    def settle(self, request: CommitRequest, *, may_wait: bool = False) -> bool:
        """Take the reply of the oldest commit into the books; False if it has to wait."""
        reply = self._in_flight.receive_commit()
        self._next_turn = time.monotonic() + reply.wait_us / 1e6
        self.rate = rate = reply.rate
        if not reply.done:
            if reply.wait_us > max(MAX_CLOCK_WAIT_SEC, 2 / (rate or 1)) * 1e6:
                raise DrainkitError(future_audit(reply.wait_us / 1e6))
            if not may_wait or rate is None or request.fresh > max(1, rate / 5):
                raise ReadAgainError("the batch has to wait, or to be smaller, and is read anew")
            return False
        self._reader.note(reply.position, reply.counters)
        taken = reply.rejected | request.batch.recorded
        rows: np.ndarray | slice = slice(None)
        if taken:
            rows = np.array([entry not in taken for entry in request.events.ids])
        if self.changes is not None and (planned := request.batch.planned) is not None:
            self.changes.note(request.events, request.decisions, rows, planned)
        if counted := self._summary.count(request.decisions, rows):
            self._summary.pace.note(reply.audit_ms, counted)
            self._credit_us = CREDIT_US
        self._summary.vanished += reply.vanished
        if request.batch.owners is not None:
            rows_of = zip(request.events.ids, request.batch.owners, strict=True)
            self.refused |= {row for row in rows_of if row[0] in reply.rejected}
        if self._on_progress:
            self._on_progress(self._summary)
        return True

    def finish(self) -> None:
        """Take what is still in flight into the books: a commit in flight is a commit."""
        while request := self._in_flight.oldest():
            try:
                if isinstance(request, ReadRequest):
                    self._in_flight.receive_page()
                else:
                    self.settle(request)
            except ConnectionLostError:
                self._in_flight.mark_unknown()
                return
            except DrainkitError:  # refused by the server: nothing of it ran
                continue
