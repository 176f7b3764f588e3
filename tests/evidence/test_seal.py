"""How runs are sealed: an in-toto statement, sums, a chain that no crash forks, and no password:
never in anything written or shown, and no other word struck out for one."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from runs import RUN, make_run, names, seal, statement
from schemas import holds

from drainkit import files
from drainkit.errors import DrainkitError
from drainkit.evidence import seal as sealing
from drainkit.evidence.verify import verify


def test_the_statement_is_an_in_toto_statement(sealed: Path, reports: Path) -> None:
    """Type, subjects with SHA-256 of every other file, and a predicate that says how it came; in
    SHA256SUMS stands every file, the statement too. A second seal would name the run as its own
    predecessor: it is refused, nothing changes."""
    listed = [line.split("  ")[1] for line in (sealed / "SHA256SUMS").read_text().splitlines()]
    assert sorted([*listed, "SHA256SUMS"]) == names(sealed)
    found = statement(sealed)
    holds("statement", found)
    subjects = {s["name"]: s["digest"] for s in found["subject"]}
    assert sorted([*subjects, "SHA256SUMS", "statement.json"]) == names(sealed)
    for name, digest in subjects.items():
        assert digest == {"sha256": hashlib.sha256((sealed / name).read_bytes()).hexdigest()}
    predicate = found["predicate"]
    told = {"run_id": sealed.name, "previous": None, "parameters": {"stream": "s", "throttle": 5.0}}
    told |= {key: value for key, value in RUN.items() if key != "drained_ok"}
    assert {key: predicate[key] for key in told} == told
    assert predicate["versions"]["server"] == {"kind": "valkey", "version": "9.1.0"}
    assert {"python", "drainkit", "redis", "pandas"} <= set(predicate["versions"])
    assert all((predicate["host"], predicate["user"]))
    before = {path.name: path.read_bytes() for path in sealed.iterdir()}
    with pytest.raises(DrainkitError, match="sealed already"):
        seal(sealed)
    assert {path.name: path.read_bytes() for path in sealed.iterdir()} == before
    assert verify(reports).bad == []


@pytest.mark.parametrize("text", ["", "[]", "null", '{"run_id": 7}', "[" * 100_000, "behind"])
def test_a_broken_chain_file_stops_nobody(chain: list[Path], reports: Path, text: str) -> None:
    """verify says so; the next run still leaves evidence that follows the newest, without a fork.
    So too after a SIGKILL between statement and chain.json, which leaves that one run behind."""
    file, before = reports / "chain.json", chain[-1]
    if text == "behind":
        text, before = file.read_text(), make_run(reports, 2)
        seal(before)
        (reports / ".writing-0123456789abcdef").write_text("{")
    file.write_text(text)
    assert "chain.json" in str(verify(reports).bad)
    run = make_run(reports, 1)
    seal(run)
    assert statement(run)["predicate"]["previous"]["run_id"] == before.name
    assert verify(reports).bad == []


def test_runs_that_end_together_do_not_fork(reports: Path) -> None:
    """Eight runs are sealed by four at once, each with its own lock: one chain, no finding."""
    runs = [make_run(reports, i) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert len({*pool.map(seal, runs)}) == 8
    assert verify(reports).bad == []
    assert sum(statement(run)["predicate"]["previous"] is None for run in runs) == 1


LEAKY = {"run_id": "20260101T000000Z-live-00000a", "mode": "live", "stream": "quantum:stream:x",
       "outcome": "done", "exit_code": 0, "error": "redis://u:***@h"}  # fmt: skip
SECRET = 'p"ä/s&<w>ord'


def notebook(text: str) -> dict[str, object]:
    output = {"output_type": "stream", "name": "stdout", "text": [text]}
    cell = {"cell_type": "code", "source": ["x"], "outputs": [output], "execution_count": 1}
    return {"cells": [cell], "metadata": {}, "nbformat": 4}


@pytest.mark.parametrize("word", ["quantum", "live", "stdout", "ab", "null", "500"])
def test_a_password_that_is_a_word_strikes_no_other(tmp_path: Path, word: str) -> None:
    """plan.json and run.json keep their bytes, prose stays; where a password stands it goes."""
    folder = files.make_folder(tmp_path / str(LEAKY["run_id"]))
    files.write_json(folder / "run.json", LEAKY)
    files.write_json(folder / "plan.json", {"stream": LEAKY["stream"], "mode": "live"})
    said = f"live quantum done events ab {word}"
    leak = f"redis://u:{word}@h and redis://h/0?password={word} and password='{word}'"
    files.write_json(folder / "03_live_drain.ipynb", notebook(f"{said}\n{leak}"))
    kept = {name: (folder / name).read_bytes() for name in ("run.json", "plan.json")}
    sealing.seal(folder, run=LEAKY, parameters={"stream": LEAKY["stream"]}, server={},
                 secret_words=[word])  # fmt: skip
    assert {name: (folder / name).read_bytes() for name in kept} == kept
    found = json.loads((folder / "03_live_drain.ipynb").read_text())
    struck = "redis://u:***@h and redis://h/0?password=*** and password='***'"
    assert found == notebook(f"{said}\n{struck}")
    statement = json.loads((folder / "statement.json").read_text())["predicate"]
    assert statement["parameters"] == {"stream": LEAKY["stream"]}
    assert statement["secrets_struck_out_of"] == ["03_live_drain.ipynb"]
    assert verify(folder).bad == []


def test_a_secret_that_got_in_is_struck_out(reports: Path) -> None:
    """In whatever spelling a file has it; the JSON stays JSON, and the statement says where. One
    that begins like another leaves no end of itself."""
    import html
    import urllib.parse

    folder = make_run(reports)
    twice = json.dumps({"url": f"redis://u:{SECRET}@h"})
    files.write_json(folder / "after.json", {"a": [SECRET], "output": twice, "n": 5, SECRET: 1,
                                             "name": f"{SECRET} x", "id": SECRET})  # fmt: skip
    files.write_json(folder / "baseline.json", {"shown": json.dumps({"output": twice})})
    (folder / "x.log").write_text(f"{SECRET} {urllib.parse.quote(SECRET, safe='')}")
    (folder / "no_ending").write_text(f"{SECRET} {SECRET}-tail")
    label = html.escape(SECRET, quote=False)  # as in a figure, whose JSON stands in the page
    (folder / "report.html").write_text(f"<p>{html.escape(SECRET)}</p>{json.dumps([label])}")
    (folder / ".writing-half").write_text(f'{{"url": "{SECRET}')
    told = {"note": f"x{SECRET}x", "throttle": 5.0}
    seal(folder, secret_words=[SECRET, f"{SECRET}-tail", ""], parameters=told)
    for path in folder.iterdir():
        if path.suffix == ".parquet":
            continue
        text = path.read_text()
        for form in (SECRET, "ä/s", "u00e4/s", "w>ord", "&lt;w&gt;ord", "%C3%A4"):
            assert form not in text, (path.name, form)
    assert (folder / "no_ending").read_text() == "*** ***"
    after = json.loads((folder / "after.json").read_text())
    assert after == {"a": ["***"], "output": '{"url": "redis://u:***@h"}', "n": 5, "***": 1,
                     "name": "*** x", "id": "***"}  # fmt: skip
    predicate = statement(folder)["predicate"]
    assert predicate["parameters"] == {"note": "x***x", "throttle": 5.0}
    assert predicate["secrets_struck_out_of"] == [
        "after.json", "baseline.json", "no_ending", "report.html", "x.log",
    ]  # fmt: skip
    assert ".writing-half" not in names(folder)
    assert verify(folder).bad == []
