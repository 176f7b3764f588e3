"""The loop of a live drain."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np

from ..core.audit import records
from ..core.entries import Changes
from ..core.events import decoder_of
from ..core.policy import decide
from ..errors import (
    ConnectionLostError,
    DrainkitError,
    InterruptedRunError,
    ServerBusyError,
    SlotMovedError,
    UnreachableError,
)
from ..server import recorded, scopes
from ..server.look import Seen, look
from ..server.topology import check_primary
from ..server.writing import Batch, Committed, ForgottenError
from .in_flight import CommitRequest, InFlight, ReadRequest
from .opening import MAX_CLOCK_WAIT_SEC, Ready, future_audit
from .reader import PAGE_ENTRIES, Reader
from .run import Opening, Progress, Run

RECOVERY_WAITS_SEC = (0.1, 0.5, 1.0, 2.0, 4.0)
MAX_LOOKS = 20  # in a row, at what is recorded, before a drain gives up
CREDIT_US = 50_000  # a busy client makes up for so much delay of its turn
HEARD_SEC = 5.0  # a drain that waits longer for its turn says that it is at work (commit.lua)
# a request that is early costs a round trip more, so over a long one it aims so much later
NEAR_SEC, LATE_SEC = 0.005, 0.002
TURN_SEC = 0.02  # at most 50 turns a second: an even pace, and a server that is free in between
LOST = "the server restarted or another took over, and may have lost the last moments"
INTERRUPTED = "interrupted; run the same command again to go on"


def turn_entries(rate: float, round_trip_sec: float) -> int:
    """How many entries the batch of a turn has, at `rate` events per second.

    A turn takes a round trip, and what is late within it; a tenth of a second holds a fifth of the
    rate at most, and a second no more than the rate (commit.lua): so whole batches have to fill it.
    """
    turn_sec = min(max(TURN_SEC, 2 * round_trip_sec), 0.2)
    most = max(1, min(math.ceil(rate * turn_sec), int(rate / 5)))
    second = math.ceil(rate)
    return max(range((most + 1) // 2, most + 1), key=lambda n: (second // n * n, n))


class ReadAgainError(DrainkitError):
    """A batch was not committed and has to be read anew; what was sent after it, too."""


class Loop:
    """Reads as a dry run does, and writes by commits, one at a time.

    Nothing is claimed beforehand: until its commit an entry stays as undelivered, or as pending for
    its owner, as it was. So whatever happens before leaves no trace, and after a fault the group
    itself says what was done.

    With a throttle, commits take turns: the batch of a turn is decided when it comes, and its
    request is sent half a round trip before. Without one the server commits and reads on while this
    side decides.
    """

    def __init__(
        self,
        run: Run,
        ready: Ready,
        *,
        stopping: threading.Event,
        on_progress: Progress | None,
    ) -> None:
        self._run, self._server, self._clock = run, run.server, run.clock
        self._summary = run.summary
        self._stopping = stopping
        self._on_progress = on_progress
        self.in_flight = InFlight(run, ready.seen.audit.last_id, ready.round_trip_sec)
        self._reader = Reader(run, self.in_flight)
        self._decoder = decoder_of(run.settings)
        self._rate = ready.probed.rate  # the lowest of all drains at work
        self._next_turn = 0.0  # time.monotonic()
        self._credit_us = 0  # a drain begins without
        self._refused: set[tuple[bytes, str]] = set()  # pending ids of owners, not taken
        self.changes = None if run.to_drain is None else Changes(run.policy)
        self.begun: Opening | None = None  # counted before the first commit
        self._is_open = False
        self._seen: Seen | None = ready.seen
        # still so when new entries are read, unless others are drained before
        is_first = run.scope.name == "undelivered" and not ready.seen.has_own
        self._probed = ready.probed if is_first else None

    def run(self) -> None:
        """Drain until the scope, the budget or the patience with a broken server is exhausted."""
        attempts, looks = iter(RECOVERY_WAITS_SEC), 0
        while True:
            before = self._summary.total_read
            try:
                self._drain()
                if self._exhausted(progress=self._summary.total_read > before):
                    return
                # somebody of the same name was delivered entries meanwhile: they are ours as well
            except (ReadAgainError, ForgottenError) as error:
                self.finish()
                looks = looks + 1 if self._summary.total_read == before else 0
                if isinstance(error, ForgottenError):
                    self._remember(error, looks)
                self._wait()
            except (ConnectionLostError, ServerBusyError, SlotMovedError) as error:
                if self._summary.total_read > before:
                    attempts = iter(RECOVERY_WAITS_SEC)
                self._recover(error, attempts)
            self._reader.start_over()

    def _drain(self) -> None:
        seen = self._seen or look(self._server, self._run.scope)
        self._seen = None
        if not self._is_open:
            self._count(seen)
            self._is_open = True
        for batch in self._reader.pending(seen, self._room):
            self._commit(batch)
            self._settle_all()
        if self._run.scope.name != "pending":
            self._probe(self._probed)
            self._probed = None
            while (new := self._next()) is not None:
                self._commit(new)
            self._settle_all()
            # not the budget but the stream has ended: if it is still the one
            if self._room() > 0 and not self._reader.is_at_end():
                self._probe()
        if self._stopping.is_set():
            raise InterruptedRunError(INTERRUPTED)

    def _count(self, seen: Seen) -> None:
        """Before the first commit: what is undelivered, and how many events the run is to take.

        With a plan the entries are known by name; pending entries do not vanish, they are recorded
        as missing.
        """
        run, server = self._run, self._server
        if run.to_drain is not None:
            self._summary.expected = run.to_drain.count
            return
        here = scopes.current(server, run.scope, seen)
        if here.name != "pending":
            self.begun = run.opening or Opening(
                here.position, scopes.undelivered(server, here, seen)
            )
        if self.begun is None or here.name == "history":  # it comes upon what is recorded already
            count = scopes.remaining(server, here)
        else:
            own = scopes.own_ids(server, here) if seen.has_own else ()
            count = self.begun.undelivered + sum(map(len, own))
        self._summary.expected = count if run.max_events is None else min(count, run.max_events)

    def _probe(self, known: Committed | None = None) -> None:
        """Refused if the stream or the group is not what it was; where it stands, and the rate."""
        found = known or self.in_flight.probe(self._reader.position, self._reader.counters)
        self._reader.stand(found)
        self._rate = found.rate

    def _room(self) -> int:
        """How many entries the next batch may have; 0 when the budget is spent or interrupted."""
        if self._stopping.is_set():
            return 0
        most = PAGE_ENTRIES
        if self._rate is not None:
            most = min(most, turn_entries(self._rate, self.in_flight.round_trip_sec))
        return min(most, self._budget())

    def _budget(self) -> int:
        """How many entries may still be sent."""
        if self._stopping.is_set():
            return 0
        budget = self._run.max_events
        if budget is None:
            return sys.maxsize
        return budget - self._summary.total_read - self.in_flight.events

    def _next(self) -> Batch | None:
        """New entries, of the plan or as read; None: no more, or the budget is spent."""
        while True:
            if (batch := self._reader.batch(self._room())) is not None:
                return batch
            if self._reader.has_page() or not self.in_flight.reading:
                # the budget was all in flight; what was rejected of that leaves room again
                self._settle_all()
                if self._room() < 1:
                    return None
                if not self._reader.has_page() and not self._reader.ask(self._budget()):
                    return None
            self._take_page()

    def _take_page(self) -> None:
        """Take replies until the page that was asked for is there."""
        while (request := self.in_flight.oldest()) is not None and self.in_flight.reading:
            if isinstance(request, ReadRequest):
                self._reader.take_page()
            else:
                self._settle(request)

    def _commit(self, batch: Batch) -> None:
        """Decide at this turn's moment and send; told to wait, decide anew at the next turn."""
        is_new = batch.owners is None
        if self._rate is None and is_new:
            self._read_ahead(batch.size)
        events = batch.events
        if events is None:
            events = self._decoder.decode(batch.entries)
        while True:
            if self._rate is not None and not self._wait():
                return  # interrupted: the batch stays as it is for the same command run again
            now_us = self._clock.now_us()
            as_of_us = self._run.settings.as_of_us
            decisions = decide(events, self._run.policy, now_us if as_of_us is None else as_of_us)
            made = records(events, decisions, self._run.policy)
            self._settle_all()  # as late as can be: until then the server has its commit to do
            self.in_flight.commit(
                batch, events, decisions, made, now_us=now_us, credit_us=self._credit_us
            )
            if self._rate is None:
                return
            if is_new:
                self._read_ahead(0)
            while isinstance(self.in_flight.oldest(), ReadRequest):
                self._reader.take_page()
            request = self.in_flight.oldest()  # told to wait, it is decided anew
            if not isinstance(request, CommitRequest) or self._settle(request, may_wait=True):
                return

    def _read_ahead(self, to_send: int) -> None:
        if not (self._reader.has_page() or self.in_flight.reading):
            self._reader.ask(self._budget() - to_send)

    def _wait(self) -> bool:
        """Wait until it is time to send; False if interrupted meanwhile."""
        while (seconds := self._next_turn - time.monotonic()) > 0:
            if self._stopping.wait(min(seconds, HEARD_SEC)):
                return False
            if seconds > HEARD_SEC:
                self._take_page()
                reply = self.in_flight.probe(self._reader.position, b"")
                if reply.rate != self._rate:  # a slower drain came, or is gone: ask at once
                    self._rate, self._next_turn = reply.rate, 0.0
        return not self._stopping.is_set()

    def _settle_all(self) -> None:
        while isinstance(request := self.in_flight.oldest(), CommitRequest):
            self._settle(request)

    def _settle(self, request: CommitRequest, *, may_wait: bool = False) -> bool:
        """Take the reply of the oldest commit into the books; False if it has to wait."""
        reply = self.in_flight.receive_commit()
        # half a round trip brought the reply, and half a one will take the next request
        early_sec = self.in_flight.round_trip_sec
        if early_sec > NEAR_SEC:
            early_sec -= LATE_SEC
        self._next_turn = time.monotonic() + reply.wait_us / 1e6 - early_sec
        self._rate = rate = reply.rate
        batch = request.batch
        if not reply.done:
            if reply.wait_us > max(MAX_CLOCK_WAIT_SEC, 2 / (rate or 1)) * 1e6:
                raise DrainkitError(future_audit(reply.wait_us / 1e6))
            if not may_wait or rate is None or batch.size > max(1, rate / 5):
                raise ReadAgainError("the batch has to wait, or to be smaller, and is read anew")
            return False
        taken = reply.rejected | reply.had
        rows: np.ndarray | slice = slice(None)
        if taken:
            rows = np.array([entry not in taken for entry in request.events.ids])
        if self.changes is not None and batch.planned is not None:
            self.changes.note(request.events, request.decisions, rows, batch.planned)
        if counted := self._summary.count(request.decisions, rows):
            self._summary.pace.note(reply.audit_ms, counted)
            self._credit_us = CREDIT_US
        self._summary.vanished += reply.vanished
        if batch.owners is not None:
            rows_of = zip(request.events.ids, batch.owners, strict=True)
            self._refused |= {row for row in rows_of if row[0] in reply.rejected}
        self._reader.note(reply.position, reply.counters)  # what was done is counted by then
        if self._on_progress:
            self._on_progress(self._summary)
        return True

    def finish(self) -> None:
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

    def _exhausted(self, *, progress: bool) -> bool:
        """Whether nothing is left to do; raises if something is that could not be done."""
        budget = self._run.max_events
        if budget is not None and self._summary.total_read >= budget:
            return True
        # as far as a plan goes: what it leaves alone would be waited for forever
        seen = look(self._server, self._run.scope)
        scope = scopes.current(self._server, self._reader.bounds, seen)
        if seen.has_own and any(scopes.own_ids(self._server, scope)):
            return False
        if scope.name != "pending" or not self._refused:
            return True
        rows = (row for page in scopes.scope_ids(self._server, scope) for row in page)
        left = sum(row in self._refused for row in rows)  # what another took since is its own
        if left and not progress:
            raise DrainkitError(
                f"{left} idle entries of the scope could not be taken; run the same command again"
            )
        return not left

    def _remember(self, error: ForgottenError, looks: int) -> None:
        """Make the recorded set fit again; what a run must not go on from ends it."""
        if looks > MAX_LOOKS:
            raise error
        scope = self._run.scope
        if notes := recorded.prepare(self._server, scope.group, scope.consumer_group):
            raise DrainkitError("; ".join(notes))

    def _recover(self, error: UnreachableError, attempts: Iterator[float]) -> None:
        """After a fault: look again. What is still undelivered or pending was not committed."""
        self.in_flight.mark_unknown()
        for wait in attempts:
            if self._stopping.wait(wait):
                raise InterruptedRunError(INTERRUPTED)
            try:
                owner = self._server.info.replid
                self._server.reconnect()
                if not self.in_flight.is_same_server:
                    raise UnreachableError(f"{LOST}; run the same command again to go on")
                check_primary(self._server.info)
                if self._server.info.replid != owner:  # deadlines were by the other one's clock
                    self.in_flight.wait_out()
                self._clock.sync(self._server.now_us())
            except (ConnectionLostError, ServerBusyError, SlotMovedError):
                continue
            return
        raise error
