"""The chain of runs: each statement names the run before it, chain.json the newest.

A keeper's checkpoint is three lines that somebody else keeps of it; it must go on from there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ..core.summary import RUN_ID
from ..errors import UsageError
from ..files import read_plain, write_text
from .examined import Examined
from .statement import CHAIN, STATEMENT, Link, link_of, read_json, shown, statement_of

FIRST = "first"  # in the place of a digest: before the first run there is no statement
_CHECKPOINT = re.compile(r"drainkit checkpoint v1\n([1-9]\d{0,8})\n([0-9a-f]{64})\n?")


def walk(links: Mapping[str, Link], start: Link | None = None) -> list[Link]:
    """The chain from `start` on, or from the first run on; `links`: to each run, by `key_of`."""
    found = [] if start is None else [start]
    at, met = key_of(start), set[str]()
    while at not in met and (link := links.get(at)) is not None:
        met.add(at)
        found.append(link)
        at = link["statement_sha256"]
    return found


def key_of(before: Link | None) -> str:
    """The digest of the run before; FIRST where there is none."""
    return FIRST if before is None else before["statement_sha256"]


def newest(links: Mapping[str, Link], start: Link | None = None) -> Link | None:
    """The last link of the chain."""
    return next(reversed(walk(links, start)), None)


def order_of(runs: Sequence[Examined]) -> list[Link]:
    """The runs from the first on, as their statements name each other."""
    return walk({
        key_of(run.previous): {"run_id": run.name, "statement_sha256": run.digest or ""}
        for run in runs if run.is_linked
    })  # fmt: skip


def read_chain(reports_dir: Path) -> Link | None:
    """What chain.json names; None without one; ValueError where it cannot be read."""
    try:
        link = link_of(read_json(reports_dir / CHAIN))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError("not readable") from error
    if link is None:
        raise ValueError("not a link")
    return link


def newest_in(reports_dir: Path, without: Path | None = None) -> Link | None:
    """The run sealed last: what chain.json names, then along the links.

    A crash between a statement and chain.json leaves chain.json behind; a chain.json that is gone
    or unreadable is no reason to leave no evidence (verify names it).
    """
    start, links = None, dict[str, Link]()
    with suppress(ValueError):
        start = read_chain(reports_dir)
    for run in sorted(reports_dir.iterdir()):
        if run == without or not RUN_ID.fullmatch(run.name):
            continue
        with suppress(OSError, ValueError, KeyError):
            data = read_plain(run / STATEMENT)
            before = link_of(statement_of(data)["predicate"]["previous"])
            digest = hashlib.sha256(data).hexdigest()
            links[key_of(before)] = {"run_id": run.name, "statement_sha256": digest}
    return newest(links, start)


def chain_findings(reports_dir: Path, runs: Sequence[Examined]) -> list[str]:
    """Where the links from run to run do not fit; `runs` are the folders named like runs."""
    findings = [
        f"changed: {run.name} names no run before it (its {STATEMENT})"
        for run in runs if run.digest is not None and not run.is_linked
    ]  # fmt: skip
    # by the run, or chain.json, that holds the link
    links = {run.name: run.previous for run in runs if run.is_linked}
    firsts = sorted(name for name, link in links.items() if link is None)
    if len(firsts) > 1:
        findings.append(f"forked: {', '.join(firsts)} each claim to be the first run")
    try:
        links[CHAIN] = read_chain(reports_dir)
    except ValueError:
        findings.append(f"changed: {CHAIN} (not readable)")
    else:
        if links[CHAIN] is None:
            findings.append(
                f"missing: {CHAIN}, which names the newest run" if runs
                else f"missing: there is no run in {shown(reports_dir.name)}"
            )  # fmt: skip
    return findings + _broken_links(links, {run.name: run.digest for run in runs})


def _broken_links(links: Mapping[str, Link | None], digests: Mapping[str, str | None]) -> list[str]:
    findings: list[str] = []
    followed: dict[str, str] = {}
    for name, link in links.items():
        if link is None:
            continue
        before = link["run_id"]
        if before not in digests:
            findings.append(
                f"removed: run {shown(before)}, which {name} names as the one before it"
            )
        elif digests[before] != link["statement_sha256"]:
            findings.append(f"changed: the statement of {before} is not the one that {name} names")
        if before in followed:
            findings.append(f"forked: {name} and {followed[before]} both follow {shown(before)}")
        followed[before] = name
    return findings + [
        f"left out: nothing follows {name}, and {CHAIN} does not name it"
        for name, digest in sorted(digests.items())
        if digest is not None and name not in followed
    ]


# ---------------------------------------------------------------- a keeper's checkpoint


def read_checkpoint(path: Path) -> tuple[int, str] | None:
    """How many runs there were, and the newest one's digest; None where there is no file."""
    try:
        found = _CHECKPOINT.fullmatch(read_plain(path.resolve()).decode("ascii"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        found = None
    if found is None:
        raise UsageError(f"--checkpoint {path} is not a drainkit checkpoint")
    return int(found[1]), found[2]


def write_checkpoint(path: Path, chain: Sequence[Link]) -> None:
    """Name the newest run of a chain that is well."""
    write_text(path, f"drainkit checkpoint v1\n{len(chain)}\n{chain[-1]['statement_sha256']}\n")


def checkpoint_findings(known: tuple[int, str] | None, chain: Sequence[Link]) -> list[str]:
    """What became of the run that the checkpoint names, if it is not where it was."""
    if known is None:
        return []
    place, digest = known
    at = next((n for n, link in enumerate(chain, 1) if link["statement_sha256"] == digest), 0)
    what = f"the checkpoint's run {place:,} (statement {digest[:12]}...)"
    if at == place:
        return []
    if at:
        changed = "removed before it" if at < place else "put in before it"
        return [f"{what} is run {at:,} now, {chain[at - 1]['run_id']}: {changed}"]
    if len(chain) < place:
        return [
            f"removed: {what} is not in the chain, which has {len(chain):,} runs; "
            f"{place - len(chain):,} were removed, or the chain was made anew"
        ]
    return [
        f"made anew: {what} is not in the chain, whose run {place:,} is "
        f"{chain[place - 1]['run_id']}; a run up to there was changed, put in between, put in "
        "another order or removed, and the rest sealed anew"
    ]
