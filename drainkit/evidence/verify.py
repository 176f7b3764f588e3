"""All of `drainkit verify`: every file of a run, the chain over the runs, signers and ledger.

A ledger decides which runs were live and what their statements were, never the folder: whoever
can rewrite a folder as a whole cannot change what Redis keeps.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..core.summary import RUN_ID
from ..errors import RefusedError, UsageError
from ..files import file_sha256, read_plain, write_text
from ..safe import one_line, text
from ..server import ledger
from ..server.connection import Server
from ..server.ledger import End, Sealed, Start
from ..settings import build
from .examined import Examined, examine, is_run
from .remote import local_copy
from .seal import CHAIN, STATEMENT, Link, key_of, listing, read_chain, run_dirs, shown, walk

#: What may lie beside the runs: the chain, a page about them, a list of them, an example.
_BESIDE = re.compile(rf"{RUN_ID.pattern}|{re.escape(CHAIN)}|README\.md|index\.html|example.*")

_CHECKPOINT = re.compile(r"drainkit checkpoint v1\n([1-9]\d{0,8})\n([0-9a-f]{64})\n?")


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
        raise UsageError(
            f"--allowed-signers {allowed_signers} is not a file that can be read"
        ) from None
    kept = (0, "") if checkpoint is None else _read_checkpoint(checkpoint)
    with local_copy(str(path)) as folder:
        alone = is_run(folder)
        if alone and checkpoint is not None:
            raise UsageError("--checkpoint is of a chain of runs; name a reports folder")
        places = [folder] if alone else run_dirs(folder)
        runs = [examine(run, signers, identity) for run in places]
        found = Verified({run.name: run.findings for run in runs})
        found.archived = [run.name for run in runs if run.is_archived]
        chain = found.findings.setdefault(runs[0].name if alone else "chain", [])
        if not alone:
            chain += _of_chain(folder, runs)
            chain += [
                f"stray: {one_line(name)} lies beside the runs and is not one"
                for name in listing(folder) if not _BESIDE.fullmatch(name)
            ]  # fmt: skip
        if url is not None:
            ledgers = Ledgers.read(url, {*streams, *(s for run in runs for s in run.streams)})
            for run in runs:
                run.findings += ledgers.findings(run)
            chain += ledgers.odd
            if not alone:
                chain += ledgers.gone({run.run_id for run in runs if run.run_id == run.name})
                found.drains = ledgers.drains()
        if checkpoint is not None:
            # the runs from the first on, as their statements name each other
            order = walk({
                key_of(run.previous): {"run_id": run.name, "statement_sha256": run.digest or ""}
                for run in runs if run.is_linked
            })  # fmt: skip
            chain += _of_checkpoint(*kept, order)
            if not found.bad:
                newest = order[-1]["statement_sha256"]
                write_text(checkpoint, f"drainkit checkpoint v1\n{len(order)}\n{newest}\n")
    return found


def _of_chain(reports_dir: Path, runs: Sequence[Examined]) -> Iterator[str]:
    """Where the links from run to run do not fit; `runs` are the folders named like runs."""
    # by the run, or chain.json, that holds the link
    links = {run.name: run.previous for run in runs if run.is_linked}
    digests = {run.name: run.digest for run in runs}
    yield from (
        f"changed: {run.name} names no run before it (its {STATEMENT})"
        for run in runs if run.digest is not None and not run.is_linked
    )  # fmt: skip
    try:
        if newest := read_chain(reports_dir):
            links[CHAIN] = newest
        elif runs:
            yield f"missing: {CHAIN}, which names the newest run"
        else:
            yield f"missing: there is no run in {shown(reports_dir.name)}"
    except ValueError:
        yield f"changed: {CHAIN} (not readable)"
    followed: dict[str | None, str] = {}
    for name, link in links.items():
        before = link["run_id"] if link else None  # it claims to be the first
        told = shown(before) if before is not None else "no run"
        if link and before not in digests:
            yield f"removed: run {told}, which {name} names as the one before it"
        elif link and digests[link["run_id"]] != link["statement_sha256"]:
            yield f"changed: the statement of {told} is not the one that {name} names"
        if before in followed:
            yield f"forked: {name} and {followed[before]} both follow {told}"
        followed[before] = name
    yield from (
        f"left out: nothing follows {name}, and {CHAIN} does not name it"
        for name, digest in sorted(digests.items())
        if digest is not None and name not in followed
    )


# A keeper's checkpoint is three lines that somebody else keeps of the chain; it must go on from
# there.


def _read_checkpoint(path: Path) -> tuple[int, str]:
    """How many runs there were, and the newest one's digest; no run where there is no file."""
    try:
        found = _CHECKPOINT.fullmatch(read_plain(path.resolve()).decode("ascii"))
    except FileNotFoundError:
        return 0, ""
    except (OSError, ValueError):
        found = None
    if found is None:
        raise UsageError(f"--checkpoint {path} is not a drainkit checkpoint")
    return int(found[1]), found[2]


