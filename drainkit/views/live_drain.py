"""03_live_drain: drains the plan, if armed."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, ClassVar, Self

from IPython.display import Markdown, clear_output

from .. import files
from ..core.summary import Step, Summary, amount, span
from ..draining import dry, live
from ..draining.plan_files import PlanFile
from ..draining.run import resolve
from ..errors import DrainkitError, RefusedError, error_class
from ..evidence.seal import locked
from ..operations.state import baseline
from ..safe import one_line, verbatim
from ..server import ledger, reading
from ..settings import NOTEBOOK
from .session import EXTRA, Session, Table, markdown

LINE_EVERY_SEC = 1.0


class LiveDrain(Session):
    """03: drains the plan in run_dir, but only when `approve` holds its digest."""

    mode = "live"
    extra: ClassVar = {"approve": (str | None, None)}  # the digest; empty: not armed
    adopts_plan = True
    _newest: ClassVar[object] = None  # of those opened in this kernel: no other one is armed
    _names: Mapping[str, Any]  # the notebook's, as they are now
    _opened_with: dict[str, Any]
    _next_line = 0.0  # when to say again how far it is, by the monotonic clock

    @classmethod
    def open(cls, names: Mapping[str, Any]) -> Self:
        """Open with a notebook's `globals()`, `approve` too; disarms what was opened before."""
        LiveDrain._newest = None
        session = super().open(names)
        session._names = names
        session._opened_with = session._parameters()
        LiveDrain._newest = session
        return session

    def _parameters(self) -> dict[str, Any]:
        return {name: self._names.get(name) for name in (*NOTEBOOK, *EXTRA, *self.extra)}

    def run(self) -> None:
        """Drain the plan if armed; refuses a digest that is not the plan's."""
        planned = self._approved()
        if planned is None or self.run_dir is None:
            print("Not armed: approve is empty, so nothing was changed.")
            return
        earlier = ledger.starts_of(self.server, planned.plan.digest)
        before = self.noted("run.json").get("run_id")  # 03 was run before: it is one run
        again = next((start.run_id for start in earlier if start.run_id == before), None)
        run_id = self.folder_run_id or again
        self.job = resolve(self.server, self.settings, planned=planned, run_id=run_id)
        self.job.folder = str(self.run_dir.resolve()) if self.folder_run_id else ""
        if not _is_of_run():  # else it was held against them, or a person was asked
            dry.check_planned(self.server, self.settings, planned)
        if not (self.run_dir / "baseline.json").exists():
            files.write_json(self.run_dir / "baseline.json", baseline(self.server))
        stopping = _STOP if _is_of_run() else threading.Event()
        with locked(self.run_dir, shared=True), ExitStack() as stack:
            # the kernel's interrupt ends the drain after the commit in flight, and however often it
            # comes the books are written
            handler = signal.signal(signal.SIGINT, lambda *_: stopping.set())
            stack.callback(signal.signal, signal.SIGINT, handler)
            summary = live.apply(self.job, stopping=stopping, on_progress=self._show)
            self.summary = summary
            if summary.total_read:  # interrupted between two lines: say what was done
                self._next_line = 0.0
                self._show(summary)
            if mine := [start for start in earlier if start.run_id == self.job.run_id]:
                summary.started_at, failure = mine[0].at, None
                ledger.recount(self.server, summary)  # with what it drained before
                try:
                    changes = live.changes(self.server, planned, self.job.run_id)
                    live.note_drift(summary, changes)
                except DrainkitError as error:
                    failure = error
                summary.close(failure, self.server.now_us())
            summary.plan_path = "plan.json"
            if summary.changes is not None:
                files.write_table(self.run_dir / "drift.parquet", summary.changes)
            self.write_summary(summary)
        for note in summary.notes or ():
            print(f"Note: {one_line(note)}")
        if summary.error:
            raise error_class(summary.exit_code or 1)(summary.error)

    def _approved(self) -> PlanFile | None:
        """The plan that `approve` names, if this is what the notebook shows; None: not armed."""
        if LiveDrain._newest is not self or self._parameters() != self._opened_with:
            LiveDrain._newest = None
            raise RefusedError(
                "the parameters are not those that this was opened with, or opening it anew "
                "failed; nothing was changed; run the cell with LiveDrain.open again"
            )
        if not (digest := self.given["approve"]):
            return None
        if self.run_dir is None:
            raise RefusedError("approve needs run_dir, the folder with the approved plan")
        if self.planned is None:
            raise RefusedError("run_dir holds no plan; run 02 with this run_dir first")
        if self.planned.plan.digest != digest:
            raise RefusedError("approve is not the digest of this plan; nothing was changed")
        return self.planned

    def _show(self, summary: Summary) -> None:
        """One line, replaced once a second: a bar would leave its state in the notebook."""
        step, now = Step.of(summary), time.monotonic()
        if now >= self._next_line or step.done == step.total:
            self._next_line = now + LINE_EVERY_SEC
            clear_output(wait=True)  # type: ignore[no-untyped-call]
            print(step.line, flush=True)

    def bottom_line(self) -> Markdown:
        """What was done."""
        s, note = self.summary, ""
        if self.server.connected and (switch := reading.stop_switch(self.server)) is not None:
            note = f" **Stopped:** {verbatim(str(switch))}; no drain of the stream goes on."
        if s is None:
            return markdown(f"**Not armed.** This run changed nothing.{note}")
        if not s.is_counted:
            return markdown(f"**What was recorded is not known:** the audit stream tells.{note}")
        rate = f" ({s.events_per_sec:,.1f} per second)" if s.events_per_sec else ""
        left = "How many remain is not known."
        if s.remaining is not None:
            left = f"{s.remaining:,} of the scope remain."
        return markdown(
            f"**{amount(s.total_read)} audited and acknowledged** in {span(s.elapsed_sec)}"
            f"{rate}; {s.drained_ok:,} had passed every filter. {left}{note}"
        )

    def drift_table(self) -> Table | Markdown:
        """How many events met which other fate; drift.parquet names each."""
        if self.summary is None:
            return markdown("Not armed, so there is nothing to compare.")
        if self.summary.drift is None:
            return markdown("**The drift is not known:** the run ended before it was read.")
        return Table(self.summary.drift, columns=["planned", "happened", "events"])


_STOP = threading.Event()


def stop(*_: object) -> None:
    """What SIGUSR1 does in a kernel of `drainkit run`: its drain ends, also one yet to begin.

    An interrupt would be lost between two cells, and can break the kernel within its own code.
    """
    _STOP.set()


def _is_of_run() -> bool:
    """Whether this kernel is one of `drainkit run`."""
    return signal.getsignal(signal.SIGUSR1) is stop
