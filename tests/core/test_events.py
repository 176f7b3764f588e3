"""From entries to events: the fast decoder against a plain reference, and its bounds."""

from __future__ import annotations

import datetime as dt
import json
import math
import time
from typing import Any

import numpy as np
import pandas as pd
import pytest
import reference
from hypothesis import example, given, settings
from hypothesis import strategies as st

from drainkit.core.events import (
    MAX_LAYOUTS,
    MAX_VOCABULARY,
    MAX_VOCABULARY_CHARACTERS,
    Decoder,
    Events,
)
from drainkit.core.frame import FrameBuilder
from drainkit.core.timestamps import NO_TIME, TIME_SOURCES, times_us
from drainkit.core.values import INVALID_REASONS
from drainkit.settings import Fields

ID_MS = 1_766_605_798_664
ID = b"%d-0" % ID_MS
ISO = "2025-12-24T19:49:58.664000+00:00"  # the same moment
GOOD = {"symbol": "BTCUSDT", "side": "BUY", "confidence": 0.75, "timestamp": ISO, "source": "ai"}


def entry(fields: dict[str, Any] | None, entry_id: bytes = ID) -> list[Any]:
    """A raw entry; texts and numbers as Redis would answer them."""
    if fields is None:
        return [entry_id, None]
    flat = [part for pair in fields.items() for part in pair]
    return [entry_id, [x if isinstance(x, bytes) else str(x).encode() for x in flat]]


def payload(content: Any, **flat: Any) -> list[Any]:
    return entry({**flat, "payload": json.dumps(content)})


def one(raw: list[Any], fields: Fields | None = None) -> reference.Event:
    return as_reference(Decoder(fields).decode([raw]), 0)


def why(raw: list[Any], fields: Fields | None = None) -> str:
    return INVALID_REASONS[Decoder(fields).decode([raw]).invalid[0]]


def as_reference(decoded: Events, row: int) -> reference.Event:
    """One row in the reference's terms."""
    moment = int(decoded.event_time_us[row])
    confidence = float(decoded.confidence[row])

    def text(code: np.ndarray, words: list[str]) -> str | None:
        return words[code[row]] if code[row] >= 0 else None

    return reference.Event(
        time_us=None if moment == NO_TIME else moment,
        time_source=TIME_SOURCES[decoded.time_source[row]],
        symbol=decoded.symbol(row),
        side=text(decoded.side_code, decoded.sides),
        source=text(decoded.source_code, decoded.sources),
        confidence=None if math.isnan(confidence) else confidence,
        valid=not decoded.invalid[row],
        missing=bool(decoded.missing[row]),
    )


# ---------------------------------------------------------------- against the reference

moments = st.datetimes(
    dt.datetime(2025, 12, 24, 19, 40), dt.datetime(2025, 12, 24, 20, 0), timezones=st.just(dt.UTC)
)
odd_texts = st.sampled_from(
    ["", " ", "BTCUSDT", "ETH\x00", "\ufb00", "\uff10.5", "A" * 64, "A" * 65, "0.5", ".5", "1.",
     "1.0001", "-0", "1e-1", "5e-05", "1E+2", "1e-99999", "0e99999", "1e", "1.766605798664E12",
     "-1e3", "1e1000", "5%", "NaN", "2025-12-24", "2025-12-24T19:49:58Z", "1766605798",
     "2025-02-30T00:00:00Z", "1766605798664.5", "2016-12-31T23:59:60Z", "0000-01-01T00:00:00Z",
     "9999-12-31T23:59:59-23:59", "\U0001f600", "\ud800"]
)  # fmt: skip
numbers = st.one_of(
    st.floats(0, 1),
    st.floats(),
    st.integers(-(10**21), 10**21),
    st.integers(1_766_605_700, 1_766_605_900),
    st.floats(1_766_605_700, 1_766_605_900),
    st.integers(ID_MS - 100_000, ID_MS + 100_000),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    numbers,
    odd_texts,
    st.text(max_size=8),
    moments.map(dt.datetime.isoformat),
    moments.map(lambda t: t.isoformat(timespec="milliseconds")),
    moments.map(lambda t: t.strftime("%Y-%m-%dT%H:%M:%SZ")),
)
keys_inside = st.sampled_from([*GOOD, "ts", "score"])
values = st.one_of(
    scalars,
    st.lists(scalars, max_size=2),
    st.dictionaries(odd_texts, scalars),
    st.dictionaries(keys_inside, scalars),
)
keys = st.sampled_from(
    [*GOOD, "action", "direction", "price", "metadata", "signal", "ticker", *reference.TIMES]
)
objects = st.one_of(
    st.dictionaries(keys, values),
    st.dictionaries(keys, values).map(lambda changes: {**GOOD, **changes}),
)
# as a careless producer writes it: NaN and Infinity may be in it, keys may come twice
json_texts = st.one_of(
    objects.map(json.dumps),
    st.lists(st.tuples(keys, values), max_size=8).map(
        lambda pairs: "{" + ",".join(f"{json.dumps(k)}:{json.dumps(v)}" for k, v in pairs) + "}"
    ),
    st.sampled_from(["", "null", "[]", "{", '{"symbol":01}', '"{}"', "{}x", '{"confidence":1e999}',
                     '{"price":1e999,"symbol":"X","confidence":1}', '{"symbol":"\\q"}',
                     '{"price":"\\ud800","confidence":0.5,"symbol":"X"}', "\ufeff{}"]),
)  # fmt: skip


