"""A second pair of eyes: drainkit approve, and a live drain that needs it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from books import GROUP, ask, at, audit, everything, seed
from conftest import ROOT, Cli, CliResult, Fill, one_line_error
from servers import Server

OPERATOR = ("--operator", "olga")
NAMES = ("ann", "bob", "eve", "olga")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A key for each person."""
    folder = tmp_path_factory.mktemp("keys")
    for name in NAMES:
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    return {name: folder / name for name in NAMES}


def signers(keys: dict[str, Path], *names: str, options: str = "") -> str:
    publics = {n: " ".join(keys[n].with_suffix(".pub").read_text().split()[:2]) for n in names}
    return "".join(f"{n}@example.com {options} {publics[n]}\n" for n in names)


class Desk:
    """A stream, two plans of it, and an environment that needs two approvals."""

    def __init__(self, server: Server, stream: str, cli: Cli, keys: dict[str, Path]) -> None:
        self.server, self.stream, self.cli, self.keys = server, stream, cli, keys
        self.allowed = cli.cwd / "conf" / "allowed"
        self.allowed.parent.mkdir()
        self.allowed.write_text(signers(keys, "ann", "bob", "olga"))
        (cli.cwd / "drainkit.toml").write_text(
            '[env.production.approval]\nallowed_signers = "conf/allowed"\nrequired = 2\n'
        )
        for name in ("plan.json", "other.json"):
            made = cli("drain", "--plan", name, *at(server, stream), "--throttle", "none",
                       "--max-events", 9 if name == "plan.json" else 8)  # fmt: skip
            assert made.rc == 0, made.err

    def approve(self, *names: str, plan: str = "plan.json") -> None:
        for name in names:
            done = self.cli("approve", plan, "--sign-key", self.keys[name], "--yes", "--json")
            assert done.rc == 0, done.err

    def drain(self, *options: object, command: str = "drain", env: str = "production") -> CliResult:
        return self.cli(command, "--mode", "live", "--yes", "--json", "--env", env, *OPERATOR,
                        "--plan", "plan.json", *at(self.server, self.stream), *options)  # fmt: skip

    def refused(self, words: str) -> None:
        before = everything(self.server)
        result = self.drain()
        assert result.rc == 4, (result.out, result.err)
        assert words in one_line_error(result.err)
        assert everything(self.server) == before


@pytest.fixture
def desk(valkey: Server, stream: str, fill: Fill, cli: Cli, keys: dict[str, Path]) -> Desk:
    seed(valkey, stream, fill)
    return Desk(valkey, stream, cli, keys)


def test_the_plan_is_shown_and_signed(desk: Desk) -> None:
    """approve shows what it signs, and one file gathers everybody's signature, each once."""
    first = desk.cli("approve", "plan.json", "--sign-key", desk.keys["ann"], "--yes")
    assert first.rc == 0, first.err
    plan = json.loads((desk.cli.cwd / "plan.json").read_text())
    for words in (plan["digest"], desk.stream, GROUP, plan["boundary_id"], "9 (at"):
        assert words in first.err
    again = desk.cli("approve", "plan.json", "--sign-key", desk.keys["ann"], "--yes")
    assert again.rc == 4
    assert "has signed this plan already" in one_line_error(again.err.splitlines()[-1] + "\n")
    desk.approve("bob")
    signed = (desk.cli.cwd / "plan.json.sig").read_bytes()
    assert signed.count(b"BEGIN SSH SIGNATURE") == 2
    unasked = desk.cli("approve", "plan.json", "--sign-key", desk.keys["eve"])
    assert unasked.rc == 4
    assert (desk.cli.cwd / "plan.json.sig").read_bytes() == signed
    missing = desk.cli("approve", "plan.json", "--sign-key", "nokey", "--yes")
    assert missing.rc == 2
    text = (desk.cli.cwd / "plan.json").read_text()
    (desk.cli.cwd / "plan.json").write_text(text.replace('"max_events": 9', '"max_events": 7'))
    edited = desk.cli("approve", "plan.json", "--sign-key", desk.keys["eve"], "--yes")
    assert edited.rc == 4


def test_two_approvals_let_it_drain(desk: Desk) -> None:
    """With two good signatures the plan is applied; operator and approvers stand in the result
    and in the ledger."""
    desk.approve("ann", "bob")
    result = desk.drain("--allow-active-consumers")
    assert result.rc == 0, result.err
    summary = result.json()
    assert summary["operator"] == "olga"
    assert summary["approvers"] == ["ann@example.com", "bob@example.com"]
    assert len(audit(desk.server, desk.stream)) == 9
    entries = ask(desk.server, "XRANGE", f"{desk.stream}.drain_runs", "-", "+")
    start = dict(zip(entries[0][1][::2], entries[0][1][1::2], strict=True))
    assert (start[b"operator"], start[b"approvers"]) == (
        b"olga", b"ann@example.com,bob@example.com",
    )  # fmt: skip


def test_what_is_no_approval_drains_nothing(desk: Desk) -> None:
    """None, one of two, a stranger's, the operator's own, another plan's, a doubled, a stripped
    one: each is refused with its line, and the server is left as it was."""
    sig = desk.cli.cwd / "plan.json.sig"
    desk.refused("needs 2 approvals by others than the operator and has 0: there is no signature")
    desk.approve("ann", "bob")
    two = sig.read_bytes()
    half = two[: two.index(b"-----END") + len(b"-----END SSH SIGNATURE-----\n")]
    sig.write_bytes(half)
    desk.refused("has 1: there is no further signature")
    sig.write_bytes(half + half)
    desk.refused("is there twice and counts once")
    sig.write_bytes(two[:-40])
    desk.refused("holds something that is not an SSH signature")
    sig.write_bytes(half)
    desk.approve("eve")
    desk.refused("is by a stranger")
    sig.write_bytes(half)
    desk.approve("olga")
    desk.refused("is the operator's own (olga@example.com)")
    desk.approve("bob", plan="other.json")
    sig.write_bytes(half + (desk.cli.cwd / "other.json.sig").read_bytes())
    desk.refused("is not over this plan's digest")


