"""Where the five values of an event stand in an entry: flat fields, JSON fields, mapped paths.

What cannot be read is told as a code into INVALID_REASONS. The contract, section 3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Any

import msgspec
import numpy as np

Column = list[Any]
RawEntry = Sequence[Any]  # [id: bytes, [field, value, ...] | None]; None: the body is gone
INVALID_REASONS = (
    "",
    "payload over 1 MiB",
    "payload nested deeper than 64",
    "payload is not JSON in UTF-8",
    "payload is no JSON object",
    "data over 1 MiB",
    "data nested deeper than 64",
    "data is not JSON in UTF-8",
    "data is no JSON object",
    "symbol missing",
    "symbol not valid",
    "confidence missing",
    "confidence not a number",
    "confidence outside 0..1",
    "timestamp more than 60 s after the entry id",
    "no usable time",
    "mapped field over 1 MiB",
    "mapped field nested deeper than 64",
    "mapped field is not JSON in UTF-8",
    "mapped field is no JSON object",
)
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
_CONTAINERS = ("payload", "data")
VALUES = ("symbol", "side", "confidence", "timestamp", "source")


class _Absent:
    """Told apart from None, which JSON's null becomes."""


ABSENT: Any = _Absent()


@dataclass(frozen=True)
class FieldMap:
    """Where the values are found: names in order of preference; dotted ones reach into JSON."""

    symbol: tuple[str, ...] = ("symbol",)
    side: tuple[str, ...] = ("side", "action", "direction")
    confidence: tuple[str, ...] = ("confidence",)
    timestamp: tuple[str, ...] = ("timestamp",)
    source: tuple[str, ...] = ("source",)


class Layout:
    """How to find the five values in entries with the same field names."""

    def __init__(
        self, names: tuple[bytes, ...], fields: FieldMap, containers: dict[str, _Container]
    ) -> None:
        # backwards, so that of a field given twice the first counts
        at = {names[i]: 2 * i + 1 for i in range(len(names) - 1, -1, -1)}
        found = [
            [at[name.encode()] for name in getattr(fields, value) if name.encode() in at]
            for value in VALUES
        ]
        self._flat = [places[0] if places else None for places in found]
        self._readers = [
            (at[name.encode()], container)
            for name, container in containers.items()
            if name.encode() in at
        ]

    def columns(self, bodies: Sequence[Any]) -> tuple[list[Column], list[int]]:
        """The raw values (bytes where flat) in the order of VALUES, and JSON problems or 0."""
        n = len(bodies)
        values: list[Column] = [
            [ABSENT] * n if at is None else [*map(itemgetter(at), bodies)] for at in self._flat
        ]
        refused = [0] * n
        for number, (at, container) in enumerate(self._readers):
            wanted = [k for k in container.may if self._flat[k] is None]
            rows: Sequence[int] = range(n if wanted else 0)
            if number:  # only what the first one left open
                rows = [
                    row
                    for row in rows
                    if not refused[row] and any(values[k][row] is ABSENT for k in wanted)
                ]
            if not rows:
                continue
            found, reasons = container.read([bodies[row][at] for row in rows], wanted)
            if not number:  # all rows, and nothing is there yet
                refused = reasons
                for k, column in zip(wanted, found, strict=True):
                    values[k] = column
                continue
            for k, column in zip(wanted, found, strict=True):
                _fill_gaps(values[k], rows, column)
            for row, reason in zip(rows, reasons, strict=True):
                refused[row] = reason
        return values, refused


def _fill_gaps(column: Column, rows: Sequence[int], found: Column) -> None:
    for row, value in zip(rows, found, strict=True):
        if column[row] is ABSENT:
            column[row] = value


