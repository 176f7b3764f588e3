"""What a person looks at closely: a run's report, the cards before a question, and the commands for
single entries, fields, two runs, a plan to approve, evidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..safe import one_line
from .program import (
    AUDIT,
    DEBUG,
    GROUP,
    JSON,
    POLICY,
    WHERE,
    YES,
    command,
    option,
    setting,
    settings_of,
)
from .terminal import Block, Table, confirm, connected, emit, tell, tell_error

if TYPE_CHECKING:
    from ..core.fields import Findings
    from ..core.plan import Plan
    from ..draining.run import Run


@command(click.argument("ids", nargs=-1, required=True, metavar="ID ..."),
         *POLICY, *GROUP, AUDIT, *WHERE, JSON)  # fmt: skip
def show(ids: tuple[str, ...], as_json: bool, **flags: Any) -> None:
    """Single entries: raw fields, decoded values and where each was found, every verdict.

    The audit is searched from a minute before the oldest of the ids on.

    \b
    Examples:
      drainkit show 1766602826755-0
      drainkit show 1766602826755-0 --allowlist BTCUSDT --as-of 2025-12-24T19:49:58Z --json
    """
    from ..core.timestamps import iso
    from ..operations import entry
    from ..operations.export import Lens

    settings = settings_of(flags)
    with connected(settings) as server:
        lens = Lens.of(server, settings)
        found = entry.show(server, settings, lens.policy, ids, now_us=lens.at_us)
    data = {"stream": settings.stream, "decided_at": iso(lens.at_us),
            "policy": lens.policy.as_dict(), "entries": found}  # fmt: skip
    head = ("part", "name", "value")
    emit(as_json, data, *(Table(head, entry.rows_of(one), one["id"]) for one in found))


@command(*GROUP, *WHERE, JSON)
def fields(as_json: bool, **flags: Any) -> None:
    """Which fields the backlog's events have, which are chosen, and a [fields] that was tried.

    It looks at up to 500 entries, spread over all that is undelivered. The lines for drainkit.toml
    are tried on them by the decoder that a drain uses; lines that mend nothing are left out.
    """
    from ..operations.entry import fields_of

    settings = settings_of(flags)
    with connected(settings) as server:
        found = fields_of(server, settings)
    emit(as_json, {"stream": settings.stream, **found.as_dict()}, *fields_blocks(found))


@command(click.argument("first", metavar="RUN"), click.argument("second", metavar="RUN"),
         DEBUG, JSON)  # fmt: skip
def diff(first: str, second: str, as_json: bool) -> None:
    """Two plans or evidence folders: differing settings, and events that met another fate.

    Of a live run's folder it takes what happened (audit.parquet), else what was planned.

    \b
    Examples:
      drainkit diff monday.json tuesday.json
      drainkit diff reports/20260101T000000Z-dry-run-abc123 reports/20260101T000500Z-live-def456
    """
    from ..draining import comparison

    found = comparison.compare(*(comparison.read_side(Path(path)) for path in (first, second)))
    emit(as_json, found, *comparison.as_text(found).splitlines())


@command(click.argument("plan", metavar="PLAN"),
         option("--sign-key", metavar="KEY", required=True, help="Your SSH key (ssh-keygen)."),
         YES, DEBUG, JSON)  # fmt: skip
def approve(plan: str, sign_key: str, yes: bool, as_json: bool) -> None:
    """A second person's signature under a plan (a file or an evidence folder).

    It shows the plan, asks, and adds an SSH signature of its digest to <plan>.sig beside it. Where
    drainkit.toml has [approval], a live drain needs as many as it says, none its operator's.

    \b
    Example:
      drainkit approve plan.json --sign-key ~/.ssh/id_ed25519
    """
    from ..draining.plan_files import PlanFile
    from ..signing import add_signature

    found = PlanFile.load(Path(plan)).plan
    made = f"{found.created_at} by {found.run_id}, at {found.server}"
    rows = [*_where(found), *_what(found), ("Made", made), ("Digest", found.digest)]
    tell(Table((), rows, "Plan"), err=True)
    confirm("Approve this plan?", yes, "this signs the plan")
    path, keys = add_signature(Path(plan), found.digest, Path(sign_key))
    data = {"plan": plan, "plan_digest": found.digest, "signatures": str(path), "keys": keys}
    many = "signatures" if len(keys) > 1 else "signature"
    emit(as_json, data, f"Approved {found.digest} by {keys[-1]}: {path} holds {len(keys)} {many}.")


@command(click.argument("path"),
         option("--redis-url", metavar="URL", help="Also ask this server's run ledger."),
         *setting("stream"),
         option("--allowed-signers", metavar="FILE", help="Who may approve and sign (ssh-keygen)."),
         option("--identity", metavar="NAME", help="Who must have signed the statement."),
         option("--checkpoint", metavar="FILE",
                help="A keeper's lines that the chain must go on from."),
         DEBUG, JSON)  # fmt: skip
def verify(path: str, redis_url: str | None, stream: str | None, allowed_signers: str | None,
           identity: str | None, checkpoint: str | None, as_json: bool) -> int:  # fmt: skip
    """Check evidence: RUN_DIR, or REPORTS_DIR with the chain over all its runs.

    With --redis-url the server's run ledgers decide which live runs there must be: those of the
    streams that the runs name, and of --stream. With --checkpoint the chain must hold the run that
    FILE names at its place; where all is well FILE is written, or moves on to the newest run.
    """
    from ..evidence import verify as evidence

    signers = None if allowed_signers is None else Path(allowed_signers)
    kept = None if checkpoint is None else Path(checkpoint)
    found = evidence.verify(path, redis_url, signers, identity,
                            streams=_streams(redis_url, stream), checkpoint=kept)  # fmt: skip
    runs = len(found.findings.keys() - {"chain"})
    well = f"All well: {runs} run(s), every file as it was sealed."
    if found.archived:
        well += f" {len(found.archived)} archived: only the statement is left."
    data = {"ok": not found.bad, "findings": found.findings, "archived": found.archived,
            "drains": found.drains}  # fmt: skip
    drains = [f"live drain without evidence: {line}" for line in found.drains]
    emit(as_json, data, *drains, *(found.bad or [well]))
    return 1 if found.bad else 0


@command(click.argument("reports", metavar="[REPORTS_DIR]", default="reports"),
         option("--redis-url", metavar="URL",
                help="Also live runs that this server's ledger has alone."),
         *setting("stream"),
         option("--html", metavar="FILE", help="Also write them as a page, without a script."),
         DEBUG, JSON)  # fmt: skip
def runs(reports: str, redis_url: str | None, stream: str | None, html: str | None,
         as_json: bool) -> None:  # fmt: skip
    """All runs, newest first; whether the seal of each holds.

    Live runs without evidence (a plain drain, or a folder that is gone) are in the ledgers that
    --redis-url asks: those of the streams that the runs name, and of --stream.
    """
    from .. import files
    from ..evidence import runs as evidence

    found, odd = evidence.runs(reports, redis_url, _streams(redis_url, stream))
    for line in odd:
        tell_error(line)
    if html is not None:
        files.write_text(Path(html), evidence.page(found, reports, Path(html)))
    emit(as_json, {"runs": found}, *evidence.lines(found))


def _streams(redis_url: str | None, stream: str | None) -> tuple[str, ...]:
    """The stream whose ledger a server is asked for, as the settings say where none is given."""
    from ..settings.config import load

    return () if redis_url is None else (load({} if stream is None else {"stream": stream}).stream,)


# ---------------------------------------------------------------- what a person is shown

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
    from ..core.progress import entries_words

    rate, throttle = result.get("events_per_sec"), result.get("throttle")
    pace = None if rate is None else f"{rate:.2f} events/sec"
    if result.get("mode") != "live" and rate is None:  # how long the live run takes
        pace = "a live run goes as fast as the server"
        if throttle:
            sec = result["total_read"] / throttle
            pace = f"a live run takes {sec:,.1f} s at {throttle:g} events/sec"
    shown: dict[str, Any] = {
        **result,
        "mode": str(result.get("mode", "")).upper(),
        "elapsed_sec": f"{result.get('elapsed_sec', 0):.2f}s",
        "events_per_sec": pace,
    }
    left, own = result.get("remaining"), result.get("pending_own") or 0
    if left is not None and own and result.get("scope") == "undelivered":  # of two places
        shown["remaining"] = f"{left} ({entries_words('undelivered', left, own)})"
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
        value = shown.get(key)
        blocks.append(f"{name}: {'unknown' if value is None else value}")
    if result.get("evidence") and result.get("plan_path"):  # as seen from where the person is
        shown["plan_path"] = f"{result['evidence']}/{result['plan_path']}"
    blocks += [f"{name}: {shown[key]}" for name, key in MORE_LINES.items() if shown.get(key)]
    if result.get("mode") == "dry-run":
        good = result.get("drained_ok", 0)
        blocks.append(f"A live run acknowledges {good:,} good signals and executes none of them.")
    return [*blocks, *(f"Note: {note}" for note in result.get("notes") or ())]


def streams_report(found: Mapping[str, Any]) -> list[Block]:
    """A run of many streams: how each ended, and the sum of all."""
    head = ("Stream", "Outcome", "Exit", "Read", "Drained OK", "Remaining", "Evidence or reason")
    names = ("total_read", "drained_ok", "remaining")
    rows = [
        [run["stream"], run["outcome"], run["exit_code"],
         *("-" if run.get(name) is None else run[name] for name in names),
         one_line(str(run.get("error") or run.get("evidence") or ""))]
        for run in found["streams"]
    ]  # fmt: skip
    told = (
        f"{found['done']:,} of {len(found['streams']):,} streams done: {found['total_read']:,} "
        f"read, {found['drained_ok']:,} drained OK, {found['remaining']:,} remaining."
    )
    return [Table(head, rows), told]


def question_card(run: Run, plan: Plan, notes: list[str], *, waiting: int, own: int) -> Table:
    """What a live drain of this plan would do, and where.

    `waiting` entries are in the scope, `own` of them left by an earlier run of the consumer. A run
    with a plan applies just this one; otherwise it decides again, at each event's turn.
    """
    from ..core.progress import entries_words
    from ..core.summary import approvers_words
    from ..server.scopes import keeping, keeping_words

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
