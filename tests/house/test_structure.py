"""The house stands as DESIGN says: layers, one writer to Redis, one writer of files, no traces.

Each rule is a function from source text to findings, tried below on sources that break it.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, Cli, lacking

PACKAGE = ROOT / "drainkit"
MODULES = sorted(PACKAGE.glob("**/*.py"))

#: Folders (and single modules) by floor: each imports only from the floors before its own, and
#: from itself. Within a folder the import graph has no circle.
FLOORS = [
    {"safe"},
    {"errors", "ids"},
    {"files"},
    {"signing", "settings"},
    {"core"},
    {"server"},
    {"draining", "operations", "evidence", "demo"},
    {"views", "pipeline"},
    {"cli"},
]

NOTEBOOKS = [
    "01_analyse_backlog", "02_dry_run", "03_live_drain", "04_verify", "monitor", "maintenance",
]  # fmt: skip

# ---------------------------------------------------------------- floors


def imported_modules(module: str, source: str) -> set[str]:
    """The drainkit modules (dotted, below drainkit) that a module imports, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {a.name.partition(".")[2] for a in node.names if a.name.startswith("drainkit")}
        elif isinstance(node, ast.ImportFrom) and (
            node.level or (node.module or "").split(".")[0] == "drainkit"
        ):
            home = module.split(".")[: -node.level] if node.level else []
            path = (node.module or "").removeprefix("drainkit").strip(".")
            base = ".".join([*home, *([path] if path else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}".strip(".")
                is_module = PACKAGE.joinpath(*whole.split(".")).with_suffix(".py").exists()
                found.add(whole if is_module else base)
    return found


def floor_of(module: str) -> int:
    """The floor of a module's folder; -1 where it has none."""
    top = module.split(".", maxsplit=1)[0]
    return next((n for n, names in enumerate(FLOORS) if top in names), -1)


def upward_imports(module: str, source: str) -> list[str]:
    """Imports that do not go down, or lead to a folder without a floor."""
    if floor_of(module) < 0:
        return [f"{module} has no floor"]
    top = module.split(".", maxsplit=1)[0]
    return [
        f"{module} imports {name or 'drainkit'}"
        for name in sorted(imported_modules(module, source))
        if name.split(".")[0] != top and not 0 <= floor_of(name) < floor_of(module)
    ]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


INNER = [path for path in MODULES if module_name(path) not in ("__init__", "__main__")]


@pytest.mark.parametrize("path", INNER, ids=module_name)
def test_imports_go_down_only(path: Path) -> None:
    """Each folder has its floor, and its modules import only from the floors below."""
    assert upward_imports(module_name(path), path.read_text()) == []


def test_no_circle() -> None:
    """No module imports itself by way of others."""
    edges = {module_name(p): imported_modules(module_name(p), p.read_text()) for p in INNER}
    for _ in range(len(edges)):
        edges = {m: found & edges.keys() for m, found in edges.items() if found & edges.keys()}
        if not edges:
            break
    assert edges == {}


@pytest.mark.parametrize(
    "source",
    [
        "import drainkit.server.reading",
        "from drainkit.server import reading",
        "from ..server.reading import pages",
        "import drainkit",
        "def late():\n    from ..cli.main import main",
        "from ..utils import helper",
        "if TYPE_CHECKING:\n    from ..evidence import seal",
    ],
)
def test_an_upward_import_is_found(source: str) -> None:
    """However it is written, an import of a higher or unknown folder is found."""
    assert upward_imports("core.policy", source)
    assert not upward_imports("core.policy", "import numpy\nfrom .events import Events")


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_modules_and_classes_stay_small(path: Path) -> None:
    """No module is longer than 400 lines, no class than 150, no function than 60."""
    source = path.read_text()
    most = {ast.ClassDef: 150, ast.FunctionDef: 60}
    assert len(source.splitlines()) <= 400
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(source))
        for kind, limit in most.items()
        if isinstance(node, kind) and (node.end_lineno or 0) - node.lineno + 1 > limit
    ]
    assert long == []