class _Container:
    """Reads the values out of one JSON field, `payload`, `data` or one named by a mapping."""

    def __init__(self, name: str, paths: list[list[tuple[str, ...]]]) -> None:
        self._name = name if name in _CONTAINERS else "mapped field"
        self.may = [k for k, alternatives in enumerate(paths) if alternatives]
        self._tops = sorted({path[0] for alternatives in paths for path in alternatives})
        self._kind = msgspec.defstruct(
            "Container",
            [
                (f"f{i}", Any, msgspec.field(default=ABSENT, name=top))
                for i, top in enumerate(self._tops)
            ],
            gc=False,
        )
        self._decode = msgspec.json.Decoder(self._kind).decode
        self._plan = [
            [(f"f{self._tops.index(path[0])}", path[1:]) for path in alternatives]
            for alternatives in paths
        ]

    def read(self, raws: list[bytes], wanted: list[int]) -> tuple[list[Column], list[int]]:
        """The columns `wanted` (places in VALUES), absent where not there; problems or 0."""
        objects: list[Any] = []
        reasons = [0] * len(raws)
        for first in range(0, len(raws), AT_ONCE):
            part = raws[first : first + AT_ONCE]
            whole = b"".join(part)
            # the decoder does not look into the texts of values that nobody asked for; and with a
            # bracket for each object, so few in all leave none that nests deeper than the limit
            # ("[" differs from "{" in one bit; bytes.count goes byte by byte)
            brackets = np.count_nonzero(np.frombuffer(whole, np.uint8) | 32 == ord("{"))
            is_plain = brackets < MAX_DEPTH + len(part) and whole.isascii()
            is_plain = is_plain and len(whole) <= MAX_CONTAINER_BYTES
            if is_plain:
                try:
                    objects += [*map(self._decode, part)]
                    continue
                except msgspec.DecodeError:
                    pass
            for row, raw in enumerate(part, first):
                # not every part may be an object with a bracket of its own, so each is counted
                if is_plain and raw.count(b"{") + raw.count(b"[") <= MAX_DEPTH:
                    try:
                        objects.append(self._decode(raw))
                        continue
                    except msgspec.DecodeError:
                        pass
                found, problem = self._read_with_care(raw)
                objects.append(found)
                if problem:
                    reasons[row] = _REASON[f"{self._name} {problem}"]
        return [_first_of(objects, self._plan[k]) for k in wanted], reasons

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
                found = _read_json(text)
        except (msgspec.DecodeError, ValueError):
            return blank, "is not JSON in UTF-8"
        if not isinstance(found, dict):
            return blank, "is no JSON object"
        return self._kind(*(found.get(top, ABSENT) for top in self._tops)), ""


def containers_of(fields: FieldMap) -> dict[str, _Container]:
    """A reader for each JSON field that may hold values, in the order in which they count."""
    roots: dict[str, list[list[tuple[str, ...]]]] = {
        name: [[] for _ in VALUES] for name in _CONTAINERS
    }
    for index, value in enumerate(VALUES):
        for name in getattr(fields, value):
            first, *rest = name.split(".")
            if rest:
                roots.setdefault(first, [[] for _ in VALUES])[index].append(tuple(rest))
            else:
                for container in _CONTAINERS:
                    roots[container][index].append((name,))
    return {name: _Container(name, paths) for name, paths in roots.items() if any(paths)}


def _first_of(objects: list[Any], alternatives: list[tuple[str, tuple[str, ...]]]) -> Column:
    """For each object the value at the first of the alternative places that has one."""
    if not alternatives:
        return [ABSENT] * len(objects)
    column = _found_at(objects, *alternatives[0])
    for top, path in alternatives[1:]:
        gaps = [row for row, value in enumerate(column) if value is ABSENT]
        if not gaps:
            break
        others = _found_at([objects[row] for row in gaps], top, path)
        for row, value in zip(gaps, others, strict=True):
            column[row] = value
    return column


def _found_at(objects: list[Any], top: str, path: tuple[str, ...]) -> Column:
    found = [*map(attrgetter(top), objects)]
    return [_walk(value, path) for value in found] if path else found


def _walk(value: Any, path: Sequence[str]) -> Any:
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return ABSENT
        value = value[name]
    return value


def _read_json(text: str) -> Any:
    """As strict as the fast decoder, but numbers beyond float64 become infinite."""
    found = json.loads(text, parse_constant=_refuse, parse_int=_integer)
    # raises for lone surrogates
    json.dumps(found, ensure_ascii=False).encode()
    return found


def _refuse(text: str) -> Any:
    raise ValueError(text)


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
