"""Bins for the figures: so their size does not grow with the backlog."""

from __future__ import annotations

import math

import numpy as np

from ..core.policy import Policy

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