def test_no_module_is_a_drawer_for_everything() -> None:
    """No module is named utils, helpers, common or misc."""
    names = {path.stem for path in (*MODULES, *ROOT.glob("tests/**/*.py"))}
    assert names.isdisjoint({"util", "utils", "helpers", "common", "misc"})


HEAVY = {"numpy", "pandas", "plotly", "papermill", "pyarrow", "nbconvert", "jupyterlab", "redis"}


def test_help_is_light() -> None:
    """`drainkit --help` imports neither pandas nor plotly nor anything as heavy."""
    said = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "drainkit", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in said.stderr.splitlines()}
    assert "drainkit.cli.main" in imported
    assert imported & HEAVY == set()


# ---------------------------------------------------------------- walls

#: What may stand only where the first column says, whatever calls it.
WALLS = {
    "Redis is talked to in server/": (
        ("server",), r"\.(call|send|receive|pipeline)\(|^\s*(import|from) (redis|hiredis)\b",
    ),
    "server/writing.py alone sends commands that write": (
        ("server.writing", "server.acl"),
        r"""["'](EVAL\w*|FCALL\w*|X(ADD|ACK\w*|DEL\w*|TRIM|CLAIM|AUTOCLAIM|READGROUP|GROUP|SETID)|"""
        r"""[HM]?SET\w*|GETDEL|DEL|UNLINK|RENAME\w*|EXPIRE\w*|FLUSH\w*|CONFIG)["' ]""",
    ),
    "files.py alone writes files": (
        # the embedded server's private folder goes with it; papermill writes into the run's folder
        ("files", "demo.embedded", "pipeline"),
        r"\.(write_(text|bytes|table|csv|html|image)|mkdir|makedirs|unlink|rmdir|rmtree|touch|rename|"
        r"mk[ds]temp|to_(parquet|csv|pickle|excel)|copy\w*file\w*|ParquetWriter)\("
        r"|open\([^)]*[\"'][wax+]b?[\"']",
    ),
}  # fmt: skip


def breaches(wall: str, module: str, source: str) -> list[str]:
    """Lines of a module that only others may have."""
    homes, pattern = WALLS[wall]
    if any(module == home or module.startswith(f"{home}.") for home in homes):
        return []
    own = re.sub(r"\b(files|writing)\.\w+\(", "(", source)  # through the owner, by its name
    return [line.strip() for line in own.splitlines() if re.search(pattern, line)]


@pytest.mark.parametrize("wall", WALLS)
def test_walls_stand(wall: str) -> None:
    """Only server/ talks to Redis, only writing.py writes there, only files.py writes files."""
    found = {module_name(p): breaches(wall, module_name(p), p.read_text()) for p in MODULES}
    assert {module: lines for module, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    [
        "server.call('XADD', key, '*')",
        "self.server.send(*command)",
        "    from redis import Redis",
        "name = 'XGROUP CREATE'",
        "path.write_text('')",
        "open('a', 'w')",
        "pq.ParquetWriter(path, schema)",
        "path.parent.mkdir(parents=True)",
    ],
)
def test_a_breach_is_found(source: str) -> None:
    """However a module would reach past a wall, it is found."""
    assert any(breaches(wall, "operations.checks", source) for wall in WALLS)


# ---------------------------------------------------------------- what git holds

# Written in parts, so that this file does not hold what it looks for.
_HOSTS = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("registry", "npmjs"),
        ("deb", "debian"),
        ("security", "debian"),
    )
]
_SHARED_PARENTS = {"/", "/tmp", "/home", "/root", "/opt", "/srv", "/mnt", "/var/tmp", "/usr/src"}


