"""The end of a run's folder: its books, its last files, its seal. Also for a run that was killed.

What was drained is told whatever becomes of the files: books first, then the small files, then the
report, then the seal. A folder that could not be completed says so, and `close` completes it later
from the ledger and the audit.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .. import files
from ..core.audit import audit_schema
from ..core.summary import OUTCOMES, RUN_ID, Summary
from ..core.timestamps import iso
from ..draining.books import recount
from ..errors import (
    DrainkitError,
    InterruptedRunError,
    RefusedError,
    UnreachableError,
    UsageError,
)
from ..evidence.lease import alone_with
from ..evidence.remote import Reports, reports_of
from ..evidence.seal import name_newest, previous_digest, seal
from ..evidence.secrets import secret_of
from ..evidence.statement import RUN_JSON, STATEMENT, read_json, statement_digest
from ..evidence.verify import verify_run
from ..operations.state import baseline
from ..safe import one_line, secret_words, strike
from ..server import ledger, scopes
from ..server.audit_log import run_tables
from ..server.connection import Server
from ..settings import Settings, build
from ..settings.kinds import is_url
from . import checks, report

KILLED = "the run was killed; its books were closed later, from the ledger and the audit"
_SETTLE_SEC = 0.2  # for a commit that a killed kernel had sent already


@dataclass
class Ending:
    """What the end of a run needs to know of it."""

    settings: Settings
    server: Server
    folder: Path
    parameters: Mapping[str, Any]  # as the statement holds them: no secrets
    reports: Reports
    templates: Sequence[Mapping[str, Any]]  # the notebooks that were run, as the statement has them
    sign_key: Path | None = None


def unfinished(
    summary: Summary, parameters: Mapping[str, Any], templates: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """run.json of a run that has no summary yet: should it be killed, this is the truth."""
    found = {**summary.as_dict(), "outcome": "interrupted", "exit_code": 130}
    return {**found, "parameters": dict(parameters), "templates": list(templates)}


def is_finished(run: Mapping[str, Any], run_id: str) -> bool:
    """Whether run.json is this run's own summary, with closed books."""
    named = RUN_ID.fullmatch(run_id)
    mode = named.group(1) if named else None
    return bool(run.get("finished_at")) and (run.get("run_id"), run.get("mode")) == (run_id, mode)


def read_run(folder: Path) -> dict[str, Any]:
    """run.json; empty where it cannot be read."""
    try:
        found = read_json(folder / RUN_JSON)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def recount_settled(server: Server, summary: Summary) -> None:
    """Recount a live run whose process died: a commit that it had sent may still arrive."""
    if summary.mode == "live":
        time.sleep(_SETTLE_SEC)
        recount(server, summary)


def write_up(
    this: Ending, summary: Summary, more: Mapping[str, Any], *, renew: bool = False
) -> dict[str, Any]:
    """Write the last files and seal; returns run.json's content, whatever the disk says.

    `renew`: also a table of the audit that is there already. Where the folder cannot be completed,
    exit code and error say so, and name it.
    """
    folder = this.folder
    result = {**summary.as_dict(), "evidence": this.reports.shown(folder), **more}
    try:
        words = secret_words(this.settings.redis_url.get_secret_value())
        if "error" in result:
            result["error"] = strike(result["error"], secret_of(folder, words))
        files.write_json(folder / RUN_JSON, result)
        _complete(this, summary, renew=renew)
        files.remove_unfinished(folder)
        files.write_text(folder / "report.html", report.build(folder))
        digest = this.reports.seal(folder, partial(_seal, this, result, words))
    except (OSError, DrainkitError) as error:
        return _not_sealed(result, folder, error)
    _tell_ledger(this, result, digest)
    try:
        this.reports.deliver(folder)
    except DrainkitError as error:
        _note(result, error)
    if folder.exists():  # else it was copied to where `evidence` says
        result["evidence"] = str(folder)
    return result


def _seal(this: Ending, result: Mapping[str, Any], words: Sequence[str]) -> str:
    info = this.server.info
    return seal(
        this.folder,
        run=result,
        parameters=this.parameters,
        templates=this.templates,
        server={"kind": info.kind, "version": info.version},
        secret_words=words,
        sign_key=this.sign_key,
    )


