"""Unattended runs: only above a backlog, one at a time for each group, within written limits.

The lease keeps scheduled runs from piling up, nothing more: whatever becomes of it, drains that run
side by side neither lose nor double an entry (commit.lua sees to that).
"""

from __future__ import annotations

import secrets
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial

import numpy as np

from ..core.policy import ACTIONS, Policy
from ..errors import DrainkitError, RefusedError
from ..ids import next_id
from ..late import pa
from ..server import scopes, writing
from ..server.connection import Server
from ..server.counting import count
from ..server.scopes import Seen
from ..server.topology import check_primary
from ..settings import Limits, Settings
from .dry import dry_run, turn_times_us
from .plan_files import PlanFile
from .run import Run, check

LEASE_MS = 60_000  # a run that died blocks the next ones for at most this long
RENEW_SEC = 15.0
MANY_UNREADABLE = 20  # events; fewer of them bury nothing


@contextmanager
def turn(settings: Settings, *, over: int) -> Iterator[str | None]:
    """Yields why a scheduled run has nothing to do, or None while it is its turn.

    A live run needs every limit in drainkit.toml, and holds the group's lease. Raises RefusedError
    without limits, or where a given plan goes beyond them.
    """
    if settings.mode == "live":
        require_limits(settings.limits)
    ended = threading.Event()
    with Server.of(settings) as server:
        left = scopes.remaining(server, scopes.open_scope(server, settings))
        if left <= over:
            yield f"nothing to do: the backlog of {left:,} is not over {over:,}"
            return
        if settings.mode == "dry-run":
            yield None
            return
        check_primary(server.info)
        lease = partial(writing.hold_lease, server, settings.drain_group, secrets.token_hex(8))
        if held_ms := lease(LEASE_MS):
            yield (
                "nothing to do: another scheduled run of this group is at work (its lease ends in "
                f"{held_ms / 1000:.0f} s, if it does not renew it)"
            )
            return

        def renew() -> None:
            while not ended.wait(RENEW_SEC):
                with suppress(DrainkitError):
                    lease(LEASE_MS)

        renewing = threading.Thread(target=renew, daemon=True)
        renewing.start()
        try:
            yield None
        finally:
            ended.set()
            renewing.join()
            with suppress(DrainkitError):
                lease(0)


def require_limits(limits: Limits) -> None:
    """Refuse an unattended live run that nobody has set limits for."""
    missing = [name for name, value in limits if value is None]
    if missing:
        raise RefusedError(
            f"an unattended live run needs [limits] in drainkit.toml; add {', '.join(missing)}"
        )


def check_limits(limits: Limits, counts: Mapping[str, int], *, drift: int = 0) -> None:
    """Refuse a plan that goes beyond the limits; `counts` are its events by action."""
    total = sum(counts.get(action, 0) for action in ACTIONS)
    for name, value, limit in (
        ("max_events", total, limits.max_events),
        ("max_drained_ok", counts.get("drained_ok", 0), limits.max_drained_ok),
        ("max_drift", drift, limits.max_drift),
    ):
        if limit is not None and value > limit:
            raise RefusedError(
                f"beyond the limits of drainkit.toml: {name} is {limit:,}, this run would be "
                f"{value:,}; nothing was drained"
            )


def check_readable(settings: Settings, entries: int, unreadable: Mapping[str, int]) -> None:
    """Refuse to drain what is mostly not understood: a wrong mapping would bury the backlog.

    `unreadable` are the events by what is wrong with them, whichever filter drops them first.
    """
    odd = sum(unreadable.values())
    if odd < MANY_UNREADABLE or odd * 5 <= entries or settings.allow_invalid:
        return
    reasons = ", ".join(f"{reason} ({n:,})" for reason, n in unreadable.items())
    raise RefusedError(
        f"{odd:,} of {entries:,} events cannot be read: {reasons}; drainkit fields shows what "
        "would help; --allow-invalid acknowledges them all the same"
    )


def check_run(run: Run) -> Seen | None:
    """What holds back a live drain that no person was asked about.

    Returns what `check` found, unless a long look over the backlog came after it.
    """
    settings, seen = run.settings, check(run)  # what would be refused is refused before that look
    if run.planned is not None:
        check_planned(run.server, settings, run.planned)
        return None
    if all(value is None for _, value in settings.limits):
        few = min(seen.info.length, run.max_events or sys.maxsize)
        scope = scopes.current(run.server, run.scope, seen)
        if few >= MANY_UNREADABLE and scope.name == "undelivered" and not seen.has_own:
            first, most = next_id(scope.position), MANY_UNREADABLE - 1
            few, is_all = count(run.server, seen.info, first, scope.boundary, most=most)
            run.opening = (scope.position, few) if is_all else None  # counted for good
        if few < MANY_UNREADABLE or settings.allow_invalid:  # too few could hold it back
            return seen
    found = dry_run(run.rehearsal())
    check_readable(settings, found.total_read, found.unreadable)
    check_limits(settings.limits, vars(found))
    return None


def check_planned(server: Server, settings: Settings, planned: PlanFile) -> None:
    """What holds back a live drain of a plan that no person was asked about."""
    plan = planned.plan
    check_readable(settings, plan.total_read, plan.unreadable)
    policy = Policy(float(plan.policy["max_age_min"]), None, 0)
    drift, first, now_us = 0, 0, server.now_us()
    for block in planned.blocks(("event_time", "action")):
        # too old at their turns, and not as planned
        turns = turn_times_us(first, len(block), start_us=now_us, settings=settings)
        times = block["event_time"].cast(pa.int64()).fill_null(sys.maxsize).to_numpy()
        is_drift = policy.is_old(turns - times)
        is_drift &= ~np.isin(block["action"].to_numpy(), ("dropped_old", "dropped_missing"))
        drift, first = drift + int(is_drift.sum()), first + len(block)
    check_limits(settings.limits, plan.counts, drift=drift)
