"""drainkit show and Analysis.entry: one entry, whole and inert."""

from __future__ import annotations

import json
from typing import Any

import pytest
from backlogs import GROUP, deliver, fill, now_ms
from books import ask, at, everything, live, make_user
from conftest import Cli, intent, one_line_error
from hypothesis import given
from hypothesis import strategies as st
from servers import Server

from drainkit.core.events import Decoder
from drainkit.core.fields import places
from drainkit.operations.events import rows_of
from drainkit.settings import Fields
from drainkit.views.analyse_backlog import Analysis

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e=cmd|'/c calc'!A0"


def show(cli: Cli, server: Server, stream: str, *options: str) -> Any:
    result = cli.done("show", "--json", *at(server, stream), *options)
    return result.json()


def where(entry: dict[str, Any]) -> dict[str, str]:
    return {p["value"]: p["where"] for p in entry["places"] if p["counts"]}


def test_each_value_says_where_it_was_found(server: Server, cli: Cli, stream: str) -> None:
    """Flat fields go before payload, payload before data, and mapped paths are followed."""
    now = now_ms(server)
    payload = {"symbol": "ETHUSDT", "confidence": 0.7, "timestamp": now - 5000, "source": "ai"}
    mapped = {"signal": {"ticker": "SOLUSDT", "score": "0.9"}}
    ids = [f"{now}-{i}" for i in range(3)]
    entries: list[tuple[Any, Any]] = [
        (ids[0], {"symbol": "BTCUSDT", "payload": json.dumps(payload), "data": '{"side": "BUY"}'}),
        (ids[1], {"envelope": json.dumps(mapped)}),
        (ids[2], {"symbol": "B A D", "confidence": "75%"}),
    ]
    fill(server, stream, entries, group=GROUP)
    (cli.cwd / "drainkit.toml").write_text(
        '[fields]\nsymbol = ["symbol", "envelope.signal.ticker"]\n'
        'confidence = ["confidence", "envelope.signal.score"]\n'
    )
    found = show(cli, server, stream, *ids)["entries"]
    assert [entry["id"] for entry in found] == ids
    assert where(found[0]) == {"symbol": "field symbol", "confidence": "payload.confidence",
                               "side": "data.side", "source": "payload.source",
                               "timestamp": "payload.timestamp"}  # fmt: skip
    assert found[0]["values"] == {
        "symbol": "BTCUSDT", "side": "BUY", "source": "ai", "confidence": 0.7,
    }  # fmt: skip
    assert found[0]["time_source"] == "timestamp"
    assert where(found[1]) == {"symbol": "envelope.signal.ticker",
                               "confidence": "envelope.signal.score"}  # fmt: skip
    assert (found[1]["time_source"], found[1]["action"]) == ("entry_id", "drained_ok")
    assert where(found[2]) == {}
    assert [p["raw"] for p in found[2]["places"]] == ["B A D", "75%"]
    assert (found[2]["action"], found[2]["reason"]) == ("dropped_invalid", "symbol not valid")
    rows = {row[:2]: row[2] for row in rows_of(found[2])}
    assert (rows["value", "symbol"], rows["value", "side"]) == ("not valid", "not found")


def test_every_filter_has_a_verdict(valkey: Server, cli: Cli, stream: str) -> None:
    """Each filter's own verdict by the present options, also of those after the first to fail."""
    entry = f"{now_ms(valkey) - 3_600_000}-0"
    fill(valkey, stream, [(entry, intent(confidence=0.5))], group=GROUP)
    (found,) = show(cli, valkey, stream, entry, "--allowlist", "ETHUSDT")["entries"]
    verdicts = {f["filter"]: f["passes"] for f in found["filters"]}
    assert verdicts == {"dropped_missing": True, "dropped_old": False, "dropped_invalid": True,
                        "dropped_not_allowlisted": False, "dropped_low_conf": False}  # fmt: skip
    assert found["action"] == "dropped_old"
    kind = ("--max-age-min", "100", "--min-conf", "0.5", "--allowlist", "BTCUSDT")
    assert show(cli, valkey, stream, entry, *kind)["entries"][0]["action"] == "drained_ok"
    text = cli("show", entry, *at(valkey, stream), "--allowlist", "ETHUSDT").out
    assert "FAILS: BTCUSDT, 1 are allowed" in text
    assert "FAILS: confidence 0.5, minimum 0.6" in text


