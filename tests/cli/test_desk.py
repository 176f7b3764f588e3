"""A way in: the notebooks copied, JupyterLab started, the demo's server kept, templates named."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from backlogs import GROUP, seed
from books import ask, at
from conftest import ROOT, Cli, one_line_error
from servers import Server, wait_until

NAMES = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))


def test_notebooks_are_copied_and_nothing_of_a_persons_is_lost(cli: Cli) -> None:
    """A folder is made and filled; a file that differs, or a link, is named and kept, unless
    --force."""
    mine = cli.cwd / "deep" / "mine"
    assert cli("notebooks", mine, "--json").json()["copied"] == NAMES
    for name in NAMES:
        assert (mine / name).read_bytes() == (ROOT / "notebooks" / name).read_bytes()
    assert cli("notebooks", mine, "--json").json()["unchanged"] == NAMES
    (mine / NAMES[0]).write_text("my own work")
    (mine / NAMES[1]).unlink()
    assert NAMES[0] in cli.fails(4, "notebooks", mine)
    assert (mine / NAMES[0]).read_text() == "my own work"
    assert not (mine / NAMES[1]).exists()
    (mine / NAMES[2]).unlink()
    (mine / NAMES[2]).symlink_to(NAMES[3])
    assert NAMES[2] in cli.fails(4, "notebooks", mine)
    assert cli("notebooks", mine, "--force", "--json").json()["copied"] == NAMES[:3]
    assert json.loads((mine / NAMES[0]).read_text())["nbformat"] == 4
    assert cli("notebooks", mine / NAMES[0]).rc == 2


def test_lab_keeps_what_was_changed_and_starts_in_its_folder(valkey: Server, cli: Cli) -> None:
    """Missing notebooks are copied, a changed one stays; ARGS reach Jupyter, whose code counts."""
    mine = cli.cwd / "drainkit-notebooks"
    mine.mkdir()
    (mine / NAMES[0]).write_text("my own work")
    cli.fails(3, "lab", "other", "--redis-url", "redis://127.0.0.1:1/0", "--", "--version")
    assert [path.name for path in cli.cwd.iterdir()] == [mine.name]  # no server, no copies
    assert "lab takes one folder" in cli.fails(2, "lab", "a", "b", "--", "c")
    run = cli("lab", "--redis-url", valkey.url, "--", "--no-such-flag=x")
    assert run.rc == 2
    assert "unrecognized arguments: --no-such-flag=x" in run.err
    assert f"{NAMES[0]} in drainkit-notebooks was changed" in run.err
    assert (mine / NAMES[0]).read_text() == "my own work"
    assert sorted(path.name for path in mine.iterdir()) == NAMES


def test_kernels_get_the_settings_given(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """What drainkit.toml, a variable or a flag set arrives as it was meant, in another folder."""
    from drainkit.settings import kernel_variables, load

    (cli.cwd / "allowed.txt").write_text("A\n")
    monkeypatch.chdir(cli.cwd)
    given = {
        "throttle": "none", "max_events": "all", "allowlist": "@allowed.txt", "min_conf": "0.7",
        "as_of": "2026-01-01T00:00:00", "allow_active_consumers": True, "mode": "live",
        "from_consumer": ["a b", "c"], "fields": {"symbol": ["ticker"]}, "scope": "pending",
    }  # fmt: skip
    settings = load(given, environ={"DRAINKIT_REDIS_URL": "redis://h:1/0"})
    variables = kernel_variables(settings)
    monkeypatch.chdir("/")
    again = load({"mode": "live"}, environ=variables)
    same = {name for name in type(settings).model_fields if name != "allowlist"}
    assert {n: getattr(again, n) for n in same} == {n: getattr(settings, n) for n in same}
    assert again.allowlist == f"@{cli.cwd}/allowed.txt"
    (cli.cwd / "drainkit.toml").write_text('allowlist = "@allowed.txt"\n')
    by_file = load({}, environ={"DRAINKIT_CONFIG": f"{cli.cwd}/drainkit.toml"})
    assert by_file.allowlist == again.allowlist


def test_the_demo_can_be_served(cli: Cli) -> None:
    """--serve says where, keeps the undrained backlog there, and ends with its server at Ctrl-C."""
    process = cli.start("demo", "--serve", "--json")
    assert process.stdout is not None
    said = json.loads(process.stdout.readline())
    status = cli("status", "--json", "--redis-url", said["redis_url"]).json()
    assert status["groups"][0]["backlog"]["undelivered"] == 3168
    assert any(command.startswith("drainkit run ") for command in said["next"])
    folder = Path(said["redis_url"].removeprefix("unix://").partition("?")[0]).parent
    process.send_signal(signal.SIGINT)
    assert cli.finish(process).rc == 0
    wait_until("its folder is gone", lambda: not folder.exists())
    assert list(cli.cwd.iterdir()) == []


def test_notebooks_that_cannot_be_a_run_are_refused(valkey: Server, stream: str, cli: Cli) -> None:
    """A missing notebook, one without a parameters cell, one that is not JSON: 2, and no folder."""
    ask(valkey, "XGROUP", "CREATE", stream, GROUP, "0", "MKSTREAM")
    mine = cli.cwd / "mine"
    cli("notebooks", mine)
    path = mine / "03_live_drain.ipynb"
    untagged = path.read_text().replace('"parameters"', '"other"')
    for text in (untagged, "{", "[]", None):
        path.write_text(text or "")
        if text is None:
            path.unlink()
        assert path.name in cli.fails(2, "run", "--notebooks-dir", mine, *at(valkey, stream))
    assert not (cli.cwd / "reports").exists()


def test_a_persons_notebooks_run_and_edited_packaged_ones_do_not(
    valkey: Server, stream: str, cli: Cli
) -> None:
    """A copy with one more cell runs, and the statement tells it from those that were packaged;
    what is edited inside an installed package does not run (4)."""
    seed(valkey, stream)
    mine, site = cli.cwd / "mine", cli.cwd / "site"
    cli.done("notebooks", mine)
    own = mine / "02_dry_run.ipynb"
    book = nbformat.read(own, as_version=4)
    book.cells.append(nbformat.v4.new_code_cell("print('mine', 6 * 7)"))
    nbformat.write(book, own)
    good = cli.done("run", "--json", "--notebooks-dir", mine, *at(valkey, stream))
    folder = cli.cwd / good.json()["evidence"]
    assert "mine 42" in (folder / own.name).read_text()
    templates = json.loads((folder / "statement.json").read_text())["predicate"]["templates"]
    assert [t["name"] for t in templates] == NAMES[:4]
    for template in templates:
        assert template["packaged"] is (template["name"] != own.name)
        data = (mine / template["name"]).read_bytes()
        assert template["sha256"] == hashlib.sha256(data).hexdigest()
    shutil.copytree(ROOT / "drainkit", site / "drainkit")
    path = shutil.copytree(ROOT / "notebooks", site / "drainkit" / "notebooks") / "04_verify.ipynb"
    path.write_text(path.read_text().replace("assert_balanced", "bottom_line"))
    bad = subprocess.run(
        [sys.executable, "-m", "drainkit", "run", *at(valkey, stream)], cwd=cli.cwd,
        env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert bad.returncode == 4
    assert path.name in one_line_error(bad.stderr)
    assert len(list((cli.cwd / "reports").glob("*-dry-run-*"))) == 1
