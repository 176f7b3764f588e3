"""The first screen of status: its facts are those of check, of a dry run and of the ledger."""

from __future__ import annotations

import json
import signal
import time

from backlogs import ALLOW, GROUP, fill, now_ms, seed
from books import ask, at, live
from conftest import Cli, intent
from servers import Server


def test_it_says_what_check_dry_run_and_ledger_say(server: Server, stream: str, cli: Cli) -> None:
    """The verdict is check's; what passes, by symbol, and what cannot be read are a dry run's; the
    last run is the ledger's; the next command carries what was given."""
    seed(server, stream, 900, delivered=0)
    where = (*at(server, stream), "--allowlist", ALLOW)
    assert cli(*live(server, stream, "--max-events", 40, "--operator", "olga")).rc == 0
    found = cli("status", "--json", *where).json()
    dry = cli("drain", "--json", "--max-events", "all", *where).json()
    check = cli("check", "--json", *at(server, stream)).json()
    decided, last = found["decided"], found["last_run"]
    assert found["verdict"] == {key: check[key] for key in ("status", "exit_code", "findings")}
    assert (decided["would_pass"], decided["events"]) == (dry["drained_ok"], dry["total_read"])
    assert sum(decided["symbols"].values()) == dry["drained_ok"] > 0
    assert set(decided["symbols"]) == {"BTCUSDT", "ETHUSDT"}
    assert sum(decided["unreadable"].values()) == dry["dropped_invalid"] > 0
    assert (last["operator"], last["outcome"], last["total_read"]) == ("olga", "done", 40)
    assert found["groups"][0]["oldest_age_sec"] > 0
    text = cli("status", *where)
    assert len(text.out.splitlines()) <= 15
    assert text.out.startswith("WARNING: 860 entries undelivered, limit 1,000")
    assert f"Would pass now: {dry['drained_ok']:,} of 860: " in text.out
    assert "by olga: done, 40 read, " in text.out
    assert "Next drain: the first 500 of 860, 100 s at 5 per second: 860 undelivered" in text.out
    why, n = next(iter(decided["unreadable"].items()))  # what may be cut is the reason
    assert f"Unreadable: {dry['dropped_invalid']} of 860: {n} {why}" in text.out
    assert text.out.splitlines()[-1].endswith(f"--allowlist {ALLOW}")
    assert "Newest: " not in text.out
    assert "Newest: " in cli("status", "-v", *where).out


def test_a_large_backlog_is_sampled_from_end_to_end(valkey: Server, stream: str, cli: Cli) -> None:
    """Of a burst in a quiet month whose older half cannot be read about half is told unreadable."""
    now = now_ms(valkey)
    quiet = [(now - 30 * 86_400_000 + i * 3_600_000, intent()) for i in range(600)]
    burst = [(now - 20_000 + i, intent() if i > 10_000 else {"x": "y"}) for i in range(20_000)]
    fill(valkey, stream, [*quiet, *burst], group=GROUP)
    decided = cli("status", "--json", *at(valkey, stream)).json()["decided"]
    share = sum(decided["unreadable"].values()) / decided["events"]
    assert (decided["is_sample"], decided["undelivered"]) == (True, 20_600)
    assert 3_000 < decided["events"] < 6_000
    assert 0.4 < share < 0.6, share
    assert " sampled" in cli("status", *at(valkey, stream)).out


def test_it_names_the_next_command(valkey: Server, stream: str, cli: Cli) -> None:
    """The command is that of the worst that is there; a password of the URL is not in it."""

    def told(*options: str) -> str:
        return cli("status", *options, *at(valkey, stream)).out.splitlines()[-1]

    fill(valkey, stream, [(now_ms(valkey), {"x": "y"})] * 1, group="mine")
    assert "drainkit status --consumer-group mine --redis-url" in told()
    assert "drainkit fields " in told("--consumer-group", "mine")
    ask(valkey, "XREADGROUP", "GROUP", "mine", "c", "STREAMS", stream, ">")
    pending = told("--consumer-group", "mine")
    assert "run --scope pending" in pending
    assert pending.endswith("--consumer-group mine") or "--consumer-group mine " in pending
    ask(valkey, "XACK", stream, "mine", ask(valkey, "XRANGE", stream, "-", "+")[0][0])
    assert "nothing waits" in told("--consumer-group", "mine")
    nothing = cli("status", "--consumer-group", "mine", *at(valkey, stream)).out
    assert "Next drain: nothing; 0 undelivered" in nothing
    assert cli("stop", "--reason", "r", *at(valkey, stream)).rc == 0
    assert "drainkit resume --redis-url" in told()
    url = valkey.tcp_url.replace("redis://", "redis://default:pw@")
    assert "redis-url" not in cli("status", "--redis-url", url, "--stream", stream).out


def test_watch_goes_on_until_it_is_interrupted(valkey: Server, stream: str, cli: Cli) -> None:
    """Each second one screen, or one JSON object, of the state then; an interrupt ends with 130."""
    seed(valkey, stream, 30, delivered=10)
    watch = ("status", "--watch", 1, *at(valkey, stream))
    processes = [cli.start(*watch), cli.start(*watch, "--json")]
    time.sleep(2.5)
    ask(valkey, "XADD", stream, "*", "x", "y")
    time.sleep(2)
    for process in processes:
        process.send_signal(signal.SIGINT)
    text, objects = (cli.finish(process) for process in processes)
    lines = [line.split() for line in text.out.splitlines() if line.startswith("Backlog: ")]
    for run, counts in (
        (text, [int(line[1]) for line in lines]),
        (objects, [json.loads(o)["decided"]["undelivered"] for o in objects.out.splitlines()]),
    ):
        assert (run.rc, counts[0], counts[-1]) == (130, 20, 21), run
        assert len(counts) > 2
