"""The checks of a run: each holds, fails, is explained or unknown by itself, and says why."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pytest

from drainkit.core.audit import audit_schema
from drainkit.core.policy import ACTIONS
from drainkit.core.verdicts import Recorded, verdicts

N = 2000
ME = "backlog_drain_1"
ACTION = [ACTIONS[-1] if i % 10 else ACTIONS[1] for i in range(N)]
GROUP = {"name": "g", "position": "1-0", "pending": 0, "consumer_list": []}
OTHER = {**GROUP, "name": "other"}


def records(*, ids: list[str] | None = None, n: int = N, gap_ms: int = 200) -> pa.Table:
    """The audit of a run at 5 per second: each record at its turn."""
    ids = ids or [f"{5 + i // 3}-{i % 3 + 8}" for i in range(n)]
    columns = {
        "audit_id": [f"{1000 + i * gap_ms}-0" for i in range(n)],
        "original_id": ids[:n], "action": ACTION[:n], "run_id": ["r"] * n,
    }  # fmt: skip
    return pa.table(
        [pa.array(columns.get(field.name, [None] * n), field.type) for field in audit_schema()],
        audit_schema(),
    )


def state(*others: dict[str, Any], **own: Any) -> dict[str, Any]:
    length = own.pop("length", N)
    return {"stream": {"length": length}, "groups": [{**GROUP, **own}, *(others or (OTHER,))]}


def judged(
    table: pa.Table | None, after: dict[str, Any] | None = None, **run: Any
) -> dict[str, tuple[str, str]]:
    """Verdict and reason by claim, of a run of a plan of N entries."""
    counts = Counter(ACTION[: len(table) if table is not None else N])
    books: dict[str, Any] = {
        "mode": "live", "consumer_group": "g", "boundary_id": "900-9", "throttle": 5.0, "drift": [],
        "finished_at": "2026", "remaining": 0, **counts, **run,
    }  # fmt: skip
    recorded = None
    if table is not None:
        recorded = Recorded("r", "900-9", None)
        for start in range(0, len(table), 300):
            recorded.add(table.slice(start, 300))
        recorded.finish()
    plan = {"total_read": N}
    found = verdicts(books, plan, state(), after or state(), recorded, consumer=ME)
    return {verdict.claim: (verdict.verdict, verdict.because) for verdict in found}


def test_a_good_run_meets_all() -> None:
    """Eight claims of a live run, each met, with the numbers that they rest on."""
    found = judged(records())
    assert [verdict for verdict, _ in found.values()] == ["yes"] * 8
    assert found["The throttle was kept"][1] == "The worst second holds 5 events, 5 are allowed."


def fate(planned: str, happened: str, events: int) -> dict[str, Any]:
    return {"drift": [{"planned": planned, "happened": happened, "events": events}]}


TWICE = ["5-8", *[f"{5 + i // 3}-{i % 3 + 8}" for i in range(N - 1)]]
AFTER = ["900-10", *[f"{5 + i // 3}-{i % 3 + 8}" for i in range(1, N)]]
MOVED = {**OTHER, "position": "2-0", "pending": 5}
USED = {**OTHER, "consumer_list": [{"name": ME}]}
CASES: list[tuple[dict[str, Any], str, str, str]] = [
    ({"table": records(ids=TWICE)}, "Each read entry", "no", "more than once: 1, first 5-8"),
    ({"dropped_old": 201}, "Each read entry", "no", "the run counted 201, the audit 200"),
    ({"table": records(n=320), "remaining": 1680}, "The plan was met", "no",
     "1,680 of 2,000 planned entries were not drained."),
    ({"table": records(n=1999), "vanished": 1}, "The plan was met", "explained", "1 had been del"),
    (fate("drained_ok", "dropped_old", 50), "The plan was met", "explained", "50 met another fate"),
    (fate("dropped_old", "drained_ok", 1), "The plan was met", "no", "0 of them by growing"),
    ({"drift": None}, "The plan was met", "unknown", "not compared"),
    ({"pending_own": 3}, "Pending", "no", "3 entries are still pending"),
    ({"after": state(pending=1)}, "Pending", "explained", "delivered to other consumers"),
    ({"after": state(OTHER, {**OTHER, "name": "new\n"})}, "Other groups", "no",
     "group new\\n appeared during the run"),
    ({"after": state(USED)}, "Other groups", "no", f"other now has a consumer {ME}"),
    ({"after": state(MOVED)}, "Other groups", "explained", "0 of 1 are as they were"),
    ({"after": state(OTHER, {**OTHER, "name": "g.drain_history"})}, "Other groups", "yes", "1 oth"),
    ({"table": records(gap_ms=166)}, "The throttle", "no", "The worst second holds 7 events"),
    ({"table": records(ids=AFTER)}, "Nothing after", "no", "1 records are of entries after 900-9"),
    ({"after": state(length=1999)}, "The stream was not", "explained", "others deleted or trimmed"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "claim", "verdict", "because"), CASES)
def test_each_fails_by_itself(
    change: dict[str, Any], claim: str, verdict: str, because: str
) -> None:
    """What is wrong shows at its own claim, with its numbers, and at no other."""
    found = judged(**{"table": records(), **change})
    (own,) = (name for name in found if name.startswith(claim))
    assert (found[own][0], because in found[own][1]) == (verdict, True), found[own]
    assert {other for name, (other, _) in found.items() if name != own} == {"yes"}


def test_what_is_not_known_is_not_met() -> None:
    """Without audit, states and comparison nothing is met but what the program cannot do."""
    found = {v.claim: v.verdict for v in verdicts({"mode": "live"}, {}, {}, {}, None)}
    assert found.pop("No path to an order") == "yes"
    assert set(found.values()) == {"unknown"}
