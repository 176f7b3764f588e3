"""A plan's entries as columns, found by a cursor: a drain meets them in the plan's own order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..late import pa, pc
from .events import Events
from .frame import record_batch
from .plan import newest
from .policy import ACTIONS

WINDOW = 20_000  # entries that the cursor looks ahead, where several drain one plan
PIECE = 4_000  # rows of a plan that are made events at once
COMPARED = ("id", "event_time", "symbol", "side", "confidence", "source", "invalid")


def action_codes(actions: pa.ChunkedArray) -> np.ndarray:
    """Actions by name as codes (uint8) into ACTIONS; one more for a name that nobody knows."""
    codes = pc.index_in(actions.cast(pa.string()), value_set=pa.array(ACTIONS))
    found: np.ndarray = codes.fill_null(len(ACTIONS)).to_numpy().astype(np.uint8)
    return found


class Entries:
    """Entries of a plan in its order: ids, hashes of their payloads, planned actions."""

    def __init__(self, decisions: pa.Table) -> None:
        """`decisions` needs the columns id, action and payload_sha256."""
        table = decisions.select(["id", "action", "payload_sha256"]).combine_chunks()
        self.ids = pa.concat_arrays([pa.array([], pa.string()), *table["id"].chunks])
        self.hashes = pa.concat_arrays(
            [pa.array([], pa.binary(32)), *table["payload_sha256"].chunks]
        )
        self.actions = action_codes(table["action"])

    def __len__(self) -> int:
        return len(self.ids)

    def only(self, rows: np.ndarray) -> Entries:
        """Those that `rows` (bool) marks."""
        if rows.all():
            return self
        found = object.__new__(Entries)
        mask = pa.array(rows)
        found.ids, found.hashes = self.ids.filter(mask), self.hashes.filter(mask)
        found.actions = self.actions[rows]
        return found

    def last(self) -> str:
        """The largest id."""
        return "{}-{}".format(*newest(self.ids))

    @cached_property
    def rows(self) -> dict[bytes, int]:
        """The row of each id; large, so made only where the order is not the plan's."""
        return {entry.encode(): row for row, entry in enumerate(self.ids.to_pylist())}


@dataclass(frozen=True)
class Straight:
    """A plan's entries as they were seen: all that the stream has there, with the plan's values.

    So they need not be read again, as long as `counters` say that nothing was deleted since.
    """

    after: str  # the id after which they begin: the group's position
    counters: bytes  # the stream's, from before they were looked at
    blocks: Callable[[], Iterator[pa.Table]]
    sizes: np.ndarray  # int32, bytes of each entry's fields


@dataclass(frozen=True)
class ToDrain:
    """The entries of a plan that a run is to drain."""

    count: int
    last_id: str  # the largest
    load: Callable[[], Entries]
    straight: Straight | None = None

    @classmethod
    def of(cls, entries: Entries) -> ToDrain:
        """Just these."""
        return cls(len(entries), entries.last() if len(entries) else "", lambda: entries)

    @cached_property
    def entries(self) -> Entries:
        """All of them; large, so loaded only by who meets them in another order than the plan's."""
        return self.load()


class Feed:
    """Rows of tables that come in parts, as many at a time as are asked for."""

    def __init__(self, parts: Iterator[pa.Table]) -> None:
        self._parts = parts
        self._held: list[pa.Table] = []

    def take(self, n: int) -> pa.Table | None:
        """The next `n` rows, fewer at the end; None when there are no more."""
        while sum(map(len, self._held)) < n and (part := next(self._parts, None)) is not None:
            self._held.append(part)
        if not self._held:
            return None
        table = pa.concat_tables(self._held)
        self._held = [table.slice(n)] if len(table) > n else []
        return table.slice(0, n)


def fits(rows: pa.Table, events: Events, hashes: pa.Array) -> bool:
    """Whether a plan's rows say of these events what they are, and of their payloads."""
    if not rows["payload_sha256"].combine_chunks().equals(hashes):
        return False
    found = pa.Table.from_batches([record_batch(events)])

    def values(table: pa.Table, name: str) -> pa.ChunkedArray:
        column = table[name]
        return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column

    return all(values(rows, name).equals(values(found, name)) for name in COMPARED)


class Cursor:
    """Where a reader of the plan's entries stands; mostly the next ones are those looked for."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self._at = 0

    def find(self, ids: Sequence[bytes]) -> np.ndarray:
        """The rows of the ids (int64); -1 for what is not planned."""
        wanted = pa.array(ids, pa.binary()).cast(pa.string())
        n, at, planned = len(ids), self._at, self._entries.ids
        if planned.slice(at, n).equals(wanted):
            self._at = at + n
            return np.arange(at, at + n)
        ahead = pc.index_in(wanted, value_set=planned.slice(at, WINDOW + n))
        if not ahead.null_count:
            rows: np.ndarray = ahead.to_numpy().astype(np.int64) + at
        else:
            known = self._entries.rows
            rows = np.array([known.get(entry, -1) for entry in ids], dtype=np.int64)
        self._at = max(at, int(rows.max(initial=-1)) + 1)
        return rows
