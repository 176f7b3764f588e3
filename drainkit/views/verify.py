"""04_verify: whether the books balance, from the server's own data."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from IPython.display import Markdown

from .. import files
from ..core.policy import ACTIONS, audit_schema
from ..core.reconciliation import Recorded
from ..core.summary import amount
from ..core.verdicts import BOOKS, NO, Verdict, left_of, verdicts
from ..draining.live import vanished_ids
from ..errors import DrainkitError
from ..late import collection_paused
from ..operations.state import baseline
from ..safe import text, verbatim
from ..server import ledger, reading
from . import figures
from .session import Session, Table, groups_frame, listed, markdown


class Verification(Session):
    """04: before and after, plan against audit against group.

    With a run_dir it writes after.json, audit.parquet and verdicts.json.
    """

    adopts_plan = True

    def __init__(self, *opened: Any) -> None:
        super().__init__(*opened)
        self.after = baseline(self.server)
        self.plan = {} if self.planned is None else self.planned.plan.to_json()
        self._find_run()
        self.unacknowledged: list[str] = []  # recorded, and pending
        self.recorded = self._read_audit()
        self.verdicts = verdicts(
            self.run, self.plan, self.before, self.after, self.recorded,
            consumer=self.job.scope.consumer, unacknowledged=self.unacknowledged,
        )  # fmt: skip
        self.findings = [v.because for v in self.verdicts if v.verdict == NO and v.claim in BOOKS]
        if (run_dir := self.run_dir) is not None:
            files.write_json(run_dir / "after.json", self.after)
            files.write_json(run_dir / "verdicts.json", [v._asdict() for v in self.verdicts])

    def _find_run(self) -> None:
        """The run to look at, as run.json says; else as the ledger says, which has no numbers."""
        found, digest = self.noted("run.json"), self.plan.get("digest")
        is_live = found.get("mode") == "live"
        starts = ledger.starts_of(self.server, digest) if digest else []
        self.runs = {start.run_id for start in starts}  # all of this plan
        if not (is_live and found.get("finished_at")):
            run_id, rate = str(found["run_id"]) if is_live else "", self.settings.throttle
            if not run_id and starts:  # it died, or run.json is that of a later dry run
                run_id = starts[-1].run_id
            elif not found:
                run_id = ledger.newest_run(self.server)
            rate = next((s.throttle for s in reversed(starts) if s.run_id == run_id), rate)
            found = {"run_id": run_id, "mode": "live" if run_id else "dry-run", "throttle": rate,
                     "consumer_group": self.settings.consumer_group,
                     "boundary_id": self.job.scope.boundary}  # fmt: skip
        self.run = found
        self.live = bool(found["mode"] == "live")  # whether there is a live run to look at

    @collection_paused()
    def _read_audit(self) -> Recorded:
        """The records of the plan's runs, read once; those of this run go into audit.parquet."""
        run_id, planned = self.run["run_id"] if self.live else "", self.planned
        parts = None if planned is None else lambda: planned.blocks(("id", "action"))
        recorded = Recorded(run_id, str(self.run["boundary_id"]), parts)
        group, pending = self.job.scope.group, list[str]()
        if self.live and group in {g["name"] for g in self.after["groups"]}:
            boundary = self.after["stream"]["boundary_id"]
            pages = reading.pending_ids(self.server, group, boundary)
            pending = [text(entry) for page in pages for entry, _, _ in page]
        ids = pa.array(pending, pa.string())
        with ExitStack() as stack:
            keep = None
            if self.run_dir is not None:
                out = files.table_writer(self.run_dir / "audit.parquet", audit_schema())
                keep = stack.enter_context(out)
            for part in ledger.run_tables(self.server, (self.runs | {run_id}) - {""}):
                own = recorded.add(part)
                if pending:
                    there = own["original_id"].filter(pc.is_in(own["original_id"], value_set=ids))
                    self.unacknowledged += there.to_pylist()
                if keep is not None:
                    keep(own)
        if self.live:
            recorded.finish(lambda lacking: vanished_ids(self.job, lacking))
        return recorded

    def bottom_line(self) -> Markdown:
        """Whether the books balance."""
        if self.findings:
            lines = "\n".join(f"- {verbatim(finding)}" for finding in self.findings)
            return markdown(f"**The books do not balance:**\n\n{lines}")
        if not self.live:
            return markdown("**Nothing was drained, and nothing changed.**")
        earlier, own = self.recorded.earlier, self.recorded.counts.total()
        told = (
            f"**The books balance:** {amount(own + earlier)} read, audited "
            f"and acknowledged{' by all runs of this plan' if earlier else ''}, each once; nothing "
            "is pending for the drain's consumer."
        )
        if left := left_of(self.run, self.plan, self.recorded):
            told += f" **{left:,} of the plan's {self.plan['total_read']:,} are left.**"
        return markdown(told)

    def verdicts_table(self) -> Table:
        """Each check: what it claims, its verdict, and what that rests on."""
        return Table(self.verdicts, columns=Verdict._fields)

    def assert_balanced(self) -> None:
        """Fail the notebook if anything does not balance."""
        if self.findings:
            raise DrainkitError("the books do not balance: " + "; ".join(self.findings))

    def change_table(self) -> Table:
        """Each group before and after."""
        columns = ["position", "undelivered", "pending"]
        after = groups_frame(self.after)[columns]
        if not self.before:
            return Table(after)
        both = (groups_frame(self.before)[columns].astype(object), after.astype(object))
        return Table(both[0].add_suffix(" before").join(both[1].add_suffix(" after"), how="outer"))

    def counts_table(self) -> Table:
        """Events by action, as the audit has them."""
        return listed({a: self.recorded.counts[a] for a in ACTIONS}, "audited", "action")

    def pace(self) -> figures.Canvas:
        """Throttle compliance, measured from the audit's ids."""
        return figures.pace(self.recorded.moments, self.run.get("throttle"))
