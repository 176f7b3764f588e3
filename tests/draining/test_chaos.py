"""The long form of the fault suite: `pytest -m chaos`, some minutes of random faults.

It prints a table for the README: each fault, how often it came, and what became of the entries.
`CHAOS_SEED=n` repeats a run's choices; `CHAOS_ROUNDS=n` is how often each fault comes.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

import pytest
from backlogs import GROUP, ME, backlog
from books import assert_counts
from conftest import Cli
from faults import ALONE, COMMIT, READ, WIRE, Attempt, Clock, follow, replace_stream
from place import Place
from proxy import Proxy, SlowLink
from servers import KINDS, Server, wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

SEED = int(os.environ.get("CHAOS_SEED", random.SystemRandom().randrange(10**6)))
ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "8"))
SCOPES = ("undelivered", "pending", "history")
Tally = Counter[Any]  # of a fault: the columns below, and exit codes of the runs that it struck
COLUMNS = ("times", "runs", "entries", "lost", "doubled")


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[defaultdict[str, Tally]]:
    """One table of all tests of this module, printed at the end whatever the capturing says."""
    found: defaultdict[str, Tally] = defaultdict(Counter)
    yield found
    found["all"] = sum(found.values(), Counter())
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\nchaos, seed {SEED}:\n\n| Fault |", *map("{} |".format, COLUMNS), "Ended with |")
        print("|" + " --- |" * 7)
        for name, tally in found.items():
            ends = ", ".join(f"{rc}: {tally[rc]}" for rc in sorted(set(tally) - {*COLUMNS}))
            print("|", " | ".join((name, *(f"{tally[c]:,}" for c in COLUMNS), ends)), "|")


@dataclass(kw_only=True)
class Scene(Place):
    """A stream under faults: who serves it, who drains it, how many records each id is to have."""

    spare: Server  # may take over
    proxy: Proxy  # where the drains connect, whoever serves
    chance: random.Random
    clock: Clock
    wanted: Counter[str] = field(default_factory=Counter)
    drains: list[subprocess.Popen[str]] = field(default_factory=list)  # at work

    def begin(self) -> None:
        """A stream of its own for the next rounds."""
        self.stream = self.base = f"s{self.chance.randrange(10**9)}"
        self.wanted = Counter()
        self.fill([])

    def add(self, n: int) -> None:
        """n more entries at the stream's end, as a producer adds them."""
        entries = [("*", fields) for _, fields in backlog(self.now_ms(), n, gap_ms=0)]
        self.wanted.update(entry.decode() for entry in self.fill(entries, None))

    def ids(self) -> list[str]:
        return [entry[0].decode() for entry in self.alter("XRANGE", "-", "+")]

    def found(self) -> Counter[str]:
        return Counter(self.recorded())

    def drain(self, scope: str, name: str) -> None:
        """Start a live drain; for scopes pending and history there is something then."""
        if scope == "pending":
            self.deliver("dead", 150)
        elif scope == "history":
            self.set_position(self.chance.choice(self.ids()))
        self.drains.append(self.start(
            "--allow-invalid", "--allow-active-consumers", "--min-idle-min", "0", "--scope", scope,
            "--consumer-name", name, "--throttle", self.chance.choice(["none", "500", "1500"]),
        ))  # fmt: skip

    def at_work(self) -> bool:
        return any(drain.poll() is None for drain in self.drains)

    def sweep(self) -> None:
        """Run until nothing is left in any scope; each run's books are right."""
        for scope in SCOPES:
            runs: list[Attempt] = []
            while not runs or runs[-1].rc:
                assert len(runs) < 8, f"the fault is over and no run ends well: {runs}"
                runs.append(self.attempt(self.proxy.url, scope=scope, **ALONE))
                assert_counts(self.audit(), runs[-1].summary)


Fault = Callable[[Scene], Iterator[Callable[[], Any]]]
FAULTS: dict[str, Fault] = {}


def fault(name: str) -> Callable[[Fault], None]:
    """A generator: prepares, yields what strikes the drains at work, and mends when they ended."""
    return partial(FAULTS.__setitem__, name)


@fault("none but one another")
def nothing(scene: Scene) -> Iterator[Callable[[], Any]]:
    yield lambda: None


