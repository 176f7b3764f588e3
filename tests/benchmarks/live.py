"""Live drains, unthrottled, against a plain pipeline that does the whole job; prints tables.

    python tests/benchmarks/live.py [--entries 100000 1000000] [--rounds 3] [--kind redis]

Both work on the same stream through a group of their own: read, decode, decide, audit, ACK.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import rig
from rig import KEY, Result, measured

AUDIT = KEY + ".bench_audit"
SLOW_MS = 20  # SLOWLOG target: no commit holds the server for longer


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
    now = time.time()
    found: dict[str, Any] = {}
    reason, action, age_sec, confidence = "", "", None, None
    body = fields.get(b"payload") or fields.get(b"data")
    try:
        found = json.loads(body) if body else {k.decode(): v.decode() for k, v in fields.items()}
        confidence = float(found["confidence"])
        stamp = found.get("timestamp")
        if isinstance(stamp, str):
            at = datetime.fromisoformat(stamp).timestamp()
        else:
            at = (stamp or int(entry_id.partition(b"-")[0])) / 1000
        age_sec = now - at
        symbol = found["symbol"]
    except (ValueError, KeyError, TypeError) as error:
        action, reason, symbol = "dropped_invalid", type(error).__name__, "UNKNOWN"
    if age_sec is not None and age_sec > rig.MAX_AGE_MIN * 60:
        action = "dropped_old"
        reason = f"age {age_sec:.2f} s > {rig.MAX_AGE_MIN * 60:.2f} s"
    elif not action and symbol not in rig.ALLOWLIST:
        action, reason = "dropped_not_allowlisted", "symbol not in the allowlist"
    elif not action and confidence is not None and confidence < rig.MIN_CONF:
        action, reason = "dropped_low_conf", f"confidence {confidence} < {rig.MIN_CONF}"
    elif not action:
        action, reason = "drained_ok", "passed every filter"
    return {
        "original_id": entry_id,
        "symbol": symbol,
        "age_sec": "null" if age_sec is None else f"{age_sec:.2f}",
        "confidence": "null" if confidence is None else confidence,
        "action": action,
        "drained_at_ts": datetime.fromtimestamp(now, UTC).isoformat(timespec="microseconds"),
        "reason": reason,
        "consumer_group": group,
        "run_id": "20251224T120000Z_abcdef",
    }


WORKS = {one.__name__: one for one in (drainkit, multi)}


def measure(server: Any, entries: int, names: list[str], rounds: int) -> dict[str, Result]:
    """Medians of each way over the `entries` of the stream."""

    def run(name: str) -> Result:
        with rig.group(server) as client:
            client.config_resetstat()
            client.slowlog_reset()
            client.config_set("slowlog-log-slower-than", 2000)
            client.config_set("slowlog-max-len", 10000)
            before = rig.server_cpu(server)
            result = rig.child(Path(__file__), name, server.tcp_url, rig.GROUP)
            server_cpu = rig.server_cpu(server) - before
            slow = [row["duration"] / 1000 for row in client.slowlog_get(10000)
                    if row["command"].startswith(b"EVAL")]  # fmt: skip
            assert result["done"] == entries, result
            assert client.xlen(AUDIT) == entries
            assert client.xpending(KEY, rig.GROUP)["pending"] == 0
        return {
            **result,
            "server_cpu_sec": server_cpu,
            "rate": result["done"] / result["sec"],
            "slowest_ms": max(slow, default=0.0),
            "over": sum(ms > SLOW_MS for ms in slow),
        }

    works = {name: lambda name=name: run(name) for name in names}  # type: ignore[misc]
    return rig.in_turns(works, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kind", default="redis")
    parser.add_argument("--only", nargs="+", choices=WORKS, default=list(WORKS))
    given = parser.parse_args()
    for entries in given.entries:
        with rig.filled_server(given.kind, entries) as server:
            found = measure(server, entries, given.only, given.rounds)
            print(rig.title(server) + f" of {given.rounds}; {entries:,} entries\n")
        ours = found["drainkit"]
        rows = []
        for name, result in found.items():
            ratio = "" if name == "drainkit" else f"{ours['rate'] / result['rate']:.2f}"
            rows.append((name, f"{result['done']:,.0f}", f"{result['sec']:.2f} s",
                         f"{result['rate']:,.0f}/s", ratio, ratio and "at least 2.5",
                         f"{result['cpu_sec']:.2f} + {result['server_cpu_sec']:.2f} s",
                         f"{result['peak_mb']:.0f} MB"))  # fmt: skip
        head = ("Way", "Entries", "Median", "Rate", "drainkit's is times it", "Target",
                "CPU client + server", "Memory above the imports")  # fmt: skip
        rig.table(rows, head)
        print(
            f"Memory of the drain {ours['peak_mb']:.0f} MB (target: at most 80); its slowest "
            f"commit by SLOWLOG {ours['slowest_ms']:.1f} ms, {ours['over']:.0f} over {SLOW_MS} ms\n"
        )


if __name__ == "__main__":
    if not rig.as_child(WORKS):
        main()
