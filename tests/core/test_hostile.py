"""Single entries, odd and hostile: times, bounds, and that none passes or harms another."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
import reference
from event_samples import (
    GOOD,
    HOSTILE_BY_ACTION,
    ID,
    ID_MS,
    ISO,
    entry,
    flat,
    nested,
    one,
    payload,
    why,
)

from drainkit.core.audit import records
from drainkit.core.events import (
    MAX_LAYOUTS,
    MAX_VOCABULARY,
    MAX_VOCABULARY_CHARACTERS,
    Decoder,
)
from drainkit.core.frame import decide_frame, load_frame
from drainkit.core.policy import ACTIONS, Policy, decide
from drainkit.settings import Fields

NOW_US = (ID_MS + 10_000) * 1000  # every entry is ten seconds old by its id
POLICY = Policy(max_age_min=30, allowlist=frozenset({"BTCUSDT", "ETHUSDT"}), min_conf=0.6)
CASES = [(fields, action) for action, some in HOSTILE_BY_ACTION.items() for fields in some]


def action_of(entries: list[Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    """The actions and the audit records of a batch."""
    events = Decoder().decode(entries)
    decisions = decide(events, POLICY, NOW_US)
    made = [*zip(*records(events, decisions, POLICY), strict=True)]
    return [ACTIONS[code] for code in decisions.action], made


def test_each_gets_its_action_and_harms_nobody() -> None:
    """Of at least 60 hostile entries and each action: the table's action, the records of its
    neighbours as if it were not; all at once, and as a DataFrame, the same."""
    before, after = [b"%d-0" % ID_MS, flat(symbol="ETHUSDT")], [b"%d-2" % ID_MS, nested()]
    neighbours = [action_of([before])[1][0], action_of([after])[1][0]]
    assert len(CASES) >= 60
    assert set(HOSTILE_BY_ACTION) == set(ACTIONS)
    for fields, expected in CASES:
        actions, made = action_of([before, [ID, fields], after])
        assert actions == ["drained_ok", expected, "drained_ok"], str(fields)[:200]
        assert [made[0], made[2]] == neighbours
        assert all(part.isprintable() and len(part) <= 64 for part in made[1])
        checked = reference.event([ID, fields])
        assert checked.valid == one([ID, fields]).valid, str(fields)[:200]
        assert checked.valid or expected != "drained_ok"
    entries = [[b"%d-%d" % (ID_MS, i), fields] for i, (fields, _) in enumerate(CASES)]
    expected_all = [action for _, action in CASES]
    assert action_of(entries)[0] == expected_all
    frame = load_frame([entries], Decoder())
    assert decide_frame(frame, POLICY, NOW_US)["action"].tolist() == expected_all


# ---------------------------------------------------------------- times


@pytest.mark.parametrize(
    ("stamp", "expected_us"),
    [
        ("1766605798.664912", 1_766_605_798_664_912), (1766605798.664912, 1_766_605_798_664_912),
        (ID_MS, ID_MS * 1000), (ID_MS * 1000 + 7, ID_MS * 1000 + 7),
        (ID_MS * 10**6 + 7999, ID_MS * 1000 + 7), (float(ID_MS * 10**6), ID_MS * 1000),
        ("-1.0000005", -1_000_001), (-1e-113, -1), ("1.766605798664E12", ID_MS * 1000),
        ("5e-05", 50), (99_999_999_999, 99_999_999_999_000_000), (0, 0),
        ("2025-12-24", 1_766_534_400_000_000), ("20251224T194958Z", 1_766_605_798_000_000),
        ("2025-12-24T20:49:58+01:00", 1_766_605_798_000_000),
        ("2025-12-24T19:49:58.6649129Z", 1_766_605_798_664_912),
    ],
)  # fmt: skip
def test_timestamps_are_read_in_every_unit(stamp: Any, expected_us: int) -> None:
    """ISO 8601 and epoch s, ms, us and ns give whole microseconds, rounded down."""
    raw = entry({"payload": json.dumps({**GOOD, "timestamp": stamp})}, b"253402300799999-0")
    assert (one(raw).time_us, one(raw).time_source) == (expected_us, "timestamp")


@pytest.mark.parametrize(
    "stamp",
    [None, True, "", "soon", "1" * 21, 10**20, 1e300, " 1766605798", "1_766", "2025-13-01", [ISO],
     "0001-01-01T00:00:00+05:00", "2016-12-31T23:59:60Z", "1e9999", "\uff11" * 10, "inf", "+", ".",
     "2025-12-24T19:49:58Z" + " " * 60, "2025-12-24T19:49.5Z", "2025-12-24 19.5"],
)  # fmt: skip
def test_an_unreadable_timestamp_leaves_the_time_of_the_id(stamp: Any) -> None:
    """What cannot be read as a time does not make the event invalid: the id's time counts."""
    found = one(payload({**GOOD, "timestamp": stamp}))
    assert (found.time_us, found.time_source, found.valid) == (ID_MS * 1000, "entry_id", True)


