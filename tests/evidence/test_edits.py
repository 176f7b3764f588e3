"""Evidence that was edited: one table of edits, and what names each; the list of runs; schemas.

By the letters: `o` the folder alone (with the allowed signers), `s` the server's run ledger, `k` a
keeper's checkpoint. What the folder tells alone, the others are not asked about.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from axe_playwright_python.sync_playwright import Axe
from backlogs import GROUP, deliver, seed
from books import at, live
from conftest import Cli, lacking
from plan_samples import plan_of
from playwright.sync_api import Browser
from pyarrow import parquet
from runs import flip, keygen, make_run, seal
from schemas import holds, schema
from servers import Server

from drainkit import files
from drainkit.evidence.verify import ROW, verify
from drainkit.signing import add_signature, sign

DRY, SIGNED, LIVE = (
    "20260101T000000Z-dry-run-00000a",
    "20260102T000000Z-live-00000b",
    "20260103T000000Z-live-00000c",
)
NEW_DRY, NEW_LIVE = "20260104T000000Z-dry-run-00000d", "20260104T000000Z-live-00000e"
OPEN, GONE = "20260105T000000Z-live-00000f", "20260105T000000Z-live-0000aa"
ANN = "ann@example.com"
STATEMENT, SUMS, SIG = "statement.json", "SHA256SUMS", "statement.json.sig"


class Evidence:
    """A reports folder: a dry run, a signed live run, and the newest, whose plan ann approved."""

    def __init__(self, reports: Path, keys: Path, url: str = "") -> None:
        self.reports, self.keys, self.url = reports, keys, url

    def __truediv__(self, name: str) -> Path:
        return self.reports / name

    def make(self, name: str, **more: Any) -> Path:
        """A run as `drainkit run` leaves it, small, not sealed yet."""
        run = {"run_id": name, "mode": "live" if "-live-" in name else "dry-run", "stream": "s",
               "consumer_group": GROUP, "plan_digest": plan_of().digest, **more}  # fmt: skip
        folder = make_run(self.reports, name=name, **run)
        if run.get("approvers"):
            add_signature(folder, plan_of().digest, self.keys / "ann")
        return folder

    def seal(self, name: str, key: str | None = None) -> None:
        """What a forger with drainkit does too: sealed as if it were for the first time."""
        for one in (STATEMENT, SIG, SUMS):
            (self / name / one).unlink(missing_ok=True)
        chain = self / "chain.json"
        if chain.exists() and json.loads(chain.read_text())["run_id"] == name:
            chain.unlink()
        run = json.loads((self / name / "run.json").read_text())
        seal(self / name, run=run, parameters={n: run.get(n) for n in ("stream", "mode")},
             sign_key=self.keys / key if key else None)  # fmt: skip

    def by(self, letter: str, kept: str = "kept") -> list[str]:
        """What `drainkit verify` finds, asked of `o`, `s` or `k`; `kept` is the keeper's file."""
        url, checkpoint = self.url if letter == "s" else None, self.reports.parent / kept
        found = verify(
            self.reports, url, self.keys / "allowed" if letter == "o" else None, streams=("s",),
            checkpoint=checkpoint if letter == "k" else None,
        )  # fmt: skip
        lines = [line for lines in found.findings.values() for line in lines]
        assert all(line.isprintable() and len(line) < 1000 for line in lines)
        return lines

    def seal_all(self, key: Callable[[str], str] = str) -> None:
        """All runs anew, in the order of their names (by `key`), so that the chain fits."""
        (self / "chain.json").unlink(missing_ok=True)
        runs = sorted((p.name for p in self.reports.glob("2*") if p.is_dir()), key=key)
        for run in runs:
            (self / run / STATEMENT).unlink(missing_ok=True)
        for run in runs:
            self.seal(run)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys of ann, who may approve and sign, and of a stranger."""
    if shutil.which("ssh-keygen") is None:
        lacking("ssh-keygen")
    folder = tmp_path_factory.mktemp("keys")
    public, _ = keygen(folder / "ann"), keygen(folder / "eve")
    (folder / "allowed").write_text(f'{ANN} valid-before="20270101" {public}\n')
    return folder


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Evidence:
    made = Evidence(tmp_path_factory.mktemp("template") / "reports", keys)
    made.make(DRY)
    made.make(SIGNED)
    made.make(LIVE, approvers=[ANN], approvals_required=1)
    for name, key in ((DRY, None), (SIGNED, "ann"), (LIVE, None)):
        made.seal(name, key)
    return made


@pytest.fixture
def evidence(template: Evidence, keys: Path, valkey: Server, tmp_path: Path) -> Evidence:
    """A copy that the server's ledger knows, and a keeper has a checkpoint of."""
    shutil.copytree(template.reports, tmp_path / "reports")
    made = Evidence(tmp_path / "reports", keys, valkey.url)
    for name in (SIGNED, LIVE):
        digest = hashlib.sha256((made / name / STATEMENT).read_bytes()).hexdigest()
        place = {"folder": str(made / name), "host": socket.gethostname()}
        note(valkey, event="evidence", run_id=name, statement_sha256=digest, **place)
    (tmp_path / "kept").write_text(f"drainkit checkpoint v1\n3\n{digest}\n")
    return made


