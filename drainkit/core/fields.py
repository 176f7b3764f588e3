"""Where the values of events stand: in one entry, and in a sample of a stream that is not known.

The decoder answers for whole columns and keeps no places; the rules here are the same (the
contract, section 3). A field is proposed for a value if its name fits, it lies in the symbol's
object or around it, and the decoder itself reads more events with it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from typing import Any, NamedTuple

import numpy as np

from ..errors import UsageError
from ..safe import one_line
from ..settings import USUAL_FIELDS, Fields, build
from . import values as v
from .events import Decoder, Events
from .timestamps import EARLIEST_ID_MS, as_text, times_us
from .values import VALUES, RawEntry

MAX_NAMES, MAX_LEVELS = 60, 6
LEAST = 0.005  # of the entries must gain by a line
#: What producers call a value where they do not call it as usual; after the bar, if need be.
SYNONYMS = {
    "symbol": "symbol ticker sym instrument pair | coin asset contract security market product",
    "confidence": "confidence conf probability prob certainty | score strength likelihood weight",
    "timestamp": "timestamp ts time datetime date epoch | emitted created sent occurred when at",
    "side": "side action direction dir",
    "source": "source origin producer strategy",
}
LIMITS = {"threshold", "min", "max", "limit"}  # what such a name holds is no event's value
Masks = Mapping[str, np.ndarray]  # by value (of USUAL_FIELDS): which entries could be read
Lines = Mapping[str, Sequence[str] | bool]  # of [fields]


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
    for value in (*VALUES, "timestamp"):
        there = [place for rank in fields.ranks(value) for place in candidates(rank, entry[1])]
        if value == "timestamp":  # of these the earliest counts, if it made the event's time
            is_it = times_us([raw for _, raw in there]) == events.event_time_us[0]
            counts = int(is_it.argmax()) if is_it.any() and not events.time_source[0] else -1
        elif value == "confidence":
            counts = 0 if events.confidence[0] >= 0 else -1
        else:
            counts = -1 if events.word(value) is None else 0  # the first
        found += [Place(value, *place, counts == n) for n, place in enumerate(there)]
    return found


def candidates(names: Sequence[str], body: Sequence[bytes] | None) -> Iterator[tuple[str, Any]]:
    """What stands under the names: flat fields first, then payload, data and mapped fields."""
    # backwards, so that of a field given twice the first counts
    flat = dict(zip(reversed((body or ())[::2]), reversed((body or ())[1::2]), strict=True))
    yield from ((f"field {name}", flat[name.encode()]) for name in names if name.encode() in flat)
    for root in v.roots(names):
        whole = _json(flat.get(root.encode()))
        for path in v.paths_in(root, names):
            try:
                found = reduce(getitem, path, whole)
            except (KeyError, TypeError):  # there is nothing, or no object on the way
                continue
            yield ".".join([root, *path]), found


def value_of(body: Sequence[bytes], name: str) -> str | float | None:
    """What an entry holds first under a name, or a path such as `payload.model`.

    Numbers of JSON as numbers, all else as text; None where there is nothing, or no text.
    """
    _, found = next(candidates([name], body), ("", None))
    if isinstance(found, bytes | str):
        return as_text(found)
    return found if isinstance(found, int | float | None) else json.dumps(found)


def _json(raw: bytes | None) -> Any:
    """What a field holds as JSON; None where there is none that could be read."""
    try:
        return None if raw is None or len(raw) > v.MAX_CONTAINER_BYTES else json.loads(raw.decode())
    except (ValueError, RecursionError):
        return None


class Found(NamedTuple):
    """A field, or a path into the JSON object that a field holds."""

    name: str
    entries: int  # that have it
    example: str
    readable: Masks

    @property
    def home(self) -> str:
        """The object that it lies in; empty for a flat field."""
        return self.name.rpartition(".")[0]

    def is_near(self, homes: set[str]) -> bool:
        """Whether it lies in one of these objects or around it, and not in one beside them."""
        return not self.home or any(f"{home}.".startswith(f"{self.home}.") for home in homes)


def rank(name: str, value: str) -> tuple[bool, int, int] | None:
    """How well a path's own name fits a value, the least is best; None: not at all."""
    # the words of emittedAt are emitted and at
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", name.rpartition(".")[2])
    own = {*re.split(r"[^a-z]+", spaced.lower())}
    words = SYNONYMS[value].split()
    found = min((k for k, word in enumerate(words) if word in own), default=None)
    if found is None or own & LIMITS:
        return None
    return "|" in words[:found], name.count("."), found


class Row(NamedTuple):
    """A path that is read for a value, or could be by its name."""

    value: str
    path: str
    entries: int
    example: str
    chosen: bool
    why: str


