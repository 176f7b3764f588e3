"""The stream, its group or a side key changes in the middle of a drain."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from books import GROUP, ME, ask, audit, fill, seed
from conftest import intent
from faults import Attempt, assert_once, assert_settled, attempt, complete, key
from servers import Server

Clean = Callable[[str], Server]

MAX_ID = "18446744073709551615-18446744073709551615"


def consumers(server: Server, stream: str) -> list[Any]:
    return list(ask(server, "XINFO", "CONSUMERS", stream, GROUP))


# ---------------------------------------------------------------- the stream and its group


def test_entries_trimmed_midway(server: Server, stream: str) -> None:
    """What is committed by then is recorded as decided; what is trimmed before is simply gone."""
    ids = seed(server, stream, 500, delivered=100)[100:]
    run = complete(server.url, stream, at=(80, lambda: ask(server, "XTRIM", stream, "MAXLEN", 50)))
    got = [r["original_id"] for r in audit(server, stream)]
    assert got[:80] == ids[:80]
    assert got[-50:] == ids[-50:]
    assert len(got) < 400
    assert_settled(server, stream, got, [run])


def test_entries_deleted_while_pending(server: Server, stream: str) -> None:
    """Delivered to this drain's consumer long ago and deleted now, each is recorded as missing."""
    ids = seed(server, stream, 200, delivered=100)[100:]
    ask(server, "XREADGROUP", "GROUP", GROUP, ME, "COUNT", 60, "STREAMS", stream, ">")
    run = complete(
        server.url,
        stream,
        throttle="1000",
        at=(10, lambda: ask(server, "XDEL", stream, *ids[40:50])),
    )
    assert run.books["dropped_missing"] == 10
    assert_settled(server, stream, ids, [run])


def group_destroyed(server: Server, stream: str) -> None:
    ask(server, "XGROUP", "DESTROY", stream, GROUP)


def stream_deleted(server: Server, stream: str) -> None:
    ask(server, "DEL", stream)


def stream_recreated(server: Server, stream: str) -> None:
    """As a producer and its consumer do it: new entries, a group that starts at the beginning."""
    ask(server, "DEL", stream)
    for _ in range(5):
        ask(server, "XADD", stream, "*", "symbol", "BTCUSDT", "confidence", "0.9")
    ask(server, "XGROUP", "CREATE", stream, GROUP, "0-0")


def recreated_for_the_new(server: Server, stream: str) -> None:
    """With a group that wants only what is still to come: nothing of ours is undelivered there."""
    ask(server, "DEL", stream)
    ask(server, "XADD", stream, "*", "symbol", "BTCUSDT", "confidence", "0.9")
    ask(server, "XGROUP", "CREATE", stream, GROUP, "$")


def old_copy_restored(server: Server, stream: str) -> None:
    """As after a failover to a replica that lagged: fewer entries, and the group at the last."""
    ids = [entry[0] for entry in ask(server, "XRANGE", stream, "-", "+")][:150]
    ask(server, "DEL", stream)
    for entry in ids:
        ask(server, "XADD", stream, entry, "symbol", "BTCUSDT", "confidence", "0.9")
    ask(server, "XGROUP", "CREATE", stream, GROUP, "$")


def another_type(server: Server, stream: str) -> None:
    ask(server, "DEL", stream)
    ask(server, "SET", stream, "no stream")


def moved_back(server: Server, stream: str) -> None:
    ask(server, "XGROUP", "SETID", stream, GROUP, "0-0")


@pytest.mark.parametrize("throttle", ["2000", "none"])
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (group_destroyed, "group"),
        (stream_deleted, "stream"),
        (stream_recreated, "moved back|made anew"),
        (old_copy_restored, "made anew"),
        (another_type, "stream"),
        (moved_back, "moved back"),
    ],
)
def test_another_stream_or_group_midway(
    server: Server,
    stream: str,
    change: Callable[[Server, str], None],
    text: str,
    throttle: str,
) -> None:
    """The run refuses to go on (exit 4): nothing new is recorded, what was recorded is counted."""
    ids = seed(server, stream, 2500, delivered=100)[100:]
    at_change: list[int] = []

    def happen() -> None:
        change(server, stream)
        at_change.append(len(audit(server, stream)))

    run = attempt(server.url, stream, throttle=throttle, at=(400, happen))
    assert run.rc == 4, run.error
    assert re.search(text, run.error)
    records = audit(server, stream)
    assert len(records) == at_change[0]
    assert_once(records, ids[: len(records)])
    assert run.books["total_read"] == len(records)
    if change in (group_destroyed, stream_deleted):
        assert run.books["remaining"] is None  # without its group nobody knows


@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_a_stream_recreated_for_new_entries_only(clean: Clean, stream: str, kind: str) -> None:
    """Where the server counts what was ever added (7.0 and later), that is noticed, too."""
    server = clean(kind)
    ids = seed(server, stream, 500, delivered=100)[100:]
    run = attempt(server.url, stream, at=(80, lambda: recreated_for_the_new(server, stream)))
    assert run.rc == 4
    assert "made anew" in run.error
    assert_once(audit(server, stream), ids[:80])


def test_a_group_moved_back_and_put_right_again(server: Server, stream: str) -> None:
    """After SETID backwards the run stops; with the position put right, each is recorded once."""
    ids = seed(server, stream, 500, delivered=100)[100:]
    before: list[bytes] = []

    def back() -> None:
        info = ask(server, "XINFO", "GROUPS", stream)[0]
        before.append(info[info.index(b"last-delivered-id") + 1])
        moved_back(server, stream)

    first = attempt(server.url, stream, at=(80, back))
    assert first.rc == 4
    ask(server, "XGROUP", "SETID", stream, GROUP, before[0])
    again = complete(server.url, stream)
    assert_settled(server, stream, ids, [first, again])


