"""The one decision: limits, order, every failed filter; and its record in the audit stream."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from drainkit.core.events import Decoder, Events
from drainkit.core.policy import (
    ACTIONS,
    FAILED_NAMES,
    OF_EVENT,
    RECORD_FIELDS,
    Policy,
    audit_ms,
    audit_table,
    decide,
    other_failed,
    reasons,
    records,
)
from drainkit.core.values import INVALID_REASONS, NO_TIME, iso

NOW_US = 1_766_605_798_664_912
SYMBOLS = ["BTCUSDT", "ETHUSDT", "btcusdt"]
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
    st.sampled_from([30 * MINUTE, 30 * MINUTE + 1, MINUTE // 10, MINUTE // 10 + 1, 0, -1, 2**55]),
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
    max_age_min=st.sampled_from([30, 0.1, 0.5, 1e-9, 1e30]),
    allowlist=st.none() | st.frozensets(st.sampled_from([*SYMBOLS, "OTHER"]), min_size=1),
    min_conf=st.sampled_from([0.0, 0.6, 1.0]) | st.floats(0, 1),
)


@given(st.lists(rows, max_size=20), policies, st.integers(0, 10**10))
def test_decisions_agree_with_the_rules_by_hand(
    batch: list[Any], policy: Policy, step_us: int
) -> None:
    """The action is the first failed filter in the contract's order, `failed` names them all; each
    event at its own moment. Exactly at a limit passes, 0.1 minutes are exact, a huge limit does not
    overflow, case counts. A reason is a fixed text, or has the numbers that were compared."""
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
    codes, texts = reasons(events, decisions, policy)
    limit = f"{policy.max_age_us / 1e6:.2f} s"
    for code, action, row, age in zip(codes, actions, batch, ages, strict=True):
        assert (
            texts[code]
            == {
                "dropped_missing": "the entry's body is gone (trimmed or deleted)",
                "dropped_old": f"age {(age or 0) / 1e6:.2f} s > {limit}",
                "dropped_invalid": INVALID_REASONS[row[3]] or "no usable time",
                "dropped_not_allowlisted": "symbol not in the allowlist",
                "dropped_low_conf": f"confidence {float(row[2])!r} < {policy.min_conf!r}",
                "drained_ok": "passed every filter",
            }[action]
        )


# ---------------------------------------------------------------- the record in the audit stream

MS = NOW_US // 1000


def made(entries: list[Any]) -> list[tuple[str, ...]]:
    """What each record says of its event."""
    events = Decoder().decode(entries)
    columns = records(events, decide(events, ALL, NOW_US), ALL)
    assert len(columns) == len(OF_EVENT)
    return [*zip(*columns, strict=True)]


def flat(record: list[bytes]) -> list[bytes]:
    names = [name.encode() for name in RECORD_FIELDS]
    return [part for pair in zip(names, record, strict=True) for part in pair]


def test_a_record_is_exactly_the_contracts() -> None:
    """Values, their order and their formats, for a good, an unreadable and a missing entry; a
    commit's time always has six decimals and the offset."""
    assert iso(NOW_US // 10**6 * 10**6) == "2025-12-24T19:49:58.000000+00:00"
    good = [b"%d-1" % (MS - 1500), [b"symbol", b"BTCUSDT", b"confidence", b"0.750"]]
    bad = [b"0-7", [b"symbol", b"<b>", b"payload", b"x"]]
    gone = [b"%d-2" % MS, None]
    assert made([good, bad, gone]) == [
        (f"{MS - 1500}-1", "BTCUSDT", "1.50", "0.75", "drained_ok", "passed every filter"),
        ("0-7", "<b>", "null", "null", "dropped_invalid", "payload is not JSON in UTF-8"),
        (f"{MS}-2", "UNKNOWN", "0.00", "null", "dropped_missing",
         "the entry's body is gone (trimmed or deleted)"),
    ]  # fmt: skip
    assert made([]) == []


@given(
    st.lists(
        st.one_of(
            st.tuples(st.binary(max_size=6), st.binary(max_size=6)),
            st.sampled_from([(b"1.50", b"0.75"), (b"null", b"null"), (b"nan", b"-inf"),
                             (b"1_0", b" 1"), (b"1e3", b"0x1"), (b"", b"\xff")]),
        ),
        max_size=4,
    ),
    st.integers(-1, 4),
)  # fmt: skip
def test_whatever_stands_in_the_stream_is_a_row(
    values: list[tuple[bytes, bytes]], foreign: int
) -> None:
    """A text that is missing is empty, a number that a drain does not write null; beside it all
    else stays what it is."""
    entries: list[Any] = [
        [b"%d-0" % i, flat([b"9-9", text, age, age, text, b"t", b"r", b"g", text])]
        for i, (age, text) in enumerate(values)
    ]
    if 0 <= foreign < len(entries):
        entries[foreign] = [b"7-7", foreign % 2 * [b"x", b"y", b"age_sec", b"2.50"] or None]
    for (entry_id, body), row in zip(entries, audit_table(entries).to_pylist(), strict=True):
        texts = [part.decode("utf-8", "replace") for part in body or ()]
        there = dict.fromkeys(RECORD_FIELDS, "") | dict(zip(texts[::2], texts[1::2], strict=True))
        for name in ("age_sec", "confidence"):
            is_number = re.fullmatch(r"-?\d{1,20}(\.\d{1,20})?(e-\d{1,3})?", there[name], re.ASCII)
            there[name] = float(there[name]) if is_number else None
        assert row == {"audit_id": entry_id.decode(), **{name: there[name] for name in row
                                                         if name != "audit_id"}}  # fmt: skip
    assert audit_ms(audit_table(entries)).tolist() == [int(e[0].split(b"-")[0]) for e in entries]
