"""The kill switch speaks: who stopped, when and why, wherever somebody meets it; and the ledger."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime

import pytest
from backlogs import seed
from books import PASSWORD, ask, at, audit, everything, ledger_of, live, make_user, wait_for
from conftest import Cli
from servers import Server

from drainkit.server.reading import StopSwitch
from drainkit.views.live_drain import LiveDrain

WHO = ("--operator", "alice", "--reason", "odd\x1b[31m fills")


def test_everybody_hears_who_stopped_and_why(
    server: Server, stream: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """status, check, a refused drain, a drain that is stopped, and the live notebook, armed or not,
    say operator, time and reason; once `stop` returned nothing more is acknowledged until `resume`.
    """
    seed(server, stream, 300, delivered=0)
    process = cli.start(*live(server, stream, "--throttle", 20))
    wait_for(server, stream, 5)
    before = datetime.now(UTC)
    assert cli("stop", *WHO, *at(server, stream)).rc == 0
    at_stop = len(audit(server, stream))
    cut_off, refused = cli.finish(process), cli(*live(server, stream))
    status = cli("status", "--json", *at(server, stream)).json()["stop"]
    texts = [
        cut_off.err, refused.err, cli("status", *at(server, stream)).out,
        cli("check", *at(server, stream)).out,
        cli("stop", "--reason", "again", *at(server, stream)).out,
    ]  # fmt: skip
    monkeypatch.setenv("DRAINKIT_REDIS_URL", server.url)
    view = LiveDrain.open({"redis_url_env": "DRAINKIT_REDIS_URL", "stream": stream})
    texts.append(view.bottom_line().data)
    view.server.close()
    assert (cut_off.rc, refused.rc) == (4, 4)
    assert len(audit(server, stream)) == at_stop == cut_off.json()["total_read"]
    assert (status["operator"], status["reason"]) == ("alice", "odd\\x1b[31m fills")
    assert abs((datetime.fromisoformat(status["at"]) - before).total_seconds()) < 30
    for said in texts:
        assert "(odd\\x1b[31m fills)" in said
        assert f"by alice at {status['at']}" in said
        assert "\x1b" not in said
    assert cut_off.json()["error"] in cut_off.err
    assert cli("resume", *at(server, stream)).rc == 0
    assert cli(*live(server, stream)).rc == 0
    assert len(audit(server, stream)) == 300


def test_stop_needs_a_reason_and_a_stream(valkey: Server, stream: str, cli: Cli) -> None:
    """No reason is bad usage; a misspelt stream is refused: its drain would go on."""
    seed(valkey, stream, 5, delivered=0)
    before = everything(valkey)
    assert cli("stop", *at(valkey, stream)).rc == 2
    assert cli("stop", "--reason", " ", *at(valkey, stream)).rc == 2
    assert "does not exist" in cli.fails(4, "stop", "--reason", "r", *at(valkey, f"{stream}x"))
    assert everything(valkey) == before


def test_nothing_hinders_the_kill_switch(valkey: Server, stream: str, cli: Cli) -> None:
    """stop and resume work whatever else is wrong in the environment or in drainkit.toml; where the
    ledger cannot note it, stop stops all the same and says so."""
    seed(valkey, stream, 5, delivered=0)
    ask(valkey, "SET", f"{stream}.drain_runs", "x")
    (cli.cwd / "drainkit.toml").write_text("[fields]\nsymbl = 'x'\n[env.other]\ntrottle = 5\n")
    odd = {"DRAINKIT_ALLOWLIST": "@missing", "DRAINKIT_MAX_EVENTS": "x"}
    for verb, is_set in (("stop", *WHO), 1), (("resume",), 0):
        run = cli.done(*verb, *at(valkey, stream), env=odd)
        assert ask(valkey, "EXISTS", f"{stream}.drain_stop") == is_set
        assert is_set == 0 or "the ledger does not have it" in run.err


def test_the_ledger_notes_stop_and_resume(valkey: Server, stream: str, cli: Cli) -> None:
    """Each leaves one entry with operator, reason and time; the OS user where none is named. A
    second stop says that it was stopped, and keeps the first reason. A run's summary, and its
    ledger's start and end, hold --operator too; an empty one is refused."""
    seed(valkey, stream, 5, delivered=0)
    assert cli("stop", *WHO, "--json", *at(valkey, stream)).json()["was_stopped"] is False
    second = cli("stop", "--reason", "more", "--json", *at(valkey, stream)).json()
    assert (second["stopped"], second["was_stopped"]) == (True, True)
    assert "before (" in cli("stop", "--reason", "third", *at(valkey, stream)).out
    run = cli("resume", "--json", *at(valkey, stream)).json()
    assert (run["was_stopped"], run["operator"]) == (True, getpass.getuser())
    assert cli("resume", *at(valkey, stream)).out.strip() == "It was not stopped."
    found = ledger_of(valkey, stream)
    assert [(e["event"], e["operator"], e["reason"]) for e in found] == [
        ("stop", "alice", "odd\\x1b[31m fills"),
        ("resume", getpass.getuser(), "odd\\x1b[31m fills"),
    ]
    assert all(datetime.fromisoformat(e["at"]).tzinfo for e in found)
    run = cli(*live(valkey, stream, "--operator", "carol"))
    assert run.json()["operator"] == "carol"
    noted = [(e["event"], e["operator"]) for e in ledger_of(valkey, stream)[len(found) :]]
    assert noted == [("start", "carol"), ("end", "carol")]
    assert cli(*live(valkey, stream, "--operator", " ")).rc == 2


