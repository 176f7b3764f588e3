"""What the server holds: streams, groups with counted backlogs, consumers, audit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..core.events import decoder_of
from ..core.timestamps import NO_TIME
from ..core.values import RawEntry
from ..safe import one_line, text
from ..server import counting, reading
from ..server.audit_log import audit_counts
from ..server.connection import Server
from ..server.reading import ACTIVE_MS, Backlog, Group, StreamInfo
from ..settings import Settings

SAMPLES = 3
CONSUMER_STATES = ("active", "idle", "dead")
HISTORY_GROUP = ".drain_history"


def baseline(server: Server) -> dict[str, Any]:
    """Stream, groups with counted backlog, consumers and pending, as one JSON-ready object."""
    info = reading.stream_info(server)
    groups = counting.groups(server, info)
    return {
        "stream": asdict(info),
        "groups": [
            {
                **asdict(group),
                "consumer_list": [asdict(c) for c in reading.consumers(server, group.name)],
                "why": why(info, group),
            }
            for group in groups
        ],
        "samples": samples(server),
    }


def samples(server: Server) -> list[dict[str, Any]]:
    """The newest entries, every value as one safe line."""
    newest = reading.newest(server, server.stream, SAMPLES)
    return [
        {"id": text(entry_id), "fields": [one_line(text(part)) for part in fields]}
        for entry_id, fields in newest
    ]


def why(info: StreamInfo, group: Group) -> str:
    """In words and numbers, why the group's backlog is as large or small as it is."""
    backlog = group.backlog or Backlog(0, 0, 0)
    undelivered, pending, history = backlog.undelivered, backlog.pending, backlog.history
    if not info.length:
        return "The stream holds no entry."
    parts = [
        f"Of the stream's {info.length:,} entries, {undelivered:,} lie after the group's position "
        f"{group.position} and can still be read through it (scope undelivered)."
    ]
    if history:
        parts.append(
            f"The other {history:,} lie at or before it: delivered once, or skipped when the group "
            "was made; the group itself never reads them again (scope history)."
        )
    if pending:
        parts.append(f"{pending:,} were delivered but never acknowledged (scope pending).")
    lag = group.lag_reported
    if lag is None:
        parts.append("Redis does not know the lag; the count is exact.")
    elif lag != undelivered:
        parts.append(f"Redis reports a lag of {lag:,}, which is wrong; the count is exact.")
    return " ".join(parts)


def as_text(status: dict[str, Any]) -> str:
    """The baseline for a terminal."""
    info = status["stream"]
    lines = [
        f"Stream: {one_line(info['name'])}",
        f"  Length: {info['length']:,}   First: {info['first_id']}   Last: {info['last_id']}   "
        f"Boundary: {info['boundary_id']}",
    ]
    for group in status["groups"]:
        backlog, lag = group["backlog"], group["lag_reported"]
        lines += [
            f"Group: {one_line(group['name'])}",
            f"  Position: {group['position']}   Consumers: {group['consumers']}   "
            f"Entries read: {_known(group['entries_read'])}",
            f"  Backlog counted: {backlog['undelivered']:,} undelivered, {backlog['pending']:,} "
            f"pending, {backlog['history']:,} history   Lag reported: {_known(lag)}",
            f"  Why: {group['why']}",
        ]
        waiting = [c for c in group["consumer_list"] if c["pending"]]
        lines += [
            f"  Consumer {one_line(c['name'])}: {c['pending']:,} pending, "
            f"idle {c['idle_ms'] / 1000:,.0f} s"
            for c in sorted(waiting, key=lambda c: -c["pending"])[:10]
        ]
    if not status["groups"]:
        lines.append("No group reads this stream.")
    lines += [f"Newest: {e['id']}  {one_line(' '.join(e['fields']))}" for e in status["samples"]]
    return "\n".join(lines)


