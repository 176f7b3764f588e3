"""Losses: what the counters of real servers prove, held against a model that knows the truth."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from books import GROUP, ask, at, everything, seed
from conftest import Cli, Fill
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from servers import Server

from drainkit.operations.losses import Lost, counter_follows, losses
from drainkit.server import reading
from drainkit.server.connection import Server as Link
from drainkit.server.reading import Group, StreamInfo


@dataclass
class Model:
    """A stream of entries 1-0, 2-0, ... and its groups, done on a server and written down."""

    link: Link
    there: list[int] = field(default_factory=list)
    added: int = 0
    trimmed: set[int] = field(default_factory=set)
    position: dict[str, int] = field(default_factory=dict)
    read: dict[str, set[int]] = field(default_factory=dict)

    def do(self, *command: str | int) -> None:
        self.link.call(*command)

    @property
    def key(self) -> str:
        return self.link.stream.decode()

    def add(self, n: int) -> None:
        for _ in range(n):
            self.added += 1
            self.do("XADD", self.key, f"{self.added}-0", "a", "b")
            self.there.append(self.added)

    def take(self, group: str, n: int) -> None:
        if group in self.position:
            self.do("XREADGROUP", "GROUP", group, "c", "COUNT", n, "STREAMS", self.key, ">")
            got = [i for i in self.there if i > self.position[group]][:n]
            self.read[group] |= set(got)
            self.position[group] = max([self.position[group], *got])

    def trim(self, n: int) -> None:
        keep = max(0, len(self.there) - n)
        self.do("XTRIM", self.key, "MAXLEN", "=", keep)
        self.trimmed |= set(self.there[: len(self.there) - keep])
        self.there = self.there[len(self.there) - keep :]

    def delete(self, n: int) -> None:
        if self.there:
            gone = self.there.pop(n % len(self.there))
            self.do("XDEL", self.key, f"{gone}-0")

    def put(self, group: str, n: int) -> None:
        """Make the group, or set it, somewhere: at 0, at the end, or between."""
        where = (0, self.added, n % (self.added + 1))[n % 3]
        verb = "SETID" if group in self.position else "CREATE"
        self.do("XGROUP", verb, self.key, group, f"{where}-0")
        self.position[group] = where
        self.read[group] = set()  # since then


_groups = st.sampled_from(["a", "b"])
_few, _many = st.integers(1, 4), st.integers(1, 12)
TRIMS = [
    st.tuples(st.just("add"), _many),
    st.tuples(st.just("take"), _groups, _few),
    st.tuples(st.just("trim"), _few),
]
ALL = [
    *TRIMS,
    st.tuples(st.just("delete"), st.integers(0, 30)),
    st.tuples(st.just("put"), _groups, st.integers(0, 60)),
]


def run_model(server: Server, steps: list[tuple[object, ...]], judge: Callable[..., None]) -> None:
    with Link(server.url, f"model:{uuid.uuid4().hex}") as link:
        model = Model(link)
        model.add(1)
        model.put("a", 0)
        for name, *args in steps:
            getattr(model, str(name))(*args)
            info = reading.stream_info(link)
            groups = list(reading.positions(link).values())
            found = losses(info, groups, follows=counter_follows(link.info))
            for group, lost in zip(groups, found, strict=True):
                judge(model, group.name, lost, follows=counter_follows(link.info))
        model.do("DEL", model.key)


def is_true(model: Model, group: str, lost: Lost | None, *, follows: bool) -> None:
    """What it says is so: at least what is missing, at most what was ever trimmed unread."""
    missing = sum(i > model.position[group] for i in model.trimmed)
    ever = len(model.trimmed - model.read[group])
    if lost is None:
        return
    if not lost.exact:
        assert 0 < lost.entries <= missing
    elif follows:
        assert lost.entries == missing
    else:
        assert missing <= lost.entries <= ever


def is_known(model: Model, group: str, lost: Lost | None, *, follows: bool) -> None:
    is_true(model, group, lost, follows=follows)
    assert lost is not None
    assert lost.exact


_calm = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("kind", ["valkey", "redis", "redis62"])
@_calm
@given(steps=st.lists(st.one_of(ALL), max_size=40))
def test_what_it_says_is_true(
    clean: Callable[[str], Server], kind: str, steps: list[tuple[object, ...]]
) -> None:
    """Whatever adds, reads, trims, deletes, makes and sets groups: an exact number is exact."""
    run_model(clean(kind), steps, is_true)


@pytest.mark.parametrize("kind", ["valkey", "redis"])
@_calm
@given(steps=st.lists(st.one_of(TRIMS), max_size=40))
def test_where_only_trims_remove_it_is_exact(
    clean: Callable[[str], Server], kind: str, steps: list[tuple[object, ...]]
) -> None:
    """A group made at 0 of a stream that a producer caps is always told the exact number."""
    run_model(clean(kind), steps, is_known)


# ---------------------------------------------------------------- what single counters prove


def counted(
    position: str, read: int | None, *, added: int = 500, length: int = 50, deleted: str = "0-0",
    follows: bool = True, others: tuple[tuple[str, int], ...] = (),
) -> Lost | None:  # fmt: skip
    """What the first group lost, of entries 1-0 to 500-0 of which the last `length` are there."""
    info = StreamInfo("s", length, f"{501 - length}-0", "500-0", "500-0", added, deleted)
    groups = [
        Group(reading.Name(b"g"), where, 0, 0, n, None)
        for where, n in ((position, read), *others)
    ]  # fmt: skip
    return losses(info, groups, follows=follows)[0]


def test_what_proves_what() -> None:
    """Each line of the module's docstring, with the counters that Redis really shows."""
    assert counted("100-0", 100) == Lost(350, True)
    assert counted("451-0", None) == Lost(0, True)
    assert counted("0-0", None) == Lost(450, True)
    assert counted("100-0", None) is None
    assert counted("100-0", 100, deleted="200-0") is None  # trimmed, or deleted?
    assert counted("100-0", 100, deleted="50-0") == Lost(350, True)
    assert counted("100-0", 100, deleted="50-0", follows=False) is None
    # 500 added under 6.2, 100 read, trimmed to 60; then 7.0 counts from 60 on, 90 more are added
    assert counted("100-0", 0, added=150) == Lost(100, False)
    assert counted("100-0", 0, added=50) is None
    # another group tells
    assert counted("100-0", None, others=(("100-0", 100),)) == Lost(350, True)
    assert counted("90-0", None, others=(("100-0", 100), ("300-0", 300))) == Lost(350, False)
    assert counted("110-0", None, others=(("100-0", 100),)) is None
    assert counted("90-0", None, others=(("100-0", 100),), follows=False) is None
    # counters that contradict each other
    assert counted("100-0", 900) is None
    assert counted("100-0", -3) is None


