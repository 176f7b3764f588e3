"""Where the values of an event stand in an entry, and which times its timestamps are.

Flat fields, JSON fields, paths into them: of symbol, side, confidence and source the best place
counts, of the timestamps all do. What cannot be read is told as a code into INVALID_REASONS. Times
are read as whole columns where their form is usual. The contract, section 3.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from functools import cache, partial
from operator import itemgetter
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import astuple

from ..settings import Fields

Column = list[Any]
RawEntry = Sequence[Any]  # [id: bytes, [field, value, ...] | None]; None: the body is gone
Path = tuple[str, ...]  # of names, into a JSON object
Stamps = list[tuple[Sequence[int], Column]]  # rows, and what each holds under a time's name
INVALID_REASONS = (
    "",
    *(f"{field} {problem}" for field in ("payload", "data", "mapped field") for problem in (
        "over 1 MiB", "nested deeper than 64", "is not JSON in UTF-8", "is no JSON object")),
    "symbol missing", "symbol not valid", "confidence missing", "confidence not a number",
    "confidence outside 0..1", "timestamp more than 60 s after the entry id", "no usable time",
)  # fmt: skip
NO_SYMBOL, BAD_SYMBOL, NO_CONFIDENCE, NO_NUMBER, OUTSIDE, AHEAD, TIMELESS = range(13, 20)
MAX_CONTAINER_BYTES = 1 << 20
MAX_DEPTH = 64
AT_ONCE = 32  # JSON texts; more at once are more to read again for one that is odd
# possessive, and to the end if need be: a text that never ends must not be tried at each quote
_TEXTS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
CONTAINERS = ("payload", "data")
VALUES = ("symbol", "side", "confidence", "source")
ABSENT: Any = object()  # told apart from None, which JSON's null becomes

NO_TIME = np.iinfo(np.int64).min
TIME_SOURCES = ("timestamp", "entry_id", "unknown")
EARLIEST_ID_MS = 1_262_304_000_000  # 2010-01-01: smaller ids are plainly no times
LATEST_ID_MS = 253_402_300_799_999  # the end of year 9999: datetime knows no later time
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_US = dt.timedelta(microseconds=1)
_EARLIEST_US = (dt.datetime(1, 1, 1, tzinfo=dt.UTC) - EPOCH) // _US
_LATEST_US = LATEST_ID_MS * 1000 + 999
_WITH_SECONDS = re.compile(r"\d\d:?\d\d:?\d\d$", re.ASCII)
_EPOCH_TEXT = re.compile(r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d{1,3})?", re.ASCII)
# the usual forms of ISO 8601 by their length, each with where its offset begins; 0 is a digit
_ISO_SHAPES = {
    end + len(offset): (b"0000-00-00T00:00:00.000000"[:end] + offset, end)
    for end in (19, 23, 26)
    for offset in (b"Z", b"+00:00")
}
# Epoch seconds, ms, us and ns lie a factor of 1,000 apart and today's seconds are 1.8e9, so they
# cannot be mistaken for one another: (magnitude below which it is that unit, ns in the unit).
_UNITS = ((10**11, 10**9), (10**14, 10**6), (10**17, 10**3), (10**20, 1))


def paths_of(names: Iterable[str]) -> dict[str, list[Path]]:
    """Where names lie, by the field whose JSON object holds them, in the order in which they count.

    One without a dot lies in payload and data.
    """
    found: dict[str, list[Path]] = {root: [] for root in CONTAINERS}
    for name in names:
        root, *path = name.split(".")
        for at in (root,) if path else CONTAINERS:
            found.setdefault(at, []).append((*path,) or (name,))
    return found


class Places:
    """Where to look for what: `Fields` made ready for the layouts that occur."""

    def __init__(self, fields: Fields) -> None:
        # a slot is a value and its names of one rank
        slots = [(value, names) for value in VALUES for names in fields.ranks(value)]
        self.by_value = [[k for k, slot in enumerate(slots) if slot[0] == v] for v in VALUES]
        # of each slot itself and those of the same value that go before it
        self.better = [own[: i + 1] for own in self.by_value for i in range(len(own))]
        names = [*(names for _, names in slots), fields.timestamp]  # the times at last
        self.names = [[name.encode() for name in of_slot] for of_slot in names]
        paths = [paths_of(of_slot) for of_slot in names]
        self.containers = {
            # made when it is met, once: that takes a while
            root.encode(): cache(partial(_Container, root, [own.get(root, []) for own in paths]))
            for root in dict.fromkeys(root for own in paths for root in own)
        }


class Layout:
    """How to find the values in entries with the same field names."""

    def __init__(self, names: tuple[bytes, ...], places: Places) -> None:
        # backwards, so that of a field given twice the first counts
        at = {names[i]: 2 * i + 1 for i in range(len(names) - 1, -1, -1)}
        *found, self._times = [[at[name] for name in own if name in at] for own in places.names]
        self._flat = [spots[0] if spots else None for spots in found]
        self._better, self._by_value = places.better, places.by_value
        self._readers: list[tuple[int, _Container, list[int]]] = []
        for name in [name for name in places.containers if name in at]:
            container = places.containers[name]()
            is_open = [all(self._flat[j] is None for j in better) for better in self._better]
            self._readers.append((at[name], container, [k for k in container.may if is_open[k]]))

    def find(self, bodies: Sequence[Any]) -> tuple[list[Column], Stamps, bytearray]:
        """For each of VALUES a column of raw values (bytes where flat), and all timestamps.

        At last for each row what is wrong with its JSON, or 0.
        """
        n = len(bodies)
        slots: list[Column] = [
            [ABSENT] * n if at is None else [*map(itemgetter(at), bodies)] for at in self._flat
        ]
        stamps: Stamps = [(range(n), [*map(itemgetter(at), bodies)]) for at in self._times]
        refused = bytearray(n)

        def is_open(row: int, wanted: list[int]) -> bool:  # would any be better than what is found?
            return any(all(slots[j][row] is ABSENT for j in self._better[k]) for k in wanted)

        for at, container, wanted in self._readers:
            rows: Sequence[int] = range(n)
            if any(refused):
                rows = [row for row in rows if not refused[row]]
            if not container.has_times:
                rows = [row for row in rows if is_open(row, wanted)]
            raws = [bodies[row][at] for row in rows]
            found, times, reasons = container.read(raws, wanted)
            for row, raw, reason in zip(rows, raws, reasons, strict=True) if any(reasons) else ():
                # looked at for a time alone, what is no object holds none; a broken one might
                if reason and (is_open(row, wanted) or raw.lstrip()[:1] == b"{"):
                    refused[row] = reason
            for k, column in zip(wanted, found, strict=True):
                slots[k] = _filled(slots[k], rows, column)
            stamps += [(rows, column) for column in times]
        values = []
        for first, *others in self._by_value:
            for k in others:
                slots[first] = _filled(slots[first], range(n), slots[k])
            values.append(slots[first])
        return values, stamps, refused


def _filled(column: Column, rows: Sequence[int], found: Column) -> Column:
    """The column with what was found in these rows where it has nothing yet."""
    absent = column.count(ABSENT)
    if len(found) == len(column) == absent:  # nothing at all: mostly
        return found
    for row, value in zip(rows, found, strict=True) if absent else ():
        if column[row] is ABSENT:
            column[row] = value
    return column


class _Container:
    """Reads the values out of one JSON field, `payload`, `data` or one named by a path."""

    def __init__(self, name: str, paths: list[list[Path]]) -> None:
        """`paths` are those of each slot, and at last those of the times."""
        self._first_reason = 1 + 4 * [*CONTAINERS, name].index(name)
        self.may = [k for k, of_slot in enumerate(paths[:-1]) if of_slot]
        self.has_times = bool(paths[-1])
        # the decoder seeks a key from the one before on, so those that are usual come first
        firsts = [paths[k][0] for k in self.may]
        usual = [*firsts[:3], *paths[-1][:1], *firsts[3:], *(path for own in paths for path in own)]
        self._tops = [*dict.fromkeys(path[0] for path in usual)]
        values = [(f"f{i}", Any, msgspec.field(default=ABSENT, name=top))
                  for i, top in enumerate(self._tops)]  # fmt: skip
        self._kind = msgspec.defstruct("Container", values, gc=False)
        self._decode = msgspec.json.Decoder(self._kind).decode
        self._spots = [
            [(self._tops.index(path[0]), path[1:]) for path in dict.fromkeys(own)] for own in paths
        ]

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
            if is_plain and len(whole) <= MAX_CONTAINER_BYTES:
                try:
                    objects.extend(map(self._decode, part))
                    continue
                except msgspec.DecodeError:  # the odd one may have no bracket, so others more
                    del objects[first:]
            for row, raw in enumerate(part, first):
                found, problem = self._read_with_care(raw)
                objects.append(found)
                reasons[row] = problem and self._first_reason + problem - 1
        nothing = (ABSENT,) * len(raws)
        # a tuple of each at once: as attributes they take three times as long
        tops = [*zip(*map(astuple, objects), strict=True)] or [nothing] * len(self._tops)

        def found_at(top: int, path: Path) -> Column:  # for each object what is at a place in it
            column = [*tops[top]]
            for name in path:
                column = [x.get(name, ABSENT) if isinstance(x, dict) else ABSENT for x in column]
            return column

        columns = []
        for best, *others in (self._spots[k] for k in wanted):
            column = found_at(*best)
            for spot in others:  # of several places the first that has one
                column = _filled(column, range(len(raws)), found_at(*spot))
            columns.append(column)
        times = [found_at(*spot) for spot in self._spots[-1] if tops[spot[0]] != nothing]
        return columns, times, reasons

    def _read_with_care(self, raw: bytes) -> tuple[Any, int]:
        """The object's values and 0, or blanks and which of a field's problems it has (1 to 4)."""
        if len(raw) > MAX_CONTAINER_BYTES:
            return self._kind(), 1
        if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and _is_too_deep(raw):
            return self._kind(), 2
        try:
            text = raw.decode()
            try:
                return self._decode(raw), 0
            except msgspec.ValidationError:
                # no object, or a number beyond float64: the rest has not been looked at. A whole
                # number is beyond any timestamp then; int() of thousands of digits raises
                found = json.loads(
                    text, parse_constant=no_constant,
                    parse_int=lambda digits: int(digits) if len(digits) <= 40 else float("inf"),
                )  # fmt: skip
                json.dumps(found, ensure_ascii=False).encode()  # raises for lone surrogates
        except (msgspec.DecodeError, ValueError):
            return self._kind(), 3
        if not isinstance(found, dict):
            return self._kind(), 4
        return self._kind(*(found.get(top, ABSENT) for top in self._tops)), 0


def no_constant(name: str) -> Any:
    """What Python's JSON reads beyond JSON: NaN, Infinity; for `parse_constant`."""
    raise ValueError(f"{name} is no JSON")


