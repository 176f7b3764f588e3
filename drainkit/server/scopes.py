"""Scopes: which entries a run may take, its boundary, and whether the server keeps its records."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple

from .. import ids
from ..core.values import RawEntry
from ..errors import RefusedError, UsageError
from ..ids import FIRST_ID, id_key, next_id, previous_id
from ..safe import one_line, text
from ..settings import Settings
from ..settings.kinds import check_symbols
from . import reading, recorded, writing
from .connection import Server
from .counting import count
from .keys import NOT_OURS, Scope, check_slot
from .writing import MAX_LISTED, REFUSALS


@dataclass(frozen=True)
class Seen:
    """Stream, group and side keys as of one moment."""

    kinds: Mapping[bytes, str]  # by key, as TYPE says
    switch: reading.StopSwitch | None
    info: reading.StreamInfo
    groups: Mapping[str, reading.Group]
    audit: reading.StreamInfo
    audit_known: str  # the audit's last id as of the last commit; 0-0 before the first
    history_begins: str  # where a new group of scope history would begin
    of_history: bool  # the consumer group was made by scope history
    has_own: bool  # whether entries are pending for the scope's consumer
    free: int | None  # bytes that maxmemory leaves; None: it sets no limit, or INFO does not say


def look(server: Server, scope: Scope) -> Seen:
    """How stream, the scope's group and the side keys are now, and the time; writes nothing.

    A stream that is gone is refused.
    """
    keys = server.keys
    names = (keys.stream, keys.audit, keys.stop, keys.state, keys.recorded, keys.runs)
    told = (scope.group, scope.consumer, MAX_LISTED, scope.consumer_group)
    reply = writing.evaluate(server, "look", names, *told)
    if reply == [b"many_groups"]:
        raise RefusedError(REFUSALS["many_groups"].format(MAX_LISTED))
    now_us, kinds, switch, info, audit, groups, known, begins, own, free, made = reply
    if not info:
        raise RefusedError(REFUSALS["gone"])
    server.clock_us(int(now_us))
    types = dict(zip(names, map(text, kinds), strict=True))
    kind = types[keys.stop]
    return Seen(
        kinds=types,
        switch=None if kind == "none" else reading.StopSwitch.read(switch, keys.stop, kind),
        info=reading.stream_info(server, reply=info),
        groups=reading.positions(server, groups),
        audit=reading.stream_info(server, keys.audit, audit),
        audit_known=text(known) or FIRST_ID,
        history_begins=text(begins) or FIRST_ID,
        of_history=made.startswith(b"made"),
        has_own=own > 0,
        free=None if free == b"" else int(free),
    )


def open_scope(server: Server, settings: Settings, *, boundary: str | None = None) -> Scope:
    """Fix the scope of a run; a missing stream, group or consumer is refused.

    `boundary`: that of a run that has begun already; None: the stream's last id now. With `until`
    it lies at most there. With `from_` scope pending begins there; history: see `_open_history`.
    """
    if settings.until or settings.from_:
        settings = at_now(server, settings)
    info, group = reading.stream_info(server), settings.consumer_group
    main = reading.positions(server, wanted=group)[group]
    wanted = settings.from_consumer if settings.scope == "pending" else ()
    there = {c.name for c in reading.consumers(server, main.name)} if wanted else set()
    for name in wanted:
        if name not in there:
            raise RefusedError(f"--from-consumer: the group has no {name}")
    (first, last), group = settings.bounds, settings.consumer_group
    if settings.scope == "history":  # which has its own
        group = settings.history_group or f"{group}.drain_history"
    scope = Scope(
        settings.scope, group, settings.consumer_group, settings.consumer_name,
        position=main.position, group_position=main.position, group_exists=True,
        boundary=min(boundary or info.boundary_id, last, key=id_key),
        min_idle_ms=round(settings.min_idle_min * 60_000), from_consumers=wanted,
        first=first,
    )  # fmt: skip
    return _open_history(server, scope) if scope.name == "history" else scope


def at_now(server: Server, settings: Settings) -> Settings:
    """The settings with ages (`--until 30m`) made times, by the server's clock."""
    bounds = {n: b for n in ("until", "from_") if (b := getattr(settings, n)) and b[-1] in "mhd"}
    if not bounds:
        return settings
    now_us = server.now_us()
    found = settings.model_copy(update={n: ids.at_moment(b, now_us) for n, b in bounds.items()})
    if found.from_ and found.until and ids.lies_after(found.from_, found.until):
        raise UsageError("--from lies after --until")
    return found


