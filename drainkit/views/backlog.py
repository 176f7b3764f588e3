"""Decided events to look at, counted and as a DataFrame: of a scope as it is, or of a sealed run.

Of a sealed run it is what was decided and what became of it; no server, and nothing written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from ..core.collection import collection_paused, give_back_freed
from ..core.events import Decoder, Events
from ..core.frame import decisions_of, events_frame, record_batch
from ..core.plan import decisions_in
from ..core.policy import ACTIONS, Decisions, Policy, decide
from ..core.progress import amount
from ..core.timestamps import NO_TIME, iso, times_us
from ..draining.dry import keeping
from ..draining.plan_files import PlanFile
from ..draining.run import Run
from ..errors import RefusedError, UsageError
from ..evidence.examined import examine
from ..evidence.remote import local_copy
from ..evidence.statement import RUN_JSON, is_sealed, read_json
from ..files import parquet_file
from ..operations.entry import judged, rows_of
from ..safe import one_line, share, verbatim
from ..server import scopes
from ..settings import NOTEBOOK, build, shown
from .session import Table, check_names

MOST_ROWS = 2_000_000  # so many events are a DataFrame as a whole
ROWS_OF_MORE = 1_000_000  # of more: at most so many rows, evenly spread
Decided = Iterable[tuple[Events, Decisions]]
AUDIT = "audit.parquet"
_READ = (RUN_JSON, "baseline.json")


class Backlog:
    """All events of `pages` counted by action; as a DataFrame all of them, or one in `step`.

    `counted`: how many there may be.
    """

    @collection_paused()
    def __init__(self, pages: Decided, counted: int) -> None:
        self.step = 1 if counted <= MOST_ROWS else math.ceil(counted / ROWS_OF_MORE)
        self.total = 0  # events
        self.symbols = set[str]()  # that occur in them
        self.counts = np.zeros(len(ACTIONS), np.int64)  # by action
        self.frame = events_frame(self._counted(pages))
        give_back_freed()

    def _counted(self, pages: Decided) -> Iterator[pa.RecordBatch]:
        nothing = Decoder().decode([])
        yield record_batch(nothing, decide(nothing, Policy(0, None, 0), 0))
        for events, decisions in pages:
            self.counts += np.bincount(decisions.action, minlength=len(ACTIONS))
            self.symbols |= events.symbols_here()
            rows = slice(-self.total % self.step, None, self.step)
            self.total += len(events)
            yield record_batch(events.part(rows), decisions.part(rows))
            del events, decisions  # or two pages would be in memory


def waiting(run: Run, at_us: int, run_dir: Path | None) -> Iterator[tuple[Events, Decisions]]:
    """The scope's events as decided at one moment; in a run's folder they are kept for 02."""
    decoder = Decoder(run.settings.fields)
    with keeping(run, run_dir) as keep:
        for page in scopes.scope_entries(run.server, run.scope):
            keep(page, events := decoder.decode(page))
            del page  # or two pages would be in memory
            yield events, decide(events, run.policy, at_us)


class SealedRun:
    """The decisions of a sealed run as a backlog, and the records of its live drain."""

    @classmethod
    def of(cls, names: Mapping[str, Any]) -> SealedRun | None:
        """The run in a notebook's `run_dir`, by its folder or URL; None if it is no sealed one."""
        place = names.get("run_dir")
        if not isinstance(place, str) or not is_sealed(place):
            return None
        check_names(names)
        if given := [name for name in NOTEBOOK if names.get(name) is not None]:
            raise UsageError(f"run_dir is a sealed run, which says its {given[0]}; leave that out")
        return cls(place)

    def __init__(self, place: str) -> None:
        self.place = place
        self._open = ExitStack()  # a copy from a URL stays as long as this does
        self.folder = self._open.enter_context(local_copy(place))
        try:
            self.run, self.baseline = (read_json(self.folder / name) for name in _READ)
            self.planned = PlanFile.load(self.folder)
        except (OSError, ValueError, UsageError):
            raise UsageError(
                f"{one_line(place)} holds no decisions that could be shown: it is archived, or its "
                "run ended before the plan"
            ) from None
        self.findings = examine(self.folder).findings
        plan = self.planned.plan
        env = build({"env": plan.environment}, asked=frozenset())
        self.settings = self.planned.plan.laid_under(env)
        allowed = plan.policy["allowlist"]
        symbols = None if allowed is None else frozenset(allowed)
        self.policy = Policy(plan.policy["max_age_min"], symbols, plan.policy["min_conf"])
        decided = ((Events.from_arrow(b), decisions_in(b)) for b in self.planned.blocks())
        self.backlog = Backlog(decided, plan.total_read)
        self.frame = self.backlog.frame
        self.is_live = self.run.get("mode") == "live" and (self.folder / AUDIT).exists()
        self.happened = dict.fromkeys(ACTIONS, 0)  # by action
        if self.is_live:
            try:
                audit = parquet.read_table(self.folder / AUDIT, columns=["original_id", "action"])
            except (OSError, ValueError):
                raise RefusedError(f"{AUDIT} cannot be read: the seal {self.seal()}") from None
            rows = pc.index_in(pa.array(self.frame["id"]), value_set=audit["original_id"])
            happened = audit["action"].take(rows).to_pandas()
            # what became of each event, where the run has its record, beside what was decided
            self.frame["happened"] = pd.Categorical(happened, categories=list(ACTIONS))
            counts = audit["action"].value_counts().to_pylist()
            self.happened |= {action["values"]: action["counts"] for action in counts}

    @property
    def at_us(self) -> int:
        """When the decisions began; with as_of what they were measured against."""
        plan = self.planned.plan
        return int(times_us([plan.as_of or plan.created_at])[0])

    def moments_us(self) -> np.ndarray:
        """When each event of the frame was decided: a dry run keeps the pace of the live one."""
        ages = decisions_of(self.frame).age_us
        times = Events.from_frame(self.frame.assign(id="")).event_time_us
        return np.where(ages == NO_TIME, 0, times + ages)

    def seal(self) -> str:
        """Whether the folder is as it was sealed."""
        return f"does not hold: {one_line(self.findings[0])}" if self.findings else "holds"

    def told(self) -> str:
        """Which run it is, as of when, and what became of its events."""
        total, passing = self.backlog.total, self.planned.plan.counts["drained_ok"]
        seal = verbatim(self.seal()) if self.findings else self.seal()
        when = iso(self.at_us)[:19].replace("T", " ")
        words = (
            f"**As of {when} UTC, from the sealed run** {verbatim(str(self.run.get('run_id')))}, "
            f"whose seal {seal}: of **{amount(total)}** in scope `{self.settings.scope}`, "
            f"**{passing:,} ({share(passing, total)}) would pass** every filter. Nothing of it is "
            "asked of a server."
        )
        if self.is_live:
            drained, ok = sum(self.happened.values()), self.happened["drained_ok"]
            words += f" Its live drain recorded {drained:,} of them; {ok:,} passed."
        return words

    def parameters(self) -> dict[str, str]:
        """What `settings_table` shows of it beside the run's own settings."""
        return {
            "server": f"none is asked; the run's was {self.planned.plan.server or 'not noted'}",
            "run_dir": self.place,
            "seal": self.seal(),
            "allowlist": shown("allowlist", self.policy.allowlist),
            "boundary": f"{self.planned.plan.boundary_id} (the run's)",
        }

    def outcomes(self) -> Table | None:
        """Events by action, as decided and as recorded; None where nothing was live."""
        if not self.is_live:
            return None
        decided = [self.planned.plan.counts[action] for action in ACTIONS]
        columns = {"decided": decided, "recorded": [*self.happened.values()]}
        return Table(columns, index=pd.Index(ACTIONS, name="action"))

    def entry(self, entry_id: str) -> Table:
        """What is kept of one entry: values, verdicts, its payload's SHA-256, its records."""
        row = next(_rows(self.planned.blocks(), "id", entry_id), None)
        if row is None:
            raise RefusedError(
                f"{one_line(entry_id)} is none of the {self.backlog.total:,} entries that this run "
                "decided; check the id"
            )
        found = judged(Events.from_arrow(row), decisions_in(row), self.policy)
        (kept,) = row.select(["reason", "payload_sha256"]).to_pylist()
        if (sha256 := kept["payload_sha256"]) is not None:
            found["body"] = f"not kept; the SHA-256 of its payload is {sha256.hex()}"
        records, searched = [], 0
        if self.is_live:
            with parquet_file(self.folder / AUDIT) as stored:
                searched = stored.metadata.num_rows
                groups = map(stored.read_row_group, range(stored.num_row_groups))
                records = [r.to_pylist()[0] for r in _rows(groups, "original_id", entry_id)]
        audit = {"records": records, "searched": searched, "complete": True}
        found |= {"reason": kept["reason"], "groups": [], "audit": audit}
        return Table(rows_of(found), columns=["part", "name", "value"])


def _rows(parts: Iterable[pa.Table], column: str, value: str) -> Iterator[pa.Table]:
    """Each row with this value by itself."""
    for part in parts:
        found = part.filter(pc.equal(part[column], value))
        yield from (found.slice(row, 1) for row in range(len(found)))
