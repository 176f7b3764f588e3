"""What a terminal sees: results, tables, questions, progress, signals; a run's report, the cards.

rich lays out and colours, on a terminal only: in a pipe each line is what it was given as. Its
markup is never read, so `[red]` in a name is text.
"""

from __future__ import annotations

import io
import json
import os
import select
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ..errors import SIGNALS, RefusedError
from ..safe import one_line, struck

if TYPE_CHECKING:
    from ..core.plan import Plan
    from ..core.summary import Summary

PIPE_WIDTH = 10_000  # columns; nothing is wrapped in a pipe
LONGEST = 10_000  # characters of a line; 2,000 of a cell
_CLEARED = "\r\x1b[K"  # the terminal's line, from its beginning
#: What is coloured at the beginning of a line.
_COLOURS = {
    r"^(drainkit|CRITICAL|Died|Errors: [1-9]\d*)(?=:|$)": "bold red",
    r"^(WARNING|UNKNOWN|Running|Backlog)(?=:)": "yellow",
    r"^(OK(?=:)|All well|Drained OK(?=:))": "green",
    r"^[A-Z][\w ()]{1,30}(?=: )": "bold",
}


class Outlet(io.FileIO):
    """A standard stream whose end is not its program's: what it cannot print is gone, no more.

    A full disk, a reader who left and a stream that was closed all end here. It has no buffer,
    which a signal in the middle of a write would leave to be printed a second time.
    """

    lost: OSError | None = None  # why something could not be printed

    def write(self, data: Any) -> int:
        """Print what can be printed; all counts as written."""
        left = memoryview(data)
        try:
            while left:
                if (written := super().write(left)) is None:  # a full pipe that does not wait
                    select.select([], [self], [])
                left = left[written or 0 :]
        except OSError as error:
            self.lost = error
        return len(data)


def safe_streams() -> Outlet:
    """Put outlets in the place of stdout and stderr; the former's."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file or socket, a child's too, would be the stream
            os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True)
    sys.stdin = sys.stdin or open(0, encoding="utf-8")  # noqa: SIM115 - until the end
    outlets = [Outlet(descriptor, "w", closefd=False) for descriptor in (1, 2)]
    for name, outlet in zip(("stdout", "stderr"), outlets, strict=True):
        before = getattr(sys, name)
        encoding = getattr(before, "encoding", "utf-8")
        errors = getattr(before, "errors", "backslashreplace")
        setattr(sys, name, io.TextIOWrapper(outlet, encoding, errors, line_buffering=True))
    return outlets[0]


@dataclass(frozen=True)
class Table:
    """Rows of texts and numbers; without a head the first column names the second: a card."""

    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    title: str = ""


Block = str | Table  # a line, whatever text from outside is in it, or a table of such texts


def wants_json() -> bool:
    """Whether the command was called with --json."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get("json"))


def emit(data: Any, *blocks: Block) -> None:
    """Print the result: with --json one object, else lines and tables."""
    if wants_json():
        click.echo(json.dumps(struck(data), ensure_ascii=True))
    else:
        tell(*blocks)


def tell(*blocks: Block, err: bool = False) -> None:
    """Print lines and tables, made fit to show."""
    stream = sys.stderr if err else sys.stdout
    tty = stream.isatty()
    lines = [one_line(block, LONGEST) for block in blocks if isinstance(block, str)]
    if not tty and len(lines) == len(blocks):
        click.echo("\n".join(lines), err=err)  # as it is, and rich is not needed
        return
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(
        file=stream, force_terminal=tty, width=None if tty else PIPE_WIDTH, markup=False,
        highlight=False, emoji=False,
        color_system="auto" if tty and not os.environ.get("NO_COLOR") else None,
    )  # fmt: skip
    with console.capture() as captured:
        for block in blocks:
            if not isinstance(block, str):
                console.print(*_laid_out(block, tty), sep="\n")
                continue
            text = Text((line := lines.pop(0)).lstrip(" "), overflow="fold")
            for pattern, style in _COLOURS.items():
                text.highlight_regex(pattern, style)
            # a command that is broken into lines cannot be pasted; others go on below their start
            is_command = text.plain.startswith("drainkit ")
            indented = Padding(text, (0, 0, 0, len(line) - len(text.plain)))
            console.print(line if is_command else indented, soft_wrap=is_command)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()), err=err)


