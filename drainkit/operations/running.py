"""Live runs that the ledger knows the start of, but no end."""

from __future__ import annotations

import datetime as dt
import math
import os
import socket
from contextlib import suppress
from dataclasses import dataclass, replace

from ..server import counting, ledger, reading
from ..server.audit_log import run_counts
from ..server.connection import Server
from ..server.reading import ACTIVE_MS, Group

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
    done = run_counts(server, {start.run_id for start in open_runs.values()}, "run_id")
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
        left = _left_of(server, group, start)
        there = reading.consumers(server, group.name)
        silent_ms = next((c.idle_ms for c in there if c.name == start.consumer), None)
    if start.max_events is not None:
        left = min(left, max(0, start.max_events - done))
    begun = dt.datetime.fromisoformat(start.at).timestamp()
    rate = done / max(server.now_us() / 1e6 - begun, 1e-3)
    # below one event a minute a consumer is silent for longer than that, and well
    pause_ms = 0.0 if start.throttle is None else 3000 / start.throttle
    longest_ms = max(_GONE_MS if _is_gone(start) else ACTIVE_MS, pause_ms)
    alive = silent_ms is not None and silent_ms < longest_ms
    return RunningDrain(
        start.run_id, start.consumer_group, start.consumer, start.at, done, left,
        events_per_sec=round(rate, 2),
        eta_sec=round(left / rate, 1) if rate and alive else None,
        silent_sec=None if silent_ms is None else silent_ms / 1000,
        alive=alive,
        throttle=start.throttle,
    )  # fmt: skip


def _is_gone(start: ledger.Start) -> bool:
    """Whether the process that began the run on this very machine has ended."""
    if start.pid > 0 and start.host == socket.gethostname():
        with suppress(PermissionError, OverflowError):
            try:
                os.kill(start.pid, 0)
            except ProcessLookupError:
                return True
    return False


def _left_of(server: Server, group: Group, start: ledger.Start) -> int:
    """Entries of the run's scope that are not drained, counted."""
    boundary = start.boundary_id
    rows = reading.pending_ids(server, group.name, boundary, first=start.from_id)
    if start.scope == "pending":
        return sum(len(page) for page in rows)
    own = sum(row[1] == start.consumer for page in rows for row in page)
    first = reading.next_id(group.position)
    return own + counting.count_between(server, first, boundary)
