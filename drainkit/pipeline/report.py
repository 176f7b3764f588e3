"""report.html: one self-contained file that opens offline and reads well on paper.

The order is that of the original report: summary, baseline, dry run, live drain, verification,
metrics. Every text from outside is escaped; scripts are plotly's own, inlined once.
"""

from __future__ import annotations

import html
import json
import urllib.parse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..core.policy import ACTIONS, COLOURS, NAMES
from ..operations.state import cell, group_rows
from ..safe import one_line, share

PLOTLY_JSON = "application/vnd.plotly.v1+json"
DRIFT_ROWS = 20
_STYLE = """
:root { color-scheme: light; --ink: #1c1c1c; --quiet: #5f5f5f; --line: #d9d9d9; }
* { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); max-width: 60rem;
  margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 2.8rem 0 .6rem; border-top: 1px solid var(--line);
  padding-top: 1.2rem; break-after: avoid; }
p { max-width: 46rem; }
p.quiet, dt { color: var(--quiet); }
p.verdict { font-size: 1.2rem; border-left: .35rem solid #009E73; padding: .3rem 0 .3rem .9rem; }
p.verdict.bad { border-color: #D55E00; }
dl { display: flex; flex-wrap: wrap; gap: .6rem 2.4rem; margin: 1.2rem 0; }
dl div { display: flex; flex-direction: column-reverse; }
dt { font-size: .85rem; }
dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.bar { display: flex; height: 1.3rem; margin: 1.2rem 0 .4rem; gap: 1px; }
.bar i { min-width: 2px; }
i.key { display: inline-block; width: .75rem; height: .75rem; margin-right: .5rem; }
table { border-collapse: collapse; margin: .8rem 0; font-size: .92rem; width: 100%; }
tr { break-inside: avoid; }
@media print { table { break-inside: avoid; } }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; vertical-align: top; }
td:first-child, th { overflow-wrap: normal; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code { font-size: .9em; overflow-wrap: anywhere; }
figure { margin: 1.2rem 0; break-inside: avoid; }
a { color: #005a8c; }
@page { margin: 14mm; }
@media print { body { margin: 0; padding: 0; max-width: none; font-size: 11pt; } }
"""


def build(folder: Path) -> str:
    """The report of a run's folder as HTML, from what is in the folder alone."""
    run, plan = _read(folder / "run.json"), _read(folder / "plan.json")
    before, after = _read(folder / "baseline.json"), _read(folder / "after.json")
    figures = _Figures(folder)
    parts = [
        _summary(run, plan),
        "<h2>Baseline</h2>",
        _groups(before),
        figures.of("01_analyse_backlog"),
        "<h2>Dry run</h2>",
        _plan(plan),
        figures.of("02_dry_run"),
        "<h2>Live drain</h2>",
        _live(run, plan),
        figures.of("03_live_drain"),
        "<h2>Verification</h2>",
        _audited(run, _audit_counts(folder / "audit.parquet")),
        _change(before, after),
        figures.of("04_verify"),
        "<h2>Metrics</h2>",
        _metrics(run),
        _files(folder),
    ]
    title = f"Backlog drain {folder.name}"
    return _page(title, "\n".join(parts))


