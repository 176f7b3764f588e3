"""Scheduled runs, their limits and their lease; several workers; drains that are under way."""

from __future__ import annotations

import ast
import json
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import servers
import yaml
from books import (
    ALLOW,
    GROUP,
    PASSWORD,
    ask,
    at,
    audit,
    everything,
    make_user,
    pending,
    seed,
    worst_window,
)
from conftest import Cli, Fill
from servers import Server

import drainkit
from drainkit.draining.unattended import check_limits, require_limits
from drainkit.operations.metrics import METRICS
from drainkit.settings import Limits

LIMITS = "[limits]\nmax_events = 200\nmax_drained_ok = 200\nmax_drift = 0\n"


def live(server: Server, stream: str, *options: object) -> tuple[object, ...]:
    return ("drain", "--mode", "live", "--yes", "--json", *at(server, stream), *options)


def scheduled(server: Server, stream: str, *options: object) -> tuple[object, ...]:
    return ("run", "--mode", "live", "--yes", "--json", "--throttle", "none", "--max-events",
            "all", *at(server, stream), *options)  # fmt: skip


# ---------------------------------------------------------------- workers


def test_four_workers_share_one_pace(server: Server, stream: str, fill: Fill, cli: Cli) -> None:
    """At --throttle 100, four workers stay at or under 100/s and above 95/s; each event once."""
    ids = seed(server, stream, fill, 900, delivered=100)
    run = cli(*live(server, stream, "--workers", 4, "--throttle", 100, "--max-events", "all"))
    assert run.rc == 0, run.err
    records = audit(server, stream)
    assert sorted(r["original_id"] for r in records) == sorted(ids[100:])
    times_ms = [int(r["audit_id"].split("-")[0]) for r in records]
    assert worst_window(records, 1000) <= 100
    rate = (len(times_ms) - 1) / ((times_ms[-1] - times_ms[0]) / 1000)
    assert 95 < rate <= 101
    summary = run.json()
    assert (summary["total_read"], summary["remaining"], summary["pending_own"]) == (800, 0, 0)
    assert summary["drained_ok"] == sum(r["action"] == "drained_ok" for r in records)
    assert pending(server, stream) == 0
    consumers = {c[1].decode() for c in ask(server, "XINFO", "CONSUMERS", stream, GROUP)}
    assert consumers == {f"backlog_drain_{i}" for i in (1, 2, 3, 4)}


@pytest.mark.parametrize("budget", [3, 50, 199, 200, 500])
def test_workers_share_one_budget(
    valkey: Server, stream: str, fill: Fill, cli: Cli, budget: int
) -> None:
    """--max-events is the whole run's, not each worker's; what is there within it is drained."""
    ids = seed(valkey, stream, fill, 300, delivered=100)
    run = cli(*live(valkey, stream, "--workers", 4, "--throttle", "none", "--max-events", budget))
    assert run.rc == 0, run.err
    taken = min(budget, 200)
    assert run.json()["total_read"] == taken
    assert sorted(r["original_id"] for r in audit(valkey, stream)) == sorted(ids[100 : 100 + taken])
    assert run.json()["remaining"] == 200 - taken
    assert pending(valkey, stream) == 0


def test_workers_drain_pending_entries(valkey: Server, stream: str, fill: Fill, cli: Cli) -> None:
    """Scope pending by four workers audits each idle entry once."""
    seed(valkey, stream, fill, 900, delivered=0)
    ask(valkey, "XREADGROUP", "GROUP", GROUP, "dead", "COUNT", 800, "STREAMS", stream, ">")
    time.sleep(1)
    run = cli(*live(valkey, stream, "--workers", 4, "--throttle", "none", "--max-events", "all",
                    "--scope", "pending", "--min-idle-min", "0.015"))  # fmt: skip
    assert run.rc == 0, run.err
    counts = Counter(r["original_id"] for r in audit(valkey, stream))
    assert (len(counts), max(counts.values())) == (800, 1)
    assert pending(valkey, stream) == 0


