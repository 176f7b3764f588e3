"""The first screen: the verdict, what would pass now, which drains are at work, what to do next.

A drain at work is a live run that the ledger knows the start of, but no end.
"""

from __future__ import annotations

import datetime as dt
import math
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec import structs

from ..core.events import Decoder, Events
from ..core.fields import Findings, examine
from ..core.policy import ACTIONS, decide
from ..core.summary import entries_words, next_run_words, span
from ..core.values import INVALID_REASONS, RawEntry, iso
from ..core.verdicts import group_of
from ..ids import id_key, next_id
from ..safe import one_line
from ..server import counting, ledger, reading, scopes
from ..server.connection import Server
from ..settings import Settings
from . import checks, state
from .events import Lens
from .state import known

TOP = 5  # symbols that are named
SAMPLE = 500  # entries at most
TOO_MANY = 0.2  # of them unreadable: a live drain would be refused


def first_screen(server: Server, settings: Settings) -> tuple[dict[str, Any], Findings | None]:
    """All that `status` knows, JSON-ready; and where more than a fifth cannot be read, why."""
    seen: list[Events] = []
    found = state.baseline(server, state.read_state(server, settings, seen=seen))
    checks.judge(report := checks.Report(), found, checks.Limits(), kept=found["server"])
    last = next(reversed(ledger.last_ends(server)), None)
    decided = _decided(server, settings, found, seen)
    bad, events = (sum(decided["unreadable"].values()), decided["events"]) if decided else (0, 0)
    odd = unreadable(server, settings) if bad > TOO_MANY * events else None
    return {
        **found,
        "as_of": iso(server.now_us()),
        "verdict": report.verdict(),
        "decided": decided,
        "unreadable": odd and vars(odd),
        "running_drains": [vars(one) | {"line": one.line()} for one in running_drains(server)],
        "last_run": last and structs.asdict(last),
    }, odd


