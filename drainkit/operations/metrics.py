"""The state of streams as Prometheus metrics: printed, or in a file for node_exporter.

A lag that Redis does not know is NaN, which no alert takes for a number.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from .state import group_rows, state_as_dict

if TYPE_CHECKING:
    from .checks import Report
    from .state import StreamState

#: What each metric means, by name; the labels beside it.
METRICS: dict[str, tuple[str, tuple[str, ...]]] = {
    "drainkit_up": ("1 if the server could be read", ()),
    "drainkit_check_status": ("Worst finding: 0 OK, 1 warning, 2 critical, 3 unknown", ()),
    "drainkit_stream_entries": ("Entries in the stream", ("stream",)),
    "drainkit_stopped": ("1 while the kill switch is set", ("stream",)),
    "drainkit_audit_entries": ("Audit entries by action", ("stream", "action")),
    "drainkit_backlog_entries": ("Entries by scope, counted", ("stream", "group", "scope")),
    "drainkit_pending_entries": ("Delivered, not acknowledged", ("stream", "group")),
    "drainkit_lag_reported_entries": ("Lag that Redis reports; NaN unknown", ("stream", "group")),
    "drainkit_lag_counted_entries": ("Entries after the position, counted", ("stream", "group")),
    "drainkit_lag_agrees": (
        "1 if both lags are the same, lost entries aside; NaN unknown",
        ("stream", "group"),
    ),
    "drainkit_lost_entries": (
        "Trimmed before the group read them (at least so many); NaN unknown",
        ("stream", "group"),
    ),
    "drainkit_oldest_age_seconds": (
        "Age of the oldest event of up to 5,000 undelivered, else of the first entry by its id; "
        "0 if none, NaN unknown",
        ("stream", "group"),
    ),
    "drainkit_oldest_pending_age_seconds": (
        "Age of the oldest pending entry; 0 if none, NaN unknown",
        ("stream", "group"),
    ),
    "drainkit_last_run_timestamp_seconds": (
        "End of the last live run, by the ledger",
        ("stream", "group", "outcome"),
    ),
    "drainkit_consumers": ("Consumers by state", ("stream", "group", "state")),
}
Families = dict[str, GaugeMetricFamily]


def families(report: Report) -> list[GaugeMetricFamily]:
    """The metrics of a report."""
    found = {
        name: GaugeMetricFamily(name, text, labels=labels)
        for name, (text, labels) in METRICS.items()
    }
    found["drainkit_up"].add_metric([], float(report.readable))
    found["drainkit_check_status"].add_metric([], report.exit_code)
    for state in report.states:
        _add_stream(found, state)
    return list(found.values())


def _add_stream(found: Families, state: StreamState) -> None:
    shown = state_as_dict(state)
    name = state.info.name
    found["drainkit_stream_entries"].add_metric([name], state.info.length)
    found["drainkit_stopped"].add_metric([name], float(state.switch is not None))
    for action, n in (state.audit_by_action or {}).items():
        found["drainkit_audit_entries"].add_metric([name, action], n)
    for end in state.last_ends:
        with suppress(ValueError):  # anybody can have written a time there
            at = dt.datetime.fromisoformat(end.at).timestamp()
            labels = [name, end.consumer_group, end.outcome]
            found["drainkit_last_run_timestamp_seconds"].add_metric(labels, at)
    for g, row in zip(shown["groups"], group_rows(shown), strict=True):
        _add_group(found, [name, row["group"]], row, g["consumers_by_state"])


def _add_group(
    found: Families, labels: list[str], row: Mapping[str, Any], consumers: Mapping[str, int]
) -> None:
    values = {
        "drainkit_pending_entries": row["pending"],
        "drainkit_lag_reported_entries": row["lag reported"],
        "drainkit_lag_counted_entries": row["undelivered"],
        "drainkit_lag_agrees": row["they agree"],
        "drainkit_lost_entries": row["lost"] and row["lost"]["entries"],
        "drainkit_oldest_age_seconds": _seconds(row["oldest, min"], row["undelivered"]),
        "drainkit_oldest_pending_age_seconds": _seconds(row["oldest pending, min"], row["pending"]),
    }
    for metric, value in values.items():
        found[metric].add_metric(labels, math.nan if value is None else float(value))
    for scope in ("undelivered", "pending", "history"):
        found["drainkit_backlog_entries"].add_metric([*labels, scope], row[scope])
    for kind, n in consumers.items():
        found["drainkit_consumers"].add_metric([*labels, kind], n)


def _seconds(minutes: float | None, entries: int) -> float | None:
    """An age; 0 where there is nothing that could have one."""
    return 0.0 if not entries else minutes and minutes * 60


def exposition(report: Report) -> bytes:
    """The metrics as text."""

    class Fixed(Collector):
        def collect(self) -> Iterable[GaugeMetricFamily]:
            return families(report)

    registry = CollectorRegistry()
    registry.register(Fixed())
    return generate_latest(registry)
