"""A whole live run and what reads beside it, at a size where it shows; prints a table.

    python tests/benchmarks/scale.py [--entries 1000000] [--rounds 1] [--package DIR]

`--package` names the checkout whose drainkit is measured (this one), so that two commits can be
held side by side; it is compiled first, as an installer does. CPU is that of the command with all
its kernels, and of the server (INFO cpu); the peak is that of the largest process (VmHWM). How
often entries are read is counted in a run of its own, of 20,000 entries: MONITOR tells each XRANGE
and XREVRANGE, and the ids in its range are the entries that it brought.
"""

from __future__ import annotations

import argparse
import bisect
import compileall
import os
import re
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rig
from rig import KEY, Result

GROUP = "bench"
AUDIT = f"{KEY}.drain_audit"
COUNTED = 20_000  # entries of the run whose reads are counted
EXPORTED = 200_000


def cost(package: Path, server: Any, folder: Path, name: str, *options: str) -> Result:
    """Seconds, CPU seconds of the command and of the server, MB of its largest process."""
    arguments = [sys.executable, "-m", "drainkit", name, *options, "--stream", KEY]
    if name in ("run", "export"):
        arguments += ["--consumer-group", GROUP]
    env = {**os.environ, "PYTHONPATH": str(package), "DRAINKIT_REDIS_URL": server.tcp_url}
    before, on_server = _children_cpu(), _server_cpu(server)
    started, peak_mb = time.perf_counter(), 0.0
    cpu_sec: dict[int, float] = {}  # a run's kernels are nobody's children that are waited for
    with (folder / "said").open("w+") as said:
        process = subprocess.Popen(arguments, cwd=folder, env=env, stdout=said, stderr=said)
        while process.poll() is None:
            family = _family(process.pid)
            peak_mb = max([peak_mb, *map(_peak_mb, family)])
            cpu_sec |= {pid: sec for pid in family if (sec := _cpu_sec(pid))}
            time.sleep(0.1)
        said.seek(0)
        if process.returncode not in (0, 1, 2) or (process.returncode and name != "check"):
            raise SystemExit(f"{name}: {said.read()[-2000:]}")
    return {
        "sec": time.perf_counter() - started,
        "cpu_sec": max(_children_cpu() - before, sum(cpu_sec.values())),
        "server_sec": _server_cpu(server) - on_server,
        "peak_mb": peak_mb,
    }


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _server_cpu(server: Any) -> float:
    with server.client() as client:
        found = client.info("cpu")
    return float(found["used_cpu_sys"]) + float(found["used_cpu_user"])


def _family(pid: int) -> list[int]:
    """The process and all that it started."""
    found = [pid]
    for one in found:
        for path in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += map(int, path.read_text().split())
            except OSError:
                continue
    return found


