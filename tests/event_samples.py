"""Raw entries of the tests, and what the decoder makes of one."""

from __future__ import annotations

import json
import math
from typing import Any

import reference

from drainkit.core.events import Decoder, Events
from drainkit.core.values import INVALID_REASONS, NO_TIME, TIME_SOURCES
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


def payload(content: Any, entry_id: bytes = ID, **flat: Any) -> list[Any]:
    return entry({**flat, "payload": json.dumps(content)}, entry_id)


def one(raw: list[Any], fields: Fields | None = None) -> reference.Event:
    return as_reference(Decoder(fields).decode([raw]), 0)


def why(raw: list[Any], fields: Fields | None = None) -> str:
    return INVALID_REASONS[Decoder(fields).decode([raw]).invalid[0]]


def as_reference(decoded: Events, row: int) -> reference.Event:
    """One row in the reference's terms."""
    moment = int(decoded.event_time_us[row])
    confidence = float(decoded.confidence[row])
    return reference.Event(
        time_us=None if moment == NO_TIME else moment,
        time_source=TIME_SOURCES[decoded.time_source[row]],
        symbol=decoded.word("symbol", row),
        side=decoded.word("side", row),
        source=decoded.word("source", row),
        confidence=None if math.isnan(confidence) else confidence,
        valid=not decoded.invalid[row],
        missing=bool(decoded.missing[row]),
    )


# ---------------------------------------------------------------- hostile entries


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
#: By the action that POLICY of test_hostile gives them.
HOSTILE_BY_ACTION: dict[str, list[list[bytes] | None]] = {
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
        nested(timestamp=(ID_MS + 60_000) * 1000 + 1), flat(timestamp="9999-12-31T23:59:59Z"),
        *(flat(symbol=symbol) for symbol in (
            "A" * 65, "A" * 10**6, "\x1b[31mBTC", "BTC\u200bUSDT", "\u0412TCUSDT", "\uff22TCUSDT",
            "BTCUSDT ", "BTCUSDT\n", "")),
        nested(symbol="\u202eBTCUSDT"), nested(symbol="BTC\x00USDT"), nested(symbol="\ud800"),
    ],
}  # fmt: skip
HOSTILE = [fields for cases in HOSTILE_BY_ACTION.values() for fields in cases]
