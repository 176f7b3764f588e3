"""What is recorded is known by the server at the commit: attacks that needed no fault to win."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from backlogs import GROUP, deliver, fill, now_ms, seed
from books import ask, audit, positions, recorded
from faults import ALONE, MIXED, Clock, attempt, complete, key
from servers import KINDS, Server

Clean = Callable[[str], Server]


def doubled(server: Server, stream: str) -> list[tuple[tuple[str, str], int]]:
    found = Counter((r["consumer_group"], r["original_id"]) for r in audit(server, stream))
    return [pair for pair in found.items() if pair[1] > 1]


def unrecorded(server: Server, stream: str) -> list[str]:
    """Entries that the group has passed, that are pending for nobody, and have no record."""
    here = key(positions(server, stream)[GROUP])
    waiting = {row[0] for row in ask(server, "XPENDING", stream, GROUP, "-", "+", 100_000)}
    done = {entry.encode() for entry in recorded(server, stream)} | waiting
    entries = [row[0] for row in ask(server, "XRANGE", stream, "-", "+")]
    return [e.decode() for e in entries if key(e.decode()) <= here and e not in done]


def test_two_streams_do_not_share_an_audit(valkey: Server, stream: str) -> None:
    """A second stream's drain into one audit stream is refused; nothing of it is acknowledged."""
    other = f"{stream}:b"
    ids = seed(valkey, stream, 60, delivered=0)
    fill(valkey.client(), other, [(entry, {"symbol": "BTCUSDT"}) for entry in ids], group=GROUP)
    first, second = (
        attempt(valkey.url, name, audit_stream="shared:audit", throttle="none")
        for name in (stream, other)
    )
    assert (first.rc, second.rc) == (0, 4), second.error
    assert "--audit-stream" in second.error
    assert positions(valkey, other)[GROUP] == "0-0"


def test_a_group_named_like_a_history_group_is_its_own(server: Server, stream: str) -> None:
    """An application's group `<group>.drain_history` gets its own records: 50 and 50."""
    seed(server, stream, 50, delivered=0)
    name = f"{GROUP}.drain_history"
    ask(server, "XGROUP", "CREATE", stream, name, "0")
    for group in (name, GROUP):
        assert attempt(server.url, stream, consumer_group=group, throttle="none").rc == 0
    counts = Counter(r["consumer_group"] for r in audit(server, stream))
    assert counts == {GROUP: 50, name: 50}


def test_consumers_in_another_order_than_their_entries(server: Server, stream: str) -> None:
    """--from-consumer B, then A, whose entries lie the other way round: each is recorded once."""
    ids = seed(server, stream, 1000, delivered=0)
    deliver(server, stream, b"A", 5)
    deliver(server, stream, b"B", 995)
    complete(server.url, stream, scope="pending", from_consumer=["B", "A"], **ALONE)
    ask(server, "XGROUP", "SETID", stream, GROUP, ids[900])
    for scope in ("undelivered", "history"):
        assert attempt(server.url, stream, scope=scope, **ALONE).rc == 0
    assert (len(audit(server, stream)), doubled(server, stream)) == (1000, [])


