"""Numbers of check, held against an oracle: what raw Redis holds, and what was done to it; and what
is proven of entries trimmed before a group read them, and where it is shown."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from backlogs import GROUP, now_ms
from books import ask, metrics
from conftest import Cli
from place import Place
from servers import KINDS, Server

from drainkit.views.analyse_backlog import Analysis
from drainkit.views.boards import Monitor

LIMIT = 6  # entries undelivered, in these small histories


@dataclass
class History:
    """A stream to which random things happen, and what no server remembers of them."""

    key: str
    draw: random.Random
    last: int  # the newest id ever, milliseconds
    pipe: Any  # where the commands go
    there: list[int] = field(default_factory=list)  # ids
    age_ms: dict[int, int] = field(default_factory=dict)  # how much older than its id an event is
    trimmed: set[int] = field(default_factory=set)
    position: dict[str, int] = field(default_factory=dict)

    def do(self, command: str, *arguments: str | int) -> None:
        self.pipe.execute_command(command, self.key, *arguments)

    def add(self) -> None:
        for _ in range(self.draw.randint(1, 12)):
            self.last += self.draw.randint(1, 1000)
            self.age_ms[self.last] = self.draw.choice((0, 0, 60_000, self.draw.randrange(10**8)))
            self.do("XADD", f"{self.last}-0", "timestamp", self.last - self.age_ms[self.last])
            self.there.append(self.last)

    def take(self) -> None:
        if not self.position:
            return
        group, n = self.draw.choice(list(self.position)), self.draw.randint(1, 6)
        got = [ms for ms in self.there if ms > self.position[group]][:n]
        if self.position[group] or got:
            command = ("XREADGROUP", "GROUP", group, "c", "COUNT", n, "STREAMS", self.key, ">")
            self.pipe.execute_command(*command)
        if acked := [f"{ms}-0" for ms in got if self.draw.random() < 0.7]:
            self.do("XACK", group, *acked)
        self.position[group] = max([self.position[group], *got])

    def trim(self) -> None:
        """Some of the oldest, or what every group has read, as `drainkit trim` does."""
        lowest = min(self.position.values(), default=0)
        if self.draw.random() < 0.5:
            lowest = [0, *self.there][min(self.draw.randint(1, 6), len(self.there))]
        self.do("XTRIM", "MINID", "=", f"{lowest + 1}-0")
        self.trimmed |= {ms for ms in self.there if ms <= lowest}
        self.there = [ms for ms in self.there if ms > lowest]

    def delete(self) -> None:
        if self.there and self.draw.random() < 0.3:
            self.do("XDEL", f"{self.there.pop(self.draw.randrange(len(self.there)))}-0")

    def put(self) -> None:
        """Make a group, or move it: to 0, to the end, or between."""
        group, verb = self.draw.choice("ab"), "CREATE"
        if group in self.position:
            verb = "SETID"
            if self.draw.random() > 0.3:
                return
        where = self.draw.choice((0, self.last, self.draw.choice([*self.age_ms])))
        self.pipe.execute_command("XGROUP", verb, self.key, group, f"{where}-0")
        self.position[group] = where

    def live(self, steps: int, *, old: bool = False) -> None:
        """`old`: it began on 6.2, and no group is put anywhere: nothing tells how old one is."""
        things = (self.add, self.add, self.take, self.take, self.take, self.trim, self.trim,
                  self.delete, self.put)  # fmt: skip
        for _ in range(steps):
            self.draw.choice(things[: -1 if old else None])()
        self.pipe.execute()


def make_histories(server: Server, older: Server | None, n: int, seed: int) -> list[History]:
    """`n` histories on the server; each fourth began on an older one, that never counted."""
    histories, start_ms = [], now_ms(server) - 3_600_000
    with server.client().pipeline(transaction=False) as pipe:
        for number in range(n):
            draw = random.Random(f"{seed}:{number}")
            histories.append(history := History(f"h:{number}", draw, start_ms, pipe))
            is_old = older is not None and number % 4 == 0
            if older is not None and is_old:
                history.pipe = older.client().pipeline(transaction=False)
            history.add()
            history.put()
            history.live(20 if is_old else random.Random(number).randrange(5, 40))
            if older is not None and is_old:
                ask(server, "RESTORE", history.key, 0, ask(older, "DUMP", history.key))
                history.pipe = pipe
                history.live(random.Random(number).randrange(15), old=True)
    return histories


def judge(server: Server, history: History, group: dict[str, Any]) -> int:
    """Each number is the oracle's, or null, and that has its reason; answers when it was asked."""
    raw = [int(e[0].partition(b"-")[0]) for e in ask(server, "XRANGE", history.key, "-", "+")]
    position = history.position[group["name"]]
    assert (raw, group["position"]) == (history.there, f"{position}-0")  # the oracle knows it all
    new = [ms for ms in raw if ms > position]
    pending = ask(server, "XPENDING", history.key, group["name"])[0]
    found = group["backlog"]
    assert found["pending"] == group["pending"] == pending
    is_counted = found["undelivered"] is not None
    assert is_counted or len(new) > LIMIT
    assert (found["undelivered"], found["history"]) == (
        (len(new), len(raw) - len(new)) if is_counted else (None, None)
    )
    assert group["lag_counted"] == found["undelivered"]
    missing, lost = sum(ms > position for ms in history.trimmed), group["lost"]
    if lost is not None:
        assert lost["entries"] == missing if lost["exact"] else 0 < lost["entries"] <= missing
    if group["lag_agrees"]:
        known = lost["entries"] if lost and lost["exact"] else 0
        assert group["lag_reported"] in (len(new), len(new) + known)
    times, age = [ms - history.age_ms[ms] for ms in new], group["oldest_age_sec"]
    assert (age is None) is (not new)
    return round(min(times) + 1000 * age) if new else 0


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [40, pytest.param(1000, marks=pytest.mark.chaos)])
def test_numbers_are_an_oracles(
    clean: Callable[[str], Server], cli: Cli, kind: str, n: int
) -> None:
    """After random histories (XDEL, XTRIM, SETID, groups made mid-stream; Redis's lag is nil or
    wrong then) every number is exact or null, in JSON, text and metrics the same."""
    server = clean(kind)
    older = None if kind == "redis62" else clean("redis62")
    seed = 1 if n < 1000 else random.SystemRandom().randrange(10**6)
    histories = {h.key: h for h in make_histories(server, older, n, seed)}
    options = ("check", "--redis-url", server.url, "--all-streams", "h:*", "--max-backlog", LIMIT)
    began, found = now_ms(server), cli(*options, "--json", timeout_sec=1800).json()
    ended = now_ms(server)
    measured = metrics(cli(*options, "--format", "prometheus", timeout_sec=1800).out)
    sizes = {"undelivered": 0, "lost": 0}
    for state in found["streams"]:
        for group in state["groups"]:
            key, name = state["stream"]["name"], group["name"]
            try:
                asked_at = judge(server, histories[key], group)
                assert not asked_at or began <= asked_at <= ended + 1
                lost = group["lost"] and group["lost"]["entries"]
                for metric, value in (("lost", lost), ("lag_reported", group["lag_reported"])):
                    shown = measured[f"drainkit_{metric}_entries", name, key]
                    # nil is unknown, never 0
                    assert math.isnan(shown) if value is None else shown == value
                assert group["lag_reported"] is not None or group["lag_agrees"] is None
                counted = measured["drainkit_lag_counted_entries", name, key]
                assert group["lag_counted"] in (None, counted)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, {kind}, {key}, {group}: {error}") from error
            sizes["undelivered"] += group["lag_counted"] is None
            sizes["lost"] += bool(lost)
    assert len(found["streams"]) == n
    assert sizes["undelivered"] > n / 50
    assert sizes["lost"] > n / 50 or kind == "redis62"


