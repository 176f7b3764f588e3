"""What every test can ask for: private real servers, a stream of its own, the command line.

A server (or Chromium) that the machine lacks skips a test on a laptop and fails it where the
environment says CI. See servers.py for the kinds and proxy.py for faults on the wire.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import clusters
import hypothesis
import pytest
import servers
import stores
from clusters import Cluster
from guard import guard, running_pids
from program import Program, Programs
from proxy import Proxy
from quick import sitecustomize  # noqa: F401 # for this interpreter too
from servers import Server

pytest_plugins = ["runs", "place"]  # its fixtures
# pytest's own limit holds; imports may fall into an example
hypothesis.settings.register_profile("drainkit", deadline=None)
hypothesis.settings.load_profile("drainkit")

ROOT = Path(__file__).parents[1]
if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Everything that a test starts makes its temporary files in the guard's folder: so a server
# left behind is known as ours, and nothing stays on the disk. pytest itself keeps its own place.
tempfile.gettempdir()
os.environ["TMPDIR"] = str(guard().folder)
quick = [str(ROOT / "tests" / "quick"), *filter(None, [os.environ.get("PYTHONPATH")])]
os.environ["PYTHONPATH"] = os.pathsep.join(quick)


def pytest_report_header() -> list[str]:
    found = [f"{kind}: {servers.version(kind) or 'missing'}" for kind in servers.KINDS]
    return ["servers: " + ", ".join(found), f"chromium: {servers.chromium() or 'missing'}"]


def lacking(what: str) -> NoReturn:
    """Skips on a laptop, fails in CI: a green CI means that everything really ran."""
    if os.environ.get("CI", "").lower() in ("", "0", "false"):
        pytest.skip(f"this machine has no {what}")
    pytest.fail(f"this machine has no {what}, and in CI nothing may be left out")


def need(kind: str) -> str:
    """The kind, if this machine has that server; else skips or fails."""
    if servers.version(kind) is None:
        lacking(f"{kind} server")
    return kind


# ---------------------------------------------------------------- servers


Shared = dict[str, Any]  # by kind: a Server, of `cluster` the Cluster, of `s3` the store
STARTS: dict[str, Callable[[], Any]] = {
    "cluster": lambda: clusters.start_cluster(need("valkey")), "s3": stores.S3,
    **{kind: partial(lambda k: servers.start(need(k), port=True), kind) for kind in servers.KINDS},
}  # fmt: skip


@pytest.fixture(scope="session")
def _shared() -> Iterator[Shared]:
    """The servers that a session's tests share, each started when the first test needs it."""
    shared: Shared = {}
    yield shared
    for one in shared.values():
        one.stop()
    guard().close()


@pytest.fixture(autouse=True)
def _no_server_left_behind(_shared: Shared) -> Iterator[None]:
    """Ours in folders that the test made, but for those that are shared; each has 3 s to end."""
    known = {*guard().folder.iterdir()}
    yield
    nodes = chain(*(getattr(one, "nodes", [one]) for one in _shared.values()))
    expected = {node.pid for node in nodes if node.running}
    new = {*guard().folder.iterdir()} - known
    deadline = time.monotonic() + 3
    while (left := running_pids(new) - expected) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, 9)
    assert not left, f"this test left server processes behind: {left}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each worker's share begins with slow tests (whole runs, most of them), so that none trails;
    those that measure time come last."""
    quiet = [item for item in items if item.get_closest_marker("quiet")]
    browser = [item for item in items if item.get_closest_marker("browser")]  # share their evidence
    slow = [item for item in items if item not in browser and (
            item.path.parent.name == "pipeline" or item.get_closest_marker("slow"))]  # fmt: skip
    marked = {*quiet, *browser, *slow}
    others = [item for item in items if item not in marked]
    n = max(2, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    size, first = -(-len(others) // n), [browser, *(slow[i :: n - 1] for i in range(n - 1))]
    shares = [[*first[i], *others[i * size : (i + 1) * size]] for i in range(n)]
    items[:] = [*chain(*shares), *quiet]


@pytest.fixture(autouse=True)
def _room(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """A test that measures time (`quiet`) has the machine to itself; all others share it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    quiet = request.node.get_closest_marker("quiet")
    with (shared / "turnstile").open("w") as turnstile, (shared / "room").open("w") as room:
        fcntl.flock(turnstile, fcntl.LOCK_EX)  # who waits for the room is not overtaken
        fcntl.flock(room, fcntl.LOCK_EX if quiet else fcntl.LOCK_SH)
        fcntl.flock(turnstile, fcntl.LOCK_UN)
        yield


@pytest.fixture
def clean(_shared: Shared, _no_server_left_behind: None) -> Iterator[Callable[[str], Any]]:
    """The shared server of a kind, made as new when this test first asks for it."""
    used: dict[str, Any] = {}

    def get(kind: str) -> Any:
        if kind not in used:
            if kind not in _shared:
                _shared[kind] = STARTS[kind]()
            used[kind] = _shared[kind]
            used[kind].reset()
        return used[kind]

    yield get
    for server in used.values():
        server.close_clients()


@pytest.fixture(params=servers.KINDS)
def server(request: pytest.FixtureRequest, clean: Callable[[str], Server]) -> Server:
    """A clean server, once of each kind. Also on a loopback port (`tcp_url`)."""
    return clean(request.param)


@pytest.fixture
def valkey(clean: Callable[[str], Server]) -> Server:
    """A clean server of the bundled kind."""
    return clean("valkey")


