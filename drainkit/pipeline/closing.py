"""`run --close`: the folder that a killed run left, completed from the ledger and the audit.

They say what that run was and did: of the folder it is believed only which stream's ledger to ask,
and the plan, if it has the digest that the ledger names.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import files
from ..core.policy import ACTIONS
from ..core.reconciliation import drift_counts
from ..core.summary import OUTCOMES, RUN_ID, Summary
from ..core.timestamps import EPOCH, iso
from ..draining.live import changes
from ..draining.plan_files import PlanFile
from ..draining.run import note_end
from ..errors import InterruptedRunError, RefusedError, UsageError
from ..evidence.examined import examine
from ..evidence.remote import reports_of
from ..evidence.seal import name_newest
from ..evidence.statement import RUN_JSON, STATEMENT, alone_with, is_plain, read_or, shown
from ..safe import one_line
from ..server import ledger, scopes
from ..server.connection import Server
from ..settings import NOTEBOOK, Settings, build
from .folder import RunFolder, recount_settled

KILLED = "the run was killed; its books were closed later, from the ledger and the audit"


def close(settings: Settings, folder: Path, *, sign_key: Path | None = None) -> dict[str, Any]:
    """Complete and seal the folder that a killed run left; returns run.json's content.

    Raises UsageError for what is not a run's folder, RefusedError for one that no run of the ledger
    began, that is sealed already, or that is still being worked on.
    """
    _check_folder(folder)
    reports = reports_of(folder, settings.reports_dir)
    with alone_with(folder):
        said = None if "stream" in settings.asked else read_or(folder / RUN_JSON, {}).get("stream")
        stream = build({"stream": said or settings.stream}).stream  # refuses what is no name
        with Server.of(settings, stream) as server:
            ledger.check(server)
            mine = ledger.entries_of(server, folder.name)
        starts = [entry for entry in mine if isinstance(entry, ledger.Start)]
        is_sealed = any(isinstance(entry, ledger.Sealed) for entry in mine)
        if "-live-" in folder.name and not starts:
            raise RefusedError(
                f"the run ledger of {stream} has no start of {folder.name}, so it "
                "drained nothing there; give its --stream and --redis-url, or remove the folder"
            )
        planned = _plan_of(folder, starts)
        settings = _settings_of(settings, stream, starts, planned)
        with Server.of(settings) as server:
            parameters = settings.model_dump(mode="json", include={*settings.given} & {*NOTEBOOK})
            parameters["mode"] = settings.mode
            this = RunFolder(folder, settings, server, reports, parameters, sign_key=sign_key)
            if (folder / STATEMENT).exists():
                return _finish_seal(this, mine, planned, is_known=is_sealed)
            if is_sealed:
                raise RefusedError(
                    f"{folder.name} was sealed, as the run ledger says, and has lost its "
                    "statement; look for the original"
                )
            summary = _books(this, mine, planned)
            for start in starts[sum(isinstance(entry, ledger.End) for entry in mine) :]:
                note_end(server, start, summary, iso(server.now_us()))
            if summary.changes is not None:
                files.write_table(folder / "drift.parquet", summary.changes)
            return this.write_up(summary, renew=True, closed_at=iso(server.now_us()))


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UsageError(f"--close {folder} is not a folder; name a run's")
    for path in folder.iterdir():
        if not is_plain(path):
            raise RefusedError(f"{path.name} is not a plain file; take it out of there")
    if RUN_ID.fullmatch(folder.name):
        return
    run_id = str(read_or(folder / RUN_JSON, {}).get("run_id", ""))
    if RUN_ID.fullmatch(run_id):
        raise UsageError(f"--close: this is the folder of {run_id}; give it that name again")
    raise UsageError(f"--close {folder} is not a run's folder")


def _plan_of(folder: Path, starts: Sequence[ledger.Start]) -> PlanFile | None:
    """The plan in the folder; refused where it is not the one that the ledger, or its name, has."""
    has_decisions = (folder / "decisions.parquet").exists()
    if not (folder / "plan.json").exists() and not (starts and has_decisions):
        return None  # a dry run that was killed between the two has decisions alone
    planned = PlanFile.load(folder)
    of_run = planned.plan.digest in {start.plan_digest for start in starts}
    if not (of_run if starts else planned.plan.run_id == folder.name):
        raise RefusedError(
            f"plan.json is not the plan of {folder.name}: bring that back, or take it away"
        )
    return planned


def _settings_of(
    settings: Settings, stream: str, starts: Sequence[ledger.Start], planned: PlanFile | None
) -> Settings:
    """The settings of the run itself: those of its plan, else what the ledger has of them."""
    last = starts[-1] if starts else None
    found: dict[str, Any] = {
        "redis_url": settings.redis_url, "stream": stream,
        "mode": "live" if last else "dry-run",
        "operator": (last.operator or "(unknown)") if last else settings.operator,
        "audit_stream": (last.audit_stream if last else "") or settings.audit_stream,
    }  # fmt: skip
    if planned is not None:
        return planned.laid_under(build(found, asked=frozenset()))
    if "consumer_group" in settings.given:
        found["consumer_group"] = settings.consumer_group
    if last:
        found["history_group" if last.scope == "history" else "consumer_group"] = (
            last.consumer_group
        )
        found |= {
            "scope": last.scope, "consumer_name": last.consumer, "throttle": last.throttle,
            "max_events": last.max_events,
        }  # fmt: skip
    return build(found)


def _finish_seal(
    this: RunFolder, mine: Sequence[ledger.OfRun], planned: PlanFile | None, *, is_known: bool
) -> dict[str, Any]:
    """Already sealed; only chain.json or the ledger's entry may be missing."""
    folder = this.path
    found = examine(folder)
    if found.findings:
        raise RefusedError(f"{folder.name} was sealed and changed since: {found.findings[0]}")
    run: dict[str, Any] = read_or(folder / RUN_JSON, {})
    is_live = this.settings.mode == "live"
    if is_live and not is_known:
        books = _books(this, mine, planned).as_dict()
        for name in ("total_read", *ACTIONS, "operator", "approvers", "plan_digest"):
            if (run.get(name) or None) != (books.get(name) or None):
                raise RefusedError(
                    f"{folder.name} is sealed with {name} {shown(run.get(name), 60)}, "
                    f"ledger and audit have {shown(books.get(name), 60)}"
                )
    linked = name_newest(folder.parent)
    if is_live and not is_known:
        this.tell_ledger(run, found.digest or "")
    elif not linked:
        raise RefusedError(f"{folder.name} is sealed already; a run is closed once")
    return run