def _as_bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


flat_pairs = st.tuples(keys, scalars | st.binary(max_size=6))
pairs = st.lists(
    st.one_of(
        flat_pairs,
        st.tuples(
            st.sampled_from(["payload", "data", "body"]), json_texts | st.binary(max_size=30)
        ),
    ),
    max_size=8,
)
bodies = pairs.map(lambda found: [_as_bytes(part) for pair in found for part in pair])
ids = st.one_of(
    st.just(ID),
    st.integers(0, 2**64 - 1).map(lambda ms: b"%d-7" % ms),
    st.sampled_from([b"1-1", b"1262303999999-0", b"1262304000000-0", b"253402300799999-0",
                     b"253402300800000-0", b"18446744073709551615-18446744073709551615"]),
)  # fmt: skip
entries = st.tuples(ids, st.one_of(bodies, bodies, bodies, st.none())).map(list)


# [fields] as somebody writes it, and what it means in the reference's terms
INSIDE = {
    "symbol": "payload.signal.symbol",
    "confidence": ["data.signal.score", "body.confidence"],
}
MAPPINGS: list[tuple[dict[str, Any], reference.Names, list[str]]] = [
    ({}, reference.NAMES, reference.TIMES),
    (
        {"symbol": "ticker", "timestamp": ["price", "ts"], "side": "metadata"},
        {
            **reference.NAMES,
            "symbol": [["ticker"], ["symbol"]],
            "side": [["metadata"], ["side", "action", "direction"]],
        },
        ["price", *reference.TIMES],
    ),
    (
        INSIDE,
        {
            **reference.NAMES,
            "symbol": [["payload.signal.symbol"], ["symbol"]],
            "confidence": [["data.signal.score", "body.confidence"], ["confidence"]],
        },
        [
            *reference.TIMES,
            *(f"{p}.{t}" for p in ("payload.signal", "data.signal", "body")
              for t in reference.TIMES),
        ],
    ),
    (
        {**INSIDE, "timestamp": "body.ts", "only": True},
        {
            **reference.NAMES,
            "symbol": [["payload.signal.symbol"]],
            "confidence": [["data.signal.score", "body.confidence"]],
        },
        ["body.ts"],
    ),
]  # fmt: skip


@settings(deadline=None)  # pytest's own limit; imports may fall into it
@given(st.lists(entries, max_size=12), st.sampled_from(MAPPINGS))
def test_decoding_agrees_with_the_reference(batch: list[Any], mapping: Any) -> None:
    """Whatever a batch holds and [fields] says, each row is what the reference makes of it."""
    given_fields, names, times = mapping
    decoded = Decoder(Fields(**given_fields)).decode(batch)
    assert len(decoded) == len(batch)
    for row, raw in enumerate(batch):
        assert as_reference(decoded, row) == reference.event(raw, names, times), raw


@settings(deadline=None)  # pytest's own limit; imports may fall into it
@given(st.lists(entries, min_size=1, max_size=8), st.integers(1, 4))
def test_a_row_does_not_depend_on_its_batch(batch: list[Any], size: int) -> None:
    """One decoder over pages of any size says the same as a fresh decoder for each entry."""
    decoder = Decoder()
    pages = [decoder.decode(batch[i : i + size]) for i in range(0, len(batch), size)]
    paged = [as_reference(page, row) for page in pages for row in range(len(page))]
    assert paged == [one(raw) for raw in batch]


