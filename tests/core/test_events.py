"""From entries to events: the fast decoder against a plain reference, and its frames."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pandas as pd
import pytest
import reference
from event_samples import GOOD, ID, ID_MS, ISO, as_reference, entry, one, payload, why
from hypothesis import example, given, settings
from hypothesis import strategies as st

from drainkit.core.events import MAX_VOCABULARY, Decoder, Events
from drainkit.core.frame import FrameBuilder
from drainkit.core.timestamps import NO_TIME, times_us
from drainkit.settings import Fields

# ---------------------------------------------------------------- against the reference

moments = st.datetimes(
    dt.datetime(2025, 12, 24, 19, 40), dt.datetime(2025, 12, 24, 20, 0), timezones=st.just(dt.UTC)
)
odd_texts = st.sampled_from(
    ["", " ", "BTCUSDT", "ETH\x00", "\ufb00", "\uff10.5", "A" * 64, "A" * 65, "0.5", ".5", "1.",
     "1.0001", "-0", "1e-1", "5e-05", "1E+2", "1e-99999", "0e99999", "1e", "1.766605798664E12",
     "-1e3", "1e1000", "5%", "NaN", "2025-12-24", "2025-12-24T19:49:58Z", "1766605798",
     "2025-02-30T00:00:00Z", "1766605798664.5", "2016-12-31T23:59:60Z", "0000-01-01T00:00:00Z",
     "9999-12-31T23:59:59-23:59", "2025-12-24t19:49:58.5z", "2025-12-24T19:49.5Z", "1_766",
     "0.7_5", "+0.9", "0.9\n", "0x1", "1" * 21, "\u202eBTC", "\U0001f600", "\ud800"]
)  # fmt: skip
numbers = st.one_of(
    st.floats(0, 1), st.floats(), st.integers(-(10**21), 10**21),
    st.integers(1_766_605_700, 1_766_605_900), st.floats(1_766_605_700, 1_766_605_900),
    st.integers(ID_MS - 100_000, ID_MS + 100_000),
)  # fmt: skip
scalars = st.one_of(
    st.none(), st.booleans(), numbers, odd_texts, st.text(max_size=8),
    moments.map(dt.datetime.isoformat),
    moments.map(lambda t: t.isoformat(timespec="milliseconds")),
    moments.map(lambda t: t.strftime("%Y-%m-%dT%H:%M:%SZ")),
)  # fmt: skip
values = st.one_of(
    scalars, st.lists(scalars, max_size=2), st.dictionaries(odd_texts, scalars),
    st.dictionaries(st.sampled_from([*GOOD, "ts", "score"]), scalars),
)  # fmt: skip
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


nested = st.tuples(
    st.sampled_from(["payload", "data", "body"]), json_texts | st.binary(max_size=30)
)
bodies = st.lists(st.tuples(keys, scalars | st.binary(max_size=6)) | nested, max_size=8).map(
    lambda pairs: [_as_bytes(part) for pair in pairs for part in pair]
)
ids = st.one_of(
    st.just(ID), st.integers(0, 2**64 - 1).map(lambda ms: b"%d-7" % ms),
    st.sampled_from([b"1-1", b"1262303999999-0", b"1262304000000-0", b"253402300799999-0",
                     b"253402300800000-0", b"18446744073709551615-18446744073709551615"]),
)  # fmt: skip
entries = st.tuples(ids, st.one_of(bodies, bodies, bodies, st.none())).map(list)

# [fields] as somebody writes it, and what it means in the reference's terms
PATH = {"symbol": "payload.signal.symbol", "confidence": ["data.signal.score", "body.confidence"]}
OWN = {"symbol": [["payload.signal.symbol"]], "confidence": [PATH["confidence"]]}
MAPPINGS: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    ({}, {}, reference.TIMES),
    ({"symbol": "ticker", "timestamp": ["price", "ts"], "side": "metadata"},
     {"symbol": [["ticker"], ["symbol"]], "side": [["metadata"], ["side", "action", "direction"]]},
     ["price", *reference.TIMES]),
    (PATH, {name: [*own, [name]] for name, own in OWN.items()},
     [*reference.TIMES, *(f"{place}.{time}" for time in reference.TIMES
                          for place in ("payload.signal", "data.signal", "body"))]),
    ({**PATH, "timestamp": "body.ts", "only": True}, OWN, ["body.ts"]),
]  # fmt: skip


@settings(deadline=None)  # pytest's own limit; imports may fall into it
@given(st.lists(entries, max_size=12), st.sampled_from(MAPPINGS))
def test_decoding_agrees_with_the_reference(batch: list[Any], mapping: Any) -> None:
    """Whatever a batch holds and [fields] says, each row is what the reference makes of it."""
    given_fields, names, times = mapping
    names = {**reference.NAMES, **names}
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
@example("2025-02-29T00:00:00Z")
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
    found = (one(raw).confidence, one(raw).symbol, one(raw).side, one(raw).source)
    assert found == (0.25, "PAYLOAD", "a", "data")


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
    both = entry({"payload": b"\xff{", "data": json.dumps(GOOD)})
    assert why(both) == "payload is not JSON in UTF-8"
    lacking = {key: value for key, value in GOOD.items() if key != "source"}
    assert why(entry({**lacking, "payload": "[]"})) == "payload is no JSON object"
    assert why(entry({"payload": json.dumps(lacking), "data": "[]"})) == "data is no JSON object"


def test_names_are_added_before_the_usual_ones() -> None:
    """An added name, in whatever place, goes before a usual one; a literal one before a path."""
    names = Fields(
        symbol=("sym", "payload.signal.symbol"), confidence="body.score.value", timestamp="at"
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
     {"confidence": "score", "only": True}, {"timestamp": ["at"], "only": True},
     {"confidence_percent": True}],
)  # fmt: skip
def test_fields_are_their_own_dump_read_again(given_fields: dict[str, Any]) -> None:
    """As JSON in a kernel's environment, and as a plan's lists, they mean the same."""
    first = Fields(**given_fields)
    assert Fields(**json.loads(first.model_dump_json())) == first
    assert Fields(**first.as_dict(), only=True) == first


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


# ---------------------------------------------------------------- frames


@settings(deadline=None)  # pytest's own limit; imports may fall into it
@given(st.lists(entries, max_size=10), st.integers(1, 4), st.sampled_from([1, 3, 64]))
def test_a_frame_holds_what_was_decoded(batch: list[Any], size: int, merged: int) -> None:
    """Pages through FrameBuilder and back through from_frame are the rows that were decoded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("drainkit.core.frame.MERGED_PAGES", merged)
        builder = FrameBuilder(Decoder())
        for at in range(0, len(batch), size):
            builder.append(batch[at : at + size])
        frame = builder.frame()
    back = Events.from_frame(frame)
    assert back.ids == [raw[0] for raw in batch]
    assert [as_reference(back, row) for row in range(len(batch))] == [one(raw) for raw in batch]
    direct = Decoder().decode(batch)
    assert back.invalid.tolist() == direct.invalid.tolist()


@pytest.mark.parametrize("merged", [3, 64])
def test_a_frame_has_its_documented_columns(merged: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and types of the columns, also of an empty frame and across a vocabulary's reset."""
    monkeypatch.setattr("drainkit.core.frame.MERGED_PAGES", merged)
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
            assert bool(found.invalid[row] == 0) is valid, depth
