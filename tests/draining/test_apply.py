"""Plan and apply: a live run drains exactly its plan, or refuses and names the point."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from books import (
    GROUP,
    ask,
    assert_books_balance,
    audit,
    backlog,
    everything,
    now_ms,
    pending,
    seed,
)
from conftest import Cli, Fill, intent
from plan_samples import plan_of
from servers import Server

from drainkit.draining.job import adopt
from drainkit.settings import Fields, build

OPTIONS = ("--throttle", "none", "--max-events", "150", "--allowlist", "BTCUSDT,ETHUSDT")


def where(server: Server, stream: str) -> tuple[str, ...]:
    return ("drain", "--json", "--redis-url", server.url, "--stream", stream)


def make_plan(cli: Cli, server: Server, stream: str, *options: str) -> Path:
    run = cli(*where(server, stream), *OPTIONS, "--plan", "plan.json", *options)
    assert run.rc == 0, run.err
    assert run.json()["plan_digest"].startswith("sha256:")
    return cli.cwd / "plan.json"


def apply(cli: Cli, server: Server, stream: str, *options: str) -> tuple[str, ...]:
    return (*where(server, stream), "--mode", "live", "--yes", "--plan", "plan.json", *options)


@pytest.mark.parametrize("scope", ["undelivered", "pending", "history"])
def test_a_live_run_drains_exactly_its_plan(
    server: Server, stream: str, fill: Fill, cli: Cli, scope: str
) -> None:
    """The audit holds the plan's entries, in its order, with its actions, and nothing else."""
    seed(server, stream, fill, 400)
    ask(server, "XREADGROUP", "GROUP", GROUP, "dead", "COUNT", 160, "STREAMS", stream, ">")
    scoped = ("--scope", scope, "--min-idle-min", "0", "--allow-active-consumers")
    before = everything(server)
    make_plan(cli, server, stream, *scoped)
    assert everything(server) == before
    now = ask(server, "TIME")
    late = backlog(int(now[0]) * 1000 + 50_000, 20)
    fill(server, stream, late)
    run = cli(*apply(cli, server, stream, *scoped))
    assert run.rc == 0, run.err
    import pandas as pd

    decisions = pd.read_parquet(cli.cwd / "decisions.parquet")
    records = audit(server, stream)
    assert [r["original_id"] for r in records] == decisions["id"].tolist()
    assert [r["action"] for r in records] == decisions["action"].tolist()
    assert len(records) == run.json()["total_read"]
    assert run.json()["drift"] == []


def test_what_nobody_set_comes_from_the_plan(
    valkey: Server, stream: str, fill: Fill, cli: Cli
) -> None:
    """Without policy flags the live run uses the plan's; with other flags it refuses."""
    seed(valkey, stream, fill)
    make_plan(cli, valkey, stream, "--min-conf", "0.5")
    for options, point in (
        (("--min-conf", "0.6"), "min_conf"),
        (("--max-age-min", "31"), "max_age_min"),
        (("--allowlist", "BTCUSDT"), "allowlist"),
        (("--consumer-group", "other"), "group"),
        (("--scope", "history"), "scope"),
    ):
        run = cli(*apply(cli, valkey, stream, *options))
        assert run.rc == 4, run
        assert point in run.err
    assert audit(valkey, stream) == []
    assert cli(*apply(cli, valkey, stream)).rc == 0
    assert len(audit(valkey, stream)) == 150


def test_a_plan_for_another_stream_is_refused(
    valkey: Server, stream: str, fill: Fill, cli: Cli
) -> None:
    """The same entries under another name are not what was planned."""
    seed(valkey, stream, fill)
    make_plan(cli, valkey, stream)
    ask(valkey, "COPY", stream, "another")
    run = cli(*apply(cli, valkey, "another"))
    assert run.rc == 4
    assert "stream" in run.err


@pytest.mark.parametrize("edit", ["count", "throttle", "digest", "decision", "key"])
def test_an_edited_plan_is_refused(
    valkey: Server, stream: str, fill: Fill, cli: Cli, edit: str
) -> None:
    """Whatever was edited in plan.json or decisions.parquet, the digest no longer fits."""
    import pyarrow as pa
    from pyarrow import parquet

    seed(valkey, stream, fill)
    path = make_plan(cli, valkey, stream)
    plan = json.loads(path.read_text())
    if edit == "count":
        plan["counts"]["drained_ok"] += 1
    elif edit == "throttle":
        plan["throttle"] = 5
    elif edit == "digest":
        plan["digest"] = plan["digest"][:-1] + ("0" if plan["digest"][-1] != "0" else "1")
    elif edit == "key":
        plan["note"] = "edited"
    else:
        table = parquet.read_table(cli.cwd / "decisions.parquet")
        actions = table["action"].to_pylist()
        actions[0] = "drained_ok" if actions[0] != "drained_ok" else "dropped_old"
        table = table.set_column(table.column_names.index("action"), "action", pa.array(actions))
        parquet.write_table(table, cli.cwd / "decisions.parquet")
    path.write_text(json.dumps(plan))
    run = cli(*apply(cli, valkey, stream))
    assert run.rc == 4
    assert "edited" in run.err
    assert audit(valkey, stream) == []


