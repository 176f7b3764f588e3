"""The loop of a live drain."""

from __future__ import annotations

import threading
from collections.abc import Iterator

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
from .in_flight import InFlight, ReadRequest
from .job import Job, Progress
from .reader import Reader
from .turns import ReadAgainError, Turns

RECOVERY_WAITS_SEC = (0.1, 0.5, 1.0, 2.0, 4.0)
MAX_LOOKS = 20  # in a row, at what others record, before a drain gives up


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
        self.clock = Clock(server.now_us())
        self.in_flight = InFlight(server, job, self.clock)
        self._reader = Reader(server, job, self.in_flight, self.clock)
        self.turns = Turns(
            job, summary, self.in_flight, self._reader, self.clock, stopping, on_progress
        )
        self._unsent = 0  # entries that were read and are still to be sent
        self.begun: vanished.Opening | None = None  # counted before the first commit
        self._is_open = False

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
                self.turns.finish()
                looks = looks + 1 if self.summary.total_read == before else 0
                if isinstance(error, RecordedError) and looks > MAX_LOOKS:
                    raise
                self.turns.wait()
            except (ConnectionLostError, ServerBusyError, SlotMovedError) as error:
                if self.summary.total_read > before:
                    attempts = iter(RECOVERY_WAITS_SEC)
                _recover(self, error, attempts)
            self._reader.start_over()
            self._unsent = 0

    def _drain(self) -> None:
        if not self._is_open:
            self.begun = vanished.opening(self.server, self.job)
            self.summary.expected = vanished.expected(self.server, self.job, self.begun)
            self._is_open = True
        for batch in self._reader.pending(self._room):
            self._commit(batch)
            self.turns.settle_all()
        if self.job.scope.name != "pending":
            self._drain_new()
        if self.stopping.is_set():
            raise InterruptedRunError("interrupted; run the same command again to go on")

    def _drain_new(self) -> None:
        self.turns.rate = self._reader.probe()
        self._reader.ask(self._room())
        while batch := self._next_batch():
            if self.turns.rate is None:
                self._reader.ask(self._room())
            self._commit(batch)
            if self.turns.rate is not None:
                self.turns.settle_all()
                self._reader.ask(self._room())
        self.turns.settle_all()
        if self._room() > 0:  # not the budget but the stream has ended: if it is still the one
            self._reader.probe()

    def _commit(self, batch: Batch) -> None:
        self._unsent = 0
        self.turns.commit(batch)

    def _room(self) -> int:
        """How many entries the next batch may have; 0 when the budget is spent or interrupted."""
        if self.stopping.is_set():
            return 0
        size, budget = self._reader.size(self.turns.rate), self.job.max_events
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
            self.turns.settle_all()
            self._reader.ask(self._room())
        self.turns.settle_all()
        request = self.in_flight.oldest()
        if not isinstance(request, ReadRequest):
            return None
        batch = self._reader.take(request, max(1, self._room()))
        self._unsent = batch.size - len(batch.recorded) if batch else 0
        return batch

    def _exhausted(self, *, progress: bool) -> bool:
        """Whether nothing is left to do; raises if something is that could not be done."""
        budget = self.job.max_events
        if budget is not None and self.summary.total_read >= budget:
            return True
        # as far as a plan goes: what it leaves alone would be waited for forever
        scope = scopes.current(self.server, self._reader.bounds)
        if any(scopes.own_ids(self.server, scope)):
            return False
        if scope.name != "pending" or not self.turns.refused:
            return True
        rows = (row for page in scopes.scope_ids(self.server, scope) for row in page)
        left = sum(row in self.turns.refused for row in rows)  # what another took since is its own
        if left and not progress:
            raise DrainkitError(
                f"{left} idle entries of the scope could not be taken; run the same command again"
            )
        return not left


def _recover(worker: Worker, error: UnreachableError, attempts: Iterator[float]) -> None:
    """After a fault: look again. What is still undelivered or pending was not committed."""
    worker.in_flight.mark_unknown()
    for wait in attempts:
        if worker.stopping.wait(wait):
            raise InterruptedRunError("interrupted; run the same command again to go on")
        try:
            owner = worker.server.info.run_id
            worker.server.reconnect()
            if not worker.in_flight.is_same_server:
                raise UnreachableError(
                    "the server restarted or another took over, and may have lost the last "
                    "moments; run the same command again to go on"
                )
            check_primary(worker.server.info)
            if worker.server.info.run_id != owner:  # deadlines were by the other one's clock
                worker.in_flight.wait_out()
            worker.clock.sync(worker.server.now_us())
        except (ConnectionLostError, ServerBusyError, SlotMovedError):
            continue
        return
    raise error