def test_stop_makes_an_expiring_switch_lasting(server: Server, stream: str, cli: Cli) -> None:
    """Set by hand for a while, it keeps its reason and expires no more; the drainer may do that."""
    seed(server, stream, 5, delivered=0)
    url = make_user(cli, server, stream, "drainer")
    ask(server, "SET", f"{stream}.drain_stop", '{"reason": "first"}', "PX", 60_000)
    run = cli("stop", *WHO, "--json", "--redis-url", url, "--stream", stream, secret=PASSWORD)
    assert (run.rc, run.json()["was_stopped"]) == (0, True)
    assert ask(server, "PTTL", f"{stream}.drain_stop") == -1
    assert ask(server, "GET", f"{stream}.drain_stop") == b'{"reason": "first"}'
    ask(server, "DEL", f"{stream}.drain_stop")
    ask(server, "HSET", f"{stream}.drain_stop", "a", "b")
    for verb in (("stop", *WHO), ("resume",), live(server, stream)):
        words = verb if verb[0] == "drain" else (*verb, *at(server, stream))
        run = cli(*words)
        assert (run.rc, f"{stream}.drain_stop is a hash" in run.err) == (4, True), run
    assert f"{stream}.drain_stop is a hash" in cli("status", *at(server, stream)).out


def test_stop_says_that_the_server_may_evict_it(server: Server, stream: str, cli: Cli) -> None:
    """Only where any key may go when memory is full; a key without an expiry is safe elsewhere."""
    seed(server, stream, 5, delivered=0)
    for policy, limit in (("allkeys-lru", "100mb"), ("allkeys-random", 0), ("volatile-lru", "1gb")):
        ask(server, "CONFIG", "SET", "maxmemory-policy", policy)
        ask(server, "CONFIG", "SET", "maxmemory", limit)
        may = (policy, limit) == ("allkeys-lru", "100mb")
        run = cli("stop", *WHO, "--json", *at(server, stream))
        assert (run.rc, run.json()["may_be_evicted"]) == (0, may)
        assert ("may evict any key (allkeys-lru" in run.err) == may


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"", "(no reason given)"), (b"{}", "(no reason given)"), (b'"x"', "(no reason given)"),
        (b'{"reason": "r"}', "(r)"),
        (b'{"reason": "r", "at_us": 1e400, "operator": 5}', "(r) by 5"),
        (b'{"reason": "r", "at_us": 0, "operator": null}', "(r) at 1970-01-01T00:00:00.000000"),
        (b'{"reason": "a\\nb", "at_us": 99999999999999999999}', "(a\\nb)"),
    ],
)  # fmt: skip
def test_a_switch_set_by_hand_is_read(raw: bytes, shown: str) -> None:
    """Whatever stands in the key, the switch is set, and what can be read of it is shown."""
    assert shown in str(StopSwitch.read(raw))