def test_workers_die_and_the_same_command_finishes(
    valkey: Server, stream: str, fill: Fill, cli: Cli
) -> None:
    """Killed in the middle, four workers are finished by the same command at once; no doubles."""
    ids = seed(valkey, stream, fill, 600, delivered=100)
    command = live(valkey, stream, "--workers", 4, "--throttle", 200, "--max-events", "all")
    process = cli.start(*command)
    while len(audit(valkey, stream)) < 100:
        time.sleep(0.05)
    process.kill()
    cli.finish(process)
    run = cli(*command)
    assert run.rc == 0, run.err
    counts = Counter(r["original_id"] for r in audit(valkey, stream))
    assert set(counts) == set(ids[100:])
    assert max(counts.values()) == 1
    assert pending(valkey, stream) == 0


def test_workers_stop_together(valkey: Server, stream: str, fill: Fill, cli: Cli) -> None:
    """SIGTERM and the kill switch end all workers, with one summary and balanced books."""
    seed(valkey, stream, fill, 600, delivered=0)
    command = live(valkey, stream, "--workers", 3, "--throttle", 50, "--max-events", "all")
    for how in ("signal", "switch"):
        before = len(audit(valkey, stream))
        process = cli.start(*command)
        while len(audit(valkey, stream)) < before + 20:
            time.sleep(0.05)
        if how == "signal":
            process.send_signal(signal.SIGTERM)
        else:
            assert cli("stop", "--reason", "test", *at(valkey, stream)).rc == 0
            after_stop = len(audit(valkey, stream))
        run = cli.finish(process)
        assert run.rc == (130 if how == "signal" else 4), run
        assert run.json()["total_read"] == len(audit(valkey, stream)) - before
    assert len(audit(valkey, stream)) == after_stop


def test_workers_outlast_a_server_that_closes_idle_connections(
    stream: str, fill: Fill, cli: Cli
) -> None:
    """The connection that waits for the workers is gone at the end: the report is whole."""
    with servers.start("redis") as server:
        seed(server, stream, fill, 100, delivered=0)
        ask(server, "CONFIG", "SET", "timeout", 1)
        run = cli(*live(server, stream, "--workers", 2, "--throttle", 10, "--max-events", 40))
    assert run.rc == 0, run.err
    assert (run.json()["total_read"], run.json()["remaining"]) == (40, 60)


def test_workers_whose_server_dies_still_report(stream: str, fill: Fill, cli: Cli) -> None:
    """One summary on stdout with what is known, and exit code 3."""
    with servers.start("redis") as server:
        seed(server, stream, fill, 400, delivered=0)
        process = cli.start(*live(server, stream, "--workers", 3, "--throttle", 50,
                                  "--max-events", "all"))  # fmt: skip
        while len(audit(server, stream)) < 20:
            time.sleep(0.05)
        server.kill()
        run = cli.finish(process)
    assert run.rc == 3, run
    result = run.json()
    assert result["total_read"] >= 20
    assert (result["outcome"], result["remaining"]) == ("failed", None)


def test_scope_history_takes_one_worker(valkey: Server, stream: str, fill: Fill, cli: Cli) -> None:
    """Several workers on the history group are refused before anything is written."""
    seed(valkey, stream, fill, 20, delivered=20)
    before = everything(valkey)
    run = cli(*live(valkey, stream, "--workers", 2, "--scope", "history"))
    assert run.rc == 2
    assert everything(valkey) == before


# ---------------------------------------------------------------- running drains


