"""The plan: no edit survives its digest, and its decisions say the same however they are stored."""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from plan_samples import POLICY, plan_of, table_of

from drainkit.core import plan as plans
from drainkit.core.plan import Plan
from drainkit.core.policy import Policy
from drainkit.errors import RefusedError, UsageError


def text_of(plan: Plan, **other: Any) -> str:
    return json.dumps({**plan.to_json(), **other})


# ---------------------------------------------------------------- the plan's digest


def test_anyone_can_compute_the_digest() -> None:
    """SHA-256 of the JSON without `digest`, keys sorted, no spaces; what was written is read again,
    whatever its order of keys, spaces and escapes."""
    plan = plan_of(stream="größe")
    content = {k: v for k, v in plan.to_json().items() if k != "digest"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert plan.digest == "sha256:" + hashlib.sha256(text.encode("utf-8")).hexdigest()
    data = dict(reversed(plan.to_json().items()))
    for written in (
        json.dumps(data, indent=4),
        json.dumps(data, ensure_ascii=False),
        text_of(plan),
    ):
        assert plans.from_json(written, "plan.json") == plan


def changed(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, str) or value is None:
        return f"{value or ''}1"
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return [*value, "1"]
    key = max(value)
    return {**value, key: changed(value[key])}


def refused(data: dict[str, Any], point: str) -> None:
    with pytest.raises(RefusedError, match=point):
        plans.from_json(json.dumps(data), "plan.json")


FIELDS = [f.name for f in dataclasses.fields(Plan) if f.name != "digest"]
WRONG: list[tuple[str, Any]] = [
    ("stream", 7), ("throttle", "5"), ("throttle", True), ("max_events", 500.5),
    ("max_events", "all"), ("position", None), ("from_consumer", "dead_1"),
    ("counts", ["drained_ok"]), ("counts", {"drained_ok": "1"}), ("policy", None),
    ("fields", {"symbol": "symbol"}), ("total_read", 5.5), ("version", "1"), ("version", True),
    ("scope", {}),
]  # fmt: skip
POLICIES: list[tuple[dict[str, Any], str]] = [
    ({"max_age_min": "30"}, "max_age_min"), ({"min_conf": ...}, "policy"), ({"x": 1}, "policy"),
    *(({"allowlist": odd}, "allowlist") for odd in (["B", "A"], ["A", "A"], "A", [1])),
]  # fmt: skip


def test_any_edit_of_a_field_is_refused() -> None:
    """A changed field, none left out, no longer fits the digest. Also where that was made anew a
    key that is missing, unknown, there twice (a person reads the first, a parser the last) or of a
    wrong type is named; the policy has its three values and a sorted allowlist."""
    plan = plan_of()
    data = plan.to_json()
    for name in FIELDS:
        edit = {**data, name: changed(data[name])}
        assert plans.digest_of(edit) != plan.digest
        refused(edit, "the plan")
        refused({key: value for key, value in data.items() if key != name}, name)
    for name, value in WRONG:
        refused(plans.seal(replace(plan, **{name: value})).to_json(), name)
    refused({**data, "digest": None}, "digest")
    refused({**data, "force": True}, "force")
    for change, point in POLICIES:
        policy = {"max_age_min": 30.0, "allowlist": None, "min_conf": 0.6, **change}
        policy = {key: value for key, value in policy.items() if value is not ...}
        refused(plan_of(policy=policy).to_json(), point)
    for double in ('"scope": "history", ', '"policy": {"min_conf": 0.9, "min_conf": 0.6}, '):
        with pytest.raises(RefusedError, match="twice"):
            plans.from_json("{" + double + json.dumps(data)[1:], "plan.json")


def test_what_is_no_plan_or_of_another_version_says_so() -> None:
    """Another file than a plan, or one with a number that JSON has not, is a mistake of the call
    (2), not an edited plan (4); text that no UTF-8 can hold, and any other version, is refused."""
    text = text_of(plan_of())
    odd = [text.replace("5.0", number) for number in ("NaN", "Infinity", "-Infinity")]
    for no_plan in ("", "{", "[]", "7", "null", '"plan"', "{}", '{"run_id": "x"}', "[" * 100_000,
                  "\ufeff{}", *odd):  # fmt: skip
        with pytest.raises(UsageError, match=r"plan\.json"):
            plans.from_json(no_plan, "plan.json")
    with pytest.raises(RefusedError):
        plans.from_json(text.replace('"group"', '"\\ud800"'), "plan.json")
    for version in (2, 4):
        other = {"version": version, "something_new": 1, "digest": "sha256:0"}
        refused(other, f"version {version}, not 3; make a new one")


# ---------------------------------------------------------------- comparison


def differences(plan: Plan, **other: Any) -> list[str]:
    asked: dict[str, Any] = {
        "stream": "quantum:stream:trade.intent", "consumer_group": "group",
        "scope": "undelivered", "policy": POLICY,
    }  # fmt: skip
    return plans.differences(plan, **{**asked, **other})


MANY = frozenset(f"S{i:04}" for i in range(1000))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"stream": "s2"}, ["stream", "trade.intent", "s2"]),
        ({"consumer_group": "g2"}, ["consumer group", "'group'", "g2"]),
        ({"scope": "history"}, ["scope", "undelivered", "history"]),
        ({"policy": Policy(31.0, POLICY.allowlist, 0.6)}, ["max_age_min", "30.0", "31.0"]),
        ({"policy": Policy(30.0, POLICY.allowlist, 0.7)}, ["min_conf", "0.6", "0.7"]),
        ({"policy": Policy(30.0, None, 0.6)}, ["allowlist", "has BTCUSDT, ETHUSDT", "any symbol"]),
        ({"policy": Policy(30.0, frozenset({"BTCUSDT", "SOLUSDT"}), 0.6)},
         ["allowlist", "has ETHUSDT besides", "for SOLUSDT besides"]),
        ({"policy": Policy(30.0, MANY, 0.6)}, ["995 more", "has BTCUSDT, ETHUSDT besides"]),
        ({"stream": "\x1b[2J\u202e"}, ["stream"]),
    ],
)  # fmt: skip
def test_each_difference_names_both_values(other: dict[str, Any], words: list[str]) -> None:
    """Just the point that differs is named, with what is planned and what is asked for, short and
    printable; all at once, so that nobody has to run it five times; as planned there is nothing."""
    (line,) = differences(plan_of(), **other)
    assert [word for word in words if word not in line] == []
    assert line.isprintable()
    assert len(line) < 300
    every = {"stream": "s", "consumer_group": "g", "scope": "pending"}
    assert len(differences(plan_of(), **every, policy=Policy(1.0, None, 0.1))) == 6
    assert differences(plan_of()) == []


