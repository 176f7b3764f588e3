"""The kill switch speaks: who stopped, when and why, wherever somebody meets it; and the ledger."""

from __future__ import annotations

import getpass
from datetime import UTC, datetime

import pytest
from books import PASSWORD, ledger_of, make_user
from place import BUNDLED, Place

from drainkit.server.reading import StopSwitch
from drainkit.views.live_drain import LiveDrain

WHO = ("--operator", "alice", "--reason", "odd\x1b[31m fills")


def test_everybody_hears_who_stopped_and_why(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """status, check, a refused drain, a drain that is stopped, and the live notebook, armed or not,
    say operator, time and reason; once `stop` returned nothing more is acknowledged until `resume`.
    """
    place.seed(300, 0)
    process = place.start("--throttle", 20)
    place.wait_for(5)
    before = datetime.now(UTC)
    assert place.says("stop", *WHO).rc == 0
    at_stop = len(place.audit())
    cut_off, refused = place.cli.finish(process), place.lived()
    stop = place.says("status", "--json").json()["stop"]
    texts = [cut_off.err, refused.err, place.says("status").out, place.says("check").out,
             place.says("stop", "--reason", "again").out]  # fmt: skip
    monkeypatch.setenv("DRAINKIT_REDIS_URL", place.url)
    view = LiveDrain.open({"redis_url_env": "DRAINKIT_REDIS_URL", "stream": place.stream})
    texts.append(view.bottom_line().data)
    view.server.close()
    assert (cut_off.rc, refused.rc) == (4, 4)
    assert len(place.audit()) == at_stop == cut_off.json()["total_read"]
    assert (stop["operator"], stop["reason"]) == ("alice", "odd\\x1b[31m fills")
    assert abs((datetime.fromisoformat(stop["at"]) - before).total_seconds()) < 30
    for said in texts:
        assert "(odd\\x1b[31m fills)" in said
        assert f"by alice at {stop['at']}" in said
        assert "\x1b" not in said
    assert cut_off.json()["error"] in cut_off.err
    assert place.says("resume").rc == 0
    place.live()
    assert len(place.audit()) == 300


@BUNDLED
def test_stop_needs_a_reason_and_a_stream(place: Place) -> None:
    """No reason is bad usage; a misspelt stream is refused: its drain would go on."""
    place.seed(5, 0)
    before = place.everything()
    assert [place.says("stop", *words).rc for words in ((), ("--reason", " "))] == [2, 2]
    odd = place.says("stop", "--reason", "r", "--stream", f"{place.stream}x")
    assert (odd.rc, "does not exist" in odd.err) == (4, True)
    assert place.everything() == before


@BUNDLED
def test_nothing_hinders_the_kill_switch(place: Place) -> None:
    """stop and resume work whatever else is wrong in the environment or in drainkit.toml; where the
    ledger cannot note it, stop stops all the same and says so."""
    place.seed(5, 0)
    place.ask("SET", place.side("runs"), "x")
    (place.cli.cwd / "drainkit.toml").write_text(
        "[fields]\nsymbl = 'x'\n[env.other]\ntrottle = 5\n"
    )
    odd = {"DRAINKIT_ALLOWLIST": "@missing", "DRAINKIT_MAX_EVENTS": "x"}
    for verb, is_set in (("stop", *WHO), 1), (("resume",), 0):
        run = place.says(*verb, env=odd)
        assert (run.rc, place.ask("EXISTS", place.side("stop"))) == (0, is_set)
        assert is_set == 0 or "the ledger does not have it" in run.err


@BUNDLED
def test_the_ledger_notes_stop_and_resume(place: Place) -> None:
    """Each leaves one entry with operator, reason and time; the OS user where none is named. A
    second stop says that it was stopped, and keeps the first reason. A run's summary, and its
    ledger's start and end, hold --operator too; an empty one is refused."""
    place.seed(5, 0)
    assert place.says("stop", *WHO, "--json").json()["was_stopped"] is False
    second = place.says("stop", "--reason", "more", "--json").json()
    assert (second["stopped"], second["was_stopped"]) == (True, True)
    assert "before (" in place.says("stop", "--reason", "third").out
    run, user = place.says("resume", "--json").json(), getpass.getuser()
    assert (run["was_stopped"], run["operator"]) == (True, user)
    assert place.says("resume").out.strip() == "It was not stopped."
    found = ledger_of(place.server, place.stream)
    reason = "odd\\x1b[31m fills"
    assert [(e["event"], e["operator"], e["reason"]) for e in found] == [
        ("stop", "alice", reason), ("resume", user, reason),
    ]  # fmt: skip
    assert all(datetime.fromisoformat(e["at"]).tzinfo for e in found)
    assert place.live("--operator", "carol")["operator"] == "carol"
    noted = ledger_of(place.server, place.stream)[len(found) :]
    assert [(e["event"], e["operator"]) for e in noted] == [("start", "carol"), ("end", "carol")]
    assert place.lived("--operator", " ").rc == 2


def test_stop_makes_an_expiring_switch_lasting(place: Place) -> None:
    """Set by hand for a while, it keeps its reason and expires no more; the drainer may do that. A
    key of another type in its place is named, whoever meets it."""
    place.seed(5, 0)
    url, switch = make_user(place.cli, place.server, place.stream, "drainer"), place.side("stop")
    place.ask("SET", switch, '{"reason": "first"}', "PX", 60_000)
    run = place.says("stop", *WHO, "--json", "--redis-url", url, secret=PASSWORD)
    assert (run.rc, run.json()["was_stopped"]) == (0, True)
    assert (place.ask("PTTL", switch), place.ask("GET", switch)) == (-1, b'{"reason": "first"}')
    place.ask("DEL", switch)
    place.ask("HSET", switch, "a", "b")
    for run in (place.says("stop", *WHO), place.says("resume"), place.lived()):
        assert (run.rc, f"{switch} is a hash" in run.err) == (4, True), run
    assert f"{switch} is a hash" in place.says("status").out


def test_stop_says_that_the_server_may_evict_it(place: Place) -> None:
    """Only where any key may go when memory is full; a key without an expiry is safe elsewhere."""
    place.seed(5, 0)
    for policy, limit in (("allkeys-lru", "100mb"), ("allkeys-random", 0), ("volatile-lru", "1gb")):
        place.ask("CONFIG", "SET", "maxmemory-policy", policy)
        place.ask("CONFIG", "SET", "maxmemory", limit)
        may = (policy, limit) == ("allkeys-lru", "100mb")
        run = place.says("stop", *WHO, "--json")
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
