"""04_verify: whether the books balance, from the server's own data."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import files
from ..core.audit import AuditRecord, audit_table, reconcile
from ..core.policy import ACTIONS
from ..draining.vanished import vanished_ids
from ..errors import DrainkitError
from ..operations.state import baseline
from ..safe import one_line
from ..server import ledger, reading
from ..server.audit_log import run_records
from ..server.connection import Server
from ..settings import Settings
from . import figures
from .session import RunSession
from .tables import SAMPLE_ROWS, Table, groups_frame, markdown, read_json, safe

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from IPython.display import Markdown


class Verification(RunSession):
    """04: before and after, plan against audit against group; writes after.json, audit.parquet."""

    adopts_plan = True

    def __init__(self, settings: Settings, server: Server, run_dir: Path | None) -> None:
        super().__init__(settings, server, run_dir)
        self.after = baseline(server)
        before = read_json(run_dir, "baseline.json")
        self.before = before or self.after
        self.run = read_json(run_dir, "run.json")
        self.live = self.run is not None and self.run.get("mode") == "live"
        if self.run is not None and self.live and not self.run.get("finished_at"):
            self.run = {}  # the run's own, from its beginning: it has no numbers
        self.plan = self.planned.plan if self.planned else None
        self.table = self.planned.table if self.planned else None
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
        found = list(run_records(server, runs))
        self.records = [record for record in found if record.run_id == self.run_id]
        self.earlier = [record for record in found if record.run_id != self.run_id]
        self.findings = self._reconcile()
        if run_dir is not None:
            files.write_json(run_dir / "after.json", self.after)
            files.write_table(run_dir / "audit.parquet", audit_table(self.records))

    def _reconcile(self) -> list[str]:
        scope = self.job.scope
        findings = others_touched(self.before, self.after, scope.group, scope.consumer)
        findings += self._still_pending()
        if not self.run_id:
            return findings
        run = self.run if self.run and self.live else {}
        planned = None
        done, all_ = len(self.records) + len(self.earlier), self.table.num_rows if self.table else 0
        gone = self._vanished() if done < all_ else []
        done += len(gone)
        if self.table is not None and (run.get("remaining") == 0 or done >= all_):
            ids, actions = self.table["id"].to_pylist(), self.table["action"].to_pylist()
            planned = dict(zip(ids, actions, strict=True))
        counts = {action: int(run.get(action, 0)) for action in ACTIONS}
        if not run:  # no numbers of its own to hold the audit against
            counts = dict(Counter(record.action for record in self.records))
            if self.start is not None and done < all_:
                findings.append(
                    f"run {one_line(self.run_id)} of this plan left no summary, and "
                    f"{all_ - done:,} planned entries are open; run 03 again"
                )
        return findings + reconcile(
            expected=planned,
            records=self.records,
            pending_own=int(run.get("pending_own") or 0),
            counts=counts,
            earlier=self.earlier,
            vanished=gone,
        )

    def _vanished(self) -> list[str]:
        """Planned entries that were deleted before they could be delivered."""
        if self.table is None:
            return []
        seen = {record.original_id for record in (*self.records, *self.earlier)}
        lacking = [entry for entry in self.table["id"].to_pylist() if entry not in seen]
        return vanished_ids(self.server, self.job, lacking)

    def _still_pending(self) -> list[str]:
        """Audited entries that the group still holds as pending: recorded, not acknowledged."""
        group, boundary = self.job.scope.group, self.after["stream"]["boundary_id"]
        audited = {record.original_id.encode() for record in self.records}
        if not audited or group not in {g["name"] for g in self.after["groups"]}:
            return []
        pages = reading.pending_ids(self.server, group, boundary)
        left = [entry for page in pages for entry, _, _ in page if entry in audited]
        if not left:
            return []
        return [f"{len(left):,} audited entries are pending in the group, first {left[0].decode()}"]

    def bottom_line(self) -> Markdown:
        """Whether the books balance."""
        if self.findings:
            return markdown(
                "**The books do not balance:**\n\n" + "\n".join(f"- {f}" for f in self.findings)
            )
        if not self.run_id:
            return markdown("**Nothing was drained, and nothing changed.**")
        done, runs = len(self.records), ""
        if self.earlier:
            done += len(self.earlier)
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
        own = self.job.scope.group
        old = {g["name"]: g for g in self.before["groups"]}
        others = [g for g in self.after["groups"] if g["name"] in old and g["name"] != own]
        moved = []
        for group in others:
            was, name = old[group["name"]], one_line(group["name"]).replace("`", "'")
            if any(group[key] != was[key] for key in ("position", "pending")):
                moved.append(
                    f"`{name}` from {was['position']} to {group['position']}, pending "
                    f"{was['pending']:,} to {group['pending']:,}"
                )
        if not others:
            return markdown("No other group reads this stream.")
        told = f"**{len(others) - len(moved)} of {len(others)} other groups are as they were.**"
        if moved:
            told += " Their own consumers moved: " + "; ".join(moved) + "."
        return markdown(told)

    def counts_table(self) -> pd.DataFrame:
        """Events by action, as the audit has them."""
        actions = pd.Series([record.action for record in self.records], dtype=object)
        counts = actions.value_counts().reindex(list(ACTIONS)).fillna(0).astype(int)
        return Table({"audited": counts})

    def audit_ms(self) -> np.ndarray:
        """Milliseconds of the audit ids, in order."""
        return np.array([reading.id_key(r.audit_id)[0] for r in self.records], dtype=np.int64)

    def pace(self) -> go.Figure:
        """Throttle compliance, measured from the audit's ids."""
        rate = self.plan.throttle if self.plan else self.settings.throttle
        if self.start is not None:  # what the run itself was told
            rate = self.start.throttle
        return figures.pace(self.audit_ms(), rate)

    def samples(self) -> pd.DataFrame:
        """The first audit records."""
        rows = [dataclasses.asdict(record) for record in self.records[:SAMPLE_ROWS]]
        return safe(pd.DataFrame(rows, columns=[f.name for f in dataclasses.fields(AuditRecord)]))


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
            findings.append(f"group {one_line(name)} appeared during the run")
        elif consumer in {c["name"] for c in group["consumer_list"]} - known[name]:
            findings.append(f"group {one_line(name)} now has a consumer {one_line(consumer)}")
    return findings
