"""Commands that drain, or say what a drain would do."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InterruptedRunError, UsageError
from ..safe import one_line
from . import program, terminal
from .program import DRAIN, GROUP, POLICY, WHERE, command, option, setting, settings_of
from .terminal import Block, Moving, Table, confirm, connected, emit, stop_signals, tell, tell_error

if TYPE_CHECKING:
    import threading

    from ..core.plan import Plan
    from ..core.summary import Summary
    from ..draining.plan_files import PlanFile
    from ..draining.run import Run
    from ..pipeline.kernels import Kernels
    from ..settings import Settings


@command(option("-v", "--all", "is_all", is_flag=True, help="All groups, and newest entries."),
         option("--watch", "watch_sec", type=click.IntRange(1, 86_400), metavar="SEC",
                help="Again each SEC seconds, until interrupted."),
         *POLICY, *GROUP, *WHERE)  # fmt: skip
def status(is_all: bool, watch_sec: int | None, **flags: Any) -> None:
    """How it stands, what would pass, what to do next.

    \b
    Examples:
      drainkit status --allowlist BTCUSDT,ETHUSDT
      drainkit status --watch 5
    """
    from ..operations.first import as_lines, first_screen, next_command
    from ..operations.state import as_text

    settings = settings_of(flags)
    with connected(settings) as server:
        while True:
            found, odd = first_screen(server, settings)
            lines = as_lines(found, settings)
            if sys.stdout.isatty():  # 14 rows, however long the names are; these may have two each
                two = ("CRITICAL", "WARNING", "UNKNOWN", "Running", "Would pass")
                width = shutil.get_terminal_size().columns
                rows = (textwrap.wrap(line, width, max_lines=1 + line.startswith(two),
                                      placeholder=" ...") for line in lines)  # fmt: skip
                lines = [part for row in rows for part in row]
            if watch_sec and not terminal.wants_json():
                click.clear()  # in place; nothing happens where there is no terminal
            emit(found, *lines)
            if not terminal.wants_json():
                step, why = next_command(found, settings)
                # as it is: a command that is broken into lines cannot be pasted
                click.echo(f"Next ({why}): drainkit {step}{program.as_given(step, flags)}")
                if is_all:
                    drains = [drain["line"] for drain in found["running_drains"]]
                    tell(
                        "",
                        *as_text(found),
                        *drains,
                        *(["", *terminal.fields_blocks(odd)] if odd else []),
                    )
            if watch_sec is None:
                return
            sys.stdout.flush()
            time.sleep(watch_sec)


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
    from ..draining.dry import dry_run, plan_run
    from ..draining.run import opened

    settings = _answerable(settings_of(flags), yes)
    with opened(settings) as run, closing(Moving()) as moving:
        if run.planned is None and (until := run.settings.until) != settings.until:
            tell(f"drainkit: up to {until}, by the server's clock", err=True)
        if settings.mode == "live":
            summary = _drain_live(run, moving, yes=yes)
        elif settings.plan is None:
            summary = dry_run(run, on_progress=moving.tick)
        else:
            summary, _ = plan_run(run, settings.plan, on_progress=moving.tick)
    tell_error(summary.error)
    emit(summary.as_dict(), *terminal.report(summary.as_dict()))
    return summary.exit_code or 0


def _answerable(settings: Settings, yes: bool) -> Settings:
    """The settings, if somebody can be asked where they need an answer."""
    if settings.mode == "live" and not sys.stdin.isatty():
        confirm("", yes)
    return settings


def _drain_live(run: Run, moving: Moving, *, yes: bool) -> Summary:
    from ..draining import unattended
    from ..draining.dry import plan_run
    from ..draining.live import apply
    from ..draining.run import check

    seen = unattended.check_run(run) if yes else None
    if not yes:
        check(run)  # what would be refused is refused before a long look
        if run.planned:
            plan, notes = run.planned.plan, run.planned.notes()
        else:
            dry, plan = plan_run(run.rehearsal(), None)
            notes = dry.notes or []
        unattended.check_readable(run.settings, plan.total_read, plan.unreadable)
        _question(run, plan, notes, yes=False)
    with stop_signals() as stopping:
        return apply(run, seen, stopping=stopping, on_progress=moving.tick)


def _question(run: Run, plan: Plan, notes: list[str], *, yes: bool) -> None:
    """The card, and the question after it."""
    from ..server import scopes

    left = scopes.left(run.server, run.scope)
    tell(terminal.question_card(run, plan, notes, waiting=left.fresh, own=left.own), err=True)
    confirm(
        f"{plan.counts['drained_ok']:,} good signals will be acknowledged and not executed. "
        f"Acknowledge and audit {plan.total_read:,} of {left.fresh:,} entries?", yes,
    )  # fmt: skip


@command(*DRAIN, *setting("reports_dir", "notebooks_dir"),
         option("--all-streams", "pattern", metavar="PATTERN",
                help="Each stream whose name fits and that has the group, one run each."),
         option("--dask", "address", metavar="ADDRESS|local",
                help="With --all-streams: as tasks of this Dask cluster."),
         option("--if-backlog-over", type=click.IntRange(min=0), metavar="N",
                 help="Scheduled: only if the scope holds more than N entries."),
         option("--sign-key", metavar="FILE", help="Sign the statement with this SSH key."),
         option("--close", "closed", metavar="RUN_DIR",
                 help="Complete and seal the folder that a killed run left; drains nothing. "
                 "With the run's --reports-dir URL it is copied there."),
         *WHERE)  # fmt: skip
def run(yes: bool, if_backlog_over: int | None, sign_key: str | None, closed: str | None,
        pattern: str | None, address: str | None, **flags: Any) -> int:  # fmt: skip
    """Dry run or live drain through the notebooks, with sealed evidence.

    \b
    Examples:
      drainkit run --allowlist "BTCUSDT,ETHUSDT"
      drainkit run --mode live --throttle 5 --max-events 500
      drainkit run --mode live --yes --plan reports/20260101T000000Z-dry-run-abc123
      drainkit run --mode live --yes --if-backlog-over 1000 --env production
      drainkit run --mode live --yes --all-streams 'quantum:stream:*' --dask local
      drainkit run --reports-dir s3://bucket/reports
    """
    from ..draining import unattended
    from ..pipeline.notebooks import check_installed

    settings = settings_of(flags)
    if closed is not None:
        from ..pipeline.folder import close

        result = close(settings, Path(closed), sign_key=_sign_key(sign_key))
        code = _tell(result)
        # done when the folder is sealed now, whatever the run's own outcome was
        is_sealed = "://" in result["evidence"] or (Path(closed) / "statement.json").exists()
        return 0 if is_sealed else code
    check_installed()
    _answerable(settings, yes)
    if pattern is not None:
        if if_backlog_over is not None:
            raise UsageError("--if-backlog-over is of one stream; leave out --all-streams")
        return _run_many(settings, pattern, address, sign_key=sign_key, yes=yes)
    if address is not None:
        raise UsageError("--dask runs many streams; say which with --all-streams PATTERN")
    scheduled = if_backlog_over is not None
    with (
        unattended.turn(settings, over=if_backlog_over or 0) if scheduled else nullcontext() as why
    ):
        if why is None:
            return run_and_tell(settings, yes=yes, sign_key=sign_key)
        emit({"skipped": why}, why)
        return 0


def run_and_tell(settings: Settings, *, yes: bool, sign_key: str | None = None) -> int:
    """Run the notebooks, print the result; the exit code."""
    with stop_signals() as stopping:
        result = _run_notebooks(settings, stopping=stopping, yes=yes, sign_key=sign_key)
    return _tell(result)


def _tell(result: dict[str, Any]) -> int:
    page = f"{result['evidence']}/report.html"
    is_there = "://" in page or Path(page).exists()
    lines = [*terminal.report(result), *([f"Report: {page}"] if is_there else [])]
    tell_error(result.get("error"))
    emit(result, *lines)
    return int(result.get("exit_code") or 0)


def _sign_key(sign_key: str | None) -> Path | None:
    from ..signing import OF_STATEMENT, sign

    if sign_key is None:
        return None
    sign(b"", Path(sign_key), OF_STATEMENT)  # one that cannot is refused before the drain
    return Path(sign_key)


def _approve(run: Run, planned: PlanFile, *, yes: bool) -> None:
    """Refuses a plan that the limits hold back, or a person."""
    from ..draining import unattended

    if yes:
        unattended.check_planned(run.server, run.settings, planned)
    else:
        unattended.check_readable(run.settings, planned.rows, planned.plan.unreadable)
    try:  # a signal, or the end of the input, ends the question at once
        with terminal.handled(terminal.interrupt):
            _question(replace(run, planned=planned), planned.plan, planned.notes(), yes=yes)
    except (click.Abort, KeyboardInterrupt):
        raise InterruptedRunError("interrupted at the question; nothing was drained") from None


def _run_notebooks(
    settings: Settings, *, stopping: threading.Event, yes: bool, sign_key: str | None,
    kernels: Kernels | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One stream's run; its run.json."""
    from ..pipeline import runner

    key = _sign_key(sign_key)
    with closing(Moving()) as moving:

        def announce(name: str) -> None:
            moving.close()
            tell(f"running {name} ...", err=True)

        return runner.run(
            settings, confirm=partial(_approve, yes=yes), announce=announce, on_line=moving.line,
            stopping=stopping, sign_key=key, kernels=kernels,
        )[0]  # fmt: skip