def _laid_out(block: Table, tty: bool) -> list[Any]:
    """For rich: a table below its title, or a card within its frame."""
    from rich import box
    from rich.panel import Panel
    from rich.table import Table as RichTable
    from rich.text import Text

    is_card, title = not block.head, Text(one_line(block.title, LONGEST), style="bold")
    table = RichTable(
        box=box.SIMPLE_HEAD if tty and not is_card else None, show_header=not is_card,
        padding=(0, 2, 0, 0), pad_edge=False, show_edge=False,
    )  # fmt: skip
    for place, column in enumerate(zip(*block.rows, strict=True) if block.rows else block.head):
        numbers = bool(block.rows) and all(isinstance(value, int) for value in column)
        table.add_column(
            Text("" if is_card else block.head[place]),
            justify="right" if numbers else "left",
            style="bold" if is_card and place == 0 else "",
            no_wrap=numbers or place == 0,
            overflow="fold",
        )
    for row in block.rows:
        shown = (f"{v:,}" if type(v) is int else one_line(str(v), 2000) for v in row)
        table.add_row(*map(Text, shown))
    if is_card and tty:
        return [Panel(table, title=title, title_align="left", expand=False)]
    return [title, table] if block.title else [table]


def tell_error(error: object) -> None:
    """An error or a warning of the program; a run's before its result, on which the eye ends."""
    tell(f"drainkit: {error}", err=True)


_STOPPING = threading.Event()  # a signal came


def interrupt(*_: object) -> NoReturn:
    """The program's handler of SIGNALS while nothing is drained."""
    _STOPPING.set()  # an exception can get lost, in the destructor of an object, say
    raise KeyboardInterrupt


@contextmanager
def signals(handler: Callable[..., object] | None = None) -> Iterator[threading.Event]:
    """SIGNALS go to the handler for a while; without one they set the event alone, so that the
    commit in flight can be finished."""
    to = handler or (lambda *_: _STOPPING.set())
    before = {number: signal.signal(number, to) for number in SIGNALS}
    try:
        yield _STOPPING
    finally:
        for number, former in before.items():
            signal.signal(number, former)


class Progress:
    """How far a drain is: one line that moves on a terminal; elsewhere a line at each tenth."""

    _is_shown, _tenth = False, 0

    def show(self, of: Summary | str) -> None:
        """By a run's books, or by a line that another process printed, if it is such a step."""
        from ..core.summary import Step

        step = Step.read(of) if isinstance(of, str) else Step.of(of)
        if step and sys.stderr.isatty():
            words = f"{step.line}, {step.done - step.passed:,} dropped"
            columns = shutil.get_terminal_size().columns - 1
            click.echo(_CLEARED + words[:columns], err=True, nl=False)
            self._is_shown = True
        elif step and step.done * 10 >= step.total * (self._tenth + 1) > 0:
            self._tenth = step.done * 10 // step.total
            click.echo(step.line, err=True)

    def close(self) -> None:
        """Take the line away, so that others can be printed."""
        if self._is_shown:
            click.echo(_CLEARED, err=True, nl=False)
        self._is_shown = False


def confirm(question: str, yes: bool, does: str = "this changes the server") -> None:
    """Ask on a terminal; without one, --yes is needed."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise RefusedError(f"{does}: say --yes when there is no terminal to ask on")
    width = max(20, shutil.get_terminal_size().columns - len(" [y/N]: "))
    if not click.confirm(textwrap.fill(one_line(question, LONGEST), width), err=True):
        raise RefusedError("not confirmed; nothing was done")


# ---------------------------------------------------------------- a run's report, and the cards

#: The original report's lines and more, each with its key in run.json.
REPORT_LINES = {
    "Mode": "mode", "Total Read": "total_read", "Dropped (old)": "dropped_old",
    "Dropped (not allowlisted)": "dropped_not_allowlisted",
    "Dropped (low confidence)": "dropped_low_conf", "Dropped (invalid)": "dropped_invalid",
    "Dropped (missing)": "dropped_missing", "Drained OK": "drained_ok", "Errors": "errors",
    "Elapsed": "elapsed_sec", "Throughput": "events_per_sec", "Remaining": "remaining",
    "Run": "run_id", "Vanished (deleted by others)": "vanished",
    "Passed over (taken by others)": "passed_over", "Plan": "plan_path",
    "Plan digest": "plan_digest", "Evidence": "evidence",
}  # fmt: skip
# shown where there is something to say; of the others what is not known is said to be unknown
_OPTIONAL = {"vanished", "passed_over", "plan_path", "plan_digest", "evidence"}


def report(result: Mapping[str, Any]) -> list[Block]:
    """The original report's lines, and what became of a plan otherwise than planned."""
    from ..core.summary import amount

    rate, throttle, evidence = map(result.get, ("events_per_sec", "throttle", "evidence"))
    mode, read, shown = str(result.get("mode", "")), result.get("total_read") or 0, dict(result)
    shown |= {"mode": mode.upper(), "elapsed_sec": f"{result.get('elapsed_sec', 0):.2f}s"}
    if rate is not None:
        shown["events_per_sec"] = f"{rate:.2f} events/sec"
    elif mode != "live":  # how long the live run takes
        takes = throttle and f"takes {read / throttle:,.1f} s at {throttle:g} events/sec"
        shown["events_per_sec"] = f"a live run {takes or 'goes as fast as the server'}"
    if evidence and result.get("plan_path"):  # as seen from where the person is
        shown["plan_path"] = f"{evidence}/{result['plan_path']}"
    blocks: list[Block] = []
    if changed := result.get("drift"):
        n = sum(change["events"] for change in changed)
        title = f"Drift: {amount(n, 'events')} met another fate than planned"
        title += "; drift.parquet names each" if evidence else ""
        rows = [[c["events"], c["planned"], c["happened"]] for c in changed]
        blocks.append(Table(("Events", "Planned", "Happened"), rows, title))
    if (result.get("dropped_invalid") or 0) * 2 > read:
        blocks.append("Most events cannot be read; drainkit fields says why, and what would help.")
    for name, key in REPORT_LINES.items():
        if shown.get(key) or key not in _OPTIONAL:
            blocks.append(f"{name}: {'unknown' if shown.get(key) is None else shown[key]}")
    if mode == "dry-run":
        good = result.get("drained_ok", 0)
        blocks.append(f"A live run acknowledges {good:,} good signals and executes none of them.")
    return [*blocks, *(f"Note: {note}" for note in result.get("notes") or ())]


