"""Trim, dead consumers: nothing goes that a group needs, and the ledger has what went."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq
import pytest
from backlogs import GROUP, add_consumers, seed
from books import at, ledger_of
from conftest import Cli, intent, one_line_error
from place import BUNDLED, Place
from proxy import Proxy
from servers import Server

from drainkit.errors import RefusedError
from drainkit.operations.maintenance import dead_consumers, remove_consumers, trim, trim_plan
from drainkit.server import writing
from drainkit.server.connection import Server as Link

APPLY = ("trim", "--apply", "--yes")
DELETE = ("consumers", "--delete", "--yes", "--json", "--min-idle-min")


def ids_of(place: Place) -> list[str]:
    return [entry[0].decode() for entry in place.alter("XRANGE", "-", "+")]


def link_to(place: Place) -> Link:
    return Link(place.url, place.stream)


# ---------------------------------------------------------------- trim


def test_trim_keeps_what_a_stalled_group_needs(place: Place) -> None:
    """The lowest pending id of all groups is the floor; the group that sets it is named. Entries
    after the position of the slowest group stay, pending or not. Once everything is acknowledged
    all goes and no group is blamed; then nothing is left, and no archive claimed."""
    ids = place.seed(300, 0)
    place.ask("XGROUP", "CREATE", place.stream, "fast", ids[-1])
    taken = place.deliver("stalled", 120)
    place.ask("XACK", place.stream, GROUP, *taken[:40])
    before = place.everything()
    shown = place.says("trim", "--json").json()
    assert (shown["floor"], shown["entries"], [*shown["held_by"]]) == (ids[40], 40, [GROUP])
    assert place.says("trim", "--apply").rc == 4
    assert place.everything() == before
    ran = place.says(*APPLY)
    assert (ran.rc, f"held back by {GROUP}: {ids[40]}" in ran.out) == (0, True)
    assert "Removed: 40." in ran.out
    assert ids_of(place) == ids[40:]
    assert len(place.waiting()) == 80
    place.ask("XACK", place.stream, GROUP, *taken[40:])
    assert place.says(*APPLY, "--json").json()["removed"] == 80
    assert ids_of(place) == ids[120:]
    place.set_position("$")
    ran = place.says(*APPLY, "--json").json()
    assert (ran["removed"], ran["held_by"], ids_of(place)) == (180, {}, [])
    nothing = place.says(*APPLY, "--archive", "a.parquet", "--json").json()
    assert (nothing["removed"], nothing["archive"]) == (0, None)
    assert not (place.cli.cwd / "a.parquet").exists()


def test_trim_at_the_end_of_the_ids(place: Place) -> None:
    """A position set beyond the stream's end gives away no entry that is yet to come; after the
    largest id there is none to trim up to: its entry stays, the others go."""
    ids = place.seed(10, 10)
    place.set_position("9999999999999-0")
    with link_to(place) as link:
        plan = trim_plan(link)
    ms, _, sequence = ids[-1].partition("-")
    assert (plan.entries, plan.floor) == (10, f"{ms}-{int(sequence) + 1}")
    largest = "18446744073709551615-18446744073709551615"
    place.alter("XADD", largest, "a", "b")
    place.set_position("$")
    assert place.says(*APPLY, "--json").json()["removed"] == 10
    assert ids_of(place) == [largest]


@BUNDLED
@pytest.mark.parametrize(
    ("position", "days", "removed", "held"),
    [(10, 4.5, 6, []), (3, 4.5, 3, [GROUP]), (10, 0, 10, []), (10, 20, 0, []),
     (0, 4.5, 0, [GROUP]), (6, 4.5, 6, [GROUP])],
)  # fmt: skip
def test_trim_keeps_what_is_younger(
    place: Place, position: int, days: float, removed: int, held: list[str]
) -> None:
    """Neither what is younger than --keep-days goes nor what a group needs, which is named. Here
    are ten entries, 10 to 1 days old by their ids, the first `position` of them delivered."""
    now = place.now_ms()
    ids = [f"{now - age * 86_400_000}-0" for age in range(10, 0, -1)]
    place.fill([(one, intent()) for one in ids], ids[position - 1] if position else "0-0")
    command = ("trim", "--keep-days", days)
    shown = place.says(*command, "--json").json()
    assert (shown["entries"], [*shown["held_by"]]) == (removed, held)
    assert f"younger than {days:g} days stays" in place.says(*command, "--apply", "--yes").out
    assert ids_of(place) == ids[removed:]


@BUNDLED
@pytest.mark.parametrize("odd", ["5-1", "1700000000-0", "1700000000000000-0"])
def test_trim_by_age_needs_ids_that_are_times(place: Place, odd: str) -> None:
    """Counters, seconds and microseconds as ids say nothing about an entry's age."""
    place.fill([(odd, intent())], odd)
    run = place.says(*APPLY, "--keep-days", 1)
    assert (run.rc, "not times" in run.err, ids_of(place)) == (4, True, [odd])


