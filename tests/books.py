"""What the drain tests share: a seeded backlog, and what a server's data looks like."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import redis
from conftest import Cli
from prometheus_client.parser import text_string_to_metric_families
from servers import Server, pairs, wait_until

Fields = Mapping[Any, Any] | Sequence[Any]
GROUP = "quantum:group:execution:trade.intent"
ME = "backlog_drain_1"
ALLOW = "BTCUSDT,ETHUSDT"
PASSWORD = "an4lyst-pw"  # of every role's user
FILES = {  # of a live run's evidence
    "01_analyse_backlog.ipynb", "02_dry_run.ipynb", "03_live_drain.ipynb", "04_verify.ipynb",
    "report.html", "plan.json", "decisions.parquet", "audit.parquet", "drift.parquet",
    "baseline.json", "after.json", "run.json", "verdicts.json", "statement.json", "SHA256SUMS",
}  # fmt: skip
SYMBOLS = ("BTCUSDT", "ETHUSDT", "DOGEUSDT")


ask = Server.ask


def backlog(now_ms: int, n: int, *, gap_ms: int = 100) -> list[tuple[str, dict[str, object]]]:
    """n entries that end at `now_ms`, some of them malformed, so that every filter drops some."""
    entries: list[tuple[str, dict[str, object]]] = []
    for i in range(n):
        ms = now_ms - (n - i) * gap_ms
        event: dict[str, object] = {
            "symbol": SYMBOLS[i % 3],
            "side": "BUY",
            "confidence": round((i * 37 % 100) / 100, 2),
            "timestamp": ms,
            "source": "ai-engine",
        }
        fields: dict[str, object] = {"payload": json.dumps(event)} if i % 2 else event
        if i % 17 == 5:
            fields = {"payload": "{broken"}
        entries.append((f"{ms}-{i % 3}", fields))
    return entries


def fill(
    where: Server | redis.Redis | redis.RedisCluster,
    stream: str | bytes,
    entries: Iterable[tuple[bytes | str | int, Fields]],
    *,
    group: str | None = None,
    position: str = "0-0",
) -> list[bytes]:
    """Puts entries with explicit ids into a stream and answers the ids.

    An id is bytes, text ("1700000000000-0") or milliseconds as int; fields are a mapping or the
    flat list field, value, field, value (so that a field can occur twice). `group` is created
    at `position` (on an empty stream too).
    """
    client: Any = where.client() if isinstance(where, Server) else where
    ids: list[bytes] = []
    left = iter(entries)
    while batch := list(islice(left, 2000)):
        # not in a transaction, and no retry: an id that is sent twice is refused the second time
        with client.pipeline(transaction=False) as pipe:
            for entry, fields in batch:
                flat = chain(*fields.items()) if isinstance(fields, Mapping) else fields
                pipe.execute_command(
                    "XADD", stream, f"{entry}-0" if isinstance(entry, int) else entry, *flat
                )
            ids.extend(pipe.execute())
    if group is not None:
        client.execute_command("XGROUP", "CREATE", stream, group, position, "MKSTREAM")
    return ids


def seed(server: Server, stream: str, n: int = 300, *, delivered: int = 100) -> list[str]:
    """A stream of n recent entries whose group has had the first `delivered`; answers the ids."""
    client = server.client()
    seconds, micros = client.time()
    entries = backlog(seconds * 1000 + micros // 1000, n)
    position = entries[delivered - 1][0] if delivered else "0-0"
    fill(client, stream, entries, group=GROUP, position=position)
    return [entry_id for entry_id, _ in entries]


def audit(server: Server, stream: str, key: str | None = None) -> list[dict[str, str]]:
    """Every audit record as texts, with its own id as `audit_id`."""
    entries = ask(server, "XRANGE", key or f"{stream}.drain_audit", "-", "+")
    return [{"audit_id": audit_id.decode(), **_texts(fields)} for audit_id, fields in entries]


def _texts(fields: list[bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in pairs(fields).items()}


def wait_for(server: Server, stream: str, n: int) -> None:
    """Until a drain has recorded that many."""
    key = f"{stream}.drain_audit"
    wait_until(f"{n} are recorded", lambda: ask(server, "XLEN", key) >= n, timeout_sec=60)


def ledger_of(server: Server, stream: str) -> list[dict[str, str]]:
    """Every entry of the run ledger as texts."""
    entries = ask(server, "XRANGE", f"{stream}.drain_runs", "-", "+")
    return [_texts(fields) for _, fields in entries]


def metrics(text: str) -> dict[tuple[str, ...], float]:
    """Prometheus metrics by name and label values, in the order of their names; each only once."""
    samples = [s for f in text_string_to_metric_families(text) for s in f.samples]
    found = {(s.name, *(s.labels[k] for k in sorted(s.labels))): s.value for s in samples}
    assert len(found) == len(samples)
    return found


def pending(server: Server, stream: str, group: str = GROUP) -> int:
    """How many entries of the group wait for their ACK."""
    return int(ask(server, "XPENDING", stream, group)[0])


def everything(server: Server) -> dict[str, Any]:
    """All that a dry run must leave: each key's DUMP, streams in full, the change count."""
    found: dict[str, Any] = {}
    for key in sorted(ask(server, "KEYS", "*")):
        found[key.decode()] = ask(server, "DUMP", key)
        if ask(server, "TYPE", key) == b"stream":
            full = ask(server, "XINFO", "STREAM", key, "FULL", "COUNT", 0)
            found[f"{key.decode()} in full"] = full
    info = ask(server, "INFO", "persistence")
    lines = info.decode().splitlines()
    found["changes"] = [line for line in lines if "rdb_changes_since_last_save" in line]
    return found


