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
from ..core.reconciliation import PIECE, Feed, Straight, ToDrain
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
    page: Callable[[], list[RawEntry]]  # waits for it
    received: int  # Server.counted.received then: the page is among the bytes that come after


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
        self._is_asked = False  # for a page
        self._cut = self._after = self.position  # up to here all is in batches; is read
        self._recorded = Recorded()  # for the group, as of the last start
        straight = run.to_drain.straight if run.to_drain else None
        self._columns = None if straight is None else _Columns(straight)

    def start_over(self) -> None:
        """Forget what was read."""
        self._columns, self._is_asked = None, False
        self._page, self._sizes, self._page_counters = [], [], []

    def note(self, found: Committed, *, is_start: bool = False) -> None:
        """Take over where a reply says that group and stream stand; a start is read on from there.

        A group never goes back by itself; 6.2 has no counters to tell of a stream made anew. What
        is recorded is known as a whole: it was made so before the first commit, and each commit
        looks at that.
        """
        here = id_key(found.position)
        if here < id_key(self.position):
            raise RefusedError(writing.REFUSALS["moved_back"])
        self.position, self.counters = found.position, found.counters
        if self._page and here > id_key(self._cut):
            # others were delivered what is next here
            n = sum(id_key(entry[0]) <= here for entry in self._page)
            del self._page[:n], self._sizes[:n], self._page_counters[:n]
            self._cut = self.position
        if is_start:
            self._cut = self._after = self.position
            self._recorded = recorded.in_set(self._server, self.bounds.consumer_group)

    def pending(self, seen: Seen, room: Callable[[], int]) -> Iterator[Batch]:
        """What is pending already: first this consumer's own, then others' (scope pending)."""
        scope = self.bounds
        own = scopes.pending_rows(self._server, scope, own=True) if seen.has_own else iter(())
        sources: list[Iterator[tuple[bytes, str]]] = [chain.from_iterable(own)]
        if self._to_drain:
            self._recorded = recorded.in_set(self._server, scope.consumer_group)
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
                largest = max(map(reading.size_of, entries))
                self._count = min(2 * len(entries), BATCH_BYTES // largest)
                planned = self._planned(self._to_drain, entries) if self._to_drain else None
                yield Batch(entries, owners=[row[1] for row in chosen], planned=planned)

    def is_done(self, refused: Collection[tuple[bytes, str]], *, progress: bool) -> bool:
        """Whether nothing is left to do; raises if something is that could not be done.

        `refused`: pending ids and their owners, which a commit did not take.
        """
        # as far as a plan goes: what it leaves alone would be waited for forever
        scope = self.bounds
        has_own = look(self._server, self._scope).has_own
        if has_own and any(scopes.pending_rows(self._server, scope, own=True)):
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

    def ask(self, budget: int, n: int = 1) -> bool:
        """Unless `n` entries are there, or all that a batch holds: have a page on its way.

        Whether one is that has to be waited for.
        """
        is_full = len(self._page) >= n or sum(self._sizes) >= BATCH_BYTES
        if is_full or self._is_asked or self._columns is not None:
            return self._is_asked and not is_full
        budget -= len(self._page)
        # where another drain went meanwhile this one need not read any more
        after = max(self._after, self.position, key=id_key)
        if budget < 1 or id_key(after) >= id_key(self.bounds.boundary):
            return False
        count = max(1, min(PAGE_ENTRIES, self._count))
        if not self._recorded.touches(after, self.bounds.boundary):  # else some count for nothing
            count = min(count, budget)
        page = reading.ask_page(self._server, after, self.bounds.boundary, count)
        received = self._server.counted.received
        self._requests.append(ReadRequest(after, self.counters, page, received))
        self._is_asked = True
        return True

    def put(self, request: ReadRequest) -> None:
        """Wait for the page that was asked for; it follows on what is left of the one before."""
        page = request.page()
        self._is_asked = False
        if not page:
            self._after = self.bounds.boundary  # no more
            return
        if not self._page:
            self._cut = request.after
        # of a small page it does not matter which of its entries are large
        is_small = self._server.counted.received - request.received <= SMALL_PAGE_BYTES
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
            is_so = is_so and not self._recorded.touches(self.position, self.bounds.boundary)
            if is_so and (found := self._columns.take(room)) is not None:
                self._cut = self._after = self._columns.after
                return found
            self._columns = None  # no more, or otherwise than when they were looked at
        if not self._page:
            return None
        page, known = self._page, self._recorded
        if known.touches(text(page[0][0]), text(page[-1][0])):
            fresh = [at for at, entry in enumerate(page) if not known.has(entry[0])]
            room = fresh[room] if len(fresh) > room else len(page)
        if sum(self._sizes) > BATCH_BYTES:
            room = min(room, sum(total <= BATCH_BYTES for total in accumulate(self._sizes)))
        entries, counters = page[: max(1, room)], self._page_counters[0]
        n = len(entries)
        del self._page[:n], self._sizes[:n], self._page_counters[:n]
        after, self._cut = self._cut, text(entries[-1][0])
        planned = self._planned(self._to_drain, entries) if self._to_drain else None
        return Batch(entries, after, counters, planned=planned)

    def _planned(self, plan: ToDrain, page: Sequence[RawEntry]) -> np.ndarray:
        """The plan's actions for the entries (codes); -1 for one that has its record already."""
        ids = [entry[0] for entry in page]
        rows = plan.entries.find(ids)
        for row in np.flatnonzero(rows < 0).tolist():
            if not self._recorded.has(ids[row]):
                raise RefusedError(f"entry {text(ids[row])} is not in the plan; make a new one")
        return np.where(rows < 0, -1, np.append(plan.entries.actions, 0)[rows].astype(np.int64))


class _Columns:
    """A plan's entries as batches, from its own columns."""

    def __init__(self, straight: Straight) -> None:
        self.counters = straight.counters
        self._feed = Feed(straight.blocks())
        self._events: Events | None = None  # a piece of the plan, from which batches are cut
        self._actions = np.zeros(0, np.int64)
        self._at = 0  # in the piece
        self.after = straight.after  # up to here they were taken

    def take(self, room: int) -> Batch | None:
        """The next entries, up to `room`; None: no more."""
        if self._events is None or self._at >= len(self._events):
            table = self._feed.take(PIECE)
            if table is None:
                return None
            self._events, self._at = Events.from_arrow(table), 0
            self._actions = word_codes(table["action"], ACTIONS)[0]
        part = slice(self._at, self._at + min(room, PAGE_ENTRIES))
        events, after = self._events.part(part), self.after
        self._at += len(events)
        self.after = text(events.ids[-1])
        return Batch([], after, self.counters, planned=self._actions[part], events=events)