def _run_many(
    settings: Settings, pattern: str, address: str | None, *, sign_key: str | None, yes: bool
) -> int:
    """Run each stream of the pattern, print all together; the worst exit code."""
    from ..pipeline import runner

    for name in ("plan", "audit_stream"):
        if getattr(settings, name) is not None:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} belongs to one stream; leave out --all-streams")
    if address is not None:
        if sign_key is not None:
            raise UsageError("--sign-key: the key is not where Dask runs; leave out --dask")
        if settings.mode == "live":
            confirm(f"Drain every stream of {pattern} without being asked again?", yes)
    with connected(settings, anywhere=True) as server:
        streams, ended = runner.streams_of(server, settings, pattern)
    for outcome in ended:
        tell(f"{outcome['stream']}: {outcome['error']}", err=True)
    with stop_signals() as stopping, ExitStack() as stack:
        if address is None:
            one: Callable[[Settings], dict[str, Any]] = partial(
                _run_notebooks, stopping=stopping, yes=yes, sign_key=sign_key,
                kernels=stack.enter_context(runner.open_kernels()),
            )  # fmt: skip
            outcomes = runner.run_in_turn(settings, streams, one, stopping=stopping)
        else:
            outcomes = runner.run_with_dask(settings, streams, address, stopping=stopping)
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
    rows = [
        [run["stream"], run["outcome"], run["exit_code"],
         *("-" if run.get(name) is None else run[name] for name in
           ("total_read", "drained_ok", "remaining")),
         one_line(str(run.get("error") or run.get("evidence") or ""))]
        for run in found["streams"]
    ]  # fmt: skip
    told = (
        f"{found['done']:,} of {len(found['streams']):,} streams done: {found['total_read']:,} "
        f"read, {found['drained_ok']:,} drained OK, {found['remaining']:,} remaining."
    )
    return [Table(head, rows), told]
