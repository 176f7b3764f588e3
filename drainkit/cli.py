"""The command line: parse, call one verb, print, exit. Results to stdout, the rest to stderr."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from .errors import DrainkitError, InterruptedRunError, RefusedError, UsageError, one_line

if TYPE_CHECKING:
    import pyarrow as pa

    from .drain import Job, Summary
    from .plan import Plan
    from .server import Server
    from .settings import Settings

F = TypeVar("F", bound=Callable[..., Any])


def main() -> NoReturn:
    """Run the program and exit with a code of the contract."""
    debug = "--debug" in sys.argv
    # a scheduler's SIGTERM ends a program that waits for a server just as Ctrl-C does
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = program(prog_name="drainkit", standalone_mode=False) or 0
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:  # its message is the help
        click.echo(error.format_message(), err=True)
        code = error.exit_code
    except click.ClickException as error:
        code = _fail(UsageError(one_line(error.format_message()) + "; see drainkit --help"), debug)
    except (click.Abort, KeyboardInterrupt):
        code = _fail(InterruptedRunError("interrupted"), debug)
    except DrainkitError as error:
        code = _fail(error, debug)
    except BrokenPipeError:
        # the reader of stdout went away (| head); nothing is wrong with what was done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if debug:
            raise
        name = type(error).__name__
        code = _fail(DrainkitError(f"unexpected {name}: {error}; --debug shows where"), debug)
    sys.stdout.flush()
    sys.exit(code if isinstance(code, int) else 0)


def _fail(error: DrainkitError, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    click.echo(f"drainkit: {one_line(str(error), 600)}", err=True)
    return error.exit_code


_option = click.option


def _stack(options: list[Callable[[F], F]]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_debug = click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")

WHERE: list[Any] = [
    _option(
        "--redis-url", metavar="URL", help="[$DRAINKIT_REDIS_URL, else redis://localhost:6379/0]"
    ),
    _option("--stream", metavar="KEY", help="[quantum:stream:trade.intent]"),
    _option("--env", "env_name", metavar="NAME", help="Table [env.NAME] of drainkit.toml."),
    _debug,
]
GROUP: list[Any] = [
    _option("--consumer-group", metavar="NAME", help="[quantum:group:execution:trade.intent]"),
]
SCOPE: list[Any] = [
    _option("--scope", metavar="undelivered|pending|history", help="Which entries. [undelivered]"),
    _option("--min-idle-min", metavar="MIN", help="Scope pending: idle at least, minutes. [60]"),
    _option("--from-consumer", multiple=True, metavar="NAME", help="Scope pending: only this one."),
    _option("--history-group", metavar="NAME", help="[<consumer-group>.drain_history]"),
]
POLICY: list[Any] = [
    _option("--allowlist", metavar="A,B|@FILE|redis:KEY", help="Symbols that pass. [any]"),
    _option("--min-conf", metavar="0..1", help="Minimum confidence. [0.60]"),
    _option("--max-age-min", metavar="MIN", help="Maximum age, minutes. [30]"),
    _option("--as-of", metavar="TIME", help="Measure ages against this ISO 8601 time. [now]"),
]
DRAIN: list[Any] = [
    _option("--mode", metavar="dry-run|live", help="dry-run changes nothing. [dry-run]"),
    *POLICY,
    _option("--throttle", metavar="RATE", help="Events per second, or none. [5]"),
    _option("--max-events", metavar="N", help="Events of this run, or all. [500]"),
    *GROUP,
    _option("--consumer-name", metavar="NAME", help="The drain's consumer. [backlog_drain_1]"),
    _option("--audit-stream", metavar="KEY", help="[<stream>.drain_audit]"),
    *SCOPE,
    _option("--plan", metavar="PATH", help="Dry run: write this plan. Live: apply exactly it."),
    click.option("--yes", is_flag=True, help="Live: do not ask."),
    click.option("--allow-active-consumers", is_flag=True, default=None,
                 help="Drain although another consumer of the group is active."),
]  # fmt: skip


class _Program(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of the contract, not of the alphabet


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="drainkit")
@_debug
def program() -> None:
    """Drain a stale Redis stream backlog safely: read, filter, acknowledge, audit.

    It never trades: drained means acknowledged and audited, nothing else.

    \b
    Examples:
      drainkit demo                                 see it work, on a server of its own
      drainkit status                               what is there, counted
      drainkit drain --allowlist BTCUSDT,ETHUSDT    dry run: what would happen
      drainkit drain --mode live --yes --throttle 5 --max-events 500
    """


def settings_of(flags: dict[str, Any], env_name: str | None = None) -> Settings:
    """Checked settings from the options that were really given."""
    from .settings import load, unknown_variables

    for name in unknown_variables():
        click.echo(f"drainkit: {name} is no setting and is ignored; check its spelling", err=True)
    return load(_given(flags), env_name=env_name)


def switch_settings(flags: dict[str, Any], env_name: str | None) -> Settings:
    """Only where the stream is: no mistake elsewhere may stand in the kill switch's way."""
    from .settings import load

    return load(_given(flags), env_name=env_name, only=frozenset({"redis_url", "stream"}))


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None and value != ()}


