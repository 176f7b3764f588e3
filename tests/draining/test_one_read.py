"""One read to plan, one to apply: what makes a read needless holds, or it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from backlogs import ME
from place import BUNDLED, Place

from drainkit.draining import dry
from drainkit.draining.dry import kept, plan_run
from drainkit.draining.plan_files import PlanFile
from drainkit.draining.run import Run, look_straight, resolve
from drainkit.server.connection import Server as Link
from drainkit.settings import build

ALL = {"max_events": "all", "throttle": "none", "allowlist": "BTCUSDT,ETHUSDT"}
BATCH = 40  # entries of a commit: a plan of 200 takes several
Change = Callable[[Place, list[str]], object]


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drainkit.draining.reader.PAGE_ENTRIES", BATCH)
    monkeypatch.setattr("drainkit.draining.reader.PIECE", 3 * BATCH)


@contextmanager
def opened(place: Place, **options: Any) -> Iterator[Run]:
    settings = build({"redis_url": place.server.url, "stream": place.stream, **ALL, **options})
    with Link.of(settings) as link:
        yield resolve(link, settings)


def planned_of(place: Place, folder: Path) -> PlanFile:
    with opened(place) as run:
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
    """All of the plan, in its order, as it says; 6.2, which counts no deletions, reads again."""
    place.seed()
    planned = planned_of(place, tmp_path)
    run = place.complete(planned=planned, ready=lambda _: place.ask("CONFIG", "RESETSTAT"))
    assert (reads(place) == 0) == (place.server.kind != "redis62")
    assert run.books["drift"] == []
    place.balanced(run.books)
    records, table = place.audit(), planned.table()
    for name, column in (("original_id", "id"), ("action", "action")):
        assert [r[name] for r in records] == table[column].to_pylist()


# what happens, with which error, what has no record then, how many vanished
Ends = tuple[Change, str, slice, int]
DELETED: Ends = (lambda p, ids: p.alter("XDEL", ids[150]), "", slice(150, 151), 1)
AFTER: dict[str, Ends] = {
    "deleted": DELETED,
    "deleted later": DELETED,
    "deleted elsewhere": (lambda p, ids: p.alter("XDEL", ids[7]), "", slice(0), 0),
    "added": (lambda p, ids: p.alter("XADD", "*", "symbol", "BTCUSDT"), "", slice(0), 0),
    "made anew": (lambda p, ids: anew(p, gone=ids[3]), "made anew", slice(100, 300), 0),
    "gone": (lambda p, ids: p.alter("DEL"), "gone", slice(100, 300), 0),
    "moved": (lambda p, ids: p.set_position(ids[150]), "somebody else took", slice(100, 151), 0),
}


@pytest.mark.parametrize(  # 6.2, which has no counters, reads again
    ("place", "name"),
    [*product(["valkey"], AFTER), *product(["redis"], ["deleted later", "moved", "gone"]),
     *product(["redis62"], ["deleted", "deleted later", "added"])],
    indirect=["place"],
)  # fmt: skip
def test_what_changes_after_it_was_seen(place: Place, tmp_path: Path, name: str) -> None:
    """An entry deleted after all were seen vanished, also once the first batch is done: it is not
    recorded, and no other is for it. Nothing is recorded of a stream that is another now, nor of
    what others were delivered: that ends the drain."""
    change, told, lacking, vanished = AFTER[name]
    ids = place.seed()
    planned = planned_of(place, tmp_path)

    def ready(run: Run) -> None:
        assert place.server.kind == "redis62" or run.to_drain.straight  # type: ignore[union-attr]
        if name != "deleted later":
            change(place, ids)

    at = (1, lambda: change(place, ids)) if name == "deleted later" else None
    run = place.attempt(planned=planned, ready=ready, at=at)
    without = {*ids[lacking]}
    if told:
        assert told in run.error
        assert without.isdisjoint(place.recorded())
        return
    assert run.rc == 0, run.error
    assert place.recorded() == [entry for entry in ids[100:] if entry not in without]
    assert run.books["vanished"] == vanished


# what happens between plan and run, and why that refuses it (4); "": seen, and looked at closely
BETWEEN: dict[str, tuple[Change, str]] = {
    "deleted": (lambda p, ids: p.alter("XDEL", ids[200]), "gone"),
    "gone, the first": (lambda p, ids: anew(p, gone=ids[100]), "gone"),
    "gone, near the end": (lambda p, ids: anew(p, gone=ids[298]), "gone"),
    "changed": (lambda p, ids: anew(p, change=ids[199]), "changed"),
    "changed, near the end": (lambda p, ids: anew(p, change=ids[298]), "changed"),
    "moved": (lambda p, ids: p.set_position(ids[150]), "position moved"),
    "delivered": (lambda p, ids: p.deliver(ME, 1), "position moved"),
    "more": (lambda p, ids: anew(p, more=f"{ids[100]}1"), ""),
}


@BUNDLED
@pytest.mark.parametrize("from_kept", [False, True], ids=["read", "kept"])
@pytest.mark.parametrize("name", BETWEEN)
def test_a_plan_is_held_against_the_server(
    place: Place, tmp_path: Path, name: str, from_kept: bool
) -> None:
    """To the byte: an entry less, changed or more, a group elsewhere is seen. What the plan does
    not allow refuses before any write, also where 02 planned what 01 had seen."""
    change, told = BETWEEN[name]
    ids = place.seed()
    if from_kept:
        with opened(place) as run:
            look(run, tmp_path)
        change(place, ids)
    planned = planned_of(place, tmp_path)
    if not from_kept:
        change(place, ids)
    assert (planned.plan.total_read, planned.plan.position) == (200, ids[99])
    if not told:
        with opened(place, mode="live") as run:
            assert look_straight(run, planned) is None
        return
    refused = place.attempt(planned=planned)
    assert (refused.rc, told in refused.error, place.audit()) == (4, True, []), refused


# ---------------------------------------------------------------- 01 to 02


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
