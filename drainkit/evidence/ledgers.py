"""Evidence held against the server's run ledgers.

A ledger decides which runs were live and what their statements were, never the folder: whoever
can rewrite a folder as a whole cannot change what Redis keeps.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import RefusedError, UsageError
from ..files import file_sha256
from ..safe import one_line, text
from ..server import ledger
from ..server.connection import Server
from ..server.ledger import End, Sealed, Start
from ..settings import build
from .examined import Examined
from .statement import STATEMENT, shown


@dataclass
class Ledgers:
    """What the ledgers of some streams say of live runs."""

    asked: list[str] = field(default_factory=list)
    sealed: dict[str, list[Sealed]] = field(default_factory=dict)
    starts: dict[str, Start] = field(default_factory=dict)
    ends: dict[str, End] = field(default_factory=dict)
    stream_of: dict[str, str] = field(default_factory=dict)  # by the run of a start
    odd: list[str] = field(default_factory=list)  # findings about the ledgers themselves

    @classmethod
    def read(cls, url: str, streams: Iterable[str]) -> Ledgers:
        """Ask the ledger of each stream."""
        found = cls()
        for stream in sorted(streams):
            name = shown(stream)
            try:
                build({"stream": stream})
            except UsageError:
                found.odd.append(f"changed: a run names {name}, which is no stream's name")
                continue
            found.asked.append(name)
            with Server(url, stream) as server:
                try:
                    ledger.check(server)
                except RefusedError as error:
                    found.odd.append(f"changed: the run ledger of {name}: {error}")
                    continue
                found._add(server)
                if lost := ledger.lost(server):
                    found.odd.append(
                        f"changed: the run ledger of {name} lacks {lost:,} of the entries that it "
                        "had: it was trimmed, or they were deleted"
                    )
        return found

    def _add(self, server: Server) -> None:
        for entry in ledger.entries(server):
            if isinstance(entry, Sealed):
                self.sealed.setdefault(entry.run_id, []).append(entry)
            elif isinstance(entry, Start):
                self.starts.setdefault(entry.run_id, entry)
                self.stream_of.setdefault(entry.run_id, text(server.stream))
            elif isinstance(entry, End):
                self.ends[entry.run_id] = entry

    def findings(self, run: Examined) -> list[str]:
        """Where a run's folder is not what was sealed; a dry run leaves nothing on the server."""
        findings = []
        if run.name != run.run_id:
            findings.append(f"renamed: {one_line(run.name)} holds the evidence of {run.run_id}")
        ids = {run.name, run.run_id}
        is_live = ids & (self.starts.keys() | self.sealed.keys()) or any("-live-" in i for i in ids)
        if not is_live and not run.says_live:
            return findings
        known = [entry for one in sorted(ids) for entry in self.sealed.get(one, ())]
        if not known:
            where = ", ".join(self.asked)
            findings.append(
                f"the server's run ledger has no digest of this run's evidence (streams: {where})"
            )
        elif run.digest is None:
            findings.append("the server's run ledger has it sealed, but it has no statement")
        # the first: whoever seals a folder anew can only add another entry after it
        elif run.digest != known[0].statement_sha256:
            findings.append("changed: the server's run ledger has another digest of its statement")
        elif any(entry.statement_sha256 != run.digest for entry in known[1:]):
            findings.append(
                "changed: the server's run ledger has it sealed a second time, otherwise"
            )
        return findings

    def gone(self, here: Collection[str]) -> list[str]:
        """The live runs that left evidence, or began to, and are not in the folder."""
        sealed = [
            f"{run_id} is gone: the server's run ledger has it as a live run, sealed"
            f"{_place(entry.folder, entry.host)}"
            for run_id, (entry, *_) in sorted(self.sealed.items())
            if run_id not in here and not self.is_elsewhere(run_id)
        ]
        return sealed + [
            f"{run_id} is gone: the server's run ledger has it as a live run that began at "
            f"{shown(start.at, 40)}{_place(start.folder, start.host)} and was never sealed"
            for run_id, start in sorted(self.starts.items())
            if start.folder and run_id not in here and run_id not in self.sealed
            and not self.is_elsewhere(run_id)
        ]  # fmt: skip

    def is_elsewhere(self, run_id: str) -> bool:
        """Whether the run lies, as it was sealed (or not yet), elsewhere on this machine."""
        entry = self.sealed[run_id][0] if run_id in self.sealed else self.starts[run_id]
        if not entry.folder or entry.host != socket.gethostname():
            return False
        if isinstance(entry, Start):
            return Path(entry.folder).is_dir()
        try:
            return file_sha256(Path(entry.folder) / STATEMENT) == entry.statement_sha256
        except (OSError, ValueError):
            return False

    def drains(self) -> list[str]:
        """The live drains that leave no evidence by design, one line each."""
        return [
            f"{run_id} by {shown(start.operator, 40) or 'nobody known'} in "
            f"{shown(start.consumer_group, 60)}, at {shown(start.at, 40)}"
            for run_id, start in sorted(self.starts.items())
            if not start.folder and run_id not in self.sealed
        ]


def _place(folder: str, host: str) -> str:
    return f" in {shown(folder, 200)} on {shown(host)}" if folder else ""
