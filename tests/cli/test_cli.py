"""The command line: the contract's exit codes, in one clear line, and no password; and what its
world may do to it: streams that take nothing, signals for all, few files.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from backlogs import GROUP, fill, now_ms, seed
from books import ask, at, audit, everything, ledger_of, live
from click.testing import CliRunner
from conftest import Cli, intent, one_line_error
from servers import Server, wait_until

from drainkit.cli import desk, operations, program  # noqa: F401 - they add their commands
from drainkit.core.policy import ACTIONS


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
def test_missing_and_mistyped_keys(valkey: Server, stream: str, cli: Cli, mode: str) -> None:
    """A missing stream, a missing group and a key of another type: exit code 4, nothing made."""
    drain = ("drain", "--mode", mode, "--yes", "--redis-url", valkey.url)
    assert "does not exist" in cli.fails(4, *drain, "--stream", stream)
    assert ask(valkey, "KEYS", "*") == []
    ask(valkey, "SET", "a-text", "x")
    assert "is a string" in cli.fails(4, *drain, "--stream", "a-text")
    fill(valkey, stream, [(1766602826755, intent())], group="another")
    assert "another" in cli.fails(4, *drain, "--stream", stream)
    before = everything(valkey)
    assert cli(*drain, "--stream", stream, "--consumer-group", "x").rc == 4
    assert everything(valkey) == before


def test_precedence_is_flag_environment_file_default(valkey: Server, stream: str, cli: Cli) -> None:
    """A flag beats the environment, that beats drainkit.toml, that beats the default; a DRAINKIT_
    variable that is no setting does nothing, and stderr says so."""
    seed(valkey, stream)
    (cli.cwd / "drainkit.toml").write_text(
        f'stream = "{stream}"\nredis_url = "{valkey.url}"\nmax_events = 7\n'
        "[env.testnet]\nmax_events = 9\n"
    )
    for options, env, read in (
        ((), {}, 7),
        (("--env", "testnet"), {}, 9),
        ((), {"DRAINKIT_MAX_EVENTS": "11"}, 11),
        (("--max-events", "13"), {"DRAINKIT_MAX_EVENTS": "11"}, 13),
        ((), {"DRAINKIT_ENV": "testnet"}, 9),
    ):
        run = cli("drain", "--json", *options, env=env)
        assert (run.json()["total_read"], run.err) == (read, "")
    run = cli.done("drain", "--json", env={"DRAINKIT_ALLOW_LIST": "ETHUSDT"})
    assert "DRAINKIT_ALLOW_LIST" in one_line_error(run.err)


def test_an_allowlist_is_never_more_than_it_says(valkey: Server, stream: str, cli: Cli) -> None:
    """A symbol may have a # in it, a line of a file a comment; a missing or empty list, or one that
    is no text, is never "all"."""
    now = now_ms(valkey)
    entries = [(now + n, intent(symbol)) for n, symbol in enumerate(("A#B", "B", "C"))]
    fill(valkey, stream, entries, group=GROUP)
    drain = ("drain", "--json", *at(valkey, stream), "--allowlist")
    (cli.cwd / "file").write_text("A#B # majors\n\n# more\nB\t# others\n")
    assert cli(*drain, "@file").json()["dropped_not_allowlisted"] == 1
    ask(valkey, "SADD", "odd", b"BTCUSDT", b"\xff")
    (cli.cwd / "empty").write_text("# none yet\n")
    for spec, rc in (("redis:odd", 2), ("@empty", 2), ("redis:no-such-set", 4)):
        assert cli(*drain, spec).rc == rc


def test_help_is_complete(cli: Cli) -> None:
    """--help works for every command; the summary of none ends in dots. Without a command the
    program prints its help, line by line, and exits with 2."""
    listed = cli.done("--help").out.partition("Commands:\n")[2]
    commands = re.findall(r"(?m)^  (\S+)", listed)
    assert len(commands) == 19
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


DRAINKIT = shlex.join([sys.executable, "-m", "drainkit"])
INHERITED = """import os, sys; from drainkit.cli.terminal import safe_streams; safe_streams()
sys.exit(not all(map(os.get_inheritable, range(3))))"""

MET = """import sys; from drainkit.cli import terminal
class Met(terminal.Outlet):
    def write(self, data):
        super().write(data)
        raise KeyboardInterrupt
terminal.Outlet = Met
terminal.safe_streams()
try: print("one object")
except KeyboardInterrupt: pass"""


def shell(cwd: Path, script: str) -> int:
    """bash's exit code for a script that tests may not see the output of."""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script], cwd=cwd, timeout=120, check=False
    )
    return done.returncode


@pytest.mark.parametrize(
    ("redirect", "rc"),
    [("2>/dev/full", 0), ("2> >(true)", 0), (">/dev/full", 1), ("| true", 1), (">&- 2>&- <&-", 1)],
)
def test_a_drain_whose_streams_take_nothing(
    valkey: Server, stream: str, tmp_path: Path, redirect: str, rc: int
) -> None:
    """Full, closed or gone: the drain goes on and ends its books; 1 if they were not printed. What
    it starts, as kernels, has these streams too: else a pipe of theirs would be in their place. A
    status that nobody can watch ends."""
    ids = seed(valkey, stream, 400)[100:]
    command = shlex.join(map(str, live(valkey, stream, "--throttle", 2000)))
    assert shell(tmp_path, f"{DRAINKIT} {command} {redirect}") == rc
    assert shell(tmp_path, f"{shlex.join([sys.executable, '-c', INHERITED])} {redirect}") == 0
    assert len(audit(valkey, stream)) == len(ids)
    assert [entry["event"] for entry in ledger_of(valkey, stream)] == ["start", "end"]
    if rc:
        watch = shlex.join(map(str, ("status", "--watch", 1, *at(valkey, stream))))
        assert shell(tmp_path, f"{DRAINKIT} {watch} {redirect}") == 1


def test_what_a_signal_meets_is_printed_once() -> None:
    """A signal that comes while the result is printed does not have it printed again."""
    command = [sys.executable, "-c", MET]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "one object\n", done.stderr


def test_the_demo_shows_every_action_and_balances_without_readers_too(cli: Cli) -> None:
    """`drainkit demo` whose readers have left ends within 60 s and leaves its evidence (the exit
    code is 1, its run's 0): every action occurs, nothing stays pending."""
    demo, started = cli.start("demo"), time.monotonic()
    for stream in (demo.stdout, demo.stderr):
        assert stream is not None
        stream.close()
    assert demo.wait(120) == 1
    assert time.monotonic() - started < 60
    (folder,) = (path.parent for path in (cli.cwd / "demo-reports").glob("*/statement.json"))
    summary = json.loads((folder / "run.json").read_text())
    assert all(summary[action] > 0 for action in ACTIONS)
    assert summary["total_read"] == sum(summary[action] for action in ACTIONS)
    for name in ("exit_code", "pending_own", "remaining", "errors"):
        assert summary[name] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_of_a_run_while_a_kernel_starts(
    valkey: Server, stream: str, tmp_path: Path, number: int
) -> None:
    """Whoever else gets it: exit code 130, and no process prints a traceback."""
    seed(valkey, stream, 400)
    command = [*shlex.split(DRAINKIT), "run", "--mode", "live", "--yes", *at(valkey, stream)]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    run = psutil.Process(process.pid)
    wait_until("its kernels' parent starts", lambda: len(run.children()) > 0, timeout_sec=60)
    time.sleep(0.2)
    for one in (*run.children(recursive=True), run):
        one.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert audit(valkey, stream) == []
