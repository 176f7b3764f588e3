"""The one table of events: Arrow columns of a page, and a DataFrame of many, decided or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import chain

import numpy as np

from ..late import collection_paused, pa, pd
from .events import Decoder, Events
from .policy import ACTIONS, FAILED_NAMES, Decisions, Policy, decide
from .timestamps import NO_TIME, TIME_SOURCES
from .values import INVALID_REASONS, RawEntry

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
    return pa.record_batch(columns if decisions is None else columns | decided_columns(decisions))


def words(codes: np.ndarray, values: Sequence[str]) -> pa.DictionaryArray:
    """Codes into words as a column; a file of Parquet brings back the very same kind."""
    codes = codes.astype(np.int32)
    indices = pa.array(codes, mask=codes < 0)
    return pa.DictionaryArray.from_arrays(indices, pa.array(values, pa.string()))


def word_counts(column: pa.ChunkedArray) -> Counter[str]:
    """How often each value occurs; none counts as ""."""
    pairs = column.value_counts().to_pylist()
    return Counter({pair["values"] or "": pair["counts"] for pair in pairs})


def decided_columns(decisions: Decisions) -> dict[str, pa.Array]:
    """The columns of `decide_frame`."""
    age_us = decisions.age_us
    return {
        "age_sec": pa.array(age_us / 1e6, mask=age_us == NO_TIME),
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
        pages.append(batch)
        small = small + 1 if len(batch) < SMALL_PAGE else 0
        if small == MERGED_PAGES:
            merged = pa.Table.from_batches(pages[-small:]).unify_dictionaries().combine_chunks()
            pages[-small:] = merged.to_batches() or pages[-1:]  # of no rows: none
            small = 0
        del batch  # or it would be in memory beside the next one
    table = pa.Table.from_batches(pages).unify_dictionaries()
    del pages
    text = pd.StringDtype("pyarrow", na_value=np.nan)  # what pandas 3 calls str
    frame: pd.DataFrame = table.to_pandas(
        types_mapper=lambda kind: text if kind == pa.string() else None,
        self_destruct=True,
        split_blocks=True,
    )
    for name in ("symbol", "side", "source"):
        words = frame[name].cat
        frame[name] = words.reorder_categories(sorted(words.categories))
    return frame


def decide_frame(frame: pd.DataFrame, policy: Policy, now_us: int | np.ndarray) -> pd.DataFrame:
    """The frame's rows decided, with its index.

    Columns age_sec (float64, nan unknown), action (category), failed (category: the names of all
    failed filters, comma-separated in the order of ACTIONS).
    """
    decisions = decide(Events.from_frame(frame), policy, now_us)
    found: pd.DataFrame = pa.table(decided_columns(decisions)).to_pandas()
    return found.set_index(frame.index)


def decisions_of(frame: pd.DataFrame) -> Decisions:
    """What was decided of a frame's rows, back from the columns of `decide_frame`."""
    action, failed = (frame[name].cat.codes.to_numpy() for name in ("action", "failed"))
    ages = microseconds(frame["age_sec"].to_numpy())
    return Decisions(action.astype(np.uint8), failed.astype(np.uint8), ages)


def microseconds(ages_sec: np.ndarray) -> np.ndarray:
    """Ages of `decided_columns` as they were decided (int64); NO_TIME where there is none."""
    known = ~np.isnan(ages_sec)
    return np.where(known, np.rint(np.where(known, ages_sec, 0) * 1e6), NO_TIME).astype(np.int64)


def load_frame(entries: Iterable[Sequence[RawEntry]], decoder: Decoder) -> pd.DataFrame:
    """The entries as a DataFrame of typed columns (see events_frame); payloads stay behind."""
    with collection_paused():
        return events_frame(record_batch(decoder.decode(page)) for page in chain([()], entries))
