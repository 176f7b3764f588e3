"""verify --allowed-signers: whether those whom a run names really signed its plan."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from plan_samples import plan_of, save_plan, table_of

from drainkit import files
from drainkit.evidence import seal as sealing
from drainkit.evidence.approval import problems
from drainkit.evidence.verify import verify_run
from drainkit.signing import sign

ANN = "ann@example.com"


def sign_digest(digest: str, key: Path) -> bytes:
    return sign(f"{digest}\n".encode(), key, "drainkit-approve")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """Ann's key."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "ann")]
    subprocess.run(command, check=True)
    return tmp_path / "ann"


@pytest.fixture
def allowed(tmp_path: Path, key: Path) -> Path:
    """Ann may approve until 2027."""
    public = " ".join(key.with_suffix(".pub").read_text().split()[:2])
    (tmp_path / "allowed").write_text(f'{ANN} valid-before="20270101" {public}\n')
    return tmp_path / "allowed"


def sealed(reports: Path, signatures: bytes | None, **run: Any) -> Path:
    folder = sealing.open_run(reports, "20251224T194958Z-live-0a1b2c")
    values: dict[str, Any] = {
        "mode": "live", "outcome": "done", "exit_code": 0, "operator": "olga",
        "approvers": [ANN], "started_at": "2026-01-01T00:00:00.5+00:00", **run,
    }  # fmt: skip
    files.write_json(folder / "run.json", values)
    save_plan(folder / "plan.json", plan_of(), [table_of()])
    if signatures is not None:
        files.write_bytes(folder / "plan.json.sig", signatures)
    sealing.seal(folder, run=values, parameters={}, server={"kind": "valkey", "version": "9.1.0"})
    assert verify_run(folder) == []
    return folder


def test_a_signed_plan_is_confirmed(tmp_path: Path, key: Path, allowed: Path) -> None:
    """What was valid when the run began is confirmed, offline; before that it was not valid."""
    signed = sign_digest(plan_of().digest, key)
    assert problems(sealed(tmp_path / "a", signed), allowed) == []
    late = sealed(tmp_path / "b", signed, started_at="2027-06-01T00:00:00+00:00")
    assert "time is over" in problems(late, allowed)[0]


@pytest.mark.parametrize("case", ["none", "other plan", "operator", "rubbish", "another name"])
def test_a_false_claim_is_named(tmp_path: Path, key: Path, allowed: Path, case: str) -> None:
    """Evidence sealed with approvers who did not sign this plan, or were its operator, has one
    finding that says so."""
    signed: bytes | None = sign_digest(plan_of().digest, key)
    run: dict[str, Any] = {}
    match case:
        case "none":
            signed = None
        case "other plan":
            signed = sign_digest(plan_of(throttle=1.0).digest, key)
        case "operator":
            run = {"operator": "ann"}
        case "rubbish":
            signed = b"\x1b[31mrubbish"
        case "another name":
            run = {"approvers": ["\x1b[31mbob"]}
    (finding,) = problems(sealed(tmp_path / "reports", signed, **run), allowed)
    assert finding.startswith("approvals: ")
    assert finding.isprintable()


def test_run_and_statement_must_name_the_same(tmp_path: Path, key: Path, allowed: Path) -> None:
    """Approvers edited into run.json alone do not pass for the statement's."""
    folder = sealed(tmp_path / "reports", None, approvers=[])
    assert problems(folder, allowed) == []
    run = json.loads((folder / "run.json").read_text())
    files.write_json(folder / "run.json", {**run, "approvers": [ANN]})
    files.write_bytes(folder / "plan.json.sig", sign_digest(plan_of().digest, key))
    assert "name other approvers" in problems(folder, allowed)[0]
