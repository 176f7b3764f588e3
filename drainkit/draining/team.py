"""One run by several workers: they share group, boundary, pace and books; each has a consumer.

The server keeps the pace of all drains of a stream together and hands each entry to one consumer
only, so workers do not need to coordinate. They are threads with a connection each: what they
wait for is the server and the pace.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from ..core.summary import Summary
from ..errors import DrainkitError
from ..server import scopes
from ..server.connection import Clock, Server
from . import vanished
from .books import Books, recount
from .job import Job, Progress, preflight
from .single import drain


def drain_together(
    server: Server,
    job: Job,
    workers: int,
    *,
    stopping: threading.Event | None = None,
    on_progress: Progress | None = None,
) -> Summary:
    """Drain the job's scope by several workers; one summary of them all.

    Raises only before anything was written, as `drain` does.
    """
    import pyarrow as pa

    jobs = list(split(job, workers))
    preflight(server, jobs[0])
    books = Books.opened(server, job)
    begun = vanished.opening(server, job)
    common = _Progress(on_progress, books.clock, vanished.expected(server, job, begun))
    with ThreadPoolExecutor(len(jobs), thread_name_prefix="drain") as pool:
        running = [pool.submit(_work, one, stopping, common) for one in jobs]
        parts = [future.result() for future in running]
    summary = Summary.combined(parts)
    if all(part.changes is not None for part in parts):
        summary.changes = pa.concat_tables([part.changes for part in parts])
    summary.started_at, summary.finished_at = books.summary.started_at, ""
    failure: DrainkitError | None = None
    try:
        if any(part.audit_records is not None for part in parts):
            recount(server, summary)  # a worker that recounted saw the whole run's records
        vanished.account(server, job, summary, begun)
        _count_what_is_left(server, jobs, summary)
        if not summary.exit_code and (reason := vanished.unkept(server, job, summary)):
            failure = DrainkitError(reason)
        books.clock.sync(server.now_us())
    except DrainkitError as error:
        failure = error
    return summary.close(failure, books.clock.now_us())


def names_of(first: str, workers: int) -> list[str]:
    """The workers' consumers: backlog_drain_1, _2, ...; the first is the one-worker drain's own."""
    match = re.fullmatch(r"(.*_)(\d{1,9})", first, re.ASCII | re.DOTALL)
    stem, start = (match[1], int(match[2])) if match else (f"{first}_", 1)
    return [first, *(f"{stem}{start + i}" for i in range(1, workers))]


def split(job: Job, workers: int) -> Iterator[Job]:
    """One job for each worker: its own consumer, its part of the budget, the others as fellows."""
    budget = job.max_events
    if job.to_drain is None and budget is not None:
        workers = min(workers, budget)
    names = names_of(job.scope.consumer, workers)
    for i, name in enumerate(names):
        settings = job.settings
        if job.to_drain is None and budget is not None:
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
        now_us = common.clock.now_us()
        summary = Summary.opened(
            job.settings, run_id=job.run_id, boundary=job.scope.boundary, now_us=now_us
        )
        return summary.close(error, now_us)


class _Progress:
    """Shows the sum of what the workers have done so far."""

    def __init__(self, show: Progress | None, clock: Clock, expected: int) -> None:
        self.clock = clock
        self._expected = expected
        self._show = show
        self._latest: dict[int, Summary] = {}
        self._one = threading.Lock()

    def tick(self, summary: Summary) -> None:
        if self._show is not None:
            with self._one:
                self._latest[id(summary)] = summary
                all_of_them = Summary.combined(list(self._latest.values()))
                all_of_them.expected = self._expected
                self._show(all_of_them)


def _count_what_is_left(server: Server, jobs: list[Job], summary: Summary) -> None:
    """Entries of the scope that nobody drained, what the workers themselves left pending too."""
    places = [scopes.current(server, job.scope) for job in jobs]
    own = [
        sum(len(ids) for ids in scopes.own_ids(server, scope))
        for job, scope in zip(jobs, places, strict=True)
    ]
    summary.remaining = scopes.remaining(server, places[0]) + sum(own[1:])
    summary.pending_own = sum(own)