def _open_history(server: Server, scope: Scope) -> Scope:
    """Scope history, with the position of its own group, or where that would begin.

    A group reads on from its position and cannot skip. So with --from a new group is made just
    before it, and one that exists must have nothing left before it. What a new group leaves out the
    next one begins with, and passes what has its record; else it goes on where the last commit left
    the one before.
    """
    scope = current(server, scope)
    if scope.group_exists:
        made = server.call("HGET", server.keys.state, f"history_group:{scope.group}")
        if made not in (b"made", f"made {scope.consumer_group}".encode()):
            # scope history acknowledges all that the group has, and destroys it
            raise RefusedError(NOT_OURS.format(scope.group, scope.consumer_group))
        first, last = next_id(scope.position), previous_id(scope.first)
        if any(reading.pages(server, server.stream, first, last, page=1)):
            raise RefusedError(
                f"--from: the history group is at {scope.position}, before it, and a group cannot "
                "skip; leave --from out, or name another --history-group"
            )
    return replace(scope, boundary=min(scope.boundary, scope.group_position, key=id_key))


def pending_rows(server: Server, scope: Scope, *, own: bool) -> Iterator[list[tuple[bytes, str]]]:
    """Pages of (id, owner) of pending entries: what an earlier run of the scope's consumer left.

    Without `own`: what a drain of scope pending may take of others.
    """
    least_ms = 0 if own else scope.min_idle_ms
    for owner in (scope.consumer,) if own else scope.from_consumers or (None,):
        for page in reading.pending_ids(
            server, scope.group, scope.boundary, consumer=owner, min_idle_ms=least_ms,
            first=scope.first,
        ):  # fmt: skip
            if rows := [row[:2] for row in page if own or row[1] != scope.consumer]:
                yield rows


def scope_entries(server: Server, scope: Scope) -> Generator[list[RawEntry]]:
    """Pages of the entries that a live run would drain, in its order, read without a trace."""
    done = recorded.of_scope(server, scope.consumer_group)
    sources = [pending_rows(server, scope, own=True)] if scope.group_exists else []
    if scope.name == "pending":
        sources.append(pending_rows(server, scope, own=False))
    ahead: set[bytes] = set()  # pending though they lie after the position: it was moved back
    for rows in chain.from_iterable(sources):
        if fresh := [row[0] for row in rows if not done.has(row[0])]:
            ahead.update(entry for entry in fresh if id_key(entry) > id_key(scope.position))
            yield from reading.body_pages(server, fresh)
    if scope.name == "pending":
        return
    first = next_id(scope.position)
    with closing(reading.pages(server, server.stream, first, scope.boundary, ahead=True)) as found:
        for page in found:
            if entries := [entry for entry in done.without(page) if entry[0] not in ahead]:
                yield entries


class Left(NamedTuple):
    """What a scope has left: entries not yet drained, those of its own consumer, undelivered ones.

    The own and the undelivered ones count whether they have their records or not.
    """

    fresh: int
    own: int
    undelivered: int


def left(server: Server, scope: Scope, seen: Seen | None = None) -> Left:
    """What the scope has left, counted; `seen`: as of then."""
    has_own = scope.group_exists if seen is None else seen.has_own
    pages = pending_rows(server, scope, own=True) if has_own else iter(())
    own = {row[0] for row in chain.from_iterable(pages)}
    if scope.name == "pending":
        done = recorded.of_scope(server, scope.consumer_group)
        rows = chain.from_iterable(pending_rows(server, scope, own=False))
        entries = chain(own, (row[0] for row in rows))
        return Left(sum(not done.has(entry) for entry in entries), len(own), 0)
    first, info = next_id(scope.position), seen.info if seen else reading.stream_info(server)
    new = count(server, info, first, scope.boundary)[0]
    if not own and not new:
        return Left(0, 0, 0)
    done, fresh = recorded.of_scope(server, scope.consumer_group), new
    is_ahead = any(id_key(entry) > id_key(scope.position) for entry in own)
    if new and (is_ahead or done.touches(first, scope.boundary)):
        found = reading.pages(server, server.stream, first, scope.boundary, ahead=True)
        fresh = sum(entry[0] not in own for page in found for entry in done.without(page))
    return Left(fresh + sum(not done.has(entry) for entry in own), len(own), new)


