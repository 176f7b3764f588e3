"""Events for a reader: one by one with every filter's verdict; the backlog of a scope as a file, or
as a dataset by day; a stream in parts, each of which a process of its own can load (Dask, Ray).
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
from typing import Any

import msgspec
import numpy as np

from .. import files
from ..core.audit import audit_table
from ..core.events import Decoder, Events
from ..core.fields import places
from ..core.frame import decide_frame, event_schema, load_frame, record_batch
from ..core.policy import ACTIONS, Decisions, Policy, decide, reasons
from ..core.timestamps import NO_TIME, TIME_SOURCES, id_times_us, iso
from ..core.values import INVALID_REASONS, RawEntry
from ..errors import RefusedError, UsageError
from ..ids import FIRST_ID, id_key, is_id
from ..late import collection_paused, pa, pc, pd
from ..safe import one_line, text
from ..server import ledger, reading, scopes
from ..server.connection import Server
from ..server.counting import split
from ..settings import Fields, Settings, load

PART_ROWS = 1_000_000
BY_HAND = 32  # texts around one that is not UTF-8
DAY_US = 86_400_000_000
NO_DATE = "__HIVE_DEFAULT_PARTITION__"  # what readers of such datasets take for null
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
        policy = Policy(settings.max_age_min, scopes.allowlist(server, settings), settings.min_conf)
        return cls(settings.fields, policy, at_us)


# ---------------------------------------------------------------- one by one


def show(
    server: Server, settings: Settings, policy: Policy, ids: Sequence[str], *, now_us: int
) -> list[dict[str, Any]]:
    """All that is known of single entries, JSON-ready; reads only.

    Raises UsageError for what is not an entry id, RefusedError if an entry is neither in the stream
    nor pending nor audited.
    """
    for entry_id in ids:
        if not is_id(entry_id):
            raise UsageError(f"{entry_id} is no entry id; write one such as 1766602826755-0")
    wanted = [entry_id.encode() for entry_id in ids]
    audits, decoder, found = _audits(server, wanted), Decoder(settings.fields), []
    for entry in reading.bodies(server, wanted):
        groups, audit = [*_groups(server, entry[0].decode())], audits[entry[0]]
        if entry[1] is None and not audit["records"] and not any(g["pending"] for g in groups):
            raise RefusedError(
                f"entry {text(entry[0])} is not in the stream, not pending and not "
                f"among the {audit['searched']:,} audit records searched; check the id"
            )
        events = decoder.decode([entry])
        texts = [text(part) for part in entry[1] or ()]
        pairs = [list(pair) for pair in zip(texts[::2], texts[1::2], strict=True)]
        found.append(judged(events, decide(events, policy, now_us), policy) | {
            "fields": None if entry[1] is None else pairs,
            # JSON can hold numbers that JSON cannot write again: as text each can be shown
            "places": [
                vars(p) | {"raw": text(p.raw) if isinstance(p.raw, bytes) else repr(p.raw)}
                for p in places(settings.fields, entry, events)
            ],
            "groups": groups, "audit": audit,
        })  # fmt: skip
    return found


def judged(events: Events, decisions: Decisions, policy: Policy) -> dict[str, Any]:
    """What is known of a single event without its entry."""
    time_us, age_us = int(events.event_time_us[0]), int(decisions.age_us[0])
    id_us, confidence = int(id_times_us(events.ids)[0]), float(events.confidence[0])
    has_time, has_confidence = time_us != NO_TIME, not np.isnan(confidence)
    values: dict[str, Any] = {name: events.word(name) for name in ("symbol", "side", "source")}
    filters = [{"filter": "dropped_missing", "passes": False, "says": "the entry's body is gone"}]
    if not events.missing[0]:
        symbol, allowed = values["symbol"] or "no valid symbol", policy.allowlist
        says = (
            "the entry's body is there",
            f"age {age_us / 1e6:.2f} s, limit {policy.max_age_us / 1e6:.2f} s"
            if age_us != NO_TIME else "no usable time to judge",
            INVALID_REASONS[int(events.invalid[0])] or "every value can be read",
            "any symbol passes" if allowed is None else f"{symbol}, {len(allowed):,} are allowed",
            f"confidence {confidence!r}, minimum {policy.min_conf!r}" if has_confidence else
            "no valid confidence to judge",
        )  # fmt: skip
        failed = int(decisions.failed[0])
        filters = [  # in the order in which they decide: whether the event passes, and why
            {"filter": action, "passes": not failed >> place & 1, "says": words}
            for place, (action, words) in enumerate(zip(ACTIONS[:-1], says, strict=True))
        ]
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
        "action": ACTIONS[int(decisions.action[0])],
        "reason": reasons(events, decisions, policy)[0],
        "filters": filters,
    }


def _groups(server: Server, entry_id: str) -> Iterator[dict[str, Any]]:
    """What each group has to do with the entry."""
    for group in reading.positions(server).values():
        rows = next(reading.pending_ids(server, group.name, entry_id, first=entry_id), [])
        yield {
            "name": str(group.name),
            "position": group.position,
            "delivered": id_key(entry_id) <= id_key(group.position),
            "pending": {"consumer": str(rows[0][1]), "idle_ms": rows[0][2]} if rows else None,
        }


def _audits(server: Server, wanted: Sequence[bytes]) -> dict[bytes, dict[str, Any]]:
    """The audit records of each entry, searched in one pass.

    An entry is audited after it was added: with ids that are times the search begins a minute
    before the oldest (clocks differ), else at the audit's beginning.
    """
    times = id_times_us(list(wanted))
    start_ms = max(0, int(times.min()) // 1000 - 60_000) if (times != NO_TIME).all() else 0
    first = f"{start_ms}-0" if start_ms else FIRST_ID
    records: dict[bytes, list[dict[str, Any]]] = {entry_id: [] for entry_id in wanted}
    searched, ids = 0, pa.array([entry_id.decode() for entry_id in wanted])
    for page in ledger.audit_pages(server, first):
        searched += len(page)
        table = audit_table(page)
        for record in table.filter(pc.is_in(table["original_id"], value_set=ids)).to_pylist():
            records[record["original_id"].encode()].append(record)
    told = {"searched_from": first, "searched": searched}
    return {entry_id: {**told, "records": found} for entry_id, found in records.items()}


def rows_of(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What `show` found of one entry as rows of (part, name, text), every text one safe line.

    `body` is what to say where it was not kept.
    """
    gone = [("(body)", found.get("body", "gone: trimmed or deleted"))]
    there = {place["value"] for place in found["places"]}
    missing = {
        name: "not valid" if name in there else "none" if "body" in found else "not found"
        for name in found["values"]
    }
    age = "" if found["age_sec"] is None else f", {found['age_sec']:,.2f} s old"
    at = f"as of {found['decided_at'][:19]}: " if found["decided_at"] else ""
    rows: list[tuple[str, str, Any]] = [
        ("entry", "id", found["id"]),
        ("entry", "id's time", found["id_time"] or "no time"),
        *(("field", *pair) for pair in (gone if found["fields"] is None else found["fields"])),
        *(("value", name, missing[name] if value is None else value)
          for name, value in found["values"].items()),
        ("value", "event time", f"{found['event_time']}{age}, by {found['time_source']}"),
        *(("found at", place["value"], f"{place['where']} = {place['raw']}"
           + "  (this one counts)" * place["counts"]) for place in found["places"]),
        *(("filter", verdict["filter"],
           f"{'passes' if verdict['passes'] else 'FAILS'}: {verdict['says']}")
          for verdict in found["filters"]),
        ("decision", found["action"], at + found["reason"]),
    ]  # fmt: skip
    for group in found["groups"]:
        state = "delivered" if group["delivered"] else "not delivered yet"
        if pending := group["pending"]:
            state += f", pending for {pending['consumer']}, idle {pending['idle_ms'] / 1000:,.0f} s"
        rows.append(("group", group["name"], state))
    audit = found["audit"]
    rows += [
        ("audit", record["action"], f"recorded at {record['drained_at_ts']} in "
         f"{record['consumer_group']}, run {record['run_id']}: {record['reason']}")
        for record in audit["records"]
    ]  # fmt: skip
    if not audit["records"]:
        rows.append(("audit", "none", f"{audit['searched']:,} records searched"))
    return [(part, one_line(str(name), 60), one_line(str(value), 2000))
            for part, name, value in rows]  # fmt: skip


