"""A small plan and its decisions, for tests that need one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from drainkit import files
from drainkit.core import plan as plans
from drainkit.core.events import Decoder
from drainkit.core.plan import Plan
from drainkit.core.policy import Policy, decide
from drainkit.draining.plan_files import decisions_path

NOW_US = 1_766_605_798_664_912
POLICY = Policy(max_age_min=30.0, allowlist=frozenset({"BTCUSDT", "ETHUSDT"}), min_conf=0.6)
ENTRIES: list[Any] = [
    [b"1766605000000-0", [b"symbol", b"BTCUSDT", b"confidence", b"0.75", b"side", b"BUY"]],
    [b"1766602826755-0", [b"symbol", b"TESTUSDT", b"confidence", b"0.2", b"source", "ü".encode()]],
    [b"1766605000002-0", [b"symbol", b"=1+1 ", b"confidence", b"75%"]],
    [b"1766605000003-0", None],
    [b"5-0", [b"symbol", b"ETHUSDT", b"confidence", b"0.9"]],
]


def table_of(entries: list[Any] = ENTRIES) -> pa.Table:
    events = Decoder().decode(entries)
    return plans.decisions_table(
        plans.payload_hashes(entries), events, decide(events, POLICY, NOW_US), POLICY
    )


def save_plan(path: Path, plan: Plan, parts: Iterable[pa.Table]) -> None:
    """A plan and its decisions as files."""
    files.write_table(decisions_path(path), pa.concat_tables(parts))
    files.write_json(path, plan.to_json())


def table_sha256(table: pa.Table) -> str:
    """The SHA-256 (hex) of the file of these decisions."""
    with tempfile.TemporaryDirectory() as folder:
        files.write_table(Path(folder) / "decisions.parquet", table)
        return files.file_sha256(Path(folder) / "decisions.parquet")


def plan_of(table: pa.Table | None = None, **other: Any) -> Plan:
    table = table_of() if table is None else table
    tally = plans.Tally()
    tally.add(table)
    values: dict[str, Any] = {
        "version": plans.VERSION,
        "run_id": "20251224T194958Z-dry-run-0a1b2c",
        "created_at": "2025-12-24T19:49:58.664912+00:00",
        "stream": "quantum:stream:trade.intent",
        "consumer_group": "group",
        "consumer_name": "backlog_drain_1",
        "scope": "undelivered",
        "position": "1766594572014-0",
        "history_position": None,
        "boundary_id": "1766605000003-0",
        "policy": POLICY.as_dict(),
        "throttle": 5.0,
        "max_events": 500,
        "as_of": None,
        "until": None,
        "from_": None,
        "min_idle_min": 60.0,
        "from_consumer": ["dead_1"],
        "history_group": None,
        "fields": {"symbol": ["symbol"], "side": ["side", "action"]},
        "audit_stream": "quantum:stream:trade.intent.drain_audit",
        "environment": None,
        "server": "redis://localhost:6379/0",
        **tally.said(),
        "decisions_sha256": table_sha256(table),
    }
    return plans.seal(Plan(**{**values, **other}))
