"""What a run needs, resolved once; and everything that must hold before its first write."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ..core.collection import collection_paused
from ..core.entries import Cursor, Entries, Feed, Straight, ToDrain, fits
from ..core.events import decoder_of
from ..core.plan import Plan, differences, payload_hashes
from ..core.policy import Policy
from ..core.summary import Summary, new_run_id
from ..core.values import RawEntry
from ..errors import DrainkitError, RefusedError
from ..safe import text
from ..server import keeping, ledger, reading, recorded, scopes, writing
from ..server.audit_log import check_owner, extent, run_tables
from ..server.connection import Server
from ..server.reading import ACTIVE_MS
from ..server.scope import Scope
from ..server.topology import check_primary
from ..settings import FROM_PLAN, Settings, build, outside, shown
from .plan_files import PlanFile

MAX_CLOCK_WAIT_SEC = 60.0
Progress = Callable[[Summary], None]


def future_audit(ahead_sec: float) -> str:
    """What to say of an audit stream whose last id lies so far in the future."""
    if ahead_sec > 10 * 365 * 86400:
        wait = "its ids are used up"
    else:
        wait = (
            "the server's clock was ahead when it was made, or has gone back since; a drain can "
            f"begin in {dt.timedelta(seconds=math.ceil(ahead_sec))} (h:mm:ss)"
        )
    return (
        f"the audit stream's last id lies in the future: {wait}; set the clock right, wait, or "
        "choose another --audit-stream"
    )


@dataclass(frozen=True)
class Job:
    """What a run needs, resolved once: settings, scope with its boundary, policy, run id."""

    settings: Settings
    scope: Scope
    policy: Policy
    run_id: str
    planned: PlanFile | None = None  # live with a plan
    to_drain: ToDrain | None = None  # live with a plan: these entries and no others
    trimmed: frozenset[bytes] = frozenset()  # of the plan, but deleted before this run began
    approvers: Mapping[str, str] = field(default_factory=dict)  # who signed the plan: their keys
    folder: str = ""  # where its evidence will be sealed; "": it leaves none

    @property
    def plan_digest(self) -> str | None:
        """The digest of the plan that this run applies."""
        return self.planned.plan.digest if self.planned else None

    @property
    def max_events(self) -> int | None:
        """How many events this run may take; with a plan, just the plan's."""
        return self.settings.max_events if self.to_drain is None else self.to_drain.count

    @property
    def reach(self) -> Scope:
        """The scope as far as this run may read: with a plan, to its last entry."""
        if self.to_drain is None or not self.to_drain.count:
            return self.scope
        return replace(self.scope, boundary=self.to_drain.last_id)


def with_plan(settings: Settings) -> tuple[Settings, PlanFile | None]:
    """The plan that a live run was told to apply, and the settings with what it gives."""
    if settings.plan is None or settings.mode != "live":
        return settings, None
    planned = PlanFile.load(settings.plan)
    return adopt(settings, planned.plan), planned


def resolve(
    server: Server,
    settings: Settings,
    *,
    planned: PlanFile | None = None,
    run_id: str | None = None,
    boundary: str | None = None,
) -> Job:
    """The job of a run: the only place that makes one.

    `boundary` is that of a run which has begun already (a notebook of it), else the stream's last
    id now. With a plan the job drains exactly the plan's entries; whatever differs is refused, and
    the message names it (the contract, section 7).
    """
    _ = server.keys  # refuses names that could not share the stream's slot
    policy = Policy(
        max_age_min=settings.max_age_min,
        allowlist=scopes.allowlist(server, settings),
        min_conf=settings.min_conf,
    )
    settings = scopes.at_now(server, settings)
    scope = scopes.open_scope(server, settings, boundary=boundary)
    run_id = run_id or new_run_id(settings.mode, server.now_us())
    job = Job(settings, scope, policy, run_id)
    return job if planned is None else _with_plan(server, job, planned)


def adopt(settings: Settings, plan: Plan) -> Settings:
    """The settings with what the plan gives; refuses what was asked for and differs.

    Throttle, as_of, audit stream and the like are the plan's, whatever drainkit.toml or the
    environment say; another value given with the command, or in a notebook's cell, is refused, and
    so is a plan that was made for another environment.
    """
    if settings.env != plan.environment:
        envs = (plan.environment, settings.env)
        then, now = (f"--env {env}" if env else "no --env" for env in envs)
        raise RefusedError(f"environment: the plan has {then}, asked for {now}; make a new plan")
    values: dict[str, Any] = {name: getattr(settings, name) for name in settings.given}
    of_plan = {name: getattr(plan, name) for name in FROM_PLAN}
    for name in ("stream", "consumer_group", "scope", "consumer_name"):
        values.setdefault(name, getattr(plan, name))
    for name in ("max_age_min", "min_conf", "allowlist"):
        values.setdefault(name, plan.policy[name])
    adopted = build(
        {**values, **of_plan, "fields": {**plan.fields, "only": True}}, asked=settings.asked
    )
    for name in FROM_PLAN:
        planned, asked = getattr(adopted, name), getattr(settings, name)
        if name in settings.asked and asked != planned:
            raise RefusedError(
                f"{outside(name)}: the plan has {shown(name, planned) or 'none'}, asked for "
                f"{shown(name, asked) or 'none'}; leave it out, or make a new plan"
            )
    return adopted


