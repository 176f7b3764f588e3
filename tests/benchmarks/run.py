"""`drainkit run` against plain papermill over four notebooks that only import; prints a table.

    python tests/benchmarks/run.py [--entries 10012] [--rounds 3] [--kind redis]

The whole command counts, from start to exit: for drainkit a live run, unthrottled, with evidence
and report; for papermill its own start and the same imports in a kernel for each notebook.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import rig
from rig import KEY, Result

GROUP = "bench"
OPENED = {"01": "analyse_backlog", "02": "dry_run", "03": "live_drain", "04": "verify"}
IMPORTS = "import drainkit.views.{}\nimport plotly.graph_objects, pyarrow.parquet"
PLAIN = """
import sys, papermill
for name in sys.argv[1:]:
    papermill.execute_notebook(name, "done-" + name, kernel_name="python3", progress_bar=False)
"""


def timed(command: list[str], folder: Path, **env: str) -> Result:
    """Seconds until the command has ended well."""
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{command[:3]}: {done.stderr}")
    return {"sec": time.perf_counter() - started}


def plain(folder: Path) -> Result:
    """papermill over four notebooks, one after another."""
    import nbformat
    from nbformat import v4

    names = []
    for name, opened in OPENED.items():
        names.append(f"{name}.ipynb")
        notebook = v4.new_notebook(cells=[v4.new_code_cell(IMPORTS.format(opened))])
        nbformat.write(notebook, folder / names[-1])
    return timed([sys.executable, "-c", PLAIN, *names], folder)


def drainkit(server: Any, folder: Path, entries: int) -> Result:
    """A live run of all entries by a group made for it."""
    with server.client() as client:
        client.xgroup_create(KEY, GROUP, id="0-0")
        result = timed(
            [sys.executable, "-m", "drainkit", "run", "--mode", "live", "--yes",
             "--throttle", "none", "--max-events", "all", "--stream", KEY,
             "--consumer-group", GROUP, "--allowlist", ",".join(rig.ALLOWLIST)],
            folder,
            DRAINKIT_REDIS_URL=server.tcp_url,
        )  # fmt: skip
        assert client.xlen(f"{KEY}.drain_audit") == entries
        client.xgroup_destroy(KEY, GROUP)
        client.delete(*(f"{KEY}.drain_{side}" for side in ("audit", "runs", "state")))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=10_012)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kind", default="redis")
    given = parser.parse_args()

    def fresh() -> Path:
        return Path(tempfile.mkdtemp(dir=scratch))

    with (
        tempfile.TemporaryDirectory() as scratch,
        rig.filled_server(given.kind, given.entries) as server,
    ):
        found = rig.in_turns(
            {
                "drainkit run": lambda: drainkit(server, fresh(), given.entries),
                "papermill": lambda: plain(fresh()),
            },
            given.rounds,
        )
        print(rig.title(server) + f" of {given.rounds}; {given.entries:,} entries\n")
    ours, theirs = found["drainkit run"]["sec"], found["papermill"]["sec"]
    rig.table(
        [
            ("drainkit run: four notebooks, evidence, report", f"{ours:.1f} s",
             f"{ours / theirs:.2f} times papermill's", "at most 1.6"),
            ("papermill: four notebooks with the same imports", f"{theirs:.1f} s", "", ""),
        ],
        ("Work", "Median", "Ratio", "Target"),
    )  # fmt: skip


if __name__ == "__main__":
    main()
