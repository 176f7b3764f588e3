"""The audit record as it goes to Redis and comes back."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drainkit.core.events import Decoder
from drainkit.core.policy import (
    ACTIONS,
    OF_EVENT,
    RECORD_FIELDS,
    Policy,
    audit_ms,
    audit_table,
    decide,
    reasons,
    records,
)
from drainkit.core.timestamps import NO_TIME, iso

NOW_US = 1_766_605_798_664_912
MS = NOW_US // 1000
POLICY = Policy(max_age_min=30, allowlist=frozenset({"BTCUSDT"}), min_conf=0.6)


AT, GROUP, RUN = "2025-12-24T19:49:58.664912+00:00", "group", "run"  # a commit's own


def made(entries: list[Any]) -> list[tuple[str, ...]]:
    """What each record says of its event."""
    events = Decoder().decode(entries)
    columns = records(events, decide(events, POLICY, NOW_US), POLICY)
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
        st.tuples(
            st.integers(0, 10**11),
            st.floats(0, 1) | st.none(),
            st.sampled_from([b"BTCUSDT", b"ETHUSDT", b"\xff", b""]),
        ),
        max_size=8,
    )
)
def test_records_come_back_as_they_were(rows: list[tuple[int, float | None, bytes]]) -> None:
    """An audit table holds what records() wrote, and the ages fit the times within 0.05 s."""
    entries = [
        [b"%d-%d" % (MS - age_ms, i), [b"symbol", symbol, b"payload", b'{"confidence":%s}'
         % (b"null" if confidence is None else repr(confidence).encode())]]
        for i, (age_ms, confidence, symbol) in enumerate(rows)
    ]  # fmt: skip
    events = Decoder().decode(entries)
    decisions = decide(events, POLICY, NOW_US)
    texts = reasons(events, decisions, POLICY)
    written = [
        [b"5-0", flat([*map(str.encode, [*before, AT, reason, GROUP, RUN])])]
        for *before, reason in made(entries)
    ]
    for row, found in enumerate(audit_table(written).to_pylist()):
        age_sec, time_us = found.pop("age_sec"), int(events.event_time_us[row])
        assert found == {
            "audit_id": "5-0", "original_id": entries[row][0].decode(),
            "symbol": events.word("symbol", row) or "UNKNOWN", "confidence": rows[row][1],
            "action": ACTIONS[decisions.action[row]], "drained_at_ts": AT, "reason": texts[row],
            "consumer_group": GROUP, "run_id": RUN,
        }  # fmt: skip
        assert age_sec == (None if time_us == NO_TIME else pytest.approx(
            dt.datetime.fromisoformat(AT).timestamp() - time_us / 1e6, abs=0.05))  # fmt: skip


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