def _of_checkpoint(place: int, digest: str, chain: Sequence[Link]) -> Iterator[str]:
    """What became of the run that the checkpoint names, if it is not where it was."""
    at = next((n for n, link in enumerate(chain, 1) if link["statement_sha256"] == digest), 0)
    what = f"the checkpoint's run {place:,} (statement {digest[:12]}...)"
    if at and at != place:
        changed = "removed before it" if at < place else "put in before it"
        yield f"{what} is run {at:,} now, {chain[at - 1]['run_id']}: {changed}"
    elif at != place and len(chain) < place:
        yield (
            f"removed: {what} is not in the chain, which has {len(chain):,} runs; "
            f"{place - len(chain):,} were removed, or the chain was made anew"
        )
    elif at != place:
        yield (
            f"made anew: {what} is not in the chain, whose run {place:,} is "
            f"{chain[place - 1]['run_id']}; a run up to there was changed, put in between, put in "
            "another order or removed, and the rest sealed anew"
        )


# ---------------------------------------------------------------- the server's run ledgers


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
                for entry in ledger.entries(server):
                    if isinstance(entry, Sealed):
                        found.sealed.setdefault(entry.run_id, []).append(entry)
                    elif isinstance(entry, Start):
                        found.starts.setdefault(entry.run_id, entry)
                        found.stream_of.setdefault(entry.run_id, text(server.stream))
                    elif isinstance(entry, End):
                        found.ends[entry.run_id] = entry
                if lost := ledger.lost(server):
                    found.odd.append(
                        f"changed: the run ledger of {name} lacks {lost:,} of the entries that it "
                        "had: it was trimmed, or they were deleted"
                    )
        return found

    def findings(self, run: Examined) -> Iterator[str]:
        """Where a run's folder is not what was sealed; a dry run leaves nothing on the server."""
        if run.name != run.run_id:
            yield f"renamed: {one_line(run.name)} holds the evidence of {run.run_id}"
        ids = {run.name, run.run_id}
        is_live = ids & (self.starts.keys() | self.sealed.keys()) or any("-live-" in i for i in ids)
        if not is_live and not run.says_live:
            return
        known = [entry.statement_sha256 for i in sorted(ids) for entry in self.sealed.get(i, ())]
        if not known:
            where = ", ".join(self.asked)
            yield f"the server's run ledger has no digest of this run's evidence (streams: {where})"
        elif run.digest is None:
            yield "the server's run ledger has it sealed, but it has no statement"
        # the first: whoever seals a folder anew can only add another entry after it
        elif run.digest != known[0]:
            yield "changed: the server's run ledger has another digest of its statement"
        elif {*known} != {run.digest}:
            yield "changed: the server's run ledger has it sealed a second time, otherwise"

    def gone(self, here: Collection[str]) -> Iterator[str]:
        """The live runs that left evidence, or began to, and are not in the folder."""
        for run_id in sorted({*self.starts, *self.sealed} - {*here}):
            last = self._last(run_id)
            if self.is_elsewhere(run_id) or not (last.folder or run_id in self.sealed):
                continue
            place = f" in {shown(last.folder, 200)} on {shown(last.host)}" if last.folder else ""
            told = f", sealed{place}"
            if isinstance(last, Start):
                told = f" that began at {shown(last.at, 40)}{place} and was never sealed"
            yield f"{run_id} is gone: the server's run ledger has it as a live run{told}"

    def _last(self, run_id: str) -> Sealed | Start:
        return self.sealed[run_id][0] if run_id in self.sealed else self.starts[run_id]

    def is_elsewhere(self, run_id: str) -> bool:
        """Whether the run lies, as it was sealed (or not yet), elsewhere on this machine."""
        entry = self._last(run_id)
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
