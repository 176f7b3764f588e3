"""The house stands as DESIGN says: layers, one writer to Redis, one writer of files, no traces.

Each rule is a function from source text to findings, tried below on sources that break it.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from conftest import Cli, lacking
from servers import Server

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "drainkit"
MODULES = sorted(PACKAGE.glob("**/*.py"))

#: A module imports only from those before it. `__init__` names the public parts of all.
LAYERS = [
    "errors", "embedded", "settings", "timestamps", "events", "policy", "audit", "plan", "server",
    "stream", "commit", "acl", "evidence", "ledger", "drain", "apply", "workers", "status",
    "maintenance", "monitor", "metrics", "schedule", "figures", "notebook", "boards", "report",
    "pipeline", "demo", "cli", "__main__", "__init__",
]  # fmt: skip

NOTEBOOKS = [
    "01_analyse_backlog", "02_dry_run", "03_live_drain", "04_verify", "monitor", "maintenance",
]  # fmt: skip

# ---------------------------------------------------------------- layers


def imported_modules(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each drainkit module that a source imports, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            home = ("drainkit." if node.level else "") + (node.module or "")
            home = home.rstrip(".")
            # `from . import plan` imports a module, `from .plan import Plan` one of its names
            whole = home == "drainkit"
            names = [f"drainkit.{alias.name}" for alias in node.names] if whole else [home]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "drainkit":
                yield node.lineno, [*name.split("."), "__init__"][1]


def upward_imports(module: str, source: str) -> list[str]:
    """Imports that do not go down the layers, and modules that have no place in them."""
    if module not in LAYERS:
        return [f"{module} has no place in the layers"]
    below = LAYERS[: LAYERS.index(module)]
    return [
        f"{module}:{line} imports {name}"
        for line, name in imported_modules(source)
        if name not in below
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_go_down_only(path: Path) -> None:
    """Each module has its place in the layers and imports only from below, so no circles."""
    assert upward_imports(path.stem, path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import drainkit.stream",
        "from drainkit import stream",
        "from drainkit.stream import page",
        "from .stream import page",
        "from . import stream",
        "from . import Something",
        "import drainkit",
        "def late():\n    from .cli import main",
        "from .utils import helper",
        "if TYPE_CHECKING:\n    from .commit import Commit",
    ],
)
def test_an_upward_import_is_found(source: str) -> None:
    """However it is written, an import of a higher or unknown module, or a circle, is found."""
    assert upward_imports("policy", source)
    assert not upward_imports("policy", "import numpy\nfrom .events import Events")


def test_no_module_is_a_drawer_for_everything() -> None:
    """No module is named utils, helpers, common or misc."""
    names = {path.stem for path in (*MODULES, *ROOT.glob("tests/**/*.py"))}
    assert names.isdisjoint({"util", "utils", "helpers", "common", "misc"})


HEAVY = {"pandas", "plotly", "papermill", "pyarrow", "nbconvert", "jupyterlab"}


def test_help_is_light() -> None:
    """`drainkit --help` imports neither pandas nor plotly nor anything as heavy."""
    if not (PACKAGE / "cli.py").exists():
        lacking("drainkit/cli.py yet")
    said = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "drainkit", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in said.stderr.splitlines()}
    assert "drainkit.cli" in imported
    assert imported & HEAVY == set()


# ---------------------------------------------------------------- one writer to Redis

#: Modules that may talk to redis-py itself; all others have only Server.call and its kin.
REDIS_PY = {"server"}
SENDERS = {"call", "send", "send_command", "execute_command", "pipeline"}
#: Write commands whose names are ordinary words of Python and pandas too: as the name of a
#: method they mean nothing, as a command (first argument of a sender, or in capitals) they do.
ORDINARY = {
    "append", "copy", "del", "move", "persist", "rename", "restore", "set", "sort", "unlink",
}  # fmt: skip


#: Commands that change a server and that no server files under writes or scripts.
CHANGING = (
    "config|set config|rewrite config|resetstat acl|setuser acl|deluser acl|load acl|save "
    "client|kill client|pause debug shutdown replicaof slaveof failover save bgsave bgrewriteaof "
    "cluster|failover cluster|meet cluster|reset cluster|forget cluster|addslots swapdb"
)


def write_commands(server: Server) -> set[str]:
    """Every command, such as `xadd` or `xgroup|create`, that the server itself calls a write,
    that can hide one (scripts), or that changes the server."""
    said = (name for category in ("write", "scripting") for name in _category(server, category))
    return {*said, *CHANGING.split()}


def _category(server: Server, name: str) -> list[str]:
    return [command.decode() for command in server.ask("ACL", "CAT", name)]


def is_write(words: list[str], writes: set[str]) -> bool:
    """Whether a command that begins with these words is one of `writes`.

    An empty second word stands for one that cannot be read here, and is taken for the worst.
    """
    name, sub = ([word.lower() for word in words] + ["-"])[:2]
    containers = {command.partition("|")[0] for command in writes if "|" in command}
    return name in writes or f"{name}|{sub}" in writes or (name in containers and not sub)


def redis_writes(module: str, source: str, writes: set[str]) -> list[str]:
    """Places where a source sends, or could send, a writing command."""
    tree = ast.parse(source)
    documentation = set(_docstrings(tree))
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = node.value.split()
            capitals = node.value.isupper() and len(words) in (1, 2)
            if capitals and is_write(words, writes) and node not in documentation:
                found.append((node.lineno, node.value))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found += [(node.lineno, what) for what in _sent(module, node, node.func.attr, writes)]
        elif isinstance(node, ast.Import | ast.ImportFrom) and module not in REDIS_PY:
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [] if node.level else [node.module or ""]
            found += [(node.lineno, name) for name in names if re.match(r"(redis|hiredis)\b", name)]
    return [f"{module}:{line} {what}" for line, what in found]


def _sent(module: str, call: ast.Call, method: str, writes: set[str]) -> Iterator[str]:
    words = method.split("_", 1)
    # evidence.save_plan and its kin write files; another test is about those
    files = ast.unparse(call.func).startswith("evidence.") or method == "save_plan"
    if words[0] not in ORDINARY and not files and is_write(words, writes):
        yield f".{method}("
    if method not in SENDERS or module in REDIS_PY:
        return
    for command in _commands(call, method):
        words = " ".join(map(_word, command[:2])).split(" ")
        if not words[0]:
            yield f".{method}( of a command that cannot be read here"
        elif is_write(words, writes):
            yield f".{method}({words}"


def _commands(call: ast.Call, method: str) -> list[list[ast.expr]]:
    """The commands that a call sends, each as its arguments; empty where not in sight."""
    first = call.args[0] if call.args else None
    if method != "pipeline":
        return [call.args]
    if isinstance(first, ast.List | ast.Tuple):
        items = first.elts
    elif isinstance(first, ast.ListComp | ast.GeneratorExp):
        items = [first.elt]
    else:
        return [[]]
    return [item.elts if isinstance(item, ast.Tuple) else [] for item in items]


def _word(argument: ast.expr) -> str:
    """A literal argument as text, else an empty word."""
    if not isinstance(argument, ast.Constant):
        return ""
    value = argument.value
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _docstrings(tree: ast.AST) -> Iterator[ast.Constant]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.value


def test_only_commit_writes_to_redis(valkey: Server) -> None:
    """No module but commit.py sends a command that the server counts as a write or a script."""
    writes = write_commands(valkey)
    assert {"xadd", "xdel", "set", "hset", "evalsha", "fcall", "xgroup|delconsumer"} <= writes
    assert writes.isdisjoint({"xrange", "xinfo|stream", "config|get", "cluster|slots"})
    found = [
        finding
        for path in MODULES
        if path.stem != "commit"
        # cli.py prints the commands that an administrator gives, as text
        for finding in redis_writes(path.stem, path.read_text(), writes)
        if not (path.stem == "cli" and finding.endswith(" ACL SETUSER "))
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "client.xadd(stream, fields)",
        "client.xgroup_create(stream, group)",
        "self.redis.pipeline().xack(stream, group, 1)",
        "client.hset('h', 'a', 1)",
        "client.config_set('maxmemory', 1)",
        "server.call('XADD', key, '*')",
        "server.call('xadd', key, '*')",
        "server.call(b'SET', key, 1)",
        "server.call('set', key, 1)",
        "server.send('XGROUP', 'CREATE', key)",
        "server.send('xgroup', what, key)",
        "server.call('CONFIG', 'SET', 'maxmemory', 1)",
        "server.pipeline([('XGROUP', 'SETID', key)])",
        "server.call('EVALSHA', sha, 0)",
        "server.call(command, key)",
        "server.call(*command)",
        "server.call(f'X{what}', key)",
        "server.pipeline([('XRANGE', key), ('DEL', key)])",
        "server.pipeline([('DEL', key) for key in keys])",
        "server.pipeline(commands)",
        "client.execute_command('XGROUP CREATE', key, group)",
        "name = 'XDEL'",
        "COMMANDS = {'drop': 'XGROUP DELCONSUMER'}",
        "import redis",
        "def late():\n    from redis import Redis",
        "import redis.asyncio as fast",
    ],
)
def test_a_hidden_write_is_found(valkey: Server, source: str) -> None:
    """However a module would write to Redis, it is found."""
    assert redis_writes("monitor", source, write_commands(valkey))


def test_reading_is_no_writing(valkey: Server) -> None:
    """What readers, pandas and prose do is not taken for a write."""
    source = '''
"""XADD"""
def read(server, frame, items):
    """SET"""
    items.append(server.call("XRANGE", "key", "-", "+"))
    server.pipeline([("XINFO", "GROUPS", key) for key in items])
    server.call("CLUSTER", "SLOTS"), server.call("CONFIG", "GET", items[0]), server.call("TIME")
    frame.copy().rename(columns={}).sort_values("set")
    return frame.eval, {"rules": ["+xadd", "~key"]}, "XADD is refused when memory is full"
'''
    assert redis_writes("monitor", source, write_commands(valkey)) == []


# ---------------------------------------------------------------- one writer of files

WRITING_METHODS = {
    # pathlib, os, shutil, tempfile
    "write_text", "write_bytes", "mkdir", "makedirs", "unlink", "remove", "removedirs",
    "rmdir", "rmtree", "touch", "symlink_to", "hardlink_to", "symlink", "link", "chmod",
    "chown", "copyfile", "copytree", "copy2", "copyfileobj", "mkdtemp", "mkstemp", "mkfifo",
    "truncate", "TemporaryDirectory", "NamedTemporaryFile", "TemporaryFile",
    "SpooledTemporaryFile",
    # pandas, numpy, pyarrow, plotly, papermill
    "to_parquet", "to_csv", "to_excel", "to_feather", "to_pickle", "to_hdf", "to_sql",
    "tofile", "savetxt", "savez", "save", "write_table", "write_to_dataset", "write_csv",
    "write_html", "write_image", "write_json", "ParquetWriter", "execute_notebook",
    "write_ipynb", "FileHandler", "RotatingFileHandler",
}  # fmt: skip
#: Names that are harmless except on these modules.
WRITING_FUNCTIONS = {
    "nbformat.write", "os.rename", "os.replace", "os.open", "os.write", "shutil.move",
    "shutil.copy", "json.dump", "pickle.dump", "io.open", "io.FileIO", "gzip.open",
}  # fmt: skip
#: Writers beside evidence.py, each with its reason.
FILE_WRITERS = {
    # the embedded server lives in a private folder that is gone with it
    "embedded": {"mkdtemp"},
    # papermill itself writes the executed notebook, cell by cell, into evidence's folder
    "pipeline": {"execute_notebook"},
    # `super().open(globals())` opens a notebook's session, not a file
    "notebook": {"open for writing"},
    "boards": {"open for writing"},
}


def file_writes(module: str, source: str) -> list[str]:
    """Places where a source writes, makes or removes a file or folder, or could."""
    tree = ast.parse(source)
    evidence = set(_evidence_names(tree))
    return [
        f"{module}:{node.lineno} {what}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) not in evidence
        and (what := _file_write(node))
        and what not in FILE_WRITERS.get(module, ())
    ]


def _evidence_names(tree: ast.AST) -> Iterator[str]:
    """Calls that go through evidence.py, as this source writes them."""
    from drainkit import evidence

    yield from (f"evidence.{name}" for name in vars(evidence) if not name.startswith("_"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("evidence", "drainkit.evidence"):
            yield from (alias.asname or alias.name for alias in node.names)


def _file_write(call: ast.Call) -> str | None:
    dotted = ast.unparse(call.func)
    name = dotted.rpartition(".")[2]
    if dotted == "os.open" and ast.unparse(call.args[0]) == "os.devnull":
        return None
    if dotted in WRITING_FUNCTIONS or name in WRITING_METHODS:
        return dotted if dotted in WRITING_FUNCTIONS else name
    if name in ("rename", "replace") and len(call.args) == 1 and not call.keywords:
        return name  # Path's take one argument, str.replace two, pandas' keywords
    if name in ("open", "fdopen"):
        # open(file, mode); Path.open(mode)
        position = 1 if dotted in ("open", "os.fdopen", "io.open") else 0
        given = [word.value for word in call.keywords if word.arg == "mode"]
        mode = (given or call.args[position : position + 1] or [ast.Constant("r")])[0]
        reads = isinstance(mode, ast.Constant) and mode.value in ("r", "rb", "rt")
        return None if reads else "open for writing"
    return None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_only_evidence_writes_files(path: Path) -> None:
    """No module but evidence.py writes, makes or removes files or folders."""
    if path.stem != "evidence":
        assert file_writes(path.stem, path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "open('a', 'w')",
        "open('a', mode='ab')",
        "open('a', mode)",
        "path.open('w')",
        "path.open(mode='x')",
        "path.write_text('')",
        "path.parent.mkdir(parents=True)",
        "frame.to_parquet(path)",
        "frame.to_csv()",
        "pq.write_table(table, path)",
        "pq.ParquetWriter(path, schema)",
        "figure.write_html(path)",
        "os.replace(a, b)",
        "path.replace(other)",
        "path.unlink()",
        "shutil.rmtree(path)",
        "nbformat.write(notebook, path)",
        "json.dump(value, stream)",
        "tempfile.mkdtemp()",
        "papermill.execute_notebook(a, b)",
    ],
)
def test_a_hidden_file_is_found(source: str) -> None:
    """However a module would write a file, it is found."""
    assert file_writes("monitor", source)


def test_reading_a_file_is_no_writing() -> None:
    """Reading files, and text methods of the same names, are not taken for writes."""
    source = """
with open("a") as one, open("b", "rb") as two, path.open() as three, path.open("rb") as four:
    os.open(os.devnull, os.O_WRONLY), "a".replace("b", "c")
    frame.rename(columns={}), path.read_text(), sys.stdout.write("x")
"""
    assert file_writes("monitor", source) == []


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
    if not (PACKAGE / "cli.py").exists():
        lacking("drainkit/cli.py yet")
    installed = Path(sys.executable).with_name("drainkit")
    said = subprocess.run([installed, "--help"], capture_output=True, text=True, check=True)
    result = cli("--help")
    assert result.rc == 0
    assert result.out == said.stdout
