"""Commands that drain, or say what a drain would do."""

from __future__ import annotations

import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click import Option

from .. import signing
from ..errors import InterruptedRunError, UsageError
from ..late import late
from ..safe import address, one_line
from . import DRAIN, GROUP, POLICY, WHERE, command, connected, setting, settings_of, terminal
from .terminal import Block, Progress, Table, confirm, emit, signals, tell, tell_error

if TYPE_CHECKING:
    from ..core import fields as field_rules
    from ..core import plan as plans
    from ..core import summary as books
    from ..draining import dry, live, plan_files
    from ..draining import run as runs
    from ..operations import checks, events, state
    from ..pipeline import folder, kernels, notebooks, runner
    from ..server import connection, scopes
    from ..settings import Settings
else:
    field_rules, books = late("drainkit.core", "fields", "summary")
    dry, live, runs = late("drainkit.draining", "dry", "live", "run")
    checks, events, state = late("drainkit.operations", "checks", "events", "state")
    folder, kernels, notebooks, runner = late(
        "drainkit.pipeline", "folder", "kernels", "notebooks", "runner"
    )
    connection, scopes = late("drainkit.server", "connection", "scopes")


@command(Option(["-v", "--all", "is_all"], is_flag=True, help="All groups, and newest entries."),
         Option(["--watch", "watch_sec"], type=click.IntRange(1, 86_400), metavar="SEC",
                help="Again each SEC seconds, until interrupted."),
         *POLICY, *GROUP, *WHERE)  # fmt: skip
def status(is_all: bool, watch_sec: int | None, **flags: Any) -> None:
    """How it stands, what would pass, what to do next.

    \b
    Examples:
      drainkit status --allowlist BTCUSDT,ETHUSDT
      drainkit status --watch 5
    """
    with connected(flags) as (settings, server):
        while True:
            found = checks.first_screen(server, settings)
            lines = checks.as_lines(found, settings)
            if sys.stdout.isatty():  # 15 rows, however long the names are; these may have two each
                two = ("CRITICAL", "WARNING", "UNKNOWN", "Running", "Would pass")
                width = shutil.get_terminal_size().columns
                rows = (textwrap.wrap(line, width, max_lines=1 + line.startswith(two),
                                      placeholder=" ...") for line in lines)  # fmt: skip
                lines = [part for row in rows for part in row]
            if watch_sec and not terminal.wants_json():
                click.clear()  # in place; nothing happens where there is no terminal
            emit(found, *lines)
            if not terminal.wants_json():
                step, why = checks.next_command(found, settings)
                # as it is: a command that is broken into lines cannot be pasted
                click.echo(f"Next ({why}): drainkit {step}{_as_given(step, flags)}")
                if is_all:
                    tell("", *state.as_text(found), *(d["line"] for d in found["running_drains"]))
            sys.stdout.flush()
            if watch_sec is None or getattr(sys.stdout.buffer, "lost", None):
                return  # nobody sees it any more
            time.sleep(watch_sec)


def _as_given(command: str, flags: dict[str, Any]) -> str:
    """The options that were given to `status`, for the command that it names; no password."""
    is_same = command.startswith(("run", "status"))
    names = [n for n in flags if is_same or n in ("redis_url", "stream", "env")]
    given = {f"--{name.replace('_', '-')}": str(flags[name]) for name in names if flags[name]}
    if address(url := given.get("--redis-url", "")) != url:
        del given["--redis-url"]  # a login, or options, that are not to be shown
    words = (f"{option} {shlex.quote(one_line(value, 4096))}"
             for option, value in given.items() if option not in command)  # fmt: skip
    return " ".join(["", *words])


@command(*GROUP, *WHERE)
def fields(**flags: Any) -> None:
    """Which fields events have, and a [fields] block that was tried.

    It looks at up to 500 entries, spread over all that is undelivered, and says which fields are
    chosen. The lines for drainkit.toml are tried on them by the decoder that a drain uses; lines
    that mend nothing are left out.
    """
    with connected(flags) as (settings, server):
        found = field_rules.examine(events.sample(server, settings), settings.fields)
    emit({"stream": settings.stream, **found}, *terminal.fields_blocks(found))


