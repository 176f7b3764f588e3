"""One entry taken apart: every place where a value stands, and which of them counts.

The decoder answers for whole columns and keeps no places; the rules are the same (the contract,
section 3).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..settings import Fields
from .events import Events
from .timestamps import TIME_SOURCES, as_text, times_us
from .values import CONTAINERS, MAX_CONTAINER_BYTES, VALUES, RawEntry


@dataclass(frozen=True)
class Place:
    """Where something stands under one of a value's names."""

    value: str  # of VALUES, or timestamp
    where: str  # "field symbol", or the path "payload.signal.symbol"
    raw: Any  # bytes of a flat field, else what JSON holds there
    counts: bool  # whether the event has its value from here


def places(fields: Fields, entry: RawEntry, events: Events) -> list[Place]:
    """All places of one entry, whose event is the only row of `events`, value by value."""
    found: list[Place] = []
    by_stamp = events.time_source[0] == TIME_SOURCES.index("timestamp")
    for value in (*VALUES, "timestamp"):
        there = [place for rank in fields.ranks(value) for place in candidates(rank, entry[1])]
        counts = -1  # of symbol, side, confidence and source the first
        if value == "timestamp" and by_stamp:  # of these the earliest
            is_it = times_us([raw for _, raw in there]) == events.event_time_us[0]
            counts = int(is_it.argmax()) if is_it.any() else -1
        elif value == "confidence":
            counts += bool(events.confidence[0] >= 0)
        elif value != "timestamp":
            counts += shown(events, value) is not None
        found += [Place(value, *place, counts == n) for n, place in enumerate(there)]
    return found


def candidates(names: Sequence[str], body: Sequence[bytes] | None) -> Iterator[tuple[str, Any]]:
    """What stands under the names: flat fields first, then payload, data and mapped fields."""
    # backwards, so that of a field given twice the first counts
    flat = dict(zip(reversed((body or ())[::2]), reversed((body or ())[1::2]), strict=True))
    paths: dict[str, list[list[str]]] = {name: [] for name in CONTAINERS}
    for name in names:
        if name.encode() in flat:
            yield f"field {name}", flat[name.encode()]
        root, *rest = name.split(".")
        for container in (root,) if rest else CONTAINERS:
            paths.setdefault(container, []).append(rest or [name])
    for container, alternatives in paths.items():
        whole = json_object(flat.get(container.encode()))
        for path in alternatives:
            at: Any = whole
            for step in path:
                at = at.get(step, _NOTHING) if isinstance(at, dict) else _NOTHING
            if at is not _NOTHING:
                yield ".".join([container, *path]), at


_NOTHING: Any = object()


def value_of(body: Sequence[bytes], name: str) -> str | float | None:
    """What an entry holds first under a name, or a path such as `payload.model`.

    Numbers of JSON as numbers, all else as text; None where there is nothing, or no text.
    """
    _, found = next(candidates([name], body), ("", None))
    if isinstance(found, bytes | str):
        return as_text(found)
    return found if isinstance(found, int | float | None) else json.dumps(found)


def json_object(raw: bytes | None) -> Any:
    """The JSON object in a field; None where there is none that could be read."""
    if raw is None or len(raw) > MAX_CONTAINER_BYTES:
        return None
    try:
        return json.loads(raw.decode())
    except (ValueError, RecursionError):
        return None


def shown(events: Events, value: str) -> str | None:
    """The symbol, side or source of the only row; None where not valid."""
    code = int(getattr(events, f"{value}_code")[0])
    texts: list[str] = getattr(events, f"{value}s")
    return texts[code] if code >= 0 else None
