"""Plan and apply: a live run drains exactly its plan, or refuses and names the point; and how two
of them are compared."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from backlogs import backlog
from place import BUNDLED, Place
from plan_samples import table_sha256
from pyarrow import parquet

from drainkit import files
from drainkit.core import plan as plans
from drainkit.core.values import iso

APPLY = ("drain", "--json", "--mode", "live", "--yes", "--plan", "plan.json")


def make_plan(place: Place, *options: object) -> Path:
    made = place.dry("--throttle", "none", "--max-events", "150", "--allowlist", "BTCUSDT,ETHUSDT",
                     "--plan", "plan.json", *options)  # fmt: skip
    assert made["plan_digest"].startswith("sha256:")
    return place.cli.cwd / "plan.json"


def refused(place: Place, *options: object) -> str:
    return place.cli.fails(4, *APPLY, *place.where, *options)


@pytest.mark.parametrize("scope", ["undelivered", "pending", "history"])
def test_a_live_run_drains_its_plan(place: Place, scope: str) -> None:
    """The audit holds the plan's entries, in its order, with its actions, and nothing else; so
    with a fixed time the live run counts exactly what the dry run did. Later it is refused, with
    the position that moved."""
    ids = place.seed(400)
    place.deliver("dead", 160)
    scoped = ("--scope", scope, "--min-idle-min", "0", "--allow-active-consumers")
    before, as_of = place.everything(), time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    dry = place.dry("--throttle", "none", "--max-events", "150", "--allowlist", "BTCUSDT,ETHUSDT",
                    "--plan", "plan.json", "--as-of", as_of, "--max-age-min", "0.1",
                    *scoped)  # fmt: skip
    assert place.everything() == before
    place.fill(backlog(place.now_ms() + 50_000, 20), None)
    live = place.cli.done(*APPLY, *place.where, *scoped).json()
    decisions = parquet.read_table(place.cli.cwd / "decisions.parquet")
    assert place.recorded() == decisions["id"].to_pylist()
    assert [r["action"] for r in place.audit()] == decisions["action"].to_pylist()
    assert live["drift"] == []
    for name, value in dry.items():
        if name.startswith("dropped") or name in ("drained_ok", "total_read"):
            assert live[name] == value, name
    assert dry["dropped_old"] > 0
    if scope == "history":
        place.live(*scoped, "--max-events", "5")
        told = f"history group's position moved since the plan was made: from 0-0 to {ids[154]};"
        assert told in refused(place, *scoped)


@BUNDLED
def test_all_that_decides_is_the_plans(place: Place) -> None:
    """Another value asked for with the command is refused, with both named; the environment too,
    also by who leaves it out. What variables or drainkit.toml say of throttle, number, time and
    audit gives way: what was planned as dropped_old stays so. Plan and books name the environment,
    the plan the server."""
    ids = place.seed(160)[100:]
    toml = place.cli.cwd / "drainkit.toml"
    toml.write_text("[env.a]\n[env.b]\n")
    path = make_plan(place, "--min-conf", "0.5", "--env", "a", "--max-events", "60",
                     "--max-age-min", "0.00001")  # fmt: skip
    plan = json.loads(path.read_text())
    assert (plan["environment"], plan["server"]) == ("a", place.server.url)
    assert (plan["audit_stream"], plan["counts"]["dropped_old"]) == (place.side("audit"), 60)
    place.ask("COPY", place.stream, "another")  # the same entries under another name
    other = {"as_of": iso((place.now_ms() - 3_600_000) * 1000), "max_events": "8",
             "audit_stream": f"{place.stream}.other", "throttle": "7"}  # fmt: skip
    had = {"as_of": "none", "max_events": "60", "audit_stream": place.side("audit"),
           "throttle": "none"}  # fmt: skip
    for option, value, says in (
        ("min-conf", "0.6", "min_conf"), ("max-age-min", "31", "max_age_min"),
        ("allowlist", "BTCUSDT", "allowlist"), ("consumer-group", "other", "group"),
        ("scope", "history", "scope"), ("stream", "another", "stream"),
        ("until", ids[9], f"the plan has none, asked for {ids[9]}"),
        ("env", "b", "the plan has a, asked for b"),
        *((name.replace("_", "-"), value, f"the plan has {had[name]}, asked for {value}")
          for name, value in other.items()),
    ):  # fmt: skip
        said = refused(place, "--env", "a", f"--{option}", value)
        assert says in said
        assert option in said.replace("_", "-") or option == "consumer-group"
    assert "environment: the plan has a, asked for none" in refused(place)
    assert place.audit() == []
    assert place.ask("EXISTS", other["audit_stream"]) == 0
    toml.write_text("".join(f'{name} = "{value}"\n' for name, value in other.items()) + "[env.a]\n")
    env = {f"DRAINKIT_{name.upper()}": value for name, value in other.items()}
    live = place.cli.done(*APPLY, *place.where, "--env", "a", env=env).json()
    assert live["environment"] == "a"
    assert place.recorded() == ids
    assert {r["action"] for r in place.audit()} == {"dropped_old"}


def remade(path: Path, decisions: Any = None, **values: Any) -> None:
    """The plan with other values, and a digest that anyone can compute."""
    plan = json.loads(path.read_text()) | values
    if decisions is not None:
        files.write_table(path.with_name("decisions.parquet"), decisions)
        plan["decisions_sha256"] = table_sha256(decisions)
    path.write_text(json.dumps(plan | {"digest": plans.digest_of(plan)}))


def with_actions(table: pa.Table, actions: list[str]) -> pa.Table:
    at = table.column_names.index("action")
    column = pa.array(actions).dictionary_encode()
    return table.set_column(at, table.schema.field(at), column.cast(table.schema.field(at).type))


@BUNDLED
def test_an_edited_plan_is_refused(place: Place) -> None:
    """The digest of an edited plan.json or decisions.parquet no longer fits. A plan that says
    otherwise of its decisions than they do, its digest made anew, is refused (4) by drain, run,
    approve and diff: nobody is shown one entry and drains 150."""
    place.seed()
    path = make_plan(place)
    beside, text = path.with_name("decisions.parquet"), path.read_text()
    plan, table = json.loads(text), parquet.read_table(beside)
    path.write_text(json.dumps(plan | {"throttle": 5}))
    assert "edited" in refused(place)
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-f", place.cli.cwd / "key"], check=True)
    drain = (*APPLY, *place.where)
    every = [drain, ("run", *drain[1:]), ("diff", "plan.json", "plan.json"),
             ("approve", "plan.json", "--yes", "--sign-key", place.cli.cwd / "key")]  # fmt: skip
    path.write_text(text)
    remade(path, counts={**dict.fromkeys(plan["counts"], 0), "dropped_old": 1}, total_read=1)
    for command in every:
        assert "does not fit its own decisions" in place.cli.fails(4, *command), command
    path.write_text(text)
    files.write_table(
        beside, with_actions(table, ["dropped_old", *table["action"].to_pylist()[1:]])
    )
    assert "edited" in refused(place)
    assert place.audit() == []


@BUNDLED
def test_what_was_to_be_dropped_and_passed(place: Place) -> None:
    """A drift from dropped to drained_ok ends with 1 and is listed: the plan was of other
    decisions, or the clock went back."""
    place.seed()
    path = make_plan(place)
    table = parquet.read_table(path.with_name("decisions.parquet"))
    none = dict.fromkeys(json.loads(path.read_text())["counts"], 0)
    remade(path, with_actions(table, ["dropped_old"] * len(table)),
           counts={**none, "dropped_old": len(table)})  # fmt: skip
    run = place.cli(*APPLY, *place.where)
    assert run.rc == 1, run.out
    assert "passed that the plan had dropped" in run.err
    passed = [row for row in run.json()["drift"] if row["happened"] == "drained_ok"]
    assert passed[0]["events"] == run.json()["drained_ok"] > 0


@BUNDLED
def test_a_plan_that_died_is_finished(place: Place) -> None:
    """Killed in the middle, the same command drains the rest of the plan, two at once too: neither
    fails for what the other took, or asks for a new plan; one more drains nothing."""
    place.seed(600)
    make_plan(place, "--max-events", "400", "--throttle", "200")
    command = (*APPLY, *place.where)
    process = place.cli.start(*command)
    place.wait_for(50)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(place.audit())
    assert 0 < done < 400
    runs = [place.cli.finish(one) for one in [place.cli.start(*command) for _ in range(2)]]
    assert not any("new plan" in run.err for run in runs), runs
    assert all(run.rc == 0 or (run.rc, "at work" in run.err) == (4, True) for run in runs), runs
    assert done + sum(run.json()["total_read"] for run in runs if run.out) == 400
    assert len({*place.recorded()}) == len(place.recorded()) == 400
    assert place.waiting() == []
    assert place.cli(*command).rc == 4 or place.cli(*command).json()["total_read"] == 0


@BUNDLED
def test_a_dry_run_decides_each_at_its_turn(place: Place) -> None:
    """Event n at the moment at which the throttled live run would reach it, without sleeping."""
    place.seed(60, 10)
    place.dry("--plan", "plan.json", "--throttle", "0.5", "--max-events", "all")
    table = parquet.read_table(place.cli.cwd / "decisions.parquet")
    times_sec = table["event_time"].cast(pa.int64()).to_numpy() / 1e6
    turns_sec = times_sec + table["age_sec"].to_numpy()
    assert turns_sec - turns_sec[0] == pytest.approx([2 * n for n in range(50)], abs=0.02)


@BUNDLED
def test_settings_and_fates_that_differ_are_counted(place: Place) -> None:
    """Two dry runs with other limits: just these settings differ, and the events are joined by id,
    not by place; a plan is like itself; names cannot write to the terminal, and long ones are shown
    to their ends. A live folder is read from its audit, not from the plan that lies in it. What is
    missing ends in one line."""
    ids, long = place.seed(), "s" * 150
    fixed = ("--as-of", "2030-01-01T00:00:00Z", "--max-age-min", "100000000", "--max-events")
    for name, options in (("a.json", ("150", "--min-conf", "0.2", "--allowlist", "BTCUSDT",
                                      "--consumer-name", f"{long}.live")),
                          ("b.json", ("all", "--min-conf", "0.8", "--allowlist",
                                      "BTCUSDT,ETHUSDT", "--until", ids[-2],
                                      "--consumer-name", f"{long}.\u202eevil\n"))):  # fmt: skip
        place.dry("--plan", name, *fixed, *options)
    cwd = place.cli.cwd
    found = place.cli.done("diff", "--json", "a.json", "b.json").json()
    tables = [parquet.read_table(cwd / f"{n}.decisions.parquet").to_pylist() for n in "ab"]
    a, b = ({row["id"]: row["action"] for row in table} for table in tables)
    fates = Counter((a.get(entry), b[entry]) for entry in b if a.get(entry) != b[entry])
    assert {(row["a"], row["b"]): row["events"] for row in found["other_fate"]} == fates
    alone = [row for row in found["other_fate"] if row["a"] is None]
    assert sum(row["events"] for row in alone) == len(b) - len(a) == 49
    assert ids[250] in {row["first_id"] for row in alone}
    assert found["in_both"] - found["same_fate"] == fates.total() - 49 > 0
    names = {row["name"] for row in found["settings"]}
    assert names == {"boundary_id", "consumer_name", "max_events", "until", "policy.min_conf",
                     "policy.allowlist"}  # fmt: skip
    same = place.cli.done("diff", "a.json", "a.json", "--json").json()
    assert same["settings"] == same["other_fate"] == []
    assert same["in_both"] == same["same_fate"] == len(a)
    place.cli.fails(2, "diff", "a.json", "nothing.json")
    text = place.cli("diff", "a.json", "b.json").out
    assert "policy.min_conf: 0.2 | 0.8" in text
    assert "policy.allowlist: B has ETHUSDT besides, and not none" in text
    assert "as a dry run planned it" in text
    assert f"consumer_name: {long}.live | {long}.\\u202eevil\\n" in text
    assert text.replace("\n", "").isprintable()
    (live := cwd / "live").mkdir()
    place.dry("--plan", "live/plan.json", *fixed, "150")
    (live / "run.json").write_text(json.dumps({"mode": "live", "run_id": "the live one"}))
    first, *between, last = a.values()
    happened = {"original_id": [*a][:-1], "action": ["dropped_old", *between]}
    files.write_table(live / "audit.parquet", pa.table(happened))
    found = place.cli.done("diff", "--json", "a.json", "live").json()
    assert [found[side]["source"] for side in "ab"] == ["planned", "outcome"]
    assert found["b"]["run_id"] == "the live one"
    assert [(row["a"], row["b"], row["events"]) for row in found["other_fate"]] == [
        (first, "dropped_old", 1), (last, None, 1),
    ]  # fmt: skip
    (live / "audit.parquet").unlink()
    assert "cannot be read" in place.cli.fails(4, "diff", "a.json", "live")
