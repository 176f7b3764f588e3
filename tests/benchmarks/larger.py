"""Larger than memory, more than one process: `export DIR/`, DuckDB over it, Dask; prints a table.

    python tests/benchmarks/larger.py [--entries 3000000] [--rounds 3] [--kind valkey]

`export` and `load` are the same entries by one process each; `frame` and `duckdb` give the median
age by day and symbol from the one and the other, which have to be equal. `dask 1` and `dask 2` load
PARTS ranges by worker processes that wait already, of one thread each; only their lengths come
back.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import rig
from rig import KEY, Result, measured

PARTS = 16
URL = "DRAINKIT_REDIS_URL"
AGES = (
    "SELECT date::VARCHAR, symbol, median(epoch_us(TIMESTAMPTZ '{moment}') - epoch_us(event_time))"
    " FROM '{folder}/**/*.parquet' GROUP BY ALL ORDER BY ALL"
)


def export_dataset(url: str, folder: str) -> Result:
    """`drainkit export DIR/` of the whole stream, in this process."""
    import pandas as pd  # noqa: F401 - the bare imports, which memory is measured above
    import pyarrow.compute
    import pyarrow.parquet  # noqa: F401

    from drainkit.operations.export import export
    from drainkit.server.connection import Server
    from drainkit.settings import build

    settings = build({"redis_url": url, "stream": KEY, "consumer_group": "bench"})
    result: Result = {}
    with Server.of(settings) as server, measured(result):
        result["rows"] = export(server, settings, folder + "/")
    return result


def load(url: str, answer: str) -> Result:
    """The frame of the analysis notebook; with `answer`, pandas' median ages go to that file."""
    import pandas as pd
    import pyarrow.compute  # noqa: F401

    from drainkit.core.events import decoder_of
    from drainkit.core.frame import load_frame
    from drainkit.server import reading
    from drainkit.server.connection import Server
    from drainkit.settings import build

    result: Result = {}
    with Server(url, KEY) as server, measured(result):
        pages = reading.pages(server, KEY.encode(), reading.FIRST_ID, reading.LAST_ID, ahead=True)
        frame = load_frame(pages, decoder_of(build({"redis_url": url, "stream": KEY})))
    result["rows"] = len(frame)
    if answer:
        moment = frame["event_time"].max()
        began = time.perf_counter()
        ages = (moment - frame["event_time"]) // pd.Timedelta(microseconds=1)
        milliseconds = frame["id"].str.partition("-")[0].astype("int64")
        date = pd.to_datetime(milliseconds, unit="ms").dt.strftime("%Y-%m-%d")
        symbol = frame["symbol"].astype("object").where(frame["symbol"].notna(), None)
        found = ages.groupby([date, symbol], dropna=False).median().sort_index()
        result["answer_sec"] = time.perf_counter() - began
        rows = [[d, None if pd.isna(s) else s, float(v)] for (d, s), v in found.items()]
        Path(answer).write_text(repr((moment.isoformat(), rows)))
    return result


def duckdb_answer(folder: str, moment: str, answer: str) -> Result:
    """DuckDB's median ages over the dataset."""
    import duckdb

    result: Result = {}
    with measured(result):
        rows = duckdb.sql(AGES.format(folder=folder, moment=moment)).fetchall()
    Path(answer).write_text(repr((moment, [list(row) for row in rows])))
    return result


def dask_load(url: str, workers: str) -> Result:
    """All of the stream by so many worker processes of one thread."""
    import dask.dataframe as dd
    from dask.distributed import Client, LocalCluster

    import drainkit

    os.environ[URL] = url
    result: Result = {}
    with (
        LocalCluster(
            n_workers=int(workers), threads_per_worker=1, processes=True, host="127.0.0.1",
            dashboard_address=None, memory_limit=0,
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        client.run(__import__, "drainkit.operations.ranges")
        pids = [*client.run(os.getpid).values()]
        cpu = _cpu(pids)
        started = time.perf_counter()
        parts = drainkit.ranges(URL, KEY, PARTS)
        rows = dd.from_map(drainkit.load_range, parts).map_partitions(len).compute()
        result["sec"] = time.perf_counter() - started
        result["worker_cpu_sec"] = _cpu(pids) - cpu
    result["rows"] = int(rows.sum())
    return result


def _cpu(pids: list[int]) -> float:
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(one.user + one.system for one in times)


def on_server(server: Any, work: Any, *arguments: str) -> Result:
    """A child's result with the CPU seconds that the server took for it."""
    before = _cpu([server.pid])
    return {
        **rig.child(Path(__file__), work, *arguments),
        "server_sec": _cpu([server.pid]) - before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=3_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kind", default="valkey")
    parser.add_argument("--without-dask", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, theirs, ours = (Path(scratch, name) for name in ("dataset", "pandas", "duckdb"))

        def fresh_export(url: str) -> Result:
            shutil.rmtree(folder, ignore_errors=True)
            return on_server(server, "export", url, str(folder))

        with rig.filled_server(given.kind, given.entries) as server:
            url = server.tcp_url
            with server.client() as client:
                client.xgroup_create(KEY, "bench", id="0")
            works = {
                "export": lambda: fresh_export(url),
                "load": lambda: on_server(server, "load", url, ""),
            }
            if not given.without_dask:
                works |= {f"dask {n}": lambda n=n: on_server(server, "dask", url, n) for n in "12"}
            found = rig.in_turns(works, given.rounds)
            frame = rig.child(Path(__file__), "load", url, str(theirs))
            moment, expected = ast.literal_eval(theirs.read_text())
            duckdb = rig.child(Path(__file__), "duckdb", str(folder), moment, str(ours))
            assert ast.literal_eval(ours.read_text())[1] == sorted(
                expected, key=lambda row: (row[0], row[1] is None, row[1] or "")
            ), "DuckDB's answer is not that of pandas"
            print(
                rig.title(server), f"\n{given.entries:,} entries; answers of {len(expected)} rows"
            )
        found["pandas' answer, with the load"] = frame
        found["DuckDB's answer"] = duckdb
        rows = [
            (name, *(f"{one[key]:.2f}" if key in one else "" for key in
             ("sec", "peak_mb", "cpu_sec", "worker_cpu_sec", "server_sec")))
            for name, one in found.items()
        ]  # fmt: skip
        rig.table(
            rows, ("Work", "s", "MB above imports", "CPU s", "CPU s of workers", "of the server")
        )


WORKS = {"export": export_dataset, "load": load, "duckdb": duckdb_answer, "dask": dask_load}

if __name__ == "__main__" and not rig.as_child(WORKS):
    main()
