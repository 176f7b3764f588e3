"""From entries to events: the fast decoder against a plain reference, and its frame."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pandas as pd
import pytest
import reference
from event_samples import GOOD, HOSTILE, ID, ID_MS, ISO, as_reference, entry, one, payload, why
from hypothesis import given
from hypothesis import strategies as st

from drainkit.core.events import MAX_VOCABULARY, Decoder, Events
from drainkit.core.frame import load_frame
from drainkit.core.values import NO_TIME, times_us
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
odd_bytes = st.sampled_from([part for body in HOSTILE for part in body or () if len(part) < 2000])


def _as_bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


nested = st.tuples(
    st.sampled_from(["payload", "data", "body"]), json_texts | st.binary(max_size=30) | odd_bytes
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


@given(
    st.lists(entries, max_size=12), st.integers(1, 5), st.sampled_from([1, 3, 64]),
    st.sampled_from(MAPPINGS),
)  # fmt: skip
def test_decoding_agrees_with_the_reference(
    batch: list[Any], size: int, merged: int, mapping: Any
) -> None:
    """Whatever pages hold and [fields] says, each row is what the reference makes of its entry
    alone; so it is when the pages were made one frame, and back through from_frame."""
    given_fields, names, times = mapping
    fields, names = Fields(**given_fields), {**reference.NAMES, **names}
    expected = [reference.event(raw, names, times) for raw in batch]
    pages = [batch[at : at + size] for at in range(0, len(batch), size)]
    decoder = Decoder(fields)
    decoded = [decoder.decode(page) for page in pages]
    rows = [as_reference(page, row) for page in decoded for row in range(len(page))]
    assert rows == expected, batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("drainkit.core.frame.MERGED_PAGES", merged)
        back = Events.from_frame(load_frame(pages, Decoder(fields)))
    assert back.ids == [raw[0] for raw in batch]
    assert [as_reference(back, row) for row in range(len(batch))] == expected
    assert back.invalid.tolist() == [code for page in decoded for code in page.invalid]


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
def test_column_parsing_of_iso_times_is_fromisoformat(text: str) -> None:
    """Times read as whole columns are exactly those that the standard library reads."""
    found = times_us([text, text.encode(), None])
    expected = reference.timestamp_of(text)
    assert found.tolist() == [NO_TIME if expected is None else expected] * 2 + [NO_TIME]


# ---------------------------------------------------------------- the places of the values

OLD_MS = ID_MS - 7_200_000
LACKING = {key: value for key, value in GOOD.items() if key != "source"}
NESTED = {"symbol": "payload.signal.symbol", "confidence": "payload.signal.confidence"}
BROKEN = {"timestamp": ID_MS + 60_001, "confidence": 2, "symbol": " "}
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
LATEST, PERCENT = b"253402300799999-0", {"confidence_percent": True}
STAMPS: list[Any] = [
    "1766605798.664912", 1766605798.664912, ID_MS, ID_MS * 1000 + 7, ID_MS * 10**6 + 7999,
    float(ID_MS * 10**6), "-1.0000005", -1e-113, "1.766605798664E12", "5e-05", 99_999_999_999, 0,
    "0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59.999999+00:00", "2025-12-24T24:00:00Z",
    "2025-12-24", "20251224T194958Z", "2025-12-24T20:49:58+01:00", "2025-12-24T19:49:58.6649129Z",
    # and what is no time
    None, True, "", "soon", "1" * 21, 10**20, 1e300, " 1766605798", "1_766", "2025-13-01", [ISO],
    "0001-01-01T00:00:00+05:00", "2016-12-31T23:59:60Z", "1e9999", "\uff11" * 10, "inf", "+", ".",
    "2025-12-24T19:49:58Z" + " " * 60, "2025-12-24T19:49.5Z", "2025-12-24 19.5",
    "2025-12-24T23:60:00Z", "2025-02-29T00:00:00Z",
]  # fmt: skip
BODY = json.dumps(GOOD)
FLAT = BODY[:-1] + ', "é": "' + "[" * 100 + '\\"{", "y": [' + "[]," * 100 + "0]}"
PERCENTAGES: list[tuple[Any, float | None]] = [
    (78, 0.78), ("78", 0.78), ("78%", 0.78), (0.5, 0.005), ("7.85e1%", 0.785), (100, 1.0), (0, 0.0),
    ("0%", 0.0), ("100.1%", None), (101, None), (-1, None), ("78 %", None), ("78%%", None),
    ("%", None), (True, None), ("\uff17\uff18%", None),
]  # fmt: skip
# claim: [(entry, [fields], what it gives, or why it is invalid)]
Case = tuple[list[Any], dict[str, Any], dict[str, Any] | str]
CLAIMS: dict[str, list[Case]] = {
    "1 MiB passes, one byte more does not; brackets in a text and beside one another do": [
        *(case for body in (BODY.encode(), BODY.replace('"ai"', '"\u00e9"').encode()) for case in (
            (entry({"payload": body.ljust(1024 * 1024)}), {}, ""),
            (entry({"payload": body.ljust(1024 * 1024 + 1)}), {}, "payload over 1 MiB"))),
        (entry({"payload": FLAT}), {}, ""),
        (entry({"payload": f'{BODY[:-1]}, "x": {"[" * 64}{"]" * 64}}}'}), {},
         "payload nested deeper than 64"),
    ],
    "confidence_percent alone reads 0..100, with or without a trailing %, in JSON and flat": [
        *((raw, PERCENT, {"confidence": share, "valid": share is not None})
          for told, share in PERCENTAGES
          for raw in (payload({**GOOD, "confidence": told}),
                      *([entry({**GOOD, "confidence": told})] if isinstance(told, str) else []))),
        (entry({**GOOD, "confidence": "78%"}), {}, "confidence not a number"),
    ],
    "the reason names the field, also of a broken object that only a time might stand in": [
        (entry({**GOOD, "payload": ' {"ts": 5'}), {}, "payload is not JSON in UTF-8"),
        (entry({**GOOD, "data": '{"ts": 5'}), {}, "data is not JSON in UTF-8"),
        (entry({"payload": b"\xff{", "data": json.dumps(GOOD)}), {},
         "payload is not JSON in UTF-8"),
        (entry({**LACKING, "payload": "[]"}), {}, "payload is no JSON object"),
        (entry({"payload": json.dumps(LACKING), "data": "[]"}), {}, "data is no JSON object"),
        (entry({**GOOD, "body": "["}), {"confidence": "body.score"},
         "mapped field is not JSON in UTF-8"),
    ],
    "a literal name goes before a path": [
        (payload({"signal": {"symbol": "X"}}, **{"payload.signal.symbol": "LITERAL"}), NESTED,
         {"symbol": "LITERAL"}),
    ],
    "one [fields] for a nested signal reads all shapes, with the true age": [
        (raw, NESTED, {"symbol": "ETHUSDT", "confidence": 0.75, "time_us": OLD_MS * 1000})
        for raw in SHAPES.values()
    ],
    "the first problem names the reason: JSON, then symbol, then confidence, then time": [
        (entry({**BROKEN, "payload": "{"}), {}, "payload is not JSON in UTF-8"),
        (entry(BROKEN), {}, "symbol not valid"),
        (entry({**BROKEN, "symbol": "A"}), {}, "confidence outside 0..1"),
        (entry({**BROKEN, "symbol": "A", "confidence": 1}), {},
         "timestamp more than 60 s after the entry id"),
        (entry({**GOOD, "timestamp": "?"}, b"0-1"), {}, "no usable time"),
        (entry({}), {}, "symbol missing"),
        (entry({"symbol": "A"}), {}, "confidence missing"),
        (entry({"symbol": "A", "confidence": 0.5, "payload": "{"}), {},
         {"symbol": "A", "confidence": 0.5, "valid": False}),
    ],
}  # fmt: skip


def test_each_form_of_a_time_is_read_or_makes_no_event_invalid() -> None:
    """ISO 8601 and epoch s, ms, us and ns give whole microseconds, rounded down, as the reference
    reads them; by what is no time the id's time counts."""
    for stamp in STAMPS:
        raw = payload({**GOOD, "timestamp": stamp}, entry_id=LATEST)
        assert one(raw) == reference.event(raw), stamp
        assert one(raw).valid


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_value_is_found_where_the_contract_says(claim: str) -> None:
    """Each claim of CLAIMS by its cases; and [fields] means the same as a plan's lists, and as JSON
    in a kernel's environment."""
    for raw, given_fields, expected in CLAIMS[claim]:
        names = Fields(**given_fields)
        assert Fields(**names.as_dict(), only=True) == names
        assert Fields(**json.loads(names.model_dump_json())) == names
        if isinstance(expected, str):
            assert why(raw, names) == expected
        else:
            found = one(raw, names)
            assert {name: getattr(found, name) for name in expected} == expected, raw


