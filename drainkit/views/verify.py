"""04_verify: whether the books balance, from the server's own data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from .. import files
from ..core.audit import audit_ms, audit_schema
from ..core.collection import collection_paused
from ..core.moments import Moments
from ..core.policy import ACTIONS
from ..core.reconciliation import Matched, Matching, reconcile
from ..draining.plan_files import PlanFile
from ..draining.vanished import vanished_ids
from ..errors import DrainkitError
from ..operations.state import baseline
from ..safe import text, verbatim
from ..server import ledger, reading
from ..server.audit_log import run_tables, values_of
from ..server.connection import Server
from . import figures
from .session import RunSession
from .tables import SAMPLE_ROWS, Table, groups_frame, markdown, read_json, safe

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from IPython.display import Markdown


class Audit:
    """The records of a run, read once: into audit.parquet, numbers and the matching."""

    @collection_paused()
    def __init__(
        self,
        server: Server,
        runs: set[str],
        run_id: str,
        planned: PlanFile | None,
        pending: set[str],
        keep: Path | None,
    ) -> None:
        import pyarrow.compute as pc

        self.matching = Matching(
            None if planned is None else lambda: planned.blocks(("id", "action"))
        )
        self.counts, self.earlier = Counter[str](), 0  # of this run; of others of the same plan
        self.first = audit_schema().empty_table()  # the first records of this run
        self.pending: list[str] = []  # recorded, and not acknowledged
        self.moments, kept = Moments(), None
        with ExitStack() as stack:
            if keep is not None:
                writer = files.TableWriter(keep, audit_schema())
                kept = stack.enter_context(writer)
            for part in run_tables(server, runs):
                told = part.select(["original_id", "action", "reason"])
                self.matching.add(told.rename_columns(["id", "action", "reason"]))
                own = part.filter(pc.equal(part["run_id"], run_id))
                self.earlier += len(part) - len(own)
                self.counts.update(values_of(own["action"]))
                self.moments.add(audit_ms(own))
                if pending:
                    ids = own["original_id"].to_pylist()
                    self.pending += [entry for entry in ids if entry in pending]
                if len(self.first) < SAMPLE_ROWS:
                    self.first = pa.concat_tables([self.first, own.slice(0, SAMPLE_ROWS)])
                if kept is not None:
                    kept.write(own)


class Verification(RunSession):
    """04: before and after, plan against audit against group; writes after.json, audit.parquet."""

    adopts_plan = True

    def __init__(self, *opened: Any) -> None:
        super().__init__(*opened)
        server, run_dir = self.server, self.run_dir
        self.after = baseline(server)
        before = read_json(run_dir, "baseline.json")
        self.before = before or self.after
        self.run = read_json(run_dir, "run.json")
        self.live = self.run is not None and self.run.get("mode") == "live"
        if self.run is not None and self.live and not self.run.get("finished_at"):
            self.run = {}  # the run's own, from its beginning: it has no numbers
        self.plan = self.planned.plan if self.planned else None
        digest = self.plan.digest if self.plan else None
        starts = ledger.starts_of(server, digest) if digest else []
        self.run_id = str(self.run["run_id"]) if self.run and self.live else ""
        if not self.run_id and starts:
            self.run_id = starts[-1].run_id  # it died, or run.json is that of a later dry run
        elif self.run is None:
            self.run_id = ledger.newest_run(server)
        self.has_before = before is not None or not self.run_id
        self.start = next((s for s in reversed(starts) if s.run_id == self.run_id), None)
        runs = {self.run_id, *(start.run_id for start in starts)} - {""}
        keep = None if run_dir is None else run_dir / "audit.parquet"
        self.audit = Audit(server, runs, self.run_id, self.planned, self._pending(), keep)
        self.findings = self._reconcile()
        if run_dir is not None:
            files.write_json(run_dir / "after.json", self.after)

    def _pending(self) -> set[str]:
        group, boundary = self.job.scope.group, self.after["stream"]["boundary_id"]
        if group not in {g["name"] for g in self.after["groups"]}:
            return set()
        pages = reading.pending_ids(self.server, group, boundary)
        return {text(entry) for page in pages for entry, _, _ in page}

    def _reconcile(self) -> list[str]:
        scope = self.job.scope
        findings = others_touched(self.before, self.after, scope.group, scope.consumer)
        findings += self._still_pending()
        if not self.run_id:
            return findings
        run = self.run if self.run and self.live else {}
        done, planned = self.done + self.audit.earlier, self.plan.total_read if self.plan else 0
        self.vanished = 0  # of the plan
        matched = self.audit.matching.finish(self._vanished)
        done += self.vanished
        counts: Mapping[str, int] = {action: int(run.get(action, 0)) for action in ACTIONS}
        if not run:  # no numbers of its own to hold the audit against
            counts = self.audit.counts
            if self.start is not None and done < planned:
                findings.append(
                    f"run {self.run_id} of this plan left no summary, and "
                    f"{planned - done:,} planned entries are open; run 03 again"
                )
        if run.get("remaining") != 0 and done < planned:  # it is not done yet
            matched = Matched(matched.twice)
        return findings + reconcile(
            matched,
            audited=self.audit.counts,
            counts=counts,
            pending_own=int(run.get("pending_own") or 0),
        )

    def _vanished(self, lacking: list[str]) -> list[str]:
        """Planned entries that were deleted before they could be delivered."""
        gone = vanished_ids(self.server, self.job, lacking)
        self.vanished = len(gone)
        return gone

    @property
    def done(self) -> int:
        """How many records this run has."""
        return self.audit.counts.total()

    def _still_pending(self) -> list[str]:
        """Audited entries that the group still holds as pending: recorded, not acknowledged."""
        if not self.audit.pending:
            return []
        n, first = len(self.audit.pending), self.audit.pending[0]
        return [f"{n:,} audited entries are pending in the group, first {first}"]

    def bottom_line(self) -> Markdown:
        """Whether the books balance."""
        if self.findings:
            return markdown(
                "**The books do not balance:**\n\n"
                + "\n".join(f"- {verbatim(f)}" for f in self.findings)
            )
        if not self.run_id:
            return markdown("**Nothing was drained, and nothing changed.**")
        done, runs = self.done + self.audit.earlier, ""
        if self.audit.earlier:
            runs = " by all runs of this plan"
        return markdown(
            f"**The books balance:** {done:,} entries were read, audited and "
            f"acknowledged{runs}, each once; nothing is pending for the drain's consumer."
        )

    def assert_balanced(self) -> None:
        """Fail the notebook if anything does not balance."""
        if self.findings:
            raise DrainkitError("the books do not balance: " + "; ".join(self.findings))

    def change_table(self) -> pd.DataFrame:
        """Each group before and after."""
        before, after = groups_frame(self.before), groups_frame(self.after)
        columns = ["position", "undelivered", "pending"]
        if not self.has_before:
            return Table(after[columns])
        both = (before[columns].astype(object), after[columns].astype(object))
        return Table(both[0].add_suffix(" before").join(both[1].add_suffix(" after"), how="outer"))

    def others_line(self) -> Markdown:
        """What became of the groups that are not the drain's own."""
        if not self.has_before:
            return markdown("How it was before is not known: run_dir has no baseline.json.")
        return markdown(_others_told(self.before, self.after, self.job.scope.group))

    def counts_table(self) -> pd.DataFrame:
        """Events by action, as the audit has them."""
        return Table({"audited": [self.audit.counts[action] for action in ACTIONS]}, list(ACTIONS))

    def pace(self) -> go.Figure:
        """Throttle compliance, measured from the audit's ids."""
        rate = self.plan.throttle if self.plan else self.settings.throttle
        if self.start is not None:  # what the run itself was told
            rate = self.start.throttle
        return figures.pace(self.audit.moments, rate)

    def samples(self) -> pd.DataFrame:
        """The first audit records."""
        return safe(self.audit.first.slice(0, SAMPLE_ROWS).to_pandas())


