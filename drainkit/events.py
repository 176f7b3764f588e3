"""From entries to events: decode raw fields into typed columns, row by row, failing closed.

Pure: no Redis, no clock, no files. What cannot be read makes its own event invalid and leaves
every other row as it was. The rules are those of the contract, section 3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from operator import attrgetter, is_, itemgetter
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from .timestamps import NO_TIME, TIME_SOURCES, as_text, event_times, id_times_us, times_us

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

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
_NO_SYMBOL, _BAD_SYMBOL = _REASON["symbol missing"], _REASON["symbol not valid"]
_NO_CONFIDENCE, _NO_NUMBER = _REASON["confidence missing"], _REASON["confidence not a number"]
_OUTSIDE = _REASON["confidence outside 0..1"]
_AHEAD = _REASON["timestamp more than 60 s after the entry id"]
_TIMELESS = _REASON["no usable time"]

MAX_CONTAINER_BYTES = 1 << 20
MAX_DEPTH = 64
AT_ONCE = 32  # JSON texts; more at once are more to read again for one that is odd
MAX_VOCABULARY = 2_000
MAX_VOCABULARY_CHARACTERS = 4_000_000
MAX_LAYOUTS, MAX_LAYOUT_NAMES, MAX_LAYOUT_BYTES = 1_000, 64, 4_096
MAX_NUMBER_CHARACTERS = 400

_SYMBOL = re.compile(r"[\x21-\x7e]{1,64}")
_DECIMAL = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)", re.ASCII)
# possessive, and to the end if need be: a text that never ends must not be tried at each quote
_TEXTS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_CONTAINERS = ("payload", "data")
_VALUES = ("symbol", "side", "confidence", "timestamp", "source")


class _Absent:
    """Told apart from None, which JSON's null becomes."""


_ABSENT: Any = _Absent()
_UNSEEN = -2  # no code of a vocabulary


@dataclass(frozen=True)
class FieldMap:
    """Where the values are found: names in order of preference; dotted ones reach into JSON."""

    symbol: tuple[str, ...] = ("symbol",)
    side: tuple[str, ...] = ("side", "action", "direction")
    confidence: tuple[str, ...] = ("confidence",)
    timestamp: tuple[str, ...] = ("timestamp",)
    source: tuple[str, ...] = ("source",)


@dataclass(frozen=True, slots=True)
class Events:
    """n events as columns; texts are codes into vocabularies, -1 where absent or not valid."""

    ids: list[bytes]
    event_time_us: np.ndarray  # int64, microseconds since the epoch; NO_TIME unknown
    time_source: np.ndarray  # uint8, codes into TIME_SOURCES
    symbol_code: np.ndarray  # int32
    side_code: np.ndarray  # int32
    source_code: np.ndarray  # int32
    confidence: np.ndarray  # float64, nan where not valid
    invalid: np.ndarray  # uint8, codes into INVALID_REASONS; 0 valid
    missing: np.ndarray  # bool: the body is gone
    symbols: list[str]
    sides: list[str]
    sources: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def symbol(self, row: int) -> str | None:
        """The symbol of one row, None where not valid."""
        code = int(self.symbol_code[row])
        return self.symbols[code] if code >= 0 else None

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> Events:
        """The columns of a FrameBuilder's frame as events; only ids and times are copied."""
        import pandas as pd

        times = frame["event_time"].dt.as_unit("us")
        time_us = times.astype("int64").to_numpy().copy()
        time_us[times.isna().to_numpy()] = NO_TIME

        def codes(column: str, known: Sequence[str] | None = None) -> tuple[np.ndarray, list[str]]:
            text = pd.Categorical(frame[column])
            if known is not None:
                text = text.set_categories(list(known))
            return text.codes, [str(value) for value in text.categories]

        symbol, symbols = codes("symbol")
        side, sides = codes("side")
        source, sources = codes("source")
        return cls(
            ids=frame["id"].str.encode("ascii").tolist(),
            event_time_us=time_us,
            time_source=codes("time_source", TIME_SOURCES)[0].astype(np.uint8),
            symbol_code=symbol,
            side_code=side,
            source_code=source,
            confidence=frame["confidence"].to_numpy(),
            invalid=codes("invalid", INVALID_REASONS)[0].astype(np.uint8),
            missing=frame["missing"].to_numpy(),
            symbols=symbols,
            sides=sides,
            sources=sources,
        )


