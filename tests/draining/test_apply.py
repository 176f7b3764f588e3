"""Plan and apply: a live run drains exactly its plan, or refuses and names the point."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from backlogs import GROUP, backlog, fill, now_ms, seed
from books import ask, at, audit, everything, pending, recorded, wait_for
from conftest import Cli, one_line_error
from plan_samples import table_sha256
from pyarrow import parquet
from servers import Server

from drainkit import files
from drainkit.core import plan as plans
from drainkit.core.timestamps import iso

OPTIONS = ("--throttle", "none", "--max-events", "150", "--allowlist", "BTCUSDT,ETHUSDT")


def where(server: Server, stream: str) -> tuple[str, ...]:
    return ("drain", "--json", *at(server, stream))


def make_plan(cli: Cli, server: Server, stream: str, *options: str) -> Path:
    run = cli.done(*where(server, stream), *OPTIONS, "--plan", "plan.json", *options)
    assert run.json()["plan_digest"].startswith("sha256:")
    return cli.cwd / "plan.json"


def apply(cli: Cli, server: Server, stream: str, *options: str) -> tuple[str, ...]:
    return (*where(server, stream), "--mode", "live", "--yes", "--plan", "plan.json", *options)


@pytest.mark.parametrize("scope", ["undelivered", "pending", "history"])
def test_a_live_run_drains_its_plan(server: Server, stream: str, cli: Cli, scope: str) -> None:
    """The audit holds the plan's entries, in its order, with its actions, and nothing else."""
    seed(server, stream, 400)
    ask(server, "XREADGROUP", "GROUP", GROUP, "dead", "COUNT", 160, "STREAMS", stream, ">")
    scoped = ("--scope", scope, "--min-idle-min", "0", "--allow-active-consumers")
    before = everything(server)
    make_plan(cli, server, stream, *scoped)
    assert everything(server) == before
    fill(server, stream, backlog(now_ms(server) + 50_000, 20))
    run = cli.done(*apply(cli, server, stream, *scoped))
    decisions, records = parquet.read_table(cli.cwd / "decisions.parquet"), audit(server, stream)
    assert [r["original_id"] for r in records] == decisions["id"].to_pylist()
    assert [r["action"] for r in records] == decisions["action"].to_pylist()
    assert len(records) == run.json()["total_read"]
    assert run.json()["drift"] == []


def test_what_nobody_set_comes_from_the_plan(valkey: Server, stream: str, cli: Cli) -> None:
    """Without policy flags the live run uses the plan's; with other flags it refuses."""
    seed(valkey, stream)
    make_plan(cli, valkey, stream, "--min-conf", "0.5")
    for options, point in (
        (("--min-conf", "0.6"), "min_conf"),
        (("--max-age-min", "31"), "max_age_min"),
        (("--allowlist", "BTCUSDT"), "allowlist"),
        (("--consumer-group", "other"), "group"),
        (("--scope", "history"), "scope"),
    ):
        assert point in cli.fails(4, *apply(cli, valkey, stream, *options))
    ask(valkey, "COPY", stream, "another")  # the same entries under another name
    assert "stream" in cli.fails(4, *apply(cli, valkey, "another"))
    assert audit(valkey, stream) == []
    assert cli(*apply(cli, valkey, stream)).rc == 0
    assert len(audit(valkey, stream)) == 150


def remade(path: Path, decisions: Any = None, **values: Any) -> None:
    """The plan with other values, and a digest that anyone can compute."""
    plan = json.loads(path.read_text()) | values
    if decisions is not None:
        files.write_table(path.with_name("decisions.parquet"), decisions)
        plan["decisions_sha256"] = table_sha256(decisions)
    path.write_text(json.dumps(plan | {"digest": plans.digest_of(plan)}))


@pytest.mark.parametrize("point", ["as_of", "audit_stream", "throttle", "max_events"])
def test_all_that_decides_is_the_plans(valkey: Server, stream: str, cli: Cli, point: str) -> None:
    """What a variable or drainkit.toml say gives way to the plan, another value asked for with the
    command is refused with both named: what was planned as dropped_old stays so."""
    ids = seed(valkey, stream, 160)[100:]
    made = cli(*where(valkey, stream), "--throttle", "none", "--plan", "plan.json", "--max-events",
               60, "--max-age-min", "0.00001")  # fmt: skip
    assert made.json()["dropped_old"] == 60
    value = {"as_of": iso((now_ms(valkey) - 3_600_000) * 1000), "audit_stream": f"{stream}.other",
             "throttle": "7", "max_events": "8"}[point]  # fmt: skip
    asked = cli(*apply(cli, valkey, stream, f"--{point.replace('_', '-')}", value))
    assert (asked.rc, ask(valkey, "EXISTS", f"{stream}.other")) == (4, 0)
    planned = {"as_of": "none", "audit_stream": f"{stream}.drain_audit", "throttle": "none",
               "max_events": "60"}[point]  # fmt: skip
    assert point.replace("_", "-") in one_line_error(asked.err)
    assert f"the plan has {planned}, asked for {value}" in asked.err
    (cli.cwd / "drainkit.toml").write_text(f'{point} = "{value}"\n')
    cli.done(*apply(cli, valkey, stream), env={f"DRAINKIT_{point.upper()}": value})
    assert recorded(valkey, stream) == ids
    assert {r["action"] for r in audit(valkey, stream)} == {"dropped_old"}


