"""All runs of a reports folder, one row each; and of the server's ledger those without evidence."""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..safe import one_line
from ..settings.kinds import is_url
from .examined import Examined, examine
from .remote import local_copy
from .statement import run_dirs
from .verify import Ledgers

REPORT = "report.html"
#: The keys of a row, in order.
ROW = (
    "run_id", "started_at", "stream", "consumer_group", "mode", "outcome", "total_read",
    "drained_ok", "operator", "approvers", "evidence", "seal",
)  # fmt: skip
_TEXTS = ("started_at", "stream", "consumer_group", "outcome", "operator")
_NUMBERS = ("total_read", "drained_ok")


def runs(
    place: str, url: str | None = None, streams: Sequence[str] = ()
) -> tuple[list[dict[str, Any]], list[str]]:
    """The runs of a folder or URL as the contract's JSON has them, newest first; what is odd.

    With `url` also the live runs that the ledgers (of the runs' streams, and `streams`) have alone.
    """
    with local_copy(place) as folder:
        examined = [*map(examine, run_dirs(folder))]
    found, ledgers = [_of_folder(run, place) for run in examined], Ledgers()
    if url is not None:
        ledgers = Ledgers.read(url, {*streams, *(s for run in examined for s in run.streams)})
        gone = ledgers.starts.keys() - {run.name for run in examined}
        found += [_of_ledger(ledgers, run) for run in gone if not ledgers.is_elsewhere(run)]
    # by the second in the run's id, then by the start, which says more
    found.sort(key=lambda run: (run["run_id"][:16], run["started_at"] or ""), reverse=True)
    return found, ledgers.odd


def _of_folder(run: Examined, place: str) -> dict[str, Any]:
    """A run's row, from what its folder says: anybody can have written anything there."""
    texts = {name: _text(run.says.get(name)) for name in _TEXTS}
    numbers = {n: run.says[n] if type(run.says.get(n)) is int else None for n in _NUMBERS}
    approvers = run.says.get("approvers")
    seal = "broken" if run.findings else "archived" if run.is_archived else "ok"
    return dict.fromkeys(ROW) | texts | numbers | {
        "run_id": run.name,
        "mode": "live" if "-live-" in run.name else "dry-run",
        "approvers": [_text(name) for name in approvers] if isinstance(approvers, list) else [],
        "evidence": f"{place.rstrip('/')}/{run.name}",
        "seal": "interrupted" if run.is_open else seal,
    }  # fmt: skip


def _of_ledger(ledgers: Ledgers, run_id: str) -> dict[str, Any]:
    """A row of the ledger's; a run without an end is at work still, or died."""
    start, end = ledgers.starts[run_id], ledgers.ends.get(run_id)
    ended = {n: getattr(end, n) for n in ("outcome", *_NUMBERS)} if end else {}
    texts = {name: _text(getattr(start, name)) for name in ("consumer_group", "operator")}
    return dict.fromkeys(ROW) | ended | texts | {
        "run_id": run_id, "started_at": _text(start.at), "stream": ledgers.stream_of[run_id],
        "mode": "live", "outcome": _text(ended.get("outcome")),
        "approvers": [_text(name.strip()) for name in start.approvers.split(",") if name.strip()],
    }  # fmt: skip


def _text(value: Any) -> str | None:
    return one_line(value) if isinstance(value, str) and value else None


# ---------------------------------------------------------------- as rows and as a page


def row(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run as people read it, by column."""
    time = (run.get("started_at") or "")[:19].replace("T", " ")
    return {
        "Time (UTC)": time,
        "Stream": run.get("stream") or "",
        "Mode": run.get("mode") or "",
        "Outcome": run.get("outcome") or "no end",
        "Read": "" if (n := run.get("total_read")) is None else f"{n:,}",
        "Passed": "" if (n := run.get("drained_ok")) is None else f"{n:,}",
        "Operator": run.get("operator") or "",
        "Approvers": ", ".join(run.get("approvers") or ()),
        "Seal": run.get("seal") or "no evidence",
    }


def lines(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each run, below the names of what stands in it; rich takes seconds for 3,000."""
    rows = [list(row({}))] + [[*row(run).values()] for run in found]
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, cells, wide)).rstrip() for cells in rows]


def page(found: Sequence[Mapping[str, Any]], place: str, path: Path) -> str:
    """The rows as one page without a script, each run with a link to its report."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    shown = [{"link": _link(run, path), "cells": row(run), "seal": run["seal"]} for run in found]
    made: str = environment.get_template("runs.html.j2").render(
        place=one_line(place), names=list(row({})), runs=shown
    )
    return made


def _link(run: Mapping[str, Any], page_path: Path) -> str | None:
    """From the page to the run's report; None where there is none."""
    evidence = run["evidence"]
    if evidence is None or run["seal"] == "archived":
        return None
    report = f"{evidence}/{REPORT}"
    if is_url(report):
        return report
    if not Path(report).is_file():
        return None
    return urllib.parse.quote(os.path.relpath(report, page_path.resolve().parent))
