"""How many entries were trimmed before a group read them, where its own counter proves it.

Counted is what is missing *now*: entries after the group's position. Once the group has passed the
gap, nothing of it is missing any more, and no server tells of it. N: entries that were ever added
and are gone (entries-added - length). R: entries-read.

- A trim takes the smallest ids: nothing after a position at or behind the first entry was trimmed.
- Before the first entry all that is there lies after the position, so that at most N - R are
  missing: just so many, if the server sets R right when a group passes a gap, and none of them can
  have been deleted (max-deleted-entry-id lies at or before the position). Older servers add 1 to R
  when a group passes a gap, so what they call missing may have been missing long before.
- R = 0 comes from a file of Redis 6.2, which counted nothing: at least N.
- Without R, only of a group at 0-0 that has no consumers it is known that it never read: N. When it
  was made no server tells: what was trimmed before that is missing to it, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..server.reading import FIRST_ID, Group, StreamInfo, id_key
from ..server.topology import ServerInfo

#: From these on R is right also after a gap (Redis #13958; measured on Valkey 9.1).
COUNTER_FOLLOWS = {"redis": (8, 2), "valkey": (9, 0)}


@dataclass(frozen=True)
class Lost:
    """Entries trimmed before a group read them: at least, and at most where that is known."""

    least: int = 0
    most: int | None = None

    @property
    def exact(self) -> bool:
        """Whether it is just so many."""
        return self.least == self.most

    def as_dict(self) -> dict[str, Any] | None:
        """JSON-ready; not `exact`: at least so many. None: nothing is proven."""
        return {"entries": self.least, "exact": self.exact} if self.least or self.exact else None

    def __str__(self) -> str:
        if self.exact or self.least:
            return f"{self.least:,}" if self.exact else f"at least {self.least:,}"
        return "unknown" if self.most is None else f"up to {self.most:,}"


def lost_to(group: Group, info: StreamInfo, server: ServerInfo) -> Lost:
    """What the group's own counter proves."""
    start = info.first_id if info.first_id is not None else info.boundary_id
    if id_key(group.position) >= id_key(start):
        return Lost(0, 0)
    if info.entries_added is None:
        return Lost()
    gone, read = info.entries_added - info.length, group.entries_read
    only_trimmed = id_key(info.max_deleted_id or FIRST_ID) <= id_key(group.position)
    if read == 0:
        return Lost(gone if only_trimmed else 0)
    if read is None:
        never_read = group.position == FIRST_ID and not group.consumers
        return Lost(gone, gone) if never_read and only_trimmed else Lost()
    most = gone - read
    if not 0 <= most <= gone:  # XSETID and ENTRIESREAD let anybody set what contradicts itself
        return Lost()
    follows = server.version_tuple >= COUNTER_FOLLOWS.get(server.kind, (10**6,))
    return Lost(most if follows and only_trimmed else 0, most)
