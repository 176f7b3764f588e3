"""The two verbs: `dry_run` decides without a trace, `drain` decides, paces and commits."""

from __future__ import annotations

import datetime as dt
import os
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice

import numpy as np

from . import commit, stream
from .audit import AuditRecord, parse, records
from .commit import Batch
from .errors import DrainkitError, InterruptedRunError, RefusedError, UnreachableError, one_line
from .events import Decoder, Events, FieldMap, RawEntry
from .policy import ACTIONS, Decisions, Policy, decide
from .server import Clock, ConnectionLostError, Keys, Server, ServerBusyError, check_primary
from .settings import Settings
from .stream import Scope

UNTHROTTLED_BATCH = 400
# one batch holds at most about this much, so that neither side gathers gigabytes at once
BATCH_BYTES = 4 << 20
FIRST_ENTRY_BYTES = 64 << 10  # expected of an entry before one was seen
ACTIVE_MS = 60_000  # another consumer that was active within the last minute is alive
RECOVERY_WAITS_SEC = (0.1, 0.5, 1.0, 2.0, 4.0)
MAX_CLOCK_WAIT_SEC = 60.0
FUTURE_AUDIT = (
    "the audit stream's last id lies in the future: the server's clock went back, or its ids are "
    "used up; set the clock, or choose another --audit-stream"
)

Progress = Callable[["Summary"], None]


@dataclass
class Summary:
    """The books of one run, in the contract's words; times are ISO 8601 UTC, by the server."""

    run_id: str
    mode: str
    scope: str
    stream: str
    consumer_group: str
    boundary_id: str
    total_read: int = 0
    dropped_old: int = 0
    dropped_not_allowlisted: int = 0
    dropped_low_conf: int = 0
    dropped_invalid: int = 0
    dropped_missing: int = 0
    drained_ok: int = 0
    errors: int = 0
    remaining: int | None = None
    started_at: str = ""
    finished_at: str = ""
    elapsed_sec: float = 0.0
    events_per_sec: float = 0.0
    outcome: str = "running"
    exit_code: int | None = None
    error: str | None = None
    pending_own: int | None = None
    audit_records: int | None = None  # of this run, recounted where an outcome was unknown
    plan_path: str | None = None
    plan_digest: str | None = None
    drift: list[dict[str, str]] | None = None  # live with a plan: what came out differently

    def count(self, decisions: Decisions, rows: np.ndarray | slice = slice(None)) -> None:
        """Add the actions of the chosen rows."""
        found = np.bincount(decisions.action[rows], minlength=len(ACTIONS))
        for action, n in zip(ACTIONS, found.tolist(), strict=True):
            setattr(self, action, getattr(self, action) + n)
            self.total_read += n

    def as_dict(self) -> dict[str, object]:
        """JSON-ready; keys that do not apply are left out."""
        optional = ("plan_path", "plan_digest", "error", "audit_records", "drift")
        return {k: v for k, v in asdict(self).items() if v is not None or k not in optional}


@dataclass(frozen=True)
class Job:
    """What a run needs, resolved once: settings, keys, scope, policy."""

    settings: Settings
    keys: Keys
    scope: Scope
    policy: Policy
    run_id: str
    plan_ids: frozenset[bytes] | None = None  # live with a plan: these entries and no others
    plan_digest: str | None = None
    fellows: frozenset[str] = frozenset()  # consumers of workers that share this run

    @property
    def max_events(self) -> int | None:
        """How many events this run may take; with a plan, just the plan's."""
        return self.settings.max_events if self.plan_ids is None else len(self.plan_ids)

    @property
    def reach(self) -> Scope:
        """The scope as far as this run may read: with a plan, to its last entry."""
        if not self.plan_ids:
            return self.scope
        last = max(self.plan_ids, key=stream.id_key)
        return replace(self.scope, boundary=stream.text(last))


def prepare(server: Server, settings: Settings, run_id: str) -> Job:
    """Read what decides the outcome: keys, scope with its boundary, allowlist."""
    keys = server.keys(settings.audit_stream)
    policy = Policy(
        max_age_min=settings.max_age_min,
        allowlist=stream.allowlist(server, settings),
        min_conf=settings.min_conf,
    )
    return Job(settings, keys, stream.open_scope(server, settings, keys), policy, run_id)