@dataclass(frozen=True)
class Findings:
    """What a sample holds, and the lines for drainkit.toml that were tried on it."""

    entries: int
    reasons: Mapping[str, int]  # events that cannot be read now, by reason
    paths: Sequence[Row]
    lines: Lines  # those of now included; empty: none
    readable: int  # events that could be read with the lines
    notes: Sequence[str]

    @property
    def unreadable(self) -> int:
        """Events that cannot be read now."""
        return sum(self.reasons.values())

    def title(self) -> str:
        """How many cannot be read."""
        return (
            f"{self.unreadable:,} of {self.entries:,} entries, spread over the backlog, cannot be "
            "read (dropped_invalid)"
        )

    def snippet(self) -> str:
        """The lines for drainkit.toml; empty where none mends anything."""
        table = {value: one[0] if isinstance(one, tuple) and len(one) == 1 else one
                 for value, one in self.lines.items()}  # fmt: skip
        lines = [f"{value} = {json.dumps(one, ensure_ascii=False)}" for value, one in table.items()]
        return "\n".join(["[fields]", *lines]) if lines else ""

    def advice(self) -> str:
        """What to do with the snippet, or without one."""
        if self.lines:
            return (
                f"With these lines in drainkit.toml {self.readable:,} of the {self.entries:,} can "
                "be read; check that each field means what it is proposed for:"
            )
        if not self.unreadable:
            return "All of them can be read; no lines are needed."
        return (
            "No field fits by its name: name those that hold symbol and confidence (0..1) "
            "under [fields] in drainkit.toml, or mend the producer."
        )

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
        found: dict[str, list[dict[str, Any]]] = {value: [] for value in SYNONYMS}
        for row in map(Row._asdict, self.paths):
            found[row.pop("value")].append(row)
        return {
            "entries": self.entries, "unreadable": self.unreadable, "reasons": dict(self.reasons),
            "fields": found, "proposed": dict(self.lines), "snippet": self.snippet(),
            "readable": self.readable, "notes": [*self.notes],
        }  # fmt: skip


def found_fields(entries: Sequence[RawEntry], *, percent: bool = False) -> list[Found]:
    """The fields and paths that occur in a sample, in the order in which they are met.

    Of very many those stay whose names say what they could be.
    """
    examples: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for _, body in entries:
        own: dict[str, str] = {}  # each name, flat or a path into a JSON object, and its value
        for raw_name, raw in zip((body or ())[::2], (body or ())[1::2], strict=True):
            if name := as_text(raw_name):
                inner = _json(raw)
                own |= _inside(name, inner if isinstance(inner, dict) else raw, MAX_LEVELS)
        counts.update(own.keys())
        examples = own | examples
    best = sorted(counts, key=lambda name: all(rank(name, value) is None for value in SYNONYMS))
    kept, found = {*best[:MAX_NAMES]}, []
    for name, n in ((name, n) for name, n in counts.items() if name in kept):
        alone = {**dict.fromkeys(USUAL_FIELDS, name), "only": True, "confidence_percent": percent}
        try:
            masks = _masks(Decoder(build({"fields": alone}).fields).decode(entries))
        except UsageError:  # [fields] takes no such name
            masks = dict.fromkeys(USUAL_FIELDS, np.zeros(1, bool))
        found.append(Found(name, n, examples[name], masks))
    return found


def _inside(path: str, value: object, levels: int) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and levels:
        for key, inner in value.items():
            if key and "." not in key:  # else [fields] cannot name it
                yield from _inside(f"{path}.{key}", inner, levels - 1)
    elif path.isprintable():
        text = as_text(value) if isinstance(value, bytes | str) else json.dumps(value)
        text = "(an object or a list)" if isinstance(value, dict | list) else text
        yield path, "(not text)" if text is None else text


def _masks(events: Events) -> dict[str, np.ndarray]:
    """Which entries have a usable value, by value."""
    # any number is some time since 1970
    stamped = (events.time_source == 0) & (events.event_time_us >= EARLIEST_ID_MS * 1000)
    codes = {"symbol": events.symbol_code, "side": events.side_code, "source": events.source_code}
    found = {value: column >= 0 for value, column in codes.items()}
    return found | {"confidence": events.confidence >= 0, "timestamp": stamped}


def examine(entries: Sequence[RawEntry], fields: Fields) -> Findings:
    """What a sample holds, and the lines that would let more of it be read."""
    there = [entry for entry in entries if entry[1] is not None]
    plain = best = _Trial(there, fields)
    notes = []
    if not fields.confidence_percent and plain.valid < len(there):
        percent = _Trial(there, fields.model_copy(update={"confidence_percent": True}))
        more = percent.valid - plain.valid
        if plain.valid * 10 < percent.valid:
            best = percent
            notes.append("confidence is a percentage (0..100): confidence_percent = true reads it")
        elif more * 100 > len(there):
            notes.append(
                f"confidence is a percentage in {more:,} entries and within 0..1 in others: no "
                "setting reads both, mend the producer"
            )
    elif fields.confidence_percent and plain.valid and np.nanmax(plain.events.confidence) <= 0.01:
        notes.append("no confidence is above 1 %: is confidence_percent = true a mistake?")
    small = [s for s in sorted(best.events.symbols_here()) if s != s.upper()]
    if small:
        notes.append(
            f"symbols in small letters, such as {small[0]}: an allowlist must spell them so"
        )
    bad = Counter(v.INVALID_REASONS[code] for code in plain.before.invalid.tolist() if code)
    is_new = any(best.chosen.values()) or best is not plain
    lines = best.table(best.chosen) if is_new else {}
    return Findings(len(there), dict(bad.most_common()), best.rows(), lines, best.valid, notes)


