"""The whole run through the notebooks: 01 to 04 by papermill, evidence, report, seal; of many
streams one after another, or as tasks of a Dask cluster.

papermill's output can claim success where there was none (after a killed kernel every cell says
"completed"), so what counts is: each code cell has an execution count and no error output, and the
books of the run itself balance. Evidence is written in any case, of a failed run too.

A stream's failure stops no other. Dask gives the tasks of a worker that died to another worker,
whatever `retries` says: a mark on the scheduler keeps such a task from draining again. It is told
as failed; whether it drained anything its ledger and audit tell, and the same command again goes
on where it ended.
"""

from __future__ import annotations

import datetime as dt
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from .. import files
from ..core.policy import ACTIONS
from ..draining import dry
from ..draining.plan_files import PlanFile
from ..draining.run import Run, preflight, resolve
from ..errors import (
    DrainkitError,
    InterruptedRunError,
    RefusedError,
    UnreachableError,
    UsageError,
)
from ..evidence.remote import reports_at
from ..evidence.seal import locked
from ..late import give_back_buffers
from ..operations import checks
from ..operations.state import baseline
from ..safe import one_line
from ..server import reading
from ..server.connection import Server
from ..settings import NOTEBOOK, Settings, build, config_variable, kernel_variables, shown
from ..settings.kinds import is_url
from .folder import RunFolder
from .kernels import Kernels
from .notebooks import LIVE, of_run

URL = "DRAINKIT_REDIS_URL"
SUMS = ("total_read", *ACTIONS, "errors", "remaining")
# from good to bad: refused may be meant so, what failed is to be looked at first
_BADNESS = (0, 4, 2, 3, 1, 130)
_WAIT_SEC = 30.0  # for Dask's first worker
Outcome = dict[str, Any]  # of one stream: its run.json, with stream, exit_code, outcome and error
Confirm = Callable[[Run, PlanFile], None]  # raises RefusedError if it is not approved


def parameters_of(run: Run) -> dict[str, Any]:
    """The notebooks' parameters: typed values, the allowlist as read now, never a URL."""
    values = {name: getattr(run.settings, name) for name in NOTEBOOK}
    allowed = run.policy.allowlist
    values["allowlist"] = None if allowed is None else sorted(allowed)
    for name in ("throttle", "max_events"):  # None would be "as configured" to a notebook
        values[name] = shown(name, None) if values[name] is None else values[name]
    return {k: v.isoformat() if isinstance(v, dt.datetime) else v for k, v in values.items()}


def run(
    settings: Settings,
    *,
    confirm: Confirm,
    on_line: Callable[[str], None] = lambda _: None,
    stopping: threading.Event | None = None,
    sign_key: Path | None = None,
    kernels: Kernels | None = None,
) -> dict[str, Any]:
    """Run all notebooks and seal the evidence; returns run.json's content.

    `on_line` gets "running 01_analyse_backlog ..." and the lines that the live notebook prints.
    `sign_key`: an SSH key to sign the statement with. `kernels`: those of several runs, which stay
    open.
    Raises before the folder exists (bad usage, refused preflight); after that, whatever goes wrong
    stands in the evidence, with its exit code.
    """
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
        path = files.make_folder(reports.folder / this.run_id)
        # the settings' ages are times now, for the notebooks too
        values = parameters_of(this)
        folder = RunFolder(path, this.settings, server, reports, values, templates, sign_key)
        with locked(path, shared=True):
            folder.begin(this, before)
            try:
                with nullcontext(kernels) if kernels else Kernels() as found:
                    stopping = stopping or threading.Event()
                    failure = _run_notebooks(this, folder, found, stopping, confirm, on_line)
            except DrainkitError as error:
                failure = error
            return folder.finish(this, failure)


