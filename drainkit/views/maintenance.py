"""maintenance: dead consumers and trimming."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from IPython.display import Markdown

from ..core.summary import amount
from ..errors import RefusedError
from ..operations import maintenance
from ..safe import verbatim
from ..settings.kinds import Amount, Minutes
from .session import Session, Table, markdown


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
