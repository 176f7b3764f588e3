"""report.html: one self-contained file that opens offline and reads well on paper.

This module gathers what the folder's files hold; report.html.j2 says how it looks. Every text from
outside becomes one line without control characters and is escaped; scripts are plotly's own,
inlined once.
"""

from __future__ import annotations

import datetime as dt
import html
import json
import re
import shlex
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.policy import ACTIONS, COLOURS, NAMES
from ..core.progress import entries_words
from ..core.summary import approvers_words
from ..operations.state import own_pending
from ..safe import one_line, share
from ..server.keeping import keeping_words
from . import checks, records
from .checks import Json, drift_of, group_of, throttle_of
from .records import Records

PLOTLY_JSON = "application/vnd.plotly.v1+json"
MAX_TEXT = 900  # characters of any text from outside
UNBROKEN = 40  # characters of a name that a table on A4 has room for in one line
INK = "#1c1c1c"  # of a figure's text
BASELINE_FIGURES = 2  # of 01; the others follow at the end
DEAD_MIN = 60  # minutes without a sign of life


def build(folder: Path) -> str:
    """The report of a run's folder as HTML, from what is in the folder alone."""
    run, plan = _read(folder / "run.json"), _read(folder / "plan.json")
    before, after = _read(folder / "baseline.json"), _read(folder / "after.json")
    boundary = str(run.get("boundary_id") or "")
    live = run.get("mode") == "live"
    audit = records.read(folder / "audit.parquet", boundary) if live else None
    decided = None if live else records.read(folder / "decisions.parquet", boundary)
    audited = _audited(run, audit)
    figures = _Figures(folder)
    analysis = figures.of("01_analyse_backlog")
    page: str = _template().render(
        folder=folder.name,
        run=run,
        plan=plan,
        live=live,
        header=_header(run, plan, before),
        verdict=_verdict(run),
        facts=_facts(run, live),
        actions=_actions(run),
        checks=checks.checks_of(run, plan, before, after, audit),
        parameters=_parameters(run, plan),
        before=before,
        after=after,
        own=group_of(before, run.get("consumer_group")),
        expected=_expected(run, plan, before),
        bridge=_bridge(folder, run, plan, before),
        planned=_planned(run, plan),
        drift=drift_of(run),
        audited=audited,
        agrees=all(said == held for _, said, held in audited or ()),
        names_drift=(folder / "drift.parquet").exists(),
        change=_change(before, after),
        samples=audit if live else decided,
        metrics=_metrics(run),
        next_steps=_next_steps(folder, run, after or before),
        files=_files(folder),
        baseline_figures=analysis[:BASELINE_FIGURES],
        more_figures=analysis[BASELINE_FIGURES:],
        dry_run_figures=figures.of("02_dry_run"),
        live_figures=figures.of("03_live_drain"),
        verify_figures=figures.of("04_verify"),
    )
    return page


def _template() -> Any:
    import jinja2
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        if value is None:
            return ""
        if isinstance(value, str) and not isinstance(value, Markup):
            return one_line(value, MAX_TEXT)
        return value

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(n=_number, breakable=_breakable, together=_together)
    return environment.get_template("report.html.j2")


def _number(value: Any) -> str:
    """A number as a reader writes it; None is "unknown"."""
    if value is None:
        return "unknown"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}".rstrip("0").rstrip(".")


def _breakable(name: str) -> Any:
    """A key's name that may be broken after its separators; on paper not even there, if short."""
    from markupsafe import Markup

    parts = Markup("<wbr>").join(re.split(r"(?<=[:./])", one_line(name, MAX_TEXT)))
    return Markup("<span class='key'>{}</span>").format(parts) if len(name) <= UNBROKEN else parts


def _together(text: str) -> Any:
    """A text whose percentages stay in one line."""
    from markupsafe import Markup, escape

    return escape(one_line(text, MAX_TEXT)).replace(" %", Markup("&nbsp;%"))


