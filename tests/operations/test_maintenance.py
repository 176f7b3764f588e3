"""Trim and restore: nothing goes that a group needs."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backlogs import GROUP, add_consumers, deliver, fill, now_ms, seed
from books import ask, at, everything, ledger_of, pending
from conftest import Cli, intent, one_line_error
from proxy import Proxy
from servers import Server

from drainkit.errors import RefusedError, UsageError
from drainkit.operations.maintenance import restore, trim, trim_plan
from drainkit.server import writing
from drainkit.server.connection import Server as Link


def ids_of(server: Server, stream: str) -> list[str]:
    return [entry[0].decode() for entry in ask(server, "XRANGE", stream, "-", "+")]


def test_trim_keeps_what_a_stalled_group_needs(server: Server, stream: str, cli: Cli) -> None:
    """The lowest pending id of all groups is the floor; the group that sets it is named."""
    ids = seed(server, stream, 300, delivered=0)
    ask(server, "XGROUP", "CREATE", stream, "fast", ids[-1])
    taken = deliver(server, stream, "stalled", 120)
    ask(server, "XACK", stream, GROUP, *taken[:40])
    before = everything(server)
    shown = cli.done("trim", "--json", *at(server, stream))
    assert shown.json()["floor"] == ids[40]
    assert shown.json()["entries"] == 40
    assert list(shown.json()["held_by"]) == [GROUP]
    assert cli("trim", "--apply", *at(server, stream)).rc == 4
    assert everything(server) == before
    ran = cli.done("trim", "--apply", "--yes", *at(server, stream))
    assert f"held back by {GROUP}: {ids[40]}" in ran.out
    assert "Removed: 40." in ran.out
    assert ids_of(server, stream) == ids[40:]
    assert pending(server, stream) == 80


def test_trim_of_all_and_of_nothing(valkey: Server, stream: str, cli: Cli) -> None:
    """Entries after the position of the slowest group stay, pending or not. Once everything is
    acknowledged all goes and no group is blamed; then nothing is left, and no archive claimed."""
    ids = seed(valkey, stream, 50, delivered=20)
    ask(valkey, "XGROUP", "CREATE", stream, "slow", ids[9])
    command = ("trim", "--apply", "--yes", *at(valkey, stream))
    cli.done(*command)
    assert ids_of(valkey, stream) == ids[10:]
    for group in (GROUP, "slow"):
        ask(valkey, "XGROUP", "SETID", stream, group, "$")
    ran = cli(*command, "--json").json()
    assert (ran["removed"], ran["held_by"]) == (40, {})
    assert ask(valkey, "XLEN", stream) == 0
    nothing = cli(*command, "--archive", "a.parquet", "--json").json()
    assert (nothing["removed"], nothing["archive"]) == (0, None)
    assert "a.parquet" not in cli(*command, "--archive", "a.parquet").out
    assert not (cli.cwd / "a.parquet").exists()


def test_trim_at_the_end_of_the_ids(server: Server, stream: str, cli: Cli) -> None:
    """A position set beyond the stream's end gives away no entry that is yet to come; after the
    largest id there is none to trim up to: its entry stays, the others go."""
    ids = seed(server, stream, 10, delivered=10)
    ask(server, "XGROUP", "SETID", stream, GROUP, "9999999999999-0")
    with Link(server.url, stream) as link:
        plan = trim_plan(link)
    ms, _, sequence = ids[-1].partition("-")
    assert (plan.entries, plan.floor) == (10, f"{ms}-{int(sequence) + 1}")
    largest = "18446744073709551615-18446744073709551615"
    ask(server, "XADD", stream, largest, "a", "b")
    ask(server, "XGROUP", "SETID", stream, GROUP, "$")
    assert (
        cli.done("trim", "--apply", "--yes", "--json", *at(server, stream)).json()["removed"] == 10
    )
    assert ids_of(server, stream) == [largest]


def aged(server: Server, stream: str, *, position: int) -> list[str]:
    """Ten entries, 10 to 1 days old by their ids; the group has had the first `position`."""
    now = now_ms(server)
    ids = [f"{now - days * 86_400_000}-0" for days in range(10, 0, -1)]
    fill(server, stream, [(entry_id, intent()) for entry_id in ids], group=GROUP,
         position=ids[position - 1] if position else "0-0")  # fmt: skip
    return ids


@pytest.mark.parametrize(
    ("position", "days", "removed", "bound"),
    [(10, 4.5, 6, "age"), (3, 4.5, 3, "group"), (10, 0, 10, "end"), (10, 20, 0, "age"),
     (0, 4.5, 0, "group"), (6, 4.5, 6, "group")],
)  # fmt: skip
def test_trim_keeps_what_is_younger(
    server: Server, stream: str, cli: Cli, position: int, days: float, removed: int,
    bound: str,
) -> None:  # fmt: skip
    """Neither what is younger than --keep-days goes nor what a group needs; the bound is named."""
    ids = aged(server, stream, position=position)
    command = ("trim", "--keep-days", days, *at(server, stream))
    shown = cli(*command, "--json").json()
    assert (shown["entries"], shown["bound"]) == (removed, bound)
    assert list(shown["held_by"]) == ([GROUP] if bound == "group" else [])
    text = cli(*command, "--apply", "--yes").out
    assert f"floor by age ({days:g} days) " in text
    assert f"the {bound} holds" in text
    assert ids_of(server, stream) == ids[removed:]


@pytest.mark.parametrize("odd", ["5-1", "1700000000-0", "1700000000000000-0"])
def test_trim_by_age_needs_ids_that_are_times(
    valkey: Server, stream: str, cli: Cli, odd: str
) -> None:
    """Counters, seconds and microseconds as ids say nothing about an entry's age."""
    ask(valkey, "XADD", stream, odd, "a", "b")
    ask(valkey, "XGROUP", "CREATE", stream, GROUP, "$")
    run = cli("trim", "--keep-days", 1, "--apply", "--yes", *at(valkey, stream))
    assert (run.rc, "not times" in run.err) == (4, True)
    assert ids_of(valkey, stream) == [odd]


