"""What the fault tests share: a live run in this process, a fault at a chosen moment, the books."""

from __future__ import annotations

import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from backlogs import GROUP, fill
from books import ask, key
from conftest import lacking
from proxy import FaultKind
from servers import Server, wait_until

from drainkit.core.summary import Summary
from drainkit.draining.live import apply
from drainkit.draining.plan_files import PlanFile
from drainkit.draining.run import Run, resolve
from drainkit.errors import DrainkitError
from drainkit.server.connection import Server as Link
from drainkit.settings import build

#: what only the request for new entries, a look at the group, or a commit with records contains
READ = b"\r\nXRANGE\r\n"
LOOK = b"local stream, audit, stop, state, recorded = KEYS"
COMMIT = b"+00:00\r\n$%d\r\n%s" % (len(GROUP), GROUP.encode())  # drained_at_ts, and whose group


WIRE: list[FaultKind] = [
    "cut_before", "cut_after", "half_reply", "delay_request", "delay_reply", "black_hole",
]  # fmt: skip
ALONE = {"throttle": "none", "min_idle_min": 0, "allow_active_consumers": True}


@dataclass(frozen=True)
class Attempt:
    """How one run ended: its exit code, its summary (None: it ended before its first write)."""

    rc: int
    summary: dict[str, Any] | None
    error: str

    @property
    def books(self) -> dict[str, Any]:
        """The summary of a run that has one."""
        assert self.summary is not None, self.error
        return self.summary


def attempt(
    url: str,
    stream: str,
    *,
    at: tuple[int, Callable[[], Any]] | None = None,
    then: tuple[int, Callable[[], Any]] | None = None,
    stopping: threading.Event | None = None,
    certain: bool = True,
    planned: PlanFile | None = None,
    ready: Callable[[Run], Any] = lambda _: None,
    **options: Any,
) -> Attempt:
    """One live run. `at`, `then`: once so many events are in its books, a fault happens, once.

    `ready` is called before it begins, when all that it will drain was seen.
    """
    todo = [fault for fault in (then, at) if fault]

    def progress(summary: Summary) -> None:
        if todo and summary.total_read >= todo[-1][0]:
            todo.pop()[1]()

    usual = {} if planned else {"throttle": "2000", "max_events": "all"}
    settings = build({"redis_url": url, "stream": stream, "mode": "live", **usual, **options})
    if planned:
        settings = planned.plan.laid_under(settings)
    try:
        with Link.of(settings) as link:
            ready(run := resolve(link, settings, planned=planned))
            summary = apply(run, stopping=stopping, on_progress=progress)
    except DrainkitError as error:
        return Attempt(error.exit_code, None, str(error))
    finally:
        assert not (todo and certain), "the run ended before the fault's moment"
    assert summary.exit_code is not None
    return Attempt(summary.exit_code, summary.as_dict(), summary.error or "")


class Clock:
    """The clock of servers that are started from now on, for tests to step; it goes on by itself.

    That by which a server measures how long something takes stays as it is.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead_sec = 0
        self._file = folder / "clock"
        library = folder / "clock.so"
        self._file.write_bytes(bytes(8))
        build = ["cc", "-shared", "-fPIC", "-o", library, Path(__file__).parent / "clock.c"]
        try:
            subprocess.run(build, check=True)
        except FileNotFoundError:
            lacking("C compiler")
        monkeypatch.setenv("CLOCK_FILE", str(self._file))
        monkeypatch.setenv("LD_PRELOAD", str(library))

    def step(self, seconds: int) -> None:
        """Set it ahead, or back."""
        self.ahead_sec += seconds
        with self._file.open("r+b") as file:
            file.write(self.ahead_sec.to_bytes(8, "little", signed=True))


def follow(replica: Server, primary: Server) -> None:
    """REPLICAOF, until all is there."""
    ask(replica, "REPLICAOF", "127.0.0.1", str(primary.port))
    in_step(replica, primary)


def in_step(replica: Server, primary: Server) -> None:
    """Until the replica has all that was written; WAIT answers for one connection's writes only."""

    def has_all() -> bool:
        return bool(ask(replica, "ROLE")[3:5] == [b"connected", ask(primary, "ROLE")[1]])

    wait_until("the replica is in step", has_all)


def complete(*where: str, **options: Any) -> Attempt:
    """A live run that has to end with 0."""
    run = attempt(*where, **options)
    assert run.rc == 0, run.error
    return run


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What the calls answer, each in a thread of its own."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def assert_once(records: Sequence[dict[str, str]], expected: Sequence[str]) -> None:
    """Nothing lost, nothing doubled, nothing foreign."""
    found = Counter(record["original_id"] for record in records)
    assert [i for i in expected if i not in found] == [], "lost"
    assert [i for i, n in found.items() if n > 1] == [], "doubled"
    assert set(found) - set(expected) == set(), "foreign"


def replace_stream(
    place: Any, how: str, *, n: int = 2000, same_ids: bool = False,
    gone: Callable[[], Any] = lambda: None,
) -> list[str]:  # fmt: skip
    """Another stream in its place, of which nobody has read anything; answers the n later ids of
    the new one, with `same_ids` after those of the old. `gone` is called once the old one is.

    Each is another: one with the same ids and the same content is the old one, put back.
    """
    ids = [entry[0].decode() for entry in place.alter("XRANGE", "-", "+")]
    after_ms, beside = key(ids[-1])[0] + 1, f"{place.stream}:new"
    new = [*(ids if same_ids else ()), *(f"{after_ms + i}-7" for i in range(n))]
    entries = [(entry, {"n": f"{i} of {after_ms}"}) for i, entry in enumerate(new)]
    if how != "made anew":
        fill(place.server, beside, entries, group=GROUP)
    if how == "moved away":
        place.alter("MOVE", 1)
    if how == "made anew":
        place.alter("DEL")
    elif how == "restored over":
        place.alter("RESTORE", 0, place.ask("DUMP", beside), "REPLACE")
        place.ask("DEL", beside)
    else:
        place.ask("RENAME", beside, place.stream)
    gone()
    if how == "made anew":
        place.fill(entries)
    return new


def unrecorded(place: Any) -> list[str]:
    """Entries that the group has passed, that are pending for nobody, and have no record."""
    done = {*place.recorded(), *(entry for entry, _ in place.waiting())}
    entries = [row[0].decode() for row in place.alter("XRANGE", "-", place.position)]
    return [entry for entry in entries if entry not in done]
