"""Entry ids as Redis orders them, and the bounds that a user sets: an entry id, or a time."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

FIRST_ID = "0-0"
LAST_ID = "18446744073709551615-18446744073709551615"
_LARGEST = 2**64 - 1
_ID = re.compile(r"(\d{1,20})-(\d{1,20})", re.ASCII)
_AGE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([mhd])", re.ASCII)
_UNITS_US = {"m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def id_key(entry_id: str | bytes) -> tuple[int, int]:
    """An id as a pair of integers; as texts `5-10` would come before `5-9`."""
    ms, _, seq = (entry_id.decode() if isinstance(entry_id, bytes) else entry_id).partition("-")
    return int(ms), int(seq or 0)


def next_id(entry_id: str) -> str:
    """The smallest id after `entry_id`: inclusive ranges work on every version and client."""
    ms, seq = id_key(entry_id)
    return f"{ms}-{seq + 1}" if seq < _LARGEST else f"{ms + 1}-0"


def previous_id(entry_id: str) -> str:
    """The largest id before `entry_id`; that of 0-0 is 0-0."""
    ms, seq = id_key(entry_id)
    if seq:
        return f"{ms}-{seq - 1}"
    return f"{ms - 1}-{_LARGEST}" if ms else FIRST_ID


def is_id(text: str) -> bool:
    """Whether a text is a whole entry id: milliseconds, a dash, a number."""
    match = _ID.fullmatch(text)
    return match is not None and max(int(match[1]), int(match[2])) <= _LARGEST


def bound(value: Any) -> str:
    """An entry id, an age, or an ISO 8601 time (no offset means UTC) as text; else ValueError.

    Digits alone are refused: 20251224 is a date to ISO 8601, and an id to Redis.
    """
    if isinstance(value, str) and is_id(value):
        ms, seq = id_key(value)
        return f"{ms}-{seq}"
    if isinstance(value, str) and _AGE.fullmatch(value):
        return value
    try:
        if isinstance(value, str) and value.isdigit():
            raise ValueError
        time = value if isinstance(value, dt.datetime) else dt.datetime.fromisoformat(value)
        time = time.replace(tzinfo=dt.UTC) if time.tzinfo is None else time.astimezone(dt.UTC)
        if time < _EPOCH:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            "must be an ISO 8601 time such as 2025-12-24T19:49:58+00:00, an entry id such as "
            "1766605798664-0, or an age such as 30m, 2h or 1d"
        ) from None
    return time.isoformat()


def at_moment(bound: str, now_us: int) -> str:
    """The bound with an age (30m, 2h, 1d ago) made the time that it is at this moment."""
    if (age := _AGE.fullmatch(bound)) is None:
        return bound
    us = max(0, now_us - round(float(age[1]) * _UNITS_US[age[2]]))
    return (_EPOCH + dt.timedelta(microseconds=us)).isoformat()


def lies_after(first: str, last: str) -> bool:
    """Whether `--from` and `--until`, no ages any more, leave nothing between them."""
    return id_key(first_of(first)) > id_key(last_of(last))


def last_of(bound: str) -> str:
    """The last id that lies within `--until`: the id, or the last of the time's millisecond.

    So a time T holds every entry whose id's milliseconds are at most those of T.
    """
    return first_of(bound, _LARGEST)


def first_of(bound: str, seq: int = 0) -> str:
    """The first id that lies within `--from`: the id, or the first of the time's millisecond.

    So a time T holds every entry whose id's milliseconds are at least those of T.
    """
    if _ID.fullmatch(bound):
        return bound
    return f"{(dt.datetime.fromisoformat(bound) - _EPOCH) // dt.timedelta(milliseconds=1)}-{seq}"
