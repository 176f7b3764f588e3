"""The live drain, from plan to summary."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from ..core.audit import drift
from ..core.summary import Summary, close_with
from ..errors import DrainkitError, InterruptedRunError
from ..server import writing
from ..server.audit_log import run_records
from ..server.connection import Server
from .books import close_books, open_books, recount, write_ledger
from .job import Job, Progress, preflight
from .worker import Worker

if TYPE_CHECKING:
    import pyarrow as pa


def drain(
    server: Server,
    job: Job,
    *,
    stopping: threading.Event | None = None,
    on_progress: Progress | None = None,
) -> Summary:
    """Drain the scope for real; the summary also tells of a run that ended early (`error`).

    Raises only before anything was written. After that, whatever ends the run ends in its books.
    """
    preflight(server, job)
    summary, started = open_books(server, job)
    write_ledger(server, job, "start", summary)
    worker = Worker(server, job, summary, stopping or threading.Event(), on_progress)
    failure: DrainkitError | None = None
    try:
        if job.scope.name == "history":
            writing.open_history(server, job.scope.group)
        worker.run()
    except DrainkitError as error:
        failure = error
    except KeyboardInterrupt:  # a notebook's kernel: nothing set `stopping`
        server.close()
        worker.lose()
        worker.uncertain = True
        failure = InterruptedRunError("interrupted; run the same command again to go on")
    try:
        _settle(server, job, worker, failure)
        close_books(server, job, summary, started, failure)
        write_ledger(server, job, "end", summary)
    except DrainkitError as error:
        if failure is None:
            failure = error
        if worker.uncertain and summary.audit_records is None:
            failure.args = (f"{failure}; the last commit may have been done: counts are too low",)
        close_with(summary, started, failure)
    return summary


def _settle(server: Server, job: Job, worker: Worker, failure: DrainkitError | None) -> None:
    """After the loop: replies still under way into the books, and the history group closed."""
    if server.connected:
        worker.finish_replies()
    if not server.connected:
        server.reconnect()
    worker.outwait()
    if worker.uncertain:
        recount(server, job, worker.summary)
    if failure is None and job.scope.name == "history":
        writing.close_history(server, job.scope.group, job.scope.boundary)


def list_drift(server: Server, job: Job, decisions: pa.Table) -> list[dict[str, str]]:
    """What the run did otherwise than planned: id, planned and happened action."""
    planned = dict(zip(decisions["id"].to_pylist(), decisions["action"].to_pylist(), strict=True))
    records = list(run_records(server, {job.run_id}))
    return [
        {"id": entry, "planned": before, "happened": after}
        for entry, before, after in drift(planned, records)
    ]
