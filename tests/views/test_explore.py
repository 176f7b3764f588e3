"""The exploration: other limits give what deciding with them gives, at once; nothing for nobody."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
from test_figures import NOW_MS, POLICY, frame_of

from drainkit.core.frame import decide_frame
from drainkit.core.policy import Policy
from drainkit.core.values import RawEntry
from drainkit.demo.backlog import sample_entries
from drainkit.views.bins import Binned

AGES, CONFIDENCES = [5.0, 30.0, 90.0, 360.0], [0.0, 0.29, 0.6, 0.61, 1.0]


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """Events of every kind, some of them exactly at a limit."""
    edge: list[RawEntry] = [
        [b"%d-9" % (NOW_MS - ms), [b"symbol", symbol, b"confidence", confidence]]
        for ms in (-30_000, 0, 300_000, 300_001, 1_800_000, 21_600_000, 21_600_001)
        for confidence in (b"0.6", b"0.29", b"1", b"0", b"7")
        for symbol in (b"BTCUSDT", b"a b", b"NEW")
    ]
    found = frame_of([*sample_entries(NOW_MS, n=3000), *edge, [b"%d-1" % NOW_MS, None]])
    assert found["action"].nunique() == 6
    return found


@pytest.mark.parametrize("allowed", [None, POLICY.allowlist, frozenset({"NEW", "nobody"})])
def test_other_limits_give_what_deciding_gives(
    frame: pd.DataFrame, allowed: frozenset[str] | None
) -> None:
    """For each pair of limits the counts by action, and what passes, are those of the decision."""
    binned = Binned(frame, AGES, CONFIDENCES)
    passing = binned.passing(allowed)
    for row, age in enumerate(AGES):
        for column, confidence in enumerate(CONFIDENCES):
            policy = Policy(age, allowed, confidence)
            decided = decide_frame(frame[frame.columns[:9]], policy, NOW_MS * 1000)
            counts = binned.counts(row, column, allowed)
            assert counts == decided["action"].value_counts().reindex(list(counts)).to_dict()
            assert passing[row, column] == counts["drained_ok"]
