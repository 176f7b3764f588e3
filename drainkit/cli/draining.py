"""Commands that drain, or say what a drain would do."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from .program import (
    DRAIN,
    GROUP,
    JSON,
    POLICY,
    WHERE,
    as_given,
    command,
    option,
    setting,
    settings_of,
)
from .review import fields_blocks, question_card, report, streams_report
from .terminal import (
    Moving,
    confirm,
    connected,
    emit,
    interruptible,
    stop_signals,
    tell,
    tell_error,
)

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
         *POLICY, *GROUP, *WHERE, JSON)  # fmt: skip
def status(is_all: bool, watch_sec: int | None, as_json: bool, **flags: Any) -> None:
    """How it stands, what would pass, what to do next.

    \b
    Examples:
      drainkit status --allowlist BTCUSDT,ETHUSDT
      drainkit status --watch 5
    """
    from ..operations.entry import unreadable
    from ..operations.first import as_lines, as_text, first_screen, next_command

    settings = settings_of(flags)
    with connected(settings) as server:
        while True:
            found, odd = first_screen(server, settings), unreadable(server, settings)
            found["unreadable"] = None if odd is None else odd.as_dict()
            if watch_sec and not as_json:
                click.clear()  # in place; nothing happens where there is no terminal
            lines = as_lines(found, settings)
            if sys.stdout.isatty():  # 14 rows, however long the names are; these may have two each
                two = ("CRITICAL", "WARNING", "UNKNOWN", "Running", "Would pass")
                width = shutil.get_terminal_size().columns
                rows = (textwrap.wrap(line, width, max_lines=1 + line.startswith(two),
                                      placeholder=" ...") for line in lines)  # fmt: skip
                lines = [part for row in rows for part in row]
            emit(as_json, found, *lines)
            if not as_json:
                step, why = next_command(found, settings)
                # as it is: a command that is broken into lines cannot be pasted
                click.echo(f"Next ({why}): drainkit {step}{as_given(step, flags)}")
                if is_all:
                    drains = [drain["line"] for drain in found["running_drains"]]
                    tell("", *as_text(found), *drains)
                    if odd is not None:
                        tell("", *fields_blocks(odd))
            if watch_sec is None:
                return
            sys.stdout.flush()
            time.sleep(watch_sec)


@command(*DRAIN, *WHERE, JSON)
def drain(as_json: bool, yes: bool, **flags: Any) -> int:
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

    settings = settings_of(flags)
    if settings.mode == "live" and not yes and not sys.stdin.isatty():
        confirm("", yes)
    with opened(settings) as run:
        if run.planned is None and (until := run.settings.until) != settings.until:
            tell(f"drainkit: up to {until}, by the server's clock", err=True)
        if settings.mode == "live":
            summary = _drain_live(run, yes=yes)
        else:
            with closing(Moving()) as moving:
                summary = (dry_run(run, on_progress=moving.tick) if settings.plan is None else
                           plan_run(run, settings.plan, on_progress=moving.tick)[0])  # fmt: skip
    tell_error(summary.error)
    emit(as_json, summary.as_dict(), *report(summary.as_dict()))
    return summary.exit_code or 0


def _drain_live(run: Run, *, yes: bool) -> Summary:
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
    with stop_signals() as stopping, closing(Moving()) as moving:
        return apply(run, seen, stopping=stopping, on_progress=moving.tick)


def _question(run: Run, plan: Plan, notes: list[str], *, yes: bool) -> None:
    """The card, and the question after it."""
    from ..server import scopes

    left = scopes.left(run.server, run.scope)
    waiting = left.fresh
    tell(question_card(run, plan, notes, waiting=waiting, own=left.own), err=True)
    good = plan.counts["drained_ok"]
    confirm(
        f"{good:,} good signals will be acknowledged and not executed. "
        f"Acknowledge and audit {plan.total_read:,} of {waiting:,} entries?", yes,
    )  # fmt: skip


@command(*DRAIN, *setting("reports_dir", "notebooks_dir"),
         option("--all-streams", "pattern", metavar="PATTERN",
                help="Each stream whose name fits and that has the group, one run each."),
         option("--dask", "address", metavar="ADDRESS|local",
                help="With --all-streams: as tasks of this Dask cluster."),
         option("--if-backlog-over", type=click.IntRange(min=0), metavar="N",
                 help="Scheduled: only if the scope holds more than N entries."),
         option("--sign-key", metavar="FILE", help="Sign the statement with this SSH key."),
         option("--close", "closing", metavar="RUN_DIR",
                 help="Complete and seal the folder that a killed run left; drains nothing. "
                 "With the run's --reports-dir URL it is copied there."),
         *WHERE, JSON)  # fmt: skip
def run(as_json: bool, yes: bool, if_backlog_over: int | None, sign_key: str | None,
        closing: str | None, pattern: str | None, address: str | None,
        **flags: Any) -> int:  # fmt: skip
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
    from ..pipeline.notebooks import check_installed

    settings = settings_of(flags)
    if closing is not None:
        from ..pipeline.folder import close

        folder = Path(closing)
        result = close(settings, folder, sign_key=_sign_key(sign_key))
        code = _tell(result, as_json)
        # done when the folder is sealed now, whatever the run's own outcome was
        is_sealed = "://" in result["evidence"] or (folder / "statement.json").exists()
        return 0 if is_sealed else code
    check_installed()
    if settings.mode == "live" and not yes and not sys.stdin.isatty():
        confirm("", yes)
    if pattern is not None:
        if if_backlog_over is not None:
            raise UsageError("--if-backlog-over is of one stream; leave out --all-streams")
        one = partial(_run_notebooks, yes=yes, sign_key=sign_key)
        return _run_many(settings, pattern, address, one, as_json, sign_key=sign_key, yes=yes)
    if address is not None:
        raise UsageError("--dask runs many streams; say which with --all-streams PATTERN")
    if if_backlog_over is None:
        return run_and_tell(settings, as_json, yes=yes, sign_key=sign_key)
    from ..draining import unattended

    with unattended.turn(settings, over=if_backlog_over) as why_not:
        if why_not is None:
            return run_and_tell(settings, as_json, yes=yes, sign_key=sign_key)
        emit(as_json, {"skipped": why_not}, why_not)
        return 0


def run_and_tell(
    settings: Settings, as_json: bool, *, yes: bool, sign_key: str | None = None
) -> int:
    """Run the notebooks, print the result; the exit code."""
    with stop_signals() as stopping:
        result = _run_notebooks(settings, stopping=stopping, yes=yes, sign_key=sign_key)
    return _tell(result, as_json)


def _tell(result: dict[str, Any], as_json: bool) -> int:
    page = f"{result['evidence']}/report.html"
    is_there = "://" in page or Path(page).exists()
    lines = [*report(result), *([f"Report: {page}"] if is_there else [])]
    tell_error(result.get("error"))
    emit(as_json, result, *lines)
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
    with interruptible():
        _question(replace(run, planned=planned), planned.plan, planned.notes(), yes=yes)


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


def _run_many(settings: Settings, pattern: str, address: str | None,
              one: Callable[..., dict[str, Any]], as_json: bool, *, sign_key: str | None,
              yes: bool) -> int:  # fmt: skip
    """Run each stream of the pattern, print all together; the worst exit code."""
    from ..pipeline import many
    from ..pipeline.runner import open_kernels

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
        streams, missed = many.streams_of(server, settings, pattern)
    for outcome in missed:
        tell(f"{outcome.stream}: {outcome.error}", err=True)
    with stop_signals() as stopping, ExitStack() as stack:
        if address is None:
            kernels = stack.enter_context(open_kernels())
            outcomes = many.run_in_turn(
                settings, streams, lambda s: one(s, stopping=stopping, kernels=kernels),
                stopping=stopping,
            )  # fmt: skip
        else:
            outcomes = many.run_with_dask(settings, streams, address, stopping=stopping)
        ended = [*missed]
        for outcome in outcomes:
            ended.append(outcome)
            left = len(streams) + len(missed) - len(ended)
            line = f"{outcome.stream}: {outcome.outcome}, {left:,} to go"
            tell(f"{line}: {outcome.error}" if outcome.error else line, err=True)
    found = many.summary(pattern, settings, ended)
    emit(as_json, found, *streams_report(found))
    return int(found["exit_code"])
