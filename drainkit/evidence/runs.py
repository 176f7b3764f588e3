"""All runs of a reports folder, one row each; and of the server's ledger those without evidence."""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import asdict

from ..safe import one_line
from ..settings.kinds import is_url
from .examined import examine
from .remote import local_copy
from .seal import run_dirs
from .verify import Ledgers

#: The keys of a row, in order.
ROW = (
    "run_id", "started_at", "stream", "consumer_group", "mode", "outcome", "total_read",
    "drained_ok", "operator", "approvers", "evidence", "seal",
)  # fmt: skip


def runs(
    place: str, url: str | None = None, streams: Sequence[str] = ()
) -> tuple[list[dict[str, Any]], list[str]]:
    """The runs of a folder or URL as the contract's JSON has them, newest first; what is odd.

    With `url` also the live runs that the ledgers (of the runs' streams, and `streams`) have alone.
    """
    with local_copy(place) as folder:
        examined = [*map(examine, run_dirs(folder))]
    found, ledgers = [], Ledgers()
    for run in examined:
        seal = "broken" if run.findings else "archived" if run.is_archived else "ok"
        evidence = f"{place.rstrip('/')}/{run.name}"
        found.append(_row(run.name, run.says, evidence, "interrupted" if run.is_open else seal))
    if url is not None:
        ledgers = Ledgers.read(url, {*streams, *(s for run in examined for s in run.streams)})
        for run_id in ledgers.starts.keys() - {run.name for run in examined}:
            if not ledgers.is_elsewhere(run_id):
                start, end = ledgers.starts[run_id], ledgers.ends.get(run_id)
                says = (asdict(end) if end else {}) | asdict(start)
                says["approvers"] = [name for name in start.approvers.split(",") if name.strip()]
                says |= {"started_at": start.at, "stream": ledgers.stream_of[run_id]}
                found.append(_row(run_id, says, None, None))
    # by the second in the run's id, then by the start, which says more
    found.sort(key=lambda run: (run["run_id"][:16], run["started_at"] or ""), reverse=True)
    return found, ledgers.odd


def _row(
    run_id: str, says: Mapping[str, Any], evidence: str | None, seal: str | None
) -> dict[str, Any]:
    """A row from what folder or ledger say of a run: anybody can have written anything there."""

    def text(value: Any) -> str | None:
        return one_line(value.strip()) if isinstance(value, str) and value else None

    texts = ("started_at", "stream", "consumer_group", "outcome", "operator")
    numbers = {
        n: says[n] if type(says.get(n)) is int else None for n in ("total_read", "drained_ok")
    }
    approvers = says.get("approvers")
    return dict.fromkeys(ROW) | {name: text(says.get(name)) for name in texts} | numbers | {
        "run_id": run_id,
        "mode": "live" if "-live-" in run_id else "dry-run",
        "approvers": [*map(text, approvers)] if isinstance(approvers, list) else [],
        "evidence": evidence,
        "seal": seal,
    }  # fmt: skip


# ---------------------------------------------------------------- as rows and as a page


def row(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run as people read it, by column."""
    return {
        "Time (UTC)": (run.get("started_at") or "")[:19].replace("T", " "),
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
    if run["evidence"] is None or run["seal"] == "archived":
        return None
    report = f"{run['evidence']}/report.html"
    if is_url(report):
        return report
    here = page_path.resolve().parent
    return urllib.parse.quote(os.path.relpath(report, here)) if Path(report).is_file() else None
