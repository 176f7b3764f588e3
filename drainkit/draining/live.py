"""The live drain: `apply` is the one way from a job to its summary."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from ..core.reconciliation import Matching, drift_counts
from ..core.summary import Summary
from ..errors import DrainkitError, UsageError
from ..server import ledger
from ..server.audit_log import run_tables
from ..server.connection import Server
from .job import Job, Progress
from .plan_files import PlanFile
from .single import drain
from .team import drain_together
from .vanished import vanished_ids

if TYPE_CHECKING:
    import pyarrow as pa

MAX_WORKERS = 64
VANISHED = "deleted by others before it could be delivered"


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
        if (found := all_changes(server, job, summary)) is not None:
            note_drift(summary, found)
    except DrainkitError as error:
        summary.close(error, server.now_us() if server.connected else 0)
    return summary


def note_drift(summary: Summary, found: pa.Table) -> None:
    """Take what differs from the plan into the books.

    Raises DrainkitError, once it is noted, where an event passed though the plan had dropped it.
    """
    summary.changes, summary.drift = found, drift_counts(found)
    passed = sum(int(row["events"]) for row in summary.drift if row["happened"] == "drained_ok")
    if passed:
        raise DrainkitError(
            f"{passed:,} events passed that the plan had dropped; see the drift, and the server's "
            "clock"
        )


def all_changes(server: Server, job: Job, summary: Summary) -> pa.Table | None:
    """What came out otherwise than planned (core.reconciliation.DRIFT_COLUMNS); None: no plan.

    From the drain's own decisions; from the audit where an outcome was unknown.
    """
    if job.planned is None:
        return None
    import pyarrow as pa  # a drain without a plan has no use for its time and memory

    found = summary.changes
    if found is None:
        found = changes(server, job.planned, job.run_id)
    if not summary.vanished:
        return found
    runs = {start.run_id for start in ledger.starts_of(server, job.planned.plan.digest)}
    tables = run_tables(server, runs | {job.run_id})
    done = {entry for part in tables for entry in part["original_id"].to_pylist()}
    planned = job.planned.table(("id", "action"))
    actions = dict(zip(planned["id"].to_pylist(), planned["action"].to_pylist(), strict=True))
    gone = vanished_ids(server, job, [entry for entry in actions if entry not in done])
    rows = [(entry, actions[entry], "vanished", VANISHED) for entry in gone]
    more = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
    return pa.concat_tables([found, pa.table(more, found.schema)]) if rows else found


def changes(server: Server, planned: PlanFile, run_id: str) -> pa.Table:
    """What a run recorded otherwise than planned, by the audit."""
    matching = Matching(lambda: planned.blocks(("id", "action")))
    for part in run_tables(server, {run_id}):
        found = part.select(["original_id", "action", "reason"])
        matching.add(found.rename_columns(["id", "action", "reason"]))
    matching.finish()
    return matching.drift()
