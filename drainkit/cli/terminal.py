"""What a terminal sees: results, tables, questions, progress, signals.

rich lays out and colours, on a terminal only: in a pipe each line is what it was given as. Its
markup is never read, so `[red]` in a name is text.
"""

from __future__ import annotations

import io
import json
import os
import re
import select
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ..errors import InterruptedRunError, RefusedError
from ..safe import struck

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table as RichTable

    from ..core.progress import Step
    from ..core.summary import Summary
    from ..server.connection import Server
    from ..settings import Settings

PIPE_WIDTH = 10_000  # columns; nothing is wrapped in a pipe
_BAR_WIDTH = 12
#: What is coloured in a line, the first that fits.
_COLOURS = {
    r"(drainkit|CRITICAL|Died|Errors: [1-9]\d*)(?=:|$)": "bold red",
    r"(WARNING|UNKNOWN|Running|Backlog)(?=:)": "yellow",
    r"(OK(?=:)|All well|Drained OK(?=:))": "green",
    r"[A-Z][\w ()]{1,30}(?=: )": "bold",
}


class Outlet(io.RawIOBase):
    """A standard stream whose end is not its program's: what it cannot print is gone, no more.

    A full disk, a reader who left and a stream that was closed all end here.
    """

    lost: OSError | None = None  # why something could not be printed

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Print what can be printed; all counts as written."""
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            select.select([], [self._descriptor], [])
            return self.write(data)
        except OSError as error:
            self.lost = error
            return len(data)


def safe_streams() -> Outlet:
    """Put outlets in the place of stdout and stderr; the former's."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file or socket to be opened would be the stream
            os.open(os.devnull, os.O_RDONLY)
    sys.stdin = sys.stdin or open(0, encoding="utf-8")  # noqa: SIM115 - until the end
    outlets = []
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        outlets.append(outlet := Outlet(descriptor))
        before = getattr(sys, name)
        text = io.TextIOWrapper(
            io.BufferedWriter(outlet), encoding=getattr(before, "encoding", "utf-8"),
            errors=getattr(before, "errors", "backslashreplace"), line_buffering=True,
        )  # fmt: skip
        setattr(sys, name, text)
    return outlets[0]


@contextmanager
def connected(settings: Settings, *, anywhere: bool = False) -> Iterator[Server]:
    """A connection to the settings' server, closed at the end; `anywhere`: to look for streams."""
    from ..server.connection import Server

    with Server.of(settings, anywhere=anywhere) as server:
        yield server


@dataclass(frozen=True)
class Table:
    """Rows of safe texts and numbers; without a head the first column names the second: a card."""

    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    title: str = ""


Block = str | Table


def emit(as_json: bool, data: Any, *blocks: Block) -> None:
    """Print the result: one JSON object, or texts and tables."""
    if as_json:
        click.echo(json.dumps(struck(data), ensure_ascii=True))
    else:
        tell(*blocks)


def tell(*blocks: Block, err: bool = False) -> None:
    """Print texts, line by line, and tables."""
    stream = sys.stderr if err else sys.stdout
    if not stream.isatty() and all(isinstance(block, str) for block in blocks):
        click.echo("\n".join(map(str, blocks)), err=err)  # as it is, and rich is not needed
        return
    console = _console(err)
    with console.capture() as captured:
        for block in blocks:
            for part in _parts(block, console.is_terminal):
                console.print(part, soft_wrap=getattr(part, "no_wrap", False))
    lines = captured.get().splitlines()
    click.echo("\n".join(line.rstrip() for line in lines), err=err)


def _console(err: bool) -> Console:
    """As wide as the terminal; colours unless NO_COLOR is set."""
    from rich.console import Console

    stream = sys.stderr if err else sys.stdout
    tty, plain = stream.isatty(), bool(os.environ.get("NO_COLOR"))
    return Console(
        file=stream, force_terminal=tty, width=None if tty else PIPE_WIDTH, markup=False,
        highlight=False, emoji=False, color_system="auto" if tty and not plain else None,
    )  # fmt: skip


def _parts(block: Block, tty: bool) -> Iterator[Any]:
    """A text's lines, wrapped below their own beginning; a table."""
    from rich.padding import Padding
    from rich.panel import Panel
    from rich.text import Text

    if isinstance(block, str):
        for line in block.split("\n"):
            # a command that is broken into lines cannot be pasted
            if line.lstrip(" ").startswith("drainkit "):
                yield Text(line, no_wrap=True)
                continue
            text = Text(line.lstrip(" "), overflow="fold")
            for pattern, style in _COLOURS.items():
                if found := re.match(pattern, text.plain):
                    text.stylize(style, *found.span())
                    break
            yield Padding(text, (0, 0, 0, len(line) - len(text.plain)))
    elif tty and not block.head:
        yield Panel(_table(block, tty), title=Text(block.title), title_align="left", expand=False)
    else:
        if block.title:
            yield Text(block.title, style="bold")
        yield _table(block, tty)


def _table(block: Table, tty: bool) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(
        box=box.SIMPLE_HEAD if tty and block.head else None, show_header=bool(block.head),
        padding=(0, 2, 0, 0), pad_edge=False, show_edge=False,
    )  # fmt: skip
    width = len(block.rows[0]) if block.rows else len(block.head)
    for place in range(width):
        numbers = block.rows and all(isinstance(row[place], int) for row in block.rows)
        table.add_column(
            Text(block.head[place]) if block.head else "",
            justify="right" if numbers else "left",
            style="bold" if not block.head and place == 0 else "",
            no_wrap=bool(numbers) or place == 0,
            overflow="fold",
        )
    for row in block.rows:
        table.add_row(*(Text(f"{v:,}" if type(v) is int else str(v)) for v in row))
    return table


