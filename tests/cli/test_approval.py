"""A second pair of eyes: drainkit approve, and a live drain that needs it."""

from __future__ import annotations

import html
import json
import os
import pwd
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
from backlogs import GROUP, seed
from books import at, audit, everything, ledger_of
from conftest import ROOT, Cli, CliResult, one_line_error
from servers import Server

from drainkit.errors import RefusedError
from drainkit.signing import required_approvals

OPERATOR, ENV = ("--operator", "olga"), ("--env", "production")
DIGEST = f"sha256:{'5e' * 32}"
USER = pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A key for each person, and a certificate of Ann's key."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ann", "bob", "eve", "olga", "ca"):
        run("-q", "-t", "ed25519", "-N", "", "-f", folder / name)
    run("-q", "-s", folder / "ca", "-I", "x", "-n", "zoe", folder / "ann.pub")
    return {path.stem: path for path in folder.iterdir() if not path.suffix} | {
        "cert": folder / "ann-cert.pub"
    }


def run(*words: object, stdin: str = "") -> bytes:
    """What ssh-keygen says."""
    command = ["ssh-keygen", *map(str, words)]
    return subprocess.run(command, input=stdin.encode(), capture_output=True, check=True).stdout


def public(keys: dict[str, Path]) -> dict[str, str]:
    """The keys as a file of allowed signers has them."""
    lines = {name: key.with_suffix(".pub").read_text() for name, key in keys.items()}
    return {name: " ".join(line.split()[:2]) for name, line in lines.items()}


def signers(keys: dict[str, Path], *names: str, options: str = "") -> str:
    return "".join(f"{n}@example.com {options} {public(keys)[n]}\n" for n in names)


class Desk:
    """A stream, two plans of it, and an environment that needs two approvals."""

    def __init__(self, server: Server, stream: str, cli: Cli, keys: dict[str, Path]) -> None:
        self.server, self.stream, self.cli, self.keys = server, stream, cli, keys
        self.plan, self.sig = cli.cwd / "plan.json", cli.cwd / "plan.json.sig"
        self.allowed = cli.cwd / "conf" / "allowed"
        self.allowed.parent.mkdir()
        self.allowed.write_text(signers(keys, "ann", "bob", "olga"))
        (cli.cwd / "drainkit.toml").write_text(
            '[env.production.approval]\nallowed_signers = "conf/allowed"\nrequired = 2\n'
        )
        for name, most in (("plan.json", 9), ("other.json", 8)):
            cli.done("drain", "--plan", name, *at(server, stream), "--throttle", "none", *ENV,
                     "--max-events", most)  # fmt: skip

    def approve(self, *names: str, plan: str = "plan.json") -> str:
        """What the last of these persons is told."""
        every = [self.cli.done("approve", plan, "--sign-key", self.keys[name], "--yes").err
                 for name in names]  # fmt: skip
        return every[-1]

    def drain(self, *options: object, command: str = "drain", plan: str = "plan.json") -> CliResult:
        return self.cli(command, "--mode", "live", "--yes", "--json", *ENV, *OPERATOR,
                        "--plan", plan, *at(self.server, self.stream), *options)  # fmt: skip

    def refused(self, words: str, *options: str) -> None:
        before = everything(self.server)
        result = self.drain(*options)
        assert result.rc == 4, (result.out, result.err)
        assert words in one_line_error(result.err)
        assert everything(self.server) == before


@pytest.fixture
def desk(valkey: Server, stream: str, cli: Cli, keys: dict[str, Path]) -> Desk:
    seed(valkey, stream)
    return Desk(valkey, stream, cli, keys)


