"""Drains that are killed, paused or doubled at each step; other consumers at work meanwhile."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from books import GROUP, ME, ask, audit, fill, pending, seed
from conftest import ROOT, Cli, intent
from faults import COMMIT, READ, Attempt, assert_once, assert_settled, attempt, complete, key
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
        ask(valkey, "XREADGROUP", "GROUP", GROUP, "dead", "COUNT", 180, "STREAMS", stream, ">")
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


@pytest.mark.parametrize("names", [(ME, ME), ("one", "two")], ids=["one name", "two names"])
@pytest.mark.parametrize("throttle", ["none", "1500"])
def test_two_drains_at_once(
    server: Server, stream: str, names: tuple[str, str], throttle: str
) -> None:
    """Two drains of one group, of one name or two, share the entries; each is audited once."""
    ids = seed(server, stream, 1600, delivered=100)[100:]
    runs: list[Attempt] = []

    def drain(name: str) -> None:
        run = attempt(
            server.url, stream, consumer_name=name, throttle=throttle, allow_active_consumers=True
        )
        runs.append(run)

    threads = [threading.Thread(target=drain, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [run.rc for run in runs] == [0, 0], runs
    assert_settled(server, stream, ids, runs)
    assert pending(server, stream) == 0


class Consumer(threading.Thread):
    """A live consumer of the group: reads, works for a moment, acknowledges, again and again."""

    def __init__(self, server: Server, stream: str) -> None:
        super().__init__()
        self.client: Any = server.client(protocol=2)
        self.stream = stream
        self.read: list[str] = []
        self.acked = 0
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.is_set():
            reply = self.client.xreadgroup(GROUP, "live", {self.stream: ">"}, count=3)
            for entry, _ in reply[0][1] if reply else ():
                self.read.append(entry.decode())
                self.done.wait(0.002)
                self.acked += self.client.xack(self.stream, GROUP, entry)
            self.done.wait(0.005)


@pytest.mark.parametrize("scope", ["undelivered", "pending"])
def test_a_live_consumer_keeps_its_entries(server: Server, stream: str, scope: str) -> None:
    """At work beside the drain, it loses nothing: each entry goes to one of the two."""
    ids = seed(server, stream, 1100, delivered=100)[100:]
    if scope == "pending":
        ask(server, "XREADGROUP", "GROUP", GROUP, "dead", "COUNT", 500, "STREAMS", stream, ">")
        time.sleep(0.7)
    consumer = Consumer(server, stream)
    consumer.start()
    try:
        wait_until("the consumer works", lambda: consumer.acked > 5)
        run = attempt(
            server.url, stream, throttle="1000", allow_active_consumers=True, scope=scope,
            min_idle_min=0.01,
        )  # fmt: skip
    finally:
        consumer.done.set()
        consumer.join()
    assert run.rc == 0, run.error
    drained = {record["original_id"] for record in audit(server, stream)}
    assert drained.isdisjoint(consumer.read)
    assert consumer.acked == len(consumer.read) > 5
    if scope == "pending":
        assert_settled(server, stream, ids[:500], [run])
    else:
        assert drained | set(consumer.read) == set(ids)
        assert_settled(server, stream, sorted(drained, key=key), [run])


@pytest.mark.parametrize("owner", [None, "dead", ME], ids=["undelivered", "pending", "its own"])
def test_entries_taken_from_the_drain_stay_taken(
    server: Server, stream: str, start_proxy: StartProxy, owner: str | None
) -> None:
    """What a consumer takes while the drain's commit is on its way is left to that consumer."""
    ids = seed(server, stream, 300, delivered=100)[100:]
    if owner:
        ask(server, "XREADGROUP", "GROUP", GROUP, owner, "COUNT", 200, "STREAMS", stream, ">")
    scope = "pending" if owner == "dead" else "undelivered"
    proxy = start_proxy(server)
    proxy.arm("delay_request", match=COMMIT, nth=2, delay_sec=0.6)
    taken = [entry.encode() for entry in ids[40:70]]

    def take() -> None:
        proxy.wait_fired()
        if owner:
            ask(server, "XCLAIM", stream, GROUP, "live", "0", *taken, "JUSTID")
        else:
            ask(server, "XREADGROUP", "GROUP", GROUP, "live", "COUNT", 30, "STREAMS", stream, ">")

    taker = threading.Thread(target=take)
    taker.start()
    run = attempt(proxy.url, stream, scope=scope, min_idle_min=0)
    taker.join()
    assert run.rc == 0, run.error
    left = [i for i in ids if i.encode() not in taken]
    rows = ask(server, "XPENDING", stream, GROUP, "-", "+", 100)
    assert [(row[0], row[1]) for row in rows] == [(entry, b"live") for entry in taken]
    assert_settled(server, stream, left, [run])


