"""report.html: one self-contained file that opens offline and reads well on paper.

The order is that of the original report: summary, baseline, dry run, live drain, verification,
metrics. Every text from outside is escaped; scripts are plotly's own, inlined once.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .errors import one_line
from .figures import NAMES, share
from .policy import ACTIONS

PLOTLY_JSON = "application/vnd.plotly.v1+json"

_STYLE = """
:root { color-scheme: light; --ink: #1c1c1c; --quiet: #5f5f5f; --line: #d9d9d9; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); max-width: 60rem;
  margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .6rem; border-top: 1px solid var(--line);
  padding-top: 1.2rem; }
p.quiet, caption, dt { color: var(--quiet); }
p.verdict { font-size: 1.15rem; border-left: .35rem solid #009E73; padding: .4rem 0 .4rem .9rem; }
p.verdict.bad { border-color: #D55E00; }
table { border-collapse: collapse; margin: .8rem 0; font-size: .92rem; width: 100%; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
code { font-size: .9em; overflow-wrap: anywhere; }
figure { margin: 1.2rem 0; break-inside: avoid; }
@media print { body { margin: 0; max-width: none; font-size: 11pt; } h2 { break-after: avoid; } }
"""


def build(folder: Path) -> str:
    """The report of a run's folder as HTML, from what is in the folder alone."""
    run, plan = _read(folder / "run.json"), _read(folder / "plan.json")
    before, after = _read(folder / "baseline.json"), _read(folder / "after.json")
    figures = _Figures(folder)
    live = run.get("mode") == "live"
    parts = [
        _summary(run),
        "<h2>Baseline</h2>",
        _groups(before),
        figures.of("01_analyse_backlog"),
        "<h2>Dry run</h2>",
        _plan(plan),
        figures.of("02_dry_run"),
        "<h2>Live drain</h2>",
        _live(run) if live else "<p>This was a dry run: nothing was drained.</p>",
        figures.of("03_live_drain"),
        "<h2>Verification</h2>",
        _change(before, after),
        figures.of("04_verify"),
        "<h2>Metrics</h2>",
        _metrics(run),
        "<p class='quiet'>The executed notebooks and data files of this run lie beside this file. "
        "<code>sha256sum -c SHA256SUMS</code> checks them all; <code>drainkit verify</code> also "
        "follows the chain over all runs.</p>",
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
    right = [bool(grid) and all(_is_number(row[k]) for row in grid) for k in range(len(names))]
    kind = [" class='n'" if is_right else "" for is_right in right]
    top = "".join(f"<th{k}>{text(name)}</th>" for name, k in zip(names, kind, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f"<td{k}>{_cell(v)}</td>" for v, k in zip(row, kind, strict=True))
        + "</tr>"
        for row in grid
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: object) -> str:
    if _is_number(value):
        return f"{value:,}"
    return text("" if value is None else value)


def _summary(run: Mapping[str, Any]) -> str:
    read, ok = run.get("total_read", 0), run.get("drained_ok", 0)
    live, done = run.get("mode") == "live", run.get("outcome") == "done"
    if not done:
        verdict = (
            f"The run ended early ({run.get('outcome')}): {run.get('error', 'no reason known')}"
        )
    elif live:
        verdict = (
            f"{read:,} entries were audited and acknowledged, each once. {ok:,} of them "
            f"({share(ok, read)}) had passed every filter. Nothing was traded or deleted."
        )
    else:
        verdict = f"A live drain would read {read:,} entries and pass {ok:,}. Nothing was changed."
    where = " · ".join(
        f"{name} <code>{text(run.get(key, ''))}</code>"
        for name, key in (
            ("run", "run_id"), ("stream", "stream"), ("group", "consumer_group"),
            ("scope", "scope"), ("started", "started_at"),
        )
    )  # fmt: skip
    rows = [
        (f"{action} ({NAMES[action]})", run.get(action, 0), share(run.get(action, 0), read))
        for action in ACTIONS
    ]
    return (
        f"<h1>Backlog drain</h1><p class='quiet'>{where}</p><h2>Executive summary</h2>"
        f"<p class='verdict{'' if done else ' bad'}'>{text(verdict, 600)}</p>"
        + table(("action", "events", "share"), rows)
    )


def _groups(baseline: Mapping[str, Any]) -> str:
    if not baseline:
        return "<p>The server could not be read.</p>"
    info = baseline["stream"]
    head = ("group", "position", "undelivered", "pending", "history", "lag reported", "consumers")
    rows = [
        (g["name"], g["position"], *g["backlog"].values(),
         "unknown" if g["lag_reported"] is None else g["lag_reported"], g["consumers"])
        for g in baseline["groups"]
    ]  # fmt: skip
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
    counts = [(action, n) for action, n in plan["counts"].items()]
    return table(("plan", ""), rows) + table(("decision", "events"), counts)


def _live(run: Mapping[str, Any]) -> str:
    drift = run.get("drift") or []
    told = (
        f"<p>Events that met another fate than planned: {len(drift):,}.</p>"
        + table(("entry", "planned", "happened"), [list(d.values()) for d in drift[:20]])
        if drift
        else "<p>Each event met the fate that the plan foresaw.</p>"
    )
    rows = [
        (name, run.get(key))
        for name, key in (
            ("read", "total_read"), ("errors", "errors"), ("remaining in the scope", "remaining"),
            ("still pending for the drain's consumer", "pending_own"),
        )
    ]  # fmt: skip
    return table(("live drain", "events"), rows) + told


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
    return table(("metric", "value"), [(key, run.get(key)) for key in keys])


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
        return f"<figure>{drawn}</figure>"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
