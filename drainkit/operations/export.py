"""The backlog of a scope as a file, or as a dataset by day; one page in memory at a time."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import files
from ..core.collection import collection_paused
from ..core.events import Decoder, decoder_of
from ..core.frame import record_batch
from ..core.timestamps import NO_TIME, id_times_us
from ..core.values import RawEntry
from ..errors import UsageError
from ..safe import text
from ..server import scopes
from ..server.connection import Server
from ..settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

PART_ROWS = 1_000_000
WAITING_BYTES = 2 << 20  # of pages that wait to be written
DAY_US = 86_400_000_000
NO_DATE = "__HIVE_DEFAULT_PARTITION__"  # what readers of such datasets take for null
WORDS = ("time_source", "symbol", "side", "source", "invalid")
END = b'"]]'  # of an entry's fields as JSON
GLUE = [b'"],["', b'","', END + b'[["']  # before a name, a value, an entry's first name


@collection_paused()
def export(server: Server, settings: Settings, target: str) -> int:
    """The backlog of the settings' scope as Parquet or CSV; returns how many entries.

    A `target` that ends in a slash becomes a dataset `date=YYYY-MM-DD/part-N.parquet` by the UTC
    day of the entry's id (of an id that is not a time: null). Every file has the columns of
    `FrameBuilder`, texts as plain texts, and `fields`: the entry's own as a JSON list of
    [name, value] (null where the body is gone, escapes where it is not UTF-8).
    Whole or not at all. Raises UsageError for another name, RefusedError for a folder in use.
    """
    path = Path(target)
    if not target.endswith("/") and path.suffix not in (".parquet", ".csv"):
        raise UsageError(f"{path.name}: the name must end in .parquet or .csv, or a folder's in /")
    decoder = decoder_of(settings)
    schema = _table(record_batch(decoder.decode([])), Bodies.of([])).schema
    pages = scopes.scope_entries(server, scopes.open_scope(server, settings))
    if not target.endswith("/"):
        with files.TableWriter(path, schema, words=WORDS) as out:
            return _write_all(pages, decoder, out.write)
    today = _day(server.now_us())
    with files.whole_folder(path) as folder, _Dataset(folder, schema, today) as dataset:
        return _write_all(pages, decoder, dataset.write)


def _write_all(
    pages: Iterable[Sequence[RawEntry]], decoder: Decoder, write: Callable[[pa.Table], None]
) -> int:
    """Write pages by a thread of its own while the next are read; returns their rows."""

    def write_page(batch: pa.RecordBatch, bodies: Bodies) -> None:
        write(_table(batch, bodies))

    rows = 0
    waiting: deque[tuple[int, Future[None]]] = deque()  # bytes of a page, and its writing
    with _beside_a_thread(), ThreadPoolExecutor(1) as thread:
        for page in pages:
            batch, bodies = record_batch(decoder.decode(page)), Bodies.of(page)
            size = batch.nbytes + bodies.texts.nbytes
            waiting.append((size, thread.submit(write_page, batch, bodies)))
            rows += len(page)
            while sum(size for size, _ in waiting) > WAITING_BYTES:
                waiting.popleft()[1].result()
        for _, writing in waiting:
            writing.result()
    return rows


@contextmanager
def _beside_a_thread() -> Iterator[None]:
    """Two threads at work, of which one needs the interpreter's lock only for moments."""
    import pyarrow as pa

    interval, pool = sys.getswitchinterval(), pa.default_memory_pool()
    sys.setswitchinterval(50e-6)  # after each of Arrow's kernels it would wait 5 ms for the lock
    with suppress(NotImplementedError):  # its other pools keep what another thread gave back
        pa.set_memory_pool(pa.jemalloc_memory_pool())
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        pa.set_memory_pool(pool)


