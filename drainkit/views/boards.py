"""monitor: all streams at a glance; maintenance: dead consumers and trimming. Steps of no run."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from IPython.display import Markdown
from msgspec import to_builtins

from ..core.summary import amount, span
from ..core.values import iso
from ..errors import RefusedError
from ..operations import checks, maintenance
from ..operations.state import drains, group_rows
from ..safe import text, verbatim
from ..server import ledger
from ..server.connection import Server
from ..settings.kinds import Amount, Minutes
from .session import Session, Table, cell, markdown

GROUP_COLUMNS = (
    "undelivered", "lost", "lag reported", "they agree", "pending", "oldest, min", "oldest by",
    "oldest pending, min", "dead consumers",
)  # fmt: skip
#: Of these entries it is the age: where there is none of them, there is no age.
AGES = {"oldest, min": "undelivered", "oldest by": "undelivered", "oldest pending, min": "pending"}


class Monitor(Session):
    """Every stream of a pattern, its groups, drains and runs; reads only."""

    extra: ClassVar = {
        "pattern": (str | None, None), "max_backlog": (Amount, 1000),
        "max_backlog_age_min": (Amount, 60), "max_lost": (Amount, 0),
    }  # fmt: skip
    is_of_run = False

    @cached_property
    def report(self) -> checks.Report:
        """What `drainkit check` says, as of when it was first asked for."""
        limits = checks.Limits(
            max_backlog=int(self.given["max_backlog"]),
            max_age_min=self.given["max_backlog_age_min"],
            max_lost=int(self.given["max_lost"]),
        )
        pattern = self.given["pattern"] or None
        return checks.check(self.server, self.settings, limits, pattern=pattern, audits=True)

    def _each(self) -> Iterator[Server]:
        """The stream's server; with a pattern that of each stream that was looked at."""
        if not self.given["pattern"]:
            yield self.server
            return
        for state in self.report.states:
            with Server.of(self.settings, state["stream"]["name"]) as server:
                yield server

    def drains_table(self) -> Table:
        """Drains that have started and not ended."""
        columns = ["state", "stream", "run_id", "done", "remaining", "per second", "left"]
        rows = [
            ("running" if run["alive"] else "never ended", text(one.stream), run["run_id"],
             run["done"], run["remaining"], run["events_per_sec"],
             "unknown" if run["eta_sec"] is None else span(run["eta_sec"]))
            for one in self._each() for run in drains(one)[0]
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


class Maintenance(Session):
    """Dead consumers and trimming; lists only, unless told to act."""

    extra: ClassVar = {
        "min_idle_min": (Minutes, 60), "keep_days": (Amount | None, None),
        "delete_consumers": (bool, False), "apply_trim": (bool, False),
        "archive": (str | None, None),
    }  # fmt: skip
    is_of_run = False

    @property
    def min_idle_ms(self) -> int:
        """Dead means idle at least so long."""
        return int(self.given["min_idle_min"] * 60_000)

    def _dead(self) -> list[dict[str, Any]]:
        group = self.settings.consumer_group
        return maintenance.dead_consumers(self.server, group, min_idle_ms=self.min_idle_ms)

    def bottom_line(self) -> Markdown:
        """What could be cleaned up."""
        dead, keep_days = self._dead(), self.given["keep_days"]
        free = sum(not c["why_kept"] for c in dead)
        text = f"**{free} of {len(dead)} dead consumers** can be removed without losing an entry. "
        try:
            plan = maintenance.trim_plan(self.server, keep_days=keep_days)
        except RefusedError as error:
            return markdown(text + verbatim(str(error)))
        text += f"A trim would remove **{plan.entries:,} of {plan.length:,} entries**"
        text += "" if keep_days is None else f"; what is younger than {keep_days:g} days stays"
        held = "; ".join(verbatim(f"{g}: {why}") for g, why in plan.held_by.items())
        return markdown(text + (f", held back by {held}." if held else "."))

    def consumers_table(self) -> Table:
        """Dead consumers, and why some must stay."""
        rows = [(c["name"], c["pending"], round(c["idle_ms"] / 60_000, 1), c["why_kept"])
                for c in self._dead()]  # fmt: skip
        return Table(rows, columns=["consumer", "pending", "idle, min", "why it stays"])

    def delete_dead(self) -> Markdown:
        """Remove those that are safe to remove, if told to."""
        if not self.given["delete_consumers"]:
            return markdown("`delete_consumers` is off: nothing was removed.")
        names = [c["name"] for c in self._dead() if not c["why_kept"]]
        removed, kept = maintenance.remove_consumers(
            self.server, self.settings.consumer_group, names,
            min_idle_ms=self.min_idle_ms, operator=self.settings.operator,
        )  # fmt: skip
        return markdown(f"**{len(removed)} removed**, {len(kept)} stayed.")

    def trim(self) -> Markdown:
        """Remove what no group needs, archived first, if told to."""
        if not self.given["apply_trim"]:
            return markdown("`apply_trim` is off: nothing was removed.")
        plan = maintenance.trim_plan(self.server, keep_days=self.given["keep_days"])
        archive, operator = self.given["archive"], self.settings.operator
        path = Path(archive) if archive else None
        removed = maintenance.trim(self.server, plan, archive=path, operator=operator)
        kept = f", archived first in {verbatim(archive)}" if archive else ""
        return markdown(f"**{amount(removed)} removed**{kept}.")
