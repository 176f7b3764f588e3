"""All of `drainkit verify`: every file of a run, the chain over the runs, signers and ledger."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..core.summary import RUN_ID
from ..errors import UsageError
from ..files import read_plain
from ..safe import one_line
from .chain import (
    chain_findings,
    checkpoint_findings,
    order_of,
    read_checkpoint,
    write_checkpoint,
)
from .examined import examine, is_run, listing
from .ledgers import Ledgers
from .remote import local_copy
from .statement import CHAIN

#: What may lie beside the runs: the chain, a page about them, a list of them, an example.
_BESIDE = re.compile(rf"{RUN_ID.pattern}|{re.escape(CHAIN)}|README\.md|index\.html|example.*")


@dataclass
class Verified:
    """What was found, by run, and under "chain" what concerns them all; and what is no finding."""

    findings: dict[str, list[str]] = field(default_factory=dict)
    archived: list[str] = field(default_factory=list)  # runs with nothing but their statement
    drains: list[str] = field(default_factory=list)  # live ones without evidence, by design

    @property
    def bad(self) -> list[str]:
        """All findings, one line each."""
        return [f"{name}: {line}" for name, lines in self.findings.items() for line in lines]


def verify(
    path: Path | str,
    url: str | None = None,
    allowed_signers: Path | None = None,
    identity: str | None = None,
    *,
    streams: Sequence[str] = (),
    checkpoint: Path | None = None,
) -> Verified:
    """What does not fit in a run's folder, or in one that holds runs, or at the URL of one.

    With `url` the server's run ledgers decide which live runs there are and what their statements
    were; `streams` names ledgers to ask beside those of the streams that the runs name. With
    `allowed_signers` (a file of ssh-keygen's) approvers and signers count, with `identity` only
    that signer. `checkpoint` is a keeper's file, moved on where all is well. Raises UsageError for
    what cannot be checked.
    """
    if identity is not None and allowed_signers is None:
        raise UsageError("--identity needs --allowed-signers, which says what its key is")
    try:
        signers = None if allowed_signers is None else read_plain(allowed_signers.resolve())
    except OSError:
        name = one_line(str(allowed_signers))
        raise UsageError(f"--allowed-signers {name} is not a file that can be read") from None
    kept = None if checkpoint is None else read_checkpoint(checkpoint)
    with local_copy(str(path)) as folder:
        if not folder.is_dir():
            raise UsageError(
                f"{one_line(str(path))} is not a folder; name an evidence or a reports folder"
            )
        alone = is_run(folder)
        if alone and checkpoint is not None:
            raise UsageError("--checkpoint is of a chain of runs; name a reports folder")
        runs = [
            examine(run, signers, identity) for run in ([folder] if alone else run_dirs(folder))
        ]
        found = Verified({run.name: run.findings for run in runs})
        found.archived = [run.name for run in runs if run.is_archived]
        chain = found.findings.setdefault(runs[0].name if alone else "chain", [])
        if not alone:
            chain += chain_findings(folder, runs) + _stray(folder)
        if url is not None:
            ledgers = Ledgers.read(url, {*streams, *(s for run in runs for s in run.streams)})
            for run in runs:
                run.findings += ledgers.findings(run)
            chain += ledgers.odd
            if not alone:
                chain += ledgers.gone({run.run_id for run in runs if run.run_id == run.name})
                found.drains = ledgers.drains()
        if checkpoint is not None:
            order = order_of(runs)
            chain += checkpoint_findings(kept, order)
            if not found.bad:
                write_checkpoint(checkpoint, order)
    return found


def run_dirs(reports_dir: Path) -> list[Path]:
    """What is named like a run."""
    return [path for name, path in listing(reports_dir).items() if RUN_ID.fullmatch(name)]


def _stray(reports_dir: Path) -> list[str]:
    return [
        f"stray: {one_line(name)} lies beside the runs and is not one"
        for name in listing(reports_dir)
        if not _BESIDE.fullmatch(name)
    ]
