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
from books import ask, at, audit, ledger_of, pending, wait_for
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


@pytest.mark.parametrize("how", ["ended", "killed", "sealed by the forger"])
def test_closing_believes_ledger_and_audit_only(
    valkey: Server, stream: str, cli: Cli, how: str
) -> None:
    """A run.json that tells of 5,000 drained, another operator, approvers, and another server's
    URL: the books that are sealed are the ledger's, on the server that was named; a folder that
    the forger sealed is refused."""
    seed(valkey, stream, 90, delivered=10)
    drained = cli("drain", "--mode", "live", "--yes", "--json", "--operator", "olga",
                  *at(valkey, stream), "--throttle", "none").json()  # fmt: skip
    if how == "killed":
        last = ask(valkey, "XREVRANGE", f"{stream}.drain_runs", "+", "-", "COUNT", 1)[0][0]
        ask(valkey, "XDEL", f"{stream}.drain_runs", last)
    folder = files.make_folder(cli.cwd / "reports" / drained["run_id"])
    where = {"redis_url": "redis://127.0.0.1:1/0", "stream": stream}
    forged = FORGED | {"run_id": folder.name, "stream": stream, "parameters": where}
    files.write_json(folder / "run.json", forged)
    close_it = ("run", "--close", folder, "--redis-url", valkey.url)
    if how == "sealed by the forger":
        sealing.seal(folder, run=forged, parameters=where, server={})
        assert "ledger and audit have" in cli.fails(4, *close_it)
        assert len(ledger_of(valkey, stream)) == 2
        return
    cli.done(*close_it)
    run = json.loads((folder / "run.json").read_text())
    predicate = json.loads((folder / "statement.json").read_text())["predicate"]
    outcome = "done" if how == "ended" else "interrupted"
    for told in (run, predicate):
        assert [told[k] for k in ("total_read", "operator", "outcome")] == [
            len(audit(valkey, stream)), "olga", outcome,
        ]  # fmt: skip
        assert not told.get("approvers")
        assert not told.get("plan_digest")
    same = ("dropped_old", "drained_ok", "remaining")
    assert [run[k] for k in same] == [drained[k] for k in same]
    assert (predicate["parameters"]["stream"], predicate["templates"]) == (stream, [])
    assert "127.0.0.1:1" not in json.dumps(predicate)
    if how == "ended":
        assert findings(folder.parent, valkey, stream) == []


def test_a_closed_run_keeps_its_approvers(valkey: Server, stream: str, cli: Cli) -> None:
    """Operator, approvers and plan (and its environment) are sealed as the ledger has them, and
    verify confirms them; another plan in the folder is refused."""
    public = keygen(cli.cwd / "ann")
    (cli.cwd / "allowed").write_text(f"ann@example.com {public}\n")
    (cli.cwd / "drainkit.toml").write_text('[env.test.approval]\nallowed_signers = "allowed"\n')
    seed(valkey, stream, 90, delivered=10)
    env = ("--env", "test")
    for name, throttle in (("one", "none"), ("other", 9)):
        (cli.cwd / name).mkdir()
        plan = f"{name}/plan.json"
        made = cli("drain", "--plan", plan, *env, *at(valkey, stream), "--throttle", throttle)
        assert made.rc == cli("approve", plan, "--sign-key", "ann", "--yes").rc == 0
    live = cli.done("drain", "--mode", "live", "--yes", "--json", "--operator", "olga", "--plan",
                    "one/plan.json", *env, *at(valkey, stream))  # fmt: skip
    folder = cli.cwd / "reports" / live.json()["run_id"]
    shutil.copytree(cli.cwd / "other", folder)
    close_it = ("run", "--close", folder, *at(valkey, stream))
    refused = cli(*close_it)
    assert (refused.rc, "not the plan" in refused.err) == (4, True), refused
    (folder / "plan.json").unlink()  # decisions alone are nobody's
    assert cli(*close_it).rc == 2
    shutil.rmtree(folder)
    shutil.copytree(cli.cwd / "one", folder)
    cli.done(*close_it)
    predicate = json.loads((folder / "statement.json").read_text())["predicate"]
    assert (predicate["operator"], predicate["approvers"]) == ("olga", ["ann@example.com"])
    assert predicate["parameters"]["throttle"] is None
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


@pytest.mark.parametrize("what", ["190k", "read-only", "renamed"])
def test_files_that_cannot_be_written_do_not_hide_the_drain(
    valkey: Server, stream: str, cli: Cli, small_disk: Callable[[str], Path], what: str
) -> None:
    """No room for the notebooks; or the folder goes away in the middle of the drain: the books are
    told all the same (exit code 1, one line that names the folder), the folder closed later."""
    seed(valkey, stream, 400)
    is_full = what.endswith("k")
    reports = small_disk(f"size={what if is_full else '64m'}")
    process = start(cli, valkey, stream, "none" if is_full else 100)
    if not is_full:
        wait_for(valkey, stream, 20)
        if what == "read-only":
            small_disk("remount,ro")
        else:
            live_run(cli).rename(reports / "elsewhere")
    run = cli.finish(process)
    assert (run.rc, run.json()["exit_code"]) == (1, 1), run
    assert run.json()["total_read"] == len(audit(valkey, stream))
    (error,) = [line for line in run.err.splitlines() if line.startswith("drainkit: ")]
    folder = cli.cwd / run.json()["evidence"]
    assert (folder.name in error, "run --close" in error) == (True, True), error
    if what == "renamed":
        (reports / "elsewhere").rename(folder)
    else:
        small_disk("remount,rw,size=64m")
    assert json.loads((folder / "run.json").read_text())["run_id"] == folder.name
    closed = close(valkey, folder)
    assert closed["total_read"] == len(audit(valkey, stream))
    assert is_full or (closed["total_read"], closed["outcome"]) == (300, "done")
    check_closed(valkey, stream, folder)