def _when(value: Any) -> str:
    """An ISO 8601 time as a reader says it, UTC."""
    try:
        time = dt.datetime.fromisoformat(str(value)).astimezone(dt.UTC)
    except (ValueError, OverflowError):
        return str(value or "")
    return f"{time.day} {time:%B %Y, %H:%M:%S} UTC"


def _header(run: Json, plan: Json, before: Json) -> list[tuple[str, str]]:
    server = before.get("server") or {}
    found = [
        ("date", _when(run.get("started_at"))),
        ("mode", run.get("mode")),
        ("server", f"{server.get('kind', '')} {server.get('version', '')}".strip()),
        ("what it keeps", "; ".join(keeping_words(server))),
        ("address", run.get("server")),
        ("environment", run.get("environment")),
        ("operator", run.get("operator")),
        ("approved by", _approved(run)),
        ("run", run.get("run_id")),
        ("plan digest", plan.get("digest") or run.get("plan_digest")),
        ("stream", run.get("stream")),
        ("group", run.get("consumer_group")),
        ("scope", run.get("scope")),
    ]
    return [(name, str(value)) for name, value in found if value]


def _approved(run: Json) -> str:
    keys = run.get("approver_keys")
    if isinstance(keys, Mapping) and run.get("approvals_required"):
        return approvers_words(keys, int(run["approvals_required"]))
    return ", ".join(map(str, run.get("approvers") or ()))


def _facts(run: Json, live: bool) -> list[tuple[str, str]]:
    left = run.get("remaining")
    found = [
        ("entries read", _number(run.get("total_read", 0))),
        ("passed every filter", _number(run.get("drained_ok", 0))),
        ("remaining in the scope", _number(left)),
        ("seconds", f"{run.get('elapsed_sec') or 0:,.1f}"),
    ]
    if live:
        found.append(("events per second", f"{run.get('events_per_sec') or 0:,.1f}"))
    return found


def _actions(run: Json) -> list[dict[str, Any]]:
    read = run.get("total_read", 0)
    return [
        {"name": action, "meaning": NAMES[action], "colour": COLOURS[action],
         "events": run.get(action, 0), "share": share(run.get(action, 0), read)}
        for action in ACTIONS
    ]  # fmt: skip


def _verdict(run: Json) -> str:
    read, ok = run.get("total_read", 0), run.get("drained_ok", 0)
    outcome, live = run.get("outcome"), run.get("mode") == "live"
    if outcome == "done" and live:
        return (
            f"{read:,} entries were audited and acknowledged, each once. {ok:,} of them "
            f"({share(ok, read)}) had passed every filter. Nothing was traded or deleted."
        )
    if outcome == "done":
        return f"A live drain would read {read:,} entries and pass {ok:,}. Nothing was changed."
    reason = f"The run ended early ({outcome}): {run.get('error', 'no reason known')}."
    if not live:
        return reason + " Nothing was changed."
    return reason + (
        f" {read:,} entries had been audited and acknowledged by then, each once; the same command "
        "goes on from there."
    )


def _parameters(run: Json, plan: Json) -> list[tuple[str, str]]:
    """What decided the outcome, as the plan holds it."""
    if not plan:
        return []
    policy, allowed, throttle = plan["policy"], plan["policy"]["allowlist"], throttle_of(run, plan)
    taken = plan.get("max_events", "unknown")
    found = [
        ("maximum age", f"{policy['max_age_min']:g} min"),
        ("minimum confidence", f"{policy['min_conf']:g}"),
        ("allowlist", "any symbol" if allowed is None else ", ".join(allowed)),
        ("throttle", "none" if throttle is None else f"{throttle:g} events per second"),
        ("max events", "all" if taken is None else _number(taken)),
        ("ages measured", _when(plan["as_of"]) if plan.get("as_of") else "at each decision"),
        ("from", plan.get("from") or plan.get("from_")),
        ("until", plan.get("until")),
        ("idle at least", plan.get("scope") == "pending" and f"{plan['min_idle_min']:g} min"),
        ("entries", f"{plan['total_read']:,}, {plan['first_id']} to {plan['last_id']}"),
        ("boundary", run.get("boundary_id")),
    ]  # fmt: skip
    return [(name, str(value)) for name, value in found if value]


