"""The monitor's board: what is worth a wall, in large numbers; its state in colour and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.progress import span
from ..core.timestamps import iso
from ..operations.checks import Report
from ..operations.running import RunningDrain
from ..operations.state import GroupState, known
from ..safe import one_line
from .tables import macros

# from the best to the worst, in Okabe and Ito's colours; a word stands beside each
STATES = {
    "ok": ("#009E73", "OK"),
    "warning": ("#E69F00", "warning"),
    "unknown": ("#808080", "unknown"),
    "critical": ("#D55E00", "critical"),
}
_RUNNING = ("#56B4E9", "running")


def board(report: Report, running: Sequence[tuple[str, RunningDrain]], now_us: int) -> str:
    """The board as HTML: each group's state and numbers, drains at work (with their
    streams), and as of when."""
    groups = {(s.info.name, g.group.name): g for s in report.states for g in s.groups}
    sections = []
    for (stream, name), group in groups.items():
        found = [f for f in report.findings if (f.stream, f.group) == (stream, name)]
        worst = max((f.severity for f in found), key=list(STATES).index, default="unknown")
        bad = [f.text for f in found if f.severity != "ok"]
        sections.append(_section(STATES[worst], f"{stream} {name}", _numbers(group), bad))
    sections += [  # of a stream that could not be read, or that has no group
        _section(STATES[f.severity], f"{f.stream} {f.group or ''}", {}, [f.text])
        for f in report.findings
        if f.severity != "ok" and (f.stream, f.group) not in groups
    ]
    for stream, drain in running:
        values = {
            "done": f"{drain.done:,}", "remaining": f"{drain.remaining:,}",
            "per second": f"{drain.events_per_sec:,.1f}",
            "left": "unknown" if drain.eta_sec is None else span(drain.eta_sec),
        }  # fmt: skip
        state = _RUNNING if drain.alive else (STATES["critical"][0], "never ended")
        sections.append(_section(state, f"{stream} drain {drain.run_id}", values, []))
    return str(macros().board(iso(now_us)[:19].replace("T", " "), sections))


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
    state: tuple[str, str], title: str, values: Mapping[str, str], reasons: Sequence[str]
) -> dict[str, Any]:
    """A colour and a word, numbers below it, and why it is so."""
    safe = [one_line(reason, 600) for reason in reasons]
    return {"colour": state[0], "word": state[1], "title": one_line(title, 600),
            "values": values, "reasons": safe}  # fmt: skip
