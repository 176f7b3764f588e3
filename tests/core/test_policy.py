"""The one decision: limits, order, every failed filter, and the same from a DataFrame."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from drainkit.core.events import Events
from drainkit.core.policy import ACTIONS, FAILED_NAMES, Policy, decide, other_failed, reasons
from drainkit.core.timestamps import NO_TIME
from drainkit.core.values import INVALID_REASONS

NOW_US = 1_766_605_798_664_912
SYMBOLS = ["BTCUSDT", "ETHUSDT", "btcusdt"]
FIXED = {*INVALID_REASONS[1:], "passed every filter", "symbol not in the allowlist",
         "the entry's body is gone (trimmed or deleted)"}  # fmt: skip
ALL = Policy(max_age_min=30, allowlist=frozenset({"BTCUSDT"}), min_conf=0.6)


def names_of(failed: Any) -> list[str]:
    return [FAILED_NAMES[bits] for bits in failed]


def events_of(rows: list[tuple[int | None, int, float, int, bool]]) -> Events:
    """Events of (age in us or None, symbol code, confidence, invalid code, missing)."""
    n = len(rows)
    ages, symbols, confidences, invalid, missing = zip(*rows, strict=True) if n else [()] * 5
    times = [NO_TIME if age is None else NOW_US - age for age in ages]
    none = np.full(n, -1, dtype=np.int32)
    return Events(
        ids=[b"%d-0" % i for i in range(n)],
        event_time_us=np.array(times, dtype=np.int64),
        time_source=np.array([2 if age is None else 0 for age in ages], dtype=np.uint8),
        symbol_code=np.array(symbols, dtype=np.int32),
        side_code=none,
        source_code=none,
        confidence=np.array(confidences, dtype=np.float64),
        invalid=np.array(invalid, dtype=np.uint8),
        missing=np.array(missing, dtype=bool),
        symbols=SYMBOLS,
        sides=[],
        sources=[],
    )


def by_hand(row: tuple[int | None, int, float, int, bool], policy: Policy) -> list[str]:
    """Every filter that the row fails, in the contract's order, in plain words."""
    age, symbol, confidence, invalid, missing = row
    failed = []
    if missing:
        failed.append("dropped_missing")
    if age is not None and age / 60_000_000 > policy.max_age_min:
        failed.append("dropped_old")
    if not missing and (invalid or age is None):
        failed.append("dropped_invalid")
    known = not missing and symbol >= 0
    if known and policy.allowlist is not None and SYMBOLS[symbol] not in policy.allowlist:
        failed.append("dropped_not_allowlisted")
    if not missing and confidence < policy.min_conf:  # nan: not valid, compares false
        failed.append("dropped_low_conf")
    return failed


MINUTE = 60_000_000
ages = st.one_of(
    st.none(),
    st.integers(-MINUTE, 120 * MINUTE),
    st.sampled_from([30 * MINUTE - 1, 30 * MINUTE, 30 * MINUTE + 1, 0, -1, 2**55]),
)
confidences = st.one_of(
    st.floats(0, 1),
    st.just(float("nan")),
    st.sampled_from([0.6, np.nextafter(0.6, 0), np.nextafter(0.6, 1), 0.0, 1.0]),
)
rows = st.tuples(
    ages, st.integers(-1, 2), confidences, st.integers(0, len(INVALID_REASONS) - 1), st.booleans()
)
policies = st.builds(
    Policy,
    max_age_min=st.sampled_from([30, 0.5, 1, 1e-9, 1e18]),
    allowlist=st.none() | st.frozensets(st.sampled_from([*SYMBOLS, "OTHER"]), min_size=1),
    min_conf=st.sampled_from([0.0, 0.6, 1.0]) | st.floats(0, 1),
)


