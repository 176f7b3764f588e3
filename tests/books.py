"""The books: what a server's data tells of drains, and the command lines that ask for them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backlogs import GROUP, ME
from conftest import Cli
from prometheus_client.parser import text_string_to_metric_families
from servers import Server, pairs, wait_until

from drainkit.core.policy import ACTIONS

PASSWORD = "an4lyst-pw"  # of every role's user
FILES = {  # of a live run's evidence
    "01_analyse_backlog.ipynb", "02_dry_run.ipynb", "03_live_drain.ipynb", "04_verify.ipynb",
    "report.html", "plan.json", "decisions.parquet", "audit.parquet", "drift.parquet",
    "baseline.json", "after.json", "run.json", "verdicts.json", "statement.json", "SHA256SUMS",
}  # fmt: skip
ask = Server.ask


def audit(server: Server, stream: str, key: str | None = None) -> list[dict[str, str]]:
    """Every audit record as texts, with its own id as `audit_id`."""
    entries = ask(server, "XRANGE", key or f"{stream}.drain_audit", "-", "+")
    return [{"audit_id": audit_id.decode(), **_texts(fields)} for audit_id, fields in entries]


def recorded(server: Server, stream: str, key: str | None = None) -> list[str]:
    """The ids of the entries that have a record, in the order of the audit."""
    return [record["original_id"] for record in audit(server, stream, key)]


def _texts(fields: list[bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in pairs(fields).items()}


def wait_for(
    server: Server, stream: str, n: int, key: str | None = None, timeout_sec: float = 60
) -> None:
    """Until drains have recorded that many."""
    key = key or f"{stream}.drain_audit"
    wait_until(f"{n} are recorded", lambda: ask(server, "XLEN", key) >= n, timeout_sec=timeout_sec)


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


def key(entry_id: str) -> tuple[int, ...]:
    """An id in the order of ids."""
    return tuple(map(int, entry_id.split("-")))


def assert_counts(records: Sequence[dict[str, str]], summary: dict[str, Any] | None) -> None:
    """A summary tells what the audit stream holds of its run, up to its boundary."""
    if summary is None or summary["total_read"] is None:  # no server was there for the books
        return
    own = [record for record in records if record["run_id"] == summary["run_id"]]
    counts = Counter(record["action"] for record in own)
    assert {a: summary[a] for a in ACTIONS} == {a: counts[a] for a in ACTIONS}, summary
    assert summary["total_read"] == len(own)
    assert all(key(r["original_id"]) <= key(summary["boundary_id"]) for r in own)


def assert_books_balance(server: Server, stream: str, summary: dict[str, Any]) -> None:
    """read = audited = acknowledged, per action, and nothing pending for the drain's consumer."""
    assert_counts(audit(server, stream), summary)
    assert ask(server, "XPENDING", stream, GROUP, "-", "+", 10, ME) == []


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


def at(server: Any, stream: str) -> tuple[str, ...]:
    """The options that name a server and a stream."""
    return ("--redis-url", server.url, "--stream", stream)


def live(server: Server, stream: str, *options: object) -> tuple[object, ...]:
    """A live drain of all that is there, as fast as it goes; the options come last and win."""
    return ("drain", "--mode", "live", "--yes", "--json", "--throttle", "none",
            "--max-events", "all", *at(server, stream), *options)  # fmt: skip


def make_user(cli: Cli, server: Server, stream: str, role: str) -> str:
    """The role's user on the server; answers the URL that logs it in."""
    shown = cli.done("acl", "--json", "--redis-url", server.url, "--stream", stream)
    ask(server, "ACL", "SETUSER", role, "on", f">{PASSWORD}", *shown.json()[role])
    return server.tcp_url.replace("redis://", f"redis://{role}:{PASSWORD}@")


def only_run(cwd: Path) -> Path:
    """The folder of the only run there is in `reports`."""
    (folder,) = (path for path in (cwd / "reports").iterdir() if path.is_dir())
    return folder