def test_a_plan_is_of_one_environment(valkey: Server, stream: str, cli: Cli) -> None:
    """A plan made with --env a is refused with --env b, and by who leaves it out; plan and card
    name environment and server, and the plan's digest covers them."""
    seed(valkey, stream)
    (cli.cwd / "drainkit.toml").write_text("[env.a]\n[env.b]\n")
    plan = json.loads(make_plan(cli, valkey, stream, "--env", "a").read_text())
    assert (plan["environment"], plan["audit_stream"]) == ("a", f"{stream}.drain_audit")
    assert plan["server"] == valkey.url
    for env, words in ((("--env", "b"), "asked for --env b"), ((), "asked for no --env")):
        assert f"the plan has --env a, {words}" in cli.fails(4, *apply(cli, valkey, stream, *env))
    assert audit(valkey, stream) == []
    assert cli(*apply(cli, valkey, stream, "--env", "a")).json()["environment"] == "a"


def test_an_edited_plan_is_refused(valkey: Server, stream: str, cli: Cli) -> None:
    """Whatever was edited in plan.json or decisions.parquet, the digest no longer fits. A plan that
    says otherwise of its decisions than they do, its digest made anew, is refused (4) by drain,
    run, approve and diff: nobody is shown one entry and drains 150."""
    seed(valkey, stream)
    path = make_plan(cli, valkey, stream)
    beside, text = path.with_name("decisions.parquet"), path.read_text()
    plan, table, drain = json.loads(text), parquet.read_table(beside), apply(cli, valkey, stream)
    counts, last = plan["counts"], "1" if plan["digest"][-1] == "0" else "0"
    for edit in ({"counts": counts | {"drained_ok": counts["drained_ok"] + 1}}, {"throttle": 5},
                 {"digest": plan["digest"][:-1] + last}, {"note": "edited"}):  # fmt: skip
        path.write_text(json.dumps(plan | edit))
        assert "edited" in cli.fails(4, *drain), edit
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-f", str(cli.cwd / "key")], check=True)
    every = [
        drain, ("run", *drain[1:]), ("diff", "plan.json", "plan.json"),
        ("approve", "plan.json", "--yes", "--sign-key", cli.cwd / "key"),
    ]  # fmt: skip
    said: tuple[dict[str, Any], ...] = (
        {"counts": {**dict.fromkeys(counts, 0), "dropped_old": 1}, "total_read": 1},
        {"first_id": "1-1"}, {"last_id": "1-1"}, {"boundary_id": "1-1"}, {"max_events": 1},
    )  # fmt: skip
    for values in said:
        path.write_text(text)
        remade(path, **values)
        for command in every if "counts" in values else [drain]:
            assert "does not fit its own decisions" in cli.fails(4, *command), command
    path.write_text(text)
    files.write_table(
        beside, with_actions(table, ["dropped_old", *table["action"].to_pylist()[1:]])
    )
    assert "edited" in cli.fails(4, *drain)
    assert audit(valkey, stream) == []


def with_actions(table: pa.Table, actions: list[str]) -> pa.Table:
    at = table.column_names.index("action")
    column = pa.array(actions).dictionary_encode()
    return table.set_column(at, table.schema.field(at), column.cast(table.schema.field(at).type))


def test_what_was_to_be_dropped_and_passed(valkey: Server, stream: str, cli: Cli) -> None:
    """A drift from dropped to drained_ok ends with 1 and is listed: the plan was of other
    decisions, or the clock went back."""
    seed(valkey, stream)
    path = make_plan(cli, valkey, stream)
    table = parquet.read_table(path.with_name("decisions.parquet"))
    none = dict.fromkeys(json.loads(path.read_text())["counts"], 0)
    remade(path, with_actions(table, ["dropped_old"] * len(table)),
           counts={**none, "dropped_old": len(table)})  # fmt: skip
    run = cli(*apply(cli, valkey, stream))
    assert run.rc == 1, run.out
    assert "passed that the plan had dropped" in run.err
    passed = [row for row in run.json()["drift"] if row["happened"] == "drained_ok"]
    assert passed[0]["events"] == run.json()["drained_ok"] > 0


def test_a_plan_that_died_is_finished(valkey: Server, stream: str, cli: Cli) -> None:
    """Killed in the middle, the same command drains the rest of the plan; a third is refused."""
    seed(valkey, stream, 600)
    make_plan(cli, valkey, stream, "--max-events", "400", "--throttle", "200")
    command = apply(cli, valkey, stream)
    process = cli.start(*command)
    wait_for(valkey, stream, 50)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(audit(valkey, stream)) < 400
    cli.done(*command)
    records = audit(valkey, stream)
    assert len({r["original_id"] for r in records}) == len(records) == 400
    assert pending(valkey, stream) == 0
    assert cli(*command).rc == 4 or cli(*command).json()["total_read"] == 0


def test_two_runs_of_one_plan_at_once(valkey: Server, stream: str, cli: Cli) -> None:
    """They drain it together; neither fails for what the other took, or asks for a new plan."""
    seed(valkey, stream, 400)
    make_plan(cli, valkey, stream, "--throttle", "200")
    both = [cli.start(*apply(cli, valkey, stream)) for _ in range(2)]
    runs = [cli.finish(one) for one in both]
    assert not any("new plan" in run.err for run in runs), runs
    assert sum(run.json()["total_read"] for run in runs if run.out) == len(audit(valkey, stream))
    assert len(audit(valkey, stream)) == 150
    assert all(run.rc == 0 or (run.rc, "at work" in run.err) == (4, True) for run in runs), runs
