"""What the notebooks call: one class for each, so that their cells stay short and hold no logic.

A notebook opens its class with `globals()`: names that papermill injected and nobody knows are
refused, values are checked by settings.py, and the URL comes from the environment alone.
"""

from __future__ import annotations

import ast
import dataclasses
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pandas as pd

from . import apply, drain, evidence, figures, status, stream
from .audit import AuditRecord, reconcile
from .drain import Job, Summary
from .errors import DrainkitError, RefusedError, UsageError, error_of, one_line
from .policy import ACTIONS, decide_frame
from .server import Server
from .settings import Settings, load

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import pyarrow as pa
    from IPython.display import Markdown

    from .plan import Plan

PARAMETERS = (
    "stream", "consumer_group", "consumer_name", "audit_stream", "scope", "allowlist", "min_conf",
    "max_age_min", "throttle", "max_events", "as_of",
)  # fmt: skip
EXTRA = ("redis_url_env", "run_dir", "approve")
MILESTONES = 10
SAMPLE_ROWS = 8


def check_names(names: Mapping[str, Any], extra: tuple[str, ...] = ()) -> None:
    """Refuse a name that no notebook knows, injected by papermill or typed: a misspelt one."""
    known = (*PARAMETERS, *EXTRA, *extra)
    for source in map(str, names.get("In", [])):
        if not source.startswith(("# Parameters", "redis_url_env =")):
            continue
        nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
        for name in (node.id for node in nodes if isinstance(node.ctx, ast.Store)):
            if name not in known or name not in names:
                raise UsageError(f"{one_line(name)}: no such parameter; check its spelling")


class Session:
    """Checked parameters, a connection, and the job that a drain with them would be."""

    mode = "dry-run"
    extra: ClassVar[tuple[str, ...]] = ()  # parameters of this notebook alone

    def __init__(self, settings: Settings, server: Server, run_dir: Path | None) -> None:
        self.settings = settings
        self.server = server
        self.run_dir = run_dir
        run_id = evidence.new_run_id(self.mode, server.now_us())
        if run_dir is not None and evidence.RUN_ID.fullmatch(run_dir.name):
            run_id = run_dir.name
        self.job = drain.prepare(server, settings, run_id)

    @classmethod
    def open(cls, names: Mapping[str, Any]) -> Self:
        """Open with a notebook's `globals()`."""
        check_names(names, cls.extra)
        variable = names.get("redis_url_env") or "DRAINKIT_REDIS_URL"
        if not isinstance(variable, str) or "://" in variable:
            raise UsageError("redis_url_env takes the name of a variable, never a URL")
        url = os.environ.get(variable)
        if not url:
            raise UsageError(f"the environment variable {one_line(variable)} is not set; set it")
        given = {name: names[name] for name in PARAMETERS if names.get(name) is not None}
        settings = load({**given, "mode": cls.mode, "redis_url": url})
        run_dir = names.get("run_dir") or None
        if run_dir is not None and not (isinstance(run_dir, str) and Path(run_dir).is_dir()):
            raise UsageError(
                f"run_dir {one_line(str(run_dir))} is no folder; make it, or leave it out"
            )
        server = Server(url, settings.stream)
        return cls(settings, server, Path(run_dir) if run_dir else None)

    def settings_table(self) -> pd.DataFrame:
        """The parameters as understood, without secrets."""
        values = {name: getattr(self.settings, name) for name in PARAMETERS}
        values["throttle"] = self.settings.throttle or "none"
        values["max_events"] = self.settings.max_events or "all"
        values["allowlist"] = "any symbol" if self.job.policy.allowlist is None else ", ".join(
            sorted(self.job.policy.allowlist)
        )  # fmt: skip
        info = self.server.info
        values["server"] = f"{info.kind} {info.version} at {self.server.shown_url}"
        values["run_dir"] = str(self.run_dir or "(none: nothing is written)")
        rows = {name: one_line(str(value)) for name, value in values.items() if value is not None}
        return pd.DataFrame({"value": rows.values()}, index=pd.Index(rows, name="parameter"))

    def now_us(self) -> int:
        """The moment that ages are measured against: as_of, or the server's now."""
        as_of = self.settings.as_of_us
        return self.server.now_us() if as_of is None else as_of

    def files(self) -> pd.DataFrame:
        """What this run has written so far."""
        paths = sorted(self.run_dir.iterdir()) if self.run_dir else []
        sizes = {one_line(path.name): path.stat().st_size for path in paths if path.is_file()}
        return pd.DataFrame({"bytes": sizes.values()}, index=pd.Index(sizes, name="file"))


