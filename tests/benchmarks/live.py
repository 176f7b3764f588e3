"""Live drains, unthrottled; prints a table.

    python tests/benchmarks/live.py [--entries 100000 1000000] [--rounds 3] [--package DIR ...]

`--package` names the checkouts whose drainkit is measured (this one), so that two commits can be
held side by side: they take turns on one stream, each through a group of its own.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import rig
from rig import KEY, Result, measured

AUDIT = KEY + ".bench_audit"


def drain(url: str, group: str) -> Result:
    """`drainkit drain`, without the command line around it."""
    from drainkit.draining.live import apply
    from drainkit.draining.run import resolve
    from drainkit.server.connection import Server
    from drainkit.settings import build

    settings = build(
        {
            "mode": "live", "redis_url": url, "stream": KEY, "consumer_group": group,
            "audit_stream": AUDIT, "allowlist": list(rig.ALLOWLIST),
            "min_conf": rig.MIN_CONF, "max_age_min": rig.MAX_AGE_MIN,
            "throttle": None, "max_events": None,
        }
    )  # fmt: skip
    result: Result = {}
    with Server.of(settings) as server, measured(result):
        summary = apply(resolve(server, settings))
    assert summary.exit_code == 0, summary
    return {**result, "done": summary.total_read}


def run(server: Any, entries: int, package: Path) -> Result:
    """A drain of the `entries` of the stream, with what it cost the server."""
    with rig.group(server) as client:
        client.slowlog_reset()
        client.config_set("slowlog-log-slower-than", 2000)
        client.config_set("slowlog-max-len", 10000)
        before = rig.server_cpu(server)
        url = server.tcp_url
        result = rig.child(Path(__file__), "drain", url, rig.GROUP, PYTHONPATH=str(package))
        server_cpu = rig.server_cpu(server) - before
        slow = [row["duration"] / 1000 for row in client.slowlog_get(10000)
                if row["command"].startswith(b"EVAL")]  # fmt: skip
        assert (result["done"], client.xlen(AUDIT)) == (entries, entries), result
        assert client.xpending(KEY, rig.GROUP)["pending"] == 0
    return {**result, "server_sec": server_cpu, "slowest_ms": max(slow, default=0.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kind", default="redis")
    parser.add_argument("--package", type=Path, nargs="+", default=[rig.HERE.parents[1]])
    given = parser.parse_args()
    for entries in given.entries:
        with rig.filled_server(given.kind, entries) as server:
            works = {str(at): partial(run, server, entries, at.resolve()) for at in given.package}
            found = rig.in_turns(works, given.rounds)
            print(rig.title(server) + f" of {given.rounds}; {entries:,} entries\n")
        rows = [(name, f"{one['sec']:.2f} s", f"{entries / one['sec']:,.0f}/s",
                 f"{one['cpu_sec']:.2f} + {one['server_sec']:.2f} s", f"{one['peak_mb']:.0f} MB",
                 f"{one['slowest_ms']:.1f} ms") for name, one in found.items()]  # fmt: skip
        rig.table(rows, ("drainkit of", "Median", "Rate", "CPU client + server",
                         "Memory above the imports (at most 80)", "Slowest script"))  # fmt: skip


if __name__ == "__main__":
    if not rig.as_child({"drain": drain}):
        main()
