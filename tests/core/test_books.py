"""The books: one fault in plan, audit or counts is found, in whatever order the records come; what
a run says of them, of its pace and of how far it is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_samples import ENTRIES, NOW_US, POLICY, table_of

from drainkit.core.events import Decoder
from drainkit.core.policy import ACTIONS, audit_schema, decide
from drainkit.core.reconciliation import (
    Entries,
    Recorded,
    ToDrain,
    drift_counts,
    drift_of,
    reconcile,
)
from drainkit.core.summary import Pace, Step, Summary
from drainkit.core.verdicts import verdicts
from drainkit.errors import RefusedError
from drainkit.ids import id_key
from drainkit.settings import build

Rows = list[tuple[str, str]]
books = st.dictionaries(
    st.integers(1, 12).map(lambda n: f"{n}-0"), st.sampled_from(ACTIONS), min_size=1, max_size=9
)
sizes = st.lists(st.integers(1, 4), min_size=10, max_size=10)


def audit_of(columns: dict[str, list[Any]]) -> pa.Table:
    """Records of run r; what is not told of them is empty."""
    n, schema = len(columns["original_id"]), audit_schema()
    columns = {"audit_id": ["1-0"] * n, "run_id": ["r"] * n, **columns}
    values = [columns.get(name, [None] * n) for name in schema.names]
    return pa.table([*map(pa.array, values, schema.types)], schema)


def held(planned: Rows | None, recorded: Rows, sizes: Sequence[int] = (99,)) -> Recorded:
    """Records held against a plan, both in parts of these sizes."""
    schema = pa.schema([("id", pa.string()), ("action", pa.dictionary(pa.int32(), pa.string()))])
    plan = pa.table([*map(list, zip(*(planned or ()), strict=True))] or [[], []], schema)
    found = Recorded("r", "", None if planned is None else lambda: parts(plan, sizes[::-1]))
    ids, reasons = [entry for entry, _ in recorded], [f"why {entry}" for entry, _ in recorded]
    actions = [action for _, action in recorded]
    whole = audit_of({"original_id": ids, "action": actions, "reason": reasons})
    for part in parts(whole, sizes):
        found.add(part)
    return found


def parts(whole: pa.Table, sizes: Sequence[int]) -> list[pa.Table]:
    return [whole.slice(sum(sizes[:k]), size) for k, size in enumerate(sizes)]


def findings(
    planned: Rows | None, rows: Rows, sizes: Sequence[int], counts: dict[str, int]
) -> list[str]:
    recorded = held(planned, rows, sizes)
    recorded.finish()
    return reconcile(recorded, counts)


# ---------------------------------------------------------------- plan, audit, counts


@given(books, st.booleans(), sizes, st.randoms(), st.data())
def test_every_single_fault_is_found(
    actions: dict[str, str], planned: bool, sizes: list[int], draw: Any, data: st.DataObject
) -> None:
    """Every planned entry recorded once, in any order, the counts equal: no finding. One lost,
    doubled, foreign or relabelled entry gives a finding that names it; of a doubled one also
    where nothing was planned."""
    rows, counts = [*actions.items()], Counter(actions.values())
    plan = [*rows] if planned else None
    draw.shuffle(rows)
    assert findings(plan, rows, sizes, counts) == []
    fault = data.draw(st.sampled_from(["lost", "doubled", "foreign", "relabelled"]))
    at = data.draw(st.integers(0, len(rows) - 1))
    entry = rows[at][0]
    expected = {
        "lost": f"planned entries without a record: 1, first {entry}",
        "doubled": f"entries recorded more than once: 1, first {entry}",
        "foreign": "recorded entries that were not planned: 1, first 100-0",
        "relabelled": "relabelled: the run counted 0, the audit 1",
    }[fault]
    if fault == "lost":
        del rows[at]
    elif fault == "relabelled":
        rows[at] = (entry, "relabelled")
    else:
        more = rows[at] if fault == "doubled" else ("100-0", rows[at][1])
        rows.insert(data.draw(st.integers(0, len(rows))), more)
    found = findings(plan, rows, sizes, counts)
    assert (expected in found) is (planned or fault in ("doubled", "relabelled"))
    others = [line for line in found if line != expected]
    assert others
    assert all("the run counted" in line for line in others)


def test_what_vanished_needs_no_record() -> None:
    """A planned entry that was deleted before it could be delivered is not lacking; another is."""
    recorded = held([(f"{n}-0", "drained_ok") for n in range(1, 5)], [("2-0", "drained_ok")])
    recorded.finish(lambda ids: [entry for entry in ids if entry in ("1-0", "4-0")])
    assert (recorded.lacking, recorded.vanished) == (["3-0"], 2)


@given(books, books)
def test_drift_lists_every_change(planned: dict[str, str], happened: dict[str, str]) -> None:
    """(id, planned, happened, reason) for exactly the entries whose action changed."""
    both = planned.keys() & happened.keys()
    changed = {(k, planned[k], happened[k], f"why {k}") for k in both if planned[k] != happened[k]}
    recorded = held([*planned.items()], [*happened.items()])
    recorded.finish()
    found = recorded.drift()
    rows = [tuple(row.values()) for row in found.to_pylist()]
    assert ({*rows}, len(rows)) == (changed, len(changed))
    counts = {(c["planned"], c["happened"]): c["events"] for c in drift_counts(found)}
    assert counts == Counter((was, now) for _, was, now, _ in changed)


def test_what_is_decided_otherwise_is_noted_with_its_reason() -> None:
    """Only recorded rows whose action differs from the plan's."""
    planned, events = table_of(), Decoder().decode(ENTRIES)
    later = decide(events, POLICY, NOW_US + 3_600_000_000)
    for rows, expected in ((slice(None), [0, 2]), (np.array([1, 1, 1, 1, 1]) == 0, [])):
        tables = drift_of(events, later, rows, Entries(planned).actions, POLICY)
        found = [row for part in tables for row in part.to_pylist()]
        assert [row["id"].encode() for row in found] == [ENTRIES[i][0] for i in expected]
        assert {row["happened"] for row in found} <= {"dropped_old"}
        assert all("1800.00 s" in row["reason"] for row in found)
    same = decide(events, POLICY, NOW_US)
    assert drift_of(events, same, slice(None), Entries(planned).actions, POLICY) == []