def _expected(run: Json, plan: Json, before: Json) -> list[tuple[str, Any, str]]:
    """What one might expect the backlog to be, beside what was counted."""
    group = group_of(before, run.get("consumer_group"))
    if not group:
        return []
    backlog, length = group["backlog"], before["stream"]["length"]
    own = own_pending(group, str(plan.get("consumer_name")))
    return [
        ("the stream's length", length, "counts what was delivered long ago, too"),
        ("the lag that Redis reports", group["lag_reported"],
         "null or wrong after deletions and moved positions"),
        ("undelivered, counted", backlog["undelivered"], "after the group's position"),
        ("of the drain's own consumer", own, "pending; finished first"),
        ("pending, counted", backlog["pending"], "delivered, never acknowledged"),
        ("history, counted", backlog["history"], "at or before the position: never read again"),
    ]  # fmt: skip


def _bridge(folder: Path, run: Json, plan: Json, before: Json) -> list[tuple[str, Any, Any]]:
    """(step, entries, passing): from the backlog to the plan to what happened."""
    if not plan or "counts" not in plan:
        return []
    read, passing = plan["total_read"], plan["counts"].get("drained_ok", 0)
    steps: list[tuple[str, Any, Any]] = []
    group = group_of(before, plan.get("consumer_group"))
    scope = str(plan.get("scope", "undelivered"))
    waiting = group.get("backlog", {}).get(scope)
    if waiting is not None:
        own = own_pending(group, plan["consumer_name"]) if scope == "undelivered" else 0
        told = f"{scope}, counted before the run"
        steps.append((entries_words(scope, waiting + own, own) if own else told,
                      waiting + own, None))  # fmt: skip
    if plan.get("as_of") is None and plan.get("created_at"):
        made_us = _epoch_us(plan["created_at"])
        limit_us = round(plan["policy"]["max_age_min"] * 60e6)
        at_once = records.passing_at_once(folder / "decisions.parquet", made_us, limit_us)
        steps.append(("dry run, all decided at once", read, at_once))
    steps.append(("plan, each decided at its turn", read, passing))
    if run.get("mode") == "live":
        steps.append(("outcome", run.get("total_read", 0), run.get("drained_ok", 0)))
    return steps


def _epoch_us(iso: str) -> int:
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return (dt.datetime.fromisoformat(iso) - epoch) // dt.timedelta(microseconds=1)


def _planned(run: Json, plan: Json) -> list[tuple[str, Any, Any]]:
    counts = plan.get("counts", {})
    rows: list[tuple[str, Any, Any]] = [(a, counts.get(a), run.get(a, 0)) for a in ACTIONS]
    if run.get("vanished"):
        rows.append(("vanished: deleted by others before their turn", None, run["vanished"]))
    rows.append(("errors", None, run.get("errors", 0)))
    return [*rows, ("still pending for the drain's consumer", None, run.get("pending_own"))]


def _audited(run: Json, audit: Records | None) -> list[tuple[str, int, int]] | None:
    if audit is None:
        return None
    rows = [(action, int(run.get(action, 0)), audit.counts[action]) for action in ACTIONS]
    return [*rows, ("all", int(run.get("total_read", 0)), audit.rows)]


def _change(before: Json, after: Json) -> list[tuple[str, str, str, Any, Any]]:
    if not before or not after:
        return []
    known = {g["name"]: g for g in before["groups"]}
    rows = []
    for group in after["groups"]:
        old = known.get(group["name"], {"position": "(none)", "pending": 0})
        rows.append(
            (group["name"], old["position"], group["position"], old["pending"], group["pending"])
        )
    return rows


