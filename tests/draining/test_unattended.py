"""What holds a live drain back: scheduled runs, limits, environments, what cannot be read."""

from __future__ import annotations

import json
import time

import pytest
from backlogs import ALLOW
from books import PASSWORD, make_user
from conftest import CliResult, intent
from place import BUNDLED, Place


def limit(place: Place, name: str = "", value: int | None = None) -> None:
    """drainkit.toml with limits, of which one is another (None: not there)."""
    limits = {"max_events": 200, "max_drained_ok": 200, "max_drift": 0, name: value}
    lines = (f"{name} = {most}\n" for name, most in limits.items() if most is not None)
    (place.cli.cwd / "drainkit.toml").write_text("[limits]\n" + "".join(lines))


def scheduled(place: Place, over: int, *options: object) -> CliResult:
    """A run as a timer starts it."""
    return place.says("run", "--mode", "live", "--yes", "--json", "--throttle", "none",
                      "--max-events", "all", "--if-backlog-over", over, *options,
                      secret=PASSWORD)  # fmt: skip


# ---------------------------------------------------------------- scheduled runs


@BUNDLED
def test_only_a_backlog_over_the_limit_is_drained(place: Place) -> None:
    """--if-backlog-over N: at or below N it ends with 0, no evidence, nothing written; above N it
    drains, with evidence, as the drainer's user."""
    limit(place)
    place.seed(150)
    before = place.everything()
    for n in (50, 51):
        assert "nothing to do" in scheduled(place, n).json()["skipped"]
    assert place.everything() == before
    assert not (place.cli.cwd / "reports").exists()
    url = make_user(place.cli, place.server, place.stream, "drainer")
    run = scheduled(place, 49, "--redis-url", url).json()
    assert run["total_read"] == 50
    assert (place.cli.cwd / "reports" / run["run_id"] / "SHA256SUMS").exists()
    again = scheduled(place, 49, "--redis-url", url).json()
    assert again["skipped"].startswith("nothing to do: the backlog")


# ---------------------------------------------------------------- limits, environments


@BUNDLED
def test_runs_stay_within_limits(place: Place) -> None:
    """Without every limit a scheduled run is refused; just beyond one run and drain are; nothing
    changes."""
    place.seed(150)
    before = place.ask("DUMP", place.stream)
    for name in ("max_events", "max_drained_ok", "max_drift"):
        limit(place, name)
        run = scheduled(place, 0)
        assert (run.rc, "[limits]" in run.err, name in run.err) == (4, True, True)
    limit(place, "max_events", 49)
    run = scheduled(place, 0)
    assert (run.rc, "max_events is 49" in run.err) == (4, True)
    passing = place.dry()["drained_ok"]
    for name, most in (("max_events", 49), ("max_drained_ok", passing - 1)):
        limit(place, name, most)
        assert f"{name} is {most}" in place.refused()
    assert place.ask("DUMP", place.stream) == before
    assert place.audit() == []
    limit(place, "max_drained_ok", passing)
    assert place.live()["drained_ok"] == passing


@BUNDLED
def test_a_plan_that_aged_is_refused(place: Place) -> None:
    """max_drift counts the plan's events that grew too old since; beyond it nothing is drained,
    within it they are dropped_old, and listed as drift."""
    first = place.now_ms() + 1500  # ahead, so that there is time to plan
    place.fill((first + i, intent()) for i in range(20))
    place.dry("--plan", "plan.json", "--max-age-min", "0.05", "--throttle", "none",
              "--max-events", "all")  # fmt: skip
    time.sleep(max(0, first + 3100 - place.now_ms()) / 1000)
    limit(place)
    assert "max_drift is 0" in place.refused("--plan", "plan.json")
    assert place.audit() == []
    limit(place, "max_drift", 20)
    run = place.live("--plan", "plan.json")
    drift = {"planned": "drained_ok", "happened": "dropped_old", "events": 20}
    assert run["drift"] == [drift]
    place.balanced(run)


