"""Notebooks executed by papermill, a kernel for each, and whether one ran to its end."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import errors
from ..errors import DrainkitError, InterruptedRunError, UnwritableError, UsageError
from ..safe import one_line

LIVE = "03_live_drain"
NOTEBOOKS = ("01_analyse_backlog", "02_dry_run", LIVE, "04_verify")
SOCKET_NAME_BYTES = 96  # the systems allow 104 and 108, and a number follows
OPEN_FILES = 64  # of a run
#: what examples/requirements-lean.txt leaves out
PACKAGES = ("ipywidgets", "itables", "jupyterlab", "pandas", "papermill", "plotly", "psutil")
PATIENCE_SEC = 10.0  # for a notebook that was interrupted
INTERRUPTED = "interrupted; run the same command again to go on"
_GRAMMAR = "rfc3987_syntax"  # see quick_imports


@contextmanager
def quick_imports() -> Iterator[None]:
    """Within, nbformat is imported in a tenth of its time.

    jsonschema imports rfc3987_syntax where it is there, and that builds a grammar (1.5 s of CPU) to
    check texts of the format "iri", which the schema of notebooks does not have.
    """
    if _GRAMMAR in sys.modules:
        yield
        return
    sys.modules[_GRAMMAR] = None  # type: ignore[assignment] # importing it raises ImportError
    try:
        yield
    finally:
        del sys.modules[_GRAMMAR]


def check_installed() -> None:
    """Refuse notebooks in a lean installation, naming what it lacks."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UsageError(
            f"notebooks need {', '.join(missing)}, which this lean installation has not; "
            "pip install drainkit"
        )


def check_open_files() -> None:
    """Refuse a run that could not open what its kernels need: libzmq would end it at once."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= allowed < OPEN_FILES:
        raise DrainkitError(
            f"a run needs {OPEN_FILES} open files, and {allowed} are allowed; raise `ulimit -n`"
        )


def _failure(name: str, problem: str, *, interrupted: bool) -> DrainkitError:
    kind, _, message = problem.partition(": ")
    cause = errors.named(kind)
    if interrupted or cause is InterruptedRunError:
        return InterruptedRunError(INTERRUPTED)
    if issubclass(cause, UnwritableError):  # the reports folder went away under the run
        cause = DrainkitError
    return cause(f"{name} failed: {message or problem}")


def _what_failed(path: Path) -> str:
    """Why an executed notebook is no success, in one line; empty if it is one."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return "the executed notebook was not written"
    for cell in cells:
        if cell["cell_type"] != "code" or not "".join(cell["source"]).strip():
            continue
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                return one_line(f"{output['ename']}: {output['evalue']}", 400)
        if cell["execution_count"] is None:
            return "the kernel died in the middle (a cell was never finished)"
    return ""


@dataclass
class _Told:
    """A file for papermill to print into."""

    on_line: Callable[[str], None]

    def write(self, text: str) -> None:
        for line in text.splitlines():
            self.on_line(line)

    def flush(self) -> None:
        """What was written has been told already."""


class Kernels:
    """Kernels, one for each notebook, from one parent that has their imports done."""

    def __init__(self, env: dict[str, str]) -> None:
        with quick_imports():
            from .warm import Parent

        self._env = env
        self._parent = Parent()
        self._sockets = tempfile.TemporaryDirectory(prefix="drainkit-")

    def __enter__(self) -> Kernels:
        return self

    def __exit__(self, *_: object) -> None:
        self._parent.close()
        self._sockets.cleanup()

    def start(self) -> Any:
        """A kernel for the next notebook.

        It listens on files if their names are not too long. jupyter_client chooses a TCP port
        before the kernel binds it, and on a busy machine another program takes it between the two.
        """
        from jupyter_client.manager import AsyncKernelManager
        from jupyter_core.utils import run_sync

        from .warm import Provisioner

        manager = AsyncKernelManager(kernel_name="python3")
        files = f"{self._sockets.name}/kernel"
        if len(os.fsencode(files)) < SOCKET_NAME_BYTES:
            manager.transport, manager.ip = "ipc", files
        manager.provisioner = Provisioner(self._parent, manager)
        run_sync(manager.start_kernel)(env=self._env)
        return manager

    def execute(
        self,
        template: Path,
        folder: Path,
        parameters: Mapping[str, Any],
        stopping: threading.Event,
        *,
        is_live: bool,
        on_line: Callable[[str], None] | None,
    ) -> None:
        """Execute one notebook in a worker thread, so that signals reach this one.

        `on_line` gets the lines that its cells print. Raises what the notebook failed by.
        """
        with quick_imports():
            import papermill

        if stopping.is_set():
            raise InterruptedRunError(INTERRUPTED)
        out = folder / template.name
        raised: list[BaseException] = []
        manager = self.start()

        def work() -> None:
            try:
                papermill.execute_notebook(
                    # papermill keeps it in the metadata, and formats paths with the parameters
                    *(path.replace("{", "{{").replace("}", "}}")
                      for path in (os.path.relpath(template), str(out))),
                    parameters=parameters,
                    kernel_name="python3",
                    progress_bar=False,
                    stdout_file=_Told(on_line) if on_line else None,
                    km=manager,
                )  # fmt: skip
            except BaseException as error:
                raised.append(error)

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        interrupted, deadline = False, 0.0
        while worker.is_alive():
            worker.join(0.1)
            if stopping.is_set() and not interrupted:
                interrupted = True
                self._interrupt(manager, is_live=is_live)
                deadline = time.monotonic() + PATIENCE_SEC
            if interrupted and not is_live and time.monotonic() > deadline:
                self.end(manager)  # it changes nothing on the server; its output is not needed
                deadline = math.inf
        self.end(manager)
        problem = _what_failed(out)
        if raised and not problem:
            problem = one_line(str(raised[0]) or type(raised[0]).__name__)
        if problem:
            raise _failure(template.stem, problem, interrupted=interrupted)

    def _interrupt(self, manager: Any, *, is_live: bool) -> None:
        """Interrupt a notebook; a live drain finishes its commit, or does not begin at all."""
        from jupyter_core.utils import run_sync

        with suppress(RuntimeError, OSError):  # a kernel that died needs none
            if is_live:
                run_sync(manager.signal_kernel)(signal.SIGUSR1)
            else:
                run_sync(manager.interrupt_kernel)()

    def end(self, manager: Any) -> None:
        """Shut a kernel down at once: its notebook is saved, its files are written."""
        from jupyter_core.utils import run_sync

        run_sync(manager.shutdown_kernel)(now=True)
