"""Monitoring: counts are right where Redis's lag is not, and the exit code says how bad it is."""

from __future__ import annotations

from typing import Any

import clusters
import pytest
import servers
from backlogs import GROUP, fill, now_ms, seed
from books import ask, at, everything, metrics
from conftest import Cli, intent, one_line_error
from servers import Server

SECRET = "s3cr3t-pa55"


# ---------------------------------------------------------------- judging


def test_thresholds(valkey: Server, cli: Cli) -> None:
    """Critical above a limit, warning from 80 % of it on, at each edge: of the backlog, and of the
    age of the oldest undelivered event, by its timestamp where that is earlier than its id."""
    backlogs = {0: "ok", 79: "ok", 80: "warning", 100: "warning", 101: "critical"}
    ages = {40: "ok", 50: "warning", 61: "critical"}
    ids = seed(valkey, "q:b", 120, delivered=120)
    for n in backlogs:
        ask(valkey, "XGROUP", "CREATE", "q:b", f"{n}", ids[119 - n])
    now = now_ms(valkey)
    for n in ages:
        event = intent(timestamp=now - n * 60_000)
        fill(valkey, f"q:a{n}", [(now, event)], group=f"{n}")
    options = ("--max-backlog", 100, "--redis-url", valkey.url, "--all-streams", "q:*")
    run = cli("check", "--json", *options)
    assert run.rc == 2, run
    found = {(f["stream"], f["group"]): f["severity"] for f in run.json()["findings"]}
    expected = {("q:b", f"{n}"): severity for n, severity in backlogs.items()}
    expected |= {(f"q:a{n}", f"{n}"): severity for n, severity in ages.items()}
    assert found == expected | {("q:b", GROUP): "ok"}
    groups = {g["name"]: g for s in run.json()["streams"] for g in s["groups"]}
    for n in ages:
        assert groups[f"{n}"]["oldest_age_sec"] == pytest.approx(n * 60, abs=30)
    for group, code, word in (("79", 0, "OK"), ("80", 1, "WARNING"), ("101", 2, "CRITICAL")):
        one = cli("check", "--max-backlog", 100, "--group", group, *at(valkey, "q:b"))
        assert (one.rc, one.out.count("\n")) == (code, 1), one
        assert one.out.startswith(f"{word}: q:b {group}: ")


def test_each_criterion_is_judged(valkey: Server, stream: str, cli: Cli) -> None:
    """Pending, their age and the kill switch each make a finding."""
    now = now_ms(valkey)
    entries = [(now - 7_200_000 + i, intent()) for i in range(10)]
    fill(valkey, stream, entries, group=GROUP)
    ask(valkey, "XREADGROUP", "GROUP", GROUP, "dead", "STREAMS", stream, ">")
    run = cli("check", *at(valkey, stream))
    assert (run.rc, run.out.count("\n")) == (2, 1)
    assert "the oldest pending entry is 120." in run.out
    calm = ("check", "--max-pending-age-min", "999", *at(valkey, stream))
    assert cli(*calm).rc == 0
    assert cli(*calm, "--max-pending", 9).rc == 2
    assert cli(*calm, "--max-pending", 12).rc == 1
    cli("stop", "--reason", "drill", *at(valkey, stream))
    run = cli(*calm)
    assert run.rc == 1
    assert "kill switch is set (drill)" in run.out
    run = cli(*calm, "--max-pending", 1)
    assert run.rc == 2
    assert [line.split(":")[0] for line in run.out.splitlines()] == ["CRITICAL", "WARNING"]


def test_unknown_is_exit_code_3(valkey: Server, stream: str, cli: Cli) -> None:
    """A missing stream, group or server, an age that nobody knows, bad usage: all are unknown."""
    seed(valkey, stream, 5, delivered=5)
    assert cli("check", *at(valkey, stream), "--group", GROUP).rc == 0
    run = cli("check", *at(valkey, stream), "--group", "nobody")
    assert (run.rc, "UNKNOWN" in run.out) == (3, True)
    assert cli("check", *at(valkey, f"{stream}.nothing")).rc == 3
    fill(valkey, "timeless", [("5-1", intent())], group=GROUP)
    assert "no usable time" in cli("check", *at(valkey, "timeless")).out
    assert cli("check", *at(valkey, "timeless")).rc == 3
    url = f"redis://u:{SECRET}@127.0.0.1:{servers.free_port()}/0"
    run = cli("check", "--redis-url", url, "--json", secret=SECRET)
    assert run.rc == 3
    assert run.json()["status"] == "unknown"
    one_line_error(run.err)
    for bad in (
        ("--max-backlog", "-1"), ("--max-age-min", "nan"), ("--max-age-min", "inf"), ("--nope",),
        ("--max-backlog", "many"), ("--env", "mars"), ("--format", "xml"),
    ):  # fmt: skip
        run = cli("check", *at(valkey, stream), *bad)
        assert run.rc == 3, bad
        one_line_error(run.err)