@pytest.fixture
def start_server(_no_server_left_behind: None) -> Iterator[Callable[..., Server]]:
    """servers.start() for a server of the test's own (to kill, to fill up), stopped at the end.

    `start_server("valkey", port=True, config={"appendonly": "yes", "appendfsync": "always"})`
    """
    with ExitStack() as started:

        def start(kind: str, **options: Any) -> Server:
            return started.enter_context(servers.start(need(kind), **options))

        yield start


@pytest.fixture
def cluster(clean: Callable[[str], Any]) -> Cluster:
    """An empty cluster of the bundled kind: three primaries, each with a replica."""
    return clean("cluster")


@pytest.fixture
def sentinel(_no_server_left_behind: None) -> Iterator[clusters.SentinelSetup]:
    """A primary and its replica under one sentinel, of the bundled kind and the test's own."""
    with clusters.start_sentinel(need("valkey")) as setup:
        yield setup


@pytest.fixture
def start_proxy() -> Iterator[Callable[[Server], Proxy]]:
    """A proxy in front of a server: `start_proxy(server)`."""
    with ExitStack() as started:
        yield lambda server: started.enter_context(Proxy(server.socket))


@pytest.fixture
def browser() -> Iterator[Browser]:
    """The system's Chromium, headless."""
    from playwright.sync_api import sync_playwright

    program = servers.chromium() or lacking("Chromium")
    args = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=args)
        yield browser
        browser.close()


@pytest.fixture
def s3(clean: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> stores.S3:
    """An empty object store with the bucket `evidence`; the login in the environment."""
    try:
        store: stores.S3 = clean("s3")
    except ImportError:
        lacking("moto or s3fs (drainkit[s3])")
    for name, value in store.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return store


# ---------------------------------------------------------------- streams


@pytest.fixture
def stream() -> str:
    """A stream name that no other test has."""
    return f"quantum:stream:{uuid.uuid4().hex[:12]}"


def intent(
    symbol: str = "BTCUSDT", confidence: float | str = 0.8, **fields: Any
) -> dict[str, object]:
    """The flat fields of an ordinary event; `fields` adds to them or replaces them."""
    usual = {"symbol": symbol, "side": "BUY", "confidence": confidence, "source": "ai-engine"}
    return {**usual, **fields}


# ---------------------------------------------------------------- the command line


@dataclass(frozen=True)
class CliResult:
    """What a run of `drainkit` said."""

    args: tuple[str, ...]
    rc: int
    out: str
    err: str

    def json(self) -> Any:
        """stdout as the one JSON object it has to be."""
        try:
            return json.loads(self.out)
        except ValueError as error:
            raise AssertionError(f"no JSON on stdout of {self}") from error


@dataclass
class Cli:
    """Runs `drainkit` as a user does: a process of its own, in a folder of its own (program.py)."""

    cwd: Path
    programs: Programs
    _started: dict[subprocess.Popen[str], Sequence[str]] = field(default_factory=dict)

    def __call__(
        self, *args: object, stdin: str = "", timeout_sec: float = 120, **how: Any
    ) -> CliResult:
        """Runs to the end, as `start` says."""
        return self.finish(self.start(*args, **how), stdin, timeout_sec)

    def done(self, *args: object, **options: Any) -> CliResult:
        """As a call, and it has to end with 0."""
        run = self(*args, **options)
        assert run.rc == 0, run
        return run

    def fails(self, rc: int, *args: object, **options: Any) -> str:
        """As a call, and it has to end with `rc` and one line, which this answers."""
        run = self(*args, **options)
        assert run.rc == rc, run
        return one_line_error(run.err)

    def papermill(self, *args: object, env: Mapping[str, str] | None = None) -> CliResult:
        """As `python -m papermill` with these arguments, in the whole of the test's environment."""
        return self.finish(self.start(*args, env={**os.environ, **(env or {})}, module="papermill"))

    def start(
        self,
        *args: object,
        env: Mapping[str, str] | None = None,
        secret: str | Sequence[str] = (),
        terminal: int | None = None,
        module: str = "drainkit",
    ) -> subprocess.Popen[str]:
        """Starts it and returns at once (to send it a signal); `finish` waits for the result.

        The environment is the test's, without DRAINKIT_*, plus `env`. `secret`: words that must not
        be in what it says. With the file descriptor of a `terminal`, that is all three streams.
        """
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("DRAINKIT_")}
        own = {**inherited, "PYTHONUTF8": "1", **(env or {})}
        process = Program(self.programs, [*map(str, args)], self.cwd, own, terminal, module)
        self._started[process] = (secret,) if isinstance(secret, str) else secret
        return process

    def finish(
        self, process: subprocess.Popen[str], stdin: str = "", timeout_sec: float = 120
    ) -> CliResult:
        out, err = process.communicate(stdin, timeout=timeout_sec)
        for word in self._started[process]:
            assert word not in out, f"the secret {word!r} is on stdout"
            assert word not in err, f"the secret {word!r} is on stderr"
        assert isinstance(process.args, list)
        return CliResult(tuple(map(str, process.args[3:])), process.returncode, out, err)

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture(scope="session")
def _programs() -> Iterator[Programs]:
    programs = Programs()
    yield programs
    programs.close()


@pytest.fixture
def cli(tmp_path: Path, _programs: Programs, _no_server_left_behind: None) -> Iterator[Cli]:
    """The command line, run in `tmp_path`: `cli("status", "--json", env={...}).json()`."""
    cli = Cli(tmp_path, _programs)
    yield cli
    cli.close()


def one_line_error(err: str) -> str:
    """The error, which must be one line for a person and no traceback."""
    assert "Traceback" not in err
    assert err.count("\n") == 1, err
    assert err.startswith("drainkit: ")
    return err
