"""Export: the backlog of a scope as a file, complete, harmless in a spreadsheet, read only; and a
stream in parts: every entry in one part, about equal, loaded anywhere, decided alike.
"""

from __future__ import annotations

import datetime as dt
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from backlogs import GROUP, backlog, fill, now_ms, seed
from books import ask, at, everything, make_user
from conftest import ROOT, Cli, intent, lacking
from hypothesis import example, given
from hypothesis import strategies as st
from servers import Server

import drainkit
from drainkit import IdRange, RefusedError, UsageError, load_range, load_settings, ranges
from drainkit import Server as Connection
from drainkit.core.events import Decoder
from drainkit.core.frame import decide_frame, load_frame
from drainkit.files import whole_folder
from drainkit.ids import LAST_ID, id_key
from drainkit.operations.events import fields_column
from drainkit.safe import text
from drainkit.server import reading

DAY_MS = 86_400_000
MIDNIGHT_MS = 20_000 * DAY_MS  # 2024-10-04


def test_a_scope_is_exported(server: Server, stream: str, cli: Cli) -> None:
    """Parquet and CSV hold each entry of the scope in order, and the server is left as it was."""
    ids = seed(server, stream)
    ask(server, "XREADGROUP", "GROUP", GROUP, "dead", "COUNT", 10, "STREAMS", stream, ">")
    ask(server, "XDEL", stream, ids[103])
    before = everything(server)
    gone = [i for i in ids if i != ids[103]]
    scopes = {"undelivered": ids[110:], "pending": ids[100:110], "history": gone[:109]}
    for scope, expected in scopes.items():
        for suffix, read in (("parquet", pd.read_parquet), ("csv", pd.read_csv)):
            file = f"{scope}.{suffix}"
            run = cli.done("export", file, "--scope", scope, "--min-idle-min", "0", "--json",
                           *at(server, stream))  # fmt: skip
            frame = read(cli.cwd / file)
            assert run.json()["entries"] == len(expected)
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
    *rows, gone = fields_column(page).to_pylist()
    assert [[(one["name"], one["value"]) for one in row] for row in rows] == expected
    *rows, gone_too = fields_column(page, as_json=True).to_pylist()
    assert all(one.isascii() and one.isprintable() for one in rows)
    assert [[tuple(pair) for pair in json.loads(one)] for one in rows] == expected
    assert gone is gone_too is None


# ---------------------------------------------------------------- datasets by day


def days_of(stream: str, server: Server, n: int = 1_500) -> list[str]:
    """A backlog whose ids lie around two midnights, some of them no times; answers the ids."""
    ids = ["5-1", "1000-1"]
    ids += [f"{MIDNIGHT_MS - DAY_MS // 2 + i * 3 * DAY_MS // n}-0" for i in range(n)]
    entries = [(one, intent(f"SYM{i}", source=f"s{i % 7}")) for i, one in enumerate(ids)]
    fill(server, stream, entries, group=GROUP)
    return ids


@pytest.mark.parametrize(
    "days",
    [
        pytest.param({}, id="no entry"),
        pytest.param({"5-1": "1970-01-01", "6-1": "1970-01-01"}, id="no id is a time"),
        pytest.param({"5-1": "1970-01-01", f"{MIDNIGHT_MS}-0": "2024-10-04",
                      f"{2**63}-0": "9999-12-31", f"{2**64 - 1}-{2**64 - 1}": "9999-12-31"},
                     id="ids that are no times before and after a day, in one page"),
    ],
)  # fmt: skip
def test_file_and_dataset_can_be_read(
    valkey: Server, stream: str, cli: Cli, days: dict[str, str]
) -> None:
    """They have every column also where there is no entry, and each entry has its own day; pandas
    reads the dataset too."""
    fill(valkey, stream, [(entry_id, intent()) for entry_id in days], group=GROUP)
    for target in ("a.parquet", "a.csv", "b/"):
        cli.done("export", target, *at(valkey, stream))
    dataset = ds.dataset(cli.cwd / "b", partitioning="hive").to_table()
    assert {row["id"]: str(row["date"]) for row in dataset.to_pylist()} == days
    parquets = [pd.read_parquet(cli.cwd / name) for name in ("b", "a.parquet")]
    for frame in (*parquets, pd.read_csv(cli.cwd / "a.csv")):
        assert len(frame) == len(days)
        assert {"id", "event_time", "symbol", "confidence", "fields"} <= set(frame.columns)


