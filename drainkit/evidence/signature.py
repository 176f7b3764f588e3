"""SSH signatures in evidence: of a statement, and of the plan that a run applied."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.plan import check_digest, parse
from ..errors import DrainkitError
from ..files import read_plain
from ..signing import OF_STATEMENT, approvals, check_signed, signer
from .statement import APPROVALS, SIGNATURE, STATEMENT, shown


def check_signature(
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


def approval_findings(run_dir: Path, predicate: Mapping[str, Any], signers: bytes) -> list[str]:
    """One line for each approver of a live run without a valid signature of its plan's digest.

    What must have been valid when the run began may have expired since. A run that names no
    approver and has no signatures needed none.
    """
    named = predicate.get("approvers") or []
    try:
        digest = _plan_digest(run_dir, predicate)
        try:
            signatures = read_plain(run_dir / APPROVALS)
        except FileNotFoundError:
            if not named:
                return []
            raise ValueError(f"{APPROVALS} is missing") from None
        found = approvals(
            digest, signatures, signers,
            own={str(predicate.get(name) or "") for name in ("operator", "user")} - {""},
            at=_moment(predicate.get("started_at")),
        )  # fmt: skip
    except (OSError, ValueError, OverflowError, DrainkitError) as error:
        return [f"approvals: {APPROVALS} or plan.json: {shown(error, 200)}"]
    reasons = "; ".join(found.rejected) or "there is no signature of it"
    findings = [
        f"approvals: {shown(name, 60)} is named and did not approve this plan ({reasons})"
        for name in named
        if name not in found.identities
        or (predicate.get("approver_keys") or found.identities).get(name) != found.identities[name]
    ]
    required = predicate.get("approvals_required") or 0
    if not isinstance(required, int) or len(found.identities) < required:
        findings.append(f"approvals: {required} were required, there are {len(found.identities)}")
    return findings


def _plan_digest(run_dir: Path, predicate: Mapping[str, Any]) -> str:
    """The digest of plan.json, which must be the statement's; of an archived run the latter."""
    said = predicate.get("plan_digest")
    try:
        text = read_plain(run_dir / "plan.json").decode("utf-8")
    except FileNotFoundError:
        return str(said)
    plan = parse(text, "plan.json")  # of an earlier version too
    check_digest(plan)
    digest = str(plan["digest"])
    if said not in (None, digest):
        raise ValueError("plan.json is not the plan whose digest the statement names")
    return digest


def _moment(time: Any) -> str:
    """A time of a statement as ssh-keygen takes it; ValueError where it is none."""
    return f"{dt.datetime.fromisoformat(str(time)).astimezone(dt.UTC):%Y%m%d%H%M%S}Z"