@settings(deadline=None)  # pytest's own limit; imports may fall into it
@given(
    st.one_of(
        st.datetimes(timezones=st.just(dt.UTC)).map(dt.datetime.isoformat),
        st.datetimes().map(lambda t: t.isoformat(timespec="milliseconds") + "Z"),
        st.from_regex(
            r"[012]\d{3}-[01]\d-[0-3]\d[T ][0-2]\d:[0-6]\d:[0-6]\d"
            r"(\.[0-9: ]{3}([0-9+]{3})?)?(Z|\+00:00)",
            fullmatch=True,
        ),
    )
)
@example("2025-12-24T24:00:00Z")
@example("2025-12-24T23:60:00Z")
@example("2024-02-29T00:00:00Z")
@example("2025-02-29T00:00:00Z")
@example("2100-02-29T00:00:00.000Z")
@example("9999-12-31T23:59:59.999999+00:00")
@example("0001-01-01T00:00:00+00:00")
def test_column_parsing_of_iso_times_is_fromisoformat(text: str) -> None:
    """Times read as whole columns are exactly those that the standard library reads."""
    found = times_us([text, text.encode(), None])
    expected = reference.timestamp_of(text)
    assert found.tolist() == [NO_TIME if expected is None else expected] * 2 + [NO_TIME]


# ---------------------------------------------------------------- the places of the values


def test_the_first_place_that_has_a_value_wins() -> None:
    """Flat before payload before data, and in one place side before action before direction."""
    data = {**GOOD, "symbol": "DATA", "source": "data"}
    raw = entry({
        "confidence": "0.25",
        "data": json.dumps(data),
        "payload": json.dumps(
            {"symbol": "PAYLOAD", "confidence": 1, "direction": "d", "action": "a"}
        ),
    })  # fmt: skip
    found = one(raw)
    assert (found.confidence, found.symbol, found.side, found.source) == (
        0.25,
        "PAYLOAD",
        "a",
        "data",
    )


@pytest.mark.parametrize("value", ["", b"\xff", "null", "{}", "two words"])
def test_a_place_that_has_a_wrong_value_still_wins(value: str | bytes) -> None:
    """A flat value that is not usable is not replaced by the payload's, nor null by data's."""
    assert not one(payload(GOOD, confidence=value)).valid
    assert not one(payload({**GOOD, "symbol": None}, data=json.dumps(GOOD))).valid
    assert one(payload(GOOD, side=b"\xff")).side is None


def test_of_a_field_given_twice_the_first_counts() -> None:
    """Duplicate flat fields: the first; duplicate keys of a JSON object: the last."""
    flat = [ID, [b"symbol", b"A", b"symbol", b"B", b"confidence", b"1", b"confidence", b"x"]]
    assert (one(flat).symbol, one(flat).valid) == ("A", True)
    nested = entry({"payload": '{"symbol":"A","symbol":"B","confidence":2,"confidence":1}'})
    assert (one(nested).symbol, one(nested).confidence) == ("B", 1.0)


def test_json_that_nobody_needs_may_be_none() -> None:
    """With all values found, payload and data may hold any text, but no object that is broken: a
    time might stand in it."""
    assert one(entry({**GOOD, "payload": b"\xff{", "data": "x"})).valid
    assert one(entry({"payload": json.dumps(GOOD), "data": b"\xff{"})).valid
    assert one(entry({**GOOD, "payload": "[1]", "data": "7"})).valid
    assert why(entry({**GOOD, "payload": ' {"ts": 5'})) == "payload is not JSON in UTF-8"
    assert why(entry({**GOOD, "data": '{"ts": 5'})) == "data is not JSON in UTF-8"
    assert (
        why(entry({"payload": b"\xff{", "data": json.dumps(GOOD)}))
        == "payload is not JSON in UTF-8"
    )
    lacking = {key: value for key, value in GOOD.items() if key != "source"}
    assert why(entry({**lacking, "payload": "[]"})) == "payload is no JSON object"
    assert why(entry({"payload": json.dumps(lacking), "data": "[]"})) == "data is no JSON object"