def _decided(
    server: Server, settings: Settings, found: state.State, seen: list[Events]
) -> dict[str, Any] | None:
    """What the policy says of the group's undelivered entries now; None without such a group.

    All of them where they were decoded already, else a sample from all over them.
    """
    if not (mine := group_of(found, settings.consumer_group)):
        return None
    entries, boundary = mine["lag_counted"] or 0, found["stream"]["boundary_id"]
    is_all = entries <= min(state.OLDEST_OF, sum(map(len, seen)))
    lens = Lens.of(server, settings)
    pages: Iterable[Events] = seen if is_all else map(
        Decoder(lens.fields).decode, counting.sampled(server, next_id(mine["position"]), boundary)
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
        "undelivered": entries,
        "events": events,
        "is_sample": not is_all,
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
    own, last = group_of(found, settings.consumer_group), found["last_run"]
    bad = [f for f in found["verdict"]["findings"] if f["severity"] != "ok"]
    others = {f["group"]: f" ({one_line(f['group'], 40)})" for f in bad if f["group"]}
    others.pop(settings.consumer_group, None)
    words = "; ".join(f["text"] + others.get(f["group"], "") for f in bad)
    lines = [
        f"{found['verdict']['status'].upper()}: "
        f"{words or 'nothing is near a limit of drainkit check'}",
        f"Stream: {one_line(info['name'], 36)}, {info['length']:,} entries, at "
        f"{found['as_of'][11:19]} UTC",
        *(_of_own(own, found["decided"], len(groups)) if own else
          [f"Groups: {', '.join(one_line(g['name'], 60) for g in groups) or 'none'}"]),
        *(drain["line"] + _more(len(drains)) for drain in drains[:1]),
    ]  # fmt: skip
    if last is None:
        lines.append("Last run: none in the ledger")
    else:
        who = one_line(last["operator"], 40) or "unknown"
        lines.append(
            f"Last run: {one_line(last['at'][:19], 20)}Z by {who}: {one_line(last['outcome'], 20)}"
            f", {last['total_read']:,} read, {last['drained_ok']:,} passed"
        )
    if found["stop"]:
        switch = reading.StopSwitch(**found["stop"])
        lines.append(f"Stopped: {switch}; drainkit resume lifts it")
    else:
        lines.append("Kill switch: not set")
    if kept := scopes.keeping_words(found["server"]):
        lines.append(f"Server: {'; '.join(kept)}")
    is_busy = any(drain["alive"] for drain in drains)
    return lines if is_busy else [*lines, _next_drain(own, settings)]


def _more(n: int) -> str:
    return f" ({n - 1:,} more: --all)" if n > 1 else ""


def _of_own(own: Mapping[str, Any], decided: Mapping[str, Any], groups: int) -> list[str]:
    """The drain's group, its backlog, what would pass now, and what cannot be read."""
    oldest = "" if (age := own["oldest_age_sec"]) is None else f", oldest {span(age)}"
    by_id = " by its id" if own["oldest_by"] == "entry id" else ""
    of = f"of {decided['events']:,}" + " sampled" * decided["is_sample"]
    symbols, bad = [*decided["symbols"].items()], decided["unreadable"]
    named = ", ".join(f"{symbol} {n:,}" for symbol, n in symbols[:TOP])
    named += f", {len(symbols) - TOP:,} more" if len(symbols) > TOP else ""
    # the reasons come last, where they may be cut
    reasons = "; ".join(f"{n:,} {reason}" for reason, n in bad.items())
    return [
        f"Group: {one_line(own['name'], 60)}{_more(groups)}",
        f"Backlog: {known(own['lag_counted'])} undelivered{oldest}{by_id}; "
        f"{own['pending']:,} pending; {known(own['lost'])} lost",
        f"Would pass now: {decided['would_pass']:,} {of}" + (named and f": {named}"),
        f"Unreadable: {sum(bad.values()):,} {of}" + (reasons and f": {reasons}"),
    ]


def _next_drain(own: Mapping[str, Any], settings: Settings) -> str:
    """What a drain with these settings would take, as one line."""
    if not own:
        return (
            f"Next drain: none; no group is named {settings.consumer_group}; "
            "drain --consumer-group takes another"
        )
    scope, left = settings.scope, state.own_pending(own, settings.consumer_name)
    entries = own["backlog"][scope] + (left if scope == "undelivered" else 0)
    if not entries:
        return f"Next drain: nothing; 0 {scope}"
    taken = next_run_words(entries, settings.max_events, settings.throttle, f"{entries:,}")
    return f"Next drain: {taken}: {entries_words(scope, entries, left)}"


def next_command(found: Mapping[str, Any], settings: Settings) -> tuple[str, str]:
    """The command that helps most now, and why."""
    groups, own = found["groups"], group_of(found, settings.consumer_group)
    first = shlex.quote(one_line(groups[0]["name"])) if groups else ""
    dry = "a dry run: it changes nothing"
    cases = (
        (found["stop"], "resume", "when its reason is gone"),
        (any(drain["alive"] for drain in found["running_drains"]), "status --watch 5",
         "a drain is at work"),
        (groups and not own, f"status --consumer-group {first}", "a group that is there"),
        (found["unreadable"], "fields", "many events cannot be read"),
        (own and own["lag_counted"], "run", dry),
        (own and own["pending"], "run --scope pending", dry),
        (True, "check", "nothing waits"),
    )  # fmt: skip
    return next((command, why) for case, command, why in cases if case)


# ---------------------------------------------------------------- drains at work


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
    alive: bool  # False: its consumer is gone, or has been silent for too long

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
        return f"Running: {who}: {books}, {self.events_per_sec:,.1f}/s, ETA {eta}"


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
    return found


def _running(server: Server, start: ledger.Start, done: int) -> RunningDrain:
    if start.throttle is not None and not 0 < start.throttle < math.inf:
        raise ValueError(start.throttle)
    left, silent_ms = 0, math.inf
    if (group := reading.positions(server).get(start.consumer_group)) is not None:
        pending = reading.pending_ids(server, group.name, start.boundary_id, first=start.from_id)
        left = sum(start.scope == "pending" or row[1] == start.consumer
                   for page in pending for row in page)  # fmt: skip
        if start.scope != "pending":
            left += counting.count_between(server, next_id(group.position), start.boundary_id)
        silent_ms = min((c.idle_ms for c in reading.consumers(server, group.name)
                         if c.name == start.consumer), default=math.inf)  # fmt: skip
    if start.max_events is not None:
        left = min(left, max(0, start.max_events - done))
    begun = dt.datetime.fromisoformat(start.at).timestamp()
    rate = done / max(server.now_us() / 1e6 - begun, 1e-3)
    # below one event a minute a consumer is silent for longer than that, and well
    alive = silent_ms < max(reading.ACTIVE_MS, 3000 / (start.throttle or math.inf))
    return RunningDrain(
        start.run_id, start.consumer_group, start.consumer, start.at, done, left,
        events_per_sec=round(rate, 2),
        eta_sec=round(left / rate, 1) if rate and alive else None,
        alive=alive,
    )  # fmt: skip
