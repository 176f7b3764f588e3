"""The audit record: as it goes to the stream, and as it comes back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain

import numpy as np

from ..late import pa, pc
from .events import Events
from .policy import ACTIONS, Decisions, Policy, reason_codes
from .timestamps import NO_TIME
from .values import RawEntry

# of these each event has its own; the others are those of its commit
OF_EVENT = ("original_id", "symbol", "age_sec", "confidence", "action", "reason")
_NUMBERS = ("age_sec", "confidence")
_NUMBER = r"^-?\d{1,20}(\.\d{1,20})?(e-\d{1,3})?$"  # as `records` writes them; null is none
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


def audit_schema() -> pa.Schema:
    """The columns of an audit table: those of the stream, and `audit_id` before them."""
    names = ("audit_id", *RECORD_FIELDS)
    return pa.schema([(n, pa.float64() if n in _NUMBERS else pa.string()) for n in names])


def audit_table(entries: Sequence[RawEntry]) -> pa.Table:
    """Entries of the audit stream as a table; a text that is missing is empty, a number null."""
    bodies = [entry[1] or [] for entry in entries]
    columns, schema = [[entry[0] for entry in entries]], audit_schema()
    if all(body[::2] == _NAMES for body in bodies):
        values = [*chain.from_iterable(bodies)]
        columns += [values[2 * k + 1 :: _WIDTH] for k in range(len(RECORD_FIELDS))]
    else:  # whoever may write to the stream could have put anything there
        rows = [dict(zip(body[::2], body[1::2], strict=True)) for body in bodies]
        columns += [[row.get(name, b"") for row in rows] for name in _NAMES]
    return pa.table([*map(_column, columns, schema.types)], schema)


def audit_ms(table: pa.Table) -> np.ndarray:
    """The milliseconds of an audit table's ids (int64)."""
    parts = pc.split_pattern(table["audit_id"], "-", max_splits=1)
    ms: np.ndarray = pc.list_element(parts, 0).cast(pa.int64()).to_numpy()
    return ms


def _column(values: list[bytes], kind: pa.DataType) -> pa.Array:
    try:
        texts = pa.array(values, pa.binary()).cast(pa.string())
    except pa.ArrowInvalid:
        texts = pa.array([value.decode("utf-8", "replace") for value in values])
    if pa.types.is_string(kind):
        return texts
    is_number = pc.match_substring_regex(texts, _NUMBER)
    return pc.if_else(is_number, texts, pa.scalar(None, pa.string())).cast(kind)


class Moments:
    """When records reached the audit (int64, ms), in any order; small, however many they are."""

    def __init__(self, ms: Sequence[int] | np.ndarray = ()) -> None:
        self._parts = [np.unique(np.asarray(ms, np.int64), return_counts=True)]

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
