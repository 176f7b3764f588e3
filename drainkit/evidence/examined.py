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
from ..signing import OF_STATEMENT, approvals, check_signed, keys_of, signer
from . import seal
from .seal import APPROVALS, RUN_JSON, SIGNATURE, STATEMENT, SUMS, shown


@dataclass
class Examined:
    """What a folder says of its run, and what does not fit."""

    name: str  # of the folder
    run_id: str  # that the evidence is of, as it says
    findings: list[str] = field(default_factory=list)
    digest: str | None = None  # of the statement
    is_linked: bool = False  # whether the statement can be read, and so names the run before it
    previous: seal.Link | None = None  # that run; None: it was the first
    streams: frozenset[str] = frozenset()
    is_open: bool = False  # neither statement nor sums: at work, or interrupted
    is_archived: bool = False  # only its statement and signatures are left
    says: Mapping[str, Any] = field(default_factory=dict)  # run.json, before it the statement

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """What cannot be read is a finding."""
        try:
            yield
        except (OSError, ValueError) as error:
            said = error.strerror if isinstance(error, OSError) else str(error)
            self.findings.append(f"changed: {what} ({shown(said or type(error).__name__)})")


def examine(run_dir: Path, signers: bytes | None = None, identity: str | None = None) -> Examined:
    """One finding for each file changed, missing or added, and for what contradicts itself.

    `signers` (a file of ssh-keygen's) are those who may have approved the plan and signed the
    statement; `identity` is who must have signed it.
    """
    name = run_dir.resolve().name if run_dir.name in ("", "..") else run_dir.name
    found = Examined(name, name)
    if run_dir.is_symlink() or (run_dir.exists() and not run_dir.is_dir()):
        found.findings = [f"changed: {one_line(name)} is a link or a file, not a folder"]
        return found
    there = seal.listing(run_dir)
    run: dict[str, Any] = {}
    predicate: dict[str, Any] = {}
    with found.reading(RUN_JSON):
        if RUN_JSON in there:  # else it is named where its digest is missed
            run = seal.parse(read_plain(there[RUN_JSON]), dict)
    with found.reading(f"{STATEMENT}, not readable as an in-toto statement"):
        if STATEMENT in there:
            data = read_plain(there[STATEMENT])
            found.digest = hashlib.sha256(data).hexdigest()
            statement = seal.statement_of(data)
            predicate = statement["predicate"]
            found.is_linked, found.previous = True, predicate["previous"]
    if predicate or not RUN_ID.fullmatch(name):
        found.run_id = shown(predicate.get("run_id") or run.get("run_id") or name)
    parameters = predicate.get("parameters", {})
    streams = (run.get("stream"), parameters.get("stream"))
    found.streams = frozenset(name for name in streams if isinstance(name, str) and name)
    found.says = {**parameters, **predicate, **run}
    found.is_open = not {STATEMENT, SUMS} & there.keys()
    if STATEMENT not in there:  # a killed run's folder, or the statement was removed
        state = "interrupted" if run.get("outcome") in (None, "running") else run["outcome"]
        found.findings.append(
            f"{shown(state, 40)}, not sealed (missing: {STATEMENT}; never sealed, or it was "
            f"removed); drainkit run --close {one_line(name)} completes it"
        )
    if predicate:
        found.is_archived = there.keys() <= {STATEMENT, SIGNATURE, APPROVALS}
        found.findings += _contradictions(found, predicate, run)
        try:
            found.findings += _of_signature(run_dir, data, predicate, signers, identity)
        except DrainkitError as error:  # there is no ssh-keygen
            found.findings.append(str(error))
        if signers is not None:
            found.findings += _of_approvals(run_dir, predicate, signers)
        if not found.is_archived:
            _compare(there, statement["subject"], found)
    return found


def _contradictions(
    found: Examined, predicate: Mapping[str, Any], run: Mapping[str, Any]
) -> Iterator[str]:
    """Where the folder's name, the statement and run.json tell of different runs."""
    # a copy may have a name of its own, but none that is another run's
    if found.run_id != found.name and RUN_ID.fullmatch(found.name):
        yield f"renamed: {found.name} holds the evidence of {found.run_id}"
    named = RUN_ID.fullmatch(found.run_id)
    expected = {name: predicate[name] for name in seal.OF_RUN if name in predicate}
    expected |= {"run_id": found.run_id, "mode": named and named[1]}
    expected["approvers"] = approvers = predicate["approvers"]
    for key, value in expected.items():
        if key in run and (run[key] or None) != (value or None):
            said = f"{shown(run[key], 60)}, the statement {shown(value, 60)}"
            yield f"changed: {RUN_JSON} says {key} {said}"
    required = predicate.get("approvals_required") or 0
    if len(approvers) < required:
        yield f"approvals: {required} are required, and {len(approvers)} are named"


