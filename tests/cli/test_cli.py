"""The command line: the contract's exit codes, in one clear line, and no password."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from backlogs import fill, seed
from books import ask, at, everything
from click.testing import CliRunner
from conftest import Cli, intent, one_line_error
from servers import Server

from drainkit.cli import desk, operations  # noqa: F401 - they add their commands
from drainkit.cli.program import program


@pytest.mark.parametrize(("command", "how"), [("status", signal.SIGINT), ("drain", signal.SIGTERM)])
def test_a_signal_while_waiting_for_a_server(cli: Cli, command: str, how: signal.Signals) -> None:
    """A program that waits for a server that never answers ends at once: one line, exit 130."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        process = cli.start(command, "--redis-url", f"redis://127.0.0.1:{mute.getsockname()[1]}/0")
        link, _ = mute.accept()
        process.send_signal(how)
        started = time.monotonic()
        run = cli.finish(process)
        link.close()
    assert run.rc == 130
    assert time.monotonic() - started < 5
    # click first ends the line on which a terminal shows ^C
    assert "interrupted" in one_line_error(run.err.removeprefix("\n"))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_program_starts(how: signal.Signals) -> None:
    """Ctrl-C in the first tenths of a second: one line, exit 130, no traceback of an import."""
    command = [sys.executable, "-X", "importtime", "-m", "drainkit", "--help"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, pipesize=4096) as process:
        assert process.stderr  # what does not fit into it waits until it is read
        while "|click" not in (line := process.stderr.readline()).replace(" ", ""):
            assert line
        process.send_signal(how)
        said = [line for line in process.stderr if not line.startswith("import time:")]
    assert process.returncode == 130
    assert one_line_error("".join(said)) == "drainkit: interrupted\n"


def test_live_needs_yes_without_a_terminal(valkey: Server, stream: str, cli: Cli) -> None:
    """Without a terminal to ask on and without --yes nothing is done: exit code 4, no folder. A dry
    run's plan is not written over a folder either: exit code 2."""
    seed(valkey, stream)
    before = everything(valkey)
    for folder in (".", "/"):
        assert "--plan" in cli.fails(2, "drain", *at(valkey, stream), "--plan", folder)
    for command in ("drain", "run"):
        assert "--yes" in cli.fails(4, command, "--mode", "live", *at(valkey, stream))
    assert everything(valkey) == before
    assert not (cli.cwd / "reports").exists()


@pytest.mark.parametrize("mode", ["dry-run", "live"])
def test_missing_and_mistyped_keys(server: Server, stream: str, cli: Cli, mode: str) -> None:
    """A missing stream, a missing group and a key of another type: exit code 4, nothing made."""
    drain = ("drain", "--mode", mode, "--yes", "--redis-url", server.url)
    assert "does not exist" in cli.fails(4, *drain, "--stream", stream)
    assert ask(server, "KEYS", "*") == []
    ask(server, "SET", "a-text", "x")
    assert "is a string" in cli.fails(4, *drain, "--stream", "a-text")
    fill(server, stream, [(1766602826755, intent())], group="another")
    assert "another" in cli.fails(4, *drain, "--stream", stream)
    before = everything(server)
    assert cli(*drain, "--stream", stream, "--consumer-group", "x").rc == 4
    assert everything(server) == before


def test_precedence_is_flag_environment_file_default(valkey: Server, stream: str, cli: Cli) -> None:
    """A flag beats the environment, that beats drainkit.toml, that beats the default; a DRAINKIT_
    variable that is no setting does nothing, and stderr says so."""
    seed(valkey, stream)
    (cli.cwd / "drainkit.toml").write_text(
        f'stream = "{stream}"\nredis_url = "{valkey.url}"\nmax_events = 7\n'
        '[env.testnet]\nmax_events = 9\nallowlist = ["BTCUSDT"]\n'
    )
    for options, env, read in (
        ((), {}, 7),
        (("--env", "testnet"), {}, 9),
        ((), {"DRAINKIT_MAX_EVENTS": "11"}, 11),
        (("--max-events", "13"), {"DRAINKIT_MAX_EVENTS": "11"}, 13),
        ((), {"DRAINKIT_ENV": "testnet"}, 9),
        ((), {"DRAINKIT_ALLOWLIST": "ETHUSDT"}, 7),
    ):
        run = cli("drain", "--json", *options, env=env)
        assert (run.json()["total_read"], run.err) == (read, "")
    run = cli.done("drain", "--json", env={"DRAINKIT_ALLOW_LIST": "ETHUSDT"})
    assert "DRAINKIT_ALLOW_LIST" in one_line_error(run.err)