@BUNDLED
def test_trim_refuses_a_stream_without_groups(place: Place) -> None:
    """Where no group says what is needed, nothing goes unless told."""
    place.fill([(1_700_000_000_000 + i, intent()) for i in range(5)], None)
    assert "--without-groups" in place.cli.fails(4, *APPLY, *place.where)
    assert len(ids_of(place)) == 5
    assert place.says(*APPLY, "--without-groups").rc == 0
    assert ids_of(place) == []


#: What happens between the list and the removal.
CHANGES: dict[str, Callable[[Place, list[str]], object]] = {
    "pending": lambda p, ids: (p.set_position(ids[4]), p.deliver("late", 15)),
    "position": lambda p, ids: p.set_position(ids[4]),
    "new group": lambda p, ids: p.ask("XGROUP", "CREATE", p.stream, "new", "0"),
    "no group": lambda p, ids: p.ask("XGROUP", "DESTROY", p.stream, GROUP),
    "gone": lambda p, ids: (p.alter("RENAME", "elsewhere"), p.alter("SET", "x")),
}


@BUNDLED
@pytest.mark.parametrize("change", CHANGES)
def test_trim_looks_again_when_it_removes(place: Place, change: str) -> None:
    """Whatever changes between the list and the removal, nothing that is needed is removed; nor is
    anything where the oldest entries are no longer those that were listed or archived."""
    ids = place.seed(30, 20)
    raw = [i.encode() for i in ids]
    with link_to(place) as link:
        for listed in (raw[1:10], [*raw[:5], *raw[6:10]], [b"1-1", *raw[:10]]):
            with pytest.raises(RefusedError, match="changed meanwhile"):
                writing.trim(link, listed)
        plan = trim_plan(link)
        assert plan.entries == 20
        CHANGES[change](place, ids)
        with pytest.raises(RefusedError):
            trim(link, plan, operator="jo")
    stream = "elsewhere" if change == "gone" else place.stream
    assert place.ask("XLEN", stream) == 30


# ---------------------------------------------------------------- archives


def test_an_archive_holds_exactly_what_was_removed(place: Place) -> None:
    """What trim archived and what it left are together the stream, byte for byte; a file that is
    there already is refused."""
    odd = [(1_600_000_000_000 + i, [b"\xff\x00", b"\xfe", "a", "1", "a", "2"]) for i in range(3)]
    place.fill(odd, None)
    place.seed(2500, 2200)
    before = place.alter("XRANGE", "-", "+")
    archived = (*APPLY, "--json", "--archive", "old.parquet")
    assert place.says(*archived).json()["removed"] == 2203
    assert place.alter("XRANGE", "-", "+") == before[2203:]
    again = place.says(*archived)
    assert (again.rc, "exists" in again.err) == (4, True)
    found = pq.read_table(place.cli.cwd / "old.parquet").to_pylist()
    assert [[row["id"].encode(), row["fields"]] for row in found] == before[:2203]


@BUNDLED
@pytest.mark.parametrize("archive", [None, "old.parquet"])
def test_a_removing_step_is_bounded_by_bytes(place: Place, archive: str | None) -> None:
    """Whatever sizes lie beside each other, a step takes half a mebibyte, or one entry."""
    sizes = [10 if i < 300 or i % 16 == 0 else 600_000 for i in range(320)]
    place.fill([(i + 1, {"x": "x" * n}) for i, n in enumerate(sizes)], "310-0")
    before = place.alter("XRANGE", "-", "+")
    place.ask("CONFIG", "SET", "slowlog-log-slower-than", 0, "slowlog-max-len", 10_000)
    place.ask("SLOWLOG", "RESET")
    ran = place.says(*APPLY, "--json", *(("--archive", archive) if archive else ()))
    assert ran.json()["removed"] == 310, ran.err
    assert place.alter("XRANGE", "-", "+") == before[310:]
    logged = [entry[3] for entry in reversed(place.ask("SLOWLOG", "GET", 10_000))]
    steps = [int(command[6]) for command in logged if command[0] == b"EVAL"]
    assert sum(steps) == 310
    for n in steps:
        taken, sizes = sizes[:n], sizes[n:]
        assert n == 1 or sum(taken) < 512 << 10
    if archive:
        found = pq.read_table(place.cli.cwd / archive)["id"].to_pylist()
        assert found == [entry[0].decode() for entry in before[:310]]


