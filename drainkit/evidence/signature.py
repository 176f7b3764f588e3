"""SSH signatures (`ssh-keygen -Y`)."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from ..errors import DrainkitError, UsageError
from ..files import read_plain, write_bytes
from ..safe import one_line
from ..signing import ssh_keygen
from .statement import SIGNATURE, STATEMENT, statement_bytes

_NAMESPACE = "drainkit"  # of signatures: one made for something else does not count


def signature_problems(run_dir: Path, signed_by: str | None) -> list[str]:
    """What is wrong with the signature; `signed_by` is the key's fingerprint in the statement.

    Without the signers' list nobody can say who signed, but a signature of other bytes shows, and
    so does one that is gone or was made with another key.
    """
    path = run_dir / SIGNATURE
    if not path.exists() and not path.is_symlink():
        if signed_by is None:
            return []
        return [f"missing: {SIGNATURE} (the statement says it was signed by {one_line(signed_by)})"]
    try:
        by = fingerprint(read_plain(path))
    except OSError as error:
        return [f"changed: {SIGNATURE} ({one_line(error.strerror or 'not readable')})"]
    if signed_by is not None and by != signed_by:
        return [f"changed: {SIGNATURE} is not by {one_line(signed_by)}, as the statement says"]
    try:
        ssh_keygen(
            "-Y", "check-novalidate", "-n", _NAMESPACE, "-s", str(path),
            stdin=statement_bytes(run_dir),
        )  # fmt: skip
    except DrainkitError as error:
        return [f"changed: {SIGNATURE} does not fit {STATEMENT} ({error})"]
    return []


def fingerprint(signature: bytes) -> str:
    """The fingerprint of the key that an SSH signature names, as ssh-keygen prints it; or ""."""
    try:
        blob = base64.b64decode(b"".join(signature.strip().splitlines()[1:-1]), validate=True)
    except ValueError:
        return ""
    # PROTOCOL.sshsig: "SSHSIG", a version of 4 bytes, then the key after its length
    length = int.from_bytes(blob[10:14])
    digest = hashlib.sha256(blob[14 : 14 + length]).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def check_sign_key(key: Path) -> None:
    """Refuse a key that could not sign in the end, before anything is drained."""
    if not key.is_file():
        raise UsageError(f"--sign-key {one_line(str(key))} is not a file")
    try:
        ssh_keygen("-Y", "sign", "-n", _NAMESPACE, "-f", str(key), stdin=b"")
    except DrainkitError as error:
        raise UsageError(f"--sign-key {one_line(str(key))} cannot sign: {error}") from None


def sign(run_dir: Path, key: Path) -> Path:
    """Sign the statement with an SSH key (`ssh-keygen -Y sign`); returns the signature's path."""
    signature = run_dir / SIGNATURE
    write_bytes(signature, signed(statement_bytes(run_dir), key))
    return signature


def signed(data: bytes, key: Path) -> bytes:
    """The SSH signature of `data`."""
    return ssh_keygen("-Y", "sign", "-n", _NAMESPACE, "-f", str(key), stdin=data)


def verify_signature(run_dir: Path, allowed_signers: Path, identity: str) -> None:
    """Check the statement's signature; raises DrainkitError if it is not `identity`'s."""
    statement = statement_bytes(run_dir)
    try:
        read_plain(run_dir / SIGNATURE)
    except OSError as error:
        reason = one_line(error.strerror or "not readable")
        raise DrainkitError(f"{SIGNATURE}: {reason}") from None
    ssh_keygen(
        "-Y", "verify", "-n", _NAMESPACE, "-f", str(allowed_signers), "-I", identity,
        "-s", str(run_dir / SIGNATURE), stdin=statement,
    )  # fmt: skip
