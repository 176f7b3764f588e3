"""02_dry_run: what a live run would do, and the plan."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from IPython.display import Markdown

from ..core.policy import ACTIONS
from ..core.summary import Summary, amount, duration_words
from ..draining import dry
from . import figures
from .session import SAMPLE_ROWS, Session, Table, markdown


class DryRun(Session):
    """02: decides as the live run would; with a run_dir saves the plan."""

    summary: Summary

    def __init__(self, *opened: Any) -> None:
        super().__init__(*opened)
        run_dir = self.run_dir
        self._samples: dict[str, list[dict[str, Any]]] = {action: [] for action in sorted(ACTIONS)}
        if self.folder_run_id and self.planned:  # the run applies a plan that was made before
            self.plan = self.planned.plan
            for block in self.planned.blocks():
                self._keep_samples(block)
            self.summary = self.job.begin()  # its books; only what remains is counted anew
            for name, events in {"total_read": self.plan.total_read, **self.plan.counts}.items():
                setattr(self.summary, name, events)
            self.job.close()
            return
        # only in a run do the notebooks have one boundary
        read = dry.kept(self.job, run_dir) if run_dir and self.folder_run_id else None
        path = run_dir and run_dir / "plan.json"
        self.summary, self.plan = dry.plan_run(
            self.job, path, pages=read, on_table=self._keep_samples
        )
        if run_dir is not None:
            self.summary.plan_path = "plan.json"
            if "-live-" not in run_dir.name:  # there run.json tells of the live run alone
                self.write_summary(self.summary)

    def bottom_line(self) -> Markdown:
        """What the live run would do, and how long it would take."""
        summary = self.summary
        left = (summary.remaining or 0) - summary.total_read
        more = f" {left:,} more entries of the scope lie beyond its limit of events." * (left > 0)
        takes = duration_words(summary.total_read, self.settings.throttle)
        return markdown(
            f"A live run would read **{amount(summary.total_read)}** and pass "
            f"**{summary.drained_ok:,}**: good signals, acknowledged and not executed; duration: "
            f"{takes}.{more}\n\nNothing was changed: no group moved, no consumer was made."
        )

    def waterfall(self) -> figures.Canvas:
        """From read to passed."""
        return figures.waterfall({action: getattr(self.summary, action) for action in ACTIONS})

    def _keep_samples(self, table: pa.Table) -> None:
        for action, found in self._samples.items():
            if room := SAMPLE_ROWS - len(found):
                found.extend(table.filter(pc.equal(table["action"], action))[:room].to_pylist())

    def samples(self, rows: int = 2) -> Table:
        """A few events of each action (at most 8), with the reason."""
        columns = ["action", "id", "symbol", "age_sec", "confidence", "reason", "failed"]
        shown = [event for found in self._samples.values() for event in found[:rows]]
        return Table(shown, columns=columns)

    def digest(self) -> Markdown:
        """The plan's digest, which arms the live run."""
        if self.run_dir is None:
            return markdown("No run_dir, so no plan was saved that could be approved.")
        # in a narrow window on two lines, whole; and in one piece for a script that looks for it
        digest = self.plan.digest
        shown = f'<code title="{digest}">{digest.replace(":", ":<wbr>")}</code>'
        return markdown(f"Plan digest, to approve exactly this plan:\n\n{shown}")