@contextmanager
def connected(settings: Settings) -> Iterator[Server]:
    """A connection to the settings' server, closed at the end."""
    from .server import Server

    with Server(settings.redis_url.get_secret_value(), settings.stream) as server:
        yield server


def emit(as_json: bool, data: Any, text: str) -> None:
    """Print the result: one JSON object, or text."""
    click.echo(json.dumps(data, ensure_ascii=True) if as_json else text)


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that the commit in flight can be finished."""
    stopping = threading.Event()
    before = {
        s: signal.signal(s, lambda *_: stopping.set()) for s in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Within `stop_signals`: a question that a signal, or the end of the input, ends at once."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    except (click.Abort, KeyboardInterrupt):
        raise InterruptedRunError("interrupted at the question; nothing was drained") from None
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def progress_bar(what: str, total: int | None) -> Iterator[Callable[[Summary], None]]:
    """A bar on a terminal; nothing elsewhere."""
    from tqdm import tqdm

    with tqdm(total=total, desc=what, unit=" events", file=sys.stderr,
              disable=not sys.stderr.isatty(), leave=False) as bar:  # fmt: skip

        def tick(summary: Summary) -> None:
            bar.update(summary.total_read - bar.n)

        yield tick


def confirm(question: str, yes: bool) -> None:
    """Ask on a terminal; without one, --yes is needed."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise RefusedError("this changes the server: say --yes when there is no terminal to ask on")
    if not click.confirm(question, err=True):
        raise RefusedError("not confirmed; nothing was done")


REPORT_LINES = [
    ("Mode", "mode"),
    ("Total Read", "total_read"),
    ("Dropped (old)", "dropped_old"),
    ("Dropped (not allowlisted)", "dropped_not_allowlisted"),
    ("Dropped (low confidence)", "dropped_low_conf"),
    ("Dropped (invalid)", "dropped_invalid"),
    ("Dropped (missing)", "dropped_missing"),
    ("Drained OK", "drained_ok"),
    ("Errors", "errors"),
    ("Elapsed", "elapsed_sec"),
    ("Throughput", "events_per_sec"),
    ("Remaining", "remaining"),
    ("Run", "run_id"),
]
PLAN_LINES = [("Plan", "plan_path"), ("Plan digest", "plan_digest"), ("Evidence", "evidence")]


def report_text(result: Mapping[str, Any]) -> str:
    """The original report's lines."""
    shown = {
        "mode": str(result.get("mode", "")).upper(),
        "elapsed_sec": f"{result.get('elapsed_sec', 0):.2f}s",
        "events_per_sec": f"{result.get('events_per_sec', 0):.2f} events/sec",
    }
    lines = [f"{name}: {shown.get(key, result.get(key))}" for name, key in REPORT_LINES]
    lines += [f"{name}: {result[key]}" for name, key in PLAN_LINES if result.get(key)]
    for change in result.get("drift") or []:
        lines.append(f"Drift: {change['id']} {change['planned']} -> {change['happened']}")
    return "\n".join(lines)


def finish(summary: Summary) -> int:
    """The exit code of a run, with its error on stderr."""
    if summary.error:
        click.echo(f"drainkit: {one_line(summary.error, 600)}", err=True)
    return summary.exit_code or 0


