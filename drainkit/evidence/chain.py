"""The chain of runs: each statement names the run before it, chain.json the newest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ..core.summary import RUN_ID
from ..files import read_plain
from .examined import Examined
from .statement import CHAIN, STATEMENT, Link, link_of, read_json, shown, statement_of

FIRST = "first"  # in the place of a digest: before the first run there is no statement


def walk(followers: Mapping[str, Link], start: Link | None = None) -> list[Link]:
    """The chain from `start` on, or from the first run on; `followers`: links by digest before."""
    found = [] if start is None else [start]
    at, met = FIRST if start is None else start["statement_sha256"], set[str]()
    while at not in met and (link := followers.get(at)) is not None:
        met.add(at)
        found.append(link)
        at = link["statement_sha256"]
    return found


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


def newest(reports_dir: Path, without: Path | None = None) -> Link | None:
    """The run sealed last: what chain.json names, then along the links.

    A crash between a statement and chain.json leaves chain.json behind; a chain.json that is gone
    or unreadable is no reason to leave no evidence (verify names it).
    """
    try:
        start = read_chain(reports_dir)
    except ValueError:
        start = None
    found = walk(_followers(_sealed(reports_dir, without)), start)
    return found[-1] if found else None


def _sealed(reports_dir: Path, without: Path | None) -> Iterator[tuple[str, str, Link | None]]:
    for run in sorted(reports_dir.iterdir()):
        if run == without or not RUN_ID.fullmatch(run.name):
            continue
        with suppress(OSError, ValueError, KeyError):  # verify names it
            data = read_plain(run / STATEMENT)
            before = link_of(statement_of(data)["predicate"]["previous"])
            yield run.name, hashlib.sha256(data).hexdigest(), before


def _followers(sealed: Iterable[tuple[str, str, Link | None]]) -> dict[str, Link]:
    """By a run's digest the link to the run after it; from name, digest and link before of each."""
    return {
        key_of(before): {"run_id": name, "statement_sha256": digest}
        for name, digest, before in sealed
    }


def key_of(link: Link | None) -> str:
    """The digest that a link leads to; FIRST where there is none before."""
    return FIRST if link is None else link["statement_sha256"]


def chain_findings(reports_dir: Path, runs: Sequence[Examined]) -> list[str]:
    """Where the links from run to run do not fit; `runs` are the folders named like runs."""
    sealed = {run.name: run for run in runs if run.digest is not None}
    findings: list[str] = []
    links: dict[str, Link | None] = {}  # by the run, or chain.json, that holds the link
    for name, run in sealed.items():
        if run.is_linked:
            links[name] = run.previous
        else:
            findings.append(f"changed: {name} names no run before it (its {STATEMENT})")
    firsts = sorted(name for name, link in links.items() if link is None)
    if len(firsts) > 1:
        findings.append(f"forked: {', '.join(firsts)} each claim to be the first run")
    try:
        last = read_chain(reports_dir)
    except ValueError:
        findings.append(f"changed: {CHAIN} (not readable)")
    else:
        if last is not None:
            links[CHAIN] = last
        elif runs:
            findings.append(f"missing: {CHAIN}, which names the newest run")
        else:
            findings.append(f"missing: there is no run in {shown(reports_dir.name)}")
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


def order_of(runs: Iterable[Examined]) -> list[Link]:
    """The runs from the first on, as their statements name each other."""
    return walk(_followers((r.name, r.digest or "", r.previous) for r in runs if r.is_linked))
