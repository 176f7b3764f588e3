"""A run's books at the server: opened, closed, recounted, and its entries in the run ledger."""

from __future__ import annotations

import os
import socket
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.audit import audit_ms
from ..core.policy import ACTIONS
from ..core.summary import Summary
from ..core.timestamps import iso
from ..errors import DrainkitError
from ..server import ledger, scopes
from ..server.audit_log import run_tables, values_of
from ..server.connection import Clock, Server
from ..server.scope import Scope
from .job import Job


@dataclass
class Books:
    """The summary of a run on its way, and the clock that its times come from."""

    server: Server
    job: Job
    summary: Summary
    clock: Clock

    @classmethod
    def opened(cls, server: Server, job: Job) -> Books:
        """Books of a run that begins now."""
        clock = Clock(server.now_us())
        summary = Summary.opened(
            job.settings,
            run_id=job.run_id,
            boundary=job.scope.boundary,
            now_us=clock.now_us(),
            plan_digest=job.plan_digest,
            approvers=job.approvers,
        )
        return cls(server, job, summary, clock)

    def count_left(self) -> tuple[Scope, int]:
        """Count what is left; returns where the scope stands now, and what is undelivered."""
        scope = scopes.current(self.server, self.job.scope)
        undelivered = 0
        if scope.group_exists or scope.name == "history":  # else nobody knows what was delivered
            self.summary.remaining, undelivered = scopes.left(self.server, scope)
        self.summary.pending_own = sum(len(ids) for ids in scopes.own_ids(self.server, scope))
        return scope, undelivered

    def close(self, failure: DrainkitError | None) -> None:
        """Close, once what is left was counted; entries pending for the drain are a failure."""
        job, summary = self.job, self.summary
        exhausted = job.max_events is None or summary.total_read < job.max_events
        if failure is None and summary.mode == "live" and exhausted and summary.pending_own:
            failure = DrainkitError(
                f"the books do not balance: {summary.pending_own} entries are still pending for "
                f"{job.scope.consumer}; run the same command again"
            )
        self.clock.sync(self.server.now_us())
        summary.close(failure, self.clock.now_us())

    def recount(self) -> None:
        """Take the counts from the audit itself, where a reply with them was lost."""
        recount(self.server, self.summary)

    def note_start(self, audit_id: str) -> None:
        """The ledger's entry that this run begins, after the audit's id `audit_id`."""
        job, settings = self.job, self.job.settings
        self._note(
            ledger.Start,
            throttle=settings.throttle,
            max_events=settings.max_events,
            plan_digest=job.plan_digest or "",
            host=socket.gethostname(),
            pid=os.getpid(),
            approvers=",".join(job.approvers),
            from_id=job.scope.first,
            audit_id=audit_id,
            audit_stream=settings.audit_stream or "",
            folder=job.folder,
        )

    def note_end(self) -> None:
        """The ledger's entry that its books are closed."""
        summary = self.summary
        self._note(
            ledger.End,
            outcome=summary.outcome,
            total_read=summary.total_read,
            vanished=summary.vanished,
            remaining="" if summary.remaining is None else str(summary.remaining),
            **{action: getattr(summary, action) for action in ACTIONS},
        )

    def _note(self, kind: type[ledger.Start | ledger.End], **more: Any) -> None:
        job, scope = self.job, self.job.scope
        entry = kind(
            run_id=job.run_id, scope=scope.name, consumer_group=scope.group,
            consumer=scope.consumer, boundary_id=scope.boundary, at=iso(self.server.now_us()),
            operator=job.settings.operator, **more,
        )  # fmt: skip
        ledger.append(self.server, entry)


def recount(server: Server, summary: Summary) -> None:
    """Take a run's counts, and its pace, from the audit itself."""
    counts: Counter[str] = Counter()
    summary.pace = type(summary.pace)()
    for part in run_tables(server, {summary.run_id}):
        counts.update(values_of(part["action"]))
        times, records = np.unique(audit_ms(part), return_counts=True)
        for ms, n in zip(times.tolist(), records.tolist(), strict=True):
            summary.pace.note(ms, n)
    for action in ACTIONS:
        setattr(summary, action, counts[action])
    summary.total_read = summary.audit_records = sum(counts.values())
    summary.events_per_sec = summary.pace.events_per_sec()