def test_a_dataset_by_day_is_one_table(
    valkey: Server, stream: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each entry lies in the UTC day of its id, once and in order; all parts have one schema, and
    together they are what load_frame makes of the same entries. By the reference's three lines
    DuckDB finds the same medians over all of them as pandas."""
    ids = days_of(stream, valkey)
    before = everything(valkey)
    run = cli.done("export", "backlog/", "--json", *at(valkey, stream))
    assert run.json()["entries"] == len(ids)
    assert everything(valkey) == before
    parts = sorted((cli.cwd / "backlog").glob("*/*"))
    days = ["1970-01-01", *(f"2024-10-0{day}" for day in (3, 4, 5, 6))]
    assert [f"{part.parent.name}/{part.name}" for part in parts] == [
        f"date={day}/part-0.parquet" for day in days
    ]
    tables = [pq.ParquetFile(part).read() for part in parts]
    assert len({table.schema.to_string() for table in tables}) == 1
    assert tables[0].schema.field("symbol").type == pa.string()
    assert pa.concat_tables(tables)["id"].to_pylist() == ids
    for day, table in zip(days, tables, strict=True):
        ids_ms = table["id"].to_pandas().str.split("-").str[0].astype("int64")
        assert set(pd.to_datetime(ids_ms, unit="ms").dt.strftime("%Y-%m-%d")) == {day}
    with Connection(valkey.url, stream) as link:
        frame = load_frame(reading.pages(link, link.stream, "0-0", LAST_ID), Decoder())
    read = ds.dataset(cli.cwd / "backlog", partitioning="hive").to_table().to_pandas()
    read, frame = (one.sort_values("id").reset_index(drop=True) for one in (read, frame))
    for name in frame.columns:
        told, expected = (
            one[name].astype(object).where(one[name].notna(), None) for one in (read, frame)
        )
        assert told.tolist() == expected.tolist()
    readme = (ROOT / "drainkit" / "examples" / "REFERENCE.md").read_text(encoding="utf-8")
    lines = re.search(r"```python\n(import duckdb\n.*?)```", readme, re.DOTALL)
    assert lines
    monkeypatch.chdir(cli.cwd)
    names = {"print": lambda table: names.update(found=table.df())}
    now_us = time.time_ns() // 1000
    exec(lines[1], names)  # noqa: S102 - our own text
    read["age_sec"] = now_us / 1e6 - read["event_time"].astype("int64") / 1e6
    timed = read[read["event_time"].notna()].groupby(["date", "symbol"])["age_sec"].median()
    found = names["found"].dropna()
    assert all(found["date"].map(lambda day: isinstance(day, dt.date)))
    found["date"] = found["date"].astype(str).str[:10]
    found = found.set_index(["date", "symbol"])["age_sec"].sort_index()
    assert list(found.index) == list(timed.sort_index().index)
    assert (found - timed).abs().max() < 60


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
url, stream, scope, *targets = sys.argv[1:]
settings = {"redis_url": url, "stream": stream, "scope": scope, "min_idle_min": 0}
settings = load_settings(settings)
def peak():  # not ru_maxrss, which begins with the parent's
    return int(re.search("VmHWM:(.*) kB", open("/proc/self/status").read())[1]) / 1024
before = peak()
with Server.of(settings) as server:
    n = [export(server, settings, target) for target in targets]
print(min(n), peak() - before)
"""


def peak_mb(server: Server, stream: str, scope: str, *targets: str) -> tuple[int, float]:
    """Entries exported by a process of its own, and its peak of memory above the imports, MB."""
    command = [sys.executable, "-c", PEAK, server.url, stream, scope, *targets]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(said[0]), float(said[1])


BIG = 4 << 20
#: Scope, sizes of the entries in bytes, and files: many entries, or large ones at the end, one in a
#: hundred, most of them.
SIZES = {
    "many": ("undelivered", [4_000] * 40_000, ("a.parquet", "a.csv", "a/")),
    "large, pending": (
        "pending", [10] * 500 + [BIG] * 25 + [1_000_000] * 100, ("a.parquet",),
    ),
    "large": (
        "undelivered",
        [
            *([10] * 9_000 + [BIG] * 25),
            *(BIG if i % 100 == 50 else 10 for i in range(2_500)),
            *(10 if i % 16 == 0 else 200_000 for i in range(600)),
        ],
        ("a.parquet",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_memory_stays_flat(valkey: Server, stream: str, tmp_path: Path, name: str) -> None:
    """Entries of 160 MB, each of a symbol and a source of its own, need less than 150 MB, as
    Parquet, CSV and a dataset; wherever large ones lie, those that come together are bounded by
    their bytes."""
    scope, sizes, names = SIZES[name]
    field = "source" if name == "many" else "blob"
    script = (
        "for i=1,#ARGV do local id=KEYS[2]+i*1000 redis.call('XADD',KEYS[1],id..'-0','symbol',"
        "'S'..id,'confidence','0.8','side','BUY',KEYS[3],string.rep('x',ARGV[i])..id) end"
    )
    for first in range(0, len(sizes), 50):
        at_ms = MIDNIGHT_MS + first * 1000
        ask(valkey, "EVAL", script, 3, stream, at_ms, field, *sizes[first : first + 50])
    ask(valkey, "XGROUP", "CREATE", stream, GROUP, "0")
    if scope == "pending":
        client = valkey.client()  # its replies are not kept
        for _ in range(0, len(sizes), 5):
            client.xreadgroup(GROUP, "dead", {stream: ">"}, count=5)
    count, peak = peak_mb(valkey, stream, scope, *(f"{tmp_path}/{name}" for name in names))
    assert (count, peak < 150) == (len(sizes), True), peak


# ---------------------------------------------------------------- in parts

URL = "SCALE_TEST_URL"
TEXTS = ["symbol", "side", "source"]


@pytest.fixture
def url(valkey: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The clean Valkey, its URL in the environment."""
    monkeypatch.setenv(URL, valkey.url)
    return valkey


def assert_same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Equal row for row, and in the order of the columns; texts may be categories there."""
    for name in TEXTS:
        expected[name] = expected[name].astype(found[name].dtype)
    pd.testing.assert_frame_equal(found.reset_index(drop=True), expected)


N = 3_000
MONTH_MS = 2_592_000_000
#: Ids of many kinds of stream, by the time of now in ms.
SHAPES: dict[str, Callable[[int], list[str]]] = {
    "even": lambda now: [f"{now - N + i}-0" for i in range(N)],
    "one millisecond": lambda now: [f"{now}-{i}" for i in range(N)],
    "no times": lambda now: [f"{i}-1" for i in range(1, N)],
    "bursts in a quiet month": lambda now: [
        f"{now - MONTH_MS + ms}-7" for ms in sorted(
            {*random.Random(1).sample(range(MONTH_MS), 200),
             *range(700_000_000, 700_001_500), *range(2_000_000_000, 2_000_001_500)}
        )
    ],
    **{f"{n}": lambda now, n=n: [f"{now + i}-0" for i in range(n)] for n in (0, 1, 5)},
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_parts_are_of_equal_size(
    url: Server, stream: str, shape: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For who may only read, each entry is in exactly one of n parts, in order, and no part is
    larger than another by two; an empty one has every column, and what is added later is in none.
    """
    ids = SHAPES[shape](now_ms(url))
    fill(url, stream, [(one, intent()) for one in ids], group=GROUP)
    monkeypatch.setenv(URL, make_user(cli, url, stream, "analyst"))
    before = everything(url)
    parts = ranges(URL, stream, 6)
    assert everything(url) == before
    fill(url, stream, [(id_key(ids[-1])[0] + 1 if ids else 1, intent())])
    frames = [load_range(part, URL) for part in parts]
    assert [entry_id for frame in frames for entry_id in frame["id"]] == ids
    assert max(map(len, frames)) - min(map(len, frames)) < 2
    assert len({tuple(frame.dtypes) for frame in frames}) == 1


def test_parts_are_decided_alike(url: Server, stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Policy and moment are those of `ranges`, not of the process that loads; by hand its own. Just
    the columns asked for, in that order; a wrong one, and wrong arguments, are refused."""
    monkeypatch.setenv("DRAINKIT_MAX_AGE_MIN", "0.001")
    monkeypatch.setenv("DRAINKIT_AS_OF", "2030-01-01T00:00:00")
    seed(url, stream, 30, delivered=0)
    (part,) = ranges(URL, stream, 1)
    monkeypatch.delenv("DRAINKIT_MAX_AGE_MIN")
    monkeypatch.delenv("DRAINKIT_AS_OF")
    frame = load_range(part, URL)
    assert set(frame["action"]) == {"dropped_old"}
    assert frame["age_sec"].min() > 86_400 * 30
    by_hand = load_range(IdRange(stream, part.first, part.last), URL)
    assert by_hand["id"].tolist() == frame["id"].tolist()
    assert by_hand["age_sec"].max() < 3_600
    assert list(load_range(part, URL, ["action", "id"]).columns) == ["action", "id"]
    for wrong in (
        lambda: load_range(part, URL, ["no_such"]),
        lambda: load_range(part, "redis://:secret@host"),
        lambda: load_range(part, "NOT_SET_ANYWHERE"),
        lambda: ranges(URL, stream, 0),
        lambda: ranges(URL, stream, True),
    ):
        with pytest.raises(UsageError) as refused:
            wrong()
        assert "secret" not in str(refused.value)
    with pytest.raises(RefusedError):
        ranges(URL, "no:such:stream", 2)


# ---------------------------------------------------------------- several processes


@pytest.mark.filterwarnings("default")  # Dask's own
def test_several_processes_see_the_same_as_one(url: Server, stream: str) -> None:
    """Dask's from_map on two processes is load_frame and decide_frame row for row, malformed rows
    too, also where entries were trimmed; without Dask the standard library's pool does the same."""
    try:
        import dask
        import dask.dataframe as dd
    except ImportError:
        lacking("dask (drainkit[dask])")
    entries = backlog(now_ms(url), 3_000)
    # a symbol that only the first part has: categories would not fit together
    entries[0] = (entries[0][0], intent("ONLYHERE", source="x"))
    fill(url, stream, entries)
    parts = ranges(URL, stream, 5)
    assert parts[0].lens is not None
    empty = IdRange(stream, "9-0", "8-0", parts[0].lens)
    lens, settings = parts[0].lens, load_settings({"redis_url": url.url, "stream": stream})
    with drainkit.Server.of(settings) as link:  # what 01 makes of the whole stream
        pages = reading.pages(link, link.stream, "0-0", LAST_ID)
        frame = load_frame(pages, Decoder(settings.fields))
    frame = frame.join(decide_frame(frame, lens.policy, lens.at_us))
    assert (frame["invalid"].astype(str) != "").sum() == 177
    with (
        ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool,
        dask.config.set({"scheduler": "processes", "pool": pool,
                         "dataframe.convert-string": False}),  # else texts become another kind
    ):  # fmt: skip
        alone = pd.concat(pool.map(load_range, parts, [URL] * 5))
        ddf = dd.from_map(load_range, [*parts, empty], url_env=URL)
        assert ddf["action"].cat.known
        whole, means, counts = dask.compute(
            ddf, ddf.groupby("symbol")["confidence"].mean(), ddf["action"].value_counts()
        )
        for found in (alone, whole):
            assert_same(found, frame.copy())
        assert means["ONLYHERE"] == pytest.approx(0.8)
        assert counts.to_dict() == frame["action"].value_counts().to_dict()
        ask(url, "XTRIM", stream, "MAXLEN", 2_500)
        assert_same(ddf.compute(), frame[500:].reset_index(drop=True))
