"""The state of streams as Prometheus metrics: printed, in a file for node_exporter, or served.

A lag that Redis does not know is NaN, which no alert takes for a number.
"""

from __future__ import annotations

import ipaddress
import math
import socket
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, generate_latest, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ..errors import DrainkitError, UsageError
from ..safe import one_line

if TYPE_CHECKING:
    from .checks import Report
    from .state import GroupState, StreamState

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
    "drainkit_lag_agrees": ("1 if both lags are the same; NaN unknown", ("stream", "group")),
    "drainkit_oldest_age_seconds": (
        "Age of the oldest undelivered entry; 0 if none, NaN unknown",
        ("stream", "group"),
    ),
    "drainkit_oldest_pending_age_seconds": (
        "Age of the oldest pending entry; 0 if none, NaN unknown",
        ("stream", "group"),
    ),
    "drainkit_consumers": ("Consumers by state", ("stream", "group", "state")),
}
Families = dict[str, GaugeMetricFamily]
Scrape = Callable[[], "Report"]


def families(report: Report | None) -> list[GaugeMetricFamily]:
    """The metrics of a report; None: there is none."""
    found = {
        name: GaugeMetricFamily(name, text, labels=labels)
        for name, (text, labels) in METRICS.items()
    }
    found["drainkit_up"].add_metric([], float(report is not None and report.readable))
    found["drainkit_check_status"].add_metric([], 3 if report is None else report.exit_code)
    for state in report.states if report else ():
        _add_stream(found, state)
    return list(found.values())


def _add_stream(found: Families, state: StreamState) -> None:
    name = state.info.name
    found["drainkit_stream_entries"].add_metric([name], state.info.length)
    found["drainkit_stopped"].add_metric([name], float(state.stopped is not None))
    for action, n in (state.audit_by_action or {}).items():
        found["drainkit_audit_entries"].add_metric([name, action], n)
    for g in state.groups:
        _add_group(found, name, g)


def _add_group(found: Families, name: str, g: GroupState) -> None:
    labels = [name, g.group.name]
    lag = g.group.lag_reported
    values = {
        "drainkit_pending_entries": g.group.pending,
        "drainkit_lag_reported_entries": math.nan if lag is None else lag,
        "drainkit_lag_counted_entries": g.undelivered,
        "drainkit_lag_agrees": math.nan if g.lag_agrees is None else float(g.lag_agrees),
        "drainkit_oldest_age_seconds": _age(g.oldest_age_sec, g.undelivered),
        "drainkit_oldest_pending_age_seconds": _age(g.oldest_pending_age_sec, g.group.pending),
    }
    for metric, value in values.items():
        found[metric].add_metric(labels, value)
    backlog = g.group.backlog
    for scope in ("undelivered", "pending", "history") if backlog else ():
        found["drainkit_backlog_entries"].add_metric([*labels, scope], getattr(backlog, scope))
    for kind, n in g.consumers.items():
        found["drainkit_consumers"].add_metric([*labels, kind], n)


def _age(age_sec: float | None, entries: int) -> float:
    return age_sec if age_sec is not None else (math.nan if entries else 0.0)


class _Scraper(Collector):
    """Reads anew at each scrape; a failure shows as drainkit_up 0."""

    def __init__(self, scrape: Scrape) -> None:
        self._scrape = scrape

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return []  # registering must not read the server

    def collect(self) -> Iterable[GaugeMetricFamily]:
        try:
            return families(self._scrape())
        except DrainkitError:
            return families(None)


def exposition(report: Report) -> bytes:
    """The metrics as text."""

    class Fixed(Collector):
        def collect(self) -> Iterable[GaugeMetricFamily]:
            return families(report)

    registry = CollectorRegistry()
    registry.register(Fixed())
    return generate_latest(registry)


def listen_address(text: str) -> tuple[str, int]:
    """HOST:PORT as two values; only loopback, since nobody has to log in there."""
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback or not port.isdecimal() or int(port) > 65535:
        raise UsageError(
            f"--listen {one_line(text)}: write HOST:PORT with a loopback address, 127.0.0.1:9877"
        )
    return "127.0.0.1" if host == "localhost" else host, int(port)


class _Handler(WSGIRequestHandler):
    timeout = 5  # seconds for a client that connects and says nothing; scrapes come one by one

    def log_message(self, *_: object) -> None:
        """A scrape every few seconds is no news."""


def serve(address: tuple[str, int], scrape: Scrape, stopping: threading.Event) -> None:
    """Serve the metrics until `stopping` is set; each scrape reads the server anew."""
    registry = CollectorRegistry()
    registry.register(_Scraper(scrape))

    class Httpd(WSGIServer):
        address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        timeout = 0.2

    try:
        httpd = make_server(*address, make_wsgi_app(registry), Httpd, _Handler)
    except OSError as error:
        reason = one_line(error.strerror or "cannot be used")
        raise UsageError(f"--listen port {address[1]}: {reason}; choose another") from None
    with httpd:
        while not stopping.is_set():
            httpd.handle_request()
