"""All writing to Redis, as small atomic scripts and a few single commands.

Scripts travel as text with EVAL: 9 KB a batch cost less than the cases that EVALSHA adds (SCRIPT
FLUSH, failover, a Cluster's other node), each of them in the middle of a drain.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from ..core.values import RawEntry
from ..errors import RefusedError, ServerBusyError, StoppedError
from ..safe import one_line, text
from .connection import Server
from .reading import StopSwitch, next_id, raw_name
from .scopes import Scope

_REFUSALS = {
    "gone": "the stream is gone or no longer a stream; nothing more was done",
    "no_group": "the consumer group is gone; nothing more was done",
    "recreated": "the stream was made anew during the run; nothing more was done",
    "moved_back": "the group's position was moved back (XGROUP SETID?) during the run",
}
_LATE = "Redis or the network is too slow: a request arrived after its time limit; try again"
TRIM_REFUSALS = {
    "gone": "the stream is gone or no longer a stream; nothing more was removed",
    "no_groups": "no group reads this stream, so nothing says what is still needed; "
    "to trim it all the same say --without-groups",
    "changed": "the stream's oldest entries changed meanwhile; nothing more was removed: "
    "run trim again",
}


@dataclass(frozen=True)
class Batch:
    """Entries, ids ascending, to be decided and then audited and acknowledged in one step.

    New ones are all entries after the id `after` up to their last. Of pending ones `owners` says
    whose each is: the drain's own or, in scope pending, an idle consumer's.
    """

    entries: Sequence[RawEntry]
    after: str = ""
    counters: bytes = b""  # the stream's, from a Committed before the entries were asked for
    owners: Sequence[str] | None = None


@dataclass(frozen=True)
class Committed:
    """What became of a batch: done, or told to wait; and where group and stream stand then."""

    done: bool
    now_us: int
    wait_us: int  # until the next turn, by the common pace
    position: str
    counters: bytes  # "added deleted", entries so far; empty where the server does not count
    rejected: frozenset[bytes]  # neither audited nor acknowledged: somebody else's now


def send_commit(
    server: Server,
    scope: Scope,
    batch: Batch,
    records: Sequence[Sequence[bytes]],
    *,
    rate: float | None,
    run_id: str,
    deadline_us: int,
) -> None:
    """Send a batch with its audit records (RECORD_FIELDS order) to be committed.

    After `deadline_us`, by the server's clock, the request does nothing any more.
    """
    flat: list[bytes | str] = []
    if batch.owners is None:
        kind: tuple[str | int | bytes, ...] = ("new", batch.counters, batch.after)
        for entry_id, symbol, age, confidence, action, _, reason, *_ in records:
            flat += (entry_id, symbol, age, confidence, action, reason)
    else:
        kind = ("pending", batch.counters, scope.min_idle_ms)
        for record, owner in zip(records, batch.owners, strict=True):
            flat += (*record[:5], record[6], raw_name(owner))
    drained_at = records[0][5] if records else b""
    server.send(
        "EVAL", _script("commit"), 4, server.stream, server.keys.audit, server.keys.stop,
        server.keys.state, scope.group, scope.consumer,
        "none" if rate is None else repr(rate), run_id, deadline_us,
        scope.boundary, *kind, drained_at, len(records), *flat,
    )  # fmt: skip


def receive_commit(server: Server) -> Committed:
    """The reply to `send_commit`; raises if the server refused: then nothing changed."""
    status, now_us, wait_us, *rest = server.receive()
    if status == b"late":
        raise ServerBusyError(_LATE)
    if status == b"stopped":
        raise stopped(StopSwitch.read(rest[0]))
    if status not in (b"ok", b"wait"):
        raise RefusedError(_REFUSALS[status.decode()])
    position, counters, *rejected = rest or (b"", b"")
    return Committed(
        status == b"ok", int(now_us), int(wait_us), text(position), counters, frozenset(rejected)
    )


def stopped(switch: StopSwitch) -> StoppedError:
    """The refusal that says who stopped, when and why."""
    return StoppedError(f"{switch}; drainkit resume lifts it")


def look(
    server: Server, scope: Scope, *, after: str, counters: bytes, deadline_us: int
) -> Committed:
    """A commit without records: proves that one could work, and tells where the group stands.

    It refuses what a commit refuses: a position below `after`, counters that went back.
    """
    nothing = Batch([], after, counters)
    send_commit(server, scope, nothing, [], rate=None, run_id="", deadline_us=deadline_us)
    return receive_commit(server)


def add_to_ledger(server: Server, fields: Mapping[str, object]) -> None:
    """Append one entry to the run ledger."""
    flat = [str(part) for pair in fields.items() for part in pair]
    server.call("XADD", server.keys.runs, "*", *flat)


def stop(server: Server, *, reason: str, now_us: int, operator: str = "") -> bool:
    """Set the kill switch; from this reply on no commit of the stream does anything.

    False if it was set already: then it keeps its first reason.

    SETNX and GETDEL, not SET and DEL: on 6.2 an ACL cannot tell keys apart by command, and a
    drainer must not be able to overwrite or delete the stream.
    """
    switch = {"reason": reason, "operator": operator, "at_us": now_us}
    return bool(server.call("SETNX", server.keys.stop, json.dumps(switch)))


def resume(server: Server) -> StopSwitch | None:
    """Lift the kill switch; the one that was lifted, None if there was none."""
    found = server.call("GETDEL", server.keys.stop)
    return None if found is None else StopSwitch.read(found)


def open_history(server: Server, group: str) -> None:
    """Make the group of scope history where it is missing, and note that it is drainkit's."""
    made = server.call("EVAL", _script("history_open"), 2, server.stream, server.keys.state, group)
    if made == -1:
        raise RefusedError(f"{one_line(text(server.stream))} is no stream any more")


