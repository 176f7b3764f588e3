"""Times: of entry ids, and of timestamps in every form that the contract (section 3) allows.

Pure; whole columns at once where the form is usual, one by one where it is not.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from decimal import Decimal
from itertools import repeat
from typing import Any

import numpy as np

NO_TIME = np.iinfo(np.int64).min
TIME_SOURCES = ("timestamp", "entry_id", "unknown")
EARLIEST_ID_MS = 1_262_304_000_000  # 2010-01-01: smaller ids are plainly no times
LATEST_ID_MS = 253_402_300_799_999  # the end of year 9999: datetime knows no later time
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_EARLIEST_US = (dt.datetime(1, 1, 1, tzinfo=dt.UTC) - EPOCH) // dt.timedelta(microseconds=1)
_LATEST_US = LATEST_ID_MS * 1000 + 999
_WITH_SECONDS = re.compile(r"\d\d:?\d\d:?\d\d$", re.ASCII)
_EPOCH_TEXT = re.compile(r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d{1,3})?", re.ASCII)
# 0 stands for a digit; the part from the sign on is literal
_ISO_SHAPES = tuple(
    b"0000-00-00T00:00:00" + fraction + offset
    for fraction in (b"", b".000", b".000000")
    for offset in (b"Z", b"+00:00")
)
_MAX_SHAPE = max(map(len, _ISO_SHAPES))
_NEVER, _STR, _BYTES, _INT, _FLOAT = range(5)
_KINDS = {str: _STR, bytes: _BYTES, int: _INT, float: _FLOAT}  # of no other kind is a time


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

    The usual forms of ISO 8601 are read as whole columns, everything else one by one.
    """
    times = np.full(len(values), NO_TIME, dtype=np.int64)
    kinds = np.fromiter(map(_KINDS.get, map(type, values), repeat(_NEVER)), np.int8, len(values))
    for kind in (_STR, _BYTES):
        rows = np.flatnonzero(kinds == kind)
        texts = [*map(values.__getitem__, rows.tolist())]
        sizes = np.fromiter(map(len, texts), np.int64, len(texts))
        present = np.bincount(np.minimum(sizes, _MAX_SHAPE + 1), minlength=_MAX_SHAPE + 2)
        for shape in _ISO_SHAPES:
            if present[len(shape)]:
                of_size = np.flatnonzero(sizes == len(shape))
                is_all = len(of_size) == len(texts)
                chosen = texts if is_all else [texts[i] for i in of_size.tolist()]
                # each character a byte: what is not ASCII becomes a question mark
                whole = (
                    "".join(chosen).encode("ascii", "replace") if kind == _STR else b"".join(chosen)
                )
                times[rows[of_size]] = _iso_times_us(whole, shape)
    rows = np.flatnonzero(kinds == _INT)
    numbers = [values[row] for row in rows.tolist()]
    milliseconds = np.array([n if 10**11 <= n < 10**14 else 0 for n in numbers], dtype=np.int64)
    is_ms = milliseconds > 0
    times[rows[is_ms]] = milliseconds[is_ms] * 1000
    for row in np.flatnonzero((times == NO_TIME) & (kinds != _NEVER)).tolist():
        time = _time_us(values[row])
        if time is not None:
            times[row] = time
    return times


def _iso_times_us(texts: bytes, shape: bytes) -> np.ndarray:
    """Texts, each as long as `shape`, as times (int64, us); NO_TIME for others than `shape`.

    In `shape` 0 stands for a digit, up to the offset. If one of them is no time of the calendar,
    all are left to be read one by one.
    """
    form, end = np.frombuffer(shape, dtype=np.uint8), 23 if b"." in shape else 19
    end += 3 * shape.count(b".000000")
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


def _time_us(value: Any) -> int | None:
    """Microseconds since the epoch; None where there is no readable timestamp."""
    if type(value) is int:
        return _epoch_us(value, 1)
    # the shortest text that gives this number, so that 1735069798.664912 loses nothing
    text = repr(value) if type(value) is float else as_text(value)
    if text is None or len(text) > 64 or not text.isascii():
        return None
    if _EPOCH_TEXT.fullmatch(text):
        return _epoch_us(*Decimal(text).as_integer_ratio())
    before, mark, _ = text.replace(",", ".").partition(".")
    if mark and not _WITH_SECONDS.search(before):
        return None  # fromisoformat takes 19:20.5 for half a second after 19:20
    try:
        time = dt.datetime.fromisoformat(text.upper())  # RFC 3339 allows t and z
        delta = (time if time.tzinfo else time.replace(tzinfo=dt.UTC)) - EPOCH
    except (ValueError, OverflowError):
        return None
    return _in_calendar((delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds)


def _in_calendar(micros: int) -> int | None:
    return micros if _EARLIEST_US <= micros <= _LATEST_US else None


def _epoch_us(numerator: int, denominator: int) -> int | None:
    """The quotient as s, ms, us or ns by its magnitude, in microseconds rounded down.

    The units lie a factor of 1,000 apart and today's seconds are 1.8e9, so they cannot be
    mistaken for one another.
    """
    for limit, scale in _MAGNITUDES:
        if abs(numerator) < limit * denominator:
            return _in_calendar(numerator * scale // (denominator * 1000))
    return None


# (magnitude below which it is that unit, thousandths of a microsecond in the unit)
_MAGNITUDES = ((10**11, 10**9), (10**14, 10**6), (10**17, 10**3), (10**20, 1))


def iso(time_us: int) -> str:
    """Microseconds since the epoch as ISO 8601 UTC with microseconds and offset."""
    return (EPOCH + dt.timedelta(microseconds=time_us)).isoformat(timespec="microseconds")