def note(server: Server, **fields: Any) -> None:
    server.client().xadd("s.drain_runs", fields)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def restate(e: Evidence, change: Callable[[dict[str, Any]], object] | str) -> None:
    """Edit the newest statement; SHA256SUMS and chain.json get its new digest."""
    path = e / LIVE / STATEMENT
    old = hashlib.sha256(path.read_bytes()).hexdigest()
    if isinstance(change, str):
        path.write_text(change)
    else:
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))
    new = hashlib.sha256(path.read_bytes()).hexdigest()
    for other in (e / LIVE / SUMS, e / "chain.json"):
        other.write_text(other.read_text().replace(old, new))


def predicate(**changes: Any) -> Callable[[Evidence], object]:
    return lambda e: restate(e, lambda s: s["predicate"].update(changes))


def link_to(e: Evidence, name: str) -> dict[str, str]:
    digest = hashlib.sha256((e / name / STATEMENT).read_bytes()).hexdigest()
    return {"run_id": name, "statement_sha256": digest}


def remove(e: Evidence, *names: str) -> None:
    for name in names:
        shutil.rmtree(e / name)


def in_place_of(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


#: Edits of one file of the newest run, by who names them once all is sealed anew.
CONTENT: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a count": ("sk", lambda d: edit(d / "run.json", total_read=8)),
    "the operator an approver": ("o", lambda d: edit(d / "run.json", operator="ann")),
    "no approver": ("o", lambda d: edit(d / "run.json", approvers=[])),
    "a time after the key's": ("o", lambda d: edit(d / "run.json", started_at="2028-01-01")),
    "fewer approvals than required": ("o", lambda d: edit(d / "run.json", approvals_required=2)),
    "another stream": ("sk", lambda d: edit(d / "run.json", stream="other")),
    "a dry run": ("o", lambda d: edit(d / "run.json", mode="dry-run")),
    "the plan's throttle": ("o", lambda d: edit(d / "plan.json", throttle=1.0)),
    "the approval": ("o", lambda d: flip(d / "plan.json.sig", 99)),
    "the approval gone": ("o", lambda d: (d / "plan.json.sig").unlink()),
    "the decisions": ("o", lambda d: flip(d / "decisions.parquet", 99)),
    "the report": ("sk", lambda d: (d / "report.html").write_text("fine")),
    "a file removed": ("sk", lambda d: (d / "baseline.json").unlink()),
    "a hidden file added": ("sk", lambda d: (d / ".note").write_text("x")),
    "an odd name": ("sk", lambda d: (d / "a\\n\u202eb").write_text("x")),
}  # fmt: skip