def test_the_plan_is_shown_and_signed(desk: Desk) -> None:
    """approve shows what it signs, and one file gathers everybody's signature, each once; not asked
    it signs nothing, nor with a key that is none, nor a plan that was edited. A plan that was sent
    without its decisions: send both."""
    shown, text = desk.approve("ann"), desk.plan.read_text()
    plan = json.loads(text)
    for words in (plan["digest"], desk.stream, GROUP, plan["boundary_id"], "9 (at", "production",
                  plan["audit_stream"], plan["server"]):  # fmt: skip
        assert words in shown
    desk.approve("bob")
    signed = desk.sig.read_bytes()
    assert signed.count(b"BEGIN SSH SIGNATURE") == 2
    for key, yes, rc, words in ((desk.keys["ann"], True, 4, "has signed this plan already"),
                                (desk.keys["eve"], False, 4, "this signs the plan: say --yes"),
                                ("nokey", True, 2, "is not a file")):  # fmt: skip
        said = desk.cli("approve", "plan.json", "--sign-key", key, *["--yes"] * yes)
        assert (said.rc, words in said.err.splitlines()[-1]) == (rc, True), said
    desk.plan.write_text(text.replace('"max_events": 9', '"max_events": 7'))
    assert desk.cli("approve", "plan.json", "--sign-key", desk.keys["eve"], "--yes").rc == 4
    assert desk.sig.read_bytes() == signed
    (desk.cli.cwd / "other.decisions.parquet").unlink()
    assert "cannot be read: send both files" in desk.drain(plan="other.json").err


def test_what_is_no_approval_drains_nothing(desk: Desk) -> None:
    """None, one of two, a stranger's, the operator's own (also that of the OS user behind
    --operator), another plan's, a doubled, a stripped one, a signers' file that lost a name or is
    gone: each is refused with its line, and the server is left as it was. Without a plan there is
    nothing to approve, which no variable lifts."""
    desk.refused("needs 2 approvals by others than the operator and has 0: there is no signature")
    for command in ("drain", "run"):
        words = (command, "--mode", "live", "--yes", *ENV, *OPERATOR, *at(desk.server, desk.stream))
        said = desk.cli(*words, env={"DRAINKIT_APPROVAL": "null"})
        assert said.rc == 4
        assert "there is no plan that others could have approved" in said.err
        assert "DRAINKIT_APPROVAL is not a setting; ignored" in said.err
    desk.approve("ann", "bob")
    two = desk.sig.read_bytes()
    half = two[: two.index(b"-----END") + len(b"-----END SSH SIGNATURE-----\n")]
    desk.approve("bob", plan="other.json")
    other = (desk.cli.cwd / "other.json.sig").read_bytes()
    for signed, words in (
        (half, "has 1: there is no further signature"),
        (half + half, "is a second one of ann@example.com"),
        (two[:-40], "holds something that is not an SSH signature"),
        (half + other, "of an unknown key is over something else"),
    ):
        desk.sig.write_bytes(signed)
        desk.refused(words)
    desk.sig.write_bytes(half)
    desk.approve("eve", "olga")
    desk.refused("is by a stranger: no allowed signer has this key; ")
    desk.refused("is the operator's own (olga@example.com)")
    desk.sig.write_bytes(two)
    desk.allowed.write_text(signers(desk.keys, "ann", "bob").replace("ann@", f"{USER}@"))
    desk.refused("the operator's own", "--operator", "clerk")
    desk.allowed.unlink()
    desk.refused("allowed_signers")


PERSONS = (
    ("olga", '# ours;;ann {ann};bob valid-before="20200101" {bob}', "may not sign this, or"),
    ("olga", 'ann {ann};bob valid-after="21000101" {bob}', "not at that time"),
    ("olga", 'ann {ann};bob namespaces="git" {bob}', "may not sign this, or"),
    ("ann", "ann@example.com {ann};bob {bob}", "the operator's own (ann@example.com)"),
    ("ANN@example.COM", "ann@Example.com {ann};bob {bob}", "the operator's own"),
    ("olga", "olga {ann};zoe {ann};bob {bob}", "the operator's own"),
    ("clerk", "bob {ann};Bob@example.com {bob}", "is a second one of"),
    ("clerk", "ann {ann};bob@x {bob};ann {bob}", "is a second one of"),
    ("clerk", "*@example.com {ann};bob {bob}", "line 1 of the allowed signers must name one"),
    ("clerk", "ann,bob {ann};bob {bob}", "line 1 of the allowed signers must name one person"),
    ("clerk", "ann {ann};ann cert-authority {ca}", "one plain key"),
    ("clerk", "ann {ann};ann ssh-ed25519-cert-v01@openssh.com AAAA", "one plain key"),
    # Ann's certificate, which is for zoe, signed beside her key
    ("cert", "ann {ann};zoe {ca}", "and has 1: "),
    ("cert", "ann {ann};zoe cert-authority {ca}", "one plain key"),
)


