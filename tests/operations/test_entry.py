"""drainkit show and Analysis.entry: one entry, whole and inert."""

from __future__ import annotations

import json
from typing import Any

from conftest import intent, one_line_error
from hypothesis import given
from hypothesis import strategies as st
from place import BUNDLED, Place

from drainkit.core.events import Decoder
from drainkit.core.fields import places
from drainkit.operations.events import rows_of
from drainkit.settings import Fields


def show(place: Place, *ids: str) -> Any:
    return place.says("show", "--json", *ids).json()["entries"]


@BUNDLED
def test_each_value_says_where_it_was_found(place: Place) -> None:
    """Flat fields go before payload, payload before data, and mapped paths are followed."""
    now = place.now_ms()
    payload = {"symbol": "ETHUSDT", "confidence": 0.7, "timestamp": now - 5000, "source": "ai"}
    mapped = {"signal": {"ticker": "SOLUSDT", "score": "0.9"}}
    ids = [f"{now}-{i}" for i in range(3)]
    entries: list[tuple[Any, Any]] = [
        (ids[0], {"symbol": "BTCUSDT", "payload": json.dumps(payload), "data": '{"side": "BUY"}'}),
        (ids[1], {"envelope": json.dumps(mapped)}),
        (ids[2], {"symbol": "B A D", "confidence": "75%"}),
    ]
    place.fill(entries)
    (place.cli.cwd / "drainkit.toml").write_text(
        '[fields]\nsymbol = ["symbol", "envelope.signal.ticker"]\n'
        'confidence = ["confidence", "envelope.signal.score"]\n'
    )
    found = show(place, *ids)
    assert [entry["id"] for entry in found] == ids
    where = [{p["value"]: p["where"] for p in one["places"] if p["counts"]} for one in found]
    assert where == [
        {"symbol": "field symbol", "confidence": "payload.confidence", "side": "data.side",
         "source": "payload.source", "timestamp": "payload.timestamp"},
        {"symbol": "envelope.signal.ticker", "confidence": "envelope.signal.score"}, {},
    ]  # fmt: skip
    assert found[0]["values"] == {
        "symbol": "BTCUSDT", "side": "BUY", "source": "ai", "confidence": 0.7,
    }  # fmt: skip
    assert [one["time_source"] for one in found] == ["timestamp", "entry_id", "entry_id"]
    assert [p["raw"] for p in found[2]["places"]] == ["B A D", "75%"]
    assert [one["action"] for one in found[1:]] == ["drained_ok", "dropped_invalid"]
    assert found[2]["reason"] == "symbol not valid"
    rows = {row[:2]: row[2] for row in rows_of(found[2])}
    assert (rows["value", "symbol"], rows["value", "side"]) == ("not valid", "not found")


@BUNDLED
def test_every_filter_has_a_verdict(place: Place) -> None:
    """Each filter's own verdict by the present options, also of those after the first to fail."""
    entry = f"{place.now_ms() - 3_600_000}-0"
    place.fill([(entry, intent(confidence=0.5))])
    (found,) = show(place, entry, "--allowlist", "ETHUSDT")
    verdicts = {f["filter"]: f["passes"] for f in found["filters"]}
    assert verdicts == {"dropped_missing": True, "dropped_old": False, "dropped_invalid": True,
                        "dropped_not_allowlisted": False, "dropped_low_conf": False}  # fmt: skip
    assert found["action"] == "dropped_old"
    kind = ("--max-age-min", "100", "--min-conf", "0.5", "--allowlist", "BTCUSDT")
    assert show(place, entry, *kind)[0]["action"] == "drained_ok"
    text = place.says("show", entry, "--allowlist", "ETHUSDT").out
    assert "FAILS: symbol not in the allowlist" in text
    assert "FAILS: confidence 0.5 < 0.6" in text


def test_whether_it_was_audited(place: Place) -> None:
    """The audit's record, if there is one; the decision is as of now."""
    now = place.now_ms()
    ids = [f"{now - 5000 + i}-0" for i in range(3)]
    place.fill([(i, intent()) for i in ids])
    done = place.live("--max-events", "2")
    place.alter("XDEL", ids[0])
    found = show(place, *ids)
    assert (found[0]["fields"], found[0]["action"]) == (None, "dropped_missing")
    records = [[one["run_id"] for one in entry["audit"]["records"]] for entry in found]
    assert records == [[done["run_id"]], [done["run_id"]], []]
    shown = place.says("show", ids[1]).out
    assert "as of 20" in shown
    assert f"run {done['run_id']}: passed every filter" in shown


@BUNDLED
def test_what_is_nowhere_is_refused(place: Place) -> None:
    """An entry that nobody knows is refused (4), what is no id is bad usage (2).

    An id with leading zeros is the same one.
    """
    place.fill([("5-1", intent())])
    assert [entry["id"] for entry in show(place, "05-001")] == ["5-1"]
    for wrong, code, words in (("5-2", 4, "not in the stream"), ("5", 2, "no entry id"),
                               ("\x1b[2J-1", 2, "no entry id"),
                               (f"{2**64}-0", 2, "no entry id")):  # fmt: skip
        result = place.says("show", "5-1", wrong)
        assert (result.rc, result.out) == (code, "")
        assert words in one_line_error(result.err)
        assert "\x1b" not in result.err


names = st.sampled_from(["symbol", "side", "action", "confidence", "source", "timestamp", "x"])
values = st.sampled_from(["BTCUSDT", "ETHUSDT", 0.5, "0.7", 1.5, None, [], 1766602826755, "BUY"])
objects = st.dictionaries(names, values, max_size=4)


@given(st.lists(st.tuples(names, values.map(str))), objects, objects)
def test_what_counts_is_what_was_decoded(
    flat: list[tuple[str, str]], payload: dict[str, Any], data: dict[str, Any]
) -> None:
    """A valid value has just one place that counts, one that is not valid has none."""
    body = [part.encode() for pair in flat for part in pair]
    body += [b"payload", json.dumps(payload).encode(), b"data", json.dumps(data).encode()]
    entry = [b"1766602826755-0", body]
    events = Decoder().decode([entry])
    counting = [p["value"] for p in places(Fields(), entry, events) if p["counts"]]
    expected = {
        "confidence": events.confidence[0] >= 0,
        "timestamp": events.time_source[0] == 0,
        **{name: events.word(name) is not None for name in ("symbol", "side", "source")},
    }
    assert sorted(counting) == sorted(name for name, valid in expected.items() if valid)
