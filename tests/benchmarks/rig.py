"""What the benchmarks share: a private server with sample entries, a command's cost, the table.

What is compared takes turns on one server, so that a busy moment of the machine meets all of it.
"""

from __future__ import annotations

import argparse
import compileall
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

KEY, GROUP = "bench.intent", "bench"
LIVE = (
    "--mode", "live", "--yes", "--throttle", "none", "--max-events", "all", "--allowlist",
    "BTCUSDT,ETHUSDT,SOLUSDT,RENDERUSDT,ARBUSDT,GALAUSDT,CFXUSDT,XRPUSDT,ADAUSDT,DOGEUSDT,"
    "AVAXUSDT,DOTUSDT",
)  # fmt: skip
SEEDED_AT_ONCE = 1_000_000

Result = dict[str, Any]
Work = Callable[[Path, Any, Path], Result]  # of a package, a server and a folder


def options(doc: str | None, kind: str, entries: list[int], rounds: int) -> argparse.Namespace:
    """What the command line says; each package is compiled, as an installer does."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--entries", type=int, nargs="+", default=entries)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--kind", default=kind)
    parser.add_argument("--package", type=Path, nargs="+", default=[HERE.parents[1]])
    given = parser.parse_args()
    given.package = [package.resolve() for package in given.package]
    for package in given.package:
        compileall.compile_dir(package / "drainkit", quiet=1)
    return given


@contextmanager
def filled_server(kind: str, entries: int) -> Iterator[Any]:
    """A private server with `entries` sample entries in KEY, six hours with each million."""
    import servers

    from drainkit.demo import SPAN_MS, sample_entries
    from drainkit.server import writing
    from drainkit.server.connection import Server

    with servers.start(kind, port=True) as server:
        with Server(server.tcp_url, KEY) as link:
            now_ms = link.now_us() // 1000
            for later in reversed(range(0, entries, SEEDED_AT_ONCE)):
                end_ms, n = now_ms - later // SEEDED_AT_ONCE * SPAN_MS, entries - later
                made = sample_entries(end_ms, min(SEEDED_AT_ONCE, n), seed=later)
                writing.add_entries(link, KEY.encode(), made)
        yield server


@contextmanager
def group(server: Any) -> Iterator[Any]:
    """A client, and a group at the stream's start; all that a drain wrote goes with it."""
    with server.client() as client:
        client.xgroup_create(KEY, GROUP, id="0-0")
        yield client
        client.xgroup_destroy(KEY, GROUP)
        for key in client.keys(f"{KEY}.*"):
            client.delete(key)


def cost(package: Path, server: Any, folder: Path, name: str, *options: str) -> Result:
    """Seconds, CPU seconds of the command and of the server, MB of its largest process.

    What it says is in the folder, as `said` and `errors`.
    """
    arguments = [sys.executable, "-m", "drainkit", name, *options, "--stream", KEY]
    if name in ("run", "drain", "export"):
        arguments += ["--consumer-group", GROUP]
    env = {**os.environ, "PYTHONPATH": str(package), "DRAINKIT_REDIS_URL": server.tcp_url}
    before, on_server = children_cpu(), server_cpu(server)
    started, peak_mb = time.perf_counter(), 0.0
    cpu_sec: dict[int, float] = {}  # a run's kernels are nobody's children that are waited for
    with (folder / "said").open("w") as said, (folder / "errors").open("w") as errors:
        process = subprocess.Popen(arguments, cwd=folder, env=env, stdout=said, stderr=errors)
        while process.poll() is None:
            with suppress(psutil.Error, OSError):  # one of them is gone meanwhile
                one = psutil.Process(process.pid)
                for member in (one, *one.children(recursive=True)):
                    peak_mb = max(peak_mb, _peak_mb(member.pid))
                    cpu_sec[member.pid] = sum(member.cpu_times()[:2])
            time.sleep(0.1)
    if process.returncode not in (0, 1, 2) or (process.returncode and name != "check"):
        raise SystemExit(f"{name}: {(folder / 'errors').read_text()[-2000:]}")
    return {
        "sec": time.perf_counter() - started,
        "cpu_sec": max(children_cpu() - before, sum(cpu_sec.values())),
        "server_sec": server_cpu(server) - on_server,
        "peak_mb": peak_mb,
    }


def children_cpu() -> float:
    """The CPU seconds of the children that ended."""
    return sum(os.times()[2:4])


def server_cpu(server: Any) -> float:
    """The CPU seconds that the server took so far."""
    with server.client() as client:
        used = client.info("cpu")
    return float(used["used_cpu_sys"]) + float(used["used_cpu_user"])


def _peak_mb(pid: int) -> float:
    """The most memory that a process held: VmHWM of man 5 proc's status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0) / 1024


def in_turns(work: Work, packages: list[Path], server: Any, rounds: int) -> list[Result]:
    """For each package the median of every number; they take turns, `rounds` times."""
    found: dict[Path, list[Result]] = {package: [] for package in packages}
    for _ in range(rounds):
        for package, results in found.items():
            with tempfile.TemporaryDirectory() as folder:
                results.append(work(package, server, Path(folder)))
            print(f"  {work.__name__}, {package}: {results[-1]}", file=sys.stderr, flush=True)
    return [{k: statistics.median(run[k] for run in runs) for k in runs[0]}
            for runs in found.values()]  # fmt: skip


def title(server: Any, rounds: int, entries: int) -> str:
    """The machine and the moment, for the line above the table."""
    load = ", ".join(f"{part:.1f}" for part in os.getloadavg())
    return (
        f"{datetime.now().astimezone():%Y-%m-%d %H:%M}, {os.cpu_count()} cores, load {load}, "
        f"Python {platform.python_version()}, {server.version}, loopback TCP, medians of {rounds}; "
        f"{entries:,} entries\n"
    )


def table(rows: list[tuple[str, ...]], head: tuple[str, ...]) -> None:
    """Print Markdown."""
    for row in (head, tuple("---" for _ in head), *rows):
        print("| " + " | ".join(row) + " |", flush=True)
    print()
