"""--until and --from: a part of a backlog, the same in every count, and nothing twice."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
from backlogs import GROUP, ME, producing
from books import at
from conftest import Cli, intent
from place import BUNDLED, Place
from servers import Server

from drainkit.core.timestamps import iso
from drainkit.server import ledger
from drainkit.server.connection import Server as Connection

EVERY_AGE = ("--max-age-min", "100000", "--allow-active-consumers")
HISTORY = ("--scope", "history", *EVERY_AGE)


def old_and_new(place: Place) -> tuple[list[str], int]:
    """120 entries of the last 20 minutes, one each 10 s; and when 10 minutes ago was, in ms."""
    now = place.now_ms()
    ids = [f"{now - (120 - i) * 10_000}-1" for i in range(120)]
    place.fill((entry, intent()) for entry in ids)
    return ids, now - 600_000


def counts(summary: dict[str, int]) -> tuple[int, int]:
    return summary["total_read"], summary["remaining"]


def test_until_leaves_the_fresh_to_consumers(place: Place) -> None:
    """Beside a producer only what is older than 10 minutes goes, and a restarted consumer gets
    all the rest; audit and consumer together hold each entry once."""
    ids, ten_ago = old_and_new(place)
    with producing(place.server, place.stream, 500):
        summary = place.live("--until", iso(ten_ago * 1000), *EVERY_AGE)
    old = [entry for entry in ids if int(entry.partition("-")[0]) <= ten_ago]
    assert 0 < len(old) < len(ids)
    assert place.recorded() == old
    assert counts(summary) == (len(old), 0)
    place.balanced(summary)
    everything = [entry[0].decode() for entry in place.alter("XRANGE", "-", "+")]
    assert len(everything) > len(ids)
    assert old + place.deliver("restarted", 10**6) == everything


@BUNDLED
def test_until_counts_alike(place: Place) -> None:
    """An id as --until is included, in dry run, export, plan and live run alike; what is pending
    for the drain's own consumer beyond it stays."""
    ids, _ = old_and_new(place)
    assert place.deliver(ME, 60) == ids[:60]
    until = ("--until", ids[49])
    dry = place.dry(*until)
    assert (dry["total_read"], dry["boundary_id"]) == (50, ids[49])
    exported = place.cli("export", "part.csv", "--json", *place.where, *until)
    assert exported.json()["entries"] == 50
    assert counts(place.live(*until, "--max-events", "20", *EVERY_AGE)) == (20, 30)
    assert counts(place.live(*until, *EVERY_AGE)) == (30, 0)
    assert place.recorded() == ids[:50]
    assert place.waiting(ME) == [(entry, ME) for entry in ids[50:60]]


@BUNDLED
@pytest.mark.parametrize(
    ("until", "minutes"), [("an id", None), ("10m", 10), ("0.15h", 9), ("0.01d", 14.4)]
)
def test_until_is_part_of_the_plan(place: Place, until: str, minutes: float | None) -> None:
    """A plan keeps its --until, an age as a time by the server's clock: a live run that comes later
    takes what the plan has, and another one is refused by name."""
    ids, _ = old_and_new(place)
    before, path = place.now_ms(), place.cli.cwd / "p.json"
    given = until if minutes else ids[9]
    dry = place.says("drain", "--json", "--plan", "p.json", "--until", given, "--throttle", "none")
    plan = json.loads(path.read_text())
    apply = ("drain", "--mode", "live", "--yes", "--json", "--plan", "p.json", *place.where)
    if minutes:
        bound = datetime.fromisoformat(plan["until"]).timestamp() * 1000
        assert before - 1 <= bound + minutes * 60_000 <= place.now_ms() + 1
        old = [entry for entry in ids if int(entry.partition("-")[0]) <= bound]
        assert plan["until"] in dry.err
    else:
        assert plan["until"] == given
        old = ids[:10]
        said = place.cli.fails(4, *apply, "--until", ids[8])
        assert given in said
        assert ids[8] in said
        path.write_text(json.dumps({**plan, "until": ids[119]}))
        assert "digest" in place.cli.fails(4, *apply)
        path.write_text(json.dumps(plan))
    assert 0 < len(old) == plan["total_read"] == dry.json()["total_read"] < 120
    assert place.cli.done(*apply).json()["plan_digest"] == plan["digest"]
    assert place.recorded() == old


