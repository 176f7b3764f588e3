"""`python -m drainkit`, and papermill, as processes that need not import anything again.

Each is a process of its own with its own environment, folder, pipes and exit code, as from a shell;
only its imports are those of a parent that it was forked from, and at its end it does not take them
down one by one. The parent of a run's kernels is forked from the run in the same way. That saves
two thirds of the suite's time, 0.7 s of CPU a call and 3 s a run. What is about the interpreter
itself (PYTHON... variables), about kernels and what a packaged program does is tested with
interpreters of their own.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

KERNELS = "drainkit.views.forking"  # the parent of a run's
PRELOADED = (
    "drainkit.cli.desk", "drainkit.cli.draining", "drainkit.cli.operations",
    "drainkit.draining.live", "drainkit.draining.dry", "drainkit.evidence.verify",
    "drainkit.operations.checks", "drainkit.operations.events", "drainkit.operations.maintenance",
    "drainkit.operations.state", "prometheus_client",
    "drainkit.pipeline.report", "drainkit.pipeline.runner", "drainkit.pipeline.kernels", "jinja2",
    KERNELS, "drainkit.views.analyse_backlog", "drainkit.views.dry_run",
    "drainkit.views.live_drain", "drainkit.views.verify", "nbclient", "pandas",
    "papermill.cli", "pyarrow.parquet", "rich.console",
    "rich.progress", "rich.table", "IPython.display", "ipykernel.displayhook", "narwhals.stable.v1",
)  # fmt: skip
THREADLESS = "background_thread:false"  # of a fork beside a thread Python 3.12 warns


class Programs:
    """Starts programs by forks of one parent, where modules of the names `without` are missing."""

    def __init__(self, without: Sequence[str] = ()) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._parent = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), *without],
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONUTF8": "1", "JE_ARROW_MALLOC_CONF": THREADLESS},
            )
        self._socket, self._lock = ours, threading.Lock()

    def send(self, request: bytes, fds: list[int]) -> None:
        """Ask for a program; of several threads one after another."""
        with self._lock:
            socket.send_fds(self._socket, [struct.pack("I", len(request))], fds)
            self._socket.sendall(request)

    def close(self) -> None:
        self._socket.close()
        self._parent.wait()


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
        args, cwd, env = given[0], given[5], given[6]
        stdin, stdout, stderr = given[10], given[13], given[15]
        self._status, status = os.pipe()
        request = json.dumps([*args[2:3], args[3:], str(cwd), env]).encode()
        fds = [stdin, stdout, stderr, status]
        self._programs.send(request, fds)
        for fd in {*fds} - {self._terminal}:
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


def serve(requests: socket.socket) -> str:
    """Fork a program for each request; "" at the end, a module's name in each of the programs."""
    programs: dict[int, int] = {}  # where to tell how it ended, by process id
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([requests, woken], [], [])
        if woken in ready:
            woken.recv(4096)
            while programs and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                os.write(programs[ended[0]], struct.pack("i", ended[1]))
                os.close(programs.pop(ended[0]))
        if requests not in ready:
            continue
        size, fds, _, _ = socket.recv_fds(requests, 4, 4)
        if not size:
            return ""
        request = requests.recv(struct.unpack("I", size)[0], socket.MSG_WAITALL)
        if program := os.fork():
            programs[program] = fds.pop()
            os.write(programs[program], struct.pack("i", program))
            for fd in fds:
                os.close(fd)
            continue
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for fd in programs.values():
            os.close(fd)
        for one in (woken, waker, requests):
            one.close()
        return _become(*json.loads(request), fds)


def _become(module: str, args: list[str], cwd: str, env: dict[str, str], fds: list[int]) -> str:
    for standard, fd in enumerate(fds[:3]):
        os.dup2(fd, standard)
    for fd in fds:
        os.close(fd)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [module, *args]
    return module


class Kernels(subprocess.Popen[str]):
    """The parent of a run's kernels: a fork of the run, whose other files it does not have."""

    def _execute_child(self, *given: Any) -> None:
        """Instead of fork and exec; `given` is what subprocess.Popen hands over."""
        stdin, stdout = given[10], given[13]
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.dup2(stdin, 0)
            os.dup2(stdout, 1)
            os.closerange(3, 1 << 16)
            sys.stdin, sys.stdout = open(0), open(1, "w")  # noqa: SIM115 - these three
            sys.path.pop(0)  # as with -P
            try:
                runpy.run_module(KERNELS, run_name="__main__", alter_sys=True)
            finally:  # never back into the run
                atexit._run_exitfuncs()
                os._exit(0)
        os.close(stdin)
        os.close(stdout)
        self._child_created = True


def _popen(*given: Any, **options: Any) -> subprocess.Popen[Any]:
    """In the place of subprocess.Popen; a fork beside threads might never get their locks."""
    is_parent = given and isinstance(given[0], list) and given[0][-1:] == [KERNELS]
    forks = is_parent and threading.active_count() == 1
    return (Kernels if forks else _Popen)(*given, **options)


_Popen = subprocess.Popen


def _run(module: str) -> None:
    """The program; where it ends by an exit code, it ends there at once."""
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
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


def _preload(names: Sequence[str]) -> None:
    for name in names:
        try:
            __import__(name)
        except ModuleNotFoundError as error:  # a lean environment has no notebooks
            if str(error.name).startswith("drainkit"):
                raise


def main() -> None:
    atexit.register(_exit_at_once)  # first, so that it is called last
    sys.path[0] = ""  # as with -m: not this folder
    for unwanted in ("rfc3987_syntax", "debugpy"):
        sys.modules[unwanted] = None  # type: ignore[assignment] # as in views.forking
    find, missing = PathFinder.find_spec, sys.argv[2:]
    # not by a None in sys.modules, which pyarrow takes for pandas
    PathFinder.find_spec = (  # type: ignore[method-assign]
        lambda name, *more: None if name in missing else find(name, *more)
    )
    _preload(PRELOADED)
    _preload(sys.modules.pop(KERNELS).IMPORTED)  # it is to run as a program
    del sys.modules["rfc3987_syntax"]
    gc.collect()
    gc.freeze()  # or each program's collector would visit, and so copy, all this
    subprocess.Popen = _popen  # type: ignore[assignment,misc]
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        module = serve(requests)
    if module:
        _run(module)


if __name__ == "__main__":
    main()
