"""Runs as tasks of a Dask cluster: each at most once, none of them stopped by another's end.

Dask gives the tasks of a worker that died to another worker, whatever `retries` says. A mark on the
scheduler keeps such a task from draining again: it is told as failed, and a person decides.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..draining import unattended
from ..errors import DrainkitError, InterruptedRunError, RefusedError, UsageError
from ..safe import one_line
from ..server.connection import Server
from ..settings import Settings, build
from ..settings.kinds import allowlist_symbols, is_url
from . import runner
from .many import Outcome, Tell, as_told, settings_for

URL = "DRAINKIT_REDIS_URL"
_POLL_SEC = 1.0
_WAIT_SEC = 30.0  # for the first worker


def run_with_dask(
    settings: Settings, streams: list[str], address: str, *, tell: Tell, stopping: threading.Event
) -> Iterator[Outcome]:
    """Run the streams as tasks of the cluster at `address`, or of a `local` one of this machine.

    The workers take the server's URL from their own DRAINKIT_REDIS_URL (no password travels), and
    refuse another server than the one seen here. A relative reports folder is this process's.
    """
    with _cluster(settings, address, len(streams)) as client:
        from dask.distributed import Event, as_completed

        run = secrets.token_hex(6)
        stop = Event(f"drainkit-{run}-stop", client=client)
        futures = {
            client.submit(
                run_stream, _plain(settings_for(settings, stream)), _server_id(settings, stream),
                run, key=f"drainkit-{run}-{one_line(stream, 60)}-{number}", retries=0, pure=False,
            ): stream
            for number, stream in enumerate(streams)
        }  # fmt: skip
        over = threading.Event()
        watching = threading.Thread(target=_pass_on, args=(stopping, stop, over), daemon=True)
        watching.start()
        try:
            for future in as_completed(futures):
                outcome = _outcome(futures[future], future)
                tell(outcome)
                yield outcome
        finally:
            over.set()
            watching.join()
            for name in [stop, *(Event(_mark(run, s), client=client) for s in streams)]:
                name.clear()


def _pass_on(stopping: threading.Event, stop: Any, over: threading.Event) -> None:
    while not over.wait(_POLL_SEC):
        if stopping.is_set():
            stop.set()
            return


def _outcome(stream: str, future: Any) -> Outcome:
    if future.status == "finished":
        return Outcome(**future.result())
    # what Dask says may hold what it likes
    kind = type(future.exception()).__name__ if future.status == "error" else future.status
    lost = DrainkitError(
        f"its Dask task ended without a result ({kind}); run the same command again to go on"
    )
    return Outcome.failed(stream, lost)


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


def _plain(settings: Settings) -> dict[str, Any]:
    """The settings without the URL, such that they mean the same on another machine."""
    values = settings.model_dump(exclude={"redis_url"})
    if settings.allowlist is not None and settings.allowlist.startswith("@"):
        found = allowlist_symbols(settings.allowlist)
        values["allowlist"] = ",".join(sorted(found)) if isinstance(found, frozenset) else None
    if not is_url(settings.reports_dir):
        values["reports_dir"] = Path(settings.reports_dir).resolve()
    return values


def _server_id(settings: Settings, stream: str) -> str:
    with Server.of(settings, stream) as server:
        return server.info.run_id


def _mark(run: str, stream: str) -> str:
    return f"drainkit-{run}-begun-{stream}"


# ---------------------------------------------------------------- on the worker


def run_stream(values: dict[str, Any], server_id: str, run: str) -> dict[str, Any]:
    """One stream's run, on a worker; an Outcome's fields."""
    from dask.distributed import Event

    stream = str(values["stream"])
    begun, stop = Event(_mark(run, stream)), Event(f"drainkit-{run}-stop")
    if begun.is_set():
        lost = DrainkitError(
            "its Dask worker was lost in the middle, and it is not run twice by itself; "
            "run the same command again to go on"
        )
        return vars(Outcome.failed(stream, lost))
    if stop.is_set():
        return vars(Outcome.failed(stream, InterruptedRunError("not run: interrupted")))
    begun.set()
    settings = build({**values, "redis_url": os.environ.get(URL, "")}, asked=frozenset())
    try:
        if not settings.redis_url.get_secret_value():
            raise UsageError(f"the Dask worker has no {URL}; start it with the same as here")
        if _server_id(settings, stream) != server_id:
            raise RefusedError(f"the Dask worker's {URL} leads to another server than here")
        return vars(Outcome.of(stream, _run(settings, stop)))
    except Exception as error:  # what Dask would do with it is not ours
        return vars(Outcome.failed(stream, as_told(error)))


def _run(settings: Settings, stop: Any) -> dict[str, Any]:
    stopping, over = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(_POLL_SEC):
            if stop.is_set():
                stopping.set()
                return

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        return runner.run(
            settings,
            confirm=lambda server, _, planned: unattended.check_planned(server, settings, planned),
            stopping=stopping,
        )[0]
    finally:
        over.set()
        watching.join()
