"""Which entries have their audit record already: none gets a second one for its consumer group.

The server keeps them as intervals of ids in a sorted set (lua/recorded.lua), which each commit
extends in the step that records. What the audit holds decides where that set is lost or older: it
is made again from the audit once, before the next commit. All here but `prepare` only reads.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, groupby

from ..core.values import RawEntry
from ..errors import RefusedError
from ..ids import FIRST_ID, LAST_ID, id_key, is_id, next_id
from ..safe import text
from . import reading, writing
from .connection import Server
from .keys import name_of

Key = tuple[int, int]  # an id, as ids.id_key has it
_PAGE = 1000  # members, or intervals, in one request
_NOTES = {
    b"whole": [],
    b"anew": ["the stream was made anew since its last drain: what was recorded of the old one "
              "does not count"],
    b"behind": ["the audit stream lacks records that it had: it was deleted, trimmed or put back "
                "from an older copy; what is missing there is not recorded again"],
}  # fmt: skip


@dataclass(frozen=True)
class Recorded:
    """The ids that are recorded for a consumer group: closed intervals, disjoint and ascending."""

    starts: Sequence[Key] = ()
    ends: Sequence[Key] = ()

    def touches(self, first: str, last: str) -> bool:
        """Whether an interval reaches into `first` to `last`."""
        at = bisect_left(self.ends, id_key(first))
        return at < len(self.ends) and self.starts[at] <= id_key(last)

    def has(self, entry_id: bytes) -> bool:
        """Whether the entry has its record."""
        at = bisect_left(self.ends, key := id_key(entry_id))
        return at < len(self.ends) and self.starts[at] <= key

    def without(self, entries: list[RawEntry]) -> list[RawEntry]:
        """Those of the entries, ids ascending, that have no record yet."""
        if not entries or not self.touches(text(entries[0][0]), text(entries[-1][0])):
            return entries
        return [entry for entry in entries if not self.has(entry[0])]


def of_scope(server: Server, consumer_group: str) -> Recorded:
    """What is recorded for a consumer group; by the audit itself where the set is not as it was."""
    keys, then = server.keys, None
    state = ("HMGET", keys.state, b"audit:" + keys.audit, "recorded", "life", "anew")
    while then != (then := server.call(*state)):  # or a drain wrote meanwhile
        last = reading.stream_info(server, keys.audit).boundary_id
        count = server.call("ZCARD", keys.recorded)
    if (is_same := is_same_life(server, then[2])) is False:
        return Recorded()
    known = "0-0" if then[0] is None else text(then[0])
    if is_same and (known, int(then[1] or 0)) == (last, count):
        return in_set(server, consumer_group)
    group = consumer_group.encode()
    audited = audited_ids(server, text(then[3] or FIRST_ID.encode()))
    spans = [*_intervals(server, group, audited.get(group, set()))]
    return Recorded([span[0] for span in spans], [span[1] for span in spans])


def is_same_life(server: Server, life: bytes | None = None) -> bool | None:
    """Whether the stream is the one of the last commit; None: it can be (lua/recorded.lua).

    `life`: as the state has it.
    """
    parts = text(life or server.call("HGET", server.keys.state, "life") or b"").split(" ")
    if len(parts) != 5:
        return True  # none is known
    added, gone, last_id, entry_id, digest = parts
    info = reading.stream_info(server)
    first, last, was = info.first_id, id_key(info.boundary_id), id_key(last_id)
    counted = info.entries_added
    if last < was or (counted is not None and added != "-" and counted < int(added)):
        return False
    is_there = first is not None and id_key(first) <= was
    if entry_id == "-":
        return not is_there
    for _, fields in server.call("XRANGE", server.stream, entry_id, entry_id):
        begins = b"\0".join(part[:64] for part in fields[:32])
        return hashlib.sha1(begins, usedforsecurity=False).hexdigest() == digest
    if gone != "-" and info.gone is not None and info.gone <= int(gone):
        return False
    return None if is_there else True


def in_set(server: Server, consumer_group: str) -> Recorded:
    """What the recorded set says of a consumer group."""
    name, starts, ends = consumer_group.encode(), list[Key](), list[Key]()
    prefix = b"%d:%b\0" % (len(name), name)
    after, last = b"[" + prefix, b"(" + prefix + b":"
    while True:
        found = server.call("ZRANGEBYLEX", server.keys.recorded, after, last, "LIMIT", 0, _PAGE)
        for member in found:
            to, _, start = member[len(prefix) :].partition(b"\0")
            starts.append((int(start[:20]), int(start[20:])))
            ends.append((int(to[:20]), int(to[20:])))
        if len(found) < _PAGE:
            return Recorded(starts, ends)
        after = b"(" + found[-1]


def prepare(server: Server, consumer_group: str) -> list[str]:
    """Make the set fit for a drain; returns what the run has to say of stream and audit.

    begin.lua says how state, stream, audit and set compare; where the audit is ahead of the set,
    its records from an id on are added, and with the last of them up to which they are complete.
    """
    side = server.keys
    keys = [side.stream, side.audit, side.state, side.recorded]
    while True:
        how, after = writing.evaluate(server, "begin", keys, consumer_group)
        if how == b"gone":
            raise RefusedError(writing.REFUSALS["gone"])
        if how != b"ahead":
            return [*_NOTES[how]]
        last = reading.stream_info(server, side.audit).boundary_id
        spans: list[tuple[bytes | str, ...]] = [
            (owner, f"{a}-{b}", f"{c}-{d}")
            for owner, ids in audited_ids(server, text(after)).items()
            for (a, b), (c, d) in _intervals(server, owner, ids)
        ]
        for at in range(0, len(spans) or 1, _PAGE):
            upto = last if at + _PAGE >= len(spans) else ""
            part = chain.from_iterable(spans[at : at + _PAGE])
            own = [side.state, side.recorded, side.audit]
            writing.evaluate(server, "remember", own, upto, *part)


def audited_ids(server: Server, after: str = FIRST_ID) -> dict[bytes, set[bytes]]:
    """By consumer group the ids that have records behind `after`, in any audit of the stream."""
    found: dict[bytes, set[bytes]] = {}
    state = server.call("HGETALL", server.keys.state)[::2]
    audits = {server.keys.audit, *(n[6:] for n in state if n.startswith(b"audit:"))}
    for audit in audits:
        pages = reading.pages(server, audit, next_id(after), LAST_ID)
        for _, fields in chain.from_iterable(pages):
            record = dict(zip((fields or ())[::2], (fields or ())[1::2], strict=False))
            entry = record.get(b"original_id", b"")
            # whoever may write to the audit could have put anything there
            if is_id(text(entry)):
                found.setdefault(record.get(b"consumer_group", b""), set()).add(entry)
    return found


def _intervals(server: Server, group: bytes, ids: set[bytes]) -> Iterator[tuple[Key, Key]]:
    """The ids as intervals that hold no other entry of the stream, nor one pending for the group.

    The body of one that is pending may be gone.
    """
    if not ids:
        return
    keys = sorted(map(id_key, ids))
    (a, b), (c, d) = keys[0], keys[-1]
    first, last = f"{a}-{b}", f"{c}-{d}"
    between = chain.from_iterable(reading.pages(server, server.stream, first, last))
    others = [id_key(entry[0]) for entry in between if entry[0] not in ids]
    with suppress(RefusedError):  # a group that is gone has nothing pending
        pages = reading.pending_ids(server, name_of(group), last, first=first)
        others += [id_key(row[0]) for row in chain.from_iterable(pages) if row[0] not in ids]
    others.sort()
    for _, part in groupby(keys, lambda key: bisect_left(others, key)):
        span = [*part]
        yield span[0], span[-1]