def _note(result: dict[str, Any], error: DrainkitError) -> None:
    """A failure after the seal: told, and the exit code's reason if there is none yet."""
    result["exit_code"] = result["exit_code"] or error.exit_code
    result["error"] = result.get("error") or str(error)


def _not_sealed(result: dict[str, Any], folder: Path, error: Exception) -> dict[str, Any]:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    before = f"{result['error']}; " if result.get("error") else ""
    if result.get("exit_code") in (0, 2, None):
        result["exit_code"], result["outcome"] = 1, "failed"
    result["evidence"] = str(folder)
    result["error"] = (
        f"{before}the evidence in {one_line(str(folder))} is not complete ({one_line(reason)}); "
        "these books hold all the same; make room, then drainkit run --close with that folder"
    )
    return result


def _tell_ledger(this: Ending, result: dict[str, Any], digest: str) -> None:
    if result["mode"] != "live":
        return
    folder = this.folder
    place = this.reports.shown(folder)
    sealed = ledger.Sealed(
        run_id=folder.name,
        statement_sha256=digest,
        previous_sha256=previous_digest(folder) or "",
        folder=place if is_url(place) else str(folder.resolve()),
        host=socket.gethostname(),
    )
    try:
        if not this.server.connected:
            raise DrainkitError(
                "the run ledger does not have the evidence; drainkit run --close adds it"
            )
        ledger.append(this.server, sealed)
    except DrainkitError as error:
        _note(result, error)


def _complete(this: Ending, summary: Summary, *, renew: bool) -> None:
    """The files that 04 writes, where it did not come to that; a lost server leaves them out."""
    with suppress(UnreachableError):
        _read_after(this, summary, renew=renew)
    if renew or not (this.folder / checks.VERDICTS).exists():
        checks.write_verdicts(this.folder)


def _read_after(this: Ending, summary: Summary, *, renew: bool) -> None:
    folder = this.folder
    if this.server.connected and not (folder / "after.json").exists():
        files.write_json(folder / "after.json", baseline(this.server))
    if this.server.connected and (renew or not (folder / "audit.parquet").exists()):
        runs = {summary.run_id} if summary.mode == "live" else set()
        with files.TableWriter(folder / "audit.parquet", audit_schema()) as out:
            for part in run_tables(this.server, runs):
                out.write(part)


# ---------------------------------------------------------------- closing a killed run's folder


def close(settings: Settings, folder: Path, *, sign_key: Path | None = None) -> dict[str, Any]:
    """Complete and seal the folder that a killed run left; returns run.json's content.

    Raises UsageError for what is not a run's folder, RefusedError for one that is sealed already
    or still being worked on.
    """
    _check_name(folder)
    reports = reports_of(folder, settings.reports_dir)
    with alone_with(folder):
        run = read_run(folder)
        settings = _settings_of(settings, run, folder)
        with Server.of(settings) as server:
            this = Ending(
                settings,
                server,
                folder,
                _parameters(settings, run, folder),
                reports,
                run.get("templates") or (),
                sign_key,
            )
            sealed = [
                e for e in ledger.entries(server)
                if isinstance(e, ledger.Sealed) and e.run_id == folder.name
            ]  # fmt: skip
            if (folder / STATEMENT).exists():
                return _finish_seal(this, run, is_known=bool(sealed))
            if sealed:
                raise RefusedError(
                    f"{folder.name} was sealed, as the run ledger says, and has lost its "
                    "statement; look for the original"
                )
            summary = _books(this, run)
            return write_up(this, summary, {"closed_at": iso(server.now_us())}, renew=True)


def _check_name(folder: Path) -> None:
    if not folder.is_dir():
        raise UsageError(f"--close {one_line(str(folder))} is not a folder; name a run's")
    if RUN_ID.fullmatch(folder.name):
        return
    run_id = str(read_run(folder).get("run_id", ""))
    if RUN_ID.fullmatch(run_id):
        raise UsageError(f"--close: this is the folder of {run_id}; give it that name again")
    raise UsageError(f"--close {one_line(str(folder))} is not a run's folder")


