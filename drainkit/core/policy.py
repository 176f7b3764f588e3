"""The one decision: events + policy + time -> action, and its record in the audit stream.

Pure: the moment of the decision is an argument. Order and limits: the contract, section 4; the
record: section 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..late import pa, pc
from .events import Events
from .values import INVALID_REASONS, NO_TIME, RawEntry

# in the order in which they decide: what it is called, and its colour in figures
_DECLARED = {
    "dropped_missing": ("missing", "#999999"),
    "dropped_old": ("too old", "#E69F00"),
    "dropped_invalid": ("invalid", "#D55E00"),
    "dropped_not_allowlisted": ("not allowlisted", "#CC79A7"),
    "dropped_low_conf": ("low confidence", "#56B4E9"),
    "drained_ok": ("passes", "#009E73"),
}
ACTIONS = tuple(_DECLARED)
NAMES = {action: name for action, (name, _) in _DECLARED.items()}
COLOURS = {action: colour for action, (_, colour) in _DECLARED.items()}
_MISSING, _OLD, _INVALID, _NOT_ALLOWLISTED, _LOW_CONF, _OK = range(6)


@dataclass(frozen=True)
class Policy:
    """What passes: not older than `max_age_min` minutes, in `allowlist`, at least `min_conf`."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}

    max_age_min: float
    allowlist: frozenset[str] | None  # None: any symbol
    min_conf: float

    @property
    def max_age_us(self) -> int:
        """The maximum age in microseconds: what is older is too old; NO_TIME never is."""
        return round(self.max_age_min * 60_000_000)

    def as_dict(self) -> dict[str, object]:
        """JSON-ready; the allowlist sorted."""
        symbols = None if self.allowlist is None else sorted(self.allowlist)
        return {**vars(self), "allowlist": symbols}


@dataclass(frozen=True, slots=True)
class Decisions:
    """n decisions as columns."""

    action: NDArray[np.uint8]  # codes into ACTIONS
    failed: NDArray[np.uint8]  # bit k set: filter ACTIONS[k] failed, also those after the first
    age_us: NDArray[np.int64]  # microseconds at the decision; NO_TIME unknown

    def part(self, rows: slice) -> Decisions:
        """Some of the rows."""
        return Decisions(self.action[rows], self.failed[rows], self.age_us[rows])


def decide(events: Events, policy: Policy, now_us: int | np.ndarray) -> Decisions:
    """Each event's action and every filter it fails; exactly at a limit passes.

    `now_us` is the moment of the decision, one for all or one for each (int64, microseconds).
    """
    known = events.event_time_us != NO_TIME
    age_us = np.where(known, now_us - np.where(known, events.event_time_us, 0), NO_TIME)
    old = age_us > policy.max_age_us
    with np.errstate(invalid="ignore"):
        low = events.confidence < policy.min_conf  # nan, where not valid, compares false
    present = ~events.missing
    invalid = present & ((events.invalid != 0) | ~known)
    failed = np.where(events.missing, 1 << _MISSING, 0).astype(np.uint8)
    failed |= (old.astype(np.uint8) << _OLD) | (invalid.astype(np.uint8) << _INVALID)
    failed |= (low & present).astype(np.uint8) << _LOW_CONF
    if policy.allowlist is not None:
        allowed = np.array([s in policy.allowlist for s in events.symbols] + [True])
        failed |= (~allowed[events.symbol_code] & present).astype(np.uint8) << _NOT_ALLOWLISTED
    return Decisions(_FIRST_FAILED[failed], failed, age_us)


def passing_at(
    decisions: Decisions,
    confidence: NDArray[np.float64],
    ages_min: Sequence[float],
    confidences: Sequence[float],
) -> NDArray[np.int64]:
    """Events that would pass at other limits, by maximum age (rows, minutes) and minimum
    confidence (columns); the other filters are as they were decided."""
    fits = (decisions.failed & ~np.uint8(1 << _OLD | 1 << _LOW_CONF)) == 0
    rows = [fits & (decisions.age_us <= Policy(age, None, 0).max_age_us) for age in ages_min]
    columns = [confidence >= least for least in confidences]  # nan, where not valid: false
    return np.array([[np.count_nonzero(row & column) for column in columns] for row in rows])


# the lowest bit that is set names the action; none: it passed
_FIRST_FAILED: NDArray[np.uint8] = np.array(
    [_OK] + [(bits & -bits).bit_length() - 1 for bits in range(1, 32)], dtype=np.uint8
)


_FIXED = (  # by action; empty where each event has its own
    "the entry's body is gone (trimmed or deleted)", "", "", "symbol not in the allowlist", "",
    "passed every filter",
)  # fmt: skip


def age_texts(age_us: NDArray[np.int64]) -> list[str]:
    """Ages in seconds with two decimals."""
    # one format for all: one for each takes a third longer
    return ("%.2f\n" * len(age_us) % (*(age_us / 1e6).tolist(),)).splitlines()


def reasons(
    events: Events, decisions: Decisions, policy: Policy, ages: Sequence[str] | None = None
) -> tuple[NDArray[np.int64], list[str]]:
    """Each event's reason as a code into one-line texts; a text can be there more than once.

    Only checked values and fixed texts stand in them. `ages`: `age_texts` of all, if made already.
    """
    texts = [*_FIXED, *(reason or "no usable time" for reason in INVALID_REASONS)]
    codes = decisions.action.astype(np.int64)
    rows = np.flatnonzero(decisions.action == _INVALID)
    codes[rows] = len(_FIXED) + events.invalid[rows].astype(np.int64)
    rows = np.flatnonzero(decisions.action == _OLD)
    codes[rows] = len(texts) + np.arange(len(rows))
    old = [ages[row] for row in rows.tolist()] if ages else age_texts(decisions.age_us[rows])
    limit = f"{policy.max_age_us / 1e6:.2f}"
    texts += [f"age {age} s > {limit} s" for age in old]
    rows = np.flatnonzero(decisions.action == _LOW_CONF)
    numbers, which = np.unique(events.confidence[rows], return_inverse=True)
    codes[rows] = len(texts) + which
    texts += [f"confidence {number!r} < {policy.min_conf!r}" for number in numbers.tolist()]
    return codes, texts


#: The names of the failed filters, comma-separated in the order of ACTIONS, by Decisions.failed.
FAILED_NAMES = [
    ",".join(ACTIONS[k] for k in range(len(ACTIONS)) if bits >> k & 1) for bits in range(64)
]


def other_failed(decisions: Decisions) -> NDArray[np.uint8]:
    """The filters that each event would have failed besides the one that decided, as bits."""
    first = (np.uint8(1) << decisions.action).astype(np.uint8)
    return decisions.failed & ~first


# ---------------------------------------------------------------- the audit record

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
    ages = age_texts(decisions.age_us)
    confidences = [*map(_shortest, events.confidence.tolist())]
    unknown = (ages, decisions.age_us == NO_TIME), (confidences, np.isnan(events.confidence))
    for column, rows in unknown:
        for row in np.flatnonzero(rows).tolist():
            column[row] = "null"
    codes, texts = reasons(events, decisions, policy, ages)
    return [
        [*map(bytes.decode, events.ids)],
        [*map(symbols.__getitem__, events.symbol_code.tolist())],
        ages,
        confidences,
        [*map(ACTIONS.__getitem__, decisions.action.tolist())],
        [*map(texts.__getitem__, codes.tolist())],
    ]


#: The shortest text that reads as the number: repr is slow, and confidences have few values.
_shortest = lru_cache(4096)(repr)


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
