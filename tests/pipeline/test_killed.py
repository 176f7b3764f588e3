"""A `drainkit run` that is killed, or cannot write: its folder is true, and can be closed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from books import at, audit, pending, seed
from conftest import Cli, Fill, lacking
from servers import Server

from drainkit.errors import RefusedError
from drainkit.evidence.verify import verify
from drainkit.pipeline import ending
from drainkit.settings import build

LIVE = ("run", "--mode", "live", "--yes", "--json", "--max-events", "all", "--throttle")


def start(cli: Cli, server: Server, stream: str, throttle: object = 200) -> subprocess.Popen[str]:
    return cli.start(*LIVE, throttle, *at(server, stream))


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to `run` alone, as the kernel does it; its children end by themselves."""
    children = []
    with suppress(psutil.NoSuchProcess):  # it has ended just now
        children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, "a kernel outlives its run"


def live_run(cli: Cli) -> Path | None:
    return next(iter((cli.cwd / "reports").glob("*-live-*")), None)


def close(server: Server, folder: Path) -> dict[str, object]:
    return ending.close(build({"redis_url": server.url}), folder)


def findings(folder: Path, server: Server, stream: str) -> list[str]:
    found = verify(folder, server.url, streams=[stream])
    return [line for lines in found.values() for line in lines]


def check_closed(server: Server, stream: str, folder: Path) -> None:
    """Sealed, chained, in the ledger, and true; a second time is refused."""
    run = json.loads((folder / "run.json").read_text())
    records = [r for r in audit(server, stream) if r["run_id"] == folder.name]
    assert (run["run_id"], run["mode"], run["total_read"]) == (folder.name, "live", len(records))
    assert findings(folder.parent, server, stream) == []
    with pytest.raises(RefusedError, match="sealed already"):
        close(server, folder)


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
    closed = cli("run", "--close", folder, "--json", "--redis-url", valkey.url)
    assert closed.rc == 0, closed
    assert closed.json()["outcome"] == "interrupted"
    assert 0 < closed.json()["total_read"] == len(audit(valkey, stream))
    check_closed(valkey, stream, folder)
    assert folder.name not in cli("status", *at(valkey, stream)).out
    again = cli("run", "--mode", "live", "--yes", "--plan", folder, *at(valkey, stream))
    assert again.rc == 0, again.err
    assert len({r["original_id"] for r in audit(valkey, stream)}) == len(audit(valkey, stream))
    assert pending(valkey, stream) == 0
    assert findings(folder.parent, valkey, stream) == []


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
    if findings(folder.parent, valkey, stream):
        close(valkey, folder)
    check_closed(valkey, stream, folder)
    rest = cli("drain", *LIVE[1:], "none", *at(valkey, stream))
    assert rest.rc == 0, rest.err
    ids = [r["original_id"] for r in audit(valkey, stream)]
    assert len(ids) == len(set(ids)) == 600
    assert pending(valkey, stream) == 0


# ---------------------------------------------------------------- files that cannot be written


@pytest.fixture
def small_disk(cli: Cli) -> Iterator[Callable[[str], Path]]:
    """Mounts a tmpfs with these options as the reports folder, or changes it."""
    folder = cli.cwd / "reports"
    folder.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            lacking("right to mount a tmpfs")
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def told_the_truth(cli: Cli, process: subprocess.Popen[str], server: Server, stream: str) -> Path:
    """Exit code 1, books on stdout that fit the audit, one line that names the folder."""
    run = cli.finish(process)
    assert run.rc == 1, run
    assert run.json()["total_read"] == len(audit(server, stream))
    assert run.json()["exit_code"] == 1
    (error,) = [line for line in run.err.splitlines() if line.startswith("drainkit: ")]
    folder = Path(run.json()["evidence"])
    assert folder.name in error
    assert "run --close" in error
    return cli.cwd / folder


@pytest.mark.parametrize("kib", [100, 260])
def test_a_full_disk_does_not_hide_the_drain(
    valkey: Server, stream: str, fill: Fill, cli: Cli, small_disk: Callable[[str], Path], kib: int
) -> None:
    """No room for the notebooks, or only for them: the books are told, the folder closed later."""
    seed(valkey, stream, fill, 400)
    small_disk(f"size={kib}k")
    folder = told_the_truth(cli, start(cli, valkey, stream, "none"), valkey, stream)
    assert json.loads((folder / "run.json").read_text())["run_id"] == folder.name
    small_disk("remount,size=64m")
    assert close(valkey, folder)["total_read"] == len(audit(valkey, stream))
    check_closed(valkey, stream, folder)


@pytest.mark.parametrize("what", ["read-only", "renamed"])
def test_a_folder_that_goes_away_does_not_hide_the_drain(
    valkey: Server,
    stream: str,
    fill: Fill,
    cli: Cli,
    small_disk: Callable[[str], Path],
    what: str,
) -> None:
    """In the middle of the drain: the books are told all the same, the folder closed later."""
    seed(valkey, stream, fill, 400)
    reports = small_disk("size=64m")
    process = start(cli, valkey, stream, 100)
    while len(audit(valkey, stream)) < 20:
        time.sleep(0.05)
    made = live_run(cli)
    assert made is not None
    if what == "read-only":
        small_disk("remount,ro")
    else:
        made.rename(reports / "elsewhere")
    folder = told_the_truth(cli, process, valkey, stream)
    assert len(audit(valkey, stream)) == 300
    if what == "read-only":
        small_disk("remount,rw")
    else:
        (reports / "elsewhere").rename(folder)
    assert close(valkey, folder)["outcome"] == "done"
    check_closed(valkey, stream, folder)
