"""01 with a person in front of it: limits to move, events to search, single entries to open.

Nothing of it is shown where nobody could use it: widgets would be blank in a saved or exported
notebook. What a person sets is shown as a line to paste; nothing here changes anything.
"""

from __future__ import annotations

import asyncio
import html
import re
import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..core import policy as rules
from ..core.events import Events
from ..core.frame import decisions_of
from ..core.policy import ACTIONS, COLOURS, NAMES, Decisions, Policy, decide
from ..core.summary import span
from ..errors import DrainkitError
from ..safe import share
from .session import macros, safe

if TYPE_CHECKING:
    from ..settings import Settings

SAMPLE = 5_000  # rows of the table
OF_EACH = 50  # of each action at least, where there are as many
MOST_SYMBOLS = 200  # to choose from, beside those of the allowlist
SETTLED_SEC = 0.4  # without a move until the table follows
AGES_MIN = (
    0.5, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 75, 90, 105, 120, 150, 180, 210,
    240, 300, 360, 420, 480, 540, 600, 720, 1080, 1440, 2160, 2880, 4320, 7200, 10_080, 20_160,
    43_200, 129_600, 525_600,
)  # fmt: skip
_CAN_BE_NAMED = re.compile("(?!@|redis:)[^,]+")  # on a command line, with others
FAILED = [", ".join(NAMES[one] for one in names.split(",") if one) for names in rules.FAILED_NAMES]


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


def sample_rows(actions: np.ndarray) -> np.ndarray:
    """Numbers of the rows shown: spread evenly over all, and some of each action (codes)."""
    if len(actions) <= SAMPLE:
        return np.arange(len(actions))
    chosen, rest = [], SAMPLE
    for rows in (np.flatnonzero(actions == code) for code in np.unique(actions)):
        few = min(OF_EACH, len(rows))
        chosen.append(rows[np.linspace(0, len(rows) - 1, few).astype(int)])
        rest -= few
    chosen.append(np.linspace(0, len(actions) - 1, rest).astype(int))
    return np.unique(np.concatenate(chosen))


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

        self._frame, self._given, self._settings = frame, policy, settings
        self._open, self._at_us = open_entry, at_us
        self._html = macros()
        self._events = Events.from_frame(frame.assign(id=""))  # ids would take 60 MB a million
        ages, oldest_min = sorted({*AGES_MIN, policy.max_age_min}), frame["age_sec"].max() / 60
        enough = next((age for age in ages if age >= oldest_min), policy.max_age_min)
        self._ages = [age for age in ages if age <= max(enough, policy.max_age_min)]
        self._confidences = sorted({*(n / 100 for n in range(101)), policy.min_conf})
        wide = {"layout": w.Layout(width="34rem"), "style": {"description_width": "8rem"}}

        def slider(name: str, words: Sequence[str], at: int) -> Any:
            options = [(word, place) for place, word in enumerate(words)]
            return w.SelectionSlider(options=options, value=at, description=name, **wide)

        spans = [span(minutes * 60) for minutes in self._ages]
        self.age = slider("maximum age", spans, self._ages.index(policy.max_age_min))
        numbers, now = [f"{c:g}" for c in self._confidences], policy.min_conf
        self.confidence = slider("min confidence", numbers, self._confidences.index(now))
        self.which = w.ToggleButtons(
            options=[("any symbol", False), ("only these", True)], description="allowlist",
            value=policy.allowlist is not None, style=wide["style"],
        )  # fmt: skip
        self.which.add_class("widget-inline-hbox")  # the name beside it, as with the sliders
        allowed = policy.allowlist or frozenset()
        choice = _symbols(frame, allowed)
        self.symbols = w.SelectMultiple(
            options=choice, value=[s for s in choice if s in allowed], rows=5,
            description="symbols", **wide,
        )  # fmt: skip
        shown = self.counts, self.what_if, self.setting, self.entry = [w.HTML() for _ in range(4)]
        for part in shown:
            part.add_class("drainkit-shown")
        self.entry_id = w.Text(
            description="entry id", placeholder="1766602826755-0", continuous_update=False, **wide
        )
        choosers = [self.age, self.confidence, self.which, self.symbols]
        self.widget = w.VBox([
            *choosers, w.HBox([self.counts, self.what_if], layout=w.Layout(flex_flow="row wrap")),
            self.setting, w.HTML(self._make_table(step)), self.table, self.entry_id, self.entry,
        ])  # fmt: skip
        self._show()
        for chooser in choosers:
            chooser.observe(self._moved, "value")
        self.entry_id.observe(self._show_entry, "value")

    @property
    def policy(self) -> Policy:
        """The limits chosen."""
        allowed = frozenset(self.symbols.value) if self.which.value else None
        return Policy(self._ages[self.age.value], allowed, self._confidences[self.confidence.value])

    def _make_table(self, step: int) -> str:
        """The searchable table; returns which events it holds."""
        from itables.widget import ITable

        self._rows = sample_rows(self._frame["action"].cat.codes.to_numpy())
        part = self._frame.iloc[self._rows]

        def numbers(values: pd.Series) -> pd.Series:  # nothing where there is none, not NaN
            return values.astype(object).where(values.notna(), "").reset_index(drop=True)

        shown = self._shown = safe(part[["id", "symbol", "side", "source"]])
        shown.insert(1, "age, min", numbers((part["age_sec"] / 60).round(2)))
        shown["confidence"] = numbers(part["confidence"])
        self._follows: asyncio.TimerHandle | None = None
        # given again with each update: what is left out there is as by default
        self._table_options: dict[str, Any] = {
            "select": "single", "allow_html": False, "maxBytes": 0, "maxColumns": 0,
            "showIndex": False, "pageLength": 10, "classes": "display compact",
            "style": "table-layout:auto;width:100%",
            "columnDefs": [{"targets": 0, "className": "dt-nowrap"}],  # an id is one word
            "text_in_header_can_be_selected": False,  # a click anywhere in a header sorts
            "layout": {"bottomEnd": {"paging": {"firstLast": False}}},  # in one line
            "stateSave": True, "stateDuration": -1,  # search and order stay when the limits move
        }  # fmt: skip
        self.table = ITable(self._judged(decisions_of(part), slice(None)), **self._table_options)
        self.table.add_class("drainkit-events")
        self.table.observe(self._row_chosen, "selected_rows")
        told = f"<b>All {len(self._frame):,} events</b>"
        if len(shown) < len(self._frame):
            told = (
                f"<b>{len(shown):,} of {len(self._frame):,} events</b>, spread evenly over the "
                "backlog, with some of each action: search and sorting see these"
            )
        one_in = f" (of one in {step})" * (step > 1)
        return f"{told}{one_in}, judged by the limits above. A row that is clicked is opened."

    def _judged(self, decisions: Decisions, rows: np.ndarray | slice) -> pd.DataFrame:
        """The table's events with what becomes of them."""
        becomes = [NAMES[ACTIONS[code]] for code in decisions.action[rows].tolist()]
        fails = [FAILED[bits] for bits in decisions.failed[rows].tolist()]
        return self._shown.assign(**{"what becomes of it": becomes, "filters it fails": fails})

    def _moved(self, _: object) -> None:
        """Counts follow at once, the table when nothing was moved for a moment."""
        decisions = self._show()

        def follow() -> None:
            self.table.update(self._judged(decisions, self._rows), **self._table_options)

        if self._follows is not None:
            self._follows.cancel()
        try:
            self._follows = asyncio.get_running_loop().call_later(SETTLED_SEC, follow)
        except RuntimeError:  # in no kernel
            follow()

    def _show(self) -> Decisions:
        self.symbols.disabled = not self.which.value
        chosen, total = self.policy, len(self._events)
        decisions = decide(self._events, chosen, self._at_us)
        counts = np.bincount(decisions.action, minlength=len(ACTIONS)).tolist()
        rows = [
            (a, NAMES[a], COLOURS[a], n, share(n, total))
            for a, n in zip(ACTIONS, counts, strict=True)
        ]
        self.counts.value = self._html.counts(rows, total)
        ages = _near(self._ages, self.age.value, 1, 8)
        confidences = _near(self._confidences, self.confidence.value, 5, 9)
        known = self._events.confidence
        passing = rules.passing_at(decisions, known, ages, confidences).tolist()
        grid = [*zip(ages, (span(age * 60) for age in ages), passing, strict=True)]
        most = max(map(max, passing)) or 1
        self.what_if.value = self._html.what_if(grid, confidences, chosen, most)
        # a command line cannot take back what a file or a variable says
        stays = chosen.allowlist is None and self._settings.allowlist is not None
        self.setting.value = "<b>Choose at least one symbol</b>, or any."
        if chosen.allowlist != frozenset():
            told = setting(self._settings, self._given, chosen)
            self.setting.value = self._html.setting(*told, stays)
        return decisions

    def _row_chosen(self, change: Any) -> None:
        if change["new"]:
            self.entry_id.value = str(self._frame["id"].iloc[self._rows[change["new"][0]]])

    def _show_entry(self, _: object) -> None:
        entry_id = self.entry_id.value.strip()
        try:
            self.entry.value = self._open(entry_id) if entry_id else ""
        except DrainkitError as error:
            self.entry.value = f"<p>{html.escape(str(error))}</p>"


