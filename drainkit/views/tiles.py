"""The monitor's board: what is worth a wall, in large numbers; its state in colour and words."""

from __future__ import annotations

import html
from collections.abc import Sequence

from ..core.timestamps import iso
from ..operations.checks import Report
from ..operations.running import RunningDrain
from ..operations.state import GroupState
from ..safe import one_line
from .tables import span

# from the best to the worst, in Okabe and Ito's colours; a word stands beside each
STATES = {
    "ok": ("#009E73", "OK"),
    "warning": ("#E69F00", "warning"),
    "unknown": ("#808080", "unknown"),
    "critical": ("#D55E00", "critical"),
}
_STYLE = (
    "<style>.drainkit-board{display:flex;flex-wrap:wrap;gap:.4rem 2rem;margin:.2rem 0 1.2rem;"
    "padding:.2rem 0 .2rem .9rem;border-left:.5rem solid}"
    ".drainkit-board h3{flex-basis:100%;margin:.2rem 0;font-weight:600;overflow-wrap:anywhere}"
    ".drainkit-board div{display:flex;flex-direction:column}"
    ".drainkit-board b{font-size:1.7em;font-weight:400;font-variant-numeric:tabular-nums}</style>"
)


def board(report: Report, running: Sequence[RunningDrain], now_us: int) -> str:
    """The board as HTML: each group's state and numbers, drains at work, and as of when."""
    parts = [_STYLE, f"<p>As of {iso(now_us)[:19].replace('T', ' ')} UTC</p>"]
    for state in report.states:
        for group in state.groups:
            name = group.group.name
            found = [f for f in report.findings if (f.stream, f.group) == (state.info.name, name)]
            bad = [f for f in found if f.severity != "ok"]
            worst = max((f.severity for f in found), key=list(STATES).index, default="unknown")
            says = "; ".join(f.text for f in bad) or "within its limits"
            parts.append(_group(state.info.name, str(name), worst, says, group))
    for drain in running:
        eta = "unknown" if drain.eta_sec is None else span(drain.eta_sec)
        word = "running" if drain.alive else "silent, never ended"
        values = {
            "done": f"{drain.done:,}", "remaining": f"{drain.remaining:,}",
            "per second": f"{drain.events_per_sec:,.1f}", "left": eta,
        }  # fmt: skip
        colour = "#0072B2" if drain.alive else STATES["critical"][0]
        parts.append(_tiles(f"Drain {drain.run_id}: {word}", colour, values))
    return "".join(parts)


def _group(stream: str, name: str, severity: str, says: str, group: GroupState) -> str:
    colour, word = STATES[severity]
    oldest = group.oldest_age_sec
    values = {
        "undelivered": f"{group.backlog.undelivered:,}",
        "oldest": "none" if oldest is None else span(oldest),
        "pending": f"{group.group.pending:,}",
        "dead consumers": f"{group.by_state.get('dead', 0):,}",
    }
    return _tiles(f"{word}: {stream} {name}: {says}", colour, values)


def _tiles(title: str, colour: str, values: dict[str, str]) -> str:
    cells = "".join(f"<div><b>{value}</b>{name}</div>" for name, value in values.items())
    head = html.escape(one_line(title, 600))
    edge = f"style='border-color:{colour}'"
    return f"<section class='drainkit-board' {edge}><h3>{head}</h3>{cells}</section>"
