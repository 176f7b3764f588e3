"""The state of a stream: groups with counted backlogs, consumers, losses, switch, audit, drains.

It is one JSON-ready description (`read_state`), from which its text, rows and metrics derive; so an
older baseline.json, which may lack some values, is shown in the same way.
"""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..core.events import Decoder, Events
from ..core.values import NO_TIME, id_times_us
from ..ids import FIRST_ID, id_key, next_id
from ..safe import one_line, text
from ..server import counting, ledger, reading, scopes
from ..server.connection import Server
from ..server.reading import ACTIVE_MS, Backlog, Group, StreamInfo
from ..server.topology import ServerInfo
from ..settings import Settings

State = dict[str, Any]
SAMPLES = 3
OLDEST_OF = 5000  # undelivered entries are looked through for the oldest event
OLDEST_BYTES = 64 << 20  # of entries, about; of more the first one's id has to do
TRIMMED = "trimmed before the group read them"
DEAD_MS = 3_600_000  # a consumer that has been idle for so long
#: Servers whose entries-read is right also after a gap (Redis #13958; measured on Valkey 9.1).
COUNTER_FOLLOWS = {"redis": (8, 2), "valkey": (9, 0)}


def lost_to(group: Group, info: StreamInfo, server: ServerInfo) -> tuple[int, int | None]:
    """How many entries after the group's position were trimmed, as far as its counters prove.

    At least, and at most, None where that is not known. Once the group has passed a gap, nothing of
    it is missing any more, and no counter shows it.
    """
    start = info.first_id if info.first_id is not None else info.boundary_id
    if id_key(group.position) >= id_key(start):  # a trim takes the smallest ids
        return 0, 0
    if (gone := info.gone) is None:
        return 0, None
    # else some of them may have been deleted, one by one
    only_trimmed = id_key(info.max_deleted_id or FIRST_ID) <= id_key(group.position)
    read = group.entries_read
    if read == 0:  # also from a file of Redis 6.2, which counted nothing: at least so many
        return gone if only_trimmed else 0, None
    if read is None:  # no server says when a group was made; one without consumers never read
        never_read = group.position == FIRST_ID and not group.consumers
        return (gone, gone) if never_read and only_trimmed else (0, None)
    most = gone - read  # all entries that are there lie after the position
    if not 0 <= most <= gone:  # XSETID and ENTRIESREAD let anybody set what contradicts itself
        return 0, None
    # older servers add 1 to entries-read when a group passes a gap, however many it held
    follows = server.version_tuple >= COUNTER_FOLLOWS.get(server.kind, (10**6,))
    return most if follows and only_trimmed else 0, most


def read_state(
    server: Server, settings: Settings | None = None, *,
    audits: bool = False, most: int | None = None, seen: dict[str, list[Events]] | None = None,
) -> State:  # fmt: skip
    """The stream as it is now; with `settings`, which name the fields, also the oldest ages.

    `stream` is a StreamInfo, each of `groups` a Group and: the lag three ways (as reported, as
    counted, whether they agree), entries lost (see `lost_to`), ages in seconds by the server's
    clock, of the events (the earlier of timestamp and id's time), consumers. None is not known.

    `audits`: also count the audit by action, for which all of it is read. `most`: count no more
    undelivered entries than that (and one). `seen` gets, by position, the events after it that were
    decoded for the ages: all of them, where they are few.
    """
    info = reading.stream_info(server)
    groups = counting.groups(server, info, most=most)
    decoder = None if settings is None else Decoder(settings.fields)
    now_us = server.now_us()
    oldest = _oldest(server, decoder, info, groups, {} if seen is None else seen) if decoder else {}
    switch = reading.stop_switch(server)
    return {
        "stream": vars(info),
        "groups": [_of_group(server, info, group, decoder, now_us, oldest) for group in groups],
        "stop": switch and vars(switch),
        "audit_entries": reading.stream_info(server, server.keys.audit).length,
        "audit_by_action": ledger.audit_counts(server) if audits else None,
    }


