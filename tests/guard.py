"""No server outlives the tests: a process that ends them once the tests are gone."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path


class Guard:
    """Kills this process's servers and removes their folders once this process is gone.

    A child reads a pipe from us to its end. The kernel closes it when we die, by SIGKILL too; the
    child then does its work. (PR_SET_PDEATHSIG would do half of it, but fires when the *thread*
    that started the server ends.)
    """

    def __init__(self) -> None:
        # The shortest folder there is: a socket's whole path may have 107 bytes (104 on macOS).
        self.folder = Path(tempfile.mkdtemp(prefix="dk-", dir="/tmp"))
        self._child = subprocess.Popen(
            [sys.executable, "-I", __file__, self.folder],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the terminal must not end the guard first
        )

    def close(self) -> None:
        """Ends every server still running, and removes every folder."""
        self._child.communicate(timeout=20)


@cache
def guard() -> Guard:
    """The one of this process, made with its first server."""
    return Guard()


def running_pids(folders: Iterable[Path]) -> set[int]:
    """Every Redis or Valkey process whose folder is, or lies in, one of these.

    So those are found too that a dead program left behind, as conftest.py points TMPDIR of all
    programs to our folder. (A mark in the environment would not do: servers overwrite theirs with
    their process title.)
    """
    places, found = tuple(os.path.realpath(folder) for folder in folders), set()
    for process in Path("/proc").glob("[0-9]*") if places else ():
        with contextlib.suppress(OSError):  # gone meanwhile, a zombie, or another user's
            is_server = (process / "comm").read_text().startswith(("redis", "valkey"))
            if is_server and str((process / "cwd").readlink()).startswith(places):
                found.add(int(process.name))
    return found


if __name__ == "__main__":
    sys.stdin.read()
    for pid in running_pids([Path(sys.argv[1])]):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
    shutil.rmtree(sys.argv[1], ignore_errors=True)