#: Other edits, whatever was remade after them.
OTHERS: dict[str, tuple[str, Callable[[Evidence], object]]] = {
    "a byte of SHA256SUMS": ("o", lambda e: flip(e / LIVE / SUMS)),
    "a byte of the statement": ("o", lambda e: flip(e / LIVE / STATEMENT, 200)),
    "SHA256SUMS removed": ("o", lambda e: (e / LIVE / SUMS).unlink()),
    "the statement removed": ("o", lambda e: (e / LIVE / STATEMENT).unlink()),
    "a name of bytes added": ("o", lambda e: os.close(
        os.open(os.fsencode(e / LIVE) + b"/\xffx", os.O_CREAT))),
    "a FIFO added": ("o", lambda e: os.mkfifo(e / LIVE / "more")),
    "a byte of the signature": ("o", lambda e: flip(e / SIGNED / SIG, 99)),
    "the signature stripped": ("o", lambda e: (e / SIGNED / SIG).unlink()),
    "sealed anew, a stranger signs": ("o", lambda e: e.seal(LIVE, "eve")),
    "signed with another key": ("osk", lambda e: (e / SIGNED / SIG).write_bytes(
        sign((e / SIGNED / STATEMENT).read_bytes(), e.keys / "eve", "drainkit"))),
    "signed for something else": ("o", lambda e: (e / LIVE / SIG).write_bytes(
        sign((e / LIVE / STATEMENT).read_bytes(), e.keys / "ann", "git"))),
    "sealed anew without signatures": ("sk", lambda e: e.seal_all()),
    "a run removed in the middle": ("o", lambda e: remove(e, SIGNED)),
    "the newest run removed": ("o", lambda e: remove(e, LIVE)),
    "a dry run removed, all sealed anew": ("sk", lambda e: (remove(e, DRY), e.seal_all())),
    "the newest cut off": ("sk", lambda e: (remove(e, LIVE), e.seal_all())),
    "a run never sealed": ("o", lambda e: e.make(NEW_LIVE)),
    "one statement changed, all sealed anew": ("sk", lambda e: (
        edit(e / DRY / "run.json", total_read=9), e.seal_all())),
    "a dry run after a live one": ("sk", lambda e: e.seal_all(
        lambda name: {DRY: SIGNED, SIGNED: DRY}.get(name, name))),
    "a run that never was": ("s", lambda e: (e.make(NEW_LIVE), e.seal(NEW_LIVE))),
    "a dry run put in between": ("sk", lambda e: (
        e.make("20260101T120000Z-dry-run-00000d"), e.seal_all())),
    "a live run made a dry run": ("sk", lambda e: (
        (e / LIVE).rename(e / NEW_DRY),
        edit(e / NEW_DRY / "run.json", run_id=NEW_DRY, mode="dry-run"), e.seal_all())),
    "a run copied": ("o", lambda e: shutil.copytree(e / SIGNED, e / NEW_LIVE)),
    "one run in the middle sealed anew": ("o", lambda e: e.seal(SIGNED, "ann")),
    "chain.json removed": ("o", lambda e: (e / "chain.json").unlink()),
    "chain.json of an earlier run": ("o", lambda e: edit(e / "chain.json", run_id=SIGNED)),
    "a stray file beside the runs": ("o", lambda e: (e / "notes.txt").write_text("x")),
    "a link for a run": ("o", lambda e: (
        (e / LIVE).rename(e.reports.parent / "x"), (e / LIVE).symlink_to("../x"))),
    **{f"a FIFO for {name}": ("o", lambda e, name=name: in_place_of(e / LIVE / name, os.mkfifo))
       for name in ("run.json", "plan.json.sig", STATEMENT, SUMS)},
    "a FIFO for the signature": ("o", lambda e: in_place_of(e / SIGNED / SIG, os.mkfifo)),
    "a FIFO for chain.json": ("o", lambda e: in_place_of(e / "chain.json", os.mkfifo)),
    "a link to the same bytes": ("o", lambda e: (
        shutil.copy(e / LIVE / "run.json", e.reports.parent / "same"),
        in_place_of(e / LIVE / "run.json", lambda path: path.symlink_to("../../same")))),
    "a huge file": ("o", lambda e: os.truncate(e / LIVE / "report.html", 3 << 40)),  # a hole
    "other parameters": ("sk", predicate(parameters={"stream": "s", "throttle": 1})),
    "a stream that is none": ("o", predicate(parameters={"stream": "\udcff"})),
    "an odd start": ("o", predicate(started_at="0001-01-01T00:00:00+14:00")),
    "no run before": ("o", lambda e: restate(e, lambda s: s["predicate"].pop("previous"))),
    "a subject twice": ("o", lambda e: restate(
        e, lambda s: s["subject"].append(dict(s["subject"][0])))),
    "a subject left out": ("o", lambda e: restate(e, lambda s: s["subject"].pop())),
    "a subject outside": ("o", lambda e: restate(
        e, lambda s: s["subject"].append({"name": "../chain.json", "digest": {"sha256": ""}}))),
    "a statement too deep": ("o", lambda e: restate(e, "[" * 100_000)),
}  # fmt: skip


