"""All runs of a folder: what does not fit (`drainkit verify`), and as a list (`drainkit runs`).

A ledger decides which runs were live and what their statements were, never the folder: whoever
can rewrite a folder as a whole cannot change what Redis keeps.
"""

from __future__ import annotations

import os
import re
import socket
import urllib.parse
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import asdict

from ..core.summary import RUN_ID
from ..errors import RefusedError, UsageError
from ..files import file_sha256, read_plain, write_text
from ..safe import one_line, text
from ..server import ledger, reading
from ..server.connection import Server
from ..server.ledger import OfRun, Sealed, Start
from ..settings import build
from ..settings.kinds import is_url
from . import seal
from .examined import Examined, examine
from .remote import local_copy
from .seal import CHAIN, STATEMENT, Link, read_or, shown

#: The keys of a row of `runs`, in order.
ROW = (
    "run_id", "started_at", "stream", "consumer_group", "mode", "outcome", "total_read",
    "drained_ok", "operator", "approvers", "evidence", "seal",
)  # fmt: skip
#: What may lie beside the runs: the chain (half written, by who was killed), a page, an example.
_BESIDE = re.compile(
    rf"{RUN_ID.pattern}|{re.escape(CHAIN)}|\.writing-[0-9a-f]{{16}}|README\.md|index\.html|example.*"
)
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
    *,
    streams: Sequence[str] = (),
    checkpoint: Path | None = None,
) -> Verified:
    """What does not fit in a run's folder, or in one that holds runs, or at the URL of one.

    With `url` the server's run ledgers decide which live runs there are and what their statements
    were; `streams` names ledgers to ask beside those of the streams that the runs name. With
    `allowed_signers` (a file of ssh-keygen's) approvers and signers count. `checkpoint` is a
    keeper's file, moved on where all is well. Raises UsageError for what cannot be checked.
    """
    try:
        signers = None if allowed_signers is None else read_plain(allowed_signers.resolve())
    except OSError:
        raise UsageError(
            f"--allowed-signers {allowed_signers} is not a file that can be read"
        ) from None
    kept = (0, "") if checkpoint is None else _read_checkpoint(checkpoint)
    with local_copy(str(path)) as folder:
        alone = RUN_ID.fullmatch(folder.resolve().name) is not None or any(
            (folder / name).exists() for name in (STATEMENT, seal.SUMS, seal.RUN_JSON)
        )
        if alone and checkpoint is not None:
            raise UsageError("--checkpoint is of a chain of runs; name a reports folder")
        places = [folder] if alone else seal.run_dirs(folder)
        runs = [examine(run, signers) for run in places]
        found = Verified({run.name: run.findings for run in runs})
        found.archived = [run.name for run in runs if run.state == "archived"]
        chain = found.findings.setdefault(runs[0].name if alone else "chain", [])
        if not alone:
            chain += _of_chain(folder, runs)
        if url is not None:
            ledgers = Ledgers.read(url, runs, streams)
            for run in runs:
                run.findings += ledgers.findings(run)
            chain += ledgers.odd
            if not alone:
                chain += ledgers.gone({run.run_id for run in runs if run.run_id == run.name})
                found.drains = ledgers.drains()
        if checkpoint is not None:
            # the runs from the first on, as their statements name each other
            order = seal.walk({
                seal.key_of(r.previous): {"run_id": r.name, "statement_sha256": r.digest}
                for r in runs if r.digest
            })  # fmt: skip
            chain += _of_checkpoint(*kept, order)
            if not found.bad:
                said = f"drainkit checkpoint v1\n{len(order)}\n{order[-1]['statement_sha256']}\n"
                write_text(checkpoint.resolve(), said)  # where it was read
    return found


def _of_chain(reports_dir: Path, runs: Sequence[Examined]) -> Iterator[str]:
    """Where the links from run to run do not fit, and what is no run; `runs` are named like one."""
    yield from (
        f"stray: {one_line(name)} lies beside the runs and is not one"
        for name in seal.listing(reports_dir)
        if not _BESIDE.fullmatch(name)
    )
    known = {run.digest: run.run_id for run in runs if run.digest}
    # by the run, or chain.json, that holds the link
    links = {run.name: run.previous for run in runs if run.digest}
    if newest := read_or(reports_dir / CHAIN, None, Link):
        links[CHAIN] = newest
    else:
        yield f"missing, or not readable: {CHAIN}, which names the newest run"
    for name, link in links.items():
        if link and known.get(link["statement_sha256"]) != link["run_id"]:
            told = shown(link["run_id"])
            yield f"removed or changed: run {told}, which {name} names as the one before it"
    followed = {seal.key_of(link) for link in links.values()}
    yield from (  # of runs that follow the same one, all but one are left out here
        f"left out: nothing follows {run.name}, and {CHAIN} does not name it"
        for run in runs
        if run.digest and run.digest not in followed
    )