def _is_too_deep(raw: bytes) -> bool:
    """Whether brackets outside of texts nest deeper than MAX_DEPTH; linear in the length."""
    brackets = np.frombuffer(_TEXTS.sub(b"", raw), dtype=np.uint8)
    opening = (brackets == ord("{")) | (brackets == ord("["))
    closing = (brackets == ord("}")) | (brackets == ord("]"))
    depth = np.cumsum(opening.astype(np.int32) - closing, dtype=np.int32)
    return bool((depth > MAX_DEPTH).any())


# ---------------------------------------------------------------- times


def as_text(value: Any) -> str | None:
    """The value as text; None for what is no text, or no UTF-8."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return value if isinstance(value, str) else None


def id_times_us(ids: list[bytes]) -> np.ndarray:
    """The ids' milliseconds as microseconds (int64), NO_TIME for ids that are plainly no times."""
    # milliseconds have 13 digits from 2001 to 2286; other ids are read one by one
    chars = np.array(ids, dtype="S14").view(np.uint8).reshape(-1, 14)
    digits = chars[:, :13] - np.uint8(ord("0"))
    fits = (digits <= 9).all(axis=1) & (chars[:, 13] == ord("-"))
    # as floats, which are exact below 2**53 and multiplied many times faster than integers
    times = (digits @ 10.0 ** np.arange(12, -1, -1)).astype(np.int64) * 1000
    for row in np.flatnonzero(~fits).tolist():
        ms = int(ids[row].partition(b"-")[0])
        times[row] = ms * 1000 if ms <= LATEST_ID_MS else NO_TIME
    times[times < EARLIEST_ID_MS * 1000] = NO_TIME
    return times


