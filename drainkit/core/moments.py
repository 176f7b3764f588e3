"""When records reached the audit, as milliseconds and how many in each: small, however many."""

from __future__ import annotations

import numpy as np


class Moments:
    """Moments of records (int64, ms), added in parts and in any order."""

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
