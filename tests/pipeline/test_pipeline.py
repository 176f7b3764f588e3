"""The run through the notebooks: evidence that holds up, also of runs that failed or ended early:
interrupted, refused, without a server, they leave evidence that says so."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
import servers
from backlogs import GROUP, backlog, fill, now_ms, seed
from books import (
    FILES,
    ask,
    assert_books_balance,
    at,
    audit,
    everything,
    only_run,
    pending,
    wait_for,
)
from conftest import ROOT, Cli
from nbconvert import HTMLExporter
from runs import keygen
from schemas import evidence_holds
from servers import Server

SECRET = "s3cr3t-pa55"
PRODUCER = """
import sys, time, redis
client = redis.Redis.from_url(sys.argv[1])
while True:
    client.xadd(sys.argv[2], {"symbol": "BTCUSDT", "confidence": "0.9"})
    time.sleep(0.005)
"""


def test_a_live_run_beside_a_producer_leaves_sealed_evidence_of_one_truth(
    valkey: Server, stream: str, cli: Cli
) -> None:
    """All files of the contract are there; drainkit, sha256sum and the server confirm them.
    Baseline, notebooks, plan, summary, report and statement name one boundary and one count; no
    file has the password. The server drops connections that are idle for a second."""
    seed(valkey, stream, 400)
    ask(valkey, "CONFIG", "SET", "timeout", 1)
    ask(valkey, "ACL", "SETUSER", "drainer", "on", f">{SECRET}", "~*", "+@all")
    url = valkey.tcp_url.replace("redis://", f"redis://drainer:{SECRET}@")
    producer = subprocess.Popen([sys.executable, "-c", PRODUCER, valkey.url, stream])
    try:
        servers.wait_until("it produces", lambda: ask(valkey, "XLEN", stream) > 410)
        run = cli.done(
            "run", "--mode", "live", "--yes", "--json", "--throttle", "none", "--max-events", "all",
            "--allowlist", "BTCUSDT,ETHUSDT", "--stream", stream, secret=SECRET,
            env={"DRAINKIT_REDIS_URL": url},
        )  # fmt: skip
        assert producer.poll() is None
    finally:
        producer.kill()
        producer.wait()
    result, folder = run.json(), only_run(cli.cwd)
    assert result["evidence"].endswith(folder.name)
    assert {path.name for path in folder.iterdir()} == FILES
    assert not [path for path in folder.iterdir() if SECRET.encode() in path.read_bytes()]
    evidence_holds(folder)
    assert_books_balance(valkey, stream, result)
    assert cli("verify", "reports", *at(valkey, stream)).rc == 0
    sums = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, check=False)
    assert sums.returncode == 0
    found = {p.name: p.read_text() for p in folder.iterdir() if p.suffix in (".json", ".ipynb")}
    baseline, plan, statement = (
        json.loads(found[f"{name}.json"]) for name in ("baseline", "plan", "statement")
    )
    boundary = baseline["stream"]["boundary_id"]
    count = baseline["groups"][0]["backlog"]["undelivered"]
    assert count > 310
    for told in (result, plan, json.loads(found["run.json"]), statement["predicate"]):
        assert (told["run_id"], told["boundary_id"]) == (folder.name, boundary)
        assert told["total_read"] == count
    for name in ("01_analyse_backlog", "02_dry_run", "03_live_drain"):
        cells = json.loads(found[f"{name}.ipynb"])["cells"]
        shown = json.dumps([cell["outputs"] for cell in cells if cell["cell_type"] == "code"])
        assert boundary in shown, name
        assert f"{count:,} entries" in shown.replace("**", ""), name
    assert f"{count:,}" in (folder / "report.html").read_text()
    assert boundaries(folder) == {boundary}


def boundaries(folder: Path) -> set[str]:
    """The ids that a folder's report calls the boundary."""
    report = (folder / "report.html").read_text()
    return set(re.findall(r"boundary[^0-9]{1,40}(\d{13}-\d+)", report))