@pytest.mark.parametrize("streams", [1, 2])
def test_of_two_trims_with_one_archive_one_is_refused(
    valkey: Server, stream: str, cli: Cli, start_proxy: Callable[..., Proxy], streams: int
) -> None:
    """Two timers, of one stream or of two: whatever was removed is in the archive that is there."""
    keys = [f"{stream}.{i}" for i in range(streams)]
    before = [seed(valkey, key, 10_000, delivered=10_000) for key in keys][-1]
    command = (*APPLY, "--archive", "a.parquet", "--stream")
    proxy = start_proxy(valkey)
    proxy.arm("delay_reply", match=b"XRANGE", nth=6, delay_sec=1)  # while it archives
    first = cli.start(*command, keys[0], "--redis-url", proxy.url)
    proxy.wait_fired()
    first.send_signal(signal.SIGSTOP)
    assert cli(*command, keys[-1], "--redis-url", valkey.url).rc == 0
    first.send_signal(signal.SIGCONT)
    assert cli.finish(first).rc == 4
    assert [valkey.ask("XLEN", key) for key in keys] == [10_000] * (streams - 1) + [0]
    assert pq.read_table(cli.cwd / "a.parquet")["id"].to_pylist() == before
    assert [path.name for path in cli.cwd.iterdir()] == ["a.parquet"]


# ---------------------------------------------------------------- the ledger


@BUNDLED
def test_cleaning_up_stands_in_the_ledger(place: Place) -> None:
    """trim and consumers name operator and counts there; what removes nothing leaves no entry. If
    the ledger can take none, or no archive can be written, nothing goes."""
    place.seed(20, 10)
    place.ask("XGROUP", "CREATECONSUMER", place.stream, GROUP, "gone")
    for _ in range(2):
        assert place.says(*APPLY, "--operator", "al").rc == 0
    assert place.says(*DELETE, 0, env={"DRAINKIT_OPERATOR": "bo"}).rc == 0
    assert [
        {k: e[k] for k in ("event", "operator", "entries", "removed", "kept") if k in e}
        for e in ledger_of(place.server, place.stream)
    ] == [
        {"event": "trim", "operator": "al", "entries": "10"},
        {"event": "consumers_delete", "operator": "bo", "removed": "1", "kept": "0"},
    ]
    place.set_position("$")
    assert place.says(*APPLY, "--archive", "no/folder.parquet").rc == 2
    place.ask("DEL", place.side("runs"))
    place.ask("SET", place.side("runs"), "x")
    run = place.says(*APPLY)
    assert (run.rc, "is a string" in run.err, len(ids_of(place))) == (4, True, 10)


@BUNDLED
@pytest.mark.parametrize(
    ("what", "fault"),
    [("entries", signal.SIGINT), ("entries", signal.SIGHUP), ("entries", "cut_after"),
     ("consumers", signal.SIGTERM), ("consumers", "cut_after"), ("consumers", "cut_before")],
)  # fmt: skip
def test_what_an_interrupted_one_removed_is_noted(
    place: Place, start_proxy: Callable[..., Proxy], what: str, fault: Any
) -> None:
    """Ledger and screen tell just what is gone, also of a step whose reply was lost."""
    place.seed(5_000, 5_000)
    add_consumers(place.server, place.stream, 2_000)
    proxy = start_proxy(place.server)
    lost = isinstance(fault, str)
    proxy.arm(fault if lost else "delay_reply", match=b"EVAL", nth=3, delay_sec=1)
    verb = (*DELETE, 0) if what == "consumers" else APPLY
    process = place.cli.start(*verb, *at(proxy, place.stream))
    proxy.wait_fired()
    if not lost:
        process.send_signal(fault)
    ran = place.cli.finish(process)
    of_consumers = what == "consumers"
    left = place.ask("XINFO", "CONSUMERS", place.stream, GROUP) if of_consumers else ids_of(place)
    total = 2_000 if of_consumers else 5_000
    assert 0 < (gone := total - len(left)) < total
    assert ran.rc == (3 if lost else 130)
    assert f"({gone:,} {what} were removed before)" in one_line_error(ran.err)
    (note,) = ledger_of(place.server, place.stream)
    assert note["removed" if of_consumers else "entries"] == str(gone)


# ---------------------------------------------------------------- consumers


