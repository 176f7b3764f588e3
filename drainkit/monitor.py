"""See a backlog coming: the state of streams and groups, and what is wrong with it.

Reads only. Backlogs are counted entry by entry, because Redis's own lag is unknown or wrong after
XDEL, XTRIM, SETID and for groups made mid-stream; what is not known is None here, never 0.
"""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from . import ledger, stream
from .audit import parse
from .drain import ACTIVE_MS, decoder_of, run_records
from .errors import DrainkitError, RefusedError, UnreachableError, UsageError, one_line
from .events import RawEntry
from .evidence import RUN_ID
from .policy import ACTIONS
from .server import Keys, Server
from .settings import Settings
from .stream import Group, StreamInfo
from .timestamps import NO_TIME

#: From best to worst, with the exit codes of the monitoring convention.
SEVERITIES = {"ok": 0, "warning": 1, "unknown": 3, "critical": 2}
WARN_FROM = 0.8  # of a limit
CONSUMER_STATES = ("active", "idle", "dead")
SIDE_STREAMS = (".drain_audit", ".drain_runs")
HISTORY_GROUP = ".drain_history"
START_FIELDS = {
    "consumer_group",
    "consumer",
    "scope",
    "boundary_id",
    "throttle",
    "max_events",
    "at",
}


@dataclass(frozen=True)
class Limits:
    """Critical above these, warning from 80 % of them; None: not judged."""

    max_backlog: int = 1000  # undelivered entries
    max_age_min: float = 60  # of the oldest undelivered entry, minutes
    max_pending: int | None = 1000
    max_pending_age_min: float | None = 60  # of the oldest pending entry, minutes
    max_dead: int | None = None  # consumers idle at least `dead_after_min`
    max_audit: int | None = None  # entries of the audit stream, which nothing trims
    dead_after_min: float = 60


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
        """Whether the lag that Redis reports is the counted one; None where it reports none."""
        lag = self.group.lag_reported
        return None if lag is None else lag == self.undelivered


@dataclass(frozen=True)
class StreamState:
    """One stream, its groups, its kill switch and its audit."""

    info: StreamInfo
    groups: list[GroupState]
    stopped: str | None  # the reason, where the kill switch is set
    audit_entries: int
    audit_by_action: dict[str, int] | None = None  # where it was asked for


@dataclass(frozen=True)
class Finding:
    """One thing that was judged."""

    severity: str
    stream: str
    group: str | None
    text: str

    def line(self) -> str:
        """The finding as one safe line."""
        where = one_line(self.stream) + (f" {one_line(self.group)}" if self.group else "")
        return f"{self.severity.upper()}: {where}: {self.text}"


@dataclass
class Report:
    """What a check saw and judged, worst finding first."""

    findings: list[Finding] = field(default_factory=list)
    states: list[StreamState] = field(default_factory=list)
    readable: bool = True  # False: the server could not be asked

    @property
    def severity(self) -> str:
        """The worst one."""
        names = [finding.severity for finding in self.findings] or ["unknown"]
        return max(names, key=list(SEVERITIES).index)

    @property
    def exit_code(self) -> int:
        """0 OK, 1 warning, 2 critical, 3 unknown."""
        return SEVERITIES[self.severity]

    def add(self, severity: str, stream_name: str, group: str | None, text: str) -> None:
        """Add a finding in its place."""
        self.findings.append(Finding(severity, stream_name, group, text))
        self.findings.sort(key=lambda f: -list(SEVERITIES).index(f.severity))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "status": self.severity,
            "exit_code": self.exit_code,
            "findings": [asdict(finding) for finding in self.findings],
            "streams": [state_as_dict(state) for state in self.states],
        }


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


# ---------------------------------------------------------------- reading


def read_state(
    server: Server,
    settings: Settings,
    keys: Keys,
    *,
    dead_after_min: float = 60,
    audits: bool = False,
) -> StreamState:
    """The stream of `keys` as it is now; groups of scope history are the drain's own, left out.

    `audits`: also count the audit by action, for which all of it is read.
    """
    info = stream.stream_info(server, keys.stream)
    groups = [g for g in stream.groups(server, info) if not g.name.endswith(HISTORY_GROUP)]
    stopped = server.call("GET", keys.stop)
    return StreamState(
        info=info,
        groups=[_read_group(server, settings, info, g, dead_after_min) for g in groups],
        stopped=None if stopped is None else _reason_of(stopped),
        audit_entries=server.call("XLEN", keys.audit),
        audit_by_action=audit_counts(server, keys) if audits else None,
    )


def _read_group(
    server: Server, settings: Settings, info: StreamInfo, group: Group, dead_after_min: float
) -> GroupState:
    key = info.name.encode()
    first = stream.next_id(group.position)
    oldest = next(stream.pages(server, key, first, info.boundary_id, page=1), [])
    lowest = server.call("XPENDING", key, group.name.raw)[1]
    pending = stream.bodies(server, key, [lowest] if lowest is not None else [])
    consumers = stream.consumers(server, key, group.name)
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