# ---------------------------------------------------------------- a plan's entries

SOME_IDS = st.lists(
    st.sampled_from(
        [b"%d-%d" % (9 + i // 3, 9 + i % 3) for i in range(9)]
        + [b"8-0", b"99-1"]
        + [b"11-18446744073709551615"]
    ),
    unique=True,
)


@given(SOME_IDS, SOME_IDS)
def test_ids_are_found_in_any_order(planned: list[bytes], ids: list[bytes]) -> None:
    """Each id's own row, however the plan's stand; -1 for what is not planned. The last entry is
    the largest id: by milliseconds and number, not as texts, and wherever it stands."""
    entries, rows = Entries(table_of([[one, None] for one in planned])), {**dict.fromkeys(ids, -1)}
    rows |= {one: row for row, one in enumerate(planned)}
    assert entries.find(ids).tolist() == [rows[one] for one in ids]
    assert ToDrain.of(entries).last_id == max(planned, key=id_key, default=b"").decode()


# ---------------------------------------------------------------- a run's pace and progress

NOTES = st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 50)), max_size=30)


def pace_of(notes: list[tuple[int, int]]) -> Pace:
    pace = Pace()
    for ms, n in sorted(notes):
        pace.note(ms, n)
    return pace


@given(NOTES, st.integers(1, 2000), st.integers(2, 500))
def test_the_rate_is_what_came_before_the_last_millisecond(
    notes: list[tuple[int, int]], throttle: int, n: int
) -> None:
    """(records before the last ms) / (last - first), rounded down; 0 where both are one. So events
    a turn apart, by milliseconds rounded up, never look faster than the throttle."""
    due = [(math.ceil(k * (1000 / throttle)), 1) for k in range(n)]
    assert pace_of(due).events_per_sec() <= throttle
    rate = pace_of(notes).events_per_sec()
    times = [ms for ms, _ in notes]
    if not times or min(times) == max(times):
        assert rate == 0
        return
    before = sum(n for ms, n in notes if ms < max(times))
    exact = before / ((max(times) - min(times)) / 1000)
    assert exact - 0.0101 <= rate <= exact


