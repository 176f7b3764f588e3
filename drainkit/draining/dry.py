"""The dry run: decides without a trace, and makes the plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..core.collection import collection_paused
from ..core.events import Events, decoder_of
from ..core.plan import VERSION, Plan, allowlist_notes, decisions_table, payload_hashes, seal
from ..core.policy import Decisions, decide
from ..core.summary import Summary
from ..core.timestamps import iso
from ..core.values import INVALID_REASONS, RawEntry
from ..files import write_json
from ..safe import text
from ..server import scopes
from ..server.connection import Server
from ..settings import Settings
from .books import Books
from .job import Job, Progress
from .plan_files import DecisionsWriter

if TYPE_CHECKING:
    import pyarrow as pa


def plan_run(
    server: Server,
    job: Job,
    path: Path | None,
    *,
    pages: Iterable[Page] | None = None,
    on_table: Callable[[pa.Table], None] | None = None,
    on_progress: Progress | None = None,
) -> tuple[Summary, Plan]:
    """A dry run and its plan, saved at `path` (None: nowhere) with its decisions as they come.

    `pages`: the entries, where they were read already. `on_table` gets each page's decisions too
    (plan.COLUMNS).
    """
    with DecisionsWriter(path) as out:

        def keep(page: Page, decisions: Decisions) -> None:
            table = decisions_table(page.hashes(), page.events, decisions, job.policy)
            out.add(table)
            if on_table:
                on_table(table)

        summary = dry_run(server, job, pages=pages, on_page=keep, on_progress=on_progress)
    plan = make_plan(server, job, summary, out)
    if path is not None:
        write_json(path, plan.to_json())
        summary.plan_path, summary.plan_digest = str(path), plan.digest
    return summary, plan


def make_plan(server: Server, job: Job, summary: Summary, decisions: DecisionsWriter) -> Plan:
    """The plan of a dry run, sealed with its digest."""
    settings, scope = job.settings, job.scope
    return seal(
        Plan(
            version=VERSION,
            run_id=job.run_id,
            created_at=summary.started_at,
            stream=settings.stream,
            consumer_group=settings.consumer_group,
            consumer_name=settings.consumer_name,
            scope=scope.name,
            position=scope.group_position,
            history_position=scope.position if scope.name == "history" else None,
            boundary_id=scope.boundary,
            policy=job.policy.as_dict(),
            throttle=settings.throttle,
            max_events=settings.max_events,
            as_of=None if settings.as_of_us is None else iso(settings.as_of_us),
            until=settings.until,
            from_=settings.from_,
            min_idle_min=settings.min_idle_min,
            from_consumer=list(settings.from_consumer),
            history_group=settings.history_group,
            audit_stream=text(server.keys.audit),
            environment=settings.env,
            server=summary.server or "",
            fields=settings.fields.as_dict(),
            decisions_sha256=decisions.sha256,
            **decisions.tally.said(),
        )
    )


def summary_of(server: Server, job: Job, plan: Plan) -> Summary:
    """The books of a plan that was made before; only what remains is counted anew."""
    books = Books.opened(server, job)
    books.summary.total_read = plan.total_read
    for action, events in plan.counts.items():
        setattr(books.summary, action, events)
    books.count_left()
    books.close(None)
    return books.summary


def turn_times_us(first: int, n: int, *, start_us: int, settings: Settings) -> np.ndarray:
    """When the throttled live run would decide events `first` to `first + n` (int64, us)."""
    if settings.as_of_us is not None:
        return np.full(n, settings.as_of_us, dtype=np.int64)
    if settings.throttle is None:
        return np.full(n, start_us, dtype=np.int64)
    turns = np.arange(first, first + n, dtype=np.float64) * (1e6 / settings.throttle)
    return start_us + turns.astype(np.int64)


@dataclass(frozen=True)
class Page:
    """Events of a dry run, with their entries as read, or else with the hashes of these."""

    events: Events
    entries: Sequence[RawEntry] = ()
    sha256: pa.Array | None = None

    def hashes(self) -> pa.Array:
        """The hash of each entry's payload."""
        return payload_hashes(self.entries) if self.sha256 is None else self.sha256


def read_pages(server: Server, job: Job) -> Iterator[Page]:
    """The entries of the job's scope, as many as it may take."""
    decoder, left = decoder_of(job.settings), job.max_events
    for page in scopes.scope_entries(server, job.scope):
        entries = page if left is None else page[:left]
        yield Page(decoder.decode(entries), entries)
        if left is not None:
            left -= len(entries)
            if left <= 0:
                return


@collection_paused()
def dry_run(
    server: Server,
    job: Job,
    *,
    pages: Iterable[Page] | None = None,
    on_page: Callable[[Page, Decisions], None] | None = None,
    on_progress: Progress | None = None,
) -> Summary:
    """Decide every entry of the scope as the live run would; writes nothing.

    `pages`: the same entries, where they were read already.
    """
    books = Books.opened(server, job)
    summary = books.summary
    start_us, invalid = server.now_us(), np.zeros(len(INVALID_REASONS), np.int64)
    symbols = set[str]()
    for page in read_pages(server, job) if pages is None else pages:
        times = turn_times_us(
            summary.total_read, len(page.events), start_us=start_us, settings=job.settings
        )
        decisions = decide(page.events, job.policy, times)
        summary.count(decisions)
        symbols |= page.events.symbols_here()
        invalid += np.bincount(page.events.invalid, minlength=len(INVALID_REASONS))
        if on_page:
            on_page(page, decisions)
        if on_progress:
            on_progress(summary)
        del page  # or two pages would be in memory
    summary.unreadable = {INVALID_REASONS[i]: int(invalid[i]) for i in np.flatnonzero(invalid) if i}
    summary.notes = allowlist_notes(job.policy.allowlist, symbols) or None
    books.count_left()
    books.close(None)
    return summary
