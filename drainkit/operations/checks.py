"""Judges backlogs by limits, after the monitoring convention; and tells them as metrics."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ..errors import DrainkitError, RefusedError, UnreachableError, UsageError
from ..safe import text
from ..server import ledger, reading, scopes
from ..server.connection import Server
from ..settings import Settings
from .state import FACTS, State, known, read_state

#: From best to worst, with the exit codes of the monitoring convention.
SEVERITIES = {"ok": 0, "warning": 1, "unknown": 3, "critical": 2}
WARN_FROM = 0.8  # of a limit
HISTORY_GROUP = ".drain_history"  # how the names of scope history's groups end
LOST = "entries were trimmed before the group read them"


@dataclass(frozen=True)
class Limits:
    """Critical above these, warning from 80 % of them."""

    max_backlog: int = 1000  # undelivered entries
    max_age_min: float = 60  # of the oldest undelivered entry, minutes
    max_pending: int = 1000
    max_pending_age_min: float = 60  # of the oldest pending entry, minutes
    max_lost: int = 0  # entries trimmed before the group read them
    must_know_lost: bool = False  # whether not knowing is a finding


@dataclass(frozen=True)
class Finding:
    """One thing that was judged."""

    severity: str
    stream: str
    group: str | None
    text: str

    def line(self) -> str:
        """The finding as one line."""
        where = f"{self.stream} {self.group}" if self.group else self.stream
        return f"{self.severity.upper()}: {where}: {self.text}"


Found = tuple[str, str]  # a severity, and what was found


@dataclass
class Report:
    """What a check saw and judged, worst finding first."""

    findings: list[Finding] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    ends: list[tuple[str, ledger.End]] = field(default_factory=list)  # of runs, with the stream
    readable: bool = True  # False: the server could not be asked

    @property
    def severity(self) -> str:
        """The worst one."""
        return self.findings[0].severity if self.findings else "unknown"

    def add(self, stream: str, group: str | None, *found: Found) -> None:
        """Add findings, each in its place."""
        self.findings += [Finding(severity, stream, group, text) for severity, text in found]
        self.findings.sort(key=lambda f: -list(SEVERITIES).index(f.severity))

    def verdict(self) -> dict[str, Any]:
        """JSON-ready: what was judged; exit code 0 OK, 1 warning, 2 critical, 3 unknown."""
        findings, code = [*map(vars, self.findings)], SEVERITIES[self.severity]
        return {"status": self.severity, "exit_code": code, "findings": findings}


def check(
    server: Server, settings: Settings, limits: Limits, *, groups: Sequence[str] = (),
    pattern: str | None = None, audits: bool = False,
) -> Report:  # fmt: skip
    """Judge the settings' stream, or all that fit `pattern`; what cannot be read is unknown.

    `audits`: for metrics, so the audit is counted by action, backlogs are counted to the end, and
    the ledger says how runs ended.
    """
    if pattern is not None and settings.audit_stream is not None:
        raise UsageError("--audit-stream names the audit of one stream; leave out --all-streams")
    report, asked = Report(), set[str]()
    most = None if audits else limits.max_backlog
    for name, one in (
        [(settings.stream, server)] if pattern is None else streams(server, settings, pattern)
    ):
        try:
            if isinstance(one, DrainkitError):
                raise one
            state = read_state(one, settings, audits=audits, most=most)
            report.ends += [(name, end) for end in (ledger.last_ends(one) if audits else ())]
        except DrainkitError as error:
            if pattern is None and isinstance(error, UnreachableError):
                raise
            report.add(name, None, ("unknown", str(error)))
            continue
        kept = None if one.info.run_id in asked else scopes.keeping(one)  # once for each server
        asked.add(one.info.run_id)
        judge(report, state, limits, groups, kept)
    if not report.findings and not report.states:
        words = "no stream fits this pattern; check --all-streams"
        report.add(pattern or "", None, ("unknown", words))
    seen = {g["name"] for state in report.states for g in state["groups"]}
    for group in sorted({*groups} - seen) if report.states else ():
        words = "no such group; check --group"
        report.add(pattern or settings.stream, group, ("unknown", words))
    return report


def streams(
    server: Server, settings: Settings, pattern: str
) -> Iterator[tuple[str, Server | DrainkitError]]:
    """Each stream of a pattern with a connection to where it is, open until the next is asked for.

    In its place why there is none: a name that is not UTF-8, a node that hangs (which has the
    pattern's name, for nobody knows which streams it has).
    """
    names, missed = reading.find_streams(server, pattern)
    yield from ((pattern, error) for error in missed)
    for raw in names:
        try:
            with Server.of(settings, raw.decode()) as one:
                yield text(raw), one
        except UnicodeDecodeError:
            yield text(raw), RefusedError("the stream's name is not UTF-8")
        except (UnreachableError, RefusedError) as error:
            yield text(raw), error


def judge(
    report: Report, state: State, limits: Limits, groups: Sequence[str] = (),
    kept: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Judge a stream, its groups (all without `groups`), and what its server `kept`."""
    info, found = state["stream"], list[Found]()  # of the stream
    if kept and (words := scopes.eviction_words(kept)):
        found.append(("warning" if kept["may_evict"] else "unknown", words))
    # groups of scope history are the drain's own
    mine = [g for g in state["groups"] if not g["name"].endswith(HISTORY_GROUP)]
    report.states.append(state | {"groups": mine})
    if state["stop"]:
        found.append(("warning", str(reading.StopSwitch(**state["stop"]))))
    if not mine and not groups:
        found.append(("ok", f"{info['length']:,} entries, and no group reads them"))
    report.add(info["name"], None, *found)
    for g in mine:
        if not groups or g["name"] in groups:
            report.add(info["name"], g["name"], *_of_group(g, limits))


def _of_group(g: Mapping[str, Any], limits: Limits) -> list[Found]:
    """What is near or beyond a limit, else that all is well."""
    counted, lost, at_most, pending = g["lag_counted"], g["lost"], g["lost_at_most"], g["pending"]
    least, is_exact = (lost["entries"], lost["exact"]) if lost else (0, False)
    lost_words = known(lost) if lost or at_most is None else f"up to {at_most:,}"
    lag = known(g["lag_reported"])
    # None: it stopped at the limit
    undelivered = limits.max_backlog + 1 if counted is None else counted
    words = f"more than {limits.max_backlog:,}" if counted is None else known(counted)
    found = _near(f"{words} entries undelivered", undelivered, limits.max_backlog,
                  "" if g["lag_agrees"] else f" (lag reported by Redis: {lag})")  # fmt: skip
    is_unknown = at_most is None and not least
    if is_exact or least > limits.max_lost:
        found += _near(f"{lost_words} {LOST}", least, limits.max_lost)
    elif least or (at_most or 0) > limits.max_lost:
        words = f"{lost_words} {LOST}, now or earlier: the server does not say"
        found.append(("unknown", f"{words}; limit {limits.max_lost:,}"))
    elif is_unknown and limits.must_know_lost:
        found.append(("unknown", f"how many {LOST} is unknown"))
    found += _near(f"{pending:,} entries pending", pending, limits.max_pending)
    is_by_id = g["oldest_by"] == "entry id"
    by = " (the first by its id; too many to look at each event)" if is_by_id else ""
    for what, n, age_sec, most, how in (
        ("undelivered", undelivered, g["oldest_age_sec"], limits.max_age_min, by),
        ("pending", pending, g["oldest_pending_age_sec"], limits.max_pending_age_min, ""),
    ):
        if n and age_sec is None:
            found.append(("unknown", f"the oldest {what} entry has no usable time"))
        elif n:
            words = f"the oldest {what} entry is {age_sec / 60:,.1f} min old{how}"
            found += _near(words, age_sec / 60, most)
    if not found:
        age = g["oldest_age_sec"]
        oldest = "" if age is None else f", oldest {age / 60:,.1f} min{by}"
        kinds = ", ".join(f"{n} {kind}" for kind, n in g["consumers_by_state"].items() if n)
        found.append((
            "ok", f"{known(counted)} undelivered{oldest}, {pending:,} pending, {lost_words} lost; "
            f"lag reported {lag}; {kinds or 'no'} consumers",
        ))  # fmt: skip
    elif is_unknown and not limits.must_know_lost:
        found.append(("ok", f"how many {LOST} is unknown"))
    return found


def _near(words: str, value: float, limit: float, note: str = "") -> list[Found]:
    """A finding, if the value is above the limit or from 80 % of it on."""
    if value < limit * WARN_FROM or value == 0:
        return []
    return [("critical" if value > limit else "warning", f"{words}, limit {limit:,}{note}")]


# ---------------------------------------------------------------- as metrics

#: What each metric means, by name; the labels beside it.
METRICS: dict[str, tuple[str, tuple[str, ...]]] = {
    "drainkit_up": ("1 if the server could be read", ()),
    "drainkit_check_status": ("Worst finding: 0 OK, 1 warning, 2 critical, 3 unknown", ()),
    "drainkit_stream_entries": ("Entries in the stream", ("stream",)),
    "drainkit_stopped": ("1 while the kill switch is set", ("stream",)),
    "drainkit_audit_entries": ("Audit entries by action", ("stream", "action")),
    **{f.metric: (f.help, ("stream", "group", *f.labels)) for f in FACTS if f.metric},
    "drainkit_last_run_timestamp_seconds": (
        "End of the last live run, by the ledger", ("stream", "group", "outcome"),
    ),
}  # fmt: skip


def exposition(report: Report) -> bytes:
    """A check's report as Prometheus metrics; NaN, no number to an alert, is unknown."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()
    gauges = {name: Gauge(name, *known, registry=registry) for name, known in METRICS.items()}

    def add(name: str, value: float | None, *labels: str) -> None:
        gauge = gauges[name].labels(*labels) if labels else gauges[name]
        gauge.set(math.nan if value is None else value)

    add("drainkit_up", report.readable)
    add("drainkit_check_status", SEVERITIES[report.severity])
    for stream, end in report.ends:
        with suppress(ValueError):  # anybody can have written a time there
            at = dt.datetime.fromisoformat(end.at).timestamp()
            name = "drainkit_last_run_timestamp_seconds"
            add(name, at, stream, end.consumer_group, end.outcome)
    for state in report.states:
        stream = state["stream"]["name"]
        add("drainkit_stream_entries", state["stream"]["length"], stream)
        add("drainkit_stopped", state["stop"] is not None, stream)
        for action, n in (state["audit_by_action"] or {}).items():
            add("drainkit_audit_entries", n, stream, action)
        for g in state["groups"]:
            for fact in (fact for fact in FACTS if fact.metric):
                value: Any = 0 if fact.of and not g[fact.of] else fact.read(g)
                for label, n in (value if fact.labels else {"": value}).items():
                    add(fact.metric, n, stream, g["name"], *filter(None, (label,)))
    return generate_latest(registry)
