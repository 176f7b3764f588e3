"""Evidence held against the server's run ledger."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from ..errors import DrainkitError
from ..server.connection import Server
from ..server.ledger import Sealed, entries
from .statement import statement_digest


def verify_ledger(url: str, folder: Path, runs: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Where live evidence differs from the server's ledger: a folder rewritten as a whole.

    `folder` is the run's, or the one that holds the runs.
    """
    found: dict[str, list[str]] = {}
    for name in runs:
        run_dir = folder if folder.name == name else folder / name
        try:
            run = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
            name_of_stream, live = str(run["stream"]), run["mode"] == "live"
        except (OSError, ValueError, KeyError, TypeError):
            continue  # verify_run names what is missing
        if live:
            found[name] = _verify_run(url, name_of_stream, run_dir)
    return found


def missing_runs(url: str, reports_dir: Path, runs: Collection[str]) -> list[str]:
    """Live runs that the server's ledger has after one of `runs`, and that are not among them.

    Without the ledger nobody could tell that the newest run was removed and chain.json rewritten.
    """
    name_of: dict[str, str] = {}
    streams = set()
    for name in runs:
        with suppress(OSError, ValueError, KeyError, TypeError, DrainkitError):
            name_of[statement_digest(reports_dir / name)] = name
            run = json.loads((reports_dir / name / "run.json").read_text(encoding="utf-8"))
            streams.add(str(run["stream"]))
    found = []
    for stream_name in sorted(streams):
        with Server(url, stream_name) as server:
            for entry in entries(server):
                if not isinstance(entry, Sealed) or entry.run_id in runs:
                    continue
                if before := name_of.get(entry.previous_sha256):
                    found.append(
                        f"{entry.run_id} is gone: the server's run ledger has it after {before}"
                    )
    return found


def _verify_run(url: str, stream_name: str, run_dir: Path) -> list[str]:
    try:
        digest = statement_digest(run_dir)
    except DrainkitError as error:
        return [str(error)]
    with Server(url, stream_name) as server:
        known = [
            entry.statement_sha256
            for entry in entries(server)
            if isinstance(entry, Sealed) and entry.run_id == run_dir.name
        ]
    if not known:
        return ["the server's run ledger has no digest of this run's evidence"]
    if digest not in known:
        return ["changed: the server's run ledger has another digest of this run's statement"]
    return []
