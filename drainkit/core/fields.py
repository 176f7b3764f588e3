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
from functools import reduce
from operator import getitem
from typing import Any

import numpy as np

from ..errors import UsageError
from ..safe import one_line, text
from ..settings import USUAL_FIELDS, Fields, build
from . import values as v
from .events import Decoder, Events
from .values import VALUES, RawEntry, as_text

MAX_PATHS, MAX_LEVELS = 60, 6
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


def places(fields: Fields, entry: RawEntry, events: Events) -> list[dict[str, Any]]:
    """All places of one entry, whose event is the only row of `events`, value by value; JSON-ready.

    `value` is one of VALUES, or timestamp; `where` "field symbol", or a path into JSON; `raw` what
    stands there; `counts` whether the event has its value from here.
    """
    found: list[dict[str, Any]] = []
    for value in (*VALUES, "timestamp"):
        there = [place for rank in fields.ranks(value) for place in _candidates(rank, entry[1])]
        if value == "timestamp":  # of these the earliest counts, if it made the event's time
            is_it = v.times_us([raw for _, raw in there]) == events.event_time_us[0]
            counts = int(is_it.argmax()) if is_it.any() and not events.time_source[0] else -1
        else:  # the first, if it is valid
            counts = 0 if _readable(events)[value][0] else -1
        # JSON can hold numbers that JSON cannot write again: as text each can be shown
        found += [{"value": value, "where": where, "counts": counts == n,
                   "raw": text(raw) if isinstance(raw, bytes) else repr(raw)}
                  for n, (where, raw) in enumerate(there)]  # fmt: skip
    return found


def _candidates(names: Sequence[str], body: Sequence[bytes] | None) -> Iterator[tuple[str, Any]]:
    """What stands under the names: flat fields first, then payload, data and mapped fields."""
    # backwards, so that of a field given twice the first counts
    flat = dict(zip(reversed((body or ())[::2]), reversed((body or ())[1::2]), strict=True))
    yield from ((f"field {name}", flat[name.encode()]) for name in names if name.encode() in flat)
    for root, paths in v.paths_of(names).items():
        whole = _json(flat.get(root.encode()))
        for path in paths:
            try:
                found = reduce(getitem, path, whole)
            except (KeyError, TypeError):  # there is nothing, or no object on the way
                continue
            yield ".".join([root, *path]), found


def _json(raw: bytes | None) -> Any:
    """What a field holds as JSON; None where there is none that could be read."""
    try:
        return None if raw is None or len(raw) > v.MAX_CONTAINER_BYTES else json.loads(raw.decode())
    except (ValueError, RecursionError):
        return None


def _readable(events: Events) -> dict[str, np.ndarray]:
    """Which entries have a usable value, by value."""
    found = {value: getattr(events, f"{value}_code") >= 0 for value in ("symbol", "side", "source")}
    # any number is some time since 1970
    stamped = (events.time_source == 0) & (events.event_time_us >= v.EARLIEST_ID_MS * 1000)
    return found | {"confidence": events.confidence >= 0, "timestamp": stamped}


# ---------------------------------------------------------------- a stream that is not known


def _rank(path: str, value: str) -> tuple[bool, int, int] | None:
    """How well a path's last name fits a value, the least is best; None: not at all."""
    # the words of emittedAt are emitted and at
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", path.rpartition(".")[2])
    own, words = {*re.split(r"[^a-z]+", spaced.lower())}, SYNONYMS[value].split()
    found = min((k for k, word in enumerate(words) if word in own), default=None)
    if found is None or own & LIMITS:
        return None
    return "|" in words[:found], path.count("."), found


def examine(entries: Sequence[RawEntry], fields: Fields) -> dict[str, Any]:
    """What a sample holds, and the lines for drainkit.toml that let more of it be read; JSON-ready.

    `snippet`: [fields], the lines of now included, empty where no line mends anything; `readable`:
    events that can be read with it; `unreadable`: those that cannot be now, `reasons`: why.
    """
    there = [entry for entry in entries if entry[1] is not None]
    plain = best = _Trial(there, fields)
    if not fields.confidence_percent and plain.valid < len(there):
        percent = _Trial(there, fields.model_copy(update={"confidence_percent": True}))
        best = percent if plain.valid * 10 < percent.valid else plain
    bad = Counter(v.INVALID_REASONS[code] for code in plain.before.invalid.tolist() if code)
    lines = best.table(best.chosen) if any(best.chosen.values()) or best is not plain else {}
    written = [f"{value} = {json.dumps(one, ensure_ascii=False)}" for value, one in lines.items()]
    return {
        "entries": len(there), "unreadable": bad.total(), "reasons": dict(bad.most_common()),
        "fields": {value: best.rows(value) for value in SYNONYMS},
        "snippet": "\n".join(["[fields]", *written]) if lines else "", "readable": best.valid,
    }  # fmt: skip


