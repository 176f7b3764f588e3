"""The whole run through the notebooks: 01 to 04 by papermill, evidence, report, seal.

papermill's output can claim success where there was none (after a killed kernel every cell says
"completed"), so what counts is: each code cell has an execution count and no error output, and the
books of the run itself balance. Evidence is written in any case, of a failed run too.
"""

from __future__ import annotations

import datetime as dt
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import errors, files
from ..core.collection import give_back_buffers
from ..core.summary import Summary
from ..core.timestamps import iso
from ..draining.job import Job, preflight, resolve, with_plan
from ..draining.plan_files import PlanFile
from ..errors import DrainkitError, InterruptedRunError, UnwritableError
from ..evidence.remote import Reports, reports_at
from ..evidence.seal import open_run
from ..evidence.statement import RUN_JSON, read_or, working_on
from ..operations.state import baseline
from ..safe import one_line
from ..server import scopes
from ..server.connection import Clock, Server
from ..settings import NOTEBOOK, Settings, shown
from ..settings.config import config_variable, kernel_variables
from . import ending, templates
from .kernels import (
    LIVE,
    NOTEBOOKS,
    PATIENCE_SEC,
    Kernels,
    check_open_files,
    literal_path,
    quick_imports,
    what_failed,
)

Confirm = Callable[[Server, Job, PlanFile], None]  # raises RefusedError if it is not approved
Announce = Callable[[str], None]


def parameters_of(settings: Settings, job: Job) -> dict[str, Any]:
    """The notebooks' parameters: typed values, the allowlist as read now, never a URL."""
    values = {name: getattr(settings, name) for name in NOTEBOOK}
    allowed = job.policy.allowlist
    values["allowlist"] = None if allowed is None else sorted(allowed)
    for name in ("throttle", "max_events"):  # None would be "as configured" to a notebook
        values[name] = shown(name, None) if values[name] is None else values[name]
    for name, value in values.items():
        values[name] = value.isoformat() if isinstance(value, dt.datetime) else value
    return values