@fault("requests and replies cut, delayed, lost")
def wire(scene: Scene) -> Iterator[Callable[[], Any]]:
    chance = scene.chance
    yield partial(
        scene.proxy.arm, chance.choice(WIRE), match=chance.choice([READ, COMMIT, b"EVAL", b"XADD"]),
        nth=chance.randint(1, 3), times=chance.choice([1, 1, 2, 4]),
        delay_sec=chance.uniform(0.1, 0.6),
    )  # fmt: skip
    scene.proxy.disarm()


@fault("a slow network, then cut")
def slow(scene: Scene) -> Iterator[Callable[[], Any]]:
    link = SlowLink(scene.proxy.socket, scene.chance.uniform(0.005, 0.05))
    scene.url = link.url
    yield scene.proxy.cut_all
    link.stop()


@fault("the server killed, back from its last save")
def crash(scene: Scene) -> Iterator[Callable[[], Any]]:
    def strike() -> None:
        scene.ask("SAVE")
        time.sleep(scene.chance.choice([0, 0.05, 0.2]))  # what was done since is lost
        scene.server.kill()
        scene.server.start()

    yield strike


@fault("a replica promoted that lacks the last writes")
def promoted(scene: Scene) -> Iterator[Callable[[], Any]]:
    old, new = scene.server, scene.spare
    follow(new, old)

    def strike() -> None:
        new.ask("REPLICAOF", "NO", "ONE")
        time.sleep(scene.chance.choice([0, 0.05, 0.2]))
        scene.server, scene.spare, scene.proxy.upstream = new, old, new.socket
        scene.proxy.cut_all()

    yield strike


@fault("writes refused, scripts flushed, a paused server")
def refused(scene: Scene) -> Iterator[Callable[[], Any]]:
    yield partial(scene.server.ask, *scene.chance.choice([
        ("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "min-replicas-to-write", "1"),
        ("REPLICAOF", "127.0.0.1", "1"), ("SCRIPT", "FLUSH"), ("CLIENT", "PAUSE", "300"),
    ]))  # fmt: skip
    scene.ask("REPLICAOF", "NO", "ONE")
    for name in ("maxmemory", "min-replicas-to-write"):
        scene.ask("CONFIG", "SET", name, "0")


@fault("the server's clock set back or ahead")
def clock(scene: Scene) -> Iterator[Callable[[], Any]]:
    yield lambda: scene.clock.step(scene.chance.choice([-2, -1, 1, 90, 3600]))


@fault("the stream made anew, renamed over, restored over")
def replaced(scene: Scene) -> Iterator[Callable[[], Any]]:
    how = scene.chance.choice(["made anew", "made anew", "renamed over", "restored over"])
    same_ids = how == "made anew" and scene.chance.random() < 0.5

    def gone() -> None:  # what had no record went with the old stream
        found = scene.found()
        scene.wanted = Counter({entry: n for entry, n in found.items() if entry in scene.wanted})

    def strike() -> None:
        n = scene.chance.choice([20, 900])
        new = replace_stream(scene, how, n=n, same_ids=same_ids, gone=gone)
        scene.wanted.update(new)

    yield strike


@fault("its entries trimmed and deleted")
def trimmed(scene: Scene) -> Iterator[Callable[[], Any]]:
    def strike() -> None:
        ids = scene.ids()
        scene.alter("XTRIM", "MAXLEN", scene.chance.randrange(len(ids)))
        scene.alter("XDEL", *scene.chance.sample(ids, 20))

    yield strike
    kept = {*scene.ids(), *scene.found(), *(entry for entry, _ in scene.waiting())}
    scene.wanted = Counter({entry: n for entry, n in scene.wanted.items() if entry in kept})


@fault("the group's position set back and forth")
def position(scene: Scene) -> Iterator[Callable[[], Any]]:
    def strike() -> None:
        for entry in scene.chance.choices(scene.ids(), k=scene.chance.randint(1, 3)):
            scene.set_position(entry)
            time.sleep(scene.chance.choice([0, 0.03]))

    yield strike


@fault("what is recorded, or the state, deleted")
def forgotten(scene: Scene) -> Iterator[Callable[[], Any]]:
    names = scene.chance.choice([["state"], ["recorded"], ["state", "recorded"]])
    yield partial(scene.ask, "DEL", *map(scene.side, names))
    # without the state nobody knows who made this group: refused until it is gone
    scene.ask("XGROUP", "DESTROY", scene.stream, f"{GROUP}.drain_history")


@fault("stop, and resume")
def stopped(scene: Scene) -> Iterator[Callable[[], Any]]:
    where = ("--redis-url", scene.server.url, "--stream", scene.stream)
    at_stop: list[int] = []

    def strike() -> None:
        scene.cli.done("stop", "--reason", "chaos", *where)
        at_stop.append(sum(scene.found().values()))

    yield strike
    assert [sum(scene.found().values())] == at_stop, "acknowledged after stop"
    scene.cli.done("resume", *where)


@fault("SIGKILL, SIGTERM, SIGINT")
def signals(scene: Scene) -> Iterator[Callable[[], Any]]:
    def strike() -> None:
        for drain in scene.drains:
            drain.send_signal(scene.chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))

    yield strike


