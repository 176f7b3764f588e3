"""Commands between drains: check, stop, resume, consumers, trim, export, acl."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click import Option

from ..errors import DrainkitError, UsageError
from ..late import late
from ..safe import one_line
from . import AUDIT, GROUP, OPERATOR, SCOPE, WHERE, YES, Argument, command, connected, settings_of
from .terminal import Table, confirm, emit, signals, tell_error, wants_json

if TYPE_CHECKING:
    from ..core import values
    from ..operations import checks, events, maintenance
    from ..server import connection, keys, ledger, reading, scopes, writing
else:
    (values,) = late("drainkit.core", "values")
    checks, events, maintenance = late("drainkit.operations", "checks", "events", "maintenance")
    connection, keys, ledger, reading, scopes, writing = late(
        "drainkit.server", "connection", "keys", "ledger", "reading", "scopes", "writing"
    )

_FOR_SWITCH = frozenset({"redis_url", "stream", "operator"})


def _number(value: str) -> float:
    """Minutes or days; neither nan nor inf."""
    from ..settings.kinds import MAX_MIN

    with suppress(ValueError):
        if 0 <= (number := float(value)) <= MAX_MIN:
            return number
    raise click.BadParameter(f"{value} is not a number from 0 to {MAX_MIN:,}")


def _limit(name: str, default: int | None, text: str) -> Option:
    kind, metavar = (_number, "MIN") if name.endswith("-min") else (click.IntRange(min=0), "N")
    shown = text if default is None else f"{text} [{default}]"
    return Option([name], type=kind, default=default, metavar=metavar, help=shown)


@command(_limit("--max-backlog", 1000, "Entries undelivered, per group."),
         _limit("--max-age-min", 60, "Age of the oldest of them, minutes."),
         _limit("--max-pending", 1000, "Entries pending, per group."),
         _limit("--max-pending-age-min", 60, "Age of the oldest of them, minutes."),
         _limit("--max-lost", None, "Entries trimmed before a group read them. [0; given: unknown "
                "if not counted]"),
         Option(["--group", "groups"], multiple=True, metavar="NAME", help="Just this one. [each]"),
         Option(["--all-streams", "pattern"], metavar="PATTERN", help="Each stream that fits it."),
         AUDIT,
         Option(["--format", "form"], type=click.Choice(["text", "prometheus"]), default="text",
                help="Findings, or metrics. [text]"),
         *WHERE)  # fmt: skip
def check(groups: tuple[str, ...], pattern: str | None, form: str, **flags: Any) -> int:
    """Judge backlogs by limits, as monitoring systems do.

    Exit code 0 OK, 1 warning, 2 critical, 3 unknown. Critical above a limit, warning from 80 % of
    it on.

    \b
    Examples:
      drainkit check --max-backlog 1000 --max-age-min 60
      drainkit check --all-streams 'quantum:stream:*' --json
      drainkit check --format prometheus
    """
    audits = form == "prometheus"
    if wants_json() and audits:
        raise UsageError("--json and --format prometheus are two forms; choose one")
    limits = checks.Limits(**{name: flags.pop(name) for name in checks.Limits.__dataclass_fields__})
    settings = settings_of(flags)
    try:
        with connection.Server.of(settings, anywhere=pattern is not None) as server:
            report = checks.check(
                server, settings, limits, groups=groups, pattern=pattern, audits=audits
            )
    except DrainkitError as error:
        report = checks.Report(readable=False)
        report.add(settings.stream, None, ("unknown", str(error)))
        tell_error(error)
    if audits:
        click.echo(checks.exposition(report), nl=False)
    else:
        data = report.verdict() | {"streams": report.states}
        emit(data, *map(str, report.findings))
    return checks.SEVERITIES[report.severity]


@command(Option(["--reason"], required=True, metavar="TEXT", help="Why; kept with the switch."),
         OPERATOR, *WHERE)  # fmt: skip
def stop(reason: str, **flags: Any) -> None:
    """Set the kill switch: no drain of the stream goes on."""
    if not reason.strip():
        raise UsageError("--reason: say why; it is kept with the switch")
    kept: dict[str, Any] = {"may_evict": None}
    with connected(flags, only=_FOR_SWITCH) as (settings, server):
        # a drain of a misspelt stream would go on, and somebody would think that it does not
        reading.stream_info(server)
        operator, now_us, said = settings.operator, server.now_us(), "Stopped"
        is_set = writing.stop(server, reason=reason, operator=operator, now_us=now_us)
        if is_set:
            _note(server, ledger.Stopped(operator, values.iso(now_us), one_line(reason, 600)))
        else:
            if switch := reading.stop_switch(server):  # its first reason stays
                reason, operator = switch.reason, switch.operator
            said = f"It was stopped before ({switch})"
        with suppress(DrainkitError):
            kept = scopes.keeping(server)
    if warning := scopes.eviction_words(kept):
        tell_error(f"{warning}; drains go on if the switch is gone")
    data = {"stream": settings.stream, "stopped": True, "reason": reason, "operator": operator,
            "was_stopped": not is_set, "may_be_evicted": kept["may_evict"]}  # fmt: skip
    emit(data, f"{said}: no drain of {settings.stream} goes on. drainkit resume lifts it.")


@command(OPERATOR, *WHERE)
def resume(**flags: Any) -> None:
    """Lift the kill switch."""
    with connected(flags, only=_FOR_SWITCH) as (settings, server):
        operator = settings.operator
        if (lifted := writing.resume(server)) is not None:
            _note(server, ledger.Resumed(operator, values.iso(server.now_us()), lifted.reason))
    was = "It was not stopped." if lifted is None else f"Resumed: {lifted}."
    data = {"stream": settings.stream, "stopped": False, "was_stopped": lifted is not None,
            "operator": operator}  # fmt: skip
    emit(data, was.replace("is set", "was set", 1))


def _note(server: connection.Server, entry: ledger.Entry) -> None:
    """A broken ledger must not keep the kill switch from working: say so, and go on."""
    try:
        writing.add_to_ledger(server, entry)
    except DrainkitError as error:
        tell_error(f"it is done, but the ledger does not have it: {error}")


@command(Option(["--delete"], is_flag=True, help="Remove those that are safe to remove."),
         Option(["--min-idle-min"], metavar="MIN", help="Dead: idle at least, minutes. [60]"),
         YES, OPERATOR, *GROUP, *WHERE)  # fmt: skip
def consumers(delete: bool, yes: bool, **flags: Any) -> None:
    """List dead consumers; --delete removes those without pending."""
    removed: list[str] = []
    with connected(flags) as (settings, server):
        group, idle_min = settings.consumer_group, settings.min_idle_min
        min_idle_ms = round(idle_min * 60_000)
        dead = maintenance.dead_consumers(server, group, min_idle_ms=min_idle_ms)
        removable = [c["name"] for c in dead if not c["why_kept"]]
        if delete and removable:
            confirm(f"Remove {len(removable):,} of {len(dead):,} dead consumers?", yes)
            with signals() as stopping:
                removed, stayed = maintenance.remove_consumers(
                    server, group, removable, min_idle_ms=min_idle_ms, operator=settings.operator,
                    stopping=stopping,
                )  # fmt: skip
            dead = [c | {"why_kept": stayed.get(c["name"], c["why_kept"])} for c in dead]
    data = {"stream": settings.stream, "consumer_group": group, "min_idle_min": idle_min,
            "dead": dead, "removed": removed}  # fmt: skip
    otherwise = "removed" if delete else "can be removed"
    rows = [(c["name"], f"{c['idle_ms'] / 60_000:,.0f}", c["pending"],
             f"stays: {c['why_kept']}" if c["why_kept"] else otherwise)
            for c in dead]  # fmt: skip
    found = (f"{len(dead):,} consumers of {group} have been idle at least {idle_min:g} min; "
             f"{len(removable):,} can be removed.")  # fmt: skip
    table = Table(("Consumer", "Idle, min", "Pending", ""), rows)
    emit(data, found, *([f"Removed: {len(removed):,}."] if delete else []), table)


@command(Option(["--apply"], is_flag=True, help="Remove what is shown."),
         Option(["--keep-days"], type=_number, metavar="N",
                help="Keep whatever is younger, days."),
         Option(["--archive"], metavar="FILE", help="Write it to this .parquet file first."),
         Option(["--without-groups"], is_flag=True,
                help="Trim although no group says what is needed."),
         YES, OPERATOR, *WHERE)  # fmt: skip
def trim(apply: bool, keep_days: float | None, archive: str | None, without_groups: bool, yes: bool,
         **flags: Any) -> None:  # fmt: skip
    """Show what no group needs any more; --apply removes it.

    \b
    Examples:
      drainkit trim --keep-days 30
      drainkit trim --apply --yes --keep-days 30 --archive old.parquet --operator alice
    """
    path, removed = None if archive is None else Path(archive), 0
    if path is not None:
        if not apply:
            raise UsageError("--archive writes what --apply removes; say --apply as well")
        maintenance.check_archive(path)
    with connected(flags) as (settings, server):
        plan = maintenance.trim_plan(server, without_groups=without_groups, keep_days=keep_days)
        if apply and plan.entries:
            confirm(f"Remove {plan.entries:,} of {plan.length:,} entries?", yes)
            with signals() as stopping:
                removed = maintenance.trim(
                    server, plan, archive=path, without_groups=without_groups,
                    operator=settings.operator, stopping=stopping,
                )  # fmt: skip
    archive = archive if removed else None  # nothing to remove, nothing written
    lines = [f"{settings.stream}: {plan.entries:,} of {plan.length:,} entries lie before "
             f"{plan.floor} and are needed by none of its {plan.groups:,} groups."]  # fmt: skip
    lines += [f"  held back by {name}: {why}" for name, why in plan.held_by.items()]
    if keep_days is not None:
        lines.append(f"  what is younger than {keep_days:g} days stays")
    if apply:
        lines.append(f"Removed: {removed:,}." + (f" Archive: {archive}" if archive else ""))
    emit({"stream": settings.stream, **vars(plan), "removed": removed, "archive": archive}, *lines)


@command(Argument(["target"], metavar="FILE|DIR/"), *SCOPE, *GROUP, *WHERE)
def export(target: str, **flags: Any) -> None:
    """The backlog of a scope as a file, or a dataset by day.

    FILE ends in .parquet or .csv. DIR/ (with the slash) becomes a Parquet dataset
    date=YYYY-MM-DD/part-N.parquet by the UTC day of the entry's id.

    \b
    Examples:
      drainkit export backlog.parquet
      drainkit export backlog/ --scope history
    """
    with connected(flags) as (settings, server):
        n, scope = events.export(server, settings, target), settings.scope
    data = {"stream": settings.stream, "scope": scope, "entries": n, "file": target}
    emit(data, f"{n:,} entries ({scope}) in {target}")


@command(AUDIT, Option(["--allowlist"], metavar="redis:KEY", help="Also let all read this set."),
         *WHERE)  # fmt: skip
def acl(**flags: Any) -> None:
    """Least-privilege ACL rules, by role.

    An analyst only reads. A drainer drains what is undelivered or pending, a historian also the
    history (only he may make and end a group). A janitor may `consumers --delete` and
    `trim --apply`.
    """
    if flags["allowlist"] and not flags["allowlist"].startswith("redis:"):
        raise UsageError("--allowlist takes redis:KEY here: what is to be read is a set there")
    with connected(flags) as (settings, server):
        key = settings.symbols if isinstance(settings.symbols, bytes) else None
        found = keys.rules(server.keys, server.info, allowlist_key=key)
    for warning in keys.NOT_FORBIDDEN:
        tell_error(warning)
    emit(found, *(f"ACL SETUSER {role} on '>password' {shlex.join(of_role)}"
                  for role, of_role in found.items()))  # fmt: skip
