"""What the server holds: streams, groups with counted backlogs, consumers, losses, audit."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..core.events import Decoder, Events, decoder_of
from ..core.progress import entries_words, next_run_words
from ..core.timestamps import NO_TIME, id_times_us
from ..errors import RefusedError
from ..safe import one_line, text
from ..server import counting, ledger, reading
from ..server.audit_log import audit_counts
from ..server.connection import Server
from ..server.keeping import keeping, keeping_words
from ..server.reading import (
    ACTIVE_MS,
    Backlog,
    Consumer,
    Group,
    StopSwitch,
    StreamInfo,
    stop_words,
)
from ..settings import Settings
from .losses import Lost, lost_to

SAMPLES = 3
OLDEST_OF = 5000  # undelivered entries are looked through for the oldest event
_NEVER = np.iinfo(np.int64).max
OLDEST_BYTES = 64 << 20  # of entries, about; of more the first one's id has to do
CONSUMER_STATES = ("active", "idle", "dead")
HISTORY_GROUP = ".drain_history"


@dataclass(frozen=True)
class GroupState:
    """One group as counted; ages in seconds by the server's clock, None: nothing there, or no time.

    An age is that of the event: the earlier of its timestamp and its id's time.
    """

    group: Group
    lost: Lost  # trimmed before the group read them
    consumers: Sequence[Consumer]
    by_state: Mapping[str, int]  # consumers by CONSUMER_STATES
    oldest_age_sec: float | None = None  # also None where ages were not asked for
    oldest_by: str | None = None  # "event time", or of a large backlog the first "entry id"
    oldest_pending_age_sec: float | None = None  # of the lowest id

    @property
    def backlog(self) -> Backlog:
        """Entries per scope, counted."""
        return self.group.backlog or Backlog(None, self.group.pending, None)

    @property
    def lag_agrees(self) -> bool | None:
        """Whether the lag that Redis reports is what was counted, with or without the lost ones.

        None where it is not known.
        """
        lag, undelivered = self.group.lag_reported, self.backlog.undelivered
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
    server: Server,
    settings: Settings | None = None,
    *,
    dead_after_min: float = 60,
    audits: bool = False,
    most: int | None = None,
    seen: list[Events] | None = None,
) -> StreamState:
    """The stream as it is now; with `settings`, which name the fields, also the oldest ages.

    `audits`: also count the audit by action, for which all of it is read, and tell each group's
    last runs. `most`: count no more undelivered entries than that (and one). `seen` gets the events
    that were decoded for the ages: of a group with at most OLDEST_OF undelivered the first so many.
    """
    info = reading.stream_info(server)
    groups = counting.groups(server, info, most=most)
    decoder = None if settings is None else decoder_of(settings)
    now_us = server.now_us()
    oldest = {} if decoder is None else _oldest(server, decoder, info, groups, seen)
    states = []
    for group in groups:
        consumers = reading.consumers(server, group.name) if group.consumers else []
        event_us, by = oldest.get(group.position, (NO_TIME, None))
        states.append(
            GroupState(
                group,
                lost_to(group, info, server.info),
                consumers,
                Counter(_consumer_state(c.idle_ms, dead_after_min) for c in consumers),
                _age_sec(now_us, event_us),
                by,
                _age_sec(now_us, _oldest_pending(server, decoder, group)),
            )
        )
    try:
        switch = reading.stop_switch(server)
        entries = reading.length_of(server, server.keys.audit)
        counts = audit_counts(server) if audits else None
        ends = ledger.last_ends(server) if audits else ()
    except RefusedError as error:  # a user who may read the stream, but not its side keys
        return StreamState(info, states, unread=str(error))
    return StreamState(info, states, switch, entries, counts, ends)


def _oldest(
    server: Server,
    decoder: Decoder,
    info: StreamInfo,
    groups: Sequence[Group],
    seen: list[Events] | None,
) -> dict[str, tuple[int, str]]:
    """By position: the time of the oldest undelivered event, and by what it was found.

    One look at the newest entries serves all groups that have at most OLDEST_OF undelivered.
    """
    counts = {g.position: g.backlog.undelivered if g.backlog else None for g in groups}
    few = [reading.id_key(p) for p, n in counts.items() if n is None or 0 < n <= OLDEST_OF]
    ids: list[tuple[int, int]] = []  # the newest first
    times, n_bytes, is_all = [np.empty(0, np.int64)], 0, False
    if few:
        newest = reading.pages(
            server, server.stream, reading.FIRST_ID, info.boundary_id, newest_first=True
        )
        for page in newest:
            ids += [reading.id_key(entry[0]) for entry in page]
            times.append((events := decoder.decode(page)).event_time_us)
            if seen is not None:
                seen.append(events)
            n_bytes += len(page) * reading.entry_bytes(page)
            if ids[-1] <= min(few) or len(ids) > OLDEST_OF or n_bytes > OLDEST_BYTES:
                break
        else:
            is_all = True
    event_us = np.concatenate(times)
    event_us[event_us == NO_TIME] = _NEVER
    oldest_us, found = np.minimum.accumulate(event_us), {}
    for position in (p for p, n in counts.items() if n != 0):
        low, high = reading.id_key(position)
        n = bisect_left(ids, (-low, -high), key=lambda i: (-i[0], -i[1]))
        if 0 < n <= OLDEST_OF and (is_all or n < len(ids)):
            time_us = int(oldest_us[n - 1])
            found[position] = NO_TIME if time_us == _NEVER else time_us, "event time"
            continue
        first = reading.next_id(position)
        for page in reading.pages(server, server.stream, first, info.boundary_id, page=1):
            found[position] = int(id_times_us([page[0][0]])[0]), "entry id"
            break
    return found


def _oldest_pending(server: Server, decoder: Decoder | None, group: Group) -> int:
    """The time of the pending event of the lowest id; NO_TIME without one."""
    lowest = reading.lowest_pending(server, group.name) if decoder and group.pending else None
    if decoder is None or lowest is None:
        return NO_TIME
    return int(decoder.decode(reading.bodies(server, [lowest])).event_time_us[0])


def _age_sec(now_us: int, event_us: int) -> float | None:
    """An event's age; None without a usable time."""
    return None if event_us == NO_TIME else max(0.0, (now_us - event_us) / 1e6)


