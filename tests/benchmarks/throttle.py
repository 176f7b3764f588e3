"""The throttle: two drains of one group together, by the audit's ids; prints a table.

    python tests/benchmarks/throttle.py [--rates 5 50 500 5000] [--seconds 10] [--kind redis]

Each rate gets a backlog that lasts so many seconds (at least ten events), drained by two processes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from typing import Any

import rig
from rig import KEY

GROUP = "bench"
DRAINS = ("one", "two")


def drained(server: Any, rate: float, entries: int) -> list[dict[str, str]]:
    """The audit of two drains that share the first `entries` of the backlog."""
    import books

    with server.client() as client:
        client.xgroup_create(KEY, GROUP, id="0-0")
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "drainkit", "drain", "--mode", "live", "--yes", "--json",
                 "--stream", KEY, "--consumer-group", GROUP, "--consumer-name", name,
                 "--throttle", str(rate), "--max-events", str(entries // len(DRAINS)),
                 "--allow-active-consumers"],
                env={**os.environ, "DRAINKIT_REDIS_URL": server.tcp_url},
                stdout=subprocess.DEVNULL,
            )
            for name in DRAINS
        ]  # fmt: skip
        assert [process.wait() for process in started] == [0, 0]
        records = books.audit(server, KEY)
        client.xgroup_destroy(KEY, GROUP)
        client.delete(*(f"{KEY}.drain_{side}" for side in ("audit", "runs", "state")))
    assert len({record["original_id"] for record in records}) == len(records) == entries
    return records


def main() -> None:
    import books

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=[5, 50, 500, 5000])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--kind", default="redis")
    given = parser.parse_args()
    rows = []
    with rig.filled_server(given.kind, int(max(given.rates) * given.seconds) + 20) as server:
        for rate in given.rates:
            entries = max(10, 2 * int(rate * given.seconds / 2))
            for _ in range(given.rounds):
                records = drained(server, rate, entries)
                rows.append((f"{rate:g}/s", f"{entries:,}",
                             str(books.worst_window(records, 1000)),
                             str(books.worst_window(records, 100)),
                             f"{books.reached(records, rate):.2%}"))  # fmt: skip
                print("  ", rows[-1], file=sys.stderr, flush=True)
        print(rig.title(server).removesuffix(", medians") + "\n")
    head = ("Rate", "Entries", "Most in a second", "Most in a tenth of it", "Reached")
    rig.table(rows, head)


if __name__ == "__main__":
    main()
