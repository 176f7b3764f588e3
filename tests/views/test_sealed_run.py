"""A sealed run opened again: 01 and Lab on its folder or its URL, with no server anywhere."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psutil
import pytest
from backlogs import seed
from books import at
from conftest import Cli
from servers import Server, wait_until

from drainkit.core.policy import ACTIONS
from drainkit.errors import RefusedError, UsageError
from drainkit.views.analyse_backlog import Analysis


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What is configured leads to a listener that fails the test if anybody came."""
    with socket.create_server(("127.0.0.1", 0)) as trap:
        monkeypatch.setenv("DRAINKIT_REDIS_URL", f"redis://127.0.0.1:{trap.getsockname()[1]}/0")
        monkeypatch.setenv("DRAINKIT_MIN_CONF", "0.01")  # the run has its own
        yield trap
        trap.settimeout(0)
        with pytest.raises(BlockingIOError):
            trap.accept()


def events_of(summary: dict[str, Any]) -> list[int]:
    return [summary[action] for action in ACTIONS]


@pytest.mark.parametrize("mode", ["dry-run", "live"])
def test_01_shows_a_sealed_run_without_a_server(
    valkey: Server, stream: str, cli: Cli, no_server: socket.socket, mode: str
) -> None:
    """In the notebook of Lab by papermill, or opened by hand: its decisions, outcomes and moment.
    Counts are the sealed ones, an entry opens to what is kept, no connection is tried, and the
    folder verifies as before. `lab --run` makes the notebook, but for one that was changed; what is
    no sealed run, or comes with other settings, is refused."""
    seed(valkey, stream, 120, delivered=20)  # every action but missing
    options = ("--max-events", "all", "--throttle", "none", "--min-conf", "0.5", "--mode", mode,
               "--allowlist", "BTCUSDT,ETHUSDT", *["--yes"] * (mode == "live"))  # fmt: skip
    run = cli.done("run", "--json", *options, *at(valkey, stream)).json()
    folder = cli.cwd / run["evidence"]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    plan = json.loads(before["plan.json"])
    analysis = Analysis.open({"run_dir": str(folder)})
    shown = analysis.bottom_line().data
    if mode == "dry-run":
        for _ in range(2):
            lab = cli.start("lab", "--run", folder, "--", "--no-browser", "--help")
            its = psutil.Process(lab.pid).cmdline
            wait_until("it is Lab", lambda its=its: "jupyterlab" in its())
            template = cli.cwd / "drainkit-notebooks" / its()[-1]
            lab.kill()
            assert str(folder) in template.read_text(encoding="utf-8")
            template.write_text(mark := template.read_text(encoding="utf-8") + "\n")
        assert template.read_text(encoding="utf-8") == mark
        for wrong in (
            (cli.cwd,),
            (folder, "--stream", "s"),
            (folder, "--demo"),
            ("s3://evidence",),
        ):
            cli.fails(2, "lab", "--run", *wrong)
        done = replace(cli, cwd=template.parent).papermill(template, out := cli.cwd / "out.ipynb")
        assert done.rc == 0, done.err
        shown = json.dumps(json.loads(out.read_text())["cells"])
        assert shown.count("application/vnd.plotly.v1+json") == 7
    when = plan["created_at"][:19].replace("T", " ")
    assert f"As of {when} UTC, from the sealed run" in shown
    assert f"of **{run['total_read']:,} entries**" in shown
    assert dict(zip(ACTIONS, analysis.backlog.counts.tolist(), strict=True)) == plan["counts"]
    assert analysis.frame["action"].value_counts().to_dict() == plan["counts"]
    assert analysis.settings.min_conf == 0.5
    assert analysis.invalid_table()["events"].sum() == run["dropped_invalid"]
    assert analysis.settings_table().loc["seal", "value"] == "holds"
    explored = analysis.explore(anyway=True)
    assert explored is not None
    assert all(f"<td>{n:,}</td>" in analysis.exploration.counts.value for n in events_of(run))
    one = analysis.frame["id"].iloc[5]
    kept = analysis.entry(one)["value"]
    assert "not kept; its SHA-256 is " in kept["payload"]
    assert kept["action"] == analysis.frame["action"].iloc[5]
    assert kept.get("recorded", "").startswith(f"{kept['action']} at 20") == (mode == "live")
    with pytest.raises(RefusedError, match="none of the 100 entries"):
        analysis.entry("1-1")
    archived = shutil.copytree(folder, cli.cwd / "archived", ignore=lambda _, names: {
        name for name in names if name != "statement.json"})  # fmt: skip
    with pytest.raises(UsageError, match="it is archived"):
        Analysis.open({"run_dir": str(archived)})
    with pytest.raises(UsageError, match="says its min_conf"):
        Analysis.open({"run_dir": str(folder), "min_conf": 0.9})
    outcomes = analysis.outcomes()
    assert (outcomes is None) == (mode == "dry-run")
    if outcomes is not None:
        assert outcomes["recorded"].tolist() == events_of(run)
        happened = analysis.frame["happened"].value_counts().to_dict()
        assert [happened[action] for action in ACTIONS] == events_of(run)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert cli("verify", folder).rc == 0
    (folder / "after.json").write_bytes(b"x")
    assert (
        "does not hold: changed: after.json"
        in Analysis.open({"run_dir": str(folder)}).bottom_line().data
    )
