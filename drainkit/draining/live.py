"""The live drain: `apply` is the one way from an opened run to its closed books."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Collection
from contextlib import closing
from dataclasses import replace

from ..core.reconciliation import Recorded, drift_counts, drift_table
from ..core.summary import Summary
from ..core.values import iso
from ..errors import DrainkitError, InterruptedRunError, UnreachableError
from ..ids import id_key, next_id
from ..late import pa, pc
from ..safe import text
from ..server import ledger, recorded, scopes, writing
from ..server.connection import Server
from ..server.ledger import run_tables
from ..server.reading import pages
from ..server.scopes import Seen, look
from .loop import INTERRUPTED, LOST, Loop
from .plan_files import PlanFile
from .run import Progress, Run, done_of_plan, preflight

VANISHED = "deleted by others before it could be delivered"


def apply(
    run: Run,
    seen: Seen | None = None,
    *,
    stopping: threading.Event | None = None,
    on_progress: Progress | None = None,
) -> Summary:
    """Drain the run's scope, and hold the outcome against the plan.

    `seen`: what `run.check` returned just before.
    Raises only before anything was written. After that, whatever ends the run ends in its books.
    """
    ready = preflight(run, seen, rate=run.settings.throttle)
    notes, seen, server = ready.notes, ready.seen, run.server
    if run.planned is not None and run.to_drain is not None and not run.to_drain.count:
        for start in ledger.starts_of(server, run.planned.plan.digest)[-1:]:
            notes.append(f"this plan was applied already by {start.run_id} at {start.at}")
    run.begin().notes = notes or None
    scope, settings = run.scope, run.settings
    run.start = ledger.Start(
        run_id=run.run_id, scope=scope.name, consumer_group=scope.group, consumer=scope.consumer,
        boundary_id=scope.boundary, throttle=settings.throttle, max_events=settings.max_events,
        plan_digest=run.planned.plan.digest if run.planned else "", at=iso(server.clock_us()),
        host=socket.gethostname(), pid=os.getpid(), operator=settings.operator,
        approvers=",".join(run.approvers), from_id=scope.first, folder=run.folder,
        audit_id=seen.audit.boundary_id, audit_stream=settings.audit_stream or "",
    )  # fmt: skip
    writing.add_to_ledger(server, run.start)
    stopping = stopping or threading.Event()
    loop = Loop(run, ready, stopping=stopping, on_progress=on_progress)
    failure: DrainkitError | None = None
    try:
        if run.scope.name == "history":
            writing.open_history(server, run.scope)
        loop.run()
    except DrainkitError as error:
        failure = error
        loop.finish()
    except KeyboardInterrupt:  # a notebook's kernel: nothing set `stopping`
        server.close()
        loop.mark_unknown()
        loop.uncertain = True
        failure = InterruptedRunError(INTERRUPTED)
    _close(run, loop, seen, failure)
    return run.summary


def _close(run: Run, loop: Loop, begun: Seen, failure: DrainkitError | None) -> None:
    """Close the books: what came out, what is left, what ended the run; the ledger gets it too."""
    server, summary = run.server, run.summary
    try:
        failure = _settle(run, loop, failure)
        if run.planned is not None and not loop.uncertain:
            summary.changes = pa.concat_tables([drift_table(), *loop.changes])
        seen = look(server, run.scope)
        left = _account(run, begun, seen)
        then, now = begun.audit, seen.audit
        is_kept = (
            now.length >= then.length + summary.total_read
            and id_key(now.boundary_id) >= id_key(loop.audit_id)
            and (now.gone or 0) <= (then.gone or 0)
        )
        if left:
            failure = failure or DrainkitError(
                f"entries of the plan not drained: {left:,}; somebody else took or acknowledged "
                "them during the run; see remaining, and make a new plan"
            )
        elif not is_kept:
            failure = failure or DrainkitError(writing.FAILURES["unaudited"])
        try:
            if run.planned is not None:
                note_drift(summary, _drift(run, run.planned))
        except DrainkitError as error:
            failure = failure or error
        exhausted = run.max_events is None or summary.total_read < run.max_events
        if exhausted and summary.pending_own:
            failure = failure or DrainkitError(
                f"the books do not balance: {summary.pending_own} entries are still pending for "
                f"{run.scope.consumer}; run the same command again"
            )
        summary.close(failure, server.clock_us())
        at = iso(server.clock_us())
        ledger.note_end(server, run.start, summary, at, vanished=summary.vanished)
    except DrainkitError as error:
        failure = failure or error
        if summary.audit_records is None and (loop.uncertain or not server.connected):
            summary.is_counted = False
            failure.args = (f"{failure}; what was recorded is not known: see the audit stream",)
        summary.close(failure, server.clock_us())


def _settle(run: Run, loop: Loop, failure: DrainkitError | None) -> DrainkitError | None:
    """After the loop: is the server still the one, and the history group at its end?

    Where the data may have gone back the audit that is there now is counted; if it lacks records of
    this run, that is what failed.
    """
    server, scope, summary = run.server, run.scope, run.summary
    server.reconnect()
    is_same = server.takeovers == loop.takeovers
    if loop.uncertain:
        loop.wait_out()
    if loop.uncertain or not is_same:
        counted = summary.total_read
        ledger.recount(server, summary)
        if summary.total_read < counted:
            lost = UnreachableError(f"{LOST}: {counted - summary.total_read:,} records are lost")
            failure = failure or lost
    if failure is None and scope.name == "history" and not writing.close_history(server, scope):
        # also where all that is left has its records from other scopes
        now = scopes.current(server, scope)
        whole = replace(now, boundary=scope.group_position)
        with closing(scopes.scope_entries(server, whole)) as left:
            if next(left, None) is None:
                writing.close_history(server, replace(now, group_position=now.position))
    return failure


# ------------------------------------------------------------ what was neither recorded nor left
# On a capped stream a producer deletes from the front all the time, also what is undelivered yet.
# A commit sees only what is deleted between its read and itself; the rest is told by counting. What
# was undelivered when the run began is recorded now, still undelivered, passed over, or vanished.


def _account(run: Run, begun: Seen, seen: Seen) -> int:
    """Set the summary's `remaining`, `pending_own`, `vanished` and `passed_over`; exact.

    `begun`, `seen`: how things stood before the first commit, and after the last. Audit and stream
    are read again only if the numbers leave something to explain. Returns how many entries of the
    plan are neither recorded nor vanished.
    """
    server, summary, undelivered = run.server, run.summary, None
    here = scopes.current(server, run.scope, seen)
    summary.pending_own = 0
    if here.group_exists or here.name == "history":  # else nobody knows what was delivered
        summary.remaining, summary.pending_own, undelivered = scopes.left(server, here, seen)
    if run.to_drain is not None:
        undone: set[str] = set()
        if summary.total_read < run.to_drain.count:
            undone = {*run.to_drain.entries.ids.to_pylist()} - {*done_of_plan(run).to_pylist()}
        gone_now = vanished_ids(run, undone)
        run.gone += gone_now
        summary.vanished = len(run.gone)
        return len(undone) - len(gone_now)
    if run.opening is None or undelivered is None:
        return 0
    position, had = run.opening
    is_done = not summary.remaining  # a group of scope history that has ended stands nowhere
    gone = had - (0 if is_done else undelivered)
    # what was pending for its own consumer was read too, but is not of these
    if gone == summary.total_read + summary.vanished and not begun.has_own:
        return 0
    first, last = next_id(position), run.scope.boundary
    owner, low, high = run.settings.consumer_group.encode(), id_key(first), id_key(last)
    audited = recorded.audited_ids(server).get(owner, set())
    known = {entry for entry in audited if low <= id_key(entry) <= high}
    passed = last if is_done else min(here.position, last, key=id_key)
    there = {entry[0] for page in pages(server, server.stream, first, passed) for entry in page}
    summary.passed_over = len(there - known)
    summary.vanished = max(0, gone - len(there | known))
    return 0


def vanished_ids(run: Run, lacking: Collection[str]) -> list[str]:
    """Those of a plan's entries without a record that are not in the stream any more."""
    if run.scope.name == "pending" or not lacking:
        return []
    ids, wanted = sorted(lacking, key=id_key), set(lacking)
    for page in pages(run.server, run.server.stream, ids[0], ids[-1]):
        wanted.difference_update(text(entry[0]) for entry in page)
    return [entry for entry in ids if entry in wanted]


# ------------------------------------------------------------ what came out otherwise than planned


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


def _drift(run: Run, planned: PlanFile) -> pa.Table:
    """What came out otherwise than planned (reconciliation.drift_table).

    From the drain's own decisions; from the audit where an outcome was unknown.
    """
    found = run.summary.changes
    if found is None:
        found = changes(run.server, planned, run.run_id)
    for block in planned.blocks(("id", "action")) if run.gone else ():
        gone = block.filter(pc.is_in(block["id"], value_set=pa.array(run.gone)))
        fate = [["vanished"] * len(gone), [VANISHED] * len(gone)]
        found = pa.concat_tables([found, drift_table(gone["id"], gone["action"], *fate)])
    return found


def changes(server: Server, planned: PlanFile, run_id: str) -> pa.Table:
    """What a run recorded otherwise than planned, by the audit."""
    recorded = Recorded(run_id, "", lambda: planned.blocks(("id", "action")))
    for part in run_tables(server, {run_id}):
        recorded.add(part)
    recorded.finish()
    return recorded.drift()
