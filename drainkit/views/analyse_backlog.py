"""01_analyse_backlog: the backlog as a DataFrame, decided as of now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from ..core.fields import value_of
from ..core.plan import allowlist_notes
from ..core.policy import ACTIONS
from ..core.summary import amount, entries_words, next_run_words, span
from ..core.timestamps import iso
from ..errors import RefusedError, UsageError
from ..operations.entry import rows_of, show, unreadable
from ..operations.state import baseline, own_pending
from ..safe import one_line, share, text, verbatim
from ..server import reading, scopes
from . import figures
from .backlog import MOST_ROWS, Backlog, SealedRun, waiting
from .session import SAMPLE_ROWS, RunSession, Table, groups_frame, markdown, safe

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from IPython.display import Markdown
    from ipywidgets import Widget


class Analysis(RunSession):
    """01: the backlog as a DataFrame, decided as of now; writes nothing.

    With the `run_dir` of a sealed run it is that run's: its own decisions, and no server.
    """

    def __init__(self, *opened: Any, sealed: SealedRun | None = None) -> None:
        super().__init__(*opened)
        self.sealed = sealed
        if sealed is not None:
            self.baseline, self.policy = sealed.baseline, sealed.policy
            self.at_us, self.backlog = sealed.at_us, sealed.backlog
        else:
            of_run = self.noted("baseline.json") if self.folder_run_id else {}
            self.baseline = of_run or baseline(self.server)
            self.at_us, self.policy = self.now_us(), self.job.policy
            counted = self.group["backlog"][self.settings.scope]
            if counted > MOST_ROWS:  # a run that goes on, or one with --until, has fewer
                counted = scopes.remaining(self.server, self.job.scope)
            is_of_run = self.folder_run_id is not None and self.planned is None
            pages = waiting(self.job, self.at_us, self.run_dir if is_of_run else None)
            self.backlog = Backlog(pages, counted)
        self.frame = self.backlog.frame
        self._decided = {*self.frame}  # its own columns

    @classmethod
    def open(cls, names: Mapping[str, Any]) -> Self:
        """Open with a notebook's `globals()`; a sealed run by its folder or URL."""
        if (sealed := SealedRun.of(names)) is None:
            return super().open(names)
        return cls(sealed.settings, None, sealed.folder, sealed.planned, sealed=sealed)

    @property
    def group(self) -> dict[str, Any]:
        """The consumer group as it was when the run began."""
        name = self.settings.consumer_group
        return next(group for group in self.baseline["groups"] if group["name"] == name)

    def bottom_line(self) -> Markdown:
        """How much, how old, how much would pass, and why the backlog is what it is."""
        lines = [_waiting(self) if self.sealed is None else self.sealed.told()]
        ages = self.frame["age_sec"].dropna()
        if len(ages):
            oldest = f"The oldest is {span(ages.max())} old"
            if ages.max() < 0:
                oldest = "They lie in the future, by the server's clock"
            elif ages.median() > 0 and ages.min() < ages.max():
                oldest = (f"Half of them are older than {span(ages.median())}, "
                          f"the oldest is {span(ages.max())} old")  # fmt: skip
            lines.append(f"{oldest}; the limit is {self.policy.max_age_min:g} min.")
        lines.append(str(self.group["why"]))
        slips = allowlist_notes(self.policy.allowlist, self.backlog.symbols)
        lines += [verbatim(note) for note in slips]
        step, total = self.backlog.step, self.backlog.total
        if step > 1:
            lines.append(
                f"All that follows, and `analysis.frame`, holds **one event in {step}**, "
                f"{len(self.frame):,} of {total:,}. To see them all: "
                f"{'`decisions.parquet`' if self.sealed else '`drainkit export DIR/`'} "
                "is a dataset of them, which DuckDB, Polars or pyarrow read."
            )
        return markdown("\n\n".join(lines))

    def _of_sample(self, figure: go.Figure) -> go.Figure:
        """Says in the title if not every event is in it."""
        if self.backlog.step > 1:
            figure.layout.title.text += f" (one event in {self.backlog.step})"
        return figure

    def age(self) -> go.Figure:
        """Ages against the limit."""
        return self._of_sample(figures.age(self.frame["age_sec"].to_numpy(), self.policy))

    def confidence(self) -> go.Figure:
        """Confidences against the limit."""
        return self._of_sample(figures.confidence(self.frame["confidence"].to_numpy(), self.policy))

    def by(self, column: str) -> go.Figure:
        """By symbol, source, side or any other column, such as one of `with_fields`."""
        if column not in self.frame:
            raise UsageError(f"no column {column}; analysis.with_fields({column!r}) adds it")
        return self._of_sample(figures.by_category(self.frame, column))

    def arrivals(self) -> go.Figure:
        """Events over time."""
        return self._of_sample(figures.arrivals(self.frame))

    def overlap(self) -> go.Figure:
        """Which filters the events fail together."""
        return self._of_sample(figures.overlap(self.frame))

    def what_if(self) -> go.Figure:
        """What would pass at other limits."""
        figure = self._of_sample(figures.what_if(self.frame, self.policy))
        passing = int(self.backlog.counts[ACTIONS.index("drained_ok")])
        told = {"at": iso(self.at_us), "entries": self.backlog.total, "pass": passing}
        return figure.update_layout(meta=told)  # for the report's table

    def with_fields(self, *names: str) -> Table:
        """Add columns of the entries' own fields to `frame`: `model`, `payload.entry_price`.

        The scope is read once more for them. Numbers of JSON are numbers, all else is text.
        """
        if self.sealed is not None:
            raise RefusedError("a sealed run keeps no fields of its entries; ask the stream's own")
        if taken := [name for name in names if name in self._decided]:
            raise UsageError(f"{taken[0]} is a column already, of what was decided")
        index = pd.Index(self.frame["id"])
        columns = {name: np.full(len(index), None, object) for name in names}
        for page in scopes.scope_entries(self.server, self.job.scope):
            rows = index.get_indexer([text(entry[0]) for entry in page]).tolist()
            for row, (_, body) in zip(rows, page, strict=True):
                for name, column in columns.items() if row >= 0 else ():
                    column[row] = value_of(body or (), name)
        for name, column in columns.items():
            self.frame[name] = pd.Series(column).infer_objects()
        there = self.frame[[*names]]
        found = {"events": [*there.notna().sum()], "values": [*there.nunique()]}
        return Table(found, index=pd.Index([one_line(name) for name in names], name="field"))

    def stream_table(self) -> pd.DataFrame:
        """The stream as XINFO says."""
        info = self.baseline["stream"]
        words = [f"{v:,}" if isinstance(v, int) else one_line(str(v)) for v in info.values()]
        return Table({"value": words}, index=pd.Index(list(info), name="stream"))

    def groups_table(self) -> pd.DataFrame:
        """Each group, its backlog counted, its lag as reported."""
        return groups_frame(self.baseline)

    def consumers_table(self) -> pd.DataFrame:
        """The group's consumers, those with pending entries first."""
        frame = pd.DataFrame(self.group["consumer_list"], columns=["name", "pending", "idle_ms"])
        frame = frame.sort_values(["pending", "idle_ms"], ascending=False)
        frame["idle"] = [span(ms / 1000) for ms in frame.pop("idle_ms")]
        if len(rest := frame[SAMPLE_ROWS:]):
            more = [[f"and {len(rest):,} more", int(rest["pending"].sum()), ""]]
            told = pd.DataFrame(more, columns=frame.columns)
            frame = pd.concat([frame[:SAMPLE_ROWS], told])
        return safe(frame)

    def head(self) -> pd.DataFrame:
        """The first events of the backlog."""
        hidden = ["time_source", "invalid", "missing", "failed"]
        shown = self.frame.head(SAMPLE_ROWS).drop(columns=hidden)
        shown["event_time"] = shown["event_time"].map(
            lambda time: "" if pd.isna(time) else str(time)[:23]
        )
        shown.columns = shown.columns.str.replace("event_time", "event_time (UTC)")
        return safe(shown)

    def invalid_table(self) -> pd.DataFrame:
        """Events that cannot be read, by reason, with an example of each (escaped)."""
        bad = self.frame[self.frame["invalid"].ne("") & ~self.frame["missing"]]
        groups = bad.groupby(bad["invalid"].astype(str), sort=False)["id"].agg(["size", "first"])
        groups = groups.sort_values("size", ascending=False, kind="stable")
        raw = (
            [] if self.sealed else reading.bodies(self.server, [*map(str.encode, groups["first"])])
        )
        texts = [one_line(" ".join(text(part) for part in entry[1] or []), 100) for entry in raw]
        columns = {"events": groups["size"], "example": groups["first"],
                   "raw": texts or ["not kept"] * len(groups)}  # fmt: skip
        return Table(columns, index=pd.Index(groups.index, name="reason"))

    def unreadable(self) -> Markdown | None:
        """Where most events cannot be read: why, which fields there are, what would help."""
        found = None if self.sealed else unreadable(self.server, self.settings)
        if found is None:
            return None
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in found.reasons.items())
        names = "\n".join(
            f"- {value}: {verbatim(path)} in {entries:,}, such as {verbatim(example)}; "
            f"{'**chosen**, ' if chosen else ''}{why}"
            for value, path, entries, example, chosen, why in found.paths
        )
        notes = [*map(verbatim, found.notes), found.advice()]
        if snippet := found.snippet():
            notes.append(f"```toml\n{snippet}\n```")
        return markdown("\n\n".join([f"**{found.title()}**: {reasons}. Fields:", names, *notes]))

    def outcomes(self) -> Table | None:
        """Of a sealed live run: what was decided, and what became of it."""
        return None if self.sealed is None else self.sealed.outcomes()

    def entry(self, entry_id: str) -> Table:
        """One entry as `drainkit show` has it: fields, values, verdicts, groups, audit.

        Of a sealed run what is kept of it.
        """
        if self.sealed is not None:
            return self.sealed.entry(entry_id)
        (found,) = show(self.server, self.settings, self.policy, [entry_id], now_us=self.at_us)
        return Table(rows_of(found), columns=["part", "name", "value"])

    def _more_settings(self) -> dict[str, str]:
        return super()._more_settings() if self.sealed is None else self.sealed.parameters()

    def explore(self, *, anyway: bool = False) -> Widget | None:
        """Limits to move and events to search, where a person is; elsewhere nothing.

        `anyway` shows it in a front end that does not say that a person is there.
        """
        from .explore import Exploration, person_is_here

        if not (anyway or person_is_here()):
            return None
        self.exploration = Exploration(
            self.frame,
            self.policy,
            self.settings,
            lambda one: self.entry(one)._repr_html_(),
            at_us=self.at_us if self.sealed is None else self.sealed.moments_us(),
            step=self.backlog.step,
        )
        return self.exploration.widget


def _waiting(analysis: Analysis) -> str:
    """How many entries wait, what would pass now, and what the next run would take of them."""
    settings, scope, backlog = analysis.settings, analysis.job.scope.name, analysis.backlog
    total, passing = backlog.total, int(backlog.counts[ACTIONS.index("drained_ok")])
    name = settings.consumer_name
    own = own_pending(analysis.group, name) if scope == "undelivered" else 0
    summed = f" ({entries_words(scope, total, own)})" if own else ""
    when = "now" if settings.as_of is None else f"as of {settings.as_of:%F %T%z}"
    told = (
        f"**{amount(total)}** {'waits' if total == 1 else 'wait'} in scope `{scope}`{summed}, and "
        f"**{passing:,} of them ({share(passing, total)}) would pass** every filter {when}: still "
        "good signals, which a drain acknowledges and does **not** execute."
    )
    if not total:
        return told
    told += f" The next run takes {next_run_words(total, settings.max_events, settings.throttle)}"
    if backlog.step > 1:  # the frame is a sample
        return f"{told}."
    first = analysis.frame["action"].head(settings.max_events or total)
    return f"{told}; decided {when}, {int((first == 'drained_ok').sum()):,} of these would pass."