def test_dead_consumers_without_pending_go(place: Place) -> None:
    """31 of 34 dead consumers go; 3 stay for their pending until that is drained."""
    place.seed(1_000, 50)
    for i in range(31):
        place.ask("XGROUP", "CREATECONSUMER", place.stream, GROUP, f"idle-{i}")
    workers = {"worker-1": 16, "worker-2": 16, "worker-3": 18}
    for name, n in workers.items():
        place.deliver(name, n)
    time.sleep(0.7)
    options = ("consumers", "--json", "--min-idle-min", "0.01")
    before = place.everything()
    listed = place.says(*options).json()
    assert [bool(c["why_kept"]) for c in listed["dead"]].count(True) == 3
    assert len(listed["dead"]) == 34
    assert place.says(*options, "--delete").rc == 4
    assert place.everything() == before
    ran = place.says(*DELETE, "0.01").json()
    stayed = {c["name"]: c["why_kept"] for c in ran["dead"] if c["name"] not in ran["removed"]}
    assert (len(ran["removed"]), {*stayed}) == (31, {*workers})
    assert all("pending" in why for why in stayed.values())
    assert len(place.waiting()) == 50
    text = place.says("consumers", "--min-idle-min", "0.01").out
    (kept,) = [line for line in text.splitlines() if line.startswith("worker-2 ")]
    assert "stays: 16 pending entries" in kept
    assert place.live("--scope", "pending", "--min-idle-min", "0.01")["total_read"] == 50
    assert {*workers} <= {*place.says(*DELETE, "0.01").json()["removed"]}
    assert (place.waiting(), len(place.audit())) == ([], 50)


@pytest.fixture(params=[1000, 0])
def most_listed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to how many groups or consumers a script lists: more than there are, or none."""
    monkeypatch.setattr("drainkit.server.writing.MAX_LISTED", request.param)


@BUNDLED
@pytest.mark.usefixtures("most_listed")
def test_a_consumer_that_comes_back_keeps_its_entries(place: Place) -> None:
    """Consumers that read at the very moment of their removal never lose a pending entry."""
    place.seed(400, 0)
    names = [f"c{i}" for i in range(20)]
    got: list[str] = []

    def come_back() -> None:
        client = place.server.client()
        for i in range(400):
            reply = client.xreadgroup(GROUP, names[i % 20], {place.stream: ">"}, count=1)
            got.append(reply[0][1][0][0].decode())

    thread = threading.Thread(target=come_back)
    with link_to(place) as link:
        thread.start()
        while thread.is_alive():
            remove_consumers(link, GROUP, names, min_idle_ms=0, operator="jo")
    assert [entry for entry, _ in place.waiting()] == got
    assert len(got) == 400


@BUNDLED
@pytest.mark.usefixtures("most_listed")
def test_an_active_consumer_stays(place: Place) -> None:
    """Listed as dead but active at the moment of removal, a consumer stays and it says so."""
    place.seed(10, 10)
    place.ask("XGROUP", "CREATECONSUMER", place.stream, GROUP, "sleeper")
    time.sleep(0.3)
    with link_to(place) as link:
        assert [c["name"] for c in dead_consumers(link, GROUP, min_idle_ms=200)] == ["sleeper"]
        place.ask("XGROUP", "CREATECONSUMER", place.stream, GROUP, "idle")
        time.sleep(0.2)
        place.ask("XREADGROUP", "GROUP", GROUP, "sleeper", "STREAMS", place.stream, ">")
        names = ["sleeper", "nobody", "idle"]
        removed, kept = remove_consumers(link, GROUP, names, min_idle_ms=200, operator="jo")
    assert removed == ["idle"]
    assert ("came back" in kept["sleeper"], "gone" in kept["nobody"]) == (True, True)


@BUNDLED
def test_two_operators_count_only_their_own_removals(
    place: Place, start_proxy: Callable[..., Proxy]
) -> None:
    """Of 1,100 consumers that both have listed, each tells and notes those that it removed."""
    place.seed(10, 10)
    add_consumers(place.server, place.stream, 1_100)
    proxy = start_proxy(place.server)
    proxy.arm("delay_request", match=b"EVAL", nth=2, delay_sec=2)
    slow = place.cli.start(*DELETE, 0, *at(proxy, place.stream))
    proxy.wait_fired()
    others = len(place.says(*DELETE, 0).json()["removed"])
    own = len(place.cli.finish(slow).json()["removed"])
    assert (own, others) == (500, 600)
    assert [e["removed"] for e in ledger_of(place.server, place.stream)] == ["600", "500"]