def _cpu_sec(pid: int) -> float:
    """Of the process alone, as far as it has come; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_mb(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    match = re.search(r"VmHWM:\s+(\d+)", text)
    return int(match[1]) / 1024 if match else 0.0


@contextmanager
def group(server: Any, position: str = "0-0") -> Iterator[None]:
    """The group for one run; audit and ledger go with it."""
    with server.client() as client:
        client.xgroup_create(KEY, GROUP, id=position)
        yield
        client.xgroup_destroy(KEY, GROUP)
        client.delete(*(f"{KEY}.drain_{side}" for side in ("audit", "runs", "state")))


def live_run(package: Path, server: Any, folder: Path) -> Result:
    """`drainkit run` of everything, unthrottled."""
    with group(server):
        return cost(package, server, folder, "run", "--mode", "live", "--yes", "--throttle", "none",
                    "--max-events", "all", "--allowlist", ",".join(rig.ALLOWLIST))  # fmt: skip


def reads(package: Path, server: Any, folder: Path) -> Result:
    """How often a run reads each entry of the stream, and each audit record."""
    seen: list[bytes] = []
    over = threading.Event()

    def watch() -> None:
        port = int(server.tcp_url.rpartition(":")[2].partition("/")[0])
        with socket.create_connection(("127.0.0.1", port)) as link:
            link.sendall(b"MONITOR\r\n")
            for line in link.makefile("rb"):
                watching.set()
                if over.is_set():
                    return
                if b'"XRANGE"' in line[:90] or b'"XREVRANGE"' in line[:90]:
                    seen.append(line)

    watching = threading.Event()
    watcher = threading.Thread(target=watch, daemon=True)
    with group(server), server.client() as client:
        watcher.start()
        watching.wait()
        cost(package, server, folder, "run", "--mode", "live", "--yes", "--throttle", "none",
             "--max-events", "all", "--allowlist", ",".join(rig.ALLOWLIST))  # fmt: skip
        over.set()  # what is read from here on is this script's
        client.ping()
        watcher.join(5)
        ids = {key: sorted(map(_pair, (e[0] for e in client.xrange(key)))) for key in (KEY, AUDIT)}
    total: Counter[str] = Counter()
    for line in seen:
        parts = [part.decode() for part in re.findall(rb'"([^"]*)"', line)]
        name, key, first, last, *count = parts
        first, last = (last, first) if name == "XREVRANGE" else (first, last)
        low, high = _pair(first), _pair(last)
        there = ids.get(key, [])
        n = bisect.bisect_right(there, high) - bisect.bisect_left(there, low)
        total[key] += min(n, int(count[1])) if count else n
    return {
        "stream_reads": total[KEY] / len(ids[KEY]),
        "audit_reads": total[AUDIT] / len(ids[AUDIT]),
    }


def _pair(entry_id: str | bytes) -> tuple[int, int]:
    text = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    if text in ("-", "+"):
        return (0, 0) if text == "-" else (2**64, 0)
    ms, _, seq = text.partition("-")
    return int(ms), int(seq or 0)


def beside(package: Path, server: Any, folder: Path, entries: int) -> dict[str, Result]:
    """What reads without a run: status and check of a group at the start, an export."""
    with group(server):
        found = {name: cost(package, server, folder, name) for name in ("status", "check")}
    with server.client() as client:
        newest = client.xrevrange(KEY, count=min(entries, EXPORTED) + 1)[-1][0]
    with group(server, newest.decode()):
        found["export"] = cost(package, server, folder, "export", "a.parquet")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--kind", default="valkey")
    parser.add_argument("--package", type=Path, default=rig.HERE.parents[1])
    given = parser.parse_args()
    package = given.package.resolve()
    compileall.compile_dir(package / "drainkit", quiet=1)

    def fresh() -> Path:
        return Path(tempfile.mkdtemp(dir=scratch))

    with tempfile.TemporaryDirectory() as scratch:
        with rig.filled_server(given.kind, COUNTED) as server:
            counted = reads(package, server, fresh())
            small = rig.in_turns({"run": lambda: live_run(package, server, fresh())}, given.rounds)
        with rig.filled_server(given.kind, given.entries) as server:
            large = rig.in_turns({"run": lambda: live_run(package, server, fresh())}, given.rounds)
            others = beside(package, server, fresh(), given.entries)
            print(rig.title(server) + f" of {given.rounds}; {given.entries:,} entries\n")
    run, less = large["run"], small["run"]
    rows = [
        ("run live, client and server CPU", f"{run['cpu_sec'] + run['server_sec']:.0f} s", "60 s"),
        ("of that the server's", f"{run['server_sec']:.0f} s", ""),
        ("its time", f"{run['sec']:.0f} s", ""),
        ("its largest process", f"{run['peak_mb']:.0f} MB", "320 MB"),
        ("reads of each stream entry", f"{counted['stream_reads']:.2f}", "2"),
        ("reads of each audit record", f"{counted['audit_reads']:.2f}", "1"),
        (
            f"run live, {COUNTED:,} entries, CPU",
            f"{less['cpu_sec'] + less['server_sec']:.0f} s",
            "",
        ),
        ("status, CPU", f"{others['status']['cpu_sec']:.2f} s", "0.5 s"),
        ("check, CPU", f"{others['check']['cpu_sec']:.2f} s", "0.5 s"),
        (f"export {EXPORTED:,}, CPU", f"{others['export']['cpu_sec']:.1f} s", ""),
        ("its largest process", f"{others['export']['peak_mb']:.0f} MB", ""),
    ]
    rig.table(rows, ("Work", "Found", "To reach"))


if __name__ == "__main__":
    main()