class _Trial:
    """Names for the values of a sample, found one by one, each tried by the decoder."""

    def __init__(self, entries: Sequence[RawEntry], fields: Fields) -> None:
        self._entries, self._fields = entries, fields
        self._now = {  # the paths where each value is looked for now
            value: {place for name in getattr(fields, value) for place in (
                [name] if "." in name else [name, *(f"{root}.{name}" for root in v.CONTAINERS)])}
            for value in USUAL_FIELDS
        }  # fmt: skip
        self._found = self._found_fields()
        self.chosen: dict[str, list[str]] = {value: [] for value in SYNONYMS}
        self.before = self.events = Decoder(fields).decode(entries)
        for value in ("symbol", "confidence"):
            self._choose(value)
        for value in ("confidence", "symbol"):  # names without which as much can be read
            for name in [*self.chosen[value]]:
                self._take(value, [other for other in self.chosen[value] if other != name])
        for value in ("timestamp", "side", "source") if self.valid else ():
            self._choose(value)

    def _found_fields(self) -> dict[str, tuple[int, str]]:
        """The fields and paths that could be a value, as met: entries that have it, an example."""
        examples: dict[str, str] = {}
        counts: Counter[str] = Counter()
        for _, body in self._entries:
            own: dict[str, str] = {}  # each name, flat or a path into a JSON object, and its value
            for raw_name, raw in zip(body[::2], body[1::2], strict=True):
                if name := as_text(raw_name):
                    inner = _json(raw)
                    own |= _inside(name, inner if isinstance(inner, dict) else raw, MAX_LEVELS)
            counts.update(own.keys())
            examples = own | examples
        known = {path for paths in self._now.values() for path in paths}
        fit = [p for p in counts if p in known or any(_rank(p, value) for value in SYNONYMS)]
        return {path: (counts[path], examples[path]) for path in fit[:MAX_PATHS]}

    @property
    def valid(self) -> int:
        """Events that can be read."""
        return int((self.events.invalid == 0).sum())

    def _choose(self, value: str) -> None:
        """Take the names by which more events have this value, the nearest to the symbol first.

        It lies in an object that symbols are read in, or around one: elsewhere it is a part's own.
        """
        symbols = self._found.keys() & self._now["symbol"] | {*self.chosen["symbol"]}
        homes = {path.rpartition(".")[0] for path in symbols}
        fitting = {path: path.rpartition(".")[0] for path in self._found if _rank(path, value)}
        # where no other name fits a confidence, it is no part's own
        anywhere = value == "symbol" or (value == "confidence" and len(fitting) == 1)
        near = [
            (value != "symbol" and home not in homes, _rank(path, value), path)
            for path, home in fitting.items()
            if anywhere or not home or any(f"{one}.".startswith(f"{home}.") for one in homes)
        ]
        for _, _, path in sorted(near):
            had = _readable(self.events)[value].sum() + max(1, LEAST * len(self._entries))
            self._take(value, [*self.chosen[value], path], had)

    def _take(self, value: str, names: list[str], least: float = 0) -> None:
        """Choose these names if at least so many events have the value then, and none is lost."""
        chosen = {**self.chosen, value: names}
        try:
            wider = any(chosen.values()) and build({"fields": self.table(chosen)}).fields
        except UsageError:  # [fields] takes no such name
            return
        then = Decoder(wider or self._fields).decode(self._entries)
        if _readable(then)[value].sum() >= least and (then.invalid == 0).sum() >= self.valid:
            self.chosen, self.events = chosen, then

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

    def rows(self, value: str) -> list[dict[str, Any]]:
        """The paths that are read for a value, or could be by their names, and which are chosen."""
        chosen = {*self._now[value], *self.chosen[value]}
        return [
            {"path": one_line(path, 100), "entries": entries, "example": one_line(example, 60),
             "chosen": path in chosen}
            for path, (entries, example) in self._found.items()
            if path in chosen or _rank(path, value)
        ]  # fmt: skip


def _inside(path: str, value: object, levels: int) -> Iterator[tuple[str, str]]:
    """The paths into a JSON object that [fields] can name, each with what stands there."""
    if isinstance(value, dict) and levels:
        for key, inner in value.items():
            if key and "." not in key:
                yield from _inside(f"{path}.{key}", inner, levels - 1)
    elif path.isprintable():
        words = as_text(value) if isinstance(value, bytes | str) else json.dumps(value)
        yield path, words or "(not text)"
