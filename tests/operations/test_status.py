"""What an operator watches, and the kill switch. Facts of the first screen are those of check, of a
dry run and of the ledger; counts are right where Redis's lag is not; who stopped is said wherever
somebody meets the switch.
"""

from __future__ import annotations

import getpass
import json
import signal
import time
from datetime import UTC, datetime

import clusters
import pytest
import servers
from backlogs import ALLOW, GROUP, fill, now_ms, seed
from books import PASSWORD, ask, at, ledger_of, make_user, metrics, wait_for
from conftest import Cli, intent, one_line_error
from place import BUNDLED, Place
from servers import Server

from drainkit.server.reading import StopSwitch
from drainkit.views.live_drain import LiveDrain


@BUNDLED
def test_it_says_what_check_dry_run_and_ledger_say(place: Place) -> None:
    """The verdict is check's; what passes, by symbol, and what cannot be read are a dry run's; the
    last run is the ledger's; the next command carries what was given."""
    place.seed(900, 0)
    allowed = ("--allowlist", ALLOW)
    place.live(*allowed, "--max-events", 40, "--operator", "olga")
    found = place.says("status", "--json", *allowed).json()
    dry, check = place.dry("--max-events", "all", *allowed), place.says("check", "--json").json()
    decided, last = found["decided"], found["last_run"]
    assert found["verdict"] == {key: check[key] for key in ("status", "exit_code", "findings")}
    assert (decided["would_pass"], decided["events"]) == (dry["drained_ok"], dry["total_read"])
    assert sum(decided["symbols"].values()) == dry["drained_ok"] > 0
    assert set(decided["symbols"]) == {"BTCUSDT", "ETHUSDT"}
    assert sum(decided["unreadable"].values()) == dry["dropped_invalid"] > 0
    assert (last["operator"], last["outcome"], last["total_read"]) == ("olga", "done", 40)
    assert found["groups"][0]["oldest_age_sec"] > 0
    text = place.says("status", *allowed).out
    why, n = next(iter(decided["unreadable"].items()))  # what may be cut is the reason
    for said in (
        f"Would pass now: {dry['drained_ok']:,} of 860: ", "by olga: done, 40 read, ",
        f"Unreadable: {dry['dropped_invalid']} of 860: {n} {why}",
    ):  # fmt: skip
        assert said in text
    assert len(text.splitlines()) <= 15
    assert text.startswith("WARNING: 860 entries undelivered, limit 1,000")
    assert text.splitlines()[-1].endswith(f"--allowlist {ALLOW}")
    assert "Newest: " not in text
    assert "Newest: " in place.says("status", "-v", *allowed).out


@BUNDLED
def test_a_large_backlog_is_sampled_from_end_to_end(place: Place) -> None:
    """Of a burst in a quiet month whose older half cannot be read about half is told unreadable."""
    now = place.now_ms()
    quiet = [(now - 30 * 86_400_000 + i * 3_600_000, intent()) for i in range(600)]
    burst = [(now - 20_000 + i, intent() if i > 10_000 else {"x": "y"}) for i in range(20_000)]
    place.fill([*quiet, *burst])
    found = place.says("status", "--json").json()
    decided = found["decided"]
    share = sum(decided["unreadable"].values()) / decided["events"]
    assert (decided["is_sample"], decided["undelivered"]) == (True, 20_600)
    assert 3_000 < decided["events"] < 6_000
    assert 0.4 < share < 0.6, share
    text = place.says("status").out
    assert " sampled" in text
    assert "Next (many events cannot be read): drainkit fields " in text


@BUNDLED
def test_it_names_the_next_command(place: Place) -> None:
    """The command is that of the worst that is there; a password of the URL is not in it."""
    mine = ("--consumer-group", "mine")

    def told(*options: str) -> str:
        return place.says("status", *options).out.splitlines()[-1]

    (entry,) = place.fill([(place.now_ms(), {"x": "y"})], None)
    place.ask("XGROUP", "CREATE", place.stream, "mine", "0")
    assert "drainkit status --consumer-group mine --redis-url" in told()
    assert "drainkit fields " in told(*mine)
    assert f"Groups: mine; no group is named {GROUP}" in place.says("status").out
    place.deliver("c", 1, "mine")
    pending = told(*mine)
    assert "run --scope pending" in pending
    assert pending.endswith("--consumer-group mine") or "--consumer-group mine " in pending
    place.ask("XACK", place.stream, "mine", entry)
    assert "nothing waits" in told(*mine)
    assert place.says("stop", "--reason", "r").rc == 0
    assert "drainkit resume --redis-url" in told()
    url = place.server.tcp_url.replace("redis://", "redis://default:pw@")
    assert "redis-url" not in place.cli("status", "--redis-url", url, "--stream", place.stream).out


