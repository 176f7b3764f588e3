"""What is recorded is known by the server at the commit: attacks that needed no fault to win."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product

import pytest
from backlogs import GROUP, fill
from faults import ALONE, Clock, key
from place import BUNDLED, Place
from servers import KINDS


def doubled(place: Place) -> list[tuple[tuple[str, str], int]]:
    found = Counter((r["consumer_group"], r["original_id"]) for r in place.audit())
    return [pair for pair in found.items() if pair[1] > 1]


def unrecorded(place: Place) -> list[str]:
    """Entries that the group has passed, that are pending for nobody, and have no record."""
    done = {*place.recorded(), *(entry for entry, _ in place.waiting())}
    entries = [row[0].decode() for row in place.alter("XRANGE", "-", place.position)]
    return [entry for entry in entries if entry not in done]


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
def test_ids_hours_ahead_of_the_clock(
    clock: Clock, own_place: Callable[[str], Place], kind: str
) -> None:
    """Entries whose ids lie two hours ahead are recorded once, also when that time has come."""
    place = own_place(kind)
    ahead_ms = place.now_ms() + 7_200_000
    place.fill((ahead_ms + i, {"symbol": "BTCUSDT", "confidence": "0.9"}) for i in range(40))
    for scope in ("undelivered", "history", "undelivered"):
        place.complete(scope=scope, **ALONE)
        clock.step(3 * 3600)
        place.set_position("0-0" if scope == "history" else "$")
    assert (len(place.audit()), doubled(place)) == (40, [])


# ---------------------------------------------------------------- another stream under a drain

REPLACED: dict[str, Callable[[Place], object]] = {
    "deleted and made anew": lambda place: place.alter("DEL"),
    "renamed over": lambda place: place.ask("RENAME", f"{place.stream}:new", place.stream),
    "restored over": lambda place: place.alter(
        "RESTORE", 0, place.ask("DUMP", f"{place.stream}:new"), "REPLACE"
    ),
    "moved away and another moved in": lambda place: (
        place.alter("MOVE", 1), place.ask("RENAME", f"{place.stream}:new", place.stream)
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("place", "throttle", "how", "same_ids"),
    [*product(["valkey"], ["none"], REPLACED, [True, False]),
     ("valkey", "1000", "restored over", True), ("valkey", "100", "renamed over", False),
     ("redis", "none", "deleted and made anew", True), ("redis", "1000", "renamed over", False),
     ("redis62", "1000", "moved away and another moved in", True),
     ("redis62", "none", "restored over", False)],
    indirect=["place"],
)  # fmt: skip
def test_a_stream_replaced_by_a_larger_one(
    place: Place, throttle: str, how: str, same_ids: bool
) -> None:
    """Nothing of the new one is acknowledged without its record, at any rate."""
    ids = place.seed(1500, 0)
    after_ms = key(ids[-1])[0] + 1
    new = [*(ids if same_ids else ()), *(f"{after_ms + i}-7" for i in range(2000))]
    entries = [(entry, {"n": str(i)}) for i, entry in enumerate(new)]

    def replace() -> None:
        if how == "deleted and made anew":
            REPLACED[how](place)
            place.fill(entries)
        else:
            fill(place.server, f"{place.stream}:new", entries, group=GROUP)
            REPLACED[how](place)

    before, most = (500, 1000) if throttle == "none" else (60, 200)
    run = place.attempt(at=(before, replace), throttle=throttle, max_events=most)
    assert run.rc != 0
    if same_ids:  # an id's record would be the old stream's
        assert place.position == "0-0"
    assert unrecorded(place) == []


@pytest.mark.parametrize("ids", ["by hand", "by the server"])
def test_a_stream_made_anew_is_drained_anew(place: Place, ids: str) -> None:
    """Ids that begin again at 1-0 do not count as recorded, and the run says what it found."""
    for life, n in enumerate((60, 100)):
        place.alter("DEL")
        place.fill((f"{i + 1}-0" if ids == "by hand" else "*", {"n": f"{life}:{i}"})
                   for i in range(n))  # fmt: skip
        run = place.complete(throttle="none")
        assert run.books["total_read"] == n
        if ids == "by hand":  # others are new in any case
            assert len(run.books.get("notes") or []) == life


# ---------------------------------------------------------------- side keys lost, or put back


def delete(*names: str) -> Callable[[Place], object]:
    return lambda place: place.ask("DEL", *map(place.side, names))


def delete_record(place: Place) -> None:
    name = place.side("audit")
    place.ask("XDEL", name, place.ask("XRANGE", name, "-", "+", "COUNT", 1)[0][0])


# what happens in the middle of a drain, its exit code, and whether it is seen at the next commit
LOST: dict[str, tuple[Callable[[Place], object], int, bool]] = {
    "recorded": (delete("recorded"), 0, True),
    "state": (delete("state"), 0, True),
    "state and recorded": (delete("state", "recorded"), 0, True),
    "ledger": (delete("runs"), 0, True),
    "audit": (delete("audit"), 1, True),
    "audit, state and recorded": (delete("audit", "state", "recorded"), 1, True),
    "audit trimmed": (lambda place: place.ask("XTRIM", place.side("audit"), "MAXLEN", 1), 1, False),
    "a record deleted": (delete_record, 1, False),
}


@pytest.mark.parametrize(
    ("place", "throttle", "scope", "lost"),
    [*product(["valkey"], ["none"], ["undelivered"], LOST),
     *product(["redis"], ["1000"], ["undelivered"], [*LOST][1::2]),
     *product(["redis62"], ["none"], ["history"], [*LOST][::2]),
     *product(["valkey"], ["1000"], ["history"], [*LOST][1::2])],
    indirect=["place"],
)  # fmt: skip
def test_what_is_lost_in_the_middle_is_noticed(
    place: Place, lost: str, throttle: str, scope: str
) -> None:
    """Set and state are made again from the audit, none doubled; a lost audit, or records removed
    from it, end it with 1."""
    strike, rc, at_once = LOST[lost]
    place.seed(900, 300 if scope == "history" else 0)
    if scope == "history":  # its second half is recorded already
        place.complete(**ALONE)
    run = place.attempt(at=(60, partial(strike, place)), scope=scope, throttle=throttle)
    assert run.rc == rc, run.error
    if rc == 0:
        assert (len(place.audit()), doubled(place)) == (900, [])
    else:
        assert "audit" in run.error
        if at_once:  # at the next commit, not at the end
            assert run.books["remaining"] > 0


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


@pytest.mark.parametrize(
    ("place", "first", "forgotten"),
    [("redis", "history", False), ("redis62", "history", True), ("valkey", "history", True),
     ("valkey", "undelivered", True), ("redis62", "undelivered", True)],
    indirect=["place"],
)  # fmt: skip
def test_pending_entries_without_a_body_get_their_records(
    place: Place, first: str, forgotten: bool
) -> None:
    """What is recorded on both sides of them passes none of them off as recorded."""
    ids = place.seed(300, 0)
    place.deliver("A", 200)
    gone = [ids[0], ids[10], *ids[50:53], ids[199]]
    place.alter("XDEL", *gone)
    if first == "undelivered":
        place.set_position("0-0")
    place.complete(scope=first, **ALONE)
    if forgotten:
        place.ask("DEL", place.side("recorded"))
    run = place.complete(scope="pending", **ALONE)
    assert run.books["dropped_missing"] == len(gone)
    place.complete(**ALONE)
    assert sorted(place.recorded()) == sorted(ids)


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
        run = self.place.attempt(
            consumer_name=rng.choice(["backlog_drain_1", "other"]), at=some, certain=False,
            max_events=rng.choice([1, 7, 40, "all"]),
            **{**options, "throttle": rng.choice(["none", "1500"])},
        )  # fmt: skip
        assert run.rc in (0, 1, 4), run.error

    def meanwhile(self) -> None:
        """While a drain is suspended; often the group is put back to where it left it."""
        here = self.place.position
        for _ in range(self.rng.randrange(1, 4)):
            self.step(inside=True)
        if self.rng.random() < 0.5:
            self.place.set_position(here)

    def set_position(self) -> None:
        if passed := self.place.alter("XRANGE", "-", self.furthest):
            self.place.set_position(self.rng.choice(passed)[0])

    def claim(self) -> None:
        if waiting := self.place.waiting()[:20]:
            who, which = self.rng.choice("AB"), self.rng.choice(waiting)[0]
            self.place.alter("XCLAIM", GROUP, who, 0, which)

    def deliver(self) -> None:
        self.place.deliver(self.rng.choice("AB"), self.rng.randrange(1, 30))

    def add(self) -> None:
        self.place.fill([("*", {"symbol": "B"})] * self.rng.randrange(1, 20), None)

    def delete(self) -> None:
        ids = [entry[0] for entry in self.place.alter("XRANGE", "-", "+")]
        self.place.alter("XDEL", "0-1", *self.rng.sample(ids, len(ids) // 20))

    def lose(self) -> None:
        self.place.ask("DEL", self.place.side(self.rng.choice(["state", "recorded"])))

    def step(self, *, inside: bool = False) -> None:
        others = [self.set_position, self.claim, self.deliver, self.add, self.delete, self.lose]
        if self.rng.random() < 0.4:
            self.drain(inside=inside)
        else:
            self.rng.choice(others)()
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
    pending without its body, and none has two."""
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
