"""The first screen: the verdict, what would pass now, which drains are at work, what to do next.

A drain at work is a live run that the ledger knows the start of, but no end.
"""

from __future__ import annotations

import datetime as dt
import math
import os
import shlex
import socket
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from msgspec import structs

from ..core.events import Decoder, Events
from ..core.policy import ACTIONS, decide
from ..core.progress import entries_words, next_run_words, span
from ..core.timestamps import iso
from ..core.values import INVALID_REASONS
from ..core.verdicts import group_of
from ..errors import RefusedError, UsageError
from ..ids import next_id
from ..safe import one_line
from ..server import counting, ledger, reading
from ..server.connection import Server
from ..server.counting import sampled
from ..server.reading import ACTIVE_MS, StopSwitch
from ..server.scopes import keeping_words
from ..settings import Settings
from .checks import Limits, Report, group_rows, judge
from .entry import TOO_MANY
from .export import Lens
from .state import OLDEST_OF, StreamState, baseline, known, own_pending, read_state

TOP = 5  # symbols that are named


def first_screen(server: Server, settings: Settings) -> dict[str, Any]:
    """All that `status` knows, JSON-ready."""
    seen: list[Events] = []
    state = read_state(server, settings, seen=seen)
    found = baseline(server, state)
    judge(report := Report(), state, Limits(), kept=found["server"])
    running, last = [], None
    try:
        running = running_drains(server)
        last = next(reversed(ledger.last_ends(server)), None)
    except RefusedError as error:  # a user who may read the stream, but not its side keys
        found["unread"] = found["unread"] or str(error)
    return {
        **found,
        "as_of": iso(server.now_us()),
        "verdict": report.verdict(),
        "decided": _decided(server, settings, state, seen),
        "running_drains": [vars(drain) | {"line": drain.line()} for drain in running],
        "last_run": None if last is None else structs.asdict(last),
    }


def _decided(
    server: Server, settings: Settings, state: StreamState, seen: list[Events]
) -> dict[str, Any] | None:
    """What the policy says of the group's undelivered entries now; None without such a group.

    All of them where they were decoded already, else a sample from all over them.
    """
    mine = next((g for g in state.groups if g.name == settings.consumer_group), None)
    if mine is None:
        return None
    entries, first = mine.backlog.undelivered or 0, next_id(mine.position)
    is_all = entries <= min(OLDEST_OF, sum(map(len, seen)))
    found = {"undelivered": entries, "events": 0, "is_sample": not is_all, "would_pass": None}
    try:
        lens = Lens.of(server, settings)
    except (RefusedError, UsageError) as error:  # an allowlist that cannot be read
        return {**found, "symbols": {}, "unreadable": {}, "why_not": str(error)}
    decoder = Decoder(lens.fields)
    pages: Iterable[Events] = seen if is_all else (
        decoder.decode(page) for page in sampled(server, first, state.info.boundary_id)
    )  # fmt: skip
    passing, unreadable, events = Counter[str](), Counter[str](), 0
    for page in pages:
        some = page.part(slice(0, entries - events)) if is_all else page
        events += len(some)
        decisions = decide(some, lens.policy, lens.at_us)
        passes = decisions.action == ACTIONS.index("drained_ok")
        passing.update(some.symbols[code] for code in some.symbol_code[passes].tolist())
        invalid = decisions.failed >> ACTIONS.index("dropped_invalid") & 1 == 1
        unreadable.update(INVALID_REASONS[code] for code in some.invalid[invalid].tolist())
    return {
        **found,
        "events": events,
        "would_pass": passing.total(),
        "symbols": dict(passing.most_common()),
        "unreadable": dict(unreadable.most_common()),
        "why_not": None,
    }