@pytest.mark.parametrize("owner", ["gone", "back"])
def test_an_owner_that_came_back_keeps_its_entries(
    server: Server, stream: str, start_proxy: StartProxy, owner: str
) -> None:
    """Scope pending asks in the commit itself whether an entry still idles long enough."""
    ids = seed(server, stream, 180, delivered=100)[100:]
    ask(server, "XREADGROUP", "GROUP", GROUP, "dead", "COUNT", 80, "STREAMS", stream, ">")
    hour = ("IDLE", 3_600_000, "JUSTID")
    ask(server, "XCLAIM", stream, GROUP, "dead", "0", *ids, *hour)
    proxy = start_proxy(server)
    proxy.arm("delay_request", match=COMMIT, nth=2, delay_sec=0.6)
    touched = [entry.encode() for entry in ids[50:60]] if owner == "back" else []

    def touch() -> None:
        proxy.wait_fired()
        if touched:
            ask(server, "XCLAIM", stream, GROUP, "dead", "0", *touched, "JUSTID")

    toucher = threading.Thread(target=touch)
    toucher.start()
    run = attempt(proxy.url, stream, scope="pending", min_idle_min=30)
    toucher.join()
    assert run.rc == 0, run.error
    assert [row[0] for row in ask(server, "XPENDING", stream, GROUP, "-", "+", 100)] == touched
    assert_settled(server, stream, [i for i in ids if i.encode() not in touched], [run])


def cut_off(proxy: Proxy, stream: str, fault: FaultKind, match: bytes) -> Attempt:
    """A run that loses each connection after its first 20 events, and is then interrupted."""
    stopping = threading.Event()

    def cut() -> None:
        proxy.arm(fault, match=match, times=None)
        threading.Timer(0.3, stopping.set).start()

    url = f"{proxy.url}&socket_timeout=0.5"
    run = attempt(url, stream, throttle="1000", at=(20, cut), stopping=stopping)
    proxy.disarm()
    assert run.rc == 130
    return run


@pytest.mark.parametrize("batch", [2, 4], ids=["midway", "last"])
def test_deleted_in_a_commit(
    server: Server, stream: str, start_proxy: StartProxy, batch: int
) -> None:
    """Deleted between read and commit, they are simply gone; nothing else is taken in their place.

    After the last batch lie entries that a producer added after the run's boundary.
    """
    ids = seed(server, stream, 260, delivered=100)[100:]
    proxy = start_proxy(server)
    proxy.arm("delay_request", match=COMMIT, nth=batch, delay_sec=0.6)
    deleted = ids[40 * batch - 20 : 40 * batch - 17]
    later: list[bytes] = []

    def meddle() -> None:
        proxy.wait_fired()
        ask(server, "XDEL", stream, *deleted)
        later.extend(ask(server, "XADD", stream, "*", "symbol", "BTCUSDT") for _ in range(9))

    meddler = threading.Thread(target=meddle)
    meddler.start()
    run = attempt(proxy.url, stream)
    meddler.join()
    assert run.rc == 0, run.error
    assert_settled(server, stream, [i for i in ids if i not in deleted], [run])
    assert pending(server, stream) == 0
    unread = ask(server, "XREADGROUP", "GROUP", GROUP, "live", "COUNT", 99, "STREAMS", stream, ">")
    assert [entry[0] for entry in unread[0][1]] == later


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
    env = {"PYTHONPATH": str(cli.cwd)}
    run = cli.done(*live(valkey.url, f"{stream}.old", "--throttle", "none"), env=env)
    assert (run.json()["dropped_old"], run.json()["drained_ok"]) == (1, 30)
    now = ask(valkey, "TIME")[0].decode()
    shown = time.strftime("%Y%m%dT%H", time.gmtime(int(now)))
    earlier = time.strftime("%Y%m%dT%H", time.gmtime(int(now) - 60))
    assert run.json()["run_id"].startswith((shown, earlier))
    assert_settled(valkey, f"{stream}.old", [old, *ids], [Attempt(0, run.json(), "")])


def test_nothing_in_the_package_asks_for_the_hosts_time() -> None:
    """No module reads the host's wall clock: the server's TIME and a monotonic clock are all."""
    package = ROOT / "drainkit"
    clock = re.compile(
        r"\btime\.time(_ns)?\(|\.(utc)?now\(\)|\.now\((dt\.)?UTC|\.today\(|\btime\.(gmtime|localtime)"
    )
    found = {
        f"{path.name}: {line.strip()}"
        for path in package.glob("*.py")
        for line in path.read_text().splitlines()
        if clock.search(line)
    }
    assert found == set()


def test_a_drain_that_died_is_not_doubled_by_scope_pending(
    valkey: Server, stream: str, start_proxy: StartProxy
) -> None:
    """A drain's commit lost on its way, and its entries taken over by scope pending: once each."""
    ids = seed(valkey, stream, 160, delivered=100)[100:]
    proxy = start_proxy(valkey)
    first = cut_off(proxy, stream, "cut_after", b"EVAL")
    other = attempt(valkey.url, stream, scope="pending", min_idle_min=0, consumer_name="other")
    again = attempt(valkey.url, stream, allow_active_consumers=True)
    assert (first.rc, other.rc, again.rc) == (130, 0, 0)
    assert_once(audit(valkey, stream), ids)
    assert_settled(valkey, stream, ids, [first, other, again])
