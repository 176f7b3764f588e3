"""Runs that end early: interrupted, refused or failed, they leave evidence that says so."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from datetime import datetime
from pathlib import Path

import pytest
import servers
from backlogs import seed
from books import FILES, assert_books_balance, at, audit, only_run, wait_for
from conftest import Cli
from servers import Server

MET = "The plan was met, or what differs is explained"


def judged(folder: Path) -> dict[str, dict[str, str]]:
    """verdicts.json, by claim."""
    return {one["claim"]: one for one in json.loads((folder / "verdicts.json").read_text())}


def start_live(cli: Cli, server: Server, stream: str, throttle: int = 10) -> subprocess.Popen[str]:
    return cli.start("run", "--mode", "live", "--yes", "--json", "--throttle", throttle,
                     "--max-events", "all", *at(server, stream))  # fmt: skip


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    """Reads stderr up to the line with `text`."""
    assert process.stderr is not None
    while text not in (line := process.stderr.readline()):
        assert line, "the run ended before"


@pytest.mark.parametrize(
    ("line", "after_sec", "how"),
    [("01_analyse", 0, signal.SIGINT), ("03_live_drain", 0, signal.SIGTERM),
     ("03_live_drain", 0.3, signal.SIGTERM)],
)  # fmt: skip
def test_an_early_signal_is_not_lost(
    valkey: Server, stream: str, cli: Cli, line: str, after_sec: float, how: signal.Signals
) -> None:
    """However early it comes, in the first notebook or the live one, hardly anything is drained:
    exit code 130; what the run did not come to is undone, and its summary is complete."""
    seed(valkey, stream, 400)
    process = start_live(cli, valkey, stream)
    wait_for_line(process, line)
    time.sleep(after_sec)
    process.send_signal(how)
    run = cli.finish(process)
    assert run.rc == 130, run
    drained, folder = len(audit(valkey, stream)), only_run(cli.cwd)
    assert drained <= 10  # a second's worth; 300 were waiting
    result = json.loads((folder / "run.json").read_text())
    assert (result["outcome"], result["exit_code"]) == ("interrupted", 130)
    assert (result["total_read"], result["remaining"]) == (drained, 300 - drained)
    times = [datetime.fromisoformat(result[name]) for name in ("started_at", "finished_at")]
    assert times[0] < times[1]
    assert result["elapsed_sec"] > 0
    if line == "01_analyse":  # there was no plan yet
        assert (drained, judged(folder)[MET]["verdict"]) == (0, "unknown")
    assert cli("verify", "reports").rc == 0


def test_a_stopped_run_is_refused_and_verified(valkey: Server, stream: str, cli: Cli) -> None:
    """The kill switch under the live notebook: exit code 4, all four notebooks, balanced books;
    how much of the plan is left stands in 04, in verdicts.json and in the report alike."""
    seed(valkey, stream, 400)
    process = start_live(cli, valkey, stream)
    wait_for(valkey, stream, 5)
    assert cli("stop", "--reason", "test", *at(valkey, stream)).rc == 0
    run = cli.finish(process)
    assert run.rc == 4, run
    result, folder = run.json(), only_run(cli.cwd)
    assert (result["outcome"], result["exit_code"]) == ("refused", 4)
    assert {path.name for path in folder.iterdir()} == FILES
    assert_books_balance(valkey, stream, result)
    left = f"{300 - result['total_read']:,}"
    met = judged(folder)[MET]
    assert met["verdict"] == "no"
    assert met["because"].startswith(f"{left} of 300 planned entries were not drained.")
    assert met["because"] in (folder / "report.html").read_text()
    books = (folder / "04_verify.ipynb").read_text()
    assert "The books balance" in books
    assert f"{left} of the plan's 300 are left" in books
    assert cli("verify", "reports").rc == 0


def test_a_server_lost_under_the_live_notebook(stream: str, cli: Cli) -> None:
    """Exit code 3, as the drain without notebooks has it, and sealed evidence."""
    with servers.start("redis") as server:
        seed(server, stream, 400)
        process = start_live(cli, server, stream)
        wait_for(server, stream, 5)
        server.kill()
        run = cli.finish(process)
    assert run.rc == 3, run
    assert run.json()["outcome"] == "failed"
    verdicts = {one["verdict"] for one in judged(only_run(cli.cwd)).values()}
    assert verdicts == {"unknown", "yes"}  # nothing is met that could not be looked at
    assert cli("verify", "reports").rc == 0
