"""A plan held against what is there and what was done: its entries, its records, what drifted.

A drain meets the entries in the plan's own order, and records come in it; any other order gives the
same answer, by a cursor that looks ahead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..late import pa, pc
from ..safe import one_line
from .events import Events, word_codes
from .frame import record_batch
from .plan import newest
from .policy import ACTIONS, Decisions, Policy, reasons

WINDOW = 20_000  # planned entries that are looked ahead at
PIECE = 4_000  # rows of a plan that are made events at once
COMPARED = ("id", "event_time", "symbol", "side", "confidence", "source", "invalid")
Parts = Callable[[], "Iterable[pa.Table]"]  # the same rows at each call
_PLANNED, _RECORDED = ("id", "action"), ("id", "action", "reason")


@dataclass(frozen=True)
class Matched:
    """What plan and records say of each other, by ids; without a plan only `twice` is known."""

    twice: Sequence[str] = ()  # recorded more than once
    lacking: Sequence[str] = ()  # planned, not recorded
    beyond: Sequence[str] = ()  # recorded, not planned
    vanished: int = 0  # planned, and deleted before they could be delivered


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


class Matching:
    """Holds records against a plan; both come in parts, and mostly in the same order.

    In memory is what had no counterpart yet: as much as the two orders differ, whatever their
    length. Any order gives the same answer.
    """

    def __init__(self, planned: Parts | None) -> None:
        self._planned = planned
        self._feed = Feed(_texts(part, *_PLANNED) for part in (planned() if planned else ()))
        self._open, self._extras = _texts(None, *_PLANNED), _texts(None, *_RECORDED)
        self._most = WINDOW  # extras; looked through when there are more
        self._drift = [drift_table()]

    def add(self, recorded: pa.Table) -> None:
        """Some records: columns id, action and reason."""
        recorded, planned = _texts(recorded, *_RECORDED), self._feed.take(len(recorded))
        if planned is not None and planned["id"].equals(recorded["id"]):
            self._pair(planned, recorded)
            return
        self._extras = pa.concat_tables([self._extras, recorded])
        if planned is not None:
            self._open = pa.concat_tables([self._open, planned])
            if len(self._extras) > self._most:
                self._match()
                self._most = 2 * len(self._extras) + WINDOW

    def finish(self, vanished: Callable[[list[str]], Collection[str]] | None = None) -> Matched:
        """What does not fit, once all records were added.

        `vanished` says which of the ids that lack a record need none, deleted as they were before
        they could be delivered.
        """
        if (rest := self._feed.take(sys.maxsize)) is not None:
            self._open = pa.concat_tables([self._open, rest])
        self._match()
        lacking: list[str] = self._open["id"].to_pylist()
        gone = set(vanished(lacking)) if lacking and vanished is not None else set()
        found = pc.value_counts(self._extras["id"])
        often = pc.greater(found.field("counts"), 1)
        twice = set(found.field("values").filter(often).to_pylist())
        if self._planned is None:
            return Matched([*twice])
        known: set[str] = set()  # of the extras those that are planned: these have had their record
        for part in self._planned() if len(found) else ():
            ids = _texts(part, "id")["id"]
            known.update(ids.filter(pc.is_in(ids, found.field("values"))).to_pylist())
        extras, twice = found.field("values").to_pylist(), twice | known
        return Matched(
            [entry for entry in extras if entry in twice],
            [entry for entry in lacking if entry not in gone],
            [entry for entry in extras if entry not in known], len(gone),
        )  # fmt: skip

    def drift(self) -> pa.Table:
        """Where what happened differs from the plan (`drift_table`), as far as it was added."""
        return pa.concat_tables(self._drift)

    def _match(self) -> None:
        """Pair what has its counterpart by now."""
        planned, recorded = self._open.combine_chunks(), self._extras.combine_chunks()
        places = pc.index_in(recorded["id"], value_set=planned["id"]).fill_null(-1).to_numpy()
        _, first = np.unique(places, return_index=True)
        rows = np.sort(first[places[first] >= 0])  # the first record of each planned entry
        self._pair(planned.take(places[rows]), recorded.take(rows))
        self._open = planned.take(np.delete(np.arange(len(planned)), places[rows]))
        self._extras = recorded.take(np.delete(np.arange(len(recorded)), rows))

    def _pair(self, planned: pa.Table, recorded: pa.Table) -> None:
        differs = pc.not_equal(planned["action"], recorded["action"])
        if pc.any(differs).as_py():
            was, now = planned["action"].filter(differs), recorded.filter(differs)
            self._drift.append(drift_table(now["id"], was, now["action"], now["reason"]))


def drift_table(*columns: Any) -> pa.Table:
    """Entries whose fate was not the planned one, by id, planned, happened, reason; none: empty."""
    names = ["id", "planned", "happened", "reason"]
    return _texts(pa.table([*columns], names) if columns else None, *names)


def drift_of(
    events: Events, decisions: Decisions, rows: np.ndarray | slice, planned: np.ndarray,
    policy: Policy,
) -> list[pa.Table]:  # fmt: skip
    """What a drain decided otherwise than planned (`drift_table`), from its own decisions.

    These rows were recorded, of events for which these actions (codes) were planned.
    """
    differs = np.zeros(len(events), dtype=bool)
    differs[rows] = (planned != decisions.action)[rows]
    if not differs.any():
        return []
    texts, changed = reasons(events, decisions, policy), np.flatnonzero(differs).tolist()
    actions = [[ACTIONS[codes[row]] for row in changed] for codes in (planned, decisions.action)]
    ids = [events.ids[row].decode() for row in changed]
    return [drift_table(ids, *actions, [texts[row] for row in changed])]


def drift_counts(drift: pa.Table) -> list[dict[str, str | int]]:
    """How many events met which other fate: [{"planned", "happened", "events"}], most first."""
    found = drift.group_by(["planned", "happened"]).aggregate([([], "count_all")])
    rows = found.rename_columns({"count_all": "events"}).to_pylist()
    return sorted(rows, key=lambda row: (-row["events"], row["planned"], row["happened"]))


def reconcile(
    matched: Matched, *, audited: Mapping[str, int], counts: Mapping[str, int]
) -> list[str]:
    """What does not balance, one line each; empty when the books do.

    `audited` are the run's records by action, `counts` the run's own numbers.
    """
    found = {
        "entries recorded more than once": matched.twice,
        "planned entries without a record": matched.lacking,
        "recorded entries that were not planned": matched.beyond,
    }
    # whoever may write to the audit stream could have put anything there
    return [
        *(f"{what}: {len(ids):,}, first {one_line(ids[0])}" for what, ids in found.items() if ids),
        *(f"{one_line(action)}: the run counted {counts.get(action, 0)}, the audit "
          f"{audited.get(action, 0)}" for action in sorted({*ACTIONS, *audited, *counts})
          if audited.get(action, 0) != counts.get(action, 0)),
    ]  # fmt: skip


def _texts(table: pa.Table | None, *names: str) -> pa.Table:
    """Some columns as plain texts (a plan's are dictionaries); of no table without rows."""
    schema = pa.schema([(name, pa.string()) for name in names])
    return schema.empty_table() if table is None else table.select(names).cast(schema)


# ---------------------------------------------------------------- the entries of a plan


class Entries:
    """Entries of a plan in its order: ids, hashes of their payloads, planned actions."""

    def __init__(self, decisions: pa.Table) -> None:
        """`decisions` needs the columns id, action and payload_sha256."""
        self._table = decisions.select(["id", "action", "payload_sha256"]).combine_chunks()
        self.ids, _, self.hashes = (column.combine_chunks() for column in self._table.columns)
        self.actions = word_codes(self._table["action"], ACTIONS)[0].astype(np.uint8)

    def __len__(self) -> int:
        return len(self.ids)

    def only(self, rows: np.ndarray) -> Entries:
        """Those that `rows` (bool) marks."""
        return self if rows.all() else Entries(self._table.filter(pa.array(rows)))

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
        last_id = "{}-{}".format(*newest(entries.ids)) if len(entries) else ""
        return cls(len(entries), last_id, lambda: entries)

    @cached_property
    def entries(self) -> Entries:
        """All of them; large, so loaded only by who meets them in another order than the plan's."""
        return self.load()


def fits(rows: pa.Table, events: Events, hashes: pa.Array) -> bool:
    """Whether a plan's rows say of these events what they are, and of their payloads."""
    if not rows["payload_sha256"].combine_chunks().equals(hashes):
        return False
    found = pa.Table.from_batches([record_batch(events)]).select(COMPARED)
    kinds = [f.type.value_type if pa.types.is_dictionary(f.type) else f.type for f in found.schema]
    plain = pa.schema([*zip(COMPARED, kinds, strict=True)])
    return bool(rows.select(COMPARED).cast(plain).equals(found.cast(plain)))


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