def current(server: Server, scope: Scope, seen: Seen | None = None) -> Scope:
    """`scope` with the group's position of now, or as `seen` (and whether that group exists)."""
    groups = reading.positions(server) if seen is None else seen.groups
    if (found := groups.get(scope.group)) is not None:
        return replace(scope, position=found.position, group_exists=True)
    begins = FIRST_ID
    if scope.name == "history":
        begins = seen.history_begins if seen else ""
        if seen is None and recorded.is_same_life(server):
            names = (f"history_left:{scope.in_state}", f"history:{scope.in_state}")
            begins = text(next(filter(None, server.call("HMGET", server.keys.state, *names)), b""))
        begins = max(begins or FIRST_ID, previous_id(scope.first), key=id_key)
    return replace(scope, position=begins, group_exists=False)


def allowlist(server: Server, key: bytes) -> frozenset[str]:
    """The symbols of a Redis set, as it is now."""
    if server.info.cluster:
        check_slot(server.stream, key)
    kind, spec = reading.type_of(server, key), f"redis:{text(key)}"
    if kind != "set":
        what = "does not exist" if kind == "none" else f"is a {kind}, not a set"
        raise RefusedError(f"--allowlist {spec}: the key {what}")
    # as latin-1 whatever is not ASCII stays so, and is refused
    members = [member.decode("latin-1") for member in server.call("SMEMBERS", key)]
    return check_symbols(members, spec)


# ---------------------------------------------------------------- whether the server keeps it

# an audit record, with a reason of usual length and without the group's name; and one more id of
# scope pending among what is recorded (measured on 6.2, 7.0 and Valkey 9.1)
RECORD_BYTES, PENDING_BYTES = 220, 190
MARGIN = 1.25
WORK_BYTES = 1 << 20  # what scripts, requests and replies take for a moment (measured: 0.95 MB)


def keeping(server: Server) -> dict[str, Any]:
    """JSON-ready; None: INFO does not say."""
    info = b"\n".join(server.pipeline([("INFO", "memory"), ("INFO", "persistence")]))
    lines = info.decode("utf-8", "replace").splitlines()
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    most, used, aof, saves = (
        int(values[name]) if values.get(name, "").isdecimal() else None
        for name in ("maxmemory", "used_memory", "aof_enabled", "rdb_saves")
    )
    policy = values.get("maxmemory_policy")
    is_known = most is not None and policy is not None
    may_evict = bool(most) and str(policy).startswith("allkeys") if is_known else None
    return {
        "maxmemory": most,
        "used_memory": used,
        "maxmemory_policy": policy,
        "may_evict": may_evict,
        "on_disk": True if aof else None if None in (aof, saves) else bool(saves),
    }


def eviction_words(kept: Mapping[str, Any]) -> str:
    """What is to be said of keys that the server may remove; "" where it removes none."""
    if kept["may_evict"] is None:
        return "whether the server may evict keys is unknown: its INFO does not say"
    policy = f"{one_line(str(kept['maxmemory_policy']))}, maxmemory {_size(kept['maxmemory'] or 0)}"
    words = f"the server may evict any key ({policy}): audit, ledger and kill switch may be lost"
    return words if kept["may_evict"] else ""


def keeping_words(kept: Mapping[str, Any]) -> list[str]:
    """What is to be said before something is trusted to the server; nothing where all is well."""
    if "may_evict" not in kept:  # a baseline of an older version
        return []
    disk = {
        None: "whether the server keeps anything on disk is unknown: its INFO does not say",
        False: "the server has kept nothing on disk since it started (no append-only file, no "
        "snapshot): a crash loses audit and ledger",
        True: "",
    }
    return [words for words in (eviction_words(kept), disk[kept["on_disk"]]) if words]


def check_room(server: Server, scope: Scope, max_events: int | None, free: int) -> None:
    """Refuse a drain whose records would not fit into the `free` bytes that `maxmemory` leaves."""
    one = RECORD_BYTES + len(scope.group) + PENDING_BYTES * (scope.name == "pending")
    if max_events is not None and max_events * one * MARGIN + WORK_BYTES <= free:
        return  # there is no need to count
    events = left(server, scope).fresh
    events = min(events, max_events or events)
    if events and (needed := round(events * one * MARGIN) + WORK_BYTES) > free:
        raise RefusedError(
            f"the records of {events:,} events need about {_size(needed)} of memory, and maxmemory "
            f"leaves {_size(free)}; raise maxmemory, or take less with --max-events"
        )


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes >= 1e7 else f"{n_bytes / 1e3:,.0f} KB"
