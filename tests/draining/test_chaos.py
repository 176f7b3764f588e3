"""The long form of the fault suite: `pytest -m chaos`, some minutes of random faults.

It prints a table for the README: runs, faults, entries, lost, doubled.
`CHAOS_SEED=n` repeats a run's choices; `CHAOS_ROUNDS=n` makes it longer or shorter.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import redis
from books import GROUP, ME, ask, at, audit, backlog, seed
from clusters import Cluster, SentinelSetup
from conftest import Cli
from faults import COMMIT, READ, Attempt, assert_counts, attempt
from proxy import FaultKind, Proxy
from servers import Server, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]

StartServer = Callable[..., Server]
SEED = int(os.environ.get("CHAOS_SEED", random.SystemRandom().randrange(10**6)))
ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "20"))
WIRE: list[FaultKind] = [
    "cut_before", "cut_after", "half_reply", "delay_request", "delay_reply", "black_hole",
]  # fmt: skip


@dataclass
class Tally:
    """What one kind of chaos did and what became of its entries."""

    kind: str
    runs: int = 0
    faults: int = 0
    entries: int = 0
    lost: int = 0
    doubled: int = 0

    def settle(self, server: Server, stream: str, ids: list[str]) -> None:
        """Hold the audit against the entries; what was never to be drained counts as doubled."""
        found = Counter(record["original_id"] for record in audit(server, stream))
        self.entries += len(ids)
        self.lost += sum(entry not in found for entry in ids)
        self.doubled += sum(found.values()) - len(set(found) & set(ids))
        left = ask(server, "XPENDING", stream, GROUP, "-", "+", 10, ME)
        assert left == [], "still pending for the drain's consumer"


@dataclass
class Table:
    rows: list[Tally] = field(default_factory=list)

    def row(self, kind: str) -> Tally:
        self.rows.append(Tally(kind))
        return self.rows[-1]

    def __str__(self) -> str:
        whole = Tally("all")
        for row in self.rows:
            for name in ("runs", "faults", "entries", "lost", "doubled"):
                setattr(whole, name, getattr(whole, name) + getattr(row, name))
        lines = ["| Faults of | Runs | Faults | Entries | Lost | Doubled |", "|" + " --- |" * 6]
        lines += [
            f"| {t.kind} | {t.runs:,} | {t.faults:,} | {t.entries:,} | {t.lost} | {t.doubled} |"
            for t in (*self.rows, whole)
        ]
        return "\n".join(lines)


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    """One table of all tests of this module, printed at the end whatever the capturing says."""
    found = Table()
    yield found
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\nchaos, seed {SEED}:\n\n{found}\n")


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Each test's own choices, the same again with the same CHAOS_SEED."""
    return random.Random(f"{SEED} {request.node.name}")


def until_done(
    tally: Tally, server: Server, stream: str, run: Callable[[bool], Attempt | None], faults: int
) -> None:
    """Run the same command until it ends well with no more faults to come; check each run's books.

    `run` gets whether faults are still to come, and answers None for a run that was killed.
    """
    before = tally.faults
    for _ in range(20 * faults + 20):
        more = tally.faults - before < faults
        tally.runs += 1
        ended = run(more)
        if ended is not None and "counts are too low" not in ended.error:
            assert_counts(audit(server, stream), ended.summary)
        if ended is not None and ended.rc == 0 and not more:
            return
    raise AssertionError("the faults are over and no run ends well")


def struck(
    tally: Tally, work: Callable[[], Attempt], fault: Callable[[], Any], after_sec: float
) -> Attempt:
    """The work, with a fault after a moment; it counts only if the work was still going on."""
    going_on = threading.Event()
    going_on.set()

    def strike() -> None:
        tally.faults += going_on.is_set()
        fault()

    timer = threading.Timer(after_sec, strike)
    timer.start()
    ended = work()
    going_on.clear()
    timer.join()
    return ended


