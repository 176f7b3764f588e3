"""The live drain: `apply` is the one way from a job to its summary."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from ..core.reconciliation import Matching, drift_counts
from ..core.summary import Summary
from ..errors import DrainkitError, InterruptedRunError, UnreachableError
from ..server import audit_log, ledger, scopes, writing
from ..server.audit_log import run_tables
from ..server.connection import Server
from . import vanished
from .books import Books
from .job import Job, Progress, done_of_plan, preflight
from .loop import INTERRUPTED, LOST, Loop
from .plan_files import PlanFile
from .vanished import vanished_ids

if TYPE_CHECKING:
    import pyarrow as pa

VANISHED = "deleted by others before it could be delivered"


def apply(
    server: Server,
    job: Job,
    *,
    stopping: threading.Event | None = None,
    on_progress: Progress | None = None,
) -> Summary:
    """Drain the job's scope, and hold the outcome against the plan.

    Raises only before anything was written. After that, whatever ends the run ends in its books.
    """
    notes = preflight(server, job)
    if job.planned is not None and job.to_drain is not None and not job.to_drain.count:
        for start in ledger.starts_of(server, job.planned.plan.digest)[-1:]:
            notes.append(f"this plan was applied already by {start.run_id} at {start.at}")
    books = Books.opened(server, job)
    books.summary.notes = notes or None
    audit = audit_log.extent(server)
    books.note_start(audit.last_id)
    loop = Loop(
        server, job, books.summary, audit_id=audit.last_id,
        stopping=stopping or threading.Event(), on_progress=on_progress,
    )  # fmt: skip
    failure: DrainkitError | None = None
    try:
        if job.scope.name == "history":
            writing.open_history(server, job.scope)
        loop.run()
    except DrainkitError as error:
        failure = error
    except KeyboardInterrupt:  # a notebook's kernel: nothing set `stopping`
        server.close()
        loop.in_flight.mark_unknown()
        loop.in_flight.uncertain = True
        failure = InterruptedRunError(INTERRUPTED)
    _close(books, loop, audit, failure)
    return books.summary


def _close(
    books: Books, loop: Loop, audit: audit_log.Extent, failure: DrainkitError | None
) -> None:
    """Close the books: what came out, what is left, what ended the run; the ledger gets it too."""
    server, job, summary = books.server, books.job, books.summary
    try:
        failure = _settle(books, loop, failure)
        if loop.changes is not None and not loop.in_flight.uncertain:
            summary.changes = loop.changes.table()
        vanished.account(server, job, summary, loop.begun, *books.count_left())
        failure = failure or _unkept(server, job, summary, audit, loop.in_flight.audit_id)
        try:
            if (found := all_changes(server, job, summary)) is not None:
                note_drift(summary, found)
        except DrainkitError as error:
            failure = failure or error
        books.close(failure)
        books.note_end()
    except DrainkitError as error:
        failure = failure or error
        if summary.audit_records is None and (loop.in_flight.uncertain or not server.connected):
            summary.is_counted = False
            failure.args = (f"{failure}; what was recorded is not known: see the audit stream",)
        summary.close(failure, books.clock.now_us())


def _settle(books: Books, loop: Loop, failure: DrainkitError | None) -> DrainkitError | None:
    """After the loop: replies still in flight into the books, and the history group closed.

    Where the data may have gone back the audit that is there now is counted; if it lacks records of
    this run, that is what failed.
    """
    server, scope, summary = books.server, books.job.scope, books.summary
    if server.connected:
        loop.finish()
    is_same = server.recheck() == loop.in_flight.takeovers
    loop.in_flight.wait_out()
    if loop.in_flight.uncertain or not is_same:
        counted = summary.total_read
        books.recount()
        if summary.total_read < counted:
            lost = UnreachableError(f"{LOST}: {counted - summary.total_read:,} records are lost")
            failure = failure or lost
    if failure is None and scope.name == "history" and not writing.close_history(server, scope):
        _close_behind_recorded(books)
    return failure


def _close_behind_recorded(books: Books) -> None:
    """End the history group also where all that is left has its records from other scopes."""
    server, scope = books.server, books.job.scope
    now = scopes.current(server, scope)
    with closing(scopes.scope_entries(server, replace(now, boundary=scope.group_position))) as left:
        if next(left, None) is None:
            writing.close_history(server, replace(now, group_position=now.position))


def _unkept(
    server: Server, job: Job, summary: Summary, audit: audit_log.Extent, last_id: str
) -> DrainkitError | None:
    """What a run that came to its end must have kept: its plan, and the audit's records."""
    if reason := vanished.unkept(server, job, summary):
        return DrainkitError(reason)
    if not audit_log.extent(server).has_kept(audit, summary.total_read, last_id):
        return DrainkitError(writing.FAILURES["unaudited"])
    return None


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
    done = done_of_plan(server, job)
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