@command(*DRAIN, *WHERE)
def drain(yes: bool, **flags: Any) -> int:
    """Dry run or live drain of the backlog, without notebooks.

    \b
    Examples:
      drainkit drain --mode dry-run --allowlist "BTCUSDT,ETHUSDT" --max-events 20
      drainkit drain --mode live --yes --min-conf 0.60 --max-age-min 30 --throttle 5
      drainkit drain --mode dry-run --plan plan.json && \\
      drainkit drain --mode live --yes --plan plan.json
    """
    settings = settings_of(flags)
    if settings.mode == "live" and not (yes or sys.stdin.isatty()):
        confirm("", yes)
    with runs.opened(settings) as run, closing(Progress()) as progress:
        if settings.mode == "live":
            seen = dry.check_run(run) if yes else None
            if not yes:
                runs.check(run)  # what would be refused is refused before a long look
                if run.planned:
                    plan, notes = run.planned.plan, run.planned.notes()
                else:
                    found, plan = dry.plan_run(run.rehearsal(), None)
                    notes = found.notes or []
                dry.check_readable(run.settings, plan.total_read, plan.unreadable)
                _question(run, plan, notes, yes=False)
            with signals() as stopping:
                summary = live.apply(run, seen, stopping=stopping, on_progress=progress.show)
        elif settings.plan is None:
            summary = dry.dry_run(run, on_progress=progress.show)
        else:
            summary, _ = dry.plan_run(run, settings.plan, on_progress=progress.show)
    if summary.error:
        tell_error(summary.error)
    result = summary.as_dict()
    emit(result, *terminal.report(result))
    return summary.exit_code or 0


def _question(run: runs.Run, plan: plans.Plan, notes: list[str], *, yes: bool) -> None:
    """Show what a live drain of this plan would do, and where; then ask.

    A run with a plan applies just this one; otherwise it decides again, at each event's turn.
    """
    server, wanted, left = run.server, run.settings.approval, scopes.left(run.server, run.scope)
    no_plan = "none: decided again at each event's turn (--plan binds a drain to a dry run)"
    rows = [
        ("Server", f"{server.info.kind} {server.info.version} at {server.shown_url}"),
        ("Keeps", "; ".join(scopes.keeping_words(scopes.keeping(server)))),
        *terminal.plan_rows(plan, books.entries_words(plan.scope, left.fresh, left.own)),
        *(("Note", note) for note in notes),
        ("Digest", plan.digest if run.planned else no_plan),
        ("Approved by", books.approvers_words(run.approvers, wanted.required) if wanted else ""),
    ]
    tell(Table((), [row for row in rows if row[1]], "Live drain"), err=True)
    confirm(
        f"{plan.counts['drained_ok']:,} good signals will be acknowledged and not executed. "
        f"Acknowledge and audit {plan.total_read:,} of {left.fresh:,} entries?", yes,
    )  # fmt: skip


@command(*DRAIN, *setting("reports_dir", "notebooks_dir"),
         Option(["--all-streams", "pattern"], metavar="PATTERN",
                help="Each stream whose name fits and that has the group, one run each."),
         Option(["--dask", "cluster"], metavar="ADDRESS|local",
                help="With --all-streams: as tasks of this Dask cluster."),
         Option(["--if-backlog-over"], type=click.IntRange(min=0), metavar="N",
                 help="Scheduled: only if the scope holds more than N entries."),
         Option(["--sign-key"], metavar="FILE", type=Path,
                help="Sign the statement with this SSH key."),
         Option(["--close", "closed"], metavar="RUN_DIR", type=Path,
                 help="Complete and seal the folder that a killed run left; drains nothing. "
                 "With the run's --reports-dir URL it is copied there."),
         *WHERE)  # fmt: skip
def run(yes: bool, if_backlog_over: int | None, sign_key: Path | None, closed: Path | None,
        pattern: str | None, cluster: str | None, **flags: Any) -> int:  # fmt: skip
    """Dry run or live drain by notebooks, with sealed evidence.

    \b
    Examples:
      drainkit run --allowlist "BTCUSDT,ETHUSDT"
      drainkit run --mode live --throttle 5 --max-events 500
      drainkit run --mode live --yes --plan reports/20260101T000000Z-dry-run-abc123
      drainkit run --mode live --yes --if-backlog-over 1000 --env production
      drainkit run --mode live --yes --all-streams 'quantum:stream:*' --dask local
      drainkit run --reports-dir s3://bucket/reports
    """
    settings = settings_of(flags)
    if sign_key is not None:  # one that cannot is refused before the drain
        signing.sign(b"", sign_key, signing.OF_STATEMENT)
    if closed is not None:
        result = folder.close(settings, closed, sign_key=sign_key)
        code = tell_run(result)
        # done when the folder is sealed now, whatever the run's own outcome was
        is_sealed = "://" in result["evidence"] or (closed / "statement.json").exists()
        return 0 if is_sealed else code
    notebooks.check_installed()
    if settings.mode == "live" and not (yes or sys.stdin.isatty()):
        confirm("", yes)
    if pattern is not None:
        alone = {"--plan": settings.plan, "--audit-stream": settings.audit_stream,
                 "--if-backlog-over": if_backlog_over}  # fmt: skip
        if wrong := [flag for flag, given in alone.items() if given is not None]:
            raise UsageError(f"{wrong[0]} belongs to one stream; leave out --all-streams")
        return _run_many(settings, pattern, cluster, sign_key=sign_key, yes=yes)
    if cluster is not None:
        raise UsageError("--dask runs many streams; say which with --all-streams PATTERN")
    if if_backlog_over is not None and (why := dry.nothing_to_do(settings, if_backlog_over)):
        emit({"skipped": why}, why)
        return 0
    return tell_run(run_notebooks(settings, yes=yes, sign_key=sign_key))


