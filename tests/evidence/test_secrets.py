"""Passwords: never in anything written or shown, and no other word struck out for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Cli, one_line_error

from drainkit import files
from drainkit.evidence import seal as sealing
from drainkit.evidence.verify import verify_run
from drainkit.safe import redact, secret_words

RUN = {"run_id": "20260101T000000Z-live-00000a", "mode": "live", "stream": "quantum:stream:x",
       "outcome": "done", "exit_code": 0, "error": "redis://u:***@h"}  # fmt: skip


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
