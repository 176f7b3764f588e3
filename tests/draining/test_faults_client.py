"""Drains that are killed, paused or doubled at each step; other consumers at work meanwhile."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest
from backlogs import GROUP, ME, deliver, fill, seed
from books import ask, audit, pending
from conftest import ROOT, Cli, intent
from faults import COMMIT, READ, Attempt, assert_settled, at_once, attempt, complete
from proxy import FaultKind, Proxy
from servers import Server, wait_until

StartProxy = Callable[..., Proxy]

#: where a drain is when the signal reaches it: what its proxy does to which request
STEPS: dict[str, tuple[bytes, FaultKind]] = {
    "before the read": (READ, "black_hole"),
    "between read and reply": (READ, "delay_reply"),
    "before the commit": (COMMIT, "black_hole"),
    "between commit and reply": (COMMIT, "delay_reply"),
}


def live(url: str, stream: str, *options: object) -> tuple[object, ...]:
    return (
        "drain", "--mode", "live", "--yes", "--json", "--max-events", "all", "--allow-invalid",
        "--redis-url", url, "--stream", stream, *options,
    )  # fmt: skip


def outcome(cli: Cli, process: subprocess.Popen[str]) -> Attempt:
    run = cli.finish(process)
    return Attempt(run.rc, run.json() if run.out else None, run.err)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("how", "throttle"),
    [
        (signal.SIGKILL, "200"), (signal.SIGKILL, "none"),
        (signal.SIGTERM, "200"), (signal.SIGINT, "none"),
    ],
)  # fmt: skip
def test_a_signal_at_each_step(
    valkey: Server,
    stream: str,
    cli: Cli,
    start_proxy: StartProxy,
    how: signal.Signals,
    step: str,
    throttle: str,
) -> None:
    """Killed or stopped there, and run again: each entry audited once, the books true each time."""
    ids = seed(valkey, stream, 1500 if throttle == "none" else 140, delivered=100)[100:]
    proxy = start_proxy(valkey)
    match, fault = STEPS[step]
    proxy.arm(fault, match=match, nth=3, delay_sec=1)
    process = cli.start(*live(f"{proxy.url}&socket_timeout=2", stream, "--throttle", throttle))
    proxy.wait_fired()
    later = ask(valkey, "XADD", stream, "*", "symbol", "BTCUSDT", "confidence", "0.9").decode()
    process.send_signal(how)
    first = outcome(cli, process)
    assert first.rc == (-how if how == signal.SIGKILL else 130), first.error
    assert (first.summary is None) == (how == signal.SIGKILL)
    assert later not in {r["original_id"] for r in audit(valkey, stream)}
    again = complete(valkey.url, stream, throttle="none")
    assert_settled(valkey, stream, [*ids, later], [first, again])
    assert pending(valkey, stream) == 0


@pytest.mark.parametrize("scope", ["undelivered", "pending"])
@pytest.mark.parametrize("takeover", ["another consumer", "the same consumer"])
@pytest.mark.parametrize("match", [READ, COMMIT], ids=["deciding", "committing"])
def test_a_worker_that_slept_through_its_takeover(
    valkey: Server,
    stream: str,
    cli: Cli,
    start_proxy: StartProxy,
    takeover: str,
    match: bytes,
    scope: str,
) -> None:
    """Woken after another drain took its entries, it neither acknowledges nor records them again.

    Once it slept with the entries before it, once with a commit on its way to the server.
    """
    ids = seed(valkey, stream, 280, delivered=100)[100:]
    if scope == "pending":
        deliver(valkey, stream, "dead", 180)
    proxy = start_proxy(valkey)
    held: FaultKind = "delay_reply" if match == READ else "delay_request"
    proxy.arm(held, match=match, nth=2, delay_sec=2)
    more = ("--scope", scope, "--min-idle-min", "0")
    process = cli.start(*live(proxy.url, stream, "--throttle", "400", *more))
    proxy.wait_fired()
    process.send_signal(signal.SIGSTOP)
    before = len(audit(valkey, stream))
    name = ME if takeover == "the same consumer" else "other"
    other = complete(
        valkey.url, stream, scope=scope, min_idle_min=0, consumer_name=name, throttle="none",
        allow_active_consumers=True,
    )  # fmt: skip
    assert len(audit(valkey, stream)) == 180 > before
    time.sleep(2)  # what was on its way arrives
    process.send_signal(signal.SIGCONT)
    first = outcome(cli, process)
    assert first.rc == 0, first.error
    assert_settled(valkey, stream, ids, [first, other])
    assert pending(valkey, stream) == 0


@pytest.mark.parametrize("scope", ["undelivered", "pending"])
def test_a_live_consumer_keeps_its_entries(server: Server, stream: str, scope: str) -> None:
    """At work beside the drain, it loses nothing: each entry goes to one of the two."""
    ids = seed(server, stream, 1100, delivered=100)[100:]
    if scope == "pending":
        deliver(server, stream, "dead", 500)
        time.sleep(0.7)
    done, read, acked = threading.Event(), [], [0]

    def consume() -> None:
        client: Any = server.client(protocol=2)
        while not done.wait(0.005):
            reply = client.xreadgroup(GROUP, "live", {stream: ">"}, count=3)
            for entry, _ in reply[0][1] if reply else ():
                read.append(entry.decode())
                time.sleep(0.002)
                acked[0] += client.xack(stream, GROUP, entry)

    def drain() -> Attempt:
        try:
            wait_until("the consumer works", lambda: acked[0] > 5)
            return complete(server.url, stream, throttle="1000", allow_active_consumers=True,
                            scope=scope, min_idle_min=0.01)  # fmt: skip
        finally:
            done.set()

    run, _ = at_once(drain, consume)
    drained = {record["original_id"] for record in audit(server, stream)}
    assert drained.isdisjoint(read)
    assert acked[0] == len(read) > 5
    if scope == "undelivered":
        assert drained | set(read) == set(ids)
    assert_settled(server, stream, ids[:500] if scope == "pending" else sorted(drained), [run])


#: whose the entries are, and what happens to some of them while their commit is on its way
MEDDLING: dict[str, tuple[str, str]] = {
    "undelivered, read by another": ("", "read"),
    "pending, claimed by another": ("dead", "claimed"),
    "its own, claimed by another": (ME, "claimed"),
    "pending, their owner came back": ("dead", "touched"),
    "pending, all idle": ("dead", ""),
    "undelivered, deleted": ("", "deleted"),
    "undelivered, the last deleted": ("", "deleted last"),
}


@pytest.mark.parametrize("case", MEDDLING)
def test_what_happens_to_entries_before_their_commit(
    server: Server, stream: str, start_proxy: StartProxy, case: str
) -> None:
    """What others took meanwhile is left to them, what was deleted is gone, nothing else is taken
    in their place, nor what came after the boundary; asked in the commit itself."""
    owner, what = MEDDLING[case]
    ids = seed(server, stream, 260, delivered=100)[100:]
    if owner:
        deliver(server, stream, owner, 160)
        ask(server, "XCLAIM", stream, GROUP, owner, 0, *ids, "IDLE", 3_600_000, "JUSTID")
    first = 140 if what == "deleted last" else 60
    some = ids[first : first + 17] if what not in ("", "read") else []
    proxy = start_proxy(server)  # the commit that has a record of the first: of 40 or more entries
    proxy.arm("delay_request", match=msgspec.msgpack.encode(ids[first]), delay_sec=0.6)
    later: list[bytes] = []

    def meddle() -> None:
        proxy.wait_fired()
        if what == "read":
            some.extend(deliver(server, stream, "live", 30))  # what comes next
        elif what.startswith("deleted"):
            ask(server, "XDEL", stream, *some)
        elif what:
            who = "live" if what == "claimed" else owner
            ask(server, "XCLAIM", stream, GROUP, who, 0, *some, "JUSTID")
        later.extend(ask(server, "XADD", stream, "*", "symbol", "BTCUSDT") for _ in range(9))

    scope = "pending" if owner == "dead" else "undelivered"
    drain = partial(attempt, proxy.url, stream, scope=scope, min_idle_min=30)
    run, _ = at_once(drain, meddle)
    assert run.rc == 0, run.error
    rows = ask(server, "XPENDING", stream, GROUP, "-", "+", 100)
    holder = owner if what == "touched" else "live"
    kept = [] if what.startswith("deleted") else [(entry, holder) for entry in some]
    assert [(row[0].decode(), row[1].decode()) for row in rows] == kept
    assert_settled(server, stream, [i for i in ids if i not in some], [run])
    assert deliver(server, stream, "live", 99) == [entry.decode() for entry in later]


WRONG_CLOCK = """
import datetime, time
DAY = {days} * 86400
real, real_ns = time.time, time.time_ns
time.time = lambda: real() + DAY
time.time_ns = lambda: real_ns() + DAY * 10**9
"""


@pytest.mark.parametrize("days", [1, -1])
def test_a_host_whose_clock_is_wrong_by_a_day(
    valkey: Server, stream: str, cli: Cli, days: int
) -> None:
    """Ages, records and the run's id follow the server's clock; the host's plays no part."""
    (cli.cwd / "sitecustomize.py").write_text(WRONG_CLOCK.format(days=days))
    ids = seed(valkey, stream, 130, delivered=100)[100:]
    old = f"{int(ids[0].partition('-')[0]) - 3_600_000}-0"
    fill(valkey, f"{stream}.old", [(old, intent()), *((i, intent()) for i in ids)], group=GROUP)
    command = live(valkey.url, f"{stream}.old", "--throttle", "none")
    told = subprocess.check_output(  # an interpreter of its own, which heeds sitecustomize
        [sys.executable, "-m", "drainkit", *map(str, command)],
        env={**os.environ, "PYTHONPATH": str(cli.cwd)}, cwd=ROOT,
    )  # fmt: skip
    run = json.loads(told)
    assert (run["dropped_old"], run["drained_ok"]) == (1, 30)
    now = ask(valkey, "TIME")[0].decode()
    shown = time.strftime("%Y%m%dT%H", time.gmtime(int(now)))
    earlier = time.strftime("%Y%m%dT%H", time.gmtime(int(now) - 60))
    assert run["run_id"].startswith((shown, earlier))
    assert_settled(valkey, f"{stream}.old", [old, *ids], [Attempt(0, run, "")])


def test_nothing_in_the_package_asks_for_the_hosts_time() -> None:
    """No module reads the host's wall clock: the server's TIME and a monotonic clock are all."""
    package = ROOT / "drainkit"
    clock = re.compile(
        r"\btime\.time(_ns)?\(|\.(utc)?now\(\)|\.now\((dt\.)?UTC|\.today\(|\btime\.(gmtime|localtime)"
    )
    found = {
        f"{path.name}: {line.strip()}"
        for path in package.rglob("*.py")
        for line in path.read_text().splitlines()
        if clock.search(line)
    }
    assert found == set()
