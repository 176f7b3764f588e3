"""The contract's section 3 once more, one entry at a time and without any shortcut.

What the fast decoder is compared with: written from the contract, it shares no code with
drainkit.events and uses other means (json, Decimal, Fraction).
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
from itertools import accumulate
from typing import Any

ABSENT = object()
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# for each value its names by rank: whatever is found of one rank goes before all of the next
NAMES = {
    "symbol": [["symbol"]],
    "side": [["side", "action", "direction"]],
    "confidence": [["confidence"]],
    "source": [["source"]],
}
TIMES = ["timestamp", "ts", "ts_epoch", "time", "event_time", "created_at", "generated_at",
         "timestamp_ms"]  # fmt: skip
Names = dict[str, list[list[str]]]
# plain ASCII digits with at most one point, at least one digit, and maybe an exponent
DECIMAL = re.compile(
    r"(?P<digits>[0-9]+\.?[0-9]*|\.[0-9]+)([eE](?P<exponent>[+-]?[0-9]+))?", re.ASCII
)


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


def event(entry: Sequence[Any], names: Names = NAMES, times: Sequence[str] = TIMES) -> Event:
    """Decode one raw entry."""
    entry_id, fields = entry
    id_us = id_time(entry_id)
    if fields is None:
        where = "unknown" if id_us is None else "entry_id"
        return Event(id_us, where, None, None, None, None, valid=True, missing=True)
    values, stamps, valid = look_up(fields, names, times)
    symbol, confidence = symbol_of(values["symbol"]), confidence_of(values["confidence"])
    stamp = min((t for t in map(timestamp_of, stamps) if t is not None), default=None)
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


def look_up(
    fields: Sequence[bytes], names: Names, times: Sequence[str]
) -> tuple[dict[str, Any], list[Any], bool]:
    """The best value of each, all timestamps, and whether all could be read that had to be."""
    flat: dict[str, Any] = {}
    for name, value in zip(fields[::2], fields[1::2], strict=True):
        flat.setdefault(name.decode("utf-8", "backslashreplace"), value)
    best: dict[str, tuple[int, Any]] = dict.fromkeys(names, (99, ABSENT))
    stamps = [flat[name] for name in times if name in flat]

    def take(place: dict[str, Any], root: str | None) -> None:
        for value, ranks in names.items():
            for rank, alternatives in enumerate(ranks):
                for name in alternatives:
                    found = at(place, name, root)
                    if found is not ABSENT and rank < best[value][0]:
                        best[value] = (rank, found)

    take(flat, None)
    all_names = [name for ranks in names.values() for rank in ranks for name in rank]
    dotted = [name.split(".")[0] for name in [*all_names, *times] if "." in name]
    for root in dict.fromkeys(["payload", "data", *dotted]):
        if root not in flat:
            continue
        needed = any(
            rank < best[value][0] and is_in(name, root)
            for value, ranks in names.items()
            for rank, alternatives in enumerate(ranks)
            for name in alternatives
        )
        if not needed and not any(is_in(name, root) for name in times):
            continue
        try:
            place = json_object(flat[root])
        except ValueError:
            # what might be an object might hold a time; anything else is nobody's business
            if needed or flat[root].lstrip(b" \t\n\r\x0b\x0c").startswith(b"{"):
                return {name: value for name, (_, value) in best.items()}, stamps, False
            continue
        take(place, root)
        stamps += [at(place, name, root) for name in times]
    return {name: value for name, (_, value) in best.items()}, stamps, True


def is_in(name: str, root: str) -> bool:
    """Whether a name may be found in the JSON field `root`."""
    return name.startswith(root + ".") if "." in name else root in ("payload", "data")


def at(place: Any, name: str, root: str | None) -> Any:
    """The value of a name: of a flat field (no root), or within the JSON object of `root`."""
    if root is None:
        return place.get(name, ABSENT)
    if not is_in(name, root):
        return ABSENT
    path = name.split(".")[1:] if "." in name else [name]
    for key in path:
        if not isinstance(place, dict) or key not in place:
            return ABSENT
        place = place[key]
    return place


def json_object(raw: bytes) -> dict[str, Any]:
    """The object in `raw`, with every strictness of RFC 8259 and the contract's bounds.

    Raises ValueError for what is none that may be read.
    """
    if len(raw) > 1024 * 1024 or depth(text := raw.decode("utf-8", "strict")) > 64:
        raise ValueError
    # int() takes no NaN and no Infinity
    found = json.loads(text, parse_constant=int, parse_int=integer, object_pairs_hook=pairs)
    if not isinstance(found, dict):
        raise ValueError
    return found


def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
    """The last of equal names counts; a lone surrogate is an error, in an earlier one, too."""
    json.dumps(found, ensure_ascii=False).encode()
    return dict(found)


def integer(text: str) -> int | float:
    return int(text) if len(text) < 100 else math.inf


def depth(text: str) -> int:
    """Of the brackets outside of texts."""
    brackets = re.findall(r"[\[{\]}]", re.sub(r'"(?:\\.|[^"\\])*"', "", text, flags=re.DOTALL))
    return max(accumulate(1 if char in "[{" else -1 for char in brackets), default=0)


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


def confidence_of(value: Any) -> float | None:
    if isinstance(value, bool) or value is ABSENT:
        return None
    if isinstance(value, int | float):
        return float(value) if 0 <= value <= 1 else None
    text = text_of(value)
    if text is None or len(text) > 400 or not (found := DECIMAL.fullmatch(text)):
        return None
    exponent = int(found["exponent"] or 0)
    if abs(exponent) > 1000:  # beyond any float, whatever the (at most 400) digits
        is_zero = not any(char in "123456789" for char in found["digits"])
        return 0.0 if is_zero or exponent < 0 else None
    exact = Fraction(Decimal(text))
    return float(exact) if exact <= 1 or float(exact) == 1.0 else None


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
    if unsigned[:1] != "." and (found := DECIMAL.fullmatch(unsigned)):
        is_far = len((found["exponent"] or "").lstrip("+-")) > 3
        return None if is_far else epoch(Fraction(Decimal(text)))
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
