"""`python -m drainkit`, and papermill, as processes that need not import anything again.

Each is a process of its own with its own environment, folder, pipes and exit code, as from a shell;
only its imports are those of a parent that it was forked from (preloaded.py, in the standard
library's fork server), and at its end it does not take them down one by one. The parent of a run's
kernels is forked from the run in the same way. That saves two thirds of the suite's time, 0.7 s of
CPU a call and 3 s a run. What is about the interpreter itself (PYTHON... variables), about kernels
and what a packaged program does is tested with interpreters of their own.
"""

from __future__ import annotations

import atexit
import os
import pickle
import runpy
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock


class Programs:
    """Starts programs by forks of one parent, where modules of the names `without` are missing."""

    def __init__(self, without: Sequence[str] = ()) -> None:
        self.server = forkserver.ForkServer()
        self.server.set_forkserver_preload(["preloaded"])
        folders = [str(Path(__file__).parent), os.environ["PYTHONPATH"]]
        own = {"PYTHONPATH": os.pathsep.join(folders), "WITHOUT": " ".join(without),
               # of a fork beside a thread Python 3.12 warns
               "PYTHONUTF8": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}  # fmt: skip
        with mock.patch.dict(os.environ, own):
            self.server.ensure_running()

    def close(self) -> None:
        self.server._stop()


@dataclass
class Start:
    """What the fork server sends to a fork, which then calls `_bootstrap`."""

    module: str
    args: list[str]
    cwd: str
    env: dict[str, str]

    def _bootstrap(self, _: int) -> int:
        """Become that program; its exit code."""
        for standard, fd in enumerate(forkserver.get_inherited_fds() or ()):
            os.dup2(fd, standard)
            os.close(fd)
        sys.stdin = open(0, errors="surrogateescape", closefd=False)  # noqa: SIM115
        sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
        os.chdir(self.cwd)
        os.environ.clear()
        os.environ.update(self.env)
        sys.argv = [self.module, *self.args]
        code: Any = 1
        try:
            runpy.run_module(self.module, run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as end:
            code = end.code or 0
            if not isinstance(code, int):
                print(code, file=sys.stderr)
                code = 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            if not stream.closed:
                stream.flush()
        return int(code)


class Program(subprocess.Popen[str]):
    """One program, for its user as any process of his own."""

    def __init__(
        self, programs: Programs, args: Sequence[str], cwd: Path, env: dict[str, str],
        terminal: int | None = None, module: str = "drainkit",
    ) -> None:  # fmt: skip
        self._programs = programs
        self._terminal = terminal
        streams: int = subprocess.PIPE if terminal is None else terminal
        super().__init__(
            [sys.executable, "-m", module, *args], cwd=cwd, env=env,
            stdin=streams, stdout=streams, stderr=streams, text=True, encoding="utf-8",
        )  # fmt: skip

    def _execute_child(self, *given: Any) -> None:
        """Instead of fork and exec; `given` is what subprocess.Popen hands over."""
        streams = [given[10], given[13], given[15]]
        start = Start(given[0][2], given[0][3:], str(given[5]), given[6])
        self._status, data = self._programs.server.connect_to_new_process(streams)
        # how multiprocessing is to prepare, and what to run; less than a pipe holds
        os.write(data, pickle.dumps({}) + pickle.dumps(start))
        os.close(data)
        for fd in {*streams} - {self._terminal}:
            os.close(fd)
        self.pid = forkserver.read_signed(self._status)
        self._child_created = True

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        os.set_blocking(self._status, not wait_flags & os.WNOHANG)
        try:
            code = forkserver.read_signed(self._status)
        except BlockingIOError:
            return 0, 0
        os.close(self._status)
        return self.pid, code

    def _handle_exitstatus(self, code: int, *_: Any) -> None:
        self.returncode = code

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None and (ended := self._try_wait(os.WNOHANG))[0]:
            self._handle_exitstatus(ended[1])
        return self.returncode