def tell_run(result: dict[str, Any]) -> int:
    """Print a run's result; its exit code."""
    page = f"{result['evidence']}/report.html"
    is_there = "://" in page or Path(page).exists()
    if result.get("error"):
        tell_error(result["error"])
    emit(result, *terminal.report(result), *([f"Report: {page}"] if is_there else []))
    return int(result.get("exit_code") or 0)


def run_notebooks(
    settings: Settings, *, yes: bool, sign_key: Path | None = None,
    kernels: kernels.Kernels | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One stream's run; its run.json."""

    def on_line(line: str) -> None:
        if line.startswith("running "):
            progress.close()
            tell(line, err=True)
        progress.show(line)

    def approve(run: runs.Run, planned: plan_files.PlanFile) -> None:
        """Refuses a plan that the limits hold back, or a person."""
        plan = planned.plan
        if yes:
            dry.check_planned(run.server, run.settings, planned)
        else:
            dry.check_readable(run.settings, plan.total_read, plan.unreadable)
        try:  # a signal, or the end of the input, ends the question at once
            with signals(terminal.interrupt):
                _question(replace(run, planned=planned), plan, planned.notes(), yes=yes)
        except (click.Abort, KeyboardInterrupt):
            raise InterruptedRunError("interrupted at the question; nothing was drained") from None

    with signals() as stopping, closing(Progress()) as progress:
        return runner.run(
            settings, confirm=approve, on_line=on_line, stopping=stopping, sign_key=sign_key,
            kernels=kernels,
        )  # fmt: skip


def _run_many(
    settings: Settings, pattern: str, cluster: str | None, *, sign_key: Path | None, yes: bool
) -> int:
    """Run each stream of the pattern, print all together; the worst exit code."""
    if cluster is not None:
        if sign_key is not None:
            raise UsageError("--sign-key: the key is not where Dask runs; leave out --dask")
        if settings.mode == "live":
            confirm(f"Drain every stream of {pattern} without being asked again?", yes)
    with connection.Server.of(settings, anywhere=True) as server:
        streams, ended = runner.streams_of(server, settings, pattern)
    with signals() as stopping, ExitStack() as stack:
        if cluster is None:
            one: Callable[[Settings], dict[str, Any]] = partial(
                run_notebooks, yes=yes, sign_key=sign_key,
                kernels=stack.enter_context(kernels.Kernels()),
            )  # fmt: skip
            outcomes = runner.run_in_turn(settings, streams, one, stopping=stopping)
        else:
            outcomes = runner.run_with_dask(settings, streams, cluster, stopping=stopping)
        for n, outcome in enumerate(outcomes, 1):
            ended.append(outcome)
            why = f": {outcome['error']}" if outcome["error"] else ""
            left = f"{len(streams) - n:,} to go"
            tell(f"{outcome['stream']}: {outcome['outcome']}, {left}{why}", err=True)
    found = runner.summary(pattern, settings, ended)
    emit(found, *streams_report(found))
    return int(found["exit_code"])


def streams_report(found: Mapping[str, Any]) -> list[Block]:
    """A run of many streams: how each ended, and the sum of all."""
    head = ("Stream", "Outcome", "Exit", "Read", "Drained OK", "Remaining", "Evidence or reason")
    numbers = ("total_read", "drained_ok", "remaining")
    rows = [
        [run["stream"], run["outcome"], run["exit_code"],
         *("-" if run.get(name) is None else run[name] for name in numbers),
         one_line(str(run.get("error") or run.get("evidence") or ""))]
        for run in found["streams"]
    ]  # fmt: skip
    told = (
        f"{found['done']:,} of {len(found['streams']):,} streams done: {found['total_read']:,} "
        f"read, {found['drained_ok']:,} drained OK, {found['remaining']:,} remaining."
    )
    return [Table(head, rows), told]
