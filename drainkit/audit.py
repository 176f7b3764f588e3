"""The audit record, and whether the books balance: plan, audit and group as sets."""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .events import NO_TIME, Events, RawEntry
from .policy import ACTIONS, Decisions, Policy, reasons

RECORD_FIELDS = (
    "original_id",
    "symbol",
    "age_sec",
    "confidence",
    "action",
    "drained_at_ts",
    "reason",
    "consumer_group",
    "run_id",
)
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_ACTIONS = [action.encode() for action in ACTIONS]


@dataclass(frozen=True)
class AuditRecord:
    """One entry of the audit stream."""

    audit_id: str
    original_id: str
    symbol: str  # UNKNOWN where not valid
    age_sec: float | None
    confidence: float | None
    action: str
    drained_at_ts: str  # ISO 8601 UTC with microseconds and offset
    reason: str
    consumer_group: str
    run_id: str


def records(
    events: Events,
    decisions: Decisions,
    policy: Policy,
    *,
    drained_at_us: int,
    consumer_group: str,
    run_id: str,
) -> list[list[bytes]]:
    """One record for each event, values in the order of RECORD_FIELDS."""
    at = (_EPOCH + dt.timedelta(microseconds=drained_at_us)).isoformat(timespec="microseconds")
    tail = at.encode()
    group, run = consumer_group.encode(), run_id.encode()
    symbols = [symbol.encode() for symbol in events.symbols] + [b"UNKNOWN"]
    return [
        [
            entry_id,
            symbols[symbol],
            b"null" if age_us == NO_TIME else b"%.2f" % (age_us / 1e6),
            b"null" if math.isnan(confidence) else repr(confidence).encode(),
            _ACTIONS[action],
            tail,
            reason.encode(),
            group,
            run,
        ]
        for entry_id, symbol, age_us, confidence, action, reason in zip(
            events.ids,
            events.symbol_code.tolist(),
            decisions.age_us.tolist(),
            events.confidence.tolist(),
            decisions.action.tolist(),
            reasons(events, decisions, policy),
            strict=True,
        )
    ]


def parse(entry: RawEntry) -> AuditRecord:
    """An entry of the audit stream as a record; what is missing or odd becomes empty or None."""
    fields = entry[1] or []
    found = {
        fields[i].decode("utf-8", "replace"): fields[i + 1].decode("utf-8", "replace")
        for i in range(0, len(fields), 2)
    }
    texts = {name: found.get(name, "") for name in RECORD_FIELDS}
    numbers = {name: _number(texts.pop(name)) for name in ("age_sec", "confidence")}
    return AuditRecord(audit_id=entry[0].decode(), **numbers, **texts)  # type: ignore[arg-type]


def reconcile(
    *,
    expected: Mapping[str, str] | None,
    records: Sequence[AuditRecord],
    pending_own: int,
    counts: Mapping[str, int],
) -> list[str]:
    """What does not balance, one line each; empty when the books do.

    `expected` maps the planned ids to their planned actions (None: no plan), `counts` the actions
    to the run's own numbers, `pending_own` is what is still pending for the drain's consumer.
    """
    findings = []
    seen = Counter(record.original_id for record in records)
    twice = [entry for entry, n in seen.items() if n > 1]
    if twice:
        findings.append(f"{len(twice)} entries are recorded more than once, first {twice[0]}")
    audited = Counter(record.action for record in records)
    for action in sorted({*ACTIONS, *audited, *counts}):
        if audited[action] != counts.get(action, 0):
            findings.append(
                f"{action}: the run counted {counts.get(action, 0)}, the audit {audited[action]}"
            )
    if expected is not None:
        lacking = [entry for entry in expected if entry not in seen]
        beyond = [entry for entry in seen if entry not in expected]
        if lacking:
            findings.append(f"{len(lacking)} planned entries have no record, first {lacking[0]}")
        if beyond:
            findings.append(f"{len(beyond)} recorded entries were not planned, first {beyond[0]}")
    if pending_own:
        findings.append(f"{pending_own} entries are still pending for the drain's consumer")
    return findings


def drift(planned: Mapping[str, str], records: Sequence[AuditRecord]) -> list[tuple[str, str, str]]:
    """(id, planned action, what happened) wherever the two differ."""
    return [
        (record.original_id, planned[record.original_id], record.action)
        for record in records
        if record.original_id in planned and planned[record.original_id] != record.action
    ]


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if np.isfinite(number) else None