# ---------------------------------------------------------------- decisions


def test_the_decisions_say_what_was_decided_and_why() -> None:
    """One row for each event, unknown values null, and the filters failed besides the first."""
    rows = table_of().to_pylist()
    assert tuple(rows[0]) == plans.COLUMNS
    assert [row["action"] for row in rows] == [
        "drained_ok", "dropped_old", "dropped_invalid", "dropped_missing", "dropped_invalid",
    ]  # fmt: skip
    moment = dt.datetime.fromtimestamp(1766605000, tz=dt.UTC)
    assert [*rows[0].values()][1:7] == [moment, 798.664912, "BTCUSDT", "BUY", 0.75, None]
    assert rows[1]["failed"] == "dropped_not_allowlisted,dropped_low_conf"
    assert (rows[3]["symbol"], rows[3]["payload_sha256"]) == (None, None)
    assert (rows[4]["event_time"], rows[4]["age_sec"]) == (None, None)
    assert [bool(row["invalid"]) for row in rows] == [False, False, True, False, True]
    assert plans.decisions_schema() == table_of().schema == table_of([]).schema


SAID: dict[str, Any] = {
    "total_read": 1, "counts": {"drained_ok": 0}, "unreadable": {}, "first_id": "6-0",
    "last_id": "9-0", "boundary_id": "1766605000002-9", "max_events": 4,
}  # fmt: skip


def test_a_plan_is_held_against_its_decisions() -> None:
    """What it says of them and is otherwise is named, whatever its digest, in however many parts
    they come."""
    for part in (1, 5):
        tally = plans.Tally()
        for start in range(0, 5, part):
            tally.add(table_of().slice(start, part))
        tally.check(plan_of())
        for point, other in SAID.items():
            with pytest.raises(RefusedError, match=rf"own decisions \({point}\)"):
                tally.check(plan_of(**{point: other}))


def test_a_digest_stands_for_one_payload() -> None:
    """It is the SHA-256 of the lengths, a colon and all parts, so that each byte and each boundary
    counts; of a body that is gone there is none."""
    found = plans.payload_hashes([(b"1-0", [b"a", b"12"]), (b"1-1", []), (b"1-2", None)])
    assert found.to_pylist() == [*(hashlib.sha256(b).digest() for b in (b"1,2:a12", b":")), None]
