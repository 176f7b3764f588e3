"""Where the values of an event stand in an entry: flat fields, JSON fields, paths into them.

Of symbol, side, confidence and source the best place counts, of the timestamps all do. What cannot
be read is told as a code into INVALID_REASONS. The contract, section 3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from operator import attrgetter, itemgetter
from typing import Any

import msgspec
import numpy as np

from ..settings import Fields

Column = list[Any]
Stamps = tuple[Sequence[int], Column]  # rows, and what each holds under one of the time's names
RawEntry = Sequence[Any]  # [id: bytes, [field, value, ...] | None]; None: the body is gone
INVALID_REASONS = (
    "",
    *(f"{field} {problem}" for field in ("payload", "data", "mapped field") for problem in (
        "over 1 MiB", "nested deeper than 64", "is not JSON in UTF-8", "is no JSON object")),
    "symbol missing", "symbol not valid", "confidence missing", "confidence not a number",
    "confidence outside 0..1", "timestamp more than 60 s after the entry id", "no usable time",
)  # fmt: skip
_REASON = {text: code for code, text in enumerate(INVALID_REASONS)}
NO_SYMBOL, BAD_SYMBOL = _REASON["symbol missing"], _REASON["symbol not valid"]
NO_CONFIDENCE, NO_NUMBER = _REASON["confidence missing"], _REASON["confidence not a number"]
OUTSIDE = _REASON["confidence outside 0..1"]
AHEAD = _REASON["timestamp more than 60 s after the entry id"]
TIMELESS = _REASON["no usable time"]
MAX_CONTAINER_BYTES = 1 << 20
MAX_DEPTH = 64
AT_ONCE = 32  # JSON texts; more at once are more to read again for one that is odd
# possessive, and to the end if need be: a text that never ends must not be tried at each quote
_TEXTS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
CONTAINERS = ("payload", "data")
_TIME = -1  # in the place of a slot
VALUES = ("symbol", "side", "confidence", "source")


ABSENT: Any = object()  # told apart from None, which JSON's null becomes


@dataclass(frozen=True)
class Found:
    """What some entries hold: for each of VALUES a column of raw values (bytes where flat)."""

    values: list[Column]
    stamps: Column  # for each row a timestamp
    more_stamps: list[Stamps]
    refused: bytearray  # for each row what is wrong with its JSON, or 0


class Places:
    """Where to look for what: `Fields` made ready for the layouts that occur."""

    def __init__(self, fields: Fields) -> None:
        # a slot is a value and its names of one rank
        self.slots = [(value, names) for value in VALUES for names in fields.ranks(value)]
        self.times = fields.timestamp
        self.by_value = [
            [k for k, slot in enumerate(self.slots) if slot[0] == value] for value in VALUES
        ]
        # of each slot itself and those of the same value that go before it
        self.better = [own[: i + 1] for own in self.by_value for i in range(len(own))]
        # a reader for each JSON field that may hold values, in the order in which they count
        names = [(name, slot) for slot, (_, of_rank) in enumerate(self.slots) for name in of_rank]
        roots: dict[str, list[tuple[tuple[str, ...], int]]] = {name: [] for name in CONTAINERS}
        for name, slot in [*names, *((name, _TIME) for name in self.times)]:
            first, *rest = name.split(".")
            for root in (first,) if rest else CONTAINERS:
                roots.setdefault(root, []).append((tuple(rest) if rest else (name,), slot))
        self.containers = {
            # made when it is met, once: that takes a while
            name: cache(partial(_Container, name, paths, len(self.slots)))
            for name, paths in roots.items()
            if paths
        }


class Layout:
    """How to find the values in entries with the same field names."""

    def __init__(self, names: tuple[bytes, ...], places: Places) -> None:
        # backwards, so that of a field given twice the first counts
        at = {names[i]: 2 * i + 1 for i in range(len(names) - 1, -1, -1)}
        found = [
            [at[name.encode()] for name in of_rank if name.encode() in at]
            for _, of_rank in places.slots
        ]
        self._flat = [spots[0] if spots else None for spots in found]
        self._times = [at[name.encode()] for name in places.times if name.encode() in at]
        self._better, self._by_value = places.better, places.by_value
        self._readers: list[tuple[int, _Container, list[int]]] = []
        for name, made in places.containers.items():
            if name.encode() in at:
                container = made()
                wanted = [
                    k for k in container.may if all(self._flat[j] is None for j in self._better[k])
                ]
                self._readers.append((at[name.encode()], container, wanted))

    def find(self, bodies: Sequence[Any]) -> Found:
        """The raw values in the order of VALUES, all timestamps, and JSON problems."""
        n = len(bodies)
        slots: list[Column] = [
            [ABSENT] * n if at is None else [*map(itemgetter(at), bodies)] for at in self._flat
        ]
        stamps: list[Stamps] = [(range(n), [*map(itemgetter(at), bodies)]) for at in self._times]
        refused = bytearray(n)
        for number, (at, container, wanted) in enumerate(self._readers):
            rows: Sequence[int] = range(n)
            needed = rows if wanted else ()
            if number:  # only what the first one left open
                rows = [row for row in rows if not refused[row]]
                # where a wanted slot would be better than what has been found
                needed = [
                    row for row in rows
                    if any(all(slots[j][row] is ABSENT for j in self._better[k]) for k in wanted)
                ]  # fmt: skip
            if not container.has_times:
                rows = needed
            if not rows:
                continue
            raws = [bodies[row][at] for row in rows]
            found, times, reasons = container.read(raws, wanted)
            for k, column in zip(wanted, found, strict=True):
                if number:
                    _fill_gaps(slots[k], rows, column)
                else:  # all rows, and nothing is there yet
                    slots[k] = column
            stamps += [(rows, column) for column in times if not _is_known(column, stamps)]
            if reasons.count(0) < len(reasons):
                must = set(needed)
                for row, raw, reason in zip(rows, raws, reasons, strict=True):
                    # looked at for a time alone, what is no object holds none; a broken one might
                    if reason and (row in must or raw.lstrip().startswith(b"{")):
                        refused[row] = reason
        for first, *others in self._by_value:
            for k in others:
                _fill_gaps(slots[first], range(n), slots[k])
        is_whole = stamps and len(stamps[0][1]) == n
        return Found(
            values=[slots[of_value[0]] for of_value in self._by_value],
            stamps=stamps[0][1] if is_whole else [ABSENT] * n,
            more_stamps=stamps[1:] if is_whole else stamps,
            refused=refused,
        )


def _is_known(column: Column, stamps: list[Stamps]) -> bool:
    """Whether the first stamps say the same in each row: an envelope repeats its payload's time."""
    if not stamps or len(stamps[0][1]) != len(column):
        return False
    try:
        return stamps[0][1] == [*map(str.encode, column)]
    except (TypeError, ValueError):  # not texts
        return False


