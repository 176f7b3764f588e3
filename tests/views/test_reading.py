"""What a person reads in notebooks: counts of one, limits that move, columns of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from backlogs import GROUP, deliver, fill, seed
from books import ask, at
from conftest import Cli, intent
from servers import Server

from drainkit.errors import InterruptedRunError, RefusedError, UsageError
from drainkit.views.analyse_backlog import Analysis
from drainkit.views.dry_run import DryRun
from drainkit.views.live_drain import LiveDrain
from drainkit.views.session import Table


@pytest.fixture(autouse=True)
def _server(valkey: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRAINKIT_REDIS_URL", valkey.url)


def test_own_fields_become_columns_and_figures(valkey: Server, stream: str) -> None:
    """with_fields adds flat fields and paths, numbers as numbers; by draws them; without it by
    says how; the backlog is read once more for it."""
    now_ms = int(time.time() * 1000)
    fill(valkey, stream, [
        (now_ms - 1000 + i, {**intent(), "desk": f"d{i % 2}",
                             "extra": json.dumps({"model": "m1" if i % 3 else "m2", "price": i})})
        for i in range(60)
    ], group=GROUP)  # fmt: skip
    analysis = Analysis.open({"stream": stream})
    with pytest.raises(UsageError, match="with_fields"):
        analysis.by("extra.model")
    with pytest.raises(UsageError, match="column already"):
        analysis.with_fields("symbol")
    told = analysis.with_fields("desk", "extra.model", "extra.price", "nowhere")
    assert told["events"].tolist() == [60, 60, 60, 0]
    assert told["values"].tolist() == [2, 2, 60, 0]
    frame = analysis.frame
    assert frame["desk"].tolist() == [f"d{i % 2}" for i in range(60)]
    assert frame["extra.price"].tolist() == [*range(60)]
    assert pd.api.types.is_numeric_dtype(frame["extra.price"])
    bars = analysis.by("extra.model").to_dict()
    assert sum(map(sum, (bar["x"] for bar in bars["data"]))) == 60
    assert "By extra.model: m1 has the most that pass, 40 of 40" in bars["layout"]["title"]["text"]
    prices = analysis.by("extra.price").to_dict()["data"][0]
    assert sorted(prices["x"]) == [5] * 12


def test_more_consumers_than_shown_are_counted(valkey: Server, stream: str) -> None:
    """Of 35 consumers the table shows eight, and how many more there are."""
    seed(valkey, stream)
    deliver(valkey, stream, "busy", 3)
    for n in range(34):
        ask(valkey, "XGROUP", "CREATECONSUMER", stream, GROUP, f"c{n}")
    table = Analysis.open({"stream": stream}).consumers_table()
    assert table["name"].tolist()[0] == "busy"
    assert table["name"].tolist()[-1] == "and 27 more"
    assert len(table) == 9


def test_a_misspelt_parameter_can_be_mended() -> None:
    """It is refused while it stands in the cell, and no longer once the cell was run without it."""
    cell = "redis_url_env = 'DRAINKIT_REDIS_URL'\nstream = 'no-such'"
    names: dict[str, Any] = {"redis_url_env": "DRAINKIT_REDIS_URL", "stream": "no-such",
                             "max_agemin": 5, "In": ["", f"{cell}\nmax_agemin = 5"]}  # fmt: skip
    with pytest.raises(UsageError, match="max_agemin"):
        LiveDrain.open(names)
    LiveDrain.open({**names, "In": [*names["In"], cell]})


def test_02_without_a_folder_has_no_digest(valkey: Server, stream: str) -> None:
    """A plan that is saved nowhere cannot be approved, so its digest is not shown."""
    seed(valkey, stream, 20, delivered=10)
    dry = DryRun.open({"stream": stream})
    assert dry.plan.digest.removeprefix("sha256:") not in dry.digest().data
    Path("run").mkdir()
    dry = DryRun.open({"stream": stream, "run_dir": "run"})
    assert dry.plan.digest in dry.digest().data.replace("<wbr>", "")


def test_a_plan_that_was_applied_says_so(valkey: Server, stream: str, cli: Cli) -> None:
    """Applying it again names the run that did it, and when."""
    seed(valkey, stream, 40, delivered=10)
    cli.done("drain", "--plan", "plan.json", "--throttle", "none", *at(valkey, stream))
    live = ("drain", "--mode", "live", "--yes", "--plan", "plan.json", *at(valkey, stream))
    run = cli.done(*live, "--json").json()
    again = cli.done(*live)
    assert f"applied already by {run['run_id']} at {run['started_at'][:10]}" in again.out


def test_03_says_how_far_it_came_and_what_to_do(
    valkey: Server, stream: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted, its last line has all that was drained, and the error speaks of the cell; run
    again it goes on, and once more it says that the plan was applied already."""
    seed(valkey, stream, 110, delivered=10)
    Path("run").mkdir()
    plan = DryRun.open({"stream": stream, "throttle": 50, "run_dir": "run"}).plan
    live = LiveDrain.open({"run_dir": "run", "approve": plan.digest})
    interrupt = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(InterruptedRunError) as raised:
        live.run()
    interrupt.join()
    assert "interrupted; run this cell again" in raised.value._render_traceback_()[0]
    assert live.summary is not None
    assert 0 < live.summary.total_read < 100
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"drained {live.summary.total_read} of 100, " in last
    live.run()
    assert "already" not in capsys.readouterr().out
    live.run()
    assert f"applied already by {live.summary.run_id} at 20" in capsys.readouterr().out


