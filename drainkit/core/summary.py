"""The books of a run: run id, counts, how far it is and how it ended, as data and in words."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from ..errors import DrainkitError, InterruptedRunError, RefusedError
from ..late import pa
from ..safe import address
from ..settings import Settings
from .policy import ACTIONS, Decisions
from .values import iso

RUN_ID = re.compile(r"\d{8}T\d{6}Z-(dry-run|live)-[0-9a-f]{6}")
COUNTS = ("total_read", *ACTIONS, "vanished", "passed_over", "events_per_sec")
OUTCOMES = {0: "done", 4: "refused", 130: "interrupted"}  # by exit code; all others: "failed"
_INNER = {"changes", "expected", "is_counted", "pace", "unreadable"}  # kept beside the JSON
_OR_NULL = {*COUNTS, "remaining", "throttle", "exit_code", "pending_own"}  # else None is left out
_DRAINED = re.compile(r"drained ([\d,]+) of ([\d,]+), .*?([\d,]+) passed")


@dataclass
class Pace:
    """When a run's records reached the audit, in milliseconds of the audit's ids."""

    first_ms: int | None = None
    last_ms: int = 0
    at_last: int = 0  # records of the last millisecond
    records: int = 0

    def note(self, ms: int, records: int) -> None:
        """So many records reached the audit at this millisecond."""
        if records:
            self.first_ms = ms if self.first_ms is None else min(self.first_ms, ms)
            if ms >= self.last_ms:
                self.at_last = records + (self.at_last if ms == self.last_ms else 0)
            self.last_ms = max(self.last_ms, ms)
            self.records += records

    def events_per_sec(self) -> float:
        """Records before the last millisecond over the time from the first to the last; or 0.

        Never above the throttle: the last millisecond's records belong to the time after it.
        """
        if self.first_ms is None or self.last_ms <= self.first_ms:
            return 0.0
        span_sec = (self.last_ms - self.first_ms) / 1000
        # rounded down: 1000.00 of 1000 allowed must not become 1000.01
        return math.floor((self.records - self.at_last) / span_sec * 100) / 100


@dataclass
class Summary:
    """The books of one run, in the contract's words; times are ISO 8601 UTC, by the server.

    Opened once, counted into, and closed once.
    """

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
    vanished: int = 0  # deleted by others before they could be delivered: not audited
    passed_over: int = 0  # others took them during the run, or XGROUP SETID skipped them
    errors: int = 0
    remaining: int | None = None  # of the scope, up to the boundary, not drained; None: not known
    started_at: str = ""
    finished_at: str = ""
    elapsed_sec: float = 0.0
    events_per_sec: float | None = None  # None: a dry run has none
    throttle: float | None = None  # events per second
    outcome: str = "running"
    exit_code: int | None = None
    error: str | None = None
    operator: str | None = None  # live: who answers for the run
    approvers: list[str] | None = None  # live: identities that signed the plan
    approver_keys: dict[str, str] | None = None  # their keys' fingerprints
    approvals_required: int | None = None
    environment: str | None = None  # the table of drainkit.toml (--env)
    server: str | None = None  # its address, without user and password
    pending_own: int | None = None
    audit_records: int | None = None  # of this run, recounted where an outcome was unknown
    plan_path: str | None = None
    plan_digest: str | None = None
    notes: list[str] | None = None  # of stream and audit before a live run; a dry run's allowlist
    drift: list[dict[str, Any]] | None = None  # live with a plan: planned, happened, events
    unreadable: dict[str, int] = field(default_factory=dict)  # dry run: events by what is wrong
    changes: pa.Table | None = None  # the same, event by event (reconciliation.drift_table)
    is_counted: bool = True  # False: what the run recorded is not known; its counts are null
    expected: int = 0  # events of a live run, as counted when it began; 0: not counted yet
    pace: Pace = field(default_factory=Pace)

    @classmethod
    def opened(
        cls, settings: Settings, *, run_id: str, boundary: str, now_us: int,
        plan_digest: str | None = None, approvers: Mapping[str, str] | None = None,
    ) -> Summary:  # fmt: skip
        """The books of a run that begins now; `now_us` by the server's clock."""
        live, approval = settings.mode == "live", settings.approval
        same = ("mode", "scope", "stream", "consumer_group", "throttle", "operator")
        return cls(
            run_id=run_id,
            boundary_id=boundary,
            started_at=iso(now_us),
            plan_digest=plan_digest,
            approvers=[*(approvers or ())] if live else None,
            approver_keys=dict(approvers) if approvers else None,
            approvals_required=approval.required if live and approval else None,
            environment=settings.env,
            server=address(settings.redis_url.get_secret_value()),
            **{name: getattr(settings, name) for name in same},
        )

    def count(self, decisions: Decisions, rows: np.ndarray | slice = slice(None)) -> int:
        """Add the actions of the chosen rows; returns how many they are."""
        found = np.bincount(decisions.action[rows], minlength=len(ACTIONS)).tolist()
        for action, n in zip(ACTIONS, found, strict=True):
            setattr(self, action, getattr(self, action) + n)
        self.total_read += sum(found)
        return sum(found)

    def close(self, failure: DrainkitError | None, now_us: int) -> Summary:
        """Close the books: how the run ended, and when, by the server's clock.

        Closing again, with what failed after the first time, keeps the end; with an earlier start
        the run has the time of all its attempts.
        """
        self.finished_at = self.finished_at or iso(now_us)
        first, last = map(dt.datetime.fromisoformat, (self.started_at, self.finished_at))
        self.elapsed_sec = round(max(0.0, (last - first).total_seconds()), 3)
        if self.mode == "live" and (self.pace.records or self.events_per_sec is None):
            self.events_per_sec = self.pace.events_per_sec()
        if failure is not None and not self.exit_code:
            self.error, self.exit_code = str(failure), failure.exit_code
            self.errors = int(not isinstance(failure, InterruptedRunError | RefusedError))
        self.exit_code = self.exit_code or 0
        self.outcome = OUTCOMES.get(self.exit_code, "failed")
        return self

    def as_dict(self) -> dict[str, object]:
        """JSON-ready; keys that do not apply are left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _INNER}
        if not self.is_counted:
            values |= dict.fromkeys(COUNTS)
        return {k: v for k, v in values.items() if v is not None or k in _OR_NULL}

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Summary:
        """The books that `as_dict` wrote; keys of others are left out."""
        names = {f.name for f in fields(cls)} - _INNER
        return cls(**{name: value for name, value in found.items() if name in names})


@dataclass(frozen=True)
class Step:
    """How far a run is: `done` of `total` events (0: not known), and the line that says it."""

    done: int
    total: int
    passed: int
    line: str

    @classmethod
    def of(cls, summary: Summary) -> Step:
        """`drained 1,000 of 10,000, 5.0/s of 5, 30 min left, 412 passed`.

        The rate is that of the audit's ids so far, of the throttle if there is one. A dry run
        decides as fast as it can.
        """
        done, total, passed = summary.total_read, summary.expected, summary.drained_ok
        if summary.mode != "live":
            return cls(done, total, passed, f"decided {done:,}, {passed:,} passed")
        line = f"drained {done:,} of {total:,}, "
        if rate := summary.pace.events_per_sec():  # else all came in one millisecond
            limit = "" if summary.throttle is None else f" of {summary.throttle:g}"
            left = f"{span((total - done) / rate)} left, " if total > done else ""
            line += f"{rate:,.1f}/s{limit}, {left}"
        return cls(done, total, passed, f"{line}{passed:,} passed")

    @classmethod
    def read(cls, line: str) -> Step | None:
        """The step of a line that another process printed; None: it is another line."""
        if (found := _DRAINED.match(line)) is None:
            return None
        done, total, passed = (int(number.replace(",", "")) for number in found.groups())
        return cls(done, total, passed, line)


def span(seconds: float) -> str:
    """A duration as a reader says it: `90.5 s`, `30 min`, `2.4 h`."""
    size, unit = 1, "s"
    for more in ((60, "min"), (3600, "h"), (86_400, "days")):
        if abs(seconds) >= 2 * more[0]:
            size, unit = more
    n = seconds / size
    return f"{n:,.0f} {unit}" if abs(n) >= 999 else f"{n:.3g} {unit}"


def amount(n: int, what: str = "entries") -> str:
    """`1 entry`, `2,000 events`."""
    return f"{n:,} {what}" if n != 1 else {"entries": "1 entry", "events": "1 event"}[what]


def entries_words(scope: str, entries: int, own: int) -> str:
    """`3,168 undelivered + 6 pending of this drain's own consumer = 3,174`.

    `entries` wait in all; `own` of them were left by an earlier run of the consumer, which a drain
    of scope undelivered finishes first (in the other scopes they are part of it).
    """
    if scope != "undelivered" or not own:
        return f"{entries:,} {scope}"
    return f"{entries - own:,} {scope} + {own:,} pending of this drain's own consumer = {entries:,}"


def duration_words(events: int, throttle: float | None) -> str:
    """How long a live drain of so many events takes."""
    if throttle is None:
        return "as fast as the server"
    return f"{span(events / throttle)} at {throttle:g} per second"


def next_run_words(entries: int, max_events: int | None, throttle: float | None) -> str:
    """What the next run would take of what waits, and how long that lasts."""
    taken = entries if max_events is None else min(entries, max_events)
    which = "all" if taken == entries else f"the first {taken:,}"
    return f"{which} of them, {duration_words(taken, throttle)}"


def approvers_words(keys: Mapping[str, str], required: int | None) -> str:
    """Who approved, with their keys, and how many had to."""
    named = ", ".join(f"{name} ({key})" for name, key in keys.items()) or "nobody"
    return f"{named}; {required or 0} required"