class _Dataset:
    """Parts by day: each is closed when the day changes or it is full."""

    def __init__(self, folder: Path, schema: pa.Schema, today: str) -> None:
        self._folder, self._schema, self._today = folder, schema, today
        self._parts: dict[str, int] = {}  # by day: how many there are
        self._day: str | None = None  # of the open part
        self._room = 0  # rows that the open part still takes
        self._open = ExitStack()

    def __enter__(self) -> _Dataset:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None and not self._parts.keys() - {NO_DATE}:
            # an empty part: readers take columns and kinds, that of `date` too, from what is there
            self._next_part(self._today)
        self._open.__exit__(kind, *error)  # type: ignore[arg-type]

    def write(self, table: pa.Table) -> None:
        """Add rows."""
        for day, first, end in _days(table["id"].cast("binary")):
            left = table.slice(first, end - first)
            while len(left):
                if day != self._day or not self._room:
                    self._next_part(day)
                part = left.slice(0, self._room)
                self._out.write(part)
                self._room -= len(part)
                left = left.slice(len(part))

    def _next_part(self, day: str) -> None:
        self._open.close()
        number = self._parts.get(day, 0)
        self._parts[day] = number + 1
        home = self._folder / f"date={day}"
        if not number:
            files.make_folder(home)
        part = files.TableWriter(home / f"part-{number}.parquet", self._schema, words=WORDS)
        self._out = self._open.enter_context(part)
        self._day, self._room = day, PART_ROWS


def _days(ids: pa.ChunkedArray) -> Iterator[tuple[str, int, int]]:
    """Runs of ids of one UTC day: the day, the first row and the row after the last."""
    times = id_times_us([ids[0].as_py(), ids[-1].as_py()])
    if NO_TIME in times or len({*times // DAY_US}) > 1:  # else all between are of that day
        times = id_times_us(ids.to_pylist())
    starts = [0, *(np.flatnonzero(np.diff(times // DAY_US)) + 1).tolist()]
    for first, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        yield _day(times[first]), first, end


def _day(time_us: int) -> str:
    return NO_DATE if time_us == NO_TIME else str(np.datetime64(int(time_us) // DAY_US, "D"))


@dataclass(frozen=True)
class Bodies:
    """The fields of a page's entries."""

    texts: pa.Array  # binary: names and values of all, in turn, and an empty one after them
    starts: np.ndarray  # int64: where those of each entry begin, and where the last one's end

    @classmethod
    def of(cls, page: Sequence[RawEntry]) -> Bodies:
        """Of raw entries; where a body is gone there are none."""
        import pyarrow as pa

        bodies = [fields or () for _, fields in page]
        starts = np.zeros(len(page) + 1, np.int64)
        starts[1:] = np.fromiter(map(len, bodies), np.int64, len(page)).cumsum()
        return cls(pa.array([*chain.from_iterable(bodies), b""], pa.binary()), starts)


def _table(batch: pa.RecordBatch, bodies: Bodies) -> pa.Table:
    """One page as the columns of the export."""
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = {name: _plain(batch.column(name)) for name in batch.schema.names}
    nothing = pa.scalar(None, pa.string())
    columns["fields"] = pc.if_else(columns["missing"], nothing, as_json(bodies))
    return pa.table(columns)


def _plain(column: pa.Array) -> pa.Array:
    # a dictionary that grows with the backlog would be in memory; Parquet makes its own
    import pyarrow as pa

    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column


def as_json(bodies: Bodies) -> pa.Array:
    """Each entry's fields as a JSON list of [name, value] (string).

    In printable ASCII, so that no character of theirs acts on who shows the file; bytes that are
    not UTF-8 as escapes. Arrow does it without the interpreter's lock.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    texts, starts = bodies.texts, bodies.starts
    sizes = np.diff(starts)
    glue = np.arange(len(texts), dtype=np.int8) % 2
    glue[starts[:-1][sizes > 0]] = glue[-1] = 2  # the last one ends the last entry
    data = bytes(texts.buffers()[2] or b"")
    for sign in (b"\\", b'"'):
        if sign in data:
            texts = pc.replace_substring(texts, sign, b"\\" + sign)
    texts = pc.binary_join_element_wise(pa.array(GLUE).take(pa.array(glue)), texts, b"")
    # all entries are one text now: each lies from the end of the one before to its own
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int32)[starts] + np.int32(len(END))
    rows = pa.StringArray.from_buffers(len(sizes), pa.py_buffer(ends), data)
    if not sizes.all():
        rows = pc.if_else(pa.array(sizes == 0), pa.scalar("[]"), rows)
    odd = pc.invert(pc.ascii_is_printable(rows))
    made = [
        _odd(bodies.texts.slice(starts[row], sizes[row]).to_pylist())
        for row in pc.indices_nonzero(odd).to_pylist()
    ]
    return pc.replace_with_mask(rows, odd, pa.array(made, pa.string()))


def _odd(parts: Sequence[bytes]) -> str:
    """The JSON of one entry's fields, whatever their bytes."""
    texts = [*map(text, parts)]
    return json.dumps([*zip(texts[::2], texts[1::2], strict=True)], separators=(",", ":"))