def test_the_worst_finding_decides(valkey: Server, cli: Cli) -> None:
    """Over all streams of a pattern: critical is worse than unknown, unknown worse than warning."""
    now = now_ms(valkey)
    fill(valkey, "q:ok", [(now, intent())], group="g", position=f"{now}-0")
    fill(valkey, "q:warn", [(now + i, intent()) for i in range(9)], group="g")
    fill(valkey, "q:nogroup", [(now, intent())])
    fill(valkey, "q:ok.drain_audit", [(now, {"action": "drained_ok"})], group="g")
    fill(valkey, "other", [(1, intent())], group="g")
    ask(valkey, "SET", "q:text", "x")
    options = ("check", "--redis-url", valkey.url, "--max-backlog", 10, "--all-streams")
    run = cli(*options, "q:*", "--json")
    assert run.rc == 1
    assert {f["stream"]: f["severity"] for f in run.json()["findings"]} == {
        "q:ok": "ok", "q:warn": "warning", "q:nogroup": "ok",
    }  # fmt: skip
    ask(valkey, "SET", "q:ok.drain_stop", "{}")
    ask(valkey, "SET", "q:warn.drain_audit", "no stream")
    run = cli(*options, "q:*")
    assert run.rc == 3
    fill(valkey, "q:bad", [(now + i, intent()) for i in range(11)], group="g")
    run = cli(*options, "q:*")
    assert run.rc == 2
    assert run.out.startswith("CRITICAL: q:bad g: 11 entries undelivered, limit 10")
    assert cli(*options, "nothing:*").rc == 3


def test_all_streams_of_a_cluster(cluster: clusters.Cluster, cli: Cli) -> None:
    """Streams are found on every primary, and each is counted where it is."""
    client: Any = cluster.client()
    for i in range(12):
        client.execute_command("XADD", f"q:{i}", "*", "symbol", "BTCUSDT")
        client.execute_command("XGROUP", "CREATE", f"q:{i}", "g", "0")
    run = cli.done("check", "--redis-url", cluster.url, "--all-streams", "q:*", "--json")
    assert {s["stream"]["name"] for s in run.json()["streams"]} == {f"q:{i}" for i in range(12)}
    assert [s["groups"][0]["lag_counted"] for s in run.json()["streams"]] == [1] * 12


# ---------------------------------------------------------------- metrics


def test_metrics_say_what_is_there(server: Server, stream: str, cli: Cli) -> None:
    """Every number of the exposition is the server's, odd names are escaped, nothing is written."""
    odd = 'we"ird\\group\n'
    seed(server, stream, 60, delivered=20)
    ask(server, "XGROUP", "CREATE", stream, odd, "0")
    ask(server, "XREADGROUP", "GROUP", GROUP, "c1", "COUNT", 7, "STREAMS", stream, ">")
    for action in ("drained_ok", "drained_ok", "dropped_old", "what?"):
        ask(server, "XADD", f"{stream}.drain_audit", "*", "action", action)
    for second, outcome in ((1, "done"), (2, "failed"), (9, "done"), (3, "?")):
        end = {"event": "end", "run_id": "20260101T000000Z-live-abc123", "scope": "undelivered",
               "consumer_group": GROUP, "consumer": "c", "outcome": outcome, "total_read": "1",
               "at": f"2026-01-01T00:00:0{second}+00:00" if outcome != "?" else "?"}  # fmt: skip
        flat = [part for pair in end.items() for part in pair]
        ask(server, "XADD", f"{stream}.drain_runs", "*", *flat)
    before = everything(server)
    run = cli.done("check", "--format", "prometheus", *at(server, stream))
    found = metrics(run.out)
    last = {k[2]: v for k, v in found.items() if k[0] == "drainkit_last_run_timestamp_seconds"}
    assert last == {"done": 1767225609, "failed": 1767225602}
    assert found[("drainkit_up",)] == 1
    assert found[("drainkit_check_status",)] == 0
    assert found[("drainkit_stream_entries", stream)] == 60
    assert found[("drainkit_stopped", stream)] == 0
    scopes = ("undelivered", "pending", "history")
    backlog = [found[("drainkit_backlog_entries", GROUP, scope, stream)] for scope in scopes]
    assert backlog == [33, 7, 27]
    assert found[("drainkit_pending_entries", GROUP, stream)] == 7
    assert found[("drainkit_pending_entries", odd, stream)] == 0
    assert found[("drainkit_consumers", GROUP, "active", stream)] == 1
    assert found[("drainkit_audit_entries", "drained_ok", stream)] == 2
    assert found[("drainkit_audit_entries", "other", stream)] == 1
    assert 0 < found[("drainkit_oldest_age_seconds", GROUP, stream)] < 60
    assert everything(server) == before


def test_the_textfile_is_whole(valkey: Server, stream: str, cli: Cli) -> None:
    """--textfile holds the metrics; when the server is away it says drainkit_up 0."""
    seed(valkey, stream, 5, delivered=5)
    run = cli.done("check", "--textfile", "d.prom", *at(valkey, stream))
    assert run.out.startswith("OK: ")
    assert metrics((cli.cwd / "d.prom").read_text())[("drainkit_up",)] == 1
    url = f"redis://127.0.0.1:{servers.free_port()}/0"
    assert cli("check", "--textfile", "d.prom", "--redis-url", url).rc == 3
    assert metrics((cli.cwd / "d.prom").read_text())[("drainkit_up",)] == 0
    assert [p.name for p in cli.cwd.iterdir()] == ["d.prom"]