def traces(text: bytes, root: Path) -> list[str]:
    """Registry hosts and paths of the building machine that stand in `text`."""
    places = {str(root), "/".join(("", "work")), "/".join(("", "root", "."))}
    if str(root.parent) not in _SHARED_PARENTS:
        places.add(str(root.parent))
    patterns = [re.escape(host) for host in _HOSTS]
    for place in places:
        # at the beginning of a path (`file:///...` too), and no longer name that begins alike
        end = "" if place.endswith(".") else r"(?=/|[^\w.-]|$)"
        patterns.append(rf"(?<![\w.~*)}}-]){re.escape(place)}{end}")
    return [match.group().decode() for match in re.finditer("|".join(patterns).encode(), text)]


def _files_of_git() -> list[Path]:
    """Tracked files and those about to be: whatever `git add .` would take."""
    said = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if said.returncode:
        lacking("git checkout of drainkit")
    found = [ROOT / name.decode() for name in said.stdout.split(b"\0") if name]
    return [path for path in found if path.is_file()]


def test_git_holds_no_trace_of_this_machine() -> None:
    """No file in git names a package registry's host or a path of the machine it was made on."""
    files = _files_of_git()
    assert Path(__file__) in files
    found = {str(path.relative_to(ROOT)): traces(path.read_bytes(), ROOT) for path in files}
    assert {name: hits for name, hits in found.items() if hits} == {}


def test_a_trace_is_found() -> None:
    """Hosts and paths are found in text, JSON and URLs; other paths are left alone."""
    root = Path("/data/builds/drainkit")
    for text in (
        f"https://{_HOSTS[0]}/simple",
        '"input_path": "/data/builds/drainkit/notebooks/a.ipynb"',
        "file:///data/builds/other",
        'cd "/{}/main"'.format("work"),
        "/root/{}cache".format("."),
    ):
        assert traces(text.encode(), root), text
    for text in (
        "/data/builds2",
        "reports/work/x",
        "/workspace",
        "/usr/bin/redis-server",
        "/tmp/x",
    ):
        assert traces(text.encode(), root) == []
    assert traces(b"/tmp/x", Path("/tmp/clone")) == []


# ---------------------------------------------------------------- notebooks


def notebook_faults(notebook: nbformat.NotebookNode) -> list[str]:
    """Outputs, execution counts and functions in a notebook's source."""
    faults = []
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        if cell.outputs or cell.execution_count is not None:
            faults.append(f"cell {number} has outputs: strip them")
        nodes = ast.walk(ast.parse(cell.source))
        if any(isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for n in nodes):
            faults.append(f"cell {number} defines a function or class: move it into a module")
    return faults


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_stripped_and_define_nothing(name: str) -> None:
    """Each notebook of the contract is there, without outputs, and its logic is in modules."""
    path = ROOT / "notebooks" / f"{name}.ipynb"
    assert notebook_faults(nbformat.read(path, as_version=4)) == []


def test_no_other_notebooks() -> None:
    """The folder holds the contract's notebooks and no others, so each is checked above."""
    assert {path.stem for path in (ROOT / "notebooks").glob("**/*.ipynb")} <= set(NOTEBOOKS)


def test_a_faulty_notebook_is_found() -> None:
    """Outputs, counts and definitions are each found."""
    new = nbformat.v4.new_code_cell
    output = nbformat.v4.new_output("stream", text="x")
    cells = [new("x = 1"), new("x", outputs=[output]), new("x", execution_count=3)]
    cells += [new("if x:\n    def f():\n        pass"), nbformat.v4.new_markdown_cell("def f():")]
    faults = notebook_faults(nbformat.v4.new_notebook(cells=cells))
    assert [fault.split()[1] for fault in faults] == ["1", "2", "3"]


# ---------------------------------------------------------------- the program's two names


def test_both_names_are_the_same_program(cli: Cli) -> None:
    """`python -m drainkit` and the installed `drainkit` say the same."""
    installed = Path(sys.executable).with_name("drainkit")
    said = subprocess.run([installed, "--help"], capture_output=True, text=True, check=True)
    result = cli("--help")
    assert result.rc == 0
    assert result.out == said.stdout
