"""What a live drain reads: its own unfinished entries, others' idle ones, new ones read ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice

import numpy as np

from ..core.entries import Cursor
from ..core.values import RawEntry
from ..errors import RefusedError
from ..safe import text
from ..server import reading, recorded, scopes, writing
from ..server.connection import Clock, Server
from ..server.recorded import Recorded
from ..server.writing import Batch
from .in_flight import InFlight, ReadRequest
from .job import Job

UNTHROTTLED_BATCH = 400
# one batch holds at most about this much, so that neither side gathers gigabytes at once
BATCH_BYTES = 4 << 20
FIRST_ENTRY_BYTES = 512 << 10  # expected of an entry before one was seen


class Reader:
    """Brings the entries of a job's scope as batches; nothing is claimed by reading."""

    def __init__(self, server: Server, job: Job, in_flight: InFlight, clock: Clock) -> None:
        self._server = server
        self._job = job
        self._in_flight = in_flight
        self._clock = clock
        self._entry_bytes = FIRST_ENTRY_BYTES
        self.bounds = job.reach  # of what may be read
        self.position = self.bounds.position  # of the group, as seen last; never goes back
        self._counters = b""
        self._after = self.position  # up to here everything has been read
        self._recorded: Recorded | None = None
        self._plan = None if job.entries is None else Cursor(job.entries)

    def start_over(self) -> None:
        """Forget what was read; what is recorded already is looked up anew."""
        self._recorded = None

    def note(self, position: str, counters: bytes) -> None:
        """Take over where a reply says that the group and the stream stand.

        A group never goes back by itself; 6.2 has no counters to tell of a stream made anew.
        """
        if position and reading.id_key(position) < reading.id_key(self.position):
            raise RefusedError(writing.REFUSALS["moved_back"])
        self.position, self._counters = position or self.position, counters

    def size(self, rate: float | None) -> int:
        """How many entries a batch may have."""
        # 2 % of the rate: one turn each 20 ms keeps the pace even and the server free
        most = UNTHROTTLED_BATCH if rate is None else max(1, int(rate * 0.02))
        return min(most, UNTHROTTLED_BATCH, max(1, BATCH_BYTES // self._entry_bytes))

    def probe(self) -> float | None:
        """Where the group stands, and the rate that holds.

        Refused if the stream or the group is not what it was.
        """
        found = writing.probe(
            self._server, self.bounds,
            after=self.position, counters=self._counters,
            deadline_us=self._in_flight.deadline_us(), rate=self._job.settings.throttle,
            alone=self._job.alone,
        )  # fmt: skip
        self._clock.sync(found.now_us)
        position = found.position or scopes.current(self._server, self.bounds).position
        if reading.id_key(position) < reading.id_key(self.position) and not found.position:
            raise RefusedError(writing.REFUSALS["moved_back"])
        self.note(position, found.counters)
        self._after = position
        return found.rate

    def pending(self, room: Callable[[], int]) -> Iterator[Batch]:
        """What is pending already: first this consumer's own, then others' (scope pending)."""
        scope = scopes.current(self._server, self.bounds)
        mine = chain.from_iterable(scopes.own_ids(self._server, scope))
        own = ((entry, scope.consumer) for entry in mine)
        others = chain.from_iterable(scopes.scope_ids(self._server, scope))
        wanted = (row for row in others if self._is_planned(row[0]))
        for rows in (own, wanted) if scope.name == "pending" else (own,):
            while (most := room()) > 0 and (chosen := list(islice(rows, most))):
                entries = reading.bodies(self._server, [row[0] for row in chosen])
                self._entry_bytes = reading.entry_bytes(entries)
                yield self._batch(entries, owners=[row[1] for row in chosen])

    def ask(self, room: int) -> None:
        """Ask for up to `room` new entries, if any are left up to the boundary."""
        # where another drain went meanwhile this one need not read any more
        after = max(self._after, self.position, key=reading.id_key)
        if room < 1 or reading.id_key(after) >= reading.id_key(self.bounds.boundary):
            return
        if self._known().ids:  # of what has its record a batch may hold more
            room = max(room, self.size(None))
        self._in_flight.read_request(after, self._counters, self.bounds.boundary, room)

    def take(self, request: ReadRequest, room: int) -> Batch | None:
        """The new entries that were asked for, up to `room` without a record; None: no more."""
        entries = self._in_flight.receive_page()
        if not entries:
            return None
        self._entry_bytes = reading.entry_bytes(entries)
        fresh = [at for at, entry in enumerate(entries) if entry[0] not in self._known().ids]
        if len(fresh) > room:
            entries = entries[: fresh[room]]
        self._after = text(entries[-1][0])
        return self._batch(entries, after=request.after, counters=request.counters)

    def _batch(
        self,
        entries: list[RawEntry],
        *,
        after: str = "",
        counters: bytes = b"",
        owners: Sequence[str] | None = None,
    ) -> Batch:
        known = self._known()
        done = known.ids and known.ids.intersection(entry[0] for entry in entries)
        self._check_plan([entry for entry in entries if entry[0] not in done])
        marks = known.marks_for(entries[0][0])
        return Batch(entries, after, counters, owners, done, marks)

    def _known(self) -> Recorded:
        """What is recorded already of the scope; looked up when it is first needed."""
        if self._recorded is None:
            self._recorded = recorded.of_scope(
                self._server, scopes.current(self._server, self.bounds)
            )
        return self._recorded

    def _is_planned(self, entry_id: bytes) -> bool:
        return self._job.entries is None or entry_id in self._job.entries.rows

    def _check_plan(self, entries: Sequence[RawEntry]) -> None:
        if self._plan is None:
            return
        odd = np.flatnonzero(self._plan.find([entry[0] for entry in entries]) < 0)
        if len(odd):
            name = text(entries[int(odd[0])][0])
            raise RefusedError(f"entry {name} is not in the plan; make a new one")
