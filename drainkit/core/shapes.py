"""Which fields and paths a sample of entries holds, which are chosen for what, and what that mends.

What a field could stand for is tried with the decoder itself, and so is each line that is proposed:
one that mends nothing is left out.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import UsageError
from ..safe import one_line
from ..settings import USUAL_FIELDS, Fields, build
from .events import Decoder, Events
from .places import json_object
from .timestamps import EARLIEST_ID_MS, TIME_SOURCES, as_text
from .values import INVALID_REASONS, RawEntry

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
BESIDE, AROUND, ELSEWHERE = range(3)  # where a path lies, as seen from the symbol
_WHY = ("beside the symbol", "around the symbol", "nowhere nearer")
Masks = Mapping[str, np.ndarray]  # by value (of USUAL_FIELDS): which entries could be read
Row = tuple[str, str, int, str, bool, str]  # value, path, entries, example, chosen, why
Chosen = Mapping[str, Mapping[str, int]]  # by value and name: where it lies


@dataclass(frozen=True)
class Found:
    """A field, or a path into the JSON object that a field holds."""

    name: str
    entries: int  # that have it
    example: str
    readable: Masks

    @property
    def home(self) -> str:
        """The object that it lies in; empty for a flat field."""
        return self.name.rpartition(".")[0]

    def rank(self, value: str) -> tuple[bool, int, int] | None:
        """How well its own name fits a value, the least is best; None: not at all."""
        own = _words(self.name.rpartition(".")[2])
        if own & LIMITS:
            return None
        words = SYNONYMS[value].split()
        found = min((k for k, word in enumerate(words) if word in own), default=None)
        return None if found is None else ("|" in words[:found], self.name.count("."), found)


@dataclass(frozen=True)
class Findings:
    """What a sample holds, and the lines for drainkit.toml that were tried on it."""

    entries: int
    reasons: Mapping[str, int]  # events that cannot be read now, by reason
    paths: Sequence[Row]
    lines: Mapping[str, Sequence[str] | bool]  # of [fields], those of now included; empty: none
    readable: int  # events that could be read with the lines
    notes: Sequence[str] = ()

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
        keys = ("path", "entries", "example", "chosen", "why")
        return {
            "entries": self.entries, "unreadable": self.unreadable, "reasons": dict(self.reasons),
            "fields": {value: [dict(zip(keys, row[1:], strict=True)) for row in self.paths
                               if row[0] == value] for value in SYNONYMS},
            "proposed": dict(self.lines), "snippet": self.snippet(), "readable": self.readable,
            "notes": [*self.notes],
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
                inner = json_object(raw)
                own |= _inside(name, inner if isinstance(inner, dict) else raw, MAX_LEVELS)
        counts.update(own.keys())
        examples |= {name: text for name, text in own.items() if name not in examples}
    bare = [Found(name, counts[name], text, {}) for name, text in examples.items()]
    told = sorted(bare, key=lambda one: all(one.rank(value) is None for value in SYNONYMS))
    kept = {one.name for one in told[:MAX_NAMES]}
    return [
        replace(one, readable=_masks(_alone(entries, one.name, percent)))
        for one in bare if one.name in kept
    ]  # fmt: skip


def examine(entries: Sequence[RawEntry], fields: Fields) -> Findings:
    """What a sample holds, and the lines that would let more of it be read."""
    there = [entry for entry in entries if entry[1] is not None]
    plain = _Trial(there, fields)
    plain.run()
    best, notes = plain, []
    if not fields.confidence_percent and plain.valid < len(there):
        percent = _Trial(there, fields.model_copy(update={"confidence_percent": True}))
        percent.run()
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
    now = Decoder(fields).decode(there)
    bad = Counter(INVALID_REASONS[code] for code in now.invalid[now.invalid > 0].tolist())
    reasons, lines = dict(bad.most_common()), best.lines(fields)
    return Findings(len(there), reasons, best.rows(), lines, best.valid, notes)


class _Trial:
    """Lines for a sample, found one by one, each tried by the decoder."""

    def __init__(self, entries: Sequence[RawEntry], fields: Fields) -> None:
        self._entries, self._fields = entries, fields
        self._found = found_fields(entries, percent=fields.confidence_percent)
        self._now = {  # the paths where each value is looked for now
            value: {f"{place}{name}" for name in getattr(fields, value)
                    for place in (("",) if "." in name else ("", "payload.", "data."))}
            for value in USUAL_FIELDS
        }  # fmt: skip
        self._chosen: dict[str, dict[str, int]] = {}
        self._least = max(1, LEAST * len(entries))
        self.events = self._read({})

    @property
    def valid(self) -> int:
        """Events that can be read."""
        return int((self.events.invalid == 0).sum())

    def run(self) -> None:
        """Choose symbol, confidence, and what goes with them."""
        for value in ("symbol", "confidence"):
            self._choose(value)
        self._prune()
        for value in ("timestamp", "side", "source") if self.valid else ():
            self._choose(value)

    def _choose(self, value: str) -> None:
        fitting = [one for one in self._found if one.rank(value) and one.readable[value].any()]
        places = {one.name: self._place(value, one) for one in fitting}
        fitting.sort(key=lambda one: (places[one.name], one.rank(value)))
        for one in fitting:
            have, place = _masks(self.events), places[one.name]
            gain = one.readable[value] & ~have[value]
            is_apart = place == ELSEWHERE and not self._is_alone(value, one, fitting, gain)
            if is_apart or gain.sum() < self._least:
                continue
            names = {**self._chosen, value: {**self._chosen.get(value, {}), one.name: place}}
            then = self._read(names)
            more = _masks(then)[value].sum() - have[value].sum()
            if more >= self._least and (then.invalid == 0).sum() >= self.valid:
                self._chosen, self.events = names, then

    def _place(self, value: str, one: Found) -> int:
        homes = self._homes()
        if value == "symbol" or one.home in homes:
            return BESIDE
        is_around = any(f"{home}.".startswith(f"{one.home}.") for home in homes) or not one.home
        return AROUND if is_around else ELSEWHERE

    def _homes(self) -> dict[str, np.ndarray]:
        """The objects that symbols are read in, and in which entries."""
        homes: dict[str, np.ndarray] = {}
        names = self._now["symbol"] | self._chosen.get("symbol", {}).keys()
        for one in self._found:
            if one.name in names:
                homes[one.home] = homes.get(one.home, False) | one.readable["symbol"]
        return homes

    def _is_alone(self, value: str, one: Found, fitting: Sequence[Found], gain: np.ndarray) -> bool:
        """Whether a confidence that lies elsewhere can only be the event's: no sub-model's."""
        if value != "confidence":
            return False
        for home, mask in self._homes().items():
            own = (other for other in self._found if other.home == home and other.rank(value))
            if (mask & gain).any() and any(own):
                return False  # its own is missing or not readable, which is no reason for another
        rivals = (other for other in fitting if other is not one and other.home != one.home
                  and other.name.count(".") <= one.name.count("."))  # fmt: skip
        return not any((other.readable[value] & gain).any() for other in rivals)

    def _prune(self) -> None:
        """Leave out names of symbol and confidence without which as much can be read."""
        for value in ("confidence", "symbol"):
            for name in [*self._chosen.get(value, ())]:
                fewer = {n: place for n, place in self._chosen[value].items() if n != name}
                names = {**self._chosen, value: fewer}
                then = self._read(names)
                if (then.invalid == 0).sum() >= self.valid:
                    self._chosen, self.events = names, then

    def _read(self, chosen: Chosen) -> Events:
        wider = any(chosen.values()) and build({"fields": self._table(chosen)}).fields
        return Decoder(wider or self._fields).decode(self._entries)

    def _table(self, chosen: Chosen) -> dict[str, Sequence[str] | bool]:
        """The whole of [fields]: what it adds to the usual names now, and what was chosen."""
        table: dict[str, Sequence[str] | bool] = {}
        for value, usual in USUAL_FIELDS.items():
            own = [name for name in getattr(self._fields, value) if name not in usual]
            if value == "timestamp":  # those beside a mapped value come by themselves
                own = [name for name in own if name.rpartition(".")[2] not in usual]
            if names := (*own, *chosen.get(value, ())):
                table[value] = names
        return table | ({"confidence_percent": True} if self._fields.confidence_percent else {})

    def lines(self, fields: Fields) -> dict[str, Sequence[str] | bool]:
        """The lines that were found, with those of now; empty where nothing is new."""
        is_new = any(self._chosen.values()) or self._fields != fields
        return self._table(self._chosen) if is_new else {}

    def rows(self) -> list[Row]:
        """The paths that are read, or could be by their names, and why they are chosen or not."""
        rows = []
        for value in SYNONYMS:
            chosen = self._chosen.get(value, {})
            for one in self._found:
                is_known = one.name in self._now[value]
                if not is_known and one.rank(value) is None:
                    continue
                name, example = one_line(one.name, 100), one_line(one.example, 60)
                is_chosen = one.name in chosen or (is_known and bool(one.readable[value].any()))
                is_apart = self._place(value, one) == ELSEWHERE
                if not one.readable[value].any():
                    why = "cannot be read as such"
                elif is_known:
                    why = "known already" + (", but apart from the symbol" if is_apart else "")
                elif is_chosen:
                    why = _WHY[chosen[one.name]]
                else:
                    why = "apart from the symbol: a part's own" if is_apart else "not needed"
                rows.append((value, name, one.entries, example, is_chosen, why))
        return rows


def _inside(path: str, value: object, levels: int) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and levels:
        for key, inner in value.items():
            if key and "." not in key:  # else [fields] cannot name it
                yield from _inside(f"{path}.{key}", inner, levels - 1)
    elif path.isprintable():
        text = as_text(value) if isinstance(value, bytes | str) else json.dumps(value)
        text = "(an object or a list)" if isinstance(value, dict | list) else text
        yield path, "(not text)" if text is None else text


def _alone(entries: Sequence[RawEntry], name: str, percent: bool) -> Events | None:
    """The events where each value is looked for under one name; None: [fields] takes no such."""
    only = {**dict.fromkeys(USUAL_FIELDS, name), "only": True, "confidence_percent": percent}
    try:
        return Decoder(build({"fields": only}).fields).decode(entries)
    except UsageError:
        return None


def _masks(events: Events | None) -> Masks:
    """Which entries have a usable value, by value."""
    if events is None:
        return dict.fromkeys(USUAL_FIELDS, np.zeros(1, bool))
    stamped = events.time_source == TIME_SOURCES.index("timestamp")
    # any number is some time since 1970
    stamped &= events.event_time_us >= EARLIEST_ID_MS * 1000
    codes = {"symbol": events.symbol_code, "side": events.side_code, "source": events.source_code}
    found = {value: column >= 0 for value, column in codes.items()}
    return found | {"confidence": events.confidence >= 0, "timestamp": stamped}


def _words(name: str) -> set[str]:
    """The words of a name: `emittedAt` has emitted and at."""
    return {*re.split(r"[^a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())}