def test_status_shows_running_drains(valkey: Server, stream: str, fill: Fill, cli: Cli) -> None:
    """While a drain runs, status tells its progress and ETA; then no more; a dead one it names."""
    seed(valkey, stream, fill, 600, delivered=0)
    command = live(valkey, stream, "--throttle", 10, "--max-events", 400)
    process = cli.start(*command)
    while len(audit(valkey, stream)) < 20:
        time.sleep(0.05)
    asked = time.time()
    running: list[dict[str, Any]] = cli("status", "--json", *at(valkey, stream)).json()[
        "running_drains"
    ]
    answered = time.time()
    assert len(running) == 1
    found = running[0]
    assert found["alive"]
    assert found["done"] >= 20
    assert found["done"] + found["remaining"] == 400
    started = datetime.fromisoformat(found["started_at"]).timestamp()
    # a rate over the whole run, whatever its pace was until then on a busy machine
    ran_sec = found["done"] / found["events_per_sec"]
    assert asked - started - 0.01 <= ran_sec <= answered - started + 0.01
    assert found["eta_sec"] == pytest.approx(found["remaining"] / found["events_per_sec"], rel=0.1)
    assert found["run_id"] in cli("status", *at(valkey, stream)).out
    process.kill()
    cli.finish(process)
    assert cli("status", "--json", *at(valkey, stream)).json()["running_drains"]
    assert cli(*live(valkey, stream, "--throttle", "none", "--max-events", "all")).rc == 0
    assert cli("status", "--json", *at(valkey, stream)).json()["running_drains"] == []


def test_odd_ledgers_do_not_break_status(valkey: Server, stream: str, fill: Fill, cli: Cli) -> None:
    """A ledger with foreign entries, or a key of another type in its place, is no obstacle."""
    seed(valkey, stream, fill, 5, delivered=0)
    ask(valkey, "XADD", f"{stream}.drain_runs", "*", "event", "start", "run_id", "x\x1b[31m")
    ask(valkey, "XADD", f"{stream}.drain_runs", "*", "event", "start", "run_id",
        "20260101T000000Z-live-abc123", "consumer_group", "g", "consumer", "c", "scope", "s",
        "boundary_id", "?", "throttle", "?", "max_events", "?", "at", "?")  # fmt: skip
    assert cli("status", "--json", *at(valkey, stream)).json()["running_drains"] == []
    ask(valkey, "DEL", f"{stream}.drain_runs")
    ask(valkey, "SET", f"{stream}.drain_runs", "x")
    assert cli("status", *at(valkey, stream)).rc == 0


