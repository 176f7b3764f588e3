"""The loop of a live drain."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..core.events import Decoder, Events
from ..core.policy import Decisions, decide, records
from ..core.reconciliation import drift_of
from ..core.values import iso
from ..errors import (
    ConnectionLostError,
    DrainkitError,
    InterruptedRunError,
    ServerBusyError,
    SlotMovedError,
    UnreachableError,
)
from ..ids import id_key
from ..late import pa
from ..server import recorded, writing
from ..server.scopes import look
from ..server.writing import Batch, Committed, ReadAgainError
from .reader import PAGE_ENTRIES, Reader, ReadRequest
from .run import MAX_CLOCK_WAIT_SEC, Progress, Ready, Run, future_audit

RECOVERY_WAITS_SEC = (0.1, 0.5, 1.0, 2.0, 4.0)
MAX_LOOKS = 20  # in a row, at what is recorded and there, before a drain gives up
ROUND_TRIPS = 8  # of so many commits the shortest counts
CREDIT_US = 50_000  # a busy client makes up for so much delay of its turn
HEARD_SEC = 5.0  # a drain that waits longer for its turn says that it is at work (commit.lua)
# a request that is early costs a round trip more, so over a long one it aims so much later
NEAR_SEC, LATE_SEC = 0.005, 0.002
TURN_SEC = 0.02  # at most 50 turns a second: an even pace, and a server that is free in between
LOST = "the server restarted or another took over, and may have lost the last moments"
INTERRUPTED = "interrupted; run the same command again to go on"


@dataclass(frozen=True)
class CommitRequest:
    """A batch was sent to be committed."""

    batch: Batch
    events: Events
    decisions: Decisions
    sent_sec: float  # time.monotonic()


class Loop:
    """Reads as a dry run does, and writes by commits, one at a time.

    Nothing is claimed beforehand: until its commit an entry stays as undelivered, or as pending for
    its owner, as it was. So whatever happens before leaves no trace, and after a fault the group
    itself says what was done: a request of unknown outcome is never sent again.

    With a throttle, commits take turns: the batch of a turn is decided when it comes, and its
    request is sent half a round trip before. Without one the server commits and reads on while this
    side decides.
    """

    def __init__(
        self, run: Run, ready: Ready, *, stopping: threading.Event, on_progress: Progress | None
    ) -> None:
        self._run, self._server, self._summary = run, run.server, run.summary
        self._stopping, self._on_progress = stopping, on_progress
        self._sent: deque[ReadRequest | CommitRequest] = deque()  # replies come in this order
        self._reader = Reader(run, self._sent)
        self._decoder = Decoder(run.settings.fields)
        self._round_trips = deque([ready.round_trip_sec], maxlen=ROUND_TRIPS)
        self._deadline = self._unknown_until = 0  # us, by the server's clock
        self.takeovers = run.server.takeovers  # of the server, when the run began
        self.audit_id = ready.seen.audit.boundary_id  # the audit's last id, as seen last
        self.uncertain = False  # a commit's outcome was unknown: the audit itself must be counted
        self._rate = ready.probed.rate  # the lowest of all drains at work
        self._next_turn = 0.0  # time.monotonic()
        self._credit_us = 0  # a drain begins without
        self._refused: set[tuple[bytes, str]] = set()  # pending ids of owners, not taken
        self.changes: list[pa.Table] = []  # what was decided otherwise than planned
        self._ready: Ready | None = ready

    def run(self) -> None:
        """Drain until the scope, the budget or the patience with a broken server is exhausted."""
        attempts, looks = iter(RECOVERY_WAITS_SEC), 0
        while True:
            before = self._summary.total_read
            try:
                if looks:  # the recorded set has to fit again
                    if notes := recorded.prepare(self._server, self._run.scope.consumer_group):
                        raise DrainkitError("; ".join(notes))
                    self._wait()
                self._drain()
                if self._stopping.is_set():
                    raise InterruptedRunError(INTERRUPTED)
                read, most = self._summary.total_read, self._run.max_events
                is_spent = most is not None and read >= most
                if is_spent or self._reader.is_done(self._refused, progress=read > before):
                    return
                # somebody of the same name was delivered entries meanwhile: they are ours as well
            except ReadAgainError:
                self.finish()
                looks = 1 + (looks if self._summary.total_read == before else 0)
                if looks > MAX_LOOKS:
                    raise
            except (ConnectionLostError, ServerBusyError, SlotMovedError) as error:
                if self._summary.total_read > before:
                    attempts = iter(RECOVERY_WAITS_SEC)
                self._recover(error, attempts)
            self._reader.start_over()

    def _drain(self) -> None:
        ready, self._ready = self._ready, None
        seen = ready.seen if ready else look(self._server, self._run.scope)
        if not self._summary.expected:
            self._run.count_first(seen)
        reader, name = self._reader, self._run.scope.name
        if seen.has_own or name == "pending":
            for batch in reader.pending(seen, self._room):
                self._commit(batch)
                while self._sent:
                    self._take()
        if name != "pending":
            # what a first look found is still so, unless others were drained since
            is_so = ready is not None and not seen.has_own and name == "undelivered"
            start = ready.probed if ready and is_so else self._probe()
            reader.note(start, is_start=True)
            while True:
                # what a turn is short of is lost, and in each second again
                n = 1 if self._rate is None else self._room()
                if reader.ask(self._room(of_turn=False), n):
                    self._take()
                elif (new := reader.batch(self._room())) is not None:
                    self._commit(new)
                elif self._sent:
                    self._take()  # what a commit rejects leaves room again
                elif not reader.ask(self._room(of_turn=False)):
                    break
            # not the budget but the stream has ended: if it is still the one
            if self._room() > 0 and id_key(reader.position) < id_key(reader.bounds.boundary):
                reader.note(self._probe(), is_start=True)

    def _probe(self) -> Committed:
        """A commit without records: refused if the stream or the group is not what it was.

        The drains at work learn of this one's throttle, and it of theirs.
        """
        reader = self._reader
        reply = writing.probe(
            self._server, reader.bounds, after=reader.position, counters=reader.counters,
            audit_id=self.audit_id, rate=self._run.settings.throttle,
        )  # fmt: skip
        self._rate = reply.rate
        return reply

    def _room(self, *, of_turn: bool = True) -> int:
        """How many entries the next batch may have; 0 when the budget is spent or interrupted.

        Without `of_turn`: how many may still be sent. A turn takes a round trip, and what is late
        within it; a tenth of a second holds a fifth of the rate at most, and a second no more than
        the rate (commit.lua): so whole batches have to fill it.
        """
        room, rate = sys.maxsize, self._rate
        if (most := self._run.max_events) is not None:
            sent = sum(len(r.events) for r in self._sent if isinstance(r, CommitRequest))
            room = most - self._summary.total_read - sent
        if self._stopping.is_set():
            return 0
        if not of_turn:
            return room
        if rate is None:
            return min(room, PAGE_ENTRIES)
        turn_sec = min(max(TURN_SEC, 2 * min(self._round_trips)), 0.2)
        most = max(1, min(math.ceil(rate * turn_sec), int(rate / 5)))
        second = math.ceil(rate)
        best = max(range((most + 1) // 2, most + 1), key=lambda n: (second // n * n, n))
        return min(room, PAGE_ENTRIES, best)

    def _commit(self, batch: Batch) -> None:
        """Decide at this turn's moment and send; told to wait, decide anew at the next turn."""
        run, is_new = self._run, batch.owners is None
        if self._rate is None and is_new:
            size = len(batch.entries if batch.events is None else batch.events)
            self._reader.ask(self._room(of_turn=False) - size)
        events = self._decoder.decode(batch.entries) if batch.events is None else batch.events
        as_of_us = run.settings.as_of_us
        while True:
            if self._rate is not None and not self._wait():
                return  # interrupted: the batch stays as it is for the same command run again
            now_us = self._server.clock_us()
            decisions = decide(events, run.policy, now_us if as_of_us is None else as_of_us)
            made = records(events, decisions, run.policy)
            # as late as can be: until then the server has its commit to do
            while self._sent and isinstance(self._sent[0], CommitRequest):
                self._take()
            self._deadline = writing.send_commit(
                self._server, self._reader.bounds, batch, made, drained_at=iso(now_us),
                rate=run.settings.throttle, run_id=run.run_id, audit_id=self.audit_id,
                credit_us=self._credit_us,
            )  # fmt: skip
            self._sent.append(CommitRequest(batch, events, decisions, time.monotonic()))
            if self._rate is None:
                return
            if is_new:
                self._reader.ask(self._room(of_turn=False), self._room())
            while isinstance(self._sent[0], ReadRequest):
                self._take()
            if self._take(may_wait=True):
                return

    def _wait(self) -> bool:
        """Wait until it is time to send; False if interrupted meanwhile."""
        while (seconds := self._next_turn - time.monotonic()) > 0:
            if self._stopping.wait(min(seconds, HEARD_SEC)):
                return False
            if seconds > HEARD_SEC:
                while self._sent:
                    self._take()
                before = self._rate
                if self._probe().rate != before:  # a slower one came, or is gone: ask at once
                    self._next_turn = 0.0
        return not self._stopping.is_set()

    def _take(self, *, may_wait: bool = False) -> bool:
        """Take the oldest reply: a page, or a commit into the books; False if that has to wait.

        It settles its request, as an error too; a lost one does not.
        """
        request = self._sent.popleft()
        try:
            if isinstance(request, ReadRequest):
                self._reader.put(request)
                return True
            reply = writing.receive_commit(self._server)
        except (ConnectionLostError, KeyboardInterrupt):
            self._sent.appendleft(request)
            raise
        return self._settle(request, reply, may_wait=may_wait)

    def _settle(self, request: CommitRequest, reply: Committed, *, may_wait: bool) -> bool:
        """Take a commit's reply into the books; False if it has to wait."""
        self._round_trips.append(time.monotonic() - request.sent_sec)
        # half a round trip brought the reply, and half a one will take the next request
        early_sec = min(self._round_trips)
        if early_sec > NEAR_SEC:
            early_sec -= LATE_SEC
        self._next_turn = time.monotonic() + reply.wait_us / 1e6 - early_sec
        rate, batch = reply.rate, request.batch
        self._rate = rate
        if not reply.done:
            if reply.wait_us > max(MAX_CLOCK_WAIT_SEC, 2 / (rate or 1)) * 1e6:
                raise DrainkitError(future_audit(reply.wait_us / 1e6))
            if not may_wait or rate is None or len(request.events) > max(1, rate / 5):
                raise ReadAgainError("the batch has to wait, or to be smaller, and is read anew")
            return False
        self.audit_id = reply.audit_id
        taken = reply.rejected | reply.had
        rows: np.ndarray | slice = slice(None)
        if taken:
            rows = np.array([entry not in taken for entry in request.events.ids])
        if batch.planned is not None:
            self.changes += drift_of(
                request.events, request.decisions, rows, batch.planned, self._run.policy
            )
        if counted := self._summary.count(request.decisions, rows):
            self._summary.pace.note(reply.audit_ms, counted)
            self._credit_us = CREDIT_US
        self._summary.vanished += reply.vanished
        if batch.owners is not None:
            rows_of = zip(request.events.ids, batch.owners, strict=True)
            self._refused |= {row for row in rows_of if row[0] in reply.rejected}
        self._reader.note(reply)  # what was done is counted by then
        if self._on_progress:
            self._on_progress(self._summary)
        return True

    def finish(self) -> None:
        """Take what is still in flight into the books: a commit in flight is a commit."""
        while self._sent:
            try:
                self._take()
            except ConnectionLostError:
                self.mark_unknown()
            except DrainkitError:  # refused by the server: nothing of it ran
                continue

    def mark_unknown(self) -> None:
        """Note that what is in flight may be done or not, or may even be done later."""
        if any(isinstance(request, CommitRequest) for request in self._sent):
            self._unknown_until = self._deadline
            self.uncertain = True
        self._sent.clear()

    def wait_out(self) -> None:
        """Wait until no request of unknown outcome can still reach the server it was sent to.

        A network may deliver a request long after its connection broke; the books close after it.
        """
        if self._server.takeovers == self.takeovers:  # or it has the slot from it as it was
            time.sleep(max(0.0, self._unknown_until - self._server.clock_us()) / 1e6)

    def _recover(self, error: UnreachableError, attempts: Iterator[float]) -> None:
        """After a fault: look again. What is still undelivered or pending was not committed."""
        self.finish()
        for wait in attempts:
            if self._stopping.wait(wait):
                raise InterruptedRunError(INTERRUPTED)
            try:
                owner = self._server.info.replid
                self._server.reconnect()
                if self._server.takeovers != self.takeovers:
                    raise UnreachableError(f"{LOST}; run the same command again to go on")
                if self._server.info.replid != owner:  # deadlines were by the other one's clock
                    self.wait_out()
                self._server.now_us()  # and its clock from now on
            except (ConnectionLostError, ServerBusyError, SlotMovedError):
                continue
            return
        raise error
