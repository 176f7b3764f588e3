"""What the parent of programs (program.py) is when the first is forked from it."""

from __future__ import annotations

import atexit
import gc
import os
import runpy
import signal
import subprocess
import sys
import threading
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

KERNELS = "drainkit.views.forking"  # the parent of a run's
PRELOADED = (
    "program", "drainkit.cli.desk", "drainkit.cli.draining",
    "drainkit.cli.operations", "drainkit.draining.live", "drainkit.draining.dry",
    "drainkit.evidence.verify",
    "drainkit.operations.checks", "drainkit.operations.events", "drainkit.operations.maintenance",
    "drainkit.operations.state", "prometheus_client",
    "drainkit.pipeline.report", "drainkit.pipeline.runner", "drainkit.pipeline.kernels", "jinja2",
    KERNELS, "drainkit.views.analyse_backlog", "drainkit.views.dry_run",
    "drainkit.views.live_drain", "drainkit.views.verify", "nbclient", "pandas",
    "papermill.cli", "pyarrow.parquet", "rich.console",
    "rich.progress", "rich.table", "IPython.display", "ipykernel.displayhook", "narwhals.stable.v1",
)  # fmt: skip


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


def _find(name: str, *more: Any) -> Any:
    """Not by a None in sys.modules, which pyarrow takes for pandas."""
    return None if name in _missing else _find_spec(name, *more)


signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores
_Popen, _find_spec, _missing = subprocess.Popen, PathFinder.find_spec, os.environ["WITHOUT"].split()
for unwanted in ("rfc3987_syntax", "debugpy"):
    sys.modules[unwanted] = None  # type: ignore[assignment] # as in views.forking
PathFinder.find_spec = _find  # type: ignore[method-assign]
imported = [*PRELOADED]
for module in imported:
    try:
        __import__(module)
    except ModuleNotFoundError as error:  # a lean environment has no notebooks
        if str(error.name).startswith("drainkit"):
            raise SystemExit(str(error)) from None
    if module == KERNELS:
        imported += sys.modules.pop(KERNELS).IMPORTED  # it is to run as a program
del sys.modules["rfc3987_syntax"]
subprocess.Popen = _popen  # type: ignore[assignment,misc]
here = str(Path(__file__).parent)
sys.path[:] = ["", *(folder for folder in sys.path if folder not in ("", here))]  # as with -m
gc.collect()
gc.freeze()  # or each program's collector would visit, and so copy, all this
