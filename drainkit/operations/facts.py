"""The values of a group, each declared once, and the rows, text and metrics made of them.

Here a state is its JSON (state_as_dict), or an older baseline.json, which may lack some values.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..server.keeping import keeping_words
from ..server.reading import stop_words
from .state import known, state_as_dict

if TYPE_CHECKING:
    from .checks import Report


@dataclass(frozen=True)
class Fact:
    """One value of a group, by the keys that lead to it; None is unknown, never 0."""

    path: str
    column: str  # in tables; `, min`: minutes there, where JSON and metrics have seconds
    metric: str = ""
    help: str = ""
    of: str = ""  # of these entries it is the age: where there is none, the metric is 0

    def value(self, group: Mapping[str, Any]) -> Any:
        """The value in a group of a state."""
        return _at(group, self.path)

    def cell(self, group: Mapping[str, Any]) -> Any:
        """The value as its column has it."""
        value = self.value(group)
        return value / 60 if self.column.endswith(", min") and value is not None else value

    def number(self, group: Mapping[str, Any]) -> float:
        """The value as its metric has it; NaN, which no alert takes for a number, is unknown."""
        value = self.value(group)
        if self.of and not _at(group, self.of):
            return 0.0
        if isinstance(value, Mapping):  # what a group lost
            value = value["entries"]
        return math.nan if value is None else float(value)


def _at(group: Any, path: str) -> Any:
    for key in path.split("."):
        group = group and group.get(key)
    return group


FACTS = (
    Fact("name", "group"),
    Fact("position", "position"),
    Fact("backlog.undelivered", "undelivered", "drainkit_lag_counted_entries",
         "Entries after the position, counted"),
    Fact("backlog.pending", "pending", "drainkit_pending_entries", "Delivered, not acknowledged"),
    Fact("backlog.history", "history"),
    Fact("lag_reported", "lag reported", "drainkit_lag_reported_entries",
         "Lag that Redis reports; NaN unknown"),
    Fact("lag_agrees", "they agree", "drainkit_lag_agrees",
         "1 if both lags are the same, lost entries aside; NaN unknown"),
    Fact("lost", "lost", "drainkit_lost_entries",
         "Trimmed before the group read them (at least so many); NaN unknown"),
    Fact("oldest_age_sec", "oldest, min", "drainkit_oldest_age_seconds",
         "Age of the oldest event of up to 5,000 undelivered, else of the first entry by its id; "
         "0 if none, NaN unknown", of="lag_counted"),
    Fact("oldest_by", "oldest by"),
    Fact("oldest_pending_age_sec", "oldest pending, min", "drainkit_oldest_pending_age_seconds",
         "Age of the oldest pending entry; 0 if none, NaN unknown", of="pending"),
    Fact("consumers", "consumers"),
    Fact("consumers_by_state.dead", "dead consumers"),
)  # fmt: skip
#: What each metric means, by name; the labels beside it.
METRICS: dict[str, tuple[str, tuple[str, ...]]] = {
    "drainkit_up": ("1 if the server could be read", ()),
    "drainkit_check_status": ("Worst finding: 0 OK, 1 warning, 2 critical, 3 unknown", ()),
    "drainkit_stream_entries": ("Entries in the stream", ("stream",)),
    "drainkit_stopped": ("1 while the kill switch is set", ("stream",)),
    "drainkit_audit_entries": ("Audit entries by action", ("stream", "action")),
    "drainkit_backlog_entries": ("Entries by scope, counted", ("stream", "group", "scope")),
    **{fact.metric: (fact.help, ("stream", "group")) for fact in FACTS if fact.metric},
    "drainkit_last_run_timestamp_seconds": (
        "End of the last live run, by the ledger", ("stream", "group", "outcome"),
    ),
    "drainkit_consumers": ("Consumers by state", ("stream", "group", "state")),
}  # fmt: skip


def group_rows(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each group of a state; `known` makes a value fit to be shown."""
    name = state["stream"]["name"]
    return [
        {"stream": name} | {fact.column: fact.cell(g) for fact in FACTS} for g in state["groups"]
    ]


def cell(value: Any) -> Any:
    """A value of a row for a table, which sets whole numbers to the right; else `known`."""
    return value if type(value) is int else known(value)


def as_text(state: Mapping[str, Any]) -> list[str]:
    """A baseline for a terminal, line by line."""
    info = state["stream"]
    lines = [
        f"Stream: {info['name']}",
        f"  Length: {info['length']:,}   First: {info['first_id']}   Last: {info['last_id']}   "
        f"Boundary: {info['boundary_id']}",
    ]
    if state["stop"]:
        lines.append(f"  {stop_words(**state['stop'])}; drainkit resume lifts it")
    lines += [f"  Note: {words}" for words in keeping_words(state["server"])]
    if state["unread"]:
        lines.append(f"  Kill switch and audit are not known: {state['unread']}")
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


def exposition(report: Report) -> bytes:
    """A check's report as Prometheus metrics."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()
    gauges = {name: Gauge(name, *known, registry=registry) for name, known in METRICS.items()}

    def add(name: str, value: float | None, *labels: str) -> None:
        gauge = gauges[name].labels(*labels) if labels else gauges[name]
        gauge.set(math.nan if value is None else value)

    add("drainkit_up", report.readable)
    add("drainkit_check_status", report.exit_code)
    for state in report.states:
        stream = state.info.name
        add("drainkit_stream_entries", state.info.length, stream)
        add("drainkit_stopped", state.switch is not None, stream)
        for action, n in (state.audit_by_action or {}).items():
            add("drainkit_audit_entries", n, stream, action)
        for end in state.last_ends:
            with suppress(ValueError):  # anybody can have written a time there
                at = dt.datetime.fromisoformat(end.at).timestamp()
                where = (stream, end.consumer_group, end.outcome)
                add("drainkit_last_run_timestamp_seconds", at, *where)
        for g in state_as_dict(state)["groups"]:
            for fact in FACTS:
                if fact.metric:
                    add(fact.metric, fact.number(g), stream, g["name"])
            for scope, n in g["backlog"].items():
                add("drainkit_backlog_entries", n, stream, g["name"], scope)
            for kind, n in g["consumers_by_state"].items():
                add("drainkit_consumers", n, stream, g["name"], kind)
    return generate_latest(registry)
