"""One run's folder, read once: what does not fit in it, and what chain and ledger need of it."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.plan import VERSION, check_digest, parse
from ..core.summary import RUN_ID
from ..errors import DrainkitError
from ..files import file_sha256, read_plain
from ..safe import one_line
from ..signing import OF_STATEMENT, approvals, check_signed, signer
from .statement import (
    APPROVALS,
    RUN_JSON,
    SIGNATURE,
    STATEMENT,
    SUMS,
    Link,
    is_plain,
    link_of,
    listing,
    read_json,
    read_or,
    shown,
    statement_of,
    sums_of,
)

#: What the statement repeats of run.json.
OF_RUN = (
    "boundary_id", "total_read", "outcome", "exit_code", "started_at", "finished_at", "operator",
    "plan_digest", "environment", "server", "approver_keys", "approvals_required",
)  # fmt: skip
MOST = 1000  # findings of a run; a folder can hold millions of odd things


@dataclass
class Examined:
    """What a folder says of its run, and what does not fit."""

    name: str  # of the folder
    findings: list[str] = field(default_factory=list)
    run_id: str = ""  # that the evidence is of, as it says
    digest: str | None = None  # of the statement
    is_linked: bool = False  # whether it says which run was before it
    previous: Link | None = None  # that run; None: it was the first
    streams: frozenset[str] = frozenset()
    says_live: bool = False
    is_open: bool = False  # neither statement nor sums: at work, or interrupted
    is_archived: bool = False  # only its statement and signatures are left
    says: Mapping[str, Any] = field(default_factory=dict)  # run.json, before it the statement


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's: by its name, or by what is in it."""
    return bool(RUN_ID.fullmatch(folder.resolve().name)) or any(
        (folder / name).exists() for name in (STATEMENT, SUMS, RUN_JSON)
    )


def examine(run_dir: Path, signers: bytes | None = None, identity: str | None = None) -> Examined:
    """One finding for each file changed, missing or added, and for what contradicts itself.

    `signers` (a file of ssh-keygen's) are those who may have approved the plan and signed the
    statement; `identity` is who must have signed it.
    """
    name = run_dir.resolve().name if run_dir.name in ("", "..") else run_dir.name
    found = Examined(name, run_id=name)
    if run_dir.is_symlink() or (run_dir.exists() and not run_dir.is_dir()):
        found.findings = [f"changed: {one_line(name)} is a link or a file, not a folder"]
        return found
    there = listing(run_dir)
    run, data, statement = _read(there, found)
    found.is_open = not {STATEMENT, SUMS} & there.keys()
    if STATEMENT not in there:  # a killed run's folder, or the statement was removed
        state = "interrupted"
        if (outcome := run.get("outcome")) not in (None, "running"):
            state = shown(outcome, 40)
        found.findings = [
            f"missing: {STATEMENT} (it was removed, or the run was killed while sealing)"
            if SUMS in there else
            f"{state}, not sealed (missing: {STATEMENT}; never sealed, or it was removed); "
            f"drainkit run --close {one_line(name)} completes it"
        ]  # fmt: skip
        return found
    if statement:
        predicate = statement["predicate"]
        found.is_archived = there.keys() <= {STATEMENT, SIGNATURE, APPROVALS}
        found.findings += _contradictions(found, predicate, run)
        try:
            _check_signature(run_dir, data, predicate, signers, identity)
        except DrainkitError as error:
            found.findings.append(str(error))
        if signers is not None:
            found.findings += _approval_findings(run_dir, predicate, signers)
        if not found.is_archived:
            subjects = _subjects(statement, found.findings)
            _compare(there, subjects, found)
            plan = read_or(run_dir / "plan.json", {})
            digest = plan.get("decisions_sha256") if plan.get("version") == VERSION else None
            if digest and subjects.get("decisions.parquet", digest) != digest:
                found.findings.append("changed: decisions.parquet is not what plan.json decided")
    found.findings = list(dict.fromkeys(found.findings))
    if len(found.findings) > MOST:
        found.findings[MOST:] = [f"and {len(found.findings) - MOST:,} more"]
    return found