# ---------------------------------------------------------------- where it is shown


def lose_350(server: Server, stream: str, fill: Fill) -> None:
    """500 added, 100 of them read, trimmed to 50."""
    seed(server, stream, fill, 500, delivered=0)
    ask(server, "XREADGROUP", "GROUP", GROUP, "c", "NOACK", "COUNT", 100, "STREAMS", stream, ">")
    ask(server, "XTRIM", stream, "MAXLEN", 50)


def test_losses_are_named_everywhere(server: Server, stream: str, fill: Fill, cli: Cli) -> None:
    """status, check and metrics say 350; Redis 6.2, which counts nothing, says unknown, never 0."""
    lose_350(server, stream, fill)
    before = everything(server)
    shown = cli("status", "--json", *at(server, stream)).json()["groups"][0]
    text = cli("status", *at(server, stream)).out
    check = cli("check", *at(server, stream))
    strict = cli("check", "--max-lost", 0, *at(server, stream))
    found = {
        (s.name, *(s.labels[k] for k in sorted(s.labels))): s.value
        for family in text_string_to_metric_families(
            cli("check", "--format", "prometheus", *at(server, stream)).out
        )
        for s in family.samples
    }
    metric = found[("drainkit_lost_entries", GROUP, stream)]
    assert "is wrong" not in text
    assert everything(server) == before
    if server.kind == "redis62":
        assert shown["lost"] is None
        assert math.isnan(metric)
        assert "Lost: unknown" in text
        assert (check.rc, "unknown lost" in check.out) == (0, True)
        assert (strict.rc, "is unknown" in strict.out) == (3, True)
        return
    assert shown["lost"] == {"entries": 350, "exact": True}
    assert shown["lag_agrees"] is True
    assert metric == 350
    assert "Lost: 350" in text
    assert "350 after it were trimmed before the group read them" in text
    assert (check.rc, strict.rc) == (2, 2)
    assert "350 entries were trimmed before the group read them, limit 0" in check.out
    assert cli("check", "--max-lost", 349, *at(server, stream)).rc == 2
    assert cli("check", "--max-lost", 350, *at(server, stream)).rc == 1
    assert cli("check", "--max-lost", 500, *at(server, stream)).rc == 0


def test_a_passed_gap_is_past(valkey: Server, stream: str, fill: Fill, cli: Cli) -> None:
    """Once the group reads on, nothing is missing any more; with nothing left, all of it is."""
    lose_350(valkey, stream, fill)
    ask(valkey, "XREADGROUP", "GROUP", GROUP, "c", "NOACK", "COUNT", 1, "STREAMS", stream, ">")
    assert cli("check", *at(valkey, stream)).rc == 0
    ask(valkey, "XTRIM", stream, "MAXLEN", 0)
    run = cli("status", "--json", *at(valkey, stream)).json()["groups"][0]
    assert run["lost"] == {"entries": 49, "exact": True}
    assert "49 after it were trimmed" in run["why"]


def test_the_notebooks_name_losses(
    valkey: Server, stream: str, fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """01's bottom line and the monitor's table hold the number; the monitor is critical."""
    from drainkit.views.analyse_backlog import Analysis
    from drainkit.views.monitor import Monitor

    lose_350(valkey, stream, fill)
    monkeypatch.setenv("DRAINKIT_REDIS_URL", valkey.url)
    names = {"redis_url_env": "DRAINKIT_REDIS_URL", "stream": stream}
    analysis = Analysis.open({**names, "consumer_group": GROUP})
    assert "350 after it were trimmed before the group read them" in analysis.bottom_line().data
    assert list(analysis.groups_table()["lost"]) == ["350"]
    board = Monitor.open({**names, "max_backlog": 1000, "max_backlog_age_min": 60})
    assert list(board.groups_table()["lost"]) == ["350"]
    assert "CRITICAL" in board.bottom_line().data
    analysis.server.close()
    board.server.close()