@BUNDLED
def test_environments_have_own_values(place: Place) -> None:
    """--env picks allowlist (list, file, Redis set) and limits, beside those of all; the plan
    records the symbols, and a set that changed since is a changed policy: refused, nothing done."""
    cwd = place.cli.cwd
    given = {"testnet": '["BTCUSDT"]', "file": '"@symbols.txt"', "production": '"redis:allowed"'}
    tables = (f'[env.{env}]\nstream = "{place.stream}"\nallowlist = {symbols}\n'
              for env, symbols in given.items())  # fmt: skip
    limits = "[limits]\nmax_events = 1\n[env.production.limits]\nmax_drained_ok = 99\n"
    (cwd / "drainkit.toml").write_text('stream = "nothing"\n' + "".join(tables) + limits)
    (cwd / "symbols.txt").write_text("ETHUSDT # one\n")
    place.ask("SADD", "allowed", "BTCUSDT", "ETHUSDT")
    place.seed(60, 0)
    expected = {"testnet": ["BTCUSDT"], "file": ["ETHUSDT"], "production": sorted(ALLOW.split(","))}
    here = ("drain", "--redis-url", place.server.url, "--env")
    for env, symbols in expected.items():
        place.cli.done(*here, env, "--plan", f"{env}.json")
        plan = json.loads((cwd / f"{env}.json").read_text())
        assert plan["policy"]["allowlist"] == symbols
    live = (*here, "production", "--mode", "live", "--yes")
    assert "max_events is 1" in place.cli.fails(4, *live)
    place.ask("SADD", "allowed", "DOGEUSDT")
    assert "allowlist" in place.cli.fails(4, *live, "--plan", "production.json")
    assert place.audit() == []


# ---------------------------------------------------------------- what cannot be read


def odd(place: Place, bad: int, good: int, *, age_ms: int = 1000) -> None:
    """A backlog of events with percentages as confidence, then of good ones."""
    first = place.now_ms() - age_ms - bad - good
    place.fill((first + i, intent(confidence="78%" if i < bad else 0.8)) for i in range(bad + good))


@BUNDLED
@pytest.mark.parametrize(
    ("command", "age_ms"),
    [("drain", 4_000_000), ("drain --plan plan.json", 4_000_000), ("run", 1000)],
)
def test_unreadable_is_refused(place: Place, command: str, age_ms: int) -> None:
    """600 events with "78%" as confidence, too old or not: a live drain is refused (4) with the
    reason and `drainkit fields`, and audits nothing; --allow-invalid lets it go on."""
    odd(place, 600, 10, age_ms=age_ms)
    verb, *plan = command.split()
    every = (verb, "--max-events", "all", "--throttle", "none", *plan)
    if plan:
        assert place.says(*every).rc == 0
    live = (*every, "--mode", "live", "--yes")
    refused = place.says(*live)
    assert (refused.rc, place.audit()) == (4, []), refused
    for words in ("600 of 610 events cannot be read: confidence not a number (600)",
                  "drainkit fields", "--allow-invalid"):  # fmt: skip
        assert words in refused.err
    if verb == "drain":
        assert place.says(*live, "--allow-invalid").rc == 0
        assert len(place.audit()) == 610


@BUNDLED
@pytest.mark.parametrize(
    ("bad", "good", "most", "refused"),
    [(19, 1, 99, False), (20, 80, 100, False), (21, 79, 100, True), (30, 970, 100, True),
     (20, 0, 19, False)],
)  # fmt: skip
def test_a_fifth_and_twenty_are_the_limits(
    place: Place, bad: int, good: int, most: int, refused: bool
) -> None:
    """Refused are more than a fifth, at least 20, of the entries that this drain would take; the
    dry run says how many good signals it would acknowledge, and that it executes none."""
    odd(place, bad, good)
    said = place.says("drain", "--max-events", most).out
    assert f"acknowledges {max(0, min(good, most - bad))} good signals and executes none" in said
    if refused:
        assert f"{bad} of " in place.refused("--max-events", most)
    else:
        assert place.live("--max-events", most)["total_read"] == min(bad + good, most)