@BUNDLED
def test_watch_goes_on_until_it_is_interrupted(place: Place) -> None:
    """Each second one screen, or one JSON object, of the state then; an interrupt ends with 130."""
    place.seed(30, 10)
    watch = ("status", "--watch", 1, *place.where)
    processes = [place.cli.start(*watch), place.cli.start(*watch, "--json")]
    time.sleep(2.5)
    place.alter("XADD", "*", "x", "y")
    time.sleep(2)
    for process in processes:
        process.send_signal(signal.SIGINT)
    text, objects = (place.cli.finish(process) for process in processes)
    lines = [line.split() for line in text.out.splitlines() if line.startswith("Backlog: ")]
    for run, counts in (
        (text, [int(line[1]) for line in lines]),
        (objects, [json.loads(o)["decided"]["undelivered"] for o in objects.out.splitlines()]),
    ):
        assert (run.rc, counts[0], counts[-1]) == (130, 20, 21), run
        assert len(counts) > 2


# ---------------------------------------------------------------- drains at work


@BUNDLED
def test_it_shows_running_drains(place: Place) -> None:
    """While a drain runs, status tells its progress and ETA, also where its audit has a name of its
    own; then no more; a dead one it names."""
    own = f"{place.stream}.elsewhere"
    (place.cli.cwd / "drainkit.toml").write_text(f'audit_stream = "{own}"\n')
    place.seed(600, 0)
    process = place.start("--throttle", 20, "--max-events", 400)
    wait_for(place.server, place.stream, 20, own)
    asked = time.time()
    (found,) = place.says("status", "--json").json()["running_drains"]
    answered = time.time()
    assert found["alive"]
    assert found["done"] >= 20
    assert found["done"] + found["remaining"] == 400
    started = datetime.fromisoformat(found["started_at"]).timestamp()
    # a rate over the whole run, whatever its pace was until then on a busy machine
    ran_sec = found["done"] / found["events_per_sec"]
    assert asked - started - 0.01 <= ran_sec <= answered - started + 0.01
    assert found["eta_sec"] == pytest.approx(found["remaining"] / found["events_per_sec"], rel=0.1)
    process.kill()
    place.cli.finish(process)
    assert found["run_id"] in place.says("status").out
    place.live()
    assert place.says("status", "--json").json()["running_drains"] == []


#: What may be wrong with a start entry that is right otherwise.
ODD = [
    ("throttle", "0"), ("throttle", "nan"), ("throttle", "?"), ("boundary_id", "?"),
    ("boundary_id", ""), ("max_events", "?"), ("at", "?"), ("at", "0001-01-01T00:00:00"),
    ("scope", "?"), ("consumer_group", "nobody"), ("run_id", "x\x1b[31m"),
]  # fmt: skip


@BUNDLED
def test_odd_ledgers_do_not_break_it(place: Place) -> None:
    """A start entry that is right but for one value costs at most its own line, as a foreign entry
    does; a key of another type in the ledger's place is no obstacle."""
    ids = place.seed(5, 0)
    good = {
        "event": "start", "run_id": "20260101T000000Z-live-abc123", "consumer_group": GROUP,
        "consumer": "c", "scope": "undelivered", "boundary_id": ids[-1], "throttle": "5",
        "max_events": "5", "at": "2026-01-01T00:00:00Z", "plan_digest": "",
    }  # fmt: skip
    place.ask("XADD", place.side("runs"), "*", "event", "start", "run_id", "x\x1b[31m")
    for i, (field, value) in enumerate([*ODD, ("consumer", "right")]):
        start = good | {"run_id": f"20260101T000000Z-live-abc{i:03}", "consumer": f"c{i}"}
        flat = [part for pair in (start | {field: value}).items() for part in pair]
        place.ask("XADD", place.side("runs"), "*", *flat)
    assert len(ledger_of(place.server, place.stream)) == len(ODD) + 2
    found = place.says("status", "--json").json()["running_drains"]
    assert "right" in {drain["consumer"] for drain in found}
    assert place.says("status").rc == 0
    place.ask("DEL", place.side("runs"))
    place.ask("SET", place.side("runs"), "x")
    assert place.says("status").rc == 0


SECRET = "s3cr3t-pa55"


# ---------------------------------------------------------------- judging


