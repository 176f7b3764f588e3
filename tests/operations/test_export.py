"""Export: the backlog of a scope as a file, complete, harmless in a spreadsheet, read only."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from backlogs import GROUP, fill, seed
from books import ask, at, everything
from conftest import ROOT, Cli, intent
from hypothesis import example, given
from hypothesis import strategies as st
from servers import Server

from drainkit import Decoder
from drainkit import Server as Connection
from drainkit.core.frame import load_frame
from drainkit.errors import RefusedError
from drainkit.files import whole_folder
from drainkit.ids import LAST_ID
from drainkit.operations.events import as_json, as_structs
from drainkit.safe import text
from drainkit.server import reading

DAY_MS = 86_400_000
MIDNIGHT_MS = 20_000 * DAY_MS  # 2024-10-04
NO_DATE = "__HIVE_DEFAULT_PARTITION__"


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_scope_is_exported(server: Server, stream: str, cli: Cli, suffix: str) -> None:
    """Parquet and CSV hold each entry of the scope in order, and the server is left as it was."""
    ids = seed(server, stream)
    ask(server, "XREADGROUP", "GROUP", GROUP, "dead", "COUNT", 10, "STREAMS", stream, ">")
    ask(server, "XDEL", stream, ids[103])
    before = everything(server)
    gone = [i for i in ids if i != ids[103]]
    scopes = {"undelivered": ids[110:], "pending": ids[100:110], "history": gone[:109]}
    for scope, expected in scopes.items():
        file = cli.cwd / f"{scope}.{suffix}"
        run = cli.done("export", file.name, "--scope", scope, "--min-idle-min", "0", "--json",
                       *at(server, stream))  # fmt: skip
        assert run.json()["entries"] == len(expected)
        frame = pd.read_parquet(file) if suffix == "parquet" else pd.read_csv(file)
        assert list(frame["id"]) == expected
        assert frame["missing"].sum() == (scope == "pending")
        assert (frame["fields"].isna() == frame["missing"]).all()
    assert set(frame["symbol"].dropna()) == {"BTCUSDT", "ETHUSDT", "DOGEUSDT"}
    assert everything(server) == before


PARTS = st.one_of(
    st.text(max_size=8).map(str.encode),
    st.binary(max_size=8),
    st.lists(st.sampled_from(b'a"\\[],%\x01\x02\x03\x04\n\x7f'), max_size=6).map(bytes),
)
BODIES = st.lists(st.tuples(PARTS, PARTS), min_size=1, max_size=4).map(
    lambda pairs: [part for pair in pairs for part in pair]
)


@given(st.lists(st.one_of(st.just([]), BODIES), min_size=1, max_size=12))
@example([[b"each", bytes([byte])] for byte in range(256)])
def test_fields_come_back(bodies: list[list[bytes]]) -> None:
    """Whatever bytes fields hold, Parquet and CSV tell them in order, CSV in printable ASCII."""
    page = [*([b"1-1", body] for body in bodies), [b"2-1", None]]
    expected = [[(text(n), text(v)) for n, v in zip(b[::2], b[1::2], strict=True)] for b in bodies]
    *rows, gone = as_structs(page).to_pylist()
    assert [[(one["name"], one["value"]) for one in row] for row in rows] == expected
    *rows, gone_too = as_json(page).to_pylist()
    assert all(one.isascii() and one.isprintable() for one in rows)
    assert [[tuple(pair) for pair in json.loads(one)] for one in rows] == expected
    assert gone is gone_too is None


# ---------------------------------------------------------------- datasets by day


def days_of(stream: str, server: Server, n: int = 7_000) -> list[str]:
    """A backlog whose ids lie around two midnights, some of them no times; answers the ids."""
    step = 3 * DAY_MS // n
    entries = [(f"{i}-1", intent()) for i in (5, 1_000)]
    entries += [
        (f"{MIDNIGHT_MS - DAY_MS // 2 + i * step}-0", intent(f"SYM{i}", source=f"s{i % 7}"))
        for i in range(n)
    ]
    fill(server, stream, entries, group=GROUP)
    return [entry_id for entry_id, _ in entries]


def test_entries_between_ids_that_are_no_times_keep_their_day(
    valkey: Server, stream: str, cli: Cli
) -> None:
    """A page that begins and ends with ids that are no times holds a day's entry in that day."""
    days = {"5-1": "None", f"{MIDNIGHT_MS}-0": "2024-10-04", f"{2**63}-0": "None"}
    fill(valkey, stream, [(entry_id, intent()) for entry_id in days], group=GROUP)
    cli.done("export", "backlog/", *at(valkey, stream))
    rows = ds.dataset(cli.cwd / "backlog", partitioning="hive").to_table().to_pylist()
    assert {row["id"]: str(row["date"]) for row in rows} == days