@program.command()
@_option("--server", "binary", metavar="PROGRAM", help="A redis-server. [the bundled Valkey]")
@_option("--reports-dir", metavar="DIR", default="reports", help="[reports]")
@_stack([_debug, _json])
def demo(binary: str | None, reports_dir: str, as_json: bool) -> int:
    """See it work: a sample backlog on a server of its own, through the whole pipeline."""
    from pathlib import Path

    from . import demo as demos
    from .embedded import EmbeddedServer
    from .server import Server
    from .status import as_text, baseline

    with EmbeddedServer(binary) as embedded:
        settings = demos.settings_of(embedded.url, Path(reports_dir))
        with Server(embedded.url, settings.stream) as server:
            demos.fill(server, stream=settings.stream, group=settings.consumer_group,
                       consumer=settings.consumer_name)  # fmt: skip
            click.echo(as_text(baseline(server, settings.stream)), err=as_json)
        click.echo("", err=as_json)
        return _run(settings, as_json, yes=True)


@program.command()
@_stack([*WHERE, _json])
def status(env_name: str | None, as_json: bool, **flags: Any) -> None:
    """Stream, groups, consumers, pending and the counted backlog."""
    from . import monitor
    from .status import as_text, baseline

    settings = settings_of(flags, env_name)
    with connected(settings) as server:
        found = baseline(server, settings.stream)
        try:
            running = monitor.running_drains(server, server.keys())
        except RefusedError as error:  # a user who may read the stream, but not its side keys
            click.echo(f"drainkit: running drains are not known: {error}", err=True)
            running = []
    found["running_drains"] = [vars(drain) for drain in running]
    emit(as_json, found, "\n".join([as_text(found), *(drain.line() for drain in running)]))


@program.command()
@_stack([*DRAIN,
         _option("--workers", type=click.IntRange(min=1), default=1, metavar="N",
                 help="Live: so many workers share the pace. [1]"),
         *WHERE, _json])  # fmt: skip
def drain(env_name: str | None, as_json: bool, yes: bool, workers: int, **flags: Any) -> int:
    """Dry run or live drain of the backlog, without notebooks.

    \b
    Examples:
      drainkit drain --mode dry-run --allowlist "BTCUSDT,ETHUSDT" --max-events 20
      drainkit drain --mode live --yes --min-conf 0.60 --max-age-min 30 --throttle 5
      drainkit drain --mode dry-run --plan plan.json && \\
      drainkit drain --mode live --yes --plan plan.json
    """
    settings = settings_of(flags, env_name)
    planned = None
    if settings.mode == "live":
        if not yes and not sys.stdin.isatty():
            confirm("", yes)
        if settings.plan is not None:
            from .apply import adopt
            from .evidence import load_plan

            planned = load_plan(settings.plan)
            settings = adopt(settings, planned[0])
    with connected(settings) as server:
        if settings.mode == "live":
            summary = _drain_live(server, settings, planned, yes=yes, workers=workers)
        else:
            summary = _drain_dry(server, settings)
    emit(as_json, summary.as_dict(), report_text(summary.as_dict()))
    return finish(summary)


def _drain_dry(server: Server, settings: Settings) -> Summary:
    from .drain import dry_run, prepare
    from .evidence import new_run_id

    job = prepare(server, settings, new_run_id("dry-run", server.now_us()))
    with progress_bar("dry run", settings.max_events) as tick:
        if settings.plan is None:
            return dry_run(server, job, on_progress=tick)
        from .apply import plan_run

        return plan_run(server, job, settings.plan, on_progress=tick)[0]


def _drain_live(
    server: Server, settings: Settings, planned: tuple[Plan, pa.Table] | None, *, yes: bool,
    workers: int,
) -> Summary:  # fmt: skip
    from . import drain as verbs
    from .apply import job_from_plan, list_drift
    from .evidence import new_run_id
    from .stream import remaining
    from .workers import drain_with_workers

    run_id = new_run_id("live", server.now_us())
    if planned is None:
        job = verbs.prepare(server, settings, run_id)
    else:
        job = job_from_plan(server, settings, run_id, *planned)
    if yes:
        _check_limits(server, settings, job)
    else:
        left = remaining(server, job.keys, job.scope)
        most = left if job.max_events is None else min(left, job.max_events)
        confirm(f"Acknowledge and audit {most:,} of {left:,} entries ({job.scope.name})?", yes)
        server.reconnect()  # while somebody thought about it, the server may have closed it
    with stop_signals() as stopping, progress_bar("drain", job.max_events) as tick:
        summary = drain_with_workers(server, job, workers, stopping=stopping, on_progress=tick)
    if planned is not None and server.connected:
        summary.drift = list_drift(server, job, planned[1])
    return summary


