"""One run for each stream of a pattern, one after another, or as tasks of a Dask cluster.

A stream's failure stops no other. Dask gives the tasks of a worker that died to another worker,
whatever `retries` says: a mark on the scheduler keeps such a task from draining again. It is told
as failed; whether it drained anything its ledger and audit tell, and the same command again goes
on where it ended.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.policy import ACTIONS
from ..draining import unattended
from ..draining.plan_files import PlanFile
from ..draining.run import Run
from ..errors import (
    DrainkitError,
    InterruptedRunError,
    RefusedError,
    UnreachableError,
    UsageError,
)
from ..operations.checks import streams
from ..safe import one_line
from ..server import reading
from ..server.connection import Server
from ..settings import Settings, build
from ..settings.kinds import is_url
from . import runner

URL = "DRAINKIT_REDIS_URL"
_POLL_SEC = 1.0
_WAIT_SEC = 30.0  # for Dask's first worker
SUMS = ("total_read", *ACTIONS, "errors", "remaining")
# from good to bad: refused may be meant so, what failed is to be looked at first
_BADNESS = (0, 4, 2, 3, 1, 130)


@dataclass(frozen=True)
class Outcome:
    """How the run of one stream ended; `result` is its run.json, where it came to one."""

    stream: str
    exit_code: int
    outcome: str
    error: str | None
    result: dict[str, Any]

    @classmethod
    def of(cls, stream: str, result: dict[str, Any]) -> Outcome:
        """Of a run that came to its end, however it ended."""
        code = int(result.get("exit_code") or 0)
        return cls(stream, code, str(result.get("outcome")), result.get("error"), result)

    @classmethod
    def failed(cls, stream: str, error: Exception) -> Outcome:
        """Of a run that did not begin, or whose end nobody saw; any error is one line of it."""
        if not isinstance(error, DrainkitError):
            error = DrainkitError(f"unexpected {type(error).__name__}: {error}")
        word = {130: "interrupted", 4: "refused"}.get(error.exit_code, "failed")
        return cls(stream, error.exit_code, word, str(error), {})

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: the run's summary, with stream and end in any case."""
        return {**self.result, **{k: v for k, v in vars(self).items() if k != "result"}}


def streams_of(server: Server, settings: Settings, pattern: str) -> tuple[list[str], list[Outcome]]:
    """The pattern's streams that have the consumer group; RefusedError where there is none.

    With them, for what could not be asked (a node that hangs), how that ended: it stops no other.
    A name that is not UTF-8 cannot be given as a parameter, and is refused too: no stream that
    waits to be drained is left out in silence.
    """
    found: list[str] = []
    outcomes: list[Outcome] = []
    for name, one in streams(server, settings, pattern):
        if isinstance(one, RefusedError):
            raise RefusedError(f"{name}: {one}; use a narrower pattern")
        try:
            if isinstance(one, DrainkitError):
                raise one
            if settings.consumer_group in reading.positions(one):
                found.append(name)
        except UnreachableError as error:
            outcomes.append(Outcome.failed(one_line(name), error))
    if not found and not outcomes:
        raise RefusedError(
            f"--all-streams {pattern}: no stream has the group "
            f"{settings.consumer_group}; check pattern and --consumer-group"
        )
    return found, outcomes


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
            result = run_one(settings.model_copy(update={"stream": stream}))
            outcome = Outcome.of(stream, result)
        except Exception as error:
            outcome = Outcome.failed(stream, error)
        if outcome.exit_code == InterruptedRunError.exit_code:
            stopping.set()  # at a question: the others are not to be asked for
        yield outcome