# A keeper's checkpoint is three lines that somebody else keeps of the chain; it must go on from
# there.


def _read_checkpoint(path: Path) -> tuple[int, str]:
    """How many runs there were, and the newest one's digest; no run where there is no file."""
    if not path.exists():
        return 0, ""
    found = None
    with suppress(OSError, ValueError):
        found = _CHECKPOINT.fullmatch(read_plain(path.resolve()).decode("ascii"))
    if found is None:
        raise UsageError(f"--checkpoint {path} is not a drainkit checkpoint")
    return int(found[1]), found[2]


def _of_checkpoint(place: int, digest: str, chain: Sequence[Link]) -> Iterator[str]:
    """What became of the run that the checkpoint names, if it is not where it was.

    It cannot be elsewhere: a statement's digest holds those of all runs before it.
    """
    there = chain[place - 1 : place]
    if place and [link["statement_sha256"] for link in there] != [digest]:
        now = there[0]["run_id"] if there else "missing"
        yield (
            f"removed or made anew: the checkpoint's run {place:,} (statement {digest[:12]}...) is "
            f"not in the chain of {len(chain):,} runs, whose run {place:,} is {now}; a run up to "
            "there was removed, changed, put in between or in another order, and the rest sealed "
            "anew"
        )


# ---------------------------------------------------------------- the server's run ledgers


@dataclass
class Ledgers:
    """What the ledgers of some streams say of live runs."""

    entries: dict[str, list[OfRun]] = field(default_factory=dict)  # by run, oldest first
    stream_of: dict[str, str] = field(default_factory=dict)  # by run
    odd: list[str] = field(default_factory=list)  # findings about the ledgers themselves

    @classmethod
    def read(cls, url: str, runs: Iterable[Examined], streams: Iterable[str]) -> Ledgers:
        """Ask the ledger of each of the `streams`, and of those that the runs name."""
        found = cls()
        for stream in sorted({*streams, *(name for run in runs for name in run.streams)}):
            try:
                build({"stream": stream})
            except UsageError:
                continue  # a run can name what is no stream's name, and has no ledger
            name = shown(stream)
            with Server(url, stream) as server:
                try:
                    ledger.check(server)
                except RefusedError as error:
                    found.odd.append(f"changed: the run ledger of {name}: {error}")
                    continue
                for entry in ledger.entries(server):
                    if isinstance(entry, OfRun):
                        found.entries.setdefault(entry.run_id, []).append(entry)
                        found.stream_of.setdefault(entry.run_id, text(server.stream))
                if lost := reading.stream_info(server, server.keys.runs).gone:
                    found.odd.append(
                        f"changed: the run ledger of {name} lacks {lost:,} of the entries that it "
                        "had: it was trimmed, or they were deleted"
                    )
        return found

    def findings(self, run: Examined) -> Iterator[str]:
        """Where a run's folder is not what was sealed; a dry run leaves nothing on the server."""
        ids = {run.name, run.run_id}
        found = [entry for run_id in ids for entry in self.entries.get(run_id, ())]
        is_live = run.says.get("mode") == "live" or any("-live-" in run_id for run_id in ids)
        # all of them: whoever seals a folder anew can only add another entry
        known = {entry.statement_sha256 for entry in found if isinstance(entry, Sealed)}
        if not known and (is_live or found):
            yield "the server's run ledger has no digest of this run's evidence"
        elif known and known != {run.digest}:
            yield "changed: the server's run ledger has another digest of its statement"

    def gone(self, here: Collection[str]) -> Iterator[str]:
        """The live runs that left evidence, or began to, and are not in the folder."""
        for run_id in sorted(self.entries.keys() - {*here}):
            entry = self.missing(run_id)
            if entry and (entry.folder or isinstance(entry, Sealed)):
                place = f" in {shown(entry.folder, 200)} on {shown(entry.host)}"
                told = f"the server's run ledger has it as a live run{place * bool(entry.folder)}"
                yield f"{run_id} is gone: {told}"

    def missing(self, run_id: str) -> Sealed | Start | None:
        """The first seal of a run, where it has none its first start; None for a run that lies, as
        it was sealed (or not yet), in its folder on this machine."""
        found = [entry for entry in self.entries[run_id] if isinstance(entry, Sealed | Start)]
        entry = min(found, key=lambda entry: isinstance(entry, Start), default=None)
        if entry and entry.folder and entry.host == socket.gethostname():
            folder = Path(entry.folder)
            if isinstance(entry, Start):
                return None if folder.is_dir() else entry
            with suppress(OSError, ValueError):
                if file_sha256(folder / STATEMENT) == entry.statement_sha256:
                    return None
        return entry

    def drains(self) -> list[str]:
        """The live drains that leave no evidence by design, one line each."""
        found = ((run_id, self.missing(run_id)) for run_id in sorted(self.entries))
        return [
            f"{run_id} by {shown(start.operator, 40) or 'nobody known'} in "
            f"{shown(start.consumer_group, 60)}, at {shown(start.at, 40)}"
            for run_id, start in found
            if isinstance(start, Start) and not start.folder
        ]


