"""maintenance: dead consumers and trimming."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from IPython.display import Markdown

from ..core.summary import amount
from ..errors import RefusedError
from ..operations import maintenance
from ..safe import verbatim
from ..settings.kinds import Amount, Minutes
from .session import Session, Table, checked, markdown


class Maintenance(Session):
    """Dead consumers and trimming; lists only, unless told to act."""

    extra = ("min_idle_min", "delete_consumers", "apply_trim", "keep_days", "archive")
    is_of_run = False

    delete: bool
    apply: bool
    archive: str  # a file's name; "" without one
    keep_days: float | None
    min_idle_ms: int

    @classmethod
    def open(cls, names: Mapping[str, Any]) -> Self:
        """Open with the notebook's `globals()`."""
        board = super().open(names)
        board.delete = checked(names, "delete_consumers", bool, False)
        board.apply = checked(names, "apply_trim", bool, False)
        board.archive = str(names.get("archive") or "")
        board.min_idle_ms = round(checked(names, "min_idle_min", Minutes, 60) * 60_000)
        board.keep_days = checked(names, "keep_days", Amount | None)
        return board

    def _dead(self) -> list[maintenance.DeadConsumer]:
        group = self.settings.consumer_group
        return maintenance.dead_consumers(self.server, group, min_idle_ms=self.min_idle_ms)

    def bottom_line(self) -> Markdown:
        """What could be cleaned up."""
        dead = self._dead()
        free = sum(not c.why_kept for c in dead)
        text = f"**{free} of {len(dead)} dead consumers** can be removed without losing an entry. "
        try:
            plan = maintenance.trim_plan(self.server, keep_days=self.keep_days)
        except RefusedError as error:
            return markdown(text + verbatim(str(error)))
        text += f"A trim would remove **{plan.entries:,} of {plan.length:,} entries**"
        if plan.bound == "age":
            return markdown(f"{text}: what is younger than {self.keep_days:g} days stays.")
        held = "; ".join(verbatim(f"{g}: {why}") for g, why in plan.held_by.items())
        return markdown(text + (f", held back by {held}." if held else "."))

    def consumers_table(self) -> Table:
        """Dead consumers, and why some must stay."""
        rows = [(c.name, c.pending, round(c.idle_ms / 60_000, 1), c.why_kept) for c in self._dead()]
        names = ["consumer", "pending", "idle, min", "why it stays"]
        return Table(rows, columns=names)

    def delete_dead(self) -> Markdown:
        """Remove those that are safe to remove, if told to."""
        if not self.delete:
            return markdown("`delete_consumers` is off: nothing was removed.")
        names = [c.name for c in self._dead() if not c.why_kept]
        removed, kept = maintenance.remove_consumers(
            self.server, self.settings.consumer_group, names,
            min_idle_ms=self.min_idle_ms, operator=self.settings.operator,
        )  # fmt: skip
        return markdown(f"**{len(removed)} removed**, {len(kept)} stayed.")

    def trim(self) -> Markdown:
        """Remove what no group needs, archived first, if told to."""
        if not self.apply:
            return markdown("`apply_trim` is off: nothing was removed.")
        plan = maintenance.trim_plan(self.server, keep_days=self.keep_days)
        archive, operator = Path(self.archive) if self.archive else None, self.settings.operator
        removed = maintenance.trim(self.server, plan, archive=archive, operator=operator)
        kept = f", archived first in {verbatim(self.archive)}" if archive else ""
        return markdown(f"**{amount(removed)} removed**{kept}.")