def as_lines(found: Mapping[str, Any], settings: Settings) -> list[str]:
    """The first screen but for the next command, a fact on each line; the verdict comes first."""
    info, groups = found["stream"], found["groups"]
    findings = [f for f in found["verdict"]["findings"] if f["severity"] != "ok"]
    others = {f["group"] for f in findings} - {None, settings.consumer_group}
    of_group = {name: f" ({one_line(name, 40)})" for name in others}
    words = "; ".join(f["text"] + of_group.get(f["group"], "") for f in findings)
    well = "nothing is near a limit of drainkit check"
    lines = [
        f"{found['verdict']['status'].upper()}: {words or well}",
        f"Stream: {one_line(info['name'], 36)}, {info['length']:,} entries, at "
        f"{found['as_of'][11:19]} UTC",
    ]
    if not (own := group_of(found, settings.consumer_group)):
        lines.append(f"Groups: {', '.join(one_line(g['name'], 60) for g in groups) or 'none'}")
    else:
        more = f" ({len(groups) - 1:,} more: --all)" if len(groups) > 1 else ""
        oldest = "" if (age := own["oldest_age_sec"]) is None else f", oldest {span(age)}"
        by_id = " by its id" if own["oldest_by"] == "entry id" else ""
        lines += [
            f"Group: {one_line(own['name'], 60)}{more}",
            f"Backlog: {known(own['backlog']['undelivered'])} undelivered{oldest}{by_id}; "
            f"{own['pending']:,} pending; {known(own['lost'])} lost",
        ]
        decided = found["decided"]
        if decided["why_not"]:
            lines.append(f"Would pass: not known: {decided['why_not']}")
        else:
            of = f"of {decided['events']:,}" + " sampled" * decided["is_sample"]
            symbols, bad = list(decided["symbols"].items()), decided["unreadable"]
            named = ", ".join(f"{symbol} {n:,}" for symbol, n in symbols[:TOP])
            named += f", {len(symbols) - TOP:,} more" if len(symbols) > TOP else ""
            # the reasons come last, where they may be cut
            why = "; ".join(f"{n:,} {reason}" for reason, n in bad.items())
            lines += [
                f"Would pass now: {decided['would_pass']:,} {of}" + (named and f": {named}"),
                f"Unreadable: {sum(bad.values()):,} {of}" + (why and f": {why}"),
            ]
    lines += _runs(found)
    if found["unread"]:
        lines.append(f"Kill switch and audit are not known: {found['unread']}")
    else:
        stopped = found["stop"] and f"{StopSwitch(**found['stop'])}; drainkit resume lifts it"
        lines.append(f"Stopped: {stopped}" if stopped else "Kill switch: not set")
    if kept := keeping_words(found["server"]):
        lines.append(f"Server: {'; '.join(kept)}")
    is_busy = any(drain["alive"] for drain in found["running_drains"])
    return lines if is_busy else [*lines, next_drain(found, settings)]


def as_text(state: Mapping[str, Any]) -> list[str]:
    """A baseline's stream, groups, consumers and newest entries, line by line."""
    info = state["stream"]
    lines = [
        f"Stream: {info['name']}",
        f"  Length: {info['length']:,}   First: {info['first_id']}   Last: {info['last_id']}   "
        f"Boundary: {info['boundary_id']}",
    ]
    for g, row in zip(state["groups"], group_rows(state), strict=True):
        shown = {name: known(value) for name, value in row.items()}
        lines += [
            f"Group: {g['name']}",
            f"  Position: {shown['position']}   Consumers: {shown['consumers']}   "
            f"Entries read: {known(g['entries_read'])}",
            f"  Backlog counted: {shown['undelivered']} undelivered, {shown['pending']} pending, "
            f"{shown['history']} history   Lost: {shown['lost']}   "
            f"Lag reported: {shown['lag reported']}",
            f"  Why: {g['why']}",
        ]
        waiting = sorted(g["consumer_list"], key=lambda c: -c["pending"])[:10]
        lines += [
            f"  Consumer {c['name']}: {c['pending']:,} pending, idle {c['idle_ms'] / 1000:,.0f} s"
            for c in waiting if c["pending"]
        ]  # fmt: skip
    if not state["groups"]:
        lines.append("No group reads this stream.")
    return [*lines, *(f"Newest: {e['id']}  {' '.join(e['fields'])}" for e in state["samples"])]


def _runs(found: Mapping[str, Any]) -> list[str]:
    """The drains at work (or that died), and the last run."""
    drains, last = found["running_drains"], found["last_run"]
    more = f" ({len(drains) - 1:,} more: --all)" if len(drains) > 1 else ""
    lines = [drain["line"] + more for drain in drains[:1]]
    if last is None:
        return [*lines, "Last run: none in the ledger"]
    who = one_line(last["operator"], 40) or "unknown"
    return [*lines, f"Last run: {one_line(last['at'][:19], 20)}Z by {who}: "
            f"{one_line(last['outcome'], 20)}, {last['total_read']:,} read, "
            f"{last['drained_ok']:,} passed"]  # fmt: skip


def next_command(found: Mapping[str, Any], settings: Settings) -> tuple[str, str]:
    """The command that helps most now, and why."""
    decided, groups = found["decided"] or {}, found["groups"]
    own = group_of(found, settings.consumer_group)
    bad = sum(decided.get("unreadable", {}).values())
    first = shlex.quote(one_line(groups[0]["name"])) if groups else ""
    dry = "a dry run: it changes nothing"
    cases = (
        (found["stop"], "resume", "when its reason is gone"),
        (any(drain["alive"] for drain in found["running_drains"]), "status --watch 5",
         "a drain is at work"),
        (groups and not own, f"status --consumer-group {first}", "a group that is there"),
        (bad > TOO_MANY * decided.get("events", 0), "fields", "many events cannot be read"),
        (decided.get("undelivered"), "run", dry),
        (own and own["pending"], "run --scope pending", dry),
    )  # fmt: skip
    found_case = next(((command, why) for case, command, why in cases if case), None)
    return found_case or ("check", "nothing waits")