def test_cleaning_up_stands_in_the_ledger(valkey: Server, stream: str, cli: Cli) -> None:
    """trim and consumers name operator and counts there; what removes nothing leaves no entry."""
    seed(valkey, stream, 20, delivered=10)
    ask(valkey, "XGROUP", "CREATECONSUMER", stream, GROUP, "gone")
    where = ("--yes", *at(valkey, stream))
    assert cli("trim", "--apply", "--operator", "al", *where).rc == 0
    assert cli("trim", "--apply", "--operator", "al", *where).rc == 0
    env = {"DRAINKIT_OPERATOR": "bo"}
    assert cli("consumers", "--delete", "--min-idle-min", "0", *where, env=env).rc == 0
    assert [
        {k: e[k] for k in ("event", "operator", "entries", "bound", "removed", "kept") if k in e}
        for e in ledger_of(valkey, stream)
    ] == [
        {"event": "trim", "operator": "al", "entries": "10", "bound": "group"},
        {"event": "consumers_delete", "operator": "bo", "removed": "1", "kept": "0"},
    ]
    ask(valkey, "DEL", f"{stream}.drain_runs")
    ask(valkey, "SET", f"{stream}.drain_runs", "x")
    ask(valkey, "XGROUP", "SETID", stream, GROUP, "$")
    run = cli("trim", "--apply", *where)
    assert (run.rc, "is a string" in run.err) == (4, True)
    assert ask(valkey, "XLEN", stream) == 10