def summary_of(*notes: tuple[int, int], throttle: object = 5, **counts: int) -> Summary:
    settings = build({"mode": "live", "stream": "s", "throttle": throttle})
    summary = Summary.opened(settings, run_id="r", boundary="1-0", now_us=10**15)
    for name, value in counts.items():
        setattr(summary, name, value)
    for ms, n in notes:
        summary.pace.note(ms, n)
    return summary


def test_books_read_and_closed_again_keep_times_and_rate() -> None:
    """What `as_dict` wrote is the same after `read`; a later failure adds only itself."""
    summary = summary_of((1000, 5), (2000, 1))
    summary.close(None, 10**15 + 1_500_000)
    again = Summary.read(summary.as_dict())
    assert again.as_dict() == summary.as_dict()
    again.close(RefusedError("late"), 10**15 + 9_000_000)
    assert (again.events_per_sec, again.elapsed_sec, again.outcome) == (5.0, 1.5, "refused")


def step_of(done: int, passed: int, total: int, *, sec: int = 200, throttle: object = 5) -> Step:
    return Step.of(summary_of((0, done - 1), (sec * 1000, 1), throttle=throttle, total_read=done,
                              drained_ok=passed, expected=total))  # fmt: skip


def test_the_line_is_the_contracts() -> None:
    """Done of all, rate of throttle, time left, passed; read again, it is the same step."""
    step = step_of(1001, 412, 10_001)
    assert step.line == "drained 1,001 of 10,001, 5.0/s of 5, 30 min left, 412 passed"
    assert Step.read(step.line) == step
    fast = step_of(1001, 3, 1001, throttle="none", sec=1)
    assert fast.line == "drained 1,001 of 1,001, 1,000.0/s, 3 passed"
    at_once = step_of(250, 250, 250, throttle="none", sec=0)
    assert at_once.line == "drained 250 of 250, 250 passed"  # in one millisecond: no rate
    assert Step.read("Not armed: approve is empty, so nothing was changed.") is None


# ---------------------------------------------------------------- its verdicts

N = 2000
ME = "backlog_drain_1"
ACTION = [ACTIONS[-1] if i % 10 else ACTIONS[1] for i in range(N)]
IDS = [f"{5 + i // 3}-{i % 3 + 8}" for i in range(N)]
GROUP = {"name": "g", "position": "1-0", "pending": 0, "consumer_list": []}
OTHER = {**GROUP, "name": "other"}


def records(*, ids: list[str] = IDS, n: int = N, gap_ms: int = 200) -> pa.Table:
    """The audit of a run at 5 per second: each record at its turn."""
    turns = [f"{1000 + i * gap_ms}-0" for i in range(n)]
    return audit_of({"audit_id": turns, "original_id": ids[:n], "action": ACTION[:n]})


def state(*others: dict[str, Any], length: int = N, **own: Any) -> dict[str, Any]:
    return {"stream": {"length": length}, "groups": [{**GROUP, **own}, *(others or (OTHER,))]}


