"""All reading of the stream: snapshot, paging, the entries of a scope, the backlog as DataFrame.

Nothing here writes, not even by side effect: no XREADGROUP, XCLAIM or XAUTOCLAIM, which on 7.2
and later make a consumer even when they return nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import DrainkitError, RefusedError, one_line
from .events import Decoder, FrameBuilder, RawEntry
from .server import Keys, Server
from .settings import Settings, allowlist_symbols, check_symbols

if TYPE_CHECKING:
    import pandas as pd

PAGE_ENTRIES = 5000
FIRST_PAGE_ENTRIES = 500
PAGE_BYTES = 16 << 20  # about so much at most, or a page of large entries would hold gigabytes
FIRST_ID = "0-0"
LAST_ID = "18446744073709551615-18446744073709551615"


@dataclass(frozen=True)
class Consumer:
    """One consumer as XINFO CONSUMERS says: its name, pending entries, idle milliseconds."""

    name: Name
    pending: int
    idle_ms: int


@dataclass(frozen=True)
class Backlog:
    """Entries per scope, counted one by one up to the boundary."""

    undelivered: int
    pending: int
    history: int


@dataclass(frozen=True)
class Group:
    """One consumer group as XINFO GROUPS says; its backlog only where it was counted."""

    name: Name
    position: str
    consumers: int
    pending: int
    entries_read: int | None  # None: the server does not know, or is older than 7.0
    lag_reported: int | None
    backlog: Backlog | None = None


@dataclass(frozen=True)
class StreamInfo:
    """The stream as XINFO STREAM says; ids are None in an empty stream."""

    name: str
    length: int
    first_id: str | None
    last_id: str | None
    boundary_id: str
    entries_added: int | None


def id_key(entry_id: str | bytes) -> tuple[int, int]:
    """An id as a pair of integers; as texts `5-10` would come before `5-9`."""
    ms, _, seq = (entry_id.decode() if isinstance(entry_id, bytes) else entry_id).partition("-")
    return int(ms), int(seq or 0)


def next_id(entry_id: str) -> str:
    """The smallest id after `entry_id`: inclusive ranges work on every version and client."""
    ms, seq = id_key(entry_id)
    return f"{ms}-{seq + 1}" if seq < 2**64 - 1 else f"{ms + 1}-0"


class Name(str):
    """A group's or consumer's name: text to show, and the bytes that the server knows it by.

    Names need not be UTF-8, and what is shown of such a one is not its name.
    """

    raw: bytes

    def __new__(cls, raw: bytes) -> Name:
        """The name that the server gave as `raw`."""
        name = super().__new__(cls, text(raw))
        name.raw = raw
        return name

    def __getnewargs__(self) -> tuple[bytes]:  # type: ignore[override] # copies are made from raw
        return (self.raw,)


def raw_name(name: str) -> bytes:
    """The bytes to send for a name that came from the server or from the settings."""
    return name.raw if isinstance(name, Name) else name.encode()


def text(raw: bytes) -> str:
    """A name from the server as text; what is no UTF-8 is shown as escapes."""
    return raw.decode("utf-8", "backslashreplace")


def stream_info(server: Server, key: bytes) -> StreamInfo:
    """The stream's ends and length; a missing stream or another type is refused."""
    kind = server.call("TYPE", key)
    if kind != b"stream":
        found = "does not exist" if kind == b"none" else f"is a {text(kind)}, not a stream"
        raise RefusedError(f"{one_line(text(key))} {found}; check --stream and the database number")
    info = _pairs(server.call("XINFO", "STREAM", key))
    ends = [text(info[end][0]) if info[end] else None for end in ("first-entry", "last-entry")]
    return StreamInfo(
        name=text(key),
        length=info["length"],
        first_id=ends[0],
        last_id=ends[1],
        boundary_id=text(info["last-generated-id"]),
        entries_added=info.get("entries-added"),
    )


