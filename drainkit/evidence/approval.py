"""Whether those whom a run names as approvers of its plan really signed it."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

from ..core.plan import check_digest, parse
from ..errors import DrainkitError
from ..files import file_sha256
from ..safe import one_line
from ..signing import approvals, read_signers
from .statement import STATEMENT, is_plain, read_statement

APPROVALS, DECISIONS = "plan.json.sig", "decisions.parquet"


def problems(run_dir: Path, allowed_signers: Path) -> list[str]:
    """One line for each approver of a live run without a valid signature of its plan's digest.

    What must have been valid when the run began may have expired since. A run that names no
    approver and has no signatures needed none.
    """
    try:
        run = _read(run_dir / "run.json")
        predicate = read_statement(run_dir / STATEMENT)["predicate"]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # verify_run names it
    named = run.get("approvers") or []
    told = [source.get("approver_keys") for source in (run, predicate)]
    if predicate.get("approvers", []) != named or told[0] != told[1]:
        return ["approvals: run.json and the statement name other approvers"]
    if not named and not predicate.get("approvals_required"):
        return []
    try:
        if not is_plain(run_dir / APPROVALS):
            raise ValueError("is missing or is not a plain file")
        began = dt.datetime.fromisoformat(str(run["started_at"])).astimezone(dt.UTC)
        plan = parse((run_dir / "plan.json").read_text(encoding="utf-8"), "plan.json")
        check_digest(plan)
        # an older plan's stands for what the decisions say, not for their bytes
        if plan["version"] > 2 and plan["decisions_sha256"] != file_sha256(run_dir / DECISIONS):
            raise ValueError(f"{DECISIONS} is not the plan's")
        keys = dict(told[0] or {})
        own = {str(run.get("operator") or ""), str(predicate.get("user") or "")} - {""}
        found = approvals(
            plan["digest"], (run_dir / APPROVALS).read_bytes(), read_signers(allowed_signers),
            own=own, at=f"{began:%Y%m%d%H%M%S}Z",
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, DrainkitError) as error:
        return [f"approvals: {APPROVALS} or plan.json: {one_line(str(error))}"]
    keys = keys or found.identities  # older evidence names none
    reasons = "; ".join(found.rejected) or "there is no signature of it"
    findings = [
        f"approvals: {one_line(str(name), 60)} is named and did not approve this plan ({reasons})"
        for name in named
        if name not in found.identities or keys.get(name) != found.identities[name]
    ]
    if len(found.identities) < (required := int(predicate.get("approvals_required") or 0)):
        findings.append(f"approvals: {required} were required, there are {len(found.identities)}")
    return findings


def _read(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found