def judged(
    table: pa.Table | None = None, after: dict[str, Any] | None = None, **run: Any
) -> dict[str, tuple[str, str]]:
    """Verdict and reason by claim, of a run of a plan of N entries."""
    table = records() if table is None else table
    summary: dict[str, Any] = {
        "mode": "live", "consumer_group": "g", "boundary_id": "900-9", "throttle": 5.0, "drift": [],
        "finished_at": "2026", "remaining": 0, **Counter(ACTION[: len(table)]), **run,
    }  # fmt: skip
    recorded = Recorded("r", "900-9", None)
    for start in range(0, len(table), 300):
        recorded.add(table.slice(start, 300))
    recorded.finish()
    plan = {"total_read": N}
    found = verdicts(summary, plan, state(), after or state(), recorded, consumer=ME)
    return {verdict.claim: (verdict.verdict, verdict.because) for verdict in found}


def fate(planned: str, happened: str, events: int) -> dict[str, Any]:
    return {"drift": [{"planned": planned, "happened": happened, "events": events}]}


EVIL = "\x1b[2J\n\u202e"  # whoever may write to the audit stream can put anything there
NEW, HISTORY = {**OTHER, "name": "new\n"}, {**OTHER, "name": "g.drain_history"}
MOVED = {**OTHER, "position": "2-0", "pending": 5}
USED = {**OTHER, "consumer_list": [{"name": ME}]}
CASES: list[tuple[dict[str, Any], str, str, str]] = [
    ({}, "The throttle was kept", "yes", "The worst second holds 5 events, 5 are allowed."),
    ({"table": records(ids=[EVIL, EVIL, *IDS])}, "Each read", "no",
     "entries recorded more than once: 1, first \\x1b[2J\\n\\u202e"),
    ({"dropped_old": 201}, "Each read entry", "no", "the run counted 201, the audit 200"),
    ({"table": records(n=320), "remaining": 1680}, "The plan was met", "no",
     "1,680 of 2,000 planned entries were not drained."),
    ({"table": records(n=1999), "vanished": 1}, "The plan was met", "explained", "1 had been del"),
    (fate("drained_ok", "dropped_old", 50), "The plan was met", "explained", "50 met another fate"),
    (fate("dropped_old", "drained_ok", 1), "The plan was met", "no", "0 of them by growing"),
    ({"drift": None}, "The plan was met", "unknown", "not compared"),
    ({"pending_own": 3}, "Pending", "no", "3 entries are still pending"),
    ({"after": state(pending=1)}, "Pending", "explained", "delivered to other consumers"),
    ({"after": state(OTHER, NEW)}, "Other groups", "no", "group new\\n appeared during the run"),
    ({"after": state(USED)}, "Other groups", "no", f"other now has a consumer {ME}"),
    ({"after": state(MOVED)}, "Other groups", "explained", "0 of 1 others are as they were"),
    ({"after": state(OTHER, HISTORY)}, "Other groups", "yes", "1 of 1 others are"),
    ({"table": records(gap_ms=166)}, "The throttle", "no", "The worst second holds 7 events"),
    ({"table": records(ids=["900-10", *IDS[1:]])}, "Nothing after", "no",
     "1 records are of entries after 900-9"),
    ({"after": state(length=1999)}, "The stream was not", "explained", "others deleted or trimmed"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "claim", "verdict", "because"), CASES)
def test_each_verdict_fails_by_itself(
    change: dict[str, Any], claim: str, verdict: str, because: str
) -> None:
    """A good run meets all eight; what is wrong shows at its own claim, with its numbers, and at
    no other."""
    found = judged(**change)
    assert len(found) == 8
    (own,) = (name for name in found if name.startswith(claim))
    assert (found[own][0], because in found[own][1]) == (verdict, True), found[own]
    assert {other for name, (other, _) in found.items() if name != own} == {"yes"}


def test_what_is_not_known_is_not_met() -> None:
    """Without audit, states and comparison nothing is met but what the program cannot do."""
    found = {v.claim: v.verdict for v in verdicts({"mode": "live"}, {}, {}, {}, None)}
    assert found.pop("No path to an order") == "yes"
    assert set(found.values()) == {"unknown"}
