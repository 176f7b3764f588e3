"""A whole live run and what reads beside it, at a size where it shows; prints a table.

    python tests/benchmarks/scale.py [--entries 1000000] [--rounds 1] [--package DIR ...]

`--package` names the checkouts whose drainkit is measured (this one), so that two commits can be
held side by side: they take turns. Each is compiled first, as an installer does. CPU is that of the
command with all its kernels, and of the server (INFO cpu); the peak is that of the largest process
(VmHWM). How often entries are read is counted in a run of its own, of 10,012 entries: MONITOR tells
each XRANGE and XREVRANGE, and the ids in its range are the entries that it brought.
"""

from __future__ import annotations

import bisect
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import rig
from rig import KEY, Result, cost

AUDIT = f"{KEY}.drain_audit"
COUNTED = 10_012  # entries of the run whose reads are counted
EXPORTED = 200_000
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


def live_run(package: Path, server: Any, folder: Path) -> Result:
    """`drainkit run` of everything, unthrottled."""
    with rig.group(server):
        return cost(package, server, folder, "run", *rig.LIVE)


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
        cost(package, server, folder, "run", *rig.LIVE)
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


def plain(_: Path, server: Any, folder: Path) -> Result:
    """A plain loop of redis-py that keeps the same entries as Parquet, as a command of its own."""
    before = rig.children_cpu()
    command = [sys.executable, "-c", PLAIN, server.tcp_url, KEY, str(folder / "plain.parquet")]
    subprocess.run(command, check=True)
    return {"cpu_sec": rig.children_cpu() - before}


def main() -> None:
    given = rig.options(__doc__, "valkey", [1_000_000], 1)
    packages, rounds = given.package, given.rounds
    with rig.filled_server(given.kind, COUNTED) as server:
        counted = rig.in_turns(reads, packages, server, 1)
        small = rig.in_turns(live_run, packages, server, rounds)
    with rig.filled_server(given.kind, EXPORTED) as server:
        exports = rig.in_turns(export, packages, server, rounds)
        (loop,) = rig.in_turns(plain, packages[:1], server, rounds)
    for entries in given.entries:
        with rig.filled_server(given.kind, entries) as server:
            large = rig.in_turns(live_run, packages, server, rounds)
            others = rig.in_turns(beside, packages, server, rounds)
            print(rig.title(server, rounds, entries))
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
        rig.table(rows, ("Work", *map(str, packages), "To reach"))
        print(f"A plain loop over the {EXPORTED:,}: {loop['cpu_sec']:.1f} s of CPU\n")


if __name__ == "__main__":
    main()