def test_a_dry_run_leaves_no_trace_and_a_signed_plan(valkey: Server, stream: str, cli: Cli) -> None:
    """`run` is a dry run by default: the server is as it was, and the evidence is there, signed
    (--sign-key), in a folder whose braces are none of papermill's parameters. `--plan FOLDER`
    then drains exactly that plan, with `run` as with `drain`; verify tells whose signature it is,
    and whose it is not. The path that is printed leads to the plan from where it was called. By
    papermill 01 has no widget, and exported as HTML each of its figures is a picture, offline. Of
    --until as an age notebooks, plan and statement name one time."""
    seed(valkey, stream)
    key, reports = cli.cwd / "key", cli.cwd / "a{stream}b{}c}"
    (cli.cwd / "signers").write_text(f"auditor {keygen(key)}\n")
    before = everything(valkey)
    where = ("--reports-dir", reports.name, *at(valkey, stream))
    said = cli.done("run", "--max-events", "50", "--throttle", "none", "--sign-key", key, "--until",
                    "0.05m", *where)  # fmt: skip
    assert everything(valkey) == before
    (folder,) = (path for path in reports.iterdir() if path.is_dir())
    (line,) = (line for line in said.out.splitlines() if line.startswith("Plan: "))
    plan = cli.cwd / line.removeprefix("Plan: ")
    assert json.loads(plan.read_text())["stream"] == stream
    is_small_and_still(folder / "01_analyse_backlog.ipynb")
    evidence_holds(folder)
    until = json.loads(plan.read_text())["until"]
    for name in ("01_analyse_backlog.ipynb", "02_dry_run.ipynb", "statement.json"):
        text = (folder / name).read_text()
        assert until in text, name
        assert "0.05m" not in text, name
    signed = {"statement.json.sig"}
    assert {path.name for path in folder.iterdir()} == FILES - {"drift.parquet"} | signed
    verify = ("--json", "--allowed-signers", "signers")
    for place in (folder, reports):
        assert cli("verify", place, *verify).rc == 0
    ask(valkey, "XADD", stream, "*", "later", "than the plan")
    live = ("--mode", "live", "--yes", "--json", "--plan", folder)
    in_part = cli.done("run", *live, *where).json()
    assert in_part["total_read"] == 50
    evidence_holds(cli.cwd / in_part["evidence"])
    assert boundaries(cli.cwd / in_part["evidence"]) == {in_part["boundary_id"]}
    assert cli("verify", reports).rc == 0
    assert cli.done("drain", *live, *at(valkey, stream)).json()["total_read"] == 0
    (folder / "report.html").write_text("changed")
    (cli.cwd / "signers").write_text(f"somebody {keygen(cli.cwd / 'other')}\n")
    found = cli("verify", folder, *verify)
    assert found.rc == 1
    findings = " ".join(found.json()["findings"][folder.name])
    assert "is by a stranger" in findings
    assert "report.html" in findings


def is_small_and_still(path: Path) -> None:
    """No widget, about as small as without an exploration, and its figures are in its page too."""
    assert path.stat().st_size < 1.1 * 196_978
    book = nbformat.read(path, as_version=4)
    assert "widgets" not in book.metadata
    (cell,) = (c for c in book.cells if "explore()" in c.source)
    assert cell.outputs == []
    page, _ = HTMLExporter().from_notebook_node(book)
    assert "widget-view" not in page
    assert page.count("<svg xmlns") + page.count("data:image/svg+xml") >= 8
    assert sum("plotly" in str(o) for c in book.cells for o in c.get("outputs", [])) >= 8


def test_a_misspelt_parameter_is_refused(valkey: Server, cli: Cli) -> None:
    """By papermill: it ends the notebook with one clear error; nothing changes."""
    seed(valkey, "quantum:stream:trade.intent")
    before = everything(valkey)
    source = ROOT / "notebooks" / "03_live_drain.ipynb"
    done = cli.papermill(source, "out.ipynb", "-p", "throtle", 5,
                         env={"DRAINKIT_REDIS_URL": valkey.url})  # fmt: skip
    assert done.rc != 0
    assert "throtle" in done.err
    assert everything(valkey) == before


