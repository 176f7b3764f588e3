"""Passwords struck out of a run's folder: where one can have got in, and nowhere else.

What drainkit writes from checked values alone (plan, summary, tables) cannot hold one and keeps its
bytes. What a notebook put out, what the server said, and whatever else lies in the folder, may.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from ..files import open_plain, write_text
from ..safe import secret_pattern, strike_text
from .statement import CHAIN, RUN_JSON, SIGNATURE, STATEMENT, SUMS, plain_files

CHECKED = ("plan.json", RUN_JSON)
_KEPT = {*CHECKED, STATEMENT, SUMS, SIGNATURE, CHAIN}
_KEPT_KINDS = {".parquet", ".sig"}


def secret_of(run_dir: Path, words: Sequence[str]) -> re.Pattern[str] | None:
    """What finds the passwords in this run's files.

    A password that is a word of drainkit, or of this run (a stream's name), is found only where a
    password can stand: everywhere else it is that word.
    """
    return secret_pattern(words, _checked_text(run_dir)) if any(words) else None


def strike_files(run_dir: Path, secret: re.Pattern[str] | None) -> list[str]:
    """Strike the secret out of the files that can hold it; returns the names of those that did."""
    struck = []
    for path in plain_files(run_dir) if secret else ():
        if path.name in _KEPT or path.suffix in _KEPT_KINDS:
            continue
        try:
            with open_plain(path) as file:
                before = file.read().decode("utf-8")
        except (UnicodeDecodeError, OSError):
            continue  # not a text; a file too large to read is not one of a notebook's
        after = strike_text(before, secret, is_json=path.suffix in (".json", ".ipynb"))
        if after != before:
            write_text(path, after)
            struck.append(path.name)
    return struck


def _checked_text(run_dir: Path) -> str:
    """The words of this run: what its checked files hold, but for errors, which are free text."""
    texts = []
    for name in CHECKED:
        try:
            with open_plain(run_dir / name) as file:
                found = json.load(file)
        except (OSError, ValueError, RecursionError):
            continue
        if name == RUN_JSON and isinstance(found, dict):
            found.pop("error", None)
        texts.append(json.dumps(found, ensure_ascii=False))
    return "\n".join(texts)