def setting(settings: Settings, given: Policy, chosen: Policy) -> tuple[str, str]:
    """The limits as a command line (quoted for a shell), and as the parameters of a notebook."""
    words = ["drainkit", "run"]
    for name in ("stream", "consumer_group", "scope"):
        if getattr(settings, name) != type(settings).model_fields[name].default:
            words += [f"--{name.replace('_', '-')}", str(getattr(settings, name))]
    age, confidence = f"{chosen.max_age_min:.15g}", f"{chosen.min_conf:.15g}"
    words += ["--max-age-min", age, "--min-conf", confidence]
    text = None if chosen.allowlist is None else ",".join(sorted(chosen.allowlist))
    if settings.allowlist is not None and chosen.allowlist == given.allowlist:
        text = settings.allowlist  # as it was given: @file and redis:KEY stay what they are
    words += ["--allowlist", text] if text is not None else []
    lines = [f"allowlist = {text!r}", f"min_conf = {confidence}", f"max_age_min = {age}"]
    return shlex.join(words), "\n".join(lines)


def _symbols(frame: pd.DataFrame, allowed: frozenset[str]) -> list[str]:
    """What can be named on a command line: the allowlist's, then the most frequent."""
    others = [s for s in frame["symbol"].value_counts().index if s not in allowed]
    return [s for s in (*sorted(allowed), *others[:MOST_SYMBOLS]) if _CAN_BE_NAMED.fullmatch(s)]


def _near(limits: list[float], at: int, stride: int, n: int) -> list[float]:
    """`n` limits a stride apart, with the one at this place, in the middle where there is room:
    always as many, so that nothing jumps."""
    places = range(at % stride, len(limits), stride)
    first = max(0, min(places.index(at) - (n - 1) // 2, len(places) - n))
    return [limits[place] for place in places[first : first + n]]
