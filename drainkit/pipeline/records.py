"""What the tables of a run's folder hold: counts, samples, and what the checks need of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.policy import ACTIONS

if TYPE_CHECKING:
    import pyarrow as pa

ALL_OF_THEM = 24  # so few events are listed one by one
SAMPLES = 3  # of each action, where they are more
BATCH = 50_000  # rows


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
    found, ids, audit_ms = Records(), [], []
    last = id_key(boundary)
    first: list[dict[str, Any]] = []
    kept: Counter[str] = Counter()
    try:
        for batch in _batches(path):
            actions = batch.column("action").to_pylist()
            for row, action in enumerate(actions):
                some = kept[action] < SAMPLES
                if some or found.rows + row < ALL_OF_THEM:
                    event = {n: batch.column(n)[row].as_py() for n in batch.schema.names}
                    if some:
                        kept[action] += 1
                        found.samples.append(event)
                    if found.rows + row < ALL_OF_THEM:
                        first.append(event)
            found.counts.update(actions)
            found.rows += batch.num_rows
            name = "original_id" if "original_id" in batch.schema.names else "id"
            if name in batch.schema.names:
                keys = [id_key(entry) for entry in batch.column(name).to_pylist()]
                found.beyond += sum(key > last for key in keys)
                ids.append(np.array(keys, np.uint64).reshape(-1, 2))
            if "audit_id" in batch.schema.names:
                moments = [id_key(entry)[0] for entry in batch.column("audit_id").to_pylist()]
                audit_ms.append(np.array(moments, np.uint64))
    except (OSError, ValueError):  # pyarrow's own errors are children of these
        return None
    if ids:
        found.doubled = found.rows - len(np.unique(np.concatenate(ids), axis=0))
    found.samples.sort(key=lambda event: _rank(event["action"]))
    if found.is_complete:
        found.samples = first
    if audit_ms:
        found.worst_second = _worst_second(np.sort(np.concatenate(audit_ms)))
    return found


def passing_at_once(path: Path, at_us: int, max_age_us: int) -> int | None:
    """How many of the decided events would pass, were all decided at one moment; None: unknown."""
    passing = 0
    try:
        for batch in _batches(path):
            names = ("action", "failed", "event_time")
            columns = [batch.column(name).to_pylist() for name in names[:2]]
            times = batch.column(names[2]).cast("int64").to_pylist()
            for action, failed, time_us in zip(*columns, times, strict=True):
                is_young = time_us is not None and at_us - time_us <= max_age_us
                is_else = action == "drained_ok" or (action == "dropped_old" and not failed)
                passing += is_young and is_else
    except (OSError, ValueError, KeyError):
        return None
    return passing


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    from pyarrow import parquet

    with path.open("rb") as file:
        yield from parquet.ParquetFile(file).iter_batches(BATCH)


def _worst_second(ms: np.ndarray) -> int:
    """The most of the sorted moments (uint64, ms) in a half-open window of one second."""
    upto = np.searchsorted(ms, ms + np.uint64(1000), side="left")
    return int((upto - np.arange(len(ms))).max(initial=0))


def _rank(action: str) -> int:
    return ACTIONS.index(action) if action in ACTIONS else len(ACTIONS)


def id_key(entry_id: object) -> tuple[int, int]:
    """An entry id for comparison; (0, 0) for what is not an id."""
    ms, _, number = str(entry_id).partition("-")
    is_id = all(part.isdecimal() and len(part) < 20 for part in (ms, number))
    return (int(ms), int(number)) if is_id else (0, 0)
