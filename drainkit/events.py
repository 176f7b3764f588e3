"""From entries to events: decode raw fields into typed columns, row by row, failing closed.

Pure: no Redis, no clock, no files. What cannot be read makes its own event invalid and leaves
every other row as it was. The rules are those of the contract, section 3.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

if TYPE_CHECKING:
    import pandas as pd

RawEntry = Sequence[Any]  # [id: bytes, [field, value, ...] | None]; None: the body is gone

NO_TIME = np.iinfo(np.int64).min
TIME_SOURCES = ("timestamp", "entry_id", "unknown")
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

MAX_CONTAINER_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_AHEAD_US = 60_000_000
EARLIEST_ID_MS = 1_262_304_000_000  # 2010-01-01: smaller ids are plainly no times
LATEST_ID_MS = 253_402_300_799_999  # the end of year 9999: datetime knows no later time
MAX_VOCABULARY = 2_000

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_EARLIEST_US = (dt.datetime(1, 1, 1, tzinfo=dt.UTC) - _EPOCH) // dt.timedelta(microseconds=1)
_LATEST_US = LATEST_ID_MS * 1000 + 999
_SYMBOL = re.compile(r"[\x21-\x7e]{1,64}")
_DECIMAL = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)", re.ASCII)
_EPOCH_TEXT = re.compile(r"([+-]?)(\d{1,20})(?:\.(\d{0,30}))?", re.ASCII)
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|([{\[])|([}\]])', re.DOTALL)
_CONTAINERS = ("payload", "data")
_VALUES = ("symbol", "side", "confidence", "timestamp", "source")


class _Absent:
    """Told apart from None, which JSON's null becomes."""


_ABSENT: Any = _Absent()


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
        """The columns of a FrameBuilder's frame as events; texts and numbers are not copied."""
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
        self._layouts: dict[tuple[bytes, ...], _Layout] = {}
        self._containers = _container_decoder(self._fields)
        self._forget()

    def decode(self, entries: Sequence[RawEntry]) -> Events:
        """The entries as Events, one row each, in their order; never raises for their content."""
        if max(len(self._symbols), len(self._sides), len(self._sources)) > MAX_VOCABULARY:
            self._forget()
        rows = [self._row(entry[0], entry[1]) for entry in entries]
        columns = list(zip(*rows, strict=True)) if rows else [()] * 7
        return Events(
            ids=[entry[0] for entry in entries],
            event_time_us=np.array(columns[0], dtype=np.int64),
            time_source=np.array(columns[1], dtype=np.uint8),
            symbol_code=np.array(columns[2], dtype=np.int32),
            side_code=np.array(columns[3], dtype=np.int32),
            source_code=np.array(columns[4], dtype=np.int32),
            confidence=np.array(columns[5], dtype=np.float64),
            invalid=np.array(columns[6], dtype=np.uint8),
            missing=np.array([entry[1] is None for entry in entries], dtype=bool),
            symbols=self._symbols.values,
            sides=self._sides.values,
            sources=self._sources.values,
        )

    def _forget(self) -> None:
        self._symbols = _Vocabulary(_valid_symbol)
        self._sides = _Vocabulary(_any_text)
        self._sources = _Vocabulary(_any_text)
        self._layouts.clear()

    def _row(self, entry_id: bytes, fields: list[bytes] | None) -> tuple[Any, ...]:
        """(time, time source, symbol, side, source codes, confidence, invalid) of one entry."""
        id_us = _id_time_us(entry_id)
        if fields is None:
            known = id_us != NO_TIME
            return id_us, 1 if known else 2, -1, -1, -1, np.nan, 0
        names = tuple(fields[::2])
        layout = self._layouts.get(names)
        if layout is None:
            layout = self._learn(names)
        values, reason = layout.values(fields)
        symbol, side, confidence, timestamp, source = values
        symbol_code = self._symbols.code(symbol)
        number, confidence_reason = _confidence(confidence)
        stamp_us = _time_us(timestamp)
        if stamp_us is None:
            time_us, time_source = id_us, 1 if id_us != NO_TIME else 2
        elif id_us == NO_TIME:
            time_us, time_source = stamp_us, 0
        else:
            # the earlier of the two: a wrong clock makes an event older, never younger
            time_us, time_source = (stamp_us, 0) if stamp_us <= id_us else (id_us, 1)
        if not reason:
            if symbol_code < 0:
                reason = _REASON["symbol missing" if symbol is _ABSENT else "symbol not valid"]
            elif confidence_reason:
                reason = confidence_reason
            elif stamp_us is not None and id_us != NO_TIME and stamp_us - id_us > MAX_AHEAD_US:
                reason = _REASON["timestamp more than 60 s after the entry id"]
            elif time_us == NO_TIME:
                reason = _REASON["no usable time"]
        return (
            time_us, time_source, symbol_code, self._sides.code(side), self._sources.code(source),
            number, reason,
        )  # fmt: skip

    def _learn(self, names: tuple[bytes, ...]) -> _Layout:
        layout = _Layout(names, self._fields, self._containers)
        if len(self._layouts) < 1000:  # hostile producers can invent field names without end
            self._layouts[names] = layout
        return layout


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
            indices = pa.array(codes.astype(np.int32), mask=codes < 0)
            return pa.DictionaryArray.from_arrays(indices, pa.array(values, pa.string()))

        self._pages.append(
            pa.record_batch(
                {
                    "id": pa.array(events.ids, pa.binary()).cast(pa.string()),
                    "event_time": time.cast(pa.timestamp("us", tz="UTC")),
                    "time_source": texts(events.time_source.astype(np.int32), TIME_SOURCES),
                    "symbol": texts(events.symbol_code, events.symbols),
                    "side": texts(events.side_code, events.sides),
                    "source": texts(events.source_code, events.sources),
                    "confidence": pa.array(events.confidence),
                    "invalid": texts(events.invalid.astype(np.int32), INVALID_REASONS),
                    "missing": pa.array(events.missing),
                }
            )
        )

    def frame(self) -> pd.DataFrame:
        """Columns id (str), event_time (datetime64[us, UTC]), time_source, symbol, side, source
        (category, missing where not valid), confidence (float64), invalid (category; "" valid),
        missing (bool)."""
        import pandas as pd
        import pyarrow as pa

        if not self._pages:
            self.append([])
        table = pa.Table.from_batches(self._pages).unify_dictionaries()
        self._pages = []
        frame: pd.DataFrame = table.to_pandas(
            types_mapper=lambda kind: pd.StringDtype("pyarrow") if kind == pa.string() else None,
            self_destruct=True,
            split_blocks=True,
        )
        return frame