def assert_books_balance(server: Server, stream: str, summary: dict[str, Any]) -> None:
    """read = audited = acknowledged, per action, and nothing pending for the drain's consumer."""
    records = [r for r in audit(server, stream) if r["run_id"] == summary["run_id"]]
    counts = Counter(r["action"] for r in records)
    names = ("dropped_missing", "dropped_old", "dropped_invalid", "dropped_not_allowlisted",
             "dropped_low_conf", "drained_ok")  # fmt: skip
    assert {name: counts[name] for name in names} == {name: summary[name] for name in names}
    assert summary["total_read"] == len(records) == sum(counts.values())
    own = ask(server, "XPENDING", stream, GROUP, "-", "+", 10, ME)
    assert own == []


def worst_window(records: list[dict[str, str]], width_ms: int) -> int:
    """The most audit records whose ids fall into any half-open window of `width_ms`."""
    times = [int(record["audit_id"].partition("-")[0]) for record in records]
    worst = start = 0
    for end in range(len(times)):
        while times[end] - times[start] >= width_ms:
            start += 1
        worst = max(worst, end - start + 1)
    return worst


def reached(records: list[dict[str, str]], rate: float) -> float:
    """The share of `rate` between the first and the last record; one turn is one batch."""
    times = [int(record["audit_id"].partition("-")[0]) for record in records]
    batch = max(1, math.floor(rate * 0.02))
    return (len(times) - batch) / (times[-1] - times[0]) * 1000 / rate


def original_backlog() -> list[tuple[str, dict[str, object]]]:
    """The stream of the original report: 10,009 entries of history and the three after them."""
    first = 1766594572014 - 10_009
    told = [
        *((first + i, "CFXUSDT", 0.68, "trading-bot") for i in range(1, 10_010)),
        (1766602826755, "TESTUSDT", 0.75, "manual_test"),
        (1766602892766, "TESTUSDT", 0.99, "manual_test_phase_e"),
        (1766604066005, "RENDERUSDT", 0.72, "v35_probe"),
    ]
    return [
        (f"{ms}-0", {"symbol": symbol, "side": "BUY", "confidence": conf, "source": source})
        for ms, symbol, conf, source in told
    ]


def at(server: Server, stream: str) -> tuple[str, ...]:
    """The options that name a server and a stream."""
    return ("--redis-url", server.url, "--stream", stream)


def live(server: Server, stream: str, *options: object) -> tuple[object, ...]:
    """A live drain of all that is there, as fast as it goes; the options come last and win."""
    return ("drain", "--mode", "live", "--yes", "--json", "--throttle", "none",
            "--max-events", "all", *at(server, stream), *options)  # fmt: skip


def deliver(
    server: Server, stream: str, consumer: str | bytes, n: int, group: str = GROUP
) -> list[str]:
    """Delivers the next n entries to a consumer that never acknowledges them; answers their ids."""
    reply = ask(server, "XREADGROUP", "GROUP", group, consumer, "COUNT", n, "STREAMS", stream, ">")
    return [entry[0].decode() for entry in reply[0][1]]


def add_consumers(server: Server, stream: str, n: int) -> None:
    """n consumers of the group, c0 and on, that have nothing."""
    pipe = server.client().pipeline(transaction=False)
    for i in range(n):
        pipe.execute_command("XGROUP", "CREATECONSUMER", stream, GROUP, f"c{i}")
    pipe.execute()


def now_ms(server: Server) -> int:
    """The server's clock in milliseconds."""
    seconds, micros = ask(server, "TIME")
    return int(seconds) * 1000 + int(micros) // 1000


def make_user(cli: Cli, server: Server, stream: str, role: str) -> str:
    """The role's user on the server; answers the URL that logs it in."""
    shown = cli.done("acl", "--json", "--redis-url", server.url, "--stream", stream)
    ask(server, "ACL", "SETUSER", role, "on", f">{PASSWORD}", *shown.json()[role])
    return server.tcp_url.replace("redis://", f"redis://{role}:{PASSWORD}@")


def only_run(cwd: Path) -> Path:
    """The folder of the only run there is in `reports`."""
    (folder,) = (path for path in (cwd / "reports").iterdir() if path.is_dir())
    return folder