def test_the_oldest_is_the_oldest_event(place: Place) -> None:
    """Of up to 5,000 undelivered by event time, wherever it lies, a large one among them; beyond
    by id, and said so."""
    now = place.now_ms()
    odd = {3000: {"timestamp": now - 7_200_000}, 1000: {"payload": "x" * 10**6}}
    entries = [(now - 5001 + i, odd.get(i, {"symbol": "X"})) for i in range(5001)]
    place.fill(entries, f"{now - 5001}-0")
    options = ("--max-backlog", 10**6, "--max-age-min", 60)
    for told, age_min in (("event time", 120), ("entry id", 0)):
        run = place.says("check", "--json", *options)
        group = run.json()["streams"][0]["groups"][0]
        assert (group["oldest_by"], group["oldest_age_sec"] // 7200) == (told, age_min / 120)
        assert ("by its id" in place.says("check", *options).out) is (told == "entry id")
        assert run.rc == (2 if age_min else 0)
        place.alter("XADD", "*", "symbol", "X")


READ = ("XREADGROUP", "GROUP", GROUP, "c", "NOACK", "COUNT")
#: What happens to 500 entries of which the group has read none; by kind of server the number in
#: JSON (null: nothing is proven) and the exit codes with --max-lost 0 and 500.
HISTORIES: dict[str, tuple[list[tuple[str, int]], dict[str, tuple[int | None, int, int]]]] = {
    "a gap passed long ago, then a trim of what is acknowledged": (
        [("read", 100), ("XTRIM", 50), ("read", 40), ("XTRIM", 10)],
        {"valkey": (0, 0, 0), "redis": (None, 3, 0), "redis62": (None, 3, 3)},
    ),
    "never read, trimmed to 300": (
        [("XTRIM", 300)], {"valkey": (200, 2, 0), "redis": (200, 2, 0), "redis62": (None, 3, 3)},
    ),
}  # fmt: skip


def judged(place: Place, most_lost: int) -> tuple[int, Any]:
    """check's exit code at --max-lost, and how many entries it says the group lost."""
    run = place.says("check", "--max-age-min", 1e9, "--json", "--max-lost", most_lost)
    return run.rc, run.json()["streams"][0]["groups"][0]["lost"]


@pytest.mark.parametrize("name", HISTORIES)
def test_only_what_is_proven_is_told(place: Place, name: str) -> None:
    """An exact number is right or null, and what is not proven is unknown: never OK or critical."""
    steps, by_kind = HISTORIES[name]
    place.seed(500, 0)
    for what, n in steps:
        if what == "read":
            place.ask(*READ, n, "STREAMS", place.stream, ">")
        else:
            place.alter(what, "MAXLEN", n)
    lost, *codes = by_kind[place.server.kind]
    proven = None if lost is None else {"entries": lost, "exact": True}
    assert [judged(place, most) for most in (0, 500)] == [(code, proven) for code in codes]


@pytest.mark.parametrize("place", ["valkey", "redis"], indirect=True)
def test_a_file_of_6_2_proves_a_lower_bound(
    place: Place, clean: Callable[[str], Server], cli: Cli
) -> None:
    """6.2 had counted nothing: unknown at first, then at least what was trimmed since, never OK."""
    old = Place(clean("redis62"), place.stream, cli)
    old.seed(500, 0)
    old.alter("XTRIM", "MAXLEN", 60)
    place.alter("RESTORE", 0, old.alter("DUMP"))
    assert judged(place, 0) == (3, None)
    place.alter("XTRIM", "MAXLEN", 50)
    at_least = {"entries": 10, "exact": False}
    assert [judged(place, most) for most in (100, 9)] == [(3, at_least), (2, at_least)]


def test_losses_are_named_everywhere(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 500 added 100 were read, then 50 were left: status, check, metrics, 01 and the monitor,
    which is critical, say 350; where it is not proven they say unknown, never 0. Once the group
    reads on, nothing is missing any more; with nothing left, all of it is."""
    place.seed(500, 0)
    place.ask(*READ, 100, "STREAMS", place.stream, ">")
    place.alter("XTRIM", "MAXLEN", 50)
    before, words = place.everything(), "entries were trimmed before the group read them"
    shown = place.says("status", "--json").json()["groups"][0]
    text, check = place.says("status", "--all").out, place.says("check")
    measured = metrics(place.says("check", "--format", "prometheus").out)
    metric = measured["drainkit_lost_entries", GROUP, place.stream]
    assert place.everything() == before
    if place.server.kind != "valkey":  # 7.0 counts on past a gap as if there was none, 6.2 not
        assert (shown["lost"], math.isnan(metric), "lost: unknown" in text) == (None, True, True)
        may = place.server.kind == "redis"
        assert (f"up to 350 {words}, now or earlier" in check.out, check.rc) == (may, 3 * may)
        return
    assert (shown["lost"], shown["lag_agrees"]) == ({"entries": 350, "exact": True}, True)
    assert (metric, "lost: 350" in text, check.rc) == (350, True, 2)
    assert f"350 {words}, limit 0" in check.out
    codes = [place.says("check", "--max-lost", most).rc for most in (349, 350, 500)]
    assert codes == [2, 1, 0]
    monkeypatch.setenv("DRAINKIT_REDIS_URL", place.url)
    given = {"stream": place.stream}
    analysis = Analysis.open(given)
    board = Monitor.open({**given, "max_backlog": 1000, "max_backlog_age_min": 60})
    assert "CRITICAL" in board.bottom_line().data
    for said in (text, analysis.bottom_line().data):
        assert "350 after it were trimmed before the group read them" in said
    for view in (analysis, board):
        assert list(view.groups_table()["lost"]) == ["350"]
        view.server.close()
    place.ask(*READ, 1, "STREAMS", place.stream, ">")
    assert place.says("check").rc == 0
    place.alter("XTRIM", "MAXLEN", 0)
    shown = place.says("status", "--json").json()["groups"][0]
    assert shown["lost"] == {"entries": 49, "exact": True}
