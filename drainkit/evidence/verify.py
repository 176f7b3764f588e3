"""All of `drainkit verify`: every file of a run, the chain over the runs, signer and ledger."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.summary import RUN_ID
from ..errors import DrainkitError, UsageError
from ..files import file_sha256, read_plain
from ..safe import one_line
from . import approval
from .chain import chain_findings
from .ledgers import ledger_findings
from .remote import local_copy
from .signature import signature_problems, verify_signature
from .statement import RUN_JSON, SIGNATURE, STATEMENT, SUMS, is_plain, read_json, read_statement


def verify(
    path: Path | str,
    url: str | None = None,
    allowed_signers: Path | None = None,
    identity: str | None = None,
    *,
    streams: Sequence[str] = (),
) -> dict[str, list[str]]:
    """What does not fit, by run and under "chain"; a run without findings has an empty list.

    `path` is a run's folder, or one that holds runs, or the URL of one. With `url` the server's
    run ledger decides which live runs there are and what their statements were; `streams` names
    ledgers to ask beside those of the streams that the runs name. With `allowed_signers` (a file of
    ssh-keygen's) the approvers must have signed their plans, and `identity`, if given, each
    statement. Raises UsageError for what cannot be checked.
    """
    if identity is not None and allowed_signers is None:
        raise UsageError("--identity needs --allowed-signers, which says what its key is")
    if allowed_signers is not None and not allowed_signers.is_file():
        raise UsageError(f"--allowed-signers {one_line(str(allowed_signers))} is not a file")
    with local_copy(str(path)) as folder:
        if not folder.is_dir():
            raise UsageError(
                f"{one_line(str(path))} is not a folder; name an evidence or a reports folder"
            )
        alone = is_run(folder)
        found = {folder.resolve().name: verify_run(folder)} if alone else verify_reports(folder)
        runs = {name: folder if alone else folder / name for name in found if name != "chain"}
        if url is not None:
            for name, findings in ledger_findings(url, runs, streams, whole=not alone).items():
                found.setdefault(name, []).extend(findings)
        if allowed_signers is not None:
            for name, run_dir in runs.items():
                found[name] += _signers_findings(run_dir, allowed_signers, identity)
    return {name: list(dict.fromkeys(findings)) for name, findings in found.items()}


def _signers_findings(run_dir: Path, allowed_signers: Path, identity: str | None) -> list[str]:
    """Approvers who did not sign the plan, and a statement that `identity` did not sign."""
    findings = approval.problems(run_dir, allowed_signers)
    if identity is not None:
        try:
            verify_signature(run_dir, allowed_signers, identity)
        except DrainkitError as error:
            findings.append(f"not signed by {one_line(identity)}: {error}")
    return findings


def verify_reports(reports_dir: Path) -> dict[str, list[str]]:
    """Findings by run folder, and under "chain" those of the chain over the runs."""
    runs = [path for path in _listing(reports_dir).values() if RUN_ID.fullmatch(path.name)]
    found = {run.name: verify_run(run) for run in runs}
    found["chain"] = chain_findings(reports_dir, runs)
    return found


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's: by its name, or by what is in it."""
    return bool(RUN_ID.fullmatch(folder.resolve().name)) or any(
        (folder / name).exists() for name in (STATEMENT, SUMS, RUN_JSON)
    )


def verify_run(run_dir: Path) -> list[str]:
    """What does not fit, one line for each file changed, missing or added; empty: all does."""
    if run_dir.is_symlink() or (run_dir.exists() and not run_dir.is_dir()):
        return [f"changed: {one_line(run_dir.name)} is a link or a file, not a folder"]
    there = _listing(run_dir)
    if STATEMENT not in there:
        return _unsealed(run_dir, there)
    findings: list[str] = []
    sums = _read_sums(run_dir / SUMS, findings)
    statement = _read_statement(run_dir / STATEMENT, findings)
    subjects = _read_subjects(statement, findings) if statement else None
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
    findings += _added(there, known | {STATEMENT, SUMS, SIGNATURE})
    if statement is not None:
        findings += _contradictions(run_dir, statement["predicate"])
        signed_by = statement["predicate"].get("signed_by")
        findings += signature_problems(run_dir, None if signed_by is None else str(signed_by))
    return list(dict.fromkeys(findings))


def _unsealed(run_dir: Path, there: dict[str, Path]) -> list[str]:
    """What to say of a folder without a statement: a killed run's, or a removed statement."""
    if SUMS in there:
        return [f"missing: {STATEMENT} (it was removed, or the run was killed while sealing)"]
    try:
        run = read_json(run_dir / RUN_JSON)
        outcome = run.get("outcome") if isinstance(run, dict) else None
    except (OSError, ValueError):
        outcome = None
    state = "interrupted" if outcome in (None, "running") else one_line(str(outcome), 40)
    said = f"{state}, not sealed (missing: {STATEMENT}; never sealed, or it was removed)"
    return [f"{said}; drainkit run --close {one_line(run_dir.name)} completes it"]


def _added(there: dict[str, Path], expected: set[str]) -> list[str]:
    return [
        f"added: {one_line(name)}{'' if is_plain(there[name]) else ' (not a plain file)'}"
        for name in sorted(there.keys() - expected)
    ]


def _contradictions(run_dir: Path, predicate: dict[str, Any]) -> list[str]:
    """Where the folder's name, the statement and run.json tell of different runs."""
    findings = []
    name, run_id = run_dir.resolve().name, predicate.get("run_id")
    # a copy may have a name of its own, but none that is another run's
    if name != run_id and RUN_ID.fullmatch(name):
        findings.append(f"renamed: {name} holds the evidence of {one_line(str(run_id), 80)}")
    try:
        run = read_json(run_dir / RUN_JSON)
    except FileNotFoundError:
        return findings  # named where its digest is missed
    except (OSError, ValueError) as error:
        return [*findings, f"changed: {RUN_JSON} ({one_line(str(error), 80)})"]
    if not isinstance(run, dict):
        return [*findings, f"changed: {RUN_JSON} (not a summary)"]
    named = RUN_ID.fullmatch(str(run_id))
    expected = {"run_id": run_id, "mode": named.group(1) if named else None}
    findings += [
        f"changed: {RUN_JSON} says {key} {one_line(str(run[key]), 60)}, "
        f"the statement {one_line(str(value), 60)}"
        for key, value in expected.items()
        if key in run and run[key] != value
    ]
    return findings


def _listing(folder: Path) -> dict[str, Path]:
    try:
        return {path.name: path for path in sorted(folder.iterdir())}
    except OSError as error:
        reason = one_line(error.strerror or "cannot be read")
        raise UsageError(f"{one_line(str(folder))}: {reason}; name a folder of evidence") from None


def _problem(path: Path, digests: set[str]) -> str | None:
    """What is wrong with a file that must have just these digests; "": its content."""
    try:
        return None if {file_sha256(path)} == digests else " (its SHA-256 is another)"
    except OSError as error:
        return f" ({one_line(error.strerror or 'not readable')})"


def _read_sums(path: Path, findings: list[str]) -> dict[str, str] | None:
    try:
        lines = read_plain(path).decode("utf-8").split("\n")
    except FileNotFoundError:
        findings.append(f"missing: {SUMS} (the run was never sealed, or it was removed)")
        return None
    except (OSError, UnicodeDecodeError) as error:
        findings.append(f"changed: {SUMS} (not readable: {one_line(_reason(error), 80)})")
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


def _read_statement(path: Path, findings: list[str]) -> dict[str, Any] | None:
    try:
        statement = read_statement(path)
        if isinstance(statement["predicate"], dict):
            return statement
        reason = "no predicate"
    except (OSError, ValueError, KeyError) as error:
        reason = one_line(_reason(error), 80)
    findings.append(f"changed: {STATEMENT} (not readable as an in-toto statement: {reason})")
    return None


def _read_subjects(statement: dict[str, Any], findings: list[str]) -> dict[str, str] | None:
    try:
        pairs = [(str(s["name"]), str(s["digest"]["sha256"])) for s in statement["subject"]]
    except (KeyError, TypeError):
        findings.append(f"changed: {STATEMENT} (not readable as an in-toto statement: subjects)")
        return None
    subjects: dict[str, str] = {}
    for name, sha in pairs:
        if "/" in name or name in (".", "..", STATEMENT, SUMS):
            findings.append(f"changed: {STATEMENT} (subject {one_line(repr(name), 80)})")
        elif name in subjects:
            findings.append(f"changed: {STATEMENT} (names {one_line(repr(name), 80)} twice)")
        subjects[name] = sha
    return subjects


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
