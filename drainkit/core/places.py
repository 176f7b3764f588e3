"""One entry taken apart: every place where a value stands, and which of them counts.

The decoder answers for whole columns and keeps no places. Here it is asked again for each place
alone; so what counts is always what it decided, by whatever rules.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..settings import Fields
from .events import Decoder, Events
from .timestamps import TIME_SOURCES, as_text
from .values import MAX_CONTAINER_BYTES, RawEntry

WANTED = ("symbol", "side", "confidence", "source", "timestamp")
_CONTAINERS = ("payload", "data")


@dataclass(frozen=True)
class Place:
    """Where something stands under one of a value's names."""

    value: str  # of WANTED
    where: str  # "field symbol", or the path "payload.signal.symbol"
    raw: Any  # bytes of a flat field, else what JSON holds there
    counts: bool  # whether the event has its value from here


def places(fields: Fields, entry: RawEntry, events: Events) -> list[Place]:
    """All places of one entry, whose event is the only row of `events`, value by value."""
    found: list[Place] = []
    alone = Decoder(Fields(confidence_percent=fields.confidence_percent))
    for value in WANTED:
        taken = False
        for where, raw in candidates(getattr(fields, value), entry[1] or ()):
            fits = not taken and _is_same(value, _alone(entry[0], value, raw, alone), events)
            taken = taken or fits
            found.append(Place(value, where, raw, fits))
    return found


def candidates(names: Sequence[str], body: Sequence[bytes]) -> Iterator[tuple[str, Any]]:
    """What stands under the names: flat fields first, then payload, data and mapped fields."""
    # backwards, so that of a field given twice the first counts
    flat = dict(zip(reversed(body[::2]), reversed(body[1::2]), strict=True))
    paths: dict[str, list[list[str]]] = {name: [] for name in _CONTAINERS}
    for name in names:
        if name.encode() in flat:
            yield f"field {name}", flat[name.encode()]
        root, *rest = name.split(".")
        for container in (root,) if rest else _CONTAINERS:
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


def _alone(entry_id: bytes, value: str, raw: Any, decoder: Decoder) -> Events | None:
    """The event that an entry would be that held nothing else; None where nothing can hold it."""
    if isinstance(raw, bytes):
        body = [value.encode(), raw]
    else:
        try:
            body = [b"payload", json.dumps({value: raw}).encode()]
        except (ValueError, RecursionError):
            return None
    return decoder.decode([[entry_id, body]])


def _is_same(value: str, one: Events | None, events: Events) -> bool:
    """Whether the event has this value from there."""
    if one is None:
        return False
    if value == "confidence":
        return bool(one.confidence[0] == events.confidence[0])
    if value == "timestamp":
        stamp = TIME_SOURCES.index("timestamp")
        both = one.time_source[0] == events.time_source[0] == stamp
        return bool(both and one.event_time_us[0] == events.event_time_us[0])
    own = shown(one, value)
    return own is not None and own == shown(events, value)


def shown(events: Events, value: str) -> str | None:
    """The symbol, side or source of the only row; None where not valid."""
    code = int(getattr(events, f"{value}_code")[0])
    texts: list[str] = getattr(events, {"symbol": "symbols", "side": "sides"}.get(value, "sources"))
    return texts[code] if code >= 0 else None
