"""Kernels for the notebooks, forked from one parent that has done what each of them would import.

papermill executes the notebooks, each in a kernel of its own; whether one ran to its end is seen
afterwards.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE, Popen
from types import SimpleNamespace
from typing import Any

import psutil
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from jupyter_core.utils import run_sync

from ..errors import DrainkitError, InterruptedRunError, UnwritableError, error_class
from ..safe import one_line
from .notebooks import LIVE

SOCKET_NAME_BYTES = 96  # the systems allow 104 and 108, and a number follows
INTERRUPTED = "interrupted; run the same command again to go on"


class Forked(psutil.Process):
    """A kernel: another process's child, for jupyter_client like a child of its own."""

    stdin = stdout = stderr = None

    def poll(self) -> int | None:
        """None while it runs."""
        return None if self.is_running() else 0

    def send_signal(self, sig: int) -> None:
        """Like a Popen's: nothing where it has ended already."""
        with suppress(psutil.NoSuchProcess):
            super().send_signal(sig)


class Kernels:
    """Kernels, one for each notebook of one run or of many; their parent imports once for all."""

    def __init__(self) -> None:
        self._parent = _parent()
        self._sockets = tempfile.TemporaryDirectory(prefix="drainkit-")

    def __enter__(self) -> Kernels:
        return self

    def __exit__(self, *_: object) -> None:
        self._parent.communicate()  # kernels that still run end with their parent
        self._sockets.cleanup()

    def fork(self, arguments: list[str], env: Mapping[str, str]) -> Forked:
        """A new kernel's process; DrainkitError if there can be none."""
        if self._parent.poll() is not None:  # it was killed: the next run is not to fail too
            self._parent.communicate()  # which closes its pipes
            self._parent = _parent()
        ask, answers = self._parent.stdin, self._parent.stdout
        try:
            print(json.dumps([arguments, env]), file=ask, flush=True)
            return Forked(int(answers.readline() if answers else ""))
        except (OSError, ValueError, psutil.Error) as error:
            raise DrainkitError("no kernel starts on this machine; try drainkit lab") from error

    def start(self, env: Mapping[str, str]) -> Any:
        """A kernel with this environment for the next notebook.

        It listens on files if their names are not too long. jupyter_client chooses a TCP port
        before the kernel binds it, and on a busy machine another program takes it between the two.
        """
        manager = AsyncKernelManager(kernel_name="python3")
        files = f"{self._sockets.name}/kernel"
        if len(os.fsencode(files)) < SOCKET_NAME_BYTES:
            manager.transport, manager.ip = "ipc", files
        manager.provisioner = _Provisioner(self, manager)
        run_sync(manager.start_kernel)(env=dict(env))
        return manager

    def execute(
        self,
        template: Path,
        folder: Path,
        parameters: Mapping[str, Any],
        env: Mapping[str, str],
        stopping: threading.Event,
        on_line: Callable[[str], None],
    ) -> None:
        """Execute one notebook in a worker thread, so that signals reach this one.

        `on_line` gets the lines that the cells of the live one print. Raises what the notebook
        failed by.
        """
        # jsonschema would build a grammar (1.5 s of CPU) for a format that notebooks do not have
        sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
        import papermill

        if stopping.is_set():
            raise InterruptedRunError(INTERRUPTED)
        out, is_live = folder / template.name, template.stem == LIVE
        printed = is_live and SimpleNamespace(  # a file for papermill to print into
            write=lambda text: [*map(on_line, text.splitlines())], flush=lambda: None
        )
        manager = self.start(env)
        # papermill keeps the paths in the metadata, and formats them with the parameters
        paths = [
            p.replace("{", "{{").replace("}", "}}") for p in (os.path.relpath(template), str(out))
        ]
        running = ThreadPoolExecutor(1).submit(
            papermill.execute_notebook, *paths, parameters=parameters, kernel_name="python3",
            progress_bar=False, stdout_file=printed or None, km=manager,
        )  # fmt: skip
        interrupted = False
        while wait([running], 0.1).not_done:
            if stopping.is_set() and not interrupted:
                interrupted = True
                if is_live:  # it finishes its commit, or does not begin at all
                    with suppress(RuntimeError, OSError):  # a kernel that died needs none
                        run_sync(manager.signal_kernel)(signal.SIGUSR1)
                else:  # it changes nothing on the server; its output is not needed
                    run_sync(manager.shutdown_kernel)(now=True)
        run_sync(manager.shutdown_kernel)(now=True)  # its notebook is saved, its files are written
        problem, error = _what_failed(out), running.exception()
        if not problem and error:
            problem = one_line(str(error) or type(error).__name__)
        kind, _, message = problem.partition(": ")
        cause = error_class(kind)
        if problem and (interrupted or cause is InterruptedRunError):
            raise InterruptedRunError(INTERRUPTED)
        if problem:  # the reports folder may have gone away under the run
            cause = DrainkitError if issubclass(cause, UnwritableError) else cause
            raise cause(f"{template.stem} failed: {message or problem}")


class _Provisioner(LocalProvisioner):
    """Launches a kernel by a fork of the parent."""

    def __init__(self, kernels: Kernels, manager: Any) -> None:
        super().__init__(kernel_id="", kernel_spec=manager.kernel_spec, parent=manager)
        self._kernels = kernels

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Fork a kernel with the arguments that follow the launcher's name."""
        process = self._kernels.fork(cmd[cmd.index("-f") :], kwargs["env"])
        self.process = process  # type: ignore[assignment] # it has what is used of a Popen
        self.pid = self.pgid = process.pid
        return self.connection_info


def _parent() -> Popen[str]:
    """The process that kernels are forked from; it imports while the run prepares."""
    # signals are for the run alone, whoever gets them: the parent ends with its stdin
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        command = [sys.executable, "-P", "-m", "drainkit.views.forking"]
        return Popen(command, stdin=PIPE, stdout=PIPE, text=True, start_new_session=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _what_failed(path: Path) -> str:
    """Why an executed notebook is no success, in one line; empty if it is one."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return "the executed notebook was not written"
    code = [c for c in cells if c["cell_type"] == "code" and "".join(c["source"]).strip()]
    for output in (output for cell in code for output in cell["outputs"]):
        if output["output_type"] == "error":
            return one_line(f"{output['ename']}: {output['evalue']}", 400)
    is_dead = any(cell["execution_count"] is None for cell in code)
    return "the kernel died in the middle (a cell was never finished)" * is_dead
