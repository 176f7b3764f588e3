"""The state of a stream: groups with counted backlogs, consumers, losses, kill switch, audit."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.events import Decoder, Events
from ..core.timestamps import NO_TIME, id_times_us
from ..errors import RefusedError
from ..ids import FIRST_ID, id_key, next_id
from ..safe import one_line, text
from ..server import counting, ledger, reading
from ..server.connection import Server
from ..server.reading import Backlog, Consumer, Group, StopSwitch, StreamInfo
from ..server.scopes import keeping
from ..server.topology import ServerInfo
from ..settings import Settings

SAMPLES = 3
OLDEST_OF = 5000  # undelivered entries are looked through for the oldest event
_NEVER = np.iinfo(np.int64).max
OLDEST_BYTES = 64 << 20  # of entries, about; of more the first one's id has to do
CONSUMER_STATES = ("active", "idle", "dead")
#: Servers whose entries-read is right also after a gap (Redis #13958; measured on Valkey 9.1).
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
    """How many entries after the group's position were trimmed, as far as its counters prove.

    Once the group has passed a gap, nothing of it is missing any more, and no counter shows it.
    """
    start = info.first_id if info.first_id is not None else info.boundary_id
    if id_key(group.position) >= id_key(start):  # a trim takes the smallest ids
        return Lost(0, 0)
    if info.entries_added is None:
        return Lost()
    gone, read = info.entries_added - info.length, group.entries_read
    # else some of them may have been deleted, one by one
    only_trimmed = id_key(info.max_deleted_id or FIRST_ID) <= id_key(group.position)
    if read == 0:  # also from a file of Redis 6.2, which counted nothing: at least so many
        return Lost(gone if only_trimmed else 0)
    if read is None:  # no server says when a group was made; one without consumers never read
        never_read = group.position == FIRST_ID and not group.consumers
        return Lost(gone, gone) if never_read and only_trimmed else Lost()
    most = gone - read  # all entries that are there lie after the position
    if not 0 <= most <= gone:  # XSETID and ENTRIESREAD let anybody set what contradicts itself
        return Lost()
    # older servers add 1 to entries-read when a group passes a gap, however many it held
    follows = server.version_tuple >= COUNTER_FOLLOWS.get(server.kind, (10**6,))
    return Lost(most if follows and only_trimmed else 0, most)


@dataclass(frozen=True, kw_only=True)
class GroupState(Group):
    """One group as counted; ages in seconds by the server's clock, None: nothing there, or no time.

    An age is that of the event: the earlier of its timestamp and its id's time.
    """

    backlog: Backlog
    lost: Lost  # trimmed before the group read them
    consumer_list: Sequence[Consumer]
    consumers_by_state: Mapping[str, int]  # each of CONSUMER_STATES
    oldest_age_sec: float | None  # also None where ages were not asked for
    oldest_by: str | None  # "event time", or of a large backlog the first "entry id"
    oldest_pending_age_sec: float | None  # of the lowest id

    @property
    def lag_agrees(self) -> bool | None:
        """Whether the lag that Redis reports is what was counted, with or without the lost ones.

        None where it is not known.
        """
        lag, undelivered = self.lag_reported, self.backlog.undelivered
        if lag is None or undelivered is None:
            return None
        return lag in (undelivered, undelivered + (self.lost.least if self.lost.exact else 0))


@dataclass(frozen=True)
class StreamState:
    """One stream, its groups, its kill switch and its audit."""

    info: StreamInfo
    groups: Sequence[GroupState]
    switch: StopSwitch | None = None
    audit_entries: int | None = None  # None: see `unread`
    audit_by_action: Mapping[str, int] | None = None  # where it was asked for
    last_ends: Sequence[ledger.End] = ()  # where the audit was asked for
    unread: str = ""  # why this user could not look at kill switch and audit


def read_state(
    server: Server, settings: Settings | None = None, *, dead_after_min: float = 60,
    audits: bool = False, most: int | None = None, seen: list[Events] | None = None,
) -> StreamState:  # fmt: skip
    """The stream as it is now; with `settings`, which name the fields, also the oldest ages.

    `audits`: also count the audit by action, for which all of it is read, and give each group's
    last runs. `most`: count no more undelivered entries than that (and one). `seen` gets the events
    that were decoded for the ages: of a group with at most OLDEST_OF undelivered the first so many.
    """
    info = reading.stream_info(server)
    groups = counting.groups(server, info, most=most)
    decoder = None if settings is None else Decoder(settings.fields)
    now_us = server.now_us()
    oldest = {} if decoder is None else _oldest(server, decoder, info, groups, seen)
    states = []
    for group in groups:
        consumers = reading.consumers(server, group.name) if group.consumers else []
        kinds = Counter(
            "dead" if c.idle_ms >= dead_after_min * 60_000 else
            "active" if c.idle_ms < reading.ACTIVE_MS else "idle" for c in consumers
        )  # fmt: skip
        event_us, by = oldest.get(group.position, (NO_TIME, None))
        pending_us = NO_TIME
        if decoder and group.pending and (lowest := reading.lowest_pending(server, group.name)):
            pending_us = int(decoder.decode(reading.bodies(server, [lowest])).event_time_us[0])
        states.append(GroupState(**vars(group) | {
            "lost": lost_to(group, info, server.info), "consumer_list": consumers,
            "consumers_by_state": {kind: kinds[kind] for kind in CONSUMER_STATES},
            "oldest_age_sec": _age_sec(now_us, event_us), "oldest_by": by,
            "oldest_pending_age_sec": _age_sec(now_us, pending_us),
        }))  # fmt: skip
    try:
        switch = reading.stop_switch(server)
        entries = reading.length_of(server, server.keys.audit)
        counts = ledger.audit_counts(server) if audits else None
        ends = ledger.last_ends(server) if audits else ()
    except RefusedError as error:  # a user who may read the stream, but not its side keys
        return StreamState(info, states, unread=str(error))
    return StreamState(info, states, switch, entries, counts, ends)


def _oldest(
    server: Server, decoder: Decoder, info: StreamInfo, groups: Sequence[Group],
    seen: list[Events] | None,
) -> dict[str, tuple[int, str]]:  # fmt: skip
    """By position: the time of the oldest undelivered event, and by what it was found.

    One look at the newest entries serves all groups that have at most OLDEST_OF undelivered.
    """
    counts = {g.position: g.backlog.undelivered if g.backlog else None for g in groups}
    few = [id_key(p) for p, n in counts.items() if n is None or 0 < n <= OLDEST_OF]
    ids: list[tuple[int, int]] = []  # the newest first
    times, n_bytes, is_all = [np.empty(0, np.int64)], 0, False
    stream, boundary = server.stream, info.boundary_id
    for page in reading.pages(server, stream, FIRST_ID, boundary, newest_first=True) if few else ():
        ids += [id_key(entry[0]) for entry in page]
        times.append((events := decoder.decode(page)).event_time_us)
        if seen is not None:
            seen.append(events)
        n_bytes += len(page) * reading.entry_bytes(page)
        if ids[-1] <= min(few) or len(ids) > OLDEST_OF or n_bytes > OLDEST_BYTES:
            break
    else:
        is_all = bool(few)
    event_us = np.concatenate(times)
    event_us[event_us == NO_TIME] = _NEVER
    oldest_us, found = np.minimum.accumulate(event_us), {}
    for position in (p for p, n in counts.items() if n != 0):
        low, high = id_key(position)
        n = bisect_left(ids, (-low, -high), key=lambda i: (-i[0], -i[1]))
        if 0 < n <= OLDEST_OF and (is_all or n < len(ids)):
            time_us = int(oldest_us[n - 1])
            found[position] = NO_TIME if time_us == _NEVER else time_us, "event time"
        elif page := next(reading.pages(server, stream, next_id(position), boundary, page=1), []):
            found[position] = int(id_times_us([page[0][0]])[0]), "entry id"
    return found


def _age_sec(now_us: int, event_us: int) -> float | None:
    """An event's age; None without a usable time."""
    return None if event_us == NO_TIME else max(0.0, (now_us - event_us) / 1e6)


