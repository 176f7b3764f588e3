"""Live drains, unthrottled; prints a table.

    python tests/benchmarks/live.py [--entries 100000 1000000] [--rounds 3] [--package DIR ...]

`--package` names the checkouts whose drainkit is measured (this one), so that two commits can be
held side by side: they take turns on one stream, each through a group of its own. The rate is that
of the drain by itself; CPU and memory are those of the whole command.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import rig
from rig import KEY, Result


def drain(package: Path, server: Any, folder: Path) -> Result:
    """`drainkit drain` of everything, with the longest script on the server."""
    with rig.group(server) as client:
        client.slowlog_reset()
        client.config_set("slowlog-log-slower-than", 2000)
        client.config_set("slowlog-max-len", 10000)
        found = rig.cost(package, server, folder, "drain", "--json", *rig.LIVE)
        books = json.loads((folder / "said").read_text())
        slow = [row["duration"] / 1000 for row in client.slowlog_get(10000)
                if row["command"].startswith(b"EVAL")]  # fmt: skip
        assert books["total_read"] == client.xlen(f"{KEY}.drain_audit") == client.xlen(KEY), books
        assert client.xpending(KEY, rig.GROUP)["pending"] == 0
    return {**found, "sec": books["elapsed_sec"], "slowest_ms": max(slow, default=0.0)}


def main() -> None:
    given = rig.options(__doc__, "redis", [100_000, 1_000_000], 3)
    for entries in given.entries:
        with rig.filled_server(given.kind, entries) as server:
            found = rig.in_turns(drain, given.package, server, given.rounds)
            print(rig.title(server, given.rounds, entries))
        rows = [(str(at), f"{one['sec']:.2f} s", f"{entries / one['sec']:,.0f}/s",
                 f"{one['cpu_sec']:.2f} + {one['server_sec']:.2f} s", f"{one['peak_mb']:.0f} MB",
                 f"{one['slowest_ms']:.1f} ms")
                for at, one in zip(given.package, found, strict=True)]  # fmt: skip
        rig.table(rows, ("drainkit of", "Drain", "Rate", "CPU client + server", "Memory",
                         "Slowest script"))  # fmt: skip


if __name__ == "__main__":
    main()
