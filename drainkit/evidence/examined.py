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
from ..signing import OF_STATEMENT, approvals, keys_of, signed_by
from . import seal
from .seal import APPROVALS, RUN_JSON, SIGNATURE, STATEMENT, SUMS, shown


@dataclass
class Examined:
    """What a folder says of its run, and what does not fit."""

    name: str  # of the folder
    run_id: str  # that the evidence is of, as it says
    findings: list[str] = field(default_factory=list)
    digest: str | None = None  # of its statement; None for one that cannot be read
    previous: seal.Link | None = None  # the run before it, as the statement says; None: no run
    streams: frozenset[str] = frozenset()
    state: str = "ok"  # "interrupted": not sealed, or at work; "archived": its statement is left
    says: Mapping[str, Any] = field(default_factory=dict)  # run.json, before it the statement

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """What cannot be read, or does not fit, is a finding."""
        try:
            yield
        except (OSError, ValueError, OverflowError, DrainkitError) as error:
            said = error.strerror if isinstance(error, OSError) else str(error)
            self.findings.append(f"changed: {what} ({shown(said or type(error).__name__, 200)})")


def examine(run_dir: Path, signers: bytes | None = None) -> Examined:
    """One finding for each file changed, missing or added, and for what contradicts itself.

    `signers` (a file of ssh-keygen's) are those who may have approved the plan and signed the
    statement.
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
            statement = seal.statement_of(data := read_plain(there[STATEMENT]))
            predicate, found.digest = statement["predicate"], hashlib.sha256(data).hexdigest()
            found.previous = predicate["previous"]
    if predicate or not RUN_ID.fullmatch(name):
        found.run_id = shown(predicate.get("run_id") or run.get("run_id") or name)
    parameters = predicate.get("parameters", {})
    streams = (run.get("stream"), parameters.get("stream"))
    found.streams = frozenset(name for name in streams if isinstance(name, str) and name)
    found.says = {**parameters, **predicate, **run}
    if not {STATEMENT, SUMS} & there.keys():
        found.state = "interrupted"
    if STATEMENT not in there:  # a killed run's folder, or the statement was removed
        outcome = shown(run.get("outcome") or "interrupted", 40)
        advice = f"; drainkit run --close {name} completes it" * bool(RUN_ID.fullmatch(name))
        found.findings.append(
            f"{outcome}, not sealed (missing: {STATEMENT}; never sealed, or removed){advice}"
        )
    if predicate:
        _contradictions(found, predicate, run)
        with found.reading(SIGNATURE):
            _check_signature(there, data, predicate, signers)
        if signers is not None:
            with found.reading(f"{APPROVALS} or plan.json"):
                found.findings += _of_approvals(there, predicate, signers)
        if there.keys() <= {STATEMENT, SIGNATURE, APPROVALS}:
            found.state = "archived"
        else:
            _compare(there, statement["subject"], found)
    return found


def _contradictions(found: Examined, predicate: dict[str, Any], run: Mapping[str, Any]) -> None:
    """Where the folder's name, the statement and run.json tell of different runs."""
    named = RUN_ID.fullmatch(found.run_id)
    # a copy may have a name of its own, but none that is another run's
    if found.run_id != found.name and RUN_ID.fullmatch(found.name):
        found.findings.append(f"renamed: {found.name} holds the evidence of {found.run_id}")
    told = predicate | {"mode": named and named[1]}
    for key in sorted({*seal.OF_RUN, "run_id", "mode", "approvers"} & run.keys() & told.keys()):
        if (run[key] or None) != (told[key] or None):
            said = f"{shown(run[key], 60)}, the statement {shown(told[key], 60)}"
            found.findings.append(f"changed: {RUN_JSON} says {key} {said}")
    approvers, required = {*predicate["approvers"]}, predicate.get("approvals_required") or 0
    if len(approvers) < required:
        found.findings.append(f"approvals: {required} are required, and {len(approvers)} are named")


def _compare(there: dict[str, Path], listed: list[dict[str, Any]], found: Examined) -> None:
    """Each file against the statement, SHA256SUMS and the plan against what they must be."""
    subjects = {one["name"]: one["digest"].get("sha256", "") for one in listed}
    if len(subjects) < len(listed) or {STATEMENT, SUMS} & subjects.keys():
        found.findings.append(f"changed: {STATEMENT} (a subject is twice, or is the seal itself)")
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
    found.findings += [f"added: {one_line(name)}" for name in sorted(added)]
    digest = plan.get("decisions_sha256") if plan.get("version") == VERSION else None
    if digest and subjects.get("decisions.parquet", digest) != digest:
        found.findings.append("changed: decisions.parquet is not what plan.json decided")


# ---------------------------------------------------------------- signatures (ssh-keygen -Y)


def _check_signature(
    there: Mapping[str, Path],
    statement: bytes,
    predicate: Mapping[str, Any],
    signers: bytes | None,
) -> None:
    """Raises ValueError where the statement's signature is not what the statement says of it.

    Without `signers` (those who may have made it) nobody can say who signed, but a signature of
    other bytes shows, and so does one that is gone or was made with another key.
    """
    signed = predicate.get("signed_by")
    if SIGNATURE not in there:
        if signed:
            raise ValueError(f"missing; {STATEMENT} says that {signed} signed it")
        return
    # by the time of the run: a key may have expired since
    when = None if signers is None else _moment(predicate["finished_at"])
    key, _, why = signed_by(statement, read_plain(there[SIGNATURE]), signers, OF_STATEMENT, when)
    if key and signed not in (None, key):
        why = f"is not by {signed}, as {STATEMENT} says"
    if why:
        raise ValueError(f"the signature of {key or 'an unknown key'} {why}")


def _of_approvals(
    there: Mapping[str, Path], predicate: Mapping[str, Any], signers: bytes
) -> Iterator[str]:
    """One line for each approver of a live run without a valid signature of its plan's digest.

    What must have been valid when the run began may have expired since. A run that names no
    approver and has no signatures needed none.
    """
    named, digest = predicate["approvers"], predicate.get("plan_digest")
    if not named and APPROVALS not in there:  # one that needs them is named already
        return
    if "plan.json" in there:  # an archived run has none
        plan = parse(read_plain(there["plan.json"]).decode("utf-8"), "plan.json")
        check_digest(plan)  # of an earlier version too
        if digest not in (None, plan["digest"]):
            raise ValueError("plan.json is not the plan whose digest the statement names")
        digest = plan["digest"]
    if APPROVALS not in there:
        raise ValueError("there are no signatures")
    own = {predicate.get(name) or "" for name in ("operator", "user")} - {""}
    when, signatures = _moment(predicate["started_at"]), read_plain(there[APPROVALS])
    valid, rejected = approvals(str(digest), signatures, signers, own=own, at=when)
    keys = predicate.get("approver_keys") or valid
    reasons = "; ".join(rejected) or "there is no signature of it"
    for name in named:
        if keys.get(name) != valid.get(name, ""):
            yield f"approvals: {shown(name, 60)} is named and did not approve this plan ({reasons})"


def _moment(time: str | None) -> str:
    """A time of a statement as ssh-keygen takes it; ValueError where it is none."""
    return f"{dt.datetime.fromisoformat(str(time)).astimezone(dt.UTC):%Y%m%d%H%M%S}Z"