@pytest.mark.parametrize(
    ("field", "odd"),
    [
        ("throttle", "0"), ("throttle", "nan"), ("throttle", "?"), ("boundary_id", "?"),
        ("boundary_id", ""), ("max_events", "?"), ("at", "?"), ("at", "0001-01-01T00:00:00"),
        ("scope", "?"), ("consumer_group", "nobody"),
    ],
)  # fmt: skip
def test_one_odd_value_in_the_ledger_does_not_break_status(
    valkey: Server, stream: str, fill: Fill, cli: Cli, field: str, odd: str
) -> None:
    """A start entry that is right but for one value costs at most its own line."""
    ids = seed(valkey, stream, fill, 5, delivered=0)
    start = {
        "event": "start", "run_id": "20260101T000000Z-live-abc123", "consumer_group": GROUP,
        "consumer": "c", "scope": "undelivered", "boundary_id": ids[-1], "throttle": "5",
        "max_events": "5", "at": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    flat = [part for pair in (start | {field: odd}).items() for part in pair]
    ask(valkey, "XADD", f"{stream}.drain_runs", "*", *flat)
    run = cli("status", "--json", *at(valkey, stream))
    assert run.rc == 0, run.err
    assert run.json()["stream"]


# ---------------------------------------------------------------- scheduled runs


def test_below_the_threshold_nothing_happens(
    valkey: Server, stream: str, fill: Fill, cli: Cli, tmp_path: Path
) -> None:
    """--if-backlog-over: at or below N it ends with 0, no evidence, nothing written."""
    (tmp_path / "drainkit.toml").write_text(LIMITS)
    seed(valkey, stream, fill, 150, delivered=100)
    before = everything(valkey)
    for n in (50, 51):
        run = cli(*scheduled(valkey, stream, "--if-backlog-over", n))
        assert run.rc == 0, run.err
        assert "nothing to do" in run.json()["skipped"]
    assert everything(valkey) == before
    assert not (tmp_path / "reports").exists()


def test_above_the_threshold_it_drains(
    valkey: Server, stream: str, fill: Fill, cli: Cli, tmp_path: Path
) -> None:
    """Above N the scheduled run drains, with evidence, as the drainer's user; the lease is free."""
    (tmp_path / "drainkit.toml").write_text(LIMITS)
    seed(valkey, stream, fill, 150, delivered=100)
    url = make_user(cli, valkey, stream, "drainer")
    command = ("run", "--mode", "live", "--yes", "--json", "--redis-url", url, "--stream", stream,
               "--throttle", "none", "--if-backlog-over", 49)  # fmt: skip
    run = cli(*command, secret=PASSWORD)
    assert run.rc == 0, run.err
    assert run.json()["total_read"] == 50
    assert (tmp_path / "reports" / run.json()["run_id"] / "SHA256SUMS").exists()
    assert cli(*command, secret=PASSWORD).json()["skipped"].startswith("nothing to do: the backlog")


def test_scheduled_runs_do_not_pile_up(
    valkey: Server, stream: str, fill: Fill, cli: Cli, tmp_path: Path
) -> None:
    """While one holds the group's lease the next ends with 0; a lease that ran out is taken."""
    from drainkit.server import writing
    from drainkit.server.connection import Server as Link

    (tmp_path / "drainkit.toml").write_text(LIMITS)
    seed(valkey, stream, fill, 120, delivered=100)
    with Link(valkey.url, stream) as link:
        assert writing.hold_lease(link, GROUP, "me", 60_000) == 0
        assert writing.hold_lease(link, GROUP, "me", 60_000) == 0
        assert 59_000 < writing.hold_lease(link, GROUP, "you", 60_000) <= 60_000
        assert writing.hold_lease(link, "another group", "you", 60_000) == 0
        run = cli(*scheduled(valkey, stream, "--if-backlog-over", 0))
        assert run.rc == 0, run.err
        assert "another scheduled run" in run.json()["skipped"]
        assert audit(valkey, stream) == []
        assert writing.hold_lease(link, GROUP, "you", 0) > 0
        assert writing.hold_lease(link, GROUP, "me", 200) == 0
        time.sleep(0.3)
        assert writing.hold_lease(link, GROUP, "you", 60_000) == 0
        assert writing.hold_lease(link, GROUP, "you", 0) == 0
        assert writing.hold_lease(link, GROUP, "me", 0) == 0


# ---------------------------------------------------------------- limits, environments


def test_limits_are_needed_and_kept() -> None:
    """An unattended run needs every limit; each one refuses what is beyond it, just beyond it."""
    from drainkit.errors import RefusedError

    limits = Limits(max_events=10, max_drained_ok=5, max_drift=1)
    require_limits(limits)
    for name in ("max_events", "max_drained_ok", "max_drift"):
        with pytest.raises(RefusedError, match=name):
            require_limits(limits.model_copy(update={name: None}))
    check_limits(limits, {"drained_ok": 5, "dropped_old": 5}, drift=1)
    for counts, drift in (({"dropped_old": 11}, 0), ({"drained_ok": 6}, 0), ({}, 2)):
        with pytest.raises(RefusedError, match="beyond the limits"):
            check_limits(limits, counts, drift=drift)


def test_unattended_live_runs_stay_within_limits(
    valkey: Server, stream: str, fill: Fill, cli: Cli, tmp_path: Path
) -> None:
    """Without limits a scheduled run is refused; beyond them run and drain are; nothing changes."""
    seed(valkey, stream, fill, 150, delivered=100)
    before = ask(valkey, "XINFO", "STREAM", stream, "FULL", "COUNT", 0)
    run = cli(*scheduled(valkey, stream, "--if-backlog-over", 0))
    assert (run.rc, "[limits]" in run.err) == (4, True)
    toml = tmp_path / "drainkit.toml"
    toml.write_text(LIMITS.replace("max_events = 200", "max_events = 49"))
    for command in (
        scheduled(valkey, stream, "--if-backlog-over", 0),
        live(valkey, stream, "--max-events", "all"),
    ):
        run = cli(*command)
        assert run.rc == 4, run
        assert "max_events is 49" in run.err
    toml.write_text(LIMITS.replace("max_drained_ok = 200", "max_drained_ok = 0"))
    assert "max_drained_ok is 0" in cli(*live(valkey, stream)).err
    assert ask(valkey, "XINFO", "STREAM", stream, "FULL", "COUNT", 0) == before
    assert audit(valkey, stream) == []


def test_a_plan_that_aged_too_much_is_refused(
    valkey: Server, stream: str, fill: Fill, cli: Cli, tmp_path: Path
) -> None:
    """max_drift counts the plan's events that grew too old since; beyond it nothing is drained."""
    seed(valkey, stream, fill, 120, delivered=100)
    old = ("--max-age-min", "0.1", "--throttle", "none")
    assert cli("drain", "--plan", "plan.json", *old, *at(valkey, stream)).rc == 0
    time.sleep(6)
    (tmp_path / "drainkit.toml").write_text(LIMITS)
    run = cli(*live(valkey, stream, "--plan", "plan.json"))
    assert (run.rc, "max_drift is 0" in run.err) == (4, True)
    assert audit(valkey, stream) == []
    (tmp_path / "drainkit.toml").write_text(LIMITS.replace("max_drift = 0", "max_drift = 20"))
    run = cli(*live(valkey, stream, "--plan", "plan.json"))
    assert run.rc == 0, run.err
    assert len(run.json()["drift"]) > 0


def test_environments_have_their_own_values(
    valkey: Server, stream: str, fill: Fill, cli: Cli, tmp_path: Path
) -> None:
    """--env picks allowlist (list, file, Redis set) and limits; the plan records the symbols."""
    (tmp_path / "drainkit.toml").write_text(
        'stream = "nothing"\n'
        f'[env.testnet]\nstream = "{stream}"\nallowlist = ["BTCUSDT"]\n'
        f'[env.file]\nstream = "{stream}"\nallowlist = "@symbols.txt"\n'
        f'[env.production]\nstream = "{stream}"\nallowlist = "redis:allowed"\n'
        "[env.production.limits]\nmax_events = 1\nmax_drained_ok = 1\nmax_drift = 1\n"
    )
    (tmp_path / "symbols.txt").write_text("ETHUSDT # one\n")
    ask(valkey, "SADD", "allowed", "BTCUSDT", "ETHUSDT")
    seed(valkey, stream, fill, 60, delivered=0)
    expected = {"testnet": ["BTCUSDT"], "file": ["ETHUSDT"], "production": sorted(ALLOW.split(","))}
    for env, symbols in expected.items():
        run = cli("drain", "--redis-url", valkey.url, "--env", env, "--plan", f"{env}.json")
        assert run.rc == 0, run.err
        plan = json.loads((tmp_path / f"{env}.json").read_text())
        assert plan["policy"]["allowlist"] == symbols
    run = cli("drain", "--mode", "live", "--yes", "--redis-url", valkey.url, "--env", "production")
    assert (run.rc, "max_events is 1" in run.err) == (4, True)


def test_a_changed_allowlist_is_a_changed_policy(
    valkey: Server, stream: str, fill: Fill, cli: Cli
) -> None:
    """A Redis set that changed between plan and live run refuses the plan, and nothing is done."""
    ask(valkey, "SADD", "allowed", "BTCUSDT")
    seed(valkey, stream, fill, 60, delivered=0)
    options = (*at(valkey, stream), "--allowlist", "redis:allowed", "--plan", "p.json")
    assert cli("drain", *options).rc == 0
    ask(valkey, "SADD", "allowed", "DOGEUSDT")
    run = cli("drain", "--mode", "live", "--yes", *options)
    assert run.rc == 4
    assert "allowlist" in run.err
    assert audit(valkey, stream) == []


# ---------------------------------------------------------------- examples

EXAMPLES = Path(drainkit.__file__).parent / "examples"


def metric_names(text: str) -> set[str]:
    return set(re.findall(r"\bdrainkit_[a-z_]+", text))


def test_alert_rules_have_promtools_form_and_use_our_metrics() -> None:
    """Each rule has a name of its own, an expression on metrics that exist, and says what to do."""
    data = yaml.safe_load((EXAMPLES / "alerts.yml").read_text())
    assert set(data) == {"groups"}
    rules = [rule for group in data["groups"] for rule in group["rules"]]
    assert all(set(group) == {"name", "rules"} for group in data["groups"])
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 8
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}, rule
        assert re.fullmatch(r"[A-Za-z_]\w*", rule["alert"])
        assert re.fullmatch(r"\d+[smhd]", rule.get("for", "0s"))
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert {"summary", "description"} == set(rule["annotations"])
        used = metric_names(rule["expr"])
        assert used
        assert used <= set(METRICS)
        assert rule["expr"].count("(") == rule["expr"].count(")")
        named = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        assert named <= {label for name in used for label in METRICS[name][1]}