class Decoder:
    """Decodes batches; vocabularies grow with what it sees and are dropped when too large."""

    def __init__(self, fields: FieldMap | None = None) -> None:
        self._fields = fields or FieldMap()
        self._containers = _containers_of(self._fields)
        self._layouts: dict[tuple[bytes, ...], _Layout] = {}
        self._forget()

    def decode(self, entries: Sequence[RawEntry]) -> Events:
        """The entries as Events, one row each, in their order; never raises for their content.

        Of several things wrong with one event, `invalid` names the first of: its JSON, symbol,
        confidence, time.
        """
        if any(words.is_large() for words in (self._symbols, self._sides, self._sources)):
            self._forget()
        ids = [entry[0] for entry in entries]
        bodies = [entry[1] for entry in entries]
        values: list[Column] = [[] for _ in _VALUES]
        refused: list[int] = []
        order: list[int] = []
        for layout, rows in self._by_layout(bodies):
            columns, reasons = layout.columns([*map(bodies.__getitem__, rows)])
            for column, part in zip(values, columns, strict=True):
                column.extend(part)
            refused += reasons
            order += rows
        missing = np.fromiter(map(is_, bodies, repeat(None)), bool, len(bodies))
        return self._events(ids, missing, values, refused, np.array(order, dtype=np.int64))

    def _by_layout(self, bodies: Sequence[list[bytes] | None]) -> list[tuple[_Layout, list[int]]]:
        """The rows of each layout; a body that is gone is like one without fields."""
        groups: dict[tuple[bytes, ...], list[int]] = {}
        names: list[bytes] | None = None
        for row, body in enumerate(bodies):
            found = [] if body is None else body[::2]
            if found != names:  # most streams have one producer, so one layout
                names = found
                rows = groups.setdefault(tuple(names), [])
            rows.append(row)
        return [(self._layout(names), rows) for names, rows in groups.items()]

    def _events(
        self,
        ids: list[bytes],
        missing: np.ndarray,
        values: list[Column],
        refused: list[int],
        order: np.ndarray,
    ) -> Events:
        """Columns of raw values, the i-th of row `order[i]`, as typed columns."""
        symbols, sides, confidences, timestamps, sources = values
        symbol_code = self._symbols.codes(symbols)
        confidence, wrong = _confidences(confidences)
        invalid = np.array(refused, dtype=np.uint8)
        for row in np.flatnonzero((invalid == 0) & (symbol_code < 0)).tolist():
            invalid[row] = _NO_SYMBOL if symbols[row] is _ABSENT else _BAD_SYMBOL
        invalid = np.where(invalid == 0, wrong, invalid)
        columns = [
            invalid, symbol_code, self._sides.codes(sides), self._sources.codes(sources),
            confidence, times_us(timestamps),
        ]  # fmt: skip
        columns = [_in_order(column, order) for column in columns]
        invalid, symbol_code, side_code, source_code, confidence, stamp_us = columns
        time_us, time_source, is_ahead = event_times(id_times_us(ids), stamp_us)
        invalid[(invalid == 0) & is_ahead] = _AHEAD
        invalid[(invalid == 0) & (time_us == NO_TIME)] = _TIMELESS
        invalid[missing] = 0
        return Events(
            ids=ids,
            event_time_us=time_us,
            time_source=time_source,
            symbol_code=symbol_code,
            side_code=side_code,
            source_code=source_code,
            confidence=confidence,
            invalid=invalid,
            missing=missing,
            symbols=self._symbols.values,
            sides=self._sides.values,
            sources=self._sources.values,
        )

    def _forget(self) -> None:
        self._symbols = _Vocabulary(_valid_symbol)
        self._sides = _Vocabulary(_any_text)
        self._sources = _Vocabulary(_any_text)

    def _layout(self, names: tuple[bytes, ...]) -> _Layout:
        layout = self._layouts.get(names)
        if layout is None:
            layout = _Layout(names, self._fields, self._containers)
            if len(self._layouts) >= MAX_LAYOUTS:  # a producer can invent names without end
                self._layouts.clear()
            if len(names) <= MAX_LAYOUT_NAMES and sum(map(len, names)) <= MAX_LAYOUT_BYTES:
                self._layouts[names] = layout
        return layout