def _with_plan(server: Server, job: Job, planned: PlanFile) -> Job:
    """The job that drains exactly the plan's entries that earlier runs of it left."""
    import pyarrow as pa
    import pyarrow.compute as pc

    plan = planned.plan
    approvers = planned.approvers(job.settings)
    found = differences(
        plan,
        stream=job.settings.stream,
        consumer_group=job.settings.consumer_group,
        scope=job.settings.scope,
        policy=job.policy,
    )
    if found:
        raise RefusedError("the plan is for something else: " + "; ".join(found))
    runs = {start.run_id for start in ledger.starts_of(server, plan.digest)}
    done = [part["original_id"] for part in run_tables(server, runs) if len(part)]
    _check_position(job, plan, resumed=bool(done))
    scope = replace(job.scope, boundary=plan.boundary_id)
    job = replace(job, scope=scope, planned=planned, approvers=approvers)
    if not done and (straight := look_straight(server, job, planned)):
        load = partial(_entries, planned)
        rows = planned.rows
        return replace(job, to_drain=ToDrain(rows, plan.last_id or "", load, straight))
    entries = _entries(planned)
    if done:
        recorded = pa.concat_arrays([chunk for ids in done for chunk in ids.chunks])
        left = pc.invert(pc.is_in(entries.ids, value_set=recorded))
        entries = entries.only(left.to_numpy(zero_copy_only=False))
    there = _check_entries(server, job, entries, resumed=bool(done))
    trimmed = frozenset(e.encode() for e in entries.ids.filter(pa.array(~there)).to_pylist())
    return replace(job, to_drain=ToDrain.of(entries.only(there)), trimmed=trimmed)


def _entries(planned: PlanFile) -> Entries:
    return Entries(planned.table(("id", "action", "payload_sha256")))


@collection_paused()
def look_straight(server: Server, job: Job, planned: PlanFile) -> Straight | None:
    """Look at all entries of the plan by one read: whether they are as the plan says, to the byte.

    None where something is otherwise (entries are missing, changed, pending already, or between
    those of the plan), or where the server does not count what is deleted (6.2): then each has to
    be looked at, and read again to be drained.
    """
    scope, decoder = job.scope, decoder_of(job.settings)
    counters = reading.stream_info(server).counters  # before the first is read
    if scope.name == "pending" or not counters:
        return None
    rows, last = Feed(planned.blocks()), planned.plan.last_id or scope.position
    sizes: list[np.ndarray] = []
    first = reading.next_id(scope.position)
    with closing(reading.pages(server, server.stream, first, last, ahead=True)) as pages:
        for page in pages:
            part = rows.take(len(page))
            if part is None or len(part) != len(page):
                return None
            if not fits(part, decoder.decode(page), payload_hashes(page)):
                return None
            sizes.append(np.array([reading.size_of(entry) for entry in page], np.int32))
            del page, part  # or two pages would be in memory
    if rows.take(1) is not None:
        return None
    found = np.concatenate([*sizes, np.zeros(0, np.int32)])
    return Straight(scope.position, counters, planned.blocks, found)


def _check_position(job: Job, plan: Plan, *, resumed: bool) -> None:
    scope = job.scope
    moved = scope.group_position != plan.position
    if scope.name == "history":
        moved = moved or scope.position != plan.history_position
    if not moved:
        return
    # a run of this plan that died has moved the position itself, at most to the plan's last entry
    here = scope.position if scope.name == "history" else scope.group_position
    last = plan.last_id or plan.position
    if resumed and reading.id_key(here) <= reading.id_key(last):
        return
    raise RefusedError(
        f"the group's position moved since the plan was made: from {plan.position} to "
        f"{scope.group_position}; make a new plan"
    )


