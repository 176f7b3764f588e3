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

import numpy as np
from msgspec import structs

from ..core.events import Decoder, Events
from ..core.fields import Findings, examine
from ..core.policy import ACTIONS, decide
from ..core.summary import entries_words, next_run_words, span
from ..core.timestamps import iso
from ..core.values import INVALID_REASONS, RawEntry
from ..core.verdicts import group_of
from ..errors import RefusedError, UsageError
from ..ids import id_key, next_id
from ..safe import one_line
from ..server import counting, ledger, reading, scopes
from ..server.connection import Server
from ..server.reading import ACTIVE_MS, StopSwitch
from ..server.scopes import keeping_words
from ..settings import Settings
from .checks import Limits, Report, judge
from .events import Lens
from .state import OLDEST_OF, State, baseline, known, own_pending, read_state

TOP = 5  # symbols that are named
SAMPLE = 500  # entries at most
TOO_MANY = 0.2  # of them unreadable: a live drain would be refused


def first_screen(server: Server, settings: Settings) -> dict[str, Any]:
    """All that `status` knows, JSON-ready."""
    seen: list[Events] = []
    found = baseline(server, read_state(server, settings, seen=seen))
    judge(report := Report(), found, Limits(), kept=found["server"])
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
        "decided": _decided(server, settings, found, seen),
        "running_drains": [vars(drain) | {"line": drain.line()} for drain in running],
        "last_run": None if last is None else structs.asdict(last),
    }


