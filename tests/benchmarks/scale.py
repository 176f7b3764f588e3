"""A whole live run and what reads beside it, at a size where it shows; prints a table.

    python tests/benchmarks/scale.py [--entries 1000000] [--rounds 1] [--package DIR ...]

`--package` names the checkouts whose drainkit is measured (this one), so that two commits can be
held side by side: they take turns. Each is compiled first, as an installer does. CPU is that of the
command with all its kernels, and of the server (INFO cpu); the peak is that of the largest process
(VmHWM). How often entries are read is counted in a run of its own, of 10,012 entries: MONITOR tells
each XRANGE and XREVRANGE, and the ids in its range are the entries that it brought.
"""

from __future__ import annotations

import argparse
import bisect
import compileall
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import rig
from rig import GROUP, KEY, Result

AUDIT = f"{KEY}.drain_audit"
COUNTED = 10_012  # entries of the run whose reads are counted
EXPORTED = 200_000
RUN = ("run", "--mode", "live", "--yes", "--throttle", "none", "--max-events", "all",
       "--allowlist", ",".join(rig.ALLOWLIST))  # fmt: skip
PLAIN = """
import json, sys, pyarrow, pyarrow.parquet, redis
client, first, ids, bodies = redis.Redis.from_url(sys.argv[1]), "-", [], []
while page := client.xrange(sys.argv[2], first, "+", count=1000):
    first = b"(" + page[-1][0]
    for entry_id, fields in page:
        ids.append(entry_id.decode())
        texts = {k.decode(): v.decode("utf-8", "backslashreplace") for k, v in fields.items()}
        bodies.append(json.dumps(texts))
pyarrow.parquet.write_table(pyarrow.table({"id": ids, "fields": bodies}), sys.argv[3])
"""


def cost(package: Path, server: Any, folder: Path, name: str, *options: str) -> Result:
    """Seconds, CPU seconds of the command and of the server, MB of its largest process."""
    arguments = [sys.executable, "-m", "drainkit", name, *options, "--stream", KEY]
    if name in ("run", "export"):
        arguments += ["--consumer-group", GROUP]
    env = {**os.environ, "PYTHONPATH": str(package), "DRAINKIT_REDIS_URL": server.tcp_url}
    before, on_server = _children_cpu(), rig.server_cpu(server)
    started, peak_mb = time.perf_counter(), 0.0
    cpu_sec: dict[int, float] = {}  # a run's kernels are nobody's children that are waited for
    with (folder / "said").open("w+") as said:
        process = subprocess.Popen(arguments, cwd=folder, env=env, stdout=said, stderr=said)
        while process.poll() is None:
            with suppress(psutil.Error, OSError):  # one of them is gone meanwhile
                one = psutil.Process(process.pid)
                for member in (one, *one.children(recursive=True)):
                    peak_mb = max(peak_mb, rig.memory_mb("VmHWM", member.pid))
                    cpu_sec[member.pid] = sum(member.cpu_times()[:2])
            time.sleep(0.1)
        said.seek(0)
        if process.returncode not in (0, 1, 2) or (process.returncode and name != "check"):
            raise SystemExit(f"{name}: {said.read()[-2000:]}")
    return {
        "sec": time.perf_counter() - started,
        "cpu_sec": max(_children_cpu() - before, sum(cpu_sec.values())),
        "server_sec": rig.server_cpu(server) - on_server,
        "peak_mb": peak_mb,
    }


def _children_cpu() -> float:
    return sum(os.times()[2:4])


def live_run(package: Path, server: Any, folder: Path) -> Result:
    """`drainkit run` of everything, unthrottled."""
    with rig.group(server):
        return cost(package, server, folder, *RUN)


def reads(package: Path, server: Any, folder: Path) -> Result:
    """How often a run reads each entry of the stream, and each audit record."""
    seen: list[list[str]] = []
    patient = server.client(socket_timeout=None)
    with rig.group(server) as client, patient.monitor() as monitor:

        def watch() -> None:
            for said in monitor.listen():
                name, *rest = said["command"].split(" ")
                if name == "PING":  # what is read from here on is this script's
                    return
                if name in ("XRANGE", "XREVRANGE"):
                    key, first, last, *count = rest
                    span = (first, last) if name == "XRANGE" else (last, first)
                    seen.append([key, *span, *count])

        watcher = threading.Thread(target=watch)
        watcher.start()
        cost(package, server, folder, *RUN)
        client.ping()
        watcher.join()
        ids = {key: sorted(map(_pair, (e[0] for e in client.xrange(key)))) for key in (KEY, AUDIT)}
    total: Counter[str] = Counter()
    for key, first, last, *count in seen:
        there = ids.get(key, [])
        n = bisect.bisect_right(there, _pair(last)) - bisect.bisect_left(there, _pair(first))
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


