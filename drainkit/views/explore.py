"""01 with a person in front of it: limits to move, events to search, single entries to open.

Nothing of it is shown where nobody could use it: widgets would be blank in a saved or exported
notebook. Nothing here changes anything.
"""

from __future__ import annotations

import asyncio
import html
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from ..core.events import Events
from ..core.frame import decisions_of
from ..core.policy import ACTIONS, FAILED_NAMES, NAMES, Decisions, Policy, decide
from ..core.summary import span
from ..core.values import NO_TIME
from ..errors import DrainkitError
from ..safe import one_line
from ..settings.kinds import allowlist_symbols
from .session import macros

SAMPLE = 4_700  # rows of the table, spread evenly over all
OF_EACH = 50  # and the first so many of each action
SETTLED_SEC = 0.4  # without a move until the table follows
AGES_MIN = {
    unit * n for unit in (1, 60, 1440, 43_200) for n in (0.5, 1, 2, 3, 5, 8, 10, 15, 20, 30, 45)
}
FAILED = [", ".join(NAMES[one] for one in names.split(",") if one) for names in FAILED_NAMES]
# given again with each update: what is left out there is as by default
TABLE: dict[str, Any] = {
    "select": "single", "allow_html": False, "maxBytes": 0, "maxColumns": 0,
    "showIndex": False, "pageLength": 10, "classes": "display compact",
    "style": "table-layout:auto;width:100%",
    "columnDefs": [{"targets": 0, "className": "dt-nowrap"}],  # an id is one word
    "text_in_header_can_be_selected": False,  # a click anywhere in a header sorts
    "layout": {"bottomEnd": {"paging": {"firstLast": False}}},  # in one line
    "stateSave": True, "stateDuration": -1,  # search and order stay when the limits move
}  # fmt: skip


def person_is_here() -> bool:
    """Whether a person executes the present cell.

    JupyterLab (and what is built on it) says in the request which cell it is; papermill,
    nbconvert, nbval, Voila and jupyter-scheduler send the code alone.
    """
    try:
        from IPython.core.getipython import get_ipython

        request: Any = get_ipython().kernel.get_parent()  # type: ignore[union-attr]
        return bool(request["metadata"]["cellId"])
    except Exception:  # outside a kernel, or in one of an unknown kind
        return False


class Exploration:
    """The widgets and what they show; `widget` is all of it."""

    def __init__(self, analysis: Any) -> None:
        """`analysis`: an Analysis, which is opened."""
        import ipywidgets as w
        from itables.widget import ITable

        self._analysis, frame, policy = analysis, analysis.frame, analysis.policy
        self._events = Events.from_frame(frame.assign(id=""))  # ids would take 60 MB a million
        age_us = decisions_of(frame).age_us  # at a dry run's turns, where it is one's
        self._at_us = np.where(age_us == NO_TIME, 0, self._events.event_time_us + age_us)
        self._follows: asyncio.TimerHandle | None = None
        # the table's rows: spread evenly over all, and some of each action
        n, actions = len(frame), frame["action"].reset_index(drop=True)
        first = actions.groupby(actions, observed=True).head(OF_EACH).index
        self._rows = np.union1d(np.linspace(0, n - 1, min(n, SAMPLE)).astype(int), first)
        part = self._part = frame.iloc[self._rows]
        columns = ["id", "age, min", "symbol", "side", "source", "confidence"]
        shown = part.assign(**{"age, min": (part["age_sec"] / 60).round(2)})[columns].astype(object)
        self._shown: pd.DataFrame = shown.where(shown.notna(), "").map(  # nothing, not NaN
            lambda value: one_line(value, 60) if isinstance(value, str) else value
        )
        wide = {"layout": w.Layout(width="34rem"), "style": {"description_width": "8rem"}}

        def slider(name: str, values: set[float], at: float, word: Callable[[float], str]) -> Any:
            options = [(word(value), value) for value in sorted({*values, at})]
            return w.SelectionSlider(options=options, value=at, description=name, **wide)

        # named as the parameters that set them
        self.age = slider("max_age_min", AGES_MIN, policy.max_age_min, lambda age: span(age * 60))
        hundredths = {n / 100 for n in range(101)}
        self.confidence = slider("min_conf", hundredths, policy.min_conf, "{:g}".format)
        self.symbols = w.Text(value=analysis.settings.allowlist or "", placeholder="any symbol",
                              description="allowlist", continuous_update=False, **wide)  # fmt: skip
        self.counts, self.entry = w.HTML(), w.HTML()
        for one in (self.counts, self.entry):
            one.add_class("drainkit-shown")
        self.table: Any = ITable(self._judged(self._show()), **TABLE)
        self.table.add_class("drainkit-events")
        choosers = [self.age, self.confidence, self.symbols]
        one_in = f" (one in {step})" if (step := analysis.backlog.step) > 1 else ""
        told = f"<b>{len(part):,} of {n:,} events</b>{one_in}"
        self.told = w.HTML(f"{told}, judged by the limits above: search and sorting see these. A "
                           "row that is clicked is opened.")  # fmt: skip
        self.widget = w.VBox([*choosers, self.counts, self.told, self.table, self.entry])
        for chooser in choosers:
            chooser.observe(self._moved, "value")
        self.table.observe(self._row_chosen, "selected_rows")

    @property
    def policy(self) -> Policy:
        """The limits chosen; UsageError where the allowlist is none."""
        typed, own = self.symbols.value.strip(), self._analysis
        if typed == (own.settings.allowlist or ""):
            allowed = own.policy.allowlist
        else:
            allowed = allowlist_symbols(typed) if typed else None
        return Policy(self.age.value, allowed, self.confidence.value)

    def _judged(self, decisions: Decisions) -> pd.DataFrame:
        """The table's events with what becomes of them."""
        becomes = [NAMES[ACTIONS[code]] for code in decisions.action[self._rows].tolist()]
        fails = [FAILED[bits] for bits in decisions.failed[self._rows].tolist()]
        return self._shown.assign(**{"what becomes of it": becomes, "filters it fails": fails})

    def _moved(self, _: object) -> None:
        """Counts follow at once, the table when nothing was moved for a moment."""
        try:
            decisions = self._show()
        except DrainkitError as error:
            self.counts.value = f"<p>{html.escape(str(error))}</p>"
            return

        def follow() -> None:
            self.table.update(self._judged(decisions), **TABLE)

        if self._follows is not None:
            self._follows.cancel()
        try:
            self._follows = asyncio.get_running_loop().call_later(SETTLED_SEC, follow)
        except RuntimeError:  # in no kernel
            follow()

    def _show(self) -> Decisions:
        decisions = decide(self._events, self.policy, self._at_us)
        counts = np.bincount(decisions.action, minlength=len(ACTIONS)).tolist()
        events = dict(zip(ACTIONS, counts, strict=True))
        self.counts.value = str(macros().counts(events, len(self._events)))
        return decisions

    def _row_chosen(self, change: Any) -> None:
        if change["new"]:
            try:
                found = self._analysis.entry(str(self._part["id"].iloc[change["new"][0]]))
                self.entry.value = found._repr_html_()
            except DrainkitError as error:
                self.entry.value = f"<p>{html.escape(str(error))}</p>"