def test_names_are_added_before_the_usual_ones() -> None:
    """An added name, in whatever place, goes before a usual one; a literal one before a path."""
    names = Fields(
        symbol=("sym", "payload.signal.symbol"),
        confidence="body.score.value",
        timestamp="at",
    )
    signal = {"signal": {"symbol": "ETHUSDT"}, "at": ISO, "side": "SELL"}
    body = json.dumps({"score": {"value": 0.5}})
    found = one(payload(signal, symbol="FLAT", confidence="0.9", body=body), names)
    assert (found.symbol, found.confidence, found.side) == ("ETHUSDT", 0.5, "SELL")
    literal = payload(signal, body=body, **{"payload.signal.symbol": "LITERAL"})
    assert one(literal, names).symbol == "LITERAL"
    assert one(payload({**signal, "sym": "FIRST"}, body=body), names).symbol == "FIRST"
    assert one(entry(GOOD), names).symbol == "BTCUSDT"
    assert one(payload(signal, body='{"score":1}', confidence="0.9"), names).confidence == 0.9
    assert why(entry({**GOOD, "body": "["}), names) == "mapped field is not JSON in UTF-8"


def test_only_the_named_ones_where_asked_for() -> None:
    """`only = true` replaces the usual names of what is named, and of nothing else."""
    names = Fields(symbol="sym", timestamp="at", only=True)
    assert why(entry(GOOD), names) == "symbol missing"
    found = one(entry({**GOOD, "sym": "X", "at": ISO, "ts": 5}), names)
    assert (found.symbol, found.confidence, found.time_us) == ("X", 0.75, ID_MS * 1000)


@pytest.mark.parametrize(
    "given_fields",
    [{}, {"symbol": "ticker"}, {"symbol": ["payload.signal.symbol"], "timestamp": "at"},
     {"confidence": "score", "only": True}, {"timestamp": ["at"], "only": True}],
)  # fmt: skip
def test_fields_are_their_own_dump_read_again(given_fields: dict[str, Any]) -> None:
    """As JSON in a kernel's environment, and as a plan's lists, they mean the same."""
    first = Fields(**given_fields)
    assert Fields(**json.loads(first.model_dump_json())) == first
    assert Fields(**first.as_lists(), only=True) == first


OLD_MS = ID_MS - 7_200_000


@pytest.mark.parametrize("key", reference.TIMES)
@pytest.mark.parametrize("place", ["flat", "payload", "data"])
def test_each_time_makes_an_event_older(key: str, place: str) -> None:
    """Two hours old by any of the keys, in any place, it is: a younger or odd one hides nothing."""
    rest = {"symbol": "BTCUSDT", "confidence": 0.75}
    for others in ({}, {"timestamp": ISO, "ts": ISO}, {"time": "soon", "created_at": None}):
        aged = {**others, key: OLD_MS}
        flat = {"flat": {**rest, **aged}}.get(place, {**rest, **others})
        raw = entry({**flat, **({} if place == "flat" else {place: json.dumps(aged)})})
        assert one(raw).time_us == OLD_MS * 1000
        assert one(raw) == reference.event(raw)