def test_the_dashboard_shows_every_metric() -> None:
    """Grafana's form: panels that do not overlap, queries on metrics that exist, each one shown."""
    board = json.loads((EXAMPLES / "dashboard.json").read_text())
    assert board["title"]
    assert isinstance(board["schemaVersion"], int)
    cells: list[tuple[int, int]] = []
    for panel in board["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells += [(x, y) for x in range(at["x"], at["x"] + at["w"])
                  for y in range(at["y"], at["y"] + at["h"])]  # fmt: skip
    assert len(cells) == len(set(cells))
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    shown = metric_names(" ".join(t["expr"] for p in board["panels"] for t in p["targets"]))
    assert shown == set(METRICS)
    queries = metric_names(json.dumps(board["templating"]))
    assert queries <= set(METRICS)


def test_the_example_configuration_is_valid() -> None:
    """drainkit.toml of the examples loads in every environment, and its limits are complete."""
    from drainkit.settings import build
    from drainkit.settings.config import read_config

    for env in ("testnet", "production"):
        settings = build(read_config(EXAMPLES / "drainkit.toml", env))
        require_limits(settings.limits)
        assert settings.allowlist


def test_unit_files_call_options_that_exist(cli: Cli) -> None:
    """Each drainkit command line in the examples names a command and options that it has."""
    text = "\n".join(p.read_text() for p in EXAMPLES.iterdir() if p.suffix != ".json")
    lines = re.findall(r"drainkit (run|check|drain|stop|resume|acl)\b([^`\n]*)", text)
    assert {command for command, _ in lines} >= {"run", "check"}
    helps = {command: cli(command, "--help").out for command, _ in lines}
    for command, rest in lines:
        for option in re.findall(r"(?<!\S)--[a-z-]+", rest):
            assert option in helps[command], (command, option)


