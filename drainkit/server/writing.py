"""All writing to Redis, as small atomic scripts and a few single commands.

Scripts travel as text with EVAL: 16 KB a batch cost less than the cases that EVALSHA adds (SCRIPT
FLUSH, failover, a Cluster's other node), each of them in the middle of a drain.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import chain, islice
from typing import Any

import msgspec
import numpy as np

from ..core.events import Events
from ..core.policy import OF_EVENT, Records
from ..core.values import RawEntry
from ..errors import DrainkitError, RefusedError, ServerBusyError, StoppedError
from ..ids import FIRST_ID, next_id
from ..safe import text
from .connection import Server
from .keys import NOT_OURS, Scope, raw_name
from .reading import StopSwitch, type_of

REFUSALS = {
    "gone": "the stream is gone or no longer a stream; nothing more was done",
    "no_group": "the consumer group is gone; nothing more was done",
    "no_groups": "no group reads this stream, so nothing says what is still needed; "
    "to trim it all the same say --without-groups",
    "changed": "the stream's oldest entries changed meanwhile; nothing more was removed: "
    "run trim again",
    "recreated": "the stream was made anew during the run; nothing more was done",
    "moved_back": "the group's position was moved back (XGROUP SETID?) during the run",
    "many_groups": "the stream has more than {:,} groups, and to look up a position among them "
    "would hold up the server; remove groups that are not used",
}
FAILURES = {
    "unaudited": "the audit stream was deleted or trimmed during the run: records are missing; "
    "nothing more was done",
    "other": "the stream was changed during the run, and the group was delivered other entries "
    "than were decided; compare the audit with the stream before the next run",
}
MAX_LISTED = 1_000  # groups or consumers; a script that lists so many takes 3 to 5 ms
NONE_WORDS = {"throttle": "none", "max_events": "all"}  # in the ledger, for None
_LATE = "Redis or the network is too slow: a request arrived after its time limit; try again"


class ReadAgainError(DrainkitError):
    """A batch was not committed and has to be read anew; what was sent after it, too."""


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
    planned: np.ndarray | None = None  # the plan's actions (codes); -1: recorded already, it says
    events: Events | None = None  # of a plan, where nothing was read: then `entries` is empty


@dataclass(frozen=True)
class Committed:
    """What became of a batch: done, or to be sent later; and the state of group and stream."""

    done: bool
    wait_us: int  # until the next turn, by the common pace
    rate: float | None  # events per second: the lowest throttle of all drains at work
    position: str  # of the group
    counters: bytes  # "added gone", entries so far; empty where the server does not count
    audit_id: str  # the audit's last id
    audit_ms: int  # of the records' ids; 0 without records
    vanished: int  # of `rejected`, those that were deleted before they could be delivered
    rejected: frozenset[bytes]  # neither audited nor acknowledged: deleted, or somebody else's now
    had: frozenset[bytes]  # acknowledged without a record, because they had it already


def send_commit(
    server: Server, scope: Scope, batch: Batch, records: Records, *, drained_at: str,
    rate: float | None, run_id: str, audit_id: str, credit_us: int = 0,
) -> int:  # fmt: skip
    """Send a batch to be committed, with what its records say (`audit.records`).

    `audit_id` is the audit's last id as it was seen last. Of a delay of its turn up to `credit_us`
    are made up for. Returns when, in us by the server's clock, it will be given up: after that the
    request does nothing any more.
    """
    *texts, actions, reasons = records
    if batch.planned is not None and (batch.planned < 0).any():
        pairs = zip(batch.planned.tolist(), actions, strict=True)
        actions = ["" if planned < 0 else action for planned, action in pairs]
    kind: tuple[str | int | bytes, ...] = ("new", batch.counters, batch.after)
    if batch.owners is not None:
        kind = ("pending", batch.counters, scope.min_idle_ms)
    keys = server.keys
    deadline_us = server.clock_us() + round(server.reply_timeout_sec * 1e6)
    server.send((
        "EVAL", script("commit"), 5, keys.stream, keys.audit, keys.stop, keys.state, keys.recorded,
        scope.group, scope.consumer, "none" if rate is None else repr(rate), run_id, deadline_us,
        scope.boundary, *kind, drained_at, scope.consumer_group, audit_id, credit_us, MAX_LISTED,
        msgspec.msgpack.encode([*texts, actions, reasons]), *map(raw_name, batch.owners or ()),
    ))  # fmt: skip
    return deadline_us


def receive_commit(server: Server) -> Committed:
    """The reply to `send_commit`, and by it the server's time.

    Raises if the server refused: then nothing changed.
    """
    status, now_us, wait_us, *rest = server.receive()
    server.clock_us(int(now_us))
    if status == b"late":
        raise ServerBusyError(_LATE)
    if status == b"forgotten":
        raise ReadAgainError("what is recorded is not known any more; it is read from the audit")
    if status == b"stopped":
        raise StoppedError(f"{StopSwitch.read(rest[0])}; drainkit resume lifts it")
    if status.decode() in FAILURES:
        raise DrainkitError(FAILURES[status.decode()])
    if status not in (b"ok", b"wait"):
        raise RefusedError(REFUSALS[status.decode()].format(MAX_LISTED))
    rate, position, counters, audit_id, audit_ms, vanished, rejected, *ids = rest
    return Committed(
        done=status == b"ok", wait_us=int(wait_us), rate=None if rate == b"none" else float(rate),
        position=text(position), counters=counters, audit_id=text(audit_id),
        audit_ms=int(audit_ms), vanished=int(vanished),
        rejected=frozenset(ids[: int(rejected)]), had=frozenset(ids[int(rejected) :]),
    )  # fmt: skip


def probe(
    server: Server, scope: Scope, *, after: str, counters: bytes, audit_id: str = FIRST_ID,
    rate: float | None = None,
) -> Committed:  # fmt: skip
    """A commit without records: proves that one could work, and brings the group's position.

    It refuses what a commit refuses: a position below `after`, counters that went back. With `rate`
    the drains at work learn of this one's throttle.
    """
    send_commit(
        server, scope, Batch([], after, counters), [()] * len(OF_EVENT), drained_at="", rate=rate,
        run_id="", audit_id=audit_id,
    )  # fmt: skip
    return receive_commit(server)


def evaluate(server: Server, name: str, keys: Sequence[bytes], *args: bytes | str | int) -> Any:
    """What a script of lua/ answers; its header says what it takes."""
    return server.call("EVAL", script(name), len(keys), *keys, *args)


def add_to_ledger(server: Server, entry: msgspec.Struct) -> None:
    """Append an entry (ledger.Entry) to the run ledger."""
    values = msgspec.to_builtins(entry).items()
    shown = ((n, NONE_WORDS.get(n, "") if v is None else str(v)) for n, v in values)
    server.call("XADD", server.keys.runs, "*", *chain.from_iterable(shown))


def stop(server: Server, *, reason: str, now_us: int, operator: str = "") -> bool:
    """Set the kill switch; from this reply on no commit of the stream does anything.

    False if it was set already: then it keeps its first reason, but none that expires.

    SETNX and GETDEL, not SET and DEL: on 6.2 an ACL grants a command for all keys or none, and a
    drainer must not be able to overwrite or delete the stream.
    """
    switch = {"reason": reason, "operator": operator, "at_us": now_us}
    kind = text(evaluate(server, "stop", [server.keys.stop], json.dumps(switch)))
    _check_switch(server, kind)
    return not kind


def resume(server: Server) -> StopSwitch | None:
    """Lift the kill switch; the one that was lifted, None if there was none."""
    _check_switch(server, type_of(server, server.keys.stop))
    found = server.call("GETDEL", server.keys.stop)
    return None if found is None else StopSwitch.read(found)


def _check_switch(server: Server, kind: str) -> None:
    """Refuse a key of another type in the kill switch's place."""
    if kind not in ("", "none", "string"):
        raise RefusedError(
            f"{text(server.keys.stop)} is a {kind}, no kill switch of drainkit's: no drain "
            "goes on as long as it is there; rename it, and drainkit stop"
        )