def close_history(server: Server, group: str, boundary: str) -> bool:
    """Destroy the group of scope history if it is exhausted; its end is remembered."""
    reply = server.call(
        "EVAL", _script("history_close"), 2, server.stream, server.keys.state, group, boundary
    )
    return bool(reply)


def add_entries(server: Server, key: bytes, entries: Iterable[RawEntry]) -> int:
    """Append entries with their ids to a stream of the demo or of a restore; returns how many."""
    batch: list[tuple[bytes | str | int, ...]] = []
    added = 0
    for entry_id, fields in entries:
        batch.append(("XADD", key, entry_id, *fields))
        if len(batch) == 1000:
            added += len(server.pipeline(batch))
            batch = []
    return added + (len(server.pipeline(batch)) if batch else 0)


@cache
def _script(name: str) -> str:
    """A script's text, with that of ids.lua before it where it compares ids."""
    folder = resources.files("drainkit.server").joinpath("lua")
    names = ("ids", name) if name in ("commit", "trim") else (name,)
    return "\n".join(folder.joinpath(f"{n}.lua").read_text(encoding="utf-8") for n in names)


def seed_group(
    server: Server, key: bytes, group: str, *, position: str, deliver: Mapping[str, int]
) -> dict[str, list[bytes]]:
    """For the demo: make a group at `position`, its consumers, and deliver them so many entries.

    Returns the ids that each consumer got and, being dead, never acknowledges.
    """
    server.call("XGROUP", "CREATE", key, group, position)
    delivered: dict[str, list[bytes]] = {}
    for consumer, count in deliver.items():
        server.call("XGROUP", "CREATECONSUMER", key, group, consumer)
        if count:
            reply = server.call(
                "XREADGROUP", "GROUP", group, consumer, "COUNT", count, "STREAMS", key, ">"
            )
            delivered[consumer] = [entry[0] for entry in reply[0][1]]
    return delivered


def lose_bodies(server: Server, key: bytes, ids: Sequence[bytes]) -> None:
    """For the demo: delete entries that are pending, as a trim by somebody else would."""
    server.call("XDEL", key, *ids)


def remove_consumers(
    server: Server, group: str, names: Sequence[str], *, min_idle_ms: int
) -> list[tuple[str, int]]:
    """Remove those of `names` that, in this step, have nothing pending and idle long enough.

    For each: ("removed", 0), ("pending", entries), ("active", idle ms) or ("gone", 0).
    """
    reply = server.call(
        "EVAL", _script("remove_consumers"), 1, server.stream, group, min_idle_ms,
        *map(raw_name, names),
    )  # fmt: skip
    return [(text(status), int(number)) for status, number in reply]


def trim(server: Server, ids: Sequence[bytes], *, without_groups: bool = False) -> int:
    """Remove the stream's oldest entries, which must be just `ids`; returns how many.

    Refuses, in the same step, what a group has not delivered or acknowledged by now.
    """
    last = text(ids[-1])
    status, *detail = server.call(
        "EVAL", _script("trim"), 1, server.stream, last, next_id(last), len(ids),
        hashlib.sha1(b"".join(i + b"\n" for i in ids), usedforsecurity=False).hexdigest(),
        "1" if without_groups else "0",
    )  # fmt: skip
    if status == b"ok":
        return int(detail[0])
    if status == b"held":
        group, entry = (one_line(text(part)) for part in detail)
        raise RefusedError(f"group {group} holds the trim back at {entry}; run trim again")
    raise RefusedError(TRIM_REFUSALS[status.decode()])


def hold_lease(server: Server, group: str, token: str, ttl_ms: int) -> int:
    """Take or renew the lease of the group's scheduled runs; `ttl_ms` 0 gives it back.

    Returns 0 if it is `token`'s now, else for how many ms another one still holds it.
    """
    reply = server.call(
        "EVAL", _script("lease"), 1, server.keys.state, f"lease:{group}", token, ttl_ms
    )
    return int(reply)
