"""What is read of a server: counts, its memory and disk, names that are not what they seem."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
from backlogs import GROUP
from place import Place

from drainkit.ids import FIRST_ID, LAST_ID
from drainkit.server import counting, reading
from drainkit.server.connection import Server as Link

# ---------------------------------------------------------------- counting


@pytest.fixture
def link(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Link]:
    """A stream of ids 10-0 to 69-0 with gaps, read in pages of 3 and more."""
    monkeypatch.setattr(reading, "FIRST_PAGE_ENTRIES", 3)
    place.fill(((ms, {"symbol": "BTCUSDT"}) for ms in range(10, 70)), None)
    place.alter("XDEL", *(f"{ms}-0" for ms in (10, 13, 40, 41, 69)))
    with Link(place.server.url, place.stream) as opened:
        yield opened


def counted(link: Link, first: str, last: str) -> int:
    return counting.count(link, reading.stream_info(link), first, last)[0]


def reads(place: Place) -> int:
    """How many pages the server was asked for."""
    lines = place.ask("INFO", "commandstats").decode()
    return sum(map(int, re.findall(r"cmdstat_x(?:rev)?range:calls=(\d+)", lines)))


def test_any_range_is_counted_exactly(place: Place, link: Link) -> None:
    """Inside, around, across both ends, empty: as many as XRANGE brings. The whole stream is
    counted without a read; near an end a few pages are enough, whichever end it is."""
    draw = random.Random(1)
    for _ in range(60):
        first, last = (f"{draw.randrange(5, 75)}-{draw.randrange(2)}" for _ in range(2))
        there = len(link.call("XRANGE", link.stream, first, last))
        assert counted(link, first, last) == there, (first, last)
    for first, last, n, most in (
        (FIRST_ID, LAST_ID, 55, 0), ("10-1", LAST_ID, 55, 0), ("68-1", LAST_ID, 0, 0),
        ("0-0", "10-9", 0, 0), ("15-0", LAST_ID, 52, 6), ("66-0", LAST_ID, 3, 6),
    ):  # fmt: skip
        before = reads(place)
        assert counted(link, first, last) == n
        assert reads(place) - before <= most


def test_a_check_reads_no_more_than_its_limit(place: Place, link: Link) -> None:
    """In the middle of the stream it stops at the limit, says "more than", and null in JSON."""
    place.ask("XGROUP", "CREATE", place.stream, GROUP, "35-0")
    run = place.says("check", "--max-backlog", "4", "--max-age-min", "1e9")
    assert run.rc == 2
    assert "more than 4 entries undelivered, limit 4" in run.out
    found = place.says("check", "--max-backlog", "4", "--json").json()["streams"][0]["groups"][0]
    assert found["backlog"] == {"undelivered": None, "pending": 0, "history": None}
    assert found["lag_counted"] is found["lag_agrees"] is None
    status = place.says("status", "--json").json()
    assert status["groups"][0]["backlog"]["undelivered"] == 31
    info = reading.stream_info(link)
    before = reads(place)
    assert counting.count(link, info, "36-0", LAST_ID, most=4) == (5, False)
    assert counting.count(link, info, "36-0", LAST_ID, most=31) == (31, True)
    assert reads(place) - before <= 26


@pytest.mark.parametrize("gone", ["11-0", "14-0"])
def test_a_deletion_while_it_counts_is_noticed(
    place: Place, link: Link, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    """What is deleted on the side that was read does not count as being on the other."""
    read = reading.pages

    def read_and_delete(*args: Any, **options: Any) -> Any:
        place.alter("XDEL", gone)
        return read(*args, **options)

    monkeypatch.setattr(reading, "pages", read_and_delete)
    assert counted(link, "16-0", LAST_ID) == 51
    assert counted(link, "16-0", "60-0") == 43


# ---------------------------------------------------------------- room for what is recorded


@pytest.mark.parametrize("policy", ["noeviction", "allkeys-lru"])
def test_a_drain_without_room(place: Place, policy: str) -> None:
    """4,000 events and 2 MB: exit code 4 with both numbers, nothing written, nothing evicted. A
    drain of nothing needs no room."""
    ids = place.seed(4000, 0)

    def leave(n_bytes: int) -> None:
        used = int(place.server.client().info("memory")["used_memory"])
        place.ask("CONFIG", "SET", "maxmemory", used + n_bytes)

    leave(2_000_000)
    place.ask("CONFIG", "SET", "maxmemory-policy", policy)
    before = place.everything()
    run = place.lived()
    assert (run.rc, place.everything()) == (4, before)
    said = re.search("of 4,000 events need about (.*) KB of .* leaves (.*) KB; raise", run.err)
    assert said is not None
    needed, left = (int(number.replace(",", "")) for number in said.groups())
    assert left < 2100 < needed < 4000 * 0.4 + 1100
    place.live("--max-events", 200)
    assert len(place.audit()) == 200
    assert place.server.client().info("stats")["evicted_keys"] == 0
    place.set_position(ids[-1])
    leave(500_000)
    assert place.lived().rc == 0


def test_a_server_that_loses_things_is_named(place: Place) -> None:
    """Eviction: status, a warning of check, stop. Nothing on disk: status. Untold: unknown."""
    place.seed(5, 5)

    def told() -> tuple[tuple[bool, bool | None], str]:
        found = place.says("status", "--json").json()["server"]
        return (found["may_evict"], found["on_disk"]), place.says("status").out

    counts_snapshots = place.server.kind != "redis62"
    evicts = "the server may evict any key (allkeys-lru, maxmemory "
    words = "has kept nothing on disk" if counts_snapshots else "on disk is unknown"
    found, text = told()
    assert found == (False, False if counts_snapshots else None)
    assert words in text
    assert place.says("check").rc == 0
    place.ask("CONFIG", "SET", "maxmemory", 10**9)
    place.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    place.ask("CONFIG", "SET", "appendonly", "yes")
    found, text = told()
    assert (found, evicts in text, "on disk" in text) == ((True, True), True, False)
    run = place.says("check")
    assert (run.rc, run.out.count(evicts)) == (1, 1)
    assert run.out.startswith(f"WARNING: {place.stream}: {evicts}")
    stop = ("stop", "--reason", "r", "--json")
    for policy, may in (("allkeys-lru", True), ("volatile-lru", False)):  # it has no expiry
        place.ask("CONFIG", "SET", "maxmemory-policy", policy)
        run = place.says(*stop)
        assert (run.json()["may_be_evicted"], evicts in run.err) == (may, may)


# ---------------------------------------------------------------- names in no UTF-8

ODD = b"w\xff\n\xe9"  # no UTF-8
ALIKE = "w\\xff\n\\xe9"  # a name of its own, which shows what the odd one would
SHOWN = "w\\xff\n\\xe9 (bytes 77ff0ae9)"  # the odd one, as JSON has it


def test_names_that_look_alike_are_two(place: Place) -> None:
    """Two groups, and two consumers, of which one is shown as the other is written. The odd one's
    entries are planned and drained like others; --from-consumer takes the name as shown, consumers
    --delete removes it, and lists it as one safe line."""
    ids, raws = place.seed(30, 0), (ODD, ALIKE.encode())
    for i, raw in enumerate(raws):
        place.ask("XGROUP", "CREATE", place.stream, raw, ids[9 + i])
        for j, consumer in enumerate(raws):
            place.deliver(consumer, 2 + i + j, raw)
    shown = place.says("status", "--json").json()["groups"][1:]
    checked = place.says("check", "--json").json()["streams"][0]["groups"][1:]
    # Redis keeps groups in the order of their bytes
    for found in (shown, checked):
        assert [g["backlog"]["undelivered"] for g in found] == [12, 15]
        assert [sorted(c["pending"] for c in g["consumer_list"]) for g in found] == [[3, 4], [2, 3]]
    assert {g["name"] for g in checked} == {ALIKE, SHOWN}
    text = place.says("check", "--format", "prometheus").out
    lines = [line.partition("} ")[0] for line in text.splitlines() if "{" in line]
    assert len(lines) == len(set(lines))

    mine = ("--consumer-group", ALIKE)
    idle = ("--scope", "pending", "--min-idle-min", "0")
    assert place.live(*mine, "--allow-active-consumers")["total_read"] == 12
    assert place.dry(*mine, *idle)["total_read"] == 7
    assert place.live(*mine, *idle, "--from-consumer", SHOWN)["total_read"] == 3
    assert place.live(*mine, *idle)["total_read"] == 4
    assert sorted(place.recorded()) == ids[11:]
    left = [place.ask("XPENDING", place.stream, raw)[0] for raw in raws]
    assert left == [5, 0]
    command = ("consumers", *mine, "--min-idle-min", "0")
    assert "\\xff" in place.says(*command).out
    assert SHOWN in place.says(*command, "--delete", "--yes", "--json").json()["removed"]
    assert place.ask("XINFO", "CONSUMERS", place.stream, ALIKE) == []