def refill(server: Server, stream: str, n: int) -> list[str]:
    """n more entries at the stream's end."""
    seconds, micros = ask(server, "TIME")
    entries = backlog(int(seconds) * 1000 + int(micros) // 1000, n, gap_ms=0)
    client = server.client()
    with client.pipeline(transaction=False) as pipe:
        for _, fields in entries:
            pipe.execute_command("XADD", stream, "*", *[x for p in fields.items() for x in p])
        found = [entry.decode() for entry in pipe.execute()]
    client.close()
    return found


def test_wire(
    server: Server, stream: str, start_proxy: Any, chance: random.Random, table: Table
) -> None:
    """Random faults of the network, all scripts, throttled or not."""
    tally = table.row(f"the network, {server.version}")
    ids = seed(server, stream, 3000, delivered=0)
    proxy: Proxy = start_proxy(server)

    def run(more: bool) -> Attempt:
        if more:
            proxy.arm(
                chance.choice(WIRE), match=chance.choice([READ, COMMIT, b"EVAL", b"XADD"]),
                nth=chance.randint(1, 5), times=chance.choice([1, 1, 2, 4]),
                delay_sec=chance.uniform(0.1, 0.6),
            )  # fmt: skip
        ended = attempt(
            f"{proxy.url}&socket_timeout=0.3",
            stream,
            throttle=chance.choice(["none", "2500"]),
            max_events=chance.choice(["all", "200"]) if more else "all",
        )
        tally.faults += proxy.fired
        proxy.fired = 0
        if not more:
            proxy.disarm()
        if more and ended.rc == 0:
            ids.extend(refill(server, stream, 300))
        return ended

    until_done(tally, server, stream, run, 5 * ROUNDS)
    tally.settle(server, stream, ids)
    assert (tally.lost, tally.doubled) == (0, 0)


@pytest.mark.parametrize("kind", ["valkey", "redis", "redis62"])
def test_crashes_of_the_server(
    start_server: StartServer,
    stream: str,
    chance: random.Random,
    table: Table,
    kind: str,
) -> None:
    """SIGKILL and restart at random moments, with the AOF at `always` or `everysec`."""
    server = start_server(kind, config={"appendonly": "yes", "appendfsync": "everysec"})
    tally = table.row(f"crashes of {server.version}")
    ids = seed(server, stream, 1500, delivered=0)

    def crash() -> None:
        server.kill()
        server.start()
        ask(server, "CONFIG", "SET", "appendfsync", chance.choice(["always", "everysec"]))

    def run(more: bool) -> Attempt:
        throttle = chance.choice(["none", "1500"])
        work = partial(attempt, server.url, stream, throttle=throttle)
        if not more:
            return work()
        ended = struck(tally, work, crash, chance.uniform(0.01, 0.3))
        ids.extend(refill(server, stream, 600))
        return ended

    until_done(tally, server, stream, run, ROUNDS)
    tally.settle(server, stream, ids)
    assert (tally.lost, tally.doubled) == (0, 0)


def test_signals_to_the_client(
    valkey: Server, stream: str, cli: Cli, chance: random.Random, table: Table
) -> None:
    """SIGKILL, SIGTERM and SIGINT at random moments, and sleeps that others use to take over."""
    tally = table.row("the client's process")
    ids = seed(valkey, stream, 3000, delivered=0)
    drain = (
        "drain", "--mode", "live", "--yes", "--json", "--max-events", "all",
        "--allow-active-consumers", *at(valkey, stream),
    )  # fmt: skip

    def run(more: bool) -> Attempt | None:
        process = cli.start(*drain, "--throttle", chance.choice(["none", "1500"]))
        if more:
            begun = ask(valkey, "XLEN", f"{stream}.drain_audit")
            wait_until(
                "it works, or is done",
                lambda: (
                    ask(valkey, "XLEN", f"{stream}.drain_audit") > begun
                    or process.poll() is not None
                ),
            )
            time.sleep(chance.uniform(0, 0.1))
            how = chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP])
            tally.faults += process.poll() is None
            process.send_signal(how)
            if how == signal.SIGSTOP:
                time.sleep(0.1)
                attempt(
                    valkey.url, stream, consumer_name="other", max_events="200", throttle="none",
                    allow_active_consumers=True,
                )  # fmt: skip
                tally.runs += 1
                process.send_signal(signal.SIGCONT)
        ended = cli.finish(process)
        if more:
            ids.extend(refill(valkey, stream, 600))
        summary = ended.json() if ended.out else None
        return None if ended.rc < 0 else Attempt(ended.rc, summary, ended.err)

    until_done(tally, valkey, stream, run, 2 * ROUNDS)
    tally.settle(valkey, stream, ids)
    assert (tally.lost, tally.doubled) == (0, 0)


def test_writes_refused(server: Server, stream: str, chance: random.Random, table: Table) -> None:
    """OOM, NOREPLICAS, READONLY, flushed scripts, a paused server, at random moments."""
    tally = table.row(f"writes refused, {server.version}")
    ids = seed(server, stream, 2000, delivered=0)
    undo = {"maxmemory": "0", "min-replicas-to-write": "0"}

    def harm() -> None:
        which = chance.choice(["maxmemory", "min-replicas-to-write", "replica", "flush", "pause"])
        if which == "replica":
            ask(server, "REPLICAOF", "127.0.0.1", "1")
        elif which == "flush":
            ask(server, "SCRIPT", "FLUSH")
        elif which == "pause":
            ask(server, "CLIENT", "PAUSE", 300)
        else:
            ask(server, "CONFIG", "SET", which, "1")

    def heal() -> None:
        ask(server, "REPLICAOF", "NO", "ONE")
        for name, value in undo.items():
            ask(server, "CONFIG", "SET", name, value)

    def run(more: bool) -> Attempt:
        throttle = chance.choice(["none", "1500"])
        work = partial(attempt, server.url, stream, throttle=throttle)
        if not more:
            return work()
        ended = struck(tally, work, harm, chance.uniform(0.02, 0.3))
        heal()
        ids.extend(refill(server, stream, 600))
        return ended

    until_done(tally, server, stream, run, ROUNDS)
    tally.settle(server, stream, ids)
    assert (tally.lost, tally.doubled) == (0, 0)