@fault("suspended through takeovers, SETID and XCLAIM")
def suspended(scene: Scene) -> Iterator[Callable[[], Any]]:
    chance = scene.chance

    def other() -> None:
        scene.attempt(scene.server.url, scope=chance.choice(SCOPES), **ALONE,
                      max_events=chance.choice([50, "all"]),
                      consumer_name=chance.choice([ME, "other"]))  # fmt: skip

    def set_back() -> None:
        scene.set_position(chance.choice(scene.ids()))

    def claim() -> None:
        for entry, _ in scene.waiting()[:20]:
            scene.alter("XCLAIM", GROUP, chance.choice(["A", ME]), 0, entry)

    def strike() -> None:
        for drain in scene.drains:
            drain.send_signal(signal.SIGSTOP)
        for what in chance.choices([other, set_back, claim], k=chance.randint(1, 5)):
            what()
        for drain in scene.drains:
            drain.send_signal(signal.SIGCONT)

    yield strike


LOSSY = ("the server killed, back from its last save",
         "a replica promoted that lacks the last writes")  # fmt: skip


def play(scene: Scene, name: str, tally: Tally) -> None:
    """One fault under one to three drains at once; afterwards all is drained and counted."""
    chance = scene.chance
    if not scene.stream or chance.random() < 0.1:
        scene.begin()
    scene.add(n := chance.randint(200, 500))
    scene.url = f"{scene.proxy.url}&socket_timeout={chance.choice([0.4, 2])}"
    scene.drains = []
    with contextmanager(FAULTS[name])(scene) as strike:
        begun = len(scene.audit())
        for _ in range(chance.choice([1, 1, 2, 3])):
            scene.drain(chance.choice(["undelivered", *SCOPES]), chance.choice([ME, "two"]))
        if chance.random() < 0.8:
            wait_until("a drain works, or all ended", lambda: not scene.at_work()
                       or len(scene.audit()) > begun)  # fmt: skip
        time.sleep(chance.uniform(0, 0.15))
        tally["times"] += scene.at_work()
        strike()
        # books that were closed before tell of what is lost by now
        after_sec = scene.now_ms() / 1000 if name in LOSSY else 0.0
        ended = [scene.cli.finish(drain) for drain in scene.drains]
    for run in ended:
        assert "Traceback" not in run.err
        tally[run.rc] += 1
        books = run.json() if run.out else None
        if books and datetime.fromisoformat(books["finished_at"]).timestamp() >= after_sec:
            assert_counts(scene.audit(), books)
    scene.sweep()
    found = scene.found()
    lost, doubled = scene.wanted - found, found - scene.wanted
    tally["runs"] += len(ended) + len(SCOPES)
    tally["entries"] += n
    tally["lost"] += lost.total()
    tally["doubled"] += doubled.total()
    assert (lost, doubled, scene.waiting()) == ({}, {}, []), [run.err for run in ended]


@pytest.mark.parametrize("kind", KINDS)
def test_faults_at_random(
    clock: Clock, start_server: Callable[..., Server], start_proxy: Any, cli: Cli,
    table: defaultdict[str, Tally], kind: str,
) -> None:  # fmt: skip
    """Each fault many times, in any order, under drains of all scopes: nothing lost or doubled."""
    server, spare = (start_server(kind, port=True) for _ in range(2))
    chance = random.Random(f"{SEED} {kind}")
    scene = Scene(
        server, "", cli, spare=spare, proxy=start_proxy(server), chance=chance, clock=clock
    )
    names = [*FAULTS] * ROUNDS
    chance.shuffle(names)
    for name in names:
        play(scene, name, table[name])
