"""Single entries, odd and hostile: times, bounds, and that none passes or harms another."""

from __future__ import annotations

import json
import time
from itertools import product
from typing import Any

import pytest
import reference
from event_samples import GOOD, HOSTILE_BY_ACTION, ID, ID_MS, entry, flat, nested, one, why

from drainkit.core.events import MAX_LAYOUTS, MAX_VOCABULARY, MAX_VOCABULARY_CHARACTERS, Decoder
from drainkit.core.frame import decide_frame, load_frame
from drainkit.core.policy import ACTIONS, FAILED_NAMES, Policy, decide, records

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
    neighbours as if it were not; all at once, and as a reordered DataFrame, the same."""
    before, after = [b"%d-0" % ID_MS, flat(symbol="ETHUSDT")], [b"%d-2" % ID_MS, nested()]
    neighbours = [action_of([before])[1][0], action_of([after])[1][0]]
    assert len(CASES) >= 60
    assert set(HOSTILE_BY_ACTION) == set(ACTIONS)
    for fields, expected in CASES:
        actions, made = action_of([before, [ID, fields], after])
        assert actions == ["drained_ok", expected, "drained_ok"], str(fields)[:200]
        assert [made[0], made[2]] == neighbours
        # -0.0 is no number with a sign, which a spreadsheet may act on
        assert all(part.isprintable() and len(part) <= 64 and part[0] != "-" for part in made[1])
        checked = reference.event([ID, fields])
        assert checked.valid == one([ID, fields]).valid, str(fields)[:200]
        assert checked.valid or expected != "drained_ok"
    entries = [[b"%d-%d" % (ID_MS, i), fields] for i, (fields, _) in enumerate(CASES)]
    expected_all = [action for _, action in CASES]
    assert action_of(entries)[0] == expected_all
    frame = load_frame([entries], Decoder())[::-1]
    decided = decide_frame(frame, POLICY, NOW_US)[::-1]
    direct = decide(Decoder().decode(entries), POLICY, NOW_US)
    assert decided["action"].tolist() == expected_all
    assert decided["failed"].tolist() == [FAILED_NAMES[bits] for bits in direct.failed]
    assert decided["age_sec"].tolist() == (direct.age_us / 1e6).tolist()
    assert decided.index.equals(frame.index[::-1])


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


def test_memory_of_a_decoder_is_bounded() -> None:
    """New symbols, texts and field names without end do not stay, and earlier rows stay right. An
    entry of 100,000 fields is decoded within a second, and its layout is not kept."""
    decoder, at_once = Decoder(), 20
    many, started = entry({f"f{i}": "" for i in range(100_000)} | GOOD), time.process_time()
    assert decoder.decode([many]).invalid[0] == 0
    assert (time.process_time() - started < 1, len(decoder._layouts)) == (True, 0)
    kept = decoder.decode([entry(GOOD)])
    for first in range(0, 4000, at_once):
        odd = [entry({**GOOD, f"f{i}": "", "symbol": f"S{i}", "source": f"s{i}" * 1000,
                      "side": "\x00" * i}) for i in range(first, first + at_once)]  # fmt: skip
        assert decoder.decode(odd).word("symbol", 3) == f"S{first + 3}"
        assert len(decoder._words[0]) <= MAX_VOCABULARY + 3 * at_once
        assert decoder._words[2].characters <= MAX_VOCABULARY_CHARACTERS + 10_000 * at_once
        assert len(decoder._layouts) <= MAX_LAYOUTS
    assert kept.word("symbol") == "BTCUSDT"
    before = len(decoder._words[0])
    decoder.decode([entry({**GOOD, "symbol": "BAD " + "x" * i}) for i in range(100)])
    assert len(decoder._words[0]) <= before


def test_depth_is_each_events_own() -> None:
    """Beside payloads without a bracket, JSON nested deeper than 64 is as invalid as alone."""
    others, numbers, depths = ("null", "1", '"x"', "", "[]", "{}"), (1, 20, 40), (64, 65, 95)
    for other, n, depth in product(others, numbers, depths):
        brackets = "[" * (depth - 1) + "]" * (depth - 1)
        deep = entry({"payload": f'{json.dumps(GOOD)[:-1]}, "z": {brackets}}}'})
        batch = [deep, *[entry({"payload": other})] * n]
        for order in (batch, batch[::-1]):
            found = Decoder().decode(order)
            assert (found.invalid[order.index(deep)] == 0) == (depth <= 64), (other, n, depth)