def test_a_dataset_by_day_is_one_table(server: Server, stream: str, cli: Cli) -> None:
    """Each entry lies in the UTC day of its id, once and in order; all parts have one schema."""
    ids = days_of(stream, server)
    before = everything(server)
    run = cli.done("export", "backlog/", "--json", *at(server, stream))
    assert run.json()["entries"] == len(ids)
    assert everything(server) == before
    parts = sorted((cli.cwd / "backlog").glob("*/*"))
    assert [part.parent.name for part in parts] == [
        "date=2024-10-03", "date=2024-10-04", "date=2024-10-05", "date=2024-10-06",
        f"date={NO_DATE}",
    ]  # fmt: skip
    assert {part.name for part in parts} == {"part-0.parquet"}
    assert len({pq.read_schema(part).to_string() for part in parts}) == 1
    assert {pq.read_schema(part).field("symbol").type for part in parts} == {pa.string()}
    tables = [pq.ParquetFile(part).read() for part in (parts[-1], *parts[:-1])]
    assert pa.concat_tables(tables)["id"].to_pylist() == ids
    for part in parts[:-1]:
        ids_ms = pq.ParquetFile(part).read()["id"].to_pandas().str.split("-").str[0].astype("int64")
        days = pd.to_datetime(ids_ms, unit="ms").dt.strftime("date=%Y-%m-%d")
        assert set(days) == {part.parent.name}
    # as one table it is what load_frame makes of the same entries
    table = ds.dataset(cli.cwd / "backlog", partitioning="hive").to_table()
    with Connection(server.url, stream) as link:
        frame = load_frame(reading.pages(link, link.stream, "0-0", LAST_ID), Decoder())
    read = table.to_pandas().sort_values("id").reset_index(drop=True)
    expected = frame.sort_values("id").reset_index(drop=True)
    for name in frame.columns:
        assert read[name].astype(object).where(read[name].notna(), None).tolist() == (
            expected[name].astype(object).where(expected[name].notna(), None).tolist()
        )  # fmt: skip
    assert read["date"].isna().sum() == 2


