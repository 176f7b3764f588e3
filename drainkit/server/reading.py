"""All reading of the stream: snapshot, paging, the entries of a scope, the backlog as DataFrame.

Nothing here writes, not even by side effect: no XREADGROUP, XCLAIM or XAUTOCLAIM, which on 7.2
and later make a consumer even when they return nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.values import RawEntry, iso
from ..errors import DrainkitError, RefusedError, ReplyTooLargeError, UnreachableError
from ..ids import FIRST_ID, LAST_ID, id_key, next_id, previous_id
from ..safe import one_line, text
from .connection import Server
from .keys import name_of, raw_name

PAGE_ENTRIES = 5000
FIRST_PAGE_ENTRIES = 8  # until it is known how large the entries are
PAGE_BODIES = 250
PAGE_BYTES = 2 << 20  # about so much in a page, as it comes
MOST_BYTES = 8 << 20  # never more, unless it is one entry
PART_BYTES = 40  # that each field and each value takes, whatever it holds
ACTIVE_MS = 60_000  # another consumer that was active within the last minute is alive
SIDE_STREAMS = (b".drain_audit", b".drain_runs")


@dataclass(frozen=True)
class Consumer:
    """One consumer as XINFO CONSUMERS says: its name, pending entries, idle milliseconds."""

    name: str
    pending: int
    idle_ms: int


@dataclass(frozen=True)
class Backlog:
    """Entries per scope, counted one by one up to the boundary; None: not counted to the end."""

    undelivered: int | None
    pending: int
    history: int | None


@dataclass(frozen=True)
class Group:
    """One consumer group as XINFO GROUPS says; its backlog only where it was counted."""

    name: str
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
    entries_added: int | None  # None: older than 7.0
    max_deleted_id: str | None = None  # the largest id ever taken by XDEL (trims leave it alone)

    @property
    def gone(self) -> int | None:
        """How many entries were removed; None: older than 7.0."""
        return None if self.entries_added is None else self.entries_added - self.length


@dataclass(frozen=True)
class StopSwitch:
    """What `drainkit stop` left: why, by whom and when."""

    reason: str  # one safe line
    operator: str  # one safe line; "" where it is not known
    at: str | None  # ISO 8601 UTC, by the server's clock; None where it is not known

    def __str__(self) -> str:
        who = f" by {self.operator}" if self.operator else ""
        when = f" at {self.at}" if self.at else ""
        return f"the kill switch is set ({self.reason}){who}{when}"

    @classmethod
    def read(cls, raw: bytes, key: bytes = b"", kind: str = "string") -> StopSwitch:
        """From its value; one that was set by hand has no reason that can be read.

        `key` of another `kind` than a string stops drains too.
        """
        if kind != "string":
            return cls(f"{one_line(text(key))} is a {kind}", "", None)
        try:
            found = json.loads(raw)
            reason, operator = one_line(str(found["reason"])), found.get("operator")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return cls("no reason given", "", None)
        try:
            at = iso(int(found["at_us"]))
        except (ValueError, KeyError, TypeError, OverflowError):
            at = None
        return cls(reason, one_line(str(operator)) if operator else "", at)


def stream_info(
    server: Server, key: bytes | None = None, reply: list[Any] | None = None
) -> StreamInfo:
    """A stream as XINFO STREAM says, or has said in `reply` (empty: it is missing).

    A side stream (`key`) that is missing is empty; if the stream itself is, or is of another type,
    it is refused.
    """
    name = key or server.stream
    if reply is None and key is not None and not server.call("EXISTS", key):
        reply = []
    try:
        reply = server.call("XINFO", "STREAM", name) if reply is None else reply
    except RefusedError:
        kind = type_of(server, name)
        if key is not None or kind == "stream":
            raise
        found = "does not exist" if kind == "none" else f"is a {kind}, not a stream"
        advice = "check --stream and the database number"
        raise RefusedError(f"{text(name)} {found}; {advice}") from None
    if not reply:
        return StreamInfo(text(name), 0, None, None, FIRST_ID, 0)
    info = pairs(reply)
    deleted = info.get("max-deleted-entry-id")
    ends = [text(info[end][0]) if info[end] else None for end in ("first-entry", "last-entry")]
    return StreamInfo(
        name=text(name),
        length=info["length"],
        first_id=ends[0],
        last_id=ends[1],
        boundary_id=text(info["last-generated-id"]),
        entries_added=info.get("entries-added"),
        max_deleted_id=None if deleted is None else text(deleted),
    )


def type_of(server: Server, key: bytes) -> str:
    """The type of what a key holds, as TYPE says; "none" for a missing key."""
    return text(server.call("TYPE", key))


def newest(server: Server, key: bytes, count: int) -> list[RawEntry]:
    """The newest entries of a stream, the newest first."""
    return [*server.call("XREVRANGE", key, "+", "-", "COUNT", count)]


def lowest_pending(server: Server, group: str) -> bytes | None:
    """The smallest id that is pending in a group; None where nothing is."""
    # not its summary, which visits every consumer
    return next((page[0][0] for page in pending_ids(server, group, LAST_ID, page=1)), None)


def stop_switch(server: Server) -> StopSwitch | None:
    """The kill switch, if it is set; a key of another type in its place stops drains too."""
    key = server.keys.stop
    if (kind := type_of(server, key)) == "none":
        return None
    raw = server.call("GET", key) if kind == "string" else None
    return StopSwitch.read(raw or b"", key, kind)


def positions(
    server: Server, reply: list[Any] | None = None, *, wanted: str | None = None
) -> dict[str, Group]:
    """Every group of the stream by its name, as XINFO GROUPS says, or has said in `reply`.

    If `wanted` is not among them, it is refused, with the groups that there are.
    """
    reply = server.call("XINFO", "GROUPS", server.stream) if reply is None else reply
    found = [
        Group(
            name=name_of(info["name"]),
            position=text(info["last-delivered-id"]),
            consumers=info["consumers"],
            pending=info["pending"],
            entries_read=info.get("entries-read"),
            lag_reported=info.get("lag"),
        )
        for info in map(pairs, reply)
    ]
    groups = {group.name: group for group in found}
    if wanted is not None and wanted not in groups:
        known = ", ".join(one_line(name, 60) for name in sorted(groups)[:5]) or "none"
        raise RefusedError(
            f"{text(server.stream)} has no group {wanted}; it has: {known}"
            + (" and more" if len(groups) > 5 else "")
        )
    if wanted is not None and raw_name(wanted) != wanted.encode():
        raise RefusedError(f"{wanted}: the group's name is not UTF-8; drain another")
    return groups


def consumers(server: Server, group: str) -> list[Consumer]:
    """The group's consumers, in the server's order."""
    replies = map(pairs, server.call("XINFO", "CONSUMERS", server.stream, raw_name(group)))
    return [Consumer(name_of(r["name"]), r["pending"], r["idle"]) for r in replies]


def ask_page(server: Server, after: str, last: str, count: int) -> Callable[[], list[RawEntry]]:
    """Ask for up to `count` entries after an id; what is returned waits for them, in its turn."""
    server.send(("XRANGE", server.stream, next_id(after), last, "COUNT", count))
    return server.receive


def pages(
    server: Server, key: bytes, first: str, last: str, *,
    page: int = PAGE_ENTRIES, ahead: bool = False, newest_first: bool = False,
) -> Generator[list[RawEntry]]:  # fmt: skip
    """Entries from `first` to `last`, both included, in pages of at most `page`.

    A page of more than MOST_BYTES is given up while it comes, and asked for in smaller ones. With
    `ahead` the server already reads the next page while the caller works on one; until the
    generator ends or is closed, the connection is then its own.
    """
    count, is_full = min(page, FIRST_PAGE_ENTRIES), True
    entries: list[RawEntry] = []
    while True:
        is_more = is_full and id_key(first) <= id_key(last)
        if entries and not (ahead and is_more):
            yield entries
            entries = []
        if not is_more:
            return
        command, *ends = ("XREVRANGE", last, first) if newest_first else ("XRANGE", first, last)
        server.send((command, key, *ends, "COUNT", count))
        try:
            if entries:
                yield entries
                del entries  # or two pages would be in memory
            entries = server.receive(MOST_BYTES if count > 1 else None)
        except ReplyTooLargeError:
            entries, count = [], 1  # how large they are is not known, and a reply comes whole
            continue
        except GeneratorExit:
            if server.connected:
                with contextlib.suppress(DrainkitError):
                    server.receive(MOST_BYTES)
            raise
        if not entries:
            return
        is_full = len(entries) == count
        end = text(entries[-1][0])
        first, last = (first, previous_id(end)) if newest_first else (next_id(end), last)
        count = max(1, min(page, 8 * count, count * PAGE_BYTES // max(1, server.counted.received)))


def size_of(entry: RawEntry) -> int:
    """About how many bytes an entry takes, at least 1."""
    parts = entry[1] or ()
    return 1 + PART_BYTES * len(parts) + sum(map(len, parts))


def bodies(server: Server, ids: Sequence[bytes], most_bytes: int | None = None) -> list[RawEntry]:
    """Each id with its fields, or with None where the body is gone."""
    commands: list[Any] = [("XRANGE", server.stream, entry, entry) for entry in ids]
    replies = server.pipeline(commands, most_bytes) if ids else []
    return [reply[0] if reply else [entry, None] for entry, reply in zip(ids, replies, strict=True)]


def body_pages(server: Server, ids: Sequence[bytes]) -> Iterator[list[RawEntry]]:
    """`bodies` in pages; where they are large, one by one."""
    for at in range(0, len(ids), PAGE_BODIES):
        some = ids[at : at + PAGE_BODIES]
        try:
            entries = bodies(server, some, MOST_BYTES)
        except ReplyTooLargeError:
            yield from (bodies(server, [entry]) for entry in some)
        else:
            yield entries


def pending_ids(
    server: Server, group: str, boundary: str, *, consumer: str | None = None,
    min_idle_ms: int = 0, first: str = FIRST_ID, page: int = 1000,
) -> Iterator[list[tuple[bytes, str, int]]]:  # fmt: skip
    """Pages of (id, owner, idle_ms) from `first` to `boundary`, idle at least `min_idle_ms`."""
    idle = ("IDLE", min_idle_ms) if min_idle_ms else ()
    owner = (raw_name(consumer),) if consumer is not None else ()
    while id_key(first) <= id_key(boundary):
        found = server.call(
            "XPENDING", server.stream, raw_name(group), *idle, first, boundary, page, *owner
        )
        if found:
            yield [(row[0], name_of(row[1]), row[2]) for row in found]
        if len(found) < page:
            return
        first = next_id(text(found[-1][0]))


def pairs(reply: list[Any]) -> dict[str, Any]:
    """A flat [name, value, ...] reply as a dict."""
    return {text(reply[i]): reply[i + 1] for i in range(0, len(reply), 2)}


def find_streams(server: Server, pattern: str) -> tuple[list[bytes], list[UnreachableError]]:
    """Names of the streams that fit a glob pattern, on all primaries, without drainkit's own.

    With them, why those primaries could not be asked that did not answer.
    """
    found: set[bytes] = set()
    missed: list[UnreachableError] = []
    for place in server.primaries():
        try:
            with server.at(place) as node:
                cursor = b""
                while cursor != b"0":
                    cursor, names = node.call(
                        "SCAN", cursor or b"0", "MATCH", pattern, "COUNT", 1000, "TYPE", "stream"
                    )
                    found.update(names)
        except UnreachableError as error:
            missed.append(error)
    return sorted(n for n in found if not n.endswith(SIDE_STREAMS)), missed