def test_drains_at_once(server: Server, stream: str, chance: random.Random, table: Table) -> None:
    """Two to four drains at once, of one name or several: no faults but one another."""
    tally = table.row(f"drains side by side, {server.version}")
    ids = seed(server, stream, 1000, delivered=0)
    for _ in range(ROUNDS):
        names = [chance.choice([ME, "two", "three"]) for _ in range(chance.randint(2, 4))]
        ended: list[Attempt] = []

        def drain(name: str, throttle: str, ended: list[Attempt] = ended) -> None:
            free: dict[str, Any] = {"consumer_name": name, "allow_active_consumers": True}
            ended.append(attempt(server.url, stream, throttle=throttle, **free))

        threads = [
            threading.Thread(target=drain, args=(name, chance.choice(["none", "2000"])))
            for name in names
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        tally.runs += len(names)
        records = audit(server, stream)
        for one in ended:
            assert one.rc == 0, one.error
            assert_counts(records, one.summary)
        ids.extend(refill(server, stream, 400))
    assert attempt(server.url, stream, allow_active_consumers=True).rc == 0
    tally.runs += 1
    tally.settle(server, stream, ids)
    assert (tally.lost, tally.doubled) == (0, 0)


def role(node: Server) -> list[Any]:
    """What ROLE says; a node whose role is changing cuts its clients off."""
    try:
        found: list[Any] = ask(node, "ROLE")
    except redis.ConnectionError:
        return [b"changing"]
    return found


def test_failovers(
    sentinel: SentinelSetup, stream: str, chance: random.Random, table: Table
) -> None:
    """Sentinel fails over mid-drain, forth and back; a replica in step loses nothing."""
    tally = table.row("failovers by Sentinel")
    url = f"redis+sentinel://127.0.0.1:{sentinel.sentinels[0].port}/{sentinel.name}/0"
    ids = seed(sentinel.primary, stream, 1500, delivered=0)
    pair = [sentinel.primary, sentinel.replica]

    def run(more: bool) -> Attempt:
        primary = next(node for node in pair if node.port == sentinel.primary_port())
        other = next(node for node in pair if node is not primary)
        if not more:
            return attempt(url, stream)
        wait_until("the other is in step", lambda: ask(primary, "WAIT", 1, 1000) == 1)

        failover = partial(ask, sentinel.sentinels[0], "SENTINEL", "FAILOVER", sentinel.name)
        work = partial(attempt, url, stream, throttle="1000")
        ended = struck(tally, work, failover, chance.uniform(0.05, 0.3))
        wait_until("the failover", lambda: sentinel.primary_port() == other.port, timeout_sec=30)
        wait_until("the promotion", lambda: role(other)[0] == b"master")
        wait_until(
            "the old primary follows",
            lambda: role(primary)[:4:3] == [b"slave", b"connected"],
            timeout_sec=30,
        )
        ids.extend(refill(other, stream, 500))
        # a demoted primary may have recorded a batch that the new one never got: what counts is
        # the server that lives, so this run's summary is not held against it
        return Attempt(ended.rc, None, ended.error)

    primary = sentinel.primary
    until_done(tally, primary, stream, run, max(1, ROUNDS // 5))
    home = next(node for node in pair if node.port == sentinel.primary_port())
    tally.settle(home, stream, ids)
    assert (tally.lost, tally.doubled) == (0, 0)


def test_slots_that_move(
    cluster: Cluster, stream: str, chance: random.Random, table: Table
) -> None:
    """The stream's slot goes from primary to primary mid-drain: every run goes on to its end."""
    tally = table.row("a Cluster's slots on the move")
    stream = f"{{{stream}}}"
    ids = seed(cluster.primary_of(stream), stream, 1500, delivered=0)
    for _ in range(ROUNDS):
        over = threading.Event()

        def move_on(over: threading.Event = over) -> None:
            while not over.wait(chance.uniform(0, 0.4)):
                cluster.move_slot(
                    stream, atomically=chance.random() < 0.5, pause_sec=chance.uniform(0, 0.1)
                )
                tally.faults += not over.is_set()

        moving = threading.Thread(target=move_on)
        moving.start()
        try:
            ended = attempt(cluster.url, stream, throttle=chance.choice(["none", "500", "2000"]))
        finally:
            over.set()
            moving.join()
        tally.runs += 1
        assert ended.rc == 0, ended.error
        home = cluster.primary_of(stream)
        assert_counts(audit(home, stream), ended.summary)
        ids.extend(refill(home, stream, 800))
    tally.runs += 1
    assert attempt(cluster.url, stream).rc == 0
    tally.settle(cluster.primary_of(stream), stream, ids)
    assert (tally.lost, tally.doubled) == (0, 0)
