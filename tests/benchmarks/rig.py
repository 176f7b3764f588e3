"""What the benchmarks share: a private server with the sample entries, children, the table.

Every run is a process of its own, so that its memory is its own; what is compared takes turns
on one server, so that a busy moment of the machine meets all of them.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

KEY, GROUP = "bench.intent", "bench"
ALLOWLIST = (
    "BTCUSDT", "ETHUSDT", "SOLUSDT", "RENDERUSDT", "ARBUSDT", "GALAUSDT",
    "CFXUSDT", "XRPUSDT", "ADAUSDT", "DOGEUSDT", "AVAXUSDT", "DOTUSDT",
)  # fmt: skip
SEEDED_AT_ONCE = 1_000_000
MIN_CONF, MAX_AGE_MIN = 0.6, 180.0

Result = dict[str, Any]


@contextmanager
def filled_server(kind: str, entries: int) -> Iterator[Any]:
    """A private server with `entries` sample entries in KEY."""
    import servers

    with servers.start(kind, port=True) as server:
        child(HERE / "rig.py", "seed", server.tcp_url, str(entries))
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


def server_cpu(server: Any) -> float:
    """The CPU seconds that the server took so far."""
    with server.client() as client:
        used = client.info("cpu")
    return float(used["used_cpu_sys"]) + float(used["used_cpu_user"])


def seed(url: str, entries: str) -> Result:
    """Fill KEY, six hours with each million; in a child, for as objects these need a gigabyte."""
    from drainkit.demo import SPAN_MS, sample_entries
    from drainkit.server import writing
    from drainkit.server.connection import Server

    with Server(url, KEY) as server:
        now_ms, added = server.now_us() // 1000, 0
        for later in reversed(range(0, int(entries), SEEDED_AT_ONCE)):
            made = sample_entries(
                now_ms - later // SEEDED_AT_ONCE * SPAN_MS,
                min(SEEDED_AT_ONCE, int(entries) - added),
                seed=later,
            )
            added += writing.add_entries(server, KEY.encode(), made)
        return {"added": added}


def child(script: Path, *arguments: str, **env: str) -> Result:
    """The result of one run in a process of its own."""
    command = [sys.executable, str(script), "--child", *arguments]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True,
                          timeout=1200, check=False)  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr}")
    found: Result = json.loads(done.stdout.splitlines()[-1])
    return found


def as_child(works: Mapping[str, Callable[..., Result]]) -> bool:
    """In a child: do the work that the command line names and print its result."""
    if sys.argv[1:2] != ["--child"]:
        return False
    name, *arguments = sys.argv[2:]
    print(json.dumps(works[name](*arguments)))
    return True


@contextmanager
def measured(result: Result) -> Iterator[None]:
    """Adds seconds, CPU seconds and the peak memory in MB above what it was before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (man 5 proc)
    before_mb, cpu, started = memory_mb("VmRSS"), time.process_time(), time.perf_counter()
    yield
    result["sec"] = time.perf_counter() - started
    result["cpu_sec"] = time.process_time() - cpu
    result["peak_mb"] = memory_mb("VmHWM") - before_mb


def memory_mb(name: str, pid: int | str = "self") -> float:
    """A line of man 5 proc's status: VmRSS is what it holds, VmHWM the most it held."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(name + ":")), 0) / 1024


def in_turns(works: Mapping[str, Callable[[], Result]], rounds: int) -> dict[str, Result]:
    """Each work `rounds` times, taking turns; the median of every number."""
    found: dict[str, list[Result]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append(work())
            print(f"  {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    return {
        name: {k: statistics.median(run[k] for run in runs) for k in runs[0]}
        for name, runs in found.items()
    }


def title(server: Any) -> str:
    """The machine and the moment, for the line above the table."""
    load = ", ".join(f"{part:.1f}" for part in os.getloadavg())
    return (
        f"{datetime.now().astimezone():%Y-%m-%d %H:%M}, {os.cpu_count()} cores, load {load}, "
        f"Python {platform.python_version()}, {server.version}, loopback TCP, medians"
    )


def table(rows: list[tuple[str, ...]], head: tuple[str, ...]) -> None:
    """Print Markdown."""
    for row in (head, tuple("---" for _ in head), *rows):
        print("| " + " | ".join(row) + " |", flush=True)
    print()


if __name__ == "__main__":
    as_child({"seed": seed})