def open_history(server: Server, scope: Scope) -> None:
    """Make scope history's group where it is missing, where its last commit left it.

    It begins at the scope's position if that is later. Refuses a group that drainkit did not make,
    and a second one of the same consumer group.
    """
    keys = [server.stream, server.keys.state]
    told = (scope.group, scope.consumer_group, scope.position)
    made, *other = evaluate(server, "history_open", keys, *told)
    name = text(other[0]) if other else ""
    refusals = {
        -1: f"{text(server.stream)} is not a stream any more",
        -2: NOT_OURS.format(scope.group, scope.consumer_group),
        -3: f"scope history of this consumer group is at work with group {name}; finish it with "
        f"--history-group {name}",
    }
    if made in refusals:
        raise RefusedError(refusals[made])


def close_history(server: Server, scope: Scope) -> bool:
    """Destroy the group of scope history if it is exhausted; its end is remembered.

    All history counts, not just what --until or a plan let this run take.
    """
    keys = [server.stream, server.keys.state]
    told = (scope.group, scope.group_position, scope.consumer_group)
    return bool(evaluate(server, "history_close", keys, *told))


def add_entries(server: Server, key: bytes, entries: Iterable[RawEntry]) -> int:
    """Append entries with their ids to the demo's stream; returns how many."""
    left, added = iter(entries), 0
    while batch := [*islice(left, 1000)]:
        added += len(server.pipeline([("XADD", key, entry, *fields) for entry, fields in batch]))
    return added