@pytest.mark.parametrize("kind", KINDS)
def test_ids_hours_ahead_of_the_clock(
    start_server: Callable[[str], Server], stream: str, kind: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Entries whose ids lie two hours ahead are recorded once, also when that time has come."""
    clock = Clock(tmp_path, monkeypatch)
    server = start_server(kind)
    ahead_ms = now_ms(server) + 7_200_000
    entries = [(f"{ahead_ms + i}-0", {"symbol": "BTCUSDT", "confidence": "0.9"}) for i in range(40)]
    fill(server, stream, entries, group=GROUP)
    for scope in ("undelivered", "history", "undelivered"):
        assert attempt(server.url, stream, scope=scope, **ALONE).rc == 0
        clock.step(3 * 3600)
        ask(server, "XGROUP", "SETID", stream, GROUP, "0-0" if scope == "history" else "$")
    assert (len(audit(server, stream)), doubled(server, stream)) == (40, [])


@pytest.mark.parametrize(("kind", "throttle"), MIXED["none", "400"])
def test_a_suspended_drain_goes_on_after_setid(
    clean: Clean, stream: str, kind: str, throttle: str
) -> None:
    """While it sleeps another drains all, and the group is put back: it records none again."""
    server = clean(kind)
    seed(server, stream, 600, delivered=0)

    def meanwhile() -> None:
        here = positions(server, stream)[GROUP]
        assert attempt(server.url, stream, **ALONE, consumer_name="other").rc == 0
        ask(server, "XGROUP", "SETID", stream, GROUP, here)

    attempt(server.url, stream, at=(100, meanwhile), throttle=throttle, allow_active_consumers=True)
    assert attempt(server.url, stream, **ALONE).rc == 0
    assert (doubled(server, stream), unrecorded(server, stream)) == ([], [])


REPLACED: dict[str, Callable[[Server, str], None]] = {
    "deleted and made anew": lambda server, stream: ask(server, "DEL", stream),
    "renamed over": lambda server, stream: ask(server, "RENAME", f"{stream}:new", stream),
    "restored over": lambda server, stream: ask(
        server, "RESTORE", stream, 0, ask(server, "DUMP", f"{stream}:new"), "REPLACE"
    ),
    "moved away and another moved in": lambda server, stream: (
        ask(server, "MOVE", stream, 1), ask(server, "RENAME", f"{stream}:new", stream)
    ),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "throttle"), MIXED["none", "1000", "100"])
@pytest.mark.parametrize("same_ids", [True, False], ids=["same ids", "other ids"])
@pytest.mark.parametrize("how", REPLACED)
def test_a_stream_replaced_by_a_larger_one(
    clean: Clean, stream: str, kind: str, throttle: str, how: str, same_ids: bool
) -> None:
    """Nothing of the new one is acknowledged without its record, at any rate."""
    server = clean(kind)
    ids = seed(server, stream, 1500, delivered=0)
    client = server.client()
    new = [(entry, {"n": str(i)}) for i, entry in enumerate(ids)] if same_ids else []
    after_ms = key(ids[-1])[0] + 1
    new += [(f"{after_ms + i}-7", {"n": str(i)}) for i in range(2000)]

    def replace() -> None:
        if how == "deleted and made anew":
            ask(server, "DEL", stream)
            fill(client, stream, new, group=GROUP)
        else:
            fill(client, f"{stream}:new", new, group=GROUP)
            REPLACED[how](server, stream)

    before = 500 if throttle == "none" else 60
    run = attempt(server.url, stream, at=(before, replace), throttle=throttle, max_events=1000
                  if throttle == "none" else 200)  # fmt: skip
    assert run.rc != 0
    if same_ids:  # an id's record would be the old stream's
        assert positions(server, stream)[GROUP] == "0-0"
    assert unrecorded(server, stream) == []


@pytest.mark.parametrize("ids", ["by hand", "by the server"])
def test_a_stream_made_anew_is_drained_anew(server: Server, stream: str, ids: str) -> None:
    """Ids that begin again at 1-0 do not count as recorded, and the run says what it found."""
    for life in range(2):
        ask(server, "DEL", stream)
        entries = [
            (f"{i + 1}-0" if ids == "by hand" else "*", {"n": f"{life}:{i}"})
            for i in range(60 + 40 * life)
        ]
        fill(server.client(), stream, entries, group=GROUP)
        run = complete(server.url, stream, throttle="none")
        assert run.books["total_read"] == 60 + 40 * life
        if ids == "by hand":  # others are new in any case
            assert len(run.books.get("notes") or []) == life


LOST = {
    "recorded": (("drain_recorded",), (0,)),
    "state": (("drain_state",), (0,)),
    "state and recorded": (("drain_state", "drain_recorded"), (0,)),
    "ledger": (("drain_runs",), (0,)),
    "audit": (("drain_audit",), (1,)),
    "audit, state and recorded": (("drain_audit", "drain_state", "drain_recorded"), (1,)),
}


@pytest.mark.parametrize("scope", ["undelivered", "history"])
@pytest.mark.parametrize(("kind", "throttle"), MIXED["none", "300"])
@pytest.mark.parametrize("lost", LOST)
def test_what_is_lost_in_the_middle_is_noticed(
    clean: Clean, stream: str, lost: str, kind: str, throttle: str, scope: str
) -> None:
    """Set and state are made again from the audit, none doubled; a lost audit ends it with 1."""
    server = clean(kind)
    seed(server, stream, 600, delivered=300 if scope == "history" else 0)
    if scope == "history":  # its second half is recorded already
        assert attempt(server.url, stream, **ALONE).rc == 0
    keys, expected = LOST[lost]
    gone = [f"{stream}.{name}" for name in keys]
    run = attempt(server.url, stream, at=(60, lambda: ask(server, "DEL", *gone)), scope=scope,
                  throttle=throttle)  # fmt: skip
    assert run.rc in expected, run.error
    if expected == (0,):
        assert (len(audit(server, stream)), doubled(server, stream)) == (600, [])
    else:
        assert "audit" in run.error
        assert run.summary is not None
        assert run.summary["remaining"] > 0  # at the next commit, not at the end


@pytest.mark.parametrize("how", ["XTRIM", "XDEL"])
def test_an_audit_trimmed_under_a_drain_ends_it(server: Server, stream: str, how: str) -> None:
    """Records removed in the middle are noticed at the end, by `drain` too."""
    seed(server, stream, 300, delivered=0)
    name = f"{stream}.drain_audit"

    def trim() -> None:
        first = ask(server, "XRANGE", name, "-", "+", "COUNT", 1)[0][0]
        ask(server, *(("XTRIM", name, "MAXLEN", 1) if how == "XTRIM" else ("XDEL", name, first)))

    run = attempt(server.url, stream, at=(100, trim), throttle="1000")
    assert run.rc == 1
    assert "audit" in run.error


def test_copies_of_yesterday_beside_todays_audit(server: Server, stream: str) -> None:
    """Stream and state put back from before the last 200 records double none of them."""
    seed(server, stream, 300, delivered=0)
    assert attempt(server.url, stream, max_events=100, **ALONE).rc == 0
    names = [stream, f"{stream}.drain_state", f"{stream}.drain_recorded"]
    kept = [ask(server, "DUMP", name) for name in names]
    assert attempt(server.url, stream, **ALONE).rc == 0
    for name, dump in zip(names, kept, strict=True):
        ask(server, "RESTORE", name, 0, dump, "REPLACE")
    complete(server.url, stream, **ALONE)
    assert (len(audit(server, stream)), doubled(server, stream)) == (300, [])
    assert unrecorded(server, stream) == []


def test_an_audit_older_than_the_state_is_named(server: Server, stream: str) -> None:
    """An audit put back from an older copy is said in text and JSON; nothing is recorded twice."""
    seed(server, stream, 120, delivered=0)
    assert attempt(server.url, stream, max_events=40, **ALONE).rc == 0
    kept = ask(server, "DUMP", f"{stream}.drain_audit")
    assert attempt(server.url, stream, max_events=40, **ALONE).rc == 0
    ask(server, "RESTORE", f"{stream}.drain_audit", 0, kept, "REPLACE")
    run = complete(server.url, stream, **ALONE)
    assert "older" in " ".join(run.books["notes"])
    assert (len(audit(server, stream)), doubled(server, stream)) == (80, [])


@pytest.mark.parametrize("forgotten", [False, True], ids=["", "set lost"])
@pytest.mark.parametrize("first", ["history", "undelivered"])
def test_pending_entries_without_a_body_get_their_records(
    server: Server, stream: str, first: str, forgotten: bool
) -> None:
    """What is recorded on both sides of them passes none of them off as recorded."""
    ids = seed(server, stream, 300, delivered=0)
    deliver(server, stream, b"A", 200)
    gone = [ids[0], ids[10], *ids[50:53], ids[199]]
    ask(server, "XDEL", stream, *gone)
    if first == "undelivered":
        ask(server, "XGROUP", "SETID", stream, GROUP, "0-0")
    complete(server.url, stream, scope=first, **ALONE)
    if forgotten:
        ask(server, "DEL", f"{stream}.drain_recorded")
    run = complete(server.url, stream, scope="pending", **ALONE)
    assert run.books["dropped_missing"] == len(gone)
    assert attempt(server.url, stream, **ALONE).rc == 0
    assert sorted(recorded(server, stream)) == sorted(ids)


def test_pending_neighbours_are_one_interval(server: Server, stream: str) -> None:
    """Of 600 pending entries each batch leaves one, not 250; those of two consumers are apart."""
    ids = seed(server, stream, 600, delivered=0)
    for at in range(0, 600, 150):
        deliver(server, stream, b"AB"[at // 150 % 2 :][:1], 150)
    ask(server, "XDEL", stream, ids[7])
    name = f"{stream}.drain_recorded"
    for who, most in (("A", 10), ("B", 20)):
        complete(server.url, stream, scope="pending", from_consumer=[who], **ALONE)
        assert 2 <= ask(server, "ZCARD", name) <= most
    assert sorted(recorded(server, stream)) == sorted(ids)


@dataclass
class Steps:
    """Drains by random scopes, beside SETID back and forth, XCLAIM, deliveries, lost keys."""

    server: Server
    stream: str
    rng: random.Random
    furthest: str = "0-0"  # that the group ever was

    def waiting(self) -> list[bytes]:
        rows = ask(self.server, "XPENDING", self.stream, GROUP, "-", "+", 10_000)
        return [row[0] for row in rows]

    def entries(self, last: str = "+") -> list[bytes]:
        return [entry[0] for entry in ask(self.server, "XRANGE", self.stream, "-", last)]

    def drain(self, *, inside: bool = False) -> None:
        rng, some = self.rng, None
        if not inside and rng.random() < 0.5:
            some = (rng.randrange(1, 40), self.meanwhile)
        options = {**ALONE, "scope": rng.choice(["undelivered", "pending", "history"])}
        if options["scope"] == "pending" and rng.random() < 0.5:
            options["from_consumer"] = rng.sample("AB", 2)
        run = attempt(
            self.server.url, self.stream, consumer_name=rng.choice(["backlog_drain_1", "other"]),
            at=some, certain=False, max_events=rng.choice([1, 7, 40, "all"]),
            **{**options, "throttle": rng.choice(["none", "1500"])},
        )  # fmt: skip
        assert run.rc in (0, 1, 4), run.error

    def meanwhile(self) -> None:
        """While a drain is suspended; often the group is put back to where it left it."""
        here = positions(self.server, self.stream)[GROUP]
        for _ in range(self.rng.randrange(1, 4)):
            self.step(inside=True)
        if self.rng.random() < 0.5:
            ask(self.server, "XGROUP", "SETID", self.stream, GROUP, here)

    def set_position(self) -> None:
        if passed := self.entries(self.furthest):
            ask(self.server, "XGROUP", "SETID", self.stream, GROUP, self.rng.choice(passed))

    def claim(self) -> None:
        if ids := self.waiting()[:20]:
            who, which = self.rng.choice("AB"), self.rng.choice(ids)
            ask(self.server, "XCLAIM", self.stream, GROUP, who, 0, which)

    def deliver(self) -> None:
        ask(self.server, "XREADGROUP", "GROUP", GROUP, self.rng.choice("AB"), "COUNT",
            self.rng.randrange(1, 30), "STREAMS", self.stream, ">")  # fmt: skip

    def add(self) -> None:
        fill(self.server, self.stream, [("*", {"symbol": "B"})] * self.rng.randrange(1, 20))

    def delete(self) -> None:
        ids = self.entries()
        ask(self.server, "XDEL", self.stream, "0-1", *self.rng.sample(ids, len(ids) // 20))

    def lose(self) -> None:
        name = self.rng.choice(["drain_state", "drain_recorded"])
        ask(self.server, "DEL", f"{self.stream}.{name}")

    def step(self, *, inside: bool = False) -> None:
        others = [self.set_position, self.claim, self.deliver, self.add, self.delete, self.lose]
        if self.rng.random() < 0.4:
            self.drain(inside=inside)
        else:
            self.rng.choice(others)()
        self.furthest = max(self.furthest, positions(self.server, self.stream)[GROUP], key=key)


def random_steps(server: Server, stream: str, seed_: int) -> None:
    """Whatever was passed has one record in the end, also what was pending without its body."""
    steps = Steps(server, stream, random.Random(seed_))
    for _ in range(12):
        steps.step()
        assert doubled(server, stream) == [], f"seed {seed_}"
    ask(server, "XGROUP", "SETID", stream, GROUP, steps.furthest)
    assert unrecorded(server, stream) == [], f"seed {seed_}"
    left = steps.waiting()
    assert attempt(server.url, stream, scope="pending", **ALONE).rc == 0
    done = {*recorded(server, stream)}
    assert [entry for entry in left if entry.decode() not in done] == [], f"seed {seed_}"
    assert doubled(server, stream) == [], f"seed {seed_}"


MINUTES = pytest.param(range(1000, 2000), marks=[pytest.mark.chaos, pytest.mark.timeout(3600)])


@pytest.mark.parametrize("seeds", [*([n] for n in range(12)), MINUTES], ids=str)
def test_random_scopes_positions_and_claims(
    server: Server, stream: str, seeds: Iterable[int]
) -> None:
    """Whatever the order, each entry that was passed has one record, and none has two."""
    for seed_ in seeds:
        seed(server, f"{stream}:{seed_}", 120, delivered=0)
        random_steps(server, f"{stream}:{seed_}", seed_)
