"""All writing to Redis, as small atomic scripts and a few single commands.

Scripts travel as text with EVAL: 5 KB a batch cost less than the cases that EVALSHA adds (SCRIPT
FLUSH, failover, a Cluster's other node), each of them in the middle of a drain.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from .errors import DrainkitError, RefusedError, one_line
from .events import RawEntry
from .server import Keys, Server, ServerBusyError
from .stream import Scope, next_id, text

# one batch holds at most about this much, so that neither side gathers gigabytes in one reply
BATCH_BYTES = 4 << 20

_CLAIM_REFUSALS = {
    "gone": "the stream is gone or no longer a stream; nothing more was done",
    "no_group": "the consumer group is gone; nothing more was done",
    "recreated": "the stream was made anew: its last id is below the run's boundary",
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
class Claimed:
    """A batch that is now pending for this consumer, and the server's clock and position."""

    now_us: int
    position: str
    entries: list[RawEntry]
    tried: int  # scope pending: how many of the proposed ids were looked at


@dataclass(frozen=True)
class Committed:
    """What became of a batch: done, told to wait, with ids that were no longer ours."""

    done: bool
    now_us: int
    wait_us: int  # until the next turn, by the common pace
    rejected: frozenset[bytes]


class StoppedError(RefusedError):
    """The kill switch is set: `drainkit resume` lifts it."""


def send_claim(
    server: Server,
    keys: Keys,
    scope: Scope,
    *,
    count: int,
    cursor: str,
    lowest: str,
    deadline_us: int,
    proposed: Sequence[tuple[bytes, str]] | None = None,
) -> None:
    """Ask for up to `count` entries: own pending ones after `cursor`, then new or proposed ones.

    `lowest` is the position seen last: one below it means that somebody moved the group back.
    After `deadline_us`, by the server's clock, the request does nothing any more.
    """
    pairs = [part for pair in proposed or () for part in pair]
    server.send(
        "EVAL", _script("claim"), 2, keys.stream, keys.stop, scope.group, scope.consumer,
        scope.boundary, count, BATCH_BYTES, cursor, lowest,
        "new" if proposed is None else "pending", scope.min_idle_ms, deadline_us, *pairs,
    )  # fmt: skip


def receive_claim(server: Server) -> Claimed:
    """The reply to `send_claim`; raises if the kill switch is set or the stream is another."""
    status, now_us, position, entries, *tried = server.receive()
    if status == b"stopped":
        raise StoppedError("the kill switch is set (drainkit stop); drainkit resume lifts it")
    if status == b"late":
        raise ServerBusyError(_LATE)
    if status != b"ok":
        raise RefusedError(_CLAIM_REFUSALS[status.decode()])
    return Claimed(int(now_us), text(position), entries, tried[0])


def send_commit(
    server: Server,
    keys: Keys,
    scope: Scope,
    *,
    rate: float | None,
    run_id: str,
    deadline_us: int,
    records: Sequence[Sequence[bytes]],
    owners: Mapping[bytes, str],
) -> None:
    """Send a batch of audit records (RECORD_FIELDS order, ids ascending) to be committed.

    `owners` names the owner of entries without a body, which a claim leaves where they are.
    After `deadline_us`, by the server's clock, the request does nothing any more.
    """
    flat: list[bytes | str] = []
    for record in records:
        flat += (owners.get(record[0], ""), *record[:7])
    server.send(
        "EVAL", _script("commit"), 4, keys.stream, keys.audit, keys.stop, keys.state, scope.group,
        scope.consumer, "none" if rate is None else repr(rate), run_id, scope.min_idle_ms,
        deadline_us, len(records), *flat,
    )  # fmt: skip


def receive_commit(server: Server) -> Committed:
    """The reply to `send_commit`; raises if the kill switch is set: then nothing changed."""
    status, now_us, wait_us, *rejected = server.receive()
    if status == b"stopped":
        raise StoppedError("the kill switch is set (drainkit stop); drainkit resume lifts it")
    if status == b"late":
        raise ServerBusyError(_LATE)
    return Committed(status == b"ok", int(now_us), int(wait_us), frozenset(rejected))


def add_to_ledger(server: Server, keys: Keys, fields: Mapping[str, object]) -> None:
    """Append one entry to the run ledger."""
    flat = [str(part) for pair in fields.items() for part in pair]
    server.call("XADD", keys.runs, "*", *flat)


def probe(server: Server, keys: Keys, group: str) -> None:
    """Prove the permission to acknowledge with an id that no entry can have."""
    if server.call("XACK", keys.stream, group, "0-0") != 0:
        raise DrainkitError("XACK of 0-0 acknowledged something; this server is not trustworthy")


def stop(server: Server, keys: Keys, *, reason: str, now_us: int) -> None:
    """Set the kill switch; from this reply on no commit of the stream does anything.

    SETNX and GETDEL, not SET and DEL: on 6.2 an ACL cannot tell keys apart by command, and a
    drainer must not be able to overwrite or delete the stream.
    """
    server.call("SETNX", keys.stop, json.dumps({"reason": reason, "at_us": now_us}))


def resume(server: Server, keys: Keys) -> bool:
    """Lift the kill switch; False if it was not set."""
    return server.call("GETDEL", keys.stop) is not None


def open_history(server: Server, keys: Keys, group: str) -> None:
    """Make the group of scope history where it is missing."""
    made = server.call("EVAL", _script("history_open"), 2, keys.stream, keys.state, group)
    if made == -1:
        raise RefusedError(f"{one_line(text(keys.stream))} is no stream any more")


def close_history(server: Server, keys: Keys, group: str, boundary: str) -> bool:
    """Destroy the group of scope history if it is exhausted; its end is remembered."""
    reply = server.call(
        "EVAL", _script("history_close"), 2, keys.stream, keys.state, group, boundary
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
    return resources.files("drainkit").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")


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
    server: Server, keys: Keys, group: str, names: Sequence[str], *, min_idle_ms: int
) -> list[tuple[str, int]]:
    """Remove those of `names` that, in this step, have nothing pending and idle long enough.

    For each: ("removed", 0), ("pending", entries), ("active", idle ms) or ("gone", 0).
    """
    reply = server.call(
        "EVAL", _script("remove_consumers"), 1, keys.stream, group, min_idle_ms, *names
    )
    return [(text(status), int(number)) for status, number in reply]


def trim(server: Server, keys: Keys, ids: Sequence[bytes], *, without_groups: bool = False) -> int:
    """Remove the stream's oldest entries, which must be just `ids`; returns how many.

    Refuses, in the same step, what a group has not delivered or acknowledged by now.
    """
    last = text(ids[-1])
    status, *detail = server.call(
        "EVAL", _script("trim"), 1, keys.stream, last, next_id(last), len(ids),
        hashlib.sha1(b"".join(i + b"\n" for i in ids), usedforsecurity=False).hexdigest(),
        "1" if without_groups else "0",
    )  # fmt: skip
    if status == b"ok":
        return int(detail[0])
    if status == b"held":
        group, entry = (one_line(text(part)) for part in detail)
        raise RefusedError(f"group {group} holds the trim back at {entry}; run trim again")
    raise RefusedError(TRIM_REFUSALS[status.decode()])


def hold_lease(server: Server, keys: Keys, group: str, token: str, ttl_ms: int) -> int:
    """Take or renew the lease of the group's scheduled runs; `ttl_ms` 0 gives it back.

    Returns 0 if it is `token`'s now, else for how many ms another one still holds it.
    """
    reply = server.call("EVAL", _script("lease"), 1, keys.state, f"lease:{group}", token, ttl_ms)
    return int(reply)
