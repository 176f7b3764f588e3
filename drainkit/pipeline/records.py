"""What the tables of a run's folder hold: counts, samples, and what the checks need of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import files
from ..core.moments import Moments
from ..core.policy import ACTIONS

if TYPE_CHECKING:
    import pyarrow as pa

ALL_OF_THEM = 24  # so few events are listed one by one
SAMPLES = 3  # of each action, where they are more
BATCH = 10_000  # rows
_FATE = ("action", "failed")


@dataclass
class Records:
    """audit.parquet, or decisions.parquet, in figures and samples."""

    rows: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    samples: list[dict[str, Any]] = field(default_factory=list)
    doubled: int = 0  # entries that stand there more than once
    beyond: int = 0  # entries later than the boundary
    worst_second: int | None = None  # the most records within one second, by the audit's ids

    @property
    def is_complete(self) -> bool:
        """Whether the samples are all events."""
        return self.rows <= ALL_OF_THEM


def read(path: Path, boundary: str) -> Records | None:
    """What a table of events holds; None where it cannot be read."""
    found, moments, first = Records(), Moments(), []
    last = np.array([id_key(boundary)], np.uint64)
    newest, is_rising = np.zeros((1, 2), np.uint64), True
    timed = name = ""
    try:
        for batch in _batches(path):
            if found.rows < ALL_OF_THEM:
                first += batch.slice(0, ALL_OF_THEM - found.rows).to_pylist()
            _sample(found, batch)
            found.rows += batch.num_rows
            name = next((n for n in ("original_id", "id") if n in batch.schema.names), "")
            if name:
                keys = _id_keys(batch.column(name))
                found.beyond += int(_is_after(keys, last).sum())
                every = np.concatenate([newest, keys])
                is_rising = is_rising and bool(_is_after(every[1:], every[:-1]).all())
                newest = every[-1:]
            if "audit_id" in batch.schema.names:
                timed = "audit_id"
                moments.add(_id_keys(batch.column(timed))[:, 0].astype(np.int64))
        if not is_rising:  # only then can an entry be there twice
            ids = (batch.column(name) for batch in _batches(path, (name,)))
            keys = np.concatenate([*map(_id_keys, ids)])
            found.doubled = found.rows - len(np.unique(keys, axis=0))
    except (OSError, ValueError):  # pyarrow's own errors are children of these
        return None
    found.samples.sort(key=lambda event: _rank(event["action"]))
    if found.is_complete:
        found.samples = first
    if timed:
        found.worst_second = moments.busiest_second()
    return found


def _sample(found: Records, batch: pa.RecordBatch) -> None:
    """Count a batch's events by action, and keep the first of each."""
    import pyarrow.compute as pc

    actions = batch.column("action")
    for pair in pc.value_counts(actions).to_pylist():
        action = pair["values"]
        if (wanted := SAMPLES - found.counts[action]) > 0:
            rows = pc.indices_nonzero(pc.equal(actions, action))[:wanted]
            found.samples += batch.take(rows).to_pylist()
        found.counts[action] += pair["counts"]


def _id_keys(ids: pa.Array) -> np.ndarray:
    """Ids for comparison, (n, 2) uint64: milliseconds and number; 0, 0 for what is not an id."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = ids.cast(pa.string())
    is_id = pc.match_substring_regex(texts, r"^\d{1,19}-\d{1,19}$").fill_null(False)
    parts = pc.split_pattern(pc.if_else(is_id, texts, "0-0"), "-")
    columns = [pc.list_element(parts, k).cast(pa.uint64()).to_numpy(False) for k in (0, 1)]
    return np.stack(columns, axis=1)


def _is_after(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each key whether it comes after the other."""
    ms, other_ms = keys[:, 0], others[:, 0]
    after: np.ndarray = (ms > other_ms) | ((ms == other_ms) & (keys[:, 1] > others[:, 1]))
    return after


def passing_at_once(path: Path, at_us: int, max_age_us: int) -> int | None:
    """How many of the decided events would pass, were all decided at one moment; None: unknown."""
    import pyarrow as pa
    import pyarrow.compute as pc

    passing = 0
    try:
        for batch in _batches(path, ("event_time", *_FATE)):
            actions, failed = (batch.column(name).cast(pa.string()) for name in _FATE)
            times = batch.column("event_time").cast(pa.int64())
            is_only_old = pc.and_(
                pc.equal(actions, "dropped_old"), pc.equal(pc.fill_null(failed, ""), "")
            )
            fits = pc.or_(pc.equal(actions, "drained_ok"), is_only_old)
            fits = pc.and_(fits, pc.greater_equal(times, at_us - max_age_us))
            passing += pc.sum(fits).as_py() or 0
    except (OSError, ValueError, KeyError):
        return None
    return passing


def _batches(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    with files.parquet_file(path) as stored:
        yield from stored.iter_batches(BATCH, columns=columns)


def _rank(action: str) -> int:
    return ACTIONS.index(action) if action in ACTIONS else len(ACTIONS)


def id_key(entry_id: object) -> tuple[int, int]:
    """An entry id for comparison; (0, 0) for what is not an id."""
    ms, _, number = str(entry_id).partition("-")
    is_id = all(part.isdecimal() and len(part) < 20 for part in (ms, number))
    return (int(ms), int(number)) if is_id else (0, 0)