def beside(package: Path, server: Any, folder: Path) -> Result:
    """What reads without a run: CPU seconds of status and check of a group at the start."""
    with rig.group(server):
        return {
            name: cost(package, server, folder, name)["cpu_sec"] for name in ("status", "check")
        }


def export(package: Path, server: Any, folder: Path) -> Result:
    """The whole stream as Parquet."""
    with rig.group(server):
        return cost(package, server, folder, "export", "a.parquet")


def plain(server: Any, folder: Path) -> Result:
    """A plain loop of redis-py that keeps the same entries as Parquet, as a command of its own."""
    before, started = _children_cpu(), time.perf_counter()
    command = [sys.executable, "-c", PLAIN, server.tcp_url, KEY, str(folder / "plain.parquet")]
    subprocess.run(command, check=True)
    return {"cpu_sec": _children_cpu() - before, "sec": time.perf_counter() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--kind", default="valkey")
    parser.add_argument("--package", type=Path, nargs="+", default=[rig.HERE.parents[1]])
    given = parser.parse_args()
    packages = [package.resolve() for package in given.package]
    for package in packages:
        compileall.compile_dir(package / "drainkit", quiet=1)

    with tempfile.TemporaryDirectory() as scratch:

        def in_turns(work: Callable[..., Result], server: Any, rounds: int) -> list[Result]:
            def once(package: Path) -> Result:
                return work(package, server, Path(tempfile.mkdtemp(dir=scratch)))

            works = {
                f"{work.__name__}, {at}": partial(once, package)
                for at, package in enumerate(packages)
            }
            return [*rig.in_turns(works, rounds).values()]

        with rig.filled_server(given.kind, COUNTED) as server:
            counted = in_turns(reads, server, 1)
            small = in_turns(live_run, server, given.rounds)
        with rig.filled_server(given.kind, EXPORTED) as server:
            exports = in_turns(export, server, given.rounds)
            loop = {"plain loop": partial(plain, server, Path(scratch))}
            plainly = rig.in_turns(loop, given.rounds)["plain loop"]
        with rig.filled_server(given.kind, given.entries) as server:
            large = in_turns(live_run, server, given.rounds)
            others = in_turns(beside, server, given.rounds)
            print(rig.title(server) + f" of {given.rounds}; {given.entries:,} entries\n")
    for run in (*large, *small):
        run["cpu"] = run["cpu_sec"] + run["server_sec"]
    numbers: list[tuple[str, list[Result], str, int, str, str]] = [
        ("run live, client and server CPU", large, "cpu", 0, "s", "60 s"),
        ("of that the server's", large, "server_sec", 0, "s", ""),
        ("its time", large, "sec", 0, "s", ""),
        ("its largest process", large, "peak_mb", 0, "MB", "320 MB"),
        ("reads of each stream entry", counted, "stream_reads", 2, "", "2"),
        ("reads of each audit record", counted, "audit_reads", 2, "", "1"),
        (f"run live, {COUNTED:,} entries, CPU", small, "cpu", 0, "s", "20 s"),
        ("status, CPU", others, "status", 2, "s", "0.5 s"),
        ("check, CPU", others, "check", 2, "s", "0.5 s"),
        (f"export {EXPORTED:,}, CPU", exports, "cpu_sec", 1, "s", "1.3 times the loop's"),
        ("its largest process", exports, "peak_mb", 0, "MB", ""),
    ]
    rows = [(work, *(f"{one[name]:.{digits}f} {unit}".strip() for one in found), target)
            for work, found, name, digits, unit, target in numbers]  # fmt: skip
    rig.table(rows, ("Work", *map(str, given.package), "To reach"))
    print(f"A plain loop over the {EXPORTED:,}: {plainly['cpu_sec']:.1f} s of CPU\n")


if __name__ == "__main__":
    main()
