"""Who approved a plan: every way in which a signature does not count has a line of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from drainkit.errors import RefusedError
from drainkit.signing import approvals, required_approvals, sign_digest

DIGEST = "sha256:" + "a1" * 32


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A key for each of some people."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ann", "bob", "cyd", "eve"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    return {name: folder / name for name in ("ann", "bob", "cyd", "eve")}


def line(key: Path, identity: str, options: str = "") -> str:
    public = " ".join(key.with_suffix(".pub").read_text().split()[:2])
    return " ".join(part for part in (identity, options, public) if part) + "\n"


@pytest.fixture
def signers(keys: dict[str, Path]) -> bytes:
    """Ann, Bob and Cyd may approve; Eve may not."""
    return "".join(line(keys[n], f"{n}@example.com") for n in ("ann", "bob", "cyd")).encode()


def why_not(signatures: bytes, signers: bytes, operator: str = "op") -> str:
    """Why the only signature does not count."""
    found = approvals(DIGEST, signatures, signers, operator=operator)
    assert found.identities == ()
    (reason,) = found.rejected
    return reason


def test_different_people_are_counted(keys: dict[str, Path], signers: bytes) -> None:
    """Two signatures by two allowed keys are two approvals, in the order of the file."""
    signed = sign_digest(DIGEST, keys["bob"]) + sign_digest(DIGEST, keys["ann"])
    found = approvals(DIGEST, signed, signers, operator="op")
    assert found.identities == ("bob@example.com", "ann@example.com")
    assert found.rejected == ()


def test_each_signature_that_does_not_count_says_why(keys: dict[str, Path], signers: bytes) -> None:
    """A stranger's, the operator's, another plan's, another purpose's, one of an expired key, one
    by a key for other purposes: each has its own line."""
    ann = sign_digest(DIGEST, keys["ann"])
    assert "stranger" in why_not(sign_digest(DIGEST, keys["eve"]), signers)
    for operator in ("ann", "ANN@example.com", "ann@example.com"):
        assert "the operator's own" in why_not(ann, signers, operator)
    assert "not over this plan" in why_not(sign_digest(DIGEST[:-1] + "2", keys["ann"]), signers)
    command = ["ssh-keygen", "-Y", "sign", "-n", "drainkit", "-f", str(keys["ann"])]
    other = subprocess.run(command, input=f"{DIGEST}\n".encode(), capture_output=True, check=True)
    assert "not over this plan" in why_not(other.stdout, signers)
    expired = line(keys["ann"], "ann", 'valid-before="20200101"').encode()
    assert "time is over" in why_not(ann, expired)
    early = line(keys["ann"], "ann", 'valid-after="21000101"').encode()
    assert "not valid yet" in why_not(ann, early)
    for_git = line(keys["ann"], "ann", 'namespaces="git"').encode()
    assert "may not sign for this purpose" in why_not(ann, for_git)
    assert approvals(DIGEST, ann, expired, operator="op", at="20190101000000Z").identities == (
        "ann",
    )


def test_nobody_counts_twice(keys: dict[str, Path], signers: bytes) -> None:
    """A doubled signature, a second key of one person and a second name of one key count once; a
    key that is also the operator's counts not at all."""
    ann = sign_digest(DIGEST, keys["ann"])
    found = approvals(DIGEST, ann + ann, signers, operator="op")
    assert found.identities == ("ann@example.com",)
    assert "there twice" in found.rejected[0]
    two_keys = (line(keys["ann"], "ann") + line(keys["bob"], "ann")).encode()
    found = approvals(DIGEST, ann + sign_digest(DIGEST, keys["bob"]), two_keys, operator="op")
    assert found.identities == ("ann",)
    assert "a second one of ann" in found.rejected[0]
    two_names = (line(keys["ann"], "ann,other") + line(keys["ann"], "third")).encode()
    assert approvals(DIGEST, ann, two_names, operator="op").identities == ("ann",)
    assert "the operator's own" in why_not(ann, two_names, "other")


def test_too_few_are_refused(keys: dict[str, Path], signers: bytes, tmp_path: Path) -> None:
    """None, one of two, and a signers' file that is gone or has lost a name are refused."""
    file = tmp_path / "allowed"
    file.write_bytes(signers)
    ann, bob = (sign_digest(DIGEST, keys[name]) for name in ("ann", "bob"))
    assert len(required_approvals(DIGEST, ann + bob, file, 2, operator="op")) == 2
    for signed, words in ((b"", "has 0: there is no signature"),
                          (ann, "has 1: there is no further signature"),
                          (ann + ann, "there twice")):  # fmt: skip
        with pytest.raises(RefusedError, match=words):
            required_approvals(DIGEST, signed, file, 2, operator="op")
    file.write_text(line(keys["ann"], "ann@example.com"))
    with pytest.raises(RefusedError, match="stranger"):
        required_approvals(DIGEST, ann + bob, file, 2, operator="op")
    for broken in (tmp_path / "gone", tmp_path):
        with pytest.raises(RefusedError, match="cannot be read"):
            required_approvals(DIGEST, ann, broken, 1, operator="op")


@pytest.mark.parametrize("broken", [b"hello", b"-----BEGIN SSH SIGNATURE-----\nAAAA\n", b"\x00"])
def test_what_is_no_signature_is_refused(
    keys: dict[str, Path], signers: bytes, broken: bytes
) -> None:
    """A .sig file that holds anything else, or half a signature, is refused as a whole."""
    with pytest.raises(RefusedError, match="not an SSH signature"):
        approvals(DIGEST, sign_digest(DIGEST, keys["ann"]) + broken, signers, operator="op")
    block = b"-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----\n"
    assert "an unreadable key" in why_not(block, signers)
