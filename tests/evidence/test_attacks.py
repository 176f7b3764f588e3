"""Evidence under attack: rewritten, sealed anew, removed, swapped; each way is named.

`OFFLINE` ways are named from the folder alone. The others leave files that fit each other: only the
server's run ledger, which the attacker cannot rewrite, tells.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import lacking
from servers import Server as Machine

from drainkit import files
from drainkit.evidence import seal as sealing
from drainkit.evidence.verify import verify
from drainkit.server import ledger
from drainkit.server.connection import Server

DRY, LIVE, LAST = (
    "20260101T000000Z-dry-run-00000a",
    "20260102T000000Z-live-00000b",
    "20260103T000000Z-live-00000c",
)
FRESH_DRY, FRESH_LIVE = "20260104T000000Z-dry-run-00000d", "20260104T000000Z-live-00000e"


@dataclass
class Evidence:
    """A reports folder with a dry run and two live runs, the last one signed."""

    reports: Path
    stream: str
    key: Path

    def __truediv__(self, name: str) -> Path:
        return self.reports / name


def make_run(e: Evidence, run_id: str, mode: str, *, key: Path | None = None) -> Path:
    """A sealed run, as `drainkit run` leaves it, small."""
    folder = sealing.open_run(e.reports, run_id)
    run = {"run_id": run_id, "mode": mode, "stream": e.stream, "outcome": "done", "exit_code": 0,
           "total_read": 7, "drained_ok": 3}  # fmt: skip
    files.write_json(folder / "run.json", run)
    files.write_json(folder / "plan.json", {"digest": run_id})
    files.write_text(folder / "report.html", f"<p>{run_id}</p>")
    reseal(folder, key=key)
    return folder


def reseal(folder: Path, *, key: Path | None = None, **more: Any) -> None:
    """What a forger with drainkit does: the same folder, sealed as if it were the first time."""
    for name in ("statement.json", "statement.json.sig", "SHA256SUMS"):
        (folder / name).unlink(missing_ok=True)
    chain = folder.parent / "chain.json"
    if chain.exists() and json.loads(chain.read_text())["run_id"] == folder.name:
        chain.unlink()
    run = json.loads((folder / "run.json").read_text())
    parameters = {"stream": run["stream"], "mode": run["mode"], **more}
    sealing.seal(folder, run=run, parameters=parameters, server={}, sign_key=key)


def rechain(reports: Path) -> None:
    """Seal all runs anew in the order of their names, so that the chain fits."""
    (reports / "chain.json").unlink(missing_ok=True)
    runs = sorted(path for path in reports.iterdir() if path.is_dir())
    for run in runs:
        (run / "statement.json").unlink(missing_ok=True)
    for run in runs:
        reseal(run)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def restate(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edit the statement; SHA256SUMS and chain.json get its new digest."""
    path = folder / "statement.json"
    old = hashlib.sha256(path.read_bytes()).hexdigest()
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    refit(folder, old)


def refit(folder: Path, old: str) -> None:
    new = hashlib.sha256((folder / "statement.json").read_bytes()).hexdigest()
    for path in (folder / "SHA256SUMS", folder.parent / "chain.json"):
        path.write_text(path.read_text().replace(old, new))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def remove(e: Evidence, *names: str) -> None:
    for name in names:
        shutil.rmtree(e / name)


def swap(one: Path, other: Path) -> None:
    away = one.with_name("away")
    one.rename(away)
    other.rename(one)
    away.rename(other)


