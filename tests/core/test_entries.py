"""A plan's entries: found in any order, and what was decided otherwise is noted."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_samples import ENTRIES, NOW_US, POLICY, table_of

from drainkit.core import reconciliation as module
from drainkit.core.events import Decoder
from drainkit.core.policy import decide
from drainkit.core.reconciliation import Cursor, Entries, drift_of

MANY = [[b"%d-%d" % (9 + i // 3, i % 3), [b"symbol", b"BTCUSDT"]] for i in range(30)]


@pytest.mark.parametrize("window", [0, 5])
@given(draw=st.randoms(use_true_random=False))
def test_ids_are_found_in_any_order(window: int, draw: random.Random) -> None:
    """In the plan's order, ahead, back and forth: each id's own row, -1 for what is not planned."""
    before, module.WINDOW = module.WINDOW, window
    try:
        planned = Entries(table_of(MANY))
        cursor, left = Cursor(planned), [entry[0] for entry in MANY]
        if draw.random() < 0.5:
            draw.shuffle(left)
        while left:
            ids = left[: draw.randrange(1, 6)]
            left = left[len(ids) :]
            if draw.random() < 0.1:
                ids = [*ids, b"8-0"]
            expected = [i for wanted in ids for i in [planned.rows.get(wanted, -1)]]
            assert cursor.find(ids).tolist() == expected
    finally:
        module.WINDOW = before


def test_the_last_entry_is_the_largest_id() -> None:
    """By milliseconds and number, not as texts, and wherever it stands in the plan."""
    ids = [b"9-10", b"10-2", b"10-18446744073709551615", b"10-9", b"9-99"]
    assert Entries(table_of([[entry, None] for entry in ids])).last() == "10-18446744073709551615"


def test_what_is_decided_otherwise_is_noted_with_its_reason() -> None:
    """Only recorded rows whose action differs from the plan's."""
    planned = table_of()
    events = Decoder().decode(ENTRIES)
    later = decide(events, POLICY, NOW_US + 3_600_000_000)
    for rows, expected in ((slice(None), [0, 2]), (np.array([1, 1, 1, 1, 1]) == 0, [])):
        parts = drift_of(events, later, rows, Entries(planned).actions, POLICY)
        found = [row for part in parts for row in part.to_pylist()]
        assert [row["id"].encode() for row in found] == [ENTRIES[i][0] for i in expected]
        assert {row["happened"] for row in found} <= {"dropped_old"}
        assert all("1800.00 s" in row["reason"] for row in found)
    same = decide(events, POLICY, NOW_US)
    assert drift_of(events, same, slice(None), Entries(planned).actions, POLICY) == []
