"""Evidence in an object store: sealed here, copied whole, never forked, checked from there.

The store is moto's server: a real S3 API on loopback, with conditional writes, Object Lock and IAM.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from runs import verify_run
from stores import S3, SECRET

from drainkit import files
from drainkit.errors import DrainkitError
from drainkit.evidence import remote
from drainkit.evidence.remote import Reports, local_copy, reports_at
from drainkit.evidence.seal import STATEMENT, open_run
from drainkit.evidence.verify import verify

URL = "s3://evidence/of/drains"
pytestmark = pytest.mark.filterwarnings("default")  # botocore's and moto's own


def sealed(reports: Reports, number: int, mode: str = "live") -> tuple[Path, str]:
    """A run of two files, sealed as the runner does it."""
    run_dir = open_run(reports.folder, f"20260101T00000{number % 10}Z-{mode}-{number:06x}")
    files.write_json(run_dir / "run.json", {"mode": mode, "number": number})
    files.write_bytes(run_dir / "audit.parquet", bytes([number]) * 1000)
    return run_dir, reports.seal(run_dir, run={"outcome": "done"}, parameters={}, server={})


def delivered(number: int, url: str = URL) -> tuple[str, str]:
    """A run that was sealed and copied: its name and its statement's digest."""
    reports = reports_at(url)
    run_dir, digest = sealed(reports, number)
    assert run_dir.is_relative_to(remote.SPOOL)
    reports.deliver(run_dir)
    assert reports.shown(run_dir) == f"{url}/{run_dir.name}"
    return run_dir.name, digest


def digest_of(s3: S3, name: str) -> str:
    key = f"of/drains/{name}/{STATEMENT}"
    body = s3.client.get_object(Bucket="evidence", Key=key)["Body"].read()
    return hashlib.sha256(body).hexdigest()


def test_runs_are_verified_there(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left here; the store holds whole runs in a chain; a changed object is named, also
    one whose name leads elsewhere; no run or link can be taken out."""
    copied: list[str] = []
    put = remote.Store.put
    monkeypatch.setattr(remote.Store, "put", lambda *a: (copied.append(a[2]), put(*a)))
    names = [delivered(number)[0] for number in range(3)]
    assert list(tmp_path.iterdir()) == []
    last = [name.partition("/")[2] for name in copied[1:4]]
    assert last == ["run.json", "SHA256SUMS", "statement.json"]
    assert verify(URL).findings == {name: [] for name in names} | {"chain": []}
    with local_copy(f"{URL}/{names[1]}/") as folder:
        assert verify_run(folder) == []
        link = f"of/drains/chain/{digest_of(s3, names[0])}.json"
        told = json.load(s3.client.get_object(Bucket="evidence", Key=link)["Body"])
        assert files.file_sha256(folder / STATEMENT) == told["statement_sha256"]
    sly = f"of/drains/{names[2]}/../sly"
    for key in (sly, f"of/drains/{names[1]}/audit.parquet"):
        s3.client.put_object(Bucket="evidence", Key=key, Body=b"x")
    found = verify(URL).findings
    assert [found[name] for name in names] == [
        [], ["changed: audit.parquet (its SHA-256 is another)"], ["added: ..%2Fsly"],
    ]  # fmt: skip

    def remove(key: str) -> list[str]:
        for item in s3.client.list_objects_v2(Bucket="evidence", Prefix=key)["Contents"]:
            s3.client.delete_object(Bucket="evidence", Key=item["Key"])
        return verify(URL).findings["chain"]

    assert remove(f"of/drains/chain/{digest_of(s3, names[1])}")
    assert remove(f"of/drains/{names[2]}") == []  # as if it had never been; the ledger knows it
    assert "removed" in str(remove(f"of/drains/{names[0]}"))


def test_runs_at_once_never_fork_the_chain(s3: S3) -> None:
    """Five runs that end together follow one another; those that lost were sealed again."""

    with ThreadPoolExecutor(5) as pool:
        found = dict(pool.map(delivered, range(5)))
    assert verify(URL).findings == {name: [] for name in found} | {"chain": []}
    # what seal answered, and so the run ledger has, is what is there
    assert {name: digest_of(s3, name) for name in found} == found
    chain = s3.client.list_objects_v2(Bucket="evidence", Prefix="of/drains/chain/")
    assert chain["KeyCount"] == 5


def test_a_claim_that_was_cut_off_is_not_somebody_elses(s3: S3) -> None:
    """A link that came through although its reply was lost is our own, and is not claimed twice; so
    is an object of the same content, but no other."""
    reports = reports_at(URL)
    create = reports._store.create

    def twice(name: str, data: bytes) -> bool:
        create(name, data)
        return create(name, data)  # what a retry after a lost reply is told

    reports._store.create = twice  # type: ignore[method-assign]
    run_dir, _ = sealed(reports, 1)
    reports._store.put(run_dir / STATEMENT, f"{run_dir.name}/{STATEMENT}")
    reports.deliver(run_dir)
    assert verify(URL).findings == {run_dir.name: [], "chain": []}
    run_dir, _ = sealed(reports_at(URL), 2)
    reports._store.put(Path(__file__), f"{run_dir.name}/{STATEMENT}")
    with pytest.raises(DrainkitError, match="is there already, with other content"):
        reports.deliver(run_dir)


def test_a_store_that_goes_leaves_a_sealed_folder(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose copy breaks is sealed here all the same, after the run it knew; the folder is
    whole and is named, and no secret is. (Lost before its link: test_evidence_elsewhere.py.)"""
    digest = delivered(1)[1]
    reports, put = reports_at(URL), remote.Store.put

    def put_and_break(store: remote.Store, path: Path, name: str) -> None:
        put(store, path, name)
        s3.stop()

    monkeypatch.setattr(remote.Store, "put", put_and_break)
    run_dir, _ = sealed(reports, 2)
    with pytest.raises(DrainkitError, match="could not be copied") as failed:
        reports.deliver(run_dir)
    text = str(failed.value)
    assert (failed.value.exit_code, str(run_dir) in text, "\n" in text) == (1, True, False)
    assert SECRET not in text
    assert verify_run(run_dir) == []
    statement = json.loads((run_dir / STATEMENT).read_text())
    assert statement["predicate"]["previous"]["statement_sha256"] == digest


def test_a_bucket_with_object_lock_will_do(s3: S3) -> None:
    """Nothing is overwritten or deleted, so retention of every object does no harm."""
    s3.client.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
    rule = {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 1}}
    s3.client.put_object_lock_configuration(
        Bucket="locked",
        ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule},
    )
    for number in range(2):
        delivered(number, "s3://locked/r")
    assert verify("s3://locked/r").bad == []
    versions = s3.client.list_object_versions(Bucket="locked")
    assert "DeleteMarkers" not in versions
    names = [item["Key"] for item in versions["Versions"]]
    assert len(names) == len(set(names))