def _check_limits(server: Server, settings: Settings, job: Job) -> None:
    """Without somebody who approves it, a live drain stays within [limits], if there are any."""
    from . import schedule
    from .drain import dry_run

    if settings.plan is not None:
        schedule.check_given_plan(server, settings)
    elif any(value is not None for _, value in settings.limits):
        schedule.check_limits(settings.limits, vars(dry_run(server, job)))


@program.command()
@_stack([*DRAIN, _option("--reports-dir", metavar="DIR", help="[reports]"),
         _option("--if-backlog-over", type=click.IntRange(min=0), metavar="N",
                 help="Scheduled: only if the scope holds more than N entries."),
         _option("--sign-key", metavar="FILE", help="Sign the statement with this SSH key."),
         *WHERE, _json])  # fmt: skip
def run(env_name: str | None, as_json: bool, yes: bool, if_backlog_over: int | None,
        sign_key: str | None, **flags: Any) -> int:  # fmt: skip
    """Dry run or live drain through the notebooks, with sealed evidence.

    \b
    Examples:
      drainkit run --allowlist "BTCUSDT,ETHUSDT"
      drainkit run --mode live --throttle 5 --max-events 500
      drainkit run --mode live --yes --plan reports/20260101T000000Z-dry-run-abc123
      drainkit run --mode live --yes --if-backlog-over 1000 --env production
    """
    settings = settings_of(flags, env_name)
    if settings.mode == "live" and not yes and not sys.stdin.isatty():
        confirm("", yes)
    if if_backlog_over is None:
        return _run(settings, as_json, yes=yes, sign_key=sign_key)
    from . import schedule

    with schedule.turn(settings, over=if_backlog_over) as why_not:
        if why_not is None:
            return _run(settings, as_json, yes=yes, sign_key=sign_key)
        emit(as_json, {"skipped": why_not}, why_not)
        return 0


def _run(settings: Settings, as_json: bool, *, yes: bool, sign_key: str | None = None) -> int:
    from pathlib import Path

    from . import evidence, pipeline, schedule

    if sign_key is not None:
        evidence.check_sign_key(Path(sign_key))
    if yes and settings.mode == "live" and settings.plan is not None:
        with connected(settings) as server:
            schedule.check_given_plan(server, settings)

    def approve(plan: Plan) -> None:
        if yes:
            schedule.check_limits(settings.limits, plan.counts)
        counts = ", ".join(f"{n:,} {action}" for action, n in plan.counts.items() if n)
        click.echo(
            f"Plan {plan.digest}\n  {plan.total_read:,} entries: {counts or 'none'}", err=True
        )
        with _interruptible():
            confirm(f"Acknowledge and audit these {plan.total_read:,} entries?", yes)

    def announce(name: str) -> None:
        click.echo(f"running {name} ...", err=True)

    with stop_signals() as stopping:
        result, folder = pipeline.run(
            settings, confirm=approve, announce=announce, stopping=stopping
        )
    emit(as_json, result, f"{report_text(result)}\nReport: {folder / 'report.html'}")
    if result.get("error"):
        click.echo(f"drainkit: {one_line(str(result['error']), 600)}", err=True)
    if sign_key is not None:
        evidence.sign(folder, Path(sign_key))
    return int(result.get("exit_code") or 0)


