"""The first screen: the verdict, what would pass now, which drains are at work, what to do next."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from ..core.events import Decoder, Events
from ..core.policy import ACTIONS, decide
from ..core.progress import entries_words, next_run_words, span
from ..core.timestamps import iso
from ..core.values import INVALID_REASONS
from ..errors import RefusedError, UsageError
from ..ids import next_id
from ..safe import one_line
from ..server import ledger
from ..server.connection import Server
from ..server.counting import sampled
from ..server.keeping import keeping_words
from ..server.reading import stop_words
from ..settings import Settings
from .checks import Limits, Report, judge
from .ranges import Lens
from .running import running_drains
from .state import OLDEST_OF, StreamState, baseline, known, own_pending, read_state

TOP = 5  # symbols that are named
SUSPECT = 0.2  # of the events unreadable: the mapping is wrong, rather than the events


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
    judged = report.as_dict()
    return {
        **found,
        "as_of": iso(server.now_us()),
        "verdict": {name: judged[name] for name in ("status", "exit_code", "findings")},
        "decided": _decided(server, settings, state, seen),
        "running_drains": [vars(drain) | {"line": drain.line()} for drain in running],
        "last_run": None if last is None else asdict(last),
    }


def _decided(
    server: Server, settings: Settings, state: StreamState, seen: list[Events]
) -> dict[str, Any] | None:
    """What the policy says of the group's undelivered entries now; None without such a group.

    All of them where they were decoded already, else a sample from all over them.
    """
    mine = [g.group for g in state.groups if g.group.name == settings.consumer_group]
    if not mine or not mine[0].backlog:
        return None
    entries, first = mine[0].backlog.undelivered or 0, next_id(mine[0].position)
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
    info, groups = found["stream"], {g["name"]: g for g in found["groups"]}
    own = groups.get(settings.consumer_group)
    lines = [
        _verdict(found["verdict"], settings.consumer_group),
        f"Stream: {one_line(info['name'], 36)}, {info['length']:,} entries, at "
        f"{found['as_of'][11:19]} UTC",
    ]
    if own is None:
        lines.append(f"Groups: {', '.join(one_line(name, 60) for name in groups) or 'none'}")
    else:
        more = f" ({len(groups) - 1:,} more: --all)" if len(groups) > 1 else ""
        lines += [f"Group: {one_line(own['name'], 60)}{more}", _backlog(own)]
        lines += _decided_lines(found["decided"])
    lines += _runs(found)
    if found["unread"]:
        lines.append(f"Kill switch and audit are not known: {found['unread']}")
    else:
        stopped = found["stop"] and f"{stop_words(**found['stop'])}; drainkit resume lifts it"
        lines.append(f"Stopped: {stopped}" if stopped else "Kill switch: not set")
    if kept := keeping_words(found["server"]):
        lines.append(f"Server: {'; '.join(kept)}")
    is_busy = any(drain["alive"] for drain in found["running_drains"])
    return lines if is_busy else [*lines, next_drain(found, settings)]


def _verdict(verdict: Mapping[str, Any], group: str) -> str:
    bad = [f for f in verdict["findings"] if f["severity"] != "ok"]
    others = {f["group"] for f in bad} - {None, group}
    of = {name: f" ({one_line(name, 40)})" for name in others}
    words = "; ".join(f["text"] + of.get(f["group"], "") for f in bad)
    return f"{verdict['status'].upper()}: {words or 'nothing is near a limit of drainkit check'}"


def _backlog(group: Mapping[str, Any]) -> str:
    age, lost = group["oldest_age_sec"], known(group["lost"])
    oldest = "" if age is None else f", oldest {span(age)}"
    by_id = " by its id" if group["oldest_by"] == "entry id" else ""
    return (f"Backlog: {known(group['backlog']['undelivered'])} undelivered{oldest}{by_id}; "
            f"{group['pending']:,} pending; {lost} lost")  # fmt: skip


def _decided_lines(decided: Mapping[str, Any]) -> list[str]:
    if decided["why_not"]:
        return [f"Would pass: not known: {decided['why_not']}"]
    of = f"of {decided['events']:,}" + " sampled" * decided["is_sample"]
    symbols = list(decided["symbols"].items())
    named = ", ".join(f"{symbol} {n:,}" for symbol, n in symbols[:TOP])
    more = f", {len(symbols) - TOP:,} more" if len(symbols) > TOP else ""
    bad = decided["unreadable"]
    why = "; ".join(f"{n:,} {reason}" for reason, n in bad.items())  # it may be cut at its end
    return [
        f"Would pass now: {decided['would_pass']:,} {of}" + (f": {named}{more}" if named else ""),
        f"Unreadable: {sum(bad.values()):,} {of}" + (f": {why}" if bad else ""),
    ]


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
    decided, groups = found["decided"] or {}, {g["name"]: g for g in found["groups"]}
    bad, own = sum(decided.get("unreadable", {}).values()), groups.get(settings.consumer_group)
    other = f"status --consumer-group {shlex.quote(one_line(next(iter(groups), '')))}"
    dry = "a dry run: it changes nothing"
    cases = (
        (found["stop"], "resume", "when its reason is gone"),
        (any(drain["alive"] for drain in found["running_drains"]), "status --watch 5",
         "a drain is at work"),
        (groups and own is None, other, "a group that is there"),
        (bad > SUSPECT * decided.get("events", 0), "fields", "many events cannot be read"),
        (decided.get("undelivered"), "run", dry),
        (own and own["pending"], "run --scope pending", dry),
    )  # fmt: skip
    found_case = next(((command, why) for case, command, why in cases if case), None)
    return found_case or ("check", "nothing waits")


def next_drain(status: Mapping[str, Any], settings: Settings) -> str:
    """What a drain with these settings would take, as one line."""
    for g in status["groups"]:
        if g["name"] == settings.consumer_group:
            scope, own = settings.scope, own_pending(g, settings.consumer_name)
            entries = g["backlog"][scope] + (own if scope == "undelivered" else 0)
            if not entries:
                return f"Next drain: nothing; 0 {scope}"
            limits = settings.max_events, settings.throttle
            taken = next_run_words(entries, *limits, f"{entries:,}")
            return f"Next drain: {taken}: {entries_words(scope, entries, own)}"
    return (
        f"Next drain: none; no group is named {settings.consumer_group}; "
        "drain --consumer-group takes another"
    )
