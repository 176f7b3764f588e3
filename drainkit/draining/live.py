"""The live drain: `apply` is the one way from a job to its summary."""

from __future__ import annotations

import threading

from ..core.audit import drift
from ..core.summary import Summary
from ..errors import DrainkitError, UsageError
from ..server import ledger
from ..server.audit_log import run_records
from ..server.connection import Server
from .job import Job, Progress
from .single import drain
from .team import drain_together
from .vanished import vanished_ids

MAX_WORKERS = 64


def apply(
    server: Server,
    job: Job,
    *,
    workers: int = 1,
    stopping: threading.Event | None = None,
    on_progress: Progress | None = None,
) -> Summary:
    """Drain the job's scope, by one worker or several, and hold the outcome against the plan.

    Raises only before anything was written. After that, whatever ends the run ends in its books.
    """
    if not 1 <= workers <= MAX_WORKERS:
        raise UsageError(f"--workers takes 1 to {MAX_WORKERS}")
    if workers > 1 and job.scope.name == "history":
        raise UsageError("--workers: scope history is drained by one worker; leave it out")
    if workers == 1:
        summary = drain(server, job, stopping=stopping, on_progress=on_progress)
    else:
        summary = drain_together(server, job, workers, stopping=stopping, on_progress=on_progress)
    try:
        summary.drift = list_drift(server, job)
    except DrainkitError as error:
        summary.close(error, server.now_us() if server.connected else 0)
    return summary


def list_drift(server: Server, job: Job) -> list[dict[str, str]] | None:
    """What the run did otherwise than planned: id, planned and happened action; None: no plan."""
    if job.planned is None:
        return None
    table = job.planned.table
    planned = dict(zip(table["id"].to_pylist(), table["action"].to_pylist(), strict=True))
    runs = {start.run_id for start in ledger.starts_of(server, job.planned.plan.digest)}
    records = list(run_records(server, runs | {job.run_id}))
    done = {record.original_id for record in records}
    own = [record for record in records if record.run_id == job.run_id]
    gone = vanished_ids(server, job, [entry for entry in planned if entry not in done])
    rows = (*drift(planned, own), *((entry, planned[entry], "vanished") for entry in gone))
    return [{"id": entry, "planned": before, "happened": after} for entry, before, after in rows]
