"""Kernels forked from one parent, which has imported what each of them would import.

The parent (`python -m` this module) reads from stdin, a line for each kernel, its arguments and
environment; it forks the kernel and prints its process id. It ends when its stdin does, with the
run, however that ended, and its kernels end with it.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from typing import Any, NoReturn

import psutil
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from ..errors import DrainkitError
from .kernels import quick_imports


class Forked(psutil.Process):
    """A kernel: another process's child, for jupyter_client like a child of its own."""

    stdin = stdout = stderr = None

    def poll(self) -> int | None:
        """None while it runs."""
        return None if self.is_running() else 0


class Parent:
    """The parent of a run's kernels; it imports while the run prepares."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C on a terminal is for the run alone
        )

    def fork(self, arguments: list[str], env: dict[str, str]) -> Forked:
        """A new kernel; DrainkitError if there can be none."""
        ask, answers = self._process.stdin, self._process.stdout
        try:
            print(json.dumps([arguments, env]), file=ask, flush=True)
            return Forked(int(answers.readline() if answers else ""))
        except (OSError, ValueError, psutil.Error) as error:
            raise DrainkitError("no kernel starts on this machine; try drainkit lab") from error

    def close(self) -> None:
        """End the parent; kernels that still run end with it."""
        self._process.communicate()


class Provisioner(LocalProvisioner):
    """Launches a kernel by a fork of the parent."""

    def __init__(self, parent: Parent, manager: Any) -> None:
        super().__init__(kernel_id="", kernel_spec=manager.kernel_spec, parent=manager)
        self._parent = parent

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Fork a kernel with the arguments that follow the launcher's name."""
        process = self._parent.fork(cmd[cmd.index("-f") :], kwargs["env"])
        self.process = process  # type: ignore[assignment] # it has what is used of a Popen
        self.pid = self.pgid = process.pid
        return self.connection_info


def main() -> None:
    """Import, then fork a kernel for each line of stdin."""
    with quick_imports():
        import nbformat  # noqa: F401 # plotly's first figure imports it
        import plotly.graph_objects  # noqa: F401
        from ipykernel import kernelapp  # noqa: F401

        from ..views import analyse_backlog, dry_run, live_drain, verify  # noqa: F401
    live_drain.heed_stop_signal()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    gc.collect()
    gc.freeze()  # the kernels' collectors leave all this alone
    for line in sys.stdin:
        arguments, env = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become_kernel(arguments, env)
        print(pid, flush=True)


def _become_kernel(arguments: list[str], env: dict[str, str]) -> NoReturn:
    from ipykernel.kernelapp import IPKernelApp

    parent = os.getppid()
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(env)
    # ipykernel ends when that process does
    IPKernelApp.launch_instance(argv=[*arguments, f"--IPKernelApp.parent_handle={parent}"])
    sys.exit()


if __name__ == "__main__":
    main()
