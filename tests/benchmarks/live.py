"""Live drains, unthrottled, against a plain pipeline that does the whole job; prints tables.

    python tests/benchmarks/live.py [--entries 100000 1000000] [--rounds 3] [--kind redis]

Both work on the same stream through a group of their own: read, decode, decide, audit, ACK.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import rig
from rig import KEY, Result, measured

AUDIT = KEY + ".bench_audit"


def drainkit(url: str, group: str) -> Result:
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


def multi(url: str, group: str) -> Result:
    """XREADGROUP 1,000, decided one by one, then one MULTI of 1,000 XADD and one XACK."""
    import redis

    result: Result = {"done": 0}
    client = redis.Redis.from_url(url)
    with measured(result):
        while reply := client.xreadgroup(group, "bench", {KEY: ">"}, count=1000):
            page = reply[0][1]
            with client.pipeline(transaction=True) as pipe:
                for entry_id, fields in page:
                    pipe.xadd(AUDIT, record(entry_id, fields, group))
                pipe.xack(KEY, group, *[entry[0] for entry in page])
                pipe.execute()
            result["done"] += len(page)
    client.close()
    return result


def record(entry_id: bytes, fields: dict[bytes, bytes], group: str) -> dict[str, Any]:
    """One event decoded, decided and made an audit record, plainly."""
    now, limit_sec = time.time(), rig.MAX_AGE_MIN * 60
    symbol, age_sec, confidence = "UNKNOWN", math.nan, math.nan
    body = fields.get(b"payload") or fields.get(b"data")
    try:
        found = json.loads(body) if body else {k.decode(): v.decode() for k, v in fields.items()}
        stamp = found.get("timestamp")
        if isinstance(stamp, str):
            age_sec = now - datetime.fromisoformat(stamp).timestamp()
        else:
            age_sec = now - (stamp or int(entry_id.partition(b"-")[0])) / 1000
        symbol, confidence = found["symbol"], float(found["confidence"])
        action, reason = "drained_ok", "passed every filter"
    except (ValueError, KeyError, TypeError) as error:
        action, reason = "dropped_invalid", type(error).__name__
    if age_sec > limit_sec:
        action, reason = "dropped_old", f"age {age_sec:.2f} s > {limit_sec:.2f} s"
    elif action == "drained_ok" and symbol not in rig.ALLOWLIST:
        action, reason = "dropped_not_allowlisted", "symbol not in the allowlist"
    elif confidence < rig.MIN_CONF:
        action, reason = "dropped_low_conf", f"confidence {confidence} < {rig.MIN_CONF}"
    return {
        "original_id": entry_id,
        "symbol": symbol,
        "age_sec": f"{age_sec:.2f}",
        "confidence": confidence,
        "action": action,
        "drained_at_ts": datetime.fromtimestamp(now, UTC).isoformat(timespec="microseconds"),
        "reason": reason,
        "consumer_group": group,
        "run_id": "20251224T120000Z_abcdef",
    }


WORKS = {one.__name__: one for one in (drainkit, multi)}


def run(server: Any, entries: int, name: str) -> Result:
    """One way over the `entries` of the stream, with what it cost the server."""
    with rig.group(server) as client:
        client.slowlog_reset()
        client.config_set("slowlog-log-slower-than", 2000)
        client.config_set("slowlog-max-len", 10000)
        before = rig.server_cpu(server)
        result = rig.child(Path(__file__), name, server.tcp_url, rig.GROUP)
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
    given = parser.parse_args()
    for entries in given.entries:
        with rig.filled_server(given.kind, entries) as server:
            works = {name: partial(run, server, entries, name) for name in WORKS}
            found = rig.in_turns(works, given.rounds)
            print(rig.title(server) + f" of {given.rounds}; {entries:,} entries\n")
        rows = [(name, f"{one['sec']:.2f} s", f"{entries / one['sec']:,.0f}/s",
                 f"{one['sec'] / found['drainkit']['sec']:.2f}",
                 f"{one['cpu_sec']:.2f} + {one['server_sec']:.2f} s", f"{one['peak_mb']:.0f} MB",
                 f"{one['slowest_ms']:.1f} ms") for name, one in found.items()]  # fmt: skip
        head = ("Way", "Median", "Rate", "drainkit's is times it (multi: at least 2.5)",
                "CPU client + server", "Memory above the imports (drainkit: at most 80)",
                "Slowest script")  # fmt: skip
        rig.table(rows, head)


if __name__ == "__main__":
    if not rig.as_child(WORKS):
        main()
