"""What monitor.ipynb and maintenance.ipynb call: all streams at a glance, and safe cleaning up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pandas as pd

from . import figures, ledger, maintenance, monitor, stream
from .audit import parse
from .errors import RefusedError, UsageError, one_line
from .notebook import Session, markdown, safe
from .server import Server
from .settings import MAX_MIN, Settings

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from IPython.display import Markdown


class Monitor(Session):
    """Every stream of a pattern, its groups, pending, audit and runs; reads only."""

    extra: ClassVar[tuple[str, ...]] = ("pattern", "max_backlog", "max_backlog_age_min")

    def __init__(self, settings: Settings, server: Server, run_dir: Path | None) -> None:
        self.settings, self.server, self.run_dir = settings, server, run_dir
        self.states: list[monitor.StreamState] = []
        self.report = monitor.Report()

    @classmethod
    def open(cls, names: Mapping[str, Any]) -> Self:
        """Open with the notebook's `globals()`."""
        board = super().open(names)
        pattern = names.get("pattern") or None
        if not isinstance(pattern, str | None):
            raise UsageError("pattern takes a glob pattern of stream names, as a text")
        limits = monitor.Limits(
            max_backlog=_whole(names, "max_backlog"),
            max_age_min=float(_whole(names, "max_backlog_age_min")),
        )
        board.report = monitor.check(
            board.server, board.settings, limits, pattern=pattern, audits=True
        )
        board.states = board.report.states
        return board

    def bottom_line(self) -> Markdown:
        """The worst finding and how many there are."""
        bad = [f for f in self.report.findings if f.severity != "ok"]
        lines = "\n".join(f"- {_verbatim(f.line())}" for f in bad)
        verdict = f"**{self.report.severity.upper()}**: {len(self.states)} streams looked at"
        return markdown(f"{verdict}, {len(bad)} findings.\n\n{lines}")

    def groups_table(self) -> pd.DataFrame:
        """Each group: backlog counted, lag as reported, whether they agree, ages, consumers."""
        rows = [
            {
                "stream": state.info.name,
                "group": g.group.name,
                "undelivered": g.undelivered,
                "lag reported": _known(g.group.lag_reported),
                "they agree": _known(g.lag_agrees),
                "pending": g.group.pending,
                "oldest, min": _minutes(g.oldest_age_sec),
                "oldest pending, min": _minutes(g.oldest_pending_age_sec),
                "dead consumers": g.consumers["dead"],
            }
            for state in self.states
            for g in state.groups
        ]
        return safe(pd.DataFrame(rows))

    def pending_table(self) -> pd.DataFrame:
        """Pending entries by consumer, most first."""
        rows = [
            {"stream": s.info.name, "group": g.group.name, "consumer": name, "pending": n}
            for s in self.states
            for g in s.groups
            for name, n in g.pending_by_consumer.items()
        ]
        frame = pd.DataFrame(rows, columns=["stream", "group", "consumer", "pending"])
        return safe(frame.sort_values("pending", ascending=False).head(20))

    def audit_growth(self) -> go.Figure:
        """Audit records of the stream over time, by action."""
        keys = self.server.keys(self.settings.audit_stream)
        records: list[tuple[int, str]] = []
        for page in stream.pages(self.server, keys.audit, stream.FIRST_ID, stream.LAST_ID):
            records += [(stream.id_key(e[0])[0], parse(e).action) for e in page]
        times = pd.to_datetime([ms for ms, _ in records], unit="ms", utc=True).as_unit("us")
        frame = pd.DataFrame({"event_time": times, "action": [a for _, a in records]})
        return figures.arrivals(frame)

    def runs_table(self) -> pd.DataFrame:
        """The newest runs of the ledger, and those still under way."""
        keys = self.server.keys(self.settings.audit_stream)
        columns = ["run_id", "event", "scope", "total_read", "drained_ok", "outcome", "at"]
        rows = [e for e in ledger.entries(self.server, keys) if e.get("event") != "evidence"]
        return safe(pd.DataFrame(rows[-20:], columns=columns))

    def running(self) -> Markdown:
        """Drains that have started and not ended."""
        keys = self.server.keys(self.settings.audit_stream)
        lines = [run.line() for run in monitor.running_drains(self.server, keys)]
        return markdown("\n".join(f"- {line}" for line in lines) or "No drain is under way.")


