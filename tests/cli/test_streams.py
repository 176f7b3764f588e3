"""What a drain's world may do to it: streams that take nothing, signals for all, few files."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from backlogs import seed
from books import ask, at, audit, live, only_run
from conftest import Cli
from servers import Server, wait_until

import drainkit
from drainkit import ACTIONS

DRAINKIT = shlex.join([sys.executable, "-m", "drainkit"])
INHERITED = """import os, sys; from drainkit.cli.terminal import safe_streams; safe_streams()
sys.exit(not all(map(os.get_inheritable, range(3))))"""


def shell(cwd: Path, script: str) -> int:
    """bash's exit code for a script that tests may not see the output of."""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script], cwd=cwd, timeout=120, check=False
    )
    return done.returncode


def events(server: Server, stream: str) -> list[str]:
    """What the ledger tells, by kind."""
    return [row[1][1].decode() for row in ask(server, "XRANGE", f"{stream}.drain_runs", "-", "+")]


@pytest.mark.parametrize(
    ("redirect", "rc"),
    [("2>/dev/full", 0), ("2> >(true)", 0), (">/dev/full", 1), ("| true", 1), (">&- 2>&- <&-", 1)],
)
def test_a_drain_whose_streams_take_nothing(
    valkey: Server, stream: str, tmp_path: Path, redirect: str, rc: int
) -> None:
    """Full, closed or gone: the drain goes on and ends its books; 1 if they were not printed. What
    it starts, as kernels, has these streams too: else a pipe of theirs would be in their place."""
    ids = seed(valkey, stream, 400)[100:]
    command = shlex.join(map(str, live(valkey, stream, "--throttle", 2000)))
    assert shell(tmp_path, f"{DRAINKIT} {command} {redirect}") == rc
    assert shell(tmp_path, f"{shlex.join([sys.executable, '-c', INHERITED])} {redirect}") == 0
    assert len(audit(valkey, stream)) == len(ids)
    assert events(valkey, stream) == ["start", "end"]


def test_the_crontab_with_a_full_disk_for_its_log(
    valkey: Server, stream: str, tmp_path: Path
) -> None:
    """Its run ends all of its books, and its folder is sealed; the exit code is 1."""
    seed(valkey, stream, 400)
    crontab = (Path(drainkit.__file__).parent / "examples" / "crontab").read_text()
    (line,) = re.findall(r"^\S+ \S+ \S+ \S+ \S+ drainkit (.* run .*)$", crontab, re.M)
    (tmp_path / "environment").write_text(
        f"DRAINKIT_REDIS_URL={shlex.quote(valkey.url)}\nDRAINKIT_STREAM={stream}\n"
    )
    (tmp_path / "drainkit.toml").write_text(
        "[limits]\nmax_events = 999\nmax_drained_ok = 999\nmax_drift = 999\n"
        "[env.production]\nthrottle = 'none'\n"
    )
    for theirs, ours in (
        ("/srv/drainkit", str(tmp_path)), ("/etc/drainkit/environment", "./environment"),
        ("/opt/drainkit/bin/drainkit", DRAINKIT), ("drain.log", "/dev/full"), ("1000", "100"),
    ):  # fmt: skip
        line = line.replace(theirs, ours)
    assert shell(tmp_path, line) == 1
    assert len(audit(valkey, stream)) == 300
    assert events(valkey, stream) == ["start", "end", "evidence"]
    assert (only_run(tmp_path) / "statement.json").exists()


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


def test_too_few_open_files(valkey: Server, stream: str, tmp_path: Path) -> None:
    """A run that could not open what it needs says so at once, and what to do."""
    seed(valkey, stream)
    command = shlex.join(["run", *at(valkey, stream)])
    assert shell(tmp_path, f"ulimit -n 14; {DRAINKIT} {command} 2>err") == 1
    assert re.fullmatch("drainkit: .*open files.*ulimit.*\n", (tmp_path / "err").read_text())
