"""One read to plan, one to apply: what makes a read needless holds, or it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from backlogs import ME
from place import Place
from servers import KINDS

from drainkit.draining import dry
from drainkit.draining.dry import kept, plan_run
from drainkit.draining.plan_files import PlanFile
from drainkit.draining.run import Run, resolve
from drainkit.server.connection import Server as Link
from drainkit.settings import build

# at 2,000/s a commit has 40 entries, or more where round trips are slow
ALL = {"max_events": "all", "throttle": "2000", "allowlist": "BTCUSDT,ETHUSDT"}


@contextmanager
def opened(place: Place, **options: Any) -> Iterator[Run]:
    settings = build({"redis_url": place.server.url, "stream": place.stream, **ALL, **options})
    with Link.of(settings) as link:
        yield resolve(link, settings)


def planned_of(place: Place, folder: Path, **options: Any) -> PlanFile:
    with opened(place, **options) as run:
        plan_run(run, folder / "plan.json", pages=kept(run, folder))
    return PlanFile.load(folder / "plan.json")


def look(run: Run, folder: Path) -> None:
    """What 01 of a run does: all of the scope decided, and kept."""
    for _ in dry.look(run, run.server.now_us(), folder):
        pass


def reads(place: Place) -> int:
    """How often the server was asked for entries, since the last RESETSTAT; of the audit's newest
    record it is by XREVRANGE."""
    lines = place.ask("INFO", "commandstats").decode().splitlines()
    found = (line for line in lines if line.startswith("cmdstat_xrange:"))
    return sum(int(line.split("calls=")[1].split(",")[0]) for line in found)


def anew(place: Place, *, change: str = "", gone: str = "", more: str = "") -> None:
    """The stream deleted and made anew, with another payload at one id, without one, or with one
    more."""
    entries, position = place.alter("XRANGE", "-", "+"), place.position
    place.alter("DEL")
    if more:
        entries = sorted([*entries, [more.encode(), [b"symbol", b"X"]]])
    for entry, fields in entries:
        note = (b"note", b"changed") if entry.decode() == change else ()
        if entry.decode() != gone:
            place.alter("XADD", entry, *fields, *note)
    place.fill([], position)


def test_what_was_seen_is_not_read_again(place: Place, tmp_path: Path) -> None:
    """All of the plan, in its order, as it says, also where it is made events in two pieces; 6.2,
    which counts no deletions, reads again."""
    place.seed(4300)
    planned = planned_of(place, tmp_path, throttle="none")
    run = place.complete(planned=planned, ready=lambda _: place.ask("CONFIG", "RESETSTAT"))
    assert (reads(place) == 0) == (place.server.kind != "redis62")
    assert run.books["drift"] == []
    place.balanced(run.books)
    records, table = place.audit(), planned.table()
    for name, column in (("original_id", "id"), ("action", "action")):
        assert [r[name] for r in records] == table[column].to_pylist()


CHANGES: dict[str, Callable[[Place, list[str]], object]] = {
    "deleted": lambda p, ids: p.alter("XDEL", ids[150]),
    "another deleted": lambda p, ids: p.alter("XDEL", ids[7]),
    "added": lambda p, ids: p.alter("XADD", "*", "symbol", "BTCUSDT"),
    "made anew": lambda p, ids: anew(p, gone=ids[3]),
    "without its first": lambda p, ids: anew(p, gone=ids[100]),
    "without one near the end": lambda p, ids: anew(p, gone=ids[298]),
    "one changed": lambda p, ids: anew(p, change=ids[199]),
    "one changed near the end": lambda p, ids: anew(p, change=ids[298]),
    "one more": lambda p, ids: anew(p, more=f"{ids[100]}1"),
    "gone": lambda p, ids: p.alter("DEL"),
    "moved": lambda p, ids: p.set_position(ids[150]),
    "delivered": lambda p, ids: p.deliver(ME, 1),
}
NONE, ONE, ALL_OF_IT = slice(0), slice(150, 151), slice(100, 300)
#: before 02 plans what 01 had seen; before the live run
BEFORE = ("kept", "planned")
CASES: list[tuple[Sequence[str], Sequence[str], str, int, str, slice]] = [
    # servers, when it happens, what, how the run ends, what has no record then
    (KINDS[:1], BEFORE, "deleted", 4, "gone", ALL_OF_IT),
    (KINDS[:1], BEFORE, "without its first", 4, "gone", ALL_OF_IT),
    (KINDS[:1], BEFORE, "without one near the end", 4, "gone", ALL_OF_IT),
    (KINDS[:1], BEFORE, "one changed", 4, "changed", ALL_OF_IT),
    (KINDS[:1], BEFORE, "one changed near the end", 4, "changed", ALL_OF_IT),
    (KINDS[:1], BEFORE, "one more", 4, "not in the plan", ALL_OF_IT),
    (KINDS[:1], BEFORE, "moved", 4, "position moved", ALL_OF_IT),
    (KINDS[:1], BEFORE, "delivered", 4, "position moved", ALL_OF_IT),
    # after all were seen
    (["valkey", "redis62"], ["seen"], "deleted", 0, "", ONE),
    (KINDS, ["begun"], "deleted", 0, "", ONE),
    (KINDS[:1], ["seen"], "another deleted", 0, "", NONE),
    (["valkey", "redis62"], ["seen"], "added", 0, "", NONE),
    (KINDS[:1], ["seen"], "made anew", 4, "made anew", ALL_OF_IT),
    (["valkey", "redis"], ["seen"], "gone", 4, "gone", ALL_OF_IT),
    (["valkey", "redis"], ["seen"], "moved", 1, "somebody else took", slice(100, 151)),
]


@pytest.mark.parametrize(
    ("place", "when", "name", "rc", "told", "lacking"),
    [(kind, when, *case) for kinds, moments, *case in CASES for kind in kinds for when in moments],
    indirect=["place"],
)
def test_what_changes_meanwhile(
    place: Place, tmp_path: Path, when: str, name: str, rc: int, told: str, lacking: slice
) -> None:
    """An entry less, changed or more, to the byte, or a group elsewhere: what the plan does not
    allow refuses (4) before any write, also where 02 planned what 01 had seen. What is deleted
    later vanished; it is not recorded, and no other is for it. Of a stream that is another now, and
    of what others were delivered, nothing is recorded."""
    ids = place.seed()

    def at(moment: str) -> None:
        if moment == when:
            CHANGES[name](place, ids)

    if when == "kept":
        with opened(place) as run:
            look(run, tmp_path)
    at("kept")
    planned = planned_of(place, tmp_path)
    assert (planned.plan.total_read, planned.plan.position) == (200, ids[99])
    at("planned")
    midway = (1, lambda: at("begun")) if when == "begun" else None
    ended = place.attempt(planned=planned, ready=lambda _: at("seen"), at=midway)
    assert (ended.rc, told in ended.error) == (rc, True), ended
    without, done = {*ids[lacking]}, place.recorded()
    if told:
        assert without.isdisjoint(done)
    else:
        assert done == [entry for entry in ids[100:] if entry not in without]
        assert ended.books["vanished"] == len(without)


@pytest.mark.parametrize(
    ("place", "scope", "max_events"),
    [("valkey", "undelivered", "all"), ("redis62", "undelivered", 130), ("valkey", "pending", 5),
     ("redis", "pending", "all"), ("redis62", "history", 5), ("valkey", "history", "all")],
    indirect=["place"],
)  # fmt: skip
def test_what_was_kept_makes_the_same_plan(
    place: Place, tmp_path: Path, scope: str, max_events: Any
) -> None:
    """Row for row the decisions of a dry run that reads; other settings, or nothing kept, read.
    Nothing stays kept."""
    place.seed()
    place.deliver(ME, 9)
    given = {"max_events": max_events, "as_of": "2026-01-01T00:00:00Z", "scope": scope,
             "min_idle_min": 0}  # fmt: skip
    found: list[pa.Table] = []
    read: list[pa.Table] = []
    with opened(place, **given) as run, opened(place, **given) as same:
        assert kept(run, tmp_path) is None
        look(run, tmp_path)
        pages = kept(same, tmp_path)
        assert pages is not None
        plan_run(same, None, pages=pages, on_table=found.append)
        plan_run(run, None, on_table=read.append)
    rows = [pa.concat_tables(part).to_pylist() for part in (found, read)]
    assert rows[0] == rows[1]
    for other in ({"min_conf": 0.1}, {"fields": {"symbol": "ticker"}}):
        assert [*tmp_path.iterdir()] == []
        with opened(place, **given) as run, opened(place, **{**given, **other}) as odd:
            look(run, tmp_path)
            assert kept(odd, tmp_path) is None