def test_a_full_part_is_followed_by_another(
    valkey: Server, stream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A day with more entries than a part holds has parts 0, 1, ... in order."""
    from drainkit import load_settings
    from drainkit.operations import events

    ids = days_of(stream, valkey)
    monkeypatch.setattr(events, "PART_ROWS", 1_000)
    settings = load_settings({"redis_url": valkey.url, "stream": stream})
    with Connection.of(settings) as link:
        assert events.export(link, settings, f"{tmp_path}/b/") == len(ids)
    found = []
    for day in ("2024-10-03", "2024-10-04", "2024-10-05", "2024-10-06"):
        parts = list((tmp_path / "b" / f"date={day}").iterdir())
        tables = [
            pq.ParquetFile(tmp_path / "b" / f"date={day}" / f"part-{n}.parquet").read()
            for n in range(len(parts))
        ]
        assert all(table.num_rows == 1_000 for table in tables[:-1])
        found += [i for table in tables for i in table["id"].to_pylist()]
    assert found == ids[2:]


@pytest.mark.parametrize("entries", [0, 2])
def test_without_a_day_or_an_entry_it_can_be_read(
    valkey: Server, stream: str, cli: Cli, entries: int
) -> None:
    """File and dataset have every column also where there is no entry, or none whose id is a
    time."""
    fill(valkey, stream, [(f"{i}-1", intent()) for i in range(5, 5 + entries)], group=GROUP)
    for target in ("a.parquet", "a.csv", "b/"):
        cli.done("export", target, *at(valkey, stream))
    dataset = ds.dataset(cli.cwd / "b", partitioning="hive").to_table()
    assert dataset["date"].null_count == entries
    for frame in (
        dataset.to_pandas(), pd.read_parquet(cli.cwd / "a.parquet"), pd.read_csv(cli.cwd / "a.csv"),
    ):  # fmt: skip
        assert len(frame) == entries
        assert {"id", "event_time", "symbol", "confidence", "fields"} <= set(frame.columns)


def test_a_folder_in_use_is_refused(valkey: Server, stream: str, cli: Cli) -> None:
    """What stands in the folder stays; an empty folder is taken; nothing unfinished is left. A file
    that is neither .parquet nor .csv is bad usage."""
    seed(valkey, stream, 30, delivered=0)
    assert ".parquet or .csv" in cli.fails(2, "export", "a.xlsx", *at(valkey, stream))
    (cli.cwd / "full").mkdir()
    (cli.cwd / "full" / "old").write_text("old")
    (cli.cwd / "empty").mkdir()
    (cli.cwd / "link").symlink_to("empty")
    run = cli("export", "full/", *at(valkey, stream))
    assert (run.rc, run.err.count("\n")) == (4, 1)
    assert "is not empty" in run.err
    assert cli("export", "link/", *at(valkey, stream)).rc == 0
    assert (cli.cwd / "link").is_symlink()
    assert ds.dataset(cli.cwd / "empty", partitioning="hive").count_rows() == 30
    assert cli("export", "no/such/", *at(valkey, stream)).rc == 2
    (cli.cwd / "file").write_text("")
    assert cli("export", "file/", *at(valkey, stream)).rc == 2
    assert {path.name for path in cli.cwd.iterdir()} == {"full", "empty", "link", "file"}


def test_a_folder_that_fills_meanwhile_is_kept(tmp_path: Path) -> None:
    """A folder appears only when it is whole, and never over what somebody put there meanwhile."""

    def fail(own: Path) -> None:
        (own / "x").write_text("")
        raise ZeroDivisionError

    def fill_target(own: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "y").write_text("")

    for work, error in ((fail, ZeroDivisionError), (fill_target, RefusedError)):
        with pytest.raises(error), whole_folder(tmp_path / "a") as own:
            work(own)
        assert len(list(tmp_path.iterdir())) == (work is fill_target)
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "y"]


# ---------------------------------------------------------------- memory

PEAK = """
import os, re, sys
import numpy, pandas, pyarrow, pyarrow.csv, pyarrow.parquet, redis, msgspec, pydantic, hiredis
from drainkit import Server, load_settings
from drainkit.operations.events import export
def peak():  # not ru_maxrss, which begins with the parent's
    return int(re.search("VmHWM:(.*) kB", open("/proc/self/status").read())[1]) / 1024
for line in sys.stdin:
    if child := os.fork():
        os.waitpid(child, 0)
        continue
    url, stream, target, scope = line.split()
    settings = {"redis_url": url, "stream": stream, "scope": scope, "min_idle_min": 0}
    settings = load_settings(settings)
    before = peak()
    with Server.of(settings) as server:
        print(export(server, settings, target), peak() - before, flush=True)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def peak_mb() -> Iterator[Callable[..., tuple[int, float]]]:
    """Entries exported by a process of its own, and its peak of memory above the imports, MB."""
    with subprocess.Popen(
        [sys.executable, "-c", PEAK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"JE_ARROW_MALLOC_CONF": "background_thread:false"},
    ) as process:  # fmt: skip
        assert process.stdin
        assert process.stdout
        requests, replies = process.stdin, process.stdout

        def measure(
            server: Server, stream: str, target: str, scope: str = "undelivered"
        ) -> tuple[int, float]:
            print(server.url, stream, target, scope, file=requests, flush=True)
            n, peak = replies.readline().split()
            return int(n), float(peak)

        yield measure


def test_memory_stays_flat(
    valkey: Server, stream: str, tmp_path: Path, peak_mb: Callable[..., tuple[int, float]]
) -> None:
    """200,000 entries, each of a symbol and a source of its own, need less than 150 MB, as Parquet,
    CSV and a dataset."""
    n = 200_000
    script = (
        "for i=0,ARGV[1]-1 do redis.call('XADD',KEYS[1],ARGV[2]+i*1000 ..'-0','symbol','S'..i,"
        "'confidence','0.8','side','BUY','source',string.rep('x',100)..i) end"
    )
    for part in range(0, n, 100_000):
        ask(valkey, "EVAL", script, 1, stream, 100_000, MIDNIGHT_MS + part * 1000)
    ask(valkey, "XGROUP", "CREATE", stream, GROUP, "0")
    for target in ("a.parquet", "a.csv", "a/"):
        count, peak = peak_mb(valkey, stream, f"{tmp_path}/{target}")
        assert count == n
        assert peak < 150, target


BIG = 4 << 20


@pytest.mark.parametrize(
    ("scope", "sizes"),
    [
        ("pending", [1_000_000] * 200),
        ("pending", [10] * 500 + [BIG] * 25),
        ("undelivered", [BIG if i % 100 == 50 else 10 for i in range(2_500)]),
        ("undelivered", [10 if i % 16 == 0 else 200_000 for i in range(600)]),
        ("undelivered", [10] * 9_000 + [BIG] * 25),
    ],
)  # fmt: skip
def test_large_entries_do_not_add_up(
    valkey: Server, stream: str, tmp_path: Path, scope: str, sizes: list[int],
    peak_mb: Callable[..., tuple[int, float]],
) -> None:  # fmt: skip
    """Wherever the large entries lie, those that come together are bounded by their bytes."""
    fill(valkey, stream, [(MIDNIGHT_MS + i, intent(blob="x" * n)) for i, n in enumerate(sizes)],
         group=GROUP)  # fmt: skip
    if scope == "pending":
        client = valkey.client()  # its reply is not kept
        client.xreadgroup(GROUP, "dead", {stream: ">"}, count=len(sizes))
    count, peak = peak_mb(valkey, stream, f"{tmp_path}/a.parquet", scope)
    assert count == len(sizes)
    assert peak < 150


# ---------------------------------------------------------------- other programs


def test_duckdb_answers_as_pandas_does(
    valkey: Server, stream: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference's three lines, over all parts: the same medians as pandas finds."""
    duckdb = pytest.importorskip("duckdb")
    days_of(stream, valkey)
    assert cli("export", "backlog/", *at(valkey, stream)).rc == 0
    readme = (ROOT / "drainkit" / "examples" / "REFERENCE.md").read_text(encoding="utf-8")
    lines = re.search(r"```python\n(import duckdb\n.*?)```", readme, re.DOTALL)
    assert lines
    monkeypatch.chdir(cli.cwd)
    names = {"print": lambda table: names.update(found=table.df())}
    now_us = time.time_ns() // 1000
    exec(lines[1], names)  # noqa: S102 - our own text
    frame = ds.dataset("backlog", partitioning="hive").to_table().to_pandas()
    frame["age_sec"] = now_us / 1e6 - frame["event_time"].astype("int64") / 1e6
    expected = frame[frame["event_time"].notna()].groupby(["date", "symbol"])["age_sec"].median()
    found = names["found"].dropna()
    found["date"] = found["date"].astype(str).str[:10]
    found = found.set_index(["date", "symbol"])["age_sec"].sort_index()
    assert list(found.index) == list(expected.sort_index().index)
    assert (found - expected).abs().max() < 60
    kind = duckdb.sql("SELECT typeof(date) FROM 'backlog/**/*.parquet' LIMIT 1").fetchall()
    assert kind == [("DATE",)]