@cache
def script(name: str) -> str:
    """A script's text, with those before it that it needs."""
    folder = resources.files("drainkit.server").joinpath("lua")
    needs = {"commit": 2, "begin": 2, "remember": 2, "look": 2, "trim": 1,
             "history_open": 1, "history_close": 1}  # fmt: skip
    names = (*("ids", "recorded")[: needs.get(name, 0)], name)
    text = "\n".join(folder.joinpath(f"{n}.lua").read_text(encoding="utf-8") for n in names)
    return re.sub(r"(?m)^ *(--.*\n)?", "", text)  # it travels, and is summed up, with each commit


def seed_group(
    server: Server, key: bytes, group: str, *, position: str, deliver: Mapping[str, int],
    bodies_lost: int,
) -> None:  # fmt: skip
    """For the demo: make a group at `position`, its consumers, and deliver them so many entries.

    None is acknowledged. Of the last consumer's the first `bodies_lost` are deleted, as a trim by
    somebody else would.
    """
    server.call("XGROUP", "CREATE", key, group, position)
    delivered: list[RawEntry] = []
    for consumer, count in deliver.items():
        server.call("XGROUP", "CREATECONSUMER", key, group, consumer)
        if count:
            reading = ("XREADGROUP", "GROUP", group, consumer, "COUNT", count, "STREAMS", key, ">")
            ((_, delivered),) = server.call(*reading)
    server.call("XDEL", key, *(entry[0] for entry in delivered[:bodies_lost]))


def remove_consumers(
    server: Server, group: str, names: Sequence[str], *, min_idle_ms: int | None
) -> list[tuple[str, int]]:
    """Remove those of `names` that, in this step, have nothing pending and idle long enough.

    With None how long they idle is known. For each: ("removed", 0), ("pending", 0), ("active", idle
    ms) or ("gone", 0).
    """
    least = "" if min_idle_ms is None else min_idle_ms
    raws = map(raw_name, names)
    reply = evaluate(server, "remove_consumers", [server.stream], group, least, *raws)
    return [(text(status), int(number)) for status, number in reply]


def trim(server: Server, ids: Sequence[bytes], *, without_groups: bool = False) -> int:
    """Remove the stream's oldest entries, which must be just `ids`; returns how many.

    Refuses, in the same step, what a group has not delivered or acknowledged by now.
    """
    last = text(ids[-1])
    digest = hashlib.sha1(b"".join(i + b"\n" for i in ids), usedforsecurity=False).hexdigest()
    told = (last, next_id(last), len(ids), digest, "1" if without_groups else "0")
    status, *detail = evaluate(server, "trim", [server.stream], *told)
    if status == b"ok":
        return int(detail[0])
    if status == b"held":
        group, entry = (text(part) for part in detail)
        raise RefusedError(f"group {group} holds the trim back at {entry}; run trim again")
    raise RefusedError(REFUSALS[status.decode()])