def _compare(there: dict[str, Path], listed: list[dict[str, Any]], found: Examined) -> None:
    """Each file against the statement, SHA256SUMS and the plan against what they must be."""
    subjects = {one["name"]: one["digest"].get("sha256", "") for one in listed}
    odd = any("/" in name or name in (".", "..", STATEMENT, SUMS) for name in subjects)
    if odd or len(subjects) < len(listed):
        found.findings.append(f"changed: {STATEMENT} (a subject is no file of a run, or is twice)")
        return
    sums = seal.sums_of({**subjects, STATEMENT: found.digest or ""})
    for name in sorted({*subjects, SUMS}):
        with found.reading(shown(name)):
            if name not in there:
                found.findings.append(f"missing: {shown(name)}")
            elif name == SUMS and read_plain(there[name]) != sums:
                raise ValueError(f"it and {STATEMENT} do not fit each other")
            elif name != SUMS and file_sha256(there[name]) != subjects[name]:
                raise ValueError("its SHA-256 is another")
    added = there.keys() - subjects.keys() - {STATEMENT, SUMS, SIGNATURE}
    plan = seal.read_or(there["plan.json"], {}) if "plan.json" in there else {}
    if APPROVALS in added and "-dry-run-" in found.run_id:  # a sealed plan is approved where it is
        with suppress(OSError, DrainkitError):
            if all(keys_of(str(plan.get("digest")), read_plain(there[APPROVALS])) or [""]):
                added.remove(APPROVALS)
    found.findings += [
        f"added: {one_line(name)}{'' if seal.is_plain(there[name]) else ' (not a plain file)'}"
        for name in sorted(added)
    ]
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
        if wanted := identity or signed_by:
            yield f"missing: {SIGNATURE} (by {shown(wanted)})"
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
            when = _moment(predicate["finished_at"])
            check_signed(statement, signature, signers, identity, OF_STATEMENT, when)
        except (DrainkitError, ValueError, OverflowError) as error:
            who = shown(identity or "an allowed signer")
            yield f"not signed by {who}, but by {key} ({shown(error)})"


def _of_approvals(run_dir: Path, predicate: Mapping[str, Any], signers: bytes) -> Iterator[str]:
    """One line for each approver of a live run without a valid signature of its plan's digest.

    What must have been valid when the run began may have expired since. A run that names no
    approver and has no signatures needed none.
    """
    named, digest = predicate["approvers"], predicate.get("plan_digest")
    required = predicate.get("approvals_required") or 0
    try:
        with suppress(FileNotFoundError):  # of an archived run, which has no plan.json
            plan = parse(read_plain(run_dir / "plan.json").decode("utf-8"), "plan.json")
            check_digest(plan)  # of an earlier version too
            if digest not in (None, plan["digest"]):
                raise ValueError("plan.json is not the plan whose digest the statement names")
            digest = plan["digest"]
        try:
            signatures = read_plain(run_dir / APPROVALS)
        except FileNotFoundError:
            if not named:
                return
            raise
        own = {predicate.get(name) or "" for name in ("operator", "user")} - {""}
        when = _moment(predicate["started_at"])
        valid, rejected = approvals(str(digest), signatures, signers, own=own, at=when)
    except (OSError, ValueError, OverflowError, DrainkitError) as error:
        yield f"approvals: {APPROVALS} or plan.json: {shown(error, 200)}"
        return
    keys = predicate.get("approver_keys") or valid
    reasons = "; ".join(rejected) or "there is no signature of it"
    for name in named:
        if name not in valid or keys.get(name) != valid[name]:
            yield f"approvals: {shown(name, 60)} is named and did not approve this plan ({reasons})"
    if len(valid) < required:
        yield f"approvals: {required} were required, there are {len(valid)}"


def _moment(time: str | None) -> str:
    """A time of a statement as ssh-keygen takes it; ValueError where it is none."""
    return f"{dt.datetime.fromisoformat(str(time)).astimezone(dt.UTC):%Y%m%d%H%M%S}Z"
