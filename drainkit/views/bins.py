"""Bins for the figures: so their size does not grow with the backlog."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from ..core.policy import ACTIONS, Policy

MAX_BINS = 80


def without_outliers(values: np.ndarray, limit: float) -> float:
    """How far an axis reaches, so that a few wrong clocks do not squeeze all others into a bar."""
    if not len(values):
        return limit
    most, usual = float(values.max()), float(np.quantile(values, 0.99))
    return most if most <= 3 * usual else max(1.5 * usual, 2 * limit)


def age_step_min(limit: float, high: float) -> float:
    """The width of a bin (minutes): a whole part or a multiple of the limit, at most 80 bins."""
    least = high / MAX_BINS
    for parts in (60, 50, 40, 30, 20, 15, 12, 10, 6, 5, 4, 3, 2, 1):
        if limit / parts >= least:
            return limit / parts
    decade = 10.0 ** math.floor(math.log10(least / limit))
    return limit * next(n * decade for n in (1, 2, 5, 10) if limit * n * decade >= least)


def histogram(
    values: np.ndarray, limit: float, step: float, *, over: bool
) -> tuple[int, np.ndarray]:
    """Number of the first bin, and the counts: bin k reaches from limit + k step to the next.

    The limit is an edge. Exactly at it passes: it is counted below with a maximum (`over`), above
    with a minimum.
    """
    if not len(values):
        return 0, np.zeros(0, dtype=np.int64)
    bins = _bins((values - limit) / step, over=over)
    # no rounding carries an event over the limit
    above = values > limit if over else values >= limit
    np.maximum(bins, 0, out=bins, where=above)
    np.minimum(bins, -1, out=bins, where=~above)
    first = int(bins.min())
    bins -= first
    return first, np.bincount(bins)


def _bins(places: np.ndarray, *, over: bool) -> np.ndarray:
    """The numbers of the bins; in place, as a large backlog's copies would count."""
    whole = np.rint(places)
    # 0.58 is an edge, though its last binary digits may say a hair less
    gap = places - whole
    np.copyto(places, whole, where=np.abs(gap, out=gap) < 1e-9)
    del whole, gap
    if over:
        np.ceil(places, out=places)
        places -= 1
    else:
        np.floor(places, out=places)
    return places.astype(np.int64)


def passing_at(frame: pd.DataFrame, ages: list[float], confidences: list[float]) -> np.ndarray:
    """Events that would pass, by maximum age (rows, minutes) and minimum confidence (columns)."""
    failed = frame["failed"].cat
    is_other = failed.categories.str.contains("missing|invalid|allowlisted")
    others = np.append(is_other, False)[failed.codes]
    confidence = frame["confidence"].to_numpy()
    part = ~others & ~np.isnan(confidence)
    age_min = frame["age_sec"].to_numpy()[part] / 60
    rows = np.searchsorted(np.array(ages), age_min, side="left")
    columns = np.searchsorted(np.array(confidences), confidence[part], side="right") - 1
    grid = np.zeros((len(ages) + 1, len(confidences)), dtype=np.int64)
    fits = columns >= 0
    np.add.at(grid, (rows[fits], columns[fits]), 1)
    passing: np.ndarray = grid[:-1].cumsum(axis=0)[:, ::-1].cumsum(axis=1)[:, ::-1]
    return passing


def what_if_limits(policy: Policy) -> tuple[list[float], list[float]]:
    """Limits around the policy's own, which are among them."""
    factors = (1 / 6, 1 / 3, 1 / 2, 1, 2, 4, 8, 24, 48)
    ages = sorted(
        {round(policy.max_age_min * f, 4) if f != 1 else policy.max_age_min for f in factors}
    )
    steps = {round(0.1 * n, 1) for n in range(10)} | {policy.min_conf}
    return ages, sorted(steps)


