"""Seals a run's folder: statement, sums, and its link in the chain of runs.

Passwords are struck out before, where one can have got in: what drainkit writes from checked values
alone (plan, summary, tables) cannot hold one and keeps its bytes; what a notebook put out, what the
server said, and whatever else lies in the folder, may.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import files
from ..errors import DrainkitError, UsageError
from ..safe import secret_pattern, strike, strike_text
from ..settings.kinds import os_user
from ..signing import OF_STATEMENT, sign, signer
from .examined import OF_RUN
from .statement import (
    CHAIN,
    RUN_JSON,
    SIGNATURE,
    STATEMENT,
    STATEMENT_TYPE,
    SUMS,
    locked,
    newest_in,
    plain_files,
    read_chain,
    read_or,
    sums_of,
)

CHECKED = ("plan.json", RUN_JSON)
_KEPT = {*CHECKED, STATEMENT, SUMS, SIGNATURE, CHAIN}
_KEPT_KINDS = {".parquet", ".sig"}
PREDICATE_TYPE = "urn:drainkit:run:v1"
PACKAGES = (
    "drainkit", "redis", "hiredis", "numpy", "pandas", "pyarrow", "plotly", "papermill",
    "jupyterlab", "nbconvert", "msgspec",
)  # fmt: skip


def open_run(reports_dir: Path, run_id: str) -> Path:
    """A new, empty folder for the run; its parents are made where they are missing."""
    try:
        return files.make_folder(reports_dir / run_id)
    except OSError as error:
        reason = error.strerror or "cannot be made"
        raise UsageError(f"--reports-dir {reports_dir}: {reason}") from None


def seal(
    run_dir: Path,
    *,
    run: Mapping[str, Any],
    parameters: Mapping[str, Any],
    server: Mapping[str, Any],
    templates: Sequence[Mapping[str, Any]] = (),
    secret_words: Sequence[str] = (),
    sign_key: Path | None = None,
) -> str:
    """Write SHA256SUMS and, last of all, statement.json; returns the statement's SHA-256 (hex).

    A folder is sealed when it has its statement, so a process that dies in here leaves a folder
    that can be sealed again. `run` is run.json, `parameters` hold no secrets, `server` says who
    answered, `templates` which notebooks were run, `sign_key` is an SSH key to sign with. A secret
    that got into a file is struck out, and the statement says so. Raises DrainkitError for a run
    that is sealed already.
    """
    files.remove_unfinished(run_dir)
    secret = secret_of(run_dir, secret_words)
    struck = strike_files(run_dir, secret)
    # the key of a signature over nothing, for the one over the statement comes last
    signed_by = sign_key and signer(b"", sign(b"", sign_key, OF_STATEMENT), OF_STATEMENT)
    digests = {
        path.name: files.file_sha256(path)
        for path in plain_files(run_dir)
        if path.name not in (STATEMENT, SUMS, SIGNATURE)
    }
    with locked(run_dir.parent):  # of two that end together one follows the other: no fork
        previous = newest_in(run_dir.parent, without=run_dir)
        if (run_dir / STATEMENT).exists() or (previous and previous["run_id"] == run_dir.name):
            raise DrainkitError(f"{run_dir.name} is sealed already; a run is sealed once")
        statement = {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": n, "digest": {"sha256": sha}} for n, sha in digests.items()],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "run_id": run_dir.name,
                **strike({name: run.get(name) for name in OF_RUN}, secret),
                "parameters": strike(dict(parameters), secret),
                "versions": {**_versions(), "server": strike(dict(server), secret)},
                "templates": [dict(template) for template in templates],
                "host": socket.gethostname(),
                "user": os_user(),
                "approvers": run.get("approvers") or [],
                "secrets_struck_out_of": struck,
                "signed_by": signed_by,
                "previous": previous,
            },
        }
        data = files.json_bytes(statement)
        digest = hashlib.sha256(data).hexdigest()
        files.write_bytes(run_dir / SUMS, sums_of({**digests, STATEMENT: digest}))
        if sign_key is not None:
            files.write_bytes(run_dir / SIGNATURE, sign(data, sign_key, OF_STATEMENT))
        files.write_bytes(run_dir / STATEMENT, data)
        link = {"run_id": run_dir.name, "statement_sha256": digest}
        files.write_json(run_dir.parent / CHAIN, link)
    return digest


def name_newest(reports_dir: Path) -> bool:
    """Write chain.json anew where a process died between a statement and its link there."""
    with locked(reports_dir):
        last = newest_in(reports_dir)
        try:
            is_behind = last != read_chain(reports_dir)
        except ValueError:
            is_behind = True
        if is_behind and last is not None:
            files.write_json(reports_dir / CHAIN, last)
        return is_behind


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return {"python": platform.python_version(), **found}


# ---------------------------------------------------------------- passwords


def secret_of(run_dir: Path, words: Sequence[str]) -> re.Pattern[str] | None:
    """What finds the passwords in this run's files.

    A password that is a word of drainkit, or of this run (a stream's name), is found only where a
    password can stand: everywhere else it is that word.
    """
    checked = [read_or(run_dir / name, {}) for name in CHECKED]
    # but for errors, which are free text
    texts = [json.dumps({**one, "error": None}, ensure_ascii=False) for one in checked]
    return secret_pattern(words, "\n".join(texts)) if any(words) else None


def strike_files(run_dir: Path, secret: re.Pattern[str] | None) -> list[str]:
    """Strike the secret out of the files that can hold it; returns the names of those that did."""
    struck = []
    for path in plain_files(run_dir) if secret else ():
        if path.name in _KEPT or path.suffix in _KEPT_KINDS:
            continue
        try:
            with files.open_plain(path) as file:
                before = file.read().decode("utf-8")
        except (UnicodeDecodeError, OSError):
            continue  # not a text; a file too large to read is not one of a notebook's
        after = strike_text(before, secret, is_json=path.suffix in (".json", ".ipynb"))
        if after != before:
            files.write_text(path, after)
            struck.append(path.name)
    return struck