class _Trial:
    """Names for the values of a sample, found one by one, each tried by the decoder."""

    def __init__(self, entries: Sequence[RawEntry], fields: Fields) -> None:
        self._entries, self._fields = entries, fields
        self._found = found_fields(entries, percent=fields.confidence_percent)
        self._now = {  # the paths where each value is looked for now
            value: {place for name in getattr(fields, value) for place in (
                [name] if "." in name else [name, *(f"{root}.{name}" for root in v.CONTAINERS)])}
            for value in USUAL_FIELDS
        }  # fmt: skip
        self.chosen: dict[str, list[str]] = {value: [] for value in SYNONYMS}
        self.before = self.events = Decoder(fields).decode(entries)
        for value in ("symbol", "confidence"):
            self._choose(value)
        for value in ("confidence", "symbol"):  # names without which as much can be read
            for name in [*self.chosen[value]]:
                self._take(value, [other for other in self.chosen[value] if other != name])
        for value in ("timestamp", "side", "source") if self.valid else ():
            self._choose(value)

    @property
    def valid(self) -> int:
        """Events that can be read."""
        return int((self.events.invalid == 0).sum())

    def _choose(self, value: str) -> None:
        """Take the names by which more events have this value, the nearest to the symbol first."""
        homes = self._homes() if value != "symbol" else {one.home for one in self._found}
        fitting = [one for one in self._found if rank(one.name, value)]
        near = [one for one in fitting if one.is_near(homes)]
        # where no other name fits, what lies apart is no part's own
        near = near or (fitting if len(fitting) == 1 and value == "confidence" else [])
        for one in sorted(near, key=lambda one: (one.home not in homes, rank(one.name, value))):
            if one.readable[value].any():  # else [fields] may not even take such a name
                had = _masks(self.events)[value].sum() + max(1, LEAST * len(self._entries))
                self._take(value, [*self.chosen[value], one.name], had)

    def _take(self, value: str, names: list[str], least: float = 0) -> None:
        """Choose these names if at least so many events have the value then, and none is lost."""
        chosen = {**self.chosen, value: names}
        wider = any(chosen.values()) and build({"fields": self.table(chosen)}).fields
        then = Decoder(wider or self._fields).decode(self._entries)
        if _masks(then)[value].sum() >= least and (then.invalid == 0).sum() >= self.valid:
            self.chosen, self.events = chosen, then

    def _homes(self) -> set[str]:
        """The objects that symbols are read in."""
        names = {*self._now["symbol"], *self.chosen["symbol"]}
        return {o.home for o in self._found if o.name in names and o.readable["symbol"].any()}

    def table(self, chosen: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str] | bool]:
        """The whole of [fields]: what it adds to the usual names now, and what was chosen."""
        table: dict[str, Sequence[str] | bool] = {}
        for value, usual in USUAL_FIELDS.items():
            own = [name for name in getattr(self._fields, value) if name not in usual]
            if value == "timestamp":  # those beside a mapped value come by themselves
                own = [name for name in own if name.rpartition(".")[2] not in usual]
            if names := (*own, *chosen[value]):
                table[value] = names
        return table | ({"confidence_percent": True} if self._fields.confidence_percent else {})

    def rows(self) -> list[Row]:
        """The paths that are read, or could be by their names, and why they are chosen or not."""
        rows, homes = list[Row](), self._homes()
        for value, one in ((value, one) for value in SYNONYMS for one in self._found):
            is_known, is_new = one.name in self._now[value], one.name in self.chosen[value]
            if not is_known and rank(one.name, value) is None:
                continue
            is_readable, is_near = bool(one.readable[value].any()), one.is_near(homes)
            why = "in the symbol's object, or around it" if is_near else "apart from the symbol"
            if not is_readable:
                why = "cannot be read as such"
            elif is_known:
                why = "known already" if is_near else "known already, but apart from the symbol"
            elif not is_new and is_near:
                why = "not needed"
            chosen = is_new or (is_known and is_readable)
            name, example = one_line(one.name, 100), one_line(one.example, 60)
            rows.append(Row(value, name, one.entries, example, chosen, why))
        return rows