def _run_notebooks(
    this: Run,
    folder: RunFolder,
    kernels: Kernels,
    stopping: threading.Event,
    confirm: Confirm,
    on_line: Callable[[str], None],
) -> DrainkitError | None:
    """Run them in turn; why it failed. What a live drain did before it failed is verified too."""
    # the kernels' environment: the settings as they are here, limits by their own file
    env = {name: value for name, value in os.environ.items() if not name.startswith("DRAINKIT_")}
    env |= kernel_variables(this.settings) | config_variable()
    given = {**folder.parameters, "run_dir": str(folder.path)}
    parameters = {key: value for key, value in given.items() if value is not None}
    failure: DrainkitError | None = None
    for path, template in folder.templates.items():
        if path.stem == LIVE and this.settings.mode == "live":
            planned = PlanFile.load(folder.path)
            confirm(this, planned)
            parameters["approve"] = planned.plan.digest
        on_line(f"running {path.stem} ...")
        try:
            if files.file_sha256(path) != template["sha256"]:
                raise DrainkitError(f"{path} was changed while the run was at work")
            kernels.execute(path, folder.path, parameters, env, stopping, on_line)
        except DrainkitError as error:
            failure = failure or error
            if path.stem != LIVE:
                return failure
            stopping = threading.Event()
        parameters.pop("approve", None)
    return failure


# ---------------------------------------------------------------- many streams, one after another


def outcome_of(stream: str, result: Mapping[str, Any] | Exception) -> Outcome:
    """How the run of one stream ended, from its run.json; or by what kept it from one.

    Any error is one line of it.
    """
    if isinstance(result, Exception):
        error = result
        if not isinstance(error, DrainkitError):
            error = DrainkitError(f"unexpected {type(error).__name__}: {error}")
        word = {130: "interrupted", 4: "refused"}.get(error.exit_code, "failed")
        result = {"exit_code": error.exit_code, "outcome": word, "error": str(error)}
    return {"error": None, **result, "stream": stream}


def streams_of(server: Server, settings: Settings, pattern: str) -> tuple[list[str], list[Outcome]]:
    """The pattern's streams that have the consumer group; RefusedError where there is none.

    With them, for what could not be asked (a node that hangs), how that ended: it stops no other.
    A name that is not UTF-8 cannot be given as a parameter, and is refused too: no stream that
    waits to be drained is left out in silence.
    """
    found, ended = list[str](), list[Outcome]()
    for name, one in checks.streams(server, settings, pattern):
        if isinstance(one, UnreachableError):
            ended.append(outcome_of(one_line(name), one))
        elif isinstance(one, DrainkitError):
            raise type(one)(f"{name}: {one}; use a narrower pattern")
        elif settings.consumer_group in reading.positions(one):
            found.append(name)
    if not found and not ended:
        raise RefusedError(
            f"--all-streams {pattern}: no stream has the group "
            f"{settings.consumer_group}; check pattern and --consumer-group"
        )
    return found, ended


def run_in_turn(
    settings: Settings,
    streams: list[str],
    run_one: Callable[[Settings], dict[str, Any]],  # runs one stream; its run.json
    *,
    stopping: threading.Event,
) -> Iterator[Outcome]:
    """Run the streams one after another; after an interruption the rest is told as not run."""
    for stream in streams:
        try:
            if stopping.is_set():
                raise InterruptedRunError("not run: interrupted before its turn")
            outcome = outcome_of(stream, run_one(settings.model_copy(update={"stream": stream})))
        except Exception as error:
            outcome = outcome_of(stream, error)
        if outcome["exit_code"] == InterruptedRunError.exit_code:
            stopping.set()  # at a question: the others are not to be asked for
        yield outcome


def summary(pattern: str, settings: Settings, outcomes: list[Outcome]) -> dict[str, Any]:
    """All runs together, JSON-ready: counts added up, the worst exit code, each run below."""
    sums = {name: sum(int(outcome.get(name) or 0) for outcome in outcomes) for name in SUMS}
    worst = max((o["exit_code"] for o in outcomes), key=_BADNESS.index, default=0)
    return {
        "pattern": pattern, "mode": settings.mode, "consumer_group": settings.consumer_group,
        "exit_code": worst, "done": sum(not o["exit_code"] for o in outcomes),
        "not_done": [o["stream"] for o in outcomes if o["exit_code"]],
        **sums, "streams": outcomes,
    }  # fmt: skip


# ---------------------------------------------------------------- as tasks of a Dask cluster


