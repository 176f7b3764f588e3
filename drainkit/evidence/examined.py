"""One run's folder, read once: what does not fit in it, and what chain and ledger need of it."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.plan import VERSION, check_digest, parse
from ..core.summary import RUN_ID
from ..errors import DrainkitError
from ..files import file_sha256, read_plain
from ..safe import one_line
from ..signing import OF_STATEMENT, approvals, check_signed, signer
from . import seal
from .seal import APPROVALS, OF_RUN, RUN_JSON, SIGNATURE, STATEMENT, SUMS, Link, shown

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

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """What cannot be read is a finding."""
        try:
            yield
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            said = error.strerror if isinstance(error, OSError) else str(error)
            self.findings.append(f"changed: {what} ({shown(said or type(error).__name__)})")


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
    there = seal.listing(run_dir)
    run, data, statement = _read(there, found)
    found.is_open = not {STATEMENT, SUMS} & there.keys()
    if STATEMENT not in there:  # a killed run's folder, or the statement was removed
        outcome = run.get("outcome")
        state = "interrupted" if outcome in (None, "running") else shown(outcome, 40)
        found.findings = [
            f"missing: {STATEMENT} (it was removed, or the run was killed while sealing)"
            if SUMS in there else
            f"{state}, not sealed (missing: {STATEMENT}; never sealed, or it was removed); "
            f"drainkit run --close {one_line(name)} completes it"
        ]  # fmt: skip
    if statement:
        predicate = statement["predicate"]
        found.is_archived = there.keys() <= {STATEMENT, SIGNATURE, APPROVALS}
        found.findings += _contradictions(found, predicate, run)
        found.findings += _of_signature(run_dir, data, predicate, signers, identity)
        if signers is not None:
            found.findings += _of_approvals(run_dir, predicate, signers)
        if not found.is_archived:
            _compare(there, statement, found)
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
    with found.reading(RUN_JSON):
        if RUN_JSON in there:  # else it is named where its digest is missed
            if not isinstance(said := seal.json_of(read_plain(there[RUN_JSON])), dict):
                raise ValueError("not a summary")
            run = said
    with found.reading(f"{STATEMENT}, not readable as an in-toto statement"):
        if STATEMENT in there:
            data = read_plain(there[STATEMENT])
            found.digest = hashlib.sha256(data).hexdigest()
            statement = seal.statement_of(data)
    predicate = statement.get("predicate", {})
    parameters = predicate.get("parameters")
    parameters = parameters if isinstance(parameters, dict) else {}
    run_id = predicate.get("run_id")
    if run_id is None and not RUN_ID.fullmatch(found.name):
        run_id = run.get("run_id")
    found.run_id = found.name if run_id is None else shown(run_id)
    with suppress(KeyError, ValueError):
        found.previous, found.is_linked = seal.link_of(predicate["previous"]), True
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


def _compare(there: dict[str, Path], statement: dict[str, Any], found: Examined) -> None:
    """Each file against the statement, SHA256SUMS and the plan against what they must be."""
    subjects: dict[str, str] = {}
    with found.reading(f"{STATEMENT}, its subjects"):
        for subject in statement["subject"]:
            name, sha = str(subject["name"]), str(subject["digest"]["sha256"])
            if "/" in name or name in (".", "..", STATEMENT, SUMS) or name in subjects:
                raise ValueError(f"{shown(name)} is named twice, or no file of a run")
            subjects[name] = sha
    for name in sorted({*subjects, SUMS}):
        with found.reading(shown(name)):
            if name not in there:
                found.findings.append(f"missing: {shown(name)}")
            elif name == SUMS:
                sums = seal.sums_of({**subjects, STATEMENT: found.digest or ""})
                if read_plain(there[name]) != sums:
                    raise ValueError(f"it and {STATEMENT} do not fit each other")
            elif file_sha256(there[name]) != subjects[name]:
                raise ValueError("its SHA-256 is another")
    found.findings += [
        f"added: {one_line(name)}{'' if seal.is_plain(there[name]) else ' (not a plain file)'}"
        for name in sorted(there.keys() - subjects.keys() - {STATEMENT, SUMS, SIGNATURE})
    ]
    plan = seal.read_or(there["plan.json"], {}) if "plan.json" in there else {}
    digest = plan.get("decisions_sha256") if plan.get("version") == VERSION else None
    if digest and subjects.get("decisions.parquet", digest) != digest:
        found.findings.append("changed: decisions.parquet is not what plan.json decided")


# ---------------------------------------------------------------- signatures (ssh-keygen -Y)


def _of_signature(
    run_dir: Path,
    statement: bytes,
    predicate: Mapping[str, Any],
    signers: bytes | None,
    identity: str | None,
) -> Iterator[str]:
    """What is wrong with the statement's signature.

    Without `signers` (those who may have made it) nobody can say who signed, but a signature of
    other bytes shows, and so does one that is gone or was made with another key.
    """
    signed_by = predicate.get("signed_by")
    try:
        signature = read_plain(run_dir / SIGNATURE)
    except FileNotFoundError:
        if signed_by is not None or identity is not None:
            by = f"not signed by {shown(identity)}" if identity else f"it was by {shown(signed_by)}"
            yield f"missing: {SIGNATURE} ({by})"
        return
    except OSError as error:
        yield f"changed: {SIGNATURE} ({error.strerror or 'not readable'})"
        return
    key = signer(statement, signature, OF_STATEMENT)
    if not key:
        yield f"changed: {SIGNATURE} does not fit {STATEMENT}"
    elif signed_by not in (None, key):
        yield f"changed: {SIGNATURE} is not by {shown(signed_by)}, as the statement says"
    elif signers is not None:
        try:  # by the time of the run: a key may have expired since
            when = _moment(predicate.get("finished_at"))
            check_signed(statement, signature, signers, identity, OF_STATEMENT, when)
        except (DrainkitError, ValueError, OverflowError) as error:
            who = shown(identity or "an allowed signer")
            yield f"not signed by {who}, but by {key} ({shown(error)})"


def _of_approvals(run_dir: Path, predicate: Mapping[str, Any], signers: bytes) -> Iterator[str]:
    """One line for each approver of a live run without a valid signature of its plan's digest.

    What must have been valid when the run began may have expired since. A run that names no
    approver and has no signatures needed none.
    """
    named, said = predicate.get("approvers") or [], predicate.get("plan_digest")
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
                return
            raise ValueError(f"{APPROVALS} is missing") from None
        own = {str(predicate.get(name) or "") for name in ("operator", "user")} - {""}
        when = _moment(predicate.get("started_at"))
        valid, rejected = approvals(digest, signatures, signers, own=own, at=when)
    except (OSError, ValueError, OverflowError, DrainkitError) as error:
        yield f"approvals: {APPROVALS} or plan.json: {shown(error, 200)}"
        return
    reasons = "; ".join(rejected) or "there is no signature of it"
    for name in named:
        if name not in valid or (predicate.get("approver_keys") or valid).get(name) != valid[name]:
            yield f"approvals: {shown(name, 60)} is named and did not approve this plan ({reasons})"
    required = predicate.get("approvals_required") or 0
    if not isinstance(required, int) or len(valid) < required:
        yield f"approvals: {required} were required, there are {len(valid)}"


def _moment(time: Any) -> str:
    """A time of a statement as ssh-keygen takes it; ValueError where it is none."""
    return f"{dt.datetime.fromisoformat(str(time)).astimezone(dt.UTC):%Y%m%d%H%M%S}Z"