def _settings_of(settings: Settings, run: Mapping[str, Any], folder: Path) -> Settings:
    """The settings of the run itself, where its folder still tells them."""
    found = run.get("parameters")
    told = {k: v for k, v in found.items() if v is not None} if isinstance(found, dict) else {}
    told |= {k: run[k] for k in ("stream", "consumer_group", "scope") if run.get(k)}
    if "stream" in settings.asked and settings.stream != told.get("stream", settings.stream):
        raise RefusedError(
            f"--stream {one_line(settings.stream)}: {folder.name} is a run of "
            f"{one_line(str(told['stream']))}; leave it out"
        )
    given = {name: getattr(settings, name) for name in settings.given}
    mode = "live" if "-live-" in folder.name else "dry-run"
    return build({**given, **told, "mode": mode})


def _parameters(settings: Settings, run: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    found = run.get("parameters")
    told = dict(found) if isinstance(found, dict) else {"stream": settings.stream}
    return {**told, "mode": "live" if "-live-" in folder.name else "dry-run"}


def _finish_seal(this: Ending, run: dict[str, Any], *, is_known: bool) -> dict[str, Any]:
    """A folder with a statement lacks at most its links: in chain.json, and in the ledger."""
    folder = this.folder
    if findings := verify_run(folder):
        raise RefusedError(f"{folder.name} was sealed and changed since: {findings[0]}")
    linked = name_newest(folder.parent)
    if this.settings.mode == "live" and not is_known:
        _tell_ledger(this, run, statement_digest(folder))
    elif not linked:
        raise RefusedError(f"{folder.name} is sealed already; a run is closed once")
    return run


def _books(this: Ending, run: Mapping[str, Any]) -> Summary:
    """The books of a run that was killed, with the outcome that it really had."""
    server, run_id = this.server, this.folder.name
    mine = [e for e in ledger.entries(server) if isinstance(e, ledger.OfRun) and e.run_id == run_id]
    starts = [e for e in mine if isinstance(e, ledger.Start)]
    ends = [e for e in mine if isinstance(e, ledger.End)]
    if is_finished(run, run_id):
        summary = Summary.read(run)
        if summary.mode == "live" and summary.audit_records is None:
            recount_settled(server, summary)
        return summary
    now_us = server.now_us()
    boundary = starts[-1].boundary_id if starts else str(run.get("boundary_id") or "")
    summary = Summary.opened(
        this.settings,
        run_id=run_id,
        boundary=boundary,
        now_us=now_us,
        plan_digest=(starts[-1].plan_digest or None) if starts else run.get("plan_digest"),
    )
    summary.started_at = str(run.get("started_at") or (starts[0].at if starts else iso(now_us)))
    recount_settled(server, summary)
    ended = len(ends) >= len(starts) > 0
    if ended and ends[-1].remaining:
        summary.remaining = int(ends[-1].remaining)
    else:
        summary.remaining = _remaining(this, boundary)
    exit_codes = {outcome: code for code, outcome in OUTCOMES.items()}
    if ended:
        worst = max(exit_codes.get(end.outcome, 1) for end in ends)
        summary.finished_at = ends[-1].at
        summary.exit_code = worst
        summary.error = (
            None if worst == 0 else f"{KILLED} (its drain had ended: {ends[-1].outcome})"
        )
        return summary.close(None, now_us)
    last_ms = summary.pace.last_ms
    summary.close(InterruptedRunError(KILLED), last_ms * 1000 if last_ms else now_us)
    for start in starts[len(ends) :]:
        _end_in_ledger(server, summary, start)
    return summary


def _end_in_ledger(server: Server, summary: Summary, start: ledger.Start) -> None:
    """The end that the killed run did not write, so that it no longer counts as running."""
    counts = {name: getattr(summary, name) for name in summary.as_dict() if "dropped" in name}
    ledger.append(
        server,
        ledger.End(
            run_id=start.run_id,
            scope=start.scope,
            consumer_group=start.consumer_group,
            consumer=start.consumer,
            boundary_id=start.boundary_id,
            outcome=summary.outcome,
            total_read=summary.total_read,
            drained_ok=summary.drained_ok,
            remaining="" if summary.remaining is None else str(summary.remaining),
            at=iso(server.now_us()),
            **counts,
        ),
    )


def _remaining(this: Ending, boundary: str) -> int | None:
    try:
        scope = scopes.open_scope(this.server, this.settings, boundary=boundary or None)
        return scopes.remaining(this.server, scope)
    except RefusedError:  # the stream or the group is gone
        return None
