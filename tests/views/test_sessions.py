"""What all notebook classes share, and what a person reads in them: settings understood, of the
run's folder; counts of one, limits that move, columns of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from backlogs import GROUP, deliver, fill, seed
from books import ask, at, audit
from conftest import Cli, intent
from servers import Server, wait_until

from drainkit.errors import InterruptedRunError, RefusedError, UsageError
from drainkit.views.analyse_backlog import Analysis
from drainkit.views.boards import Maintenance, Monitor
from drainkit.views.dry_run import DryRun
from drainkit.views.live_drain import LiveDrain
from drainkit.views.session import Table
from drainkit.views.verify import Verification

CLASSES: list[Any] = [Analysis, DryRun, LiveDrain, Verification, Monitor, Maintenance]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, valkey: Server, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, the server as the environment has it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRAINKIT_REDIS_URL", valkey.url)
    return tmp_path


def test_notebooks_show_settings(valkey: Server, stream: str, here: Path) -> None:
    """settings_table() works in each class and names what is read: what the cell gives, else
    drainkit.toml of the folder and the environment. Of 35 consumers 01's table shows eight, and how
    many more there are."""
    seed(valkey, stream, 20, delivered=10)
    deliver(valkey, stream, "busy", 3)
    for n in range(34):
        ask(valkey, "XGROUP", "CREATECONSUMER", stream, GROUP, f"c{n}")
    (here / "drainkit.toml").write_text(f'stream = "{stream}"\nmin_conf = 0.25\n')
    for opened in CLASSES:
        shown = opened.open({"stream": None, "min_conf": None}).settings_table()["value"]
        assert (shown["stream"], shown["min_conf"], shown["throttle"]) == (stream, "0.25", "5")
    analysis = Analysis.open({"min_conf": 0.5})
    assert analysis.settings.min_conf == 0.5
    consumers = analysis.consumers_table()["name"].tolist()
    assert (consumers[0], consumers[-1], len(consumers)) == ("busy", "and 27 more", 9)


def test_03_takes_pace_and_policy_from_the_plan(valkey: Server, stream: str, here: Path) -> None:
    """02 at 500/s, then 03 with only run_dir and approve: drained at 500/s, no drift by pace."""
    now_ms = int(time.time() * 1000)
    fill(valkey, stream, [(now_ms - 1000 + i, intent()) for i in range(300)], group=GROUP)
    (here / "run").mkdir()
    planned = DryRun.open({"stream": stream, "throttle": 500, "max_events": "all",
                           "max_age_min": 0.5, "run_dir": "run"})  # fmt: skip
    only = {"run_dir": "run", "approve": planned.plan.digest}
    with pytest.raises(RefusedError, match=r"throttle.*500.*20"):
        LiveDrain.open({**only, "throttle": 20})
    with pytest.raises(RefusedError, match=r"max.events.*all.*5"):
        LiveDrain.open({**only, "max_events": 5})
    live = LiveDrain.open(only)
    live.run()
    assert live.summary.total_read == 300
    assert not live.summary.drift
    assert 450 <= (live.summary.events_per_sec or 0) <= 500


def test_03_is_armed_only_by_what_its_cell_shows(valkey: Server, stream: str, here: Path) -> None:
    """After parameters were changed an object opened before drains nothing more, whether opening
    anew failed, made another, or was not tried. Without a folder, and with the digest of another
    plan, it is refused. 02 shows a plan's digest, to a person and to a script, only if the plan was
    saved."""
    seed(valkey, stream, 20, delivered=10)
    (here / "run").mkdir()
    planned = DryRun.open({"stream": stream, "run_dir": "run"})
    armed: dict[str, Any] = {"run_dir": "run", "approve": planned.plan.digest}
    others: list[dict[str, Any]] = [{"throttle": 20}, {"approve": ""}, {"run_dir": "no"},
                                    {"approve": "", "max_events": 1}]  # fmt: skip
    for then, is_opened in product(others, (True, False)):
        cell = {**armed}
        before = LiveDrain.open(cell)
        cell |= then
        if is_opened:
            with suppress(RefusedError, UsageError):
                LiveDrain.open(cell)
        with pytest.raises(RefusedError, match="opened"):
            before.run()
    with pytest.raises(RefusedError, match="needs run_dir"):
        LiveDrain.open({"stream": stream, "approve": planned.plan.digest}).run()
    other = DryRun.open({"stream": stream, "min_conf": 0.9})
    with pytest.raises(RefusedError, match="not the digest of this plan"):
        LiveDrain.open({"run_dir": "run", "approve": other.plan.digest}).run()
    assert other.plan.digest.removeprefix("sha256:") not in other.digest().data
    shown = planned.digest().data
    assert planned.plan.digest in shown
    assert f">{planned.plan.digest}<" in shown.replace("<wbr>", "")
    assert audit(valkey, stream) == []


def test_03_has_the_limits_and_approval_of_where_lab_was_called(
    valkey: Server, stream: str, here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel of `drainkit lab` is held back by [limits] and [approval] of the drainkit.toml where
    Lab was called, though its own folder has none; nothing is audited."""
    seed(valkey, stream, 40, delivered=10)
    assert cli("drain", "--plan", "plan.json", *at(valkey, stream)).rc == 0
    digest = json.loads((here / "plan.json").read_text())["digest"]
    (here / "drainkit.toml").touch()
    lab = cli.start("lab", *at(valkey, stream), "--", "--no-browser", "--help")
    wait_until("it is Lab", lambda: "jupyterlab" in psutil.Process(lab.pid).cmdline())
    kernels = psutil.Process(lab.pid).environ()
    lab.kill()
    # a kernel's folder, which has no drainkit.toml
    kernel = here / "drainkit-notebooks"
    (here / "drainkit.toml").write_text('[approval]\nallowed_signers = "x"\n')
    done = replace(cli, cwd=kernel).papermill(
        "03_live_drain.ipynb", "-", "-r", "run_dir", here, "-r", "approve", digest, env=kernels
    )
    assert done.rc != 0
    assert "allowed_signers" in done.err
    (here / "drainkit.toml").write_text("[limits]\nmax_events = 29\n")
    for name in kernels.keys() - os.environ.keys():
        monkeypatch.setenv(name, kernels[name])
    monkeypatch.chdir(kernel)
    with pytest.raises(RefusedError, match="max_events is 29"):
        LiveDrain.open({"run_dir": str(here), "approve": digest}).run()
    assert audit(valkey, stream) == []


