"""One run from its opening to its end: resolved once, its plan held against the stream, its books.

Nothing here writes to the server but `preflight`, and that only what a first commit needs.
"""

from __future__ import annotations

import datetime as dt
import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from ..core.events import Decoder
from ..core.plan import differences, payload_hashes
from ..core.policy import Policy
from ..core.reconciliation import Entries, Feed, Straight, ToDrain, fits
from ..core.summary import Summary
from ..errors import DrainkitError, RefusedError, StoppedError
from ..ids import FIRST_ID, id_key, next_id
from ..late import collection_paused, pa, pc
from ..safe import text
from ..server import ledger, reading, recorded, scopes, writing
from ..server.connection import Server
from ..server.counting import count
from ..server.keys import Scope
from ..server.ledger import check_owner, run_tables
from ..server.reading import ACTIVE_MS
from ..server.scopes import Seen, look
from ..server.topology import REPLICA
from ..server.writing import Committed
from ..settings import Settings
from .plan_files import PlanFile

Progress = Callable[[Summary], None]
MAX_CLOCK_WAIT_SEC = 60.0
LARGE_BYTES = 16 << 10  # of smaller entries a batch (reader.PAGE_ENTRIES) never holds too much


@dataclass
class Run:
    """What a run needs, resolved once, and its books on the way (`resolve` makes it)."""

    server: Server
    settings: Settings
    scope: Scope
    policy: Policy
    run_id: str
    max_events: int | None  # how many it may take at most; with a plan, just the plan's
    planned: PlanFile | None = None  # live with a plan
    to_drain: ToDrain | None = None  # live with a plan: these entries and no others
    gone: list[str] = field(default_factory=list)  # of the plan, deleted before it was their turn
    approvers: Mapping[str, str] = field(default_factory=dict)  # who signed the plan: their keys
    # the group's position just before the drain, and what it had before it up to the boundary
    opening: tuple[str, int] | None = None
    folder: str = ""  # where its evidence will be sealed; "": it leaves none
    summary: Summary = field(init=False)  # as of the last `begin`
    start: ledger.Start = field(init=False)  # as the ledger has it

    def begin(self) -> Summary:
        """Open the books: the run begins now."""
        digest = self.planned.plan.digest if self.planned else None
        self.summary = Summary.opened(
            self.settings, run_id=self.run_id, boundary=self.scope.boundary, plan_digest=digest,
            now_us=self.server.clock_us(), approvers=self.approvers,
        )  # fmt: skip
        return self.summary

    def rehearsal(self) -> Run:
        """The dry run of what this live run would do."""
        return replace(self, settings=self.settings.model_copy(update={"mode": "dry-run"}))

    def count_first(self, seen: Seen) -> None:
        """Before the first commit: what is undelivered, and how many events the run is to take.

        With a plan the entries are known by name; pending entries do not vanish, they are recorded
        as missing.
        """
        if self.to_drain is not None:
            self.summary.expected = self.to_drain.count
            return
        here = scopes.current(self.server, self.scope, seen)
        if here.name != "pending" and self.opening is None:
            first, last = next_id(here.position), here.boundary
            self.opening = here.position, count(self.server, seen.info, first, last)[0]
        entries = self.opening[1] if self.opening else 0
        if here.name != "undelivered" or seen.has_own:  # some may be recorded, or be counted twice
            entries = scopes.left(self.server, here, seen).fresh
        self.summary.expected = min(entries, self.max_events or entries)

    def close(self) -> Summary:
        """Close the books of a dry run, once what is left was counted."""
        here = scopes.current(self.server, self.scope)
        if here.group_exists or here.name == "history":  # else nobody knows what was delivered
            left = scopes.left(self.server, here)
            self.summary.remaining, self.summary.pending_own = left.fresh, left.own
        return self.summary.close(None, self.server.clock_us())


@contextmanager
def opened(settings: Settings) -> Iterator[Run]:
    """The run that these settings ask for, with its plan and its connection, closed at the end."""
    planned = None
    if settings.plan is not None:
        settings, planned = PlanFile.of_run(settings)
    with Server.of(settings) as server:
        yield resolve(server, settings, planned=planned)


