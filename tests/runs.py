"""Runs of the evidence's tests: small folders as `drainkit run` leaves them, sealed and chained."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from plan_samples import plan_of, save_plan, table_of

from drainkit import files
from drainkit.evidence import seal as sealing

RUN = {
    "outcome": "done", "exit_code": 0, "total_read": 7, "drained_ok": 3, "operator": "olga",
    "started_at": "2026-01-01T00:00:00+00:00", "finished_at": "2026-01-01T00:01:00+00:00",
}  # fmt: skip


def make_run(reports: Path, number: int = 0, *, name: str = "", **run: Any) -> Path:
    """A run's folder with every kind of file, not sealed yet; `run`: more of its run.json."""
    folder = files.make_folder(reports / (name or f"2025122{number}T194958Z-live-00000{number}"))
    files.write_json(folder / "run.json", {**RUN, **run})
    for other in ("baseline.json", "after.json", "03_live_drain.ipynb"):
        files.write_json(folder / other, {"of": folder.name})
    files.write_text(folder / "report.html", f"<p>{folder.name}</p>")
    files.write_table(folder / "audit.parquet", pa.table({"id": [folder.name]}))
    save_plan(folder / "plan.json", plan_of(), [table_of()])
    return folder


def seal(folder: Path, **other: Any) -> str:
    server, parameters = {"kind": "valkey", "version": "9.1.0"}, {"stream": "s", "throttle": 5.0}
    told = {"run": RUN, "parameters": parameters, "server": server, **other}
    return sealing.seal(folder, **told)


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    return tmp_path / "reports"


@pytest.fixture
def sealed(reports: Path) -> Path:
    folder = make_run(reports)
    seal(folder)
    return folder


@pytest.fixture
def chain(reports: Path) -> list[Path]:
    """Four sealed runs; the names' times go backwards, as after a clock step."""
    runs = [make_run(reports, 9 - i) for i in range(4)]
    for run in runs:
        seal(run)
    return runs


def statement(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "statement.json").read_text())
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def keygen(path: Path) -> str:
    """Make a key to sign with; what stands of it in a file of allowed signers."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return " ".join(path.with_suffix(".pub").read_text().split()[:2])


def flip(path: Path, at: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
