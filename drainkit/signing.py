"""SSH signatures by `ssh-keygen -Y`, and who approved a plan by them: a second pair of eyes.

An approval is a signature over the plan's digest line. Who may approve stands in a file of allowed
signers (ssh-keygen(1)), a person and a plain key a line. The contract, section 11.
"""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path

from .errors import RefusedError, UsageError
from .files import read_plain, scratch, write_bytes
from .safe import one_line

# what a signature is for; one made for something else does not count
OF_PLAN, OF_STATEMENT = "drainkit-approve", "drainkit"
MAX_SIGNATURES = 100
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


def ssh_keygen(*arguments: str | bytes, stdin: bytes = b"") -> tuple[bytes, str]:
    """What ssh-keygen answers on stdout, and why it refuses, if it does.

    Arguments of bytes are handed to it as files.
    """
    with ExitStack() as files:
        parts = [a if isinstance(a, str) else files.enter_context(scratch(a)) for a in arguments]
        command = ["ssh-keygen", *(a if isinstance(a, str) else f"/dev/fd/{a}" for a in parts)]
        given = [a for a in parts if isinstance(a, int)]
        try:
            done = subprocess.run(
                command, input=stdin, capture_output=True, check=False, pass_fds=given
            )
        except FileNotFoundError:
            raise UsageError("ssh-keygen, which makes and checks signatures, is missing") from None
    said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
    return (b"", f"ssh-keygen refuses: {said}") if done.returncode else (done.stdout, "")


def sign(data: bytes, key: Path, namespace: str) -> bytes:
    """The signature of the data by this SSH key, armored; UsageError for a key that cannot."""
    if not key.is_file():
        raise UsageError(f"--sign-key {key} is not a file")
    block, refusal = ssh_keygen("-Y", "sign", "-n", namespace, "-f", str(key), stdin=data)
    if refusal:
        raise UsageError(f"--sign-key {key} cannot sign: {refusal}")
    return block


def signer(data: bytes, block: bytes, namespace: str) -> str:
    """The fingerprint of the key that signed the data; "" if the block is no signature of it."""
    said, _ = ssh_keygen("-Y", "check-novalidate", "-n", namespace, "-s", block, stdin=data)
    found = _FINGERPRINT.search(said)
    return found[0].decode() if found else ""


def signatures_path(plan_path: Path) -> Path:
    """Where the signatures of a plan (file or evidence folder) stand: beside it."""
    plan_path = plan_path / "plan.json" if plan_path.is_dir() else plan_path
    return plan_path.with_name(f"{plan_path.name}.sig")


def load_signatures(plan_path: Path) -> bytes:
    """All signatures of a plan (file or evidence folder); empty without any."""
    path = signatures_path(plan_path)
    return _read(path, f"the approvals {path} cannot be read") if path.exists() else b""


def _read(path: Path, otherwise: str) -> bytes:
    try:
        return read_plain(path.resolve())  # a file that says who may approve can be a link
    except OSError:
        raise RefusedError(otherwise) from None


def add_signature(plan_path: Path, digest: str, key: Path) -> tuple[Path, list[str]]:
    """Sign a plan's digest with an SSH key; returns the .sig file and the keys that signed in it.

    Raises UsageError for a key that cannot sign, RefusedError if it signed this plan before.
    """
    before, block = load_signatures(plan_path), sign(f"{digest}\n".encode(), key, OF_PLAN)
    *keys, own = keys_of(digest, before + block)
    if own in keys:
        raise RefusedError(f"{own} has signed this plan already; it counts once")
    path = signatures_path(plan_path)
    write_bytes(path, before + block)
    return path, [*filter(None, keys), own]


def keys_of(digest: str, signatures: bytes) -> list[str]:
    """The key of each signature; "" of one that is not over the plan's digest."""
    return [signer(f"{digest}\n".encode(), one, OF_PLAN) for one in _blocks(signatures)]


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
) -> tuple[dict[str, str], list[str]]:
    """Who of the allowed `signers` approved the plan of this digest, each with the fingerprint of
    the key; and one line for each signature that does not count.

    A person counts once, and not at all who has one of the names `own`. `at` (YYYYMMDDHHMMSSZ) is
    when the signatures must have been valid, else now. Raises RefusedError where a file cannot be
    read, or a line of the signers names more than one person and one plain key.
    """
    line, operators = f"{digest}\n".encode(), {name.casefold() for name in own}
    people = _people(_signers(signers), own)
    identities: dict[str, str] = {}
    rejected: list[str] = []
    for block in _blocks(signatures):
        key, name, why = signed_by(line, block, signers, OF_PLAN, at)
        person = next((one for one in people if key in one), set())
        if person & operators:
            why = f"is the operator's own ({one_line(name, 60)})"
        elif person & {*identities.values()}:
            why = f"is a second one of {one_line(name, 60)}"
        if why:
            rejected.append(f"the signature of {key or 'an unknown key'} {why}")
        else:
            identities[name] = key
    return identities, rejected


def signed_by(
    data: bytes, block: bytes, signers: bytes | None, namespace: str, at: str | None = None
) -> tuple[str, str, str]:
    """The fingerprint of the key that signed the data, whose it is, and why it does not count.

    Each is "" where there is none: no signature of this data, no allowed signer, no reason. Without
    `signers` every key counts.
    """
    if not (key := signer(data, block, namespace)) or signers is None:
        return key, "", "" if key else "is over something else"
    why = "is by a stranger: no allowed signer has this key"
    names = [name for name, its_key in _signers(signers) if its_key == key]
    given = ("-n", namespace, "-s", block, "-f", signers, *([f"-Overify-time={at}"] if at else ()))
    for name in names:
        _, said = ssh_keygen("-Y", "verify", "-I", name, *given, stdin=data)
        if not said:
            return key, name, ""
        why = "may not sign this, or not at that time, by the allowed signers"
    return key, names[0] if names else "", why


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


def required_approvals(
    digest: str, signatures: bytes, signers: Path, required: int, *, own: Collection[str]
) -> dict[str, str]:
    """Who approved, with their keys; RefusedError, with each reason, if they are too few."""
    allowed = _read(signers, f"allowed_signers {signers} cannot be read, so nobody can approve")
    named, rejected = approvals(digest, signatures, allowed, own=own)
    if len(named) >= required:
        return named
    reasons = rejected or [f"there is no {'further ' if named else ''}signature"]
    raise RefusedError(
        f"the plan needs {required} approval{'s' if required > 1 else ''} by others than the "
        f"operator and has {len(named)}: {'; '.join(reasons)} (drainkit approve)"
    )
