"""Passwords: never in anything written or shown, and no other word struck out for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Cli, one_line_error
from runs import all_findings, make_run, names, seal, statement, verify_run

from drainkit import files
from drainkit.evidence import seal as sealing
from drainkit.safe import redact, secret_words

RUN = {"run_id": "20260101T000000Z-live-00000a", "mode": "live", "stream": "quantum:stream:x",
       "outcome": "done", "exit_code": 0, "error": "redis://u:***@h"}  # fmt: skip
SECRET = 'p"ä/s&<w>ord'


def notebook(text: str) -> dict[str, object]:
    output = {"output_type": "stream", "name": "stdout", "text": [text]}
    cell = {"cell_type": "code", "source": ["x"], "outputs": [output], "execution_count": 1}
    return {"cells": [cell], "metadata": {}, "nbformat": 4}


@pytest.mark.parametrize("word", ["quantum", "live", "done", "stdout", "code", "ab", "events"])
def test_a_password_that_is_a_word_strikes_no_other(tmp_path: Path, word: str) -> None:
    """plan.json and run.json keep their bytes, prose stays; where a password stands it goes."""
    folder = sealing.open_run(tmp_path, str(RUN["run_id"]))
    files.write_json(folder / "run.json", RUN)
    files.write_json(folder / "plan.json", {"stream": RUN["stream"], "mode": "live"})
    said = f"live quantum done events ab {word}"
    leak = f"redis://u:{word}@h and redis://h/0?password={word} and password='{word}'"
    files.write_json(folder / "03_live_drain.ipynb", notebook(f"{said}\n{leak}"))
    kept = {name: (folder / name).read_bytes() for name in ("run.json", "plan.json")}
    sealing.seal(folder, run=RUN, parameters={"stream": RUN["stream"]}, server={},
                 secret_words=[word])  # fmt: skip
    assert {name: (folder / name).read_bytes() for name in kept} == kept
    found = json.loads((folder / "03_live_drain.ipynb").read_text())
    text = found["cells"][0]["outputs"][0].pop("text")[0]
    assert text == (f"{said}\nredis://u:***@h and redis://h/0?password=*** and password='***'")
    assert found == {**notebook(""), "cells": [{**found["cells"][0]}]}
    assert found["cells"][0]["outputs"] == [{"output_type": "stream", "name": "stdout"}]
    statement = json.loads((folder / "statement.json").read_text())["predicate"]
    assert statement["parameters"] == {"stream": RUN["stream"]}
    assert statement["secrets_struck_out_of"] == ["03_live_drain.ipynb"]
    assert verify_run(folder) == []


URLS = [
    "redis://u:{}@127.0.0.1:1/0", "redis://:{}@127.0.0.1:1", "redis://127.0.0.1:1/0?password={}",
    "redis://127.0.0.1:1/0?pass%77ord={}", "redis://127.0.0.1:1/0?db=0&%70assword={}",
    "redis://127.0.0.1:1?ssl_password={}&password={}", "redis+cluster://u:{}@127.0.0.1:1",
    "redis+sentinel://u:{}@127.0.0.1:1/service", "redis+sentinel://127.0.0.1:1/s?password={}",
    "unix:///nowhere?password={}", "nonsense://u:{}@h",
]  # fmt: skip


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("word", [f"Zq9{mark}Xw7" for mark in "#?/@&"] + ["12?Zq9@Xw7"])
def test_no_part_of_a_password_is_shown(url: str, word: str) -> None:
    """Whatever is not encoded in it, however its option is written."""
    shown = redact(f"cannot reach {url.format(word, word)} today")
    for part in ("Zq9", "Xw7"):
        assert part not in shown
    assert secret_words(url.format(word, word))


@pytest.mark.parametrize("word", ["Zq9#Xw7", "Zq9?Xw7", "77?Zq9@Xw7"])
@pytest.mark.parametrize("url", [URLS[0], URLS[3], URLS[6], URLS[8]])
def test_no_error_shows_a_part_of_a_password(cli: Cli, url: str, word: str) -> None:
    """The command line's error for such a URL is one line without any part of it."""
    run = cli("status", "--redis-url", url.format(word), secret=("Zq9", "Xw7"))
    assert run.rc in (2, 3)
    one_line_error(run.err)


def test_a_secret_that_got_in_is_struck_out(reports: Path) -> None:
    """In whatever spelling a file has it; the JSON stays JSON, and the statement says where."""
    import html
    import urllib.parse

    folder = make_run(reports)
    twice = json.dumps({"url": f"redis://u:{SECRET}@h"})
    files.write_json(folder / "after.json", {"a": [SECRET], "output": twice, "n": 5})
    files.write_json(folder / "baseline.json", {"shown": json.dumps({"output": twice})})
    (folder / "x.log").write_text(f"{SECRET} {urllib.parse.quote(SECRET, safe='')}")
    (folder / "no_ending").write_text(SECRET)
    (folder / "report.html").write_text(f"<p>{html.escape(SECRET)}</p>")
    (folder / ".writing-half").write_text(f'{{"url": "{SECRET}')
    seal(folder, secret_words=[SECRET], parameters={"note": f"x{SECRET}x", "throttle": 5.0})
    for path in folder.iterdir():
        if path.suffix == ".parquet":
            continue
        text = path.read_text()
        for form in (SECRET, "ä/s", "u00e4/s", "w>ord", "&lt;w&gt;ord", "%C3%A4"):
            assert form not in text, (path.name, form)
    after = json.loads((folder / "after.json").read_text())
    assert after == {"a": ["***"], "output": '{"url": "redis://u:***@h"}', "n": 5}
    predicate = statement(folder)["predicate"]
    assert predicate["parameters"] == {"note": "x***x", "throttle": 5.0}
    assert predicate["secrets_struck_out_of"] == [
        "after.json", "baseline.json", "no_ending", "report.html", "x.log",
    ]  # fmt: skip
    assert ".writing-half" not in names(folder)
    assert verify_run(folder) == []


def test_the_longer_of_two_secrets_goes_whole(reports: Path) -> None:
    """A secret that begins like another leaves no end of itself behind."""
    folder = make_run(reports)
    (folder / "x.log").write_text("first-secret and first-secret-tail")
    seal(folder, secret_words=["first-secret", "first-secret-tail"])
    assert (folder / "x.log").read_text() == "*** and ***"


@pytest.mark.parametrize("word", ["null", "run", "live", "500", "true", "cells"])
def test_a_poor_password_does_not_break_the_evidence(reports: Path, word: str) -> None:
    """Also a password that is a word of JSON leaves files that can be read and verified."""
    folder = make_run(reports)
    seal(folder, secret_words=[word])
    for name in ("run.json", "plan.json", "01_analyse_backlog.ipynb", "statement.json"):
        json.loads((folder / name).read_text())
    assert statement(folder)["predicate"]["run_id"] == folder.name
    assert all_findings(reports) == ""


def test_without_a_leak_no_file_is_touched(reports: Path) -> None:
    """The password appears nowhere: every file keeps its bytes, and nothing is noted."""
    folder = make_run(reports)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    seal(folder, secret_words=[SECRET, ""])
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert statement(folder)["predicate"]["secrets_struck_out_of"] == []