def _known(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


@dataclass(frozen=True)
class GroupState:
    """One group as counted; ages in seconds by the server's clock, None: nothing there, or no time.

    An age is that of the event: the earlier of its timestamp and its id's time.
    """

    group: Group
    oldest_age_sec: float | None
    oldest_pending_age_sec: float | None
    consumers: dict[str, int]  # by CONSUMER_STATES
    pending_by_consumer: dict[str, int]

    @property
    def undelivered(self) -> int:
        """Entries after the position, counted."""
        return self.group.backlog.undelivered if self.group.backlog else 0

    @property
    def lag_agrees(self) -> bool | None:
        """Whether the lag that Redis reports is the counted one; None where that is not known."""
        lag = self.group.lag_reported
        return lag == self.undelivered if lag is not None and self.group.counted_all else None


@dataclass(frozen=True)
class StreamState:
    """One stream, its groups, its kill switch and its audit."""

    info: StreamInfo
    groups: list[GroupState]
    stopped: str | None  # the reason, where the kill switch is set
    audit_entries: int
    audit_by_action: dict[str, int] | None = None  # where it was asked for


def state_as_dict(state: StreamState) -> dict[str, Any]:
    """JSON-ready; the lag three ways: as reported, as counted, and whether they agree."""
    return {
        "stream": asdict(state.info),
        "stopped": state.stopped,
        "audit_entries": state.audit_entries,
        "audit_by_action": state.audit_by_action,
        "groups": [
            {
                **asdict(g.group),
                "lag_counted": g.undelivered,
                "lag_agrees": g.lag_agrees,
                "oldest_age_sec": g.oldest_age_sec,
                "oldest_pending_age_sec": g.oldest_pending_age_sec,
                "consumers_by_state": g.consumers,
                "pending_by_consumer": g.pending_by_consumer,
            }
            for g in state.groups
        ],
    }


def read_state(
    server: Server,
    settings: Settings,
    *,
    dead_after_min: float = 60,
    audits: bool = False,
    most: int | None = None,
) -> StreamState:
    """The stream as it is now; groups of scope history are the drain's own, left out.

    `audits`: also count the audit by action, for which all of it is read. `most`: count no more
    undelivered entries than that (and one).
    """
    info = reading.stream_info(server)
    groups = [
        g for g in counting.groups(server, info, most=most) if not g.name.endswith(HISTORY_GROUP)
    ]
    switch = reading.stop_switch(server)
    return StreamState(
        info=info,
        groups=[_read_group(server, settings, info, g, dead_after_min) for g in groups],
        stopped=None if switch is None else switch.reason,
        audit_entries=reading.length_of(server, server.keys.audit),
        audit_by_action=audit_counts(server) if audits else None,
    )


def _read_group(
    server: Server, settings: Settings, info: StreamInfo, group: Group, dead_after_min: float
) -> GroupState:
    first = reading.next_id(group.position)
    oldest = next(reading.pages(server, server.stream, first, info.boundary_id, page=1), [])
    lowest = reading.lowest_pending(server, group.name)
    pending = reading.bodies(server, [lowest] if lowest is not None else [])
    consumers = reading.consumers(server, group.name)
    states = Counter(_consumer_state(c.idle_ms, dead_after_min) for c in consumers)
    return GroupState(
        group=group,
        oldest_age_sec=_age_sec(server, settings, oldest),
        oldest_pending_age_sec=_age_sec(server, settings, pending),
        consumers={state: states[state] for state in CONSUMER_STATES},
        pending_by_consumer={c.name: c.pending for c in consumers if c.pending},
    )


def _age_sec(server: Server, settings: Settings, entries: Sequence[RawEntry]) -> float | None:
    """The first entry's age; None without an entry, or without a usable time in it."""
    if not entries:
        return None
    event_us = int(decoder_of(settings).decode(entries[:1]).event_time_us[0])
    return None if event_us == NO_TIME else max(0.0, (server.now_us() - event_us) / 1e6)


def _consumer_state(idle_ms: int, dead_after_min: float) -> str:
    if idle_ms >= dead_after_min * 60_000:
        return "dead"
    return "active" if idle_ms < ACTIVE_MS else "idle"
