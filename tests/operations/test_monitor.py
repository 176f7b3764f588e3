"""Monitoring: counts are right where Redis's lag is not, and the exit code says how bad it is."""

from __future__ import annotations

from typing import Any

import clusters
import pytest
import servers
from backlogs import GROUP, fill, now_ms, seed
from books import ask, at, metrics
from conftest import Cli, intent, one_line_error
from place import BUNDLED, Place
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


@BUNDLED
def test_each_criterion_is_judged(place: Place) -> None:
    """Pending, their age and the kill switch each make a finding, the worst of them first."""
    now = place.now_ms()
    place.fill([(now - 7_200_000 + i, intent()) for i in range(10)])
    place.deliver("dead", 10)
    run = place.says("check")
    assert (run.rc, run.out.count("\n")) == (2, 1)
    assert "the oldest pending entry is 120." in run.out
    calm = ("--max-pending-age-min", "999")
    codes = [place.says("check", *calm, *more).rc
             for more in ((), ("--max-pending", 9), ("--max-pending", 12))]  # fmt: skip
    assert codes == [0, 2, 1]
    place.says("stop", "--reason", "drill")
    run = place.says("check", *calm)
    assert (run.rc, "kill switch is set (drill)" in run.out) == (1, True)
    run = place.says("check", *calm, "--max-pending", 1)
    assert [line.split(":")[0] for line in run.out.splitlines()] == ["CRITICAL", "WARNING"]


@BUNDLED
def test_unknown_is_exit_code_3(place: Place) -> None:
    """A missing stream, group or server, an age that nobody knows, bad usage: all are unknown."""
    place.seed(5, 5)
    run = place.says("check", "--group", "nobody")
    assert (run.rc, "UNKNOWN" in run.out) == (3, True)
    assert place.says("check", "--stream", f"{place.stream}.nothing").rc == 3
    fill(place.server, "timeless", [("5-1", intent())], group=GROUP)
    run = place.says("check", "--stream", "timeless")
    assert (run.rc, "no usable time" in run.out) == (3, True)
    url = f"redis://u:{SECRET}@127.0.0.1:{servers.free_port()}/0"
    run = place.cli("check", "--redis-url", url, "--json", secret=SECRET)
    assert (run.rc, run.json()["status"]) == (3, "unknown")
    one_line_error(run.err)
    for bad in (
        ("--max-backlog", "-1"), ("--max-age-min", "nan"), ("--max-age-min", "inf"), ("--nope",),
        ("--max-backlog", "many"), ("--env", "mars"), ("--format", "xml"),
    ):  # fmt: skip
        place.cli.fails(3, "check", *place.where, *bad)


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
    for pattern in ("nothing:*", ""):
        assert cli(*options, pattern, "--stream", "q:nogroup").rc == 3


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


def test_metrics_say_what_is_there(place: Place) -> None:
    """Every number of the exposition is the server's, odd names are escaped, nothing is written."""
    odd, stream = 'we"ird\\group\n', place.stream
    place.seed(60, 20)
    place.ask("XGROUP", "CREATE", stream, odd, "0")
    place.deliver("c1", 7)
    for action in ("drained_ok", "drained_ok", "dropped_old", "what?"):
        place.ask("XADD", place.side("audit"), "*", "action", action)
    for second, outcome in ((1, "done"), (2, "failed"), (9, "done"), (3, "?")):
        end = {"event": "end", "run_id": "20260101T000000Z-live-abc123", "scope": "undelivered",
               "consumer_group": GROUP, "consumer": "c", "outcome": outcome, "total_read": "1",
               "at": f"2026-01-01T00:00:0{second}+00:00" if outcome != "?" else "?"}  # fmt: skip
        place.ask("XADD", place.side("runs"), "*", *(part for pair in end.items() for part in pair))
    before = place.everything()
    run = place.says("check", "--format", "prometheus")
    assert (run.rc, place.everything() == before) == (0, True)
    found = metrics(run.out)
    assert 0 < found["drainkit_oldest_age_seconds", GROUP, stream] < 60
    expected = {
        ("up",): 1, ("check_status",): 0, ("stream_entries", stream): 60, ("stopped", stream): 0,
        ("backlog_entries", GROUP, "undelivered", stream): 33,
        ("backlog_entries", GROUP, "pending", stream): 7,
        ("backlog_entries", GROUP, "history", stream): 27,
        ("pending_entries", GROUP, stream): 7, ("pending_entries", odd, stream): 0,
        ("consumers", GROUP, "active", stream): 1,
        ("audit_entries", "drained_ok", stream): 2, ("audit_entries", "other", stream): 1,
        ("last_run_timestamp_seconds", GROUP, "done", stream): 1767225609,
        ("last_run_timestamp_seconds", GROUP, "failed", stream): 1767225602,
    }  # fmt: skip
    told = {(name.removeprefix("drainkit_"), *of): value for (name, *of), value in found.items()}
    assert expected.items() <= told.items()
    assert sum(name == "last_run_timestamp_seconds" for name, *_ in told) == 2


@BUNDLED
def test_the_textfile_is_whole(place: Place) -> None:
    """--textfile holds the metrics; when the server is away it says drainkit_up 0."""
    place.seed(5, 5)
    file = place.cli.cwd / "d.prom"
    run = place.says("check", "--textfile", "d.prom")
    assert (run.rc, run.out[:4], metrics(file.read_text())["drainkit_up",]) == (0, "OK: ", 1)
    url = f"redis://127.0.0.1:{servers.free_port()}/0"
    assert place.says("check", "--textfile", "d.prom", "--redis-url", url).rc == 3
    assert metrics(file.read_text())["drainkit_up",] == 0
    assert "choose another place" in place.says("check", "--textfile", ".").err
    assert [p.name for p in place.cli.cwd.iterdir()] == ["d.prom"]