def _books(this: RunFolder, mine: Sequence[ledger.OfRun], planned: PlanFile | None) -> Summary:
    """The books of a run that was killed, by ledger and audit; of a dry run, by its plan."""
    server, run_id = this.server, this.path.name
    starts = [entry for entry in mine if isinstance(entry, ledger.Start)]
    ends = [entry for entry in mine if isinstance(entry, ledger.End)]
    plan = planned.plan if planned else None
    boundary = starts[-1].boundary_id if starts else plan.boundary_id if plan else ""
    digest = starts[-1].plan_digest if starts else plan.digest if plan else ""
    now_us = server.now_us()
    summary = Summary.opened(
        this.settings, run_id=run_id, boundary=boundary, now_us=now_us, plan_digest=digest or None
    )
    if not starts:
        for action, n in (plan.counts if plan else {}).items():
            setattr(summary, action, n)
        summary.total_read = plan.total_read if plan else 0
        summary.remaining = _remaining(this, boundary)
        return summary.close(InterruptedRunError(KILLED), now_us)
    summary.started_at = starts[0].at
    summary.approvers = [name for name in starts[-1].approvers.split(",") if name]
    recount_settled(server, summary)
    if planned is not None:
        summary.changes = changes(server, planned, run_id)
        summary.drift = drift_counts(summary.changes)
    summary.vanished = sum(end.vanished for end in ends)
    if len(ends) < len(starts):
        summary.remaining = _remaining(this, boundary)
        return summary.close(InterruptedRunError(KILLED), summary.pace.last_ms * 1000 or now_us)
    codes = {outcome: code for code, outcome in OUTCOMES.items()}
    summary.exit_code = max(codes.get(end.outcome, 1) for end in ends)
    if summary.exit_code:
        summary.error = f"{KILLED} (its drain had ended: {one_line(ends[-1].outcome, 40)})"
    left = ends[-1].remaining
    summary.remaining = int(left) if left.isdecimal() else _remaining(this, boundary)
    ended = dt.datetime.fromisoformat(ends[-1].at)
    return summary.close(None, (ended - EPOCH) // dt.timedelta(microseconds=1))


def _remaining(this: RunFolder, boundary: str) -> int | None:
    try:
        scope = scopes.open_scope(this.server, this.settings, boundary=boundary or None)
        return scopes.remaining(this.server, scope)
    except RefusedError:  # the stream or the group is gone
        return None