def _reason_of(switch: bytes) -> str:
    try:
        return one_line(str(json.loads(switch)["reason"]))
    except (ValueError, KeyError, TypeError):
        return "no reason given"


def audit_counts(server: Server, keys: Keys) -> dict[str, int]:
    """Audit entries by action; an action that nobody knows counts as "other"."""
    counts = dict.fromkeys((*ACTIONS, "other"), 0)
    for page in stream.pages(server, keys.audit, stream.FIRST_ID, stream.LAST_ID):
        for entry in page:
            action = parse(entry).action
            counts[action if action in counts else "other"] += 1
    return counts


def find_streams(server: Server, pattern: str) -> list[bytes]:
    """Names of the streams that fit a glob pattern, on all primaries, without drainkit's own."""
    found: set[bytes] = set()
    for node in server.primaries():
        with node:
            cursor = b"0"
            while True:
                cursor, names = node.call(
                    "SCAN", cursor, "MATCH", pattern, "COUNT", 1000, "TYPE", "stream"
                )
                found.update(names)
                if cursor == b"0":
                    break
    return sorted(n for n in found if not n.endswith(tuple(s.encode() for s in SIDE_STREAMS)))


# ---------------------------------------------------------------- judging


def check(
    server: Server,
    settings: Settings,
    limits: Limits,
    *,
    groups: Sequence[str] = (),
    pattern: str | None = None,
    audits: bool = False,
) -> Report:
    """Judge the settings' stream, or all that fit `pattern`; what cannot be read is unknown."""
    report = Report()
    for one, keys in _each_stream(server, settings, pattern, report):
        name = stream.text(keys.stream)
        try:
            state = read_state(
                one, settings, keys, dead_after_min=limits.dead_after_min, audits=audits
            )
        except UnreachableError:
            raise
        except DrainkitError as error:
            report.add("unknown", name, None, str(error))
            continue
        report.states.append(state)
        _judge(report, state, limits, groups)
    seen = {g.group.name for state in report.states for g in state.groups}
    for group in groups:
        if group not in seen and report.states:
            report.add("unknown", pattern or settings.stream, group, "no such group; check --group")
    return report


def unreadable(name: str, error: DrainkitError) -> Report:
    """The report where nothing could be read."""
    return Report([Finding("unknown", name, None, one_line(str(error), 600))], readable=False)


def _each_stream(
    server: Server, settings: Settings, pattern: str | None, report: Report
) -> Iterator[tuple[Server, Keys]]:
    """The streams to check, each with a connection to where it is."""
    if pattern is None:
        yield server, server.keys(settings.audit_stream)
        return
    if settings.audit_stream is not None:
        raise UsageError("--audit-stream names the audit of one stream; leave out --all-streams")
    names = find_streams(server, pattern)
    if not names:
        report.add("unknown", pattern, None, "no stream fits this pattern; check --all-streams")
    for raw in names:
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            report.add("unknown", stream.text(raw), None, "the stream's name is no UTF-8")
            continue
        with Server(settings.redis_url.get_secret_value(), name) as one:
            try:
                keys = one.keys()
            except RefusedError as error:  # a Cluster, and a name without a place for a hash tag
                report.add("unknown", name, None, str(error))
                continue
            yield one, keys


def _judge(report: Report, state: StreamState, limits: Limits, groups: Sequence[str]) -> None:
    name = state.info.name
    if state.stopped is not None:
        report.add("warning", name, None, f"the kill switch is set ({state.stopped})")
    _add(report, name, None, "{} audit entries", state.audit_entries, limits.max_audit)
    for g in state.groups:
        if not groups or g.group.name in groups:
            before = len(report.findings)
            _judge_group(report, name, g, limits)
            if len(report.findings) == before:
                report.add("ok", name, g.group.name, _healthy(g))
    if not state.groups and not groups:
        report.add("ok", name, None, f"{state.info.length:,} entries, and no group reads them")


def _judge_group(report: Report, name: str, g: GroupState, limits: Limits) -> None:
    group = g.group.name
    lag = "" if g.lag_agrees else f" (lag reported by Redis: {_known(g.group.lag_reported)})"
    _add(report, name, group, "{} entries undelivered", g.undelivered, limits.max_backlog, note=lag)
    _add(report, name, group, "{} entries pending", g.group.pending, limits.max_pending)
    _add(report, name, group, "{} dead consumers", g.consumers["dead"], limits.max_dead)
    for what, n, age_sec, most in (
        ("undelivered", g.undelivered, g.oldest_age_sec, limits.max_age_min),
        ("pending", g.group.pending, g.oldest_pending_age_sec, limits.max_pending_age_min),
    ):
        if n and age_sec is None and most is not None:
            report.add("unknown", name, group, f"the oldest {what} entry has no usable time")
        elif n and age_sec is not None:
            text = f"the oldest {what} entry is {{}} min old"
            _add(report, name, group, text, age_sec / 60, most)