SHAPES = {
    "flat": entry({"symbol": "ETHUSDT", "confidence": "7.5e-01", "ts": OLD_MS}),
    "data": entry({"data": json.dumps({**GOOD, "symbol": "ETHUSDT", "created_at": OLD_MS})}),
    "payload": payload({**GOOD, "symbol": "ETHUSDT", "timestamp": None, "ts": OLD_MS}, ts=ISO),
    "nested signal": payload(
        {"id": 7, "signal": {"symbol": "ETHUSDT", "confidence": 0.75, "ts": OLD_MS}},
        event_type="signal", timestamp=ISO,
    ),
    "nested signal beside an envelope": payload(
        {"signal": {"symbol": "ETHUSDT", "confidence": 0.75}, "created_at": OLD_MS,
         "symbol": "ETH", "confidence": 75},
        symbol="eth-perp", confidence="75",
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_producers_shapes_are_read(shape: str) -> None:
    """With one [fields] for a nested signal all of them give symbol, confidence and true age; an
    object that [fields] reaches into is a place of times too."""
    names = Fields(symbol="payload.signal.symbol", confidence="payload.signal.confidence")
    found = one(SHAPES[shape], names)
    assert (found.symbol, found.confidence, found.valid) == ("ETHUSDT", 0.75, True)
    assert found.time_us == OLD_MS * 1000
    together = Decoder(names).decode([*SHAPES.values()])
    assert [as_reference(together, row) for row in range(len(SHAPES))] == [
        one(raw, names) for raw in SHAPES.values()
    ]


def test_minus_zero_is_zero() -> None:
    """-0.0 is a number in 0..1, and is not written with a sign, which a spreadsheet may act on."""
    confidence = one(payload({**GOOD, "confidence": -0.0})).confidence
    assert repr(confidence) == "0.0"


# ---------------------------------------------------------------- times


@pytest.mark.parametrize(
    ("stamp", "expected_us"),
    [
        (1_766_605_798, 1_766_605_798_000_000),
        ("1766605798.664912", 1_766_605_798_664_912),
        (1766605798.664912, 1_766_605_798_664_912),
        (ID_MS, ID_MS * 1000),
        (ID_MS * 1000 + 7, ID_MS * 1000 + 7),
        (ID_MS * 10**6 + 7999, ID_MS * 1000 + 7),
        (float(ID_MS * 10**6), ID_MS * 1000),
        ("-1.0000005", -1_000_001),
        (-1e-113, -1),
        ("1.766605798664E12", ID_MS * 1000),
        ("1e9", 1_000_000_000_000_000),
        ("5e-05", 50),
        (-1, -1_000_000),
        (99_999_999_999, 99_999_999_999_000_000),
        (0, 0),
        ("2025-12-24", 1_766_534_400_000_000),
        ("2025-12-24T19:49:58", 1_766_605_798_000_000),
        ("2025-12-24T20:49:58+01:00", 1_766_605_798_000_000),
        ("2025-12-24T19:49:58.6649129Z", 1_766_605_798_664_912),
        ("20251224T194958Z", 1_766_605_798_000_000),
        ("2025-12-24T19:49:58z", 1_766_605_798_000_000),
        ("2025-12-24t19:49:58.5z", 1_766_605_798_500_000),
    ],
)
def test_timestamps_are_read_in_every_unit(stamp: Any, expected_us: int) -> None:
    """ISO 8601 and epoch s, ms, us and ns give whole microseconds, rounded down."""
    raw = entry({"payload": json.dumps({**GOOD, "timestamp": stamp})}, b"253402300799999-0")
    assert (one(raw).time_us, one(raw).time_source) == (expected_us, "timestamp")


@pytest.mark.parametrize(
    "stamp",
    [None, True, "", "soon", "1" * 21, 10**20, 1e300, " 1766605798", "1_766", "2025-13-01",
     "0000-01-01T00:00:00Z", "0001-01-01T00:00:00+05:00", "2016-12-31T23:59:60Z", [ISO],
     "1e9999", "1e",
     "\uff11" * 10, -99_999_999_999, "2025-12-24T19:49:58Z" + " " * 60, "inf", "+", ".",
     "2025-12-24T19:49.5Z", "2025-12-24 19.5", "20251224T1949,5Z"],
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


# ---------------------------------------------------------------- reasons and bounds


def test_the_first_problem_names_the_reason() -> None:
    """Of several problems the reason names: JSON, then symbol, then confidence, then time."""
    broken = {"timestamp": ID_MS + 60_001, "confidence": 2, "symbol": " "}
    assert why(entry({**broken, "payload": "{"})) == "payload is not JSON in UTF-8"
    assert why(entry(broken)) == "symbol not valid"
    assert why(entry({**broken, "symbol": "A"})) == "confidence outside 0..1"
    late = {**broken, "symbol": "A", "confidence": 1}
    assert why(entry(late)) == "timestamp more than 60 s after the entry id"
    assert why(entry({})) == "symbol missing"
    assert why(entry({"symbol": "A"})) == "confidence missing"
    assert why(entry({"symbol": "A", "confidence": "x"})) == "confidence not a number"
    known = one(entry({"symbol": "A", "confidence": 0.5, "payload": "{"}))
    assert (known.symbol, known.confidence, known.valid) == ("A", 0.5, False)


def test_bounds_of_a_payload_are_exact() -> None:
    """1 MiB and a depth of 64 pass; one byte or one level more does not."""
    body = json.dumps(GOOD)
    assert one(entry({"payload": body.ljust(1024 * 1024)})).valid
    assert why(entry({"payload": body.ljust(1024 * 1024 + 1)})) == "payload over 1 MiB"
    accented = body.replace('"ai"', '"\u00e9"').encode()
    assert one(entry({"payload": accented.ljust(1024 * 1024)})).valid
    assert why(entry({"payload": accented.ljust(1024 * 1024 + 1)})) == "payload over 1 MiB"
    for levels, reason in ((63, ""), (64, "payload nested deeper than 64")):
        nested = body[:-1] + ', "x": ' + "[" * levels + "]" * levels + "}"
        assert why(entry({"payload": nested})) == reason
    flat = body[:-1] + ', "é": "' + "[" * 100 + '\\"{", "y": [' + "[]," * 100 + "0]}"
    assert why(entry({"payload": flat})) == ""


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b'{"a":"' + b'\\"' * 500_000 + b"[" * 100, id="a text that never ends"),
        pytest.param(b'{"a":[' + b"[]," * 340_000 + b"0]}", id="many brackets"),
        pytest.param(b"[" * 1_000_000, id="only brackets"),
        pytest.param(b'"' * 1_000_000 + b"[" * 70, id="only quotes"),
        pytest.param(
            b'{"confidence":' + b"9" * 1_000_000 + b"}", id="a number of a million digits"
        ),
        pytest.param(b'{"timestamp":"' + b"9" * 1_000_000 + b'"}', id="a time of a million digits"),
        pytest.param(
            b'{"confidence":"' + b"9" * 1_000_000 + b'"}', id="a text of a million digits"
        ),
    ],
)
def test_hostile_content_takes_linear_time(raw: bytes) -> None:
    """A full-size payload of the worst content is refused within a second."""
    started = time.process_time()
    assert why(entry({"payload": raw})) != ""
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
        flat = {
            **GOOD,
            f"f{i}": "",
            "symbol": f"S{i}",
            "source": f"s{i}" * 1000,
            "side": "\x00" * i,
        }
        page = decoder.decode([entry(flat)])
        assert page.symbol(0) == f"S{i}"
        assert len(decoder._symbols._codes) <= MAX_VOCABULARY + 3
        assert decoder._sources._characters <= MAX_VOCABULARY_CHARACTERS + 10_000
        assert len(decoder._layouts) <= MAX_LAYOUTS
    assert kept.symbol(0) == "BTCUSDT"
    before = len(decoder._symbols._codes)
    decoder.decode([entry({**GOOD, "symbol": "BAD " + "x" * i}) for i in range(100)])
    assert len(decoder._symbols._codes) <= before