def pace_bins(span_ms: int, rate: float | None) -> tuple[float, int]:
    """Width of a bar in seconds, and the milliseconds of ids that it counts."""
    if rate is None or rate >= 1:
        # whole seconds: a bar of 1.7 s could show more than the throttle where none was broken
        width = max(1, math.ceil(span_ms / 1000 / MAX_BINS))
        return width, width * 1000
    # ten events' worth; ids are whole milliseconds, so each gap can look 1 ms too short
    tens = max(1, math.ceil(span_ms / 1000 * rate / 10 / MAX_BINS))
    return tens * 10 / rate, int(tens * 10_000 / rate) - 10 * tens


# what an event has but its age, confidence and symbol
_READABLE, _INVALID, _MISSING = range(3)


class Binned:
    """A backlog by age, confidence and symbol, so that other limits need no second look at it.

    Exact at the limits given (ages in minutes, confidences 0 to 1; ascending) and at no others.
    """

    def __init__(self, frame: pd.DataFrame, ages: Sequence[float], confidences: Sequence[float]):
        self.ages, self.confidences = list(ages), list(confidences)
        symbols = frame["symbol"].astype("category").cat
        self.symbols: list[str] = [str(name) for name in symbols.categories]
        self._code_of = {name: code for code, name in enumerate(self.symbols)}
        age_us = np.rint(frame["age_sec"].to_numpy() * 1e6)
        limits_us = np.array([round(age * 60_000_000) for age in self.ages])
        # bin k of the ages: too old for limit k - 1, and not for limit k
        age = np.searchsorted(limits_us, age_us, side="left")
        age[np.isnan(age_us)] = 0
        # bin k of the confidences: enough for limit k - 1, and not for limit k
        values = frame["confidence"].to_numpy()
        confidence = np.searchsorted(np.array(self.confidences), values, side="right")
        invalid = (frame["invalid"] != "").to_numpy() | np.isnan(age_us)
        kind = np.where(frame["missing"].to_numpy(), _MISSING, np.where(invalid, _INVALID, 0))
        shape = (len(self.symbols) + 1, len(self.ages) + 1, len(self.confidences) + 1, 3)
        code = symbols.codes.to_numpy().astype(np.int64) + 1  # 0: no symbol
        whole = np.ravel_multi_index((code, age, confidence, kind), shape)
        groups, self._events = np.unique(whole, return_counts=True)
        self._symbol, self._age, self._confidence, self._kind = np.unravel_index(groups, shape)

    def symbols_by_count(self) -> list[str]:
        """The symbols, the most frequent first."""
        counts = np.bincount(self._symbol, self._events, minlength=len(self.symbols) + 1)[1:]
        return [self.symbols[k] for k in np.argsort(-counts, kind="stable")]

    def counts(self, age: int, confidence: int, allowed: Iterable[str] | None) -> dict[str, int]:
        """Events by action at limit number `age` and `confidence`; `allowed` None: any symbol."""
        tests = (
            self._kind == _MISSING,
            self._age > age,
            self._kind == _INVALID,
            ~self._is_allowed(allowed),
            self._confidence <= confidence,
        )
        fate = np.select(tests, range(len(tests)), len(tests))
        events = np.bincount(fate, self._events, minlength=len(ACTIONS))
        return {action: int(n) for action, n in zip(ACTIONS, events, strict=True)}

    def passing(self, allowed: Iterable[str] | None) -> np.ndarray:
        """Events that would pass, by limit of age (rows) and of confidence (columns)."""
        rows, columns = len(self.ages), len(self.confidences)
        fits = (self._kind == _READABLE) & self._is_allowed(allowed)
        fits &= (self._age < rows) & (self._confidence > 0)
        cells = self._age[fits] * columns + self._confidence[fits] - 1
        grid = np.bincount(cells, self._events[fits], minlength=rows * columns)
        grid = grid.astype(np.int64).reshape(rows, columns)
        passing: np.ndarray = grid.cumsum(axis=0)[:, ::-1].cumsum(axis=1)[:, ::-1]
        return passing

    def _is_allowed(self, allowed: Iterable[str] | None) -> np.ndarray:
        is_allowed = np.full(len(self.symbols) + 1, allowed is None)
        for name in allowed or ():
            if name in self._code_of:
                is_allowed[self._code_of[name] + 1] = True
        found: np.ndarray = is_allowed[self._symbol]
        return found