class Maintenance(Session):
    """Dead consumers and trimming; lists only, unless told to act."""

    extra: ClassVar[tuple[str, ...]] = (
        "min_idle_min", "delete_consumers", "apply_trim", "archive",
    )  # fmt: skip

    def __init__(self, settings: Settings, server: Server, run_dir: Path | None) -> None:
        self.settings, self.server, self.run_dir = settings, server, run_dir
        self.keys = server.keys(settings.audit_stream)
        self.delete, self.apply, self.archive = False, False, ""
        self.min_idle_ms = round(settings.min_idle_min * 60_000)

    @classmethod
    def open(cls, names: Mapping[str, Any]) -> Self:
        """Open with the notebook's `globals()`."""
        board = super().open(names)
        board.delete = _flag(names, "delete_consumers")
        board.apply = _flag(names, "apply_trim")
        board.archive = str(names.get("archive") or "")
        idle_min = names.get("min_idle_min", 60)
        is_number = isinstance(idle_min, int | float) and not isinstance(idle_min, bool)
        if not is_number or not 0 <= idle_min <= MAX_MIN:
            raise UsageError("min_idle_min must be a number of minutes, 0 or more")
        board.min_idle_ms = round(idle_min * 60_000)
        return board

    def bottom_line(self) -> Markdown:
        """What could be cleaned up."""
        dead = self._dead()
        free = sum(not c.why_kept for c in dead)
        text = f"**{free} of {len(dead)} dead consumers** can be removed without losing an entry. "
        return markdown(text + self._trim_line())

    def consumers_table(self) -> pd.DataFrame:
        """Dead consumers, and why some must stay."""
        rows = [
            {"consumer": c.name, "pending": c.pending, "idle, min": round(c.idle_ms / 60_000, 1),
             "why it stays": c.why_kept}
            for c in self._dead()
        ]  # fmt: skip
        return safe(
            pd.DataFrame(rows, columns=["consumer", "pending", "idle, min", "why it stays"])
        )

    def delete_dead(self) -> Markdown:
        """Remove those that are safe to remove, if told to."""
        if not self.delete:
            return markdown("`delete_consumers` is off: nothing was removed.")
        names = [c.name for c in self._dead() if not c.why_kept]
        removed, kept = maintenance.remove_consumers(
            self.server, self.keys, self.settings.consumer_group, names,
            min_idle_ms=self.min_idle_ms,
        )  # fmt: skip
        return markdown(f"**{len(removed)} removed**, {len(kept)} stayed.")

    def trim(self) -> Markdown:
        """Remove what no group needs, archived first, if told to."""
        if not self.apply:
            return markdown("`apply_trim` is off: nothing was removed.")
        plan = maintenance.trim_plan(self.server, self.keys)
        archive = Path(self.archive) if self.archive else None
        removed = maintenance.trim(self.server, self.keys, plan, archive=archive)
        kept = f", archived first in {one_line(self.archive)}" if archive else ""
        return markdown(f"**{removed:,} entries removed**{kept}.")

    def _dead(self) -> list[maintenance.DeadConsumer]:
        group = self.settings.consumer_group
        return maintenance.dead_consumers(
            self.server, self.keys, group, min_idle_ms=self.min_idle_ms
        )

    def _trim_line(self) -> str:
        try:
            plan = maintenance.trim_plan(self.server, self.keys)
        except RefusedError as error:
            return _verbatim(str(error))
        held = "; ".join(f"{_verbatim(g)}: {one_line(why)}" for g, why in plan.held_by.items())
        text = f"A trim would remove **{plan.entries:,} of {plan.length:,} entries**"
        return text + (f", held back by {held}." if held else ".")


def _verbatim(text: str) -> str:
    """A text from outside for Markdown: within backticks nothing of it is markup."""
    return "`" + one_line(text, 600).replace("`", "'") + "`"


def _whole(names: Mapping[str, Any], name: str) -> int:
    value = names.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UsageError(f"{name} must be a whole number, 0 or more")
    return value


def _flag(names: Mapping[str, Any], name: str) -> bool:
    value = names.get(name, False)
    if value in (True, False):
        return bool(value)
    if value in ("true", "false"):  # papermill's -p gives text
        return bool(value == "true")
    raise UsageError(f"{name} must be true or false")


def _known(value: object) -> str:
    return "unknown" if value is None else str(value)


def _minutes(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds / 60:,.1f}"
