"""--until and --from: a part of a backlog, the same in every count, and nothing twice."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
from backlogs import GROUP, ME, deliver, fill, now_ms, producing
from books import ask, assert_books_balance, at, live, positions, recorded
from conftest import Cli, intent, one_line_error
from servers import Server

from drainkit.core.timestamps import iso
from drainkit.server import ledger
from drainkit.server.connection import Server as Connection

EVERY_AGE = ("--max-age-min", "100000", "--allow-active-consumers")


def old_and_new(server: Server, stream: str) -> tuple[list[str], int]:
    """120 entries of the last 20 minutes, one each 10 s; and when 10 minutes ago was, in ms."""
    now = now_ms(server)
    entries = [(f"{now - (120 - i) * 10_000}-1", intent()) for i in range(120)]
    fill(server, stream, entries, group=GROUP)
    return [entry for entry, _ in entries], now - 600_000


def test_until_leaves_the_fresh_to_consumers(server: Server, cli: Cli, stream: str) -> None:
    """Beside a producer only what is older than 10 minutes goes, and a restarted consumer gets
    all the rest; audit and consumer together hold each entry once."""
    ids, ten_ago = old_and_new(server, stream)
    with producing(server, stream, 500):
        result = cli.done(*live(server, stream, "--until", iso(ten_ago * 1000), *EVERY_AGE))
    summary = result.json()
    old = [entry for entry in ids if int(entry.partition("-")[0]) <= ten_ago]
    assert 0 < len(old) < len(ids)
    assert recorded(server, stream) == old
    assert (summary["total_read"], summary["remaining"]) == (len(old), 0)
    assert_books_balance(server, stream, summary)
    everything = [entry[0].decode() for entry in ask(server, "XRANGE", stream, "-", "+")]
    assert len(everything) > len(ids)
    assert old + deliver(server, stream, "restarted", 10**6) == everything


def test_until_counts_alike(valkey: Server, cli: Cli, stream: str) -> None:
    """An id as --until is included, in dry run, export, plan and live run alike; what is pending
    for the drain's own consumer beyond it stays."""
    ids, _ = old_and_new(valkey, stream)
    assert deliver(valkey, stream, ME, 60) == ids[:60]
    until = ("--until", ids[49])
    dry = cli("drain", "--json", *at(valkey, stream), *until).json()
    assert (dry["total_read"], dry["boundary_id"]) == (50, ids[49])
    exported = cli("export", "part.csv", "--json", *at(valkey, stream), *until)
    assert exported.json()["entries"] == 50
    part = cli(*live(valkey, stream, *until, "--max-events", "20", *EVERY_AGE)).json()
    assert (part["total_read"], part["remaining"]) == (20, 30)
    rest = cli(*live(valkey, stream, *until, *EVERY_AGE)).json()
    assert (rest["total_read"], rest["remaining"]) == (30, 0)
    assert recorded(valkey, stream) == ids[:50]
    own = ask(valkey, "XPENDING", stream, GROUP, "-", "+", 100, ME)
    assert [row[0].decode() for row in own] == ids[50:60]


def test_until_is_part_of_the_plan(valkey: Server, cli: Cli, stream: str) -> None:
    """A plan keeps its --until: a live run takes it over, and another one is refused by name."""
    ids, _ = old_and_new(valkey, stream)
    where = at(valkey, stream)
    cli.done("drain", "--plan", "p.json", "--until", ids[9], "--throttle", "none", *where)
    digest = json.loads((cli.cwd / "p.json").read_text())["digest"]
    other = cli("drain", "--mode", "live", "--yes", "--plan", "p.json", "--until", ids[8], *where)
    assert other.rc == 4
    assert ids[9] in one_line_error(other.err)
    assert ids[8] in other.err
    plan = json.loads((cli.cwd / "p.json").read_text())
    assert plan["until"] == ids[9]
    (cli.cwd / "p.json").write_text(json.dumps({**plan, "until": ids[119]}))
    assert "digest" in cli.fails(4, "drain", "--mode", "live", "--yes", "--plan", "p.json", *where)
    (cli.cwd / "p.json").write_text(json.dumps(plan))
    done = cli.done("drain", "--mode", "live", "--yes", "--json", "--plan", "p.json",
                    "--allow-active-consumers", *where)  # fmt: skip
    assert done.json()["plan_digest"] == digest
    assert recorded(valkey, stream) == ids[:10]


def test_from_takes_no_pending_entry_before_it(server: Server, cli: Cli, stream: str) -> None:
    """Scope pending from an id on: neither others' nor the drain's own entries before it go."""
    ids, _ = old_and_new(server, stream)
    deliver(server, stream, ME, 20)
    deliver(server, stream, "dead", 20)
    part = ("--scope", "pending", "--min-idle-min", "0", "--from", ids[10], "--until", ids[29])
    assert cli("drain", "--json", *at(server, stream), *part).json()["total_read"] == 20
    done = cli(*live(server, stream, *part, *EVERY_AGE)).json()
    assert (done["total_read"], done["remaining"]) == (20, 0)
    assert sorted(recorded(server, stream)) == ids[10:30]
    left = [row[0].decode() for row in ask(server, "XPENDING", stream, GROUP, "-", "+", 100)]
    assert left == ids[:10] + ids[30:40]


