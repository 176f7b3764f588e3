"""`python -m drainkit` as processes that need not import anything again.

Each is a process of its own with its own environment, folder, pipes and exit code, as from a shell;
only its imports are those of a parent that it was forked from, and at its end it does not take them
down one by one. That saves two thirds of the suite's time, 0.7 s of CPU a call. What is about the
interpreter itself (PYTHON... variables) and what a packaged program does is tested with
interpreters of their own.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PRELOADED = (
    "drainkit.cli.program", "drainkit.cli.desk", "drainkit.cli.draining", "drainkit.cli.operations",
    "drainkit.cli.review", "drainkit.draining.live", "drainkit.draining.dry",
    "drainkit.draining.unattended", "drainkit.evidence.verify",
    "drainkit.operations.checks", "drainkit.operations.export", "drainkit.operations.maintenance",
    "drainkit.operations.first", "prometheus_client", "drainkit.operations.entry",
    "drainkit.pipeline.report", "drainkit.pipeline.runner", "drainkit.pipeline.kernels", "jinja2",
    "nbclient", "pandas",
    "papermill", "plotly.graph_objects", "plotly.io", "pyarrow.parquet", "rich.console",
    "rich.progress", "rich.table", "IPython.display", "ipykernel.displayhook", "narwhals.stable.v1",
)  # fmt: skip
THREADLESS = "background_thread:false"  # of a fork beside a thread Python 3.12 warns


class Programs:
    """Starts programs by forks of one parent, in the `drainkit` that this process would import."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._parent = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONUTF8": "1", "JE_ARROW_MALLOC_CONF": THREADLESS},
            )
        self.socket = ours

    def close(self) -> None:
        self.socket.close()
        self._parent.wait()


class Program(subprocess.Popen[str]):
    """One program, for its user as any process of his own."""

    def __init__(
        self, programs: Programs, args: Sequence[str], cwd: Path, env: dict[str, str]
    ) -> None:
        self._programs = programs
        pipe = subprocess.PIPE
        super().__init__(
            [sys.executable, "-m", "drainkit", *args], cwd=cwd, env=env,
            stdin=pipe, stdout=pipe, stderr=pipe, text=True, encoding="utf-8",
        )  # fmt: skip

    def _execute_child(self, *given: Any) -> None:
        """Instead of fork and exec; `given` is what subprocess.Popen hands over."""
        args, cwd, env = given[0], given[5], given[6]
        stdin, stdout, stderr = given[10], given[13], given[15]
        self._status, status = os.pipe()
        request = json.dumps([args[3:], str(cwd), env]).encode()
        fds = [stdin, stdout, stderr, status]
        socket.send_fds(self._programs.socket, [struct.pack("I", len(request))], fds)
        self._programs.socket.sendall(request)
        for fd in fds:
            os.close(fd)
        self.pid = struct.unpack("i", os.read(self._status, 4))[0]
        self._child_created = True

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        os.set_blocking(self._status, not wait_flags & os.WNOHANG)
        try:
            told = os.read(self._status, 4)
        except BlockingIOError:
            return 0, 0
        os.close(self._status)
        return self.pid, struct.unpack("i", told)[0]

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(blocking=False):
            try:
                pid, status = self._try_wait(os.WNOHANG)
                if pid:
                    self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


def serve(requests: socket.socket) -> bool:
    """Fork a program for each request; False at the end, True in each of the programs."""
    while True:
        size, fds, _, _ = socket.recv_fds(requests, 4, 4)
        if not size:
            return False
        request = requests.recv(struct.unpack("I", size)[0], socket.MSG_WAITALL)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if program := os.fork():
                _tell(program, fds)
            _become(*json.loads(request), fds)
            requests.close()
            return True
        for fd in fds:
            os.close(fd)


def _tell(program: int, fds: list[int]) -> None:
    """Wait for a program, and tell its process id and how it ended."""
    for fd in fds[:3]:
        os.close(fd)
    os.write(fds[3], struct.pack("i", program))
    _, status = os.waitpid(program, 0)
    os.write(fds[3], struct.pack("i", status))
    os._exit(0)


def _become(args: list[str], cwd: str, env: dict[str, str], fds: list[int]) -> None:
    for standard, fd in enumerate(fds[:3]):
        os.dup2(fd, standard)
    for fd in fds:
        os.close(fd)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["drainkit", *args]


def _run() -> None:
    """The program; where it ends by an exit code, it ends there at once."""
    try:
        runpy.run_module("drainkit", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            _exit_code.append(end.code or 0)
        raise


def _exit_at_once() -> None:
    """The last at exit, in place of the interpreter's own end, which visits all that is loaded."""
    if _exit_code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_exit_code[0])


_exit_code: list[int] = []


def main() -> None:
    atexit.register(_exit_at_once)  # first, so that it is called last
    sys.path[0] = ""  # as with -m: not this folder
    sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment] # as in pipeline.notebooks
    for name in PRELOADED:
        __import__(name)
    del sys.modules["rfc3987_syntax"]
    gc.collect()
    gc.freeze()  # or each program's collector would visit, and so copy, all this
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        is_program = serve(requests)
    if is_program:
        _run()


if __name__ == "__main__":
    main()