def test_whose_it_is_and_whether_it_was_audited(server: Server, cli: Cli, stream: str) -> None:
    """Pending for whom, in which group delivered, and the audit's record; nothing is written, and
    the analyst's user may ask."""
    now = now_ms(server)
    ids = [f"{now - 5000 + i}-0" for i in range(4)]
    fill(server, stream, [(i, intent()) for i in ids], group=GROUP)
    ask(server, "XGROUP", "CREATE", stream, "other", "0")
    deliver(server, stream, "dead", 1)
    done = cli(*live(server, stream, "--max-events", "1", "--allow-active-consumers"))
    ask(server, "XDEL", stream, ids[0])
    url = make_user(cli, server, stream, "analyst")
    before = everything(server)
    found = cli("show", "--json", "--redis-url", url, "--stream", stream, *ids).json()["entries"]
    assert everything(server) == before
    groups = [{g["name"]: g for g in entry["groups"]} for entry in found]
    assert groups[0][GROUP]["pending"]["consumer"] == "dead"
    assert [g[GROUP]["delivered"] for g in groups] == [True, True, False, False]
    assert not any(g["other"]["delivered"] or g["other"]["pending"] for g in groups)
    assert (found[0]["fields"], found[0]["action"]) == (None, "dropped_missing")
    records = [entry["audit"]["records"] for entry in found]
    assert [len(r) for r in records] == [0, 1, 0, 0]
    assert records[1][0]["run_id"] == done.json()["run_id"]


def test_what_is_nowhere_is_refused(valkey: Server, cli: Cli, stream: str) -> None:
    """An entry that nobody knows is refused (4), what is no id is bad usage (2)."""
    fill(valkey, stream, [("5-1", intent())], group=GROUP)
    for wrong, code, words in (("5-2", 4, "not in the stream"), ("5", 2, "no entry id"),
                               ("\x1b[2J-1", 2, "no entry id"),
                               (f"{2**64}-0", 2, "no entry id")):  # fmt: skip
        result = cli("show", *at(valkey, stream), "5-1", wrong)
        assert result.rc == code
        assert words in one_line_error(result.err)
        assert "\x1b" not in result.err
        assert result.out == ""


def test_hostile_values_stay_inert(
    valkey: Server, cli: Cli, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control, bidi and markup characters are shown as what they are, in text, JSON and HTML."""
    entry = f"{now_ms(valkey)}-0"
    body: list[Any] = [HOSTILE, HOSTILE, b"\xff\x00", b"\xfe", "symbol", HOSTILE,
                       "payload", json.dumps({"side": HOSTILE, "confidence": 10**400})]  # fmt: skip
    fill(valkey, stream, [(entry, body)], group=GROUP)
    ask(valkey, "XGROUP", "CREATE", stream, f"g{HOSTILE}", "0")
    deliver(valkey, stream, f"c{HOSTILE}", 1, group=f"g{HOSTILE}")
    shown = cli("show", entry, *at(valkey, stream)).out
    assert shown.replace("\n", "").isprintable()
    assert "\\x1b[31m\\u202e=cmd" in shown
    assert cli("show", "--json", entry, *at(valkey, stream)).out.rstrip("\n").isascii()
    monkeypatch.setenv("DRAINKIT_REDIS_URL", valkey.url)
    html = Analysis.open({"stream": stream}).entry(entry).to_html()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "\x1b" not in html


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
    counting = [p.value for p in places(Fields(), entry, events) if p.counts]
    expected = {
        "symbol": events.symbol_code[0] >= 0,
        "side": events.side_code[0] >= 0,
        "source": events.source_code[0] >= 0,
        "confidence": events.confidence[0] >= 0,
        "timestamp": events.time_source[0] == 0,
    }
    assert sorted(counting) == sorted(name for name, valid in expected.items() if valid)
