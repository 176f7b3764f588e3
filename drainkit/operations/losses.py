"""How many entries were trimmed before a group read them, where the server's counters tell.

Counted is what is missing *now*: entries after the group's position that a trim took. Once the
group has passed the gap, nothing of it is missing any more, and no server tells of it. When a group
was made no server tells either: one made at 0-0 misses all that was trimmed, also before that.

What proves what (N: entries ever added after the position, by the counters):

- A trim takes the smallest ids, so nothing after a position at or behind the stream's first entry
  was trimmed: 0, exact. The same where nothing was ever removed.
- Else all entries there are lie after the position. N - length are missing: exact, if none of them
  can have been deleted (XDEL), which max-deleted-entry-id behind the position would show.
- N = entries-added - entries-read, or entries-added for a group at 0-0. `entries-read` 0 elsewhere
  comes from a file of Redis 6.2, which had counted nothing before: at least so many.
- Where a group has no counter, another one at the same position has the same N; one that is further
  on is missing no more than this one: at least so many.
- Older servers go on counting `entries-read` by one when a group passes a gap. What they then call
  missing may include what was missing earlier (it never was read either); after an XDEL the counter
  may be too small for another reason, and proves nothing.
- Redis 6.2 counts nothing: unknown.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from ..server.reading import FIRST_ID, Group, StreamInfo, id_key
from ..server.topology import ServerInfo

#: From these on a group's counter is set anew as it passes a gap (Redis #13958; Valkey 9.1 too).
COUNTER_FOLLOWS = {"redis": (8, 2), "valkey": (9, 0)}


Id = tuple[int, int]


@dataclass(frozen=True, order=True)
class Lost:
    """Entries trimmed before a group read them; not `exact`: at least so many."""

    entries: int
    exact: bool

    def __str__(self) -> str:
        return f"{self.entries:,}" if self.exact else f"at least {self.entries:,}"


def counter_follows(server: ServerInfo) -> bool:
    """Whether `entries-read` is right also after a group passed entries that were gone."""
    return server.version_tuple >= COUNTER_FOLLOWS.get(server.kind, (10**6,))


def losses(info: StreamInfo, groups: Sequence[Group], *, follows: bool) -> list[Lost | None]:
    """For each group what it lost; None: unknown. `follows`: see `counter_follows`."""
    own = [_lost(info, group, follows=follows) for group in groups]
    if not follows:
        return own
    places = [id_key(group.position) for group in groups]
    known = sorted((there, lost) for there, lost in zip(places, own, strict=True)
                   if lost is not None and lost.entries)  # fmt: skip
    return [
        lost if lost is not None or not _is_only_trimmed(info, group) else _at_least(known, here)
        for group, here, lost in zip(groups, places, own, strict=True)
    ]


def _lost(info: StreamInfo, group: Group, *, follows: bool) -> Lost | None:
    """What the group's own counter proves."""
    if info.entries_added is None:
        return None
    start = info.first_id if info.first_id is not None else info.boundary_id
    if id_key(group.position) >= id_key(start):
        return Lost(0, True)
    was_deleted = id_key(info.max_deleted_id or FIRST_ID) > (0, 0)
    if not _is_only_trimmed(info, group) or (was_deleted and not follows):
        return None
    return _missing(info.entries_added - info.length, group)


def _missing(removed: int, group: Group) -> Lost | None:
    """What of `removed` entries was trimmed after the position; none that is there lies before."""
    from_the_start = group.position == FIRST_ID
    if group.entries_read == 0 and not from_the_start:  # from a file of 6.2
        return Lost(removed, False) if removed > 0 else None
    if removed == 0:
        return Lost(0, True)
    read = 0 if from_the_start else group.entries_read
    # XSETID and ENTRIESREAD let anybody set counters that contradict each other
    if read is None or not 0 <= removed - read <= removed:
        return None
    return Lost(removed - read, True)


def _is_only_trimmed(info: StreamInfo, group: Group) -> bool:
    """Whether nothing after the group's position can have been deleted by XDEL."""
    return id_key(info.max_deleted_id or FIRST_ID) <= id_key(group.position)


def _at_least(known: Sequence[tuple[Id, Lost]], here: Id) -> Lost | None:
    """What the counters of groups at the same position, or further on, prove for one at `here`."""
    first = bisect_left(known, here, key=lambda found: found[0])
    if first == len(known):
        return None
    there, lost = known[first]
    return lost if there == here else Lost(lost.entries, False)
