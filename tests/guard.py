"""No server outlives the tests: a process that ends them once the tests are gone."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import psutil

_GUARD = """
import os, shutil, signal, sys
folder, alive = sys.argv[1], set()
for line in sys.stdin:
    sign, pid = line.split()
    (alive.add if sign == "+" else alive.discard)(int(pid))
for pid in alive:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
shutil.rmtree(folder, ignore_errors=True)
"""


class _Guard:
    """Kills this process's servers and removes their folders once this process is gone.

    A child process reads our servers' pids from a pipe. The kernel closes the pipe when we die,
    by SIGKILL too; the child then does its work and ends. (PR_SET_PDEATHSIG would do half of
    it, but fires when the *thread* that started the server ends, exists on Linux only, and
    needs a preexec_fn, which Python warns about in a process with threads.)
    """

    def __init__(self) -> None:
        # The shortest folder there is: a socket's whole path may have 107 bytes (104 on macOS).
        self.folder = Path(tempfile.mkdtemp(prefix="dk-", dir="/tmp"))
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _GUARD, self.folder],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C in the terminal must not end the guard first
        )

    def note(self, sign: str, pid: int) -> None:
        """`+`: a server of ours; `-`: it ended."""
        assert self._child.stdin is not None
        self._child.stdin.write(f"{sign} {pid}\n")
        self._child.stdin.flush()

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._child.communicate(timeout=20)


@cache
def guard() -> _Guard:
    """The one of this process, made with its first server."""
    return _Guard()


def forget(pid: int) -> None:
    """It ended; there may be no guard any more when the last fixtures of a session end."""
    if guard.cache_info().currsize:
        guard().note("-", pid)


def close_guard() -> None:
    """Ends the guard, and with it every server still running and every folder."""
    if guard.cache_info().currsize:
        guard().close()
        guard.cache_clear()


def running_pids(folders: Iterable[Path]) -> set[int]:
    """Every Redis or Valkey process whose folder is, or lies in, one of these.

    So those are found too that a dead program left behind, as conftest.py points TMPDIR of all
    programs to our folder. (A mark in the environment would not do: servers overwrite theirs with
    their process title.)
    """
    places, found = tuple(os.path.realpath(folder) for folder in folders), set()
    for process in psutil.process_iter() if places else ():  # which takes 0.1 s
        with contextlib.suppress(psutil.Error):  # gone meanwhile, or another user's
            is_server = any(name in process.name() for name in ("redis", "valkey"))
            if not is_server or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.cwd().startswith(places):
                found.add(process.pid)
    return found