# ---------------------------------------------------------------- the list of runs


def runs(
    place: str | None, url: str | None = None, streams: Sequence[str] = ()
) -> tuple[list[dict[str, Any]], list[str]]:
    """The runs of a folder or URL (or of none), newest first, as the contract's JSON has them; and
    what is odd. With `url` also the live runs that the ledgers (of the runs' streams, and
    `streams`) have alone."""
    with local_copy(place) if place else nullcontext() as folder:
        examined = [*map(examine, seal.run_dirs(folder))] if folder else []
    found, ledgers = [], Ledgers()
    for run in examined:
        state = "broken" if run.findings and run.state != "interrupted" else run.state
        evidence = f"{str(place).rstrip('/')}/{run.name}"
        found.append(_row(run.name, run.says, evidence, state))
    if url is not None:
        ledgers = Ledgers.read(url, examined, streams)
        for run_id in ledgers.entries.keys() - {run.name for run in examined}:
            entries = ledgers.entries[run_id]
            start = next((entry for entry in entries if isinstance(entry, Start)), None)
            if start is not None and ledgers.missing(run_id):
                says = {k: v for entry in (*entries, start) for k, v in asdict(entry).items()}
                says["approvers"] = [name for name in start.approvers.split(",") if name.strip()]
                says |= {"started_at": start.at, "stream": ledgers.stream_of[run_id]}
                found.append(_row(run_id, says, None, None))
    # by the second in the run's id, then by the start, which says more
    found.sort(key=lambda run: (run["run_id"][:16], run["started_at"] or ""), reverse=True)
    return found, ledgers.odd


def _row(
    run_id: str, says: Mapping[str, Any], evidence: str | None, state: str | None
) -> dict[str, Any]:
    """A row from what folder or ledger say of a run: anybody can have written anything there."""
    row = dict.fromkeys(ROW) | {"run_id": run_id, "evidence": evidence, "seal": state}
    for name in ("started_at", "stream", "consumer_group", "outcome", "operator"):
        if isinstance(value := says.get(name), str) and value:
            row[name] = one_line(value.strip())
    for name in ("total_read", "drained_ok"):
        row[name] = says[name] if type(says.get(name)) is int else None
    row["mode"] = "live" if "-live-" in run_id else "dry-run"
    approvers = says.get("approvers")
    names = approvers if isinstance(approvers, list) else []
    return row | {"approvers": [one_line(name) for name in names if isinstance(name, str)]}


def row(run: Mapping[str, Any]) -> dict[str, str]:
    """A run as people read it, by column."""
    read, passed = (run.get(name) for name in ("total_read", "drained_ok"))
    return {
        "Time (UTC)": (run.get("started_at") or "")[:19].replace("T", " "),
        "Stream": run.get("stream") or "",
        "Mode": run.get("mode") or "",
        "Outcome": run.get("outcome") or "no end",
        "Read": "" if read is None else f"{read:,}",
        "Passed": "" if passed is None else f"{passed:,}",
        "Operator": run.get("operator") or "",
        "Approvers": ", ".join(run.get("approvers") or ()),
        "Seal": run.get("seal") or "no evidence",
    }


def lines(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each run, below the names of what stands in it; rich takes seconds for 3,000."""
    rows = [[*row({})], *([*row(run).values()] for run in found)]
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, cells, wide)).rstrip() for cells in rows]


def page(found: Sequence[Mapping[str, Any]], place: str, path: Path) -> str:
    """The rows as one page without a script, each run with a link to its report."""
    import jinja2

    environment = jinja2.Environment(loader=jinja2.PackageLoader(__package__, ""), autoescape=True)
    here, shown = path.resolve().parent, []
    for run in found:
        report = f"{run['evidence']}/report.html"  # of a run without evidence there is none
        is_there = run["seal"] != "archived" if is_url(report) else Path(report).is_file()
        link = report if is_url(report) else urllib.parse.quote(os.path.relpath(report, here))
        shown.append({"link": link if is_there else None, "cells": row(run), "seal": run["seal"]})
    template = environment.get_template("runs.html.j2")
    return str(template.render(place=one_line(place), names=list(row({})), runs=shown))
