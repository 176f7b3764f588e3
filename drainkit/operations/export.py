"""Events for other programs: the backlog of a scope as a file, or as a dataset by day; a stream in
parts, each of which a process of its own can load (Dask, Ray, a process pool).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import msgspec
import numpy as np

from .. import files
from ..core.events import Decoder
from ..core.frame import decide_frame, event_schema, load_frame, record_batch
from ..core.policy import Policy
from ..core.timestamps import NO_TIME, id_times_us
from ..core.values import RawEntry
from ..errors import UsageError
from ..late import collection_paused, pa, pd
from ..safe import text
from ..server import reading, scopes
from ..server.connection import Server
from ..server.counting import split
from ..settings import Fields, Settings
from ..settings.config import load

PART_ROWS = 1_000_000
BY_HAND = 64  # texts around one that is not UTF-8
DAY_US = 86_400_000_000
NO_DATE = "__HIVE_DEFAULT_PARTITION__"  # what readers of such datasets take for null
WORDS = ("time_source", "symbol", "side", "source", "invalid")


@collection_paused()
def export(server: Server, settings: Settings, target: str) -> int:
    """The backlog of the settings' scope as Parquet or CSV; returns how many entries.

    A `target` that ends in a slash becomes a dataset `date=YYYY-MM-DD/part-N.parquet` by the UTC
    day of the entry's id (of an id that is not a time: null). Every file has the columns of
    `events_frame`, texts as plain texts, and `fields`: the entry's own in order (null where the
    body is gone, escapes where a name or a value is not UTF-8), in Parquet a list of structs
    (name, value), in CSV a JSON list of [name, value].
    Whole or not at all. Raises UsageError for another name, RefusedError for a folder in use.
    """
    path, is_folder = Path(target), target.endswith("/")
    if not is_folder and path.suffix not in (".parquet", ".csv"):
        raise UsageError(f"{path.name}: the name must end in .parquet or .csv, or a folder's in /")
    decoder = Decoder(settings.fields)
    # texts in the place of codes: a dictionary that grows with the backlog would be in memory
    plain = pa.schema(
        [(f.name, pa.string() if f.name in WORDS else f.type) for f in event_schema()]
    )
    fields = as_json if path.suffix == ".csv" and not is_folder else as_structs

    def table(page: Sequence[RawEntry]) -> pa.Table:
        found = pa.table(record_batch(decoder.decode(page))).cast(plain)
        return found.append_column("fields", fields(page))

    schema, rows = table([]).schema, 0
    tables = map(table, scopes.scope_entries(server, scopes.open_scope(server, settings)))
    if is_folder:
        with files.whole_folder(path) as folder:
            return _write_days(folder, schema, _day(server.now_us()), tables)
    with files.TableWriter(path, schema, words=WORDS) as out:
        for part in tables:
            out.write(part)
            rows += len(part)
            del part  # or two pages would be in memory
    return rows


def _write_days(folder: Path, schema: pa.Schema, today: str, tables: Iterator[pa.Table]) -> int:
    """Parts by day: each is closed when the day changes or it is full; how many rows there are."""
    parts, rows = Counter[str](), 0  # by day: how many there are
    with ExitStack() as opened:

        def begin(day: str) -> files.TableWriter:
            opened.close()
            home = folder / f"date={day}"
            if not parts[day]:
                files.make_folder(home)
            path = home / f"part-{parts[day]}.parquet"
            parts[day] += 1
            return opened.enter_context(files.TableWriter(path, schema, words=WORDS))

        now, room = "", 0  # the open part's day, and the rows that it still takes
        for table in tables:
            rows += len(table)
            for day, part in _days(table):
                left = part
                while len(left):
                    if day != now or not room:
                        out, now, room = begin(day), day, PART_ROWS
                    out.write(left.slice(0, room))
                    left, room = left.slice(room), max(0, room - len(left))
            del table, part, left  # or two pages would be in memory
        if not parts.keys() - {NO_DATE}:
            # an empty part, from which readers take the columns and their types, that of `date` too
            begin(today)
    return rows


def _days(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The runs of rows whose ids are of one UTC day, each with the day."""
    times = id_times_us(table["id"].cast("binary").to_pylist())
    starts = [0, *(np.flatnonzero(np.diff(times // DAY_US)) + 1).tolist()]
    for first, end in zip(starts, [*starts[1:], len(table)], strict=True):
        yield _day(times[first]), table.slice(first, end - first)


def _day(time_us: int) -> str:
    return NO_DATE if time_us == NO_TIME else str(np.datetime64(int(time_us) // DAY_US, "D"))


def as_structs(page: Sequence[RawEntry]) -> pa.Array:
    """Each entry's fields as a list of structs (name, value)."""
    parts = [*chain.from_iterable(body or () for _, body in page)]
    columns = [_texts(pa.array(parts[first::2], pa.binary())) for first in (0, 1)]
    ends = np.cumsum([0, *(len(body or ()) // 2 for _, body in page)], dtype=np.int32)
    gone = pa.array([body is None for _, body in page], pa.bool_())
    pairs = pa.StructArray.from_arrays(columns, ["name", "value"])
    return pa.ListArray.from_arrays(ends, pairs, mask=gone)


def _texts(parts: pa.Array) -> pa.Array:
    """The bytes as texts; what is not UTF-8 is searched by halves and shown as escapes."""
    try:
        return parts.cast(pa.string())
    except pa.ArrowInvalid:
        if len(parts) <= BY_HAND:
            return pa.array([*map(text, parts.to_pylist())], pa.string())
        middle = len(parts) // 2
        return pa.concat_arrays([_texts(parts[:middle]), _texts(parts[middle:])])


def as_json(page: Sequence[RawEntry]) -> pa.Array:
    """Each entry's fields as a JSON list of [name, value], in printable ASCII: inert anywhere."""
    return pa.array([None if body is None else _json(body) for _, body in page], pa.string())


def _json(body: Sequence[bytes]) -> str:
    try:
        texts = [*map(bytes.decode, body)]
    except UnicodeDecodeError:
        texts = [*map(text, body)]
    pairs = [*zip(texts[::2], texts[1::2], strict=True)]
    whole = msgspec.json.encode(pairs).decode()
    if not whole.isascii() or "\x7f" in whole:
        whole = json.dumps(pairs, separators=(",", ":")).replace("\x7f", "\\u007f")
    return whole


# ---------------------------------------------------------------- in parts

COLUMNS = (
    "id", "event_time", "time_source", "symbol", "side", "source", "confidence", "invalid",
    "missing", "age_sec", "action", "failed",
)  # fmt: skip


@dataclass(frozen=True)
class Lens:
    """How all parts are looked at: field names, policy, and the moment that ages refer to."""

    fields: Fields
    policy: Policy
    at_us: int  # microseconds since the epoch

    @classmethod
    def of(cls, server: Server, settings: Settings) -> Lens:
        """As the settings and the server say now; the allowlist is read once."""
        at_us = server.now_us() if settings.as_of_us is None else settings.as_of_us
        policy = Policy(settings.max_age_min, scopes.allowlist(server, settings), settings.min_conf)
        return cls(settings.fields, policy, at_us)


@dataclass(frozen=True)
class IdRange:
    """A part of a stream: the entries from `first` to `last`, both included.

    `lens` comes from `ranges`, so that all parts are decided alike wherever they are loaded;
    without it the settings and the moment of the process that loads the part count.
    """

    stream: str
    first: str
    last: str
    lens: Lens | None = field(default=None, repr=False)


def ranges(url_env: str, stream: str, n: int) -> list[IdRange]:
    """The stream as it is now in `n` equal parts; its ids are counted once.

    `url_env` is the name of the environment variable that holds the server's URL (a replica will
    do). Every entry lies in exactly one part; a part may be empty. Policy (`max_age_min`,
    `min_conf`, `allowlist`) and field names are those of `drainkit.toml` and the environment here.
    Raises UsageError for a wrong argument, RefusedError where there is no such stream.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise UsageError(f"ranges: n must be a number of parts, 1 or more (not {n!r})")
    with Server.of(settings := _settings(url_env, stream)) as server:
        parts = split(server, n)
        lens = Lens.of(server, settings)
    return [IdRange(stream, first, last, lens) for first, last in parts]


def load_range(
    part: IdRange, url_env: str = "DRAINKIT_REDIS_URL", columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """One part as a DataFrame with the columns of `Analysis.frame`, or just `columns`; reads only.

    Every part has the same column types: `symbol`, `side` and `source` are texts here, because
    their categories would differ from part to part; `time_source`, `invalid`, `action` and `failed`
    are categories, the same ones in each. What was trimmed since is not in it. It works as
    `dask.dataframe.from_map(drainkit.load_range, drainkit.ranges(...))`.
    """
    wanted = [*(COLUMNS if columns is None else columns)]
    for name in wanted:
        if name not in COLUMNS:
            raise UsageError(f"load_range: no column {name}; there are {COLUMNS}")
    settings = _settings(url_env, part.stream)
    with Server.of(settings, part.stream) as server:
        lens = part.lens or Lens.of(server, settings)
        pages = reading.pages(server, server.stream, part.first, part.last, ahead=True)
        frame = load_frame(pages, Decoder(lens.fields))
    frame = frame.join(decide_frame(frame, lens.policy, lens.at_us))
    for name in ("symbol", "side", "source"):  # their values differ from part to part
        frame[name] = frame[name].astype(frame["id"].dtype)
    return frame[wanted]


def _settings(url_env: str, stream: str) -> Settings:
    """The settings of this process, for the server that the variable names."""
    if "://" in url_env:
        raise UsageError("url_env takes the name of an environment variable, never a URL")
    url = os.environ.get(url_env)
    if not url:
        raise UsageError(f"the environment variable {url_env} is not set; set it")
    return load({"redis_url": url, "stream": stream})