def in_place_of(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def grow(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(3 << 40)  # a hole of 3 TiB


def twice(folder: Path, old: str, new: str) -> None:
    path = folder / "statement.json"
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text(path.read_text().replace(old, new, 1))
    refit(folder, before)


def bind_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(here)


def as_dry_run(e: Evidence, name: str) -> None:
    """A live run made a dry run everywhere: folder, run.json, statement, chain."""
    new = name.replace("-live-", "-dry-run-")
    (e / name).rename(e / new)
    edit(e / new / "run.json", mode="dry-run", run_id=new)
    rechain(e.reports)


def emptied_then(e: Evidence, *fresh: tuple[str, str]) -> None:
    for path in e.reports.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, mode in fresh:
        make_run(e, name, mode)


OFFLINE: dict[str, Callable[[Evidence], object]] = {
    "a byte of run.json": lambda e: flip(e / LIVE / "run.json"),
    "a byte of the report": lambda e: flip(e / LIVE / "report.html"),
    "a byte of SHA256SUMS": lambda e: flip(e / LIVE / "SHA256SUMS"),
    "a byte of the statement": lambda e: flip(e / LIVE / "statement.json"),
    "a byte of the signature": lambda e: flip(e / LAST / "statement.json.sig"),
    "a file removed": lambda e: (e / LIVE / "plan.json").unlink(),
    "a file added": lambda e: (e / LIVE / "note").write_text("x"),
    "a hidden file added": lambda e: (e / LIVE / ".note").write_text("x"),
    "a folder added": lambda e: (e / LIVE / "more").mkdir(),
    "SHA256SUMS removed": lambda e: (e / LIVE / "SHA256SUMS").unlink(),
    "the statement removed": lambda e: (e / LIVE / "statement.json").unlink(),
    "both removed": lambda e: [(e / LIVE / n).unlink() for n in ("statement.json", "SHA256SUMS")],
    "the signature stripped": lambda e: (e / LAST / "statement.json.sig").unlink(),
    "a signature of another run": lambda e: shutil.copy(
        e / LAST / "statement.json.sig", e / LIVE / "statement.json.sig"
    ),
    "the first run removed": lambda e: remove(e, DRY),
    "a middle run removed": lambda e: remove(e, LIVE),
    "the newest run removed": lambda e: remove(e, LAST),
    "chain.json removed": lambda e: (e / "chain.json").unlink(),
    "chain.json of an earlier run": lambda e: edit(e / "chain.json", run_id=LIVE),
    "a run renamed": lambda e: (e / LIVE).rename(e / FRESH_LIVE),
    "a live run renamed a dry run": lambda e: (e / LIVE).rename(e / FRESH_DRY),
    "a run copied": lambda e: shutil.copytree(e / LIVE, e / FRESH_LIVE),
    "two runs swapped": lambda e: swap(e / LIVE, e / LAST),
    "a file of another run": lambda e: shutil.copy(e / LAST / "run.json", e / LIVE / "run.json"),
    "one run sealed anew": lambda e: (edit(e / LIVE / "run.json", total_read=8), reseal(e / LIVE)),
    "a live run told as a dry run": lambda e: (
        edit(e / LIVE / "run.json", mode="dry-run"), rechain(e.reports)
    ),
    "a subject twice": lambda e: restate(
        e / LAST, lambda s: s["subject"].append(dict(s["subject"][0]))
    ),
    "a subject left out": lambda e: restate(e / LAST, lambda s: s["subject"].pop()),
    "a subject outside": lambda e: restate(
        e / LAST, lambda s: s["subject"].append({"name": "../chain.json", "digest": {"sha256": ""}})
    ),
    "a key twice": lambda e: twice(e / LAST, '"predicate": {', '"predicate": {"run_id": "x",'),
    "a subject list twice": lambda e: twice(
        e / LAST, '"subject": [', '"subject": [], "subject": ['
    ),
    "a FIFO for a file": lambda e: in_place_of(e / LIVE / "run.json", os.mkfifo),
    "a FIFO for the statement": lambda e: in_place_of(e / LIVE / "statement.json", os.mkfifo),
    "a FIFO for SHA256SUMS": lambda e: in_place_of(e / LIVE / "SHA256SUMS", os.mkfifo),
    "a FIFO for the signature": lambda e: in_place_of(e / LAST / "statement.json.sig", os.mkfifo),
    "a FIFO for chain.json": lambda e: in_place_of(e / "chain.json", os.mkfifo),
    "a link to a device": lambda e: in_place_of(
        e / LIVE / "run.json", lambda path: path.symlink_to("/dev/zero")
    ),
    "a link to the same bytes": lambda e: (
        shutil.copy(e / LIVE / "run.json", e / "kept"),
        in_place_of(e / LIVE / "run.json", lambda path: path.symlink_to("../kept")),
    ),
    "a socket": lambda e: in_place_of(e / LIVE / "run.json", bind_socket),
    "a huge file": lambda e: grow(e / LIVE / "report.html"),
    "a huge statement": lambda e: grow(e / LIVE / "statement.json"),
    "a link for a run": lambda e: (
        (e / LIVE).rename(e / "elsewhere"), (e / LIVE).symlink_to("elsewhere")
    ),
    "a file for a run": lambda e: (remove(e, LIVE), (e / LIVE).write_text("x")),
}  # fmt: skip

WITH_SERVER: dict[str, Callable[[Evidence], object]] = {
    "a number changed, all sealed anew": lambda e: (
        edit(e / LIVE / "run.json", drained_ok=4), rechain(e.reports)
    ),
    "the report changed, all sealed anew": lambda e: (
        (e / LIVE / "report.html").write_text("fine"), rechain(e.reports)
    ),
    "nothing changed, all sealed anew": lambda e: rechain(e.reports),
    "other parameters in the newest statement": lambda e: restate(
        e / LAST, lambda s: (s["predicate"]["parameters"].update(throttle=1),
                             s["predicate"].update(signed_by=None),
                             (e / LAST / "statement.json.sig").unlink()),
    ),
    "signature stripped, statement without it": lambda e: reseal(e / LAST),
    "signed by another key": lambda e: (
        reseal(e / LAST, key=e.key.with_name("other"))
    ),
    "a live run made a dry run throughout": lambda e: as_dry_run(e, LIVE),
    "the newest live run made a dry run": lambda e: as_dry_run(e, LAST),
    "a live run of another stream": lambda e: (
        edit(e / LIVE / "run.json", stream="other:stream"), rechain(e.reports)
    ),
    "the newest run removed with its trace": lambda e: (remove(e, LAST), rechain(e.reports)),
    "a middle run removed with its trace": lambda e: (remove(e, LIVE), rechain(e.reports)),
    "all live runs removed with their traces": lambda e: (
        remove(e, LIVE, LAST), rechain(e.reports)
    ),
    "all live runs removed, a fresh dry run": lambda e: emptied_then(e, (FRESH_DRY, "dry-run")),
    "a fresh live run in an emptied folder": lambda e: emptied_then(e, (FRESH_LIVE, "live")),
    "live runs under new names": lambda e: (
        (e / LIVE).rename(e / FRESH_LIVE), edit(e / FRESH_LIVE / "run.json", run_id=FRESH_LIVE),
        rechain(e.reports),
    ),
    "a run that never was": lambda e: make_run(e, FRESH_LIVE, "live"),
    "two live runs' files swapped and sealed": lambda e: (
        swap(e / LIVE / "plan.json", e / LAST / "plan.json"), rechain(e.reports)
    ),
}  # fmt: skip


@pytest.fixture
def evidence(valkey: Machine, stream: str, tmp_path: Path) -> Evidence:
    """Runs that the server's ledger knows."""
    if shutil.which("ssh-keygen") is None:
        lacking("ssh-keygen")
    for name in ("key", "other"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True
        )
    made = Evidence(tmp_path / "reports", stream, tmp_path / "key")
    with Server(valkey.url, stream) as server:
        for name, mode in ((DRY, "dry-run"), (LIVE, "live"), (LAST, "live")):
            folder = make_run(made, name, mode, key=made.key if name == LAST else None)
            if mode == "live":
                digest = hashlib.sha256((folder / "statement.json").read_bytes()).hexdigest()
                place = {"folder": str(folder), "host": socket.gethostname()}
                ledger.append(server, ledger.Sealed(name, digest, **place))
    return made


def findings(e: Evidence, url: str | None) -> list[str]:
    found = verify(e.reports, url, streams=(e.stream,) if url else ()).findings
    return [f"{name}: {line}" for name, lines in found.items() for line in lines]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("way", [*OFFLINE, *WITH_SERVER])
def test_every_way_is_named(evidence: Evidence, valkey: Machine, way: str) -> None:
    """Nothing is found before, something after, in printable lines; nothing is waited for."""
    assert findings(evidence, valkey.url) == []
    (OFFLINE | WITH_SERVER)[way](evidence)
    named = findings(evidence, valkey.url)
    assert named
    assert all(line.isprintable() for line in named)
    # which ways need the server is not a guess
    assert bool(findings(evidence, None)) == (way in OFFLINE)


@pytest.mark.parametrize("way", ["a number changed, all sealed anew", "signed by another key"])
def test_one_run_alone_is_held_against_the_ledger(
    evidence: Evidence, valkey: Machine, way: str
) -> None:
    """`verify RUN_DIR --redis-url` does not believe the folder either."""
    WITH_SERVER[way](evidence)
    name = LAST if "signed" in way else LIVE
    assert verify(evidence / name).findings[name] == []
    assert "ledger" in str(verify(evidence / name, valkey.url, streams=(evidence.stream,)).findings[name])


def test_runs_of_another_reports_folder_are_not_missed(
    evidence: Evidence, valkey: Machine, tmp_path: Path
) -> None:
    """A live run that lies, as it was sealed, in a second folder is not gone; later it is."""
    other = Evidence(tmp_path / "second", evidence.stream, evidence.key)
    folder = make_run(other, FRESH_LIVE, "live")
    digest = hashlib.sha256((folder / "statement.json").read_bytes()).hexdigest()
    with Server(valkey.url, evidence.stream) as server:
        place = {"folder": str(folder), "host": socket.gethostname()}
        ledger.append(server, ledger.Sealed(FRESH_LIVE, digest, **place))
    assert findings(evidence, valkey.url) == findings(other, valkey.url) == []
    shutil.rmtree(folder)
    assert f"{FRESH_LIVE} is gone" in str(findings(evidence, valkey.url))
