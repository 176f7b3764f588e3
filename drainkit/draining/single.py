"""A live drain by one worker: its books, its worker, and what ends it."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import replace

from ..core.summary import Summary
from ..errors import DrainkitError, InterruptedRunError
from ..server import scopes, writing
from ..server.connection import Server
from . import vanished
from .books import Books
from .job import Job, Progress, preflight
from .worker import Worker


def drain(
    server: Server,
    job: Job,
    *,
    stopping: threading.Event | None = None,
    on_progress: Progress | None = None,
) -> Summary:
    """Drain the scope by one worker; the summary also tells of a run that ended early (`error`).

    Raises only before anything was written. After that, whatever ends the run ends in its books.
    """
    preflight(server, job)
    books = Books.opened(server, job)
    books.note_start()
    summary = books.summary
    worker = Worker(server, job, summary, stopping or threading.Event(), on_progress)
    failure: DrainkitError | None = None
    try:
        if job.scope.name == "history":
            writing.open_history(server, job.scope)
        worker.run()
    except DrainkitError as error:
        failure = error
    except KeyboardInterrupt:  # a notebook's kernel: nothing set `stopping`
        server.close()
        worker.in_flight.mark_unknown()
        worker.in_flight.uncertain = True
        failure = InterruptedRunError("interrupted; run the same command again to go on")
    try:
        _settle(books, worker, failure)
        if worker.turns.changes is not None and not worker.in_flight.uncertain:
            summary.changes = worker.turns.changes.table()
        if not job.fellows:
            vanished.account(server, job, summary, worker.begun)
            if failure is None and (reason := vanished.unkept(server, job, summary)):
                failure = DrainkitError(reason)
        books.close(failure)
        books.note_end()
    except DrainkitError as error:
        if failure is None:
            failure = error
        if worker.in_flight.uncertain and summary.audit_records is None:
            failure.args = (f"{failure}; the last commit may have been done: counts are too low",)
        summary.close(failure, books.clock.now_us())
    return summary


def _settle(books: Books, worker: Worker, failure: DrainkitError | None) -> None:
    """After the loop: replies still in flight into the books, and the history group closed."""
    server, scope = books.server, books.job.scope
    if server.connected:
        worker.turns.finish()
    if not server.connected:
        server.reconnect()
    worker.in_flight.wait_out()
    if worker.in_flight.uncertain:
        books.recount()
    if failure is None and scope.name == "history" and not writing.close_history(server, scope):
        _close_behind_recorded(books)


def _close_behind_recorded(books: Books) -> None:
    """End the history group also where all that is left has its records from other scopes."""
    server, scope = books.server, books.job.scope
    now = scopes.current(server, scope)
    with closing(scopes.scope_entries(server, replace(now, boundary=scope.group_position))) as left:
        if next(left, None) is None:
            writing.close_history(server, replace(now, group_position=now.position))
