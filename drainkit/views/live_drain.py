"""03_live_drain: drains the plan, if armed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pandas as pd

from .. import files
from ..core.summary import Summary
from ..draining.books import recount
from ..draining.job import Job, adopt, job_from_plan
from ..draining.live import drain, list_drift
from ..draining.plan_files import load_plan
from ..errors import RefusedError, UsageError, error_of
from ..operations.state import baseline
from ..server.connection import Server
from ..settings import Settings
from .session import Session
from .tables import SAMPLE_ROWS, counts_frame, markdown, read_json, span

if TYPE_CHECKING:
    import pyarrow as pa
    from IPython.display import Markdown

MILESTONES = 10


class LiveDrain(Session):
    """03: drains the plan in run_dir, but only when `approve` holds its digest."""

    mode = "live"

    def __init__(self, settings: Settings, server: Server, run_dir: Path | None) -> None:
        super().__init__(settings, server, run_dir)
        self.approve = ""
        self.summary: Summary | None = None
        self.table: pa.Table | None = None

    @classmethod
    def open(cls, names: Mapping[str, Any]) -> Self:
        """Open with a notebook's `globals()`, `approve` included."""
        session = super().open(names)
        session.approve = names.get("approve") or ""
        if not isinstance(session.approve, str):
            raise UsageError("approve takes the digest that the dry run printed")
        return session

    @property
    def armed(self) -> bool:
        """Whether a digest was given at all."""
        return bool(self.approve)

    def run(self) -> None:
        """Drain the plan if armed; refuses a digest that is not the plan's."""
        if not self.armed:
            print("Not armed: approve is empty, so nothing was changed.")
            return
        if self.run_dir is None:
            raise RefusedError("approve needs run_dir, the folder with the approved plan")
        plan, self.table = load_plan(self.run_dir)
        if plan.digest != self.approve:
            raise RefusedError("approve is not the digest of this plan; nothing was changed")
        settings = adopt(self.settings, plan)
        job = job_from_plan(self.server, settings, self.job.run_id, plan, self.table)
        earlier = read_json(self.run_dir, "run.json") or {}
        if not (self.run_dir / "baseline.json").exists():
            before = baseline(self.server)
            files.write_json(self.run_dir / "baseline.json", before)
        with _graceful_interrupt() as stopping:  # to the end of the books, however often it comes
            self.summary = drain(
                self.server, job, stopping=stopping, on_progress=_Milestones(job).show
            )
            self.job = job
            self.summary.plan_path, self.summary.plan_digest = "plan.json", plan.digest
            if self.server.connected:
                if earlier.get("run_id") == job.run_id and earlier.get("mode") == "live":
                    recount(self.server, job, self.summary)  # with what it drained before
                self.summary.drift = list_drift(self.server, job, self.table)
            files.write_json(self.run_dir / "run.json", self.summary.as_dict())
        if self.summary.error:
            raise error_of(self.summary.exit_code or 1, self.summary.error)

    def bottom_line(self) -> Markdown:
        """What was done."""
        if self.summary is None:
            return markdown("**Not armed.** This run changed nothing.")
        s = self.summary
        return markdown(
            f"**{s.total_read:,} entries were audited and acknowledged** in {span(s.elapsed_sec)} "
            f"({s.events_per_sec:,.1f} per second); {s.drained_ok:,} had passed every filter. "
            + ("How many remain is not known." if s.remaining is None
               else f"{s.remaining:,} of the scope remain.")
        )  # fmt: skip

    def counts_table(self) -> pd.DataFrame:
        """Events by action."""
        return counts_frame(self.summary)

    def drift_table(self) -> pd.DataFrame:
        """Where the outcome differs from the plan, and why it may."""
        rows = (self.summary.drift if self.summary else None) or []
        return pd.DataFrame(rows[:SAMPLE_ROWS], columns=["id", "planned", "happened"])

    def drift_line(self) -> Markdown:
        """How much differs from the plan."""
        if self.summary is None:
            return markdown("Not armed, so there is nothing to compare.")
        if self.summary.drift is None:
            return markdown("**The drift is not known:** the run ended before it was read.")
        n = len(self.summary.drift)
        if not n:
            return markdown("**No drift:** each event met the fate that the plan foresaw.")
        return markdown(
            f"**{n:,} events met another fate than planned:** their age counts at the moment of "
            "the drain (or at its as_of)."
        )


class _Milestones:
    """Prints a line at each tenth: a bar would leave its state in the notebook."""

    def __init__(self, job: Job) -> None:
        self._total = job.max_events or 0
        self._shown = 0

    def show(self, summary: Summary) -> None:
        tenth = summary.total_read * MILESTONES // self._total if self._total else 0
        if tenth > self._shown:
            self._shown = tenth
            print(f"{summary.total_read:,} of {self._total:,} drained", flush=True)


_STOP = threading.Event()


def _stop(*_: object) -> None:
    _STOP.set()


def heed_stop_signal() -> None:
    """In a kernel of `drainkit run`: SIGUSR1 ends its drain, also one that has yet to begin.

    An interrupt would be lost between two cells, and can break the kernel within its own code.
    """
    signal.signal(signal.SIGUSR1, _stop)


@contextmanager
def _graceful_interrupt() -> Iterator[threading.Event]:
    """SIGINT (the kernel's interrupt) ends the drain after the commit in flight."""
    stopping = _STOP if signal.getsignal(signal.SIGUSR1) is _stop else threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: stopping.set())
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGINT, before)