def next_drain(found: Mapping[str, Any], settings: Settings) -> str:
    """What a drain with these settings would take, as one line."""
    if not (own := group_of(found, settings.consumer_group)):
        return (
            f"Next drain: none; no group is named {settings.consumer_group}; "
            "drain --consumer-group takes another"
        )
    scope, left = settings.scope, own_pending(own, settings.consumer_name)
    entries = own["backlog"][scope] + (left if scope == "undelivered" else 0)
    if not entries:
        return f"Next drain: nothing; 0 {scope}"
    taken = next_run_words(entries, settings.max_events, settings.throttle, f"{entries:,}")
    return f"Next drain: {taken}: {entries_words(scope, entries, left)}"


# ---------------------------------------------------------------- drains at work

_GONE_MS = 500  # silent for so long and without its process: another machine can have our name


@dataclass(frozen=True)
class RunningDrain:
    """A live run that the ledger knows the start of, but no end."""

    run_id: str
    consumer_group: str
    consumer: str
    started_at: str  # ISO 8601 UTC
    done: int  # audit records of the run
    remaining: int  # of its scope up to its boundary, or of its budget
    events_per_sec: float  # since it started
    eta_sec: float | None  # None: nothing done yet, or it died
    silent_sec: float | None  # since its consumer was last seen; None: the consumer is gone
    alive: bool  # False: its process is gone, or it has been silent for too long
    throttle: float | None = None  # its own, events per second; None: none
    held_to: float | None = None  # the lower throttle of another drain at work, which holds for all

    def line(self) -> str:
        """The drain as one line."""
        who = f"{self.run_id} by {self.consumer}"
        books = f"{self.done:,} done, {self.remaining:,} remaining"
        if not self.alive:
            return (
                f"Died: {who}: {books}; the same command goes on, and drainkit run --close seals "
                "the folder of a run that left one"
            )
        eta = "unknown" if self.eta_sec is None else f"{self.eta_sec:,.0f} s"
        held = "" if self.held_to is None else f", held to {self.held_to:g}/s by another drain"
        return f"Running: {who}: {books}, {self.events_per_sec:,.1f}/s, ETA {eta}{held}"


def running_drains(server: Server) -> list[RunningDrain]:
    """Live runs of the stream without an end in the ledger, oldest first.

    A run that died leaves no end; it is listed until its consumer's next run starts.
    """
    open_runs: dict[tuple[str, str], ledger.Start] = {}  # by group and consumer
    if reading.type_of(server, server.keys.runs) != "stream":
        return []
    for entry in ledger.entries(server):
        if isinstance(entry, ledger.Start):
            open_runs[entry.consumer_group, entry.consumer] = entry
        elif isinstance(entry, ledger.End):
            open_runs.pop((entry.consumer_group, entry.consumer), None)
    done = ledger.run_counts(server, {start.run_id for start in open_runs.values()}, "run_id")
    found = []
    for start in open_runs.values():
        with suppress(ValueError, ArithmeticError):  # anybody can have written a value there
            found.append(_running(server, start, done[start.run_id]))
    throttles = [run.throttle for run in found if run.alive and run.throttle is not None]
    lowest = min(throttles, default=math.inf)
    return [
        replace(run, held_to=lowest) if run.alive and lowest < (run.throttle or math.inf) else run
        for run in found
    ]


def _running(server: Server, start: ledger.Start, done: int) -> RunningDrain:
    if start.throttle is not None and not 0 < start.throttle < math.inf:
        raise ValueError(start.throttle)
    group = reading.positions(server).get(start.consumer_group)
    left, silent_ms = 0, None
    if group is not None:
        pending = reading.pending_ids(server, group.name, start.boundary_id, first=start.from_id)
        if start.scope == "pending":
            left = sum(len(page) for page in pending)
        else:
            after = next_id(group.position)
            left = counting.count_between(server, after, start.boundary_id)
            left += sum(row[1] == start.consumer for page in pending for row in page)
        there = reading.consumers(server, group.name)
        silent_ms = next((c.idle_ms for c in there if c.name == start.consumer), None)
    if start.max_events is not None:
        left = min(left, max(0, start.max_events - done))
    begun = dt.datetime.fromisoformat(start.at).timestamp()
    rate = done / max(server.now_us() / 1e6 - begun, 1e-3)
    # below one event a minute a consumer is silent for longer than that, and well
    pause_ms = 0.0 if start.throttle is None else 3000 / start.throttle
    is_gone = False  # whether the process that began the run on this very machine has ended
    if start.pid > 0 and start.host == socket.gethostname():
        with suppress(PermissionError, OverflowError):
            try:
                os.kill(start.pid, 0)
            except ProcessLookupError:
                is_gone = True
    longest_ms = max(_GONE_MS if is_gone else ACTIVE_MS, pause_ms)
    alive = silent_ms is not None and silent_ms < longest_ms
    return RunningDrain(
        start.run_id, start.consumer_group, start.consumer, start.at, done, left,
        events_per_sec=round(rate, 2),
        eta_sec=round(left / rate, 1) if rate and alive else None,
        silent_sec=None if silent_ms is None else silent_ms / 1000,
        alive=alive,
        throttle=start.throttle,
    )  # fmt: skip
