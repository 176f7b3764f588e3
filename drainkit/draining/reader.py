"""What a live drain reads: its own unfinished entries, others' idle ones, new ones read ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, compress, islice
from typing import Any

import numpy as np

from ..core.events import Events, word_codes
from ..core.policy import ACTIONS
from ..core.reconciliation import PIECE, Feed, Straight
from ..core.values import RawEntry
from ..errors import DrainkitError, RefusedError
from ..ids import id_key
from ..safe import text
from ..server import reading, recorded, scopes, writing
from ..server.recorded import Recorded
from ..server.scopes import Seen, look
from ..server.writing import Batch, Committed
from .run import Run

# the server sends at most 64 to 128 KB at once: the rest of a larger page would wait for the commit
# that comes after it, and this side for that
PAGE_ENTRIES = 250
# one batch holds at most about this much, or one entry: a commit copies what it delivers
BATCH_BYTES = 4 << 20
SMALL_PAGE_BYTES = 256 << 10
FIRST_ENTRIES = 8  # before it is known how large they are; after that twice as many each time


@dataclass(frozen=True)
class ReadRequest:
    """New entries after an id were asked for; with the stream's counters as known then."""

    after: str
    counters: bytes


class Reader:
    """Brings the entries of a job's scope as batches; nothing is claimed by reading.

    New entries come in pages, of which one is read ahead.
    """

    def __init__(self, run: Run, requests: deque[Any]) -> None:
        """`requests`: what was sent, to which `ask` adds."""
        self._requests = requests
        self._server, self._scope, self._to_drain = run.server, run.scope, run.to_drain
        self._count = FIRST_ENTRIES  # how many to ask for at once
        self.bounds = run.scope  # of what may be read: with a plan, to its last entry
        if run.to_drain is not None and run.to_drain.count:
            self.bounds = replace(run.scope, boundary=run.to_drain.last_id)
        self.position = self.bounds.position  # of the group, as seen last; never goes back
        self.counters = b""  # the stream's, as seen last
        self._page: list[RawEntry] = []  # what was read, and is in no batch yet
        self._sizes: list[int] = []  # bytes of each; of small ones 1
        self._page_counters: list[bytes] = []  # the stream's, from before each was read
        self.is_asked = False  # for a page
        self._cut = self._after = self.position  # up to here all is in batches; is read
        self._recorded: Recorded | None = None
        straight = run.to_drain.straight if run.to_drain else None
        self._columns = None if straight is None else _Columns(straight)

    def start_over(self) -> None:
        """Forget what was read; what is recorded already is looked up anew."""
        self._recorded = self._columns = None
        self.is_asked = False
        self._drop(len(self._page))

    def _drop(self, n: int) -> None:
        """Forget the first entries of what was read."""
        self._page, self._sizes = self._page[n:], self._sizes[n:]
        self._page_counters = self._page_counters[n:]

    def note(self, found: Committed, *, is_start: bool = False) -> None:
        """Take over where a reply says that group and stream stand; a start is read on from there.

        A group never goes back by itself; 6.2 has no counters to tell of a stream made anew.
        """
        here = id_key(found.position)
        if here < id_key(self.position):
            raise RefusedError(writing.REFUSALS["moved_back"])
        self.position, self.counters = found.position, found.counters
        if self._page and here > id_key(self._cut):
            # others were delivered what is next here
            self._drop(sum(id_key(entry[0]) <= here for entry in self._page))
            self._cut = self.position
        if is_start:
            self._cut = self._after = self.position

    def pending(self, seen: Seen, room: Callable[[], int]) -> Iterator[Batch]:
        """What is pending already: first this consumer's own, then others' (scope pending)."""
        scope = self.bounds
        own = scopes.pending_rows(self._server, scope, own=True) if seen.has_own else iter(())
        sources: list[Iterator[tuple[bytes, str]]] = [chain.from_iterable(own)]
        if scope.name == "pending":
            pages = scopes.pending_rows(self._server, scope, own=False)
            if self._to_drain:
                find = self._to_drain.entries.find
                pages = ([*compress(page, find([i for i, _ in page]) >= 0)] for page in pages)
            sources.append(chain.from_iterable(pages))
        for rows in sources:
            while (most := room()) > 0:
                most = max(1, min(most, self._count))
                # those of several consumers lie among each other
                chosen = sorted(islice(rows, most), key=lambda row: id_key(row[0]))
                if not chosen:
                    break
                entries = reading.bodies(self._server, [row[0] for row in chosen])
                self._count = min(
                    2 * len(entries), BATCH_BYTES // max(map(reading.size_of, entries))
                )
                owners = [row[1] for row in chosen]
                yield Batch(entries, owners=owners, planned=self._planned(entries))

    def is_done(self, refused: Collection[tuple[bytes, str]], *, progress: bool) -> bool:
        """Whether nothing is left to do; raises if something is that could not be done.

        `refused`: pending ids and their owners, which a commit did not take.
        """
        # as far as a plan goes: what it leaves alone would be waited for forever
        scope = self.bounds
        if look(self._server, self._scope).has_own and any(
            scopes.pending_rows(self._server, scope, own=True)
        ):
            return False
        if scope.name != "pending" or not refused:
            return True
        rows = chain.from_iterable(scopes.pending_rows(self._server, scope, own=False))
        left = sum(row in refused for row in rows)  # what another took since is its own
        if left and not progress:
            raise DrainkitError(
                f"{left} idle entries of the scope could not be taken; run the same command again"
            )
        return not left

    def lacks(self, n: int) -> bool:
        """Whether fewer than `n` entries were read, and one batch could hold more."""
        is_full = len(self._page) >= n or sum(self._sizes) >= BATCH_BYTES
        return self._columns is None and not is_full

    def ask(self, budget: int, n: int = 1) -> bool:
        """Have `n` entries there, or a page on its way; False if there are no more."""
        if self.is_asked or not self.lacks(n):
            return True
        budget -= len(self._page)
        # where another drain went meanwhile this one need not read any more
        after = max(self._after, self.position, key=id_key)
        if budget < 1 or id_key(after) >= id_key(self.bounds.boundary):
            return False
        count = max(1, min(PAGE_ENTRIES, self._count))
        if not self._known().touches(after, self.bounds.boundary):  # else some count for nothing
            count = min(count, budget)
        reading.send_page(self._server, after, self.bounds.boundary, count)
        self._requests.append(ReadRequest(after, self.counters))
        self.is_asked = True
        return True

    def put(self, request: ReadRequest, page: list[RawEntry]) -> None:
        """The page that was asked for; it follows on what is left of the one before."""
        self.is_asked = False
        if not page:
            self._after = self.bounds.boundary  # no more
            return
        if not self._page:
            self._cut = request.after
        total = sum(map(len, chain.from_iterable(entry[1] or () for entry in page)))
        is_small = total <= SMALL_PAGE_BYTES  # which of them are large does not matter then
        sizes = [1] * len(page) if is_small else [*map(reading.size_of, page)]
        self._page, self._sizes = self._page + page, self._sizes + sizes
        self._page_counters = self._page_counters + [request.counters] * len(page)
        self._after = text(page[-1][0])
        self._count = min(2 * len(page), BATCH_BYTES // max(sizes))

    def batch(self, room: int) -> Batch | None:
        """The next new entries, at most `room` of them without a record; None: none were read."""
        if room < 1:
            return None
        if self._columns is not None:
            # a commit would look by itself which are there, but each of them: that takes long
            is_so = self.counters.split()[1:] == self._columns.counters.split()[1:]
            is_so = is_so and not self._known().touches(self.position, self.bounds.boundary)
            if is_so and (found := self._columns.take(room)) is not None:
                self._cut = self._after = self._columns.after
                return found
            self._columns = None  # no more, or otherwise than when they were looked at
        if not self._page:
            return None
        page, known = self._page, self._known()
        if known.touches(text(page[0][0]), text(page[-1][0])):
            fresh = [at for at, entry in enumerate(page) if not known.has(entry[0])]
            room = fresh[room] if len(fresh) > room else len(page)
        if sum(self._sizes) > BATCH_BYTES:
            room = min(room, sum(total <= BATCH_BYTES for total in accumulate(self._sizes)))
        entries, counters = page[: max(1, room)], self._page_counters[0]
        self._drop(len(entries))
        after, self._cut = self._cut, text(entries[-1][0])
        return Batch(entries, after, counters, planned=self._planned(entries))

    def _known(self) -> Recorded:
        """What is recorded already for the group; looked up when it is first needed.

        The set is whole: it was made so before the first commit, and each commit looks at that.
        """
        if self._recorded is None:
            self._recorded = recorded.in_set(self._server, self.bounds.consumer_group)
        return self._recorded

    def _planned(self, page: Sequence[RawEntry]) -> np.ndarray | None:
        """The plan's actions for the entries (codes); -1 for one that has its record already."""
        if self._to_drain is None:
            return None
        entries, ids = self._to_drain.entries, [entry[0] for entry in page]
        rows = entries.find(ids)
        for row in np.flatnonzero(rows < 0).tolist():
            if not self._known().has(ids[row]):
                raise RefusedError(f"entry {text(ids[row])} is not in the plan; make a new one")
        return np.where(rows < 0, -1, np.append(entries.actions, 0)[rows].astype(np.int64))


class _Columns:
    """A plan's entries as batches, from its own columns."""

    def __init__(self, straight: Straight) -> None:
        self.counters = straight.counters
        self._sizes = straight.sizes
        self._feed = Feed(straight.blocks())
        self._events: Events | None = None  # a piece of the plan, from which batches are cut
        self._actions = np.zeros(0, np.int64)
        self._at = self._row = 0  # in the piece; in the plan
        self.after = straight.after  # up to here they were taken

    def take(self, room: int) -> Batch | None:
        """The next entries, up to `room`; None: no more."""
        if self._events is None or self._at >= len(self._events):
            table = self._feed.take(PIECE)
            if table is None:
                return None
            self._events, self._at = Events.from_arrow(table), 0
            self._actions = word_codes(table["action"], ACTIONS)[0]
        sums = np.cumsum(self._sizes[self._row : self._row + min(room, PAGE_ENTRIES)])
        n = max(1, int(np.searchsorted(sums, BATCH_BYTES, side="right")))
        part = slice(self._at, self._at + n)
        events, after = self._events.part(part), self.after
        self._at += len(events)
        self._row += len(events)
        self.after = text(events.ids[-1])
        return Batch([], after, self.counters, planned=self._actions[part], events=events)