@collection_paused()
def _check_entries(server: Server, job: Job, entries: Entries, *, resumed: bool) -> np.ndarray:
    """Every entry of the plan must be there as it was; but for those that are not marked as there.

    These were trimmed from the front, as a capped stream does all the time; or they vanished under
    an earlier run of this plan, which has passed them.
    """
    import pyarrow as pa

    cursor, there = Cursor(entries), np.zeros(len(entries), dtype=bool)
    left, odd = len(entries), []
    for page in scopes.scope_entries(server, job.scope) if left else ():
        rows = cursor.find([entry[0] for entry in page])
        chosen = np.flatnonzero(rows >= 0)
        rows = rows[chosen]
        found = payload_hashes([page[i] for i in chosen.tolist()])
        if not found.equals(planned := entries.hashes.take(rows)):
            pairs = zip(chosen.tolist(), found.to_pylist(), planned.to_pylist(), strict=True)
            odd += [page[i] for i, now, then in pairs if now != then]
        left -= len(rows) - int(there[rows].sum())
        there[rows] = True
        if not left:
            break
    if left or odd:
        _check_missing(server, job, entries.ids.filter(pa.array(~there)).to_pylist(), odd, resumed)
    return there


def _check_missing(
    server: Server, job: Job, unseen: list[str], odd: list[RawEntry], resumed: bool
) -> None:
    """Refuse what is gone or changed, and was not trimmed from the front."""
    first_id = reading.stream_info(server).first_id
    passed = reading.id_key(job.scope.position) if resumed else (0, 0)

    def is_trimmed(entry: str) -> bool:
        key = reading.id_key(entry)
        return first_id is None or key < reading.id_key(first_id) or key <= passed

    for entry_id, fields in odd:  # one that is pending stays so without its body
        if fields is not None or not is_trimmed(entry_id.decode()):
            gone = text(entry_id)
            raise RefusedError(f"entry {gone} of the plan is gone or changed; make a new plan")
    is_pending = job.scope.name == "pending"
    if lost := [entry for entry in unseen if is_pending or not is_trimmed(entry)]:
        if done_of_plan(server, job).issuperset(lost):  # since this run asked what was done
            raise RefusedError(
                "another run of this plan is at work; when it has ended, run the same command "
                "again for what it left"
            )
        raise RefusedError(
            f"entries of the plan are gone: {len(lost):,}, first {lost[0]}; make a new plan"
        )


def done_of_plan(server: Server, job: Job) -> set[str]:
    """Ids that runs of the job's plan have recorded by now: two may be at work at once."""
    runs = {start.run_id for start in ledger.starts_of(server, job.plan_digest or "")}
    tables = run_tables(server, runs | {job.run_id})
    return {entry for part in tables for entry in part["original_id"].to_pylist()}


def preflight(server: Server, job: Job) -> list[str]:
    """Everything that must hold before the first write, the right to write too.

    Returns what the run has to say of stream and audit (`recorded.prepare`).
    """
    check(server, job)
    # the group of scope history may not exist yet, so it is the consumer group that is looked at
    main = replace(job.scope, group=job.settings.consumer_group)
    notes = recorded.prepare(server, main.group, main.consumer_group)
    deadline_us = server.now_us() + round(server.reply_timeout_sec * 1e6)
    writing.probe(server, main, after=reading.FIRST_ID, counters=b"", deadline_us=deadline_us)
    return notes


def check(server: Server, job: Job) -> None:
    """What can be known without a trace before a drain; refuses with what to do."""
    check_primary(server.info)
    if job.settings.approval is not None and job.planned is None:
        raise RefusedError(
            "drainkit.toml asks for approvals, and there is no plan that others could have "
            "approved: make one (drain --plan FILE), let it be approved (drainkit approve FILE), "
            "then apply it with --plan FILE"
        )
    keys, scope = server.keys, job.scope
    if (switch := reading.stop_switch(server)) is not None:
        raise writing.stopped(switch)
    rights = {keys.audit: "stream", keys.runs: "stream", keys.state: "hash", keys.recorded: "zset"}
    for key, right in rights.items():
        kind = reading.type_of(server, key)
        if kind not in (right, "none"):
            advice = " or choose another --audit-stream" if key == keys.audit else ""
            raise RefusedError(f"{text(key)} is a {kind}, not a {right}; rename it{advice}")
    audit = extent(server)
    check_owner(server, audit)
    keeping.check_room(server, scope, job.max_events)
    newest_ms = reading.id_key(audit.last_id)[0]
    ahead_sec = newest_ms / 1000 - server.now_us() / 1e6
    if ahead_sec > MAX_CLOCK_WAIT_SEC:
        raise DrainkitError(future_audit(ahead_sec))
    if scope.name == "undelivered" and not job.settings.allow_active_consumers:
        others = reading.consumers(server, scope.group)
        active = [c for c in others if c.name != scope.consumer and c.idle_ms < ACTIVE_MS]
        if active:
            raise RefusedError(
                f"consumer {active[0].name} of this group was active "
                f"{active[0].idle_ms / 1000:.0f} s ago; stop it, or set --allow-active-consumers"
            )
