"""A second pair of eyes: a plan is signed by others before a live run may apply it."""

from __future__ import annotations

from pathlib import Path

from ..core.plan import Plan
from ..errors import DrainkitError, RefusedError, UsageError
from ..files import write_bytes
from ..safe import one_line
from ..settings import Settings
from ..signing import blocks, fingerprint, required_approvals, sign_digest

MAX_BYTES = 1 << 20


def signatures_path(plan_path: Path) -> Path:
    """Where the signatures of a plan (file or evidence folder) stand: beside it."""
    plan_path = plan_path / "plan.json" if plan_path.is_dir() else plan_path
    return plan_path.with_name(f"{plan_path.name}.sig")


def load_signatures(plan_path: Path) -> bytes:
    """All signatures of a plan (file or evidence folder); empty without any."""
    path = signatures_path(plan_path)
    try:
        if not path.exists():
            return b""
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            raise OSError
        return path.read_bytes()
    except OSError:
        raise RefusedError(f"the approvals {one_line(str(path))} cannot be read") from None


def add_signature(plan_path: Path, plan: Plan, key: Path) -> tuple[Path, list[str]]:
    """Sign the plan with an SSH key; returns the .sig file and the keys that have signed in it.

    Raises UsageError for a key that cannot sign, RefusedError if it signed this file before.
    """
    if not key.is_file():
        raise UsageError(f"--sign-key {one_line(str(key))} is not a file")
    before = load_signatures(plan_path)
    try:
        block = sign_digest(plan.digest, key)
    except DrainkitError as error:
        raise UsageError(f"--sign-key {one_line(str(key))} cannot sign: {error}") from None
    keys = [fingerprint(signed) for signed in blocks(before)]
    if fingerprint(block) in keys:
        raise RefusedError(f"{fingerprint(block)} has signed this plan already; it counts once")
    path = signatures_path(plan_path)
    write_bytes(path, before + block)
    return path, [*keys, fingerprint(block)]


def approvers(settings: Settings, digest: str | None, signatures: bytes) -> tuple[str, ...]:
    """Who approved the plan that a live run applies; empty where nobody has to.

    Raises RefusedError if the settings ask for approvals and they are too few, or if there is no
    plan that somebody could have approved (`digest` None).
    """
    wanted = settings.approval
    if wanted is None:
        return ()
    if digest is None:
        raise RefusedError(
            "drainkit.toml asks for approvals, and there is no plan that others could have "
            "approved: make one (drain --plan FILE), let it be approved (drainkit approve FILE), "
            "then apply it with --plan FILE"
        )
    return required_approvals(
        digest, signatures, wanted.allowed_signers, wanted.required,
        operator=settings.operator,
    )  # fmt: skip
