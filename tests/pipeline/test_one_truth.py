"""One truth a run: what belongs to a run names one boundary, one run id, one count."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import redis
from books import GROUP, at, seed
from conftest import Cli
from servers import Server

PRODUCER = """
import sys, time, redis
client = redis.Redis.from_url(sys.argv[1])
while True:
    client.xadd(sys.argv[2], {"symbol": "BTCUSDT", "confidence": "0.9"})
    time.sleep(0.005)
"""


def outputs(notebook: dict) -> str:  # type: ignore[type-arg]
    """All that a notebook shows, as text."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return json.dumps([cell["outputs"] for cell in cells])


def test_a_run_beside_a_producer_tells_one_truth(valkey: Server, stream: str, cli: Cli) -> None:
    """Baseline, notebooks, plan, summary, report and statement name one boundary and one count."""
    seed(valkey, stream, 400, delivered=100)
    producer = subprocess.Popen([sys.executable, "-c", PRODUCER, valkey.url, stream])
    try:
        with redis.Redis.from_url(valkey.url) as client:
            while client.xlen(stream) < 410:
                pass
        run = cli(
            "run", "--mode", "live", "--yes", "--json", "--throttle", "none", "--max-events", "all",
            *at(valkey, stream), "--consumer-group", GROUP, timeout_sec=240,
        )  # fmt: skip
        assert producer.poll() is None
    finally:
        producer.kill()
        producer.wait()
    assert run.rc == 0, run.err
    folder = cli.cwd / "reports" / run.json()["run_id"]
    files = {p.name: p.read_text() for p in folder.iterdir() if p.suffix in (".json", ".ipynb")}
    baseline, plan = json.loads(files["baseline.json"]), json.loads(files["plan.json"])
    boundary, group = baseline["stream"]["boundary_id"], baseline["groups"][0]
    count = group["backlog"]["undelivered"]
    assert count > 310
    assert plan["boundary_id"] == run.json()["boundary_id"] == boundary
    assert plan["total_read"] == run.json()["total_read"] == count
    assert json.loads(files["run.json"])["boundary_id"] == boundary
    for name in ("01_analyse_backlog", "02_dry_run", "03_live_drain"):
        shown = outputs(json.loads(files[f"{name}.ipynb"]))
        assert boundary in shown, name
        assert f"{count:,} entries" in shown.replace("**", ""), name
    report = (folder / "report.html").read_text()
    assert boundary in report
    assert f"{count:,}" in report
    named = set(re.findall(r"boundary[^0-9]{1,40}(\d{13}-\d+)", report))
    assert named == {boundary}
    statement = json.loads(files["statement.json"])
    assert statement["predicate"]["run_id"] == folder.name == plan["run_id"]
    assert statement["predicate"]["boundary_id"] == boundary
    assert statement["predicate"]["total_read"] == count
