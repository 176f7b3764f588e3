"""Hostile entries: each gets its action, none passes unless truly valid, none harms another."""

from __future__ import annotations

import json
from typing import Any

import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from drainkit.core.audit import records
from drainkit.core.events import Decoder
from drainkit.core.frame import FrameBuilder, decide_frame
from drainkit.core.policy import ACTIONS, Policy, decide, reasons
from drainkit.core.timestamps import NO_TIME
from drainkit.core.values import INVALID_REASONS

NOW_US = 1_766_605_800_000_000
ID_MS = NOW_US // 1000 - 10_000  # every entry is ten seconds old by its id
ID = b"%d-1" % ID_MS
ISO = "2025-12-24T19:49:50+00:00"  # the same moment
POLICY = Policy(max_age_min=30, allowlist=frozenset({"BTCUSDT", "ETHUSDT"}), min_conf=0.6)
GOOD = {"symbol": "BTCUSDT", "side": "BUY", "confidence": 0.75, "timestamp": ISO, "source": "ai"}

OK, OLD, INVALID, FOREIGN, LOW, MISSING = (
    "drained_ok",
    "dropped_old",
    "dropped_invalid",
    "dropped_not_allowlisted",
    "dropped_low_conf",
    "dropped_missing",
)


def flat(**changes: Any) -> list[bytes]:
    """The flat fields of a good event with some values replaced (None: left out)."""
    fields = {**GOOD, **changes}
    pairs = [(k.encode(), v) for k, v in fields.items() if v is not None]
    return [x if isinstance(x, bytes) else str(x).encode() for pair in pairs for x in pair]


def nested(**changes: Any) -> list[bytes]:
    """The same in a JSON payload, where None becomes null."""
    return [b"payload", json.dumps({**GOOD, **changes}).encode()]


def raw(text: bytes | str, field: bytes = b"payload") -> list[bytes]:
    return [field, text if isinstance(text, bytes) else text.encode()]


def spliced(more: str) -> list[bytes]:
    """A good payload with a further piece of JSON text at its end."""
    return raw(json.dumps(GOOD)[:-1] + "," + more + "}")


