"""drainkit diff: two runs side by side."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from backlogs import ME, seed
from books import at
from conftest import Cli, one_line_error
from plan_samples import plan_of, save_plan, table_of
from pyarrow import parquet
from servers import Server

from drainkit.core.policy import Policy
from drainkit.draining.comparison import as_text, compare, read_side
from drainkit.errors import RefusedError


def plan_file(folder: Path, name: str, table: pa.Table | None = None, **other: Any) -> Path:
    table = table_of() if table is None else table
    save_plan(folder / name, plan_of(table, **other), [table])
    return folder / name


def test_settings_and_fates_that_differ_are_counted(valkey: Server, cli: Cli, stream: str) -> None:
    """Two dry runs with other limits: just these settings differ, and the events are joined by
    id, not by place."""
    ids = seed(valkey, stream)
    fixed = ("--as-of", "2030-01-01T00:00:00Z", "--max-age-min", "100000000", "--max-events")
    where = at(valkey, stream)
    for name, options in (("a.json", ("150", "--min-conf", "0.2", "--allowlist", "BTCUSDT")),
                          ("b.json", ("all", "--min-conf", "0.8", "--allowlist",
                                      "BTCUSDT,ETHUSDT", "--until", ids[-2]))):  # fmt: skip
        assert cli("drain", "--plan", name, *where, *fixed, *options).rc == 0
    result = cli.done("diff", "--json", "a.json", "b.json")
    found = result.json()
    tables = [parquet.read_table(cli.cwd / f"{n}.decisions.parquet").to_pylist() for n in "ab"]
    a, b = ({row["id"]: row["action"] for row in table} for table in tables)
    changed = [entry for entry in a if a[entry] != b[entry]]
    assert changed
    assert sum(row["events"] for row in found["other_fate"]) == len(changed)
    assert {(row["a"], row["b"]) for row in found["other_fate"]} == {(a[e], b[e]) for e in changed}
    assert found["same_fate"] == 150 - len(changed)
    assert found["only_in_a"]["events"] == 0
    assert (found["only_in_b"]["events"], found["only_in_b"]["first_id"]) == (49, ids[250])
    names = {row["name"] for row in found["settings"]}
    assert names == {"boundary_id", "max_events", "until", "policy.min_conf", "policy.allowlist"}
    text = cli("diff", "a.json", "b.json").out
    assert "policy.min_conf: 0.2 | 0.8" in text
    assert "policy.allowlist: B has ETHUSDT besides, and not none" in text
    assert "as a dry run planned it" in text


def test_values_that_differ_never_look_equal(tmp_path: Path) -> None:
    """Two long texts that differ at their ends, and two lists in another order, show where."""
    side = read_side(plan_file(tmp_path, "a.json"))
    a = replace(side, settings={"stream": "s" * 150 + ".live", "fields.symbol": ["pair", "symbol"]})
    b = replace(side, settings={"stream": "s" * 150 + ".test", "fields.symbol": ["symbol", "pair"]})
    text = as_text(compare(a, b))
    assert f"stream: ...{'s' * 39}.live | ...{'s' * 39}.test" in text
    assert "fields.symbol: pair, symbol | symbol, pair" in text


def test_of_a_live_run_the_outcome_counts(tmp_path: Path) -> None:
    """A live folder is read from its audit, not from the plan that lies in it; what the audit
    lacks is in one only."""
    planned = plan_file(tmp_path, "plan.json")
    live = tmp_path / "live"
    live.mkdir()
    plan_file(live, "plan.json")
    (live / "run.json").write_text(json.dumps({"mode": "live", "run_id": "the live one"}))
    rows = table_of().to_pylist()[:-1]
    rows[0]["action"] = "dropped_old"
    table = pa.table({"original_id": [r["id"] for r in rows],
                      "action": [r["action"] for r in rows]})  # fmt: skip
    parquet.write_table(table, live / "audit.parquet")
    found = compare(read_side(planned), read_side(live))
    assert (found["a"]["source"], found["b"]["source"]) == ("planned", "outcome")
    assert found["b"]["run_id"] == "the live one"
    before = table_of().to_pylist()[0]["action"]
    assert found["other_fate"] == [
        {"a": before, "b": "dropped_old", "events": 1, "first_id": rows[0]["id"]}
    ]
    assert found["only_in_a"]["events"] == 1
    (live / "audit.parquet").unlink()
    with pytest.raises(RefusedError, match="cannot be read"):
        read_side(live)


def test_what_is_no_run_is_named(cli: Cli) -> None:
    """A missing or edited plan ends in one line, with its code; a plan is like itself: no setting
    differs, and every event met the same fate."""
    good, edited = (plan_file(cli.cwd, name) for name in ("good.json", "edited.json"))
    edited.write_text(edited.read_text().replace('"throttle": 5.0', '"throttle": 6.0'))
    for path, code in ((cli.cwd / "nothing.json", 2), (edited, 4)):
        result = cli("diff", good, path)
        assert (result.rc, result.out) == (code, "")
        one_line_error(result.err)
    found = cli.done("diff", good, good, "--json").json()
    assert found["settings"] == found["other_fate"] == []
    assert (found["in_both"], found["same_fate"]) == (5, 5)
    nothing = {"events": 0, "by_action": {}, "first_id": None}
    assert found["only_in_a"] == found["only_in_b"] == nothing


def test_hostile_names_are_shown_inert(tmp_path: Path) -> None:
    """Symbols and consumers of a plan cannot write to the terminal."""
    a = plan_file(tmp_path, "a.json", consumer_name=ME, from_consumer=["x\x1b[31m", "y"])
    policy = Policy(30.0, frozenset({"<b>"}), 0.6).as_dict()
    b = plan_file(tmp_path, "b.json", consumer_name="\u202eevil\n", policy=policy)
    text = as_text(compare(read_side(a), read_side(b)))
    assert text.replace("\n", "").isprintable()
    assert "\\u202eevil\\n" in text