class Analysis(Session):
    """01: the backlog as a DataFrame, decided as of now; writes nothing."""

    def __init__(self, settings: Settings, server: Server, run_dir: Path | None) -> None:
        super().__init__(settings, server, run_dir)
        self.baseline = status.baseline(server, settings.stream)
        self.at_us = self.now_us()
        entries = stream.scope_entries(server, self.job.keys, self.job.scope)
        self.frame = stream.load_frame(entries, drain.decoder_of(settings))
        decided = decide_frame(self.frame, self.job.policy, self.at_us)
        self.frame = pd.concat([self.frame, decided], axis=1)

    def bottom_line(self) -> Markdown:
        """How much, how old, how much would pass, and why the backlog is what it is."""
        frame, policy = self.frame, self.job.policy
        passing = int((frame["action"] == "drained_ok").sum())
        ages = frame["age_sec"].dropna()
        part = figures.share(passing, len(frame))
        lines = [
            f"**{len(frame):,} entries** wait in scope `{self.job.scope.name}`, and "
            f"**{passing:,} of them ({part}) would pass** every filter."
        ]
        if len(ages):
            middle = f"Half of them are older than {_span(ages.median())}, the oldest is "
            if ages.max() < 0:
                oldest = "They lie in the future, by the server's clock"
            else:
                some = ages.median() > 0 and ages.nunique() > 1
                oldest = (middle if some else "The oldest is ") + f"{_span(ages.max())} old"
            lines.append(f"{oldest}; the limit is {policy.max_age_min:g} min.")
        lines.append(self.why())
        return markdown("\n\n".join(lines))

    def why(self) -> str:
        """Why the group's backlog is as large or small as it is."""
        group = self.settings.consumer_group
        return str(next(g["why"] for g in self.baseline["groups"] if g["name"] == group))

    def stream_table(self) -> pd.DataFrame:
        """The stream as XINFO says."""
        info = self.baseline["stream"]
        return pd.DataFrame({"value": [one_line(str(v)) for v in info.values()]}, index=list(info))

    def groups_table(self) -> pd.DataFrame:
        """Each group, its backlog counted, its lag as reported."""
        return groups_frame(self.baseline)

    def consumers_table(self) -> pd.DataFrame:
        """The group's consumers, those with pending entries first."""
        group = self.settings.consumer_group
        found = next(g for g in self.baseline["groups"] if g["name"] == group)["consumer_list"]
        frame = pd.DataFrame(found, columns=["name", "pending", "idle_ms"])
        frame["name"] = frame["name"].map(one_line)
        frame = frame.sort_values(["pending", "idle_ms"], ascending=False)
        return frame.head(SAMPLE_ROWS).reset_index(drop=True)

    def head(self) -> pd.DataFrame:
        """The first events of the backlog."""
        hidden = ["time_source", "invalid", "missing", "failed"]
        return safe(self.frame.head(SAMPLE_ROWS).drop(columns=hidden))

    def invalid_table(self) -> pd.DataFrame:
        """Events that cannot be read, by reason, with an example of each (escaped)."""
        bad = self.frame[self.frame["invalid"].astype(str).ne("") & ~self.frame["missing"]]
        first = bad.groupby(bad["invalid"].astype(str))["id"].first()
        counts = bad["invalid"].astype(str).value_counts()
        ids = [str(first[reason]).encode() for reason in counts.index]
        raw = stream.bodies(self.server, self.job.keys.stream, ids)
        examples = [
            one_line(" ".join(stream.text(part) for part in (entry[1] or [])), 100) for entry in raw
        ]
        return pd.DataFrame(
            {
                "events": counts.to_numpy(),
                "example": [entry_id.decode() for entry_id in ids],
                "raw": examples,
            },
            index=pd.Index(counts.index, name="reason"),
        )

    def age(self) -> go.Figure:
        """Ages against the limit."""
        return figures.age(self.frame["age_sec"].to_numpy(), self.job.policy)

    def confidence(self) -> go.Figure:
        """Confidences against the limit."""
        return figures.confidence(self.frame["confidence"].to_numpy(), self.job.policy)

    def by(self, column: str) -> go.Figure:
        """By symbol, source or side."""
        return figures.by_category(self.frame, column)

    def arrivals(self) -> go.Figure:
        """Events over time."""
        return figures.arrivals(self.frame)

    def overlap(self) -> go.Figure:
        """Which filters the events fail together."""
        return figures.overlap(self.frame)

    def what_if(self) -> go.Figure:
        """What would pass at other limits."""
        return figures.what_if(self.frame, self.job.policy)