def test_a_decision_shown_says_as_of_when(valkey: Server, stream: str, cli: Cli) -> None:
    """`show` of a drained entry: the decision is as of now, the audit's is the one recorded."""
    ids = seed(valkey, stream, 40, delivered=10)
    cli.done("drain", "--mode", "live", "--yes", "--throttle", "none", *at(valkey, stream))
    shown = cli.done("show", ids[20], "--as-of", "2030-01-01T00:00:00Z", *at(valkey, stream)).out
    text = " ".join(shown.split())
    assert "decision dropped_old as of 2030-01-01T00:00:00: age" in text
    assert "recorded at 20" in text


def test_a_resumed_run_counts_all_its_attempts(valkey: Server, stream: str, cli: Cli) -> None:
    """03 stopped midway and run again: entries, time and rate are those of both attempts."""
    seed(valkey, stream, 110, delivered=10)
    Path("run").mkdir()
    plan = DryRun.open({"stream": stream, "throttle": 20, "run_dir": "run"}).plan
    live = LiveDrain.open({"run_dir": "run", "approve": plan.digest})
    stop = threading.Timer(0.2, lambda: cli("stop", "--reason", "x", *at(valkey, stream)))
    stop.start()
    with pytest.raises(RefusedError):
        live.run()
    stop.join()
    cli.done("resume", *at(valkey, stream))
    time.sleep(1.5)
    live.run()
    summary = live.summary
    assert summary is not None
    assert summary.total_read == 100
    assert summary.elapsed_sec > 99 / 20 + 1.5
    assert 0 < (summary.events_per_sec or 0) < 17


def test_a_table_reads_well_and_is_inert() -> None:
    """Numbers have separators and stand to the right, text to the left; no NaN; all is escaped. A
    table without rows says so."""
    table = Table(
        {
            "events": [12345, 7],
            "age": [1.5, np.nan],
            "symbol": ["<script>x</script>", None],
        },
        index=pd.Index(["<b>a</b>", "b"], name="group"),
    )
    shown = table._repr_html_()
    cells = re.findall(r"<td([^>]*)>(.*?)</td>", shown)
    assert [text for _, text in cells] == [
        "&lt;b&gt;a&lt;/b&gt;", "12,345", "1.50", "&lt;script&gt;x&lt;/script&gt;",
        "b", "7", "", "",
    ]  # fmt: skip
    assert [place for place, _ in cells[:4]] == ["", " class='n'", " class='n'", ""]
    assert table.loc["b", "events"] == 7
    assert "text-align:left" in shown
    assert "NaN" not in shown + pd.DataFrame()._repr_html_()
    assert "drained_ok" in Table({"audited": [1]}, ["drained_ok"])._repr_html_()
    empty = Table({"bytes": []}, index=pd.Index([], name="file"))
    assert "<td colspan='2'>none</td>" in empty._repr_html_()  # a head over nothing looks broken
