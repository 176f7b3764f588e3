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
    Baseline, notebooks, plan, summary, report and statement name one boundary and one count."""
    seed(valkey, stream, 400)
    producer = subprocess.Popen([sys.executable, "-c", PRODUCER, valkey.url, stream])
    try:
        servers.wait_until("it produces", lambda: ask(valkey, "XLEN", stream) > 410)
        run = cli.done(
            "run", "--mode", "live", "--yes", "--json", "--throttle", "none", "--max-events", "all",
            "--allowlist", "BTCUSDT,ETHUSDT", *at(valkey, stream),
        )  # fmt: skip
        assert producer.poll() is None
    finally:
        producer.kill()
        producer.wait()
    result, folder = run.json(), only_run(cli.cwd)
    assert result["evidence"].endswith(folder.name)
    assert {path.name for path in folder.iterdir()} == FILES
    evidence_holds(folder)
    assert_books_balance(valkey, stream, result)
    assert cli("verify", "reports").rc == 0
    assert cli("verify", folder, "--redis-url", valkey.url).rc == 0
    sums = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, check=False)
    assert sums.returncode == 0
    found = {p.name: p.read_text() for p in folder.iterdir() if p.suffix in (".json", ".ipynb")}
    baseline, plan, statement = (
        json.loads(found[f"{name}.json"]) for name in ("baseline", "plan", "statement")
    )
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    subjects = {subject["name"] for subject in statement["subject"]}
    assert subjects == FILES - {"statement.json", "SHA256SUMS"}
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
    report = (folder / "report.html").read_text()
    assert f"{count:,}" in report
    assert set(re.findall(r"boundary[^0-9]{1,40}(\d{13}-\d+)", report)) == {boundary}


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
    verify = ("--json", "--allowed-signers", "signers", "--identity")
    for place in (folder, reports):
        assert cli("verify", place, *verify, "auditor").rc == 0
    live = ("--mode", "live", "--yes", "--json", "--plan", folder)
    in_part = cli.done("run", *live, *where).json()
    assert in_part["total_read"] == 50
    evidence_holds(cli.cwd / in_part["evidence"])
    assert cli("verify", reports).rc == 0
    assert cli.done("drain", *live, *at(valkey, stream)).json()["total_read"] == 0
    (folder / "report.html").write_text("changed")
    found = cli("verify", folder, *verify, "somebody")
    assert found.rc == 1
    findings = " ".join(found.json()["findings"][folder.name])
    assert "not signed by somebody" in findings
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


@pytest.mark.parametrize(("rc", "outcome"), [(1, "failed"), (130, "interrupted")])
def test_an_end_in_the_live_notebook(
    valkey: Server, stream: str, cli: Cli, rc: int, outcome: str
) -> None:
    """SIGKILL to the kernel: exit code 1, failed; SIGTERM to the run: the commit is finished, 130.
    Either way evidence is sealed, and a drain ends what it left."""
    seed(valkey, stream, 1500)
    live = ("--mode", "live", "--yes", "--max-events", "all", *at(valkey, stream))
    process = cli.start("run", *live, "--throttle", "100")
    wait_for(valkey, stream, 20)
    children = psutil.Process(process.pid).children(recursive=True)
    kernels = [child for child in children if _is_kernel(child, process.pid)]
    for one in kernels if rc == 1 else [process]:
        one.send_signal(signal.SIGKILL if rc == 1 else signal.SIGTERM)
    run = cli.finish(process)
    assert run.rc == rc, run
    folder = only_run(cli.cwd)
    result = json.loads((folder / "run.json").read_text())
    assert result["outcome"] == outcome
    assert result["total_read"] == len(audit(valkey, stream)) > 0
    assert cli("verify", folder).rc == 0
    cli.done("drain", *live, "--throttle", "none")
    records = audit(valkey, stream)
    assert len({r["original_id"] for r in records}) == len(records) == 1400
    assert pending(valkey, stream) == 0


def _is_kernel(process: psutil.Process, run: int) -> bool:
    parent = process.parent()  # has imported for it, and is the run's own child
    return parent is not None and parent.ppid() == run


@pytest.mark.parametrize("fails", [False, True])
def test_the_password_is_nowhere(
    clean: Callable[[str], Server], stream: str, cli: Cli, fails: bool
) -> None:
    """No file, output or log holds the password of the URL, also when a notebook fails. A run that
    is longer than the server's timeout for idle connections is done, its digest in the ledger."""
    server = clean("redis")
    seed(server, stream)
    ask(server, "CONFIG", "SET", "timeout", 1)
    # without the right to read new entries 03 fails, once the run is under way
    rights = ("~*", "+@all", *(["-xreadgroup"] if fails else []))
    ask(server, "ACL", "SETUSER", "drainer", "on", f">{SECRET}", *rights)
    url = server.tcp_url.replace("redis://", f"redis://drainer:{SECRET}@")
    run = cli("run", "--mode", "live", "--yes", "--throttle", 10, "--max-events", 30,
              "--stream", stream, env={"DRAINKIT_REDIS_URL": url}, secret=SECRET)  # fmt: skip
    assert (run.rc != 0) == fails, run.err
    for path in only_run(cli.cwd).iterdir():
        assert SECRET.encode() not in path.read_bytes(), path.name
    assert fails or cli("verify", "reports", *at(server, stream)).rc == 0


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
    20,000 is below 300 KB, and all but the tables below 700 KB."""
    sizes = []
    for n in (2_000, 20_000):
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


def test_a_key_that_cannot_sign_drains_nothing(valkey: Server, stream: str, cli: Cli) -> None:
    """--sign-key that is no file, or no key: exit code 2, and the server is as it was."""
    seed(valkey, stream)
    (cli.cwd / "nokey").write_text("not a key")
    before = everything(valkey)
    for key in ("missing", "nokey"):
        assert "--sign-key" in cli.fails(
            2, "run", "--mode", "live", "--yes", "--sign-key", key, *at(valkey, stream)
        )
    assert everything(valkey) == before


@pytest.mark.parametrize(
    ("command", "end"),
    [("drain", signal.SIGINT), ("run", signal.SIGTERM), ("run", "end of input")],
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


def judged(folder: Path) -> dict[str, dict[str, str]]:
    """verdicts.json, by claim."""
    return {one["claim"]: one for one in json.loads((folder / "verdicts.json").read_text())}


def start_live(cli: Cli, server: Server, stream: str, throttle: int = 10) -> subprocess.Popen[str]:
    return cli.start("run", "--mode", "live", "--yes", "--json", "--throttle", throttle,
                     "--max-events", "all", *at(server, stream))  # fmt: skip


@pytest.mark.parametrize(
    ("line", "how"), [("01_analyse", signal.SIGINT), ("03_live_drain", signal.SIGTERM)]
)
def test_an_early_signal_is_not_lost(
    valkey: Server, stream: str, cli: Cli, line: str, how: signal.Signals
) -> None:
    """However early it comes, in the first notebook or the live one, hardly anything is drained:
    exit code 130; what the run did not come to is undone, and its summary is complete."""
    seed(valkey, stream, 400)
    process = start_live(cli, valkey, stream)
    assert process.stderr is not None
    while line not in (said := process.stderr.readline()):
        assert said, "the run ended before"
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
