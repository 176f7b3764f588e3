"""Many streams: each has its own run and evidence, none stops another, one summary tells all."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

import psutil
import pytest
from backlogs import fill, seed
from books import assert_books_balance, audit, recorded
from conftest import Cli, lacking
from servers import Server, wait_until

from drainkit.cli.draining import streams_report
from drainkit.errors import InterruptedRunError
from drainkit.pipeline.runner import outcome_of, run_in_turn, summary
from drainkit.settings import build

FAST = ("--throttle", "none", "--max-events", "all")


def prefix_of(stream: str) -> str:
    return f"quantum:stream:many:{stream[-6:]}"


def run_all(server: Server, prefix: str, *options: str) -> tuple[str, ...]:
    return ("run", "--mode", "live", "--yes", "--json", "--all-streams", f"{prefix}:*",
            "--redis-url", server.url, *options)  # fmt: skip


def test_one_streams_end_stops_no_other(valkey: Server, stream: str, cli: Cli) -> None:
    """Streams with the group run in turn; one that is refused is told as such, and decides. A
    pattern without such a stream is refused."""
    prefix = prefix_of(stream)
    names = stopped, drained = [f"{prefix}:{letter}" for letter in "ab"]
    for name in names:
        seed(valkey, name, 30, delivered=10)
    fill(valkey, f"{prefix}:other", [(1, {"x": "y"})], group="somebody:else")
    cli.done("stop", "--reason", "no", "--stream", stopped, "--redis-url", valkey.url)
    run = cli(*run_all(valkey, prefix, *FAST))
    found = run.json()
    assert run.rc == found["exit_code"] == 4
    assert [(one["stream"], one["exit_code"]) for one in found["streams"]] == [
        (stopped, 4), (drained, 0),
    ]  # fmt: skip
    assert (found["not_done"], found["total_read"]) == ([stopped], 20)
    assert_books_balance(valkey, drained, found["streams"][1])
    assert audit(valkey, stopped) == []
    cli.done("verify", found["streams"][1]["evidence"], "--redis-url", valkey.url)
    assert f"{stopped}: refused" in run.err
    assert "no stream has the group" in cli.fails(4, *run_all(valkey, "no-such"))


def test_an_unexpected_error_stops_no_other_and_holds_no_password() -> None:
    """Whatever one run raises is one line of its stream; after an interruption none is begun. The
    worst exit code counts: failed is worse than lost, lost worse than refused."""
    settings = build({"redis_url": "redis://:hunter22@h"})
    raised = iter([ValueError("of hunter22\n"), None, InterruptedRunError("at the question")])

    def one(_: object) -> dict[str, object]:
        if error := next(raised):
            raise error
        return {"exit_code": 0, "outcome": "done", "total_read": 1_000}

    told = list(run_in_turn(settings, list("abcd"), one, stopping=threading.Event()))
    assert [outcome["exit_code"] for outcome in told] == [1, 0, 130, 130]
    assert told[0]["error"] == "unexpected ValueError: of ***\\n"
    assert "not run" in str(told[3]["error"])
    found = summary("s*", settings, told)
    assert (found["exit_code"], found["not_done"], found["total_read"]) == (130, [*"acd"], 1_000)
    table, last_line = streams_report(found)
    assert len(table.rows) == 4
    assert "1 of 4 streams done: 1,000 read" in last_line
    for codes, worst in (((0, 4), 4), ((4, 3, 0), 3), ((3, 1, 4), 1), ((0,), 0)):
        ended = [outcome_of("s", {"exit_code": code, "outcome": "x"}) for code in codes]
        assert summary("s*", settings, ended)["exit_code"] == worst


CLUSTER = """
from distributed import LocalCluster
with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as started:
    workers = started.workers.values()
    print(started.scheduler_address, *(worker.pid for worker in workers), flush=True)
    input()
