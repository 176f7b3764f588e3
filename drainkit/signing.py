"""SSH signatures by `ssh-keygen -Y`, and who approved a plan by them.

An approval is a signature over the plan's digest line. Who may approve stands in a file of
allowed signers (ssh-keygen(1), ALLOWED SIGNERS), with identities and, if wanted, dates.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import subprocess
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from .errors import DrainkitError, RefusedError
from .files import scratch
from .safe import one_line

APPROVAL = "drainkit-approve"  # namespace: a signature made for something else does not count
MAX_SIGNATURES = 100
_BLOCK = re.compile(
    rb"-----BEGIN SSH SIGNATURE-----\n([A-Za-z0-9+/=\n]+)-----END SSH SIGNATURE-----\n?"
)


@dataclass(frozen=True)
class Approvals:
    """Who approved a plan, and why the other signatures of its file do not count."""

    identities: tuple[str, ...]
    rejected: tuple[str, ...]  # one line each


def ssh_keygen(*arguments: str, stdin: bytes, descriptors: Sequence[int] = ()) -> bytes:
    """What ssh-keygen answers on stdout; DrainkitError where it refuses."""
    command = ["ssh-keygen", *arguments]
    try:
        return subprocess.run(
            command, input=stdin, capture_output=True, check=True, pass_fds=descriptors
        ).stdout
    except FileNotFoundError:
        raise DrainkitError("ssh-keygen is not installed; it makes and checks signatures") from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).decode("utf-8", "replace").strip()
        raise DrainkitError(f"ssh-keygen refuses: {one_line(said)}") from None


def digest_line(digest: str) -> bytes:
    """What an approval signs."""
    return f"{digest}\n".encode()


def sign_digest(digest: str, key: Path) -> bytes:
    """The approval of a plan's digest by this SSH key, as an armored block."""
    return ssh_keygen(
        "-Y", "sign", "-n", APPROVAL, "-f", str(key), stdin=digest_line(digest)
    )  # fmt: skip


def blocks(signatures: bytes) -> list[bytes]:
    """The armored blocks of a .sig file; RefusedError where it holds anything else."""
    found = [match.group() for match in _BLOCK.finditer(signatures)]
    if _BLOCK.sub(b"", signatures).strip() or len(found) > MAX_SIGNATURES:
        raise RefusedError(
            "the approvals' .sig file holds something that is not an SSH signature; approve anew"
        )
    return found


def fingerprint(block: bytes) -> str:
    """The key that made a signature, as ssh-keygen shows it; "" where it cannot be read."""
    match = _BLOCK.fullmatch(block)
    try:
        raw = base64.b64decode(match[1].replace(b"\n", b""), validate=True) if match else b""
    except binascii.Error:
        return ""
    # PROTOCOL.sshsig: the magic, a version, then the public key with its length before it
    length = int.from_bytes(raw[10:14], "big")
    key = raw[14 : 14 + length]
    if raw[:6] != b"SSHSIG" or not key or len(key) < length:
        return ""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


def read_signers(path: Path) -> bytes:
    """The file of allowed signers, read once for all signatures."""
    try:
        if not path.is_file():
            raise OSError
        return path.read_bytes()
    except OSError:
        raise RefusedError(
            f"allowed_signers {one_line(str(path))} cannot be read, so nobody can have approved"
        ) from None


def approvals(
    digest: str, signatures: bytes, signers: bytes, *, operator: str, at: str | None = None
) -> Approvals:
    """Who of the allowed `signers` approved the plan of this digest.

    One key counts once, and so does one identity; a key that is the operator's does not count under
    any of its names. `at` (YYYYMMDDHHMMSSZ) is when the signatures must have been valid, else now.
    Raises RefusedError where `signatures` cannot be read.
    """
    identities: dict[str, str] = {}  # identity by key
    rejected: list[str] = []
    for block in blocks(signatures):
        key = fingerprint(block)
        shown = f"the signature of {key or 'an unreadable key'}"
        if key in identities:
            rejected.append(f"{shown} is there twice and counts once")
            continue
        try:
            names = _names(digest, block, signers, at)
        except DrainkitError as error:
            rejected.append(f"{shown} {error}")
            continue
        own = [name for name in names if is_same_person(name, operator)]
        if own:
            rejected.append(f"{shown} is the operator's own ({one_line(own[0], 60)})")
        elif names[0] in identities.values():
            rejected.append(f"{shown} is a second one of {one_line(names[0], 60)}")
        else:
            identities[key] = names[0]
    return Approvals(tuple(identities.values()), tuple(rejected))


def is_same_person(identity: str, operator: str) -> bool:
    """Whether an identity is the operator: the OS user `ann` is also `ann@example.com`."""
    a, b = identity.casefold(), operator.casefold()
    return a == b or ("@" not in b and a.partition("@")[0] == b)


def _names(digest: str, block: bytes, signers: bytes, at: str | None) -> list[str]:
    """The identities whose signature this is; DrainkitError that says why it is nobody's."""
    line = digest_line(digest)
    when = ("-O", f"verify-time={at}") if at else ()
    with ExitStack() as open_files:
        signature, allowed = (open_files.enter_context(scratch(d)) for d in (block, signers))
        fds = (signature, allowed)

        def ask(action: str, *arguments: str, stdin: bytes = b"") -> bytes:
            return ssh_keygen(
                "-Y", action, *when, "-s", f"/dev/fd/{signature}", *arguments,
                stdin=stdin, descriptors=fds,
            )  # fmt: skip

        try:
            ask("check-novalidate", "-n", APPROVAL, stdin=line)
        except DrainkitError as error:
            if "not installed" in str(error):
                raise
            raise DrainkitError("is not over this plan's digest") from None
        try:
            found = ask("find-principals", "-f", f"/dev/fd/{allowed}")
        except DrainkitError as error:
            raise DrainkitError(_why_unknown(str(error))) from None
        names: list[str] = []
        for name in found.decode("utf-8", "replace").splitlines():
            try:
                ask("verify", "-n", APPROVAL, "-f", f"/dev/fd/{allowed}", "-I", name, stdin=line)
            except DrainkitError:
                continue
            names.append(name)
    if not names:
        raise DrainkitError("may not sign for this purpose, by the allowed signers")
    return names


def _why_unknown(said: str) -> str:
    if "expired" in said:
        return "is by a key whose time is over, by the allowed signers"
    if "not yet valid" in said:
        return "is by a key that is not valid yet, by the allowed signers"
    return "is by a stranger: no allowed signer has this key"


def required_approvals(
    digest: str, signatures: bytes, signers: Path, required: int, *, operator: str
) -> tuple[str, ...]:
    """The identities that approved; RefusedError, with each reason, if they are too few."""
    found = approvals(digest, signatures, read_signers(signers), operator=operator)
    if len(found.identities) >= required:
        return found.identities
    reasons: Collection[str] = found.rejected or (
        ("there is no further signature",) if found.identities else ("there is no signature",)
    )
    raise RefusedError(
        f"the plan needs {required} approval{'s' if required > 1 else ''} by others than the "
        f"operator and has {len(found.identities)}: {'; '.join(reasons)} (drainkit approve)"
    )
