"""The backlog of a scope as a file, or as a dataset by day; one page in memory at a time."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from .. import files
from ..core.collection import collection_paused
from ..core.events import Decoder, decoder_of
from ..core.frame import record_batch
from ..core.timestamps import NO_TIME, id_times_us
from ..core.values import RawEntry
from ..errors import UsageError
from ..safe import one_line, text
from ..server import scopes
from ..server.connection import Server
from ..settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

PART_ROWS = 1_000_000
WAITING_BYTES = 4 << 20  # of tables that wait to be written
DAY_US = 86_400_000_000
NO_DATE = "__HIVE_DEFAULT_PARTITION__"  # what readers of such datasets take for null
AT_ONCE = 256  # entries that become JSON together: their text fits a processor's cache
PLAIN = bytes(range(0x20, 0x7F))
WORDS = ("time_source", "symbol", "side", "source", "invalid")
QUOTE = b"\x7f"  # stands for a quote of the JSON's own until those of the texts are escaped
NEXT = QUOTE * 3  # between two entries; within one at most two quotes follow each other


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
        raise UsageError(
            f"{one_line(path.name)}: the name must end in .parquet or .csv, or a folder's in /"
        )
    decoder = decoder_of(settings)
    schema = _table([], decoder).schema
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
    rows = 0
    waiting: deque[tuple[int, Future[None]]] = deque()  # bytes of a table, and its writing
    with ThreadPoolExecutor(1) as thread:
        for page in pages:
            table = _table(page, decoder)
            waiting.append((table.nbytes, thread.submit(write, table)))
            rows += len(page)
            while sum(size for size, _ in waiting) > WAITING_BYTES:
                waiting.popleft()[1].result()
        for _, writing in waiting:
            writing.result()
    return rows


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


def _table(page: Sequence[RawEntry], decoder: Decoder) -> pa.Table:
    """One page as the columns of the export."""
    import pyarrow as pa

    batch = record_batch(decoder.decode(page))
    columns = {name: _plain(batch.column(name)) for name in batch.schema.names}
    parts = (page[at : at + AT_ONCE] for at in range(0, len(page), AT_ONCE))
    columns["fields"] = pa.array([row for part in parts for row in as_json(part)], pa.binary())
    columns["fields"] = columns["fields"].cast(pa.string())
    return pa.table(columns)


def _plain(column: pa.Array) -> pa.Array:
    # a dictionary that grows with the backlog would be in memory; Parquet makes its own
    import pyarrow as pa

    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column


def as_json(part: Sequence[RawEntry]) -> list[bytes | None]:
    """Each entry's fields as a JSON list of [name, value]; None where the body is gone.

    In printable ASCII, so that no character of theirs acts on who shows the file; bytes that are
    not UTF-8 as escapes.
    """
    bodies = [fields or () for _, fields in part]
    rows = [_shape(len(body)) % (*body,) for body in bodies]
    whole = NEXT.join(rows)
    if not _is_plain(whole, sum(map(len, bodies)), len(part) - 1):
        rows = [
            row if _is_plain(row, len(body)) else b""
            for row, body in zip(rows, bodies, strict=True)
        ]
        whole = NEXT.join(rows)
    # one text to the encoder, which takes half the time of bytes.replace
    escaped = msgspec.json.encode(whole.decode("ascii"))[1:-1]
    found = escaped.replace(NEXT, b"\n").replace(QUOTE, b'"').split(b"\n")
    return [
        row if row and body else _odd(fields)
        for row, body, (_, fields) in zip(found, bodies, part, strict=True)
    ]


def _is_plain(shaped: bytes, texts: int, ends: int = 0) -> bool:
    """Whether nothing but printable ASCII is in `texts` texts, shaped and with `ends` between."""
    return len(shaped.translate(None, PLAIN)) == len(QUOTE) * 2 * texts + len(NEXT) * ends


@cache
def _shape(n: int) -> bytes:
    """The JSON of n names and values, without these and with QUOTE for each quote."""
    return b"[%b]" % b",".join([b"[%b%%b%b,%b%%b%b]" % ((QUOTE,) * 4)] * (n // 2))


def _odd(fields: Sequence[bytes] | None) -> bytes | None:
    """The same of one entry, whatever its bytes."""
    if fields is None:
        return None
    texts = [text(part) for part in fields]
    pairs = [*zip(texts[::2], texts[1::2], strict=True)]
    return json.dumps(pairs, separators=(",", ":")).encode()
