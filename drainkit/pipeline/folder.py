"""A run's folder: its books while the run is at work, its last files, its seal.

What was drained is told whatever becomes of the files: books first, then the small files, then the
report, then the seal. A folder that could not be completed says so, and `close` completes it later
from the ledger and the audit: they say what that run was and did. Of the folder it is believed only
which stream's ledger to ask, and the plan, if it has the digest that the ledger names.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import files
from ..core.policy import ACTIONS, audit_schema
from ..core.reconciliation import drift_counts
from ..core.summary import OUTCOMES, RUN_ID, Summary
from ..core.values import iso
from ..draining.live import changes
from ..draining.plan_files import PlanFile
from ..draining.run import Run
from ..errors import DrainkitError, InterruptedRunError, RefusedError, UnreachableError, UsageError
from ..evidence import seal
from ..evidence.examined import examine
from ..evidence.remote import Reports, reports_at
from ..evidence.seal import RUN_JSON, STATEMENT, read_or
from ..operations.state import baseline
from ..safe import one_line, secret_words, strike
from ..server import ledger, scopes, writing
from ..server.connection import Server
from ..settings import NOTEBOOK, Settings, build
from ..settings.kinds import is_url
from . import report

_SETTLE_SEC = 0.2  # for a commit that a killed kernel had sent already
KILLED = "the run was killed; its books were closed later, from the ledger and the audit"


@dataclass
class RunFolder:
    """The folder of one run, from its first file to its seal."""

    path: Path
    settings: Settings
    server: Server
    reports: Reports
    parameters: Mapping[str, Any]  # the notebooks': no secrets
    templates: Mapping[Path, Mapping[str, Any]] = field(default_factory=dict)  # that are run
    sign_key: Path | None = None

    def begin(self, run: Run, before: Mapping[str, Any]) -> None:
        """The first files: should this process be killed, none tells of another run or mode."""
        books = {**run.begin().as_dict(), "outcome": "interrupted", "exit_code": 130}
        files.write_json(self.path / RUN_JSON, books)
        files.write_json(self.path / "baseline.json", before)
        if run.planned:
            run.planned.copy_to(self.path)

    def finish(self, run: Run, failure: DrainkitError | None) -> dict[str, Any]:
        """Complete and seal, whatever happened; run.json's content.

        Its books are those that the notebooks left, or what the audit knows of a run that died.
        """
        started_at, summary = run.summary.started_at, run.summary
        found = read_or(self.path / RUN_JSON, {})
        own = (summary.run_id, summary.mode)  # not another run's, or of another mode
        try:
            if found.get("finished_at") and (found.get("run_id"), found.get("mode")) == own:
                summary = Summary.read(found)
            else:
                if summary.mode == "live":
                    time.sleep(_SETTLE_SEC)
                    ledger.recount(self.server, summary)
                failure = failure or DrainkitError("the notebooks left no summary")
            if not summary.finished_at:  # it did not come to a drain, or that drain died
                scope = scopes.current(self.server, run.scope)
                summary.remaining = scopes.left(self.server, scope).fresh
        except DrainkitError as error:
            failure = failure or error
        summary.close(failure, run.server.clock_us())
        summary.started_at = started_at
        return self.write_up(summary)

    def write_up(self, summary: Summary, closed_at: str | None = None) -> dict[str, Any]:
        """Write the last files and seal; returns run.json's content, whatever the disk says.

        `closed_at`: when a run that had died was closed; what there is of the audit is renewed.
        Where the folder cannot be completed, exit code and error say so, and name it.
        """
        folder, info = self.path, self.server.info
        result = {**summary.as_dict(), "evidence": self.reports.shown(folder)}
        if closed_at:
            result["closed_at"] = closed_at
        try:
            words = secret_words(self.settings.redis_url.get_secret_value())
            if "error" in result:
                result["error"] = strike(result["error"], seal.secret_of(folder, words))
            files.write_json(folder / RUN_JSON, result)
            after, audit = folder / "after.json", folder / "audit.parquet"
            with suppress(UnreachableError):  # what 04 writes, where it did not come to that
                if self.server.connected and not after.exists():
                    files.write_json(after, baseline(self.server))
                if self.server.connected and (closed_at or not audit.exists()):
                    runs = {summary.run_id} if summary.mode == "live" else set()
                    with files.table_writer(audit, audit_schema()) as write:
                        for part in ledger.run_tables(self.server, runs):
                            write(part)
            if closed_at or not (folder / report.VERDICTS).exists():
                report.write_verdicts(folder)
            files.write_text(folder / "report.html", report.build(folder))
            digest = self.reports.seal(
                folder, run=result, secret_words=words,
                parameters={**self.parameters, "mode": self.settings.mode},
                server={"kind": info.kind, "version": info.version}, sign_key=self.sign_key,
                templates=[*self.templates.values()],
            )  # fmt: skip
        except (OSError, DrainkitError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            before = f"{result['error']}; " if result.get("error") else ""
            if result.get("exit_code") in (0, 2, None):
                result |= {"exit_code": 1, "outcome": "failed"}
            told = (
                f"{before}the evidence in {one_line(str(folder))} is not complete "
                f"({one_line(reason)}); these books hold all the same; make room, then drainkit "
                "run --close with that folder"
            )
            return result | {"evidence": str(folder), "error": told}
        self.tell_ledger(result, digest)
        with _noted(result):
            self.reports.deliver(folder)
        if folder.exists():  # else it was copied to where `evidence` says
            result["evidence"] = str(folder)
        return result

    def tell_ledger(self, result: dict[str, Any], digest: str) -> None:
        """The ledger's entry of a live run's evidence; a failure is told in the result."""
        if result["mode"] != "live":
            return
        place, name = self.reports.shown(self.path), self.path.name
        with _noted(result):
            if not self.server.connected:
                raise DrainkitError(
                    "the run ledger does not have the evidence; drainkit run --close adds it"
                )
            folder = place if is_url(place) else str(self.path.resolve())
            sealed = ledger.Sealed(name, digest, folder=folder, host=socket.gethostname())
            writing.add_to_ledger(self.server, sealed)


@contextmanager
def _noted(result: dict[str, Any]) -> Iterator[None]:
    """A failure after the seal: told, and the exit code's reason if there is none yet."""
    try:
        yield
    except DrainkitError as error:
        result["exit_code"] = result["exit_code"] or error.exit_code
        result["error"] = result.get("error") or str(error)