def _read(
    there: Mapping[str, Path], found: Examined
) -> tuple[dict[str, Any], bytes, dict[str, Any]]:
    """run.json, the statement's bytes and what they say, each empty where it is none of these."""
    run: dict[str, Any] = {}
    statement: dict[str, Any] = {}
    data = b""
    try:
        if RUN_JSON in there:  # else it is named where its digest is missed
            if not isinstance(said := read_json(there[RUN_JSON]), dict):
                raise ValueError("not a summary")
            run = said
    except (OSError, ValueError) as error:
        found.findings.append(f"changed: {RUN_JSON} ({_reason(error)})")
    try:
        if STATEMENT in there:
            data = read_plain(there[STATEMENT])
            found.digest = hashlib.sha256(data).hexdigest()
            statement = statement_of(data)
    except (OSError, ValueError) as error:
        found.findings.append(
            f"changed: {STATEMENT} (not readable as an in-toto statement: {_reason(error)})"
        )
    predicate = statement.get("predicate", {})
    parameters = predicate.get("parameters")
    parameters = parameters if isinstance(parameters, dict) else {}
    run_id = predicate.get("run_id")
    if run_id is None and not RUN_ID.fullmatch(found.name):
        run_id = run.get("run_id")
    found.run_id = found.name if run_id is None else shown(run_id)
    with suppress(KeyError, ValueError):
        found.previous, found.is_linked = link_of(predicate["previous"]), True
    streams = (run.get("stream"), parameters.get("stream"))
    found.streams = frozenset(name for name in streams if isinstance(name, str) and name)
    found.says = {**parameters, **predicate, **run}
    found.says_live = "live" in (run.get("mode"), parameters.get("mode"))
    return run, data, statement


def _contradictions(found: Examined, predicate: dict[str, Any], run: dict[str, Any]) -> list[str]:
    """Where the folder's name, the statement and run.json tell of different runs."""
    findings = []
    # a copy may have a name of its own, but none that is another run's
    if found.run_id != found.name and RUN_ID.fullmatch(found.name):
        findings.append(f"renamed: {found.name} holds the evidence of {found.run_id}")
    named = RUN_ID.fullmatch(found.run_id)
    expected = {"run_id": found.run_id, "mode": named.group(1) if named else None}
    expected |= {key: predicate[key] for key in OF_RUN if key in predicate}
    approvers = predicate.get("approvers") or []
    findings += [
        f"changed: {RUN_JSON} says {key} {shown(run[key], 60)}, the statement {shown(value, 60)}"
        for key, value in {**expected, "approvers": approvers}.items()
        if key in run and (run[key] or None) != (value or None)
    ]
    if not isinstance(approvers, list) or not all(isinstance(name, str) for name in approvers):
        predicate["approvers"] = approvers = []
        findings.append(f"changed: {STATEMENT} (approvers)")
    if not isinstance(predicate.get("approver_keys") or {}, dict):
        predicate["approver_keys"] = {}
        findings.append(f"changed: {STATEMENT} (approver_keys)")
    required = predicate.get("approvals_required") or 0
    if not isinstance(required, int) or len(approvers) < required:
        findings.append(
            f"approvals: {shown(required)} are required, and {len(approvers)} are named"
        )
    return findings


def _compare(there: dict[str, Path], subjects: dict[str, str], found: Examined) -> None:
    """Each file against the statement, and SHA256SUMS against what it must be."""
    findings = found.findings
    sums = sums_of({**subjects, STATEMENT: found.digest or ""})
    for name in sorted({*subjects, SUMS}):
        try:
            if name not in there:
                findings.append(f"missing: {shown(name)}")
            elif name == SUMS:
                if read_plain(there[name]) != sums:
                    findings.append(f"changed: {SUMS} and {STATEMENT} do not fit each other")
            elif file_sha256(there[name]) != subjects[name]:
                findings.append(f"changed: {shown(name)} (its SHA-256 is another)")
        except OSError as error:
            findings.append(f"changed: {shown(name)} ({_reason(error)})")
    findings += [
        f"added: {one_line(name)}{'' if is_plain(there[name]) else ' (not a plain file)'}"
        for name in sorted(there.keys() - subjects.keys() - {STATEMENT, SUMS, SIGNATURE})
    ]


