"""Live runs that the ledger knows the start of, but no end."""

from __future__ import annotations

import datetime as dt
import math
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from ..safe import one_line
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
    consumers: list[str]  # one, or one for each worker
    started_at: str  # ISO 8601 UTC
    done: int  # audit records of the run
    remaining: int  # of its scope up to its boundary, or of its budget
    events_per_sec: float  # since it started
    eta_sec: float | None  # None: nothing done yet, or it died
    silent_sec: float | None  # since one of its consumers was last seen; None: they are gone
    alive: bool  # False: its process is gone, or it has been silent for too long
    throttle: float | None = None  # its own, events per second; None: none
    held_to: float | None = None  # the lower throttle of another drain at work, which holds for all

    def line(self) -> str:
        """The drain as one safe line."""
        who = f"{one_line(self.run_id)} by {one_line(', '.join(self.consumers))}"
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
    runs: dict[str, list[ledger.Start]] = {}
    for start in open_runs.values():
        runs.setdefault(start.run_id, []).append(start)
    done = run_counts(server, set(runs), "run_id")
    found = []
    for run_id, starts in runs.items():
        with suppress(ValueError, ArithmeticError):
            found.append(_running(server, starts, done[run_id]))
    throttles = [run.throttle for run in found if run.alive and run.throttle is not None]
    lowest = min(throttles, default=math.inf)
    return [
        replace(run, held_to=lowest) if run.alive and lowest < (run.throttle or math.inf) else run
        for run in found
    ]


def _running(server: Server, starts: list[ledger.Start], done: int) -> RunningDrain:
    first = starts[0]
    names = [start.consumer for start in starts]
    group = reading.positions(server).get(first.consumer_group)
    left, silent_ms = 0, None
    if group is not None:
        left = _left_of(server, group, first, names)
        seen = [c.idle_ms for c in reading.consumers(server, group.name) if c.name in names]
        silent_ms = min(seen, default=None)
    budgets = [start.max_events for start in starts]
    if None not in budgets:
        left = min(left, max(0, sum(budget or 0 for budget in budgets) - done))
    begun = dt.datetime.fromisoformat(first.at).timestamp()
    rate = done / max(server.now_us() / 1e6 - begun, 1e-3)
    # below one event a minute a consumer is silent for longer than that, and well
    pause_ms = 0.0 if first.throttle is None else 3000 / first.throttle
    longest_ms = max(_GONE_MS if _are_gone(starts) else ACTIVE_MS, pause_ms)
    alive = silent_ms is not None and silent_ms < longest_ms
    return RunningDrain(
        run_id=first.run_id,
        consumer_group=first.consumer_group,
        consumers=names,
        started_at=first.at,
        done=done,
        remaining=left,
        events_per_sec=round(rate, 2),
        eta_sec=round(left / rate, 1) if rate and alive else None,
        silent_sec=None if silent_ms is None else silent_ms / 1000,
        alive=alive,
        throttle=first.throttle,
    )


def _are_gone(starts: Sequence[ledger.Start]) -> bool:
    """Whether the processes that began the run on this very machine have all ended."""
    return all(start.host == socket.gethostname() and _is_gone(start.pid) for start in starts)


def _is_gone(pid: int) -> bool:
    if pid <= 0:  # not told
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def _left_of(server: Server, group: Group, start: ledger.Start, names: Sequence[str]) -> int:
    """Entries of the run's scope that are not drained, counted."""
    boundary = start.boundary_id
    rows = reading.pending_ids(server, group.name, boundary, first=start.from_id)
    if start.scope == "pending":
        return sum(len(page) for page in rows)
    own = sum(row[1] in names for page in rows for row in page)
    first = reading.next_id(group.position)
    return own + counting.count_between(server, first, boundary)