def _add(
    report: Report, name: str, group: str | None, text: str, value: float, limit: float | None,
    *, note: str = "",
) -> None:  # fmt: skip
    """A finding, if the value is above the limit or from 80 % of it on."""
    if limit is None or (value < limit * WARN_FROM or value == 0):
        return
    severity = "critical" if value > limit else "warning"
    shown = f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
    report.add(severity, name, group, f"{text.format(shown)}, limit {limit:,}{note}")


def _healthy(g: GroupState) -> str:
    age = "" if g.oldest_age_sec is None else f", oldest {g.oldest_age_sec / 60:,.1f} min"
    states = ", ".join(f"{n} {state}" for state, n in g.consumers.items() if n) or "no"
    return (
        f"{g.undelivered:,} undelivered{age}, {g.group.pending:,} pending; lag reported "
        f"{_known(g.group.lag_reported)}; {states} consumers"
    )


def _known(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


# ---------------------------------------------------------------- running drains


@dataclass(frozen=True)
class RunningDrain:
    """A live run that the ledger knows the start of, but no end."""

    run_id: str
    consumer_group: str
    consumers: list[str]  # one, or one for each worker
    started_at: str  # ISO 8601 UTC
    done: int  # audit records of the run
    remaining: int  # of its scope up to its boundary, or of its budget
    events_per_sec: float  # since it started
    eta_sec: float | None  # None: nothing done yet
    silent_sec: float | None  # since one of its consumers was last seen; None: they are gone
    alive: bool  # False: it has been silent for so long that it probably died

    def line(self) -> str:
        """The drain as one safe line."""
        eta = "unknown" if self.eta_sec is None else f"{self.eta_sec:,.0f} s"
        state = "Running" if self.alive else "Started, silent, and never ended (died?)"
        return (
            f"{state}: {one_line(self.run_id)} by {one_line(', '.join(self.consumers))}: "
            f"{self.done:,} done, {self.remaining:,} remaining, {self.events_per_sec:,.1f}/s, "
            f"ETA {eta}"
        )


def running_drains(server: Server, keys: Keys) -> list[RunningDrain]:
    """Live runs of the stream without an end in the ledger, oldest first.

    A run that died leaves no end; it is listed until its consumer's next run starts.
    """
    open_runs: dict[tuple[str, str], dict[str, str]] = {}  # by group and consumer
    if server.call("TYPE", keys.runs) != b"stream":
        return []
    for entry in ledger.entries(server, keys):
        worker = (entry.get("consumer_group", ""), entry.get("consumer", ""))
        if entry.get("event") == "start":
            open_runs[worker] = entry
        elif entry.get("event") == "end":
            open_runs.pop(worker, None)
    runs: dict[str, list[dict[str, str]]] = {}
    for entry in open_runs.values():
        # who may write to the ledger could have put anything there
        if entry.keys() >= START_FIELDS and RUN_ID.fullmatch(entry.get("run_id", "")):
            runs.setdefault(entry["run_id"], []).append(entry)
    done = Counter(record.run_id for record in run_records(server, keys, set(runs)))
    found = []
    for run_id, starts in runs.items():
        with suppress(ValueError, ArithmeticError):
            found.append(_running(server, keys, starts, done[run_id]))
    return found


def _running(server: Server, keys: Keys, starts: list[dict[str, str]], done: int) -> RunningDrain:
    first = starts[0]
    names = [start["consumer"] for start in starts]
    group = stream.positions(server, keys.stream).get(first["consumer_group"])
    left, silent_ms = 0, None
    if group is not None:
        left = _left_of(server, keys, group, first, names)
        seen = [
            c.idle_ms for c in stream.consumers(server, keys.stream, group.name) if c.name in names
        ]
        silent_ms = min(seen, default=None)
    budgets = [start["max_events"] for start in starts]
    if "all" not in budgets:
        left = min(left, max(0, sum(map(int, budgets)) - done))
    begun = dt.datetime.fromisoformat(first["at"]).timestamp()
    rate = done / max(server.now_us() / 1e6 - begun, 1e-3)
    # below one event a minute a consumer is silent for longer than that, and well
    pause_ms = 0.0 if first["throttle"] == "none" else 3000 / float(first["throttle"])
    return RunningDrain(
        run_id=first["run_id"],
        consumer_group=first["consumer_group"],
        consumers=names,
        started_at=first["at"],
        done=done,
        remaining=left,
        events_per_sec=round(rate, 2),
        eta_sec=round(left / rate, 1) if rate else None,
        silent_sec=None if silent_ms is None else silent_ms / 1000,
        alive=silent_ms is not None and silent_ms < max(ACTIVE_MS, pause_ms),
    )


def _left_of(
    server: Server, keys: Keys, group: Group, start: dict[str, str], names: Sequence[str]
) -> int:
    """Entries of the run's scope that are not drained, counted."""
    boundary = start["boundary_id"]
    rows = stream.pending_ids(server, keys.stream, group.name, boundary)
    if start["scope"] == "pending":
        return sum(len(page) for page in rows)
    own = sum(row[1] in names for page in rows for row in page)
    first = stream.next_id(group.position)
    return own + stream.count_between(server, keys.stream, first, boundary)
