"""What a live drain reads: its own unfinished entries, others' idle ones, new ones read ahead."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import chain, islice

import numpy as np

from ..core.entries import PIECE, Cursor, Feed, Straight, action_codes
from ..core.events import Events
from ..core.values import RawEntry
from ..errors import RefusedError
from ..safe import text
from ..server import reading, recorded, scopes, writing
from ..server.connection import Clock, Server
from ..server.recorded import Recorded
from ..server.writing import Batch
from .in_flight import InFlight, ReadRequest
from .job import Job

# the server sends at most 64 to 128 KB at once: the rest of a larger page would wait for the commit
# that comes after it, and this side for that
UNTHROTTLED_BATCH = 250
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
        self._cursor: Cursor | None = None
        straight = job.to_drain.straight if job.to_drain else None
        self._columns = None if straight is None else _Columns(straight)

    def start_over(self) -> None:
        """Forget what was read; what is recorded already is looked up anew."""
        self._recorded = self._columns = None

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
        if self._columns is not None:  # no bodies travel
            return min(most, UNTHROTTLED_BATCH)
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

    def ready(self, room: int) -> Batch | None:
        """Up to `room` entries from the plan's own columns; None where they have to be read.

        That is as soon as anything is otherwise than it was when they were looked at.
        """
        columns = self._columns
        if columns is None or room < 1:
            return None
        if not columns.holds(self._counters) or self._known().ids:
            self._columns = None
            return None
        if (batch := columns.take(room, self._known())) is not None:
            self._after = columns.after
        return batch

    def ask(self, room: int) -> None:
        """Ask for up to `room` new entries, if any are left up to the boundary."""
        if self._columns is not None:
            return
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
        known = self._known().ids
        fresh = [at for at, entry in enumerate(entries) if entry[0] not in known]
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
        planned = self._planned([entry[0] for entry in entries], done)
        marks = known.marks_for(entries[0][0])
        return Batch(entries, after, counters, owners, done, marks, planned)

    def _known(self) -> Recorded:
        """What is recorded already of the scope; looked up when it is first needed."""
        if self._recorded is None:
            self._recorded = recorded.of_scope(
                self._server, scopes.current(self._server, self.bounds)
            )
        return self._recorded

    def _is_planned(self, entry_id: bytes) -> bool:
        return self._job.to_drain is None or entry_id in self._job.to_drain.entries.rows

    def _planned(self, ids: Sequence[bytes], done: Collection[bytes]) -> np.ndarray | None:
        """The actions that the plan has for the ids (codes; -1: none, as for some of `done`)."""
        if self._job.to_drain is None:
            return None
        entries = self._job.to_drain.entries
        self._cursor = self._cursor or Cursor(entries)
        rows = self._cursor.find(ids)
        for row in np.flatnonzero(rows < 0).tolist():
            if ids[row] not in done:
                raise RefusedError(f"entry {text(ids[row])} is not in the plan; make a new one")
        return np.where(rows < 0, -1, np.append(entries.actions, 0)[rows].astype(np.int64))


class _Columns:
    """A plan's entries as batches, from its own columns."""

    def __init__(self, straight: Straight) -> None:
        self._straight = straight
        self._feed = Feed(straight.blocks())
        self._events: Events | None = None  # a piece of the plan, from which batches are cut
        self._actions = np.zeros(0, np.int64)
        self._at = 0
        self.after = straight.after  # up to here they were taken

    def holds(self, counters: bytes) -> bool:
        """Whether nothing was deleted since the entries were seen.

        A commit would look by itself which are there, but each of them, and that takes long.
        """
        return counters.split()[1:] == self._straight.counters.split()[1:]

    def take(self, room: int, known: Recorded) -> Batch | None:
        """The next entries, up to `room`; None: no more."""
        if self._events is None or self._at >= len(self._events):
            table = self._feed.take(PIECE)
            if table is None:
                return None
            self._events, self._at = Events.from_arrow(table), 0
            self._actions = action_codes(table["action"])
        part = slice(self._at, self._at + room)
        events, after = self._events.part(part), self.after
        self._at += len(events)
        self.after = text(events.ids[-1])
        return Batch(
            [], after, self._straight.counters, marks=known.marks_for(events.ids[0]),
            planned=self._actions[part], events=events,
        )  # fmt: skip
