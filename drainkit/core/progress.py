"""How much a drain has before it and how far it is, in words: the same wherever they stand."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .summary import Summary

_ONE = {"entries": "entry", "events": "event"}
STEPS = 10  # lines of a whole drain, where there is no terminal
_DRAINED = re.compile(r"drained ([\d,]+) of ([\d,]+), .*?([\d,]+) passed")


@dataclass(frozen=True)
class Step:
    """How far a run is: `done` of `total` events (0: not known), and the line that says it."""

    done: int
    total: int
    passed: int
    line: str

    @classmethod
    def of(cls, summary: Summary) -> Step:
        """`drained 1,000 of 10,000, 5.0/s of 5, 30 min left, 412 passed`.

        The rate is that of the audit's ids so far, of the throttle if there is one. A dry run
        decides as fast as it can.
        """
        done, total, passed = summary.total_read, summary.expected, summary.drained_ok
        if summary.mode != "live":
            return cls(done, total, passed, f"decided {done:,}, {passed:,} passed")
        rate = summary.pace.events_per_sec()
        limit = "" if summary.throttle is None else f" of {summary.throttle:g}"
        parts = [f"drained {done:,} of {total:,}"]
        if rate:  # else all came in one millisecond: no rate can be told
            parts.append(f"{rate:,.1f}/s{limit}")
            parts += [f"{span((total - done) / rate)} left"] * (total > done)
        return cls(done, total, passed, ", ".join([*parts, f"{passed:,} passed"]))

    @classmethod
    def read(cls, line: str) -> Step | None:
        """The step of a line that another process printed; None: it is another line."""
        found = _DRAINED.match(line)
        if found is None:
            return None
        done, total, passed = (int(number.replace(",", "")) for number in found.groups())
        return cls(done, total, passed, line)


@dataclass
class Tenths:
    """Which steps to show where there is no terminal: one at each tenth of a live drain."""

    _shown: int = field(default=0, init=False)

    def is_next(self, step: Step) -> bool:
        """Whether another tenth is done with this step."""
        tenth = step.done * STEPS // step.total if step.total else 0
        is_new, self._shown = tenth > self._shown, max(tenth, self._shown)
        return is_new


def span(seconds: float) -> str:
    """A duration as a reader says it: `90.5 s`, `30 min`, `2.4 h`."""
    sizes = ((86_400, "days"), (3600, "h"), (60, "min"), (1, "s"))
    size, unit = next((pair for pair in sizes if abs(seconds) >= 2 * pair[0]), sizes[-1])
    amount = seconds / size
    return f"{amount:,.0f} {unit}" if abs(amount) >= 999 else f"{amount:.3g} {unit}"


def amount(n: int, what: str = "entries") -> str:
    """`1 entry`, `2,000 events`."""
    return f"{n:,} {_ONE[what] if n == 1 else what}"


def entries_words(scope: str, entries: int, own: int) -> str:
    """`3,168 undelivered + 6 pending of this drain's own consumer = 3,174`.

    `entries` wait in all; `own` of them were left by an earlier run of the consumer, which a drain
    of scope undelivered finishes first (in the other scopes they are part of it).
    """
    if scope != "undelivered" or not own:
        return f"{entries:,} {scope}"
    told = f"{entries - own:,} {scope} + {own:,} pending of this drain's own consumer"
    return f"{told} = {entries:,}"


def duration_words(events: int, throttle: float | None) -> str:
    """How long a live drain of so many events takes."""
    if throttle is None:
        return "as fast as the server"
    return f"{span(events / throttle)} at {throttle:g} per second"


def next_run_words(
    entries: int, max_events: int | None, throttle: float | None, them: str = "them"
) -> str:
    """What the next run would take of what waits (`them`), and how long that lasts."""
    taken = entries if max_events is None else min(entries, max_events)
    all_of = "all" if taken == entries else f"the first {taken:,}"
    return f"{all_of} of {them}, {duration_words(taken, throttle)}"
