"""The books: one fault in plan, audit or counts is found, in whatever order the records come."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drainkit.core import reconciliation
from drainkit.core.policy import ACTIONS
from drainkit.core.reconciliation import Matching, drift_counts, reconcile

Rows = list[tuple[str, str]]
books = st.dictionaries(
    st.integers(1, 99).map(lambda n: f"{n}-0"), st.sampled_from(ACTIONS), min_size=1, max_size=9
)
sizes = st.lists(st.integers(1, 4), min_size=9, max_size=9)


@pytest.fixture(autouse=True)
def _small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciliation, "WINDOW", 2)


def table(rows: Rows) -> pa.Table:
    columns = {
        "id": pa.array([entry for entry, _ in rows], pa.string()),
        "action": pa.array([action for _, action in rows], pa.string()).dictionary_encode(),
        "reason": pa.array([f"why {entry}" for entry, _ in rows], pa.string()),
    }
    return pa.table(columns)


def parts(rows: Rows, sizes: list[int]) -> list[pa.Table]:
    whole, found = table(rows), []
    for size in sizes * 9:
        found.append(whole.slice(0, size))
        whole = whole.slice(size)
    return found


def findings(
    planned: Rows | None, recorded: Rows, sizes: list[int], counts: dict[str, int]
) -> list[str]:
    matching = Matching(None if planned is None else lambda: parts(planned, sizes[::-1]))
    for part in parts(recorded, sizes):
        matching.add(part)
    audited = Counter(action for _, action in recorded)
    return reconcile(matching.finish(), audited=audited, counts=counts)


@settings(deadline=None)  # pytest's own limit; imports may fall into it
@given(books, st.booleans(), sizes, st.randoms())
def test_balanced_books_have_no_findings(
    actions: dict[str, str], planned: bool, sizes: list[int], draw: object
) -> None:
    """Every planned entry recorded once, in any order, the counts equal: no finding."""
    recorded = [*actions.items()]
    draw.shuffle(recorded)  # type: ignore[attr-defined]
    plan = [*actions.items()] if planned else None
    assert findings(plan, recorded, sizes, Counter(actions.values())) == []


@settings(deadline=None)  # pytest's own limit; imports may fall into it
@given(books, sizes, st.data())
def test_every_single_fault_is_found(
    actions: dict[str, str], sizes: list[int], data: st.DataObject
) -> None:
    """One lost, doubled, foreign or relabelled entry gives a finding that names it."""
    rows, counts = [*actions.items()], Counter(actions.values())
    fault = data.draw(st.sampled_from(["lost", "doubled", "foreign", "relabelled"]))
    at = data.draw(st.integers(0, len(rows) - 1))
    expected = {
        "lost": "planned entries without a record: 1, first " + rows[at][0],
        "doubled": "entries recorded more than once: 1, first " + rows[at][0],
        "foreign": "recorded entries that were not planned: 1, first 100-0",
        "relabelled": "relabelled: the run counted 0, the audit 1",
    }[fault]
    if fault == "lost":
        del rows[at]
    elif fault == "doubled":
        rows.insert(data.draw(st.integers(0, len(rows))), rows[at])
    elif fault == "foreign":
        rows.insert(data.draw(st.integers(0, len(rows))), ("100-0", rows[at][1]))
    else:
        rows[at] = (rows[at][0], "relabelled")
    found = findings([*actions.items()], rows, sizes, counts)
    assert expected in found
    others = [line for line in found if line != expected]
    assert all("the run counted" in line for line in others)
    assert others


def test_a_record_written_twice_is_found_without_a_plan() -> None:
    """Nothing is planned, and still no entry may be recorded twice."""
    rows = [("1-0", "drained_ok"), ("2-0", "drained_ok"), ("1-0", "drained_ok")]
    (line,) = findings(None, rows, [1], {"drained_ok": 3})
    assert line == "entries recorded more than once: 1, first 1-0"


def test_what_vanished_needs_no_record() -> None:
    """A planned entry that was deleted before it could be delivered is not lacking; another is."""
    matching = Matching(lambda: [table([(f"{n}-0", "drained_ok") for n in range(1, 5)])])
    matching.add(table([("2-0", "drained_ok")]))
    matched = matching.finish(lambda ids: [entry for entry in ids if entry in ("1-0", "4-0")])
    assert matched.lacking == ["3-0"]


def test_findings_are_one_safe_line_each() -> None:
    """Whatever stands in the audit stream, a finding cannot move a terminal's cursor."""
    evil = ("\x1b[2J\n1", "\u202edone\n")
    found = findings([], [evil, evil], [2], {})
    assert len(found) == 3
    assert all(line.isprintable() for line in found)


@settings(deadline=None)  # pytest's own limit; imports may fall into it
@given(books, books)
def test_drift_lists_every_change(planned: dict[str, str], happened: dict[str, str]) -> None:
    """(id, planned, happened, reason) for exactly the entries whose action changed."""
    both = planned.keys() & happened.keys()
    changed = {(k, planned[k], happened[k]) for k in both if planned[k] != happened[k]}
    matching = Matching(lambda: [table([*planned.items()])])
    matching.add(table([*happened.items()]))
    matching.finish()
    found = matching.drift()
    rows = [tuple(row.values()) for row in found.to_pylist()]
    assert {row[:3] for row in rows} == changed
    assert len(rows) == len(changed)
    assert all(row[3] == f"why {row[0]}" for row in rows)
    counts = drift_counts(found)
    assert {(c["planned"], c["happened"]): c["events"] for c in counts} == Counter(
        (was, now) for _, was, now in changed
    )