def _of_group(
    server: Server, info: StreamInfo, group: Group, decoder: Decoder | None, now_us: int,
    oldest: Mapping[str, tuple[int, str]],
) -> dict[str, Any]:  # fmt: skip
    consumers = reading.consumers(server, group.name) if group.consumers else []
    kinds = Counter("active" if c.idle_ms < ACTIVE_MS else "idle" if c.idle_ms < DEAD_MS else "dead"
                    for c in consumers)  # fmt: skip
    pending_us = NO_TIME
    if decoder and group.pending and (lowest := reading.lowest_pending(server, group.name)):
        pending_us = int(decoder.decode(reading.bodies(server, [lowest])).event_time_us[0])
    oldest_us, by = oldest.get(group.position, (NO_TIME, None))
    age_sec, pending_age_sec = (
        None if us == NO_TIME else max(0.0, (now_us - us) / 1e6) for us in (oldest_us, pending_us)
    )
    least, at_most = lost_to(group, info, server.info)
    is_exact, lag = least == at_most, group.lag_reported
    backlog = group.backlog or Backlog(None, group.pending, None)
    new = backlog.undelivered
    agrees = lag in (new, (new or 0) + is_exact * least)
    shown = vars(group) | {
        "backlog": vars(backlog),
        "lag_counted": new,
        "lag_agrees": None if lag is None or new is None else agrees,
        "lost": {"entries": least, "exact": is_exact} if least or is_exact else None,
        "lost_at_most": at_most,
        "oldest_age_sec": age_sec,
        "oldest_by": by,  # "event time", or of a large backlog the first "entry id"
        "oldest_pending_age_sec": pending_age_sec,
        "consumers_by_state": {kind: kinds[kind] for kind in ("active", "idle", "dead")},
        "consumer_list": [*map(vars, consumers)],
    }
    return shown | {"why": why(info.length, shown)}


def _oldest(
    server: Server, decoder: Decoder, info: StreamInfo, groups: Sequence[Group],
    seen: dict[str, list[Events]],
) -> dict[str, tuple[int, str]]:  # fmt: skip
    """By position: the time of the oldest undelivered event, and by what it was found.

    What lies after a position is what lies after the next one, which was read already, and a rest.
    """
    counts = {g.position: g.backlog.undelivered if g.backlog else None for g in groups}
    found, events, n_bytes, is_few = {}, list[Events](), 0, True
    end, pages = info.boundary_id, partial(reading.pages, server, server.stream)
    for position in sorted(counts, key=id_key, reverse=True):
        after, n = next_id(position), counts[position]
        is_few = is_few and (n or 0) <= OLDEST_OF
        for page in pages(after, end) if is_few and n != 0 else ():
            events.append(decoder.decode(page))
            n_bytes += sum(map(reading.size_of, page))
            is_few = sum(map(len, events)) <= OLDEST_OF and n_bytes <= OLDEST_BYTES
            if not is_few:
                break
        end = min(end, position, key=id_key)
        if is_few:
            seen[position] = [*events]
            times = [us for one in events for us in one.event_time_us.tolist() if us != NO_TIME]
            if events:
                found[position] = min(times, default=NO_TIME), "event time"
        elif page := next(pages(after, info.boundary_id, page=1), []):
            found[position] = int(id_times_us([page[0][0]])[0]), "entry id"
    return found


def baseline(server: Server, state: State | None = None) -> State:
    """The whole state, with samples, and what the server keeps."""
    who = {"kind": server.info.kind, "version": server.info.version, **scopes.keeping(server)}
    samples = [
        {"id": text(entry_id), "fields": [one_line(text(part)) for part in fields]}
        for entry_id, fields in reading.newest(server, server.stream, SAMPLES)
    ]
    return {"server": who, **(state or read_state(server)), "samples": samples}


def own_pending(group: Mapping[str, Any], consumer: str) -> int:
    """What an earlier drain of this consumer left pending in a group of a state."""
    return sum(c["pending"] for c in group.get("consumer_list", ()) if c["name"] == consumer)


# ---------------------------------------------------------------- in words, rows and numbers