def _page(title: str, body: str) -> str:
    # no address outside this file may be contacted, whatever an event's text says
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        "img-src data: blob:; font-src data:"
    )
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{text(title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def text(value: object, limit: int = 300) -> str:
    """A value as HTML text: escaped, without control or bidi characters."""
    return html.escape(one_line(str(value), limit))


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table; columns of numbers stand to the right."""
    grid = [list(row) for row in rows]
    names = list(head)
    filled = [[row[k] for row in grid if row[k] is not None] for k in range(len(names))]
    right = [bool(column) and all(map(_is_number, column)) for column in filled]
    kind = [" class='n'" if is_right else "" for is_right in right]
    top = "".join(f"<th{k}>{text(name)}</th>" for name, k in zip(names, kind, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f"<td{k}>{_cell(v)}</td>" for v, k in zip(row, kind, strict=True))
        + "</tr>"
        for row in grid
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


class _Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: object) -> str:
    if _is_number(value):
        return f"{value:,}"
    if isinstance(value, _Html):
        return value
    return text("" if value is None else value)


def _summary(run: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    read, left, done = run.get("total_read", 0), run.get("remaining"), run.get("outcome") == "done"
    where = " · ".join(
        f"{name} <code>{text(run.get(key, ''))}</code>"
        for name, key in (
            ("run", "run_id"), ("stream", "stream"), ("group", "consumer_group"),
            ("scope", "scope"),
        )
    )  # fmt: skip
    facts = (
        ("entries read", f"{read:,}"),
        ("passed every filter", f"{run.get('drained_ok', 0):,}"),
        ("remaining in the scope", "unknown" if left is None else f"{left:,}"),
        ("seconds", f"{run.get('elapsed_sec', 0):,.1f}"),
        ("events per second", f"{run.get('events_per_sec') or 0:,.1f}"),
    )  # fmt: skip
    rows = [
        (_Html(f"<i class='key' style='background:{COLOURS[action]}'></i>{action}"), NAMES[action],
         run.get(action, 0), share(run.get(action, 0), read))
        for action in ACTIONS
    ]  # fmt: skip
    grid = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    return (
        f"<h1>Backlog drain</h1><p class='quiet'>{where}</p><h2>Executive summary</h2>"
        f"<p class='verdict{'' if done else ' bad'}'>{text(_verdict(run), 600)}</p>"
        f"<dl>{grid}</dl>{_bar(run)}"
        + table(("action", "meaning", "events", "share"), rows)
        + (f"<p>{text(_policy(plan), 600)}</p>" if plan else "")
    )


def _verdict(run: Mapping[str, Any]) -> str:
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


def _policy(plan: Mapping[str, Any]) -> str:
    policy = plan["policy"]
    allowed = policy["allowlist"]
    symbols = "its symbol might be any"
    if allowed is not None:
        symbols = f"its symbol is one of the {len(allowed):,} on the allowlist"
    return (
        f"An event passes if it is at most {policy['max_age_min']:g} minutes old when its turn "
        f"comes, {symbols}, and its confidence is at least {policy['min_conf']:g}. What cannot be "
        "read never passes."
    )


def _bar(run: Mapping[str, Any]) -> str:
    """The actions as one bar of shares."""
    parts = "".join(
        f"<i style='flex:{run[action]};background:{COLOURS[action]}' title='{NAMES[action]}'></i>"
        for action in ACTIONS
        if run.get(action)
    )
    return f"<div class='bar' aria-hidden='true'>{parts}</div>"


def _groups(baseline: Mapping[str, Any]) -> str:
    if not baseline:
        return "<p>The server could not be read.</p>"
    info = baseline["stream"]
    head = ("group", "position", "undelivered", "pending", "history", "lost", "lag reported",
            "consumers")  # fmt: skip
    rows = [[cell(row[name]) for name in head] for row in group_rows(baseline)]
    whys = "".join(
        f"<p><code>{text(g['name'])}</code>: {text(g['why'], 900)}</p>" for g in baseline["groups"]
    )
    return (
        f"<p>The stream held {info['length']:,} entries, {text(info['first_id'])} to "
        f"{text(info['last_id'])}; the boundary of this run was {text(info['boundary_id'])}.</p>"
        + table(head, rows)
        + whys
    )


def _plan(plan: Mapping[str, Any]) -> str:
    if not plan:
        return "<p>No plan was made.</p>"
    policy = plan["policy"]
    allowed = policy["allowlist"]
    rows = [
        ("maximum age", f"{policy['max_age_min']:g} min"),
        ("minimum confidence", f"{policy['min_conf']:g}"),
        ("allowlist", "any symbol" if allowed is None else ", ".join(allowed)),
        (
            "throttle",
            "none" if plan["throttle"] is None else f"{plan['throttle']:g} events per second",
        ),
        ("entries", f"{plan['total_read']:,}, {plan['first_id']} to {plan['last_id']}"),
        ("digest", plan["digest"]),
    ]
    return table(("plan", ""), rows)


def _live(run: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    if run.get("mode") != "live":
        return "<p>This was a dry run: nothing was drained.</p>"
    planned = plan.get("counts", {})
    rows: list[tuple[object, ...]] = [
        (action, planned.get(action), run.get(action, 0)) for action in ACTIONS
    ]
    rows.append(("errors", None, run.get("errors", 0)))
    rows.append(("still pending for the drain's consumer", None, run.get("pending_own")))
    drift = run.get("drift")
    if drift is None:
        told = "<p>Whether each event met the fate that the plan foresaw was not determined.</p>"
    elif drift:
        more = f", of which the first {DRIFT_ROWS} are" if len(drift) > DRIFT_ROWS else ":"
        told = (
            f"<p>Events that met another fate than planned, mostly by growing too old before their "
            f"turn: {len(drift):,}{more}</p>"
            + table(("entry", "planned", "happened"), [d.values() for d in drift[:DRIFT_ROWS]])
        )
    else:
        told = "<p>Each event met the fate that the plan foresaw.</p>"
    return table(("", "planned", "happened"), rows) + told


def _audit_counts(path: Path) -> dict[str, int] | None:
    """Audit records by action; None where the file cannot be read."""
    from pyarrow import parquet

    try:
        with path.open("rb") as file:
            actions = parquet.ParquetFile(file).read(columns=["action"]).column(0)
    except (OSError, ValueError):  # pyarrow's own errors are children of these
        return None
    counts = actions.value_counts().to_pylist()
    return {str(pair["values"]): int(pair["counts"]) for pair in counts}


def _audited(run: Mapping[str, Any], audited: Mapping[str, int] | None) -> str:
    if run.get("mode") != "live":
        return ""
    if audited is None:
        return "<p>The audit records could not be read.</p>"
    rows = [(action, run.get(action, 0), audited.get(action, 0)) for action in ACTIONS]
    rows.append(("all", run.get("total_read", 0), sum(audited.values())))
    fits = all(said == found for _, said, found in rows)
    told = "They agree." if fits else "They do not agree: this run's numbers cannot be trusted."
    return (
        f"<p>What the run said of itself, beside the records in the audit stream. {told}</p>"
        + table(("action", "the run says", "the audit holds"), rows)
    )


def _change(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    if not before or not after:
        return "<p>The server could not be read before and after the run.</p>"
    known = {g["name"]: g for g in before["groups"]}
    rows = []
    for group in after["groups"]:
        old = known.get(group["name"])
        rows.append(
            (group["name"], old["position"] if old else "(none)", group["position"],
             old["pending"] if old else 0, group["pending"])
        )  # fmt: skip
    head = ("group", "position before", "after", "pending before", "after")
    return table(head, rows) + (
        f"<p>The stream held {before['stream']['length']:,} entries before and "
        f"{after['stream']['length']:,} after: a drain deletes nothing.</p>"
    )


def _metrics(run: Mapping[str, Any]) -> str:
    keys = ("started_at", "finished_at", "elapsed_sec", "events_per_sec", "boundary_id", "outcome",
            "exit_code")  # fmt: skip
    return table(("metric", "value"), [(key, str(run.get(key))) for key in keys])


def _files(folder: Path) -> str:
    """Links to what lies beside the report; only names of this folder, so nothing leads outside."""
    there = {path.name for path in folder.iterdir() if path.is_file()}
    names = sorted(there | {"SHA256SUMS", "statement.json"})  # these come when the run is sealed
    links = " · ".join(
        f"<a href='{text(urllib.parse.quote(name))}'>{text(name)}</a>"
        for name in names
        if not name.startswith(".") and name != "report.html"
    )
    return (
        f"<p class='quiet'>Beside this file: {links}. <code>sha256sum -c SHA256SUMS</code> checks "
        "them all; <code>drainkit verify</code> also follows the chain over all runs.</p>"
    )


class _Figures:
    """The figures of the executed notebooks; plotly.js comes with the first of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._first = True

    def of(self, notebook: str) -> str:
        """The figures of one notebook as HTML."""
        return "".join(self._draw(data) for data in self._found(notebook))

    def _found(self, notebook: str) -> list[dict[str, Any]]:
        cells = _read(self._folder / f"{notebook}.ipynb").get("cells", [])
        outputs = [o for cell in cells for o in cell.get("outputs", [])]
        return [o["data"][PLOTLY_JSON] for o in outputs if PLOTLY_JSON in o.get("data", {})]

    def _draw(self, data: dict[str, Any]) -> str:
        import plotly.io

        figure = {"data": data["data"], "layout": data["layout"]}
        drawn = plotly.io.to_html(
            figure,
            full_html=False,
            include_plotlyjs=self._first,
            include_mathjax=False,
            validate=False,
            config={"displayModeBar": False, "responsive": True},
        )
        self._first = False
        title = data["layout"].get("title", {}).get("text", "")  # escaped when it was made
        return f"<figure role='img' aria-label='{text(html.unescape(title))}'>{drawn}</figure>"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
