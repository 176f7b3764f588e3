"""What a terminal sees: results, questions, progress, signals."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ..errors import InterruptedRunError, RefusedError
from ..safe import one_line

if TYPE_CHECKING:
    from ..core.summary import Summary
    from ..server.connection import Server
    from ..settings import Settings


@contextmanager
def connected(settings: Settings) -> Iterator[Server]:
    """A connection to the settings' server, closed at the end."""
    from ..server.connection import Server

    with Server.of(settings) as server:
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
def interruptible() -> Iterator[None]:
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
def progress(what: str, total: int | None) -> Iterator[Callable[[Summary], None]]:
    """One line on a terminal; elsewhere a line at each tenth of a live drain."""
    from tqdm import tqdm

    from ..core.progress import Tenths, dropped

    tenths = Tenths()
    with tqdm(total=total, desc=what, unit=" events", file=sys.stderr,
              disable=not sys.stderr.isatty(), leave=False) as bar:  # fmt: skip

        def tick(summary: Summary) -> None:
            if not bar.disable:
                bar.total = summary.expected or total
                bar.set_postfix_str(
                    f"{summary.drained_ok:,} passed, {dropped(summary):,} dropped", refresh=False
                )
                bar.update(summary.total_read - bar.n)
            elif summary.mode == "live" and (line := tenths.line(summary)):
                click.echo(line, err=True)

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
# shown where there is something to say
MORE_LINES = [
    ("Vanished (deleted by others)", "vanished"),
    ("Passed over (taken by others)", "passed_over"),
    ("Plan", "plan_path"),
    ("Plan digest", "plan_digest"),
    ("Evidence", "evidence"),
]


def report_text(result: Mapping[str, Any]) -> str:
    """The original report's lines."""
    shown = {
        "mode": str(result.get("mode", "")).upper(),
        "elapsed_sec": f"{result.get('elapsed_sec', 0):.2f}s",
        "events_per_sec": _throughput(result),
    }
    lines = [f"{name}: {shown.get(key, result.get(key))}" for name, key in REPORT_LINES]
    lines += [f"{name}: {result[key]}" for name, key in MORE_LINES if result.get(key)]
    for change in result.get("drift") or []:
        events = f"{change['events']:,}"
        lines.append(f"Drift: {events:>9}  {change['planned']} -> {change['happened']}")
    return "\n".join(lines)


def _throughput(result: Mapping[str, Any]) -> str:
    """The pace of a live run; of a dry run, how long the live run takes."""
    rate, throttle = result.get("events_per_sec"), result.get("throttle")
    if rate is not None:
        return f"{rate:.2f} events/sec"
    if not throttle:
        return "a live run goes as fast as the server"
    return f"a live run takes {result['total_read'] / throttle:,.1f} s at {throttle:g} events/sec"


def finish(summary: Summary) -> int:
    """The exit code of a run, with its error on stderr."""
    if summary.error:
        click.echo(f"drainkit: {one_line(summary.error, 600)}", err=True)
    return summary.exit_code or 0
