"""What a stream's state means: judged by limits, after the monitoring convention; as metrics; and
as the first screen of `status`, with what would pass now and what to do next.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import structs

from ..core.events import Decoder, Events
from ..core.policy import ACTIONS, decide
from ..core.summary import span
from ..core.values import INVALID_REASONS, iso
from ..core.verdicts import group_of
from ..errors import DrainkitError, RefusedError, UnreachableError, UsageError
from ..ids import next_id
from ..safe import one_line, text
from ..server import counting, reading, scopes
from ..server.connection import Server
from ..settings import Settings
from .events import Lens
from .state import FACTS, TRIMMED, State, baseline, drains, known, read_state

#: From best to worst, with the exit codes of the monitoring convention.
SEVERITIES = {"ok": 0, "warning": 1, "unknown": 3, "critical": 2}
WARN_FROM = 0.8  # of a limit
HISTORY_GROUP = ".drain_history"  # how the names of scope history's groups end
LOST = f"entries were {TRIMMED}"
TOP = 5  # symbols that are named on the first screen
TOO_MANY = 0.2  # of the events unreadable: a live drain would be refused


@dataclass(frozen=True)
class Limits:
    """Critical above these, warning from 80 % of them."""

    max_backlog: int = 1000  # undelivered entries
    max_age_min: float = 60  # of the oldest undelivered entry, minutes
    max_pending: int = 1000
    max_pending_age_min: float = 60  # of the oldest pending entry, minutes
    max_lost: int | None = None  # trimmed before the group read them; None: 0, and may be unknown


@dataclass(frozen=True)
class Finding:
    """One thing that was judged."""

    severity: str
    stream: str
    group: str | None
    text: str

    def __str__(self) -> str:
        where = f"{self.stream} {self.group}" if self.group else self.stream
        return f"{self.severity.upper()}: {where}: {self.text}"


Found = tuple[str, str]  # a severity, and what was found


@dataclass
class Report:
    """What a check saw and judged, worst finding first."""

    findings: list[Finding] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
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

    `audits`: for metrics, so the audit is counted by action, and backlogs are counted to the end.
    """
    if pattern is not None and settings.audit_stream is not None:
        raise UsageError("--audit-stream names the audit of one stream; leave out --all-streams")
    report, asked = Report(), set[str]()
    most = None if audits else limits.max_backlog
    for name, one in streams(server, settings, pattern):
        try:
            if isinstance(one, DrainkitError):
                raise one
            state = read_state(one, settings, audits=audits, most=most)
        except DrainkitError as error:
            if pattern is None and isinstance(error, UnreachableError):
                raise
            report.add(name, None, ("unknown", str(error)))
            continue
        kept = None if one.info.run_id in asked else scopes.keeping(one)  # once for each server
        asked.add(one.info.run_id)
        judge(report, state, limits, groups, kept)
    name, seen = pattern or settings.stream, {g["name"] for s in report.states for g in s["groups"]}
    if not report.findings and not report.states:
        report.add(name, None, ("unknown", "no stream fits this pattern; check --all-streams"))
    for group in sorted({*groups} - seen) if report.states else ():
        report.add(name, group, ("unknown", "no such group; check --group"))
    return report