def others_touched(
    before: Mapping[str, Any], after: Mapping[str, Any], own: str, consumer: str
) -> list[str]:
    """Traces of a drain in groups that are not its own: a new group, or its consumer in another."""
    known = {g["name"]: {c["name"] for c in g["consumer_list"]} for g in before["groups"]}
    findings = []
    for group in after["groups"]:
        name = group["name"]
        if name == own:
            continue
        if name not in known:
            findings.append(f"group {name} appeared during the run")
        elif consumer in {c["name"] for c in group["consumer_list"]} - known[name]:
            findings.append(f"group {name} now has a consumer {consumer}")
    return findings


def _others_told(before: Mapping[str, Any], after: Mapping[str, Any], own: str) -> str:
    old = {g["name"]: g for g in before["groups"]}
    others = [g for g in after["groups"] if g["name"] in old and g["name"] != own]
    moved = []
    for group in others:
        was, name = old[group["name"]], verbatim(group["name"])
        if any(group[key] != was[key] for key in ("position", "pending")):
            moved.append(
                f"{name} from {was['position']} to {group['position']}, pending "
                f"{was['pending']:,} to {group['pending']:,}"
            )
    if not others:
        return "No other group reads this stream."
    told = f"**{len(others) - len(moved)} of {len(others)} other groups are as they were.**"
    if moved:
        told += " Their own consumers moved: " + "; ".join(moved) + "."
    return told