# ---------------------------------------------------------------- of a run that was killed


def close(settings: Settings, folder: Path, *, sign_key: Path | None = None) -> dict[str, Any]:
    """Complete and seal the folder that a killed run left; returns run.json's content.

    Raises UsageError for what is not a run's folder, RefusedError for one that no run of the ledger
    began, that is sealed already, or that is still being worked on.
    """
    name = folder.name
    if not folder.is_dir() or not RUN_ID.fullmatch(name):
        raise UsageError(f"--close {folder} is not a run's folder; name one, by its run's id")
    if odd := [path.name for path in folder.iterdir() if not seal.is_plain(path)]:
        raise RefusedError(f"{odd[0]} is not a plain file; take it out of there")
    reports = reports_at(settings.reports_dir, folder)
    with seal.locked(folder, wait=False):
        noted = read_or(folder / RUN_JSON, {}).get("stream")
        said = None if "stream" in settings.asked else noted
        stream = build({"stream": said or settings.stream}).stream  # refuses what is no name
        with Server.of(settings, stream) as server:
            ledger.check(server)
            mine = ledger.entries_of(server, name)
        starts = [entry for entry in mine if isinstance(entry, ledger.Start)]
        ends = [entry for entry in mine if isinstance(entry, ledger.End)]
        if "-live-" in name and not starts:
            raise RefusedError(
                f"the run ledger of {stream} has no start of {name}, so it "
                "drained nothing there; give its --stream and --redis-url, or remove the folder"
            )
        planned = _plan_of(folder, starts)
        settings = _settings_of(settings, stream, starts, planned)
        with Server.of(settings) as server:
            parameters = settings.model_dump(
                mode="json", include={*settings.model_fields_set} & {*NOTEBOOK}
            )
            this = RunFolder(folder, settings, server, reports, parameters, sign_key=sign_key)
            is_sealed = len(starts) + len(ends) < len(mine)
            summary = _books(this, starts, ends, planned)
            if (folder / STATEMENT).exists():
                return _finish_seal(this, {} if is_sealed or not starts else summary.as_dict())
            if is_sealed:
                raise RefusedError(
                    f"{name} was sealed, as the run ledger says, and has lost its "
                    "statement; look for the original"
                )
            for start in starts[len(ends) :]:
                ledger.note_end(server, start, summary, iso(server.now_us()))
            if summary.changes is not None:
                files.write_table(folder / "drift.parquet", summary.changes)
            return this.write_up(summary, closed_at=iso(server.now_us()))


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
    same = ("redis_url", "operator", "audit_stream", "consumer_group")
    found = {name: getattr(settings, name) for name in same} | {"stream": stream}
    if starts:
        last = starts[-1]
        group = "history_group" if last.scope == "history" else "consumer_group"
        found |= {
            "mode": "live", "operator": last.operator or "(unknown)", group: last.consumer_group,
            "audit_stream": last.audit_stream or settings.audit_stream, "scope": last.scope,
            "consumer_name": last.consumer, "throttle": last.throttle,
            "max_events": last.max_events,
        }  # fmt: skip
    if planned is None:
        return build(found)
    found |= {"consumer_group": planned.plan.consumer_group, "env": planned.plan.environment}
    return planned.plan.laid_under(build(found, asked=frozenset()))