def plan_rows(plan: Plan, waiting: str = "") -> list[tuple[str, str]]:
    """Where a plan drains, what waits there, and what it would do."""
    from ..core.summary import duration_words

    policy, allowed = plan.policy, plan.policy["allowlist"]
    # what is pending lies before the position
    after = "" if plan.scope == "pending" else f" after {plan.history_position or plan.position}"
    others = ", ".join(f"{n:,} {a}" for a, n in plan.counts.items() if n and a != "drained_ok")
    limit = "no limit" if plan.max_events is None else f"at most {plan.max_events:,}"
    return [
        ("Environment", plan.environment or "none (no --env)"),
        ("Stream", plan.stream),
        ("Audit", plan.audit_stream),
        ("Group", f"{plan.consumer_group}, as {plan.consumer_name}"),
        ("Scope", f"{plan.scope},{after} up to {plan.boundary_id}"
                  + (f" (until {plan.until})" if plan.until else "")),
        *([("Waiting", waiting)] if waiting else []),
        ("Passes", f"{'any symbol' if allowed is None else ', '.join(allowed)}; confidence from "
                   f"{policy['min_conf']:g}; up to {policy['max_age_min']:g} min old"
                   + (f", as of {plan.as_of}" if plan.as_of else "")),
        ("Entries", f"{plan.total_read:,} ({limit}), {plan.first_id or 'none'} to "
                    f"{plan.last_id or 'none'}"),
        ("Would pass", f"{plan.counts.get('drained_ok', 0):,} drained_ok: still good signals, "
                       "acknowledged and NOT executed" + (f"; not: {others}" if others else "")),
        ("Duration", duration_words(plan.total_read, plan.throttle)),
    ]  # fmt: skip


def fields_blocks(found: dict[str, Any]) -> list[Block]:
    """Why events cannot be read, which fields there are (core.fields.examine), what would help."""
    reasons = [(events, reason) for reason, events in found["reasons"].items()]
    rows = [
        (value, *list(row.values())[:3], "yes" if row["chosen"] else "")
        for value, paths in found["fields"].items() for row in paths
    ]  # fmt: skip
    advice = "All of them can be read; no lines are needed."
    if found["snippet"]:
        readable = f"{found['readable']:,} of {found['entries']:,} entries"
        advice = (f"With these lines in drainkit.toml {readable} can be read; "
                  "check that each field means what it is proposed for:")  # fmt: skip
    elif found["unreadable"]:
        advice = ("No field fits by its name: name those that hold symbol and confidence (0..1) "
                  "under [fields] in drainkit.toml, or mend the producer.")  # fmt: skip
    return [
        *([Table(("Events", "Reason"), reasons, f"{found['unreadable']:,} events cannot be read "
                 "(dropped_invalid):")] if reasons else []),
        Table(("Value", "Path", "Entries", "Example", "Chosen"), rows,
              f"Fields of {found['entries']:,} entries, spread over the backlog:"),
        advice,
        *found["snippet"].splitlines(),
    ]  # fmt: skip
