"""One read to plan, one to apply: what makes a read needless holds, or it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from backlogs import GROUP, ME, deliver, seed
from books import ask, assert_books_balance, audit, positions, recorded
from servers import Server

from drainkit.draining.dry import drop, kept, plan_run
from drainkit.draining.live import apply
from drainkit.draining.plan_files import PlanFile
from drainkit.draining.run import Run, look_straight, resolve
from drainkit.errors import RefusedError
from drainkit.server.connection import Server as Link
from drainkit.settings import build
from drainkit.views.backlog import waiting

ALL = {"max_events": "all", "throttle": "none", "allowlist": "BTCUSDT,ETHUSDT"}
BATCH = 40  # entries of a commit: a plan of 200 takes several
Meanwhile = Callable[[Server, str, list[str]], object]


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drainkit.draining.reader.PAGE_ENTRIES", BATCH)
    monkeypatch.setattr("drainkit.draining.reader.PIECE", 3 * BATCH)


@pytest.fixture
def link(request: pytest.FixtureRequest, stream: str) -> Iterator[Link]:
    """A connection to the server that the test has."""
    names = {"server", "valkey"}.intersection(request.fixturenames)
    server: Server = request.getfixturevalue(names.pop())
    with Link(server.url, stream) as opened:
        yield opened


def run_of(link: Link, server: Server, stream: str, **options: Any) -> Run:
    values = {"redis_url": server.url, "stream": stream, **ALL, **options}
    return resolve(link, build(values))


def planned_of(link: Link, server: Server, stream: str, folder: Path) -> PlanFile:
    path = folder / "plan.json"
    plan_run(run_of(link, server, stream), path)
    return PlanFile.load(path)


def to_apply(link: Link, server: Server, stream: str, planned: PlanFile, **options: Any) -> Run:
    values = {"redis_url": server.url, "stream": stream, "mode": "live", **options}
    settings = planned.plan.laid_under(build(values))
    return resolve(link, settings, planned=planned)


def reads(server: Server) -> int:
    """How often the server was asked for entries, since the last RESETSTAT; of the audit's newest
    record it is by XREVRANGE."""
    lines = ask(server, "INFO", "commandstats").decode().splitlines()
    found = (line for line in lines if line.startswith("cmdstat_xrange:"))
    return sum(int(line.split("calls=")[1].split(",")[0]) for line in found)


def test_what_was_seen_is_not_read_again(
    server: Server, stream: str, link: Link, tmp_path: Path
) -> None:
    """All of the plan, in its order, as it says; 6.2, which counts no deletions, reads again."""
    seed(server, stream)
    planned = planned_of(link, server, stream, tmp_path)
    run = to_apply(link, server, stream, planned)
    ask(server, "CONFIG", "RESETSTAT")
    summary = apply(run)
    assert (reads(server) == 0) == (server.kind != "redis62")
    assert (summary.exit_code, summary.drift) == (0, [])
    assert_books_balance(server, stream, summary.as_dict())
    records = audit(server, stream)
    table = planned.table()
    for name, column in (("original_id", "id"), ("action", "action")):
        assert [r[name] for r in records] == table[column].to_pylist()


def anew(server: Server, stream: str, ids: list[str], *, change: str = "", gone: str = "") -> None:
    """The stream deleted and made anew, with another payload at one id, or without one."""
    entries = ask(server, "XRANGE", stream, "-", "+")
    position = positions(server, stream)[GROUP]
    ask(server, "DEL", stream)
    for entry, fields in entries:
        more = (b"note", b"changed") if entry.decode() == change else ()
        if entry.decode() != gone:
            ask(server, "XADD", stream, entry, *fields, *more)
    ask(server, "XGROUP", "CREATE", stream, GROUP, position)


@pytest.mark.parametrize("meanwhile", ["deleted", "deleted later", "deleted elsewhere", "added"])
def test_the_counters_guard_what_is_not_read_again(
    server: Server, stream: str, link: Link, tmp_path: Path, meanwhile: str
) -> None:
    """An entry deleted after all were seen vanished: not recorded, and no other is for it."""
    ids = seed(server, stream)
    planned = planned_of(link, server, stream, tmp_path)
    run = to_apply(link, server, stream, planned)
    gone = ids[7] if meanwhile == "deleted elsewhere" else ids[150]

    def change(_: object = None) -> None:
        if meanwhile == "added":
            ask(server, "XADD", stream, "*", "symbol", "BTCUSDT")
        else:
            ask(server, "XDEL", stream, gone)

    # later: once the first batch is done, the next one knows the counters from before it
    is_later = meanwhile == "deleted later"
    if not is_later:
        change()
    summary = apply(run, on_progress=change if is_later else None)
    assert summary.exit_code == 0, summary.error
    there = [entry for entry in ids[100:] if meanwhile == "added" or entry != gone]
    assert recorded(server, stream) == there
    assert summary.vanished == (meanwhile in ("deleted", "deleted later"))


@pytest.mark.parametrize(
    ("meanwhile", "told"),
    [
        (lambda *at: anew(*at, gone=at[2][3]), "made anew"),  # counters that went back
        (lambda *at: ask(at[0], "DEL", at[1]), "gone"),
        (lambda *at: ask(at[0], "XGROUP", "SETID", at[1], GROUP, at[2][150]), "somebody else took"),
    ],
    ids=["made anew", "gone", "position moved"],
)
def test_a_stream_or_group_that_changed_after_it_was_seen_ends_the_drain(
    valkey: Server, stream: str, link: Link, tmp_path: Path,
    meanwhile: Meanwhile, told: str,
) -> None:  # fmt: skip
    """Nothing is recorded of a stream that is another now, nor of what others were delivered."""
    ids = seed(valkey, stream)
    planned = planned_of(link, valkey, stream, tmp_path)
    run = to_apply(link, valkey, stream, planned)
    assert run.to_drain
    assert run.to_drain.straight
    meanwhile(valkey, stream, ids)
    try:
        error = apply(run).error or ""
    except RefusedError as refusal:
        error = str(refusal)
    assert told in error
    assert {*recorded(valkey, stream)} <= {*ids[151:]}


@pytest.mark.parametrize("at", [100, 199, 298])
@pytest.mark.parametrize("kind", ["gone", "change", "more", "own"])
def test_a_plan_that_does_not_fit_to_the_byte_is_looked_at_closely(
    valkey: Server, stream: str, link: Link, tmp_path: Path, kind: str, at: int
) -> None:
    """An entry less, changed, more or pending is seen; gone or changed refuses before any write."""
    ids = seed(valkey, stream)
    if kind == "more":  # planned without it, then it is there
        ask(valkey, "XDEL", stream, ids[at])
    planned = planned_of(link, valkey, stream, tmp_path)
    if kind == "own":
        deliver(valkey, stream, ME, at - 99)
    elif kind == "more":
        entries = ask(valkey, "XRANGE", stream, "-", "+")
        ask(valkey, "DEL", stream)
        for entry, fields in sorted([*entries, [ids[at].encode(), [b"symbol", b"X"]]]):
            ask(valkey, "XADD", stream, entry, *fields)
        ask(valkey, "XGROUP", "CREATE", stream, GROUP, ids[99])
    else:
        anew(valkey, stream, ids, **{kind: ids[at]})
    assert look_straight(run_of(link, valkey, stream, mode="live"), planned) is None
    if kind in ("gone", "change"):
        with pytest.raises(RefusedError, match=ids[at]):
            to_apply(link, valkey, stream, planned)
        assert audit(valkey, stream) == []


# ---------------------------------------------------------------- 01 to 02


def look(run: Run, folder: Path) -> None:
    """What 01 of a run does: all of the scope decided, and kept."""
    for _ in waiting(run, run.server.now_us(), folder):
        pass


@pytest.mark.parametrize("max_events", ["all", 130, 5])
@pytest.mark.parametrize("scope", ["undelivered", "pending", "history"])
def test_what_was_kept_makes_the_same_plan(
    server: Server, stream: str, link: Link, tmp_path: Path, max_events: str, scope: str
) -> None:
    """Row for row the decisions of a dry run that reads; other settings, or nothing kept, read."""
    seed(server, stream)
    deliver(server, stream, ME, 9)
    given = {"max_events": max_events, "as_of": "2026-01-01T00:00:00Z", "scope": scope,
             "min_idle_min": 0}  # fmt: skip
    run = run_of(link, server, stream, **given)
    assert kept(run, tmp_path) is None
    look(run, tmp_path)
    found: list[pa.Table] = []
    read: list[pa.Table] = []
    same = run_of(link, server, stream, **given)
    pages = kept(same, tmp_path)
    plan_run(same, None, pages=pages, on_table=found.append)
    plan_run(run, None, on_table=read.append)
    assert pages is not None
    rows = [pa.concat_tables(part).to_pylist() for part in (found, read)]
    assert rows[0] == rows[1]
    for other in ({"min_conf": 0.1}, {"fields": {"symbol": "ticker"}}):
        assert kept(run_of(link, server, stream, **{**given, **other}), tmp_path) is None
    drop(tmp_path)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s, k, ids: ask(s, "XDEL", k, ids[200]), "gone"),
        (lambda s, k, ids: ask(s, "XGROUP", "SETID", k, GROUP, ids[150]), "position moved"),
        (lambda s, k, ids: deliver(s, k, ME, 1), "position moved"),
        (lambda s, k, ids: anew(s, k, ids, change=ids[200]), "changed"),
    ],
    ids=["deleted", "moved", "delivered", "made anew"],
)
def test_a_plan_of_what_was_kept_is_held_against_the_server(
    valkey: Server, stream: str, link: Link, tmp_path: Path,
    change: Meanwhile, told: str,
) -> None:  # fmt: skip
    """02 plans what 01 saw, from where the group stood then; 03 refuses what changed meanwhile,
    and nothing is recorded."""
    ids = seed(valkey, stream)
    look(run_of(link, valkey, stream), tmp_path)
    change(valkey, stream, ids)
    run = run_of(link, valkey, stream)
    pages = kept(run, tmp_path)
    _, plan = plan_run(run, tmp_path / "plan.json", pages=pages)
    assert (plan.total_read, plan.position) == (200, ids[99])
    with pytest.raises(RefusedError, match=told):
        to_apply(link, valkey, stream, PlanFile.load(tmp_path))
    assert audit(valkey, stream) == []
