"""The notebooks: as files (where they are, which are the packaged ones, copies) and as kernels.

What the package once held is known from elsewhere than the files themselves: an installed wheel's
RECORD lists their SHA-256; in a checkout the packaged ones are those of git's last commit.
papermill executes them, each in a kernel of its own; whether one ran to its end is seen afterwards.
"""

from __future__ import annotations

import base64
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .. import errors, files
from ..errors import DrainkitError, InterruptedRunError, RefusedError, UnwritableError, UsageError
from ..safe import one_line
from ..settings.kinds import is_url

LIVE = "03_live_drain"
NOTEBOOKS = ("01_analyse_backlog", "02_dry_run", LIVE, "04_verify")
PACKAGE = Path(__file__).parents[1]
_GIT_TIMEOUT_SEC = 10.0


@dataclass(frozen=True)
class Template:
    """A notebook that a run executes."""

    path: Path
    sha256: str  # hex
    packaged: bool  # whether drainkit came with just these bytes

    def as_dict(self) -> dict[str, object]:
        """As the statement holds it."""
        return {"name": self.path.name, "sha256": self.sha256, "packaged": self.packaged}


@dataclass(frozen=True)
class Copied:
    """The names of notebooks, by what `copy_to` did with them."""

    copied: list[str]
    kept: list[str]  # they differ from the packaged ones, and stayed as they were
    equal: list[str]


def packaged_dir() -> Path:
    """Where the notebooks are: in the installed package, or beside it in a checkout."""
    for folder in (PACKAGE / "notebooks", PACKAGE.parent / "notebooks"):
        if (folder / f"{NOTEBOOKS[0]}.ipynb").exists():
            return folder
    raise DrainkitError("the notebooks are not installed with drainkit; install it again")


def of_run(folder: Path | None) -> dict[str, Template]:
    """The notebooks of a run by name without suffix; those of `folder`, else the packaged ones.

    RefusedError where one was edited inside the installed package; UsageError where one is missing
    or does not take parameters.
    """
    home = folder or packaged_dir()
    known = _recorded() or _committed()
    found = {}
    for name in NOTEBOOKS:
        path = home / f"{name}.ipynb"
        _check_takes_parameters(path)
        digest = files.file_sha256(path)
        found[name] = Template(path, digest, packaged=known.get(path.name) == digest)
    if home.resolve() == (PACKAGE / "notebooks").resolve():
        edited = [t.path.name for t in found.values() if t.path.name in known and not t.packaged]
        if edited:
            raise RefusedError(
                f"{', '.join(edited)} was edited inside the installed package: install drainkit "
                "again, and work on a copy (drainkit notebooks DIR, run --notebooks-dir DIR)"
            )
    return found


def copy_to(folder: Path, *, force: bool = False, keep: bool = False) -> Copied:
    """Copy all notebooks into `folder`, made if missing.

    A file there that differs is replaced with `force`, stays with `keep`; with neither all stays
    as it is and RefusedError names it.
    """
    sources = sorted(packaged_dir().glob("*.ipynb"))
    try:
        there = {s.name: files.file_sha256(folder / s.name) for s in sources
                 if (folder / s.name).exists()}  # fmt: skip
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror or ''}") from None
    equal = [s.name for s in sources if there.get(s.name) == files.file_sha256(s)]
    differ = [name for name in there if name not in equal]
    if differ and not (force or keep):
        raise RefusedError(
            f"{', '.join(differ)} in {folder} would be overwritten; nothing was "
            "copied: choose another folder, or say --force"
        )
    wanted = [s for s in sources if s.name not in equal and (force or s.name not in differ)]
    for source in wanted:
        files.copy_file(source, folder / source.name)
    return Copied([s.name for s in wanted], [] if force else differ, equal)


def of_sealed(place: str, folder: Path) -> str:
    """01 with this run as its `run_dir`, in `folder`; its name. One that is there stays."""
    run_dir = place if is_url(place) else str(Path(place).resolve())
    path = folder / f"01_{Path(run_dir).name}.ipynb"
    notebook = json.loads((packaged_dir() / f"{NOTEBOOKS[0]}.ipynb").read_text(encoding="utf-8"))
    (cell,) = (c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", []))
    empty, full = 'run_dir: str = ""', f"run_dir: str = {json.dumps(run_dir)}"
    cell["source"] = [line.replace(empty, full) for line in cell["source"]]
    if not path.exists():
        files.write_json(path, notebook)
    return path.name


def _check_takes_parameters(path: Path) -> None:
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        tagged = [c for c in cells if "parameters" in c.get("metadata", {}).get("tags", [])]
    except FileNotFoundError:
        where = path.parent
        raise UsageError(
            f"{where} has no {path.name}: drainkit notebooks {where} copies it there"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{path} is not a notebook that can be read") from None
    if len(tagged) != 1:
        # without it, papermill's cell would come first and the notebook's own values would win
        raise UsageError(f"{path} must have one cell tagged parameters")


def _recorded() -> dict[str, str]:
    """SHA-256 (hex) by name as the installed wheel's RECORD says; empty in a checkout."""
    try:
        listed = metadata.distribution("drainkit").files or []
    except metadata.PackageNotFoundError:
        return {}
    found = {}
    for path in listed:
        inside = path.parts[:2] == ("drainkit", "notebooks")
        if inside and path.hash is not None and path.hash.mode == "sha256":
            if Path(str(path.locate())).resolve().parent != (PACKAGE / "notebooks").resolve():
                return {}  # another drainkit is installed than the one that runs
            value = path.hash.value
            digest = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))
            found[path.name] = digest.hex()
    return found


