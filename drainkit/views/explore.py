"""01 with a person in front of it: limits to move, events to search, single entries to open.

Nothing of it is shown where nobody could use it: widgets would be blank in a saved or exported
notebook. What a person sets is shown as a line to paste; nothing here changes anything.
"""

from __future__ import annotations

import asyncio
import html
import re
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..core import policy as rules
from ..core.events import Events
from ..core.frame import decisions_of
from ..core.policy import ACTIONS, NAMES, Decisions, Policy, decide
from ..core.summary import span
from ..errors import DrainkitError
from .figures import what_if_limits
from .session import inert, macros

if TYPE_CHECKING:
    from ..settings import Settings

SAMPLE = 4_700  # rows of the table, spread evenly over all
OF_EACH = 50  # and the first so many of each action
MOST_SYMBOLS = 200  # to choose from, beside those of the allowlist
SETTLED_SEC = 0.4  # without a move until the table follows
AGES_MIN = {
    unit * n for unit in (1, 60, 1440, 43_200) for n in (0.5, 1, 2, 3, 5, 8, 10, 15, 20, 30, 45)
}
FAILED = [", ".join(NAMES[one] for one in names.split(",") if one) for names in rules.FAILED_NAMES]
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

    def __init__(
        self,
        frame: pd.DataFrame,
        policy: Policy,
        settings: Settings,
        open_entry: Callable[[str], str],  # an entry by its id, as HTML
        *,
        at_us: int | np.ndarray,
        step: int = 1,
    ) -> None:
        import ipywidgets as w
        from itables.widget import ITable

        self._frame, self._given, self._settings = frame, policy, settings
        self._open, self._at_us = open_entry, at_us
        self._events = Events.from_frame(frame.assign(id=""))  # ids would take 60 MB a million
        self._follows: asyncio.TimerHandle | None = None
        self._sample()
        wide = {"layout": w.Layout(width="34rem"), "style": {"description_width": "8rem"}}

        def slider(name: str, values: set[float], at: float, word: Callable[[float], str]) -> Any:
            options = [(word(value), value) for value in sorted({*values, at})]
            return w.SelectionSlider(options=options, value=at, description=name, **wide)

        self.age = slider("maximum age", AGES_MIN, policy.max_age_min, lambda age: span(age * 60))
        hundredths = {n / 100 for n in range(101)}
        self.confidence = slider("min confidence", hundredths, policy.min_conf, "{:g}".format)
        self.which = w.ToggleButtons(
            options=[("any symbol", False), ("only these", True)], description="allowlist",
            value=policy.allowlist is not None, style=wide["style"],
        )  # fmt: skip
        self.which.add_class("widget-inline-hbox")  # the name beside it, as with the sliders
        allowed = sorted(policy.allowlist or ())
        frequent = [s for s in frame["symbol"].value_counts().index if s not in allowed]
        choice = [s for s in (*allowed, *frequent[:MOST_SYMBOLS])
                  if re.fullmatch("(?!@|redis:)[^,]+", s)]  # a command line can name it # fmt: skip
        self.symbols = w.SelectMultiple(options=choice, value=[s for s in choice if s in allowed],
                                        rows=5, description="symbols", **wide)  # fmt: skip
        shown = self.counts, self.what_if, self.setting, self.entry = [w.HTML() for _ in range(4)]
        for part in shown:
            part.add_class("drainkit-shown")
        self.table: Any = ITable(self._judged(decisions_of(self._part), slice(None)), **TABLE)
        self.table.add_class("drainkit-events")
        choosers = [self.age, self.confidence, self.which, self.symbols]
        one_in = f" (one in {step})" * (step > 1)
        told = f"<b>{len(self._part):,} of {len(frame):,} events</b>{one_in}"
        self.widget = w.VBox([
            *choosers, w.HBox([self.counts, self.what_if], layout=w.Layout(flex_flow="row wrap")),
            self.setting, w.HTML(f"{told}, judged by the limits above: search and sorting see "
                                 "these. A row that is clicked is opened."),
            self.table, self.entry,
        ])  # fmt: skip
        self._show()
        for chooser in choosers:
            chooser.observe(self._moved, "value")
        self.table.observe(self._row_chosen, "selected_rows")

    @property
    def policy(self) -> Policy:
        """The limits chosen."""
        allowed = frozenset(self.symbols.value) if self.which.value else None
        return Policy(self.age.value, allowed, self.confidence.value)

    def _sample(self) -> None:
        """The table's rows: spread evenly over all, and some of each action."""
        n, actions = len(self._frame), self._frame["action"].reset_index(drop=True)
        first = actions.groupby(actions, observed=True).head(OF_EACH).index
        self._rows = np.union1d(np.linspace(0, n - 1, min(n, SAMPLE)).astype(int), first)
        part = self._part = self._frame.iloc[self._rows]
        columns = ["id", "age, min", "symbol", "side", "source", "confidence"]
        shown = inert(part.assign(**{"age, min": (part["age_sec"] / 60).round(2)})[columns])
        self._shown = shown.astype(object).where(shown.notna(), "")  # nothing, not NaN

    def _judged(self, decisions: Decisions, rows: np.ndarray | slice) -> pd.DataFrame:
        """The table's events with what becomes of them."""
        becomes = [NAMES[ACTIONS[code]] for code in decisions.action[rows].tolist()]
        fails = [FAILED[bits] for bits in decisions.failed[rows].tolist()]
        return self._shown.assign(**{"what becomes of it": becomes, "filters it fails": fails})

    def _moved(self, _: object) -> None:
        """Counts follow at once, the table when nothing was moved for a moment."""
        decisions = self._show()

        def follow() -> None:
            self.table.update(self._judged(decisions, self._rows), **TABLE)

        if self._follows is not None:
            self._follows.cancel()
        try:
            self._follows = asyncio.get_running_loop().call_later(SETTLED_SEC, follow)
        except RuntimeError:  # in no kernel
            follow()

    def _show(self) -> Decisions:
        self.symbols.disabled = not self.which.value
        chosen, total, pages = self.policy, len(self._events), macros()
        decisions = decide(self._events, chosen, self._at_us)
        counts = np.bincount(decisions.action, minlength=len(ACTIONS)).tolist()
        self.counts.value = pages.counts(dict(zip(ACTIONS, counts, strict=True)), total)
        limits = what_if_limits(chosen)  # always as many, so that nothing jumps
        passing = rules.passing_at(decisions, self._events.confidence, *limits).tolist()
        self.what_if.value = pages.what_if(*limits, passing, chosen)
        # a command line cannot take back what a file or a variable says
        stays = chosen.allowlist is None and self._settings.allowlist is not None
        self.setting.value = "<b>Choose at least one symbol</b>, or any."
        if chosen.allowlist != frozenset():
            self.setting.value = pages.setting(*self._as_text(chosen), stays)
        return decisions

    def _row_chosen(self, change: Any) -> None:
        if change["new"]:
            try:
                self.entry.value = self._open(str(self._part["id"].iloc[change["new"][0]]))
            except DrainkitError as error:
                self.entry.value = f"<p>{html.escape(str(error))}</p>"

    def _as_text(self, chosen: Policy) -> tuple[str, str]:
        """The limits as a command line (quoted for a shell), and as parameters of a notebook."""
        settings, words = self._settings, ["drainkit", "run"]
        for name in ("stream", "consumer_group", "scope"):
            if getattr(settings, name) != type(settings).model_fields[name].default:
                words += [f"--{name.replace('_', '-')}", str(getattr(settings, name))]
        age, confidence = f"{chosen.max_age_min:.15g}", f"{chosen.min_conf:.15g}"
        words += ["--max-age-min", age, "--min-conf", confidence]
        symbols = None if chosen.allowlist is None else ",".join(sorted(chosen.allowlist))
        if settings.allowlist is not None and chosen.allowlist == self._given.allowlist:
            symbols = settings.allowlist  # as it was given: @file and redis:KEY stay what they are
        words += ["--allowlist", symbols] if symbols is not None else []
        lines = [f"allowlist = {symbols!r}", f"min_conf = {confidence}", f"max_age_min = {age}"]
        return shlex.join(words), "\n".join(lines)
