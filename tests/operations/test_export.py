"""Export: the backlog of a scope as a file, complete, harmless in a spreadsheet, read only."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pandas as pd
import pytest
from books import GROUP, ask, everything, seed
from conftest import Cli, Fill, intent
from servers import Server


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_each_scope_is_exported_whole(
    server: Server, stream: str, fill: Fill, cli: Cli, tmp_path: Path, suffix: str
) -> None:
    """Parquet and CSV hold each entry of the scope in order, and the server is left as it was."""
    ids = seed(server, stream, fill)
    ask(server, "XREADGROUP", "GROUP", GROUP, "dead", "COUNT", 10, "STREAMS", stream, ">")
    ask(server, "XDEL", stream, ids[103])
    before = everything(server)
    gone = [i for i in ids if i != ids[103]]
    scopes = {"undelivered": ids[110:], "pending": ids[100:110], "history": gone[:109]}
    for scope, expected in scopes.items():
        file = tmp_path / f"{scope}.{suffix}"
        run = cli("export", file.name, "--scope", scope, "--min-idle-min", "0", "--json",
                  "--redis-url", server.url, "--stream", stream)  # fmt: skip
        assert run.rc == 0, run.err
        assert run.json()["entries"] == len(expected)
        frame = pd.read_parquet(file) if suffix == "parquet" else pd.read_csv(file)
        assert list(frame["id"]) == expected
        assert frame["missing"].sum() == (scope == "pending")
    assert set(frame["symbol"].dropna()) == {"BTCUSDT", "ETHUSDT", "DOGEUSDT"}
    assert everything(server) == before


def test_csv_holds_no_formula(
    valkey: Server, stream: str, fill: Fill, cli: Cli, tmp_path: Path
) -> None:
    """No cell of the CSV begins as a formula does, and the fields are there as JSON."""
    evil = "=HYPERLINK(0)"
    fill(valkey, stream, [(1_700_000_000_000, intent(evil, side="+1", source="@x", extra="-2"))],
         group=GROUP)  # fmt: skip
    run = cli("export", "a.csv", "--redis-url", valkey.url, "--stream", stream)
    assert run.rc == 0, run.err
    with (tmp_path / "a.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert row["symbol"] == f"'{evil}"
    assert not [cell for cell in row.values() if cell[:1] in "=+-@\t\r" and cell]
    assert ["extra", "-2"] in json.loads(row["fields"])


def test_a_wrong_name_is_refused(valkey: Server, stream: str, fill: Fill, cli: Cli) -> None:
    """A file that is neither .parquet nor .csv is bad usage."""
    seed(valkey, stream, fill, 3, delivered=0)
    run = cli("export", "a.xlsx", "--redis-url", valkey.url, "--stream", stream)
    assert run.rc == 2
    assert ".parquet or .csv" in run.err


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_an_empty_backlog_is_an_empty_file(
    valkey: Server, stream: str, fill: Fill, cli: Cli, tmp_path: Path, suffix: str
) -> None:
    """Without a single entry the file has every column and no row."""
    seed(valkey, stream, fill, 3, delivered=3)
    run = cli("export", f"a.{suffix}", "--redis-url", valkey.url, "--stream", stream)
    assert run.rc == 0, run.err
    file = tmp_path / f"a.{suffix}"
    frame = pd.read_parquet(file) if suffix == "parquet" else pd.read_csv(file)
    assert len(frame) == 0
    assert {"id", "event_time", "symbol", "confidence", "fields"} <= set(frame.columns)
