"""The loop of a live drain."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice

import numpy as np

from ..core.audit import records
from ..core.events import Events, decoder_of
from ..core.policy import Decisions, decide
from ..core.summary import Summary
from ..core.values import RawEntry
from ..errors import (
    ConnectionLostError,
    DrainkitError,
    InterruptedRunError,
    RefusedError,
    ServerBusyError,
    UnreachableError,
)
from ..safe import text
from ..server import reading, scopes, writing
from ..server.connection import Clock, Server
from ..server.topology import check_primary
from ..server.writing import Batch
from .job import FUTURE_AUDIT, MAX_CLOCK_WAIT_SEC, Job, Progress

UNTHROTTLED_BATCH = 400
# one batch holds at most about this much, so that neither side gathers gigabytes at once
BATCH_BYTES = 4 << 20
FIRST_ENTRY_BYTES = 64 << 10  # expected of an entry before one was seen
RECOVERY_WAITS_SEC = (0.1, 0.5, 1.0, 2.0, 4.0)


@dataclass
class Worker:
    """The loop of a live drain: reads as a dry run does, and writes by commits, one at a time.

    Nothing is claimed beforehand: until its commit an entry stays as undelivered, or as pending for
    its owner, as it was. So whatever happens before leaves no trace, and after a fault the group
    itself says what was done.
    """

    server: Server
    job: Job
    summary: Summary
    stopping: threading.Event
    on_progress: Progress | None
    uncertain: bool = False  # a commit's outcome was unknown: recount from the audit at the end
    _sent: deque[tuple[Events, Decisions] | None] = field(default_factory=deque)  # None: a read
    _next_turn: float = 0.0  # time.monotonic()

    def __post_init__(self) -> None:
        settings = self.job.settings
        self._decoder = decoder_of(settings)
        self._clock = Clock(self.server.now_us())
        self._rate = settings.throttle
        # 2 % of the rate: one turn each 20 ms keeps the pace even and the server free
        self._batch = UNTHROTTLED_BATCH if self._rate is None else max(1, int(self._rate * 0.02))
        self._batch = min(self._batch, UNTHROTTLED_BATCH)
        self._entry_bytes = FIRST_ENTRY_BYTES
        self._reach = self.job.reach
        self._position = self._reach.position  # of the group, as seen last; never goes back
        self._counters = b""
        self._after = self._position  # up to here everything has been read
        self._asked = self._after, self._counters  # of the read that is under way
        self._run_id = self.server.info.run_id
        self._deadline = self._lost_until = 0
        self._start_over()

    def run(self) -> None:
        """Drain until the scope, the budget or the patience with a broken server is exhausted."""
        attempts = iter(RECOVERY_WAITS_SEC)
        while True:
            before = self.summary.total_read
            try:
                self._drain()
                if self._exhausted():
                    return
                # somebody of the same name was delivered entries meanwhile: they are ours as well
                self._start_over()
            except (ConnectionLostError, ServerBusyError) as error:
                if self.summary.total_read > before:
                    attempts = iter(RECOVERY_WAITS_SEC)
                self._recover(error, attempts)

    def _exhausted(self) -> bool:
        budget = self.job.max_events
        if budget is not None and self.summary.total_read >= budget:
            return True
        # as far as a plan goes: what it leaves alone would be waited for forever
        scope = scopes.current(self.server, self._reach)
        return not any(scopes.own_ids(self.server, scope))

    def finish_replies(self) -> None:
        """Take what is still under way into the books: a commit in flight is a commit."""
        while self._sent:
            try:
                if self._sent[0] is None:
                    with self._reply():
                        reading.receive_page(self.server)
                else:
                    self._settle_one()
            except ConnectionLostError:
                self.lose()
                return
            except DrainkitError:  # refused by the server: nothing of it ran
                continue

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
            self._sent.popleft()
            raise
        self._sent.popleft()

    def _drain(self) -> None:
        for batch in self._pending_batches():
            self._commit(batch)
            self._settle_commits()
        if self.job.scope.name != "pending":
            self._drain_new()
        if self.stopping.is_set():
            raise InterruptedRunError("interrupted; run the same command again to go on")

    def _drain_new(self) -> None:
        self._look()
        self._ask()
        while batch := self._take():
            if self._rate is None:  # the server commits and reads on while this side decides
                self._ask()
            self._commit(batch)
            if self._rate is not None:
                self._settle_commits()
                self._ask()
        self._settle_commits()
        if self._room() > 0:  # not the budget but the stream has ended: if it is still the one
            self._look()

    def _look(self) -> None:
        """Where the group stands; refused if the stream or the group is not what it was."""
        found = writing.look(
            self.server, self._reach,
            after=self._position, counters=self._counters, deadline_us=self._deadline_us(),
        )  # fmt: skip
        self._clock.sync(found.now_us)
        self._after = self._position = found.position
        self._counters = found.counters

    def _room(self) -> int:
        """How many entries the next batch may have; 0 when the budget is spent."""
        in_flight = sum(len(sent[0]) for sent in self._sent if sent) + self._unsent
        room = min(self._batch, max(1, BATCH_BYTES // self._entry_bytes))
        budget = self.job.max_events
        return room if budget is None else min(room, budget - self.summary.total_read - in_flight)

    def _pending_batches(self) -> Iterator[Batch]:
        """What is pending already: first this consumer's own, then others' (scope pending)."""
        scope = scopes.current(self.server, self._reach)
        mine = chain.from_iterable(scopes.own_ids(self.server, scope))
        own = ((entry, scope.consumer) for entry in mine)
        others = chain.from_iterable(scopes.scope_ids(self.server, scope))
        wanted = (row for row in others if self._wanted(row[0]))
        for rows in (own, wanted) if scope.name == "pending" else (own,):
            while (room := self._room()) > 0 and not self.stopping.is_set():
                if not (chosen := list(islice(rows, room))):
                    break
                entries = reading.bodies(self.server, [row[0] for row in chosen])
                self._check_plan(entries)
                self._entry_bytes = reading.entry_bytes(entries)
                yield Batch(entries, owners=[row[1] for row in chosen])

    def _ask(self) -> None:
        """Ask for the next new entries, if the budget leaves room and nobody interrupts."""
        room = self._room()
        if room < 1 or self.stopping.is_set():
            return
        # where another drain went meanwhile this one need not read any more
        after = max(self._after, self._position, key=reading.id_key)
        if reading.id_key(after) >= reading.id_key(self._reach.boundary):
            return
        self._asked = after, self._counters
        reading.send_page(self.server, after, self._reach.boundary, room)
        self._sent.append(None)

    def _take(self) -> Batch | None:
        """The new entries that were asked for; None when there are none, or the budget is spent."""
        if None not in self._sent:
            # the budget was all in flight; what was rejected of that leaves room again
            self._settle_commits()
            self._ask()
        while None in self._sent:
            if self._sent[0] is not None:
                self._settle_one()
                continue
            with self._reply():
                entries = reading.receive_page(self.server)
            if not entries:
                return None
            self._check_plan(entries)
            self._entry_bytes = reading.entry_bytes(entries)
            after, counters = self._asked
            self._after = text(entries[-1][0])
            self._unsent = len(entries)
            return Batch(entries, after=after, counters=counters)
        return None

    def _wanted(self, entry_id: bytes) -> bool:
        return self.job.plan_ids is None or entry_id in self.job.plan_ids

    def _check_plan(self, entries: Sequence[RawEntry]) -> None:
        if self.job.plan_ids is None:
            return
        odd = [entry[0] for entry in entries if not self._wanted(entry[0])]
        if odd:
            raise RefusedError(f"entry {text(odd[0])} is not in the plan; make a new one")

    def _commit(self, batch: Batch) -> None:
        """Decide at this turn's moment and send; told to wait, decide anew at the next turn."""
        events = self._decoder.decode(batch.entries)
        self._unsent = 0
        while True:
            if self._rate is not None and not self._sleep(self._next_turn - time.monotonic()):
                return  # interrupted: the batch stays as it is for the same command run again
            now_us = self._clock.now_us()
            as_of_us = self.job.settings.as_of_us
            decisions = decide(events, self.job.policy, now_us if as_of_us is None else as_of_us)
            made = records(
                events, decisions, self.job.policy, drained_at_us=now_us,
                consumer_group=self.job.scope.group, run_id=self.job.run_id,
            )  # fmt: skip
            self._settle_commits()
            writing.send_commit(
                self.server, self._reach, batch, made,
                rate=self._rate, run_id=self.job.run_id, deadline_us=self._deadline_us(),
            )  # fmt: skip
            self._sent.append((events, decisions))
            if self._rate is None or self._settle_one():
                return

    def _settle_commits(self) -> None:
        while self._sent and self._sent[0] is not None:
            self._settle_one()

    def _settle_one(self) -> bool:
        """Take the reply of the oldest commit into the books; False if it has to wait."""
        sent = self._sent[0]
        with self._reply():
            reply = writing.receive_commit(self.server)
        self._clock.sync(reply.now_us)
        self._next_turn = time.monotonic() + reply.wait_us / 1e6
        if not reply.done:
            if reply.wait_us > max(MAX_CLOCK_WAIT_SEC, 2 / (self._rate or 1)) * 1e6:
                raise DrainkitError(FUTURE_AUDIT)
            if self._rate is None:
                self._start_over()
                raise ServerBusyError("the server's clock went back; waiting for it")
            return False
        self._position, self._counters = reply.position, reply.counters
        events, decisions = sent  # type: ignore[misc]
        rows: np.ndarray | slice = slice(None)
        if reply.rejected:
            rows = np.array([entry not in reply.rejected for entry in events.ids])
        counted = self.summary.count(decisions, rows)
        self.summary.pace.note(reply.now_us // 1000, counted)
        if self.on_progress:
            self.on_progress(self.summary)
        return True

    def _sleep(self, seconds: float) -> bool:
        """Wait for the turn; False if interrupted meanwhile."""
        return not (self.stopping.wait(seconds) if seconds > 0 else self.stopping.is_set())

    def _deadline_us(self) -> int:
        """When a request sent now would be given up; the server refuses it after that."""
        self._deadline = self._clock.now_us() + round(self.server.reply_timeout_sec * 1e6)
        return self._deadline

    def lose(self) -> None:
        """Note that what is under way may be done or not, or may even be done later."""
        if any(self._sent):
            self._lost_until = self._deadline
            self.uncertain = True
        self._start_over()

    def outwait(self) -> None:
        """Wait until no lost request can still reach the server that it was sent to.

        A network may deliver a request long after its connection broke; the books close after it.
        """
        if self.server.info.run_id == self._run_id:
            time.sleep(max(0.0, self._lost_until - self._clock.now_us()) / 1e6)

    def _recover(self, error: UnreachableError, attempts: Iterator[float]) -> None:
        """After a fault: look again. What is still undelivered or pending was not committed."""
        self.lose()
        for wait in attempts:
            if self.stopping.wait(wait):
                raise InterruptedRunError("interrupted; run the same command again to go on")
            try:
                if self.server.reconnect().run_id != self._run_id:
                    raise UnreachableError(
                        "the server restarted or another took over, and may have lost the last "
                        "moments; run the same command again to go on"
                    )
                check_primary(self.server.info)
                self._clock.sync(self.server.now_us())
            except (ConnectionLostError, ServerBusyError):
                continue
            return
        raise error

    def _start_over(self) -> None:
        """Forget what is in flight: the next round reads anew, own pending entries first."""
        self._sent.clear()
        self._unsent = 0