def decoder_of(settings: Settings) -> Decoder:
    """A decoder with the field names of the settings."""
    return Decoder(FieldMap(**settings.fields.model_dump()))


def turn_times_us(first: int, n: int, *, start_us: int, settings: Settings) -> np.ndarray:
    """When the throttled live run would decide events `first` to `first + n` (int64, us)."""
    if settings.as_of_us is not None:
        return np.full(n, settings.as_of_us, dtype=np.int64)
    if settings.throttle is None:
        return np.full(n, start_us, dtype=np.int64)
    turns = np.arange(first, first + n, dtype=np.float64) * (1e6 / settings.throttle)
    return start_us + turns.astype(np.int64)


@dataclass(frozen=True)
class DecidedPage:
    """One page of a dry run: raw entries, their events, decisions and decision times."""

    entries: list[RawEntry]
    events: Events
    decisions: Decisions


def dry_run(
    server: Server,
    job: Job,
    *,
    on_page: Callable[[DecidedPage], None] | None = None,
    on_progress: Progress | None = None,
) -> Summary:
    """Decide every entry of the scope as the live run would; writes nothing."""
    summary, started = _open_books(server, job)
    decoder = decoder_of(job.settings)
    left = job.max_events
    start_us = server.now_us()
    for page in stream.scope_entries(server, job.keys, job.scope):
        entries = page if left is None else page[:left]
        events = decoder.decode(entries)
        times = turn_times_us(
            summary.total_read, len(events), start_us=start_us, settings=job.settings
        )
        decisions = decide(events, job.policy, times)
        summary.count(decisions)
        if on_page:
            on_page(DecidedPage(entries, events, decisions))
        if on_progress:
            on_progress(summary)
        if left is not None:
            left -= len(entries)
            if left <= 0:
                break
    _close_books(server, job, summary, started, None)
    return summary


def drain(
    server: Server,
    job: Job,
    *,
    stopping: threading.Event | None = None,
    on_progress: Progress | None = None,
) -> Summary:
    """Drain the scope for real; the summary also tells of a run that ended early (`error`).

    Raises only before anything was written. After that, whatever ends the run ends in its books.
    """
    preflight(server, job)
    summary, started = _open_books(server, job)
    _write_ledger(server, job, "start", summary)
    worker = _Worker(server, job, summary, stopping or threading.Event(), on_progress)
    failure: DrainkitError | None = None
    try:
        if job.scope.name == "history":
            commit.open_history(server, job.keys, job.scope.group)
        worker.run()
    except DrainkitError as error:
        failure = error
    except KeyboardInterrupt:  # a notebook's kernel: nothing set `stopping`
        server.close()
        worker.lose()
        worker.uncertain = True
        failure = InterruptedRunError("interrupted; run the same command again to go on")
    try:
        _settle(server, job, worker, failure)
        _close_books(server, job, summary, started, failure)
        _write_ledger(server, job, "end", summary)
    except DrainkitError as error:
        if failure is None:
            failure = error
        if worker.uncertain and summary.audit_records is None:
            failure.args = (f"{failure}; the last commit may have been done: counts are too low",)
        _finish(summary, started, failure)
    return summary


def preflight(server: Server, job: Job) -> None:
    """Everything that must hold before the first write; refuses with what to do.

    The job's own consumers are its worker's and those of its fellow workers.
    """
    check_primary(server.info)
    keys, scope = job.keys, job.scope
    if server.call("EXISTS", keys.stop):
        raise commit.StoppedError(
            "the kill switch is set (drainkit stop); drainkit resume lifts it"
        )
    for key, right in ((keys.audit, b"stream"), (keys.runs, b"stream"), (keys.state, b"hash")):
        kind = server.call("TYPE", key)
        if kind not in (right, b"none"):
            advice = " or choose another --audit-stream" if key == keys.audit else ""
            raise RefusedError(
                f"{one_line(stream.text(key))} is a {stream.text(kind)}, not a "
                f"{stream.text(right)}; rename it{advice}"
            )
    last_ms = stream.last_ms(server, keys.audit)
    if last_ms > server.now_us() / 1000 + MAX_CLOCK_WAIT_SEC * 1000:
        raise DrainkitError(FUTURE_AUDIT)
    if scope.name == "undelivered" and not job.settings.allow_active_consumers:
        others = stream.consumers(server, keys.stream, scope.group)
        own = {scope.consumer, *job.fellows}
        active = [c for c in others if c.name not in own and c.idle_ms < ACTIVE_MS]
        if active:
            raise RefusedError(
                f"consumer {one_line(active[0].name)} of this group was active "
                f"{active[0].idle_ms / 1000:.0f} s ago; stop it, or --allow-active-consumers"
            )
    # the group of scope history may not exist yet, so it is the consumer group that is looked at
    deadline_us = server.now_us() + round(server.reply_timeout_sec * 1e6)
    main = replace(scope, group=job.settings.consumer_group)
    commit.look(server, keys, main, after=stream.FIRST_ID, counters=b"", deadline_us=deadline_us)