def _finish_seal(this: RunFolder, books: Mapping[str, Any]) -> dict[str, Any]:
    """Already sealed; only chain.json may be missing, or, with its `books`, the ledger's entry."""
    name, found = this.path.name, examine(this.path)
    if found.findings:
        raise RefusedError(f"{name} was sealed and changed since: {found.findings[0]}")
    run: dict[str, Any] = read_or(this.path / RUN_JSON, {})
    keys = ("total_read", *ACTIONS, "operator", "approvers", "plan_digest") if books else ()
    if odd := [key for key in keys if (run.get(key) or None) != (books.get(key) or None)]:
        raise RefusedError(f"{name} is sealed with another {odd[0]} than ledger and audit have")
    chain = this.path.parent / seal.CHAIN
    with seal.locked(chain.parent):
        named, last = read_or(chain, None, seal.Link), seal.newest_in(chain.parent)
        if last and last != named:
            files.write_json(chain, last)
    if books:
        this.tell_ledger(run, found.digest or "")
    elif last == named:
        raise RefusedError(f"{name} is sealed already; a run is closed once")
    return run


def _books(
    this: RunFolder,
    starts: Sequence[ledger.Start],
    ends: Sequence[ledger.End],
    planned: PlanFile | None,
) -> Summary:
    """The books of a run that was killed, by ledger and audit; of a dry run, by its plan."""
    server, run_id = this.server, this.path.name
    plan, now_us = planned.plan if planned else None, server.now_us()
    last = starts[-1] if starts else plan
    boundary = last.boundary_id if last else ""
    digest = starts[-1].plan_digest if starts else plan and plan.digest
    summary = Summary.opened(
        this.settings, run_id=run_id, boundary=boundary, now_us=now_us, plan_digest=digest or None
    )
    if starts:
        summary.started_at = starts[0].at
        summary.approvers = [name for name in starts[-1].approvers.split(",") if name]
        time.sleep(_SETTLE_SEC)
        ledger.recount(server, summary)
        if planned is not None:
            summary.changes = changes(server, planned, run_id)
            summary.drift = drift_counts(summary.changes)
        summary.vanished = sum(end.vanished for end in ends)
        now_us = summary.pace.last_ms * 1000 or now_us
    elif plan:
        for action, n in plan.counts.items():
            setattr(summary, action, n)
        summary.total_read = plan.total_read
    ended = ends[-1] if starts and len(ends) >= len(starts) else None
    if ended and ended.remaining.isdecimal():
        summary.remaining = int(ended.remaining)
    else:
        with suppress(RefusedError):  # the stream or the group is gone
            scope = scopes.open_scope(server, this.settings, boundary=boundary or None)
            summary.remaining = scopes.left(server, scope).fresh
    if ended is None:
        return summary.close(InterruptedRunError(KILLED), now_us)
    codes = {outcome: code for code, outcome in OUTCOMES.items()}
    summary.exit_code = max(codes.get(end.outcome, 1) for end in ends)
    if summary.exit_code:
        summary.error = f"{KILLED} (its drain had ended: {one_line(ended.outcome, 40)})"
    summary.finished_at = ended.at
    return summary.close(None, now_us)