@pytest.mark.parametrize(("age", "minutes"), [("10m", 10), ("0.15h", 9), ("0.01d", 14.4)])
def test_an_age_is_made_a_time_once(
    valkey: Server, cli: Cli, stream: str, age: str, minutes: float
) -> None:
    """--until 10m ago, by the server's clock: the plan holds the time, and a live run that comes
    later takes what the plan has."""
    ids, _ = old_and_new(valkey, stream)
    before = now_ms(valkey)
    where = at(valkey, stream)
    dry = cli("drain", "--plan", "p.json", "--json", "--until", age, "--throttle", "none", *where)
    plan = json.loads((cli.cwd / "p.json").read_text())
    until = datetime.fromisoformat(plan["until"]).timestamp() * 1000
    assert before - 1 <= until + minutes * 60_000 <= now_ms(valkey) + 1
    old = [entry for entry in ids if int(entry.partition("-")[0]) <= until]
    assert 0 < len(old) == plan["total_read"] == dry.json()["total_read"] < 120
    assert plan["until"] in dry.err
    done = cli("drain", "--mode", "live", "--yes", "--json", "--plan", "p.json", *where)
    assert done.rc == 0, done.err
    assert recorded(valkey, stream) == old


def test_how_a_bound_is_understood(valkey: Server, cli: Cli, stream: str) -> None:
    """2025-12-24T10:00 is 10:00 UTC wherever it is said, and said so; one with its offset needs no
    word. Ages the wrong way round are bad usage."""
    old_and_new(valkey, stream)
    for given, told in (("2025-12-24T10:00", True), ("2025-12-24T10:00Z", False), ("5-0", False)):
        run = cli.done("drain", "--until", given, *at(valkey, stream), env={"TZ": "Asia/Tokyo"})
        said = "--until without an offset is UTC: 2025-12-24T10:00:00+00:00"
        assert (said in run.err) is told, run.err
    for first, last in (("1h", "2h"), ("1m", "2025-12-24T00:00Z")):
        bounds = ("--scope", "history", "--from", first, "--until", last)
        said = cli.fails(2, "drain", *at(valkey, stream), *bounds)
        assert "--from lies after --until" in said


def test_history_in_parts_by_until(server: Server, cli: Cli, stream: str) -> None:
    """The history group outlives a run that --until kept from its end; the next goes on there."""
    ids, _ = old_and_new(server, stream)
    ask(server, "XGROUP", "SETID", stream, GROUP, ids[99])
    history = ("--scope", "history", *EVERY_AGE)
    first = cli(*live(server, stream, *history, "--until", ids[39])).json()
    assert (first["total_read"], first["remaining"]) == (40, 0)
    assert positions(server, stream) == {GROUP: ids[99], f"{GROUP}.drain_history": ids[39]}
    again = cli(*live(server, stream, *history, "--until", ids[39])).json()
    assert again["total_read"] == 0
    rest = cli(*live(server, stream, *history)).json()
    assert (rest["total_read"], rest["remaining"]) == (60, 0)
    assert recorded(server, stream) == ids[:100]
    assert positions(server, stream) == {GROUP: ids[99]}


def test_history_from_an_id_on(server: Server, cli: Cli, stream: str) -> None:
    """A new history group begins just before --from, goes on there, and never comes back to an
    entry it has recorded; another group, up to there, takes what was left out."""
    ids, _ = old_and_new(server, stream)
    ask(server, "XGROUP", "SETID", stream, GROUP, ids[99])
    part = ("--scope", "history", "--from", ids[60], *EVERY_AGE)
    assert cli("drain", "--json", *at(server, stream), *part[:4]).json()["total_read"] == 40
    first = cli(*live(server, stream, *part, "--max-events", "15")).json()
    assert (first["total_read"], first["remaining"]) == (15, 25)
    rest = cli(*live(server, stream, *part)).json()
    assert (rest["total_read"], rest["remaining"]) == (25, 0)
    assert recorded(server, stream) == ids[60:100]
    assert positions(server, stream) == {GROUP: ids[99]}
    again = cli(*live(server, stream, "--scope", "history", *EVERY_AGE)).json()
    assert again["total_read"] == 0
    other = cli(*live(server, stream, "--scope", "history", "--history-group", "left-out",
                      "--until", ids[59], *EVERY_AGE)).json()  # fmt: skip
    assert other["total_read"] == 60
    assert sorted(recorded(server, stream)) == ids[:100]


def test_history_from_where_its_group_would_skip(valkey: Server, cli: Cli, stream: str) -> None:
    """A history group before --from is left as it is: exit 4 says where it stands."""
    ids, _ = old_and_new(valkey, stream)
    ask(valkey, "XGROUP", "SETID", stream, GROUP, ids[99])
    history = ("--scope", "history", *EVERY_AGE)
    assert cli(*live(valkey, stream, *history, "--max-events", "10")).rc == 0
    for command in (live(valkey, stream, *history, "--from", ids[60]),
                    ("drain", *at(valkey, stream), *history, "--from", ids[60])):  # fmt: skip
        assert f"is at {ids[9]}, before it" in cli.fails(4, *command)
    assert recorded(valkey, stream) == ids[:10]
    # nothing lies between: there is nothing to skip
    cli.done(*live(valkey, stream, *history, "--from", ids[10], "--max-events", "5"))
    assert recorded(valkey, stream) == ids[:15]


def test_a_running_drain_counts_its_own_part(valkey: Server, cli: Cli, stream: str) -> None:
    """What status says is left of a running drain begins at its --from and ends at its --until."""
    ids, _ = old_and_new(valkey, stream)
    deliver(valkey, stream, "dead", 50)
    with Connection(valkey.url, stream) as server:
        start = ledger.Start(
            run_id="20260101T000000Z-live-0a1b2c", scope="pending", consumer_group=GROUP,
            consumer=ME, boundary_id=ids[29], throttle=5.0, max_events=None, plan_digest="",
            at=iso(server.now_us()), from_id=ids[10],
        )  # fmt: skip
        ledger.append(server, start)
    (running,) = cli("status", "--json", *at(valkey, stream)).json()["running_drains"]
    assert running["remaining"] == 20
