"""SSH signatures (`ssh-keygen -Y`)."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ..errors import DrainkitError, UsageError
from ..files import write_bytes
from ..safe import one_line
from .statement import SIGNATURE, STATEMENT, is_plain, statement_bytes

_NAMESPACE = "drainkit"  # of signatures: one made for something else does not count


def signature_problem(run_dir: Path) -> list[str]:
    # without the signers' list nobody can say who signed, but a signature of other bytes shows
    if not is_plain(run_dir / SIGNATURE):
        return [f"added: {SIGNATURE} (no plain file)"]
    try:
        _ssh_keygen(
            "-Y", "check-novalidate", "-n", _NAMESPACE, "-s", str(run_dir / SIGNATURE),
            stdin=statement_bytes(run_dir),
        )  # fmt: skip
    except DrainkitError as error:
        return [f"changed: {SIGNATURE} does not fit {STATEMENT} ({error})"]
    return []


def check_sign_key(key: Path) -> None:
    """Refuse a key that could not sign in the end, before anything is drained."""
    if not key.is_file():
        raise UsageError(f"--sign-key {one_line(str(key))} is no file")
    try:
        _ssh_keygen("-Y", "sign", "-n", _NAMESPACE, "-f", str(key), stdin=b"")
    except DrainkitError as error:
        raise UsageError(f"--sign-key {one_line(str(key))} cannot sign: {error}") from None


def sign(run_dir: Path, key: Path) -> Path:
    """Sign the statement with an SSH key (`ssh-keygen -Y sign`); returns the signature's path."""
    signature = run_dir / SIGNATURE
    said = _ssh_keygen(
        "-Y", "sign", "-n", _NAMESPACE, "-f", str(key), stdin=statement_bytes(run_dir)
    )
    write_bytes(signature, said)
    return signature


def verify_signature(run_dir: Path, allowed_signers: Path, identity: str) -> None:
    """Check the statement's signature; raises DrainkitError if it is not `identity`'s."""
    _ssh_keygen(
        "-Y", "verify", "-n", _NAMESPACE, "-f", str(allowed_signers), "-I", identity,
        "-s", str(run_dir / SIGNATURE), stdin=statement_bytes(run_dir),
    )  # fmt: skip


def _ssh_keygen(*arguments: str, stdin: bytes) -> bytes:
    """What ssh-keygen answers on stdout; DrainkitError where it refuses."""
    command = ["ssh-keygen", *arguments]
    try:
        return subprocess.run(command, input=stdin, capture_output=True, check=True).stdout
    except FileNotFoundError:
        raise DrainkitError("ssh-keygen is not installed; it signs and checks statements") from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).decode("utf-8", "replace").strip()
        raise DrainkitError(f"ssh-keygen refuses: {one_line(said)}") from None
