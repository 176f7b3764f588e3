"""Raw entries of the tests, and what the decoder makes of one."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import reference

from drainkit.core.events import (
    Decoder,
    Events,
)
from drainkit.core.timestamps import NO_TIME, TIME_SOURCES
from drainkit.core.values import INVALID_REASONS
from drainkit.settings import Fields

ID_MS = 1_766_605_798_664
ID = b"%d-0" % ID_MS
ISO = "2025-12-24T19:49:58.664000+00:00"  # the same moment
GOOD = {"symbol": "BTCUSDT", "side": "BUY", "confidence": 0.75, "timestamp": ISO, "source": "ai"}


def entry(fields: dict[str, Any] | None, entry_id: bytes = ID) -> list[Any]:
    """A raw entry; texts and numbers as Redis would answer them."""
    if fields is None:
        return [entry_id, None]
    flat = [part for pair in fields.items() for part in pair]
    return [entry_id, [x if isinstance(x, bytes) else str(x).encode() for x in flat]]


def payload(content: Any, **flat: Any) -> list[Any]:
    return entry({**flat, "payload": json.dumps(content)})


def one(raw: list[Any], fields: Fields | None = None) -> reference.Event:
    return as_reference(Decoder(fields).decode([raw]), 0)


def why(raw: list[Any], fields: Fields | None = None) -> str:
    return INVALID_REASONS[Decoder(fields).decode([raw]).invalid[0]]


def as_reference(decoded: Events, row: int) -> reference.Event:
    """One row in the reference's terms."""
    moment = int(decoded.event_time_us[row])
    confidence = float(decoded.confidence[row])

    def text(code: np.ndarray, words: list[str]) -> str | None:
        return words[code[row]] if code[row] >= 0 else None

    return reference.Event(
        time_us=None if moment == NO_TIME else moment,
        time_source=TIME_SOURCES[decoded.time_source[row]],
        symbol=decoded.symbol(row),
        side=text(decoded.side_code, decoded.sides),
        source=text(decoded.source_code, decoded.sources),
        confidence=None if math.isnan(confidence) else confidence,
        valid=not decoded.invalid[row],
        missing=bool(decoded.missing[row]),
    )
