"""Drains that nobody watches: --if-needed, limits, environments."""

from __future__ import annotations

import json
import time

import pytest
from backlogs import ALLOW, GROUP, fill, now_ms, seed
from books import PASSWORD, ask, assert_books_balance, at, audit, everything, live, make_user
from conftest import Cli, intent
from servers import Server

from drainkit.draining.unattended import check_limits, require_limits
from drainkit.settings import Limits

LIMITS = "[limits]\nmax_events = 200\nmax_drained_ok = 200\nmax_drift = 0\n"


def scheduled(server: Server, stream: str, *options: object) -> tuple[object, ...]:
    return ("run", "--mode", "live", "--yes", "--json", "--throttle", "none", "--max-events",
            "all", *at(server, stream), *options)  # fmt: skip


# ---------------------------------------------------------------- scheduled runs


def test_only_a_backlog_over_the_limit_is_drained(valkey: Server, stream: str, cli: Cli) -> None:
    """--if-backlog-over N: at or below N it ends with 0, no evidence, nothing written; above N it
    drains, with evidence, as the drainer's user, and the lease is free again."""
    (cli.cwd / "drainkit.toml").write_text(LIMITS)
    seed(valkey, stream, 150, delivered=100)
    before = everything(valkey)
    for n in (50, 51):
        run = cli.done(*scheduled(valkey, stream, "--if-backlog-over", n))
        assert "nothing to do" in run.json()["skipped"]
    assert everything(valkey) == before
    assert not (cli.cwd / "reports").exists()
    url = make_user(cli, valkey, stream, "drainer")
    command = (*scheduled(valkey, stream, "--if-backlog-over", 49), "--redis-url", url)
    run = cli.done(*command, secret=PASSWORD)
    assert run.json()["total_read"] == 50
    assert (cli.cwd / "reports" / run.json()["run_id"] / "SHA256SUMS").exists()
    assert cli(*command, secret=PASSWORD).json()["skipped"].startswith("nothing to do: the backlog")


def test_runs_do_not_pile_up(valkey: Server, stream: str, cli: Cli) -> None:
    """While one holds the group's lease the next ends with 0; a lease that ran out is taken."""
    from drainkit.server import writing
    from drainkit.server.connection import Server as Link

    (cli.cwd / "drainkit.toml").write_text(LIMITS)
    seed(valkey, stream, 120, delivered=100)
    with Link(valkey.url, stream) as link:
        assert writing.hold_lease(link, GROUP, "me", 60_000) == 0
        assert writing.hold_lease(link, GROUP, "me", 60_000) == 0
        assert 59_000 < writing.hold_lease(link, GROUP, "you", 60_000) <= 60_000
        assert writing.hold_lease(link, "another group", "you", 60_000) == 0
        run = cli.done(*scheduled(valkey, stream, "--if-backlog-over", 0))
        assert "another scheduled run" in run.json()["skipped"]
        assert audit(valkey, stream) == []
        assert writing.hold_lease(link, GROUP, "you", 0) > 0
        assert writing.hold_lease(link, GROUP, "me", 200) == 0
        time.sleep(0.3)
        assert writing.hold_lease(link, GROUP, "you", 60_000) == 0
        assert writing.hold_lease(link, GROUP, "you", 0) == 0
        assert writing.hold_lease(link, GROUP, "me", 0) == 0


def test_a_clock_set_back_holds_timers_for_a_minute_at_most(
    server: Server, stream: str, cli: Cli
) -> None:
    """A dead run's lease that ends in an hour, by the server's clock of now, runs out in 60 s."""
    (cli.cwd / "drainkit.toml").write_text(LIMITS)
    seed(server, stream, 120, delivered=100)
    now = now_ms(server)
    ask(server, "HSET", f"{stream}.drain_state", f"lease:{GROUP}", f"dead {now + 3_600_000}")
    run = cli(*scheduled(server, stream, "--if-backlog-over", 0))
    assert "another scheduled run" in run.json()["skipped"]
    lease = ask(server, "HGET", f"{stream}.drain_state", f"lease:{GROUP}").split()
    assert lease[0] == b"dead"
    assert int(lease[1]) <= now_ms(server) + 60_000


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


