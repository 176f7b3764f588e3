"""Hostile entries: each gets its action, none passes unless truly valid, none harms another."""

from __future__ import annotations

import json
from typing import Any

import pytest
import reference
from event_samples import GOOD, ID_MS, entry
from hypothesis import given, settings
from hypothesis import strategies as st

from drainkit.core.audit import records
from drainkit.core.events import Decoder
from drainkit.core.frame import FrameBuilder, decide_frame
from drainkit.core.policy import ACTIONS, Policy, decide, reasons
from drainkit.core.timestamps import NO_TIME
from drainkit.core.values import INVALID_REASONS

NOW_US = (ID_MS + 10_000) * 1000  # every entry is ten seconds old by its id
ID = b"%d-1" % ID_MS
POLICY = Policy(max_age_min=30, allowlist=frozenset({"BTCUSDT", "ETHUSDT"}), min_conf=0.6)


def flat(**changes: Any) -> list[bytes]:
    """The flat fields of a good event with some values replaced (None: left out)."""
    fields: list[bytes] = entry({k: v for k, v in {**GOOD, **changes}.items() if v is not None})[1]
    return fields


def nested(**changes: Any) -> list[bytes]:
    """The same in a JSON payload, where None becomes null."""
    return [b"payload", json.dumps({**GOOD, **changes}).encode()]


def raw(text: bytes | str, field: bytes = b"payload") -> list[bytes]:
    return [field, text if isinstance(text, bytes) else text.encode()]


def spliced(more: str) -> list[bytes]:
    """A good payload with a further piece of JSON text at its end."""
    return raw(json.dumps(GOOD)[:-1] + "," + more + "}")


