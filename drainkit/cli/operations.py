"""Commands between drains: check, consumers, trim, export, restore, acl."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from ..errors import DrainkitError, UsageError
from ..safe import one_line
from .options import GROUP, JSON, OPERATOR, SCOPE, WHERE, option, settings_of, stack
from .program import program
from .terminal import Table, confirm, connected, emit, stop_signals


class _Monitoring(click.Command):
    """A command by the monitoring convention: whatever goes wrong is 3, unknown."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _unknown():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _unknown():
            return super().invoke(ctx)


class _UnknownStateError(DrainkitError):
    exit_code = 3


@contextmanager
def _unknown() -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        raise _UnknownStateError(one_line(error.format_message()) + "; see --help") from error
    except DrainkitError as error:
        raise _UnknownStateError(str(error)) from error


class _Number(click.FloatRange):
    """Minutes or days, of which nan and inf are none."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        from ..settings.kinds import MAX_MIN

        number = float(super().convert(value, param, ctx))
        if not number <= MAX_MIN:
            self.fail(f"{value} is not a number up to {MAX_MIN:,}", param, ctx)
        return number


def _limit(name: str, default: int | None, text: str, *, minutes: bool = False) -> Any:
    kind: Any = _Number(min=0) if minutes else click.IntRange(min=0)
    shown = "" if default is None else f" [{default}]"
    return option(name, type=kind, default=default, metavar="MIN" if minutes else "N",
                   help=text + shown)  # fmt: skip


CHECK: list[Any] = [
    _limit("--max-backlog", 1000, "Entries undelivered, per group."),
    _limit("--max-age-min", 60, "Age of the oldest of them, minutes.", minutes=True),
    _limit("--max-pending", 1000, "Entries pending, per group."),
    _limit("--max-pending-age-min", 60, "Age of the oldest of them, minutes.", minutes=True),
    option("--max-lost", type=click.IntRange(min=0), metavar="N",
           help="Entries trimmed before a group read them. [0; given: unknown if not counted]"),
    _limit("--max-dead", None, "Dead consumers, per group. [not judged]"),
    _limit("--dead-after-min", 60, "Dead: idle at least, minutes.", minutes=True),
    _limit("--max-audit", None, "Entries of the audit stream. [not judged]"),
    option("--group", "groups", multiple=True, metavar="NAME", help="Only this group. [each]"),
    option("--all-streams", "pattern", metavar="PATTERN", help="Each stream whose name fits."),
    option("--audit-stream", metavar="KEY", help="[<stream>.drain_audit]"),
    click.option("--format", "form", type=click.Choice(["text", "prometheus"]), default="text",
                 help="Findings, or metrics. [text]"),
    option("--textfile", metavar="FILE", help="Write metrics here, for node_exporter."),
]  # fmt: skip


@program.command(cls=_Monitoring)
@stack([*CHECK, *WHERE, JSON])
def check(env_name: str | None, as_json: bool, **flags: Any) -> int:
    """Judge backlogs: exit code 0 OK, 1 warning, 2 critical, 3 unknown.

    Critical above a limit, warning from 80 % of it on.

    \b
    Examples:
      drainkit check --max-backlog 1000 --max-age-min 60
      drainkit check --all-streams 'quantum:stream:*' --json
      drainkit check --textfile /var/lib/node_exporter/drainkit.prom
    """
    from pathlib import Path

    from .. import files
    from ..operations import checks, metrics

    options = {name: flags.pop(name) for name in ("groups", "pattern", "form", "textfile")}
    if as_json and options["form"] == "prometheus":
        raise UsageError("--json and --format prometheus are two forms; choose one")
    must_know_lost = flags["max_lost"] is not None
    given = {name: flags.pop(name) for name in checks.Limits.__dataclass_fields__ if name in flags}
    given["max_lost"] = given["max_lost"] or 0
    limits = checks.Limits(**given, must_know_lost=must_know_lost)
    settings = settings_of(flags, env_name)
    audits = options["form"] == "prometheus" or options["textfile"]
    try:
        with connected(settings, anywhere=options["pattern"] is not None) as server:
            report = checks.check(
                server, settings, limits, groups=options["groups"], pattern=options["pattern"],
                audits=bool(audits),
            )  # fmt: skip
    except DrainkitError as error:
        report = checks.unreadable(settings.stream, error)
        click.echo(f"drainkit: {one_line(str(error), 600)}", err=True)
    if options["textfile"]:
        files.write_bytes(Path(options["textfile"]), metrics.exposition(report))
    elif options["form"] == "prometheus":
        click.echo(metrics.exposition(report), nl=False)
        return report.exit_code
    emit(as_json, report.as_dict(), "\n".join(f.line() for f in report.findings))
    return report.exit_code


@program.command()
@stack([click.option("--delete", is_flag=True, help="Remove those that are safe to remove."),
         option("--min-idle-min", metavar="MIN", help="Dead: idle at least, minutes. [60]"),
         click.option("--yes", is_flag=True, help="Do not ask."),
         OPERATOR, *GROUP, *WHERE, JSON])  # fmt: skip
def consumers(delete: bool, yes: bool, env_name: str | None, as_json: bool, **flags: Any) -> None:
    """List dead consumers; --delete removes those that have nothing pending."""
    from ..operations import maintenance

    settings = settings_of(flags, env_name)
    group, idle_ms = settings.consumer_group, round(settings.min_idle_min * 60_000)
    with connected(settings) as server:
        dead = maintenance.dead_consumers(server, group, min_idle_ms=idle_ms)
        removable = [c.name for c in dead if not c.why_kept]
        kept = {c.name: c.why_kept for c in dead if c.why_kept}
        removed: list[str] = []
        if delete and removable:
            confirm(f"Remove {len(removable):,} of {len(dead):,} dead consumers?", yes)
            with stop_signals() as stopping:
                removed, stayed = maintenance.remove_consumers(
                    server, group, removable, min_idle_ms=idle_ms, operator=settings.operator,
                    stopping=stopping,
                )  # fmt: skip
            kept |= stayed
    data = {
        "stream": settings.stream, "consumer_group": group, "min_idle_min": settings.min_idle_min,
        "dead": [vars(c) for c in dead], "removable": removable, "removed": removed, "kept": kept,
    }  # fmt: skip
    lines = [
        f"{len(dead):,} consumers of {one_line(group)} have been idle at least "
        f"{settings.min_idle_min:g} min; {len(removable):,} of them can be removed."
    ]
    if delete:
        lines.append(f"Removed: {len(removed):,}.")
    rows = [(one_line(c.name), f"{c.idle_ms / 60_000:,.0f}", c.pending,
             f"stays: {kept[c.name]}" if c.name in kept else
             "removed" if delete else "can be removed")
            for c in dead]  # fmt: skip
    head = ("Consumer", "Idle, min", "Pending", "")
    emit(as_json, data, *lines, *([Table(head, rows)] if rows else []))


@program.command()
@stack([click.option("--apply", is_flag=True, help="Remove what is shown."),
         option("--keep-days", type=_Number(min=0), metavar="N",
                help="Keep whatever is younger, days."),
         option("--archive", metavar="FILE", help="Write it to this .parquet file first."),
         click.option("--without-groups", is_flag=True,
                      help="Trim although no group says what is needed."),
         click.option("--yes", is_flag=True, help="Do not ask."),
         OPERATOR, *WHERE, JSON])  # fmt: skip
def trim(apply: bool, keep_days: float | None, archive: str | None, without_groups: bool, yes: bool,
         env_name: str | None, as_json: bool, **flags: Any) -> None:  # fmt: skip
    """Show what no group needs any more; --apply removes it from the stream.

    \b
    Examples:
      drainkit trim --keep-days 30
      drainkit trim --apply --yes --keep-days 30 --archive old.parquet --operator alice
    """
    from pathlib import Path

    from ..operations import maintenance

    settings = settings_of(flags, env_name)
    path = Path(archive) if archive else None
    if path is not None:
        if not apply:
            raise UsageError("--archive writes what --apply removes; say --apply as well")
        maintenance.check_archive(path)
    with connected(settings) as server:
        plan = maintenance.trim_plan(server, without_groups=without_groups, keep_days=keep_days)
        removed = 0
        if apply and plan.entries:
            confirm(f"Remove {plan.entries:,} of {plan.length:,} entries?", yes)
            with stop_signals() as stopping:
                removed = maintenance.trim(
                    server, plan, archive=path, without_groups=without_groups,
                    operator=settings.operator, stopping=stopping,
                )  # fmt: skip
    archive = archive if removed else None  # nothing to remove, nothing written
    data = {"stream": settings.stream, **vars(plan), "removed": removed, "archive": archive}
    lines = [f"{one_line(settings.stream)}: {plan.entries:,} of {plan.length:,} entries lie before "
             f"{plan.floor} and are needed by none of its {plan.groups:,} groups."]  # fmt: skip
    lines += [f"  held back by {one_line(name)}: {why}" for name, why in plan.held_by.items()]
    if plan.age_floor is not None:
        lines.append(f"  floor by age ({keep_days:g} days) {plan.age_floor}, floor by group "
                     f"{plan.group_floor}: the {plan.bound} holds")  # fmt: skip
    if apply:
        lines.append(
            f"Removed: {removed:,}." + (f" Archive: {one_line(archive)}" if archive else "")
        )
    emit(as_json, data, "\n".join(lines))


@program.command()
@click.argument("target", metavar="FILE|DIR/")
@stack([*SCOPE, *GROUP, *WHERE, JSON])
def export(target: str, env_name: str | None, as_json: bool, **flags: Any) -> None:
    """The backlog of a scope as a file, or as a dataset by day; reads only.

    FILE ends in .parquet or .csv. DIR/ (with the slash) becomes a Parquet dataset
    date=YYYY-MM-DD/part-N.parquet by the UTC day of the entry's id.

    \b
    Examples:
      drainkit export backlog.parquet
      drainkit export backlog/ --scope history
    """
    from ..operations.export import export

    settings = settings_of(flags, env_name)
    with connected(settings) as server:
        n = export(server, settings, target)
    data = {"stream": settings.stream, "scope": settings.scope, "entries": n, "file": target}
    emit(as_json, data, f"{n:,} entries ({settings.scope}) in {one_line(target)}")


@program.command()
@click.argument("file")
@stack([click.option("--yes", is_flag=True, help="Do not ask."), *WHERE, JSON])
def restore(file: str, yes: bool, env_name: str | None, as_json: bool, **flags: Any) -> None:
    """Put an archive of trim into a new stream, named by --stream."""
    from pathlib import Path

    from ..operations import maintenance

    if not flags.get("stream"):
        raise UsageError("name the new stream with --stream")
    settings = settings_of(flags, env_name)
    with connected(settings) as server:
        confirm(f"Write {one_line(file)} to the new stream {one_line(settings.stream)}?", yes)
        n = maintenance.restore(server, settings.stream, Path(file))
    data = {"stream": settings.stream, "entries": n, "file": file}
    emit(as_json, data, f"{n:,} entries in the new stream {one_line(settings.stream)}")


@program.command()
@stack([option("--audit-stream", metavar="KEY", help="[<stream>.drain_audit]"),
         option("--allowlist", metavar="redis:KEY", help="Also let all read this set."),
         *WHERE, JSON])  # fmt: skip
def acl(env_name: str | None, as_json: bool, **flags: Any) -> None:
    """Least-privilege ACL rules by role: analyst, drainer, historian, janitor.

    An analyst only reads. A drainer drains what is undelivered or pending, a historian also the
    history (only he may make and end a group). A janitor may `consumers --delete` and
    `trim --apply`.
    """
    from ..server.acl import NOT_FORBIDDEN, rules
    from ..settings.kinds import allowlist_symbols

    settings = settings_of(flags, env_name)
    allowed = allowlist_symbols(settings.allowlist) if settings.allowlist else None
    if flags["allowlist"] and not isinstance(allowed, bytes):
        raise UsageError("--allowlist takes redis:KEY here: what is to be read is a set there")
    with connected(settings) as server:
        found = rules(
            server.keys,
            server.info,
            allowlist_key=allowed if isinstance(allowed, bytes) else None,
        )
    for warning in NOT_FORBIDDEN:
        click.echo(f"drainkit: {warning}", err=True)
    lines = [
        f"ACL SETUSER {role} on '>password' {' '.join(map(_quoted, found[role]))}" for role in found
    ]
    emit(as_json, found, "\n".join(lines))


def _quoted(rule: str) -> str:
    return (
        rule
        if rule.isascii() and rule.isprintable() and not set(rule) & set(" '\"\\")
        else (json.dumps(rule, ensure_ascii=True))
    )
