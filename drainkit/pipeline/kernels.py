"""Kernels, one for each notebook, and whether a notebook ran to its end."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import DrainkitError, UsageError
from ..safe import one_line

LIVE = "03_live_drain"
NOTEBOOKS = ("01_analyse_backlog", "02_dry_run", LIVE, "04_verify")
SOCKET_NAME_BYTES = 96  # the systems allow 104 and 108, and a number follows
OPEN_FILES = 64  # of a run
#: what examples/requirements-lean.txt leaves out
PACKAGES = ("ipywidgets", "itables", "jupyterlab", "pandas", "papermill", "plotly", "psutil")
PATIENCE_SEC = 10.0  # for a notebook that was interrupted
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


def literal_path(path: str) -> str:
    """The path for papermill, which formats paths with the parameters."""
    return path.replace("{", "{{").replace("}", "}}")


def what_failed(path: Path) -> str:
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

    def stop(self, manager: Any, *, is_live: bool) -> None:
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
