"""What became of entries that a run neither recorded nor left: deleted, or passed over.

On a capped stream a producer deletes from the front all the time, also what is undelivered yet.
A commit sees only what is deleted between its read and itself; the rest is told by counting. What
was undelivered when the run began is recorded now, still undelivered, passed over, or vanished.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.entries import ToDrain
from ..core.summary import Summary
from ..server import recorded, scopes
from ..server.connection import Server
from ..server.reading import id_key, next_id, pages
from ..server.scope import Scope
from .job import Job, done_of_plan


@dataclass(frozen=True)
class Opening:
    """Where the group stood when the run began, and how many entries it had before it."""

    position: str
    undelivered: int  # up to the run's boundary


def opening(server: Server, job: Job) -> Opening | None:
    """Count before the first commit. None where nothing has to be counted.

    With a plan the entries are known by name; pending entries do not vanish, they are recorded as
    missing.
    """
    if job.scope.name == "pending" or job.to_drain is not None:
        return None
    here = scopes.current(server, job.scope)
    return Opening(here.position, scopes.undelivered(server, here))


def expected(server: Server, job: Job, begun: Opening | None) -> int:
    """How many events the run is to take, as counted when it begins."""
    if job.to_drain is not None:
        return job.max_events or 0
    here = scopes.current(server, job.scope)
    if begun is None or here.name == "history":  # it comes upon what is recorded already
        count = scopes.remaining(server, here)
    else:
        count = begun.undelivered + sum(len(ids) for ids in scopes.own_ids(server, here))
    return count if job.max_events is None else min(count, job.max_events)


def account(
    server: Server,
    job: Job,
    summary: Summary,
    begun: Opening | None,
    here: Scope,
    undelivered: int,
) -> None:
    """Set the summary's `vanished` and `passed_over`, after the last commit; exact.

    `here` and `undelivered` say where the scope stands after it, and how many entries it has left.

    The audit and the stream are read again only if the numbers leave something to explain.
    """
    if job.to_drain is not None:
        summary.vanished = len(job.trimmed) + len(vanished_of_plan(server, job, summary))
    if begun is None:
        return
    if not here.group_exists and here.name != "history":
        return  # without its group nobody knows what is undelivered
    gone = begun.undelivered - undelivered
    if gone == summary.total_read + summary.vanished:
        return
    first, last = next_id(begun.position), job.scope.boundary
    owner, low, high = job.settings.consumer_group.encode(), id_key(first), id_key(last)
    found = recorded.audited_ids(server).get(owner, set())
    known = {entry for entry in found if low <= id_key(entry) <= high}
    passed = min(here.position, last, key=id_key)
    there = {entry[0] for page in pages(server, server.stream, first, passed) for entry in page}
    summary.passed_over = len(there - known)
    summary.vanished = max(0, gone - len(there | known))


def vanished_of_plan(server: Server, job: Job, summary: Summary) -> set[str]:
    """Entries of the plan that have no record and are not in the stream any more."""
    if job.to_drain is None or summary.total_read >= job.to_drain.count:
        return set()
    return set(vanished_ids(server, job, sorted(_undone(server, job, job.to_drain))))


def _undone(server: Server, job: Job, to_drain: ToDrain) -> set[str]:
    return set(to_drain.entries.ids.to_pylist()) - done_of_plan(server, job)


def vanished_ids(server: Server, job: Job, lacking: Sequence[str]) -> list[str]:
    """Those of a plan's entries without a record that are not in the stream any more."""
    if job.scope.name == "pending" or not lacking:
        return []
    ids = sorted(lacking, key=id_key)
    there = scopes.there(server, [entry.encode() for entry in ids])
    return [entry for entry in ids if entry.encode() not in there]


def unkept(server: Server, job: Job, summary: Summary) -> str | None:
    """What the plan promised and no run of it, though this came to its end, did; None: nothing."""
    if job.to_drain is None:
        return None
    left = job.to_drain.count + len(job.trimmed) - summary.total_read - summary.vanished
    if left > 0:
        left = len(_undone(server, job, job.to_drain)) + len(job.trimmed) - summary.vanished
    if left <= 0:
        return None
    return (
        f"entries of the plan not drained: {left:,}; somebody else took or acknowledged them "
        "during the run; see remaining, and make a new plan"
    )
