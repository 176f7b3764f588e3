"""Events that cannot be read: why, which fields there are, and a [fields] table that would do."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest

from drainkit.core.events import Decoder
from drainkit.core.shapes import found_fields, unreadable
from drainkit.settings import Fields, build

NOW_MS = 1_766_602_826_755


def entries(*bodies: dict[str, Any]) -> list[list[Any]]:
    """Forty entries that take turns in their bodies."""
    found = []
    for i in range(40):
        parts = [str(part).encode() for pair in bodies[i % len(bodies)].items() for part in pair]
        found.append([f"{NOW_MS + i}-0".encode(), parts])
    return found


FLAT = {"ticker": "BTCUSDT", "score": "0.81", "ts": NOW_MS / 1000, "dir": "BUY", "qty": 3}
NESTED = {
    "msg": json.dumps({"sig": {"pair": "ETH/USDT", "prob": 0.3, "emittedAt": NOW_MS}, "n": 1})
}
UNHINTED = {"a": "SELL", "b": "SOLUSDT", "c": "0.7", "d": "momentum", "e": "1"}


@pytest.mark.parametrize(
    ("body", "table"),
    [
        (FLAT, {"symbol": "ticker", "confidence": "score"}),
        (NESTED, {"symbol": "msg.sig.pair", "confidence": "msg.sig.prob",
                  "timestamp": "msg.sig.emittedAt"}),
        (UNHINTED, {}),  # nothing is guessed from values
        ({"symbol": "BTCUSDT", "score": "0.5"}, {"confidence": "score"}),
        ({"symbol": "BTCUSDT", "score": "87"}, {}),  # a percentage is no confidence
        ({"note": "hello"}, {}),
        ({"the \U0001f4a3 ticker": "BTCUSDT", "score": "0.5"},
         {"symbol": "the \U0001f4a3 ticker", "confidence": "score"}),
        ({'a"ticker': "BTCUSDT", "score\\": "0.5"}, {}),  # [fields] takes no such names
    ],
)  # fmt: skip
def test_the_proposal_can_be_pasted_and_read(body: dict[str, Any], table: dict[str, str]) -> None:
    """It is TOML that names just the right fields, and with it the decoder reads the events."""
    sample = entries(body)
    found = unreadable(sample, Fields())
    assert found is not None
    assert sum(found.reasons.values()) == 40
    assert tomllib.loads(found.snippet()).get("fields", {}) == table
    invalid = Decoder(build({"fields": table}).fields).decode(sample).invalid
    assert found.readable == int((invalid == 0).sum())
    assert found.readable == (40 if "confidence" in table else 0)


def test_what_can_be_read_needs_no_advice() -> None:
    """Nothing is said while most events are valid, nor of an empty stream."""
    good = {"symbol": "BTCUSDT", "confidence": "0.5"}
    assert unreadable(entries(good, good, FLAT), Fields()) is None
    assert unreadable([], Fields()) is None


def test_fields_and_reasons_are_told_safely() -> None:
    """Names and values from the stream are one safe line each, and as many as fit a screen."""
    odd = {"\x1b[2J": "a\nb", "x" * 500: "y" * 500, "payload": "{" * 9, "[red]": "\u202e"}
    found = unreadable(entries({**odd, **{f"f{i}": i for i in range(100)}}), Fields())
    assert found is not None
    assert len(found.names) <= 60
    assert found.reasons == {"payload is not JSON in UTF-8": 40}
    said = [text for name, _, example in found.names for text in (name, example)]
    assert all(text.isprintable() and len(text) <= 60 for text in said)


def test_each_path_says_what_it_can_be_read_as() -> None:
    """Fields and paths into JSON are listed as met, with entries, example and usable values."""
    found = {one.name: one for one in found_fields(entries(NESTED, UNHINTED))}
    assert [*found] == ["msg.sig.pair", "msg.sig.prob", "msg.sig.emittedAt", "msg.n", *"abcde"]
    pair, number = found["msg.sig.pair"], found["c"]
    assert (pair.entries, pair.example) == (20, "ETH/USDT")
    assert (pair.readable["symbol"], pair.readable["confidence"]) == (20, 0)
    assert (number.readable["confidence"], number.readable["timestamp"]) == (20, 0)
    assert found["msg.sig.emittedAt"].readable["timestamp"] == 20
