"""The audit record, and whether the books balance: plan, audit and group as sets."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from ..safe import one_line
from .events import Events
from .policy import ACTIONS, Decisions, Policy, reasons
from .timestamps import NO_TIME, iso
from .values import RawEntry

if TYPE_CHECKING:
    import pyarrow as pa

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
    tail = iso(drained_at_us).encode()
    group, run = consumer_group.encode(), run_id.encode()
    symbols = [symbol.encode() for symbol in events.symbols] + [b"UNKNOWN"]
    return [
        [
            entry_id,
            symbols[symbol],
            b"null" if age_us == NO_TIME else b"%.2f" % (age_us / 1e6),
            _number_text(confidence) if confidence == confidence else b"null",  # noqa: PLR0124 - nan
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


@lru_cache(4096)
def _number_text(number: float) -> bytes:
    """The shortest text that reads as the number; confidences have few values, and repr is slow."""
    return repr(number).encode()


def parse(entry: RawEntry) -> AuditRecord:
    """An entry of the audit stream as a record; what is missing or odd becomes empty or None."""
    texts = [part.decode("utf-8", "replace") for part in entry[1] or []]
    found = dict.fromkeys(RECORD_FIELDS, "") | dict(zip(texts[::2], texts[1::2], strict=True))
    return AuditRecord(
        audit_id=entry[0].decode(),
        original_id=found["original_id"],
        symbol=found["symbol"],
        age_sec=_number(found["age_sec"]),
        confidence=_number(found["confidence"]),
        action=found["action"],
        drained_at_ts=found["drained_at_ts"],
        reason=found["reason"],
        consumer_group=found["consumer_group"],
        run_id=found["run_id"],
    )


def reconcile(
    *,
    expected: Mapping[str, str] | None,
    records: Sequence[AuditRecord],
    pending_own: int,
    counts: Mapping[str, int],
    earlier: Sequence[AuditRecord] = (),
    vanished: Collection[str] = (),
) -> list[str]:
    """What does not balance, one line each; empty when the books do.

    `expected` maps the planned ids to their planned actions (None: no plan), `counts` the actions
    to the run's own numbers, `pending_own` is what is still pending for the drain's consumer;
    `earlier` are the records of earlier runs of the same plan, which this one finished; `vanished`
    are ids that were deleted before they could be delivered: they need no record.
    """
    findings = []
    seen = Counter(record.original_id for record in (*earlier, *records))
    twice = [entry for entry, n in seen.items() if n > 1]
    if twice:
        findings.append(_first("entries are recorded more than once", twice))
    audited = Counter(record.action for record in records)
    for action in sorted({*ACTIONS, *audited, *counts}):
        if audited[action] != counts.get(action, 0):
            findings.append(
                f"{one_line(action)}: the run counted {counts.get(action, 0)}, "
                f"the audit {audited[action]}"
            )
    if expected is not None:
        lacking = [entry for entry in expected if entry not in seen and entry not in vanished]
        beyond = [entry for entry in seen if entry not in expected]
        if lacking:
            findings.append(_first("planned entries have no record", lacking))
        if beyond:
            findings.append(_first("recorded entries were not planned", beyond))
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


def _first(finding: str, ids: Sequence[str]) -> str:
    # whoever may write to the audit stream could have put anything there
    return f"{len(ids)} {finding}, first {one_line(ids[0])}"


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def audit_table(records: list[AuditRecord]) -> pa.Table:
    """Audit records as a table, columns as in the stream plus `audit_id`."""
    import pyarrow as pa

    names = [field.name for field in dataclasses.fields(AuditRecord)]
    numbers = ("age_sec", "confidence")
    return pa.table(
        {
            name: pa.array(
                [getattr(record, name) for record in records],
                pa.float64() if name in numbers else pa.string(),
            )
            for name in names
        }
    )