def last_ms(server: Server, key: bytes) -> int:
    """The milliseconds of a stream's last-generated-id; 0 where there is no such stream."""
    if not server.call("EXISTS", key):
        return 0
    info = _pairs(server.call("XINFO", "STREAM", key))
    return id_key(info["last-generated-id"])[0]


def positions(server: Server, key: bytes) -> dict[str, Group]:
    """Every group of the stream by name."""
    found: dict[str, Group] = {}
    for reply in server.call("XINFO", "GROUPS", key):
        info = _pairs(reply)
        name = Name(info["name"])
        found[name] = Group(
            name=name,
            position=text(info["last-delivered-id"]),
            consumers=info["consumers"],
            pending=info["pending"],
            entries_read=info.get("entries-read"),
            lag_reported=info.get("lag"),
        )
    return found


def position_of(server: Server, key: bytes, group: str) -> Group:
    """The group's position; a missing group is refused, with the groups there are."""
    groups = positions(server, key)
    if group not in groups:
        known = ", ".join(one_line(name, 60) for name in sorted(groups)[:5]) or "none"
        raise RefusedError(
            f"{one_line(text(key))} has no group {one_line(group)}; it has: {known}"
            + (" and more" if len(groups) > 5 else "")
        )
    return groups[group]


def consumers(server: Server, key: bytes, group: str) -> list[Consumer]:
    """The group's consumers, in the server's order."""
    replies = [_pairs(r) for r in server.call("XINFO", "CONSUMERS", key, raw_name(group))]
    return [Consumer(Name(r["name"]), r["pending"], r["idle"]) for r in replies]


