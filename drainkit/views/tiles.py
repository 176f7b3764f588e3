"""The monitor's board: what is worth a wall, in large numbers; its state in colour and words."""

from __future__ import annotations

import html
from collections.abc import Sequence

from ..core.progress import span
from ..core.timestamps import iso
from ..operations.checks import Report
from ..operations.running import RunningDrain
from ..operations.state import GroupState, known
from ..safe import one_line

# from the best to the worst, in Okabe and Ito's colours; a word stands beside each
STATES = {
    "ok": ("#009E73", "OK"),
    "warning": ("#E69F00", "warning"),
    "unknown": ("#808080", "unknown"),
    "critical": ("#D55E00", "critical"),
}
_RUNNING = "#56B4E9"
_STYLE = (
    "<style>.drainkit-board{display:flex;flex-wrap:wrap;gap:.4rem 2rem;margin:.2rem 0 1.2rem;"
    "padding:.2rem 0 .2rem .9rem;border-left:.5rem solid}"
    ".drainkit-board h3,.drainkit-board p{flex-basis:100%;margin:.2rem 0;overflow-wrap:anywhere}"
    ".drainkit-board h3{font-weight:600}"
    ".drainkit-board h3 span{color:#000;padding:0 .5rem;margin-right:.5rem}"
    ".drainkit-board div{display:flex;flex-direction:column}"
    ".drainkit-board b{font-size:1.7em;font-weight:400;font-variant-numeric:tabular-nums}</style>"
)


def board(report: Report, running: Sequence[tuple[str, RunningDrain]], now_us: int) -> str:
    """The board as HTML: each group's state and numbers, drains at work (with their
    streams), and as of when."""
    parts = [_STYLE, f"<p>As of {iso(now_us)[:19].replace('T', ' ')} UTC</p>"]
    groups = {(s.info.name, g.group.name): g for s in report.states for g in s.groups}
    for (stream, name), group in groups.items():
        found = [f for f in report.findings if (f.stream, f.group) == (stream, name)]
        worst = max((f.severity for f in found), key=list(STATES).index, default="unknown")
        bad = [f.text for f in found if f.severity != "ok"]
        parts.append(_section(worst, f"{stream} {name}", _numbers(group), bad))
    for f in report.findings:  # of a stream that could not be read, or that has no group
        if f.severity != "ok" and (f.stream, f.group) not in groups:
            parts.append(_section(f.severity, f"{f.stream} {f.group or ''}", {}, [f.text]))
    for stream, drain in running:
        eta = "unknown" if drain.eta_sec is None else span(drain.eta_sec)
        values = {
            "done": f"{drain.done:,}", "remaining": f"{drain.remaining:,}",
            "per second": f"{drain.events_per_sec:,.1f}", "left": eta,
        }  # fmt: skip
        state = (_RUNNING, "running") if drain.alive else (STATES["critical"][0], "never ended")
        parts.append(_section(state, f"{stream} drain {drain.run_id}", values, []))
    return "".join(parts)


def _numbers(group: GroupState) -> dict[str, str]:
    oldest, undelivered = group.oldest_age_sec, group.backlog.undelivered
    by_id = " by id" * (group.oldest_by == "entry id")
    unknown = "unknown" if undelivered else "none"
    return {
        "undelivered": known(undelivered),
        "lost": str(group.lost),
        f"oldest{by_id}": unknown if oldest is None else span(oldest),
        "pending": f"{group.group.pending:,}",
        "dead consumers": f"{group.by_state.get('dead', 0):,}",
    }


def _section(
    state: str | tuple[str, str], title: str, values: dict[str, str], reasons: Sequence[str]
) -> str:
    """A state (a severity, or its colour and word), numbers below it, and why it is so."""
    colour, word = STATES[state] if isinstance(state, str) else state
    cells = "".join(f"<div><b>{value}</b>{name}</div>" for name, value in values.items())
    told = "".join(f"<p>{html.escape(one_line(reason, 600))}</p>" for reason in reasons)
    head = f"<span style='background:{colour}'>{word}</span>{html.escape(one_line(title, 600))}"
    edge = f"style='border-color:{colour}'"
    return f"<section class='drainkit-board' {edge}><h3>{head}</h3>{cells}{told}</section>"
