"""What a person is shown: a run's report, and the cards before a question."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .terminal import Block, Table

if TYPE_CHECKING:
    from ..core.plan import Plan
    from ..core.shapes import Findings
    from ..draining.run import Run

Rows = list[tuple[str, str]]
REPORT_LINES = {
    "Mode": "mode",
    "Total Read": "total_read",
    "Dropped (old)": "dropped_old",
    "Dropped (not allowlisted)": "dropped_not_allowlisted",
    "Dropped (low confidence)": "dropped_low_conf",
    "Dropped (invalid)": "dropped_invalid",
    "Dropped (missing)": "dropped_missing",
    "Drained OK": "drained_ok",
    "Errors": "errors",
    "Elapsed": "elapsed_sec",
    "Throughput": "events_per_sec",
    "Remaining": "remaining",
    "Run": "run_id",
}
# shown where there is something to say
MORE_LINES = {
    "Vanished (deleted by others)": "vanished",
    "Passed over (taken by others)": "passed_over",
    "Plan": "plan_path",
    "Plan digest": "plan_digest",
    "Evidence": "evidence",
}


def report(result: Mapping[str, Any]) -> list[Block]:
    """The original report's lines, and what became of a plan otherwise than planned."""
    shown = {
        "mode": str(result.get("mode", "")).upper(),
        "elapsed_sec": f"{result.get('elapsed_sec', 0):.2f}s",
        "events_per_sec": _throughput(result),
        "remaining": _remaining(result),
    }
    blocks: list[Block] = []
    if changed := result.get("drift"):
        n = sum(change["events"] for change in changed)
        where = "; drift.parquet names each" if result.get("evidence") else ""
        rows = [[c["events"], c["planned"], c["happened"]] for c in changed]
        events = "event" if n == 1 else "events"
        title = f"Drift: {n:,} {events} met another fate than planned{where}"
        blocks.append(Table(("Events", "Planned", "Happened"), rows, title))
    if (result.get("dropped_invalid") or 0) * 2 > (result.get("total_read") or 0):
        blocks.append("Most events cannot be read; drainkit fields says why, and what would help.")
    for name, key in REPORT_LINES.items():
        value = shown.get(key, result.get(key))
        blocks.append(f"{name}: {'unknown' if value is None else value}")
    if result.get("evidence") and result.get("plan_path"):  # as seen from where the person is
        shown["plan_path"] = f"{result['evidence']}/{result['plan_path']}"
    blocks += [f"{name}: {shown.get(key, result[key])}"
               for name, key in MORE_LINES.items() if result.get(key)]  # fmt: skip
    if result.get("mode") == "dry-run":
        good = result.get("drained_ok", 0)
        blocks.append(f"A live run acknowledges {good:,} good signals and executes none of them.")
    return [*blocks, *(f"Note: {note}" for note in result.get("notes") or ())]


def _remaining(result: Mapping[str, Any]) -> str | None:
    """The number, and where it comes from if that is more than one place."""
    from ..core.progress import entries_words

    left, own = result.get("remaining"), result.get("pending_own") or 0
    if left is None or not own or result.get("scope") != "undelivered":
        return None if left is None else str(left)
    return f"{left} ({entries_words('undelivered', left, own)})"


def _throughput(result: Mapping[str, Any]) -> str | None:
    """The pace of a live run; of a dry run, how long the live run takes."""
    rate, throttle = result.get("events_per_sec"), result.get("throttle")
    if rate is not None:
        return f"{rate:.2f} events/sec"
    if result.get("mode") == "live":
        return None
    if not throttle:
        return "a live run goes as fast as the server"
    return f"a live run takes {result['total_read'] / throttle:,.1f} s at {throttle:g} events/sec"


def plan_card(plan: Plan) -> Table:
    """A plan for the person who has to judge it."""
    made = f"{plan.created_at} by {plan.run_id}, at {plan.server}"
    return Table((), [*_where(plan), *_what(plan), ("Made", made), ("Digest", plan.digest)], "Plan")


def question_card(run: Run, plan: Plan, notes: list[str], *, waiting: int, own: int) -> Table:
    """What a live drain of this plan would do, and where.

    `waiting` entries are in the scope, `own` of them left by an earlier run of the consumer. A run
    with a plan applies just this one; otherwise it decides again, at each event's turn.
    """
    from ..core.progress import entries_words
    from ..core.summary import approvers_words
    from ..server.keeping import keeping, keeping_words

    server = run.server
    keeps = "; ".join(keeping_words(keeping(server)))
    address = f"{server.info.kind} {server.info.version} at {server.shown_url}"
    no_plan = "none: decided again at each event's turn (--plan binds a drain to a dry run)"
    rows = [
        ("Server", address),
        *([("Keeps", keeps)] if keeps else []),
        *_where(plan),
        ("Waiting", entries_words(plan.scope, waiting, own)),
        *_what(plan),
        *(("Note", note) for note in notes),
        ("Digest", plan.digest if run.planned else no_plan),
    ]
    if wanted := run.settings.approval:
        rows.append(("Approved by", approvers_words(run.approvers, wanted.required)))
    return Table((), rows, "Live drain")


def fields_blocks(found: Findings) -> list[Block]:
    """Why events cannot be read, which fields there are, and what would help."""
    reasons = [(events, reason) for reason, events in found.reasons.items()]
    rows = [(value, path, entries, example, ("chosen: " if chosen else "") + why)
            for value, path, entries, example, chosen, why in found.paths]  # fmt: skip
    return [
        *([Table(("Events", "Reason"), reasons, f"{found.title()}:")] if reasons else []),
        Table(("Value", "Path", "Entries", "Example", "Why"), rows,
              f"Fields of {found.entries:,} entries, spread over the backlog:"),
        *(f"Note: {note}" for note in found.notes),
        found.advice(),
        *(found.snippet().splitlines() if found.lines else []),
    ]  # fmt: skip


def _where(plan: Plan) -> Rows:
    until = f" (until {plan.until})" if plan.until else ""
    # what is pending lies before the position
    after = "" if plan.scope == "pending" else f" after {plan.history_position or plan.position}"
    return [
        ("Environment", plan.environment or "none (no --env)"),
        ("Stream", plan.stream),
        ("Audit", plan.audit_stream),
        ("Group", f"{plan.consumer_group}, as {plan.consumer_name}"),
        ("Scope", f"{plan.scope},{after} up to {plan.boundary_id}{until}"),
    ]  # fmt: skip


def _what(plan: Plan) -> Rows:
    from ..core.progress import duration_words

    policy, allowed = plan.policy, plan.policy["allowlist"]
    symbols = "any symbol" if allowed is None else ", ".join(allowed)
    others = ", ".join(f"{n:,} {a}" for a, n in plan.counts.items() if n and a != "drained_ok")
    limit = "no limit" if plan.max_events is None else f"at most {plan.max_events:,}"
    as_of = f", as of {plan.as_of}" if plan.as_of else ""
    return [
        ("Passes", f"{symbols}; confidence from {policy['min_conf']:g}; up to "
                   f"{policy['max_age_min']:g} min old{as_of}"),
        ("Entries", f"{plan.total_read:,} ({limit}), {plan.first_id or 'none'} to "
                    f"{plan.last_id or 'none'}"),
        ("Would pass", f"{plan.counts.get('drained_ok', 0):,} drained_ok: still good signals, "
                       "acknowledged and NOT executed" + (f"; not: {others}" if others else "")),
        ("Duration", duration_words(plan.total_read, plan.throttle)),
    ]  # fmt: skip
