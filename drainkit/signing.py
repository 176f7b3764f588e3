"""SSH signatures by `ssh-keygen -Y`, and who approved a plan by them: a second pair of eyes.

An approval is a signature over the plan's digest line. Who may approve stands in a file of allowed
signers (ssh-keygen(1)), a person and a plain key a line. The contract, section 11.
"""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import DrainkitError, RefusedError, UsageError
from .files import scratch, write_bytes
from .safe import one_line

NAMESPACE = "drainkit-approve"  # a signature made for something else does not count
MAX_BYTES, MAX_SIGNATURES = 1 << 20, 100
_FINGERPRINT = re.compile(rb"SHA256:[A-Za-z0-9+/]{43}")
_BLOCK = re.compile(
    rb"-----BEGIN SSH SIGNATURE-----\n[A-Za-z0-9+/=\n]+-----END SSH SIGNATURE-----\n?"
)
_SIGNER = re.compile(
    r"(?P<name>[^\s\"'*?!,]+)\s+"
    r'(?:(?i:(?:namespaces|valid-after|valid-before)="[^"]*"(?:,(?=\S)|(?=\s)))+\s+)?'
    r"(?!\S*-cert-)(?:ssh|ecdsa|sk)-[\w@.-]+\s+(?P<key>[A-Za-z0-9+/]+={0,2})(?:\s.*)?",
    re.ASCII,
)


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
        raise DrainkitError(f"ssh-keygen refuses: {said}") from None


def sign(data: bytes, key: Path, namespace: str) -> bytes:
    """The signature of the data by this SSH key, as an armored block."""
    return ssh_keygen("-Y", "sign", "-n", namespace, "-f", str(key), stdin=data)


def signer(data: bytes, block: bytes, namespace: str) -> str:
    """The fingerprint of the key that signed the data; "" if the block is no signature of it."""
    with scratch(block) as signature:
        try:
            said = ssh_keygen(
                "-Y", "check-novalidate", "-n", namespace, "-s", f"/dev/fd/{signature}",
                stdin=data, descriptors=[signature],
            )  # fmt: skip
        except DrainkitError as error:
            if "not installed" in str(error):
                raise
            return ""
    found = _FINGERPRINT.search(said)
    return found[0].decode() if found else ""


@dataclass(frozen=True)
class Approvals:
    """Who approved a plan, and why the other signatures of its file do not count."""

    identities: dict[str, str]  # with the fingerprint of the key
    rejected: tuple[str, ...]  # one line each


def signatures_path(plan_path: Path) -> Path:
    """Where the signatures of a plan (file or evidence folder) stand: beside it."""
    plan_path = plan_path / "plan.json" if plan_path.is_dir() else plan_path
    return plan_path.with_name(f"{plan_path.name}.sig")


def load_signatures(plan_path: Path) -> bytes:
    """All signatures of a plan (file or evidence folder); empty without any."""
    path = signatures_path(plan_path)
    if not path.exists():
        return b""
    return _read(path, f"the approvals {path} cannot be read")


def read_signers(path: Path) -> bytes:
    """The file of allowed signers, read once for all signatures."""
    return _read(path, f"allowed_signers {path} cannot be read, so nobody can have approved")


def _read(path: Path, otherwise: str) -> bytes:
    try:
        if path.is_file() and path.stat().st_size <= MAX_BYTES:
            return path.read_bytes()
    except OSError:
        pass
    raise RefusedError(otherwise)


def add_signature(plan_path: Path, digest: str, key: Path) -> tuple[Path, list[str]]:
    """Sign a plan's digest with an SSH key; returns the .sig file and the keys that signed in it.

    Raises UsageError for a key that cannot sign, RefusedError if it signed this plan before.
    """
    if not key.is_file():
        raise UsageError(f"--sign-key {key} is not a file")
    before, line = load_signatures(plan_path), _line(digest)
    try:
        block = sign(line, key, NAMESPACE)
    except DrainkitError as error:
        raise UsageError(f"--sign-key {key} cannot sign: {error}") from None
    *keys, own = [signer(line, one, NAMESPACE) for one in [*_blocks(before), block]]
    if own in keys:
        raise RefusedError(f"{own} has signed this plan already; it counts once")
    path = signatures_path(plan_path)
    write_bytes(path, before + block)
    return path, [*filter(None, keys), own]


def _line(digest: str) -> bytes:
    return f"{digest}\n".encode()


def _blocks(signatures: bytes) -> list[bytes]:
    """The armored blocks of a .sig file; RefusedError where it holds anything else."""
    found = _BLOCK.findall(signatures)
    if _BLOCK.sub(b"", signatures).strip() or len(found) > MAX_SIGNATURES:
        raise RefusedError(
            "the approvals' .sig file holds something that is not an SSH signature; approve anew"
        )
    return found


