"""The command line: one clear line for bad usage, the contract's exit codes, no password."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import servers
from books import GROUP, ask, everything, seed
from conftest import Cli, Fill, intent
from servers import Server

SECRET = "s3cr3t-pa55"


def one_line_error(err: str) -> str:
    """The error, which must be one line for a person and no traceback."""
    assert "Traceback" not in err
    assert err.count("\n") == 1, err
    assert err.startswith("drainkit: ")
    return err


BAD_USAGE = [
    (("--throttle", "-1"), "--throttle"),
    (("--throttle", "0"), "--throttle"),
    (("--throttle", "fast"), "--throttle"),
    (("--throttle", "nan"), "--throttle"),
    (("--throttle", "inf"), "--throttle"),
    (("--max-events", "0"), "--max-events"),
    (("--max-events", "2.5"), "--max-events"),
    (("--max-events", "-3"), "--max-events"),
    (("--min-conf", "1.01"), "--min-conf"),
    (("--min-conf", "-0.1"), "--min-conf"),
    (("--min-conf", "60%"), "--min-conf"),
    (("--min-conf", "0,6"), "--min-conf"),
    (("--max-age-min", "0"), "--max-age-min"),
    (("--max-age-min", "-30"), "--max-age-min"),
    (("--max-age-min", "1_0"), "--max-age-min"),
    (("--min-idle-min", "-1"), "--min-idle-min"),
    (("--allowlist", ""), "--allowlist"),
    (("--allowlist", " , "), "--allowlist"),
    (("--allowlist", "BTC USDT"), "--allowlist"),
    (("--allowlist", "@no-such-file"), "--allowlist"),
    (("--allowlist", "redis:"), "--allowlist"),
    (("--scope", "everything"), "--scope"),
    (("--mode", "wet"), "--mode"),
    (("--as-of", "yesterday"), "--as-of"),
    (("--stream", ""), "--stream"),
    (("--consumer-group", ""), "--consumer-group"),
    (("--consumer-name", ""), "--consumer-name"),
    (("--env", "mars"), "--env"),
    (("--no-such-option",), "--no-such-option"),
    (("--redis-url", f"http://user:{SECRET}@localhost"), "--redis-url"),
    (("--redis-url", f"redis://user:{SECRET}@host:notaport/0"), "--redis-url"),
    (("--redis-url", ""), "--redis-url"),
]


@pytest.mark.parametrize(("options", "named"), BAD_USAGE)
def test_bad_usage_is_one_line_and_exit_code_2(
    cli: Cli, options: tuple[str, ...], named: str
) -> None:
    """Each wrong value is named with its flag, before anything is connected to."""
    run = cli("drain", "--redis-url", "redis://127.0.0.1:1/0", *options, secret=SECRET)
    assert run.rc == 2, run
    assert named in one_line_error(run.err)
    assert run.out == ""


def test_an_unreachable_server_is_exit_code_3(cli: Cli) -> None:
    """Nothing listens there: one line with the address, without the password."""
    port = servers.free_port()
    url = f"redis://user:{SECRET}@127.0.0.1:{port}/0"
    for command in ("status", "drain"):
        run = cli(command, env={"DRAINKIT_REDIS_URL": url}, secret=SECRET)
        assert run.rc == 3, run
        assert str(port) in one_line_error(run.err)


def test_a_password_with_spaces_is_not_shown_either(cli: Cli) -> None:
    """Not every character of a password is one that a URL may hold; none of it is printed."""
    url = f"redis://user:one {SECRET} two@127.0.0.1:{servers.free_port()}/0"
    run = cli("status", env={"DRAINKIT_REDIS_URL": url}, secret=(SECRET, "one", "two"))
    assert run.rc in (2, 3), run
    one_line_error(run.err)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ["status", "drain"])
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


def test_a_wrong_password_is_exit_code_3(valkey: Server, cli: Cli) -> None:
    """A refused login says so, without the password, also with --debug."""
    url = valkey.tcp_url.replace("redis://", f"redis://nobody:{SECRET}@")
    run = cli("status", "--redis-url", url, secret=SECRET)
    assert run.rc == 3
    assert "login" in one_line_error(run.err)
    assert cli("status", "--debug", "--redis-url", url, secret=SECRET).rc == 3


@pytest.mark.parametrize("mode", ["dry-run", "live"])
def test_missing_and_mistyped_keys_are_refused(
    server: Server, stream: str, fill: Fill, cli: Cli, mode: str
) -> None:
    """A missing stream, a missing group and a key of another type: exit code 4, nothing made."""
    drain = ("drain", "--mode", mode, "--yes", "--redis-url", server.url)
    run = cli(*drain, "--stream", stream)
    assert run.rc == 4
    assert "does not exist" in one_line_error(run.err)
    assert ask(server, "KEYS", "*") == []
    ask(server, "SET", "a-text", "x")
    run = cli(*drain, "--stream", "a-text")
    assert run.rc == 4
    assert "is a string" in one_line_error(run.err)
    fill(server, stream, [(1766602826755, intent())], group="another")
    run = cli(*drain, "--stream", stream)
    assert run.rc == 4
    assert "another" in one_line_error(run.err)
    before = everything(server)
    assert cli(*drain, "--stream", stream, "--consumer-group", "x").rc == 4
    assert everything(server) == before


def test_live_needs_yes_without_a_terminal(
    valkey: Server, stream: str, fill: Fill, cli: Cli
) -> None:
    """Without a terminal to ask on and without --yes nothing is done: exit code 4."""
    seed(valkey, stream, fill)
    before = everything(valkey)
    run = cli("drain", "--mode", "live", "--redis-url", valkey.url, "--stream", stream)
    assert run.rc == 4
    assert "--yes" in one_line_error(run.err)
    assert everything(valkey) == before


def test_a_replica_is_refused(valkey: Server, stream: str, fill: Fill, cli: Cli) -> None:
    """A live drain on a replica is refused; a dry run may read from it."""
    seed(valkey, stream, fill)
    ask(valkey, "REPLICAOF", "127.0.0.1", "1")
    try:
        where = ("--redis-url", valkey.url, "--stream", stream)
        run = cli("drain", "--mode", "live", "--yes", *where)
        assert run.rc == 4
        assert "replica" in one_line_error(run.err)
        assert cli("drain", *where).rc == 0
    finally:
        ask(valkey, "REPLICAOF", "NO", "ONE")


@pytest.mark.parametrize("key", ["audit", "runs"])
def test_side_keys_of_another_type_are_refused(
    valkey: Server, stream: str, fill: Fill, cli: Cli, key: str
) -> None:
    """An audit stream or ledger that is no stream stops the drain before anything is claimed."""
    seed(valkey, stream, fill)
    ask(valkey, "SET", f"{stream}.drain_{key}", "x")
    run = cli("drain", "--mode", "live", "--yes", "--redis-url", valkey.url, "--stream", stream)
    assert run.rc == 4
    assert f"drain_{key}" in one_line_error(run.err)
    assert ask(valkey, "XINFO", "CONSUMERS", stream, GROUP) == []


def test_precedence_is_flag_environment_file_default(
    valkey: Server, stream: str, fill: Fill, cli: Cli
) -> None:
    """A flag beats the environment, that beats drainkit.toml, that beats the default."""
    seed(valkey, stream, fill)
    (cli.cwd / "drainkit.toml").write_text(
        f'stream = "{stream}"\nredis_url = "{valkey.url}"\nmax_events = 7\n'
        '[env.testnet]\nmax_events = 9\nallowlist = ["BTCUSDT"]\n'
    )
    read = lambda *a, **k: cli("drain", "--json", *a, **k).json()["total_read"]  # noqa: E731 - short
    assert read() == 7
    assert read("--env", "testnet") == 9
    assert read(env={"DRAINKIT_MAX_EVENTS": "11"}) == 11
    assert read("--max-events", "13", env={"DRAINKIT_MAX_EVENTS": "11"}) == 13
    assert read(env={"DRAINKIT_ENV": "testnet"}) == 9


def test_a_misspelt_key_in_the_file_is_refused(cli: Cli) -> None:
    """drainkit.toml with an unknown key: exit code 2 and the key's name."""
    (cli.cwd / "drainkit.toml").write_text("trottle = 5\n")
    run = cli("drain")
    assert run.rc == 2
    assert "trottle" in one_line_error(run.err)


