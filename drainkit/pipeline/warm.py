"""Kernels forked from one parent, which has imported what each of them would import."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

import psutil
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from ..errors import DrainkitError


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


class Parent:
    """The parent of a run's kernels; it imports while the run prepares."""

    def __init__(self) -> None:
        # signals are for the run alone, whoever gets them: the parent ends with its stdin
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "drainkit.views.forking"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

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