def named_by(evidence: Evidence, letters: str) -> None:
    """Which edits need the server or a keeper is no guess; a checkpoint that is not met stays."""
    if letters == "o":
        assert evidence.by("o")
        return
    kept = (evidence.reports.parent / "kept").read_bytes()
    assert "".join(letter for letter in "osk" if evidence.by(letter)) == letters
    assert ((evidence.reports.parent / "kept").read_bytes() == kept) == ("k" in letters)


def test_what_was_not_edited_is_well(evidence: Evidence, cli: Cli) -> None:
    """Nothing is found by the folder, the ledger or the checkpoint, also where README and the
    example lie beside the runs, and others signed a dry run's plan where it lies: what is no
    signature of it is named. The command line says the same as the verb."""
    (evidence / "README.md").write_text("x")
    shutil.copytree(evidence / LIVE, evidence / "example")
    add_signature(evidence / DRY, plan_of().digest, evidence.keys / "ann")
    assert [evidence.by(letter) for letter in "osk"] == [[], [], []]
    for rc in (0, 1):
        done = cli("verify", evidence.reports, "--json")
        lines = [line for lines in done.json()["findings"].values() for line in lines]
        assert (done.rc, done.json()["ok"], done.err) == (rc, not rc, "")
        assert all("after.json" in line for line in lines)
        (evidence / LIVE / "after.json").write_text("{}")
    shutil.copy(evidence / SIGNED / SIG, evidence / DRY / "plan.json.sig")
    assert "added: plan.json.sig" in evidence.by("o")


@pytest.mark.parametrize("what", CONTENT)
def test_an_edit_is_named(evidence: Evidence, what: str) -> None:
    """With sums made anew by the statement; with statement, sums and chain made anew by the ledger
    and a keeper, by the folder alone only what contradicts itself, plan or approvals."""
    letters, change = CONTENT[what]
    folder = evidence / LIVE
    change(folder)
    listed = sorted(path.name for path in folder.iterdir() if path.name != SUMS)
    sums = subprocess.run(["sha256sum", "--", *listed], cwd=folder, check=True, capture_output=True)
    (folder / SUMS).write_bytes(sums.stdout)
    assert evidence.by("o")
    evidence.seal(LIVE)
    named_by(evidence, letters)


@pytest.mark.parametrize("what", OTHERS)
def test_every_other_edit_is_named(evidence: Evidence, what: str) -> None:
    """By what the table says, in printable lines; nothing is waited for."""
    letters, change = OTHERS[what]
    change(evidence)
    named_by(evidence, letters)


# ---------------------------------------------------------------- what the server's ledger adds