def _fill_gaps(column: Column, rows: Sequence[int], found: Column) -> None:
    for row, value in zip(rows, found, strict=True):
        if column[row] is ABSENT:
            column[row] = value


class _Container:
    """Reads the values out of one JSON field, `payload`, `data` or one named by a path."""

    def __init__(self, name: str, places: list[tuple[tuple[str, ...], int]], slots: int) -> None:
        """`places` are paths, and the slot of each."""
        paths = [[path for path, at in places if at == slot] for slot in range(slots)]
        times = [*dict.fromkeys(path for path, at in places if at == _TIME)]
        self._name = name if name in CONTAINERS else "mapped field"
        self.may = [k for k, alternatives in enumerate(paths) if alternatives]
        self.has_times = bool(times)
        # the decoder seeks a key from the one before on, so those that are usual come first
        firsts = [alternatives[0] for alternatives in paths if alternatives]
        usual = [*firsts[:3], *times[:1], *firsts[3:], *(path for some in paths for path in some)]
        self._tops = [*dict.fromkeys(path[0] for path in (*usual, *times))]
        values = [(f"f{i}", Any, msgspec.field(default=ABSENT, name=top))
                  for i, top in enumerate(self._tops)]  # fmt: skip
        self._kind = msgspec.defstruct("Container", values, gc=False)
        self._decode = msgspec.json.Decoder(self._kind).decode

        def spot(path: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
            return f"f{self._tops.index(path[0])}", path[1:]

        self._plan = [[*map(spot, alternatives)] for alternatives in paths]
        self._times = [*map(spot, times)]

    def read(
        self, raws: list[bytes], wanted: list[int]
    ) -> tuple[list[Column], list[Column], bytearray]:
        """The columns of the slots `wanted`, absent where not there; all times; problems or 0."""
        objects: list[Any] = []
        reasons = bytearray(len(raws))
        for first in range(0, len(raws), AT_ONCE):
            part = raws[first : first + AT_ONCE]
            whole = b"".join(part)
            # the decoder does not look into the texts of values that nobody asked for; and with a
            # bracket for each object, so few in all leave none that nests deeper than the limit
            # ("[" differs from "{" in one bit; bytes.count goes byte by byte)
            brackets = np.count_nonzero(np.frombuffer(whole, np.uint8) | 32 == ord("{"))
            is_plain = brackets < MAX_DEPTH + len(part) and whole.isascii()
            is_plain = is_plain and len(whole) <= MAX_CONTAINER_BYTES
            is_shallow = brackets <= MAX_DEPTH
            if is_plain:
                try:
                    objects.extend(map(self._decode, part))
                    continue
                except msgspec.DecodeError:  # what came before the odd one is there already
                    if not is_shallow:
                        del objects[first:]
            for row in range(len(objects), first + len(part)):
                raw = raws[row]
                # not every part may be an object with a bracket of its own, so each is counted
                if is_plain and (is_shallow or raw.count(b"{") + raw.count(b"[") <= MAX_DEPTH):
                    try:
                        objects.append(self._decode(raw))
                        continue
                    except msgspec.DecodeError:
                        pass
                found, problem = self._read_with_care(raw)
                objects.append(found)
                if problem:
                    reasons[row] = _REASON[f"{self._name} {problem}"]
        columns = [_found_at(objects, *spot) for spot in self._times]
        times = [column for column in columns if column.count(ABSENT) < len(column)]
        return [_first_of(objects, self._plan[k]) for k in wanted], times, reasons

    def _read_with_care(self, raw: bytes) -> tuple[Any, str]:
        """The object's values and "", or blanks and what is wrong."""
        blank = self._kind()
        if len(raw) > MAX_CONTAINER_BYTES:
            return blank, "over 1 MiB"
        if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and _is_too_deep(raw):
            return blank, "nested deeper than 64"
        try:
            text = raw.decode()
            try:
                return self._decode(raw), ""
            except msgspec.ValidationError:
                # no object, or a number beyond float64: the rest has not been looked at
                found = json.loads(text, parse_constant=no_constant, parse_int=_integer)
                json.dumps(found, ensure_ascii=False).encode()  # raises for lone surrogates
        except (msgspec.DecodeError, ValueError):
            return blank, "is not JSON in UTF-8"
        if not isinstance(found, dict):
            return blank, "is no JSON object"
        return self._kind(*(found.get(top, ABSENT) for top in self._tops)), ""


def _first_of(objects: list[Any], alternatives: list[tuple[str, tuple[str, ...]]]) -> Column:
    """For each object the value at the first of the alternative places that has one."""
    if not alternatives:
        return [ABSENT] * len(objects)
    column = _found_at(objects, *alternatives[0])
    for spot in alternatives[1:]:
        if not column.count(ABSENT):
            break
        _fill_gaps(column, range(len(column)), _found_at(objects, *spot))
    return column


def _found_at(objects: list[Any], top: str, path: Sequence[str]) -> Column:
    """For each object what is at a place in it."""
    found = [*map(attrgetter(top), objects)]
    for name in path:
        found = [value.get(name, ABSENT) if isinstance(value, dict) else ABSENT for value in found]
    return found


def no_constant(name: str) -> Any:
    """What Python's JSON reads beyond JSON: NaN, Infinity; for `parse_constant`."""
    raise ValueError(f"{name} is no JSON")


def _integer(text: str) -> int | float:
    # beyond any timestamp; int() of thousands of digits raises, and would take long
    return int(text) if len(text) <= 40 else float("inf")


def _is_too_deep(raw: bytes) -> bool:
    """Whether brackets outside of texts nest deeper than MAX_DEPTH; linear in the length."""
    brackets = np.frombuffer(_TEXTS.sub(b"", raw), dtype=np.uint8)
    opening = (brackets == ord("{")) | (brackets == ord("["))
    closing = (brackets == ord("}")) | (brackets == ord("]"))
    depth = np.cumsum(opening.astype(np.int32) - closing, dtype=np.int32)
    return bool((depth > MAX_DEPTH).any())
