"""The whole run through the notebooks: 01 to 04 by papermill, evidence, report, seal.

papermill's output can claim success where there was none (after a killed kernel every cell says
"completed"), so what counts is: each code cell has an execution count and no error output, and the
books of the run itself balance. Evidence is written in any case, of a failed run too.
"""

from __future__ import annotations

import datetime as dt
import os
import resource
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files
from ..draining.plan_files import PlanFile
from ..draining.run import Run, preflight, resolve
from ..errors import DrainkitError
from ..evidence.remote import reports_at
from ..evidence.seal import open_run
from ..evidence.statement import working_on
from ..late import give_back_buffers
from ..operations.state import baseline
from ..server.connection import Server
from ..settings import NOTEBOOK, Settings, shown
from ..settings.config import config_variable, kernel_variables
from .folder import RunFolder
from .notebooks import LIVE, Template, of_run, quick_imports

if TYPE_CHECKING:
    from .kernels import Kernels

OPEN_FILES = 64  # of a run
Confirm = Callable[[Run, PlanFile], None]  # raises RefusedError if it is not approved
Announce = Callable[[str], None]


def parameters_of(run: Run) -> dict[str, Any]:
    """The notebooks' parameters: typed values, the allowlist as read now, never a URL."""
    values = {name: getattr(run.settings, name) for name in NOTEBOOK}
    allowed = run.policy.allowlist
    values["allowlist"] = None if allowed is None else sorted(allowed)
    for name in ("throttle", "max_events"):  # None would be "as configured" to a notebook
        values[name] = shown(name, None) if values[name] is None else values[name]
    for name, value in values.items():
        values[name] = value.isoformat() if isinstance(value, dt.datetime) else value
    return values


def open_kernels() -> Kernels:
    """Kernels for one run or for many."""
    with quick_imports():
        from .kernels import Kernels

    return Kernels()


def run(
    settings: Settings,
    *,
    confirm: Confirm,
    announce: Announce = lambda _: None,
    on_line: Announce | None = None,
    stopping: threading.Event | None = None,
    sign_key: Path | None = None,
    kernels: Kernels | None = None,
) -> tuple[dict[str, Any], Path]:
    """Run all notebooks and seal the evidence; returns run.json's content and the folder.

    `on_line` gets the lines that the live notebook prints. `sign_key`: an SSH key to sign the
    statement with. `kernels`: those of several runs, which stay open.
    Raises before the folder exists (bad usage, refused preflight); after that, whatever goes wrong
    stands in the evidence, with its exit code.
    """
    stopping = stopping or threading.Event()
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= allowed < OPEN_FILES:  # libzmq would end the run at once
        raise DrainkitError(
            f"a run needs {OPEN_FILES} open files, and {allowed} are allowed; raise `ulimit -n`"
        )
    give_back_buffers()
    templates = of_run(settings.notebooks_dir)
    settings, planned = PlanFile.of_run(settings)
    with Server.of(settings) as server:
        before = baseline(server)
        boundary = str(before["stream"]["boundary_id"])
        this = resolve(server, settings, planned=planned, boundary=boundary)
        if settings.mode == "live":
            preflight(this)
        reports = reports_at(settings.reports_dir)
        folder = RunFolder(
            open_run(reports.folder, this.run_id),
            this.settings,  # its ages are times now, for the notebooks too
            server,
            reports,
            {**parameters_of(this), "mode": settings.mode},
            [template.as_dict() for template in templates.values()],
            sign_key,
        )
        with working_on(folder.path):
            folder.begin(this, before)
            try:
                with nullcontext(kernels) if kernels else open_kernels() as found:
                    failure = _run_notebooks(
                        this, folder.path, templates, found, stopping,
                        confirm=confirm, announce=announce, on_line=on_line,
                    )  # fmt: skip
            except DrainkitError as error:
                failure = error
            return folder.finish(this, failure), folder.path


def _run_notebooks(
    this: Run,
    folder: Path,
    templates: Mapping[str, Template],
    kernels: Kernels,
    stopping: threading.Event,
    *,
    confirm: Confirm,
    announce: Announce,
    on_line: Announce | None,
) -> DrainkitError | None:
    """Run them in turn; why it failed. What a live drain did before it failed is verified too."""
    # the kernels' environment: the settings as they are here, limits by their own file
    env = {name: value for name, value in os.environ.items() if not name.startswith("DRAINKIT_")}
    env |= kernel_variables(this.settings) | config_variable()
    given = {**parameters_of(this), "run_dir": str(folder)}
    parameters = {key: value for key, value in given.items() if value is not None}
    failure: DrainkitError | None = None
    for name, template in templates.items():
        is_live, approved = name == LIVE, dict[str, str]()
        if is_live and this.settings.mode == "live":
            planned = PlanFile.load(folder)
            confirm(this, planned)
            approved["approve"] = planned.plan.digest
        announce(name)
        try:
            if files.file_sha256(template.path) != template.sha256:
                raise DrainkitError(f"{template.path} was changed while the run was at work")
            kernels.execute(
                template.path, folder, parameters | approved, env, stopping,
                is_live=is_live, on_line=on_line if is_live else None,
            )  # fmt: skip
        except DrainkitError as error:
            failure = failure or error
            if not is_live:
                return failure
            stopping = threading.Event()
    return failure
