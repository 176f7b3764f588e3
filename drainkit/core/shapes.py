"""Why most events of a sample cannot be read, which fields there are, and which may be meant.

What a field could stand for is tried with the decoder itself, so a proposal is never one that it
would not take.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UsageError
from ..safe import one_line
from ..settings import USUAL_FIELDS, Fields, build
from .events import Decoder, Events
from .timestamps import EARLIEST_ID_MS, TIME_SOURCES, as_text
from .values import INVALID_REASONS, MAX_CONTAINER_BYTES, RawEntry

SAMPLE = 100  # entries
MAX_NAMES, MAX_LEVELS = 60, 6
ENOUGH = 0.9  # of the entries must have a value for its field to be proposed
#: What producers call a value where they do not call it as usual.
_HINTS = {
    "symbol": "ticker symbol sym instrument pair market asset coin product security contract",
    "confidence": "confidence conf score probability prob certainty strength likelihood weight",
    "timestamp": "timestamp ts time date datetime epoch at when created emitted sent occurred",
}
_TICKER = re.compile(r"(?=.*[A-Z])[A-Z0-9:/_.-]{3,24}")
_SIDES = {"BUY", "SELL", "LONG", "SHORT", "HOLD", "CLOSE", "OPEN", "FLAT", "BID", "ASK"}


@dataclass(frozen=True)
class Unreadable:
    """A sample most of which is invalid."""

    entries: int
    reasons: Mapping[str, int]  # events by reason
    names: Sequence[tuple[str, int, str]]  # field or path into JSON, entries that have it, example
    proposed: Mapping[str, str]  # a value's field, for [fields] in drainkit.toml
    readable: int  # events that could be read with the proposal

    def title(self) -> str:
        """How many cannot be read."""
        n = sum(self.reasons.values())
        return f"{n:,} of the {self.entries:,} newest entries cannot be read (dropped_invalid)"

    def snippet(self) -> str:
        """The lines for drainkit.toml; empty where no field fits."""
        lines = [
            f"{value} = {json.dumps(name, ensure_ascii=False)}"
            for value, name in self.proposed.items()
        ]
        return "\n".join(["[fields]", *lines]) if lines else ""

    def advice(self) -> str:
        """What to do with the snippet, or without one."""
        if not self.proposed:
            return (
                "No field fits by itself: name those that hold symbol and confidence (0..1) under "
                "[fields] in drainkit.toml, or mend the producer."
            )
        return (
            f"With these lines in drainkit.toml {self.readable:,} of the {self.entries:,} can be "
            "read; check that each field means what it is proposed for:"
        )

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "entries": self.entries, "reasons": dict(self.reasons),
            "fields": [{"name": n, "entries": of, "example": e} for n, of, e in self.names],
            "proposed": dict(self.proposed), "snippet": self.snippet(), "readable": self.readable,
        }  # fmt: skip


def unreadable(entries: Sequence[RawEntry], fields: Fields) -> Unreadable | None:
    """What is wrong with a sample; None where most of its events can be read."""
    there = [entry for entry in entries if entry[1] is not None]
    events = Decoder(fields).decode(there)
    bad = Counter(INVALID_REASONS[code] for code in events.invalid[events.invalid > 0].tolist())
    if bad.total() * 2 <= len(there):
        return None
    found: dict[str, list[str]] = {}
    for entry in there:
        for name, value in _values(entry[1]):
            if name in found or len(found) < MAX_NAMES:
                found.setdefault(name, []).append(value)
    proposed: dict[str, str] = {}
    for value in ("symbol", "confidence", "timestamp"):
        if not _has(value, events).mean() > ENOUGH:
            free = {n: texts for n, texts in found.items() if n not in proposed.values()}
            best = max((_fitness(value, n, t, there) for n, t in free.items()), default=(0.0, ""))
            if best[0] > 0:
                proposed[value] = best[1]
    wider = build({"fields": {**_added(fields), **proposed}}).fields if proposed else fields
    after = Decoder(wider).decode(there)
    return Unreadable(
        len(there),
        dict(bad.most_common()),
        [(one_line(n, 60), len(texts), one_line(texts[0], 60)) for n, texts in found.items()],
        proposed,
        int((after.invalid == 0).sum()),
    )


def _added(fields: Fields) -> dict[str, list[str]]:
    """The names that drainkit.toml added; a proposal takes the place of its value's."""
    added = {v: [n for n in getattr(fields, v) if n not in USUAL_FIELDS[v]] for v in USUAL_FIELDS}
    return {value: names for value, names in added.items() if names}


def _values(body: Sequence[bytes]) -> Iterator[tuple[str, str]]:
    """Each name of an entry, flat or a path into a JSON object, with its value as text."""
    for raw_name, raw in zip(body[::2], body[1::2], strict=True):
        name, text = as_text(raw_name), as_text(raw)
        if not name or not name.isprintable():
            continue
        inner = None
        if text is not None and text.lstrip().startswith("{") and len(raw) <= MAX_CONTAINER_BYTES:
            try:
                inner = json.loads(text)
            except (ValueError, RecursionError):
                inner = None
        if isinstance(inner, dict):
            yield from _inside(name, inner, MAX_LEVELS)
        else:
            yield name, "(not text)" if text is None else text


def _inside(path: str, found: Mapping[str, object], levels: int) -> Iterator[tuple[str, str]]:
    for key, value in found.items():
        name = f"{path}.{key}"
        if not key or "." in key or not name.isprintable():
            continue  # [fields] cannot name it
        if isinstance(value, dict) and levels:
            yield from _inside(name, value, levels - 1)
        elif isinstance(value, dict | list):
            yield name, "(an object or a list)"
        else:
            yield name, value if isinstance(value, str) else json.dumps(value)


def _has(value: str, events: Events) -> np.ndarray:
    """Which events have a usable value of this kind."""
    if value == "symbol":
        found = events.symbol_code >= 0
    elif value == "confidence":
        found = np.isfinite(events.confidence)
    else:
        stamped = events.time_source == TIME_SOURCES.index("timestamp")
        found = stamped & (events.event_time_us >= EARLIEST_ID_MS * 1000)
    return np.asarray(found)


def _fitness(
    value: str, name: str, texts: Sequence[str], entries: Sequence[RawEntry]
) -> tuple[float, str]:
    """How well a field fits as this value (0: not at all), and its name."""
    try:
        fields = build({"fields": {value: [name], "only": True}}).fields
    except UsageError:  # a name that [fields] does not take
        return 0.0, name
    part = float(_has(value, Decoder(fields).decode(entries)).mean())
    if part < ENOUGH:
        return 0.0, name
    words = set(re.split(r"[^a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower()))
    hinted = bool(words & set(_HINTS[value].split()))
    if value == "symbol":
        alike = all(_TICKER.fullmatch(t) for t in texts) and not _SIDES & set(texts)
    else:
        # a flag is 0 or 1, and any number is some time since 1970
        alike = value == "confidence" and any("." in text for text in texts)
    return (part + hinted if hinted or alike else 0.0), name