BODY = json.dumps(GOOD).encode()
#: By action; single values that are odd are in test_values and in the reference's strategies.
TABLE: dict[str, list[list[bytes] | None]] = {
    "drained_ok": [
        # what should pass, so that the table does not only refuse
        flat(), nested(), raw(BODY, b"data"), flat(timestamp=None), flat(side=None, source=None),
        [b"", b"", *flat()], nested(confidence="0.9"), flat(confidence="75e-2"),
        # odd where nobody looks
        nested(side={"x": 1}), nested(source=5), spliced('"price":1e999'), flat(source=b"\xff"),
        [*flat(), b"trace", b"\xff\xfe"], [b"\xff", b"x", *flat()],
        spliced('"x":"' + "[{" * 1000 + '"'),
        # times: in each unit, unreadable ones, a minute ahead
        nested(timestamp=ID_MS // 1000), nested(timestamp=ID_MS * 1000),
        nested(timestamp=ID_MS * 10**6), nested(timestamp=ID_MS * 10**9),
        nested(timestamp=ID_MS + 60_000), flat(timestamp="yesterday"), nested(timestamp=True),
        spliced('"timestamp":1e999'), flat(timestamp="9" * 10**6),
        # escaped letters are letters
        raw(BODY.replace(b"BTC", b"\\u0042TC")), raw(BODY.replace(b'"symbol', b'"s\\u0079mbol')),
    ],
    "dropped_missing": [None],
    "dropped_old": [
        nested(timestamp=0), flat(timestamp="-1"), nested(timestamp=ID_MS - 3_600_000)
    ],
    "dropped_low_conf": [
        nested(confidence=-0.0), spliced('"confidence":0.1'),
        [b"confidence", b"0.1", *flat()],  # of two the first
    ],
    "dropped_not_allowlisted": [
        flat(symbol="<script>alert(1)</script>"), flat(symbol="=HYPERLINK(0)"),
        flat(symbol="$(reboot)"), flat(symbol="btcusdt"), flat(symbol="A" * 64),
    ],
    "dropped_invalid": [
        # missing and given twice
        [], flat(symbol=None), flat(confidence=None), [b"symbol", b"", *flat()],
        [*raw("{"), *raw(BODY)], spliced('"symbol":null'),
        # nesting and types
        raw(json.dumps({"payload": GOOD})), nested(symbol=["BTCUSDT"]), nested(symbol=1),
        nested(symbol={"symbol": "BTCUSDT"}), nested(symbol=None), nested(confidence=[0.9]),
        nested(confidence=True), raw(json.dumps(json.dumps(GOOD))), raw(json.dumps([GOOD])),
        raw("null"), raw(""), raw(BODY[:-3]), raw(BODY + b"{}"), raw(b"/* */" + BODY),
        raw(repr(GOOD)),
        # numbers
        nested(confidence=float("nan")), nested(confidence=float("inf")), spliced('"price":NaN'),
        spliced('"confidence":1e999'), spliced('"confidence":' + "9" * 5000),
        flat(confidence="nan"), flat(confidence="75%"), flat(confidence="0,75"),
        flat(confidence="0.7_5"), flat(confidence="1e" + "9" * 390), flat(confidence=" 0.9"),
        flat(confidence="\uff10.\uff19"), nested(confidence=-0.1),
        nested(confidence=1.0000000000000002), spliced('"timestamp":1e999,"price":NaN'),
        # size, depth, encoding
        raw(BODY[:-1] + b',"x":"' + b"x" * 5_000_000 + b'"}'), raw(b"[" * 100_000),
        spliced('"x":' + "[" * 100_000 + "]" * 100_000),
        spliced('"x":' + '{"a":' * 100_000 + "1" + "}" * 100_000), flat(symbol=b"BTC\xff"),
        raw(BODY[:-1] + b',"x":"\xff"}'), raw(BODY[:-1] + b',"x":"\xc0\x80"}'),
        raw(json.dumps(GOOD).encode("utf-16")), raw(json.dumps(GOOD).encode("utf-32")),
        raw(b"\xef\xbb\xbf" + BODY), raw(BODY + b"\x00"), nested(source="x\udfff"),
        spliced('"source":"\\ud800","confidence":1e999'),
        spliced('"timestamp":1e999,"source":"\\ud800"'), raw(BODY.replace(b"ai", b"a\ni")),
        raw(bytes.fromhex("1f8b0800000000000003")),
        # times, symbols
        nested(timestamp=ID_MS + 60_001), flat(timestamp="9999-12-31T23:59:59Z"),
        *(flat(symbol=symbol) for symbol in (
            "A" * 65, "A" * 10**6, "\x1b[31mBTC", "BTC\u200bUSDT", "\u0412TCUSDT", "\uff22TCUSDT",
            "BTCUSDT ", "BTCUSDT\n", "")),
        nested(symbol="\u202eBTCUSDT"), nested(symbol="BTC\x00USDT"), nested(symbol="\ud800"),
    ],
}  # fmt: skip
CASES = [(fields, action) for action, cases in TABLE.items() for fields in cases]


def action_of(entries: list[Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    """The actions and the audit records of a batch."""
    events = Decoder().decode(entries)
    decisions = decide(events, POLICY, NOW_US)
    made = [*zip(*records(events, decisions, POLICY), strict=True)]
    return [ACTIONS[code] for code in decisions.action], made


BEFORE = [b"%d-0" % ID_MS, flat(symbol="ETHUSDT")]
AFTER = [b"%d-2" % ID_MS, nested()]
NEIGHBOURS = [action_of([BEFORE])[1][0], action_of([AFTER])[1][0]]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_each_gets_its_action_and_harms_nobody(number: int) -> None:
    """The entry's action is the table's; the records of its neighbours are as if it were not."""
    fields, expected = CASES[number]
    actions, made = action_of([BEFORE, [ID, fields], AFTER])
    assert actions == ["drained_ok", expected, "drained_ok"], str(fields)[:200]
    assert [made[0], made[2]] == NEIGHBOURS
    assert all(part.isprintable() and len(part) <= 64 for part in made[1])
    checked = reference.event([ID, fields])
    assert checked.valid == (Decoder().decode([[ID, fields]]).invalid[0] == 0)
    assert checked.valid or expected != "drained_ok"


def test_all_at_once_in_one_batch_and_one_frame() -> None:
    """The whole table, at least 60 cases and each action, as one batch and as a DataFrame."""
    assert len(CASES) >= 60
    assert set(TABLE) == set(ACTIONS)
    entries = [[b"%d-%d" % (ID_MS, i), fields] for i, (fields, _) in enumerate(CASES)]
    expected = [action for _, action in CASES]
    assert action_of(entries)[0] == expected
    builder = FrameBuilder(Decoder())
    builder.append(entries)
    assert decide_frame(builder.frame(), POLICY, NOW_US)["action"].tolist() == expected


names = st.sampled_from([k.encode() for k in [*GOOD, "action", "payload", "data"]]) | st.binary()
contents = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([part for fields, _ in CASES for part in fields or []]).filter(
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
    assert (actions[0], actions[-1]) == ("drained_ok", "drained_ok")
    assert [made[0], made[-1]] == NEIGHBOURS
    for raw_entry, action in zip(batch, actions[1:-1], strict=True):
        checked = reference.event(raw_entry)
        assert (action == "dropped_missing") == (raw_entry[1] is None)
        if action == "drained_ok":
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
