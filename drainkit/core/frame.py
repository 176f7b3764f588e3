"""The one table of events: Arrow columns of a page, and a DataFrame of many, decided or not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import chain

import numpy as np

from ..late import collection_paused, give_back_freed, pa, pd
from .events import Decoder, Events, word_codes
from .policy import ACTIONS, FAILED_NAMES, Decisions, Policy, decide
from .values import INVALID_REASONS, NO_TIME, TIME_SOURCES, RawEntry

MOST_ROWS = 2_000_000  # so many events are a DataFrame as a whole
ROWS_OF_MORE = 1_000_000  # of more: at most so many rows, evenly spread
FEW = ("time_source", "invalid", "action", "failed")  # columns of at most 100 words
#: A sample's pages are small, and each by itself would take twice the memory of its rows: so many
#: pages of fewer rows than that are made one.
MERGED_PAGES, SMALL_PAGE = 64, 2_000


def record_batch(events: Events, decisions: Decisions | None = None) -> pa.RecordBatch:
    """The events as Arrow columns (those of `events_frame`), with what was decided of them."""
    time = pa.array(events.event_time_us, mask=events.event_time_us == NO_TIME)
    columns = {
        "id": pa.array(events.ids, pa.binary()).cast(pa.string()),
        "event_time": time.cast(pa.timestamp("us", tz="UTC")),
        "time_source": words(events.time_source, TIME_SOURCES),
        "symbol": words(events.symbol_code, events.symbols),
        "side": words(events.side_code, events.sides),
        "source": words(events.source_code, events.sources),
        "confidence": pa.array(events.confidence, mask=np.isnan(events.confidence)),
        "invalid": words(events.invalid, INVALID_REASONS),
        "missing": pa.array(events.missing),
    }
    return pa.record_batch(columns if decisions is None else columns | _decided(decisions))


def words(codes: np.ndarray, values: Sequence[str]) -> pa.DictionaryArray:
    """Codes into words as a column; a file of Parquet brings back the very same kind."""
    indices = pa.array(codes.astype(np.int32), mask=codes.astype(np.int32) < 0)
    return pa.DictionaryArray.from_arrays(indices, pa.array(values, pa.string()))


def word_counts(column: pa.ChunkedArray) -> Counter[str]:
    """How often each value occurs; none counts as ""."""
    pairs = column.value_counts().to_pylist()
    return Counter({pair["values"] or "": pair["counts"] for pair in pairs})


def _decided(decisions: Decisions) -> dict[str, pa.Array]:
    """The columns of `decide_frame`."""
    return {
        "age_sec": pa.array(decisions.age_us / 1e6, mask=decisions.age_us == NO_TIME),
        "action": words(decisions.action, ACTIONS),
        "failed": words(decisions.failed, FAILED_NAMES),
    }


@cache
def event_schema() -> pa.Schema:
    """The columns of `record_batch`."""
    return record_batch(Decoder().decode([])).schema


def events_frame(batches: Iterable[pa.RecordBatch]) -> pd.DataFrame:
    """All rows of these batches (of `record_batch`, at least one) in their order.

    Columns id (str), event_time (datetime64[us, UTC], NaT unknown), time_source (category),
    symbol, side, source (category, sorted; missing where not valid), confidence (float64, nan
    where not valid), invalid (category, "" valid), missing (bool: the body is gone); where they
    were decided, those of `decide_frame` too.
    """
    pages: list[pa.RecordBatch] = []
    small = 0  # of the last of them
    for batch in batches:
        columns = {n: _narrow(batch[n]) if n in FEW else batch[n] for n in batch.schema.names}
        pages.append(pa.record_batch(columns))
        small = small + 1 if len(batch) < SMALL_PAGE else 0
        if small == MERGED_PAGES:
            merged = pa.Table.from_batches(pages[-small:]).unify_dictionaries().combine_chunks()
            pages[-small:] = merged.to_batches() or pages[-1:]  # of no rows: none
            small = 0
        del batch, columns  # or it would be in memory beside the next one
    table = pa.Table.from_batches(pages).unify_dictionaries()
    del pages
    text = pd.StringDtype("pyarrow", na_value=np.nan)  # what pandas 3 calls str
    frame: pd.DataFrame = table.to_pandas(
        types_mapper={pa.string(): text}.get, self_destruct=True, split_blocks=True
    )
    for name in ("symbol", "side", "source"):
        words = frame[name].cat
        frame[name] = words.reorder_categories(sorted(words.categories))
    return frame


def _narrow(column: pa.DictionaryArray) -> pa.DictionaryArray:
    # a cast of the column itself forgets the words of one that is empty
    return pa.DictionaryArray.from_arrays(column.indices.cast(pa.int8()), column.dictionary)


def decide_frame(frame: pd.DataFrame, policy: Policy, now_us: int | np.ndarray) -> pd.DataFrame:
    """The frame's rows decided, with its index.

    Columns age_sec (float64, nan unknown), action (category), failed (category: the names of all
    failed filters, comma-separated in the order of ACTIONS).
    """
    decisions = decide(Events.from_frame(frame), policy, now_us)
    found: pd.DataFrame = pa.table(_decided(decisions)).to_pandas()
    return found.set_index(frame.index)


def decisions_of(decided: pd.DataFrame | pa.Table) -> Decisions:
    """What was decided, back from the columns of `decide_frame` or of a plan's decisions.

    `failed` holds the filter that decided too, which a plan's column leaves out.
    """
    table = decided
    if not isinstance(table, pa.Table):
        part = table[["age_sec", "action", "failed"]]
        table = pa.Table.from_pandas(part, preserve_index=False)
    action = word_codes(table["action"], ACTIONS)[0].astype(np.uint8)
    failed = word_codes(table["failed"], FAILED_NAMES)[0].astype(np.uint8)
    first = np.where(action == ACTIONS.index("drained_ok"), 0, np.uint8(1) << action)
    ages_us = microseconds(table["age_sec"].to_numpy())
    return Decisions(action, failed | first.astype(np.uint8), ages_us)


def microseconds(ages_sec: np.ndarray) -> np.ndarray:
    """Ages in seconds as they were decided (int64); NO_TIME where there is none."""
    known = ~np.isnan(ages_sec)
    return np.where(known, np.rint(np.where(known, ages_sec, 0) * 1e6), NO_TIME).astype(np.int64)


def load_frame(entries: Iterable[Sequence[RawEntry]], decoder: Decoder) -> pd.DataFrame:
    """The entries as a DataFrame of typed columns (see events_frame); payloads stay behind."""
    with collection_paused():
        return events_frame(record_batch(decoder.decode(page)) for page in chain([()], entries))


class Backlog:
    """All events of `pages` counted by action; as a DataFrame all of them, or one in `step`.

    `counted`: how many there may be.
    """

    @collection_paused()
    def __init__(self, pages: Iterable[tuple[Events, Decisions]], counted: int) -> None:
        self.step = 1 if counted <= MOST_ROWS else math.ceil(counted / ROWS_OF_MORE)
        self.total = 0  # events
        self.symbols = set[str]()  # that occur in them
        self.counts = np.zeros(len(ACTIONS), np.int64)  # by action
        self.frame = events_frame(self._counted(pages))
        give_back_freed()

    def _counted(self, pages: Iterable[tuple[Events, Decisions]]) -> Iterator[pa.RecordBatch]:
        nothing = Decoder().decode([])
        yield record_batch(nothing, decide(nothing, Policy(0, None, 0), 0))
        for events, decisions in pages:
            self.counts += np.bincount(decisions.action, minlength=len(ACTIONS))
            self.symbols |= events.symbols_here()
            rows = slice(-self.total % self.step, None, self.step)
            self.total += len(events)
            yield record_batch(events.part(rows), decisions.part(rows))
            del events, decisions  # or two pages would be in memory