# ---------------------------------------------------------------- as JSON


def state_as_dict(state: StreamState, *, whole: bool = False) -> dict[str, Any]:
    """JSON-ready; the lag three ways: as reported, as counted, and whether they agree.

    `whole`: with each consumer, and why each backlog is as it is.
    """
    switch, groups = state.switch, []
    for g in state.groups:
        groups.append(shown := vars(g) | {
            "backlog": vars(g.backlog),
            "lag_counted": g.backlog.undelivered,
            "lag_agrees": g.lag_agrees,
            "lost": g.lost.as_dict(),
            "pending_by_consumer": {c.name: c.pending for c in g.consumer_list if c.pending},
            "consumer_list": [*map(vars, g.consumer_list)],
        })  # fmt: skip
        if whole:
            shown["why"] = why(state.info, g)
        else:
            del shown["consumer_list"]
    return {
        "stream": vars(state.info),
        "stopped": None if switch is None else switch.reason,
        "stop": None if switch is None else vars(switch),
        "unread": state.unread,
        "audit_entries": state.audit_entries,
        "audit_by_action": state.audit_by_action,
        "groups": groups,
    }


def baseline(server: Server, state: StreamState | None = None) -> dict[str, Any]:
    """The whole state as JSON, with samples, and what the server keeps."""
    found = state_as_dict(state or read_state(server), whole=True)
    who = {"kind": server.info.kind, "version": server.info.version, **keeping(server)}
    samples = [
        {"id": text(entry_id), "fields": [one_line(text(part)) for part in fields]}
        for entry_id, fields in reading.newest(server, server.stream, SAMPLES)
    ]
    return {"server": who, **found, "samples": samples}


