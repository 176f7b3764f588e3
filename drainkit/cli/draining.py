"""Commands that drain, or say what a drain would do."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from ..errors import RefusedError, UsageError
from ..safe import one_line
from .options import DRAIN, JSON, WHERE, option, setting, settings_of, stack
from .program import program
from .terminal import (
    confirm,
    connected,
    emit,
    finish,
    interruptible,
    progress,
    report_text,
    stop_signals,
)

if TYPE_CHECKING:
    import threading
    from pathlib import Path

    from ..core.summary import Summary
    from ..draining.job import Job, Planned
    from ..server.connection import Server
    from ..settings import Settings


@program.command()
@stack([*WHERE, JSON])
def status(env_name: str | None, as_json: bool, **flags: Any) -> None:
    """Stream, groups, consumers, pending and the counted backlog."""
    from ..operations.running import running_drains
    from ..operations.state import as_text, baseline

    settings = settings_of(flags, env_name)
    with connected(settings) as server:
        found = baseline(server)
        try:
            running = running_drains(server)
        except RefusedError as error:  # a user who may read the stream, but not its side keys
            click.echo(f"drainkit: running drains are not known: {error}", err=True)
            running = []
    found["running_drains"] = [vars(drain) for drain in running]
    emit(as_json, found, "\n".join([as_text(found), *(drain.line() for drain in running)]))


@program.command()
@stack([*DRAIN,
         option("--workers", type=click.IntRange(min=1), default=1, metavar="N",
                 help="Live: so many workers share the pace. [1]"),
         *WHERE, JSON])  # fmt: skip
def drain(env_name: str | None, as_json: bool, yes: bool, workers: int, **flags: Any) -> int:
    """Dry run or live drain of the backlog, without notebooks.

    \b
    Examples:
      drainkit drain --mode dry-run --allowlist "BTCUSDT,ETHUSDT" --max-events 20
      drainkit drain --mode live --yes --min-conf 0.60 --max-age-min 30 --throttle 5
      drainkit drain --mode dry-run --plan plan.json && \\
      drainkit drain --mode live --yes --plan plan.json
    """
    from ..draining.job import resolve, with_plan

    settings = settings_of(flags, env_name)
    if settings.mode == "live" and not yes and not sys.stdin.isatty():
        confirm("", yes)
    settings, planned = with_plan(settings)
    with connected(settings) as server:
        job = resolve(server, settings, planned=planned)
        if settings.mode == "live":
            summary = _drain_live(server, job, yes=yes, workers=workers)
        else:
            summary = _drain_dry(server, job)
    emit(as_json, summary.as_dict(), report_text(summary.as_dict()))
    return finish(summary)


def _drain_dry(server: Server, job: Job) -> Summary:
    from ..draining.dry import dry_run, plan_run

    with progress("dry run", job.max_events) as tick:
        if job.settings.plan is None:
            return dry_run(server, job, on_progress=tick)
        return plan_run(server, job, job.settings.plan, on_progress=tick)[0]


def _drain_live(server: Server, job: Job, *, yes: bool, workers: int) -> Summary:
    from ..draining import unattended
    from ..draining.job import check
    from ..draining.live import apply
    from ..draining.team import split
    from ..server.scopes import remaining

    if yes:
        unattended.check_job(server, job)
    else:
        # what would be refused is refused before the question; workers know their fellows
        check(server, next(split(job, workers)))
        left = remaining(server, job.scope)
        most = left if job.max_events is None else min(left, job.max_events)
        confirm(f"Acknowledge and audit {most:,} of {left:,} entries ({job.scope.name})?", yes)
    with stop_signals() as stopping, progress("drain", job.max_events) as tick:
        return apply(server, job, workers=workers, stopping=stopping, on_progress=tick)


@program.command()
@stack([*DRAIN, *setting("reports_dir", "notebooks_dir"),
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
         *WHERE, JSON])  # fmt: skip
def run(env_name: str | None, as_json: bool, yes: bool, if_backlog_over: int | None,
        sign_key: str | None, closing: str | None, pattern: str | None, address: str | None,
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
    settings = settings_of(flags, env_name)
    if closing is not None:
        return _close(settings, closing, as_json, sign_key)
    if settings.mode == "live" and not yes and not sys.stdin.isatty():
        confirm("", yes)
    if pattern is not None:
        if if_backlog_over is not None:
            raise UsageError("--if-backlog-over is of one stream; leave out --all-streams")
        from .many import run_many

        one = partial(_run_notebooks, yes=yes, sign_key=sign_key)
        return run_many(settings, pattern, address, one, as_json, sign_key=sign_key, yes=yes)
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


def _close(settings: Settings, closing: str, as_json: bool, sign_key: str | None) -> int:
    """`run --close`: 0 when the folder is sealed now, whatever the run's own outcome was."""
    from pathlib import Path

    from ..pipeline.ending import close

    folder = Path(closing)
    result = close(settings, folder, sign_key=_sign_key(sign_key))
    code = _tell(result, as_json)
    is_sealed = "://" in result["evidence"] or (folder / "statement.json").exists()
    return 0 if is_sealed else code


def _tell(result: dict[str, Any], as_json: bool) -> int:
    from pathlib import Path

    report = f"{result['evidence']}/report.html"
    there = "://" in report or Path(report).exists()
    emit(as_json, result, report_text(result) + (f"\nReport: {report}" if there else ""))
    if result.get("error"):
        click.echo(f"drainkit: {one_line(str(result['error']), 600)}", err=True)
    return int(result.get("exit_code") or 0)


def _sign_key(sign_key: str | None) -> Path | None:
    from pathlib import Path

    from ..evidence.signature import check_sign_key

    if sign_key is None:
        return None
    check_sign_key(Path(sign_key))
    return Path(sign_key)


def _run_notebooks(
    settings: Settings, *, stopping: threading.Event, yes: bool, sign_key: str | None
) -> dict[str, Any]:
    """One stream's run; its run.json."""
    from ..draining import unattended
    from ..pipeline import runner

    key = _sign_key(sign_key)

    def approve(server: Server, planned: Planned) -> None:
        plan = planned.plan
        if yes:
            unattended.check_planned(server, settings, planned)
        counts = ", ".join(f"{n:,} {action}" for action, n in plan.counts.items() if n)
        click.echo(
            f"Plan {plan.digest}\n  {plan.total_read:,} entries: {counts or 'none'}", err=True
        )
        with interruptible():
            confirm(f"Acknowledge and audit these {plan.total_read:,} entries?", yes)

    def announce(name: str) -> None:
        click.echo(f"running {name} ...", err=True)

    return runner.run(
        settings, confirm=approve, announce=announce, stopping=stopping, sign_key=key
    )[0]
