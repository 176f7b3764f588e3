"""Plan and apply: save what a dry run decided; hold a plan against the server and drain just it.

The contract, section 7. A live run with a plan refuses whatever differs, with one exception: a run
that died in the middle of this very plan may be finished by the same command.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import ledger, stream
from . import plan as plans
from .audit import drift
from .drain import DecidedPage, Job, Progress, Summary, dry_run, iso, prepare, run_records
from .errors import RefusedError, one_line
from .evidence import RUN_ID, check_plan_path, save_plan
from .plan import Plan
from .policy import ACTIONS
from .server import Keys, Server
from .settings import Settings, build

if TYPE_CHECKING:
    import pyarrow as pa

# what a live run takes from its plan where nobody set it; the rest must be the same in any case
ADOPTED = (
    "stream", "consumer_group", "consumer_name", "scope", "max_age_min", "min_conf", "throttle",
    "max_events", "min_idle_min", "history_group", "fields",
)  # fmt: skip


def decide_all(
    server: Server, job: Job, *, on_progress: Progress | None = None
) -> tuple[Summary, pa.Table]:
    """A dry run with its decisions as one table (plan.COLUMNS)."""
    import pyarrow as pa

    tables: list[pa.Table] = [plans.empty_table()]

    def keep(page: DecidedPage) -> None:
        tables.append(plans.decisions_table(page.entries, page.events, page.decisions, job.policy))

    summary = dry_run(server, job, on_page=keep, on_progress=on_progress)
    return summary, pa.concat_tables(tables).combine_chunks()


def plan_run(
    server: Server, job: Job, path: Path, *, on_progress: Progress | None = None
) -> tuple[Summary, Plan]:
    """A dry run whose plan and decisions are saved at `path`."""
    check_plan_path(path)
    summary, table = decide_all(server, job, on_progress=on_progress)
    plan = make_plan(job, summary, table)
    save_plan(path, plan, table)
    summary.plan_path, summary.plan_digest = str(path), plan.digest
    return summary, plan


def make_plan(job: Job, summary: Summary, decisions: pa.Table) -> Plan:
    """The plan of a dry run, sealed with its digest."""
    settings, scope = job.settings, job.scope
    ids = decisions.column("id")
    return plans.seal(
        Plan(
            version=plans.VERSION,
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
            min_idle_min=settings.min_idle_min,
            from_consumers=list(settings.from_consumer),
            history_group=settings.history_group,
            fields={name: list(paths) for name, paths in settings.fields.model_dump().items()},
            counts={action: getattr(summary, action) for action in ACTIONS},
            total_read=summary.total_read,
            first_id=ids[0].as_py() if len(ids) else None,
            last_id=ids[-1].as_py() if len(ids) else None,
            decisions_sha256=plans.table_sha256(decisions),
        )
    )


def adopt(settings: Settings, plan: Plan) -> Settings:
    """The settings with the plan's own values where nobody set another."""
    values: dict[str, Any] = {name: getattr(settings, name) for name in settings.given}
    for name in ADOPTED:
        if name not in settings.given:
            values[name] = plan.policy[name] if name in plan.policy else getattr(plan, name)
    if "allowlist" not in settings.given and plan.policy["allowlist"] is not None:
        values["allowlist"] = list(plan.policy["allowlist"])
    if "from_consumer" not in settings.given:
        values["from_consumer"] = tuple(plan.from_consumers)
    return build(values)


def job_from_plan(
    server: Server, settings: Settings, run_id: str, plan: Plan, decisions: pa.Table
) -> Job:
    """The job that drains exactly the plan's entries; refuses, naming the point that differs."""
    job = prepare(server, settings, run_id)
    found = plans.differences(
        plan,
        stream=settings.stream,
        consumer_group=settings.consumer_group,
        scope=settings.scope,
        policy=job.policy,
    )
    if found:
        raise RefusedError("the plan is for something else: " + "; ".join(found))
    planned = dict(
        zip(decisions["id"].to_pylist(), decisions["payload_sha256"].to_pylist(), strict=True)
    )
    runs = {start["run_id"] for start in runs_of(server, job.keys, plan.digest)}
    done = {record.original_id for record in run_records(server, job.keys, runs)}
    _check_position(job, plan, resumed=bool(done))
    left = {entry: sha for entry, sha in planned.items() if entry not in done}
    scope = replace(job.scope, boundary=plan.boundary_id)
    job = replace(
        job, scope=scope, plan_digest=plan.digest, plan_ids=frozenset(e.encode() for e in left)
    )
    _check_entries(server, job, left)
    return job


def runs_of(server: Server, keys: Keys, plan_digest: str) -> list[dict[str, str]]:
    """The ledger's entries of the starts of this very plan's runs, oldest first."""
    return [
        entry
        for entry in ledger.entries(server, keys)
        if entry.get("event") == "start"
        and entry.get("plan_digest") == plan_digest
        and RUN_ID.fullmatch(entry.get("run_id", ""))
    ]


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
    if resumed and stream.id_key(here) <= stream.id_key(last):
        return
    raise RefusedError(
        f"the group's position moved since the plan was made: from {plan.position} to "
        f"{scope.group_position}; make a new plan"
    )


def _check_entries(server: Server, job: Job, left: dict[str, str]) -> None:
    """Every entry of the plan must be there as it was."""
    unseen = dict(left)
    for page in stream.scope_entries(server, job.keys, job.scope):
        for entry_id, fields in page:
            expected = unseen.pop(entry_id.decode(), None)
            if expected is not None and expected != plans.payload_sha256(fields):
                name = one_line(stream.text(entry_id))
                raise RefusedError(f"entry {name} of the plan is gone or changed; make a new plan")
        if not unseen:
            return
    if unseen:
        raise RefusedError(
            f"{len(unseen)} entries of the plan are gone, first {one_line(next(iter(unseen)))}; "
            "make a new plan"
        )


def list_drift(server: Server, job: Job, decisions: pa.Table) -> list[dict[str, str]]:
    """What the run did otherwise than planned: id, planned and happened action."""
    planned = dict(zip(decisions["id"].to_pylist(), decisions["action"].to_pylist(), strict=True))
    records = list(run_records(server, job.keys, {job.run_id}))
    return [
        {"id": entry, "planned": before, "happened": after}
        for entry, before, after in drift(planned, records)
    ]