BODY = json.dumps(GOOD).encode()
CASES: dict[str, tuple[list[bytes] | None, str]] = {
    # what should pass, so that the table does not only refuse
    "good flat": (flat(), OK),
    "good payload": (nested(), OK),
    "good data": (raw(BODY, b"data"), OK),
    # missing and duplicated fields
    "no body": (None, MISSING),
    "no fields": ([], INVALID),
    "no symbol": (flat(symbol=None), INVALID),
    "no confidence": (flat(confidence=None), INVALID),
    "no timestamp": (flat(timestamp=None), OK),
    "no side and source": (flat(side=None, source=None), OK),
    "symbol twice, the first empty": ([b"symbol", b"", *flat()], INVALID),
    "confidence twice, the first low": ([b"confidence", b"0.1", *flat()], LOW),
    "payload twice, the first broken": ([*raw("{"), *raw(BODY)], INVALID),
    "JSON key twice, the last counts": (spliced('"confidence":0.1'), LOW),
    "JSON key twice, the last is null": (spliced('"symbol":null'), INVALID),
    "empty names": ([b"", b"", *flat()], OK),
    # nesting and types
    "values one level too deep": (raw(json.dumps({"payload": GOOD})), INVALID),
    "symbol as array": (nested(symbol=["BTCUSDT"]), INVALID),
    "symbol as object": (nested(symbol={"symbol": "BTCUSDT"}), INVALID),
    "symbol as number": (nested(symbol=1), INVALID),
    "symbol null": (nested(symbol=None), INVALID),
    "confidence as array": (nested(confidence=[0.9]), INVALID),
    "confidence true": (nested(confidence=True), INVALID),
    "confidence null": (nested(confidence=None), INVALID),
    "confidence as text": (nested(confidence="0.9"), OK),
    "side as object": (nested(side={"x": 1}), OK),
    "source as number": (nested(source=5), OK),
    "double encoded": (raw(json.dumps(json.dumps(GOOD))), INVALID),
    "payload an array": (raw(json.dumps([GOOD])), INVALID),
    "payload null": (raw("null"), INVALID),
    "payload empty": (raw(""), INVALID),
    "payload cut off": (raw(BODY[:-3]), INVALID),
    "payload with a tail": (raw(BODY + b"{}"), INVALID),
    "payload with a comment": (raw(b"/* */" + BODY), INVALID),
    "payload in single quotes": (raw(BODY.replace(b'"', b"'")), INVALID),
    "python's repr": (raw(repr(GOOD)), INVALID),
    # numbers
    "confidence NaN": (nested(confidence=float("nan")), INVALID),
    "confidence Infinity": (nested(confidence=float("inf")), INVALID),
    "NaN where nobody looks": (spliced('"price":NaN'), INVALID),
    "confidence 1e999": (spliced('"confidence":1e999'), INVALID),
    "price 1e999": (spliced('"price":1e999'), OK),
    "confidence of 5,000 digits": (spliced('"confidence":' + "9" * 5000), INVALID),
    "confidence nan as text": (flat(confidence="nan"), INVALID),
    "confidence inf as text": (flat(confidence="inf"), INVALID),
    "confidence 75%": (flat(confidence="75%"), INVALID),
    "confidence 75": (flat(confidence="75"), INVALID),
    "confidence 0,75": (flat(confidence="0,75"), INVALID),
    "confidence 7_5e-1": (flat(confidence="0.7_5"), INVALID),
    "confidence with an exponent": (flat(confidence="75e-2"), OK),
    "confidence with an exponent, over 1": (flat(confidence="75e2"), INVALID),
    "confidence with half an exponent": (flat(confidence="0.75e"), INVALID),
    "confidence with an endless exponent": (flat(confidence="1e" + "9" * 390), INVALID),
    "confidence in full-width digits": (flat(confidence="\uff10.\uff19"), INVALID),
    "confidence in Arabic digits": (flat(confidence="\u0660.\u0669"), INVALID),
    "confidence with spaces": (flat(confidence=" 0.9"), INVALID),
    "confidence with a newline": (flat(confidence="0.9\n"), INVALID),
    "confidence signed": (flat(confidence="+0.9"), INVALID),
    "confidence negative": (nested(confidence=-0.1), INVALID),
    "confidence a little over 1": (nested(confidence=1.0000000000000002), INVALID),
    "confidence hexadecimal": (flat(confidence="0x1"), INVALID),
    "confidence minus zero": (nested(confidence=-0.0), LOW),
    # size, depth, encoding
    "payload of 5 MB": (raw(BODY[:-1] + b',"x":"' + b"x" * 5_000_000 + b'"}'), INVALID),
    "depth of 100,000": (raw(b"[" * 100_000), INVALID),
    "depth of 100,000 inside": (spliced('"x":' + "[" * 100_000 + "]" * 100_000), INVALID),
    "depth of 100,000 objects": (
        spliced('"x":' + '{"a":' * 100_000 + "1" + "}" * 100_000),
        INVALID,
    ),
    "brackets in a text": (spliced('"x":"' + "[{" * 1000 + '"'), OK),
    "invalid UTF-8 in the symbol": (flat(symbol=b"BTC\xff"), INVALID),
    "invalid UTF-8 in the source": (flat(source=b"\xff"), OK),
    "invalid UTF-8 in an unused field": ([*flat(), b"trace", b"\xff\xfe"], OK),
    "invalid UTF-8 as a field name": ([b"\xff", b"x", *flat()], OK),
    "invalid UTF-8 where nobody looks": (raw(BODY[:-1] + b',"x":"\xff"}'), INVALID),
    "overlong UTF-8": (raw(BODY[:-1] + b',"x":"\xc0\x80"}'), INVALID),
    "UTF-16": (raw(json.dumps(GOOD).encode("utf-16")), INVALID),
    "UTF-16 without BOM": (raw(json.dumps(GOOD).encode("utf-16-le")), INVALID),
    "UTF-32": (raw(json.dumps(GOOD).encode("utf-32")), INVALID),
    "BOM": (raw(b"\xef\xbb\xbf" + BODY), INVALID),
    "NUL in the symbol": (flat(symbol="BTC\x00USDT"), INVALID),
    "escaped NUL in the symbol": (nested(symbol="BTC\x00USDT"), INVALID),
    "NUL after the payload": (raw(BODY + b"\x00"), INVALID),
    "lone surrogate in the symbol": (nested(symbol="\ud800"), INVALID),
    "lone surrogate in the source": (nested(source="x\udfff"), INVALID),
    "lone surrogate beside 1e999": (spliced('"source":"\\ud800","confidence":1e999'), INVALID),
    "lone surrogate after 1e999": (spliced('"timestamp":1e999,"source":"\\ud800"'), INVALID),
    "NaN after 1e999": (spliced('"timestamp":1e999,"price":NaN'), INVALID),
    "raw newline in a text": (raw(BODY.replace(b"ai", b"a\ni")), INVALID),
    "compressed": (raw(bytes.fromhex("1f8b0800000000000003")), INVALID),
    # timestamps
    "timestamp in s": (nested(timestamp=ID_MS // 1000), OK),
    "timestamp in ms": (nested(timestamp=ID_MS), OK),
    "timestamp in us": (nested(timestamp=ID_MS * 1000), OK),
    "timestamp in ns": (nested(timestamp=ID_MS * 10**6), OK),
    "timestamp in ps": (nested(timestamp=ID_MS * 10**9), OK),  # unreadable: the id's time
    "timestamp as float": (nested(timestamp=ID_MS / 1000), OK),
    "timestamp in the future": (nested(timestamp=ID_MS + 60_001), INVALID),
    "timestamp in the year 9999": (flat(timestamp="9999-12-31T23:59:59Z"), INVALID),
    "timestamp a minute ahead": (nested(timestamp=ID_MS + 60_000), OK),
    "timestamp in 1970": (nested(timestamp=0), OLD),
    "timestamp negative": (flat(timestamp="-1"), OLD),
    "timestamp an hour old": (nested(timestamp=ID_MS - 3_600_000), OLD),
    "timestamp of a leap second": (flat(timestamp="2016-12-31T23:59:60Z"), OK),
    "timestamp garbage": (flat(timestamp="yesterday"), OK),
    "timestamp true": (nested(timestamp=True), OK),
    "timestamp NaN as text": (flat(timestamp="nan"), OK),
    "timestamp 1e999": (spliced('"timestamp":1e999'), OK),
    "timestamp of a million digits": (flat(timestamp="9" * 10**6), OK),
    "timestamp of 21 digits": (flat(timestamp="1" * 21), OK),
    # symbols
    "symbol with markup": (flat(symbol="<script>alert(1)</script>"), FOREIGN),
    "symbol a formula": (flat(symbol="=HYPERLINK(0)"), FOREIGN),
    "symbol a shell command": (flat(symbol="$(reboot)"), FOREIGN),
    "symbol in lower case": (flat(symbol="btcusdt"), FOREIGN),
    "symbol of 64 characters": (flat(symbol="A" * 64), FOREIGN),
    "symbol of 65 characters": (flat(symbol="A" * 65), INVALID),
    "symbol of 1 MB": (flat(symbol="A" * 10**6), INVALID),
    "symbol with a terminal escape": (flat(symbol="\x1b[31mBTC"), INVALID),
    "symbol with a bell": (nested(symbol="BTC\x07"), INVALID),
    "symbol with a bidi mark": (nested(symbol="\u202eBTCUSDT"), INVALID),
    "symbol with a zero-width space": (flat(symbol="BTC\u200bUSDT"), INVALID),
    "symbol with a look-alike letter": (flat(symbol="\u0412TCUSDT"), INVALID),
    "symbol in full-width letters": (flat(symbol="\uff22TCUSDT"), INVALID),
    "symbol with a space": (flat(symbol="BTCUSDT "), INVALID),
    "symbol with a newline": (flat(symbol="BTCUSDT\n"), INVALID),
    "symbol empty": (flat(symbol=""), INVALID),
    "symbol escaped in JSON": (raw(BODY.replace(b"BTC", b"\\u0042TC")), OK),
    "key escaped in JSON": (raw(BODY.replace(b'"symbol', b'"s\\u0079mbol')), OK),
}


def action_of(entries: list[Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    """The actions and the audit records of a batch."""
    events = Decoder().decode(entries)
    decisions = decide(events, POLICY, NOW_US)
    made = [*zip(*records(events, decisions, POLICY), strict=True)]
    return [ACTIONS[code] for code in decisions.action], made


BEFORE = [b"%d-0" % ID_MS, flat(symbol="ETHUSDT")]
AFTER = [b"%d-2" % ID_MS, nested()]
NEIGHBOURS = [action_of([BEFORE])[1][0], action_of([AFTER])[1][0]]


@pytest.mark.parametrize("name", CASES)
def test_each_gets_its_action_and_harms_nobody(name: str) -> None:
    """The entry's action is the table's; the records of its neighbours are as if it were not."""
    fields, expected = CASES[name]
    actions, made = action_of([BEFORE, [ID, fields], AFTER])
    assert actions == [OK, expected, OK]
    assert [made[0], made[2]] == NEIGHBOURS
    assert all(part.isprintable() and len(part) <= 64 for part in made[1])
    checked = reference.event([ID, fields])
    assert checked.valid == (Decoder().decode([[ID, fields]]).invalid[0] == 0)
    assert checked.valid or expected != OK


def test_the_table_is_long_enough_and_shows_every_action() -> None:
    """At least 60 cases, and each action occurs."""
    assert len(CASES) >= 60
    assert {expected for _, expected in CASES.values()} == set(ACTIONS)


def test_all_at_once_in_one_batch_and_one_frame() -> None:
    """The whole table as one batch, and as a DataFrame, gives each entry its own action."""
    entries = [[b"%d-%d" % (ID_MS, i), fields] for i, (fields, _) in enumerate(CASES.values())]
    expected = [action for _, action in CASES.values()]
    assert action_of(entries)[0] == expected
    builder = FrameBuilder(Decoder())
    builder.append(entries)
    assert decide_frame(builder.frame(), POLICY, NOW_US)["action"].tolist() == expected


names = st.sampled_from([k.encode() for k in [*GOOD, "action", "payload", "data"]]) | st.binary()
contents = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([part for fields, _ in CASES.values() for part in fields or []]).filter(
        lambda part: len(part) < 2000
    ),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*GOOD]), inner)
        ),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode()),
)
bodies = st.lists(st.tuples(names, contents), max_size=7).map(
    lambda pairs: [part for pair in pairs for part in pair]
)
changed = st.tuples(bodies, st.sampled_from([flat(), nested()])).map(lambda two: two[0] + two[1])
entry_ids = st.just(ID) | st.integers(0, 2**64 - 1).map(lambda ms: b"%d-3" % ms)


