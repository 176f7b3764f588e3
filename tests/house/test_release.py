"""What is installed: the same bytes each time; whole, or without notebooks, which it then says."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest
from backlogs import add_consumers
from conftest import ROOT, Cli, CliResult, one_line_error
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from place import Place
from program import Programs
from servers import Server

from drainkit.pipeline.notebooks import NOTEBOOKS, PACKAGES

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run(command: Sequence[object], cwd: Path, **env: str) -> CliResult:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("DRAINKIT_")}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env={**inherited, **env}, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    return CliResult(tuple(map(str, command)), done.returncode, done.stdout, done.stderr)


def test_the_code_knows_the_packaged_notebooks() -> None:
    """Their SHA-256 in pipeline/notebooks.py are those of the files: note an edit there."""
    books = sorted((ROOT / "notebooks").glob("0*.ipynb"))
    assert {b.stem: hashlib.sha256(b.read_bytes()).hexdigest() for b in books} == NOTEBOOKS


def test_two_builds_are_one_and_the_sdist_is_whole(tmp_path: Path, cli: Cli) -> None:
    """The unpacked sdist builds the very bytes again; one version in all; no picture is missed."""
    build = [sys.executable, "-m", "hatchling", "build", "-d"]
    assert run([*build, tmp_path / "first"], ROOT).rc == 0
    version = PROJECT["version"]
    names = [f"drainkit-{version}-py3-none-any.whl", f"drainkit-{version}.tar.gz"]
    with tarfile.open(tmp_path / "first" / names[1]) as sdist:
        sdist.extractall(tmp_path, filter="data")
    unpacked = tmp_path / f"drainkit-{version}"
    assert run([*build, tmp_path / "second"], unpacked).rc == 0
    for name in names:
        first, second = ((tmp_path / which / name).read_bytes() for which in ("first", "second"))
        assert first == second, name
    assert {".ci/run", "reports/example/run.json", "tests/conftest.py", "notebooks/README.md"} <= {
        str(path.relative_to(unpacked)) for path in unpacked.glob("**/*")
    }
    with ZipFile(tmp_path / "first" / names[0]) as wheel:
        shipped, about = wheel.namelist(), wheel.read(f"drainkit-{version}.dist-info/METADATA")
    assert {name.split("/")[0] for name in shipped} == {"drainkit", f"drainkit-{version}.dist-info"}
    assert {"drainkit/notebooks/01_analyse_backlog.ipynb", "drainkit/examples/Containerfile",
            "drainkit/schemas/statement.schema.json"} < {*shipped}  # fmt: skip
    assert b"\nAuthor: The drainkit developers\n" in about
    assert not re.search(rb"\]\((?!https?:)", about), "a picture or page that the index has not"
    assert cli.done("--version").out == f"drainkit, version {version}\n"
    assert re.search(rf"(?m)^## \[?{re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text())


# ---------------------------------------------------------------- without notebooks


def lean_requirements() -> list[str]:
    lines = (ROOT / "drainkit" / "examples" / "requirements-lean.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def needed(line: str) -> set[str]:
    """The distribution of a requirement and all that it depends on here."""
    wanted = Requirement(line)
    if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
        return set()
    name = canonicalize_name(wanted.name)
    return {name}.union(*map(needed, metadata.requires(name) or []))


@pytest.fixture
def lean(tmp_path: Path) -> Iterator[Cli]:
    """drainkit where only that can be imported which requirements-lean.txt brings."""
    brought = {"drainkit"}.union(*map(needed, lean_requirements()))
    installed = metadata.packages_distributions().items()
    programs = Programs(
        [m for m, of in installed if brought.isdisjoint(map(canonicalize_name, of))]
    )
    yield Cli(tmp_path, programs)
    programs.close()


def test_every_dependency_is_lean_or_named_when_it_is_missed() -> None:
    """requirements-lean.txt and PACKAGES are the project's dependencies, each in one of both."""
    lean, all_of_them = set(lean_requirements()), set(PROJECT["dependencies"])
    assert lean < all_of_them
    assert {Requirement(line).name for line in all_of_them - lean} == set(PACKAGES)


def test_a_lean_installation_drains_and_watches(lean: Cli, valkey: Server, stream: str) -> None:
    """Without Jupyter, pandas and plotly all but run, lab and demo work; these name it."""
    place = Place(valkey, stream, lean)
    ids = place.seed()
    add_consumers(valkey, stream, 1)
    for command, *options in (
        ("status", "--all"), ("fields",), ("show", ids[0]), ("acl",), ("stop", "--reason", "x"),
        ("resume",), ("export", "backlog.parquet"), ("export", "backlog/"),
        ("drain", "--max-events", "all", "--plan", "plan.json"),
        ("drain", "--mode", "live", "--yes", "--throttle", "none", "--allow-active-consumers"),
        ("consumers", "--min-idle-min", 0, "--delete", "--yes"),
        ("trim", "--apply", "--yes", "--archive", "old.parquet"), ("check",),
        ("check", "--format", "prometheus"),
    ):  # fmt: skip
        done = place.says(command, *options)
        assert done.rc == 0, done
    for elsewhere in (("diff", "plan.json", "plan.json"), ("notebooks", "books"),
                      ("verify", ROOT / "reports" / "example"),
                      ("runs", ROOT / "reports", "--html", "runs.html")):  # fmt: skip
        lean.done(*elsewhere)
    where = ("--redis-url", valkey.url)
    for args in (("run", *where), ("run", "--all-streams", "*", *where), ("lab",), ("demo",)):
        said = lean.fails(2, *args)
        assert all(name in said for name in PACKAGES)
    assert not (lean.cwd / "reports").exists()


# ---------------------------------------------------------------- where it runs


def test_windows_is_refused_in_one_line(tmp_path: Path) -> None:
    """Where the locks of files are missing the program says so, and nothing else."""
    code = ("import runpy, sys; sys.modules['fcntl'] = None; "
            "runpy.run_module('drainkit', run_name='__main__')")  # fmt: skip
    done = run([sys.executable, "-c", code, "--help"], tmp_path, PYTHONPATH=str(ROOT))
    assert (done.rc, done.out) == (2, "")
    assert "WSL" in one_line_error(done.err)