def times_us(values: Sequence[Any]) -> np.ndarray:
    """Microseconds since the epoch (int64), NO_TIME where there is no readable timestamp.

    The usual forms of ISO 8601, and whole numbers, are read as columns, all else one by one.
    """
    times = np.full(len(values), NO_TIME)
    kinds = [*map(type, values)]
    if bytes in kinds:  # in flat fields numbers are texts: a drain would decode half as fast
        values = [
            int(n) if k is bytes and len(n) < 18 and n.isdigit() else n
            for k, n in zip(kinds, values, strict=True)
        ]
        kinds = [*map(type, values)]
    if int in kinds:
        whole = [
            n if k is int and 0 <= n < 10**17 else -1 for k, n in zip(kinds, values, strict=True)
        ]
        numbers = np.array(whole)
        scales = np.where(numbers < 10**11, 10**6, np.where(numbers < 10**14, 1000, 1))
        times = np.where(numbers >= 0, numbers * scales, NO_TIME)
    # each character a byte: what is not ASCII becomes a question mark
    texts = [
        n if k is bytes else n.encode("ascii", "replace") if k is str else b""
        for k, n in zip(kinds, values, strict=True)
    ]
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    for size in _ISO_SHAPES.keys() & {*sizes.tolist()}:
        rows = np.flatnonzero(sizes == size)
        chosen = texts if len(rows) == len(texts) else [texts[row] for row in rows.tolist()]
        times[rows] = _iso_times_us(b"".join(chosen), *_ISO_SHAPES[size])
    for row in np.flatnonzero(times == NO_TIME).tolist():
        if kinds[row] in (bytes, str, int, float) and (time := _time_us(values[row])) is not None:
            times[row] = time
    return times


