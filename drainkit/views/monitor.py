"""monitor: all streams at a glance."""

from __future__ import annotations

import asyncio
import html
import os
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import pandas as pd
import pyarrow as pa
from IPython.display import HTML, Markdown
from msgspec import to_builtins

from ..core.policy import audit_ms, audit_schema, audit_table
from ..core.timestamps import iso
from ..errors import DrainkitError
from ..operations import checks
from ..operations.state import group_rows, running_drains
from ..safe import text
from ..server import ledger
from ..server.connection import Server
from ..settings.kinds import Amount
from . import figures
from .explore import person_is_here
from .session import Session, Table, checked, groups_frame, inert, macros, markdown

GROUP_COLUMNS = (
    "stream", "group", "undelivered", "lost", "lag reported", "they agree", "pending",
    "oldest, min", "oldest by", "oldest pending, min", "dead consumers",
)  # fmt: skip
REFRESH_SEC = 60


class Monitor(Session):
    """Every stream of a pattern, its groups, pending, audit and runs; reads only."""

    extra = ("pattern", "max_backlog", "max_backlog_age_min", "max_lost")
    is_of_run = False

    _next: ClassVar[asyncio.TimerHandle | None] = None  # when to look again
    pattern: str | None
    limits: checks.Limits
    report: checks.Report  # of the latest look
    states: list[dict[str, Any]]  # the streams that were looked at, as JSON has them

    @classmethod
    def open(cls, names: Mapping[str, Any]) -> Self:
        """Open with the notebook's `globals()`."""
        board = super().open(names)
        board.pattern = checked(names, "pattern", str | None) or None
        board.limits = checks.Limits(
            max_backlog=int(checked(names, "max_backlog", Amount)),
            max_age_min=checked(names, "max_backlog_age_min", Amount),
            max_lost=int(checked(names, "max_lost", Amount, 0)),
        )
        board.look()
        return board

    def look(self) -> None:
        """Look at the server anew."""
        self.report = checks.check(
            self.server, self.settings, self.limits, pattern=self.pattern, audits=True
        )
        self.states = self.report.states

    def _each(self) -> Iterator[Server]:
        """The stream's server; with a pattern that of each stream that was looked at."""
        if self.pattern is None:
            yield self.server
        for state in self.states if self.pattern else ():
            with Server.of(self.settings, state["stream"]["name"]) as server:
                yield server

    def board(self) -> Any:
        """Each group's state and numbers, and drains at work.

        Where a person or Voila is it looks again each minute.
        """
        is_served = os.environ.get("SERVER_SOFTWARE", "").startswith("voila")
        if not (is_served or person_is_here()):
            return HTML(self._board_html())  # type: ignore[no-untyped-call]
        import ipywidgets as w

        place = w.HTML(self._board_html())
        if Monitor._next is not None:  # of this kernel's board before
            Monitor._next.cancel()

        def look_again() -> None:
            try:
                self.look()
                place.value = self._board_html()
            except DrainkitError as error:  # what is shown would be taken for the present
                place.value = f"<p>{html.escape(str(error))}</p>"
            wait()

        def wait() -> None:
            Monitor._next = asyncio.get_running_loop().call_later(REFRESH_SEC, look_again)

        wait()
        return place

    def _board_html(self) -> str:
        """Each group's state and numbers, drains without an end, and as of when."""
        rows = {(r["stream"], r["group"]): r for s in self.states for r in group_rows(s)}
        at = iso(self.server.now_us())[:19].replace("T", " ")
        drains = [(text(one.stream), run) for one in self._each() for run in running_drains(one)]
        return str(macros().board(at, rows, self.report.findings, drains))

    def bottom_line(self) -> Markdown:
        """The worst finding and how many there are; the board tells each."""
        bad = sum(f.severity != "ok" for f in self.report.findings)
        return markdown(
            f"**{self.report.severity.upper()}**; streams looked at: {len(self.states):,}; "
            f"findings: {bad:,}."
        )

    def groups_table(self) -> Table:
        """Each group: backlog counted, lag as reported, whether they agree, ages, consumers."""
        return Table(groups_frame(*self.states, columns=GROUP_COLUMNS).reset_index())

    def pending_table(self) -> Table:
        """Pending entries by consumer, most first."""
        rows = [
            (s["stream"]["name"], g["name"], consumer["name"], consumer["pending"])
            for s in self.states
            for g in s["groups"]
            for consumer in g["consumer_list"]
            if consumer["pending"]
        ]
        frame = pd.DataFrame(rows, columns=["stream", "group", "consumer", "pending"])
        return inert(frame.sort_values("pending", ascending=False).head(20))

    def audit_growth(self) -> figures.Canvas:
        """Audit records of the streams over time, by action."""
        pages = [audit_table(page) for one in self._each() for page in ledger.audit_pages(one)]
        table = pa.concat_tables([audit_schema().empty_table(), *pages])
        times = pd.to_datetime(audit_ms(table), unit="ms", utc=True).as_unit("us")
        frame = pd.DataFrame({"event_time": times, "action": table["action"].to_pandas()})
        return figures.arrivals(frame, "time of the drain (UTC)")

    def runs_table(self) -> Table:
        """The newest of the ledgers: runs, and what operators did."""
        columns = ["at", "stream", "event", "outcome", "run_id", "total_read", "drained_ok",
                   "operator", "reason", "scope", "entries", "removed"]  # fmt: skip
        rows = [
            {"stream": text(one.stream), **to_builtins(entry)}
            for one in self._each()
            for entry in ledger.entries(one)
            if not isinstance(entry, ledger.Sealed)
        ]
        rows.sort(key=lambda row: str(row.get("at")))
        return inert(pd.DataFrame(rows[-20:], columns=columns))