def run_with_dask(
    settings: Settings, streams: list[str], address: str, *, stopping: threading.Event
) -> Iterator[Outcome]:
    """Run the streams as tasks of the cluster at `address`, or of a `local` one of this machine.

    The workers take the server's URL from their own DRAINKIT_REDIS_URL (no password travels), and
    refuse another server than the one seen here. A relative reports folder is this process's.
    """
    # the settings without the URL, such that they mean the same on another machine
    values = settings.model_dump(exclude={"redis_url"})
    if isinstance(settings.symbols, frozenset):
        values["allowlist"] = ",".join(sorted(settings.symbols))
    if not is_url(settings.reports_dir):
        values["reports_dir"] = Path(settings.reports_dir).resolve()
    with _cluster(settings, address, len(streams)) as client:
        from dask.distributed import Event, as_completed

        task = f"drainkit-{secrets.token_hex(6)}"
        stop = Event(task, client=client)
        threading.Thread(target=_follow, args=(stop, stopping), daemon=True).start()
        futures = {
            client.submit(
                run_stream, {**values, "stream": stream}, _server_id(settings, stream), task,
                key=f"{task}-{number}", retries=0, pure=False,
            ): stream
            for number, stream in enumerate(streams)
        }  # fmt: skip
        try:
            for future in as_completed(futures):
                try:
                    outcome = future.result()
                except Exception as error:  # Dask's own: a task that was lost or cancelled
                    outcome = outcome_of(futures[future], error)
                yield outcome
        finally:
            stop.set()  # ends who waits for it
            for event in (stop, *(Event(f"{task}-{s}", client=client) for s in streams)):
                event.clear()


def _follow(event: Any, leader: Any) -> None:
    """A thread's work: set the event once its leader is, as long as both can be reached."""
    with suppress(Exception):  # the cluster has ended
        leader.wait()
        event.set()


@contextmanager
def _cluster(settings: Settings, address: str, tasks: int) -> Iterator[Any]:
    try:
        from dask.distributed import Client, LocalCluster
    except ImportError:
        raise UsageError("--dask needs a package: pip install 'drainkit[dask]'") from None
    with ExitStack() as stack:
        try:
            place: Any = address
            if address == "local":
                os.environ[URL] = settings.redis_url.get_secret_value()  # workers inherit it
                place = stack.enter_context(LocalCluster(
                    n_workers=min(tasks, os.cpu_count() or 1), threads_per_worker=1,
                    host="127.0.0.1", dashboard_address=None, silence_logs=logging.CRITICAL,
                ))  # fmt: skip
            client = stack.enter_context(Client(place, timeout=_WAIT_SEC))
            client.wait_for_workers(1, timeout=_WAIT_SEC)
        except (OSError, ValueError, TimeoutError) as error:
            raise UsageError(
                f"--dask {address}: {str(error) or type(error).__name__}; "
                "start dask scheduler and dask worker, or say --dask local"
            ) from None
        yield client


def _server_id(settings: Settings, stream: str) -> str:
    with Server.of(settings, stream) as server:
        return server.info.run_id


def run_stream(values: dict[str, Any], server_id: str, task: str) -> Outcome:
    """One stream's run, on a worker."""
    from dask.distributed import Event

    stream, stopping = str(values["stream"]), threading.Event()
    begun, stop = Event(f"{task}-{stream}"), Event(task)
    try:
        if begun.is_set():
            raise DrainkitError(
                "its Dask worker was lost in the middle, and it is not run twice by itself; "
                "run the same command again to go on"
            )
        if stop.is_set():
            raise InterruptedRunError("not run: interrupted")
        begun.set()
        settings = build({**values, "redis_url": os.environ.get(URL, "")}, asked=frozenset())
        if _server_id(settings, stream) != server_id:
            raise RefusedError(f"the Dask worker's {URL} leads to another server than here")
        threading.Thread(target=_follow, args=(stopping, stop), daemon=True).start()
        return outcome_of(stream, run(
            settings, stopping=stopping,
            confirm=lambda one, plan: dry.check_planned(one.server, one.settings, plan),
        ))  # fmt: skip
    except Exception as error:  # what Dask would do with it is not ours
        return outcome_of(stream, error)