def _committed() -> dict[str, str]:
    """SHA-256 (hex) by name of a checkout's notebooks that are as git's last commit has them."""
    folder = packaged_dir()
    command = ["git", "--no-optional-locks", "-C", str(folder), "ls-files", "-z", "--", "*.ipynb"]
    changed = [*command[:4], "diff", "--name-only", "--relative", "-z", "HEAD", "--", "*.ipynb"]
    try:
        tracked, edited = (
            subprocess.run(
                args, capture_output=True, timeout=_GIT_TIMEOUT_SEC, check=True
            ).stdout.decode().split("\0")
            for args in (command, changed)
        )  # fmt: skip
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}  # no git, or no checkout: then nothing is known
    names = [name for name in tracked if name and name not in edited]
    return {name: files.file_sha256(folder / name) for name in names if (folder / name).is_file()}


# ---------------------------------------------------------------- executed, in kernels

SOCKET_NAME_BYTES = 96  # the systems allow 104 and 108, and a number follows
OPEN_FILES = 64  # of a run
#: what examples/requirements-lean.txt leaves out
PACKAGES = ("ipywidgets", "itables", "jupyterlab", "pandas", "papermill", "plotly", "psutil")
PATIENCE_SEC = 10.0  # for a notebook that was interrupted
INTERRUPTED = "interrupted; run the same command again to go on"
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


def _failure(name: str, problem: str, *, interrupted: bool) -> DrainkitError:
    kind, _, message = problem.partition(": ")
    cause = errors.named(kind)
    if interrupted or cause is InterruptedRunError:
        return InterruptedRunError(INTERRUPTED)
    if issubclass(cause, UnwritableError):  # the reports folder went away under the run
        cause = DrainkitError
    return cause(f"{name} failed: {message or problem}")


def _what_failed(path: Path) -> str:
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

    def execute(
        self,
        template: Path,
        folder: Path,
        parameters: Mapping[str, Any],
        stopping: threading.Event,
        *,
        is_live: bool,
        on_line: Callable[[str], None] | None,
    ) -> None:
        """Execute one notebook in a worker thread, so that signals reach this one.

        `on_line` gets the lines that its cells print. Raises what the notebook failed by.
        """
        with quick_imports():
            import papermill

        if stopping.is_set():
            raise InterruptedRunError(INTERRUPTED)
        out = folder / template.name
        raised: list[BaseException] = []
        printed = on_line and SimpleNamespace(  # a file for papermill to print into
            write=lambda text: [*map(on_line, text.splitlines())], flush=lambda: None
        )
        manager = self.start()

        def work() -> None:
            try:
                papermill.execute_notebook(
                    # papermill keeps it in the metadata, and formats paths with the parameters
                    *(path.replace("{", "{{").replace("}", "}}")
                      for path in (os.path.relpath(template), str(out))),
                    parameters=parameters,
                    kernel_name="python3",
                    progress_bar=False,
                    stdout_file=printed,
                    km=manager,
                )  # fmt: skip
            except BaseException as error:
                raised.append(error)

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        interrupted, deadline = False, 0.0
        while worker.is_alive():
            worker.join(0.1)
            if stopping.is_set() and not interrupted:
                interrupted = True
                self._interrupt(manager, is_live=is_live)
                deadline = time.monotonic() + PATIENCE_SEC
            if interrupted and not is_live and time.monotonic() > deadline:
                self.end(manager)  # it changes nothing on the server; its output is not needed
                deadline = math.inf
        self.end(manager)
        problem = _what_failed(out)
        if raised and not problem:
            problem = one_line(str(raised[0]) or type(raised[0]).__name__)
        if problem:
            raise _failure(template.stem, problem, interrupted=interrupted)

    def _interrupt(self, manager: Any, *, is_live: bool) -> None:
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
