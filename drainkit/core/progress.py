"""How far a drain is, in words: the same line on a terminal, in a log and in a notebook."""

from __future__ import annotations

from dataclasses import dataclass, field

from .policy import ACTIONS
from .summary import Summary

STEPS = 10  # lines of a whole drain, where there is no terminal


@dataclass
class Tenths:
    """A line at each tenth of what a drain is to take."""

    _shown: int = field(default=0, init=False)

    def line(self, summary: Summary) -> str | None:
        """The line, if another tenth is done; else None."""
        tenth = summary.total_read * STEPS // summary.expected if summary.expected else 0
        if tenth <= self._shown:
            return None
        self._shown = tenth
        return progress_line(summary)


def progress_line(summary: Summary) -> str:
    """`drained 1,000 of 10,000, 5.0/s of 5, 30 min left, 412 passed`.

    The rate is that of the audit's ids so far, of the throttle if there is one.
    """
    rate, total = summary.pace.events_per_sec(), summary.expected
    parts = [f"drained {summary.total_read:,} of {total:,}"]
    limit = "" if summary.throttle is None else f" of {summary.throttle:g}"
    parts.append(f"{rate:,.1f}/s{limit}")
    if rate and total > summary.total_read:
        parts.append(f"{_span((total - summary.total_read) / rate)} left")
    return ", ".join([*parts, f"{summary.drained_ok:,} passed"])


def dropped(summary: Summary) -> int:
    """How many events so far did not pass."""
    return sum(getattr(summary, action) for action in ACTIONS if action != "drained_ok")


def _span(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} s"