def test_allowlists_from_a_file_and_from_a_redis_set(valkey: Server, stream: str, cli: Cli) -> None:
    """@file and redis:KEY name the same symbols, one with a # in it too; a missing or empty one is
    never "all"."""
    seed(valkey, stream)
    ask(valkey, "XADD", stream, "*", *sum(intent("BTC#PERP", 0.99).items(), ()))
    drain = ("drain", "--json", *at(valkey, stream), "--allowlist")
    (cli.cwd / "file").write_text("BTC#PERP # majors\n\n# more\nETHUSDT\t# others\n")
    ask(valkey, "SADD", "set", "BTC#PERP", "ETHUSDT")
    plain, *others = (cli(*drain, spec).json() for spec in
                      ("BTC#PERP,ETHUSDT", "@file", "redis:set"))  # fmt: skip
    for name in ("dropped_not_allowlisted", "drained_ok"):
        assert [other[name] for other in others] == [plain[name]] * 2
        assert 0 < plain[name] < 200
    ask(valkey, "SADD", "odd", b"BTCUSDT", b"\xff")
    (cli.cwd / "empty").write_text("# none yet\n")
    for spec, rc in (("redis:odd", 2), ("@empty", 2), ("redis:no-such-set", 4)):
        assert cli(*drain, spec).rc == rc


def test_status_counts_and_says_why(valkey: Server, stream: str, cli: Cli) -> None:
    """The counted backlog per scope is right where Redis's own lag is not, and is explained."""
    ids = seed(valkey, stream)
    ask(valkey, "XDEL", stream, ids[150], ids[160])
    found = cli("status", *at(valkey, stream), "--json").json()
    backlog = {"undelivered": 198, "pending": 0, "history": 100}
    assert (found["groups"][0]["backlog"], found["stream"]["boundary_id"]) == (backlog, ids[-1])
    text = cli("status", "--all", *at(valkey, stream), env={"DRAINKIT_CONSUMER_GROUP": "other"}).out
    assert "198 lie after the group's position" in text
    assert "no group is named other; drain --consumer-group takes another" in text


def test_help_is_complete(cli: Cli) -> None:
    """--help works for every command; the summary of none ends in dots. Without a command the
    program prints its help, line by line, and exits with 2."""
    listed = cli.done("--help").out.partition("Commands:\n")[2]
    commands = re.findall(r"(?m)^  (\S+)", listed)
    assert len(commands) == 20
    assert "..." not in listed
    for command in commands:
        said = CliRunner().invoke(program, [command, "--help"], prog_name="drainkit")
        assert (said.exit_code, f"drainkit {command} [" in said.output) == (0, True)
    alone = cli()
    assert (alone.rc, "\n  drain " in alone.err) == (2, True)
    assert alone.err.splitlines()[0] == "Usage: drainkit [OPTIONS] COMMAND [ARGS]..."


def test_a_drain_says_how_far_it_is(valkey: Server, stream: str, cli: Cli) -> None:
    """Without a terminal a live drain tells of each tenth on stderr, stdout stays one object.

    What another scope recorded is not counted again.
    """
    seed(valkey, stream, 300, delivered=100)
    command = ("drain", "--mode", "live", "--yes", "--json", "--max-events", "all",
               *at(valkey, stream))  # fmt: skip
    run = cli(*command, "--throttle", "400")
    assert run.json()["total_read"] == 200
    lines = [line for line in run.err.splitlines() if line.startswith("drained ")]
    assert 8 <= len(lines) <= 10
    assert lines[-1].startswith("drained 200 of 200, ")
    assert all("/s of 400, " in line and line.endswith(" passed") for line in lines)
    history = cli(*command, "--throttle", "none", "--scope", "history")
    assert history.json()["total_read"] == 100
    assert history.err.splitlines()[-1].startswith("drained 100 of 100, ")