"""


@pytest.fixture
def dask_cluster(cli: Cli) -> Iterator[Callable[[str], tuple[str, list[psutil.Process]]]]:
    """A scheduler and two workers, as a user starts them; the address and the workers."""
    if find_spec("distributed") is None:
        lacking("dask (drainkit[dask])")
    with ExitStack() as started:

        def start(url: str) -> tuple[str, list[psutil.Process]]:
            process = subprocess.Popen(
                [sys.executable, "-c", CLUSTER], env={**os.environ, "DRAINKIT_REDIS_URL": url},
                cwd=cli.cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            started.callback(process.communicate, "\n")
            assert process.stdout is not None
            address, *workers = process.stdout.readline().split()
            return address, [psutil.Process(int(worker)) for worker in workers]

        yield start


@pytest.mark.parametrize(
    ("streams", "entries"),
    [(2, 150), pytest.param(40, 2_000, marks=[pytest.mark.chaos, pytest.mark.timeout(3600)])],
    ids=["one server", "a cluster"],
)
@pytest.mark.timeout(600)
def test_a_killed_workers_stream_is_told_and_not_run_twice(
    clean: Any, stream: str, cli: Cli, dask_cluster: Any, start_server: Any, streams: int,
    entries: int,
) -> None:  # fmt: skip
    """A worker dies in the middle: its stream failed and has the records of one run, all others are
    done; run again, each entry has one record, in one chain. Workers whose URL leads to another
    server than the command's drain nothing there; a wrong address is one line."""
    many = streams > 2
    server = clean("cluster" if many else "valkey")
    names = [f"{prefix_of(stream)}:{{{number}}}" for number in range(streams)]
    home = {name: server.primary_of(name) if many else server for name in names}
    ids = {name: sorted(seed(home[name], name, entries, delivered=0)) for name in names}
    assert len({one.socket for one in home.values()}) == (3 if many else 1)
    address, workers = dask_cluster(server.url)
    if not many:
        other = start_server("valkey")
        seed(other, names[0], 30, delivered=10)
        refused = cli(*run_all(other, prefix_of(stream), *FAST, "--dask", address), timeout_sec=200)
        assert (refused.rc, "another server" in refused.err) == (4, True), refused
        assert audit(other, names[0]) == audit(server, names[0]) == []
        wrong = cli(*run_all(server, prefix_of(stream), "--dask", "no://127.0.0.1:9"))
        assert (wrong.rc, "dask worker" in wrong.err.splitlines()[-1]) == (2, True), wrong
    pace = ("--throttle", "none" if many else "10", "--max-events", "all")
    running = cli.start(*run_all(server, prefix_of(stream), *pace, "--dask", address))
    least = streams // 4 if many else 2
    wait_until(
        "they have records", timeout_sec=900,
        condition=lambda: sum(len(recorded(home[n], n)) > 5 for n in names) >= least,
    )  # fmt: skip
    for one in (workers[0], *workers[0].children(recursive=True)):  # as a machine that dies does
        one.kill()
    first = cli.finish(running, timeout_sec=1800)
    assert (first.rc, "worker was lost" in first.err) == (1, True), first.err
    (lost,) = first.json()["not_done"]
    for one in first.json()["streams"]:
        there = recorded(home[one["stream"]], one["stream"])
        assert len(there) == len({*there}) <= entries
        assert one["exit_code"] or sorted(there) == ids[one["stream"]]
    # not run twice: what is there are the records of one run, and it is not complete
    assert len({record["run_id"] for record in audit(home[lost], lost)}) <= 1
    assert len(audit(home[lost], lost)) < entries
    dask = ("--dask", address if many else "local")
    cli.done(*run_all(server, prefix_of(stream), *FAST, *dask), timeout_sec=1800)
    assert {name: sorted(recorded(home[name], name)) for name in names} == ids
    for folder in (cli.cwd / "reports").glob("*-live-*"):  # what the killed run left
        if not (folder / "statement.json").exists():
            cli.done("run", "--close", folder, "--redis-url", server.url)
    cli.done("verify", "reports", "--redis-url", server.url, timeout_sec=600)
