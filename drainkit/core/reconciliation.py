"""A plan held against what is there and what was done: its entries, its records, what drifted.

A drain meets the entries in the plan's own order, and records come in it; any other order gives the
same answer, by a cursor that looks ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from ..late import pa, pc
from ..safe import one_line
from .events import Events, word_codes
from .frame import record_batch
from .plan import newest
from .policy import ACTIONS, Decisions, Policy, reasons

WINDOW = 20_000  # planned entries that are looked ahead at
Parts = Callable[[], "Iterable[pa.Table]"]  # the same rows at each call


@dataclass(frozen=True)
class Matched:
    """What plan and records say of each other, by ids; without a plan only `twice` is known."""

    twice: Sequence[str] = ()  # recorded more than once
    lacking: Sequence[str] = ()  # planned, not recorded
    beyond: Sequence[str] = ()  # recorded, not planned
    vanished: int = 0  # planned, and deleted before they could be delivered


class Matching:
    """Holds records against a plan; both come in parts, and mostly in the same order.

    In memory are the next planned entries and what had no counterpart yet: as much as the two
    orders differ, whatever their length. Any order gives the same answer.
    """

    def __init__(self, planned: Parts | None) -> None:
        self._planned = planned
        self._left = (_texts(part, "id", "action") for part in (planned() if planned else ()))
        self._window = _empty("id", "action")
        self._extras: list[pa.Table] = []
        self._drift: list[pa.Table] = []

    def add(self, recorded: pa.Table) -> None:
        """Some records: columns id, action and reason."""
        recorded = _texts(recorded, "id", "action", "reason")
        n = len(recorded)
        while len(self._window) < n + WINDOW and (part := next(self._left, None)) is not None:
            self._window = pa.concat_tables([self._window, part])
        self._window = self._window.combine_chunks()
        head = self._window.slice(0, n)
        if len(head) == n and head["id"].equals(recorded["id"]):
            self._window = self._window.slice(n)
            self._pair(head, recorded)
            return
        places = pc.index_in(recorded["id"], value_set=self._window["id"])
        places = places.fill_null(-1).to_numpy()
        _, first = np.unique(places, return_index=True)
        rows = np.sort(first[places[first] >= 0])  # the first record of each planned entry
        self._pair(self._window.take(places[rows]), recorded.take(rows))
        self._extras.append(recorded.take(np.delete(np.arange(n), rows)))
        self._window = self._window.take(np.delete(np.arange(len(self._window)), places[rows]))

    def finish(self, vanished: Callable[[list[str]], Collection[str]] | None = None) -> Matched:
        """What does not fit, once all records were added.

        `vanished` says which of the ids that lack a record need none, deleted as they were before
        they could be delivered.
        """
        extras = pa.concat_tables([_empty("id", "action", "reason"), *self._extras])
        lacking: list[str] = []
        for part in chain([self._window], self._left):
            rows = pc.index_in(part["id"], value_set=extras["id"]).fill_null(-1).to_numpy()
            self._pair(part.filter(pa.array(rows >= 0)), extras.take(rows[rows >= 0]))
            extras = extras.take(np.delete(np.arange(len(extras)), rows[rows >= 0]))
            lacking += part["id"].filter(pa.array(rows < 0)).to_pylist()
        gone = set(vanished(lacking)) if lacking and vanished is not None else set()
        lacking = [entry for entry in lacking if entry not in gone]
        found = pc.value_counts(extras["id"])
        doubled = found.filter(pc.greater(found.field("counts"), 1)).field("values").to_pylist()
        if self._planned is None:
            return Matched(doubled)
        known: set[str] = set()  # those of them that are planned
        for part in self._planned() if len(extras) else ():
            planned = _texts(part, "id")["id"]
            known.update(planned.filter(pc.is_in(planned, value_set=extras["id"])).to_pylist())
        doubled, ids = set(doubled), found.field("values").to_pylist()
        # a planned one has had its record; of the others each may have one before it is twice
        twice = [entry for entry in ids if entry in known or entry in doubled]
        beyond = [entry for entry in ids if entry not in known]
        return Matched(twice, lacking, beyond, len(gone))

    def drift(self) -> pa.Table:
        """Where what happened differs from the plan (`drift_table`), as far as it was added."""
        return pa.concat_tables([drift_table(), *self._drift])

    def _pair(self, planned: pa.Table, recorded: pa.Table) -> None:
        differs = pc.not_equal(planned["action"], recorded["action"])
        if pc.any(differs).as_py():
            was, now = planned["action"].filter(differs), recorded.filter(differs)
            self._drift.append(drift_table(now["id"], was, now["action"], now["reason"]))


def drift_table(*columns: Any) -> pa.Table:
    """Entries whose fate was not the planned one, by id, planned, happened, reason; none: empty."""
    texts = pa.schema([(name, pa.string()) for name in ("id", "planned", "happened", "reason")])
    return pa.table([*columns], texts.names).cast(texts) if columns else texts.empty_table()


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
    matched: Matched,
    *,
    audited: Mapping[str, int],
    counts: Mapping[str, int],
) -> list[str]:
    """What does not balance, one line each; empty when the books do.

    `audited` are the run's records by action, `counts` the run's own numbers.
    """
    findings = []
    if matched.twice:
        findings.append(_line("entries recorded more than once", matched.twice))
    for action in sorted({*ACTIONS, *audited, *counts}):
        if audited.get(action, 0) != counts.get(action, 0):
            findings.append(
                f"{one_line(action)}: the run counted {counts.get(action, 0)}, "
                f"the audit {audited.get(action, 0)}"
            )
    if matched.lacking:
        findings.append(_line("planned entries without a record", matched.lacking))
    if matched.beyond:
        findings.append(_line("recorded entries that were not planned", matched.beyond))
    return findings


def _line(finding: str, ids: Sequence[str]) -> str:
    # whoever may write to the audit stream could have put anything there
    return f"{finding}: {len(ids):,}, first {one_line(ids[0])}"


def _texts(table: pa.Table, *names: str) -> pa.Table:
    """Some columns as plain texts: a plan's are dictionaries."""
    return table.select(names).cast(pa.schema([(name, pa.string()) for name in names]))


def _empty(*names: str) -> pa.Table:
    return pa.schema([(name, pa.string()) for name in names]).empty_table()


PIECE = 4_000  # rows of a plan that are made events at once
COMPARED = ("id", "event_time", "symbol", "side", "confidence", "source", "invalid")


class Entries:
    """Entries of a plan in its order: ids, hashes of their payloads, planned actions."""

    def __init__(self, decisions: pa.Table) -> None:
        """`decisions` needs the columns id, action and payload_sha256."""
        table = decisions.select(["id", "action", "payload_sha256"]).combine_chunks()
        self.ids = pa.concat_arrays([pa.array([], pa.string()), *table["id"].chunks])
        self.hashes = pa.concat_arrays(
            [pa.array([], pa.binary(32)), *table["payload_sha256"].chunks]
        )
        self.actions = word_codes(table["action"], ACTIONS)[0].astype(np.uint8)

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