def known(value: Any) -> str:
    """A value as text; None is "unknown", never 0."""
    if value is None:
        return "unknown"
    if isinstance(value, Mapping):  # what a group lost
        return f"{'' if value['exact'] else 'at least '}{value['entries']:,}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if isinstance(value, float) else one_line(str(value))


def why(length: int, g: Mapping[str, Any]) -> str:
    """In words and numbers, why the group's backlog is as large or small as it is.

    `length`: of the stream, entries.
    """
    new, lost, lag, most = g["lag_counted"], g["lost"], g["lag_reported"], g["lost_at_most"]
    told = [
        f"Of the stream's {length:,} entries, {known(new)} lie after the group's position "
        f"{g['position']} (scope undelivered). {known(g['backlog']['history'])} lie at or before "
        "it, delivered once or skipped when the group was made: the group never reads them again "
        f"(scope history). {known(g['pending'])} were delivered but never acknowledged (scope "
        "pending)."
    ]
    if lost is None:
        up_to = "" if most is None else f" (at most {most:,})"
        told.append(f"How many after it were {TRIMMED} is unknown{up_to}.")
    elif lost["entries"]:
        told.append(f"{known(lost).capitalize()} after it were {TRIMMED}: they are lost to it.")
    if lag != new:
        among = ", the lost ones among them" if g["lag_agrees"] else ""
        says = "does not know the lag" if lag is None else f"reports a lag of {lag:,}{among}"
        told.append(f"Redis {says}; the count is exact.")
    return " ".join(told)


@dataclass(frozen=True)
class Fact:
    """One value of a group, by the keys that lead to it; None is unknown, never 0."""

    path: str
    column: str  # "": in no table; `, min`: in minutes; JSON and metrics have seconds
    metric: str = ""
    help: str = ""
    of: str = ""  # of these entries it is the age: where there is none, the metric is 0
    labels: tuple[str, ...] = ()  # one, where the metric has several values

    def read(self, group: Any) -> Any:
        """The value; None where a key is missing."""
        for key in self.path.split("."):
            group = group and group.get(key)
        return group


FACTS = (
    Fact("name", "group"),
    Fact("backlog", "", "drainkit_backlog_entries", "Entries by scope, counted", labels=("scope",)),
    Fact("position", "position"),
    Fact("backlog.undelivered", "undelivered", "drainkit_lag_counted_entries",
         "Entries after the position, counted"),
    Fact("backlog.pending", "pending", "drainkit_pending_entries", "Delivered, not acknowledged"),
    Fact("backlog.history", "history"),
    Fact("lag_reported", "lag reported", "drainkit_lag_reported_entries",
         "Lag that Redis reports; NaN unknown"),
    Fact("lag_agrees", "they agree", "drainkit_lag_agrees",
         "1 if both lags are the same, lost entries aside; NaN unknown"),
    Fact("lost", "lost"),
    Fact("lost.entries", "", "drainkit_lost_entries",
         "Trimmed before the group read them (at least so many); NaN unknown"),
    Fact("oldest_age_sec", "oldest, min", "drainkit_oldest_age_seconds",
         "Age of the oldest event of up to 5,000 undelivered, else of the first entry by its id; "
         "0 if none, NaN unknown", of="lag_counted"),
    Fact("oldest_by", "oldest by"),
    Fact("oldest_pending_age_sec", "oldest pending, min", "drainkit_oldest_pending_age_seconds",
         "Age of the oldest pending entry; 0 if none, NaN unknown", of="pending"),
    Fact("consumers", "consumers"),
    Fact("consumers_by_state", "", "drainkit_consumers", "Consumers by state", labels=("state",)),
    Fact("consumers_by_state.dead", "dead consumers"),
)  # fmt: skip