def _in_order(column: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The column with its i-th value at row `order[i]`."""
    whole = np.empty_like(column)
    whole[order] = column
    return whole


class FrameBuilder:
    """Gathers decoded pages and makes one DataFrame of them; payloads are not kept."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._pages: list[Any] = []

    def append(self, entries: Sequence[RawEntry]) -> None:
        """Decode one page."""
        import pyarrow as pa

        events = self._decoder.decode(entries)
        time = pa.array(events.event_time_us, mask=events.event_time_us == NO_TIME)

        def texts(codes: np.ndarray, values: Sequence[str]) -> pa.DictionaryArray:
            indices = pa.array(codes, mask=codes < 0)
            return pa.DictionaryArray.from_arrays(indices, pa.array(values, pa.string()))

        self._pages.append(
            pa.record_batch(
                {
                    "id": pa.array(events.ids, pa.binary()).cast(pa.string()),
                    "event_time": time.cast(pa.timestamp("us", tz="UTC")),
                    "time_source": texts(events.time_source.astype(np.int8), TIME_SOURCES),
                    "symbol": texts(events.symbol_code, events.symbols),
                    "side": texts(events.side_code, events.sides),
                    "source": texts(events.source_code, events.sources),
                    "confidence": pa.array(events.confidence),
                    "invalid": texts(events.invalid.astype(np.int8), INVALID_REASONS),
                    "missing": pa.array(events.missing),
                }
            )
        )

    def frame(self) -> pd.DataFrame:
        """All rows in the order of appending.

        Columns id (str), event_time (datetime64[us, UTC], NaT unknown), time_source (category),
        symbol, side, source (category, sorted; missing where not valid), confidence (float64, nan
        where not valid), invalid (category, "" valid), missing (bool: the body is gone).
        """
        import pandas as pd
        import pyarrow as pa

        if not self._pages:
            self.append([])
        text = pd.StringDtype("pyarrow", na_value=np.nan)  # what pandas 3 calls str
        table = pa.Table.from_batches(self._pages).unify_dictionaries()
        self._pages = []
        for at, name in enumerate(table.column_names):
            if name in ("symbol", "side", "source"):
                table = table.set_column(at, name, _with_sorted_dictionary(table.column(at)))
        frame: pd.DataFrame = table.to_pandas(
            types_mapper=lambda kind: text if kind == pa.string() else None,
            self_destruct=True,
            split_blocks=True,
        )
        return frame


def _with_sorted_dictionary(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The same values; in pandas it costs memory for three more columns."""
    import pyarrow as pa
    import pyarrow.compute as pc

    dictionary = column.chunk(0).dictionary
    order = pc.array_sort_indices(dictionary)
    rank = pa.array(np.argsort(order.to_numpy()).astype(np.int32))
    words = dictionary.take(order)
    return pa.chunked_array(
        [pa.DictionaryArray.from_arrays(rank.take(c.indices), words) for c in column.chunks]
    )


class _Vocabulary:
    """Codes for the valid texts seen; -1 for everything else, which is not remembered."""

    def __init__(self, read: Callable[[Any], str | None]) -> None:
        self.values: list[str] = []
        self._read = read
        self._codes: dict[Any, int] = {_ABSENT: -1}  # by str and by bytes
        self._characters = 0

    def is_large(self) -> bool:
        """Whether it is time to begin a new one, so that memory stays bounded."""
        return len(self._codes) > MAX_VOCABULARY or self._characters > MAX_VOCABULARY_CHARACTERS

    def codes(self, values: Column) -> np.ndarray:
        """The codes of many values (int32)."""
        try:
            known = map(self._codes.get, values, repeat(_UNSEEN))
            codes = np.fromiter(known, np.int32, len(values))
        except TypeError:  # JSON objects and arrays have no hash
            codes = np.full(len(values), _UNSEEN, np.int32)
        for row in np.flatnonzero(codes == _UNSEEN).tolist():
            codes[row] = self._code(values[row])
        return codes

    def _code(self, value: Any) -> int:
        kind = type(value)
        if kind is not str and kind is not bytes:
            return -1
        code = self._codes.get(value)
        if code is not None:
            return code
        text = self._read(value)
        if text is None:
            return -1
        code = self._codes.get(text)
        if code is None:
            code = self._codes[text] = len(self.values)
            self.values.append(text)
        self._codes[value] = code
        self._characters += len(text)
        return code


class _Layout:
    """How to find the five values in entries with the same field names."""

    def __init__(
        self, names: tuple[bytes, ...], fields: FieldMap, containers: dict[str, _Container]
    ) -> None:
        # backwards, so that of a field given twice the first counts
        at = {names[i]: 2 * i + 1 for i in range(len(names) - 1, -1, -1)}
        found = [
            [at[name.encode()] for name in getattr(fields, value) if name.encode() in at]
            for value in _VALUES
        ]
        self._flat = [places[0] if places else None for places in found]
        self._readers = [
            (at[name.encode()], container)
            for name, container in containers.items()
            if name.encode() in at
        ]

    def columns(self, bodies: Sequence[Any]) -> tuple[list[Column], list[int]]:
        """The raw values (bytes where flat) in the order of _VALUES, and JSON problems or 0."""
        n = len(bodies)
        values: list[Column] = [
            [_ABSENT] * n if at is None else [*map(itemgetter(at), bodies)] for at in self._flat
        ]
        refused = [0] * n
        for number, (at, container) in enumerate(self._readers):
            wanted = [k for k in container.may if self._flat[k] is None]
            rows: Sequence[int] = range(n if wanted else 0)
            if number:  # only what the first one left open
                rows = [
                    row
                    for row in rows
                    if not refused[row] and any(values[k][row] is _ABSENT for k in wanted)
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
        if column[row] is _ABSENT:
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
                (f"f{i}", Any, msgspec.field(default=_ABSENT, name=top))
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
        """The columns `wanted` (places in _VALUES), absent where not there; problems or 0."""
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
        return self._kind(*(found.get(top, _ABSENT) for top in self._tops)), ""


def _containers_of(fields: FieldMap) -> dict[str, _Container]:
    """A reader for each JSON field that may hold values, in the order in which they count."""
    roots: dict[str, list[list[tuple[str, ...]]]] = {
        name: [[] for _ in _VALUES] for name in _CONTAINERS
    }
    for index, value in enumerate(_VALUES):
        for name in getattr(fields, value):
            first, *rest = name.split(".")
            if rest:
                roots.setdefault(first, [[] for _ in _VALUES])[index].append(tuple(rest))
            else:
                for container in _CONTAINERS:
                    roots[container][index].append((name,))
    return {name: _Container(name, paths) for name, paths in roots.items() if any(paths)}


def _first_of(objects: list[Any], alternatives: list[tuple[str, tuple[str, ...]]]) -> Column:
    """For each object the value at the first of the alternative places that has one."""
    if not alternatives:
        return [_ABSENT] * len(objects)
    column = _found_at(objects, *alternatives[0])
    for top, path in alternatives[1:]:
        gaps = [row for row, value in enumerate(column) if value is _ABSENT]
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
            return _ABSENT
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


def _any_text(value: Any) -> str | None:
    text = as_text(value)
    return text or None


def _valid_symbol(value: Any) -> str | None:
    text = as_text(value)
    return text if text is not None and _SYMBOL.fullmatch(text) else None


def _confidences(values: Column) -> tuple[np.ndarray, np.ndarray]:
    """The numbers (float64, nan where not valid) and the reasons (uint8, 0 valid)."""
    numbers = np.array([value if type(value) is float else np.nan for value in values], float)
    reasons = np.zeros(len(values), dtype=np.uint8)
    odd = np.flatnonzero(~((numbers >= 0) & (numbers <= 1)))
    if len(odd):
        found = [_confidence(values[row]) for row in odd.tolist()]
        numbers[odd], reasons[odd] = zip(*found, strict=True)
    return np.abs(numbers), reasons  # -0.0 is 0


def _confidence(value: Any) -> tuple[float, int]:
    """The number and 0, or nan and the reason."""
    kind = type(value)
    if kind is float or kind is int:
        return _within(value)
    if value is _ABSENT:
        return np.nan, _NO_CONFIDENCE
    if kind is bytes and len(value) <= 16:  # few digits, so the same texts again and again
        return _confidence_text(value)
    text = as_text(value)
    if text is None or len(text) > MAX_NUMBER_CHARACTERS or not _DECIMAL.fullmatch(text):
        return np.nan, _NO_NUMBER
    return _within(float(text))


@lru_cache(1024)
def _confidence_text(text: bytes) -> tuple[float, int]:
    if not text.isascii() or not _DECIMAL.fullmatch(text.decode()):
        return np.nan, _NO_NUMBER
    return _within(float(text))


def _within(number: float) -> tuple[float, int]:
    return (float(number), 0) if 0 <= number <= 1 else (np.nan, _OUTSIDE)
