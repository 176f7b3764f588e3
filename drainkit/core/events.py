"""From entries to events: decode raw fields into typed columns, row by row, failing closed.

Pure: no Redis, no clock, no files. What cannot be read makes its own event invalid and leaves
every other row as it was. The rules are those of the contract, section 3.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import repeat
from operator import is_, itemgetter
from typing import Any

import numpy as np

from ..late import pa, pd
from ..settings import Fields
from .timestamps import (
    MAX_AHEAD_US,
    NO_TIME,
    TIME_SOURCES,
    as_text,
    earliest_us,
    id_times_us,
    times_us,
)
from .values import (
    ABSENT,
    AHEAD,
    BAD_SYMBOL,
    INVALID_REASONS,
    NO_CONFIDENCE,
    NO_NUMBER,
    NO_SYMBOL,
    OUTSIDE,
    TIMELESS,
    VALUES,
    Column,
    Layout,
    Places,
    RawEntry,
)

MAX_VOCABULARY = 2_000
MAX_VOCABULARY_CHARACTERS = 4_000_000
MAX_LAYOUTS, MAX_LAYOUT_NAMES, MAX_LAYOUT_BYTES = 1_000, 64, 4_096
MAX_NUMBER_CHARACTERS = 400
_SYMBOL = re.compile(r"[\x21-\x7e]{1,64}")
_ANY_TEXT = re.compile(r".+", re.DOTALL)
_DECIMAL = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_NAMES: Callable[[list[bytes]], list[bytes]] = itemgetter(slice(None, None, 2))
_NAN = float("nan")


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

    def symbols_here(self) -> set[str]:
        """The valid symbols of these rows; the vocabulary may hold those of others."""
        return {self.symbols[code] for code in np.unique(self.symbol_code).tolist() if code >= 0}

    def part(self, rows: slice) -> Events:
        """Some of the rows; the vocabularies stay whole."""
        return replace(self, **{name: getattr(self, name)[rows] for name in _COLUMNS})

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> Events:
        """The columns of a frame of `events_frame` as events."""
        return cls.from_arrow(pa.Table.from_pandas(frame, preserve_index=False))

    @classmethod
    def from_arrow(cls, table: pa.Table) -> Events:
        """The columns of `frame.record_batch` (a table of decisions has them too) as events."""
        symbol, symbols = word_codes(table["symbol"])
        side, sides = word_codes(table["side"])
        source, sources = word_codes(table["source"])
        time = table["event_time"].cast(pa.timestamp("us", tz="UTC"), safe=False)
        return cls(
            ids=table["id"].cast(pa.binary()).to_pylist(),
            event_time_us=time.cast(pa.int64()).fill_null(NO_TIME).to_numpy(),
            time_source=word_codes(table["time_source"], TIME_SOURCES)[0].astype(np.uint8),
            symbol_code=symbol,
            side_code=side,
            source_code=source,
            confidence=table["confidence"].fill_null(_NAN).to_numpy(),
            invalid=word_codes(table["invalid"], INVALID_REASONS)[0].astype(np.uint8),
            missing=table["missing"].to_numpy(),
            symbols=symbols,
            sides=sides,
            sources=sources,
        )


def word_codes(
    column: pa.ChunkedArray, known: Sequence[str] | None = None
) -> tuple[np.ndarray, list[str]]:
    """A column of words as codes and what they stand for (`known`, if told); -1 for none."""
    words = column.unify_dictionaries().combine_chunks()
    if not pa.types.is_dictionary(words.type):
        words = words.dictionary_encode()
    values: list[str] = words.dictionary.to_pylist()
    found: np.ndarray = words.indices.fill_null(-1).to_numpy()
    if known is None:
        return found, values
    return np.array([*map(known.index, values), -1])[found], [*known]


_COLUMNS = tuple(field.name for field in fields(Events))[:-3]


class Decoder:
    """Decodes batches; vocabularies grow with what it sees and are dropped when too large."""

    def __init__(self, fields: Fields | None = None) -> None:
        fields = fields or Fields()
        self._places, self._most = Places(fields), 100 if fields.confidence_percent else 1
        self._layouts: dict[tuple[bytes, ...], Layout] = {}
        self._words: list[_Vocabulary] = []  # of symbols, sides, sources

    def decode(self, entries: Sequence[RawEntry]) -> Events:
        """The entries as Events, one row each, in their order; never raises for their content.

        Of several things wrong with one event, `invalid` names the first of: its JSON, symbol,
        confidence, time.
        """
        if not self._words or any(words.is_large for words in self._words):
            self._words = [_Vocabulary(_SYMBOL), _Vocabulary(_ANY_TEXT), _Vocabulary(_ANY_TEXT)]
        ids: list[bytes] = [*map(itemgetter(0), entries)]
        bodies: list[Any] = [*map(itemgetter(1), entries)]
        values: list[Column] = [[] for _ in VALUES]
        stamps: Column = []
        more_rows: list[int] = []
        more_stamps: Column = []
        refused = bytearray()
        order: list[int] = []
        missing = np.fromiter(map(is_, bodies, repeat(None)), bool, len(bodies))
        if missing.any():  # a body that is gone is like one without fields
            bodies = [body or [] for body in bodies]
        for layout, rows in self._by_layout(bodies):
            found = layout.find([*map(bodies.__getitem__, rows)])
            for column, part in zip(values, found.values, strict=True):
                column.extend(part)
            for places, column in found.more_stamps:
                more_rows += [len(order) + place for place in places]
                more_stamps += column
            stamps += found.stamps
            refused += found.refused
            order += rows
        stamp_us = times_us(stamps)
        if more_rows:
            stamp_us = earliest_us(stamp_us, more_rows, times_us(more_stamps))
        row_of = np.fromiter(order, np.int64, len(order))
        return self._events(ids, missing, values, stamp_us, refused, row_of)

    def _by_layout(self, bodies: Sequence[list[bytes]]) -> list[tuple[Layout, list[int]]]:
        """The rows of each layout."""
        groups: dict[tuple[bytes, ...], list[int]] = {}
        names: list[bytes] | None = None
        for row, found in enumerate(map(_NAMES, bodies)):
            if found != names:  # most streams have one producer, so one layout
                names = found
                rows = groups.setdefault(tuple(names), [])
            rows.append(row)
        found_rows = []
        for key, rows in groups.items():
            layout = self._layouts.get(key)
            if layout is None:
                layout = Layout(key, self._places)
                if len(self._layouts) >= MAX_LAYOUTS:  # a producer can invent names without end
                    self._layouts.clear()
                if len(key) <= MAX_LAYOUT_NAMES and sum(map(len, key)) <= MAX_LAYOUT_BYTES:
                    self._layouts[key] = layout
            found_rows.append((layout, rows))
        return found_rows

    def _events(
        self,
        ids: list[bytes],
        missing: np.ndarray,
        values: list[Column],
        stamp_us: np.ndarray,
        refused: bytearray,
        order: np.ndarray,
    ) -> Events:
        """Columns of raw values, the i-th of row `order[i]`, as typed columns."""
        symbols, sides, confidences, sources = values
        of_symbols, of_sides, of_sources = self._words
        symbol_code = of_symbols.codes(symbols)
        confidence, wrong = _confidences(confidences, self._most)
        invalid = np.frombuffer(refused, dtype=np.uint8)
        for row in np.flatnonzero((invalid == 0) & (symbol_code < 0)).tolist():
            invalid[row] = NO_SYMBOL if symbols[row] is ABSENT else BAD_SYMBOL
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        columns = {
            "invalid": np.where(invalid == 0, wrong, invalid)[back],
            "symbol_code": symbol_code[back],
            "side_code": of_sides.codes(sides)[back],
            "source_code": of_sources.codes(sources)[back],
            "confidence": confidence[back],
        }
        invalid, stamp_us, id_us = columns["invalid"], stamp_us[back], id_times_us(ids)
        # the earlier of the two counts: a wrong clock makes an event older, never younger
        has_id, has_stamp = id_us != NO_TIME, stamp_us != NO_TIME
        by_stamp = has_stamp & (~has_id | (stamp_us <= id_us))
        time_us = np.where(by_stamp, stamp_us, id_us)
        both = has_id & has_stamp
        ahead_us = np.where(both, stamp_us, 0) - np.where(both, id_us, 0)
        invalid[(invalid == 0) & (ahead_us > MAX_AHEAD_US)] = AHEAD
        invalid[(invalid == 0) & (time_us == NO_TIME)] = TIMELESS
        invalid[missing] = 0
        source = np.where(by_stamp, 0, np.where(has_id, 1, 2)).astype(np.uint8)
        return Events(
            ids, time_us, source, **columns, missing=missing, symbols=of_symbols.texts,
            sides=of_sides.texts, sources=of_sources.texts,
        )  # fmt: skip


class _Vocabulary(dict[Any, int]):
    """Codes for the valid texts seen, by str and by bytes; -1 for all else, which is not kept."""

    def __init__(self, valid: re.Pattern[str]) -> None:
        super().__init__({ABSENT: -1})
        self.texts: list[str] = []
        self._valid, self._characters = valid, 0

    @property
    def is_large(self) -> bool:
        """Whether it is time to begin a new one, so that memory stays bounded."""
        return self._characters > MAX_VOCABULARY_CHARACTERS or len(self) > MAX_VOCABULARY

    def codes(self, values: Column) -> np.ndarray:
        """The codes of many values (int32)."""
        try:
            return np.fromiter(map(self.__getitem__, values), np.int32, len(values))
        except TypeError:  # JSON objects and arrays have no hash
            return np.array([self[v] if type(v) in (str, bytes) else -1 for v in values], np.int32)

    def __missing__(self, value: Any) -> int:
        text = as_text(value) if type(value) in (str, bytes) else None
        if text is None or not self._valid.fullmatch(text):
            return -1
        code = self.setdefault(text, len(self.texts))
        if code == len(self.texts):
            self.texts.append(text)
        self[value] = code
        self._characters += len(text)
        return code


def _confidences(values: Column, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers (float64, nan where not valid) and the reasons (uint8, 0 valid).

    `most` is what stands for a whole: 1, or 100 where they are percentages.
    """
    numbers = np.array([value if type(value) is float else _NAN for value in values], float)
    reasons = np.zeros(len(values), dtype=np.uint8)
    odd = np.flatnonzero(~((numbers >= 0) & (numbers <= most)))
    for row in odd.tolist():
        value = values[row]
        # few digits, so the same texts again and again
        read = _known_confidence if type(value) is bytes and len(value) <= 16 else _confidence
        numbers[row], reasons[row] = read(value, most)
    return np.abs(numbers) / most, reasons  # -0.0 is 0


def _confidence(value: Any, most: int) -> tuple[float, int]:
    """The number and 0, or nan and the reason."""
    if value is ABSENT:
        return np.nan, NO_CONFIDENCE
    if type(value) is not int and type(value) is not float:
        text = as_text(value)
        if text is not None and most > 1:
            text = text.removesuffix("%")
        if text is None or len(text) > MAX_NUMBER_CHARACTERS or not _DECIMAL.fullmatch(text):
            return np.nan, NO_NUMBER
        value = float(text)
    return (float(value), 0) if 0 <= value <= most else (np.nan, OUTSIDE)


_known_confidence = lru_cache(1024)(_confidence)