def test_the_signers_file_decides(desk: Desk) -> None:
    """A signers' file that lost a name, lets a key expire, or is gone: refused with its line."""
    desk.approve("ann", "bob")
    desk.allowed.write_text(signers(desk.keys, "ann", "eve"))
    desk.refused("is by a stranger")
    old = signers(desk.keys, "bob", options='valid-before="20200101"')
    desk.allowed.write_text(signers(desk.keys, "ann") + old)
    desk.refused("a key whose time is over")
    desk.allowed.write_text("nonsense\n")
    desk.refused("has 0")
    desk.allowed.unlink()
    desk.refused("allowed_signers")


def test_without_a_plan_there_is_nothing_to_approve(desk: Desk) -> None:
    """In such an environment drain and run refuse to make their own plan; no variable lifts that;
    another environment is not concerned."""
    before = everything(desk.server)
    for command in ("drain", "run"):
        result = desk.cli(command, "--mode", "live", "--yes", "--env", "production", *OPERATOR,
                          *at(desk.server, desk.stream),
                          env={"DRAINKIT_APPROVAL": "null"})  # fmt: skip
        assert result.rc == 4, result.err
        assert "there is no plan that others could have approved" in result.err
    assert everything(desk.server) == before
    (desk.cli.cwd / "drainkit.toml").write_text(
        (desk.cli.cwd / "drainkit.toml").read_text() + "[env.testnet]\n"
    )
    free = desk.drain("--allow-active-consumers", env="testnet")
    assert free.rc == 0, free.err


@pytest.mark.parametrize(
    "table",
    ["required = 2", 'allowed_signers = "a"\nrequired = 0', 'allowed_signers = "a"\nmore = 1',
     'allowed_signers = "a"\nrequired = "2"'],
)  # fmt: skip
def test_a_table_that_says_too_little_is_refused(cli: Cli, table: str) -> None:
    """A wrong [approval] is bad usage: it never means that nobody has to approve."""
    (cli.cwd / "drainkit.toml").write_text(f"[approval]\n{table}\n")
    result = cli("drain", "--redis-url", "redis://127.0.0.1:1/0")
    assert result.rc == 2
    assert "approval" in one_line_error(result.err)


def test_the_evidence_holds_the_approvals(desk: Desk) -> None:
    """run --plan keeps the signatures; run.json and the statement name operator and approvers,
    and verify confirms them offline, or says who did not approve."""
    desk.approve("ann", "bob")
    result = desk.drain("--allow-active-consumers", command="run")
    assert result.rc == 0, result.err
    folder = Path(result.json()["evidence"])
    folder = folder if folder.is_absolute() else desk.cli.cwd / folder
    signed = (desk.cli.cwd / "plan.json.sig").read_bytes()
    assert (folder / "plan.json.sig").read_bytes() == signed
    run = json.loads((folder / "run.json").read_text())
    predicate = json.loads((folder / "statement.json").read_text())["predicate"]
    for found in (run, predicate):
        assert found["operator"] == "olga"
        assert found["approvers"] == ["ann@example.com", "bob@example.com"]
    verify = ("verify", folder, "--allowed-signers")
    assert desk.cli(*verify, desk.allowed).rc == 0
    fewer = desk.cli.cwd / "fewer"
    fewer.write_text(signers(desk.keys, "bob"))
    bad = desk.cli(*verify, fewer, "--json")
    assert bad.rc == 1
    (finding,) = bad.json()["findings"][folder.name]
    assert "ann@example.com is named and did not approve this plan" in finding
    fewer.write_text(signers(desk.keys, "ann", "bob", options='valid-before="20990101"'))
    assert desk.cli(*verify, fewer).rc == 0


def test_a_notebook_by_hand_needs_them_too(desk: Desk, tmp_path: Path) -> None:
    """03 with a plan's digest in `approve` refuses a folder without signatures, and drains with
    them, under the environment that asks for them."""
    folder = tmp_path / "by-hand"
    folder.mkdir()
    made = desk.cli("drain", "--plan", folder / "plan.json", *at(desk.server, desk.stream),
                    "--throttle", "none")  # fmt: skip
    assert made.rc == 0, made.err
    digest = json.loads((folder / "plan.json").read_text())["digest"]

    def execute() -> subprocess.CompletedProcess[str]:
        import os
        import sys

        env = {**os.environ, "DRAINKIT_REDIS_URL": desk.server.url, "DRAINKIT_ENV": "production",
               "DRAINKIT_OPERATOR": "olga", "DRAINKIT_ALLOW_ACTIVE_CONSUMERS": "1"}  # fmt: skip
        command: list[Any] = [
            sys.executable, "-m", "papermill", ROOT / "notebooks" / "03_live_drain.ipynb",
            folder / "03.ipynb", "-r", "stream", desk.stream, "-r", "run_dir", folder,
            "-r", "approve", digest, "--no-progress-bar",
        ]  # fmt: skip
        return subprocess.run(
            [*map(str, command)], env=env, cwd=desk.cli.cwd, capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    before = everything(desk.server)
    refused = execute()
    assert refused.returncode != 0
    assert "there is no signature" in refused.stderr
    assert everything(desk.server) == before
    desk.approve("ann", "bob", plan=str(folder))
    assert execute().returncode == 0
    assert len(audit(desk.server, desk.stream)) == 200