_INTERRUPTED = threading.Event()


def interrupt(*_: object) -> NoReturn:
    """The program's handler of SIGINT and SIGTERM while nothing is drained."""
    _INTERRUPTED.set()  # an exception can get lost, in the destructor of an object, say
    raise KeyboardInterrupt


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that the commit in flight can be finished."""
    stopping = threading.Event()
    if _INTERRUPTED.is_set():
        stopping.set()
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
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    except (click.Abort, KeyboardInterrupt):
        raise InterruptedRunError("interrupted at the question; nothing was drained") from None
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class Moving:
    """How far a drain is: one line that moves on a terminal; elsewhere a line at each tenth."""

    def __init__(self) -> None:
        from ..core.progress import Tenths

        self._tenths = Tenths()
        self._bar: Progress | None = None

    def tick(self, summary: Summary) -> None:
        """Show how far this run is."""
        from ..core.progress import Step

        self._show(Step.of(summary))

    def line(self, line: str) -> None:
        """Show what another process printed, if it tells how far a drain is."""
        from ..core.progress import Step

        if step := Step.read(line):
            self._show(step)

    def end(self) -> None:
        """Take the line away, so that others can be printed."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self, step: Step) -> None:
        if not sys.stderr.isatty():
            if self._tenths.is_next(step):
                click.echo(step.line, err=True)
            return
        if self._bar is None:
            from rich.progress import BarColumn, Progress, TextColumn
            from rich.table import Column

            whole = Column(no_wrap=True, overflow="ellipsis")
            text = TextColumn("{task.description}", markup=False, table_column=whole)
            self._bar = Progress(
                BarColumn(_BAR_WIDTH), text, console=_console(err=True), transient=True
            )
            self._bar.add_task("", total=None)
            self._bar.start()
        (task,) = self._bar.task_ids
        self._bar.update(
            task, completed=step.done, total=step.total or None,
            description=f"{step.line}, {step.done - step.passed:,} dropped",
        )  # fmt: skip


@contextmanager
def progress() -> Iterator[Moving]:
    """A line that moves, and is gone at the end."""
    moving = Moving()
    try:
        yield moving
    finally:
        moving.end()


def confirm(question: str, yes: bool, does: str = "this changes the server") -> None:
    """Ask on a terminal; without one, --yes is needed."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise RefusedError(f"{does}: say --yes when there is no terminal to ask on")
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


def report(result: Mapping[str, Any]) -> list[Block]:
    """The original report's lines, and what became of a plan otherwise than planned."""
    shown = {
        "mode": str(result.get("mode", "")).upper(),
        "elapsed_sec": f"{result.get('elapsed_sec', 0):.2f}s",
        "events_per_sec": _throughput(result),
        "remaining": _remaining(result),
    }
    changed = result.get("drift") or []
    blocks: list[Block] = []
    if changed:
        n = sum(change["events"] for change in changed)
        where = "; drift.parquet names each" if result.get("evidence") else ""
        rows = [[c["events"], c["planned"], c["happened"]] for c in changed]
        title = (
            f"Drift: {n:,} {'event' if n == 1 else 'events'} met another fate than planned{where}"
        )
        blocks.append(Table(("Events", "Planned", "Happened"), rows, title))
    if (result.get("dropped_invalid") or 0) * 2 > (result.get("total_read") or 0):
        blocks.append("Most events cannot be read; drainkit fields says why, and what would help.")
    lines = [f"{name}: {_known(shown.get(key, result.get(key)))}" for name, key in REPORT_LINES]
    if result.get("evidence") and result.get("plan_path"):  # as seen from where the person is
        shown["plan_path"] = f"{result['evidence']}/{result['plan_path']}"
    lines += [f"{name}: {shown.get(key, result[key])}" for name, key in MORE_LINES
              if result.get(key)]  # fmt: skip
    if result.get("mode") == "dry-run":
        good = result.get("drained_ok", 0)
        lines.append(f"A live run acknowledges {good:,} good signals and executes none of them.")
    lines += [f"Note: {note}" for note in result.get("notes") or ()]
    return [*blocks, "\n".join(lines)]


def _known(value: Any) -> Any:
    return "unknown" if value is None else value


def _remaining(result: Mapping[str, Any]) -> str:
    """The number, and where it comes from if that is more than one place."""
    from ..core.progress import entries_words

    left, own = result.get("remaining"), result.get("pending_own") or 0
    if left is None or not own or result.get("scope") != "undelivered":
        return str(left)
    return f"{left} ({entries_words('undelivered', left, own)})"


def _throughput(result: Mapping[str, Any]) -> str:
    """The pace of a live run; of a dry run, how long the live run takes."""
    rate, throttle = result.get("events_per_sec"), result.get("throttle")
    if rate is not None:
        return f"{rate:.2f} events/sec"
    if result.get("mode") == "live":
        return "unknown"
    if not throttle:
        return "a live run goes as fast as the server"
    return f"a live run takes {result['total_read'] / throttle:,.1f} s at {throttle:g} events/sec"


def tell_error(error: object) -> None:
    """A run's error, before its result: what the eye comes to last is the result."""
    if error:
        tell(f"drainkit: {error}", err=True)
