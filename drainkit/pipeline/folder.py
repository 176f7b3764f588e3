"""A run's folder: its books while the run is at work, its last files, its seal.

What was drained is told whatever becomes of the files: books first, then the small files, then the
report, then the seal. A folder that could not be completed says so, and `closing.close` completes
it later from the ledger and the audit.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import files
from ..core.audit import audit_schema
from ..core.summary import RUN_ID, Summary
from ..draining.run import Run, recount
from ..errors import DrainkitError, UnreachableError
from ..evidence.remote import Reports
from ..evidence.seal import seal, secret_of
from ..evidence.statement import RUN_JSON, read_or
from ..operations.state import baseline
from ..safe import one_line, secret_words, strike
from ..server import ledger, scopes
from ..server.audit_log import run_tables
from ..server.connection import Server
from ..settings import Settings
from ..settings.kinds import is_url
from . import report

_SETTLE_SEC = 0.2  # for a commit that a killed kernel had sent already


def recount_settled(server: Server, summary: Summary) -> None:
    """Recount a live run whose process died: a commit that it had sent may still arrive."""
    if summary.mode == "live":
        time.sleep(_SETTLE_SEC)
        recount(server, summary)


@dataclass
class RunFolder:
    """The folder of one run, from its first file to its seal."""

    path: Path
    settings: Settings
    server: Server
    reports: Reports
    parameters: Mapping[str, Any]  # as the statement holds them: no secrets
    templates: Sequence[Mapping[str, Any]] = ()  # the notebooks that are run
    sign_key: Path | None = None

    def begin(self, run: Run, before: Mapping[str, Any]) -> None:
        """The first files: should this process be killed, none tells of another run or mode."""
        books = {**run.begin().as_dict(), "outcome": "interrupted", "exit_code": 130}
        more = {"parameters": dict(self.parameters), "templates": list(self.templates)}
        files.write_json(self.path / RUN_JSON, {**books, **more})
        files.write_json(self.path / "baseline.json", before)
        if run.planned:
            run.planned.copy_to(self.path)

    def finish(self, run: Run, failure: DrainkitError | None) -> dict[str, Any]:
        """Complete and seal, whatever happened; run.json's content.

        Its books are those that the notebooks left, or what the audit knows of a run that died.
        """
        started_at, summary = run.summary.started_at, run.summary
        found = read_or(self.path / RUN_JSON, {})
        if found.get("finished_at") and self._is_own(found):
            summary = Summary.read(found)
        else:
            try:
                recount_settled(self.server, summary)
            except DrainkitError as error:
                failure = failure or error
            failure = failure or DrainkitError("the notebooks left no summary")
        try:
            if not summary.finished_at:  # it did not come to a drain, or that drain died
                scope = scopes.current(self.server, run.scope)
                summary.remaining = scopes.remaining(self.server, scope)
        except DrainkitError as error:
            failure = failure or error
        summary.close(failure, run.clock.now_us())
        summary.started_at = started_at
        return self.write_up(summary)

    def _is_own(self, found: Mapping[str, Any]) -> bool:
        """Whether run.json is this run's own summary, not that of another run or mode."""
        named = RUN_ID.fullmatch(self.path.name)
        mode = named.group(1) if named else None
        return (found.get("run_id"), found.get("mode")) == (self.path.name, mode)

    def write_up(self, summary: Summary, *, renew: bool = False, **more: str) -> dict[str, Any]:
        """Write the last files and seal; returns run.json's content, whatever the disk says.

        `renew`: also a table of the audit that is there already. Where the folder cannot be
        completed, exit code and error say so, and name it.
        """
        folder = self.path
        result = {**summary.as_dict(), "evidence": self.reports.shown(folder), **more}
        try:
            words = secret_words(self.settings.redis_url.get_secret_value())
            if "error" in result:
                result["error"] = strike(result["error"], secret_of(folder, words))
            files.write_json(folder / RUN_JSON, result)
            self._complete(summary, renew=renew)
            files.remove_unfinished(folder)
            files.write_text(folder / "report.html", report.build(folder))

            def sealed() -> str:
                info = self.server.info
                return seal(
                    folder,
                    run=result,
                    parameters=self.parameters,
                    templates=self.templates,
                    server={"kind": info.kind, "version": info.version},
                    secret_words=words,
                    sign_key=self.sign_key,
                )

            digest = self.reports.seal(folder, sealed)
        except (OSError, DrainkitError) as error:
            return self._not_sealed(result, error)
        self.tell_ledger(result, digest)
        try:
            self.reports.deliver(folder)
        except DrainkitError as error:
            _note(result, error)
        if folder.exists():  # else it was copied to where `evidence` says
            result["evidence"] = str(folder)
        return result

    def _complete(self, summary: Summary, *, renew: bool) -> None:
        """The files that 04 writes, where it did not come to that; without a server only some."""
        after, audit = (self.path / name for name in ("after.json", "audit.parquet"))
        with suppress(UnreachableError):
            if self.server.connected and not after.exists():
                files.write_json(after, baseline(self.server))
            if self.server.connected and (renew or not audit.exists()):
                runs = {summary.run_id} if summary.mode == "live" else set()
                with files.TableWriter(audit, audit_schema()) as out:
                    for part in run_tables(self.server, runs):
                        out.write(part)
        if renew or not (self.path / report.VERDICTS).exists():
            report.write_verdicts(self.path)

    def _not_sealed(self, result: dict[str, Any], error: Exception) -> dict[str, Any]:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        before = f"{result['error']}; " if result.get("error") else ""
        if result.get("exit_code") in (0, 2, None):
            result["exit_code"], result["outcome"] = 1, "failed"
        result["evidence"] = str(self.path)
        result["error"] = (
            f"{before}the evidence in {one_line(str(self.path))} is not complete "
            f"({one_line(reason)}); these books hold all the same; make room, then drainkit run "
            "--close with that folder"
        )
        return result

    def tell_ledger(self, result: dict[str, Any], digest: str) -> None:
        """The ledger's entry of a live run's evidence; a failure is told in the result."""
        if result["mode"] != "live":
            return
        place = self.reports.shown(self.path)
        sealed = ledger.Sealed(
            run_id=self.path.name,
            statement_sha256=digest,
            folder=place if is_url(place) else str(self.path.resolve()),
            host=socket.gethostname(),
        )
        try:
            if not self.server.connected:
                raise DrainkitError(
                    "the run ledger does not have the evidence; drainkit run --close adds it"
                )
            ledger.append(self.server, sealed)
        except DrainkitError as error:
            _note(result, error)


def _note(result: dict[str, Any], error: DrainkitError) -> None:
    """A failure after the seal: told, and the exit code's reason if there is none yet."""
    result["exit_code"] = result["exit_code"] or error.exit_code
    result["error"] = result.get("error") or str(error)
