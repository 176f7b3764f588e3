"""One run from its opening to its end: what it was told, what it may take, its clock, its books."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ..core.audit import audit_ms
from ..core.frame import word_counts
from ..core.policy import ACTIONS, Policy
from ..core.reconciliation import ToDrain
from ..core.summary import Summary
from ..errors import DrainkitError
from ..server import ledger, scopes
from ..server.connection import Clock, Server
from ..server.ledger import run_tables
from ..server.scope import Scope
from ..server.scopes import Seen
from ..settings import Settings
from .plan_files import PlanFile

Progress = Callable[[Summary], None]


@dataclass(frozen=True)
class Opening:
    """Where the group stood when the run began, and how many entries it had before it."""

    position: str
    undelivered: int  # up to the run's boundary


@dataclass
class Run:
    """What a run needs, resolved once, and its books on the way (`opening.resolve` makes it)."""

    server: Server
    settings: Settings
    scope: Scope
    policy: Policy
    run_id: str
    clock: Clock
    planned: PlanFile | None = None  # live with a plan
    to_drain: ToDrain | None = None  # live with a plan: these entries and no others
    gone: list[str] = field(default_factory=list)  # of the plan, deleted before it was their turn
    approvers: Mapping[str, str] = field(default_factory=dict)  # who signed the plan: their keys
    opening: Opening | None = None  # as counted just before the drain
    folder: str = ""  # where its evidence will be sealed; "": it leaves none
    summary: Summary = field(init=False)
    start: ledger.Start = field(init=False)  # as the ledger has it

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> Summary:
        """Open the books: the run begins now."""
        self.summary = Summary.opened(
            self.settings,
            run_id=self.run_id,
            boundary=self.scope.boundary,
            now_us=self.clock.now_us(),
            plan_digest=self.planned.plan.digest if self.planned else None,
            approvers=self.approvers,
        )
        return self.summary

    def rehearsal(self) -> Run:
        """The dry run of what this live run would do."""
        return replace(self, settings=self.settings.model_copy(update={"mode": "dry-run"}))

    @property
    def max_events(self) -> int | None:
        """How many events this run may take; with a plan, just the plan's."""
        return self.settings.max_events if self.to_drain is None else self.to_drain.count

    def new_deadline_us(self) -> int:
        """When a request sent now will be given up; the server refuses it after that."""
        return self.clock.now_us() + round(self.server.reply_timeout_sec * 1e6)

    def count_first(self, seen: Seen) -> None:
        """Before the first commit: what is undelivered, and how many events the run is to take.

        With a plan the entries are known by name; pending entries do not vanish, they are recorded
        as missing.
        """
        if self.to_drain is not None:
            self.summary.expected = self.to_drain.count
            return
        here = scopes.current(self.server, self.scope, seen)
        if here.name != "pending" and self.opening is None:
            self.opening = Opening(here.position, scopes.undelivered(self.server, here, seen))
        if self.opening is None or here.name == "history":  # it comes upon what is recorded already
            count = scopes.remaining(self.server, here)
        else:
            own = scopes.own_ids(self.server, here) if seen.has_own else ()
            count = self.opening.undelivered + sum(map(len, own))
        self.summary.expected = min(count, self.max_events or count)

    def count_left(self, seen: Seen | None = None) -> tuple[Scope, int]:
        """Count what is left; returns where the scope stands now, and what is undelivered."""
        scope = scopes.current(self.server, self.scope, seen)
        if not scope.group_exists and scope.name != "history":
            self.summary.pending_own = 0
            return scope, 0  # without its group nobody knows what was delivered
        left = scopes.left(self.server, scope, seen)
        self.summary.remaining, self.summary.pending_own = left.fresh, left.own
        return scope, left.undelivered

    def close(self, failure: DrainkitError | None) -> Summary:
        """Close, once what is left was counted; entries pending for the drain are a failure."""
        summary = self.summary
        exhausted = self.max_events is None or summary.total_read < self.max_events
        if failure is None and summary.mode == "live" and exhausted and summary.pending_own:
            failure = DrainkitError(
                f"the books do not balance: {summary.pending_own} entries are still pending for "
                f"{self.scope.consumer}; run the same command again"
            )
        return summary.close(failure, self.clock.now_us())


def note_end(server: Server, start: ledger.Start, summary: Summary, at: str, **more: int) -> None:
    """The ledger's entry that the books of a run are closed."""
    end = ledger.End(
        run_id=start.run_id,
        scope=start.scope,
        consumer_group=start.consumer_group,
        consumer=start.consumer,
        boundary_id=start.boundary_id,
        outcome=summary.outcome,
        total_read=summary.total_read,
        remaining="" if summary.remaining is None else str(summary.remaining),
        at=at,
        operator=start.operator,
        **{action: getattr(summary, action) for action in ACTIONS},
        **more,
    )
    ledger.append(server, end)


def recount(server: Server, summary: Summary) -> None:
    """Take a run's counts, and its pace, from the audit itself."""
    counts: Counter[str] = Counter()
    summary.pace = type(summary.pace)()
    for part in run_tables(server, {summary.run_id}):
        counts.update(word_counts(part["action"]))
        times, records = np.unique(audit_ms(part), return_counts=True)
        for ms, n in zip(times.tolist(), records.tolist(), strict=True):
            summary.pace.note(ms, n)
    for action in ACTIONS:
        setattr(summary, action, counts[action])
    summary.total_read = summary.audit_records = sum(counts.values())
    summary.events_per_sec = summary.pace.events_per_sec()
