"""The notebooks as files: where they are, which are the packaged ones, copies.

The SHA-256 of the packaged ones are here, not beside the files, so that an edit of one shows.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import files
from ..errors import DrainkitError, RefusedError, UsageError
from ..settings.kinds import is_url

LIVE = "03_live_drain"
#: A run's notebooks in turn, with the SHA-256 of the packaged ones; test_release.py checks it.
NOTEBOOKS = {
    "01_analyse_backlog": "12e56b72aeafbfa07a7c9a8a4a8fba749f706e9fca5af5bcc945c9ae15b6d23c",
    "02_dry_run": "d6dfd417d1b982f52e44360802a333740863a3391e4be41193fe2d5f9eefea0c",
    LIVE: "8bca7d5946a5c7ff47458f4e4bf2fba96988ac81e46d78fe026fd2eb53fffb15",
    "04_verify": "9e8a68dfd1d12247d1e7147d4f86d3de361373e30a3dc497d853f7f611c84426",
}
FIRST, *_ = NOTEBOOKS
PACKAGE = Path(__file__).parents[1]
#: what examples/requirements-lean.txt leaves out
PACKAGES = ("ipywidgets", "itables", "jupyterlab", "pandas", "papermill", "plotly", "psutil")


def packaged_dir() -> Path:
    """Where the notebooks are: in the installed package, or beside it in a checkout."""
    for folder in (PACKAGE / "notebooks", PACKAGE.parent / "notebooks"):
        if (folder / f"{FIRST}.ipynb").exists():
            return folder
    raise DrainkitError("the notebooks are not installed with drainkit; install it again")


def of_run(folder: Path | None) -> dict[Path, dict[str, Any]]:
    """The notebooks that a run executes, of `folder`, else the packaged ones; what a statement says
    of each: name, sha256 (hex), and packaged, whether drainkit came with just these bytes.

    RefusedError where one was edited inside the installed package; UsageError where one is missing
    or does not take parameters.
    """
    home, found = folder or packaged_dir(), dict[Path, dict[str, Any]]()
    for name, packaged in NOTEBOOKS.items():
        path = home / f"{name}.ipynb"
        try:
            tagged = _tagged(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise UsageError(
                f"{home} has no {path.name}: drainkit notebooks {home} copies it there"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UsageError(f"{path} is not a notebook that can be read") from None
        if len(tagged) != 1:
            # without it, papermill's cell would come first and the notebook's own values would win
            raise UsageError(f"{path} must have one cell tagged parameters")
        digest = files.file_sha256(path)
        found[path] = {"name": path.name, "sha256": digest, "packaged": digest == packaged}
    edited = [one["name"] for one in found.values() if not one["packaged"]]
    if edited and home.resolve() == (PACKAGE / "notebooks").resolve():
        raise RefusedError(
            f"{', '.join(edited)} was edited inside the installed package: install drainkit "
            "again, and work on a copy (drainkit notebooks DIR, run --notebooks-dir DIR)"
        )
    return found


def _tagged(notebook: Any) -> list[Any]:
    """The cells tagged `parameters`."""
    cells = notebook["cells"]
    return [c for c in cells if "parameters" in c.get("metadata", {}).get("tags", [])]


def copy_to(folder: Path, *, force: bool = False, keep: bool = False) -> dict[str, str]:
    """Copy all notebooks into `folder`, made if missing; by name "copied", "kept" or "unchanged".

    A file there that differs is replaced with `force`, kept with `keep`; with neither all stays
    as it is and RefusedError names it.
    """
    found, sources = dict[str, str](), sorted(packaged_dir().glob("*.ipynb"))
    if not folder.exists():
        files.make_folder(folder)
    for source in sources:
        there = folder / source.name
        found[source.name] = "kept" if os.path.lexists(there) and not force else "copied"
        with suppress(OSError):  # there is none; a link, a folder: it differs
            if files.file_sha256(there) == files.file_sha256(source):
                found[source.name] = "unchanged"
    if (kept := [name for name, how in found.items() if how == "kept"]) and not keep:
        raise RefusedError(
            f"{', '.join(kept)} in {folder} would be overwritten; nothing was "
            "copied: choose another folder, or say --force"
        )
    for source in sources:
        if found[source.name] == "copied":
            files.write_bytes(folder / source.name, source.read_bytes())
    return found


def of_sealed(place: str, folder: Path) -> str:
    """01 with this run as its `run_dir`, in `folder`; its name. One that is there stays."""
    run_dir = place if is_url(place) else str(Path(place).resolve())
    path = folder / f"01_{Path(run_dir).name}.ipynb"
    notebook = json.loads((packaged_dir() / f"{FIRST}.ipynb").read_text(encoding="utf-8"))
    (cell,) = _tagged(notebook)
    empty, full = 'run_dir: str = ""', f"run_dir: str = {json.dumps(run_dir)}"
    cell["source"] = [line.replace(empty, full) for line in cell["source"]]
    if not path.exists():
        files.write_json(path, notebook)
    return path.name


def check_installed() -> None:
    """Refuse notebooks in a lean installation, naming what it lacks."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UsageError(
            f"notebooks need {', '.join(missing)}, which this lean installation has not; "
            "pip install drainkit"
        )
