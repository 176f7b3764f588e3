"""Times: of entry ids, and of timestamps in every form that the contract (section 3) allows.

Pure; whole columns at once where the form is usual, one by one where it is not.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np

NO_TIME = np.iinfo(np.int64).min
TIME_SOURCES = ("timestamp", "entry_id", "unknown")
EARLIEST_ID_MS = 1_262_304_000_000  # 2010-01-01: smaller ids are plainly no times
LATEST_ID_MS = 253_402_300_799_999  # the end of year 9999: datetime knows no later time
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_US = dt.timedelta(microseconds=1)
_EARLIEST_US = (dt.datetime(1, 1, 1, tzinfo=dt.UTC) - EPOCH) // _US
_LATEST_US = LATEST_ID_MS * 1000 + 999
_WITH_SECONDS = re.compile(r"\d\d:?\d\d:?\d\d$", re.ASCII)
_EPOCH_TEXT = re.compile(r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d{1,3})?", re.ASCII)
# the usual forms of ISO 8601 by their length, each with where its offset begins; 0 is a digit
_ISO_SHAPES = {
    end + len(offset): (b"0000-00-00T00:00:00.000000"[:end] + offset, end)
    for end in (19, 23, 26)
    for offset in (b"Z", b"+00:00")
}
# Epoch seconds, ms, us and ns lie a factor of 1,000 apart and today's seconds are 1.8e9, so they
# cannot be mistaken for one another: (magnitude below which it is that unit, ns in the unit).
_UNITS = ((10**11, 10**9), (10**14, 10**6), (10**17, 10**3), (10**20, 1))


def as_text(value: Any) -> str | None:
    """The value as text; None for what is no text, or no UTF-8."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return value if isinstance(value, str) else None


def id_times_us(ids: list[bytes]) -> np.ndarray:
    """The ids' milliseconds as microseconds (int64), NO_TIME for ids that are plainly no times."""
    # milliseconds have 13 digits from 2001 to 2286; other ids are read one by one
    chars = np.array(ids, dtype="S14").view(np.uint8).reshape(-1, 14)
    digits = chars[:, :13] - np.uint8(ord("0"))
    fits = (digits <= 9).all(axis=1) & (chars[:, 13] == ord("-"))
    # as floats, which are exact below 2**53 and multiplied many times faster than integers
    times = (digits @ 10.0 ** np.arange(12, -1, -1)).astype(np.int64) * 1000
    for row in np.flatnonzero(~fits).tolist():
        ms = int(ids[row].partition(b"-")[0])
        times[row] = ms * 1000 if ms <= LATEST_ID_MS else NO_TIME
    times[times < EARLIEST_ID_MS * 1000] = NO_TIME
    return times


def times_us(values: Sequence[Any]) -> np.ndarray:
    """Microseconds since the epoch (int64), NO_TIME where there is no readable timestamp.

    The usual forms of ISO 8601, and whole numbers, are read as columns, all else one by one.
    """
    times = np.full(len(values), NO_TIME)
    kinds = [*map(type, values)]
    if int in kinds:
        whole = [
            n if k is int and 0 <= n < 10**17 else -1 for k, n in zip(kinds, values, strict=True)
        ]
        numbers = np.array(whole)
        scales = np.where(numbers < 10**11, 10**6, np.where(numbers < 10**14, 1000, 1))
        times = np.where(numbers >= 0, numbers * scales, NO_TIME)
    # each character a byte: what is not ASCII becomes a question mark
    texts = [
        n if k is bytes else n.encode("ascii", "replace") if k is str else b""
        for k, n in zip(kinds, values, strict=True)
    ]
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    for size in _ISO_SHAPES.keys() & {*sizes.tolist()}:
        rows = np.flatnonzero(sizes == size)
        chosen = texts if len(rows) == len(texts) else [texts[row] for row in rows.tolist()]
        times[rows] = _iso_times_us(b"".join(chosen), *_ISO_SHAPES[size])
    for row in np.flatnonzero(times == NO_TIME).tolist():
        if kinds[row] in (bytes, str, int, float) and (time := _time_us(values[row])) is not None:
            times[row] = time
    return times


def _iso_times_us(texts: bytes, shape: bytes, end: int) -> np.ndarray:
    """Texts, each as long as `shape`, as times (int64, us); NO_TIME for others than `shape`.

    Up to `end` 0 stands for a digit. If one of them is no time of the calendar, all are left to be
    read one by one.
    """
    form = np.frombuffer(shape, dtype=np.uint8)
    is_digit = (form == ord("0")) & (np.arange(len(shape)) < end)
    chars = np.frombuffer(texts, dtype=np.uint8).reshape(-1, len(shape))
    fits = ((chars - np.uint8(ord("0")))[:, is_digit] <= 9).all(axis=1)
    fits &= (chars[:, ~is_digit] == form[~is_digit]).all(axis=1)
    times = np.full(len(chars), NO_TIME)
    plain = np.ascontiguousarray(chars[fits, :end]).view(f"S{end}").ravel()
    try:
        read = plain.astype("datetime64[us]").astype(np.int64)
    except ValueError:
        return times
    times[fits] = np.where(read >= _EARLIEST_US, read, NO_TIME)  # there is no year 0
    return times


def _time_us(value: float | str | bytes) -> int | None:
    """Microseconds since the epoch, rounded down; None where there is no readable timestamp."""
    # the shortest text that gives this number, so that 1735069798.664912 loses nothing
    text = as_text(value) if isinstance(value, str | bytes) else repr(value)
    if text is None or len(text) > 64 or not text.isascii():
        return None
    if _EPOCH_TEXT.fullmatch(text):
        above, below = Decimal(text).as_integer_ratio()
        scales = (scale for limit, scale in _UNITS if abs(above) < limit * below)
        micros = above * next(scales, 10**30) // (below * 1000)  # none: beyond the calendar
    else:
        before, mark, _ = text.replace(",", ".").partition(".")
        if mark and not _WITH_SECONDS.search(before):
            return None  # fromisoformat takes 19:20.5 for half a second after 19:20
        try:
            time = dt.datetime.fromisoformat(text.upper())  # RFC 3339 allows t and z
            micros = ((time if time.tzinfo else time.replace(tzinfo=dt.UTC)) - EPOCH) // _US
        except (ValueError, OverflowError):
            return None
    return micros if _EARLIEST_US <= micros <= _LATEST_US else None


def iso(time_us: int) -> str:
    """Microseconds since the epoch as ISO 8601 UTC with microseconds and offset."""
    return (EPOCH + dt.timedelta(microseconds=time_us)).isoformat(timespec="microseconds")
