"""A `drainkit run` that is killed, or cannot write: its folder is true, and can be closed."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from backlogs import seed
from books import at, audit, ledger_of, pending, wait_for
from conftest import Cli, lacking
from faults import COMMIT, Clock
from proxy import Proxy
from runs import keygen
from servers import Server

from drainkit import files
from drainkit.errors import RefusedError
from drainkit.evidence import seal as sealing
from drainkit.evidence.verify import verify
from drainkit.pipeline.folder import close as close_run
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


def live_run(cli: Cli) -> Path:
    """The live run's folder; one that is not there, without any."""
    return next(iter((cli.cwd / "reports").glob("*-live-*")), cli.cwd / "none")


def close(server: Server, folder: Path) -> dict[str, object]:
    return close_run(build({"redis_url": server.url}), folder)


def findings(folder: Path, server: Server, stream: str) -> list[str]:
    return verify(folder, server.url, streams=[stream]).bad


def check_closed(server: Server, stream: str, folder: Path) -> None:
    """Sealed, chained, in the ledger, and true; a second time is refused."""
    run = json.loads((folder / "run.json").read_text())
    records = [r for r in audit(server, stream) if r["run_id"] == folder.name]
    assert (run["run_id"], run["mode"], run["total_read"]) == (folder.name, "live", len(records))
    assert findings(folder.parent, server, stream) == []
    with pytest.raises(RefusedError, match="sealed already"):
        close(server, folder)


def test_a_killed_run_is_named_and_closed(valkey: Server, stream: str, cli: Cli) -> None:
    """In 03: run.json is the live run's, "interrupted"; verify says so, and names it where it is
    gone; close; its plan goes on."""
    seed(valkey, stream, 1500)
    process = start(cli, valkey, stream)
    wait_for(valkey, stream, 20)
    folder = live_run(cli)
    assert "being worked on" in cli.fails(4, "run", "--close", folder, "--redis-url", valkey.url)
    kill(process)
    run = json.loads((folder / "run.json").read_text())
    assert (run["run_id"], run["mode"], run["outcome"]) == (folder.name, "live", "interrupted")
    assert (run["exit_code"], run["total_read"]) == (130, 0)
    named = cli("verify", folder)
    assert named.rc == 1
    assert "interrupted, not sealed" in named.out
    assert folder.name in cli("status", *at(valkey, stream)).out
    folder.rename(cli.cwd / "away")
    gone = cli("verify", folder.parent, *at(valkey, stream))
    assert (gone.rc, f"{folder.name} is gone" in gone.out) == (1, True), gone
    (cli.cwd / "away").rename(folder)
    closed = cli.done("run", "--close", folder, "--json", "--redis-url", valkey.url)
    assert closed.json()["outcome"] == "interrupted"
    assert 0 < closed.json()["total_read"] == len(audit(valkey, stream))
    check_closed(valkey, stream, folder)
    assert folder.name not in cli("status", *at(valkey, stream)).out
    cli.done("drain", "--mode", "live", "--yes", "--plan", folder, *at(valkey, stream))
    assert len({r["original_id"] for r in audit(valkey, stream)}) == len(audit(valkey, stream))
    assert pending(valkey, stream) == 0
    assert findings(folder.parent, valkey, stream) == []