def test_schedulers_do_not_retry_what_was_refused() -> None:
    """Kubernetes' form, and Airflow's task: exit 4 and 2 end it, 1 and 3 are tried again."""
    job = yaml.safe_load((EXAMPLES / "kubernetes-cronjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    spec = job["spec"]["jobTemplate"]["spec"]
    pod = spec["template"]["spec"]
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["values"] == [2, 4]
    assert rule["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy needs it
    mounts = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}
    tree = ast.parse((EXAMPLES / "airflow_dag.txt").read_text())
    task = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "drain")
    first, second = (node for node in task.body if isinstance(node, ast.If))
    assert ast.unparse(first.test) == "code in (2, 4)"
    assert "AirflowFailException" in ast.unparse(first)
    assert "AirflowException" in ast.unparse(second)
    # jupyter-scheduler retries nothing, and writes parameters as they are into a cell
    job = json.loads((EXAMPLES / "jupyter-scheduler.json").read_text())
    assert all(isinstance(ast.literal_eval(v), str) for v in job["parameters"].values())


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_accepts_the_units() -> None:
    """systemd-analyze finds nothing in the units but the missing program."""
    said = subprocess.run(
        ["systemd-analyze", "verify", EXAMPLES / "drainkit.service", EXAMPLES / "drainkit.timer"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    odd = [line for line in said.stderr.splitlines() if "drainkit" in line]
    assert [line for line in odd if "not executable" not in line] == []