def _consumer_state(idle_ms: int, dead_after_min: float) -> str:
    if idle_ms >= dead_after_min * 60_000:
        return "dead"
    return "active" if idle_ms < ACTIVE_MS else "idle"


# ---------------------------------------------------------------- as JSON


def state_as_dict(state: StreamState) -> dict[str, Any]:
    """JSON-ready; the lag three ways: as reported, as counted, and whether they agree."""
    switch = state.switch
    return {
        "stream": asdict(state.info),
        "stopped": None if switch is None else switch.reason,
        "stop": None if switch is None else {
            "reason": switch.reason, "operator": switch.operator, "at": switch.at,
        },
        "unread": state.unread,
        "audit_entries": state.audit_entries,
        "audit_by_action": state.audit_by_action,
        "groups": [
            {
                **asdict(g.group),
                "lag_counted": g.backlog.undelivered,
                "lag_agrees": g.lag_agrees,
                "lost": g.lost.as_dict(),
                "oldest_age_sec": g.oldest_age_sec,
                "oldest_by": g.oldest_by,
                "oldest_pending_age_sec": g.oldest_pending_age_sec,
                "consumers_by_state": {name: g.by_state.get(name, 0) for name in CONSUMER_STATES},
                "pending_by_consumer": {c.name: c.pending for c in g.consumers if c.pending},
            }
            for g in state.groups
        ],
    }  # fmt: skip


def baseline(server: Server, state: StreamState | None = None) -> dict[str, Any]:
    """The state as JSON, with each consumer, the reasons, samples, and what the server keeps."""
    state = state or read_state(server)
    found = state_as_dict(state)
    for shown, g in zip(found["groups"], state.groups, strict=True):
        shown["consumer_list"] = [asdict(consumer) for consumer in g.consumers]
        shown["why"] = why(state.info, g)
    who = {"kind": server.info.kind, "version": server.info.version, **keeping(server)}
    return {"server": who, **found, "samples": samples(server)}


def samples(server: Server) -> list[dict[str, Any]]:
    """The newest entries, every value as one safe line."""
    newest = reading.newest(server, server.stream, SAMPLES)
    return [
        {"id": text(entry_id), "fields": [one_line(text(part)) for part in fields]}
        for entry_id, fields in newest
    ]


# ---------------------------------------------------------------- as rows and words


