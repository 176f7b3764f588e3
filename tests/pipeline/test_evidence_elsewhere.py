"""Evidence in an object store: `run --reports-dir s3://...` and `verify s3://...`; sealed here,
copied whole, never forked, checked from there.

The store is moto's server: a real S3 API on loopback, with conditional writes, Object Lock and IAM.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

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
from drainkit.errors import DrainkitError
from drainkit.evidence import remote
from drainkit.evidence.remote import Reports, reports_at
from drainkit.evidence.seal import STATEMENT
from drainkit.evidence.verify import verify
from drainkit.views.analyse_backlog import Analysis

URL = "s3://evidence/prod/drains"
pytestmark = pytest.mark.filterwarnings("default")  # botocore's and moto's own


def run(server: Server, stream: str, *options: str) -> tuple[str, ...]:
    return ("run", "--json", "--max-events", "all", *at(server, stream), *options)


def test_a_run_in_the_bucket_is_verified_from_anywhere(
    valkey: Server, stream: str, cli: Cli, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signed live run is sealed into the bucket and listed, nothing stays here. 01 opens the run
    by its URL as it would its folder."""
    seed(valkey, stream, 60, delivered=20)
    keygen(key := cli.cwd / "key")
    live = ("--mode", "live", "--yes", "--throttle", "none", "--sign-key", str(key))
    done = cli.done(*run(valkey, stream, "--reports-dir", URL, *live), secret=SECRET).json()
    evidence = done["evidence"]
    assert evidence == f"{URL}/{done['run_id']}"
    assert sorted(path.name for path in cli.cwd.iterdir()) == ["key", "key.pub"]
    cli.done("verify", URL, "--redis-url", valkey.url)
    (listed,) = cli("runs", URL, "--json").json()["runs"]
    assert (listed["evidence"], listed["seal"]) == (evidence, "ok")
    monkeypatch.setenv("DRAINKIT_REDIS_URL", "redis://127.0.0.1:1/0")  # no server is asked
    analysis = Analysis.open({"run_dir": evidence})
    assert analysis.outcomes()["recorded"].tolist() == [done[name] for name in ACTIONS]
    signature = f"prod/drains/{done['run_id']}/statement.json.sig"
    s3.client.head_object(Bucket="evidence", Key=signature)


def test_a_store_that_refuses_stops_the_run(valkey: Server, stream: str, cli: Cli, s3: S3) -> None:
    """Wrong login, unknown bucket, unknown scheme, nothing there: one line, exit 2, no secret,
    nothing drained or written; what looks like a URL is never taken for a folder's name."""
    seed(valkey, stream, 30, delivered=10)
    live = ("--mode", "live", "--yes", "--throttle", "none")
    for url in ("s3://no-such-bucket", "hdfs://a/b", "file:///tmp/r", "s3://",
                f"s3://a:{SECRET}@evidence/c", "S3://evidence?x=1"):  # fmt: skip
        done = cli(*run(valkey, stream, "--reports-dir", url, *live))
        assert done.rc == 2, done.err
        assert SECRET not in one_line_error(done.err)
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
    """The drain is done and told as such; the sealed folder is here, after the run that it knew,
    named, and verifies."""
    digest = delivered(1)[1]
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
    predicate = json.loads((folder / STATEMENT).read_text())["predicate"]
    assert predicate["previous"]["statement_sha256"] == digest
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


# ---------------------------------------------------------------- the chain there


def sealed(reports: Reports, number: int) -> tuple[Path, str]:
    """A run of two files, sealed as the runner does it."""
    run_dir = files.make_folder(reports.folder / f"20260101T00000{number}Z-live-{number:06x}")
    files.write_json(run_dir / "run.json", {"mode": "live", "number": number})
    files.write_bytes(run_dir / "audit.parquet", bytes([number]) * 1000)
    return run_dir, reports.seal(run_dir, run={"outcome": "done"}, parameters={}, server={})