def test_thresholds_and_the_worst_finding(valkey: Server, cli: Cli) -> None:
    """Critical above a limit, warning from 80 % of it on, at each edge: of the backlog, and of the
    age of the oldest undelivered event, by its timestamp where that is earlier than its id. Over
    all streams of a pattern critical is worse than unknown, unknown than warning."""
    backlogs = {0: "ok", 79: "ok", 80: "warning", 100: "warning", 101: "critical"}
    ages = {40: "ok", 50: "warning", 61: "critical"}
    ids, now = seed(valkey, "q:b", 120, delivered=120), now_ms(valkey)
    for n in backlogs:
        ask(valkey, "XGROUP", "CREATE", "q:b", f"{n}", ids[119 - n])
    for n in ages:
        fill(valkey, f"q:a{n}", [(now, intent(timestamp=now - n * 60_000))], group=f"{n}")
    for stream in ("q:none", "other", "q:none.drain_audit"):
        fill(valkey, stream, [(now, intent())], group=None if stream == "q:none" else "g")
    ask(valkey, "SET", "q:text", "x")
    options = ("check", "--max-backlog", 100, "--redis-url", valkey.url, "--all-streams")
    run = cli(*options, "q:*", "--json")
    found = {(f["stream"], f["group"]): f["severity"] for f in run.json()["findings"]}
    expected = {("q:b", f"{n}"): severity for n, severity in backlogs.items()}
    expected |= {(f"q:a{n}", f"{n}"): severity for n, severity in ages.items()}
    assert found == expected | {("q:b", GROUP): "ok", ("q:none", None): "ok"}
    groups = {g["name"]: g for s in run.json()["streams"] for g in s["groups"]}
    for n in ages:
        assert groups[f"{n}"]["oldest_age_sec"] == pytest.approx(n * 60, abs=30)
    for group, code, word in (("79", 0, "OK"), ("80", 1, "WARNING"), ("101", 2, "CRITICAL")):
        one = cli("check", "--max-backlog", 100, "--group", group, *at(valkey, "q:b"))
        assert (one.rc, one.out.count("\n")) == (code, 1), one
        assert one.out.startswith(f"{word}: q:b {group}: ")
    ask(valkey, "SET", "q:a40.drain_audit", "no stream")
    worst = {"q:none": 0, "q:a50": 1, "q:a[45]0": 3, "q:*": 2, "nothing:*": 3, "": 3}
    assert {fits: cli(*options, fits, "--stream", "q:none").rc for fits in worst} == worst
    assert cli(*options, "q:*").out.startswith("CRITICAL: q:")


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
    run = place.cli("check", "--redis-url", url, "--format", "prometheus")
    assert (run.rc, metrics(run.out)["drainkit_up",]) == (3, 0)
    for bad in ("--max-backlog -1", "--max-age-min nan", "--nope", "--env mars", "--format xml"):
        place.cli.fails(3, "check", *place.where, *bad.split())


def test_all_streams_of_a_cluster(cluster: clusters.Cluster, cli: Cli) -> None:
    """Streams are found on every primary, and each is counted where it is."""
    for i in range(12):
        fill(cluster.primary_of(f"q:{i}"), f"q:{i}", [("*", {"symbol": "BTCUSDT"})], group="g")
    run = cli.done("check", "--redis-url", cluster.url, "--all-streams", "q:*", "--json")
    assert {s["stream"]["name"] for s in run.json()["streams"]} == {f"q:{i}" for i in range(12)}
    assert [s["groups"][0]["lag_counted"] for s in run.json()["streams"]] == [1] * 12


# ---------------------------------------------------------------- metrics


@BUNDLED
def test_metrics_say_what_is_there(place: Place) -> None:
    """Every number of the exposition is the server's, odd names are escaped, nothing is written."""
    odd, stream = 'we"ird\\group\n', place.stream
    place.seed(60, 20)
    place.ask("XGROUP", "CREATE", stream, odd, "0")
    place.deliver("c1", 7)
    for action in ("drained_ok", "drained_ok", "dropped_old", "what?"):
        place.ask("XADD", place.side("audit"), "*", "action", action)
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
    }  # fmt: skip
    told = {(name.removeprefix("drainkit_"), *of): value for (name, *of), value in found.items()}
    assert expected.items() <= told.items()


WHO = ("--operator", "alice", "--reason", "odd\x1b[31m fills")


@BUNDLED
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
def test_nothing_hinders_the_kill_switch(place: Place) -> None:
    """stop and resume work whatever else is wrong in the environment or in drainkit.toml; where the
    ledger cannot note it, stop stops all the same and says so. Without a reason it is bad usage, of
    a misspelt stream, whose drain would go on, refused."""
    place.seed(5, 0)
    assert [place.says("stop", *words).rc for words in ((), ("--reason", " "))] == [2, 2]
    odd = place.says("stop", "--reason", "r", "--stream", f"{place.stream}x")
    assert (odd.rc, "does not exist" in odd.err) == (4, True)
    assert place.ask("KEYS", "*.drain_*") == []
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
    assert (second["stopped"], second["was_stopped"], second["operator"]) == (True, True, "alice")
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
