"""monitor: all streams at a glance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

from IPython.display import Markdown
from msgspec import to_builtins

from ..core.summary import span
from ..core.values import iso
from ..operations import checks
from ..operations.first import running_drains
from ..operations.state import group_rows
from ..safe import text
from ..server import ledger
from ..server.connection import Server
from ..settings.kinds import Amount
from .session import Session, Table, cell, checked, markdown

GROUP_COLUMNS = (
    "undelivered", "lost", "lag reported", "they agree", "pending", "oldest, min", "oldest by",
    "oldest pending, min", "dead consumers",
)  # fmt: skip
#: Of these entries it is the age: where there is none of them, there is no age.
AGES = {"oldest, min": "undelivered", "oldest by": "undelivered", "oldest pending, min": "pending"}


class Monitor(Session):
    """Every stream of a pattern, its groups, drains and runs; reads only."""

    extra = ("pattern", "max_backlog", "max_backlog_age_min", "max_lost")
    is_of_run = False

    pattern: str | None
    limits: checks.Limits
    report: checks.Report

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
        board.report = checks.check(
            board.server, board.settings, board.limits, pattern=board.pattern, audits=True
        )
        return board

    def _each(self) -> Iterator[Server]:
        """The stream's server; with a pattern that of each stream that was looked at."""
        if self.pattern is None:
            yield self.server
        for state in self.report.states if self.pattern else ():
            with Server.of(self.settings, state["stream"]["name"]) as server:
                yield server

    def drains_table(self) -> Table:
        """Drains that have started and not ended."""
        columns = ["state", "stream", "run_id", "done", "remaining", "per second", "left"]
        rows = [
            ("running" if run.alive else "never ended", text(one.stream), run.run_id, run.done,
             run.remaining, run.events_per_sec,
             "unknown" if run.eta_sec is None else span(run.eta_sec))
            for one in self._each() for run in running_drains(one)
        ]  # fmt: skip
        return Table(rows, columns=columns)

    def bottom_line(self) -> Markdown:
        """The worst finding, how many there are, and as of when."""
        bad = sum(f.severity != "ok" for f in self.report.findings)
        at = iso(self.server.now_us())[:19].replace("T", " ")
        return markdown(
            f"**{self.report.severity.upper()}** as of {at} UTC; streams looked at: "
            f"{len(self.report.states):,}; findings: {bad:,}."
        )

    def groups_table(self) -> Table:
        """Each group (or stream that could not be read), the worst first: findings, all numbers."""
        groups = {(r["stream"], r["group"]): r for s in self.report.states for r in group_rows(s)}
        rows: dict[tuple[str, str | None], dict[str, Any]] = {}
        for f in self.report.findings:  # the worst first
            there = groups.get((f.stream, f.group), {})
            row = rows.setdefault((f.stream, f.group), {
                "state": f.severity, "stream": f.stream, "group": f.group or "", "why": [],
                **{n: "none" if there.get(AGES.get(n, "")) == 0 else cell(there[n]) if there else ""
                   for n in GROUP_COLUMNS},
            })  # fmt: skip
            row["why"] += [f.text] * (f.severity != "ok")
        shown = [{**row, "why": "; ".join(row["why"])} for row in rows.values()]
        return Table(shown, columns=["state", "stream", "group", "why", *GROUP_COLUMNS])

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
        return Table(rows[-20:], columns=columns)
