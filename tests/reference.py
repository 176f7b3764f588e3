"""The contract's section 3 once more, one entry at a time and without any shortcut.

What the fast decoder is compared with: written from the contract, it shares no code with
drainkit.events and uses other means (json, Decimal, Fraction, a loop over characters).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

ABSENT = object()
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NAMES = {
    "symbol": ["symbol"],
    "side": ["side", "action", "direction"],
    "confidence": ["confidence"],
    "timestamp": ["timestamp"],
    "source": ["source"],
}
DIGITS = "0123456789"


@dataclass(frozen=True)
class Event:
    """One event: None where a value is absent or not valid."""

    time_us: int | None
    time_source: str
    symbol: str | None
    side: str | None
    source: str | None
    confidence: float | None
    valid: bool
    missing: bool


class NoObjectError(ValueError):
    """What should be a JSON object is not one that may be read."""


def event(entry: Sequence[Any]) -> Event:
    """Decode one raw entry."""
    entry_id, fields = entry
    id_us = id_time(entry_id)
    if fields is None:
        where = "unknown" if id_us is None else "entry_id"
        return Event(id_us, where, None, None, None, None, valid=True, missing=True)
    values, valid = look_up(fields)
    symbol, confidence = symbol_of(values["symbol"]), confidence_of(values["confidence"])
    stamp = timestamp_of(values["timestamp"])
    known = [time for time in (stamp, id_us) if time is not None]
    time_us = min(known, default=None)
    if stamp is not None and time_us == stamp:
        where = "timestamp"
    else:
        where = "unknown" if time_us is None else "entry_id"
    ahead = stamp is not None and id_us is not None and stamp - id_us > 60 * 10**6
    valid = (
        valid
        and symbol is not None
        and confidence is not None
        and time_us is not None
        and not ahead
    )
    side, source = (text_of(values[name]) or None for name in ("side", "source"))
    return Event(time_us, where, symbol, side, source, confidence, valid=valid, missing=False)


def look_up(fields: Sequence[bytes]) -> tuple[dict[str, Any], bool]:
    """Each value from the first place that has it, and whether all that was read could be."""
    flat: dict[bytes, Any] = {}
    for name, value in zip(fields[::2], fields[1::2], strict=True):
        flat.setdefault(name, value)
    values = dict.fromkeys(NAMES, ABSENT)

    def take(place: dict[Any, Any], encode: bool) -> None:
        for value, names in NAMES.items():
            for name in names:
                key = name.encode() if encode else name
                if values[value] is ABSENT and key in place:
                    values[value] = place[key]

    take(flat, True)
    for container in (b"payload", b"data"):
        if container in flat and ABSENT in values.values():
            try:
                take(json_object(flat[container]), False)
            except NoObjectError:
                return values, False
    return values, True


def json_object(raw: bytes) -> dict[str, Any]:
    """The object in `raw`, with every strictness of RFC 8259 and the contract's bounds."""
    if len(raw) > 1024 * 1024:
        raise NoObjectError
    try:
        text = raw.decode("utf-8", "strict")
        if depth(text) > 64:
            raise NoObjectError
        found = json.loads(
            text, parse_constant=lambda _: 1 / 0, parse_int=integer, object_pairs_hook=pairs
        )
    except (ValueError, ZeroDivisionError) as error:
        raise NoObjectError from error
    if not isinstance(found, dict):
        raise NoObjectError
    return found


def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
    """The last of equal names counts; a lone surrogate is an error, in an earlier one, too."""
    json.dumps(found, ensure_ascii=False).encode()
    return dict(found)


def integer(text: str) -> int | float:
    return int(text) if len(text) < 100 else math.inf


def depth(text: str) -> int:
    now = most = 0
    in_text = escaped = False
    for char in text:
        if in_text:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                in_text = False
        elif char == '"':
            in_text = True
        elif char in "{[":
            now += 1
            most = max(most, now)
        elif char in "}]":
            now -= 1
    return most


def text_of(value: Any) -> str | None:
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8", "strict")
        except UnicodeDecodeError:
            return None
    return value if isinstance(value, str) else None


def symbol_of(value: Any) -> str | None:
    text = text_of(value)
    fine = text is not None and 1 <= len(text) <= 64 and all(33 <= ord(c) <= 126 for c in text)
    return text if fine else None


def is_decimal(text: str) -> bool:
    """Plain ASCII digits with at most one point, and at least one digit."""
    bare = text.replace(".", "", 1)
    return bool(bare) and all(char in DIGITS for char in bare)


def confidence_of(value: Any) -> float | None:
    if isinstance(value, bool) or value is ABSENT:
        return None
    if isinstance(value, int | float):
        return float(value) if 0 <= value <= 1 else None
    text = text_of(value)
    if text is None or len(text) > 400 or not is_decimal(text):
        return None
    number = float(Fraction(Decimal(text)))
    return number if Fraction(Decimal(text)) <= 1 or number == 1.0 else None


def id_time(entry_id: bytes) -> int | None:
    ms = int(entry_id.split(b"-")[0])
    first = (datetime(2010, 1, 1, tzinfo=UTC) - EPOCH) // timedelta(milliseconds=1)
    last = (datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC) - EPOCH) // timedelta(milliseconds=1)
    return ms * 1000 if first <= ms <= last + 999 else None


def timestamp_of(value: Any) -> int | None:
    if isinstance(value, bool) or value is ABSENT:
        return None
    if isinstance(value, int):
        return epoch(Fraction(value))
    if isinstance(value, float):
        return epoch(Fraction(Decimal(repr(value)))) if math.isfinite(value) else None
    text = text_of(value)
    if text is None or len(text) > 64 or not text.isascii():
        return None
    unsigned = text[1:] if text[:1] in ("+", "-") else text
    if is_decimal(unsigned) and unsigned[0] != ".":
        return epoch(Fraction(Decimal(text)))
    time, point, _ = text.replace(",", ".").partition(".")
    if point and not re.search("[0-9]{2}(:?)[0-9]{2}(:?)[0-9]{2}$", time):
        return None  # a fraction of an hour or a minute, which Python takes for one of a second
    try:
        moment = datetime.fromisoformat(text.upper())
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return in_calendar((moment - EPOCH) // timedelta(microseconds=1))
    except (ValueError, OverflowError):
        return None


def epoch(number: Fraction) -> int | None:
    size = abs(number)
    for limit, per_second in ((10**11, 1), (10**14, 10**3), (10**17, 10**6), (10**20, 10**9)):
        if size < limit:
            return in_calendar(math.floor(number * 10**6 / per_second))
    return None


def in_calendar(time_us: int) -> int | None:
    """`time_us` if it lies in the years 1 to 9999, UTC."""
    first = (datetime(1, 1, 1, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
    last = (datetime.max.replace(tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
    return time_us if first <= time_us <= last else None