def resolve(
    server: Server,
    settings: Settings,
    *,
    planned: PlanFile | None = None,
    run_id: str | None = None,
    boundary: str | None = None,
) -> Run:
    """The run that these settings ask for: the only place that makes one.

    `boundary` is that of a run which has begun already (a notebook of it), else the stream's last
    id now. With a plan the run drains exactly the plan's entries; whatever differs is refused, and
    the message names it (the contract, section 7).
    """
    if settings.until or settings.from_:
        settings = scopes.at_now(server, settings)
    scope = scopes.open_scope(server, settings, boundary=boundary)
    allowed = settings.symbols
    if isinstance(allowed, bytes):
        allowed = scopes.allowlist(server, allowed)
    policy = Policy(settings.max_age_min, allowed, settings.min_conf)
    at = dt.datetime.fromtimestamp(server.now_us() // 1_000_000, tz=dt.UTC)
    run_id = run_id or f"{at:%Y%m%dT%H%M%SZ}-{settings.mode}-{secrets.token_hex(3)}"
    run = Run(server, settings, scope, policy, run_id, settings.max_events, planned)
    if planned is not None:
        _take_plan(run, planned)
    run.begin()
    return run


def _take_plan(run: Run, planned: PlanFile) -> None:
    """Let the run drain exactly the plan's entries that earlier runs of it left."""
    plan = planned.plan
    run.approvers = planned.approvers(run.settings)
    same = ("stream", "consumer_group", "scope")
    asked = {name: getattr(run.settings, name) for name in same}
    if found := differences(plan, policy=run.policy, **asked):
        raise RefusedError("the plan is for something else: " + "; ".join(found))
    done = done_of_plan(run)
    ends = {"group": (plan.position, run.scope.group_position)}
    if run.scope.name == "history":
        ends["history group"] = plan.history_position or "none", run.scope.position
    # a run of this plan that died has moved the position itself, at most to the plan's last entry
    last = plan.last_id or plan.position
    is_resumed = len(done) and id_key(run.scope.position) <= id_key(last)
    for name, (then, now) in ends.items():
        if then != now and not is_resumed:
            raise RefusedError(
                f"the {name}'s position moved since the plan was made: from {then} to {now}; "
                "make a new plan"
            )
    run.scope = replace(run.scope, boundary=plan.boundary_id)
    if not len(done) and (straight := look_straight(run, planned)):
        load = partial(_entries, planned)
        run.to_drain = ToDrain(plan.total_read, plan.last_id or "", load, straight)
    else:
        entries = _entries(planned)
        left = pc.invert(pc.is_in(entries.ids, value_set=done))
        entries = entries.only(left.to_numpy(zero_copy_only=False))
        there = _check_entries(run, entries, resumed=len(done) > 0)
        run.gone = entries.ids.filter(pa.array(~there)).to_pylist()
        run.to_drain = ToDrain.of(entries.only(there))
    run.max_events = run.to_drain.count


def _entries(planned: PlanFile) -> Entries:
    return Entries(planned.table(("id", "action", "payload_sha256")))


@collection_paused()
def look_straight(run: Run, planned: PlanFile) -> Straight | None:
    """Look at all entries of the plan by one read: whether they are as the plan says, to the byte.

    None where something is otherwise (entries are missing, changed, pending already, or between
    those of the plan), where entries are large, or where the server does not count what is deleted
    (6.2): then each has to be looked at, and read again to be drained.
    """
    server, scope, decoder = run.server, run.scope, Decoder(run.settings.fields)
    info = reading.stream_info(server)  # before the first is read
    if scope.name == "pending" or info.gone is None:
        return None
    rows, last = Feed(planned.blocks()), planned.plan.last_id or scope.position
    first = next_id(scope.position)
    with closing(reading.pages(server, server.stream, first, last, ahead=True)) as pages:
        for page in pages:
            part = rows.take(len(page))
            is_large = max(map(reading.size_of, page)) > LARGE_BYTES
            if part is None or len(part) != len(page) or is_large:
                return None
            if not fits(part, decoder.decode(page), payload_hashes(page)):
                return None
            del page, part  # or two pages would be in memory
    if rows.take(1) is not None:
        return None
    counters = b"%d %d" % (info.length + info.gone, info.gone)  # as commit.lua has them
    return Straight(scope.position, counters, planned.blocks)


@collection_paused()
def _check_entries(run: Run, entries: Entries, *, resumed: bool) -> np.ndarray:
    """Every entry of the plan must be there as it was; but for those that are not marked as there.

    These were trimmed from the front, as a capped stream does all the time; or they vanished under
    an earlier run of this plan, which has passed them.
    """
    there, odd = np.zeros(len(entries), dtype=bool), []
    for page in scopes.scope_entries(run.server, run.scope) if len(entries) else ():
        rows = entries.find([entry[0] for entry in page])
        chosen = np.flatnonzero(rows >= 0)
        rows = rows[chosen]
        found = payload_hashes([page[i] for i in chosen.tolist()])
        if not found.equals(planned := entries.hashes.take(rows)):
            pairs = zip(chosen.tolist(), found.to_pylist(), planned.to_pylist(), strict=True)
            odd += [page[i] for i, now, then in pairs if now != then]
        there[rows] = True
        if there.all():
            break
    if there.all() and not odd:
        return there
    first_id = reading.stream_info(run.server).first_id
    passed = id_key(run.scope.position) if resumed else (0, 0)

    def is_trimmed(entry: str) -> bool:
        key = id_key(entry)
        return first_id is None or key < id_key(first_id) or key <= passed

    for entry_id, fields in odd:  # one that is pending stays so without its body
        if fields is not None or not is_trimmed(entry_id.decode()):
            gone = text(entry_id)
            raise RefusedError(f"entry {gone} of the plan is gone or changed; make a new plan")
    unseen, name = entries.ids.filter(pa.array(~there)).to_pylist(), run.scope.name
    if lost := [entry for entry in unseen if name == "pending" or not is_trimmed(entry)]:
        if not {*lost} - {*done_of_plan(run).to_pylist()}:  # done since this run asked
            raise RefusedError(
                "another run of this plan is at work; when it has ended, run the same command "
                "again for what it left"
            )
        raise RefusedError(
            f"entries of the plan are gone: {len(lost):,}, first {lost[0]}; make a new plan"
        )
    return there


def done_of_plan(run: Run) -> pa.Array:
    """Ids that runs of the run's plan have recorded by now: two may be at work at once."""
    digest = run.planned.plan.digest if run.planned else ""
    runs = {start.run_id for start in ledger.starts_of(run.server, digest)}
    parts = [part["original_id"] for part in run_tables(run.server, runs)]
    return pa.chunked_array(parts, pa.string()).combine_chunks()


@dataclass(frozen=True)
class Ready:
    """What `preflight` found: how stream, group and audit are just before the first commit."""

    seen: Seen
    probed: Committed
    round_trip_sec: float  # of a commit and its reply
    notes: list[str]  # what the run has to say of stream and audit (`recorded.prepare`)


def preflight(run: Run, seen: Seen | None = None, *, rate: float | None = None) -> Ready:
    """Everything that must hold before the first write, the right to write too.

    With `rate` the drains at work learn of this one's throttle. `seen`: what `check` returned just
    before.
    """
    server, seen = run.server, seen or check(run)
    # the group of scope history may not exist yet, so it is the consumer group that is looked at
    main = replace(run.scope, group=run.settings.consumer_group)
    notes = recorded.prepare(server, main.group)
    sent_sec = time.monotonic()
    probed = writing.probe(server, main, after=FIRST_ID, counters=b"", rate=rate)
    return Ready(seen, probed, time.monotonic() - sent_sec, notes)


def check(run: Run) -> Seen:
    """What can be known without a trace before a drain; refuses with what to do."""
    server, keys, scope = run.server, run.server.keys, run.scope
    if server.info.role != "master":
        raise RefusedError(REPLICA)
    if run.settings.approval is not None and run.planned is None:
        raise RefusedError(
            "drainkit.toml asks for approvals, and there is no plan that others could have "
            "approved: make one (drain --plan FILE), let it be approved (drainkit approve FILE), "
            "then apply it with --plan FILE"
        )
    seen = look(server, scope)
    if seen.switch is not None:
        raise StoppedError(f"{seen.switch}; drainkit resume lifts it")
    if seen.of_history:
        raise RefusedError(
            f"scope history made the group {scope.consumer_group}: drain with --scope history"
        )
    rights = {keys.audit: "stream", keys.runs: "stream", keys.state: "hash", keys.recorded: "zset"}
    for key, right in rights.items():
        if (kind := seen.kinds[key]) not in (right, "none"):
            advice = " or choose another --audit-stream" if key == keys.audit else ""
            raise RefusedError(f"{text(key)} is a {kind}, not a {right}; rename it{advice}")
    # where a commit of this stream was the last, the audit is its own
    if seen.audit.length and id_key(seen.audit.boundary_id) > id_key(seen.audit_known):
        check_owner(server)
    if seen.free is not None:
        scopes.check_room(server, scope, run.max_events, seen.free)
    ahead_sec = id_key(seen.audit.boundary_id)[0] / 1000 - server.clock_us() / 1e6
    if ahead_sec > MAX_CLOCK_WAIT_SEC:
        raise DrainkitError(future_audit(ahead_sec))
    if scope.name == "undelivered" and not run.settings.allow_active_consumers:
        others = reading.consumers(server, scope.group)
        active = [c for c in others if c.name != scope.consumer and c.idle_ms < ACTIVE_MS]
        if active:
            raise RefusedError(
                f"consumer {active[0].name} of this group was active "
                f"{active[0].idle_ms / 1000:.0f} s ago; stop it, or set --allow-active-consumers"
            )
    return seen


def future_audit(ahead_sec: float) -> str:
    """What to say of an audit stream whose last id lies so far in the future."""
    wait = dt.timedelta(seconds=math.ceil(min(ahead_sec, 1e9)))
    return (
        "the audit stream's last id lies in the future: the server's clock was ahead when it was "
        f"made, or has gone back since; set the clock right, wait {wait} (h:mm:ss), or choose "
        "another --audit-stream"
    )