@given(st.lists(rows, max_size=20), policies, st.integers(0, 10**10))
def test_decisions_agree_with_the_rules_by_hand(
    batch: list[Any], policy: Policy, step_us: int
) -> None:
    """The action is the first failed filter in the contract's order, `failed` names them all; each
    event at its own moment. A reason is made of fixed texts and the numbers that were compared."""
    events = events_of(batch)
    moments = NOW_US + np.arange(len(batch), dtype=np.int64) * step_us
    decisions = decide(events, policy, moments if step_us else NOW_US)
    ages = [None if row[0] is None else row[0] + i * step_us for i, row in enumerate(batch)]
    expected = [by_hand((age, *row[1:]), policy) for age, row in zip(ages, batch, strict=True)]
    assert names_of(decisions.failed) == [",".join(names) for names in expected]
    actions = [ACTIONS[code] for code in decisions.action]
    assert actions == [names[0] if names else "drained_ok" for names in expected]
    assert names_of(other_failed(decisions)) == [",".join(names[1:]) for names in expected]
    assert decisions.age_us.tolist() == [NO_TIME if age is None else age for age in ages]
    texts = reasons(events, decisions, policy)
    assert len(texts) == len(batch)
    for text, row, age in zip(texts, batch, ages, strict=True):
        compared = f"confidence {row[2]!r} < {policy.min_conf!r}"
        limit = f"{policy.max_age_us / 1e6:.2f} s"
        assert text in {*FIXED, compared, f"age {(age or 0) / 1e6:.2f} s > {limit}"}


NAN = float("nan")
BAD_SYMBOL = INVALID_REASONS.index("symbol not valid")
CASES: list[tuple[Any, str, str]] = [
    ((30 * MINUTE, 0, 0.6, 0, False), "drained_ok", "passed every filter"),
    ((30 * MINUTE + 1, 0, 0.6, 0, False), "dropped_old", "age 1800.00 s > 1800.00 s"),
    ((31 * MINUTE, 0, 0.9, 0, False), "dropped_old", "age 1860.00 s > 1800.00 s"),
    ((0, 0, 0.25, 0, False), "dropped_low_conf", "confidence 0.25 < 0.6"),
    ((30 * MINUTE, 0, np.nextafter(0.6, 0), 0, False), "dropped_low_conf",
     "confidence 0.5999999999999999 < 0.6"),
    ((0, 1, 0.9, 0, False), "dropped_not_allowlisted", "symbol not in the allowlist"),
    ((0, 2, 0.9, 0, False), "dropped_not_allowlisted", "symbol not in the allowlist"),
    ((0, -1, 0.9, BAD_SYMBOL, False), "dropped_invalid", "symbol not valid"),
    ((None, 0, 0.9, 0, False), "dropped_invalid", "no usable time"),
    ((2**55, -1, NAN, 9, False), "dropped_old", "age 36028797018.96 s > 1800.00 s"),
    ((2**55, -1, NAN, 0, True), "dropped_missing", "the entry's body is gone (trimmed or deleted)"),
    ((-5 * MINUTE, 0, 0.9, 0, False), "drained_ok", "passed every filter"),
]  # fmt: skip


def test_limits_order_and_reasons() -> None:
    """Exactly at a limit passes, case counts, the contract's order decides, and the reason has the
    numbers that were compared; 0.1 minutes are exact, a huge age limit does not overflow."""
    events = events_of([row for row, _, _ in CASES])
    decisions = decide(events, ALL, NOW_US)
    found = zip(decisions.action, reasons(events, decisions, ALL), strict=True)
    assert [(ACTIONS[code], reason) for code, reason in found] == [case[1:] for case in CASES]
    events = events_of([(6_000_000, 0, 1.0, 0, False), (6_000_001, 0, 1.0, 0, False)])
    for limit, expected in ((0.1, ["drained_ok", "dropped_old"]), (1e30, ["drained_ok"] * 2)):
        actions = decide(events, Policy(limit, None, 0.0), NOW_US).action
        assert [ACTIONS[code] for code in actions] == expected
