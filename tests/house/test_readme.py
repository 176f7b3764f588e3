"""The README says what is so: its copy of the help, and its commands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

from books import audit, seed
from conftest import ROOT, Cli, Fill
from servers import Server

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return [re.sub(r"(?m)^ +", "", block).strip() for block in found]


def test_the_help_in_the_readme_is_the_programs(cli: Cli) -> None:
    """The reference is the output of `drainkit --help`, letter for letter."""
    shown = re.search(r"<!-- help -->\n+```text\n(.*?)```", README, re.DOTALL)
    assert shown, "README.md has no copy of the help after <!-- help -->"
    assert shown.group(1).strip() == cli("--help", env={"COLUMNS": "80"}).out.strip()


def test_every_command_of_the_readme_works(valkey: Server, fill: Fill, cli: Cli) -> None:
    """The commands of the step-by-step part run as they stand there, and drain the backlog."""
    seed(valkey, "quantum:stream:trade.intent", fill, 115)
    commands = [block for block in blocks("bash") if block.startswith("drainkit ")]
    assert len(commands) == 2
    for command in commands:
        run = cli(*shlex.split(command)[1:], env={"DRAINKIT_REDIS_URL": valkey.url})
        assert run.rc == 0, run.err
    assert len(audit(valkey, "quantum:stream:trade.intent")) == 15


def test_the_python_example_runs(valkey: Server, fill: Fill, cli: Cli) -> None:
    """The example of the library prints the books of a dry run."""
    seed(valkey, "quantum:stream:trade.intent", fill)
    env = {**os.environ, "DRAINKIT_REDIS_URL": valkey.url}
    shown = subprocess.run(
        [sys.executable, "-c", blocks_of("python")[0]],
        env=env, cwd=cli.cwd, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "total_read=200" in shown.stdout


def blocks_of(language: str) -> list[str]:
    """The fenced blocks of a language, indented as they are."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_toml_example_is_understood(cli: Cli) -> None:
    """The example of drainkit.toml has no key that drainkit refuses."""
    (cli.cwd / "drainkit.toml").write_text(blocks("toml")[0])
    run = cli("drain", "--env", "production", "--redis-url", "redis://127.0.0.1:1/0")
    assert run.rc == 3, run.err


def test_the_long_form_of_the_fault_suite_is_there() -> None:
    """`pytest -m chaos` finds the tests whose table the README shows."""

    assert "`pytest -m chaos`" in README
    command = [sys.executable, "-m", "pytest", "-m", "chaos", "--collect-only", "-q"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.count("tests/draining/test_chaos.py::") > 10


def test_the_benchmarks_are_there() -> None:
    """Each script that the README of the benchmarks names says what it does."""
    folder = ROOT / "tests" / "benchmarks"
    assert "`tests/benchmarks/`" in README
    text = (folder / "README.md").read_text(encoding="utf-8")
    scripts = re.findall(r"python tests/benchmarks/(\w+\.py)", text)
    assert len(scripts) == 4
    for script in scripts:
        command = [sys.executable, str(folder / script), "--help"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "--rounds" in shown
