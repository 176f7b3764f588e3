"""The run through the notebooks: evidence that holds up, also of runs that failed."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import servers
from books import (
    FILES,
    GROUP,
    ask,
    assert_books_balance,
    at,
    audit,
    backlog,
    everything,
    fill,
    now_ms,
    only_run,
    pending,
    seed,
    wait_for,
)  # fmt: skip
from conftest import ROOT, Cli
from servers import Server

SECRET = "s3cr3t-pa55"


def test_a_live_run_leaves_sealed_evidence(valkey: Server, stream: str, cli: Cli) -> None:
    """All files of the contract are there; drainkit, sha256sum and the server confirm them."""
    seed(valkey, stream)
    run = cli.done(
        "run", "--mode", "live", "--yes", "--json", "--throttle", "500", "--max-events", "all",
        "--allowlist", "BTCUSDT,ETHUSDT", *at(valkey, stream),
    )  # fmt: skip
    result, folder = run.json(), only_run(cli.cwd)
    assert result["evidence"].endswith(folder.name)
    assert {path.name for path in folder.iterdir()} == FILES
    assert_books_balance(valkey, stream, result)
    assert result["total_read"] == 200
    assert cli("verify", "reports").rc == 0
    assert cli("verify", folder, "--redis-url", valkey.url).rc == 0
    sums = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, check=False)
    assert sums.returncode == 0
    statement = json.loads((folder / "statement.json").read_text())
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    subjects = {subject["name"] for subject in statement["subject"]}
    assert subjects == FILES - {"statement.json", "SHA256SUMS"}


def test_a_dry_run_by_notebooks_leaves_no_trace(valkey: Server, stream: str, cli: Cli) -> None:
    """`run` is a dry run by default: the server is as it was, and the evidence is there."""
    seed(valkey, stream)
    before = everything(valkey)
    cli.done("run", "--throttle", "500", *at(valkey, stream))
    assert everything(valkey) == before
    assert {path.name for path in only_run(cli.cwd).iterdir()} == FILES - {"drift.parquet"}
    cli.done("drain", "--mode", "live", "--yes", "--plan", only_run(cli.cwd), *at(valkey, stream))
    assert len(audit(valkey, stream)) == 200


def test_an_earlier_plan_is_applied(valkey: Server, stream: str, cli: Cli) -> None:
    """`run --mode live --plan FOLDER` drains exactly the entries of that plan."""
    seed(valkey, stream)
    cli("run", "--max-events", "50", "--throttle", "none", *at(valkey, stream))
    folder = only_run(cli.cwd)
    run = cli.done(
        "run", "--mode", "live", "--yes", "--json", "--plan", folder, *at(valkey, stream)
    )
    assert run.json()["total_read"] == 50
    assert cli("verify", "reports").rc == 0


@pytest.mark.parametrize(("rc", "outcome"), [(1, "failed"), (130, "interrupted")])
def test_an_end_in_the_live_notebook(
    valkey: Server, stream: str, cli: Cli, rc: int, outcome: str
) -> None:
    """SIGKILL to the kernel: exit code 1, failed; SIGTERM to the run: the commit is finished, 130.
    Either way evidence is sealed, and the same command ends it."""
    seed(valkey, stream, 1500)
    live = ("run", "--mode", "live", "--yes", "--max-events", "all", *at(valkey, stream))
    process = cli.start(*live, "--throttle", "100")
    wait_for(valkey, stream, 20)
    children = psutil.Process(process.pid).children(recursive=True)
    for one in filter(_is_kernel, children) if rc == 1 else [process]:
        one.send_signal(signal.SIGKILL if rc == 1 else signal.SIGTERM)
    run = cli.finish(process)
    assert run.rc == rc, run
    folder = only_run(cli.cwd)
    result = json.loads((folder / "run.json").read_text())
    assert result["outcome"] == outcome
    assert result["total_read"] == len(audit(valkey, stream)) > 0
    assert cli("verify", folder).rc == 0
    cli.done(*live, "--throttle", "none")
    records = audit(valkey, stream)
    assert len({r["original_id"] for r in records}) == len(records) == 1400
    assert pending(valkey, stream) == 0


def _is_kernel(process: psutil.Process) -> bool:
    parent = process.parent()  # has imported for it
    return parent is not None and "drainkit.views.forking" in parent.cmdline()


@pytest.mark.parametrize("fails", [False, True])
def test_the_password_is_nowhere(clean: object, stream: str, cli: Cli, fails: bool) -> None:
    """No file, output or log holds the password of the URL, also when a notebook fails."""
    server: Server = clean("redis")  # type: ignore[operator]
    seed(server, stream)
    ask(server, "ACL", "SETUSER", "drainer", "on", f">{SECRET}", "~*", "+@all")
    if fails:  # an audit that cannot be written, once the run is under way
        ask(server, "ACL", "SETUSER", "drainer", "-xreadgroup")
    url = server.tcp_url.replace("redis://", f"redis://drainer:{SECRET}@")
    run = cli(
        "run", "--mode", "live", "--yes", "--throttle", "none", "--stream", stream,
        env={"DRAINKIT_REDIS_URL": url}, secret=SECRET,
    )  # fmt: skip
    assert (run.rc != 0) == fails, run.err
    for path in only_run(cli.cwd).iterdir():
        assert SECRET.encode() not in path.read_bytes(), path.name
    ask(server, "ACL", "DELUSER", "drainer")


def papermill(
    name: str, server: Server, folder: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    source = ROOT / "notebooks" / f"{name}.ipynb"
    env = {**os.environ, "DRAINKIT_REDIS_URL": server.url}
    return subprocess.run(
        [sys.executable, "-m", "papermill", str(source), str(folder / "out.ipynb"), *options],
        env=env, cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("throtle", "5", "throtle"),
        ("throttle", "-1", "throttle must be"),
        ("max_events", "false", "max_events must be"),
        ("redis_url_env", "redis://x:y@z", "never a URL"),
        ("approve", "sha256:00", "run_dir"),
    ],
)
def test_wrong_parameters_are_refused(
    valkey: Server, tmp_path: Path, option: str, value: str, said: str
) -> None:
    """Misspelt names and wrong values end the notebook with one clear error; nothing changes."""
    seed(valkey, "quantum:stream:trade.intent")
    before = everything(valkey)
    done = papermill("03_live_drain", valkey, tmp_path, "-p", option, value)
    assert done.returncode != 0
    assert said in done.stderr
    assert everything(valkey) == before


def test_a_live_run_unapproved_changes_nothing(valkey: Server, stream: str, cli: Cli) -> None:
    """Without --yes and without a terminal: exit code 4, no folder, no change."""
    seed(valkey, stream)
    before = everything(valkey)
    assert cli("run", "--mode", "live", *at(valkey, stream)).rc == 4
    assert everything(valkey) == before
    assert not (cli.cwd / "reports").exists()
    assert GROUP in str(ask(valkey, "XINFO", "GROUPS", stream))


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


def test_a_run_can_be_signed(valkey: Server, stream: str, cli: Cli) -> None:
    """`--sign-key` signs the statement; verify tells whose signature it is, and whose it is not."""
    seed(valkey, stream)
    key = cli.cwd / "key"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True, timeout=30
    )
    public = " ".join((cli.cwd / "key.pub").read_text().split()[:2])
    (cli.cwd / "signers").write_text(f"auditor {public}\n")
    assert cli("run", "--sign-key", key, *at(valkey, stream)).rc == 0
    folder = only_run(cli.cwd)
    verify = ("verify", folder, "--json", "--allowed-signers", "signers", "--identity")
    assert cli(*verify, "auditor").rc == 0
    assert cli("verify", "reports", *verify[2:], "auditor").rc == 0
    (folder / "report.html").write_text("changed")
    found = cli(*verify, "somebody")
    assert found.rc == 1
    findings = " ".join(found.json()["findings"][folder.name])
    assert "not signed by somebody" in findings
    assert "report.html" in findings


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


def test_a_server_that_closes_idle_connections(stream: str, cli: Cli) -> None:
    """A run is longer than the server's timeout: it is done, and its digest is in the ledger."""
    with servers.start("redis") as server:
        seed(server, stream)
        ask(server, "CONFIG", "SET", "timeout", 1)
        run = cli.done("run", "--mode", "live", "--yes", "--json", "--throttle", 10,
                       "--max-events", 40, *at(server, stream))  # fmt: skip
        assert (run.json()["outcome"], run.json()["total_read"]) == ("done", 40)
        assert cli("verify", "reports", "--redis-url", server.url).rc == 0


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, "end of input"])
def test_a_way_out(valkey: Server, stream: str, cli: Cli, end: str | signal.Signals) -> None:
    """Ctrl-C, SIGTERM or Ctrl-D at the prompt of a live run: exit code 130, nothing drained."""
    seed(valkey, stream)
    ours, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "drainkit", "run", "--mode", "live", *at(valkey, stream)],
        cwd=cli.cwd, stdin=terminal, stdout=terminal, stderr=terminal,
    )  # fmt: skip
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
    assert json.loads((only_run(cli.cwd) / "run.json").read_text())["outcome"] == "interrupted"
    assert cli("verify", "reports").rc == 0