def _iso_times_us(texts: bytes, shape: bytes, end: int) -> np.ndarray:
    """Texts, each as long as `shape`, as times (int64, us); NO_TIME for others than `shape`.

    Up to `end` 0 stands for a digit. If one of them is no time of the calendar, all are left to be
    read one by one.
    """
    form = np.frombuffer(shape, dtype=np.uint8)
    is_digit = (form == ord("0")) & (np.arange(len(shape)) < end)
    chars = np.frombuffer(texts, dtype=np.uint8).reshape(-1, len(shape))
    fits = ((chars - np.uint8(ord("0")))[:, is_digit] <= 9).all(axis=1)
    fits &= (chars[:, ~is_digit] == form[~is_digit]).all(axis=1)
    times = np.full(len(chars), NO_TIME)
    plain = np.ascontiguousarray(chars[fits, :end]).view(f"S{end}").ravel()
    try:
        read = plain.astype("datetime64[us]").astype(np.int64)
    except ValueError:
        return times
    times[fits] = np.where(read >= _EARLIEST_US, read, NO_TIME)  # there is no year 0
    return times


def _time_us(value: float | str | bytes) -> int | None:
    """Microseconds since the epoch, rounded down; None where there is no readable timestamp."""
    # the shortest text that gives this number, so that 1735069798.664912 loses nothing
    text = as_text(value) if isinstance(value, str | bytes) else repr(value)
    if text is None or len(text) > 64 or not text.isascii():
        return None
    if _EPOCH_TEXT.fullmatch(text):
        above, below = Decimal(text).as_integer_ratio()
        scales = (scale for limit, scale in _UNITS if abs(above) < limit * below)
        micros = above * next(scales, 10**30) // (below * 1000)  # none: beyond the calendar
    else:
        before, mark, _ = text.replace(",", ".").partition(".")
        if mark and not _WITH_SECONDS.search(before):
            return None  # fromisoformat takes 19:20.5 for half a second after 19:20
        try:
            time = dt.datetime.fromisoformat(text.upper())  # RFC 3339 allows t and z
            micros = ((time if time.tzinfo else time.replace(tzinfo=dt.UTC)) - EPOCH) // _US
        except (ValueError, OverflowError):
            return None
    return micros if _EARLIEST_US <= micros <= _LATEST_US else None


def iso(time_us: int) -> str:
    """Microseconds since the epoch as ISO 8601 UTC with microseconds and offset."""
    return (EPOCH + dt.timedelta(microseconds=time_us)).isoformat(timespec="microseconds")