def delivered(number: int, url: str = URL) -> tuple[str, str]:
    """A run that was sealed and copied: its name and its statement's digest."""
    reports = reports_at(url)
    run_dir, digest = sealed(reports, number)
    reports.deliver(run_dir)
    return run_dir.name, digest


def test_runs_are_verified_there(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left here; the store holds whole runs in a chain, each statement copied last; a
    changed object is named, also one whose name leads elsewhere; no run or link can be taken out.
    """
    copied: list[str] = []
    put = remote.Store.put
    monkeypatch.setattr(remote.Store, "put", lambda *a: (copied.append(a[2]), put(*a)))
    names, digests = zip(*map(delivered, range(3)), strict=True)
    assert list(tmp_path.iterdir()) == []
    assert [name.partition("/")[2] for name in copied[3::4]] == [STATEMENT] * 3
    assert verify(URL).findings == {name: [] for name in names} | {"chain": []}
    assert verify(f"{URL}/{names[1]}/").findings == {names[1]: []}
    for key in (f"{names[2]}/../sly", f"{names[1]}/audit.parquet"):
        s3.client.put_object(Bucket="evidence", Key=f"prod/drains/{key}", Body=b"x")
    found = verify(URL).findings
    assert [found[name] for name in names] == [
        [], ["changed: audit.parquet (its SHA-256 is another)"], ["added: ..%2Fsly"],
    ]  # fmt: skip

    def remove(key: str) -> list[str]:
        prefix = f"prod/drains/{key}"
        for item in s3.client.list_objects_v2(Bucket="evidence", Prefix=prefix)["Contents"]:
            s3.client.delete_object(Bucket="evidence", Key=item["Key"])
        return verify(URL).findings["chain"]

    assert remove(f"chain/{digests[1]}")
    assert remove(names[2]) == []  # as if it had never been; the ledger knows it
    assert "removed" in str(remove(names[0]))


def test_runs_at_once_never_fork_the_chain(s3: S3) -> None:
    """Five runs that end together follow one another; those that lost were sealed again. Nothing is
    overwritten or deleted: the bucket has Object Lock, and retention does no harm."""
    s3.client.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
    rule = {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 1}}
    s3.client.put_object_lock_configuration(
        Bucket="locked", ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
    )
    with ThreadPoolExecutor(5) as pool:
        found = dict(pool.map(partial(delivered, url="s3://locked/r"), range(5)))
    assert verify("s3://locked/r").findings == {name: [] for name in found} | {"chain": []}
    versions = s3.client.list_object_versions(Bucket="locked")
    assert "DeleteMarkers" not in versions
    names = [item["Key"] for item in versions["Versions"]]
    assert len(names) == len(set(names))
    assert sum(name.startswith("r/chain/") for name in names) == 5
    for name, digest in found.items():  # what seal answered, and so the run ledger has
        body = s3.client.get_object(Bucket="locked", Key=f"r/{name}/{STATEMENT}")["Body"].read()
        assert hashlib.sha256(body).hexdigest() == digest


def test_a_claim_that_was_cut_off_is_not_somebody_elses(s3: S3) -> None:
    """A link that came through although its reply was lost is our own, and is not claimed twice. An
    object in the place of evidence is not overwritten."""
    reports = reports_at(URL)
    create = reports._store.create

    def twice(name: str, data: bytes) -> bool:
        create(name, data)
        return create(name, data)  # what a retry after a lost reply is told

    reports._store.create = twice  # type: ignore[method-assign]
    run_dir, _ = sealed(reports, 1)
    reports.deliver(run_dir)
    assert verify(URL).findings == {run_dir.name: [], "chain": []}
    run_dir, _ = sealed(reports_at(URL), 2)
    reports._store.put(Path(__file__), f"{run_dir.name}/{STATEMENT}")
    with pytest.raises(DrainkitError, match=f"is in {run_dir} still and could not be copied"):
        reports.deliver(run_dir)