@pytest.mark.parametrize(
    ("ahead_us", "source", "valid"),
    [(-1, "timestamp", True), (0, "timestamp", True), (1, "entry_id", True),
     (60_000_000, "entry_id", True), (60_000_001, "entry_id", False)],
)  # fmt: skip
def test_the_earlier_time_counts(ahead_us: int, source: str, valid: bool) -> None:
    """A timestamp can only make an event older; more than 60 s after the id it is invalid."""
    found = one(payload({**GOOD, "timestamp": ID_MS * 1000 + ahead_us}))
    assert found.time_us == ID_MS * 1000 + min(ahead_us, 0)
    assert (found.time_source, found.valid) == (source, valid)


@pytest.mark.parametrize("entry_id", [b"0-1", b"1262303999999-9", b"253402300800000-0"])
def test_ids_that_are_no_times(entry_id: bytes) -> None:
    """With such an id the timestamp alone counts; without one the age cannot be judged."""
    assert one(entry(GOOD, entry_id)).time_us == ID_MS * 1000
    without = entry({**GOOD, "timestamp": "?"}, entry_id)
    assert (one(without).time_us, one(without).time_source) == (None, "unknown")
    assert why(without) == "no usable time"
    gone = one([entry_id, None])
    assert (gone.time_us, gone.missing, gone.valid) == (None, True, True)


# ---------------------------------------------------------------- bounds


def test_minus_zero_is_zero() -> None:
    """-0.0 is a number in 0..1, and is not written with a sign, which a spreadsheet may act on."""
    assert repr(one(payload({**GOOD, "confidence": -0.0})).confidence) == "0.0"


def test_bounds_of_a_payload_are_exact() -> None:
    """1 MiB and a depth of 64 pass; one byte or one level more does not."""
    body = json.dumps(GOOD)
    for some in (body.encode(), body.replace('"ai"', '"\u00e9"').encode()):
        assert one(entry({"payload": some.ljust(1024 * 1024)})).valid
        assert why(entry({"payload": some.ljust(1024 * 1024 + 1)})) == "payload over 1 MiB"
    for levels, reason in ((63, ""), (64, "payload nested deeper than 64")):
        nested = body[:-1] + ', "x": ' + "[" * levels + "]" * levels + "}"
        assert why(entry({"payload": nested})) == reason
    flat = body[:-1] + ', "é": "' + "[" * 100 + '\\"{", "y": [' + "[]," * 100 + "0]}"
    assert why(entry({"payload": flat})) == ""


WORST = {
    "a text that never ends": b'{"a":"' + b'\\"' * 500_000 + b"[" * 100,
    "many brackets": b'{"a":[' + b"[]," * 340_000 + b"0]}",
    "only brackets": b"[" * 1_000_000,
    "only quotes": b'"' * 1_000_000 + b"[" * 70,
    "a number of a million digits": b'{"confidence":' + b"9" * 1_000_000 + b"}",
    "a time of a million digits": b'{"timestamp":"' + b"9" * 1_000_000 + b'"}',
    "a text of a million digits": b'{"confidence":"' + b"9" * 1_000_000 + b'"}',
}