def pages(
    server: Server,
    key: bytes,
    first: str,
    last: str,
    *,
    page: int = PAGE_ENTRIES,
    ahead: bool = False,
) -> Iterator[list[RawEntry]]:
    """Entries from `first` to `last`, both included, in pages of at most `page`.

    With `ahead` the server already reads the next page while the caller works on one; until the
    generator ends or is closed, the connection is then its own.
    """
    count = min(page, FIRST_PAGE_ENTRIES)
    under_way = False
    try:
        while under_way or id_key(first) <= id_key(last):
            if not under_way:
                server.send("XRANGE", key, first, last, "COUNT", count)
            under_way = False
            entries = server.receive()
            if not entries:
                return
            is_full = len(entries) == count
            first = next_id(text(entries[-1][0]))
            count = max(1, min(page, 8 * count, PAGE_BYTES // entry_bytes(entries)))
            if ahead and is_full and id_key(first) <= id_key(last):
                server.send("XRANGE", key, first, last, "COUNT", count)
                under_way = True
            yield entries
            if not is_full:
                return
            del entries  # or two pages would be in memory
    finally:
        if under_way and server.connected:
            with contextlib.suppress(DrainkitError):
                server.receive()


def entry_bytes(entries: Sequence[RawEntry]) -> int:
    """How many bytes an entry may have: the largest of a sample, at least 1."""
    sample = [entry[1] or () for entry in entries[::16]]
    return 1 + max(sum(map(len, fields)) for fields in sample)


def send_page(server: Server, key: bytes, after: str, last: str, count: int) -> None:
    """Ask for up to `count` entries after one id up to another; `server.receive` brings them."""
    server.send("XRANGE", key, next_id(after), last, "COUNT", count)


def count_between(server: Server, key: bytes, first: str, last: str) -> int:
    """How many entries lie from `first` to `last`, counted: Redis's own lag can be wrong."""
    return sum(len(entries) for entries in pages(server, key, first, last))


def backlog(server: Server, info: StreamInfo, group: Group) -> Backlog:
    """The group's entries per scope, up to the boundary that `info` holds."""
    key = info.name.encode()
    undelivered = count_between(server, key, next_id(group.position), info.boundary_id)
    # length and boundary come from one reply, so the rest of the stream is history
    return Backlog(undelivered, group.pending, max(0, info.length - undelivered))


def groups(server: Server, info: StreamInfo) -> list[Group]:
    """Every group with its counted backlog."""
    found = positions(server, info.name.encode()).values()
    return [dataclasses.replace(g, backlog=backlog(server, info, g)) for g in found]


def bodies(server: Server, key: bytes, ids: Sequence[bytes]) -> list[RawEntry]:
    """Each id with its fields, or with None where the body is gone."""
    replies = server.pipeline([("XRANGE", key, entry, entry) for entry in ids]) if ids else []
    return [reply[0] if reply else [entry, None] for entry, reply in zip(ids, replies, strict=True)]


def pending_ids(
    server: Server,
    key: bytes,
    group: str,
    boundary: str,
    *,
    consumer: str | None = None,
    min_idle_ms: int = 0,
    page: int = 1000,
) -> Iterator[list[tuple[bytes, Name, int]]]:
    """Pages of (id, owner, idle_ms) up to `boundary`, idle at least `min_idle_ms`."""
    start = FIRST_ID
    idle = ("IDLE", min_idle_ms) if min_idle_ms else ()
    owner = (raw_name(consumer),) if consumer is not None else ()
    while id_key(start) <= id_key(boundary):
        found = server.call("XPENDING", key, raw_name(group), *idle, start, boundary, page, *owner)
        if found:
            yield [(row[0], Name(row[1]), row[2]) for row in found]
        if len(found) < page:
            return
        start = next_id(text(found[-1][0]))


@dataclass(frozen=True)
class Scope:
    """Where a run reads: group, start and boundary, fixed when the run starts."""

    name: str
    group: str
    consumer: str
    position: str  # of `group`; scope history: where its own group stands or would start
    group_position: str  # of the consumer group itself
    boundary: str
    group_exists: bool
    min_idle_ms: int
    from_consumers: tuple[str, ...]


def open_scope(server: Server, settings: Settings, keys: Keys) -> Scope:
    """Fix the scope of a run; a missing stream, group or consumer is refused."""
    info = stream_info(server, keys.stream)
    main = position_of(server, keys.stream, settings.consumer_group)
    position, boundary, exists = main.position, info.boundary_id, True
    wanted: tuple[str, ...] = ()
    if settings.scope == "history":
        own = positions(server, keys.stream).get(settings.drain_group)
        exists = own is not None
        if exists:
            check_history_group(server, settings, keys)
        position = own.position if own else history_done(server, keys, settings.drain_group)
        boundary = min(main.position, boundary, key=id_key)
    if settings.scope == "pending" and settings.from_consumer:
        there = consumers(server, keys.stream, settings.consumer_group)
        known: dict[str, Name] = {c.name: c.name for c in there}
        for name in settings.from_consumer:
            if name not in known:
                raise RefusedError(f"--from-consumer: the group has no {one_line(name)}")
        wanted = tuple(known[name] for name in settings.from_consumer)
    return Scope(
        name=settings.scope,
        group=settings.drain_group,
        consumer=settings.consumer_name,
        position=position,
        group_position=main.position,
        boundary=boundary,
        group_exists=exists,
        min_idle_ms=round(settings.min_idle_min * 60_000),
        from_consumers=wanted,
    )


def check_history_group(server: Server, settings: Settings, keys: Keys) -> None:
    """Refuse a group that is somebody's: scope history acknowledges all it has, and destroys it."""
    group = settings.drain_group
    is_made = server.call("HGET", keys.state, f"history_group:{group}") == b"made"
    if not is_made and not settings.has_own_history_group:
        raise RefusedError(
            f"--history-group {one_line(group)}: drainkit did not make this group, and it would be "
            "destroyed in the end; name one that does not exist yet"
        )


def history_done(server: Server, keys: Keys, group: str) -> str:
    """Where an earlier, exhausted history drain ended: its group is gone, its records are not."""
    done = server.call("HGET", keys.state, f"history:{group}")
    return text(done) if done else FIRST_ID


def scope_ids(server: Server, keys: Keys, scope: Scope) -> Iterator[list[tuple[bytes, Name]]]:
    """Scope pending: pages of (id, owner) that a drain may take, its own come first elsewhere."""
    owners = scope.from_consumers or (None,)
    for owner in owners:
        for page in pending_ids(
            server,
            keys.stream,
            scope.group,
            scope.boundary,
            consumer=owner,
            min_idle_ms=scope.min_idle_ms,
        ):
            rows = [(row_id, name) for row_id, name, _ in page if name != scope.consumer]
            if rows:
                yield rows


def own_ids(server: Server, keys: Keys, scope: Scope) -> Iterator[list[bytes]]:
    """Pages of ids that an earlier run of this consumer left unfinished."""
    if scope.group_exists:
        for page in pending_ids(
            server, keys.stream, scope.group, scope.boundary, consumer=scope.consumer
        ):
            yield [row[0] for row in page]


def scope_entries(server: Server, keys: Keys, scope: Scope) -> Iterator[list[RawEntry]]:
    """Pages of the entries that a live run would drain, in its order, read without a trace."""
    for ids in own_ids(server, keys, scope):
        yield bodies(server, keys.stream, ids)
    if scope.name == "pending":
        for rows in scope_ids(server, keys, scope):
            yield bodies(server, keys.stream, [row[0] for row in rows])
    else:
        first = next_id(scope.position)
        yield from pages(server, keys.stream, first, scope.boundary, ahead=True)


def remaining(server: Server, keys: Keys, scope: Scope) -> int:
    """Entries of the scope, up to the boundary, not yet drained; counted."""
    own = sum(len(ids) for ids in own_ids(server, keys, scope))
    if scope.name == "pending":
        return own + sum(len(rows) for rows in scope_ids(server, keys, scope))
    return own + count_between(server, keys.stream, next_id(scope.position), scope.boundary)


def current(server: Server, keys: Keys, scope: Scope) -> Scope:
    """`scope` with the group's position of now (and whether a history group still exists)."""
    found = positions(server, keys.stream).get(scope.group)
    if found is None:
        done = history_done(server, keys, scope.group) if scope.name == "history" else FIRST_ID
        return dataclasses.replace(scope, position=done, group_exists=False)
    return dataclasses.replace(scope, position=found.position, group_exists=True)


def allowlist(server: Server, settings: Settings) -> frozenset[str] | None:
    """The symbols of this run, read now from the flag, the file or the Redis set."""
    if settings.allowlist is None:
        return None
    found = allowlist_symbols(settings.allowlist)
    if isinstance(found, frozenset):
        return found
    server.check_slot(found)
    kind = server.call("TYPE", found)
    if kind != b"set":
        what = "does not exist" if kind == b"none" else f"is a {text(kind)}, not a set"
        raise RefusedError(f"--allowlist {one_line(settings.allowlist)}: the key {what}")
    members = server.call("SMEMBERS", found)
    # as latin-1 what is no ASCII stays none, and so is refused
    return check_symbols([member.decode("latin-1") for member in members], settings.allowlist)


def load_frame(
    entries: Iterable[Sequence[RawEntry]], decoder: Decoder, *, limit: int | None = None
) -> pd.DataFrame:
    """The entries as a DataFrame of typed columns (see FrameBuilder); payloads stay behind.

    The garbage collector pauses meanwhile: millions of new, acyclic objects would make it walk
    the heap again and again.
    """
    builder = FrameBuilder(decoder)
    paused = gc.isenabled()
    gc.disable()
    try:
        left = limit
        for page in entries:
            builder.append(page if left is None else page[:left])
            if left is not None:
                left -= len(page)
                if left <= 0:
                    break
            del page  # or two pages would be in memory
    finally:
        if paused:
            gc.enable()
    return builder.frame()


def _pairs(reply: list[Any]) -> dict[str, Any]:
    """A flat [name, value, ...] reply as a dict."""
    return {text(reply[i]): reply[i + 1] for i in range(0, len(reply), 2)}