def test_a_trimmed_ledger_is_named(evidence: Evidence, valkey: Server) -> None:
    """A ledger that lacks entries, of whatever kind, is a finding; another key in its place too."""
    valkey.client().xtrim("s.drain_runs", maxlen=2, approximate=False)
    assert evidence.by("s") == []
    note(valkey, event="stop", reason="x")
    last = valkey.client().xrevrange("s.drain_runs", count=1)[0][0]
    valkey.client().xdel("s.drain_runs", last)
    (finding,) = evidence.by("s")
    assert "lacks 1 of the entries" in finding
    valkey.client().delete("s.drain_runs")
    valkey.client().set("s.drain_runs", "x")
    assert "is a string, not a stream" in str(evidence.by("s"))


def test_what_the_ledger_has_beside_the_folder(
    evidence: Evidence, cli: Cli, valkey: Server, tmp_path: Path
) -> None:
    """A `drain` leaves no evidence by design: all is well, and its run id and operator are said. A
    live run that lies, as it was sealed, in a second folder is not gone; later it is. One run
    alone is held against the ledger too."""
    other = Evidence(tmp_path / "second", evidence.keys)
    other.make(NEW_LIVE)
    other.seal(NEW_LIVE)
    place = {"folder": str(other / NEW_LIVE), "host": socket.gethostname()}
    note(valkey, event="evidence", **link_to(other, NEW_LIVE), **place)
    seed(valkey, "s", 20, delivered=5)
    drain = ("drain", "--mode", "live", "--yes", "--json", "--operator", "olga", *at(valkey, "s"))
    drained = cli.done(*drain)
    said = cli("verify", evidence.reports, "--redis-url", valkey.url, "--stream", "s")
    line = f"live drain without evidence: {drained.json()['run_id']} by olga"
    assert (said.rc, line in said.out, "All well: 3 run(s)" in said.out) == (0, True, True), said
    shutil.rmtree(other / NEW_LIVE)
    assert f"{NEW_LIVE} is gone" in str(evidence.by("s"))
    (evidence / LIVE / "report.html").write_text("fine")
    evidence.seal(LIVE)
    alone = ("verify", evidence / LIVE)
    cli.done(*alone)
    held = cli(*alone, "--redis-url", valkey.url, "--stream", "s")
    assert (held.rc, "ledger has another digest" in held.out) == (1, True), held


# ---------------------------------------------------------------- archives, keepers, signers


def test_a_run_of_which_its_statement_is_left_is_archived(evidence: Evidence, cli: Cli) -> None:
    """No finding by folder, ledger or keeper, and counted; anything more, or less, is a finding."""
    kept = {STATEMENT, SIG, "plan.json.sig"}
    for path in evidence.reports.glob("2*/*"):
        if path.name not in kept:
            path.unlink()
    assert [evidence.by(letter) for letter in "osk"] == [[], [], []]
    said = cli("verify", evidence.reports)
    assert (said.rc, "3 archived" in said.out) == (0, True), said
    assert cli("verify", evidence / LIVE).rc == 0
    (evidence / LIVE / "report.html").write_text("x")
    (evidence / SIGNED / SIG).unlink()
    flip(evidence / DRY / STATEMENT, 200)
    assert len(evidence.by("o")) > 3


