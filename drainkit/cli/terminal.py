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
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ..errors import InterruptedRunError, RefusedError
from ..safe import one_line, struck

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table as RichTable

    from ..core.progress import Step
    from ..core.summary import Summary
    from ..server.connection import Server
    from ..settings import Settings

PIPE_WIDTH = 10_000  # columns; nothing is wrapped in a pipe
LONGEST = 10_000  # characters of a line; 2,000 of a cell
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
    """Rows of texts and numbers; without a head the first column names the second: a card."""

    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    title: str = ""


Block = str | Table  # a line, whatever text from outside is in it, or a table of such texts


def emit(as_json: bool, data: Any, *blocks: Block) -> None:
    """Print the result: one JSON object, or lines and tables."""
    if not as_json:
        tell(*blocks)
    else:
        click.echo(json.dumps(struck(data), ensure_ascii=True))


def tell(*blocks: Block, err: bool = False) -> None:
    """Print lines and tables, made fit to show."""
    stream = sys.stderr if err else sys.stdout
    if stream.isatty() or any(isinstance(block, Table) for block in blocks):
        console = _console(err)
        with console.capture() as captured:
            for block in blocks:
                for part in _parts(block, console.is_terminal):
                    console.print(part, soft_wrap=getattr(part, "no_wrap", False))
        lines = [line.rstrip() for line in captured.get().splitlines()]
    else:  # as they are, and rich is not needed
        lines = [one_line(str(block), LONGEST) for block in blocks]
    click.echo("\n".join(lines), err=err)


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
    """A line, wrapped below its own beginning; a table."""
    from rich.padding import Padding
    from rich.panel import Panel
    from rich.text import Text

    if isinstance(block, Table):
        table: Any = _table(block, tty)
        if tty and not block.head:
            table = Panel(table, title=Text(block.title), title_align="left", expand=False)
        elif block.title:
            yield Text(one_line(block.title, LONGEST), style="bold")
        yield table
        return
    line = one_line(block, LONGEST)
    text = Text(line.lstrip(" "), overflow="fold")
    if text.plain.startswith("drainkit "):
        yield Text(line, no_wrap=True)  # a command that is broken into lines cannot be pasted
        return
    for pattern, style in _COLOURS.items():
        if found := re.match(pattern, text.plain):
            text.stylize(style, *found.span())
            break
    yield Padding(text, (0, 0, 0, len(line) - len(text.plain)))


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
        shown = (f"{v:,}" if type(v) is int else one_line(str(v), 2000) for v in row)
        table.add_row(*map(Text, shown))
    return table


_INTERRUPTED = threading.Event()


def interrupt(*_: object) -> NoReturn:
    """The program's handler of SIGINT and SIGTERM while nothing is drained."""
    _INTERRUPTED.set()  # an exception can get lost, in the destructor of an object, say
    raise KeyboardInterrupt


@contextmanager
def _handled(handler: Callable[..., object]) -> Iterator[None]:
    """Both signals go to the handler for a while."""
    before = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that the commit in flight can be finished."""
    stopping = threading.Event()
    if _INTERRUPTED.is_set():
        stopping.set()
    with _handled(lambda *_: stopping.set()):
        yield stopping


@contextmanager
def interruptible() -> Iterator[None]:
    """Within `stop_signals`: a question that a signal, or the end of the input, ends at once."""
    try:
        with _handled(interrupt):
            yield
    except (click.Abort, KeyboardInterrupt):
        raise InterruptedRunError("interrupted at the question; nothing was drained") from None


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
        """Show a line that another process printed, if it says how far a drain is."""
        from ..core.progress import Step

        if step := Step.read(line):
            self._show(step)

    def close(self) -> None:
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


def confirm(question: str, yes: bool, does: str = "this changes the server") -> None:
    """Ask on a terminal; without one, --yes is needed."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise RefusedError(f"{does}: say --yes when there is no terminal to ask on")
    width = max(20, shutil.get_terminal_size().columns - len(" [y/N]: "))
    if not click.confirm(textwrap.fill(one_line(question, LONGEST), width), err=True):
        raise RefusedError("not confirmed; nothing was done")


def tell_error(error: object) -> None:
    """An error or a warning of the program; a run's before its result, on which the eye ends."""
    if error:
        tell(f"drainkit: {error}", err=True)