def test_runs_stay_within_limits(valkey: Server, stream: str, cli: Cli) -> None:
    """Without limits a scheduled run is refused; beyond them run and drain are; nothing changes."""
    seed(valkey, stream, 150, delivered=100)
    before = ask(valkey, "XINFO", "STREAM", stream, "FULL", "COUNT", 0)
    run = cli(*scheduled(valkey, stream, "--if-backlog-over", 0))
    assert (run.rc, "[limits]" in run.err) == (4, True)
    toml = cli.cwd / "drainkit.toml"
    toml.write_text(LIMITS.replace("max_events = 200", "max_events = 49"))
    for command in (
        scheduled(valkey, stream, "--if-backlog-over", 0),
        live(valkey, stream),
    ):
        run = cli(*command)
        assert (run.rc, "max_events is 49" in run.err) == (4, True)
    toml.write_text(LIMITS.replace("max_drained_ok = 200", "max_drained_ok = 0"))
    assert "max_drained_ok is 0" in cli(*live(valkey, stream)).err
    assert ask(valkey, "XINFO", "STREAM", stream, "FULL", "COUNT", 0) == before
    assert audit(valkey, stream) == []


def test_a_plan_that_aged_is_refused(valkey: Server, stream: str, cli: Cli) -> None:
    """max_drift counts the plan's events that grew too old since; beyond it nothing is drained,
    within it they are dropped_old, and listed as drift."""
    first = now_ms(valkey) + 1500  # ahead, so that there is time to plan
    fill(valkey, stream, [(first + i, intent()) for i in range(20)], group=GROUP)
    old = ("--max-age-min", "0.05", "--throttle", "none", "--max-events", "all")
    assert cli("drain", "--plan", "plan.json", *old, *at(valkey, stream)).rc == 0
    time.sleep(max(0, first + 3100 - now_ms(valkey)) / 1000)
    (cli.cwd / "drainkit.toml").write_text(LIMITS)
    run = cli(*live(valkey, stream, "--plan", "plan.json"))
    assert (run.rc, "max_drift is 0" in run.err) == (4, True)
    assert audit(valkey, stream) == []
    (cli.cwd / "drainkit.toml").write_text(LIMITS.replace("max_drift = 0", "max_drift = 20"))
    run = cli.done(*live(valkey, stream, "--plan", "plan.json"))
    drift = {"planned": "drained_ok", "happened": "dropped_old", "events": 20}
    assert run.json()["drift"] == [drift]
    assert_books_balance(valkey, stream, run.json())


def test_environments_have_own_values(valkey: Server, stream: str, cli: Cli) -> None:
    """--env picks allowlist (list, file, Redis set) and limits; the plan records the symbols."""
    (cli.cwd / "drainkit.toml").write_text(
        'stream = "nothing"\n'
        f'[env.testnet]\nstream = "{stream}"\nallowlist = ["BTCUSDT"]\n'
        f'[env.file]\nstream = "{stream}"\nallowlist = "@symbols.txt"\n'
        f'[env.production]\nstream = "{stream}"\nallowlist = "redis:allowed"\n'
        "[env.production.limits]\nmax_events = 1\nmax_drained_ok = 1\nmax_drift = 1\n"
    )
    (cli.cwd / "symbols.txt").write_text("ETHUSDT # one\n")
    ask(valkey, "SADD", "allowed", "BTCUSDT", "ETHUSDT")
    seed(valkey, stream, 60, delivered=0)
    expected = {"testnet": ["BTCUSDT"], "file": ["ETHUSDT"], "production": sorted(ALLOW.split(","))}
    for env, symbols in expected.items():
        run = cli.done("drain", "--redis-url", valkey.url, "--env", env, "--plan", f"{env}.json")
        plan = json.loads((cli.cwd / f"{env}.json").read_text())
        assert plan["policy"]["allowlist"] == symbols
    run = cli("drain", "--mode", "live", "--yes", "--redis-url", valkey.url, "--env", "production")
    assert (run.rc, "max_events is 1" in run.err) == (4, True)


def test_a_changed_allowlist_is_a_changed_policy(valkey: Server, stream: str, cli: Cli) -> None:
    """A Redis set that changed between plan and live run refuses the plan, and nothing is done."""
    ask(valkey, "SADD", "allowed", "BTCUSDT")
    seed(valkey, stream, 60, delivered=0)
    options = (*at(valkey, stream), "--allowlist", "redis:allowed", "--plan", "p.json")
    assert cli("drain", *options).rc == 0
    ask(valkey, "SADD", "allowed", "DOGEUSDT")
    assert "allowlist" in cli.fails(4, "drain", "--mode", "live", "--yes", *options)
    assert audit(valkey, stream) == []
