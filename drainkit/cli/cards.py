"""Cards: what a person is shown before a question."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..safe import one_line
from .terminal import Block, Table

if TYPE_CHECKING:
    from ..core.plan import Plan
    from ..core.shapes import Findings
    from ..draining.run import Run

Rows = list[tuple[str, str]]


def plan_card(plan: Plan) -> Table:
    """A plan for who has to judge it."""
    made = [
        ("Made", f"{plan.created_at} by {plan.run_id}, at {plan.server}"), ("Digest", plan.digest),
    ]  # fmt: skip
    return _card("Plan", [*_where(plan), *_what(plan), *made])


def question_card(run: Run, plan: Plan, notes: list[str], *, waiting: int, own: int) -> Table:
    """What a live drain of this plan would do, and where.

    `waiting` entries are in the scope, `own` of them left by an earlier run of the consumer. A run
    with a plan applies just this one; otherwise it decides anew, at each event's turn.
    """
    from ..core.progress import entries_words
    from ..core.summary import approvers_words
    from ..server.keeping import keeping, keeping_words

    server = run.server
    keeps = "; ".join(keeping_words(keeping(server)))
    there = f"{server.info.kind} {server.info.version} at {server.shown_url}"
    anew = "none: decided anew at each event's turn (--plan binds a drain to what a dry run saw)"
    rows = [
        ("Server", there),
        *([("Keeps", keeps)] if keeps else []),
        *_where(plan),
        ("Waiting", entries_words(plan.scope, waiting, own)),
        *_what(plan),
        *(("Note", note) for note in notes),
        ("Digest", plan.digest if run.planned else anew),
    ]
    if wanted := run.settings.approval:
        rows.append(("Approved by", approvers_words(run.approvers, wanted.required)))
    return _card("Live drain", rows)


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
        *([found.snippet()] if found.lines else []),
    ]  # fmt: skip


def _card(title: str, rows: Rows) -> Table:
    return Table((), [(name, one_line(value, 700)) for name, value in rows], title)


def _where(plan: Plan) -> Rows:
    return [
        ("Environment", plan.environment or "none (no --env)"),
        ("Stream", plan.stream),
        ("Audit", plan.audit_stream),
        ("Group", f"{plan.consumer_group}, as {plan.consumer_name}"),
        ("Scope", f"{plan.scope}, after {plan.history_position or plan.position} up to "
                  f"{plan.boundary_id}{f' (until {plan.until})' if plan.until else ''}"),
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