def _metrics(run: Json) -> list[tuple[str, str]]:
    keys = ("started_at", "finished_at", "elapsed_sec", "events_per_sec", "boundary_id", "outcome",
            "exit_code")  # fmt: skip
    return [(key, str(run.get(key))) for key in keys]


def _next_steps(folder: Path, run: Json, state: Json) -> list[tuple[str, str]]:
    """(what is left, the command that goes on)."""
    group = group_of(state, run.get("consumer_group"))
    where = [f"--stream {shlex.quote(str(run.get('stream', '')))}",
             f"--consumer-group {shlex.quote(str(run.get('consumer_group', '')))}"]  # fmt: skip
    place = shlex.quote(str(run.get("evidence") or f"reports/{folder.name}"))
    at = " ".join(where)
    steps = []
    if run.get("mode") != "live" and run.get("outcome") == "done":
        told = "Apply exactly this plan, while the group's position stays where it is."
        steps.append((told, f"drainkit run --mode live --plan {place}"))
    backlog = group.get("backlog", {})
    left = run.get("remaining") if run.get("mode") == "live" else None
    if left:
        told = f"{left:,} entries of the scope remain up to this run's boundary."
        steps.append((told, f"drainkit run --mode live --scope {run.get('scope')} {at}"))
    if pending := backlog.get("pending"):
        told = f"{pending:,} entries are pending: delivered to consumers, never acknowledged."
        steps.append((told, f"drainkit run --scope pending {at}"))
    if history := backlog.get("history"):
        told = f"{history:,} entries lie at or before the position: no consumer reads them again."
        steps.append((told + " Drain them only if the fate of each must be recorded; what "
                      "the audit holds is not recorded twice.",
                      f"drainkit run --scope history {at}"))  # fmt: skip
    dead = [c for c in group.get("consumer_list", ()) if c["idle_ms"] >= DEAD_MIN * 60_000]
    if dead:
        told = f"{len(dead):,} consumers have been idle for an hour or more."
        steps.append((told, f"drainkit consumers {at}"))
    steps.append(("Check this folder, and the chain of all runs.", f"drainkit verify {place}"))
    return steps


def _files(folder: Path) -> list[tuple[str, str]]:
    """(address, name) of what lies beside the report; nothing leads outside of the folder."""
    there = {path.name for path in folder.iterdir() if path.is_file()}
    names = sorted(there | {"SHA256SUMS", "statement.json"})  # these come when the run is sealed
    hidden = {"report.html"}
    return [(urllib.parse.quote(n), n) for n in names if not n.startswith(".") and n not in hidden]


class _Figures:
    """The figures of the executed notebooks; plotly.js comes with the first of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._first = True

    def of(self, notebook: str) -> list[dict[str, Any]]:
        """The figures of one notebook, `title` and `html`; in the order of the page."""
        cells = _read(self._folder / f"{notebook}.ipynb").get("cells", [])
        outputs = [o for cell in cells for o in cell.get("outputs", [])]
        return [
            self._draw(o["data"][PLOTLY_JSON]) for o in outputs if PLOTLY_JSON in o.get("data", {})
        ]

    def _draw(self, data: Mapping[str, Any]) -> dict[str, Any]:
        import plotly.io
        from markupsafe import Markup

        # notebooks have text for light and dark paper; here the paper is white
        ink = {**data["layout"].get("font", {}), "color": INK}
        drawn = plotly.io.to_html(
            {"data": data["data"], "layout": {**data["layout"], "font": ink}},
            full_html=False,
            include_plotlyjs=self._first,
            include_mathjax=False,
            validate=False,
            config={"displayModeBar": False, "responsive": True},
        )
        self._first = False
        title = data["layout"].get("title", {}).get("text", "")  # escaped when it was made
        return {"title": html.unescape(title), "html": Markup(drawn)}  # noqa: S704 - plotly's own


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