class _Vocabulary:
    """Codes for the valid values seen; what is not valid is -1 and remembered as such."""

    def __init__(self, read: Callable[[Any], str | None]) -> None:
        self.values: list[str] = []
        self._read = read
        self._codes: dict[Any, int] = {}

    def __len__(self) -> int:
        return len(self._codes)

    def code(self, value: Any) -> int:
        kind = type(value)
        if kind is not str and kind is not bytes:  # 1, True and 1.0 would be one key
            return -1
        code = self._codes.get(value)
        if code is None:
            text = self._read(value)
            if text is None:
                code = -1
            elif kind is bytes:
                code = self.code(text)
            else:
                code = len(self.values)
                self.values.append(text)
            self._codes[value] = code
        return code


class _Layout:
    """How to find the five values in entries with the same field names."""

    def __init__(
        self, names: tuple[bytes, ...], fields: FieldMap, decoders: dict[str, _Container]
    ) -> None:
        # of a field given twice the first counts; `index` finds that one
        self._at = {name: 2 * names.index(name) + 1 for name in names}
        self._flat = [self._first(getattr(fields, value)) for value in _VALUES]
        wanted = [at is None for at in self._flat]
        self._readers = [
            (self._at[name.encode()], decoder)
            for name, decoder in decoders.items()
            if name.encode() in self._at
            and any(w and m for w, m in zip(wanted, decoder.may, strict=True))
        ]

    def _first(self, names: tuple[str, ...]) -> int | None:
        found = (self._at.get(name.encode()) for name in names)
        return next((at for at in found if at is not None), None)

    def values(self, fields: list[bytes]) -> tuple[list[Any], int]:
        """The values in the order of _VALUES (bytes where flat), and an invalid reason or 0."""
        values = [_ABSENT if at is None else fields[at] for at in self._flat]
        for at, decoder in self._readers:
            if not any(v is _ABSENT and m for v, m in zip(values, decoder.may, strict=True)):
                continue
            found, reason = decoder.read(fields[at])
            if reason:
                return values, reason
            values = [f if v is _ABSENT else v for v, f in zip(values, found, strict=True)]
        return values, 0