def test_allowlists_from_a_file_and_from_a_redis_set(
    server: Server, stream: str, fill: Fill, cli: Cli
) -> None:
    """@file and redis:KEY name the same symbols; a missing or empty one is never "all"."""
    seed(server, stream, fill)
    drain = ("drain", "--json", "--redis-url", server.url, "--stream", stream, "--allowlist")
    (cli.cwd / "symbols.txt").write_text("BTCUSDT # majors\n\n# more\nETHUSDT\n")
    ask(server, "SADD", "allowed", "BTCUSDT", "ETHUSDT")
    plain = cli(*drain, "BTCUSDT,ETHUSDT").json()
    assert plain["dropped_not_allowlisted"] > 0
    for spec in ("@symbols.txt", "redis:allowed"):
        other = cli(*drain, spec).json()
        assert other["dropped_not_allowlisted"] == plain["dropped_not_allowlisted"]
        assert other["drained_ok"] == plain["drained_ok"]
    (cli.cwd / "empty.txt").write_text("# none yet\n")
    assert cli(*drain, "@empty.txt").rc == 2
    assert cli(*drain, "redis:no-such-set").rc == 4


def test_status_counts_and_says_why(server: Server, stream: str, fill: Fill, cli: Cli) -> None:
    """The counted backlog per scope is right where Redis's own lag is not, and is explained."""
    ids = seed(server, stream, fill)
    ask(server, "XDEL", stream, ids[150], ids[160])
    where = ("status", "--redis-url", server.url, "--stream", stream)
    found = cli(*where, "--json").json()
    group = found["groups"][0]
    assert group["backlog"] == {"undelivered": 198, "pending": 0, "history": 100}
    assert found["stream"]["boundary_id"] == ids[-1]
    assert {"name", "length", "first_id", "last_id", "entries_added"} <= set(found["stream"])
    assert {"name", "position", "consumers", "pending", "entries_read", "lag_reported"} <= set(
        group
    )
    text = cli(*where).out
    assert "198 lie after the group's position" in text


def test_help_is_light_and_complete(cli: Cli) -> None:
    """--help works for every command, and the program's own imports neither pandas nor plotly."""
    top = cli("--help")
    assert top.rc == 0
    commands = [
        line.split()[0] for line in top.out.partition("Commands:\n")[2].splitlines() if line.strip()
    ]
    for command in commands:
        assert cli(command, "--help").rc == 0
    code = "import sys; sys.argv=['drainkit','--help']\ntry:\n import drainkit.cli as c; c.main()\n"
    code += (
        "except SystemExit: print(sorted({'pandas','plotly','redis','numpy'} & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.home()
    )
    assert shown.stdout.rstrip().endswith("[]")