def group_rows(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each group of a state; `known` makes a value fit to be shown."""
    rows = []
    for g in state["groups"]:
        row = {fact.column: fact.read(g) for fact in FACTS if fact.column}
        minutes = {c: v / 60 for c, v in row.items() if c.endswith(", min") and v is not None}
        rows.append({"stream": state["stream"]["name"], **row, **minutes})
    return rows


def as_text(state: Mapping[str, Any]) -> list[str]:
    """A baseline's stream, groups, consumers and newest entries, line by line."""
    info = state["stream"]
    lines = [
        f"Stream: {info['name']}",
        f"  length: {info['length']:,}   first: {info['first_id']}   last: {info['last_id']}   "
        f"boundary: {info['boundary_id']}",
    ]
    for g, row in zip(state["groups"], group_rows(state), strict=True):
        facts = [f"{name}: {known(value)}" for name, value in row.items()][2:]
        lines += [f"Group: {g['name']}", f"  {'   '.join(facts)}", f"  Why: {g['why']}"]
        lines += [
            f"  Consumer {c['name']}: {c['pending']:,} pending, idle {c['idle_ms'] / 1000:,.0f} s"
            for c in sorted(g["consumer_list"], key=lambda c: -c["pending"])[:10] if c["pending"]
        ]  # fmt: skip
    return [*lines, *(f"Newest: {e['id']}  {' '.join(e['fields'])}" for e in state["samples"])]


# ---------------------------------------------------------------- drains at work


def drains(server: Server) -> tuple[list[dict[str, Any]], ledger.End | None]:
    """Live runs of the stream without an end in the ledger, oldest first, JSON-ready; the last end.

    A run that died leaves no end; it is listed until its consumer's next run starts.
    """
    begun: dict[tuple[str, str], ledger.Start] = {}  # by group and consumer
    last: ledger.End | None = None
    if reading.type_of(server, server.keys.runs) != "stream":
        return [], None
    for entry in ledger.entries(server):
        if isinstance(entry, ledger.Start):
            begun[entry.consumer_group, entry.consumer] = entry
        elif isinstance(entry, ledger.End):
            begun.pop((entry.consumer_group, entry.consumer), None)
            last = entry
    done = ledger.run_counts(server, {start.run_id for start in begun.values()})
    found = []
    for start in begun.values():
        with suppress(ValueError, ArithmeticError):  # anybody can have written a value there
            found.append(_drain(server, start, done[start.run_id]))
    return found, last


def _drain(server: Server, start: ledger.Start, done: int) -> dict[str, Any]:
    """How far a run is: its audit records, and what remains of its scope or of its budget."""
    left, silent_ms = 0, math.inf
    if group := reading.positions(server).get(start.consumer_group):
        pending = reading.pending_ids(server, group.name, start.boundary_id, first=start.from_id)
        left = sum(start.scope == "pending" or row[1] == start.consumer
                   for page in pending for row in page)  # fmt: skip
        if start.scope != "pending":
            info, first = reading.stream_info(server), next_id(group.position)
            left += counting.count(server, info, first, start.boundary_id)[0]
        own = [c.idle_ms for c in reading.consumers(server, group.name) if c.name == start.consumer]
        silent_ms = min(own, default=math.inf)
    if start.max_events is not None:
        left = min(left, max(0, start.max_events - done))
    begun = dt.datetime.fromisoformat(start.at).timestamp()
    rate = done / max(server.now_us() / 1e6 - begun, 1e-3)  # since it started
    # below one event a minute a consumer is silent for longer than that, and well
    is_alive = silent_ms < max(reading.ACTIVE_MS, 3000 / (start.throttle or math.inf))
    eta_sec = round(left / rate, 1) if rate and is_alive else None
    how, more = "Died", "; the same command goes on, drainkit run --close seals its folder"
    if is_alive:
        eta = "unknown" if eta_sec is None else f"{eta_sec:,.0f} s"
        how, more = "Running", f", {rate:,.1f}/s, ETA {eta}"
    line = f"{how}: {start.run_id} by {start.consumer}: {done:,} done, {left:,} remaining{more}"
    return {
        "run_id": start.run_id, "consumer_group": start.consumer_group, "consumer": start.consumer,
        "started_at": start.at, "done": done, "remaining": left, "events_per_sec": round(rate, 2),
        "eta_sec": eta_sec, "alive": is_alive, "line": line,
    }  # fmt: skip