class _Container:
    """Reads the values out of one JSON field, `payload`, `data` or one named by a mapping."""

    def __init__(self, name: str, paths: list[list[tuple[str, ...]]]) -> None:
        self._name = name if name in _CONTAINERS else "mapped field"
        self.may = [bool(alternatives) for alternatives in paths]
        self._tops = tops = sorted({path[0] for alternatives in paths for path in alternatives})
        kind = msgspec.defstruct(
            "Container",
            [
                (f"f{i}", Any, msgspec.field(default=_ABSENT, name=top))
                for i, top in enumerate(tops)
            ],
            gc=False,
        )
        self._decode = msgspec.json.Decoder(kind).decode
        at = {top: i for i, top in enumerate(tops)}
        self._plan = [[(f"f{at[p[0]]}", p[1:]) for p in alternatives] for alternatives in paths]

    def read(self, raw: bytes) -> tuple[list[Any], int]:
        """The five values, absent where not there, and an invalid reason or 0."""
        if len(raw) > MAX_CONTAINER_BYTES:
            return [], _REASON[f"{self._name} over 1 MiB"]
        if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and _depth(raw) > MAX_DEPTH:
            return [], _REASON[f"{self._name} nested deeper than 64"]
        try:
            # the decoder does not look into the texts of values that nobody asked for
            if not raw.isascii():
                raw.decode()
            found = self._decode(raw)
        except msgspec.ValidationError:
            return self._read_slowly(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return [], _REASON[f"{self._name} is not JSON in UTF-8"]
        return [_first_of(found, plan) for plan in self._plan], 0

    def _read_slowly(self, raw: bytes) -> tuple[list[Any], int]:
        """For what the typed decoder refuses as a whole: no object, or a number out of range."""
        try:
            found = json.loads(raw, parse_constant=_refuse, parse_int=_integer)
        except (ValueError, RecursionError):
            return [], _REASON[f"{self._name} is not JSON in UTF-8"]
        if not isinstance(found, dict):
            return [], _REASON[f"{self._name} is no JSON object"]
        tops = {f"f{i}": found.get(top, _ABSENT) for i, top in enumerate(self._tops)}
        return [_first_of(SimpleNamespace(**tops), plan) for plan in self._plan], 0


def _container_decoder(fields: FieldMap) -> dict[str, _Container]:
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


def _first_of(found: Any, plan: list[tuple[str, tuple[str, ...]]]) -> Any:
    """The first of the alternative places that has a value."""
    for attribute, path in plan:
        value = getattr(found, attribute)
        if path:
            value = _walk(value, path)
        if value is not _ABSENT:
            return value
    return _ABSENT


def _walk(value: Any, path: Sequence[str]) -> Any:
    for name in path:
        if not isinstance(value, dict) or name not in value:
            return _ABSENT
        value = value[name]
    return value


def _refuse(text: str) -> Any:
    raise ValueError(text)


def _integer(text: str) -> int | float:
    # beyond any timestamp; int() of thousands of digits raises, and would take long
    return int(text) if len(text) <= 40 else float("inf")


def _depth(raw: bytes) -> int:
    """The deepest nesting of brackets outside of texts."""
    depth = deepest = 0
    for match in _BRACKETS.finditer(raw):
        if match.group(1):
            depth += 1
            deepest = max(deepest, depth)
        elif match.group(2):
            depth -= 1
    return deepest


def _as_text(value: Any) -> str | None:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return value if isinstance(value, str) else None


def _any_text(value: Any) -> str | None:
    text = _as_text(value)
    return text or None


def _valid_symbol(value: Any) -> str | None:
    text = _as_text(value)
    return text if text is not None and _SYMBOL.fullmatch(text) else None


def _confidence(value: Any) -> tuple[float, int]:
    """The number and 0, or nan and the reason."""
    kind = type(value)
    if kind is float or kind is int:
        number = value
    elif value is _ABSENT:
        return np.nan, _REASON["confidence missing"]
    else:
        text = _as_text(value)
        if text is None or len(text) > 400 or not _DECIMAL.fullmatch(text):
            return np.nan, _REASON["confidence not a number"]
        number = float(text)
    if 0 <= number <= 1:
        return float(number), 0
    return np.nan, _REASON["confidence outside 0..1"]


def _id_time_us(entry_id: bytes) -> int:
    """The id's milliseconds as microseconds, or NO_TIME for an id that is plainly no time."""
    ms = int(entry_id.partition(b"-")[0])
    return ms * 1000 if EARLIEST_ID_MS <= ms <= LATEST_ID_MS else NO_TIME


def _time_us(value: Any) -> int | None:
    """Microseconds since the epoch; None where there is no readable timestamp."""
    kind = type(value)
    if kind is int:
        return _epoch_us(value, 0, 1)
    if kind is float:
        if not -1e20 < value < 1e20:
            return None
        part, floor = math.modf(abs(value))
        return _epoch_us(int(floor), round(part * 10**9), 10**9, negative=value < 0)
    text = _as_text(value)
    if text is None or len(text) > 64 or not text.isascii():
        return None
    if (match := _EPOCH_TEXT.fullmatch(text)) is not None:
        sign, whole, digits = match.group(1), int(match.group(2)), match.group(3) or "0"
        return _epoch_us(whole, int(digits), 10 ** len(digits), negative=sign == "-")
    return _iso_us(text)


def _iso_us(text: str) -> int | None:
    try:
        time = dt.datetime.fromisoformat(text)
        delta = (time if time.tzinfo else time.replace(tzinfo=dt.UTC)) - _EPOCH
    except (ValueError, OverflowError):
        return None
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def _epoch_us(whole: int, fraction: int, base: int, *, negative: bool = False) -> int | None:
    """s, ms, us or ns by magnitude: the units lie a factor of 1,000 apart, today's s at 1.8e9."""
    if whole < 0:
        whole, negative = -whole, True
    scale = next((n for limit, n in _MAGNITUDES if whole < limit), None)
    if scale is None:
        return None
    micros = (whole * base + fraction) * scale // (base * 1000)
    micros = -micros if negative else micros
    return micros if _EARLIEST_US <= micros <= _LATEST_US else None


# (magnitude below which it is that unit, thousandths of a microsecond in the unit)
_MAGNITUDES = ((10**11, 10**9), (10**14, 10**6), (10**17, 10**3), (10**20, 1))
