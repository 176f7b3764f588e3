"""The books of a run: run id, counts, and how it ended."""

from __future__ import annotations

import datetime as dt
import re
import secrets
import time
from dataclasses import asdict, dataclass, replace

import numpy as np

from ..errors import DrainkitError, InterruptedRunError, RefusedError
from .policy import ACTIONS, Decisions

RUN_ID = re.compile(r"\d{8}T\d{6}Z-(dry-run|live)-[0-9a-f]{6}")


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


def close_with(summary: Summary, started: int, failure: DrainkitError | None) -> None:
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


def new_run_id(mode: str, now_us: int) -> str:
    """YYYYMMDDTHHMMSSZ-<mode>-<6 hex>, from the server's time."""
    now = dt.datetime.fromtimestamp(now_us // 1_000_000, tz=dt.UTC)
    return f"{now:%Y%m%dT%H%M%SZ}-{mode}-{secrets.token_hex(3)}"


def combined(parts: list[Summary]) -> Summary:
    """One summary of all: counts added up, the worst end of all."""
    total = replace(parts[0], total_read=0, remaining=None, pending_own=None)
    for name in ("total_read", "errors", *ACTIONS):
        setattr(total, name, sum(getattr(part, name) for part in parts))
    ended_badly = [part for part in parts if part.exit_code]
    worst = max(ended_badly, key=lambda part: part.exit_code or 0, default=parts[0])
    total.outcome, total.exit_code, total.error = worst.outcome, worst.exit_code, worst.error
    return total