# ---------------------------------------------------------------- frames


@settings(deadline=None)  # pytest's own limit; imports may fall into it
@given(st.lists(entries, max_size=10), st.integers(1, 4))
def test_a_frame_holds_what_was_decoded(batch: list[Any], size: int) -> None:
    """Pages through FrameBuilder and back through from_frame are the rows that were decoded."""
    builder = FrameBuilder(Decoder())
    for at in range(0, len(batch), size):
        builder.append(batch[at : at + size])
    frame = builder.frame()
    back = Events.from_frame(frame)
    assert back.ids == [raw[0] for raw in batch]
    assert [as_reference(back, row) for row in range(len(batch))] == [one(raw) for raw in batch]
    direct = Decoder().decode(batch)
    assert back.invalid.tolist() == direct.invalid.tolist()


def test_a_frame_has_its_documented_columns() -> None:
    """Names and types of the columns, also of an empty frame and across a vocabulary's reset."""
    builder = FrameBuilder(Decoder())
    n = 2 * MAX_VOCABULARY
    for at in range(0, n, 500):
        builder.append([entry({**GOOD, "symbol": f"S{i}"}) for i in range(at, at + 500)])
    full, empty = builder.frame(), FrameBuilder(Decoder()).frame()
    assert full["symbol"].tolist() == [f"S{i}" for i in range(n)]
    assert len(empty) == 0
    for frame in (full, empty):
        assert list(frame) == ["id", "event_time", "time_source", "symbol", "side", "source",
                               "confidence", "invalid", "missing"]  # fmt: skip
        assert frame["event_time"].dtype == "datetime64[us, UTC]"
        assert isinstance(frame["id"].dtype, pd.StringDtype)
        assert frame["confidence"].dtype == "float64"
        assert frame["missing"].dtype == "bool"
        for column in ("time_source", "symbol", "side", "source", "invalid"):
            assert isinstance(frame[column].dtype, pd.CategoricalDtype)
    assert full["event_time"].iloc[0] == pd.Timestamp(ISO)
    assert full["invalid"].iloc[0] == ""


def test_part_of_a_frame_is_events_too() -> None:
    """A filtered and sorted frame keeps each row's values."""
    builder = FrameBuilder(Decoder())
    builder.append([entry({**GOOD, "symbol": s}) for s in "CAB"] + [entry(None), entry({})])
    frame = builder.frame()
    part = frame[frame["symbol"] != "A"].sort_values("symbol")
    back = Events.from_frame(part)
    assert [back.symbol(row) for row in range(4)] == ["B", "C", None, None]
    assert back.missing.tolist() == [False, False, True, False]


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
            assert bool(found.invalid[row] == 0) is valid, (
                depth,
                INVALID_REASONS[found.invalid[row]],
            )
