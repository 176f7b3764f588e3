"""Evidence held against the server's run ledger.

The ledger decides which runs were live and what their statements were, never the folder: whoever
can rewrite a folder as a whole cannot change what Redis keeps.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..core.summary import RUN_ID
from ..files import file_sha256
from ..safe import one_line
from ..server.connection import Server
from ..server.ledger import Sealed, Start, entries
from .statement import RUN_JSON, STATEMENT, read_json, read_statement


def ledger_findings(
    url: str, runs: Mapping[str, Path], streams: Sequence[str], *, whole: bool
) -> dict[str, list[str]]:
    """Findings by run; under "chain" the live runs that are gone, where `whole` asks for all.

    `runs` are the folders by name, `streams` the ledgers to ask beside those that they name.
    """
    asked = sorted({*streams, *(name for run_dir in runs.values() for name in _streams(run_dir))})
    sealed: dict[str, list[Sealed]] = {}
    live: set[str] = set()
    for stream in asked:
        with Server(url, stream) as server:
            for entry in entries(server):
                if isinstance(entry, Sealed):
                    sealed.setdefault(entry.run_id, []).append(entry)
                if isinstance(entry, Sealed | Start):
                    live.add(entry.run_id)
    found = {name: _of_run(name, run_dir, sealed, live, asked) for name, run_dir in runs.items()}
    if whole:
        here = {_run_id(name, run_dir) for name, run_dir in runs.items()} & runs.keys()
        found["chain"] = [
            _gone(entry)
            for run_id, (entry, *_) in sorted(sealed.items())
            if run_id not in here and not _is_elsewhere(entry)
        ]
    return found


def _of_run(
    name: str,
    run_dir: Path,
    sealed: Mapping[str, Sequence[Sealed]],
    live: set[str],
    asked: Sequence[str],
) -> list[str]:
    run_id = _run_id(name, run_dir)
    findings = []
    if name != run_id:
        findings.append(f"renamed: {one_line(name)} holds the evidence of {one_line(run_id, 80)}")
    ids = {name, run_id}
    if not ids & live and not any("-live-" in one for one in ids) and not _says_live(run_dir):
        return findings  # a dry run leaves nothing on the server
    known = [entry for one in sorted(ids) for entry in sealed.get(one, ())]
    if not known:
        where = ", ".join(map(one_line, asked))
        return [
            *findings,
            f"the server's run ledger has no digest of this run's evidence (streams: {where})",
        ]
    try:
        digest = file_sha256(run_dir / STATEMENT)
    except OSError:
        return [*findings, "the server's run ledger has it sealed, but it has no statement"]
    # the first: whoever seals a folder anew can only add another entry after it
    if digest != known[0].statement_sha256:
        findings.append("changed: the server's run ledger has another digest of its statement")
    elif any(entry.statement_sha256 != digest for entry in known[1:]):
        findings.append("changed: the server's run ledger has it sealed a second time, otherwise")
    return findings


def _gone(entry: Sealed) -> str:
    where = f" in {one_line(entry.folder)} on {one_line(entry.host)}" if entry.folder else ""
    return f"{entry.run_id} is gone: the server's run ledger has it as a live run, sealed{where}"


def _is_elsewhere(entry: Sealed) -> bool:
    """Whether the run lies, as it was sealed, in another reports folder of this machine."""
    if not entry.folder or entry.host != socket.gethostname():
        return False
    try:
        return file_sha256(Path(entry.folder) / STATEMENT) == entry.statement_sha256
    except (OSError, ValueError):
        return False


def _run_id(name: str, run_dir: Path) -> str:
    """The run that the folder's statement, or else its name or run.json, says it is of."""
    predicate = _predicate(run_dir)
    run_id = str(predicate.get("run_id", ""))
    if not run_id and not RUN_ID.fullmatch(name):
        run_id = str(_run_json(run_dir).get("run_id", ""))
    return run_id or name


def _says_live(run_dir: Path) -> bool:
    return "live" in (_run_json(run_dir).get("mode"), _parameters(run_dir).get("mode"))


def _streams(run_dir: Path) -> set[str]:
    found = {_run_json(run_dir).get("stream"), _parameters(run_dir).get("stream")}
    return {name for name in found if isinstance(name, str) and name}


def _parameters(run_dir: Path) -> dict[str, Any]:
    found = _predicate(run_dir).get("parameters")
    return found if isinstance(found, dict) else {}


def _predicate(run_dir: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, KeyError):
        found = read_statement(run_dir / STATEMENT)["predicate"]
        return found if isinstance(found, dict) else {}
    return {}


def _run_json(run_dir: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = read_json(run_dir / RUN_JSON)
        return found if isinstance(found, dict) else {}
    return {}