@pytest.mark.parametrize(("operator", "lines", "said"), PERSONS)
def test_persons_are_counted_not_names(
    keys: dict[str, Path], tmp_path: Path, operator: str, lines: str, said: str
) -> None:
    """Two signed (Ann, and Bob or a certificate of Ann's), and by the allowed signers they are one
    person, or one is the operator, or may not sign (now, or for this), or a line names more than a
    person and a plain key: refused with its line."""
    sign = ("-Y", "sign", "-n", "drainkit-approve", "-f")
    by = ("ann", "cert" if operator == "cert" else "bob")
    signed = b"".join(run(*sign, keys[name], stdin=f"{DIGEST}\n") for name in by)
    (tmp_path / "allowed").write_text(lines.format(**public(keys)).replace(";", "\n") + "\n")
    with pytest.raises(RefusedError, match=re.escape(said)):
        required_approvals(DIGEST, signed, tmp_path / "allowed", 2, own={operator})


def test_evidence_of_an_earlier_version_still_verifies(cli: Cli) -> None:
    """An approved run sealed by commit 65c9fb9 is well, approvers too, offline; its plan is of an
    earlier version, so it is not applied any more, in one line."""
    with tarfile.open(ROOT / "tests" / "evidence" / "data" / "65c9fb9.tar.xz") as packed:
        packed.extractall(cli.cwd, filter="data")
    cli.done("verify", "reports", "--allowed-signers", "allowed")
    (run,) = (cli.cwd / "reports").glob("*-live-*")
    assert "the plan is of version 2, not 3; make a new one" in cli.fails(4, "diff", run, run)


def test_the_evidence_holds_the_approvals(desk: Desk) -> None:
    """An honest approval by two, end to end: card, report, run.json and statement name environment,
    server, approvers with their keys and how many were required, the ledger who it was; verify
    confirms them offline, or says who did not approve."""
    desk.approve("ann", "bob")
    result = desk.drain("--allow-active-consumers", command="run")
    assert result.rc == 0, result.err
    folder = desk.cli.cwd / result.json()["evidence"]
    for name in ("plan.json.sig", "decisions.parquet"):
        assert (folder / name).read_bytes() == (desk.cli.cwd / name).read_bytes()
    keys = {f"{name}@example.com": run("-lf", desk.keys[name]).decode().split()[1]
            for name in ("ann", "bob")}  # fmt: skip
    known = {"operator": "olga", "approvers": [*keys], "approver_keys": keys,
             "environment": "production", "server": desk.server.url,
             "approvals_required": 2}  # fmt: skip
    for found in (json.loads((folder / "run.json").read_text()),
                  json.loads((folder / "statement.json").read_text())["predicate"]):  # fmt: skip
        assert {name: found[name] for name in known} == known
    assert len(audit(desk.server, desk.stream)) == 9
    start = ledger_of(desk.server, desk.stream)[0]
    assert (start["operator"], start["approvers"]) == ("olga", ",".join(keys))
    report = html.unescape((folder / "report.html").read_text())
    for text in (report, "".join(result.err.split("\n"))):
        for words in ("production", desk.server.url.partition("?")[0], *keys, "2 required"):
            assert words in text
        assert all(key in "".join(text.split()) for key in keys.values())
    verify = ("verify", folder, "--json", "--allowed-signers")
    desk.cli.done(*verify, desk.allowed)
    desk.allowed.write_text(signers(desk.keys, "bob"))
    bad = desk.cli(*verify, desk.allowed)
    (finding,) = bad.json()["findings"][folder.name]
    said = "ann@example.com is named and did not approve this plan"
    assert (bad.rc, said in finding) == (1, True)
    desk.allowed.write_text(signers(desk.keys, "ann", "bob", options='valid-before="20990101"'))
    desk.cli.done(*verify, desk.allowed)
