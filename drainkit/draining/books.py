"""A run's books: opened, closed, recounted, and its entries in the run ledger."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter

from ..core.policy import ACTIONS
from ..core.summary import Summary, close_with
from ..core.timestamps import iso
from ..errors import DrainkitError
from ..safe import one_line
from ..server import scopes, writing
from ..server.audit_log import run_records
from ..server.connection import Server
from .job import Job


def recount(server: Server, job: Job, summary: Summary) -> None:
    """Take the counts from the audit itself, where a reply with them was lost."""
    counts = Counter(record.action for record in run_records(server, {job.run_id}))
    for action in ACTIONS:
        setattr(summary, action, counts[action])
    summary.total_read = summary.audit_records = sum(counts.values())


def open_books(server: Server, job: Job) -> tuple[Summary, int]:
    started = server.now_us()
    scope = job.scope
    summary = Summary(
        run_id=job.run_id,
        mode=job.settings.mode,
        scope=scope.name,
        stream=job.settings.stream,
        consumer_group=job.settings.consumer_group,
        boundary_id=scope.boundary,
        started_at=iso(started),
        plan_digest=job.plan_digest,
    )
    return summary, time.monotonic_ns()


def close_books(
    server: Server, job: Job, summary: Summary, started: int, failure: DrainkitError | None
) -> None:
    scope = scopes.current(server, job.scope)
    if scope.group_exists or scope.name == "history":  # else nobody knows what was delivered
        summary.remaining = scopes.remaining(server, scope)
    summary.pending_own = sum(len(ids) for ids in scopes.own_ids(server, scope))
    budget = job.max_events
    exhausted = budget is None or summary.total_read < budget
    if failure is None and job.settings.mode == "live" and exhausted and summary.pending_own:
        failure = DrainkitError(
            f"the books do not balance: {summary.pending_own} entries are still pending for "
            f"{one_line(scope.consumer)}; run the same command again"
        )
    close_with(summary, started, failure)
    summary.finished_at = iso(server.now_us())


def write_ledger(server: Server, job: Job, event: str, summary: Summary) -> None:
    settings = job.settings
    fields: dict[str, object] = {
        "event": event,
        "run_id": job.run_id,
        "scope": job.scope.name,
        "consumer_group": job.scope.group,
        "consumer": job.scope.consumer,
        "boundary_id": job.scope.boundary,
    }
    if event == "start":
        fields |= {
            "throttle": "none" if settings.throttle is None else settings.throttle,
            "max_events": "all" if settings.max_events is None else settings.max_events,
            "plan_digest": job.plan_digest or "",
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
    else:
        fields |= {"outcome": summary.outcome, "total_read": summary.total_read}
        fields |= {action: getattr(summary, action) for action in ACTIONS}
        fields["remaining"] = summary.remaining
    fields["at"] = iso(server.now_us())
    writing.add_to_ledger(server, fields)
