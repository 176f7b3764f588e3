"""Scopes: which entries a run may take, and its boundary, fixed when the run starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from ..core.values import RawEntry
from ..errors import RefusedError
from ..kinds import allowlist_symbols, check_symbols
from ..safe import one_line, text
from ..settings import Settings
from .connection import Server
from .counting import count_between
from .reading import (
    FIRST_ID,
    Name,
    bodies,
    consumers,
    id_key,
    next_id,
    pages,
    pending_ids,
    position_of,
    positions,
    stream_info,
)


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


def open_scope(server: Server, settings: Settings, *, boundary: str | None = None) -> Scope:
    """Fix the scope of a run; a missing stream, group or consumer is refused.

    `boundary`: that of a run that has begun already; None: the stream's last id now.
    """
    info = stream_info(server)
    main = position_of(server, settings.consumer_group)
    position, boundary, exists = main.position, boundary or info.boundary_id, True
    wanted: tuple[str, ...] = ()
    if settings.scope == "history":
        own = positions(server).get(settings.drain_group)
        exists = own is not None
        if exists:
            check_history_group(server, settings)
        position = own.position if own else history_done(server, settings.drain_group)
        boundary = min(main.position, boundary, key=id_key)
    if settings.scope == "pending" and settings.from_consumer:
        there = consumers(server, settings.consumer_group)
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


def check_history_group(server: Server, settings: Settings) -> None:
    """Refuse a group that is somebody's: scope history acknowledges all it has, and destroys it."""
    group = settings.drain_group
    is_made = server.call("HGET", server.keys.state, f"history_group:{group}") == b"made"
    if not is_made and not settings.has_own_history_group:
        raise RefusedError(
            f"--history-group {one_line(group)}: drainkit did not make this group, and it would be "
            "destroyed in the end; name one that does not exist yet"
        )


def history_done(server: Server, group: str) -> str:
    """Where an earlier, exhausted history drain ended: its group is gone, its records are not."""
    done = server.call("HGET", server.keys.state, f"history:{group}")
    return text(done) if done else FIRST_ID


def scope_ids(server: Server, scope: Scope) -> Iterator[list[tuple[bytes, Name]]]:
    """Scope pending: pages of (id, owner) that a drain may take, its own come first elsewhere."""
    owners = scope.from_consumers or (None,)
    for owner in owners:
        for page in pending_ids(
            server,
            scope.group,
            scope.boundary,
            consumer=owner,
            min_idle_ms=scope.min_idle_ms,
        ):
            rows = [(row_id, name) for row_id, name, _ in page if name != scope.consumer]
            if rows:
                yield rows


def own_ids(server: Server, scope: Scope) -> Iterator[list[bytes]]:
    """Pages of ids that an earlier run of this consumer left unfinished."""
    if scope.group_exists:
        for page in pending_ids(server, scope.group, scope.boundary, consumer=scope.consumer):
            yield [row[0] for row in page]


def scope_entries(server: Server, scope: Scope) -> Iterator[list[RawEntry]]:
    """Pages of the entries that a live run would drain, in its order, read without a trace."""
    for ids in own_ids(server, scope):
        yield bodies(server, ids)
    if scope.name == "pending":
        for rows in scope_ids(server, scope):
            yield bodies(server, [row[0] for row in rows])
    else:
        first = next_id(scope.position)
        yield from pages(server, server.stream, first, scope.boundary, ahead=True)


def remaining(server: Server, scope: Scope) -> int:
    """Entries of the scope, up to the boundary, not yet drained; counted."""
    own = sum(len(ids) for ids in own_ids(server, scope))
    if scope.name == "pending":
        return own + sum(len(rows) for rows in scope_ids(server, scope))
    return own + count_between(server, next_id(scope.position), scope.boundary)


def current(server: Server, scope: Scope) -> Scope:
    """`scope` with the group's position of now (and whether a history group still exists)."""
    found = positions(server).get(scope.group)
    if found is None:
        done = history_done(server, scope.group) if scope.name == "history" else FIRST_ID
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