def test_a_clock_that_went_back_under_a_run(
    start_server: Callable[..., Server], start_proxy: Callable[[Server], Proxy], stream: str,
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Its records are earlier than its run id: killed, its plan goes on, and it is closed with
    them; that others drained the rest is nothing against them."""
    clock = Clock(tmp_path, monkeypatch)
    server = start_server("valkey")
    ids = seed(server, stream, 120, delivered=0)
    proxy = start_proxy(server)
    proxy.arm("delay_request", match=COMMIT, delay_sec=1)
    where = ("--redis-url", proxy.url, "--stream", stream)
    plan = ("--plan", cli.cwd / "plan.json")
    cli.done("drain", *plan, "--max-events", "all", "--throttle", "60", *where)
    process = cli.start("run", "--mode", "live", "--yes", *plan, *where)
    proxy.wait_fired(60)
    clock.step(-30)
    wait_for(server, stream, 20)
    kill(process)
    folder = live_run(cli)
    cli.done("drain", "--mode", "live", "--yes", *plan, *where)
    closed = cli.done("run", "--close", folder, "--json", "--redis-url", proxy.url).json()
    own = [r for r in audit(server, stream) if r["run_id"] == folder.name]
    assert (20 <= closed["total_read"] == len(own) < 120, closed["remaining"]) == (True, 0)
    said = {v["claim"]: v["verdict"] for v in json.loads((folder / "verdicts.json").read_text())}
    assert said["Each read entry was audited once"] == "yes"
    assert [r["original_id"] for r in audit(server, stream)] == ids


@pytest.mark.parametrize("seed_number", range(int(os.environ.get("DRAINKIT_KILLS", "3"))))
def test_killed_at_a_random_moment(valkey: Server, stream: str, cli: Cli, seed_number: int) -> None:
    """Before 02, in 03, while sealing: the folder is true, can be closed, nothing is doubled."""
    seed(valkey, stream, 700)
    process = start(cli, valkey, stream, 400)
    chance = random.Random(seed_number)
    if seed_number % 3 == 0:  # while it seals
        while not list((cli.cwd / "reports").glob("*/after.json")) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 2))
    else:
        with suppress(subprocess.TimeoutExpired):  # it may have ended before
            process.wait(chance.uniform(0.5, 8))
    kill(process)
    folder, records = live_run(cli), audit(valkey, stream)
    if not folder.exists():
        assert not records
        return
    if (folder / "run.json").exists():
        told = json.loads((folder / "run.json").read_text())
        assert (told["run_id"], told["mode"]) == (folder.name, "live")
        assert told["outcome"] == "interrupted" or told["total_read"] == len(records)
    if not ledger_of(valkey, stream):
        with pytest.raises(RefusedError, match="no start"):
            close(valkey, folder)
    else:
        if findings(folder.parent, valkey, stream):
            close(valkey, folder)
        check_closed(valkey, stream, folder)
    cli.done("drain", *LIVE[1:], "none", *at(valkey, stream))
    ids = [r["original_id"] for r in audit(valkey, stream)]
    assert len(ids) == len(set(ids)) == 600
    assert pending(valkey, stream) == 0


# ---------------------------------------------------------------- what closing believes


FORGED = {
    "mode": "live", "scope": "undelivered", "outcome": "done", "exit_code": 0, "total_read": 5000,
    "drained_ok": 5000, "operator": "mallory", "approvers": ["eve"], "plan_digest": "sha256:0",
    "boundary_id": "9-9", "started_at": "2026-01-01T00:00:00+00:00", "remaining": 0,
    "finished_at": "2026-01-01T00:00:00+00:00", "audit_records": 5000, "error": "none at all",
    "templates": [{"name": "x", "sha256": "0", "packaged": True}],
}  # fmt: skip


def test_closing_believes_ledger_and_audit_only(valkey: Server, stream: str, cli: Cli) -> None:
    """A run.json that tells of 5,000 drained, another operator, approvers, and another server's
    URL: what is sealed (books, operator, approvers, the plan and its environment) is the ledger's,
    on the server that was named, and verify confirms it. A folder that the forger sealed, or with
    another plan, is refused."""
    public = keygen(cli.cwd / "ann")
    (cli.cwd / "allowed").write_text(f"ann@example.com {public}\n")
    (cli.cwd / "drainkit.toml").write_text('[env.test.approval]\nallowed_signers = "allowed"\n')
    seed(valkey, stream, 90, delivered=10)
    env = ("--env", "test", *at(valkey, stream))
    for name, throttle in (("one", "none"), ("other", 9)):
        (cli.cwd / name).mkdir()
        cli.done("drain", "--plan", f"{name}/plan.json", *env, "--throttle", throttle)
        cli.done("approve", f"{name}/plan.json", "--sign-key", "ann", "--yes")
    drained = cli.done("drain", "--mode", "live", "--yes", "--json", "--operator", "olga", "--plan",
                       "one/plan.json", *env).json()  # fmt: skip
    folder = files.make_folder(cli.cwd / "reports" / drained["run_id"])
    where = {"redis_url": "redis://127.0.0.1:1/0", "stream": stream}
    forged = FORGED | {"run_id": folder.name, "stream": stream, "parameters": where}
    files.write_json(folder / "run.json", forged)
    sealing.seal(folder, run=forged, parameters=where, server={})
    close_it = ("run", "--close", folder, "--redis-url", valkey.url)
    assert "than ledger and audit have" in cli.fails(4, *close_it)
    assert len(ledger_of(valkey, stream)) == 2
    shutil.rmtree(folder.parent)
    shutil.copytree(cli.cwd / "other", folder)
    files.write_json(folder / "run.json", forged)
    assert "not the plan" in cli.fails(4, *close_it)
    (folder / "plan.json").unlink()  # decisions alone are nobody's
    cli.fails(2, *close_it)
    shutil.copytree(cli.cwd / "one", folder, dirs_exist_ok=True)
    cli.done(*close_it)
    run = json.loads((folder / "run.json").read_text())
    predicate = json.loads((folder / "statement.json").read_text())["predicate"]
    for told in (run, predicate):
        same = ("total_read", "outcome", "operator", "approvers", "plan_digest", "environment")
        assert [told[name] for name in same] == [drained[name] for name in same]
    assert (run["operator"], run["approvers"]) == ("olga", ["ann@example.com"])
    assert run["total_read"] == len(audit(valkey, stream))
    same = ("dropped_old", "drained_ok", "remaining")
    assert [run[name] for name in same] == [drained[name] for name in same]
    assert (predicate["parameters"]["stream"], predicate["templates"]) == (stream, [])
    assert predicate["parameters"]["throttle"] is None
    assert "127.0.0.1:1" not in json.dumps(predicate)
    cli.done("verify", folder.parent, "--redis-url", valkey.url, "--allowed-signers",
             "allowed")  # fmt: skip


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


@pytest.mark.parametrize("what", ["190k", "read-only"])
def test_files_that_cannot_be_written_do_not_hide_the_drain(
    valkey: Server, stream: str, cli: Cli, small_disk: Callable[[str], Path], what: str
) -> None:
    """No room for the notebooks; or none at all in the middle of the drain: the books are told all
    the same (exit code 1, one line that names the folder), the folder closed later."""
    seed(valkey, stream, 400)
    is_full = what.endswith("k")
    small_disk(f"size={what if is_full else '64m'}")
    process = start(cli, valkey, stream, "none" if is_full else 100)
    if not is_full:
        wait_for(valkey, stream, 20)
        small_disk("remount,ro")
    run = cli.finish(process)
    assert (run.rc, run.json()["exit_code"]) == (1, 1), run
    assert run.json()["total_read"] == len(audit(valkey, stream))
    (error,) = [line for line in run.err.splitlines() if line.startswith("drainkit: ")]
    folder = cli.cwd / run.json()["evidence"]
    assert (folder.name in error, "run --close" in error) == (True, True), error
    small_disk("remount,rw,size=64m")
    assert json.loads((folder / "run.json").read_text())["run_id"] == folder.name
    closed = close(valkey, folder)
    assert closed["total_read"] == len(audit(valkey, stream))
    assert is_full or (closed["total_read"], closed["outcome"]) == (300, "done")
    check_closed(valkey, stream, folder)