def known(value: Any) -> str:
    """A value as text; None is "unknown", never 0."""
    if value is None:
        return "unknown"
    if isinstance(value, Mapping):  # what a group lost
        n = value["entries"]
        return str(Lost(n, n if value["exact"] else None))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if isinstance(value, float) else one_line(str(value))


def why(info: StreamInfo, g: GroupState) -> str:
    """In words and numbers, why the group's backlog is as large or small as it is."""
    position, new, old = g.position, g.backlog.undelivered, g.backlog.history
    parts = [
        f"Of the stream's {info.length:,} entries, {known(new)} lie after the group's position "
        f"{position} and can still be read through it (scope undelivered)."
        if info.length else "The stream holds no entry."
    ]  # fmt: skip
    if old:
        parts.append(
            f"The other {old:,} lie at or before it: delivered once, or skipped when the group was "
            "made; the group itself never reads them again (scope history)."
        )
    if g.pending:
        parts.append(f"{g.pending:,} were delivered but never acknowledged (scope pending).")
    if g.lost.least:
        shown = str(g.lost)
        parts.append(
            f"{shown[0].upper()}{shown[1:]} after it were trimmed before the group read them: they "
            "are lost to it."
        )
    elif not g.lost.exact:
        most = "" if g.lost.most is None else f" (at most {g.lost.most:,})"
        parts.append(
            f"How many after it were trimmed before the group read them is unknown{most}: the "
            "server's counters do not tell."
        )
    lag, counted = g.lag_reported, g.backlog.undelivered or 0
    more = (lag or 0) - counted
    if lag is None:
        parts.append("Redis does not know the lag; the count is exact.")
    elif more and g.lag_agrees:
        parts.append(f"Redis reports a lag of {lag:,}: it counts the lost ones too.")
    elif 0 < more <= (info.entries_added or 0) - info.length:
        parts.append(f"Redis reports a lag of {lag:,}, which counts {more:,} that are gone.")
    elif more:
        parts.append(f"Redis reports a lag of {lag:,}, which is wrong; the count is exact.")
    return " ".join(parts)


def own_pending(group: Mapping[str, Any], consumer: str) -> int:
    """What an earlier drain of this consumer left pending in a group of a state's JSON."""
    return sum(c["pending"] for c in group.get("consumer_list", ()) if c["name"] == consumer)