@dataclass
class _Worker:
    """The loop of a live drain: reads as a dry run does, and writes by commits, one at a time.

    Nothing is claimed beforehand: until its commit an entry stays as undelivered, or as pending for
    its owner, as it was. So whatever happens before leaves no trace, and after a fault the group
    itself says what was done.
    """

    server: Server
    job: Job
    summary: Summary
    stopping: threading.Event
    on_progress: Progress | None
    uncertain: bool = False  # a commit's outcome was unknown: recount from the audit at the end
    _sent: deque[tuple[Events, Decisions] | None] = field(default_factory=deque)  # None: a read
    _next_turn: float = 0.0  # time.monotonic()

    def __post_init__(self) -> None:
        settings = self.job.settings
        self._decoder = decoder_of(settings)
        self._clock = Clock(self.server.now_us())
        self._rate = settings.throttle
        # 2 % of the rate: one turn each 20 ms keeps the pace even and the server free
        self._batch = UNTHROTTLED_BATCH if self._rate is None else max(1, int(self._rate * 0.02))
        self._batch = min(self._batch, UNTHROTTLED_BATCH)
        self._entry_bytes = FIRST_ENTRY_BYTES
        self._reach = self.job.reach
        self._position = self._reach.position  # of the group, as seen last; never goes back
        self._counters = b""
        self._after = self._position  # up to here everything has been read
        self._asked = self._after, self._counters  # of the read that is under way
        self._run_id = self.server.info.run_id
        self._deadline = self._lost_until = 0
        self._start_over()

    def run(self) -> None:
        """Drain until the scope, the budget or the patience with a broken server is exhausted."""
        attempts = iter(RECOVERY_WAITS_SEC)
        while True:
            before = self.summary.total_read
            try:
                self._drain()
                if self._exhausted():
                    return
                # somebody of the same name was delivered entries meanwhile: they are ours as well
                self._start_over()
            except (ConnectionLostError, ServerBusyError) as error:
                if self.summary.total_read > before:
                    attempts = iter(RECOVERY_WAITS_SEC)
                self._recover(error, attempts)

    def _exhausted(self) -> bool:
        budget = self.job.max_events
        if budget is not None and self.summary.total_read >= budget:
            return True
        # as far as a plan goes: what it leaves alone would be waited for forever
        scope = stream.current(self.server, self.job.keys, self._reach)
        return not any(stream.own_ids(self.server, self.job.keys, scope))

    def finish_replies(self) -> None:
        """Take what is still under way into the books: a commit in flight is a commit."""
        while self._sent:
            try:
                if self._sent[0] is None:
                    with self._reply():
                        self.server.receive()
                else:
                    self._settle_one()
            except ConnectionLostError:
                self.lose()
                return
            except DrainkitError:  # refused by the server: nothing of it ran
                continue

    @contextmanager
    def _reply(self) -> Iterator[None]:
        """Take one reply: it settles the oldest request, as an error too; a lost one does not.

        Whoever waits for the reply of a request that is already settled waits in vain.
        """
        try:
            yield
        except ConnectionLostError:
            raise
        except DrainkitError:
            self._sent.popleft()
            raise
        self._sent.popleft()

    def _drain(self) -> None:
        for batch in self._pending_batches():
            self._commit(batch)
            self._settle_commits()
        if self.job.scope.name != "pending":
            self._drain_new()
        if self.stopping.is_set():
            raise InterruptedRunError("interrupted; run the same command again to go on")

    def _drain_new(self) -> None:
        self._look()
        self._ask()
        while batch := self._take():
            if self._rate is None:  # the server commits and reads on while this side decides
                self._ask()
            self._commit(batch)
            if self._rate is not None:
                self._settle_commits()
                self._ask()
        self._settle_commits()
        if self._room() > 0:  # not the budget but the stream has ended: if it is still the one
            self._look()

    def _look(self) -> None:
        """Where the group stands; refused if the stream or the group is not what it was."""
        found = commit.look(
            self.server, self.job.keys, self._reach,
            after=self._position, counters=self._counters, deadline_us=self._deadline_us(),
        )  # fmt: skip
        self._clock.sync(found.now_us)
        self._after = self._position = found.position
        self._counters = found.counters

    def _room(self) -> int:
        """How many entries the next batch may have; 0 when the budget is spent."""
        in_flight = sum(len(sent[0]) for sent in self._sent if sent) + self._unsent
        room = min(self._batch, max(1, BATCH_BYTES // self._entry_bytes))
        budget = self.job.max_events
        return room if budget is None else min(room, budget - self.summary.total_read - in_flight)

    def _pending_batches(self) -> Iterator[Batch]:
        """What is pending already: first this consumer's own, then others' (scope pending)."""
        keys = self.job.keys
        scope = stream.current(self.server, keys, self._reach)
        mine = chain.from_iterable(stream.own_ids(self.server, keys, scope))
        own = ((entry, scope.consumer) for entry in mine)
        others = chain.from_iterable(stream.scope_ids(self.server, keys, scope))
        wanted = (row for row in others if self._wanted(row[0]))
        for rows in (own, wanted) if scope.name == "pending" else (own,):
            while (room := self._room()) > 0 and not self.stopping.is_set():
                if not (chosen := list(islice(rows, room))):
                    break
                entries = stream.bodies(self.server, keys.stream, [row[0] for row in chosen])
                self._check_plan(entries)
                self._entry_bytes = stream.entry_bytes(entries)
                yield Batch(entries, owners=[row[1] for row in chosen])

    def _ask(self) -> None:
        """Ask for the next new entries, if the budget leaves room and nobody interrupts."""
        room = self._room()
        if room < 1 or self.stopping.is_set():
            return
        # where another drain went meanwhile this one need not read any more
        after = max(self._after, self._position, key=stream.id_key)
        if stream.id_key(after) >= stream.id_key(self._reach.boundary):
            return
        self._asked = after, self._counters
        stream.send_page(self.server, self.job.keys.stream, after, self._reach.boundary, room)
        self._sent.append(None)

    def _take(self) -> Batch | None:
        """The new entries that were asked for; None when there are none, or the budget is spent."""
        if None not in self._sent:
            # the budget was all in flight; what was rejected of that leaves room again
            self._settle_commits()
            self._ask()
        while None in self._sent:
            if self._sent[0] is not None:
                self._settle_one()
                continue
            with self._reply():
                entries = self.server.receive()
            if not entries:
                return None
            self._check_plan(entries)
            self._entry_bytes = stream.entry_bytes(entries)
            after, counters = self._asked
            self._after = stream.text(entries[-1][0])
            self._unsent = len(entries)
            return Batch(entries, after=after, counters=counters)
        return None

    def _wanted(self, entry_id: bytes) -> bool:
        return self.job.plan_ids is None or entry_id in self.job.plan_ids

    def _check_plan(self, entries: Sequence[RawEntry]) -> None:
        if self.job.plan_ids is None:
            return
        odd = [entry[0] for entry in entries if not self._wanted(entry[0])]
        if odd:
            raise RefusedError(f"entry {stream.text(odd[0])} is not in the plan; make a new one")

    def _commit(self, batch: Batch) -> None:
        """Decide at this turn's moment and send; told to wait, decide anew at the next turn."""
        events = self._decoder.decode(batch.entries)
        self._unsent = 0
        while True:
            if self._rate is not None and not self._sleep(self._next_turn - time.monotonic()):
                return  # interrupted: the batch stays as it is for the same command run again
            now_us = self._clock.now_us()
            as_of_us = self.job.settings.as_of_us
            decisions = decide(events, self.job.policy, now_us if as_of_us is None else as_of_us)
            made = records(
                events, decisions, self.job.policy, drained_at_us=now_us,
                consumer_group=self.job.scope.group, run_id=self.job.run_id,
            )  # fmt: skip
            self._settle_commits()
            commit.send_commit(
                self.server, self.job.keys, self._reach, batch, made,
                rate=self._rate, run_id=self.job.run_id, deadline_us=self._deadline_us(),
            )  # fmt: skip
            self._sent.append((events, decisions))
            if self._rate is None or self._settle_one():
                return

    def _settle_commits(self) -> None:
        while self._sent and self._sent[0] is not None:
            self._settle_one()

    def _settle_one(self) -> bool:
        """Take the reply of the oldest commit into the books; False if it has to wait."""
        sent = self._sent[0]
        with self._reply():
            reply = commit.receive_commit(self.server)
        self._clock.sync(reply.now_us)
        self._next_turn = time.monotonic() + reply.wait_us / 1e6
        if not reply.done:
            if reply.wait_us > max(MAX_CLOCK_WAIT_SEC, 2 / (self._rate or 1)) * 1e6:
                raise DrainkitError(FUTURE_AUDIT)
            if self._rate is None:
                self._start_over()
                raise ServerBusyError("the server's clock went back; waiting for it")
            return False
        self._position, self._counters = reply.position, reply.counters
        events, decisions = sent  # type: ignore[misc]
        rows: np.ndarray | slice = slice(None)
        if reply.rejected:
            rows = np.array([entry not in reply.rejected for entry in events.ids])
        self.summary.count(decisions, rows)
        if self.on_progress:
            self.on_progress(self.summary)
        return True

    def _sleep(self, seconds: float) -> bool:
        """Wait for the turn; False if interrupted meanwhile."""
        return not (self.stopping.wait(seconds) if seconds > 0 else self.stopping.is_set())

    def _deadline_us(self) -> int:
        """When a request sent now would be given up; the server refuses it after that."""
        self._deadline = self._clock.now_us() + round(self.server.reply_timeout_sec * 1e6)
        return self._deadline

    def lose(self) -> None:
        """Note that what is under way may be done or not, or may even be done later."""
        if any(self._sent):
            self._lost_until = self._deadline
            self.uncertain = True
        self._start_over()

    def outwait(self) -> None:
        """Wait until no lost request can still reach the server that it was sent to.

        A network may deliver a request long after its connection broke; the books close after it.
        """
        if self.server.info.run_id == self._run_id:
            time.sleep(max(0.0, self._lost_until - self._clock.now_us()) / 1e6)

    def _recover(self, error: UnreachableError, attempts: Iterator[float]) -> None:
        """After a fault: look again. What is still undelivered or pending was not committed."""
        self.lose()
        for wait in attempts:
            if self.stopping.wait(wait):
                raise InterruptedRunError("interrupted; run the same command again to go on")
            try:
                if self.server.reconnect().run_id != self._run_id:
                    raise UnreachableError(
                        "the server restarted or another took over, and may have lost the last "
                        "moments; run the same command again to go on"
                    )
                check_primary(self.server.info)
                self._clock.sync(self.server.now_us())
            except (ConnectionLostError, ServerBusyError):
                continue
            return
        raise error

    def _start_over(self) -> None:
        """Forget what is in flight: the next round reads anew, own pending entries first."""
        self._sent.clear()
        self._unsent = 0


def _settle(server: Server, job: Job, worker: _Worker, failure: DrainkitError | None) -> None:
    """After the loop: replies still under way into the books, and the history group closed."""
    if server.connected:
        worker.finish_replies()
    if not server.connected:
        server.reconnect()
    worker.outwait()
    if worker.uncertain:
        recount(server, job, worker.summary)
    if failure is None and job.scope.name == "history":
        commit.close_history(server, job.keys, job.scope.group, job.scope.boundary)


def recount(server: Server, job: Job, summary: Summary) -> None:
    """Take the counts from the audit itself, where a reply with them was lost."""
    counts = Counter(record.action for record in run_records(server, job.keys, {job.run_id}))
    for action in ACTIONS:
        setattr(summary, action, counts[action])
    summary.total_read = summary.audit_records = sum(counts.values())


def run_records(server: Server, keys: Keys, run_ids: set[str]) -> Iterator[AuditRecord]:
    """The audit records of some runs, from the time that the earliest of their ids tells on."""
    if not run_ids:
        return
    start = dt.datetime.strptime(min(run_ids)[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
    # a second earlier: the clock of audit ids and TIME can differ a little
    first = f"{max(0, int(start.timestamp() * 1000) - 1000)}-0"
    for page in stream.pages(server, keys.audit, first, stream.LAST_ID):
        for entry in page:
            record = parse(entry)
            if record.run_id in run_ids:
                yield record


def _open_books(server: Server, job: Job) -> tuple[Summary, int]:
    started = server.now_us()
    scope = job.scope
    summary = Summary(
        run_id=job.run_id,
        mode=job.settings.mode,
        scope=scope.name,
        stream=job.settings.stream,
        consumer_group=job.settings.consumer_group,
        boundary_id=scope.boundary,
        started_at=iso(started),
        plan_digest=job.plan_digest,
    )
    return summary, time.monotonic_ns()


def _close_books(
    server: Server, job: Job, summary: Summary, started: int, failure: DrainkitError | None
) -> None:
    scope = stream.current(server, job.keys, job.scope)
    if scope.group_exists or scope.name == "history":  # else nobody knows what was delivered
        summary.remaining = stream.remaining(server, job.keys, scope)
    summary.pending_own = sum(len(ids) for ids in stream.own_ids(server, job.keys, scope))
    budget = job.max_events
    exhausted = budget is None or summary.total_read < budget
    if failure is None and job.settings.mode == "live" and exhausted and summary.pending_own:
        failure = DrainkitError(
            f"the books do not balance: {summary.pending_own} entries are still pending for "
            f"{one_line(scope.consumer)}; run the same command again"
        )
    _finish(summary, started, failure)
    summary.finished_at = iso(server.now_us())


def _finish(summary: Summary, started: int, failure: DrainkitError | None) -> None:
    summary.elapsed_sec = round((time.monotonic_ns() - started) / 1e9, 3)
    if summary.elapsed_sec > 0:
        summary.events_per_sec = round(summary.total_read / summary.elapsed_sec, 2)
    if not summary.finished_at:
        begun = dt.datetime.fromisoformat(summary.started_at)
        summary.finished_at = (begun + dt.timedelta(seconds=summary.elapsed_sec)).isoformat()
    summary.outcome = "done" if failure is None else "failed"
    summary.exit_code = 0 if failure is None else failure.exit_code
    if failure is not None:
        summary.error = str(failure)
        # set, not added: the end of the books can fail after a failed run
        summary.errors = int(not isinstance(failure, InterruptedRunError | RefusedError))
        summary.outcome = {130: "interrupted", 4: "refused"}.get(failure.exit_code, "failed")


def _write_ledger(server: Server, job: Job, event: str, summary: Summary) -> None:
    settings = job.settings
    fields: dict[str, object] = {
        "event": event,
        "run_id": job.run_id,
        "scope": job.scope.name,
        "consumer_group": job.scope.group,
        "consumer": job.scope.consumer,
        "boundary_id": job.scope.boundary,
    }
    if event == "start":
        fields |= {
            "throttle": "none" if settings.throttle is None else settings.throttle,
            "max_events": "all" if settings.max_events is None else settings.max_events,
            "plan_digest": job.plan_digest or "",
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
    else:
        fields |= {"outcome": summary.outcome, "total_read": summary.total_read}
        fields |= {action: getattr(summary, action) for action in ACTIONS}
        fields["remaining"] = summary.remaining
    fields["at"] = iso(server.now_us())
    commit.add_to_ledger(server, job.keys, fields)


def iso(time_us: int) -> str:
    """Microseconds since the epoch as ISO 8601 UTC with microseconds and offset."""
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return (epoch + dt.timedelta(microseconds=time_us)).isoformat(timespec="microseconds")
