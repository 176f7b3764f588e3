"""Bins for the figures: so their size does not grow with the backlog."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

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
    places = (values - limit) / step
    whole = np.rint(places)
    # 0.58 is an edge, though its last binary digits may say a hair less
    places = np.where(np.abs(places - whole) < 1e-9, whole, places)
    bins = (np.ceil(places) - 1 if over else np.floor(places)).astype(np.int64)
    # no rounding carries an event over the limit
    above = values > limit if over else values >= limit
    bins = np.where(above, np.maximum(bins, 0), np.minimum(bins, -1))
    first = int(bins.min())
    return first, np.bincount(bins - first)


def passing_at(frame: pd.DataFrame, ages: list[float], confidences: list[float]) -> np.ndarray:
    """Events that would pass, by maximum age (rows, minutes) and minimum confidence (columns)."""
    failed = frame["failed"].astype(str)
    others = failed.str.contains("missing|invalid|allowlisted").to_numpy()
    part = frame[~others & frame["confidence"].notna().to_numpy()]
    rows = np.searchsorted(np.array(ages), part["age_sec"].to_numpy() / 60, side="left")
    columns = (
        np.searchsorted(np.array(confidences), part["confidence"].to_numpy(), side="right") - 1
    )
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


def busiest_second(audit_ms: np.ndarray) -> int:
    """The most records in any half-open window of one second, by the audit's ids (sorted)."""
    if not len(audit_ms):
        return 0
    first = np.searchsorted(audit_ms, audit_ms - 999, side="left")
    return int((np.arange(len(audit_ms)) - first).max()) + 1