def streams(
    server: Server, settings: Settings, pattern: str | None
) -> Iterator[tuple[str, Server | DrainkitError]]:
    """Each stream of a pattern with a connection to where it is, open until the next is asked for;
    without a pattern the settings' own.

    In its place why there is none: a name that is not UTF-8, a node that hangs (which has the
    pattern's name, for nobody knows which streams it has).
    """
    if pattern is None:
        yield settings.stream, server
        return
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
    max_lost = limits.max_lost or 0
    lost_words = known(lost) if lost or at_most is None else f"up to {at_most:,}"
    # None: it stopped at the limit
    new = limits.max_backlog + 1 if counted is None else counted
    words = f"more than {limits.max_backlog:,}" if counted is None else known(counted)
    found = _near(f"{words} entries undelivered", new, limits.max_backlog)
    if is_exact or least > max_lost:
        found += _near(f"{lost_words} {LOST}", least, max_lost)
    elif least or (at_most or 0) > max_lost:
        words = f"{lost_words} {LOST}, now or earlier: the server does not say"
        found.append(("unknown", f"{words}; limit {max_lost:,}"))
    elif at_most is None and limits.max_lost is not None:
        found.append(("unknown", f"how many {LOST} is unknown"))
    found += _near(f"{pending:,} entries pending", pending, limits.max_pending)
    is_by_id, age_sec = g["oldest_by"] == "entry id", g["oldest_age_sec"]
    by = " (the first by its id; too many to look at each event)" if is_by_id else ""
    for what, n, oldest_sec, most, how in (
        ("undelivered", new, age_sec, limits.max_age_min, by),
        ("pending", pending, g["oldest_pending_age_sec"], limits.max_pending_age_min, ""),
    ):
        if n and oldest_sec is None:
            found.append(("unknown", f"the oldest {what} entry has no usable time"))
        elif n:
            words = f"the oldest {what} entry is {oldest_sec / 60:,.1f} min old{how}"
            found += _near(words, oldest_sec / 60, most)
    if found:
        return found
    oldest = "" if age_sec is None else f", oldest {age_sec / 60:,.1f} min{by}"
    kinds = ", ".join(f"{n} {kind}" for kind, n in g["consumers_by_state"].items() if n) or "no"
    words = f"{known(counted)} undelivered{oldest}, {pending:,} pending, {lost_words} lost"
    return [("ok", f"{words}; lag reported {known(g['lag_reported'])}; {kinds} consumers")]


def _near(words: str, value: float, limit: float) -> list[Found]:
    """A finding, if the value is above the limit or from 80 % of it on."""
    if value < limit * WARN_FROM or value == 0:
        return []
    return [("critical" if value > limit else "warning", f"{words}, limit {limit:,}")]


# ---------------------------------------------------------------- as metrics

#: What each metric means, by name; the labels beside it.
METRICS: dict[str, tuple[str, tuple[str, ...]]] = {
    "drainkit_up": ("1 if the server could be read", ()),
    "drainkit_check_status": ("Worst finding: 0 OK, 1 warning, 2 critical, 3 unknown", ()),
    "drainkit_stream_entries": ("Entries in the stream", ("stream",)),
    "drainkit_stopped": ("1 while the kill switch is set", ("stream",)),
    "drainkit_audit_entries": ("Audit entries by action", ("stream", "action")),
    **{f.metric: (f.help, ("stream", "group", *f.labels)) for f in FACTS if f.metric},
}


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


# ---------------------------------------------------------------- the first screen


def first_screen(server: Server, settings: Settings) -> State:
    """All that `status` knows, JSON-ready."""
    seen: dict[str, list[Events]] = {}
    found = baseline(server, read_state(server, settings, seen=seen))
    judge(report := Report(), found, Limits(), kept=found["server"])
    at_work, last = drains(server)
    return {
        **found,
        "as_of": iso(server.now_us()),
        "verdict": report.verdict(),
        "decided": _decided(server, settings, found, seen),
        "running_drains": at_work,
        "last_run": last and structs.asdict(last),
    }