class DryRun(Session):
    """02: decides as the live run would; with a run_dir saves the plan."""

    def __init__(self, settings: Settings, server: Server, run_dir: Path | None) -> None:
        super().__init__(settings, server, run_dir)
        self.summary, self.table = apply.decide_all(server, self.job)
        self.plan = apply.make_plan(self.job, self.summary, self.table)
        if run_dir is not None:
            evidence.save_plan(run_dir / "plan.json", self.plan, self.table)
            self.summary.plan_path, self.summary.plan_digest = "plan.json", self.plan.digest
            evidence.write_json(run_dir / "run.json", self.summary.as_dict())

    def bottom_line(self) -> Markdown:
        """What the live run would do, and how long it would take."""
        summary, left = self.summary, (self.summary.remaining or 0) - self.summary.total_read
        text = (
            f"A live run would read **{summary.total_read:,} entries** and pass "
            f"**{summary.drained_ok:,}**; {self.duration()}."
        )
        if left > 0:
            text += f" {left:,} more entries of the scope lie beyond its limit of events."
        return markdown(text + "\n\nNothing was changed: no group moved, no consumer was made.")

    def duration(self) -> str:
        """How long the live run takes at this throttle."""
        if self.settings.throttle is None:
            return "without a throttle it takes as long as the server needs"
        seconds = self.summary.total_read / self.settings.throttle
        return f"at {self.settings.throttle:g} events per second that takes {_span(seconds)}"

    def counts_table(self) -> pd.DataFrame:
        """Events by action."""
        return counts_frame(self.summary)

    def waterfall(self) -> go.Figure:
        """From read to passed."""
        return figures.waterfall({action: getattr(self.summary, action) for action in ACTIONS})

    def samples(self, rows: int = 2) -> pd.DataFrame:
        """A few events of each action, with the reason."""
        frame = self.table.to_pandas()
        columns = ["action", "id", "symbol", "age_sec", "confidence", "reason", "failed"]
        return safe(frame.groupby("action", sort=False).head(rows)[columns].sort_values("action"))

    def digest(self) -> Markdown:
        """The plan's digest, which arms the live run."""
        return markdown(f"Plan digest, to approve exactly this plan:\n\n`{self.plan.digest}`")


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
        plan, self.table = evidence.load_plan(self.run_dir)
        if plan.digest != self.approve:
            raise RefusedError("approve is not the digest of this plan; nothing was changed")
        settings = apply.adopt(self.settings, plan)
        job = apply.job_from_plan(self.server, settings, self.job.run_id, plan, self.table)
        earlier = _read_json(self.run_dir, "run.json") or {}
        if not (self.run_dir / "baseline.json").exists():
            before = status.baseline(self.server, settings.stream)
            evidence.write_json(self.run_dir / "baseline.json", before)
        with _graceful_interrupt() as stopping:  # to the end of the books, however often it comes
            self.summary = drain.drain(
                self.server, job, stopping=stopping, on_progress=_Milestones(job).show
            )
            self.job = job
            self.summary.plan_path, self.summary.plan_digest = "plan.json", plan.digest
            if self.server.connected:
                if earlier.get("run_id") == job.run_id and earlier.get("mode") == "live":
                    drain.recount(self.server, job, self.summary)  # with what it drained before
                self.summary.drift = apply.list_drift(self.server, job, self.table)
            evidence.write_json(self.run_dir / "run.json", self.summary.as_dict())
        if self.summary.error:
            raise error_of(self.summary.exit_code or 1, self.summary.error)

    def bottom_line(self) -> Markdown:
        """What was done."""
        if self.summary is None:
            return markdown("**Not armed.** This run changed nothing.")
        s = self.summary
        return markdown(
            f"**{s.total_read:,} entries were audited and acknowledged** in {_span(s.elapsed_sec)} "
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


class Verification(Session):
    """04: before and after, plan against audit against group; writes after.json, audit.parquet."""

    def __init__(self, settings: Settings, server: Server, run_dir: Path | None) -> None:
        super().__init__(settings, server, run_dir)
        self.after = status.baseline(server, settings.stream)
        baseline = _read_json(run_dir, "baseline.json")
        self.before = baseline or self.after
        self.run = _read_json(run_dir, "run.json")
        self.live = self.run is not None and self.run.get("mode") == "live"
        self.plan, self.table = self._plan()
        digest = self.plan.digest if self.plan else None
        starts = apply.runs_of(server, self.job.keys, digest) if digest else []
        self.run_id = str(self.run["run_id"]) if self.run and self.live else ""
        if not self.run_id and starts:
            self.run_id = starts[-1]["run_id"]  # it died, or run.json is that of a later dry run
        elif self.run is None:
            self.run_id = self._newest_run()
        self.has_before = baseline is not None or not self.run_id
        self.start = next((s for s in reversed(starts) if s["run_id"] == self.run_id), None)
        runs = {self.run_id, *(start["run_id"] for start in starts)} - {""}
        found = list(drain.run_records(server, self.job.keys, runs))
        self.records = [record for record in found if record.run_id == self.run_id]
        self.earlier = [record for record in found if record.run_id != self.run_id]
        self.findings = self._reconcile()
        if run_dir is not None:
            evidence.write_json(run_dir / "after.json", self.after)
            evidence.write_table(run_dir / "audit.parquet", audit_table(self.records))

    def _plan(self) -> tuple[Plan | None, pa.Table | None]:
        if self.run_dir is None or not (self.run_dir / "plan.json").exists():
            return None, None
        return evidence.load_plan(self.run_dir)

    def _newest_run(self) -> str:
        newest = self.server.call("XREVRANGE", self.job.keys.runs, "+", "-", "COUNT", 1)
        fields = [stream.text(part) for part in newest[0][1]] if newest else []
        return dict(zip(fields[::2], fields[1::2], strict=True)).get("run_id", "")

    def _reconcile(self) -> list[str]:
        scope = self.job.scope
        findings = others_touched(self.before, self.after, scope.group, scope.consumer)
        findings += self._still_pending()
        if not self.run_id:
            return findings
        run = self.run if self.run and self.live else {}
        planned = None
        done, all_ = len(self.records) + len(self.earlier), self.table.num_rows if self.table else 0
        if self.table is not None and (run.get("remaining") == 0 or done >= all_):
            ids, actions = self.table["id"].to_pylist(), self.table["action"].to_pylist()
            planned = dict(zip(ids, actions, strict=True))
        counts = {action: int(run.get(action, 0)) for action in ACTIONS}
        if not run:  # no numbers of its own to hold the audit against
            counts = dict(Counter(record.action for record in self.records))
            if self.start is not None and done < all_:
                findings.append(
                    f"run {one_line(self.run_id)} of this plan left no summary, and "
                    f"{all_ - done:,} planned entries are open; run 03 again"
                )
        return findings + reconcile(
            expected=planned,
            records=self.records,
            pending_own=int(run.get("pending_own") or 0),
            counts=counts,
            earlier=self.earlier,
        )

    def _still_pending(self) -> list[str]:
        """Audited entries that the group still holds as pending: recorded, not acknowledged."""
        group, boundary = self.job.scope.group, self.after["stream"]["boundary_id"]
        audited = {record.original_id.encode() for record in self.records}
        if not audited or group not in {g["name"] for g in self.after["groups"]}:
            return []
        pages = stream.pending_ids(self.server, self.job.keys.stream, group, boundary)
        left = [entry for page in pages for entry, _, _ in page if entry in audited]
        if not left:
            return []
        return [f"{len(left):,} audited entries are pending in the group, first {left[0].decode()}"]

    def bottom_line(self) -> Markdown:
        """Whether the books balance."""
        if self.findings:
            return markdown(
                "**The books do not balance:**\n\n" + "\n".join(f"- {f}" for f in self.findings)
            )
        if not self.run_id:
            return markdown("**Nothing was drained, and nothing changed.**")
        done, runs = len(self.records), ""
        if self.earlier:
            done += len(self.earlier)
            runs = " by all runs of this plan"
        return markdown(
            f"**The books balance:** {done:,} entries were read, audited and "
            f"acknowledged{runs}, each once; nothing is pending for the drain's consumer."
        )

    def assert_balanced(self) -> None:
        """Fail the notebook if anything does not balance."""
        if self.findings:
            raise DrainkitError("the books do not balance: " + "; ".join(self.findings))

    def change_table(self) -> pd.DataFrame:
        """Each group before and after."""
        before, after = groups_frame(self.before), groups_frame(self.after)
        columns = ["position", "undelivered", "pending"]
        if not self.has_before:
            return after[columns]
        return (
            before[columns]
            .add_suffix(" before")
            .join(after[columns].add_suffix(" after"), how="outer")
        )

    def others_line(self) -> Markdown:
        """What became of the groups that are not the drain's own."""
        if not self.has_before:
            return markdown("How it was before is not known: run_dir has no baseline.json.")
        own = self.job.scope.group
        old = {g["name"]: g for g in self.before["groups"]}
        others = [g for g in self.after["groups"] if g["name"] in old and g["name"] != own]
        moved = []
        for group in others:
            was, name = old[group["name"]], one_line(group["name"]).replace("`", "'")
            if any(group[key] != was[key] for key in ("position", "pending")):
                moved.append(
                    f"`{name}` from {was['position']} to {group['position']}, pending "
                    f"{was['pending']:,} to {group['pending']:,}"
                )
        if not others:
            return markdown("No other group reads this stream.")
        told = f"**{len(others) - len(moved)} of {len(others)} other groups are as they were.**"
        if moved:
            told += " Their own consumers moved: " + "; ".join(moved) + "."
        return markdown(told)

    def counts_table(self) -> pd.DataFrame:
        """Events by action, as the audit has them."""
        actions = pd.Series([record.action for record in self.records], dtype=object)
        counts = actions.value_counts().reindex(list(ACTIONS)).fillna(0).astype(int)
        return pd.DataFrame({"audited": counts})

    def audit_ms(self) -> np.ndarray:
        """Milliseconds of the audit ids, in order."""
        return np.array([stream.id_key(r.audit_id)[0] for r in self.records], dtype=np.int64)

    def pace(self) -> go.Figure:
        """Throttle compliance, measured from the audit's ids."""
        rate = self.plan.throttle if self.plan else self.settings.throttle
        if self.start is not None:  # what the run itself was told
            with suppress(ValueError):
                told = self.start.get("throttle", "")
                rate = None if told == "none" else float(told)
        return figures.pace(self.audit_ms(), rate)

    def samples(self) -> pd.DataFrame:
        """The first audit records."""
        rows = [dataclasses.asdict(record) for record in self.records[:SAMPLE_ROWS]]
        return safe(pd.DataFrame(rows, columns=[f.name for f in dataclasses.fields(AuditRecord)]))


# ---------------------------------------------------------------- tables and texts


def markdown(text: str) -> Markdown:
    """Text as a notebook shows it."""
    from IPython.display import Markdown

    return Markdown(text)  # type: ignore[no-untyped-call]


def safe(frame: pd.DataFrame) -> pd.DataFrame:
    """Texts from outside without control and bidi characters; HTML is escaped by pandas itself."""
    shown = frame.copy()
    for column in shown:
        if not pd.api.types.is_numeric_dtype(shown[column]):
            texts = shown[column].astype(object)
            shown[column] = texts.map(lambda v: "" if pd.isna(v) else one_line(str(v), 60))
    return shown.reset_index(drop=True)


def groups_frame(baseline: Mapping[str, Any]) -> pd.DataFrame:
    """The groups of a baseline, one row each."""
    rows = [
        {
            "group": one_line(g["name"]),
            "position": g["position"],
            **g["backlog"],
            "lag reported": "unknown" if g["lag_reported"] is None else g["lag_reported"],
            "consumers": g["consumers"],
        }
        for g in baseline["groups"]
    ]
    columns = [
        "group",
        "position",
        "undelivered",
        "pending",
        "history",
        "lag reported",
        "consumers",
    ]
    return pd.DataFrame(rows, columns=columns).set_index("group")


def counts_frame(summary: Summary | None) -> pd.DataFrame:
    """Events by action, with shares."""
    counts = [getattr(summary, action) if summary else 0 for action in ACTIONS]
    shares = [figures.share(n, sum(counts)) for n in counts]
    return pd.DataFrame({"events": counts, "share": shares}, index=pd.Index(ACTIONS, name="action"))


def others_touched(
    before: Mapping[str, Any], after: Mapping[str, Any], own: str, consumer: str
) -> list[str]:
    """Traces of a drain in groups that are not its own: a new group, or its consumer in another."""
    known = {g["name"]: {c["name"] for c in g["consumer_list"]} for g in before["groups"]}
    findings = []
    for group in after["groups"]:
        name = group["name"]
        if name == own:
            continue
        if name not in known:
            findings.append(f"group {one_line(name)} appeared during the run")
        elif consumer in {c["name"] for c in group["consumer_list"]} - known[name]:
            findings.append(f"group {one_line(name)} now has a consumer {one_line(consumer)}")
    return findings


def audit_table(records: list[AuditRecord]) -> pa.Table:
    """Audit records as a table, columns as in the stream plus `audit_id`."""
    import pyarrow as pa

    names = [field.name for field in dataclasses.fields(AuditRecord)]
    numbers = ("age_sec", "confidence")
    return pa.table(
        {
            name: pa.array(
                [getattr(record, name) for record in records],
                pa.float64() if name in numbers else pa.string(),
            )
            for name in names
        }
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


def _read_json(run_dir: Path | None, name: str) -> dict[str, Any] | None:
    import json

    if run_dir is None or not (run_dir / name).exists():
        return None
    found = json.loads((run_dir / name).read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else None


def _span(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