@pytest.mark.parametrize("what", WORST)
def test_hostile_content_takes_linear_time(what: str) -> None:
    """A full-size payload of the worst content is refused within a second."""
    started = time.process_time()
    assert why(entry({"payload": WORST[what]})) != ""
    assert time.process_time() - started < 1


def test_many_fields_take_linear_time() -> None:
    """An entry of 100,000 fields is decoded within a second, and its layout is not kept."""
    raw = entry({f"f{i}": "" for i in range(100_000)} | GOOD)
    decoder = Decoder()
    started = time.process_time()
    assert decoder.decode([raw]).invalid[0] == 0
    assert time.process_time() - started < 1
    assert not decoder._layouts


def test_memory_of_a_decoder_is_bounded() -> None:
    """New symbols, texts and field names without end do not stay, and earlier rows stay right."""
    decoder = Decoder()
    kept = decoder.decode([entry(GOOD)])
    for i in range(4000):
        odd = {f"f{i}": "", "symbol": f"S{i}", "source": f"s{i}" * 1000, "side": "\x00" * i}
        assert decoder.decode([entry({**GOOD, **odd})]).symbol(0) == f"S{i}"
        assert len(decoder._words[0]) <= MAX_VOCABULARY + 3
        assert decoder._words[2]._characters <= MAX_VOCABULARY_CHARACTERS + 10_000
        assert len(decoder._layouts) <= MAX_LAYOUTS
    assert kept.symbol(0) == "BTCUSDT"
    before = len(decoder._words[0])
    decoder.decode([entry({**GOOD, "symbol": "BAD " + "x" * i}) for i in range(100)])
    assert len(decoder._words[0]) <= before


@pytest.mark.parametrize(
    ("raw", "number"),
    [(78, 0.78), ("78", 0.78), ("78%", 0.78), (0.5, 0.005), ("7.85e1%", 0.785), (100, 1.0),
     (0, 0.0), ("0%", 0.0), ("100.1%", None), (101, None), (-1, None), ("78 %", None),
     ("78%%", None), ("%", None), (True, None), ("\uff17\uff18%", None)],
)  # fmt: skip
def test_a_percentage_is_read_where_fields_say_so(raw: Any, number: float | None) -> None:
    """confidence_percent = true reads 0..100 with or without a trailing %, in JSON and flat;
    without it a % is never read."""
    bodies = [{"payload": json.dumps({**GOOD, "confidence": raw})}]
    bodies += [{**GOOD, "confidence": raw}] if isinstance(raw, str) else []
    events = Decoder(Fields(confidence_percent=True)).decode([entry(body) for body in bodies])
    found = [None if np.isnan(one) else one for one in events.confidence.tolist()]
    assert found == [number] * len(bodies)
    assert (events.invalid == 0).tolist() == [number is not None] * len(bodies)
    if isinstance(raw, str) and "%" in raw:
        assert (Decoder().decode([entry(body) for body in bodies]).invalid > 0).all()


@pytest.mark.parametrize("other", ["null", "1", '"x"', "", "[]", "{}"])
@pytest.mark.parametrize("others", [1, 20, 40])
def test_depth_is_each_events_own(other: str, others: int) -> None:
    """Beside payloads without a bracket, JSON nested deeper than 64 is as invalid as alone."""
    for depth, valid in ((64, True), (65, False), (95, False)):
        deep = entry({"payload": json.dumps(GOOD)[:-1] + ', "z": ' + "[" * (depth - 1)
                      + "]" * (depth - 1) + "}"})  # fmt: skip
        batch = [deep, *[entry({"payload": other})] * others]
        for order in (batch, batch[::-1]):
            found = Decoder().decode(order)
            row = order.index(deep)
            assert bool(found.invalid[row] == 0) is valid, depth