def test_evidence_does_not_grow_with_the_backlog(valkey: Server, stream: str, cli: Cli) -> None:
    """Notebooks and report of ten times the entries are at most a fifth larger, the report of
    10,000 is below 300 KB, and all but the tables below 700 KB."""
    sizes = []
    for n in (1_000, 10_000):
        name = f"{stream}:{n}"
        entries = backlog(now_ms(valkey), n, gap_ms=2_000_000 // n)
        fill(valkey, name, entries, group=GROUP, position="0-0")
        run = cli.done(
            "run", "--json", "--throttle", "none", "--max-events", "all", *at(valkey, name)
        )
        assert run.json()["total_read"] == n
        folder = cli.cwd / run.json()["evidence"]
        shown = [*folder.glob("*.ipynb"), folder / "report.html"]
        sizes.append(sum(path.stat().st_size for path in shown))
    assert sizes[1] <= 1.2 * sizes[0], sizes
    assert shown[-1].stat().st_size < 300_000
    rest = sum(path.stat().st_size for path in folder.iterdir() if path.suffix != ".parquet")
    assert rest < 700_000


@pytest.mark.parametrize(
    ("command", "end"),
    [("drain", signal.SIGINT), ("run", signal.SIGTERM), ("drain", "end of input")],
)
def test_a_way_out(
    valkey: Server, stream: str, cli: Cli, command: str, end: str | signal.Signals
) -> None:
    """Ctrl-C, SIGTERM or Ctrl-D at the prompt of a live run: exit code 130, nothing drained."""
    seed(valkey, stream)
    ours, terminal = pty.openpty()
    process = cli.start(command, "--mode", "live", *at(valkey, stream), terminal=terminal)
    os.close(terminal)
    said = b""
    while b"[y/N]" not in said:
        said += os.read(ours, 4096)
    if isinstance(end, signal.Signals):
        time.sleep(0.3)  # until it waits for the answer
        process.send_signal(end)
    else:
        os.write(ours, b"\x04")
    try:
        assert process.wait(60) == 130
    finally:
        process.kill()
        os.close(ours)
    assert audit(valkey, stream) == []
    if command == "run":
        assert json.loads((only_run(cli.cwd) / "run.json").read_text())["outcome"] == "interrupted"
        assert cli("verify", "reports").rc == 0


MET = "The plan was met, or what differs is explained"
Live = Callable[..., subprocess.Popen[str]]


def judged(folder: Path) -> dict[str, dict[str, str]]:
    """verdicts.json, by claim."""
    return {one["claim"]: one for one in json.loads((folder / "verdicts.json").read_text())}


def left_of(
    cli: Cli, server: Server, stream: str, process: subprocess.Popen[str], rc: int, outcome: str
) -> tuple[dict[str, Any], Path]:
    """run.json and folder of a live run that ended so: sealed, and true to the audit."""
    run = cli.finish(process)
    assert run.rc == rc, run
    folder = only_run(cli.cwd)
    result: dict[str, Any] = json.loads((folder / "run.json").read_text())
    assert (result["outcome"], result["exit_code"]) == (outcome, rc)
    assert cli("verify", "reports").rc == 0
    if server.running:
        assert result["total_read"] == len(audit(server, stream))
    return result, folder


@pytest.fixture
def live(cli: Cli) -> Live:
    """Starts a live run of 300 entries at 10 per second; it may have a URL with the password."""

    def start(server: Server, stream: str, url: str = "") -> subprocess.Popen[str]:
        seed(server, stream, 400)
        return cli.start("run", "--mode", "live", "--yes", "--json", "--throttle", 10,
                         "--max-events", "all", "--stream", stream, secret=SECRET,
                         env={"DRAINKIT_REDIS_URL": url or server.url})  # fmt: skip

    return start


@pytest.mark.parametrize(
    ("line", "how"), [("01_analyse", signal.SIGINT), ("03_live_drain", signal.SIGTERM)]
)
def test_an_early_signal_is_not_lost(
    valkey: Server, stream: str, cli: Cli, live: Live, line: str, how: signal.Signals
) -> None:
    """However early it comes, in the first notebook or the live one, hardly anything is drained:
    exit code 130; what the run did not come to is undone, and its summary is complete."""
    process = live(valkey, stream)
    assert process.stderr is not None
    while line not in (said := process.stderr.readline()):
        assert said, "the run ended before"
    process.send_signal(how)
    result, folder = left_of(cli, valkey, stream, process, 130, "interrupted")
    assert result["total_read"] <= 10  # a second's worth; 300 were waiting
    assert result["remaining"] == 300 - result["total_read"]
    times = [datetime.fromisoformat(result[name]) for name in ("started_at", "finished_at")]
    assert times[0] < times[1]
    assert result["elapsed_sec"] > 0
    if line == "01_analyse":  # there was no plan yet
        assert (result["total_read"], judged(folder)[MET]["verdict"]) == (0, "unknown")


def test_a_killed_kernel_fails_the_run(valkey: Server, stream: str, cli: Cli, live: Live) -> None:
    """Exit code 1, sealed evidence, and a drain ends what it left, each entry once."""
    process = live(valkey, stream)
    wait_for(valkey, stream, 5)
    for one in psutil.Process(process.pid).children(recursive=True):
        parent = one.parent()  # of kernels: it has imported for them, and is the run's own child
        if parent is not None and parent.ppid() == process.pid:
            one.kill()
    result, _ = left_of(cli, valkey, stream, process, 1, "failed")
    assert result["total_read"] > 0
    cli.done("drain", "--mode", "live", "--yes", "--max-events", "all", "--throttle", "none",
             *at(valkey, stream))  # fmt: skip
    records = audit(valkey, stream)
    assert len({r["original_id"] for r in records}) == len(records) == 300
    assert pending(valkey, stream) == 0


def test_a_stopped_run_is_refused_and_verified(
    valkey: Server, stream: str, cli: Cli, live: Live
) -> None:
    """The kill switch under the live notebook: exit code 4, all four notebooks, balanced books;
    how much of the plan is left stands in 04, in verdicts.json and in the report alike."""
    process = live(valkey, stream)
    wait_for(valkey, stream, 5)
    assert cli("stop", "--reason", "test", *at(valkey, stream)).rc == 0
    result, folder = left_of(cli, valkey, stream, process, 4, "refused")
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


def test_a_server_lost_under_the_live_notebook(
    start_server: Callable[..., Server], stream: str, cli: Cli, live: Live
) -> None:
    """Exit code 3, as the drain without notebooks has it, and sealed evidence; in none of its
    files is the password of the URL."""
    server = start_server("redis", port=True)
    ask(server, "ACL", "SETUSER", "drainer", "on", f">{SECRET}", "~*", "+@all")
    process = live(server, stream, server.tcp_url.replace("redis://", f"redis://drainer:{SECRET}@"))
    wait_for(server, stream, 5)
    server.kill()
    _, folder = left_of(cli, server, stream, process, 3, "failed")
    verdicts = {one["verdict"] for one in judged(folder).values()}
    assert verdicts == {"unknown", "yes"}  # nothing is met that could not be looked at
    assert not [path for path in folder.iterdir() if SECRET.encode() in path.read_bytes()]
