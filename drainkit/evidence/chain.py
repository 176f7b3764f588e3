"""The chain over the runs of a reports folder: a run that is gone, renamed or forked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..core.summary import RUN_ID
from ..files import file_sha256
from ..safe import one_line
from .statement import CHAIN, STATEMENT, link_of, read_chain, read_statement


def chain_findings(reports_dir: Path, runs: Sequence[Path]) -> list[str]:
    """Where the links from run to run do not fit; `runs` are the folders named like runs."""
    findings: list[str] = []
    digests: dict[str, str] = {}
    links: dict[str, dict[str, str] | None] = {}  # by the run, or chain.json, that holds the link
    for run in runs:
        try:
            predicate = read_statement(run / STATEMENT)["predicate"]
            links[run.name] = link_of(predicate["previous"])
            digests[run.name] = file_sha256(run / STATEMENT)
        except (KeyError, TypeError, ValueError):
            findings.append(f"changed: {run.name} names no run before it (its {STATEMENT})")
            continue
        except OSError:
            continue  # verify_run names it
    firsts = sorted(name for name, link in links.items() if link is None)
    if len(firsts) > 1:
        findings.append(f"forked: {', '.join(firsts)} each claim to be the first run")
    try:
        newest = read_chain(reports_dir)
    except ValueError:
        findings.append(f"changed: {CHAIN} (not readable)")
    else:
        if newest is not None:
            links[CHAIN] = newest
        elif runs:
            findings.append(f"missing: {CHAIN}, which names the newest run")
        else:
            findings.append(f"missing: there is no run in {one_line(reports_dir.name)}")
    return findings + _broken_links(reports_dir, links, digests)


def _broken_links(
    reports_dir: Path, links: Mapping[str, dict[str, str] | None], digests: Mapping[str, str]
) -> list[str]:
    findings: list[str] = []
    followers: dict[str, str] = {}
    for name, link in links.items():
        if link is None:
            continue
        before = link["run_id"]
        shown = one_line(before, 80)
        if not RUN_ID.fullmatch(before) or not (reports_dir / before).is_dir():
            findings.append(f"removed: run {shown}, which {name} names as the one before it")
        elif digests.get(before) != link["statement_sha256"]:
            findings.append(f"changed: the statement of {shown} is not the one that {name} names")
        if before in followers:
            findings.append(f"forked: {name} and {followers[before]} both follow {shown}")
        followers[before] = name
    findings += [
        f"left out: nothing follows {name}, and {CHAIN} does not name it"
        for name in sorted(digests)
        if name not in followers
    ]
    return findings