def test_a_checkpoint_moves_on_with_its_chain(evidence: Evidence, cli: Cli, tmp_path: Path) -> None:
    """It is written where all is well, moves on as runs come, and keepers of different age agree;
    what is no checkpoint, or of one run, is bad usage."""
    evidence.make(NEW_DRY)
    evidence.seal(NEW_DRY)
    second = link_to(evidence, SIGNED)["statement_sha256"]
    (tmp_path / "old").write_text(f"drainkit checkpoint v1\n2\n{second}\n")
    (tmp_path / "link").symlink_to("old")  # what a keeper mounts elsewhere moves on there
    assert [evidence.by("k", name) for name in ("new", "link", "kept")] == [[]] * 3
    digest = link_to(evidence, NEW_DRY)["statement_sha256"]
    for name in ("new", "old", "kept"):
        assert (tmp_path / name).read_text() == f"drainkit checkpoint v1\n4\n{digest}\n"
    (tmp_path / "odd").write_text("drainkit checkpoint v2\n4\n")
    for what, kept in ((evidence.reports, "odd"), (evidence / LIVE, "kept")):
        assert cli("verify", what, "--checkpoint", tmp_path / kept).rc == 2
    (evidence / NEW_DRY / "report.html").write_text("fine")
    evidence.seal(NEW_DRY)  # of a dry run, the newest, nobody else has a trace
    assert evidence.by("o") == evidence.by("s") == []
    assert f"made anew: the checkpoint's run 4 (statement {digest[:12]}" in str(evidence.by("k"))
    OTHERS["a dry run removed, all sealed anew"][1](evidence)
    assert evidence.by("o") == []
    assert "the chain of 3 runs, whose run 4 is missing" in str(evidence.by("k"))
    evidence.seal(SIGNED)
    assert evidence.by("k", "none")
    assert not (tmp_path / "none").exists()


