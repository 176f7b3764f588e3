"""Which entries have their audit record already: none gets a second one for its consumer group.

Drains of one scope cannot overlap: the group's position and its pending list say what is done.
Across scopes they can: scope history comes upon what scopes undelivered and pending recorded, and
these upon what history recorded (an entry can be pending and history at once), as does every scope
after the position was moved back. So where that may be, a drain reads the audit once, from the time
of its first entry on: some seconds and about 100 MB for a million records. What others record after
that, each commit sees by the group's marks in the state hash (commit.lua), and is refused.

Records that were trimmed from the audit stream are not known any more: what they told of is drained
anew by scope history, unless its group has passed it, and by any scope after the position was moved
back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from ..core.values import RawEntry
from ..safe import text
from . import reading
from .connection import Server
from .reading import FIRST_ID, LAST_ID, id_key, next_id
from .scope import Scope

# ids may be given by hand, a little in the future of the clock that gives the audit's
MARGIN_MS = 3_600_000


@dataclass(frozen=True)
class Recorded:
    """The ids, from `first` on, that are recorded for a consumer group, and its marks then."""

    ids: frozenset[bytes]
    first: str
    marks: bytes

    def marks_for(self, entry_id: bytes) -> bytes:
        """The marks to send with a batch that begins there; empty where the audit was not read."""
        return self.marks if id_key(entry_id) >= id_key(self.first) else b""

    def without(self, entries: list[RawEntry]) -> list[RawEntry]:
        """The entries that have no record yet."""
        if not self.ids:
            return entries
        return [entry for entry in entries if entry[0] not in self.ids]


def marks_of(server: Server, scope: Scope) -> bytes | None:
    """The marks of the scope's consumer group: any commit of its drains changes them."""
    found: bytes | None = server.call("HGET", server.keys.state, f"recorded:{scope.consumer_group}")
    return found


def of_scope(server: Server, scope: Scope) -> Recorded:
    """What is recorded of the entries that a drain of this scope would come upon."""
    # the marks first: what is recorded while the audit is read changes them
    marks = marks_of(server, scope)
    if not reading.length_of(server, server.keys.audit):
        return Recorded(frozenset(), FIRST_ID, marks or b"0-0 0 0 0")
    if marks is None:  # an audit of before there were marks
        every = frozenset(_ids(server, _owners(scope), FIRST_ID))
        highest = text(max(every, key=id_key)) if every else FIRST_ID
        return Recorded(every, FIRST_ID, f"{highest} 0 0 0".encode())
    first = _first_of(server, scope, text(marks.split()[0]))
    if first is None:
        return Recorded(frozenset(), next_id(scope.position), marks)
    return Recorded(between(server, scope, first, scope.boundary), first, marks)


def between(server: Server, scope: Scope, first: str, last: str) -> frozenset[bytes]:
    """The ids from `first` to `last` that are recorded for the scope's consumer group."""
    low, high = id_key(first), id_key(last)
    audit_ms = low[0] - MARGIN_MS if low[0] * 1000 < server.now_us() else 0
    found = _ids(server, _owners(scope), f"{max(0, audit_ms)}-0")
    return frozenset(entry for entry in found if low <= id_key(entry) <= high)


def _owners(scope: Scope) -> frozenset[bytes]:
    """Names under which records of the scope's consumer group stand in the audit."""
    usual = f"{scope.consumer_group}.drain_history"
    return frozenset(name.encode() for name in (scope.consumer_group, usual, scope.group))


def _first_of(server: Server, scope: Scope, highest: str) -> str | None:
    """The first entry of the scope that may have a record; None where there is none."""
    candidates: list[bytes] = []
    if scope.name == "pending":
        candidates = [reading.lowest_pending(server, scope.group) or b""]
    elif scope.group_exists:
        rows = reading.pending_ids(
            server, scope.group, scope.boundary, consumer=scope.consumer, page=1
        )
        candidates = [page[0][0] for page in islice(rows, 1)]
    if scope.name != "pending" and id_key(scope.position) < id_key(highest):
        after = next_id(scope.position)
        page = server.call("XRANGE", server.stream, after, scope.boundary, "COUNT", 1)
        candidates += [entry[0] for entry in page]
    return min((text(c) for c in candidates if c), key=id_key, default=None)


def _ids(server: Server, owners: frozenset[bytes], first: str) -> Iterator[bytes]:
    """Ids of the audit's records for these groups."""
    for page in reading.pages(server, server.keys.audit, first, LAST_ID):
        for _, fields in page:
            known: Sequence[bytes] = fields or ()
            found = dict(zip(known[::2], known[1::2], strict=False))
            entry = found.get(b"original_id", b"")
            # whoever may write to the audit could have put anything there
            if found.get(b"consumer_group") in owners and _is_id(entry):
                yield entry


def _is_id(entry: bytes) -> bool:
    ms, dash, seq = entry.partition(b"-")
    return dash == b"-" and ms.isdigit() and seq.isdigit() and len(entry) <= 41
