"""One run by several workers: they share group, boundary, pace and books; each has a consumer.

The server keeps the pace of all drains of a stream together and hands each entry to one consumer
only, so workers need no word with one another. They are threads with a connection each: what they
wait for is the server and the pace.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from ..core.summary import Summary, combined
from ..core.timestamps import iso
from ..errors import DrainkitError, UsageError
from ..server import scopes
from ..server.connection import Server
from .books import recount
from .job import Job, Progress, preflight
from .live import drain

MAX_WORKERS = 64


def drain_with_workers(
    server: Server,
    job: Job,
    workers: int,
    *,
    stopping: threading.Event | None = None,
    on_progress: Progress | None = None,
) -> Summary:
    """Drain the job's scope with so many workers; one summary of all of them.

    Raises only before anything was written, as `drain` does.
    """
    if not 1 <= workers <= MAX_WORKERS:
        raise UsageError(f"--workers takes 1 to {MAX_WORKERS}")
    if workers == 1:
        return drain(server, job, stopping=stopping, on_progress=on_progress)
    if job.scope.name == "history":
        raise UsageError("--workers: scope history is drained by one worker; leave it out")
    jobs = list(split(job, workers))
    preflight(server, jobs[0])
    started, started_us = time.monotonic(), server.now_us()
    common = _Progress(on_progress)
    with ThreadPoolExecutor(len(jobs), thread_name_prefix="drain") as pool:
        running = [pool.submit(_work, one, stopping, common) for one in jobs]
        parts = [future.result() for future in running]
    summary = combined(parts)
    elapsed_us = int((time.monotonic() - started) * 1e6)
    summary.started_at, summary.finished_at = iso(started_us), iso(started_us + elapsed_us)
    summary.elapsed_sec = round(elapsed_us / 1e6, 3)
    try:
        if any(part.audit_records is not None for part in parts):
            recount(server, job, summary)  # a worker that recounted saw the whole run's records
        _count_what_is_left(server, jobs, summary)
    except DrainkitError as error:
        if not summary.exit_code:
            summary.outcome, summary.exit_code = "failed", error.exit_code
            summary.error, summary.errors = str(error), 1
    summary.events_per_sec = round(summary.total_read / max(summary.elapsed_sec, 1e-3), 2)
    return summary


def names_of(first: str, workers: int) -> list[str]:
    """The workers' consumers: backlog_drain_1, _2, ...; the first is the one-worker drain's own."""
    match = re.fullmatch(r"(.*_)(\d{1,9})", first, re.ASCII | re.DOTALL)
    stem, start = (match[1], int(match[2])) if match else (f"{first}_", 1)
    return [first, *(f"{stem}{start + i}" for i in range(1, workers))]


def split(job: Job, workers: int) -> Iterator[Job]:
    """One job for each worker: its own consumer, its part of the budget, the others as fellows."""
    budget = job.max_events
    if job.plan_ids is None and budget is not None:
        workers = min(workers, budget)
    names = names_of(job.scope.consumer, workers)
    for i, name in enumerate(names):
        settings = job.settings
        if job.plan_ids is None and budget is not None:
            share = budget // workers + (i < budget % workers)
            settings = settings.model_copy(update={"max_events": share})
        yield replace(
            job,
            settings=settings,
            scope=replace(job.scope, consumer=name),
            fellows=frozenset(names),
        )


def _work(job: Job, stopping: threading.Event | None, common: _Progress) -> Summary:
    try:
        with Server.of(job.settings) as server:
            return drain(server, job, stopping=stopping, on_progress=common.tick)
    except DrainkitError as error:  # before its first write; the others may have begun
        return Summary(
            run_id=job.run_id, mode="live", scope=job.scope.name, stream=job.settings.stream,
            consumer_group=job.settings.consumer_group, boundary_id=job.scope.boundary,
            outcome="failed", exit_code=error.exit_code, error=str(error), errors=1,
        )  # fmt: skip


class _Progress:
    """Shows the sum of what the workers have done so far."""

    def __init__(self, show: Progress | None) -> None:
        self._show = show
        self._latest: dict[int, Summary] = {}
        self._one = threading.Lock()

    def tick(self, summary: Summary) -> None:
        if self._show is not None:
            with self._one:
                self._latest[id(summary)] = summary
                self._show(combined(list(self._latest.values())))


def _count_what_is_left(server: Server, jobs: list[Job], summary: Summary) -> None:
    """Entries of the scope that nobody drained, what the workers themselves left pending too."""
    places = [scopes.current(server, job.scope) for job in jobs]
    own = [
        sum(len(ids) for ids in scopes.own_ids(server, scope))
        for job, scope in zip(jobs, places, strict=True)
    ]
    summary.remaining = scopes.remaining(server, places[0]) + sum(own[1:])
    summary.pending_own = sum(own)