def _decided(
    server: Server, settings: Settings, state: State, seen: list[Events]
) -> dict[str, Any] | None:
    """What the policy says of the group's undelivered entries now; None without such a group.

    All of them where they were decoded already, else a sample from all over them.
    """
    if not (mine := group_of(state, settings.consumer_group)):
        return None
    entries, boundary = mine["lag_counted"] or 0, state["stream"]["boundary_id"]
    is_all = entries <= min(OLDEST_OF, sum(map(len, seen)))
    found: State = {
        "undelivered": entries, "events": 0, "is_sample": not is_all, "would_pass": None,
        "symbols": {}, "unreadable": {}, "why_not": None,
    }  # fmt: skip
    try:
        lens = Lens.of(server, settings)
    except (RefusedError, UsageError) as error:  # an allowlist that cannot be read
        return found | {"why_not": str(error)}
    decoder = Decoder(lens.fields)
    pages: Iterable[Events] = seen if is_all else (
        decoder.decode(page)
        for page in counting.sampled(server, next_id(mine["position"]), boundary)
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
    return found | {
        "events": events,
        "would_pass": passing.total(),
        "symbols": dict(passing.most_common()),
        "unreadable": dict(unreadable.most_common()),
    }


def sample(server: Server, settings: Settings) -> list[RawEntry]:
    """Entries from all over what is undelivered; of the whole stream if nothing is."""
    info, settings = reading.stream_info(server), scopes.at_now(server, settings)
    last = min(info.boundary_id, settings.last_id, key=id_key)
    group = reading.positions(server).get(settings.consumer_group)
    for first in (next_id(group.position) if group else None, info.first_id):
        is_range = first and id_key(first) <= id_key(last)
        pages = counting.sampled(server, first or "", last) if is_range else ()
        if found := [entry for page in pages for entry in page]:
            # by chance: producers that take turns would keep time with equal steps
            rows = np.random.default_rng(0).permutation(len(found))[:SAMPLE]
            return [found[row] for row in sorted(rows.tolist())]
    return []


def unreadable(server: Server, settings: Settings) -> Findings | None:
    """What is wrong with the backlog's events; None where at most a fifth cannot be read."""
    entries = sample(server, settings)
    bad = (Decoder(settings.fields).decode(entries).invalid > 0).sum()
    return examine(entries, settings.fields) if bad > TOO_MANY * len(entries) else None


# ---------------------------------------------------------------- in lines


def as_lines(found: Mapping[str, Any], settings: Settings) -> list[str]:
    """The first screen but for the next command, a fact on each line; the verdict comes first."""
    info, groups, drains = found["stream"], found["groups"], found["running_drains"]
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
        oldest = "" if (age := own["oldest_age_sec"]) is None else f", oldest {span(age)}"
        by_id = " by its id" if own["oldest_by"] == "entry id" else ""
        lines += [
            f"Group: {one_line(own['name'], 60)}{_more(groups)}",
            f"Backlog: {known(own['lag_counted'])} undelivered{oldest}{by_id}; "
            f"{own['pending']:,} pending; {known(own['lost'])} lost",
            *_passing(found["decided"]),
        ]
    lines += [drain["line"] + _more(drains) for drain in drains[:1]]
    if (last := found["last_run"]) is None:
        lines.append("Last run: none in the ledger")
    else:
        who = one_line(last["operator"], 40) or "unknown"
        lines.append(
            f"Last run: {one_line(last['at'][:19], 20)}Z by {who}: {one_line(last['outcome'], 20)}"
            f", {last['total_read']:,} read, {last['drained_ok']:,} passed"
        )
    if found["unread"]:
        lines.append(f"Kill switch and audit are not known: {found['unread']}")
    elif found["stop"]:
        lines.append(f"Stopped: {StopSwitch(**found['stop'])}; drainkit resume lifts it")
    else:
        lines.append("Kill switch: not set")
    if kept := keeping_words(found["server"]):
        lines.append(f"Server: {'; '.join(kept)}")
    is_busy = any(drain["alive"] for drain in drains)
    return lines if is_busy else [*lines, _next_drain(own, settings)]


def _more(things: list[Any]) -> str:
    return f" ({len(things) - 1:,} more: --all)" if len(things) > 1 else ""


def _passing(decided: Mapping[str, Any]) -> list[str]:
    """What would pass now, and what cannot be read."""
    if decided["why_not"]:
        return [f"Would pass: not known: {decided['why_not']}"]
    of = f"of {decided['events']:,}" + " sampled" * decided["is_sample"]
    symbols, bad = list(decided["symbols"].items()), decided["unreadable"]
    named = ", ".join(f"{symbol} {n:,}" for symbol, n in symbols[:TOP])
    named += f", {len(symbols) - TOP:,} more" if len(symbols) > TOP else ""
    # the reasons come last, where they may be cut
    why = "; ".join(f"{n:,} {reason}" for reason, n in bad.items())
    return [
        f"Would pass now: {decided['would_pass']:,} {of}" + (named and f": {named}"),
        f"Unreadable: {sum(bad.values()):,} {of}" + (why and f": {why}"),
    ]


def _next_drain(own: Mapping[str, Any], settings: Settings) -> str:
    """What a drain with these settings would take, as one line."""
    if not own:
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
        (True, "check", "nothing waits"),
    )  # fmt: skip
    return next((command, why) for case, command, why in cases if case)


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
    lowest = min((r.throttle for r in found if r.alive and r.throttle), default=math.inf)
    return [
        replace(run, held_to=lowest) if run.alive and lowest < (run.throttle or math.inf) else run
        for run in found
    ]


def _running(server: Server, start: ledger.Start, done: int) -> RunningDrain:
    if start.throttle is not None and not 0 < start.throttle < math.inf:
        raise ValueError(start.throttle)
    left, silent_ms = 0, None
    if (group := reading.positions(server).get(start.consumer_group)) is not None:
        pending = reading.pending_ids(server, group.name, start.boundary_id, first=start.from_id)
        is_own = [start.scope == "pending" or row[1] == start.consumer
                  for page in pending for row in page]  # fmt: skip
        left = sum(is_own)
        if start.scope != "pending":
            left += counting.count_between(server, next_id(group.position), start.boundary_id)
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
        try:
            with suppress(PermissionError, OverflowError):
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
