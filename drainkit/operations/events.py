"""Events for a reader: one by one with every filter's verdict; the backlog of a scope as a file, or
as a dataset by day; a stream in parts, each of which a process of its own can load (Dask, Ray).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from .. import files
from ..core.events import Decoder, Events
from ..core.fields import places
from ..core.frame import decide_frame, event_schema, load_frame, record_batch
from ..core.policy import ACTIONS, Decisions, Policy, audit_table, decide, reasons
from ..core.values import LATEST_ID_MS, NO_TIME, TIME_SOURCES, RawEntry, id_times_us, iso
from ..errors import RefusedError, UsageError
from ..ids import FIRST_ID, LAST_ID, id_key, is_id, next_id
from ..late import collection_paused, pa, pc, pd
from ..safe import one_line, text
from ..server import counting, reading, scopes
from ..server.connection import Server
from ..settings import Fields, Settings, load

DAY_US = 86_400_000_000
SAMPLE = 500  # entries that are looked at for their fields
WORDS = ("time_source", "symbol", "side", "source", "invalid")


@dataclass(frozen=True)
class Lens:
    """How events are looked at: field names, policy, and the moment that ages refer to."""

    fields: Fields
    policy: Policy
    at_us: int  # microseconds since the epoch

    @classmethod
    def of(cls, server: Server, settings: Settings) -> Lens:
        """As the settings and the server say now; the allowlist is read once."""
        at_us = server.now_us() if settings.as_of_us is None else settings.as_of_us
        allowed = settings.symbols
        if isinstance(allowed, bytes):
            allowed = scopes.allowlist(server, allowed)
        policy = Policy(settings.max_age_min, allowed, settings.min_conf)
        return cls(settings.fields, policy, at_us)


# ---------------------------------------------------------------- one by one


def sample(server: Server, settings: Settings) -> list[RawEntry]:
    """Up to SAMPLE entries from all over what is undelivered, or the stream if nothing is."""
    info, settings = reading.stream_info(server), scopes.at_now(server, settings)
    last = min(info.boundary_id, settings.bounds[1], key=id_key)
    group = reading.positions(server).get(settings.consumer_group)
    found: list[RawEntry] = []
    for first in (next_id(group.position) if group else None, info.first_id):
        if first and not found and id_key(first) <= id_key(last):
            found = [*chain.from_iterable(counting.sampled(server, first, last))]
    # by chance: producers that take turns would keep time with equal steps
    rows = np.random.default_rng(0).permutation(len(found))[:SAMPLE]
    return [found[row] for row in sorted(rows.tolist())]


def show(
    server: Server, settings: Settings, policy: Policy, ids: Sequence[str], *, now_us: int
) -> list[dict[str, Any]]:
    """All that is known of single entries, JSON-ready; reads only.

    Raises UsageError for what is not an entry id, RefusedError if an entry is neither in the stream
    nor audited.
    """
    for entry_id in ids:
        if not is_id(entry_id):
            raise UsageError(f"{entry_id} is no entry id; write one such as 1766602826755-0")
    wanted = [b"%d-%d" % id_key(entry_id) for entry_id in ids]  # without leading zeros
    records, decoder, found = _audited(server, wanted), Decoder(settings.fields), []
    for entry in reading.bodies(server, wanted):
        mine = records[entry[0]]
        if entry[1] is None and not mine:
            raise RefusedError(
                f"entry {text(entry[0])} is not in the stream and has no audit record; check the id"
            )
        events, parts = decoder.decode([entry]), [text(part) for part in entry[1] or ()]
        one = judged(events, decide(events, policy, now_us), policy)
        if entry[1] is not None:
            one["fields"] = [*map(list, zip(parts[::2], parts[1::2], strict=True))]
        one["places"] = places(settings.fields, entry, events)
        found.append(one | {"audit": {"records": mine}})
    return found


def judged(events: Events, decisions: Decisions, policy: Policy) -> dict[str, Any]:
    """What is known of a single event without its entry."""
    time_us, age_us = int(events.event_time_us[0]), int(decisions.age_us[0])
    id_us, confidence = int(id_times_us(events.ids)[0]), float(events.confidence[0])
    has_time, has_confidence = time_us != NO_TIME, not np.isnan(confidence)
    values: dict[str, Any] = {name: events.word(name) for name in ("symbol", "side", "source")}

    def reason(action: int) -> str:
        one = replace(decisions, action=np.array([action], np.uint8))
        (code,), texts = reasons(events, one, policy)
        return str(texts[code])

    first, failed = int(decisions.action[0]), int(decisions.failed[0])
    filters = ACTIONS[:1] if events.missing[0] else ACTIONS[:-1]  # of what is gone no more is said
    says = [reason(k) if failed >> k & 1 else "" for k in range(len(filters))]
    return {
        "id": events.ids[0].decode(),
        "id_time": None if id_us == NO_TIME else iso(id_us),
        "fields": None,
        "values": values | {"confidence": confidence if has_confidence else None},
        "places": [],
        "event_time": iso(time_us) if has_time else None,
        "decided_at": iso(time_us + age_us) if has_time else None,
        "time_source": TIME_SOURCES[int(events.time_source[0])],
        "age_sec": round(age_us / 1e6, 2) if has_time else None,
        "action": ACTIONS[first],
        "reason": reason(first),
        "filters": [  # in the order in which they decide: whether the event passes, or why not
            {"filter": action, "passes": not words, "says": words}
            for action, words in zip(filters, says, strict=True)
        ],
    }


def _audited(server: Server, wanted: Sequence[bytes]) -> dict[bytes, list[dict[str, Any]]]:
    """The audit records of each entry, in one pass.

    An entry is audited after it was added: with ids that are times the search begins a minute
    before the oldest (clocks differ), else at the audit's beginning.
    """
    times = id_times_us(list(wanted))
    first = f"{max(0, int(times.min()) // 1000 - 60_000)}-0"
    records: dict[bytes, list[dict[str, Any]]] = {entry_id: [] for entry_id in wanted}
    ids = pa.array([entry_id.decode() for entry_id in wanted])
    first = FIRST_ID if (times == NO_TIME).any() else first
    for page in reading.pages(server, server.keys.audit, first, LAST_ID):
        table = audit_table(page)
        for record in table.filter(pc.is_in(table["original_id"], value_set=ids)).to_pylist():
            records[record["original_id"].encode()].append(record)
    return records


def rows_of(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What `show` found of one entry as rows of (part, name, text), every text one safe line."""
    there = {p["value"]: "not valid" for p in found["places"]}
    age = "" if found["age_sec"] is None else f", {found['age_sec']:,.2f} s old"
    at = f"as of {found['decided_at'][:19]}: " if found["decided_at"] else ""
    gone = [("(body)", "gone: trimmed or deleted")]
    fields = gone if found["fields"] is None else found["fields"]
    rows: list[tuple[str, str, Any]] = [
        ("entry", "id", found["id"]),
        ("entry", "id's time", found["id_time"] or "no time"),
        *(("field", *pair) for pair in fields),
        *(("value", name, there.get(name, "not found") if value is None else value)
          for name, value in found["values"].items()),
        ("value", "event time", f"{found['event_time']}{age}, by {found['time_source']}"),
        *(("found at", p["value"],
           f"{p['where']} = {p['raw']}{'  (this one counts)' if p['counts'] else ''}")
          for p in found["places"]),
        *(("filter", f["filter"], "passes" if f["passes"] else f"FAILS: {f['says']}")
          for f in found["filters"]),
        ("decision", found["action"], at + found["reason"]),
    ]  # fmt: skip
    rows += [
        ("audit", record["action"], f"recorded at {record['drained_at_ts']} in "
         f"{record['consumer_group']}, run {record['run_id']}: {record['reason']}")
        for record in found["audit"]["records"]
    ] or [("audit", "none", "no record")]  # fmt: skip
    return [(part, one_line(str(n), 60), one_line(str(value), 2000)) for part, n, value in rows]


