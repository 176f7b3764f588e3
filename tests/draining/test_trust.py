"""What is recorded is known by the server at the commit: attacks that needed no fault to win."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
from backlogs import GROUP, ME
from books import key
from faults import ALONE, Clock, assert_once, at_once, unrecorded
from place import BUNDLED, Place
from servers import KINDS

from drainkit.core.policy import ACTIONS
from drainkit.errors import RefusedError


def doubled(place: Place) -> list[tuple[tuple[str, str], int]]:
    found = Counter((r["consumer_group"], r["original_id"]) for r in place.audit())
    return [pair for pair in found.items() if pair[1] > 1]


@BUNDLED
def test_two_streams_do_not_share_an_audit(place: Place) -> None:
    """A second stream's drain into one audit stream is refused; nothing of it is acknowledged."""
    other = Place(place.server, f"{place.stream}:b", place.cli)
    other.fill((entry, {"symbol": "BTCUSDT"}) for entry in place.seed(60, 0))
    assert place.attempt(audit_stream="shared:audit").rc == 0
    second = other.attempt(audit_stream="shared:audit")
    assert (second.rc, "--audit-stream" in second.error) == (4, True), second.error
    assert other.position == "0-0"


def test_a_group_named_like_a_history_group_is_its_own(place: Place) -> None:
    """An application's group `<group>.drain_history` gets its own records: 50 and 50."""
    place.seed(50, 0)
    name = f"{GROUP}.drain_history"
    place.ask("XGROUP", "CREATE", place.stream, name, "0")
    for group in (name, GROUP):
        place.complete(consumer_group=group)
    assert Counter(r["consumer_group"] for r in place.audit()) == {GROUP: 50, name: 50}


@pytest.mark.parametrize("kind", KINDS)
def test_a_clock_that_steps(clock: Clock, own_place: Callable[[str], Place], kind: str) -> None:
    """Set back under a drain, the drain waits until its records' ids are later than the last.
    Entries whose ids lie two hours ahead are recorded once, also when that time has come."""
    place, began = own_place(kind), time.monotonic()
    ahead_ms = place.now_ms() + 7_200_000
    place.fill((ahead_ms + i, {"symbol": "BTCUSDT", "confidence": "0.9"}) for i in range(40))
    place.complete(throttle="1000", at=(20, lambda: clock.step(-2)))
    assert time.monotonic() - began > 1.5
    for scope in ("undelivered", "history", "undelivered"):
        place.complete(scope=scope, **ALONE)
        clock.step(3 * 3600)
        place.set_position("0-0" if scope == "history" else "$")
    assert (len(place.audit()), doubled(place)) == (40, [])