def test_bombs_take_neither_memory_nor_time(evidence: Evidence) -> None:
    """What is small on disk and huge in memory, too large, or slow to look at, is named, within 1.2
    GB of address space and 120 s on a busy machine."""
    dry, signed, live = (evidence / name for name in (DRY, SIGNED, LIVE))
    (dry / "run.json").write_text("[" + "[]," * (1 << 20) + "0]")
    logins = (signed / STATEMENT).read_text().replace(SIGNED, "redis://" * 400_000, 1)
    (signed / STATEMENT).write_text(logins)
    (live / SUMS).write_text("x\n" * (30 << 20))
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 2600), ["x" * 1_000_000])
    parquet.write_table(pa.table({"x": texts}), live / "audit.parquet")
    done = subprocess.run(
        ["prlimit", "--as=1200000000", sys.executable, "-m", "drainkit", "verify",
         evidence.reports],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    for line in (f"{DRY}: changed: run.json", f"renamed: {SIGNED}", f"{LIVE}: changed: SHA256SUMS",
                 f"{LIVE}: changed: audit.parquet"):  # fmt: skip
        assert line in done.stdout, line


# ---------------------------------------------------------------- the list of runs


@pytest.fixture
def made(evidence: Evidence) -> Evidence:
    """With a run more, that was killed."""
    files.make_folder(evidence / OPEN)
    said = {"outcome": "interrupted", "total_read": "\x1b[31m"}
    files.write_json(evidence / OPEN / "run.json", said)
    return evidence


def listed(cli: Cli, *args: object) -> dict[str, dict[str, Any]]:
    """The runs by id, in the order in which they are told."""
    found = cli("runs", "--json", *args)
    assert found.rc == 0, found
    assert found.json().keys() == {"runs"}
    return {run["run_id"]: run for run in found.json()["runs"]}


def test_each_run_is_a_line_with_the_state_of_its_seal(made: Evidence, cli: Cli) -> None:
    """Newest first, with exactly the contract's keys; what was changed, archived or killed."""
    flip(made / SIGNED / "report.html")
    for path in (made / DRY).iterdir():
        if path.name != "statement.json":
            path.unlink()
    found = listed(cli)
    assert [*found] == [OPEN, LIVE, SIGNED, DRY]
    assert all([*run] == [*ROW] for run in found.values())
    assert [run["seal"] for run in found.values()] == ["interrupted", "ok", "broken", "archived"]
    assert found[LIVE] == {
        "run_id": LIVE, "started_at": "2026-01-01T00:00:00+00:00", "stream": "s",
        "consumer_group": GROUP, "mode": "live", "outcome": "done", "total_read": 7,
        "drained_ok": 3, "operator": "olga", "approvers": [ANN], "evidence": f"reports/{LIVE}",
        "seal": "ok",
    }  # fmt: skip
    assert (found[DRY]["mode"], found[DRY]["total_read"]) == ("dry-run", 7)
    assert found[OPEN]["total_read"] is None
    lines = cli("runs").out.splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["interrupted", "ok", "broken", "archived"]
    assert cli("runs", "nowhere").rc == 2


def test_the_ledger_adds_live_runs_without_evidence(
    made: Evidence, valkey: Server, stream: str, cli: Cli
) -> None:
    """A plain drain, and a run whose folder is gone; not one that lies in another folder here.
    Where there is no folder of runs these are all."""
    seed(valkey, stream, 60, delivered=0)
    drain = cli.done(*live(valkey, stream, "--max-events", 7, "--operator", "olga")).json()
    ledger = f"{stream}.drain_runs"
    start = valkey.client().xrange(ledger, count=1)[0][1]
    elsewhere = files.make_folder(cli.cwd / "others" / NEW_LIVE)
    for name, folder in ((LIVE, made / LIVE), (GONE, made / GONE), (NEW_LIVE, elsewhere)):
        valkey.client().xadd(ledger, start | {b"run_id": name, b"folder": str(folder)})
    assert [*listed(cli)] == [OPEN, LIVE, SIGNED, DRY]
    where = at(valkey, stream)
    found = listed(cli, *where)
    assert {*found} == {OPEN, LIVE, SIGNED, DRY, GONE, drain["run_id"]}
    for name in (GONE, drain["run_id"]):
        assert (found[name]["evidence"], found[name]["seal"]) == (None, None)
    told = found[drain["run_id"]]
    assert [told[k] for k in ROW[2:9]] == [
        stream, GROUP, "live", "done", 7, drain["drained_ok"], "olga",
    ]  # fmt: skip
    assert "no evidence" in cli("runs", *where).out
    made.reports.rename(cli.cwd / "moved")  # as where nobody has evidence
    assert {drain["run_id"], GONE, LIVE} == {*listed(cli, *where)}


@pytest.mark.browser
def test_the_page_leads_to_each_report(made: Evidence, cli: Cli, browser: Browser) -> None:
    """One page without a script, in which axe finds no fault; a link for each report there is."""
    files.write_json(made / OPEN / "run.json", {"stream": "<img src=x onerror=alert(1)>"})
    path = cli.cwd / "pages" / "runs of <b>.html"
    path.parent.mkdir()
    assert cli("runs", "--html", path).rc == 0
    page = browser.new_page()
    page.goto(path.as_uri())
    assert Axe().run(page).response["violations"] == []
    assert page.locator("script").count() == page.locator("img").count() == 0
    links = [link.evaluate("a => a.href") for link in page.locator("tbody a").all()]
    assert links == [(made / name / "report.html").as_uri() for name in (LIVE, SIGNED, DRY)]
    page.locator("tbody a").first.click()
    assert page.inner_text("p") == LIVE


def test_real_output_is_as_the_schemas_say(valkey: Server, stream: str, cli: Cli) -> None:
    """What dry and live drains print and, of a stream drained in part and stopped, status, check
    and runs; a schema names each key there is (of evidence: test_pipeline.py)."""
    where, others = at(valkey, stream), "--allow-active-consumers"
    seed(valkey, stream, 60, delivered=20)
    deliver(valkey, stream, "c", 3)
    holds("drain", cli.done("drain", "--json", *where).json())
    holds("drain", cli.done(*live(valkey, stream, "--max-events", 7, others)).json())
    cli.done("stop", "--reason", "x", *where)
    assert cli(*live(valkey, stream)).rc == 4
    (cli.cwd / "reports").mkdir()
    for command in ("status", "check", "runs"):
        holds(command, cli(command, "--json", *where).json())
    assert [*schema("runs")["properties"]["runs"]["items"]["properties"]] == [*ROW]