# ---------------------------------------------------------------- as files


@collection_paused()
def export(server: Server, settings: Settings, target: str) -> int:
    """The backlog of the settings' scope as Parquet or CSV; returns how many entries.

    A `target` that ends in a slash becomes a dataset `date=YYYY-MM-DD/part-N.parquet` by the UTC
    day of the entry's id (at most 9999-12-31). Every file has the columns of
    `events_frame`, texts as plain texts, and `fields`: the entry's own in order (null where the
    body is gone, escapes where a name or a value is not UTF-8), in Parquet a list of structs
    (name, value), in CSV a JSON list of [name, value].
    Whole or not at all. Raises UsageError for another name, RefusedError for a folder in use.
    """
    path, is_folder, decoder = Path(target), target.endswith("/"), Decoder(settings.fields)
    as_json = path.suffix == ".csv" and not is_folder
    # texts in the place of codes: a dictionary that grows with the backlog would be in memory
    plain = pa.schema(
        [(f.name, pa.string() if f.name in WORDS else f.type) for f in event_schema()]
    )

    def table(page: Sequence[RawEntry]) -> pa.Table:
        found = pa.table(record_batch(decoder.decode(page))).cast(plain)
        return found.append_column("fields", fields_column(page, as_json=as_json))

    entries = scopes.scope_entries(server, scopes.open_scope(server, settings))
    tables, rows, last = map(table, chain([()], entries)), 0, None
    with files.whole_folder(path) if is_folder else nullcontext(path) as place, ExitStack() as out:
        days = _by_day(place, tables, server.now_us()) if is_folder else None
        # a generator would keep a table beside the next one
        for home, part in days or map(lambda table: (place, table), tables):  # noqa: C417
            if home != last:  # what was written before is whole
                out.close()
                last = home
                write = out.enter_context(files.table_writer(home, part.schema, words=WORDS))
            write(part)
            rows += len(part)
            del part  # or two pages would be in memory
    return rows


