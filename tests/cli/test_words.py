"""What the command line says: commands that can be pasted, errors that say what to write."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from books import at, seed
from conftest import Cli, one_line_error
from servers import Server

CASES: dict[str, tuple[tuple[str, ...], str]] = {
    "a mode is no flag": (("drain", "--live"), "write --mode live"),
    "nor is a dry run": (("run", "--dry-run"), "write --mode dry-run"),
    "a percentage as a share": (("drain", "--min-conf", "60"), "0.60 for 60 %"),
    "no number": (("drain", "--min-conf", "high"), "--min-conf must be a number"),
    "diff has no --plan": (("diff", "a.json", "b.json"), "a.json: there is no such file; name a"),
    "an allowlist of acl is a key": (("acl", "--allowlist", "BTCUSDT"), "takes redis:KEY"),
}


@pytest.mark.parametrize("case", CASES)
def test_an_error_says_what_to_write(cli: Cli, case: str) -> None:
    """One line, exit code 2, in the words of the command that was called."""
    words, said = CASES[case]
    done = cli(*words)
    assert done.rc == 2
    one_line_error(done.err)
    assert said in done.err
    assert "--plan" not in done.err


def test_a_plan_alone_says_what_it_lacks(valkey: Server, stream: str, cli: Cli) -> None:
    """A plan that was sent without its decisions: send both. To sign it changes no server."""
    seed(valkey, stream, 40, delivered=10)
    cli.done("drain", "--plan", "plan.json", *at(valkey, stream))
    said = cli("approve", "plan.json", "--sign-key", "key").err
    assert "this signs the plan: say --yes" in said
    next(cli.cwd.glob("*decisions*.parquet")).unlink()
    said = cli("drain", "--mode", "live", "--yes", "--plan", "plan.json", *at(valkey, stream)).err
    assert "cannot be read: send both files" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_lab_as_root_says_what_to_do(valkey: Server, stream: str, cli: Cli) -> None:
    """One line says what JupyterLab's own does not."""
    seed(valkey, stream, 20, delivered=10)
    told = cli("lab", "--no-browser", *at(valkey, stream), "--", "--help")
    assert "JupyterLab refuses root: be another user, or end the command with -- --allow-root" in (
        told.err
    )


def test_a_command_that_is_shown_can_be_pasted(tmp_path: Path) -> None:
    """On a narrow terminal a long command stays one line."""
    code = (
        "from drainkit.cli.terminal import tell\n"
        "tell('drainkit run ' + ' '.join(f'--option{n} value' for n in range(20)), 'a ' * 90)"
    )
    leader, follower = pty.openpty()
    subprocess.run([sys.executable, "-c", code], stdout=follower, check=True, cwd=tmp_path)
    lines = []
    while not lines or lines[-1].count("a ") < 5:
        lines += os.read(leader, 65536).decode().splitlines()
    assert sum("--option0 " in line and "--option19" in line for line in lines) == 1