def test_trim_refuses_groups_that_it_cannot_judge(
    valkey: Server, stream: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no group says what is needed, nothing goes unless told; Redis tells a group's position
    in the list of all, and a long list would hold up the server."""
    fill(valkey, stream, [(1_700_000_000_000 + i, intent()) for i in range(5)])
    command = ("trim", "--apply", "--yes", *at(valkey, stream))
    assert "--without-groups" in cli.fails(4, *command)
    with monkeypatch.context() as patch, Link(valkey.url, stream) as link:
        ask(valkey, "XGROUP", "CREATE", stream, GROUP, "$")
        patch.setattr("drainkit.server.writing.MAX_LISTED", 0)
        with pytest.raises(RefusedError, match="has 1 groups"):
            trim(link, trim_plan(link))
    ask(valkey, "XGROUP", "DESTROY", stream, GROUP)
    assert ask(valkey, "XLEN", stream) == 5
    cli.done(*command, "--without-groups")
    assert ask(valkey, "XLEN", stream) == 0


@pytest.mark.parametrize("change", ["pending", "position", "new group", "deleted", "gone"])
def test_trim_looks_again_when_it_removes(valkey: Server, stream: str, change: str) -> None:
    """Whatever changes between the list and the removal, nothing that is needed is removed."""
    ids = seed(valkey, stream, 30, delivered=20)
    with Link(valkey.url, stream) as link:
        plan = trim_plan(link)
        assert plan.entries == 20
        if change == "pending":
            ask(valkey, "XGROUP", "SETID", stream, GROUP, ids[4])
            deliver(valkey, stream, "late", 15)
        elif change == "position":
            ask(valkey, "XGROUP", "SETID", stream, GROUP, ids[4])
        elif change == "new group":
            ask(valkey, "XGROUP", "CREATE", stream, "new", "0")
        elif change == "deleted":
            ask(valkey, "XGROUP", "DESTROY", stream, GROUP)
        else:
            ask(valkey, "DEL", stream)
            ask(valkey, "SET", stream, "x")
        with pytest.raises(RefusedError):
            trim(link, plan)
    if change != "gone":
        assert ids_of(valkey, stream) == ids


def test_an_archive_holds_exactly_what_was_removed(server: Server, stream: str, cli: Cli) -> None:
    """What trim archived and what it left are together the stream, byte for byte, and come back."""
    odd = [(1_600_000_000_000 + i, [b"\xff\x00", b"\xfe", "a", "1", "a", "2"]) for i in range(3)]
    fill(server, stream, odd)
    seed(server, stream, 2500, delivered=2200)
    before = ask(server, "XRANGE", stream, "-", "+")
    ran = cli.done(
        "trim", "--apply", "--yes", "--json", "--archive", "old.parquet", *at(server, stream)
    )
    assert ran.json()["removed"] == 2203
    assert ask(server, "XRANGE", stream, "-", "+") == before[2203:]
    assert "exists" in cli.fails(
        4, "trim", "--apply", "--yes", "--archive", "old.parquet", *at(server, stream)
    )

    back = cli.done("restore", "old.parquet", "--yes", "--json", *at(server, f"{stream}.restored"))
    assert back.json()["entries"] == 2203
    assert ask(server, "XRANGE", f"{stream}.restored", "-", "+") == before[:2203]
    assert cli("restore", "old.parquet", "--yes", *at(server, stream)).rc == 4
    assert cli("restore", "old.parquet", "--yes", "--redis-url", server.url).rc == 2


@pytest.mark.parametrize("archive", [None, "old.parquet"])
def test_a_removing_step_is_bounded_by_bytes(
    valkey: Server, stream: str, cli: Cli, archive: str | None
) -> None:
    """Whatever sizes lie beside each other, a step takes half a mebibyte, or one entry."""
    sizes = [10 if i < 300 or i % 16 == 0 else 600_000 for i in range(320)]
    fill(valkey, stream, [(i + 1, {"x": "x" * n}) for i, n in enumerate(sizes)], group=GROUP)
    ask(valkey, "XGROUP", "SETID", stream, GROUP, "310-0")
    before = ask(valkey, "XRANGE", stream, "-", "+")
    ask(valkey, "CONFIG", "SET", "slowlog-log-slower-than", 0, "slowlog-max-len", 10_000)
    ask(valkey, "SLOWLOG", "RESET")
    options = ("--archive", archive) if archive else ()
    ran = cli("trim", "--apply", "--yes", "--json", *options, *at(valkey, stream))
    assert ran.json()["removed"] == 310, ran.err
    assert ask(valkey, "XRANGE", stream, "-", "+") == before[310:]
    logged = [entry[3] for entry in reversed(ask(valkey, "SLOWLOG", "GET", 10_000))]
    steps = [int(command[6]) for command in logged if command[0] == b"EVAL"]
    assert sum(steps) == 310
    for n in steps:
        taken, sizes = sizes[:n], sizes[n:]
        assert n == 1 or sum(taken) < 512 << 10
    if archive:
        assert cli("restore", archive, "--yes", *at(valkey, f"{stream}.back")).rc == 0
        assert ask(valkey, "XRANGE", f"{stream}.back", "-", "+") == before[:310]


@pytest.mark.parametrize("streams", [1, 2])
def test_of_two_trims_with_one_archive_one_is_refused(
    valkey: Server, stream: str, cli: Cli, start_proxy: Callable[..., Proxy],
    streams: int,
) -> None:  # fmt: skip
    """Two timers, of one stream or of two: whatever was removed is in the archive that is there."""
    keys = [f"{stream}.{i}" for i in range(streams)]
    for key in keys:
        seed(valkey, key, 10_000, delivered=10_000)
    before = ids_of(valkey, keys[-1])
    command = ("trim", "--apply", "--yes", "--archive", "a.parquet", "--stream")
    proxy = start_proxy(valkey)
    proxy.arm("delay_reply", match=b"XRANGE", nth=6, delay_sec=1)  # while it archives
    first = cli.start(*command, keys[0], "--redis-url", proxy.url)
    proxy.wait_fired()
    first.send_signal(signal.SIGSTOP)
    assert cli(*command, keys[-1], "--redis-url", valkey.url).rc == 0
    first.send_signal(signal.SIGCONT)
    assert cli.finish(first).rc == 4
    assert [ask(valkey, "XLEN", key) for key in keys] == [10_000] * (streams - 1) + [0]
    assert pq.read_table(cli.cwd / "a.parquet")["id"].to_pylist() == before
    assert [path.name for path in cli.cwd.iterdir()] == ["a.parquet"]


@pytest.mark.parametrize("what", ["entries", "consumers"])
@pytest.mark.parametrize("fault", [signal.SIGINT, signal.SIGTERM, "cut_after", "cut_before"])
def test_what_an_interrupted_one_removed_is_noted(
    valkey: Server, stream: str, cli: Cli, start_proxy: Callable[..., Proxy],
    what: str, fault: Any,
) -> None:  # fmt: skip
    """Ledger and screen tell just what is gone, also of a step whose reply was lost."""
    seed(valkey, stream, 5_000, delivered=5_000)
    add_consumers(valkey, stream, 2_000)
    proxy = start_proxy(valkey)
    lost = isinstance(fault, str)
    proxy.arm(fault if lost else "delay_reply", match=b"EVAL", nth=3, delay_sec=1)
    verb = ("consumers", "--delete", "--min-idle-min", 0) if what == "consumers" else (
        "trim", "--apply")  # fmt: skip
    process = cli.start(*verb, "--yes", *at(proxy, stream))
    proxy.wait_fired()
    if not lost:
        process.send_signal(fault)
    ran = cli.finish(process)
    left = (
        len(ask(valkey, "XINFO", "CONSUMERS", stream, GROUP)) if what == "consumers"
        else ask(valkey, "XLEN", stream)
    )  # fmt: skip
    gone = (total := 2_000 if what == "consumers" else 5_000) - left
    assert 0 < gone < total
    assert ran.rc == (3 if lost else 130)
    assert f"({gone:,} {what} were removed before)" in one_line_error(ran.err)
    (note,) = ledger_of(valkey, stream)
    assert note["removed" if what == "consumers" else "entries"] == str(gone)


def test_no_archive_no_removal(valkey: Server, stream: str, cli: Cli) -> None:
    """If the archive cannot be written, has a wrong name, or a number is none: nothing goes."""
    seed(valkey, stream, 20, delivered=20)
    before = everything(valkey)
    for name in ("no/such/folder.parquet", "archive.csv"):
        ran = cli("trim", "--apply", "--yes", "--archive", name, *at(valkey, stream))
        assert ran.rc == 2, ran
    for bad in (("--archive", "x.parquet"), *(("--keep-days", n) for n in
                ("-1", "nan", "x", "inf", "1e308"))):  # fmt: skip
        assert cli("trim", *bad, *at(valkey, stream)).rc == 2, bad
    assert everything(valkey) == before


FIELDS = [b"a", b"1"]
HOSTILE: list[list[tuple[str | None, list[bytes | None] | None]]] = [
    [("1-1", FIELDS), (odd, FIELDS)]
    for odd in ("MAXLEN", "*", "2-*", "2", "-", "0-1", "1-1", "18446744073709551616-0", "", None)
] + [
    [("1-1", FIELDS), ("2-1", odd)] for odd in (None, [], [b"a"], [b"a", None], [None, b"1"])
]  # fmt: skip


def test_restore_writes_nothing_of_a_hostile_file(valkey: Server, cli: Cli) -> None:
    """Ids that are words to Redis, no ids, or not ascending, missing fields: 2, and no stream."""
    odd = cli.cwd / "odd.parquet"
    odd.write_bytes(b"PAR1 no")
    said = [cli.fails(2, "restore", odd, "--yes", *at(valkey, "new"))]
    with Link(valkey.url, "new") as link:
        for rows in HOSTILE:
            columns = [pa.array([r[0] for r in rows], pa.string()),
                       pa.array([r[1] for r in rows], pa.list_(pa.binary()))]  # fmt: skip
            pq.write_table(pa.table(columns, ["id", "fields"]), odd)
            with pytest.raises(UsageError, match="not an entry of an archive") as refused:
                restore(link, "new", odd)
            said.append(str(refused.value))
    assert "holds a part" not in "".join(said)
    assert ask(valkey, "EXISTS", "new") == 0


def test_only_what_was_shown_is_removed(valkey: Server, stream: str) -> None:
    """If the oldest entries are no longer those that were listed or archived, none is removed."""
    ids = [i.encode() for i in seed(valkey, stream, 30, delivered=30)]
    with Link(valkey.url, stream) as link:
        for listed in (ids[1:10], [*ids[:5], *ids[6:10]], [b"1-1", *ids[:10]]):
            with pytest.raises(RefusedError, match="changed meanwhile"):
                writing.trim(link, listed)
        assert len(ids_of(valkey, stream)) == 30
        assert writing.trim(link, ids[:10]) == 10
