"""Signatures of runs, by the real ssh-keygen."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import lacking
from runs import all_findings, flip, make_run, names, rewrite, seal

from drainkit.errors import DrainkitError
from drainkit.evidence.signature import sign, verify_signature
from drainkit.evidence.statement import statement_digest
from drainkit.evidence.verify import verify_run


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with two SSH keys, and the file that allows the first to auditor@example.com."""
    if shutil.which("ssh-keygen") is None:
        lacking("ssh-keygen")
    for name in ("key", "other"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", tmp_path / name],
            check=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    public = (tmp_path / "key.pub").read_text()
    (tmp_path / "allowed").write_text(f"auditor@example.com {public}")
    return tmp_path


def test_a_signature_says_who_sealed(sealed: Path, reports: Path, keys: Path) -> None:
    """The real ssh-keygen signs and checks; the signature is no added file; it can be made anew."""
    for _ in range(2):
        assert sign(sealed, keys / "key") == sealed / "statement.json.sig"
        verify_signature(sealed, keys / "allowed", "auditor@example.com")
        assert all_findings(reports) == ""
    check = ["sha256sum", "--strict", "--quiet", "-c", "SHA256SUMS"]
    subprocess.run(check, cwd=sealed, check=True)


def test_a_signature_of_another_does_not_count(sealed: Path, keys: Path) -> None:
    """Another key, another name, no signature, a changed statement: each is refused."""

    def refused(identity: str = "auditor@example.com") -> None:
        with pytest.raises(DrainkitError):
            verify_signature(sealed, keys / "allowed", identity)

    refused()
    sign(sealed, keys / "other")
    refused()
    sign(sealed, keys / "key")
    refused("somebody@example.com")
    rewrite(sealed, lambda s: s["predicate"].update(outcome="other"))
    refused()


def test_a_signature_for_another_purpose_does_not_count(sealed: Path, keys: Path) -> None:
    """The same key's signature for git, or for files, says nothing about a run."""
    subprocess.run(
        ["ssh-keygen", "-q", "-Y", "sign", "-n", "git", "-f", keys / "key",
         sealed / "statement.json"],
        check=True, capture_output=True,
    )  # fmt: skip
    with pytest.raises(DrainkitError):
        verify_signature(sealed, keys / "allowed", "auditor@example.com")


def test_a_changed_signature_is_named_without_knowing_the_signer(sealed: Path, keys: Path) -> None:
    """verify needs no list of signers to see that a signature is of other bytes."""
    signature = sign(sealed, keys / "key")
    whole = signature.read_bytes()
    for at in (60, len(whole) // 2):
        flip(signature, at)
        assert any("statement.json.sig" in line for line in verify_run(sealed))
        signature.write_bytes(whole)
    assert verify_run(sealed) == []
    rewrite(sealed, lambda s: s["predicate"].update(outcome="other"))
    assert any("statement.json.sig" in line for line in verify_run(sealed))


def test_what_was_never_sealed_cannot_be_signed(reports: Path, keys: Path) -> None:
    """Signing, checking and the ledger's digest say so; a key that is none leaves no file."""
    folder = make_run(reports)
    for call in (
        lambda: sign(folder, keys / "key"),
        lambda: verify_signature(folder, keys / "allowed", "auditor@example.com"),
        lambda: statement_digest(folder),
    ):
        with pytest.raises(DrainkitError, match="never sealed"):
            call()
    seal(folder)
    with pytest.raises(DrainkitError, match="ssh-keygen"):
        sign(folder, keys / "allowed")
    assert "statement.json.sig" not in names(folder)