def test_decisions_saved_with_another_type_are_read_or_refused(
    valkey: Server, stream: str, fill: Fill, cli: Cli
) -> None:
    """Ids as bytes are the same content: the plan is applied as it was made."""
    import pyarrow as pa
    from pyarrow import parquet

    seed(valkey, stream, fill)
    make_plan(cli, valkey, stream)
    table = parquet.read_table(cli.cwd / "decisions.parquet")
    table = table.set_column(0, "id", table["id"].cast(pa.binary()))
    parquet.write_table(table, cli.cwd / "decisions.parquet")
    run = cli(*apply(cli, valkey, stream))
    assert run.rc == 0, run.err
    assert [r["original_id"].encode() for r in audit(valkey, stream)] == table["id"].to_pylist()


def test_a_moved_position_is_refused(valkey: Server, stream: str, fill: Fill, cli: Cli) -> None:
    """If the group was read by somebody else since, the plan no longer applies."""
    seed(valkey, stream, fill)
    make_plan(cli, valkey, stream)
    ask(valkey, "XREADGROUP", "GROUP", GROUP, "other", "COUNT", 1, "STREAMS", stream, ">")
    run = cli(*apply(cli, valkey, stream, "--allow-active-consumers"))
    assert run.rc == 4
    assert "position moved" in run.err


def test_a_trimmed_entry_is_refused(server: Server, stream: str, fill: Fill, cli: Cli) -> None:
    """An entry of the plan that is gone is named, and nothing is done."""
    ids = seed(server, stream, fill)
    make_plan(cli, server, stream)
    ask(server, "XDEL", stream, ids[120])
    run = cli(*apply(cli, server, stream))
    assert run.rc == 4
    assert ids[120] in run.err
    assert audit(server, stream) == []


def test_a_plan_that_died_is_finished_by_the_same_command(
    valkey: Server, stream: str, fill: Fill, cli: Cli
) -> None:
    """Killed in the middle, the same command drains the rest of the plan; a third is refused."""
    seed(valkey, stream, fill, 600)
    make_plan(cli, valkey, stream, "--max-events", "400", "--throttle", "200")
    command = apply(cli, valkey, stream)
    process = cli.start(*command)
    deadline = time.monotonic() + 10
    while len(audit(valkey, stream)) < 50 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(audit(valkey, stream)) < 400
    run = cli(*command)
    assert run.rc == 0, run.err
    records = audit(valkey, stream)
    assert len({r["original_id"] for r in records}) == len(records) == 400
    assert pending(valkey, stream) == 0
    assert cli(*command).rc == 4 or cli(*command).json()["total_read"] == 0


def test_two_runs_of_one_plan_at_once(valkey: Server, stream: str, fill: Fill, cli: Cli) -> None:
    """They drain it together; neither fails for what the other took, or asks for a new plan."""
    seed(valkey, stream, fill, 400)
    make_plan(cli, valkey, stream, "--throttle", "200")
    both = [cli.start(*apply(cli, valkey, stream)) for _ in range(2)]
    runs = [cli.finish(one) for one in both]
    assert not any("new plan" in run.err for run in runs), runs
    assert sum(run.json()["total_read"] for run in runs if run.out) == len(audit(valkey, stream))
    assert len(audit(valkey, stream)) == 150
    assert all(run.rc == 0 or (run.rc, "at work" in run.err) == (4, True) for run in runs), runs


def test_what_became_too_old_is_listed_as_drift(
    valkey: Server, stream: str, fill: Fill, cli: Cli
) -> None:
    """Events that passed in the dry run and are too old now are dropped_old, and listed."""
    at = now_ms(valkey) + 4000  # ahead, so that there is time to plan
    fill(valkey, stream, [(at + i, intent()) for i in range(10)], group=GROUP)
    make_plan(cli, valkey, stream, "--max-age-min", "0.05")
    time.sleep(max(0, at + 3100 - now_ms(valkey)) / 1000)
    run = cli(*apply(cli, valkey, stream, "--max-age-min", "0.05"))
    assert run.rc == 0, run.err
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
    plan = plan_of(fields=fields.as_lists())
    assert adopt(build({"fields": {"symbol": "other"}}), plan).fields == fields
