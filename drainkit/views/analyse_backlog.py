"""01_analyse_backlog: the backlog as a DataFrame, decided as of now; or a sealed run's.

Of a sealed run it is what was decided and what became of it; no server, and nothing written.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from IPython.display import Markdown
from pyarrow import parquet

from .. import files
from ..core import frame, plan, summary, values
from ..core.events import Events
from ..core.policy import ACTIONS, Policy
from ..core.summary import amount, span
from ..draining import dry
from ..draining.plan_files import PlanFile
from ..errors import RefusedError, UsageError
from ..evidence import examined, remote, seal
from ..operations import events, state
from ..safe import one_line, share, verbatim
from ..server import scopes
from ..settings import NOTEBOOK, build, shown
from . import figures
from .session import SAMPLE_ROWS, Session, Table, check_names, groups_frame, listed, markdown

AUDIT = "audit.parquet"
OK = ACTIONS.index("drained_ok")


class Analysis(Session):
    """01: the backlog as a DataFrame, decided as of now; writes nothing.

    With the `run_dir` of a sealed run it is that run's: its own decisions, and no server.
    """

    more = "`drainkit export DIR/`"  # what holds all events

    def __init__(self, *opened: Any) -> None:
        super().__init__(*opened)
        of_run, as_of = self.folder_run_id is not None, self.settings.as_of_us
        self.baseline = (self.before if of_run else {}) or state.baseline(self.server)
        self.at_us = self.server.now_us() if as_of is None else as_of
        self.policy = self.job.policy
        counted = self.group["backlog"][self.settings.scope]
        if counted > frame.MOST_ROWS:  # a run that goes on, or one with --until, has fewer
            counted = scopes.left(self.server, self.job.scope).fresh
        folder = self.run_dir if of_run and self.planned is None else None
        pages = dry.look(self.job, self.at_us, folder)
        self.backlog = frame.Backlog(pages, counted)
        self.frame = self.backlog.frame

    @classmethod
    def open(cls, names: Mapping[str, Any]) -> Self:
        """Open with a notebook's `globals()`; a sealed run by its folder or URL."""
        place = names.get("run_dir")
        if isinstance(place, str) and seal.is_sealed(place):
            check_names(names)
            if given := [name for name in NOTEBOOK if names.get(name) is not None]:
                raise UsageError(
                    f"run_dir is a sealed run, which says its {given[0]}; leave that out"
                )
            return SealedAnalysis(place)  # type: ignore[return-value]
        return super().open(names)

    @property
    def group(self) -> dict[str, Any]:
        """The consumer group as it was when the run began."""
        name = self.settings.consumer_group
        return next(group for group in self.baseline["groups"] if group["name"] == name)

    def bottom_line(self) -> Markdown:
        """How much, how old, how much would pass, and why the backlog is what it is."""
        lines, ages = [self._waiting()], self.frame["age_sec"].dropna()
        if len(ages):
            lines.append(
                f"Their median age is {span(ages.median())}, the greatest "
                f"{span(ages.max())}; the limit is {self.policy.max_age_min:g} min."
            )
        slips = plan.allowlist_notes(self.policy.allowlist, self.backlog.symbols)
        lines += [str(self.group["why"]), *map(verbatim, slips)]
        if (step := self.backlog.step) > 1:
            lines.append(
                f"All that follows, and `analysis.frame`, holds **one event in {step}**, "
                f"{len(self.frame):,} of {self.backlog.total:,}. To see them all: {self.more} is a "
                "dataset of them, which DuckDB, Polars or pyarrow read."
            )  # fmt: skip
        return markdown("\n\n".join(lines))

    def _waiting(self) -> str:
        """How many entries wait, what would pass now, and what the next run would take of them."""
        settings, scope, total = self.settings, self.job.scope.name, self.backlog.total
        passing, name = int(self.backlog.counts[OK]), settings.consumer_name
        own = state.own_pending(self.group, name) if scope == "undelivered" else 0
        summed = f" ({summary.entries_words(scope, total, own)})" if own else ""
        when = "now" if settings.as_of is None else f"as of {settings.as_of:%F %T%z}"
        taken = summary.next_run_words(total, settings.max_events, settings.throttle)
        return (
            f"Scope `{scope}` holds **{amount(total)}**{summed}, and **{passing:,} of them "
            f"({share(passing, total)}) would pass** every filter {when}: still good signals, "
            "which a drain acknowledges and does **not** execute."
            + f" The next run takes {taken}."
            * (total > 0)
        )

    def _of_sample(self, figure: figures.Canvas) -> figures.Canvas:
        """Says in the title if not every event is in it."""
        if self.backlog.step > 1:
            figure["layout"]["title"]["text"] += f" (one event in {self.backlog.step})"
        return figure

    def age(self) -> figures.Canvas:
        """Ages against the limit."""
        return self._of_sample(figures.age(self.frame["age_sec"].to_numpy(), self.policy))

    def confidence(self) -> figures.Canvas:
        """Confidences against the limit."""
        return self._of_sample(figures.confidence(self.frame["confidence"].to_numpy(), self.policy))

    def by(self, column: str) -> figures.Canvas:
        """By symbol, source, side or any column that was added to `frame`."""
        return self._of_sample(figures.by_category(self.frame, column))

    def overlap(self) -> figures.Canvas:
        """Which filters the events fail together."""
        return self._of_sample(figures.overlap(self.frame))

    def what_if(self) -> figures.Canvas:
        """What would pass at other limits."""
        figure = self._of_sample(figures.what_if(self.frame, self.policy))
        figure["layout"]["meta"] = {
            "at": values.iso(self.at_us),
            "entries": self.backlog.total,
            "pass": int(self.backlog.counts[OK]),
        }  # for the report's table
        return figure

    def groups_table(self) -> Table:
        """Each group, its backlog counted, its lag as reported."""
        return groups_frame(self.baseline)

    def consumers_table(self) -> Table:
        """The group's consumers, those with pending entries first."""
        found = sorted(self.group["consumer_list"], key=lambda c: (-c["pending"], -c["idle_ms"]))
        rows = [(c["name"], c["pending"], span(c["idle_ms"] / 1000)) for c in found]
        if rest := rows[SAMPLE_ROWS:]:
            rows[SAMPLE_ROWS:] = [(f"and {len(rest):,} more", sum(n for _, n, _ in rest), "")]
        return Table(rows, columns=["name", "pending", "idle"])

    def head(self) -> Table:
        """The first events of the backlog."""
        hidden = ["time_source", "invalid", "missing", "failed"]
        return Table(self.frame.head(SAMPLE_ROWS).drop(columns=hidden))

    def invalid_table(self) -> Table:
        """Events that cannot be read, by reason, with an example of each for `entry`."""
        bad = self.frame[self.frame["invalid"].ne("") & ~self.frame["missing"]]
        groups = bad.groupby(bad["invalid"].astype(str), sort=False)["id"]
        found: Any = groups.agg(events="size", example="first")
        found = found.sort_values("events", ascending=False, kind="stable")
        return Table(found.rename_axis("reason"))

    def outcomes(self) -> Table | None:
        """Of a sealed live run: what was decided, and what became of it."""
        return None

    def entry(self, entry_id: str) -> Table:
        """One entry as `drainkit show` has it: fields, values, verdicts, audit.

        Of a sealed run what is kept of it.
        """
        (found,) = events.show(
            self.server, self.settings, self.policy, [entry_id], now_us=self.at_us
        )
        return Table(events.rows_of(found), columns=["part", "name", "value"])

    def explore(self, *, anyway: bool = False) -> Any:
        """Limits to move and events to search, where a person is; elsewhere nothing.

        `anyway` shows it in a front end that does not say that a person is there.
        """
        from .explore import Exploration, person_is_here

        if not (anyway or person_is_here()):
            return None
        self.exploration = Exploration(self)
        return self.exploration.widget