def _subjects(statement: dict[str, Any], findings: list[str]) -> dict[str, str]:
    try:
        pairs = [(str(s["name"]), str(s["digest"]["sha256"])) for s in statement["subject"]]
    except (KeyError, TypeError, RecursionError):
        findings.append(f"changed: {STATEMENT} (not readable as an in-toto statement: subjects)")
        return {}
    subjects: dict[str, str] = {}
    for name, sha in pairs:
        if "/" in name or name in (".", "..", STATEMENT, SUMS):
            findings.append(f"changed: {STATEMENT} (subject {shown(name)})")
        elif name in subjects:
            findings.append(f"changed: {STATEMENT} (names {shown(name)} twice)")
        else:
            subjects[name] = sha
    return subjects


def _reason(error: Exception) -> str:
    said = error.strerror if isinstance(error, OSError) else str(error)
    return shown(said or type(error).__name__)


# ---------------------------------------------------------------- signatures (ssh-keygen -Y)


def _check_signature(
    run_dir: Path,
    statement: bytes,
    predicate: Mapping[str, Any],
    signers: bytes | None,
    identity: str | None,
) -> None:
    """Raises DrainkitError with what is wrong with the statement's signature.

    Without `signers` (those who may have made it) nobody can say who signed, but a signature of
    other bytes shows, and so does one that is gone or was made with another key.
    """
    signed_by = predicate.get("signed_by")
    try:
        signature = read_plain(run_dir / SIGNATURE)
    except FileNotFoundError:
        if signed_by is None and identity is None:
            return
        by = f"not signed by {shown(identity)}" if identity else f"it was by {shown(signed_by)}"
        raise DrainkitError(f"missing: {SIGNATURE} ({by})") from None
    except OSError as error:
        raise DrainkitError(f"changed: {SIGNATURE} ({error.strerror or 'not readable'})") from None
    key = signer(statement, signature, OF_STATEMENT)
    if not key:
        raise DrainkitError(f"changed: {SIGNATURE} does not fit {STATEMENT}")
    if signed_by not in (None, key):
        by = f"{shown(signed_by)}, as the statement says"
        raise DrainkitError(f"changed: {SIGNATURE} is not by {by}")
    if signers is None:
        return
    try:
        # by the time of the run: a key may have expired since
        when = _moment(predicate.get("finished_at"))
        check_signed(statement, signature, signers, identity, OF_STATEMENT, when)
    except (DrainkitError, ValueError, OverflowError) as error:
        who = shown(identity or "an allowed signer")
        raise DrainkitError(f"not signed by {who}, but by {key} ({shown(error)})") from None


def _approval_findings(run_dir: Path, predicate: Mapping[str, Any], signers: bytes) -> list[str]:
    """One line for each approver of a live run without a valid signature of its plan's digest.

    What must have been valid when the run began may have expired since. A run that names no
    approver and has no signatures needed none.
    """
    named = predicate.get("approvers") or []
    said = predicate.get("plan_digest")
    try:
        digest = str(said)  # of an archived run, which has no plan.json
        with suppress(FileNotFoundError):
            plan = parse(read_plain(run_dir / "plan.json").decode("utf-8"), "plan.json")
            check_digest(plan)  # of an earlier version too
            digest = str(plan["digest"])
            if said not in (None, digest):
                raise ValueError("plan.json is not the plan whose digest the statement names")
        try:
            signatures = read_plain(run_dir / APPROVALS)
        except FileNotFoundError:
            if not named:
                return []
            raise ValueError(f"{APPROVALS} is missing") from None
        valid, rejected = approvals(
            digest, signatures, signers,
            own={str(predicate.get(name) or "") for name in ("operator", "user")} - {""},
            at=_moment(predicate.get("started_at")),
        )  # fmt: skip
    except (OSError, ValueError, OverflowError, DrainkitError) as error:
        return [f"approvals: {APPROVALS} or plan.json: {shown(error, 200)}"]
    reasons = "; ".join(rejected) or "there is no signature of it"
    findings = [
        f"approvals: {shown(name, 60)} is named and did not approve this plan ({reasons})"
        for name in named
        if name not in valid or (predicate.get("approver_keys") or valid).get(name) != valid[name]
    ]
    required = predicate.get("approvals_required") or 0
    if not isinstance(required, int) or len(valid) < required:
        findings.append(f"approvals: {required} were required, there are {len(valid)}")
    return findings


def _moment(time: Any) -> str:
    """A time of a statement as ssh-keygen takes it; ValueError where it is none."""
    return f"{dt.datetime.fromisoformat(str(time)).astimezone(dt.UTC):%Y%m%d%H%M%S}Z"