def kernel_env(settings: Settings) -> dict[str, str]:
    """The kernels' environment: the settings as they are here, limits by their own file."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("DRAINKIT_")}
    return env | kernel_variables(settings) | config_variable()


@dataclass
class Run:
    """One run on its way: what is known, written and running."""

    settings: Settings
    server: Server
    job: Job
    folder: Path
    clock: Clock
    templates: dict[str, templates.Template]
    reports: Reports
    on_line: Announce | None
    failure: DrainkitError | None = None


def run(
    settings: Settings,
    *,
    confirm: Confirm,
    announce: Announce = lambda _: None,
    on_line: Announce | None = None,
    stopping: threading.Event | None = None,
    sign_key: Path | None = None,
) -> tuple[dict[str, Any], Path]:
    """Run all notebooks and seal the evidence; returns run.json's content and the folder.

    `on_line` gets the lines that the live notebook prints. `sign_key`: an SSH key to sign the
    statement with.
    Raises before the folder exists (bad usage, refused preflight); after that, whatever goes wrong
    stands in the evidence, with its exit code.
    """
    stopping = stopping or threading.Event()
    check_open_files()
    give_back_buffers()
    notebooks = templates.of_run(settings.notebooks_dir)
    settings, planned = with_plan(settings)
    with Server.of(settings) as server:
        before = baseline(server)
        boundary = str(before["stream"]["boundary_id"])
        job = resolve(server, settings, planned=planned, boundary=boundary)
        settings = job.settings  # its ages are times now, for the notebooks too
        if settings.mode == "live":
            preflight(server, job)
        reports = reports_at(settings.reports_dir)
        folder = open_run(reports.folder, job.run_id)
        with working_on(folder):
            started_us = server.now_us()
            # should this process be killed, nothing in the folder tells of another run or mode
            parameters = {**parameters_of(settings, job), "mode": settings.mode}
            shown_templates = [one.as_dict() for one in notebooks.values()]
            summary = _opened(job, started_us)
            interim = ending.unfinished(summary, parameters, shown_templates)
            files.write_json(folder / RUN_JSON, interim)
            files.write_json(folder / "baseline.json", before)
            if planned:
                planned.copy_to(folder)
            clock = Clock(started_us)
            this = Run(settings, server, job, folder, clock, notebooks, reports, on_line)
            try:
                _run_notebooks(this, confirm, announce, stopping)
            except DrainkitError as error:
                this.failure = this.failure or error
            return _finish(this, started_us, sign_key)


def _run_notebooks(
    this: Run, confirm: Confirm, announce: Announce, stopping: threading.Event
) -> None:
    with Kernels(kernel_env(this.settings)) as kernels:
        for name in NOTEBOOKS:
            parameters = _parameters_for(this)
            if name == LIVE and this.settings.mode == "live":
                planned = PlanFile.load(this.folder)
                confirm(this.server, this.job, planned)
                parameters["approve"] = planned.plan.digest
            announce(name)
            try:
                _execute(this, name, parameters, kernels, stopping)
            except DrainkitError as error:
                if name != LIVE:
                    raise
                # what was drained until then is verified all the same
                this.failure = error
                stopping = threading.Event()


def _parameters_for(this: Run) -> dict[str, Any]:
    parameters = {**parameters_of(this.settings, this.job), "run_dir": str(this.folder)}
    return {key: value for key, value in parameters.items() if value is not None}


def _execute(
    this: Run, name: str, parameters: dict[str, Any], kernels: Kernels, stopping: threading.Event
) -> None:
    """Execute one notebook in a worker thread, so that signals reach this one."""
    with quick_imports():
        import papermill

    if stopping.is_set():
        raise InterruptedRunError("interrupted; run the same command again to go on")
    out = this.folder / f"{name}.ipynb"
    raised: list[BaseException] = []
    template = this.templates[name]
    template.check_unchanged()
    manager = kernels.start()
    # how far the drain is, for whoever waits; papermill writes here what the cells print
    told = _Told(this.on_line) if this.on_line and name == LIVE else None

    def work() -> None:
        try:
            papermill.execute_notebook(
                # papermill keeps it in the metadata
                literal_path(os.path.relpath(template.path)),
                literal_path(str(out)),
                parameters=parameters,
                kernel_name="python3",
                progress_bar=False,
                stdout_file=told,
                km=manager,
            )
        except BaseException as error:
            raised.append(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    interrupted, deadline = False, 0.0
    while worker.is_alive():
        worker.join(0.1)
        if stopping.is_set() and not interrupted:
            interrupted = True
            kernels.stop(manager, is_live=name == LIVE)
            deadline = time.monotonic() + PATIENCE_SEC
        if interrupted and name != LIVE and time.monotonic() > deadline:
            kernels.end(manager)  # it changes nothing on the server; what it shows is not needed
            deadline = math.inf
    kernels.end(manager)
    problem = what_failed(out)
    if problem or raised:
        text = problem or one_line(str(raised[0]) or type(raised[0]).__name__)
        _raise(name, text, interrupted)


@dataclass
class _Told:
    """A file for papermill to print into."""

    on_line: Announce

    def write(self, text: str) -> None:
        for line in text.splitlines():
            self.on_line(line)

    def flush(self) -> None:
        """What was written has been told already."""


def _raise(name: str, text: str, interrupted: bool) -> None:
    kind, _, message = text.partition(": ")
    cause = errors.named(kind)
    if interrupted or cause is InterruptedRunError:
        raise InterruptedRunError("interrupted; run the same command again to go on")
    if issubclass(cause, UnwritableError):  # the reports folder went away under the run
        cause = DrainkitError
    raise cause(f"{name} failed: {message or text}")


def _finish(this: Run, started_us: int, sign_key: Path | None) -> tuple[dict[str, Any], Path]:
    """Complete the evidence, whatever happened, and seal it."""
    server = this.server
    summary = _summary(this, started_us)
    try:
        if not summary.finished_at:  # it did not come to a drain, or that drain died
            summary.remaining = scopes.remaining(server, scopes.current(server, this.job.scope))
    except DrainkitError as error:
        this.failure = this.failure or error
    summary.close(this.failure, this.clock.now_us())
    summary.started_at = iso(started_us)
    parameters = {**parameters_of(this.settings, this.job), "mode": this.settings.mode}
    run_from = [template.as_dict() for template in this.templates.values()]
    end = ending.Ending(
        this.settings, server, this.folder, parameters, this.reports, run_from, sign_key
    )
    return ending.write_up(end, summary, {}), this.folder


def _summary(this: Run, started_us: int) -> Summary:
    """The books that the notebooks left, or what the audit knows of a run that died."""
    found = read_or(this.folder / RUN_JSON, {})
    if ending.is_finished(found, this.job.run_id):
        return Summary.read(found)
    summary = _opened(this.job, started_us)
    try:
        ending.recount_settled(this.server, summary)
    except DrainkitError as error:
        this.failure = this.failure or error
    this.failure = this.failure or DrainkitError("the notebooks left no summary")
    return summary


def _opened(job: Job, started_us: int) -> Summary:
    return Summary.opened(
        job.settings,
        run_id=job.run_id,
        boundary=job.scope.boundary,
        now_us=started_us,
        plan_digest=job.plan_digest,
        approvers=job.approvers,
    )