@program.command()
@click.argument("path")
@_option("--redis-url", metavar="URL", help="Also ask this server's run ledger.")
@_option(
    "--allowed-signers", metavar="FILE", help="Check the signature against these (ssh-keygen)."
)
@_option("--identity", metavar="NAME", help="Who must have signed.")
@_stack([_debug, _json])
def verify(path: str, redis_url: str | None, allowed_signers: str | None, identity: str | None,
           as_json: bool) -> int:  # fmt: skip
    """Check evidence: RUN_DIR, or REPORTS_DIR with the chain over all its runs."""
    from pathlib import Path

    from . import evidence

    folder = Path(path)
    if not folder.is_dir():
        raise UsageError(f"{one_line(path)} is no folder; name an evidence or a reports folder")
    if (allowed_signers is None) != (identity is None):
        raise UsageError("--allowed-signers and --identity belong together: who must have signed")
    if allowed_signers is not None and not Path(allowed_signers).is_file():
        raise UsageError(f"--allowed-signers {one_line(allowed_signers)} is no file")
    if evidence.is_run(folder):
        found = {folder.name: evidence.verify_run(folder)}
    else:
        found = evidence.verify_reports(folder)
    runs_found = [name for name in found if name != "chain"]
    if redis_url is not None:
        from .ledger import missing_runs, verify_ledger

        for name, findings in verify_ledger(redis_url, folder, found).items():
            found.setdefault(name, []).extend(findings)
        if not evidence.is_run(folder) and (gone := missing_runs(redis_url, folder, runs_found)):
            found.setdefault("chain", []).extend(gone)
    for name in runs_found if allowed_signers is not None else []:
        try:
            run_dir = folder if evidence.is_run(folder) else folder / name
            evidence.verify_signature(run_dir, Path(str(allowed_signers)), str(identity))
        except DrainkitError as error:
            found[name].append(f"not signed by {one_line(str(identity))}: {error}")
    bad = [f"{name}: {finding}" for name, findings in found.items() for finding in findings]
    emit(as_json, {"ok": not bad, "findings": found},
         "\n".join(bad) or f"All well: {len(runs_found)} run(s), every file as it was sealed."
         )  # fmt: skip
    return 1 if bad else 0


@program.command()
@_option("--reason", required=True, metavar="TEXT", help="Why; kept with the switch.")
@_stack([*WHERE, _json])
def stop(reason: str, env_name: str | None, as_json: bool, **flags: Any) -> None:
    """Set the kill switch: from now on no drain of the stream acknowledges anything."""
    from . import commit, stream

    if not reason.strip():
        raise UsageError("--reason: say why; it is kept with the switch")
    settings = switch_settings(flags, env_name)
    with connected(settings) as server:
        keys = server.keys()
        # a drain of a misspelt stream would go on, and somebody would think that it does not
        stream.stream_info(server, keys.stream)
        was_set = not commit.stop(server, keys, reason=reason, now_us=server.now_us())
    data = {"stream": settings.stream, "stopped": True, "reason": reason, "was_stopped": was_set}
    emit(as_json, data, ("It was stopped before, for the reason given then" if was_set else
         "Stopped") + f": no drain of {one_line(settings.stream)} goes on. "
         "drainkit resume lifts it.")  # fmt: skip


@program.command()
@_stack([*WHERE, _json])
def resume(env_name: str | None, as_json: bool, **flags: Any) -> None:
    """Lift the kill switch."""
    from . import commit

    settings = switch_settings(flags, env_name)
    with connected(settings) as server:
        was_set = commit.resume(server, server.keys())
    data = {"stream": settings.stream, "stopped": False, "was_stopped": was_set}
    emit(as_json, data, "Resumed." if was_set else "It was not stopped.")


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


