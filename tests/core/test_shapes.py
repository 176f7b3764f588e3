"""Events that cannot be read: why, which fields there are, and a [fields] table that would do."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest

from drainkit.core.events import Decoder
from drainkit.core.fields import examine
from drainkit.settings import Fields, build

NOW_MS = 1_766_602_826_755


def entries(*bodies: dict[str, Any], n: int = 40) -> list[list[Any]]:
    """Forty entries that take turns in their bodies."""
    found = []
    for i in range(n):
        parts = [str(part).encode() for pair in bodies[i % len(bodies)].items() for part in pair]
        found.append([f"{NOW_MS + i}-0".encode(), parts])
    return found


FLAT = {"ticker": "BTCUSDT", "score": "0.81", "ts": NOW_MS / 1000, "way": "BUY", "qty": 3}
NESTED = {
    "msg": json.dumps({"sig": {"pair": "ETH/USDT", "prob": 0.3, "emittedAt": NOW_MS}, "n": 1})
}
UNHINTED = {"a": "SELL", "b": "SOLUSDT", "c": "0.7", "d": "momentum", "e": "1"}


def signal(i: int, **changes: Any) -> dict[str, Any]:
    """A signal with its own confidence, and those of the models that it was made of."""
    models = {name: {"confidence": round(0.5 + i % 7 / 20, 2), "score": 0.4, "symbol": "BTCUSDT"}
              for name in ("xgboost", "lgbm")}  # fmt: skip
    return {
        "model": {"confidence_threshold": 0.6, "trained_at": 1_600_000_000, "models": models},
        "symbol": "BTCUSDT", "side": "BUY", "confidence": round(0.6 + i % 30 / 100, 2), **changes,
    }  # fmt: skip


FLAT_SIGNAL = {"symbol": "ETHUSDT", "confidence": "0.7", "timestamp": NOW_MS}
SHAPES: dict[str, tuple[Any, dict[str, Any], int]] = {
    # body of the i-th entry, [fields], how many of 200 can be read with it
    "nested": (lambda i: {"payload": json.dumps({"signal": signal(i)})},
               {"symbol": "payload.signal.symbol", "confidence": "payload.signal.confidence",
                "side": "payload.signal.side"}, 200),
    "flat": (lambda i: {"ticker": "BTCUSDT", "conf": "0.7", "model": json.dumps(signal(i))},
             {"symbol": "ticker", "confidence": "conf"}, 200),
    "data": (lambda i: {"data": json.dumps(signal(i))}, {}, 200),
    "half": (lambda i: FLAT_SIGNAL if i % 2 else {"payload": json.dumps({"signal": signal(i)})},
             {"symbol": "payload.signal.symbol", "confidence": "payload.signal.confidence",
              "side": "payload.signal.side"}, 200),
    "two": (lambda i: {"sym": "A", "conf": 0.7} if i % 2 else {"msg": json.dumps(signal(i))},
            {"symbol": ["sym", "msg.symbol"], "confidence": ["conf", "msg.confidence"],
             "side": "msg.side"}, 200),
    "lower": (lambda i: FLAT_SIGNAL | {"symbol": "ethusdt"}, {}, 200),
    "percent": (lambda i: {"payload": json.dumps({"signal": signal(i, confidence=40 + i % 55)})},
                {"symbol": "payload.signal.symbol", "confidence": "payload.signal.confidence",
                 "side": "payload.signal.side", "confidence_percent": True}, 200),
    "sign": (lambda i: FLAT_SIGNAL | {"confidence": f"{40 + i % 55}%"},
             {"confidence_percent": True}, 200),
    "scales": (lambda i: FLAT_SIGNAL | ({"confidence": "78%"} if i % 2 else {}), {}, 100),
    "lacking": (lambda i: {"payload": json.dumps({"signal": {
                    k: v for k, v in signal(i).items() if i % 2 or k != "confidence"}})},
                {"symbol": "payload.signal.symbol", "confidence": "payload.signal.confidence",
                 "side": "payload.signal.side"}, 100),
    "parts alone": (lambda i: {"payload": json.dumps({"signal": signal(i, confidence=None)})},
                    {}, 0),
    "other names": (lambda _: FLAT, {"symbol": "ticker", "confidence": "score"}, 200),
    "deep": (lambda _: NESTED, {"symbol": "msg.sig.pair", "confidence": "msg.sig.prob",
                                "timestamp": "msg.sig.emittedAt"}, 200),
    "no names": (lambda _: UNHINTED, {}, 0),  # nothing is guessed from values
    "one": (lambda _: {"symbol": "BTCUSDT", "score": "0.5"}, {"confidence": "score"}, 200),
    "no share": (lambda _: {"symbol": "BTCUSDT", "score": "187"}, {}, 0),
    "half a pair": (lambda _: {"ticker": "BTCUSDT", "note": "hello"}, {}, 0),  # mends nothing
    "odd": (lambda _: {"the \U0001f4a3 ticker": "BTCUSDT", "score": "0.5"},
            {"symbol": "the \U0001f4a3 ticker", "confidence": "score"}, 200),
    "not TOML": (lambda _: {'a"ticker': "BTCUSDT", "score\\": "0.5"}, {}, 0),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_a_signals_own_fields_are_proposed(shape: str) -> None:
    """Of signals with sub-models, flat, mixed, in small letters and percentages as many can be read
    with the lines as can at all, no line is for nothing, and no sub-model's value is chosen; the
    lines are TOML to paste, with which the decoder reads the events."""
    body, table, readable = SHAPES[shape]
    sample = entries(*map(body, range(200)), n=200)
    found = examine(sample, Fields())
    lists = {value: [one] if isinstance(one, str) else one for value, one in table.items()}
    assert tomllib.loads(found["snippet"]).get("fields", {}) == lists
    assert (found["readable"], examine([], Fields())["snippet"]) == (readable, "")
    invalid = Decoder(build({"fields": table}).fields).decode(sample).invalid
    assert int((invalid == 0).sum()) == readable
    chosen = [row["path"] for rows in found["fields"].values() for row in rows if row["chosen"]]
    assert not [path for path in chosen if "model" in path]


def test_fields_and_reasons_are_told_safely() -> None:
    """Names and values from the stream are one safe line each, and as many as fit a screen."""
    odd = {"\x1b[2J": "a\nb", "x" * 500: "y" * 500, "payload": "{" * 9, "[red]": "\u202e"}
    odd |= {f"{'x' * 200}.{i}.symbol": "a\nb" for i in range(100)}
    found = examine(entries(odd), Fields())
    said = [
        row[key] for rows in found["fields"].values() for row in rows for key in ("path", "example")
    ]
    assert 0 < len(said) <= 120
    assert found["reasons"] == {"payload is not JSON in UTF-8": 40}
    assert all(text.isprintable() and len(text) <= 100 for text in said)


def test_the_paths_that_fit_are_shown_and_those_of_the_signal_chosen() -> None:
    """Paths that fit a value by their names, in how many entries, with an example; no line is for
    what adds nothing."""
    body = {"payload": json.dumps({"signal": signal(0, emittedAt=NOW_MS), "ts": NOW_MS})}
    found = examine(entries(body, UNHINTED), Fields())
    every = [row for rows in found["fields"].values() for row in rows]
    rows = {row["path"].removeprefix("payload."): row for row in every if row["entries"] == 20}
    models = [f"signal.model.models.{model}.{name}" for model in ("xgboost", "lgbm")
              for name in ("confidence", "score", "symbol")]  # fmt: skip
    assert {path: row["chosen"] for path, row in rows.items()} == {
        **dict.fromkeys(["signal.symbol", "signal.confidence", "signal.side", "ts"], True),
        **dict.fromkeys(["signal.emittedAt", "signal.model.trained_at", *models], False),
    }
    assert rows["signal.symbol"]["example"] == "BTCUSDT"