class SealedAnalysis(Analysis):
    """01 of a sealed run: its decisions as the backlog, and the records of its live drain."""

    more = "`decisions.parquet`"
    run_dir: Path
    planned: PlanFile

    def __init__(self, place: str) -> None:
        self.place = place
        self._open = ExitStack()  # a copy from a URL stays as long as this does
        folder = self.run_dir = self._open.enter_context(remote.local_copy(place))
        try:
            names = (seal.RUN_JSON, "baseline.json")
            self.run, self.baseline = (
                seal.parse(files.read_plain(folder / name), dict) for name in names
            )
            planned = self.planned = PlanFile.load(folder)
        except (OSError, ValueError, UsageError):
            raise UsageError(
                f"{one_line(place)} holds no decisions that could be shown: it is archived, or its "
                "run ended before the plan"
            ) from None
        findings, own = examined.examine(folder).findings, planned.plan
        self.seal = f"does not hold: {one_line(findings[0])}" if findings else "holds"
        self.settings = own.laid_under(build({"env": own.environment}, asked=frozenset()))
        allowed = own.policy["allowlist"]
        symbols = None if allowed is None else frozenset(allowed)
        self.policy = Policy(own.policy["max_age_min"], symbols, own.policy["min_conf"])
        # when the decisions began; with as_of what they were measured against
        self.at_us = int(values.times_us([own.as_of or own.created_at])[0])
        decided = ((Events.from_arrow(b), frame.decisions_of(b)) for b in planned.blocks())
        self.backlog = frame.Backlog(decided, own.total_read)
        self.frame = self.backlog.frame
        self.is_live = self.run.get("mode") == "live" and (folder / AUDIT).exists()
        self.happened = dict.fromkeys(ACTIONS, 0)  # by action
        if self.is_live:
            try:
                audit = parquet.read_table(folder / AUDIT, columns=["original_id", "action"])
            except (OSError, ValueError):
                raise RefusedError(f"{AUDIT} cannot be read: the seal {self.seal}") from None
            rows = pc.index_in(pa.array(self.frame["id"]), value_set=audit["original_id"])
            happened = audit["action"].take(rows).to_pandas()
            # what became of each event, where the run has its record, beside what was decided
            self.frame["happened"] = pd.Categorical(happened, categories=list(ACTIONS))
            self.happened |= frame.word_counts(audit["action"])

    def _waiting(self) -> str:
        """Which run it is, as of when, and what became of its events."""
        passing, total = int(self.backlog.counts[OK]), self.backlog.total
        when = values.iso(self.at_us)[:19].replace("T", " ")
        seal = self.seal if self.seal == "holds" else verbatim(self.seal)
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

    def _more_settings(self) -> dict[str, str]:
        own = self.planned.plan
        return {
            "server": f"none is asked; the run's was {own.server or 'not noted'}",
            "run_dir": self.place, "seal": self.seal,
            "allowlist": shown("allowlist", self.policy.allowlist),
            "boundary": f"{own.boundary_id} (the run's)",
        }  # fmt: skip

    def outcomes(self) -> Table | None:
        """Events by action, as decided and as recorded; None where nothing was live."""
        decided = [self.planned.plan.counts[action] for action in ACTIONS]
        columns = {"decided": decided, "recorded": [*self.happened.values()]}
        return Table(columns, index=pd.Index(ACTIONS, name="action")) if self.is_live else None

    def entry(self, entry_id: str) -> Table:
        """What is kept of one entry: its row of the decisions, its audit record."""
        rows = (block.filter(pc.equal(block["id"], entry_id)) for block in self.planned.blocks())
        row = next(filter(len, rows), None)
        if row is None:
            raise RefusedError(
                f"{one_line(entry_id)} is none of the {self.backlog.total:,} entries that this run "
                "decided; check the id"
            )
        (found,) = row.to_pylist()
        sha256 = found.pop("payload_sha256")
        found["payload"] = f"not kept; its SHA-256 is {sha256.hex()}" if sha256 else "gone"
        if self.is_live:
            chosen = [("original_id", "==", entry_id)]
            records = parquet.read_table(self.run_dir / AUDIT, filters=chosen).to_pylist()
            told = ("{action} at {drained_at_ts}: {reason}".format(**record) for record in records)
            found["recorded"] = "; ".join(told) or "no"
        known = {name: str(value) for name, value in found.items() if value is not None}
        return listed(known, "value", "name")