@settings(deadline=None)  # pytest's own limit; imports may fall into it
@given(st.lists(st.tuples(entry_ids, bodies | changed | st.none()).map(list), max_size=8))
def test_nothing_passes_that_is_not_truly_valid(batch: list[Any]) -> None:
    """Arbitrary fields never raise, and drained_ok needs symbol, confidence and time by an
    independent check."""
    actions, made = action_of([BEFORE, *batch, AFTER])
    assert (actions[0], actions[-1]) == (OK, OK)
    assert [made[0], made[-1]] == NEIGHBOURS
    for entry, action in zip(batch, actions[1:-1], strict=True):
        checked = reference.event(entry)
        assert (action == MISSING) == (entry[1] is None)
        if action == OK:
            assert checked.valid
            assert POLICY.allowlist is not None
            assert checked.symbol in POLICY.allowlist
            assert checked.confidence is not None
            assert checked.confidence >= POLICY.min_conf
            assert checked.time_us is not None
            assert NOW_US - checked.time_us <= POLICY.max_age_us


@settings(deadline=None)  # pytest's own limit; imports may fall into it
@given(st.lists(st.tuples(entry_ids, bodies | changed).map(list), max_size=4))
def test_no_raw_value_reaches_a_reason(batch: list[Any]) -> None:
    """A reason is made of fixed texts and checked numbers, whatever the entry holds."""
    events = Decoder().decode(batch)
    decisions = decide(events, POLICY, NOW_US)
    fixed = {*INVALID_REASONS, "passed every filter", "symbol not in the allowlist"}
    for row, text in enumerate(reasons(events, decisions, POLICY)):
        age_us, confidence = int(decisions.age_us[row]), float(events.confidence[row])
        compared = {f"age {age_us / 1e6:.2f} s > 1800.00 s"} if age_us != NO_TIME else set()
        assert text in fixed | compared | {f"confidence {confidence!r} < 0.6"}
