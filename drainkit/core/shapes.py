"""Which fields and paths a sample of entries holds, what they can be read as, and why they cannot.

What a field could stand for is tried with the decoder itself, so a proposal is never one that it
would not take.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..errors import UsageError
from ..safe import one_line
from ..settings import USUAL_FIELDS, Fields, build
from .events import Decoder
from .places import json_object
from .timestamps import EARLIEST_ID_MS, TIME_SOURCES, as_text
from .values import INVALID_REASONS, RawEntry

SAMPLE = 100  # entries
MAX_NAMES, MAX_LEVELS = 60, 6
ENOUGH = 0.9  # of the entries must have a value for its field to be proposed
#: What producers call a value where they do not call it as usual.
SYNONYMS = {
    "symbol": "ticker symbol sym instrument pair market asset coin product security contract",
    "confidence": "confidence conf score probability prob certainty strength likelihood weight",
    "timestamp": "timestamp ts time date datetime epoch at when created emitted sent occurred",
}


@dataclass(frozen=True)
class Found:
    """A field, or a path into the JSON object that a field holds."""

    name: str
    entries: int  # that have it
    example: str
    readable: Mapping[str, int]  # by value (of USUAL_FIELDS): entries whose one could be read here


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
                "No field fits by its name: name those that hold symbol and confidence (0..1) "
                "under [fields] in drainkit.toml, or mend the producer."
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


def found_fields(entries: Sequence[RawEntry]) -> list[Found]:
    """The fields and paths that occur in a sample, in the order in which they are met."""
    examples: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for _, body in entries:
        own = dict(_leaves(body or ()))
        counts.update(own.keys())
        examples |= {name: text for name, text in own.items() if name not in examples}
    names = [*examples][:MAX_NAMES]
    return [Found(n, counts[n], examples[n], _readable(entries, n)) for n in names]


def unreadable(entries: Sequence[RawEntry], fields: Fields) -> Unreadable | None:
    """What is wrong with a sample; None where most of its events can be read."""
    there = [entry for entry in entries if entry[1] is not None]
    events = Decoder(fields).decode(there)
    bad = Counter(INVALID_REASONS[code] for code in events.invalid[events.invalid > 0].tolist())
    if bad.total() * 2 <= len(there):
        return None
    found, now = found_fields(there), _readable(there, fields)
    proposed: dict[str, str] = {}
    for value, words in SYNONYMS.items():
        fitting = (
            one.name for one in found
            if one.readable[value] >= ENOUGH * len(there) and _words(one.name) & {*words.split()}
        )  # fmt: skip
        name = min(fitting, key=lambda name: name.count("."), default=None)
        if name is not None and now[value] <= ENOUGH * len(there):
            proposed[value] = name
    added = {v: [n for n in getattr(fields, v) if n not in USUAL_FIELDS[v]] for v in USUAL_FIELDS}
    kept = {value: names for value, names in added.items() if names}
    wider = build({"fields": {**kept, **proposed}}).fields if proposed else fields
    return Unreadable(
        len(there),
        dict(bad.most_common()),
        [(one_line(one.name, 60), one.entries, one_line(one.example, 60)) for one in found],
        proposed,
        int((Decoder(wider).decode(there).invalid == 0).sum()),
    )


def _leaves(body: Sequence[bytes]) -> Iterator[tuple[str, str]]:
    """Each name of an entry, flat or a path into a JSON object, with its value as text."""
    for raw_name, raw in zip(body[::2], body[1::2], strict=True):
        if name := as_text(raw_name):
            inner = json_object(raw)
            yield from _inside(name, inner if isinstance(inner, dict) else raw, MAX_LEVELS)


def _inside(path: str, value: object, levels: int) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and levels:
        for key, inner in value.items():
            if key and "." not in key:  # else [fields] cannot name it
                yield from _inside(f"{path}.{key}", inner, levels - 1)
    elif path.isprintable():
        text = as_text(value) if isinstance(value, bytes | str) else json.dumps(value)
        text = "(an object or a list)" if isinstance(value, dict | list) else text
        yield path, "(not text)" if text is None else text


def _readable(entries: Sequence[RawEntry], fields: Fields | str) -> dict[str, int]:
    """How many of the entries have a usable value, by value; `fields`: or one name for each."""
    try:
        only = {**dict.fromkeys(USUAL_FIELDS, fields), "only": True}
        fields = build({"fields": only}).fields if isinstance(fields, str) else fields
    except UsageError:  # a name that [fields] does not take
        return dict.fromkeys(USUAL_FIELDS, 0)
    events = Decoder(fields).decode(entries)
    stamped = events.time_source == TIME_SOURCES.index("timestamp")
    # any number is some time since 1970
    stamped &= events.event_time_us >= EARLIEST_ID_MS * 1000
    return {
        "symbol": int((events.symbol_code >= 0).sum()),
        "side": int((events.side_code >= 0).sum()),
        "confidence": int((events.confidence >= 0).sum()),
        "timestamp": int(stamped.sum()),
        "source": int((events.source_code >= 0).sum()),
    }


def _words(path: str) -> set[str]:
    """The words of a path: `msg.emittedAt` has msg, emitted and at."""
    return {*re.split(r"[^a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", path).lower())}
