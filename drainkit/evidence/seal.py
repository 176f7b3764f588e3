"""Seals a run's folder: statement, sums, and its link in the chain of runs."""

from __future__ import annotations

import fcntl
import getpass
import os
import platform
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from ..core.summary import RUN_ID
from ..errors import DrainkitError, UsageError
from ..files import file_sha256, make_folder, remove_unfinished, write_json, write_text
from ..safe import one_line, secret_pattern, strike, strike_text
from .statement import (
    CHAIN,
    STATEMENT,
    STATEMENT_TYPE,
    SUMS,
    link_key,
    link_of,
    plain_files,
    read_chain,
    read_statement,
)

PREDICATE_TYPE = "urn:drainkit:run:v1"
PACKAGES = (
    "drainkit", "redis", "hiredis", "numpy", "pandas", "pyarrow", "plotly", "papermill",
    "jupyterlab", "nbconvert", "msgspec",
)  # fmt: skip


def open_run(reports_dir: Path, run_id: str) -> Path:
    """A new, empty folder for the run; its parents are made where they are missing."""
    try:
        return make_folder(reports_dir / run_id)
    except OSError as error:
        reason = one_line(error.strerror or "cannot be made")
        raise UsageError(f"--reports-dir {one_line(str(reports_dir))}: {reason}") from None


def seal(
    run_dir: Path,
    *,
    run: Mapping[str, Any],
    parameters: Mapping[str, Any],
    server: Mapping[str, Any],
    templates: Sequence[Mapping[str, Any]] = (),
    secret_words: Sequence[str] = (),
) -> str:
    """Write statement.json and SHA256SUMS; returns the statement's SHA-256 (hex).

    `run` is run.json, `parameters` hold no secrets, `server` says who answered, `templates` which
    notebooks were run (name, sha256, packaged). A secret (of 3 characters or more) that got into a
    file all the same is struck out, and the statement says so.
    Raises DrainkitError for a run that the chain holds already.
    """
    remove_unfinished(run_dir)
    secret = secret_pattern(secret_words)
    struck = _strike_files(run_dir, secret)
    digests = {
        path.name: file_sha256(path)
        for path in plain_files(run_dir)
        if path.name not in (STATEMENT, SUMS)
    }
    with _locked(run_dir.parent):
        previous = _tail(run_dir)
        statement = {
            "_type": STATEMENT_TYPE,
            "subject": [
                {"name": name, "digest": {"sha256": digest}} for name, digest in digests.items()
            ],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "run_id": run_dir.name,
                "boundary_id": run.get("boundary_id"),
                "total_read": run.get("total_read"),
                "outcome": run.get("outcome"),
                "exit_code": run.get("exit_code"),
                "started_at": run.get("started_at"),
                "finished_at": run.get("finished_at"),
                "parameters": strike(dict(parameters), secret),
                "versions": {
                    "python": platform.python_version(),
                    **_versions(),
                    "server": strike(dict(server), secret),
                },
                "templates": [dict(template) for template in templates],
                "host": socket.gethostname(),
                "user": _user(),
                "operator": run.get("operator"),
                "approvers": run.get("approvers") or [],
                "secrets_struck_out_of": struck,
                "previous": previous,
            },
        }
        write_json(run_dir / STATEMENT, statement)
        digest = file_sha256(run_dir / STATEMENT)
        lines = [f"{sha}  {name}\n" for name, sha in sorted({**digests, STATEMENT: digest}.items())]
        write_text(run_dir / SUMS, "".join(lines))
        write_json(run_dir.parent / CHAIN, {"run_id": run_dir.name, "statement_sha256": digest})
    return digest


def previous_digest(run_dir: Path) -> str | None:
    """The SHA-256 of the statement before this run's, as its own statement says."""
    previous = link_of(read_statement(run_dir / STATEMENT)["predicate"]["previous"])
    return previous["statement_sha256"] if previous else None


def _strike_files(run_dir: Path, secret: re.Pattern[str] | None) -> list[str]:
    """Strike the secret out of every text file; returns the names of those that held it."""
    struck = []
    for path in plain_files(run_dir) if secret else ():
        try:
            before = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue  # Parquet
        after = strike_text(before, secret, is_json=path.suffix in (".json", ".ipynb"))
        if after != before:
            write_text(path, after)
            struck.append(path.name)
    return struck


@contextmanager
def _locked(reports_dir: Path) -> Iterator[None]:
    """One run at a time seals in a folder, so that two that end together do not fork the chain."""
    handle = os.open(reports_dir, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _tail(run_dir: Path) -> dict[str, str] | None:
    """The run sealed last before this one: what chain.json names, then along the links.

    A crash between a statement and chain.json leaves chain.json behind; a chain.json that is gone
    or unreadable is no reason to leave no evidence (verify names it).
    """
    followers: dict[tuple[str, ...], dict[str, str]] = {}
    for run in sorted(run_dir.parent.iterdir()):
        if run == run_dir or not RUN_ID.fullmatch(run.name):
            continue
        try:
            link = link_of(read_statement(run / STATEMENT)["predicate"]["previous"])
            followers[link_key(link)] = {
                "run_id": run.name, "statement_sha256": file_sha256(run / STATEMENT),
            }  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError):
            continue  # verify names it
    try:
        newest = read_chain(run_dir.parent)
    except ValueError:
        newest = None
    if newest is not None and newest["run_id"] == run_dir.name:
        raise DrainkitError(f"{one_line(run_dir.name)} is sealed already; a run is sealed once")
    while (after := followers.pop(link_key(newest), None)) is not None:
        newest = after
    return newest


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
