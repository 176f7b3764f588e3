"""Losses: what is proven of entries trimmed before a group read them, and where it is shown.

That what is called exact is exact is held against an oracle in test_numbers.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from backlogs import GROUP, seed
from books import ask, at, everything, metrics
from conftest import Cli
from servers import Server

from drainkit.views.analyse_backlog import Analysis
from drainkit.views.monitor import Monitor

READ = ("XREADGROUP", "GROUP", GROUP, "c", "NOACK", "COUNT")
#: name -> (what happens to 500 entries of which the group has read none,
#:          the number in JSON where the counters prove one, and by kind of server the exit codes
#:          with --max-lost 0 and 500)
HISTORIES: dict[str, tuple[list[tuple[str, int]], int, dict[str, tuple[int, int]]]] = {
    "100 read, trimmed to 50": (
        [("read", 100), ("XTRIM", 50)], 350, {"valkey": (2, 0), "redis": (3, 0), "redis62": (3, 3)},
    ),
    "a gap passed long ago, then a trim of what is acknowledged": (
        [("read", 100), ("XTRIM", 50), ("read", 40), ("XTRIM", 10)], 0,
        {"valkey": (0, 0), "redis": (3, 0), "redis62": (3, 3)},
    ),
    "never read, trimmed to 300": (
        [("XTRIM", 300)], 200, {"valkey": (2, 0), "redis": (2, 0), "redis62": (3, 3)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HISTORIES)
def test_only_what_is_proven_is_told(server: Server, stream: str, cli: Cli, name: str) -> None:
    """An exact number is right or null, and what is not proven is unknown: never OK or critical."""
    steps, lost, codes = HISTORIES[name]
    seed(server, stream, 500, delivered=0)
    for what, n in steps:
        command = (
            (*READ, n, "STREAMS", stream, ">") if what == "read" else (what, stream, "MAXLEN", n)
        )
        ask(server, *command)
    options = ("check", "--max-age-min", 1e9, "--json", *at(server, stream), "--max-lost")
    none, many = cli(*options, 0), cli(*options, 500)
    found = none.json()["streams"][0]["groups"][0]["lost"]
    proven = server.kind == "valkey" or codes[server.kind] == (2, 0)
    assert found == ({"entries": lost, "exact": True} if proven else None)
    assert (none.rc, many.rc) == codes[server.kind]


@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_a_file_of_6_2_proves_a_lower_bound(
    clean: Callable[[str], Server], stream: str, cli: Cli, kind: str
) -> None:
    """6.2 had counted nothing: unknown at first, then at least what was trimmed since, never OK."""
    old, new = clean("redis62"), clean(kind)
    seed(old, stream, 500, delivered=0)
    ask(old, "XTRIM", stream, "MAXLEN", 60)
    ask(new, "RESTORE", stream, 0, ask(old, "DUMP", stream))
    options = ("check", "--max-age-min", 1e9, "--json", *at(new, stream), "--max-lost")
    run = cli(*options, 0)
    assert (run.rc, run.json()["streams"][0]["groups"][0]["lost"]) == (3, None)
    ask(new, "XTRIM", stream, "MAXLEN", 50)
    run = cli(*options, 100)
    found = run.json()["streams"][0]["groups"][0]["lost"]
    assert (run.rc, found) == (3, {"entries": 10, "exact": False})
    assert cli(*options, 9).rc == 2


def test_losses_are_named_everywhere(
    server: Server, stream: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 500 added 100 were read, then 50 were left: status, check, metrics, 01 and the monitor,
    which is critical, say 350; where it is not proven they say unknown, never 0. Once the group
    reads on, nothing is missing any more; with nothing left, all of it is."""
    seed(server, stream, 500, delivered=0)
    ask(server, *READ, 100, "STREAMS", stream, ">")
    ask(server, "XTRIM", stream, "MAXLEN", 50)
    before = everything(server)
    shown = cli("status", "--json", *at(server, stream)).json()["groups"][0]
    text = cli("status", "--all", *at(server, stream)).out
    check = cli("check", *at(server, stream))
    strict = cli("check", "--max-lost", 0, *at(server, stream))
    measured = metrics(cli("check", "--format", "prometheus", *at(server, stream)).out)
    metric = measured["drainkit_lost_entries", GROUP, stream]
    assert "is wrong" not in text
    assert everything(server) == before
    if server.kind != "valkey":  # 6.2 does not count, 7.0 counts on past a gap as if there was none
        assert shown["lost"] is None
        assert math.isnan(metric)
        assert "lost: unknown" in text
        up_to = "up to 350 entries were trimmed before the group read them, now or earlier"
        assert (up_to in check.out, check.rc) == (
            (True, 3) if server.kind == "redis" else (False, 0)
        )
        assert strict.rc == 3
        return
    assert shown["lost"] == {"entries": 350, "exact": True}
    assert shown["lag_agrees"] is True
    assert metric == 350
    assert "lost: 350" in text
    assert "350 after it were trimmed before the group read them" in text
    assert (check.rc, strict.rc) == (2, 2)
    assert "350 entries were trimmed before the group read them, limit 0" in check.out
    assert cli("check", "--max-lost", 349, *at(server, stream)).rc == 2
    assert cli("check", "--max-lost", 350, *at(server, stream)).rc == 1
    assert cli("check", "--max-lost", 500, *at(server, stream)).rc == 0
    monkeypatch.setenv("DRAINKIT_REDIS_URL", server.url)
    analysis = Analysis.open({"stream": stream, "consumer_group": GROUP})
    assert "350 after it were trimmed before the group read them" in analysis.bottom_line().data
    board = Monitor.open({"stream": stream, "max_backlog": 1000, "max_backlog_age_min": 60})
    assert "CRITICAL" in board.bottom_line().data
    for view in (analysis, board):
        assert list(view.groups_table()["lost"]) == ["350"]
        view.server.close()
    ask(server, *READ, 1, "STREAMS", stream, ">")
    assert cli("check", *at(server, stream)).rc == 0
    ask(server, "XTRIM", stream, "MAXLEN", 0)
    shown = cli("status", "--json", *at(server, stream)).json()["groups"][0]
    assert shown["lost"] == {"entries": 49, "exact": True}
    assert "49 after it were trimmed" in shown["why"]
