"""The loop of a live drain."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np

from ..core.entries import Changes
from ..core.events import decoder_of
from ..core.policy import decide
from ..core.summary import Summary
from ..errors import (
    ConnectionLostError,
    DrainkitError,
    InterruptedRunError,
    ServerBusyError,
    SlotMovedError,
    UnreachableError,
)
from ..server import scopes
from ..server.connection import Clock, Server
from ..server.topology import check_primary
from ..server.writing import Batch, RecordedError
from . import vanished
from .in_flight import CommitRequest, InFlight, ReadRequest
from .job import MAX_CLOCK_WAIT_SEC, Job, Progress, future_audit
from .reader import Reader

RECOVERY_WAITS_SEC = (0.1, 0.5, 1.0, 2.0, 4.0)
CREDIT_US = 50_000  # a busy client makes up for so much delay of its turn
MAX_LOOKS = 20  # in a row, at what others record, before a drain gives up


class ReadAgainError(DrainkitError):
    """A batch was not committed and has to be read anew; what was sent after it, too."""


class Worker:
    """The loop of a live drain: reads as a dry run does, and writes by commits, one at a time.

    Nothing is claimed beforehand: until its commit an entry stays as undelivered, or as pending for
    its owner, as it was. So whatever happens before leaves no trace, and after a fault the group
    itself says what was done.

    With a throttle, commits take turns: the batch of a turn is decided when it comes. Without one
    the server commits and reads on while this side decides.
    """

    def __init__(
        self,
        server: Server,
        job: Job,
        summary: Summary,
        stopping: threading.Event,
        on_progress: Progress | None,
    ) -> None:
        self.server = server
        self.job = job
        self.summary = summary
        self.stopping = stopping
        self.on_progress = on_progress
        self._decoder = decoder_of(job.settings)
        self._clock = Clock(server.now_us())
        self.in_flight = InFlight(server, job, self._clock)
        self._reader = Reader(server, job, self.in_flight, self._clock)
        self._rate = job.settings.throttle  # the lowest of all drains at work
        self._next_turn = 0.0  # time.monotonic()
        self._credit_us = 0  # a drain begins without
        self._unsent = 0  # entries that were read and are still to be sent
        self.changes = None if job.to_drain is None else Changes(job.policy)
        self.begun: vanished.Opening | None = None  # counted before the first commit
        self._is_open = bool(job.fellows)  # of several workers none counts for itself
        self._refused: set[tuple[bytes, str]] = set()  # pending ids of owners, not taken

    def run(self) -> None:
        """Drain until the scope, the budget or the patience with a broken server is exhausted."""
        attempts, looks = iter(RECOVERY_WAITS_SEC), 0
        while True:
            before = self.summary.total_read
            try:
                self._drain()
                if self._exhausted(progress=self.summary.total_read > before):
                    return
                # somebody of the same name was delivered entries meanwhile: they are ours as well
            except (ReadAgainError, RecordedError) as error:
                self.finish_replies()
                looks = looks + 1 if self.summary.total_read == before else 0
                if isinstance(error, RecordedError) and looks > MAX_LOOKS:
                    raise
                self._sleep(self._next_turn - time.monotonic())
            except (ConnectionLostError, ServerBusyError, SlotMovedError) as error:
                if self.summary.total_read > before:
                    attempts = iter(RECOVERY_WAITS_SEC)
                self._recover(error, attempts)
            self._reader.start_over()
            self._unsent = 0

    def finish_replies(self) -> None:
        """Take what is still in flight into the books: a commit in flight is a commit."""
        while request := self.in_flight.oldest():
            try:
                if isinstance(request, ReadRequest):
                    self.in_flight.receive_page()
                else:
                    self._settle(request)
            except ConnectionLostError:
                self.in_flight.mark_unknown()
                return
            except DrainkitError:  # refused by the server: nothing of it ran
                continue

    def _drain(self) -> None:
        if not self._is_open:
            self.begun = vanished.opening(self.server, self.job)
            self.summary.expected = vanished.expected(self.server, self.job, self.begun)
            self._is_open = True
        for batch in self._reader.pending(self._room):
            self._commit(batch)
            self._settle_commits()
        if self.job.scope.name != "pending":
            self._drain_new()
        if self.stopping.is_set():
            raise InterruptedRunError("interrupted; run the same command again to go on")

    def _drain_new(self) -> None:
        self._rate = self._reader.probe()
        self._reader.ask(self._room())
        while batch := self._next_batch():
            if self._rate is None:
                self._reader.ask(self._room())
            self._commit(batch)
            if self._rate is not None:
                self._settle_commits()
                self._reader.ask(self._room())
        self._settle_commits()
        if self._room() > 0:  # not the budget but the stream has ended: if it is still the one
            self._reader.probe()

    def _room(self) -> int:
        """How many entries the next batch may have; 0 when the budget is spent or interrupted."""
        if self.stopping.is_set():
            return 0
        size, budget = self._reader.size(self._rate), self.job.max_events
        if budget is None:
            return size
        return min(size, budget - self.summary.total_read - self.in_flight.events - self._unsent)

    def _next_batch(self) -> Batch | None:
        """New entries, of the plan or as asked for; None: no more, or the budget is spent."""
        if (batch := self._reader.ready(self._room())) is not None:
            self._unsent = batch.size
            return batch
        if not self.in_flight.reading:
            # the budget was all in flight; what was rejected of that leaves room again
            self._settle_commits()
            self._reader.ask(self._room())
        self._settle_commits()
        request = self.in_flight.oldest()
        if not isinstance(request, ReadRequest):
            return None
        batch = self._reader.take(request, max(1, self._room()))
        self._unsent = batch.size - len(batch.recorded) if batch else 0
        return batch

    def _commit(self, batch: Batch) -> None:
        """Decide at this turn's moment and send; told to wait, decide anew at the next turn."""
        events = batch.events
        if events is None:
            events = self._decoder.decode(batch.entries)
        self._unsent = 0
        while True:
            if self._rate is not None and not self._sleep(self._next_turn - time.monotonic()):
                return  # interrupted: the batch stays as it is for the same command run again
            now_us = self._clock.now_us()
            as_of_us = self.job.settings.as_of_us
            decisions = decide(events, self.job.policy, now_us if as_of_us is None else as_of_us)
            self._settle_commits()
            self.in_flight.commit(
                batch, events, decisions, now_us=now_us, credit_us=self._credit_us
            )
            request = self.in_flight.oldest()
            if self._rate is None or not isinstance(request, CommitRequest):
                return
            if self._settle(request, may_wait=True):
                return

    def _settle_commits(self) -> None:
        while isinstance(request := self.in_flight.oldest(), CommitRequest):
            self._settle(request)

    def _settle(self, request: CommitRequest, *, may_wait: bool = False) -> bool:
        """Take the reply of the oldest commit into the books; False if it has to wait."""
        reply = self.in_flight.receive_commit()
        self._next_turn = time.monotonic() + reply.wait_us / 1e6
        self._rate = rate = reply.rate
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
        if counted := self.summary.count(request.decisions, rows):
            self.summary.pace.note(reply.audit_ms, counted)
            self._credit_us = CREDIT_US
        self.summary.vanished += reply.vanished
        if request.batch.owners is not None:
            rows_of = zip(request.events.ids, request.batch.owners, strict=True)
            self._refused |= {row for row in rows_of if row[0] in reply.rejected}
        if self.on_progress:
            self.on_progress(self.summary)
        return True

    def _exhausted(self, *, progress: bool) -> bool:
        """Whether nothing is left to do; raises if something is that could not be done."""
        budget = self.job.max_events
        if budget is not None and self.summary.total_read >= budget:
            return True
        # as far as a plan goes: what it leaves alone would be waited for forever
        scope = scopes.current(self.server, self._reader.bounds)
        if any(scopes.own_ids(self.server, scope)):
            return False
        if scope.name != "pending" or not self._refused:
            return True
        rows = (row for page in scopes.scope_ids(self.server, scope) for row in page)
        left = sum(row in self._refused for row in rows)  # what another took since is its own
        if left and not progress:
            raise DrainkitError(
                f"{left} idle entries of the scope could not be taken; run the same command again"
            )
        return not left

    def _sleep(self, seconds: float) -> bool:
        """Wait for the turn; False if interrupted meanwhile."""
        return not (self.stopping.wait(seconds) if seconds > 0 else self.stopping.is_set())

    def _recover(self, error: UnreachableError, attempts: Iterator[float]) -> None:
        """After a fault: look again. What is still undelivered or pending was not committed."""
        self.in_flight.mark_unknown()
        for wait in attempts:
            if self.stopping.wait(wait):
                raise InterruptedRunError("interrupted; run the same command again to go on")
            try:
                owner = self.server.info.run_id
                self.server.reconnect()
                if not self.in_flight.is_same_server:
                    raise UnreachableError(
                        "the server restarted or another took over, and may have lost the last "
                        "moments; run the same command again to go on"
                    )
                check_primary(self.server.info)
                if self.server.info.run_id != owner:  # deadlines were by the other one's clock
                    self.in_flight.wait_out()
                self._clock.sync(self.server.now_us())
            except (ConnectionLostError, ServerBusyError, SlotMovedError):
                continue
            return
        raise error
