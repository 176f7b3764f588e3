"""Counting: exact, and without reading what need not be read."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from backlogs import GROUP
from books import ask, at
from conftest import Cli
from servers import Server

from drainkit.ids import FIRST_ID, LAST_ID
from drainkit.server import counting, reading
from drainkit.server.connection import Server as Link


@pytest.fixture
def link(server: Server, stream: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Link]:
    """A stream of ids 10-0 to 69-0 with gaps, read in pages of 3 and more."""
    monkeypatch.setattr(reading, "FIRST_PAGE_ENTRIES", 3)
    for ms in range(10, 70):
        ask(server, "XADD", stream, f"{ms}-0", "symbol", "BTCUSDT")
    ask(server, "XDEL", stream, *(f"{ms}-0" for ms in (10, 13, 40, 41, 69)))
    with Link(server.url, stream) as opened:
        yield opened


def reads(server: Server) -> int:
    """How many pages the server was asked for."""
    lines = ask(server, "INFO", "commandstats").decode().splitlines()
    return sum(
        int(line.split("calls=")[1].split(",")[0])
        for line in lines
        if line.startswith(("cmdstat_xrange:", "cmdstat_xrevrange:"))
    )


def test_any_range_is_counted_exactly(link: Link) -> None:
    """Inside, around, across both ends, empty: as many as XRANGE brings."""
    draw = random.Random(1)
    for _ in range(60):
        first, last = (f"{draw.randrange(5, 75)}-{draw.randrange(2)}" for _ in range(2))
        there = len(link.call("XRANGE", link.stream, first, last))
        assert counting.count_between(link, first, last) == there, (first, last)
    assert counting.count_between(link, FIRST_ID, LAST_ID) == 55


def test_a_whole_stream_is_counted_without_a_read(link: Link, server: Server) -> None:
    """A position before the first entry means all, at or after the last none."""
    before = reads(server)
    assert counting.count_between(link, "10-1", LAST_ID) == 55
    assert counting.count_between(link, "68-1", LAST_ID) == 0
    assert counting.count_between(link, "0-0", "10-9") == 0
    assert reads(server) == before


@pytest.mark.parametrize("first", ["15-0", "66-0"])
def test_the_smaller_side_is_read(link: Link, server: Server, first: str) -> None:
    """Near an end of the stream a few pages are enough, whichever end it is."""
    before = reads(server)
    assert counting.count_between(link, first, LAST_ID) in (52, 3)
    assert reads(server) - before <= 6


def test_a_check_reads_no_more_than_its_limit(link: Link, server: Server, cli: Cli) -> None:
    """In the middle of the stream it stops at the limit, says "more than", and null in JSON."""
    ask(server, "XGROUP", "CREATE", link.stream, GROUP, "35-0")
    where = at(server, link.stream.decode())
    run = cli("check", "--max-backlog", "4", "--max-age-min", "1e9", *where)
    assert run.rc == 2
    assert "more than 4 entries undelivered, limit 4" in run.out
    group = cli("check", "--max-backlog", "4", "--json", *where).json()["streams"][0]["groups"][0]
    assert group["backlog"] == {"undelivered": None, "pending": 0, "history": None}
    assert group["lag_counted"] is group["lag_agrees"] is None
    status = cli("status", "--json", *where).json()
    assert status["groups"][0]["backlog"]["undelivered"] == 31
    info = reading.stream_info(link)
    before = reads(server)
    assert counting.count(link, info, "36-0", LAST_ID, most=4) == (5, False)
    assert counting.count(link, info, "36-0", LAST_ID, most=31) == (31, True)
    assert reads(server) - before <= 26


@pytest.mark.parametrize("gone", ["11-0", "14-0"])
def test_a_deletion_while_it_counts_is_noticed(
    link: Link, server: Server, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    """What is deleted on the side that was read does not count as being on the other."""
    read = reading.pages

    def read_and_delete(*args: Any, **options: Any) -> Any:
        ask(server, "XDEL", link.stream, gone)
        return read(*args, **options)

    monkeypatch.setattr(reading, "pages", read_and_delete)
    assert counting.count_between(link, "16-0", LAST_ID) == 51
    assert counting.count_between(link, "16-0", "60-0") == 43
