"""Checks evidence: every file of a run, and the chain over all runs."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..core.summary import RUN_ID
from ..errors import UsageError
from ..files import file_sha256
from ..safe import one_line
from .signature import signature_problem
from .statement import (
    CHAIN,
    SIGNATURE,
    STATEMENT,
    SUMS,
    is_plain,
    link_of,
    read_chain,
    read_statement,
)


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's: by its name, or by what is in it."""
    return bool(RUN_ID.fullmatch(folder.name)) or any(
        (folder / name).exists() for name in (STATEMENT, SUMS, "run.json")
    )


def verify_run(run_dir: Path) -> list[str]:
    """What does not fit, one line for each file changed, missing or added; empty: all does."""
    there = _listing(run_dir)
    findings: list[str] = []
    sums = _read_sums(run_dir / SUMS, findings)
    subjects = _read_subjects(run_dir / STATEMENT, findings)
    if sums is None and subjects is None:
        return findings
    if sums is not None and subjects is not None:
        listed = {name: sha for name, sha in sums.items() if name != STATEMENT}
        findings += [
            f"changed: {STATEMENT} and {SUMS} differ on {one_line(name)}"
            for name in sorted(listed.keys() | subjects.keys())
            if listed.get(name) != subjects.get(name)
        ]
    claims = [claim for claim in (sums, subjects) if claim is not None]
    known = {name for claim in claims for name in claim}
    for name in sorted(known):
        if name not in there:
            findings.append(f"missing: {one_line(name)}")
        elif problem := _problem(there[name], {c[name] for c in claims if name in c}):
            findings.append(f"changed: {one_line(name)}{problem}")
    for name in sorted(there.keys() - known - {STATEMENT, SUMS, SIGNATURE}):
        kind = "" if is_plain(there[name]) else " (no plain file)"
        findings.append(f"added: {one_line(name)}{kind}")
    if SIGNATURE in there and STATEMENT in there:
        findings += signature_problem(run_dir)
    return list(dict.fromkeys(findings))


def _listing(folder: Path) -> dict[str, Path]:
    try:
        return {path.name: path for path in sorted(folder.iterdir())}
    except OSError as error:
        reason = one_line(error.strerror or "cannot be read")
        raise UsageError(f"{one_line(str(folder))}: {reason}; name a folder of evidence") from None


def _problem(path: Path, digests: set[str]) -> str | None:
    """What is wrong with a file that must have just these digests; "": its content."""
    if not is_plain(path):
        return " (no plain file any more)"
    try:
        return None if {file_sha256(path)} == digests else " (its SHA-256 is another)"
    except OSError:
        return " (not readable)"


def _read_sums(path: Path, findings: list[str]) -> dict[str, str] | None:
    try:
        if not is_plain(path) and path.exists():
            raise OSError(errno.EINVAL, "no plain file")
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        findings.append(f"missing: {SUMS} (the run was never sealed, or it was removed)")
        return None
    except (OSError, UnicodeDecodeError):
        findings.append(f"changed: {SUMS} (not readable)")
        return None
    sums: dict[str, str] = {}
    if lines[-1] != "":
        findings.append(f"changed: {SUMS} (its last line has no end)")
    for line in lines[:-1] if lines[-1] == "" else lines:
        match = re.fullmatch(r"([0-9a-f]{64})  ([^/]+)", line)
        if match is None or match.group(2) in sums or match.group(2) in (".", ".."):
            findings.append(f"changed: {SUMS} (line {one_line(repr(line), 80)})")
        else:
            sums[match.group(2)] = match.group(1)
    if STATEMENT not in sums:
        findings.append(f"changed: {SUMS} (does not list {STATEMENT})")
    return sums


def _read_subjects(path: Path, findings: list[str]) -> dict[str, str] | None:
    try:
        statement = read_statement(path)
        pairs = [(str(s["name"]), str(s["digest"]["sha256"])) for s in statement["subject"]]
    except FileNotFoundError:
        findings.append(f"missing: {STATEMENT} (the run was never sealed, or it was removed)")
        return None
    except (OSError, ValueError, KeyError, TypeError):
        findings.append(f"changed: {STATEMENT} (not readable as an in-toto statement)")
        return None
    for name, _ in pairs:
        if "/" in name or name in (".", "..", STATEMENT, SUMS):
            findings.append(f"changed: {STATEMENT} (subject {one_line(repr(name), 80)})")
    return dict(pairs)


def verify_reports(reports_dir: Path) -> dict[str, list[str]]:
    """Findings by run folder, and under "chain" those of the chain over the runs."""
    runs = [
        path
        for path in _listing(reports_dir).values()
        if path.is_dir() and RUN_ID.fullmatch(path.name)
    ]
    found = {run.name: verify_run(run) for run in runs}
    found["chain"] = _verify_chain(reports_dir, runs)
    return found


def _verify_chain(reports_dir: Path, runs: Sequence[Path]) -> list[str]:
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
        if predicate.get("run_id") != run.name:
            other = one_line(str(predicate.get("run_id")), 80)
            findings.append(f"renamed: {run.name} holds the evidence of {other}")
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