class _Minutes(click.FloatRange):
    """Minutes, of which nan and inf are none: no age would ever be above them."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        minutes = float(super().convert(value, param, ctx))
        if minutes - minutes != 0:
            self.fail(f"{value} is no number of minutes", param, ctx)
        return minutes


def _limit(name: str, default: int | None, text: str, *, minutes: bool = False) -> Any:
    kind: Any = _Minutes(min=0) if minutes else click.IntRange(min=0)
    shown = "" if default is None else f" [{default}]"
    return _option(name, type=kind, default=default, metavar="MIN" if minutes else "N",
                   help=text + shown)  # fmt: skip


CHECK: list[Any] = [
    _limit("--max-backlog", 1000, "Entries undelivered, per group."),
    _limit("--max-age-min", 60, "Age of the oldest of them, minutes.", minutes=True),
    _limit("--max-pending", 1000, "Entries pending, per group."),
    _limit("--max-pending-age-min", 60, "Age of the oldest of them, minutes.", minutes=True),
    _limit("--max-dead", None, "Dead consumers, per group. [not judged]"),
    _limit("--dead-after-min", 60, "Dead: idle at least, minutes.", minutes=True),
    _limit("--max-audit", None, "Entries of the audit stream. [not judged]"),
    _option("--group", "groups", multiple=True, metavar="NAME", help="Only this group. [each]"),
    _option("--all-streams", "pattern", metavar="PATTERN", help="Each stream whose name fits."),
    _option("--audit-stream", metavar="KEY", help="[<stream>.drain_audit]"),
    click.option("--format", "form", type=click.Choice(["text", "prometheus"]), default="text",
                 help="Findings, or metrics. [text]"),
    _option("--textfile", metavar="FILE", help="Write metrics here, for node_exporter."),
    _option("--listen", metavar="HOST:PORT", help="Serve metrics there, on loopback only."),
]  # fmt: skip


@program.command(cls=_Monitoring)
@_stack([*CHECK, *WHERE, _json])
def check(env_name: str | None, as_json: bool, **flags: Any) -> int:
    """Judge backlogs: exit code 0 OK, 1 warning, 2 critical, 3 unknown.

    Critical above a limit, warning from 80 % of it on.

    \b
    Examples:
      drainkit check --max-backlog 1000 --max-age-min 60
      drainkit check --all-streams 'quantum:stream:*' --json
      drainkit check --textfile /var/lib/node_exporter/drainkit.prom
      drainkit check --listen 127.0.0.1:9877
    """
    from pathlib import Path

    from . import evidence, metrics, monitor

    options = {
        name: flags.pop(name) for name in ("groups", "pattern", "form", "textfile", "listen")
    }
    if as_json and options["form"] == "prometheus":
        raise UsageError("--json and --format prometheus are two forms; choose one")
    names = monitor.Limits.__dataclass_fields__
    limits = monitor.Limits(**{name: flags.pop(name) for name in names})
    settings = settings_of(flags, env_name)
    audits = options["form"] == "prometheus" or options["textfile"] or options["listen"]

    def look() -> monitor.Report:
        with connected(settings) as server:
            return monitor.check(
                server, settings, limits, groups=options["groups"], pattern=options["pattern"],
                audits=bool(audits),
            )  # fmt: skip

    if options["listen"]:
        address = metrics.listen_address(options["listen"])
        with stop_signals() as stopping:
            click.echo(f"metrics at http://{options['listen']}/metrics", err=True)
            metrics.serve(address, look, stopping)
        return 0
    try:
        report = look()
    except DrainkitError as error:
        report = monitor.unreadable(settings.stream, error)
        click.echo(f"drainkit: {one_line(str(error), 600)}", err=True)
    if options["textfile"]:
        evidence.write_bytes(Path(options["textfile"]), metrics.exposition(report))
    elif options["form"] == "prometheus":
        click.echo(metrics.exposition(report), nl=False)
        return report.exit_code
    emit(as_json, report.as_dict(), "\n".join(f.line() for f in report.findings))
    return report.exit_code


@program.command()
@_stack([click.option("--delete", is_flag=True, help="Remove those that are safe to remove."),
         _option("--min-idle-min", metavar="MIN", help="Dead: idle at least, minutes. [60]"),
         click.option("--yes", is_flag=True, help="Do not ask."),
         *GROUP, *WHERE, _json])  # fmt: skip
def consumers(delete: bool, yes: bool, env_name: str | None, as_json: bool, **flags: Any) -> None:
    """List dead consumers; --delete removes those that have nothing pending."""
    from . import maintenance

    settings = settings_of(flags, env_name)
    group, idle_ms = settings.consumer_group, round(settings.min_idle_min * 60_000)
    with connected(settings) as server:
        keys = server.keys()
        dead = maintenance.dead_consumers(server, keys, group, min_idle_ms=idle_ms)
        removable = [c.name for c in dead if not c.why_kept]
        kept = {c.name: c.why_kept for c in dead if c.why_kept}
        removed: list[str] = []
        if delete and removable:
            confirm(f"Remove {len(removable):,} of {len(dead):,} dead consumers?", yes)
            removed, stayed = maintenance.remove_consumers(
                server, keys, group, removable, min_idle_ms=idle_ms
            )
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
    lines += [f"  {one_line(c.name)}: idle {c.idle_ms / 60_000:,.0f} min" for c in dead
              if c.name in removable and not delete]  # fmt: skip
    lines += [f"  {one_line(name)} stays: {why}" for name, why in kept.items()]
    emit(as_json, data, "\n".join(lines))


@program.command()
@_stack([click.option("--apply", is_flag=True, help="Remove what is shown."),
         _option("--archive", metavar="FILE", help="Write it to this .parquet file first."),
         click.option("--without-groups", is_flag=True,
                      help="Trim although no group says what is needed."),
         click.option("--yes", is_flag=True, help="Do not ask."), *WHERE, _json])  # fmt: skip
def trim(apply: bool, archive: str | None, without_groups: bool, yes: bool, env_name: str | None,
         as_json: bool, **flags: Any) -> None:  # fmt: skip
    """Show what no group needs any more; --apply removes it from the stream."""
    from pathlib import Path

    from . import maintenance

    settings = settings_of(flags, env_name)
    path = Path(archive) if archive else None
    if path is not None:
        if not apply:
            raise UsageError("--archive writes what --apply removes; say --apply as well")
        maintenance.check_archive(path)
    with connected(settings) as server:
        keys = server.keys()
        plan = maintenance.trim_plan(server, keys, without_groups=without_groups)
        removed = 0
        if apply and plan.entries:
            confirm(f"Remove {plan.entries:,} of {plan.length:,} entries?", yes)
            removed = maintenance.trim(
                server, keys, plan, archive=path, without_groups=without_groups
            )
    archive = archive if removed else None  # nothing to remove, nothing written
    data = {"stream": settings.stream, **vars(plan), "removed": removed, "archive": archive}
    lines = [f"{one_line(settings.stream)}: {plan.entries:,} of {plan.length:,} entries lie before "
             f"{plan.floor} and are needed by none of its {plan.groups:,} groups."]  # fmt: skip
    lines += [f"  held back by {one_line(name)}: {why}" for name, why in plan.held_by.items()]
    if apply:
        lines.append(
            f"Removed: {removed:,}." + (f" Archive: {one_line(archive)}" if archive else "")
        )
    emit(as_json, data, "\n".join(lines))


@program.command()
@click.argument("file")
@_stack([*SCOPE, *GROUP, *WHERE, _json])
def export(file: str, env_name: str | None, as_json: bool, **flags: Any) -> None:
    """The backlog of a scope as FILE, .parquet or .csv; reads only."""
    from pathlib import Path

    from . import maintenance

    settings = settings_of(flags, env_name)
    with connected(settings) as server:
        n = maintenance.export(server, settings, Path(file))
    data = {"stream": settings.stream, "scope": settings.scope, "entries": n, "file": file}
    emit(as_json, data, f"{n:,} entries ({settings.scope}) in {one_line(file)}")


@program.command()
@click.argument("file")
@_stack([click.option("--yes", is_flag=True, help="Do not ask."), *WHERE, _json])
def restore(file: str, yes: bool, env_name: str | None, as_json: bool, **flags: Any) -> None:
    """Put an archive of trim into a new stream, named by --stream."""
    from pathlib import Path

    from . import maintenance

    if not flags.get("stream"):
        raise UsageError("name the new stream with --stream")
    settings = settings_of(flags, env_name)
    with connected(settings) as server:
        confirm(f"Write {one_line(file)} to the new stream {one_line(settings.stream)}?", yes)
        n = maintenance.restore(server, settings.stream, Path(file))
    data = {"stream": settings.stream, "entries": n, "file": file}
    emit(as_json, data, f"{n:,} entries in the new stream {one_line(settings.stream)}")


@program.command()
@_stack([_option("--audit-stream", metavar="KEY", help="[<stream>.drain_audit]"),
         _option("--allowlist", metavar="redis:KEY", help="Also let both read this set."),
         *WHERE, _json])  # fmt: skip
def acl(env_name: str | None, as_json: bool, **flags: Any) -> None:
    """Least-privilege ACL rules: an analyst who only reads, and a drainer."""
    from .acl import rules
    from .settings import allowlist_symbols

    settings = settings_of(flags, env_name)
    allowed = allowlist_symbols(settings.allowlist) if settings.allowlist else None
    with connected(settings) as server:
        found = rules(
            server.keys(settings.audit_stream),
            server.info,
            allowlist_key=allowed if isinstance(allowed, bytes) else None,
        )
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
