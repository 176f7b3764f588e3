"""A `drainkit run` that is killed, or cannot write: the folder tells the truth, and can be closed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from books import at, audit, pending, seed
from conftest import Cli, Fill, lacking
from servers import Server

LIVE = ("run", "--mode", "live", "--yes", "--json", "--max-events", "all", "--throttle")


def start(cli: Cli, server: Server, stream: str, throttle: object = 200) -> subprocess.Popen[str]:
    return cli.start(*LIVE, throttle, *at(server, stream))


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to `run` alone, as the kernel does it; its children end by themselves."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, "a kernel outlives its run"


def live_run(cli: Cli) -> Path | None:
    return next(iter((cli.cwd / "reports").glob("*-live-*")), None)


def close(cli: Cli, server: Server, folder: Path) -> dict[str, object]:
    run = cli("run", "--close", folder, "--json", "--redis-url", server.url)
    assert run.rc == 0, run
    found: dict[str, object] = run.json()
    return found


def check_closed(cli: Cli, server: Server, stream: str, folder: Path) -> None:
    """Sealed, chained, in the ledger, and true; a second time is refused."""
    run = json.loads((folder / "run.json").read_text())
    records = [r for r in audit(server, stream) if r["run_id"] == folder.name]
    assert (run["run_id"], run["mode"], run["total_read"]) == (folder.name, "live", len(records))
    verified = cli("verify", "reports", "--redis-url", server.url, "--stream", stream)
    assert verified.rc == 0, verified.out
    again = cli("run", "--close", folder, "--redis-url", server.url)
    assert again.rc == 4, again
    assert "sealed already" in again.err


def test_a_killed_run_is_named_closed_and_gone_on_with(
    valkey: Server, stream: str, fill: Fill, cli: Cli
) -> None:
    """In 03: run.json is the live run's, "interrupted"; verify says so; close; its plan goes on."""
    seed(valkey, stream, fill, 1500)
    process = start(cli, valkey, stream)
    while len(audit(valkey, stream)) < 20:
        time.sleep(0.05)
    folder = live_run(cli)
    assert folder is not None
    busy = cli("run", "--close", folder, "--redis-url", valkey.url)
    assert busy.rc == 4, busy
    assert "being worked on" in busy.err
    kill(process)
    run = json.loads((folder / "run.json").read_text())
    assert (run["run_id"], run["mode"], run["outcome"]) == (folder.name, "live", "interrupted")
    assert (run["exit_code"], run["total_read"]) == (130, 0)
    named = cli("verify", folder)
    assert named.rc == 1
    assert "interrupted, not sealed" in named.out
    status = cli("status", *at(valkey, stream))
    assert "Running" not in status.out
    assert folder.name in status.out
    closed = close(cli, valkey, folder)
    assert closed["outcome"] == "interrupted"
    assert 0 < int(str(closed["total_read"])) == len(audit(valkey, stream))
    check_closed(cli, valkey, stream, folder)
    assert folder.name not in cli("status", *at(valkey, stream)).out
    again = cli("run", "--mode", "live", "--yes", "--plan", folder, *at(valkey, stream))
    assert again.rc == 0, again.err
    assert len({r["original_id"] for r in audit(valkey, stream)}) == len(audit(valkey, stream))
    assert pending(valkey, stream) == 0
    assert cli("verify", "reports", "--redis-url", valkey.url).rc == 0


@pytest.mark.parametrize("seed_number", range(int(os.environ.get("DRAINKIT_KILLS", "10"))))
def test_killed_at_a_random_moment(
    valkey: Server, stream: str, fill: Fill, cli: Cli, seed_number: int
) -> None:
    """Before 02, in 03, while sealing: the folder is true, can be closed, nothing is doubled."""
    seed(valkey, stream, fill, 700)
    process = start(cli, valkey, stream, 400)
    chance = random.Random(seed_number)
    if seed_number % 3 == 0:  # while it seals
        while not list((cli.cwd / "reports").glob("*/after.json")) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 2))
    else:
        time.sleep(chance.uniform(0.5, 14))
    kill(process)
    folder = live_run(cli)
    if folder is None:
        assert not audit(valkey, stream)
        return
    records = audit(valkey, stream)
    run = folder / "run.json"
    if run.exists():
        told = json.loads(run.read_text())
        assert (told["run_id"], told["mode"]) == (folder.name, "live")
        assert told["outcome"] == "interrupted" or told["total_read"] == len(records)
    verified = cli("verify", "reports", "--redis-url", valkey.url, "--stream", stream)
    if verified.rc:
        assert folder.name in verified.out or "chain" in verified.out
        close(cli, valkey, folder)
    check_closed(cli, valkey, stream, folder)
    rest = cli(*LIVE, "none", *at(valkey, stream))
    assert rest.rc == 0, rest.err
    ids = [r["original_id"] for r in audit(valkey, stream)]
    assert len(ids) == len(set(ids)) == 600
    assert pending(valkey, stream) == 0
