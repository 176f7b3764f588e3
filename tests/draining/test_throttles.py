"""A throttle holds and is reached; of several the lowest holds; none begins with credit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise, product

import pytest
from backlogs import seed
from books import audit, live, reached, worst_window
from conftest import Cli
from faults import Attempt, at_once, attempt, complete
from place import BUNDLED, Place
from proxy import SlowLink
from servers import KINDS, Server


def times_ms(records: list[dict[str, str]]) -> list[int]:
    return [int(record["audit_id"].partition("-")[0]) for record in records]


def assert_held(records: list[dict[str, str]], rate: float) -> None:
    """No second holds more than the rate, no tenth of one more than a fifth of it."""
    assert worst_window(records, 1000) <= math.ceil(rate)
    assert worst_window(records, 100) <= max(1, rate / 5)


def hold_and_reach(works: dict[str, Callable[[int], float]]) -> None:
    """Drains side by side reach 98 % of their rates; what another program of this machine delays
    is tried again."""
    best = dict.fromkeys(works, 0.0)
    for number in range(8):
        if late := [name for name, share in best.items() if share < 0.98]:
            best.update(zip(late, at_once(*(partial(works[n], number) for n in late)), strict=True))
    assert min(best.values()) >= 0.98, best


def drained(server: Server, url: str, stream: str, rate: float, number: int) -> float:
    """The share of the rate that a drain reached, which held it."""
    name, n = f"{stream}:{rate}:{number}", max(16, int(rate * 2) + 1)
    seed(server, name, n, delivered=0)
    complete(url, name, throttle=str(rate))
    records = audit(server, name)
    assert len(records) == n
    assert_held(records, rate)
    return reached(records, rate)


@pytest.mark.quiet
def test_the_throttle_holds_and_is_reached(
    clean: Callable[[str], Server], stream: str, cli: Cli
) -> None:
    """Every rate holds and is reached, also where a batch does not fill a tenth of a second; two
    drains at once stay under the one rate together, and reach it."""
    every = {kind: clean(kind) for kind in KINDS}

    def work(kind: str, rate: float) -> Callable[[int], float]:
        return partial(drained, every[kind], every[kind].url, stream, rate)

    def two(number: int) -> float:
        server, name = every["valkey"], f"{stream}:two:{number}"
        seed(server, name, 2000)
        command = live(server, name, "--throttle", "200", "--max-events", "400",
                       "--allow-active-consumers", "--consumer-name")  # fmt: skip
        both = [cli.start(*command, consumer) for consumer in ("one", "two")]
        assert [cli.finish(process).rc for process in both] == [0, 0]
        records = audit(server, name)
        assert len({r["original_id"] for r in records}) == len(records) == 800
        assert_held(records, 200)
        return reached(records, 200)

    # at 9.9 nothing that is late can be made up: each turn has a tenth of a second
    rates = [*product((5, 9.5), KINDS), (9.9, "valkey")]
    hold_and_reach({f"{rate} on {kind}": work(kind, rate) for rate, kind in rates})
    rates = [*product((50,), KINDS), (500, "redis"), (500, "redis62")]
    fast = {f"{rate} on {kind}": work(kind, rate) for rate, kind in rates}
    hold_and_reach({**fast, "two drains": two})


@pytest.mark.quiet
def test_a_slow_network_keeps_rate(valkey: Server, stream: str) -> None:
    """Over round trips of 5 to 50 ms rates hold, and are reached."""
    links = {ms: SlowLink(valkey.socket, ms / 1000) for ms in (5, 20, 50)}

    def work(ms: int, rate: float) -> Callable[[int], float]:
        return partial(drained, valkey, links[ms].url, f"{stream}:{ms}", rate)

    rates = [*product(links, (5, 50)), (20, 300)]
    hold_and_reach({f"{rate} over {ms} ms": work(ms, rate) for ms, rate in rates})
    for ms in (5, 50):
        hold_and_reach({f"1000 over {ms} ms": work(ms, 1000)})
    for link in links.values():
        link.stop()


@BUNDLED
@pytest.mark.slow
def test_a_dead_drains_throttle_is_gone_after_15_seconds(place: Place) -> None:
    """A drain killed at a low rate holds the next one for 15 s at most."""
    place.seed(60, 0)
    dead = place.start("--throttle", "0.01")
    place.wait_for(1)
    dead.kill()
    dead.communicate()
    began = time.monotonic()
    place.live("--throttle", "20", "--max-events", "20")
    assert time.monotonic() - began < 18  # a second of its own, and what a busy machine adds


@BUNDLED
def test_below_one_per_second_no_two_come_closer(place: Place) -> None:
    """At 0.8/s, two records are never closer than 1.25 s."""
    place.seed()
    place.live("--throttle", "0.8", "--max-events", "3")
    times = times_ms(place.audit())
    assert len(times) == 3
    assert min(b - a for a, b in pairwise(times)) >= 1250


@pytest.mark.parametrize(
    ("place", "fast"),
    [("valkey", "80"), ("redis", "1000"), ("valkey", "none"), ("redis62", "none")],
    indirect=["place"],
)
def test_the_lowest_throttle_holds(place: Place, fast: str) -> None:
    """Beside a drain of 20/s no other is faster."""
    place.seed(500)
    if fast == "none":  # held from its start, or it would be over before the slow one begins
        place.ask("HSET", place.side("state"), "pace", f"0 20.0@{place.now_ms() + 1500}")
    drain = partial(place.attempt, allow_active_consumers=True)

    def slow() -> Attempt:
        time.sleep(0.5)
        return drain(throttle="20", max_events=25, consumer_name="slow")

    found = at_once(partial(drain, throttle=fast, max_events=200, consumer_name="fast"), slow)
    assert [run.rc for run in found] == [0, 0], found
    records = place.audit()
    assert len({r["original_id"] for r in records}) == len(records) == 225
    slow_id, at_ms = found[1].books["run_id"], times_ms(records)
    slow_ms = [t for t, r in zip(at_ms, records, strict=True) if r["run_id"] == slow_id]
    # a second before the slow one's first record it was known to all; and they end together
    assert_held([r for t, r in zip(at_ms, records, strict=True)
                 if slow_ms[0] <= t <= slow_ms[-1]], 20)  # fmt: skip


def test_a_drain_begins_without_credit(valkey: Server, stream: str) -> None:
    """Events before the last audit millisecond, over the time from the first, never exceed it."""

    def begin(rate: int) -> None:
        name = f"{stream}:{rate}"
        seed(valkey, name, rate * 3 + 200, delivered=100)
        attempt(valkey.url, name, throttle=str(rate), max_events=1)  # leaves a turn long past
        time.sleep(1.1)
        run = attempt(valkey.url, name, throttle=str(rate), max_events=rate * 2)
        mine = [r for r in audit(valkey, name) if r["run_id"] == run.books["run_id"]]
        at_ms = times_ms(mine)
        before_last = sum(ms < at_ms[-1] for ms in at_ms)
        assert before_last / (at_ms[-1] - at_ms[0]) * 1000 <= rate
        assert run.books["events_per_sec"] <= rate

    at_once(*(partial(begin, rate) for rate in (5, 50, 1000)))


@BUNDLED
def test_a_throttle_heeds_what_came_before_it(place: Place) -> None:
    """The last second's commits without a throttle count for the next drain's."""
    place.seed(2_100)
    place.complete(throttle="none", max_events=1_990)
    place.complete(throttle="50", max_events=5)
    at_ms = times_ms(place.audit())
    assert at_ms[1_990] - at_ms[1_989] >= 1000
