"""`run --reports-dir s3://...` and `verify s3://...`, as users say them."""

from __future__ import annotations

import gc
import json

import pytest
from backlogs import seed
from books import at, audit
from conftest import Cli, one_line_error
from faults import attempt
from runs import keygen
from servers import Server
from stores import S3, SECRET

from drainkit import files
from drainkit.core.policy import ACTIONS
from drainkit.errors import UsageError
from drainkit.views.analyse_backlog import Analysis

URL = "s3://evidence/prod/drains"
pytestmark = pytest.mark.filterwarnings("default")  # botocore's and moto's own


def run(server: Server, stream: str, *options: str) -> tuple[str, ...]:
    return ("run", "--json", "--max-events", "all", *at(server, stream), *options)


def test_a_run_in_the_bucket_is_verified_from_anywhere(
    valkey: Server, stream: str, cli: Cli, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dry run and live run are sealed into the bucket and listed, nothing stays here; one change is
    named. 01 opens the run by its URL as it would its folder; the copy is gone with the
    analysis."""
    seed(valkey, stream, 60, delivered=20)
    results = []
    keygen(key := cli.cwd / "key")
    for options in ((), ("--mode", "live", "--yes", "--throttle", "none", "--sign-key", str(key))):
        done = cli.done(*run(valkey, stream, "--reports-dir", URL, *options), secret=SECRET)
        results.append(done.json())
        assert results[-1]["evidence"] == f"{URL}/{results[-1]['run_id']}"
    assert sorted(path.name for path in cli.cwd.iterdir()) == ["key", "key.pub"]
    found = cli("verify", URL, "--redis-url", valkey.url, "--json")
    assert (found.rc, found.json()["ok"]) == (0, True), found.out
    listed = cli("runs", URL, "--json").json()["runs"]
    assert {one["evidence"]: one["seal"] for one in listed} == {
        one["evidence"]: "ok" for one in results
    }
    evidence = results[1]["evidence"]
    assert cli("verify", evidence, "--redis-url", valkey.url).rc == 0
    monkeypatch.setenv("DRAINKIT_REDIS_URL", "redis://127.0.0.1:1/0")  # no server is asked
    analysis = Analysis.open({"run_dir": evidence})
    assert analysis.outcomes()["recorded"].tolist() == [results[1][name] for name in ACTIONS]
    opened = (analysis.entry(one).to_numpy().tolist() for one in analysis.frame["id"][:20])
    assert ("audit", "drained_ok") in {(part, name) for rows in opened for part, name, _ in rows}
    copy = analysis.run_dir
    assert copy.is_dir()
    del analysis
    gc.collect()
    assert not copy.exists()
    with pytest.raises(UsageError, match="run_dir"):
        Analysis.open({"run_dir": URL})
    name = f"prod/drains/{results[1]['run_id']}/audit.parquet"
    s3.client.head_object(Bucket="evidence", Key=f"{name.rpartition('/')[0]}/statement.json.sig")
    s3.client.put_object(Bucket="evidence", Key=name, Body=b"x")
    changed = cli("verify", URL)
    assert changed.rc == 1
    assert changed.out.strip().endswith("audit.parquet (its SHA-256 is another)")


def test_a_store_that_refuses_stops_the_run(valkey: Server, stream: str, cli: Cli, s3: S3) -> None:
    """Wrong login, unknown bucket, unknown scheme, nothing there: one line, exit 2, no secret,
    nothing drained or written; what looks like a URL is never taken for a folder's name."""
    seed(valkey, stream, 30, delivered=10)
    live = ("--mode", "live", "--yes", "--throttle", "none")
    for url in ("s3://no-such-bucket", "hdfs://a/b", "file:///tmp/r", f"s3://a:{SECRET}@evidence/c",
                "memory://x", "abc://x", "https://x/y", "s3://", "S3://evidence?x=1"):  # fmt: skip
        done = cli(*run(valkey, stream, "--reports-dir", url, *live))
        assert done.rc == 2, done.err
        assert SECRET not in one_line_error(done.err)
    assert cli("demo", "--reports-dir", "hdfs://a/b").rc == 2
    for url, words in (("hdfs://a/b", "hdfs"), ("s3://no-such-bucket/x", "does not exist"),
                       ("s3://evidence/nothing/here", "holds nothing")):  # fmt: skip
        checked = cli("verify", url)
        assert (checked.rc, words in one_line_error(checked.err)) == (2, True), checked
    s3.check_logins()
    done = cli(*run(valkey, stream, "--reports-dir", URL, *live), secret=SECRET)
    assert (done.rc, "credentials" in one_line_error(done.err)) == (2, True)
    checked = cli("verify", URL, secret=SECRET)
    assert (checked.rc, "credentials" in one_line_error(checked.err)) == (2, True)
    assert audit(valkey, stream) == []
    assert list(cli.cwd.iterdir()) == []


def test_a_store_lost_on_the_way_is_exit_1(valkey: Server, stream: str, cli: Cli, s3: S3) -> None:
    """The drain is done and told as such; the sealed folder is here, named, and verifies."""
    seed(valkey, stream, 120, delivered=0)
    running = cli.start(*run(valkey, stream, "--reports-dir", URL, "--mode", "live", "--yes",
                             "--throttle", "40"), secret=SECRET)  # fmt: skip
    while len(audit(valkey, stream)) < 10:
        assert running.poll() is None
    s3.stop()
    done = cli.finish(running)
    assert done.rc == 1, done.err
    assert done.json()["total_read"] == len(audit(valkey, stream)) == 120
    (folder,) = (cli.cwd / "drainkit-spool").glob("*/*-live-*")
    assert str(folder.relative_to(cli.cwd)) in done.err
    assert done.json()["evidence"] == str(folder.relative_to(cli.cwd))
    assert json.loads((folder / "run.json").read_text())["exit_code"] == 0
    assert cli("verify", folder, "--redis-url", valkey.url).rc == 0


def test_a_killed_run_is_closed_there(valkey: Server, stream: str, cli: Cli, s3: S3) -> None:
    """A folder in the spool, sealed by nobody: `run --close` with the URL seals and copies it."""
    seed(valkey, stream, 30, delivered=0)
    run_id = attempt(valkey.url, stream).summary["run_id"]
    folder = files.make_folder(cli.cwd / "drainkit-spool" / "abcd" / run_id)
    close = ("run", "--close", folder, "--json", "--reports-dir", URL, *at(valkey, stream))
    closed = cli.done(*close, secret=SECRET)
    assert closed.json()["evidence"] == f"{URL}/{run_id}"
    assert closed.json()["total_read"] == 30
    assert list(cli.cwd.iterdir()) == []
    assert cli("verify", URL, "--redis-url", valkey.url).rc == 0