def _decided(
    server: Server, settings: Settings, found: State, seen: Mapping[str, list[Events]]
) -> dict[str, Any] | None:
    """What the policy says of the group's undelivered entries now; None without such a group.

    All of them where they were decoded already, else a sample from all over them.
    """
    if not (mine := group_of(found, settings.consumer_group)):
        return None
    position, boundary = mine["position"], found["stream"]["boundary_id"]
    lens, pages = Lens.of(server, settings), seen.get(position)
    is_sample = pages is None
    if pages is None:
        raw = counting.sampled(server, next_id(position), boundary)
        pages = [*map(Decoder(lens.fields).decode, raw)]
    passing, unreadable = Counter[str](), Counter[str]()
    for page in pages:
        decisions = decide(page, lens.policy, lens.at_us)
        passes = decisions.action == ACTIONS.index("drained_ok")
        passing.update(page.symbols[code] for code in page.symbol_code[passes].tolist())
        invalid = decisions.failed >> ACTIONS.index("dropped_invalid") & 1 == 1
        unreadable.update(INVALID_REASONS[code] for code in page.invalid[invalid].tolist())
    return {
        "undelivered": mine["lag_counted"],
        "events": sum(map(len, pages)),
        "is_sample": is_sample,
        "would_pass": passing.total(),
        "symbols": dict(passing.most_common()),
        "unreadable": dict(unreadable.most_common()),
    }


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
    ]
    if own:
        decided = found["decided"]
        oldest = "" if (age := own["oldest_age_sec"]) is None else f", oldest {span(age)}"
        oldest += " by its id" if own["oldest_by"] == "entry id" else ""
        of = f"of {decided['events']:,}" + " sampled" * decided["is_sample"]
        symbols, odd = [*decided["symbols"].items()], decided["unreadable"]
        named = ", ".join(f"{symbol} {n:,}" for symbol, n in symbols[:TOP])
        named += f", {len(symbols) - TOP:,} more" if len(symbols) > TOP else ""
        # the reasons come last, where they may be cut
        reasons = "; ".join(f"{n:,} {reason}" for reason, n in odd.items())
        lines += [
            f"Group: {one_line(own['name'], 60)}{_more(groups)}",
            f"Backlog: {known(own['lag_counted'])} undelivered{oldest}; "
            f"{own['pending']:,} pending; {known(own['lost'])} lost",
            f"Would pass now: {decided['would_pass']:,} {of}" + (named and f": {named}"),
            f"Unreadable: {sum(odd.values()):,} {of}" + (reasons and f": {reasons}"),
        ]
    else:
        names = ", ".join(one_line(g["name"], 60) for g in groups) or "none"
        lines.append(f"Groups: {names}; no group is named {settings.consumer_group}")
    lines += [drain["line"] + _more(drains) for drain in drains[:1]]
    lines.append("Last run: none in the ledger" if last is None else
                 f"Last run: {one_line(last['at'][:19], 20)}Z by "
                 f"{one_line(last['operator'], 40) or 'unknown'}: {one_line(last['outcome'], 20)}, "
                 f"{last['total_read']:,} read, {last['drained_ok']:,} passed")  # fmt: skip
    switch = found["stop"] and reading.StopSwitch(**found["stop"])
    lines.append(f"Stopped: {switch}; drainkit resume lifts it" if switch else
                 "Kill switch: not set")  # fmt: skip
    kept = scopes.keeping_words(found["server"])
    return [*lines, f"Server: {'; '.join(kept)}"] if kept else lines


def _more(them: Sequence[object]) -> str:
    return f" ({len(them) - 1:,} more: --all)" if len(them) > 1 else ""


def next_command(found: Mapping[str, Any], settings: Settings) -> tuple[str, str]:
    """The command that helps most now, and why."""
    groups, own = found["groups"], group_of(found, settings.consumer_group)
    first = shlex.quote(one_line(groups[0]["name"])) if groups else ""
    decided, dry = found["decided"], "a dry run: it changes nothing"
    bad = decided and sum(decided["unreadable"].values()) > TOO_MANY * decided["events"]
    cases = (
        (found["stop"], "resume", "when its reason is gone"),
        (any(drain["alive"] for drain in found["running_drains"]), "status --watch 5",
         "a drain is at work"),
        (groups and not own, f"status --consumer-group {first}", "a group that is there"),
        (bad, "fields", "many events cannot be read"),
        (own and own["lag_counted"], "run", dry),
        (own and own["pending"], "run --scope pending", dry),
        (True, "check", "nothing waits"),
    )  # fmt: skip
    return next((command, why) for case, command, why in cases if case)