def approvals(
    digest: str, signatures: bytes, signers: bytes, *, own: Collection[str], at: str | None = None
) -> Approvals:
    """Who of the allowed `signers` approved the plan of this digest.

    A person counts once, and not at all who has one of the names `own`. `at` (YYYYMMDDHHMMSSZ) is
    when the signatures must have been valid, else now. Raises RefusedError where a file cannot be
    read, or a line of the signers names more than one person and one plain key.
    """
    lines = _signers(signers)
    people = _people(lines, own)
    identities: dict[str, str] = {}
    rejected: list[str] = []
    counted: list[set[str]] = []
    for block in _blocks(signatures):
        key = signer(_line(digest), block, NAMESPACE)
        shown = f"the signature of {key}"
        names = [name for name, its_key in lines if its_key == key]
        person = next((one for one in people if key in one), set())
        if not key:
            rejected.append("a signature is not over this plan's digest")
        elif not names:
            rejected.append(f"{shown} is by a stranger: no allowed signer has this key")
        elif person & {name.casefold() for name in own}:
            rejected.append(f"{shown} is the operator's own ({one_line(names[0], 60)})")
        elif key in identities.values():
            rejected.append(f"{shown} is there twice and counts once")
        elif person in counted:
            rejected.append(f"{shown} is a second one of {one_line(names[0], 60)}")
        else:
            whys = {name: _why_not(digest, block, signers, name, at) for name in names}
            if valid := [name for name, why in whys.items() if not why]:
                identities[valid[0]] = key
                counted.append(person)
            else:
                rejected.append(f"{shown} {whys[names[0]]}")
    return Approvals(identities, tuple(rejected))


def _signers(signers: bytes) -> list[tuple[str, str]]:
    """Name and key (its fingerprint) of each line of a file of allowed signers."""
    found = []
    for number, raw in enumerate(signers.decode("utf-8", "replace").splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        try:
            name, key = _SIGNER.fullmatch(line).group("name", "key")  # type: ignore[union-attr]
            digest = hashlib.sha256(base64.b64decode(key, validate=True)).digest()
        except (AttributeError, ValueError):
            raise RefusedError(
                f"line {number} of the allowed signers must name one person and one plain key: no "
                "pattern, list, quotes or certificate authority"
            ) from None
        found.append((name, "SHA256:" + base64.b64encode(digest).decode().rstrip("=")))
    return found


def _people(lines: Collection[tuple[str, str]], own: Collection[str]) -> list[set[str]]:
    """Names (in small letters) and keys, by person.

    Two names are one person if they are equal without regard to case, if one is the local part of
    the other's e-mail address, or if they share a key.
    """
    short = {name.casefold() for name in [*own, *(name for name, _ in lines)] if "@" not in name}
    people: list[set[str]] = []
    for name, key in [*lines, *((name, "") for name in own)]:
        local = name.casefold().partition("@")[0]
        one = {name.casefold(), key, local if local in short else ""} - {""}
        same = [person for person in people if person & one]
        people = [person for person in people if not person & one] + [one.union(*same)]
    return people


def _why_not(digest: str, block: bytes, signers: bytes, name: str, at: str | None) -> str:
    """Why a signature is not this allowed signer's, by purpose and date; "" if it is."""
    when = ("-O", f"verify-time={at}") if at else ()
    with scratch(block) as signature, scratch(signers) as allowed:
        try:
            ssh_keygen(
                "-Y", "verify", *when, "-n", NAMESPACE, "-s", f"/dev/fd/{signature}",
                "-f", f"/dev/fd/{allowed}", "-I", name,
                stdin=_line(digest), descriptors=[signature, allowed],
            )  # fmt: skip
        except DrainkitError as error:
            said = str(error)
        else:
            return ""
    if "expired" in said:
        return "is by a key whose time is over, by the allowed signers"
    if "not yet valid" in said:
        return "is by a key that is not valid yet, by the allowed signers"
    return "may not sign for this purpose, by the allowed signers"


def required_approvals(
    digest: str, signatures: bytes, signers: Path, required: int, *, own: Collection[str]
) -> dict[str, str]:
    """Who approved, with their keys; RefusedError, with each reason, if they are too few."""
    found = approvals(digest, signatures, read_signers(signers), own=own)
    if len(found.identities) >= required:
        return found.identities
    reasons = found.rejected or (
        ("there is no further signature",) if found.identities else ("there is no signature",)
    )
    raise RefusedError(
        f"the plan needs {required} approval{'s' if required > 1 else ''} by others than the "
        f"operator and has {len(found.identities)}: {'; '.join(reasons)} (drainkit approve)"
    )
