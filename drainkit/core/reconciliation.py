"""A plan held against what is there and what was done: its entries, its records, what drifted.

Records mostly come in the plan's own order, which takes the least; any other gives the same answer.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..ids import is_id
from ..late import pa, pc
from ..safe import one_line
from .events import Events, word_codes
from .frame import record_batch, word_counts
from .plan import newest
from .policy import ACTIONS, Decisions, Moments, Policy, audit_ms, reasons

PIECE = 4_000  # rows of a plan that are made events at once
COMPARED = ("id", "event_time", "symbol", "side", "confidence", "source", "invalid")
Parts = Callable[[], "Iterable[pa.Table]"]  # the same rows at each call
_PLANNED, _RECORDED = ("id", "action"), ("id", "action", "reason")


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


class Recorded:
    """The audit records of a run, taken in part by part, and held against its plan.

    Both come in parts, and mostly in the same order. In memory is what had no counterpart yet: as
    much as the two orders differ, whatever their length. Any order gives the same answer.
    """

    def __init__(self, run_id: str, boundary: str, planned: Parts | None) -> None:
        self.counts = Counter[str]()  # by action
        self.moments = Moments()
        self.earlier = 0  # records of earlier runs of the same plan
        self.later = 0  # records of entries after the boundary
        # of entries, once all records were added; without a plan only the first is known
        self.twice: list[str] = []  # recorded more than once
        self.lacking: list[str] = []  # planned, not recorded
        self.unplanned: list[str] = []  # recorded, not planned
        self.vanished = 0  # planned, and deleted before they could be delivered
        self._run_id, self._boundary, self._planned = run_id, boundary, planned
        self._feed = Feed(_texts(part, *_PLANNED) for part in (planned() if planned else ()))
        self._open, self._extras = _texts(None, *_PLANNED), _texts(None, *_RECORDED)
        self._drift = [drift_table()]

    def add(self, part: pa.Table) -> pa.Table:
        """Take in the next records (core.policy.audit_schema); answers those of this run."""
        self._hold(_texts(part.rename_columns({"original_id": "id"}), *_RECORDED))
        own = part.filter(pc.equal(part["run_id"], self._run_id))
        self.earlier += len(part) - len(own)
        self.counts.update(word_counts(own["action"]))
        self.moments.add(audit_ms(own))
        if is_id(self._boundary):
            edge = _padded(pa.array([self._boundary]))[0]
            self.later += pc.sum(pc.greater(_padded(own["original_id"]), edge)).as_py() or 0
        return own

    def finish(self, vanished: Callable[[list[str]], Collection[str]] | None = None) -> None:
        """All were added: what does not fit?

        `vanished` says which of the ids that lack a record need none, deleted as they were before
        they could be delivered.
        """
        if (rest := self._feed.take(sys.maxsize)) is not None:
            self._open = pa.concat_tables([self._open, rest])
        self._match()
        lacking: list[str] = self._open["id"].to_pylist()
        gone = set(vanished(lacking)) if lacking and vanished is not None else set()
        counted = pc.value_counts(self._extras["id"])
        extras = counted.field("values")
        known = pc.is_in(extras, pa.array([], pa.string()))
        for part in self._planned() if self._planned and len(extras) else ():
            # those that are planned have had their record
            known = pc.or_(pc.is_in(extras, _texts(part, "id")["id"].combine_chunks()), known)
        self.twice = extras.filter(
            pc.or_(pc.greater(counted.field("counts"), 1), known)
        ).to_pylist()
        if self._planned is not None:
            self.lacking, self.vanished = [e for e in lacking if e not in gone], len(gone)
            self.unplanned = extras.filter(pc.invert(known)).to_pylist()

    def drift(self) -> pa.Table:
        """Where what happened differs from the plan (`drift_table`), as far as it was added."""
        return pa.concat_tables(self._drift)

    def _hold(self, recorded: pa.Table) -> None:
        planned = self._feed.take(len(recorded))
        if planned is not None and planned["id"].equals(recorded["id"]):
            self._pair(planned, recorded)
            return
        self._extras = pa.concat_tables([self._extras, recorded])
        if planned is not None:
            self._open = pa.concat_tables([self._open, planned])
            self._match()

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


def _padded(ids: pa.Array) -> pa.Array:
    """Entry ids as texts that sort as Redis orders them; null for what is no id."""
    parts = pc.extract_regex(ids, r"^(?P<ms>\d+)-(?P<seq>\d+)$")
    digits = [pc.utf8_lpad(pc.struct_field(parts, [k]), 20, "0") for k in (0, 1)]
    return pc.binary_join_element_wise(*digits, "")


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
    if not (changed := np.flatnonzero(differs).tolist()):
        return []
    codes, texts = reasons(events, decisions, policy)
    actions = [[ACTIONS[of[row]] for row in changed] for of in (planned, decisions.action)]
    ids = [events.ids[row].decode() for row in changed]
    return [drift_table(ids, *actions, [texts[codes[row]] for row in changed])]


def drift_counts(drift: pa.Table) -> list[dict[str, str | int]]:
    """How many events met which other fate: [{"planned", "happened", "events"}], most first."""
    found = drift.group_by(["planned", "happened"]).aggregate([([], "count_all")])
    rows = found.rename_columns({"count_all": "events"}).to_pylist()
    return sorted(rows, key=lambda row: (-row["events"], row["planned"], row["happened"]))


def reconcile(recorded: Recorded, counts: Mapping[str, int], *, is_done: bool = True) -> list[str]:
    """What does not balance, one line each; empty when the books do.

    `counts` are the run's own numbers; one that is not done has not met its plan yet.
    """
    found, audited = {"entries recorded more than once": recorded.twice}, recorded.counts
    if is_done:
        found["planned entries without a record"] = recorded.lacking
        found["recorded entries that were not planned"] = recorded.unplanned
    # whoever may write to the audit stream could have put anything there
    return [
        *(f"{what}: {len(ids):,}, first {one_line(ids[0])}" for what, ids in found.items() if ids),
        *(f"{one_line(action)}: the run counted {counts.get(action, 0)}, the audit "
          f"{audited[action]}" for action in sorted({*ACTIONS, *audited, *counts})
          if audited[action] != counts.get(action, 0)),
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
        keys = _in_order([entry.encode() for entry in self.ids.to_pylist()])
        # after the last one something that no id is equal to
        self._rows = np.append(np.argsort(keys, kind="stable"), -1)
        self._keys = np.append(keys[self._rows[:-1]], b"~")

    def __len__(self) -> int:
        return len(self.ids)

    def only(self, rows: np.ndarray) -> Entries:
        """Those that `rows` (bool) marks."""
        return self if rows.all() else Entries(self._table.filter(pa.array(rows)))

    def find(self, ids: Sequence[bytes]) -> np.ndarray:
        """The rows of the ids (int64); -1 for what is not planned."""
        wanted = _in_order(ids)
        at = np.searchsorted(self._keys, wanted)
        return np.where(self._keys[at] == wanted, self._rows[at], -1)


def _in_order(ids: Sequence[bytes]) -> np.ndarray:
    """Ids as texts that sort as Redis orders them (S40)."""
    parts = (entry.partition(b"-") for entry in ids)
    return np.array([ms.rjust(20) + seq.rjust(20) for ms, _, seq in parts], "S40")


@dataclass(frozen=True)
class Straight:
    """A plan's entries as they were seen: all that the stream has there, with the plan's values.

    So they need not be read again, as long as `counters` say that nothing was deleted since.
    """

    after: str  # the id after which they begin: the group's position
    counters: bytes  # the stream's, from before they were looked at
    blocks: Callable[[], Iterator[pa.Table]]


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