# ---------------------------------------------------------------- the side keys


def test_an_audit_key_of_another_type(server: Server, stream: str) -> None:
    """From the start: refused, nothing written. Midway: refused, and finished when put right."""
    ids = seed(server, stream, 500, delivered=100)[100:]
    name = f"{stream}.drain_audit"
    ask(server, "SET", name, "text")
    run = attempt(server.url, stream)
    assert (run.rc, run.summary) == (4, None)
    assert consumers(server, stream) == []
    ask(server, "DEL", name)

    def replace() -> None:
        ask(server, "RENAME", name, "kept")
        ask(server, "SET", name, "text")

    first = attempt(server.url, stream, at=(80, replace))
    assert first.rc == 4
    assert "type" in first.error
    ask(server, "RENAME", "kept", name)
    again = complete(server.url, stream)
    assert_settled(server, stream, ids, [first, again])


@pytest.mark.parametrize("suffix", ["drain_runs", "drain_state"])
def test_another_side_key_of_another_type(valkey: Server, stream: str, suffix: str) -> None:
    """Ledger and state too are looked at before anything is written, and named when wrong."""
    seed(valkey, stream, 200)
    ask(valkey, "SET", f"{stream}.{suffix}", "text")
    run = attempt(valkey.url, stream)
    assert (run.rc, run.summary) == (4, None)
    assert f"{stream}.{suffix} is a string" in run.error
    assert consumers(valkey, stream) == []


@pytest.mark.parametrize("last", [MAX_ID, "18446744073709551615-18446744073709551612"])
@pytest.mark.parametrize("when", [0, 80])
def test_audit_ids_that_are_used_up(server: Server, stream: str, last: str, when: int) -> None:
    """Without ids to give, nothing is recorded or acknowledged; another audit stream helps."""
    ids = seed(server, stream, 400, delivered=100)[100:]

    def use_up() -> None:
        ask(server, "XADD", f"{stream}.drain_audit", last, "not", "a record")

    if when == 0:
        use_up()
        first = attempt(server.url, stream)
        assert first.summary is None
        assert consumers(server, stream) == []
    else:
        first = attempt(server.url, stream, at=(when, use_up))
        assert first.books["total_read"] == 80
    assert first.rc == 1
    assert "--audit-stream" in first.error
    again = complete(server.url, stream, audit_stream=f"{stream}.audit2")
    assert_settled(server, stream, ids[when:], [again], audit_key=f"{stream}.audit2")


def test_an_audit_id_whose_millisecond_is_full(server: Server, stream: str) -> None:
    """Ids that run out within one millisecond go on in the next; the batch is whole."""
    ids = seed(server, stream, 900, delivered=100)[100:]

    def fill_up() -> None:
        seconds, micros = ask(server, "TIME")
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        ask(
            server, "XADD", f"{stream}.drain_audit", f"{now_ms}-18446744073709551610",
            "original_id", "0-1", "run_id", "x",
        )  # fmt: skip

    run = complete(server.url, stream, throttle="none", at=(400, fill_up))
    ask(server, "XDEL", f"{stream}.drain_audit", *[
        r["audit_id"] for r in audit(server, stream) if r["original_id"] == "0-1"
    ])  # fmt: skip
    assert_settled(server, stream, ids, [run])


def test_a_foreign_entry_in_the_audit_stream(valkey: Server, stream: str) -> None:
    """Something that is no record, put into the audit stream, stops no run and is never counted."""
    ids = seed(valkey, stream, 300, delivered=100)[100:]
    name = f"{stream}.drain_audit"
    ask(valkey, "XADD", name, "*", "\xff", "\x1b[2J")
    run = complete(valkey.url, stream, at=(80, lambda: ask(valkey, "XADD", name, "*", "a", "b")))
    foreign = [e[0] for e in ask(valkey, "XRANGE", name, "-", "+") if len(e[1]) == 2]
    ask(valkey, "XDEL", name, *foreign)
    assert_settled(valkey, stream, ids, [run])


def test_the_servers_clock_goes_back(valkey: Server, stream: str) -> None:
    """An audit stream a second ahead of the clock is waited for; its ids never stand still."""
    ids = seed(valkey, stream, 300, delivered=100)[100:]
    seconds, micros = ask(valkey, "TIME")
    ahead = int(seconds) * 1000 + int(micros) // 1000 + 1000
    ask(valkey, "XADD", f"{stream}.drain_audit", f"{ahead}-0", "original_id", "0-1")
    started = time.monotonic()
    run = complete(valkey.url, stream, throttle="1000")
    assert time.monotonic() - started > 0.8
    ask(valkey, "XDEL", f"{stream}.drain_audit", f"{ahead}-0")
    assert_settled(valkey, stream, ids, [run])


def test_the_end_of_ids_in_the_stream_itself(server: Server, stream: str) -> None:
    """A stream whose own last id is the greatest there is is drained like any other."""
    entries = [(1, intent()), (2, intent()), (MAX_ID, intent())]
    fill(server, stream, entries, group=GROUP)
    run = complete(server.url, stream)
    assert_settled(server, stream, ["1-0", "2-0", MAX_ID], [run])
    assert isinstance(run, Attempt)
    assert key(MAX_ID) == (2**64 - 1, 2**64 - 1)