@pytest.mark.parametrize("ids", ["by hand", "by the server"])
def test_a_stream_made_anew_is_drained_anew(place: Place, ids: str) -> None:
    """Ids that begin again at 1-0 do not count as recorded, and the run says what it found; nor
    where what is recorded is lost, and made again from an audit that has those of both."""
    for life, n in enumerate((60, 100)):
        place.alter("DEL")
        place.fill((f"{i + 1}-0" if ids == "by hand" else "*", {"n": f"{life}:{i}"})
                   for i in range(n))  # fmt: skip
        run = place.attempt(throttle="none", max_events=n // 2)
        place.ask("DEL", place.side("recorded"))
        assert place.rehearse()["total_read"] == n - n // 2
        rest = place.complete(throttle="none")
        assert (run.books["total_read"], rest.books["total_read"]) == (n // 2, n - n // 2)
        if ids == "by hand":  # others are new in any case
            assert len(run.books.get("notes") or []) == life
    assert place.complete(audit_stream=f"{place.stream}:b").books.get("notes") is None


@pytest.mark.parametrize("deleted", [0, 1])
@pytest.mark.parametrize("scope", ["undelivered", "history"])
def test_ids_between_the_recorded_ones(place: Place, scope: str, deleted: int) -> None:
    """A stream made anew with such ids is recorded whole, as the dry run said; on 6.2, and where
    one was deleted, nothing but the audit tells which are new."""
    for life, n in enumerate((10, 12)):
        place.alter("DEL")
        entries = ((2 * i + 1 + life, {"n": f"{life}:{i}"}) for i in range(n))
        place.fill(entries, "0-0" if scope == "undelivered" else "$")
        gone = place.alter("XDEL", "2-0") if deleted else 0
        assert place.rehearse(scope=scope)["total_read"] == n - gone
        place.complete(scope=scope, **ALONE)
    assert (len(place.audit()), unrecorded(place)) == (22 - deleted, [])


def test_two_audit_streams_of_one_stream(place: Place) -> None:
    """In turns and at once each entry is recorded in one of them, and no drain misses records of
    the other, also where what is recorded was lost and is made again."""
    ids, other = place.seed(300, 0), f"{place.stream}:b"
    drain = partial(place.complete, allow_active_consumers=True)
    runs = [drain(max_events=100)]
    runs += at_once(drain, partial(drain, audit_stream=other, consumer_name="b"))
    place.ask("DEL", place.side("recorded"))
    place.set_position("0-0")
    runs += [drain(audit_stream=name) for name in (f"{place.stream}:c", other, None)]
    assert_once([r for end in (".drain_audit", ":b", ":c")
                 for r in place.audit(f"{place.stream}{end}")], ids)  # fmt: skip
    assert [run.books.get("notes") for run in runs] == [None] * 6


@pytest.mark.parametrize("back", ["stream, state and recorded", "audit"])
def test_copies_of_yesterday(place: Place, back: str) -> None:
    """Stream and state put back from before the last 100 records double none of them; an audit put
    back is said in text and JSON, and nothing is recorded twice."""
    place.seed(300, 0)
    place.complete(max_events=100, **ALONE)
    names = [place.side("audit")]
    if back != "audit":
        names = [place.stream, place.side("state"), place.side("recorded")]
    kept = [place.ask("DUMP", name) for name in names]
    place.complete(max_events=100, **ALONE)
    for name, dump in zip(names, kept, strict=True):
        place.ask("RESTORE", name, 0, dump, "REPLACE")
    run = place.complete(**ALONE)
    assert ("older" in " ".join(run.books.get("notes") or ())) == (back == "audit")
    assert (len(place.audit()), doubled(place)) == (200 if back == "audit" else 300, [])
    assert back == "audit" or unrecorded(place) == []


@dataclass
class Steps:
    """Drains by random scopes, beside SETID back and forth, XCLAIM, deliveries, lost keys."""

    place: Place
    rng: random.Random
    furthest: str = "0-0"  # that the group ever was

    def drain(self, *, inside: bool = False) -> None:
        rng, some = self.rng, None
        if not inside and rng.random() < 0.5:
            some = (rng.randrange(1, 40), self.meanwhile)
        options = {**ALONE, "scope": rng.choice(["undelivered", "pending", "history"])}
        if options["scope"] == "pending" and rng.random() < 0.5:
            options["from_consumer"] = rng.sample("AB", 2)
        options |= {"throttle": rng.choice(["none", "1500"]),
                    "consumer_name": rng.choice([ME, "other"]),
                    "max_events": rng.choice([1, 7, 40, "all"])}  # fmt: skip
        try:
            dry = self.place.rehearse(**options)
        except RefusedError:
            dry = None
        run = self.place.attempt(at=some, certain=False, **options)
        assert run.rc in (0, 1, 4), run.error
        if not some and not inside:
            assert (dry is None) == (run.rc == 4), run.error
            for name in ("total_read", *ACTIONS) if dry else ():
                assert dry[name] == run.books[name], name

    def meanwhile(self) -> None:
        """While a drain is suspended; often the group is put back to where it left it."""
        here = self.place.position
        for _ in range(self.rng.randrange(1, 4)):
            self.step(inside=True)
        if self.rng.random() < 0.5:
            self.place.set_position(here)

    def other(self) -> None:
        place, rng = self.place, self.rng
        ids = [entry[0] for entry in place.alter("XRANGE", "-", "+")]
        passed = [entry[0] for entry in place.alter("XRANGE", "-", self.furthest)]
        what = rng.choice(["position", "claim", "deliver", "add", "delete", "lose"])
        who = rng.choice(["A", "B", ME])
        if what == "position" and passed:
            place.set_position(rng.choice(passed))
        elif what == "claim" and (waiting := place.waiting()[:20]):
            place.alter("XCLAIM", GROUP, who, 0, rng.choice(waiting)[0])
        elif what == "deliver":
            place.deliver(who, rng.randrange(1, 30))
        elif what == "add":
            place.fill([("*", {"symbol": "B"})] * rng.randrange(1, 20), None)
        elif what == "delete":
            place.alter("XDEL", "0-1", *rng.sample(ids, len(ids) // 20))
        elif what == "lose":
            place.ask("DEL", place.side(rng.choice(["state", "recorded"])))

    def step(self, *, inside: bool = False) -> None:
        if self.rng.random() < 0.4:
            self.drain(inside=inside)
        else:
            self.other()
        self.furthest = max(self.furthest, self.place.position, key=key)


MINUTES = [pytest.param(kind, range(1000, 2000),
                        marks=[pytest.mark.chaos, pytest.mark.timeout(3600)])
           for kind in KINDS]  # fmt: skip


@pytest.mark.parametrize(
    ("place", "seeds"), [*((KINDS[n % 3], [n]) for n in range(18)), *MINUTES],
    indirect=["place"], ids=str,
)  # fmt: skip
def test_random_scopes_positions_and_claims(place: Place, seeds: list[int]) -> None:
    """Whatever the order, each entry that was passed has one record in the end, also what was
    pending without its body, and none has two; each dry run says what the live run then does."""
    for seed in seeds:
        own = Place(place.server, f"{place.stream}:{seed}", place.cli)
        own.seed(120, 0)
        steps = Steps(own, random.Random(seed))
        for _ in range(12):
            steps.step()
            assert doubled(own) == [], f"seed {seed}"
        own.set_position(steps.furthest)
        assert unrecorded(own) == [], f"seed {seed}"
        left = {entry for entry, _ in own.waiting()}
        own.complete(scope="pending", **ALONE)
        assert left <= {*own.recorded()}, f"seed {seed}"
        assert doubled(own) == [], f"seed {seed}"