def test_from_takes_no_pending_entry_before_it(place: Place) -> None:
    """Scope pending from an id on: neither others' nor the drain's own entries before it go; what
    status says is left of a running drain begins at its --from and ends at its --until."""
    ids, _ = old_and_new(place)
    place.deliver(ME, 20)
    place.deliver("dead", 20)
    part = ("--scope", "pending", "--min-idle-min", "0", "--from", ids[10], "--until", ids[29])
    assert place.dry(*part)["total_read"] == 20
    with Connection(place.server.url, place.stream) as server:
        start = ledger.Start(
            run_id="20260101T000000Z-live-0a1b2c", scope="pending", consumer_group=GROUP,
            consumer=ME, boundary_id=ids[29], throttle=5.0, max_events=None, plan_digest="",
            at=iso(server.now_us()), from_id=ids[10],
        )  # fmt: skip
        ledger.append(server, start)
    (running,) = place.says("status", "--json").json()["running_drains"]
    assert running["remaining"] == 20
    assert counts(place.live(*part, *EVERY_AGE)) == (20, 0)
    assert sorted(place.recorded()) == ids[10:30]
    assert [entry for entry, _ in place.waiting()] == ids[:10] + ids[30:40]


def test_how_a_bound_is_understood(valkey: Server, cli: Cli, stream: str) -> None:
    """2025-12-24T10:00 is 10:00 UTC wherever it is said, and said so; one with its offset needs no
    word. Ages the wrong way round are bad usage."""
    place = Place(valkey, stream, cli)
    old_and_new(place)
    for given, told in (("2025-12-24T10:00", True), ("2025-12-24T10:00Z", False), ("5-0", False)):
        run = cli.done("drain", "--until", given, *at(valkey, stream), env={"TZ": "Asia/Tokyo"})
        said = "--until without an offset is UTC: 2025-12-24T10:00:00+00:00"
        assert (said in run.err) is told, run.err
    for first, last in (("1h", "2h"), ("1m", "2025-12-24T00:00Z")):
        bounds = ("--scope", "history", "--from", first, "--until", last)
        assert "--from lies after --until" in cli.fails(2, "drain", *at(valkey, stream), *bounds)


def test_history_in_parts_by_until(place: Place) -> None:
    """The history group outlives a run that --until kept from its end; the next goes on there. One
    before a --from is left as it is: exit 4 says where it stands, unless nothing lies between."""
    ids, _ = old_and_new(place)
    place.set_position(ids[99])
    assert counts(place.live(*HISTORY, "--until", ids[39])) == (40, 0)
    assert place.groups == {GROUP: ids[99], f"{GROUP}.drain_history": ids[39]}
    assert place.live(*HISTORY, "--until", ids[39])["total_read"] == 0
    for command in ((), ("--mode", "live", "--yes")):
        said = place.cli.fails(4, "drain", *command, *place.where, *HISTORY, "--from", ids[60])
        assert f"is at {ids[39]}, before it" in said
    assert place.recorded() == ids[:40]
    assert place.live(*HISTORY, "--from", ids[40], "--max-events", "5")["total_read"] == 5
    assert counts(place.live(*HISTORY)) == (55, 0)
    assert place.recorded() == ids[:100]
    assert place.groups == {GROUP: ids[99]}


def test_history_from_an_id_on(place: Place) -> None:
    """A new history group begins just before --from, goes on there, and never comes back to an
    entry it has recorded; another group, up to there, takes what was left out."""
    ids, _ = old_and_new(place)
    place.set_position(ids[99])
    part = (*HISTORY, "--from", ids[60])
    assert place.dry(*part)["total_read"] == 40
    assert counts(place.live(*part, "--max-events", "15")) == (15, 25)
    assert counts(place.live(*part)) == (25, 0)
    assert place.recorded() == ids[60:100]
    assert place.groups == {GROUP: ids[99]}
    assert place.live(*HISTORY)["total_read"] == 0
    other = place.live(*HISTORY, "--history-group", "left-out", "--until", ids[59])
    assert other["total_read"] == 60
    assert sorted(place.recorded()) == ids[:100]
