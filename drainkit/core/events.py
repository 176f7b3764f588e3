"""From entries to events: decode raw fields into typed columns, row by row, failing closed.

Pure: no Redis, no clock, no files. What cannot be read makes its own event invalid and leaves
every other row as it was. The rules are those of the contract, section 3.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import repeat
from operator import is_, itemgetter
from typing import Any

import numpy as np

from ..late import pa, pd
from ..settings import Fields
from . import values as v
from .values import ABSENT, INVALID_REASONS, NO_TIME, TIME_SOURCES, Column, RawEntry

MAX_AHEAD_US = 60_000_000
MAX_VOCABULARY = 2_000
MAX_VOCABULARY_CHARACTERS = 4_000_000
MAX_LAYOUTS, MAX_LAYOUT_NAMES, MAX_LAYOUT_BYTES = 1_000, 64, 4_096
MAX_NUMBER_CHARACTERS = 400
_SYMBOL = re.compile(r"[\x21-\x7e]{1,64}")
_ANY_TEXT = re.compile(r".+", re.DOTALL)
_DECIMAL = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_NAMES: Callable[[list[bytes]], list[bytes]] = itemgetter(slice(None, None, 2))
_NAN = float("nan")
_NEVER = 2**63 - 1  # later than any time


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

    def word(self, value: str, row: int = 0) -> str | None:
        """The symbol, side or source of one row; None where not valid."""
        code = int(getattr(self, f"{value}_code")[row])
        words: list[str] = getattr(self, f"{value}s")
        return words[code] if code >= 0 else None

    def symbols_here(self) -> set[str]:
        """The valid symbols of these rows; the vocabulary may hold those of others."""
        return {self.symbols[code] for code in np.unique(self.symbol_code).tolist() if code >= 0}

    def part(self, rows: slice) -> Events:
        """Some of the rows; the vocabularies stay whole."""
        columns = [name for name in self.__slots__ if name not in ("symbols", "sides", "sources")]
        return replace(self, **{name: getattr(self, name)[rows] for name in columns})

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> Events:
        """The columns of a frame of `events_frame` as events."""
        return cls.from_arrow(pa.Table.from_pandas(frame, preserve_index=False))

    @classmethod
    def from_arrow(cls, table: pa.Table) -> Events:
        """The columns of `frame.record_batch` (a table of decisions has them too) as events."""
        words: dict[str, Any] = {}
        for name in ("symbol", "side", "source"):
            words[f"{name}_code"], words[f"{name}s"] = word_codes(table[name])
        time = table["event_time"].cast(pa.timestamp("us", tz="UTC"), safe=False)
        return cls(
            ids=table["id"].cast(pa.binary()).to_pylist(),
            event_time_us=time.cast(pa.int64()).fill_null(NO_TIME).to_numpy(),
            time_source=word_codes(table["time_source"], TIME_SOURCES)[0].astype(np.uint8),
            confidence=table["confidence"].fill_null(_NAN).to_numpy(),
            invalid=word_codes(table["invalid"], INVALID_REASONS)[0].astype(np.uint8),
            missing=table["missing"].to_numpy(),
            **words,
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


class Decoder:
    """Decodes batches; vocabularies grow with what it sees and are dropped when too large."""

    def __init__(self, fields: Fields | None = None) -> None:
        fields = fields or Fields()
        self._places, self._most = v.Places(fields), 100 if fields.confidence_percent else 1
        self._layouts: dict[tuple[bytes, ...], v.Layout] = {}
        self._words: list[_Vocabulary] = []  # of symbols, sides, sources

    def decode(self, entries: Sequence[RawEntry]) -> Events:
        """The entries as Events, one row each, in their order; never raises for their content.

        Of several things wrong with one event, `invalid` names the first of: its JSON, symbol,
        confidence, time.
        """
        is_large = any(
            len(words) > MAX_VOCABULARY or words.characters > MAX_VOCABULARY_CHARACTERS
            for words in self._words
        )
        if is_large or not self._words:
            self._words = [_Vocabulary(_SYMBOL), _Vocabulary(_ANY_TEXT), _Vocabulary(_ANY_TEXT)]
        ids: list[bytes] = [*map(itemgetter(0), entries)]
        bodies: list[Any] = [*map(itemgetter(1), entries)]
        missing = np.fromiter(map(is_, bodies, repeat(None)), bool, len(bodies))
        if missing.any():  # a body that is gone is like one without fields
            bodies = [body or [] for body in bodies]
        (symbols, sides, confidences, sources), stamp_us, invalid, order = self._find(bodies)
        of_symbols, of_sides, of_sources = self._words
        symbol_code = of_symbols.codes(symbols)
        for row in np.flatnonzero((invalid == 0) & (symbol_code < 0)).tolist():
            invalid[row] = v.NO_SYMBOL if symbols[row] is ABSENT else v.BAD_SYMBOL
        confidence = np.array([x if type(x) is float else _NAN for x in confidences], float)
        odd = np.flatnonzero(~((confidence >= 0) & (confidence <= self._most)))
        for row in odd.tolist():
            x = confidences[row]
            # few digits, so the same texts again and again
            read = _known_confidence if type(x) is bytes and len(x) <= 16 else _confidence
            confidence[row], wrong = read(x, self._most)
            if wrong and not invalid[row]:
                invalid[row] = wrong
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        invalid, id_us = invalid[back], v.id_times_us(ids)
        # the earlier of the two counts: a wrong clock makes an event older, never younger
        has_id, has_stamp = id_us != NO_TIME, stamp_us != _NEVER
        by_stamp = has_stamp & (~has_id | (stamp_us <= id_us))
        time_us = np.where(by_stamp, stamp_us, id_us)
        is_ahead = has_id & has_stamp & ~by_stamp
        is_ahead[is_ahead] = stamp_us[is_ahead] - id_us[is_ahead] > MAX_AHEAD_US
        invalid[(invalid == 0) & is_ahead] = v.AHEAD
        invalid[(invalid == 0) & (time_us == NO_TIME)] = v.TIMELESS
        invalid[missing] = 0
        return Events(
            ids=ids,
            event_time_us=time_us,
            time_source=np.where(by_stamp, 0, np.where(has_id, 1, 2)).astype(np.uint8),
            symbol_code=symbol_code[back],
            side_code=of_sides.codes(sides)[back],
            source_code=of_sources.codes(sources)[back],
            confidence=np.abs(confidence[back]) / self._most,  # -0.0 is 0
            invalid=invalid,
            missing=missing,
            symbols=of_symbols.texts,
            sides=of_sides.texts,
            sources=of_sources.texts,
        )

    def _find(
        self, bodies: Sequence[list[bytes]]
    ) -> tuple[list[Column], np.ndarray, np.ndarray, np.ndarray]:
        """Raw values by VALUES, the earliest timestamp of each row, JSON problems, and an order.

        The timestamps (int64, us; _NEVER for none) are by row; the i-th value and problem (uint8)
        is of row `order[i]`.
        """
        names = _NAMES(bodies[0]) if bodies else []
        groups: dict[tuple[bytes, ...], Any] = {}  # the rows of each layout; at least one
        if all(map(names.__eq__, map(_NAMES, bodies))):  # most streams have one producer
            groups[tuple(names)] = np.arange(len(bodies))
        else:
            for row, key in enumerate(map(tuple, map(_NAMES, bodies))):
                groups.setdefault(key, []).append(row)
        values: list[Column] = [[] for _ in v.VALUES]
        stamps: Column = []
        stamp_rows: list[np.ndarray] = [np.zeros(0, np.int64)]
        refused = bytearray()
        for key, of_layout in groups.items():
            if (layout := self._layouts.get(key)) is None:
                layout = v.Layout(key, self._places)
                if len(self._layouts) >= MAX_LAYOUTS:  # a producer can invent names without end
                    self._layouts.clear()
                if len(key) <= MAX_LAYOUT_NAMES and sum(map(len, key)) <= MAX_LAYOUT_BYTES:
                    self._layouts[key] = layout
            rows, is_all = np.asarray(of_layout), len(groups) == 1
            parts, found_stamps, problems = layout.find(
                bodies if is_all else [bodies[row] for row in of_layout]
            )
            for column, part in zip(values, parts, strict=True):
                column.extend(part)
            for places, column in found_stamps:
                stamp_rows.append(rows if len(places) == len(rows) else rows[places])
                stamps += column
            refused += problems
        times, row_of = v.times_us(stamps), np.concatenate(stamp_rows)
        stamp_us = np.full(len(bodies), _NEVER)  # of several the earliest
        np.minimum.at(stamp_us, row_of[times != NO_TIME], times[times != NO_TIME])
        order = np.concatenate([*map(np.asarray, groups.values())])
        return values, stamp_us, np.frombuffer(refused, dtype=np.uint8), order


class _Vocabulary(dict[Any, int]):
    """Codes for the valid texts seen, by str and by bytes; -1 for all else, which is not kept."""

    def __init__(self, valid: re.Pattern[str]) -> None:
        super().__init__({ABSENT: -1})
        self.texts: list[str] = []
        self.characters, self._valid = 0, valid

    def codes(self, values: Column) -> np.ndarray:
        """The codes of many values (int32)."""
        try:
            return np.fromiter(map(self.__getitem__, values), np.int32, len(values))
        except TypeError:  # JSON objects and arrays have no hash
            return np.array([self[x] if type(x) in (str, bytes) else -1 for x in values], np.int32)

    def __missing__(self, value: Any) -> int:
        text = v.as_text(value) if type(value) in (str, bytes) else None
        if text is None or not self._valid.fullmatch(text):
            return -1
        code = self.setdefault(text, len(self.texts))
        if code == len(self.texts):
            self.texts.append(text)
        self[value] = code
        self.characters += len(text)
        return code


def _confidence(value: Any, most: int) -> tuple[float, int]:
    """The number and 0, or nan and the reason; `most` is a whole: 1, or 100 of percentages."""
    if value is ABSENT:
        return np.nan, v.NO_CONFIDENCE
    if type(value) is not int and type(value) is not float:
        text = v.as_text(value)
        if text is not None and most > 1:
            text = text.removesuffix("%")
        if text is None or len(text) > MAX_NUMBER_CHARACTERS or not _DECIMAL.fullmatch(text):
            return np.nan, v.NO_NUMBER
        value = float(text)
    return (float(value), 0) if 0 <= value <= most else (np.nan, v.OUTSIDE)


_known_confidence = lru_cache(1024)(_confidence)