# ---------------------------------------------------------------- as files


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
    path, is_folder, decoder = Path(target), target.endswith("/"), Decoder(settings.fields)
    if not is_folder and path.suffix not in (".parquet", ".csv"):
        raise UsageError(f"{path.name}: the name must end in .parquet or .csv, or a folder's in /")
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
            times = id_times_us(table["id"].cast("binary").to_pylist())
            ends = [*(np.flatnonzero(np.diff(times // DAY_US)) + 1).tolist(), len(table)]
            first = 0
            for end in ends if len(table) else ():  # the runs of one UTC day
                while first < end:
                    if (day := _day(times[first])) != now or not room:
                        out, now, room = begin(day), day, PART_ROWS
                    n = min(room, end - first)
                    out.write(table.slice(first, n))
                    first, room = first + n, room - n
            rows += len(table)
            del table  # or two pages would be in memory
        if not parts.keys() - {NO_DATE}:
            # an empty part, from which readers take the columns and their types, that of `date` too
            begin(today)
    return rows


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
        if (middle := len(parts) // 2) < BY_HAND:
            return pa.array([*map(text, parts.to_pylist())], pa.string())
        return pa.concat_arrays([_texts(parts[:middle]), _texts(parts[middle:])])


def as_json(page: Sequence[RawEntry]) -> pa.Array:
    """Each entry's fields as a JSON list of [name, value], in printable ASCII: inert anywhere."""
    found: list[str | None] = []
    for _, body in page:
        try:
            texts = [*map(bytes.decode, body or ())]
        except UnicodeDecodeError:
            texts = [*map(text, body or ())]
        pairs = [*zip(texts[::2], texts[1::2], strict=True)]
        whole = None if body is None else msgspec.json.encode(pairs).decode()
        if whole and (not whole.isascii() or "\x7f" in whole):
            whole = json.dumps(pairs, separators=(",", ":")).replace("\x7f", "\\u007f")
        found.append(whole)
    return pa.array(found, pa.string())


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
        parts, lens = split(server, n), Lens.of(server, settings)
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