def summary(pattern: str, settings: Settings, outcomes: list[Outcome]) -> dict[str, Any]:
    """All runs together, JSON-ready: counts added up, the worst exit code, each run below."""
    sums = {name: sum(int(outcome.result.get(name) or 0) for outcome in outcomes) for name in SUMS}
    codes = (o.exit_code for o in outcomes)
    worst = max(codes, key=lambda c: _BADNESS.index(c if c in _BADNESS else 1), default=0)
    return {
        "pattern": pattern, "mode": settings.mode, "consumer_group": settings.consumer_group,
        "exit_code": worst, "done": sum(not o.exit_code for o in outcomes),
        "not_done": [o.stream for o in outcomes if o.exit_code],
        **sums, "streams": [outcome.as_dict() for outcome in outcomes],
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
    if settings.symbols is not None:
        values["allowlist"] = ",".join(sorted(settings.symbols))
    if not is_url(settings.reports_dir):
        values["reports_dir"] = Path(settings.reports_dir).resolve()
    with _cluster(settings, address, len(streams)) as client:
        from dask.distributed import Event, as_completed

        run = secrets.token_hex(6)
        stop = Event(f"drainkit-{run}-stop", client=client)
        futures = {
            client.submit(
                run_stream, {**values, "stream": stream}, _server_id(settings, stream), run,
                key=f"drainkit-{run}-{one_line(stream, 60)}-{number}", retries=0, pure=False,
            ): stream
            for number, stream in enumerate(streams)
        }  # fmt: skip
        try:
            with _passed_on(stopping, stop):
                for future in as_completed(futures):
                    if future.status == "finished":
                        yield future.result()
                        continue
                    is_error = future.status == "error"  # which may hold what it likes
                    kind = type(future.exception()).__name__ if is_error else future.status
                    yield Outcome.failed(futures[future], DrainkitError(
                        f"its Dask task ended without a result ({kind}); run the same command "
                        "again to go on"
                    ))  # fmt: skip
        finally:
            for name in [stop, *(Event(_mark(run, s), client=client) for s in streams)]:
                name.clear()


@contextmanager
def _passed_on(stopping: Any, stop: Any) -> Iterator[None]:
    """While this lasts, the event `stop` follows `stopping`."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_POLL_SEC):
            if stopping.is_set():
                stop.set()
                return

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()


@contextmanager
def _cluster(settings: Settings, address: str, tasks: int) -> Iterator[Any]:
    try:
        from dask.distributed import Client, LocalCluster
    except ImportError:
        raise UsageError("--dask needs a package: pip install 'drainkit[dask]'") from None
    with ExitStack() as stack:
        try:
            if address == "local":
                os.environ[URL] = settings.redis_url.get_secret_value()  # workers inherit it
                cluster = LocalCluster(
                    n_workers=max(1, min(tasks, os.cpu_count() or 1)), threads_per_worker=1,
                    processes=True, host="127.0.0.1", dashboard_address="127.0.0.1:0",
                    silence_logs=logging.CRITICAL,
                )  # fmt: skip
                client = stack.enter_context(Client(stack.enter_context(cluster)))
            else:
                client = stack.enter_context(Client(address, timeout=_WAIT_SEC))
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


def _mark(run: str, stream: str) -> str:
    return f"drainkit-{run}-begun-{stream}"


def run_stream(values: dict[str, Any], server_id: str, run: str) -> Outcome:
    """One stream's run, on a worker."""
    from dask.distributed import Event

    stream, stopping = str(values["stream"]), threading.Event()
    begun, stop = Event(_mark(run, stream)), Event(f"drainkit-{run}-stop")
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
        if not settings.redis_url.get_secret_value():
            raise UsageError(f"the Dask worker has no {URL}; start it with the same as here")
        if _server_id(settings, stream) != server_id:
            raise RefusedError(f"the Dask worker's {URL} leads to another server than here")

        def confirm(one: Run, planned: PlanFile) -> None:
            unattended.check_planned(one.server, settings, planned)

        with _passed_on(stop, stopping):
            result, _ = runner.run(settings, confirm=confirm, stopping=stopping)
        return Outcome.of(stream, result)
    except Exception as error:  # what Dask would do with it is not ours
        return Outcome.failed(stream, error)