# ---------------------------------------------------------------- the frame


@pytest.mark.parametrize("merged", [3, 64])
def test_a_frame_has_its_documented_columns(merged: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and types of the columns, also of an empty frame and across a vocabulary's reset."""
    monkeypatch.setattr("drainkit.core.frame.MERGED_PAGES", merged)
    n = 2 * MAX_VOCABULARY
    many = [entry({**GOOD, "symbol": f"S{i}"}) for i in range(n)]
    full = load_frame((many[at : at + 500] for at in range(0, n, 500)), Decoder())
    assert full["symbol"].tolist() == [f"S{i}" for i in range(n)]
    for frame in (full, empty := load_frame([], Decoder())):
        assert list(frame) == ["id", "event_time", "time_source", "symbol", "side", "source",
                               "confidence", "invalid", "missing"]  # fmt: skip
        assert frame["event_time"].dtype == "datetime64[us, UTC]"
        assert isinstance(frame["id"].dtype, pd.StringDtype)
        assert frame["confidence"].dtype == "float64"
        assert frame["missing"].dtype == "bool"
        for column in ("time_source", "symbol", "side", "source", "invalid"):
            assert isinstance(frame[column].dtype, pd.CategoricalDtype)
    assert len(empty) == 0
    assert full["event_time"].iloc[0] == pd.Timestamp(ISO)
    assert full["invalid"].iloc[0] == ""