def group_rows(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each group of a state's JSON (or of a baseline.json), whoever shows it.

    None is unknown, ages are minutes; `known` makes a value fit to be shown.
    """
    return [
        {
            "stream": state["stream"]["name"],
            "group": g["name"],
            "position": g["position"],
            **g["backlog"],
            "lag reported": g["lag_reported"],
            "they agree": g.get("lag_agrees"),
            "lost": g.get("lost"),
            "oldest, min": _minutes(g.get("oldest_age_sec")),
            "oldest by": g.get("oldest_by") or "",
            "oldest pending, min": _minutes(g.get("oldest_pending_age_sec")),
            "consumers": g["consumers"],
            "dead consumers": g.get("consumers_by_state", {}).get("dead"),
        }
        for g in state["groups"]
    ]


def _minutes(seconds: float | None) -> float | None:
    return None if seconds is None else seconds / 60


def known(value: Any) -> str:
    """A value of a row as text; None is "unknown", never 0."""
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


def cell(value: Any) -> Any:
    """A value of a row for a table, which sets whole numbers to the right; else `known`."""
    return value if type(value) is int else known(value)


def why(info: StreamInfo, g: GroupState) -> str:
    """In words and numbers, why the group's backlog is as large or small as it is."""
    position, new, old = g.group.position, g.backlog.undelivered, g.backlog.history
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
    if g.group.pending:
        parts.append(f"{g.group.pending:,} were delivered but never acknowledged (scope pending).")
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
    return " ".join([*parts, *_lag_words(info, g)])


def _lag_words(info: StreamInfo, g: GroupState) -> list[str]:
    """What is to be said of the lag that Redis reports, where it is not just the count."""
    lag, counted = g.group.lag_reported, g.backlog.undelivered or 0
    more = (lag or 0) - counted
    if lag is None:
        return ["Redis does not know the lag; the count is exact."]
    if more == 0:
        return []
    if g.lag_agrees:
        return [f"Redis reports a lag of {lag:,}: it counts the lost ones too."]
    if 0 < more <= (info.entries_added or 0) - info.length:
        return [f"Redis reports a lag of {lag:,}, which counts {more:,} that are gone."]
    return [f"Redis reports a lag of {lag:,}, which is wrong; the count is exact."]


def own_pending(group: Mapping[str, Any], consumer: str) -> int:
    """What an earlier drain of this consumer left pending in a group of a state's JSON."""
    return sum(c["pending"] for c in group.get("consumer_list", ()) if c["name"] == consumer)


def next_drain(status: Mapping[str, Any], settings: Settings) -> str:
    """What a drain with these settings would take, as one line."""
    for g in status["groups"]:
        if g["name"] == settings.consumer_group:
            scope, own = settings.scope, own_pending(g, settings.consumer_name)
            entries = g["backlog"][scope] + (own if scope == "undelivered" else 0)
            taken = next_run_words(entries, settings.max_events, settings.throttle)
            return f"Next drain: {entries_words(scope, entries, own)}; it takes {taken}"
    named = one_line(settings.consumer_group)
    return f"Next drain: none; no group is named {named}; drain --consumer-group takes another"


def as_text(status: Mapping[str, Any]) -> str:
    """The baseline for a terminal."""
    info = status["stream"]
    lines = [
        f"Stream: {one_line(info['name'])}",
        f"  Length: {info['length']:,}   First: {info['first_id']}   Last: {info['last_id']}   "
        f"Boundary: {info['boundary_id']}",
    ]
    if status["stop"]:
        lines.append(f"  {stop_words(**status['stop'])}; drainkit resume lifts it")
    lines += [f"  Note: {told}" for told in keeping_words(status["server"])]
    if status["unread"]:
        lines.append(f"  Kill switch and audit are not known: {status['unread']}")
    for g, row in zip(status["groups"], group_rows(status), strict=True):
        shown = {name: known(value) for name, value in row.items()}
        lines += [
            f"Group: {one_line(g['name'])}",
            f"  Position: {shown['position']}   Consumers: {shown['consumers']}   "
            f"Entries read: {known(g['entries_read'])}",
            f"  Backlog counted: {shown['undelivered']} undelivered, {shown['pending']} pending, "
            f"{shown['history']} history   Lost: {shown['lost']}   "
            f"Lag reported: {shown['lag reported']}",
            f"  Why: {g['why']}",
        ]
        waiting = [c for c in g["consumer_list"] if c["pending"]]
        lines += [
            f"  Consumer {one_line(c['name'])}: {c['pending']:,} pending, "
            f"idle {c['idle_ms'] / 1000:,.0f} s"
            for c in sorted(waiting, key=lambda c: -c["pending"])[:10]
        ]
    if not status["groups"]:
        lines.append("No group reads this stream.")
    lines += [f"Newest: {e['id']}  {one_line(' '.join(e['fields']))}" for e in status["samples"]]
    return "\n".join(lines)