def test_a_backlog_larger_than_a_frame_is_shown_by_a_sample(
    valkey: Server, stream: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """01 counts all events, shows one in n evenly spread over all pages, and says so."""
    ids = seed(valkey, stream, 300, delivered=10)[10:]
    whole = Analysis.open({"stream": stream})
    assert whole.backlog.step == 1
    assert whole.frame["id"].tolist() == ids
    monkeypatch.setattr("drainkit.core.frame.MOST_ROWS", 100)
    monkeypatch.setattr("drainkit.core.frame.ROWS_OF_MORE", 50)
    part = Analysis.open({"stream": stream})
    assert part.frame["id"].tolist() == ids[::6]
    assert part.backlog.counts.tolist() == whole.backlog.counts.tolist()
    assert (part.backlog.total, int(part.backlog.counts.sum())) == (290, 290)
    told = part.bottom_line().data
    assert "holds **290 entries**, and" in told
    assert "one event in 6" in told
    assert "drainkit export DIR/" in told
    assert "one event in 6" in part.what_if()["layout"]["title"]["text"]


def test_02_reads_nothing_that_01_of_its_run_has_read(
    valkey: Server, stream: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a run's folder 02 takes what 01 handed on; elsewhere it reads by itself."""
    seed(valkey, stream, 300, delivered=10)
    folder = here / "20260101T000000Z-dry-run-0a1b2c"
    alone = here / "alone"
    for one in (folder, alone):
        one.mkdir()
        Analysis.open({"stream": stream, "run_dir": str(one), "max_events": "all"})
    assert [*alone.iterdir()] == []
    monkeypatch.setattr("drainkit.server.scopes.scope_entries", None)
    plan = DryRun.open({"stream": stream, "run_dir": str(folder), "max_events": "all"}).plan
    assert plan.total_read == 290
    assert sorted(p.name for p in folder.iterdir()) == [
        "decisions.parquet", "plan.json", "run.json",
    ]  # fmt: skip
    with pytest.raises(TypeError):
        DryRun.open({"stream": stream, "run_dir": str(alone), "max_events": "all"})


def test_an_error_in_a_notebook_is_one_line_without_flags() -> None:
    """What IPython shows of it says what to do in a notebook's words, not the command line's."""
    for text, shown in (
        ("it was active; stop it, or set --allow-active-consumers",
         "it was active; stop it, or set allow_active_consumers (here a line of"),
        ("check that it runs and --redis-url (or DRAINKIT_REDIS_URL)",
         "check that it runs and DRAINKIT_REDIS_URL"),
    ):  # fmt: skip
        (line,) = RefusedError(text)._render_traceback_()
        assert line.startswith(f"RefusedError: {shown}")


def test_a_misspelt_parameter_can_be_mended() -> None:
    """It is refused while it stands in the cell, and no longer once the cell was run without it."""
    cell = "redis_url_env = 'DRAINKIT_REDIS_URL'\nstream = 'no-such'"
    names: dict[str, Any] = {"redis_url_env": "DRAINKIT_REDIS_URL", "stream": "no-such",
                             "max_agemin": 5, "In": ["", f"{cell}\nmax_agemin = 5"]}  # fmt: skip
    with pytest.raises(UsageError, match="max_agemin"):
        LiveDrain.open(names)
    LiveDrain.open({**names, "In": [*names["In"], cell]})


def test_03_that_was_interrupted_goes_on(
    valkey: Server, stream: str, cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted, its last line has all that was drained, and the error speaks of the cell; run
    again it goes on, and entries, time and rate are those of both attempts; once more, here or by
    the command line, it says which run applied the plan, and when."""
    seed(valkey, stream, 70, delivered=10)
    Path("run").mkdir()
    plan = DryRun.open({"stream": stream, "throttle": 50, "run_dir": "run"}).plan
    live = LiveDrain.open({"run_dir": "run", "approve": plan.digest})
    before = signal.getsignal(signal.SIGINT)  # in a shell's background: ignored
    held: list[object] = []  # while it drains an interrupt raises nothing, wherever it comes

    def stop() -> None:
        held.append(signal.getsignal(signal.SIGINT))
        os.kill(os.getpid(), signal.SIGINT)

    interrupt = threading.Timer(0.7, stop)
    interrupt.start()
    with pytest.raises(InterruptedRunError) as raised:
        live.run()
    interrupt.join()
    assert held != [before] == [signal.getsignal(signal.SIGINT)]
    assert "interrupted; run this cell again" in raised.value._render_traceback_()[0]
    assert live.summary is not None
    assert 0 < live.summary.total_read < 60
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"drained {live.summary.total_read} of 60, " in last
    time.sleep(1.5)
    live.run()
    assert live.summary.total_read == 60
    assert live.summary.elapsed_sec > 59 / 50 + 1.5
    assert 0 < (live.summary.events_per_sec or 0) < 60 / 2.5
    assert "already" not in capsys.readouterr().out
    live.run()
    assert f"applied already by {live.summary.run_id} at 20" in capsys.readouterr().out
    drain = ("drain", "--mode", "live", "--yes", "--plan", "run", *at(valkey, stream))
    assert f"applied already by {live.summary.run_id} at 20" in cli.done(*drain).out


def test_a_table_reads_well_and_is_inert() -> None:
    """Numbers have separators and stand to the right, text to the left; no NaN; all is escaped. A
    table without rows says so."""
    table = Table(
        {"events": [12345, 7], "age": [1.5, np.nan], "symbol": ["<script>x</script>", None]},
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
