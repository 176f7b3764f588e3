"""The house stands as DESIGN says: floors, one writer to Redis, one writer of files, no traces."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, Cli, lacking

PACKAGE = ROOT / "drainkit"
MODULES = sorted(PACKAGE.glob("**/*.py"))
BOOKS = {"01_analyse_backlog", "02_dry_run", "03_live_drain", "04_verify", "monitor", "maintenance"}
HEAVY = {"numpy", "pandas", "plotly", "papermill", "pyarrow", "nbconvert", "jupyterlab", "redis"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def test_imports_go_down_only() -> None:
    """Folders import from the floors below, no module from itself, Redis only in server/."""
    checked = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout
    assert "3 kept, 0 broken" in checked.stdout


def test_modules_and_classes_stay_small() -> None:
    """No module is longer than 400 lines, no class than 300, no function than 60; none is a drawer
    for everything."""
    most = {ast.ClassDef: 300, ast.FunctionDef: 60}
    assert not {path.stem for path in MODULES} & {"util", "utils", "helpers", "common", "misc"}
    for path in MODULES:
        lines = path.read_text().splitlines()
        assert len(lines) <= 400, path
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                size = (node.end_lineno or 0) - node.lineno + 1
                assert size <= most[type(node)], (path, node.name)


def test_help_is_light() -> None:
    """`drainkit --help` imports neither pandas nor plotly nor anything as heavy."""
    command = [sys.executable, "-X", "importtime", "-m", "drainkit", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    imported = {line.rpartition("|")[2].strip() for line in said.stderr.splitlines()}
    assert "drainkit.cli.desk" in imported
    assert imported & HEAVY == set()


#: What may stand only in the modules of the first column, whatever calls it.
WALLS = {
    "Redis is talked to in server/": (("server",), r"\.(call|send|receive|pipeline)\("),
    "server/writing.py alone sends commands that write": (
        ("server.writing", "server.keys"),
        r"""["'](EVAL\w*|FCALL\w*|X(ADD|ACK\w*|DEL\w*|TRIM|CLAIM|AUTOCLAIM|READGROUP|GROUP|SETID)|"""
        r"""[HM]?SET\w*|GETDEL|DEL|UNLINK|RENAME\w*|EXPIRE\w*|FLUSH\w*|CONFIG)["' ]""",
    ),
    "nobody has a client of anything but Redis": (  # a bucket of evidence is fsspec's (remote.py)
        ("evidence.remote",),
        r"^\s*(import|from) +(fsspec|s3fs|requests|httpx?|aiohttp|urllib3|urllib\.request|"
        r"http\.client|websockets?|ftplib|smtplib|xmlrpc|ccxt|binance)\b",
    ),
    "nobody asks for the host's time, but for the server's TIME and a monotonic clock": (
        (),
        r"\btime\.time(_ns)?\(|\.(utc)?now\(\)|\.now\((dt\.)?UTC|\.today\(|\btime\.(gmtime|localtime)",
    ),
    "files.py alone writes files": (
        # the embedded server's private folder goes with it; papermill writes into the run's folder
        ("files", "demo", "pipeline"),
        r"\.(write_(text|bytes|table|csv|html|image)|mkdir|makedirs|unlink|rmdir|rmtree|touch|rename|"
        r"mk[ds]temp|to_(parquet|csv|pickle|excel)|copy\w*file\w*|ParquetWriter)\("
        r"|open\([^)]*[\"'][wax+]b?[\"']",
    ),
}  # fmt: skip


@pytest.mark.parametrize("wall", WALLS)
def test_walls_stand(wall: str) -> None:
    """Only server/ talks to Redis, only writing.py writes there, only files.py writes files;
    there is no client of an exchange, nor of anything else (G10); time is the server's."""
    homes, pattern = WALLS[wall]

    def breaches(source: str) -> list[str]:
        own = re.sub(r"\b(files|writing)\.\w+\(", "(", source)  # through the owner, by its name
        return [line.strip() for line in own.splitlines() if re.search(pattern, line)]

    others = {name: path for path in MODULES if not (name := module_name(path)).startswith(homes)}
    found = {name: breaches(path.read_text()) for name, path in others.items()}
    assert {name: lines for name, lines in found.items() if lines} == {}
    assert breaches("import httpx\nserver.call('XADD', key); path.write_text(time.time())")


def test_git_holds_no_trace_of_this_machine() -> None:
    """No file in git names a package registry's host or a path of the machine it was made on."""
    if (ROOT / "PKG-INFO").exists():
        pytest.skip("an unpacked sdist, which was made of what git has")
    said = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=False,
    )  # fmt: skip
    if said.returncode:
        lacking("git checkout of drainkit")
    # in parts, so that this file does not hold what it looks for
    hosts = ["pypi\\" + ".org", "pythonhosted\\" + ".org", "registry\\" + ".npmjs",
             "(deb|security)\\" + ".debian"]  # fmt: skip
    shared = {"/", "/tmp", "/home", "/root", "/opt", "/srv", "/mnt", "/var/tmp", "/usr/src"}
    places = {str(ROOT), "/" + "work", "/root/" + ".", str(ROOT.parent)} - shared
    ends = [re.escape(p) + ("" if p.endswith(".") else r"(?=/|[^\w.-]|$)") for p in places]
    trace = re.compile("|".join([*hosts, rf"(?<![\w.~*)}}-])({'|'.join(ends)})"]).encode())
    names = [ROOT / name.decode() for name in said.stdout.split(b"\0") if name]
    assert Path(__file__) in names
    found = {str(name): trace.findall(name.read_bytes()) for name in names if name.is_file()}
    assert {name: hits for name, hits in found.items() if hits} == {}
    assert trace.search(f'"input_path": "{ROOT}/notebooks/a.ipynb"'.encode())


def test_notebooks_are_stripped_and_define_nothing() -> None:
    """The contract's notebooks and no others are there, without outputs, their logic in modules."""
    books = {path.stem: path for path in (ROOT / "notebooks").glob("**/*.ipynb")}
    assert books.keys() == BOOKS
    for name, path in books.items():
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                assert (cell.outputs, cell.execution_count) == ([], None), name
                kinds = {type(node) for node in ast.walk(ast.parse(cell.source))}
                assert not kinds & {ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef}, name


def test_both_names_are_the_same_program(cli: Cli) -> None:
    """`python -m drainkit` and the installed `drainkit` say the same; `jupyter drainkit` finds an
    executable of that name, with the same entry."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["jupyter-drainkit"] == scripts["drainkit"]
    installed = Path(sys.executable).with_name("drainkit")
    said = subprocess.run([installed, "--help"], capture_output=True, text=True, check=True)
    result = cli("--help")
    assert (result.rc, result.out) == (0, said.stdout)
