"""The audit record: as it goes to the stream, and as it comes back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np

from ..late import pa, pc
from .events import Events
from .policy import ACTIONS, Decisions, Policy, reason_codes
from .timestamps import NO_TIME
from .values import RawEntry

# of these each event has its own; the others are those of its commit
OF_EVENT = ("original_id", "symbol", "age_sec", "confidence", "action", "reason")
_NUMBERS = ("age_sec", "confidence")


#: The fields of a record in their order (the contract, section 5).
RECORD_FIELDS = (
    "original_id", "symbol", "age_sec", "confidence", "action", "drained_at_ts", "reason",
    "consumer_group", "run_id",
)  # fmt: skip
_NAMES = [name.encode() for name in RECORD_FIELDS]
_WIDTH = 2 * len(RECORD_FIELDS)
Records = Sequence[Sequence[str]]  # columns, one for each name in OF_EVENT


def records(events: Events, decisions: Decisions, policy: Policy) -> Records:
    """What the events' records say of each."""
    symbols = [*events.symbols, "UNKNOWN"]
    ages = [f"{age_sec:.2f}" for age_sec in (decisions.age_us / 1e6).tolist()]
    for row in np.flatnonzero(decisions.age_us == NO_TIME).tolist():
        ages[row] = "null"
    codes, texts = reason_codes(events, decisions, policy)
    confidences = np.where(np.isnan(events.confidence), -1.0, events.confidence)
    return [
        [*map(bytes.decode, events.ids)],
        [*map(symbols.__getitem__, events.symbol_code.tolist())],
        ages,
        [*map(_number_text, confidences.tolist())],
        [*map(ACTIONS.__getitem__, decisions.action.tolist())],
        [*map(texts.__getitem__, codes.tolist())],
    ]


@lru_cache(4096)
def _number_text(number: float) -> str:
    """The shortest text that reads as the number, null for one below 0.

    Confidences have few values, and repr is slow.
    """
    return repr(number) if number >= 0 else "null"


def parse(entry: RawEntry) -> dict[str, Any]:
    """An entry of the audit stream, as a row of an audit table; what is missing or odd is empty.

    Of the numbers it is None.
    """
    texts = [part.decode("utf-8", "replace") for part in entry[1] or []]
    there = dict(zip(texts[::2], texts[1::2], strict=True))
    found: dict[str, Any] = {name: there.get(name, "") for name in RECORD_FIELDS}
    found |= {name: _number(found[name]) for name in _NUMBERS}
    return {"audit_id": entry[0].decode(), **found}


def audit_schema() -> pa.Schema:
    """The columns of an audit table: those of the stream, and `audit_id` before them."""
    names = ("audit_id", *RECORD_FIELDS)
    return pa.schema([(n, pa.float64() if n in _NUMBERS else pa.string()) for n in names])


def audit_table(entries: Sequence[RawEntry]) -> pa.Table:
    """Entries of the audit stream as a table; what is missing or odd is as `parse` has it."""
    bodies = [entry[1] or [] for entry in entries]
    if all(body[::2] == _NAMES for body in bodies):
        values = [*chain.from_iterable(bodies)]
        columns = [[entry[0] for entry in entries]]
        columns += [values[2 * k + 1 :: _WIDTH] for k in range(len(RECORD_FIELDS))]
        try:
            kinds = [field.type for field in audit_schema()]
            return pa.table(list(map(_column, columns, kinds)), audit_schema())
        except pa.ArrowInvalid:  # no UTF-8, or no number that Arrow knows
            pass
    return pa.Table.from_pylist([parse(entry) for entry in entries], audit_schema())


def audit_ms(table: pa.Table) -> np.ndarray:
    """The milliseconds of an audit table's ids (int64)."""
    parts = pc.split_pattern(table["audit_id"], "-", max_splits=1)
    ms: np.ndarray = pc.list_element(parts, 0).cast(pa.int64()).to_numpy()
    return ms


def _column(values: list[bytes], kind: pa.DataType) -> pa.Array:
    texts = pa.array(values, pa.binary()).cast(pa.string())
    if pa.types.is_string(kind):
        return texts
    known = pc.if_else(pc.equal(texts, "null"), pa.scalar(None, pa.string()), texts)
    numbers = known.cast(kind)
    return pc.if_else(pc.is_finite(numbers), numbers, pa.scalar(None, kind))


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


class Moments:
    """When records reached the audit (int64, ms), in any order; small, however many they are."""

    def __init__(self, ms: np.ndarray | None = None) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        self.add(np.zeros(0, np.int64) if ms is None else ms)

    def __len__(self) -> int:
        return int(sum(n.sum() for _, n in self._parts))

    def add(self, ms: np.ndarray) -> None:
        """More records."""
        self._parts.append(np.unique(ms, return_counts=True))

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """The milliseconds, ascending, and the records of each."""
        if len(self._parts) > 1:
            every, n = (np.concatenate(part) for part in zip(*self._parts, strict=True))
            ms, which = np.unique(every, return_inverse=True)
            self._parts = [(ms, np.bincount(which, n, len(ms)).astype(np.int64))]
        return self._parts[0]

    def busiest_second(self) -> int:
        """The most records in any half-open window of one second."""
        ms, n = self.counts()
        upto = np.cumsum(n)
        last = np.searchsorted(ms, ms + 1000, side="left") - 1
        return int((upto[last] - upto + n).max(initial=0))

    def closest_ms(self) -> int:
        """The least time between two records; there must be two."""
        ms, n = self.counts()
        return 0 if n.max() > 1 else int(np.diff(ms).min())