def _by_day(
    folder: Path, tables: Iterator[pa.Table], now_us: int
) -> Iterator[tuple[Path, pa.Table]]:
    """The rows in pieces of one day, each with the part of the dataset that it belongs to.

    The first table is empty. A day that comes back, after what was pending, has another part.
    """
    empty, parts, day = next(tables), Counter[str](), ""
    for table in tables:
        ids = table["id"].cast("binary").to_pylist()
        times = id_times_us(ids)
        for row in np.flatnonzero(times == NO_TIME).tolist():
            # pandas and Dask cannot read a day that is null
            times[row] = min(int(ids[row].partition(b"-")[0]), LATEST_ID_MS) * 1000
        ends = [0, *(np.flatnonzero(np.diff(times // DAY_US)) + 1).tolist(), len(table)]
        for first, end in pairwise(ends):
            if (now := _day(times[first])) != day:
                day = now
                home = folder / f"date={day}" / f"part-{parts[day]}.parquet"
                if not parts[day]:
                    files.make_folder(home.parent)
                parts[day] += 1
            yield home, table.slice(first, end - first)
        del table  # or two pages would be in memory
    if not parts:  # an empty part, from which readers take the columns and their types
        yield files.make_folder(folder / f"date={_day(now_us)}") / "part-0.parquet", empty


def _day(time_us: int) -> str:
    return str(np.datetime64(int(time_us) // DAY_US, "D"))


def fields_column(page: Sequence[RawEntry], *, as_json: bool = False) -> pa.Array:
    """Each entry's fields as a list of structs (name, value); null where the body is gone.

    Or as a JSON list of [name, value], in printable ASCII: inert anywhere.
    """
    if as_json:
        shown = list[str]()
        for _, body in page:
            own = [*map(text, body or ())]
            pairs = [*zip(own[::2], own[1::2], strict=True)]
            whole = msgspec.json.encode(pairs).decode()  # a tenth of the time, but not ASCII alone
            is_plain = whole.isascii() and "\x7f" not in whole
            shown.append(whole if is_plain else json.dumps(pairs))
        gone = np.array([body is None for _, body in page], bool)
        return pa.array(shown, pa.string(), mask=gone)
    parts, columns = [*chain.from_iterable(body or () for _, body in page)], []
    for one in (pa.array(parts[first::2], pa.binary()) for first in (0, 1)):
        try:
            columns.append(one.cast(pa.string()))
        except pa.ArrowInvalid:  # not UTF-8
            columns.append(pa.array([*map(text, one.to_pylist())], pa.string()))
    ends = np.cumsum([0, *(len(body or ()) // 2 for _, body in page)], dtype=np.int32)
    gone = pa.array([body is None for _, body in page], pa.bool_())
    structs = pa.StructArray.from_arrays(columns, ["name", "value"])
    return pa.ListArray.from_arrays(ends, structs, mask=gone)


# ---------------------------------------------------------------- in parts


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
        parts, lens = counting.split(server, n), Lens.of(server, settings)
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
    there = [*event_schema().names, "age_sec", "action", "failed"]
    wanted = there if columns is None else [*columns]
    for name in wanted:
        if name not in there:
            raise UsageError(f"load_range: no column {name}; there are {there}")
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
    if not (url := os.environ.get(url_env)):
        raise UsageError(f"the environment variable {url_env} is not set; set it")
    return load({"redis_url": url, "stream": stream})
