"""Plan and apply: a live run drains exactly its plan, or refuses and names the point."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from books import (
    GROUP,
    ask,
    assert_books_balance,
    at,
    audit,
    backlog,
    everything,
    fill,
    now_ms,
    pending,
    seed,
    wait_for,
)
from conftest import Cli, intent, one_line_error
from plan_samples import plan_of, table_sha256
from pyarrow import parquet
from servers import Server

from drainkit import files
from drainkit.draining.plan_files import PlanFile
from drainkit.settings import Fields, build

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
    now = ask(server, "TIME")
    late = backlog(int(now[0]) * 1000 + 50_000, 20)
    fill(server, stream, late)
    run = cli.done(*apply(cli, server, stream, *scoped))
    import pandas as pd

    decisions = pd.read_parquet(cli.cwd / "decisions.parquet")
    records = audit(server, stream)
    assert [r["original_id"] for r in records] == decisions["id"].tolist()
    assert [r["action"] for r in records] == decisions["action"].tolist()
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
    assert audit(valkey, stream) == []
    assert cli(*apply(cli, valkey, stream)).rc == 0
    assert len(audit(valkey, stream)) == 150


def test_a_plan_for_another_stream_is_refused(valkey: Server, stream: str, cli: Cli) -> None:
    """The same entries under another name are not what was planned."""
    seed(valkey, stream)
    make_plan(cli, valkey, stream)
    ask(valkey, "COPY", stream, "another")
    assert "stream" in cli.fails(4, *apply(cli, valkey, "another"))


def test_an_edited_plan_is_refused(valkey: Server, stream: str, cli: Cli) -> None:
    """Whatever was edited in plan.json or decisions.parquet, the digest no longer fits."""
    import pyarrow as pa

    seed(valkey, stream)
    path = make_plan(cli, valkey, stream)
    beside, plan = path.with_name("decisions.parquet"), json.loads(path.read_text())
    counts = plan["counts"]
    for edit in (
        {"counts": {**counts, "drained_ok": counts["drained_ok"] + 1}}, {"throttle": 5},
        {"digest": plan["digest"][:-1] + ("0" if plan["digest"][-1] != "0" else "1")},
        {"note": "edited"},
    ):  # fmt: skip
        path.write_text(json.dumps({**plan, **edit}))
        assert "edited" in cli.fails(4, *apply(cli, valkey, stream)), edit
    path.write_text(json.dumps(plan))
    table = parquet.read_table(beside)
    actions = table["action"].to_pylist()
    actions[0] = "drained_ok" if actions[0] != "drained_ok" else "dropped_old"
    at = table.column_names.index("action")
    parquet.write_table(table.set_column(at, "action", pa.array(actions)), beside)
    assert "edited" in cli.fails(4, *apply(cli, valkey, stream))
    assert audit(valkey, stream) == []


def remade(path: Path, decisions: Any = None, **values: Any) -> None:
    """The plan with other values, and a digest that anyone can compute."""
    plan = {**json.loads(path.read_text()), **values}
    if decisions is not None:
        files.write_table(path.with_name("decisions.parquet"), decisions)
        plan["decisions_sha256"] = table_sha256(decisions)
    text = json.dumps(
        {k: v for k, v in plan.items() if k != "digest"}, sort_keys=True, separators=(",", ":"),
        ensure_ascii=False,
    )  # fmt: skip
    plan["digest"] = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(plan))


@pytest.mark.parametrize("point", ["as_of", "audit_stream", "throttle", "max_events"])
def test_all_that_decides_is_the_plans(valkey: Server, stream: str, cli: Cli, point: str) -> None:
    """What a variable or drainkit.toml say gives way to the plan, another value asked for with the
    command is refused with both named: what was planned as dropped_old stays so."""
    ids = seed(valkey, stream, 160)[100:]
    made = cli(*where(valkey, stream), "--throttle", "none", "--plan", "plan.json", "--max-events",
               60, "--max-age-min", "0.00001")  # fmt: skip
    assert made.json()["dropped_old"] == 60
    value = {"as_of": _iso(now_ms(valkey) / 1000 - 3600), "audit_stream": f"{stream}.other",
             "throttle": "7", "max_events": "8"}[point]  # fmt: skip
    asked = cli(*apply(cli, valkey, stream, f"--{point.replace('_', '-')}", value))
    assert (asked.rc, ask(valkey, "EXISTS", f"{stream}.other")) == (4, 0)
    planned = {"as_of": "none", "audit_stream": f"{stream}.drain_audit", "throttle": "none",
               "max_events": "60"}[point]  # fmt: skip
    assert point.replace("_", "-") in one_line_error(asked.err)
    assert f"the plan has {planned}, asked for {value}" in asked.err
    (cli.cwd / "drainkit.toml").write_text(f'{point} = "{value}"\n')
    cli.done(*apply(cli, valkey, stream), env={f"DRAINKIT_{point.upper()}": value})
    assert [r["original_id"] for r in audit(valkey, stream)] == ids
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


def test_a_plan_is_held_against_its_own_decisions(valkey: Server, stream: str, cli: Cli) -> None:
    """A plan that says otherwise of its decisions than they do, its digest made anew, is refused
    (4) by drain, run, approve and diff: nobody is shown one entry and drains 150."""
    seed(valkey, stream)
    path = make_plan(cli, valkey, stream)
    plan = path.read_text()
    counts = {**dict.fromkeys(json.loads(plan)["counts"], 0), "dropped_old": 1}
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-f", str(cli.cwd / "key")], check=True)
    drain = apply(cli, valkey, stream)
    every = [
        drain, ("run", *drain[1:]), ("diff", "plan.json", "plan.json"),
        ("approve", "plan.json", "--yes", "--sign-key", cli.cwd / "key"),
    ]  # fmt: skip
    said: tuple[dict[str, Any], ...] = (
        {"counts": counts, "total_read": 1}, {"first_id": "1-1"}, {"last_id": "1-1"},
        {"boundary_id": "1-1"}, {"max_events": 1},
    )  # fmt: skip
    for values in said:
        path.write_text(plan)
        remade(path, **values)
        for command in every if "counts" in values else [drain]:
            run = cli(*command)
            assert (run.rc, audit(valkey, stream)) == (4, []), command
            assert "does not fit its own decisions" in one_line_error(run.err)


def test_what_was_to_be_dropped_and_passed(valkey: Server, stream: str, cli: Cli) -> None:
    """A drift from dropped to drained_ok ends with 1 and is listed: the plan was of other
    decisions, or the clock went back."""
    import pyarrow as pa

    seed(valkey, stream)
    path = make_plan(cli, valkey, stream)
    table = parquet.read_table(path.with_name("decisions.parquet"))
    actions = pa.array(["dropped_old"] * len(table)).dictionary_encode()
    at = table.column_names.index("action")
    none = dict.fromkeys(json.loads(path.read_text())["counts"], 0)
    remade(path, table.set_column(at, table.schema.field(at), actions),
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


def test_what_became_too_old_is_listed_as_drift(valkey: Server, stream: str, cli: Cli) -> None:
    """Events that passed in the dry run and are too old now are dropped_old, and listed."""
    at = now_ms(valkey) + 1500  # ahead, so that there is time to plan
    fill(valkey, stream, [(at + i, intent()) for i in range(10)], group=GROUP)
    make_plan(cli, valkey, stream, "--max-age-min", "0.05")
    time.sleep(max(0, at + 3100 - now_ms(valkey)) / 1000)
    run = cli.done(*apply(cli, valkey, stream, "--max-age-min", "0.05"))
    drift = {"planned": "drained_ok", "happened": "dropped_old", "events": 10}
    assert run.json()["drift"] == [drift]
    assert_books_balance(valkey, stream, run.json())


def _iso(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).isoformat()


@pytest.mark.parametrize(
    "given",
    [{"symbol": "ticker"}, {"timestamp": "at", "only": True}, {"confidence": "payload.signal.c"}],
)
def test_a_plan_gives_its_own_fields(given: dict[str, object]) -> None:
    """Whatever [fields] said when the plan was made is what its live run reads by."""
    fields = Fields.model_validate(given)
    plan = plan_of(fields=fields.as_dict())
    assert (
        PlanFile(plan, b"", Path(), ()).laid_under(build({"fields": {"symbol": "other"}})).fields
        == fields
    )
