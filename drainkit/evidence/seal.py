"""Seals a run's folder: statement, sums, and its link in the chain of runs."""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import os
import platform
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from ..core.summary import RUN_ID
from ..errors import DrainkitError, UsageError
from ..files import (
    file_sha256,
    json_bytes,
    make_folder,
    remove_unfinished,
    write_bytes,
    write_json,
    write_text,
)
from ..safe import one_line, strike
from .secrets import secret_of, strike_files
from .signature import fingerprint, signed
from .statement import (
    CHAIN,
    SIGNATURE,
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
_OF_RUN = (
    "boundary_id", "total_read", "outcome", "exit_code", "started_at", "finished_at", "operator",
    "environment", "server", "approver_keys", "approvals_required",
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
    sign_key: Path | None = None,
) -> str:
    """Write SHA256SUMS and, last of all, statement.json; returns the statement's SHA-256 (hex).

    A folder is sealed when it has its statement, so a process that dies in here leaves a folder
    that can be sealed again. `run` is run.json, `parameters` hold no secrets, `server` says who
    answered, `templates` which notebooks were run, `sign_key` is an SSH key to sign with. A secret
    that got into a file is struck out, and the statement says so. Raises DrainkitError for a run
    that is sealed already.
    """
    remove_unfinished(run_dir)
    secret = secret_of(run_dir, secret_words)
    struck = strike_files(run_dir, secret)
    digests = {
        path.name: file_sha256(path)
        for path in plain_files(run_dir)
        if path.name not in (STATEMENT, SUMS, SIGNATURE)
    }
    with _locked(run_dir.parent):
        previous = _tail(run_dir)
        statement = {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": n, "digest": {"sha256": sha}} for n, sha in digests.items()],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "run_id": run_dir.name,
                **strike({name: run.get(name) for name in _OF_RUN}, secret),
                "parameters": strike(dict(parameters), secret),
                "versions": {
                    "python": platform.python_version(),
                    **_versions(),
                    "server": strike(dict(server), secret),
                },
                "templates": [dict(template) for template in templates],
                "host": socket.gethostname(),
                "user": _user(),
                "approvers": run.get("approvers") or [],
                "secrets_struck_out_of": struck,
                "signed_by": None if sign_key is None else fingerprint(signed(b"", sign_key)),
                "previous": previous,
            },
        }
        data = json_bytes(statement)
        digest = hashlib.sha256(data).hexdigest()
        lines = [f"{sha}  {name}\n" for name, sha in sorted({**digests, STATEMENT: digest}.items())]
        write_text(run_dir / SUMS, "".join(lines))
        if sign_key is not None:
            write_bytes(run_dir / SIGNATURE, signed(data, sign_key))
        write_bytes(run_dir / STATEMENT, data)
        write_json(run_dir.parent / CHAIN, {"run_id": run_dir.name, "statement_sha256": digest})
    return digest


def name_newest(reports_dir: Path) -> bool:
    """Write chain.json anew where a process died between a statement and its link there."""
    with _locked(reports_dir):
        newest = _newest_of(reports_dir, _followers(reports_dir))
        try:
            is_behind = newest != read_chain(reports_dir)
        except ValueError:
            is_behind = True
        if is_behind and newest is not None:
            write_json(reports_dir / CHAIN, newest)
        return is_behind


def previous_digest(run_dir: Path) -> str | None:
    """The SHA-256 of the statement before this run's, as its own statement says."""
    previous = link_of(read_statement(run_dir / STATEMENT)["predicate"]["previous"])
    return previous["statement_sha256"] if previous else None


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
    """The run sealed last before this one; DrainkitError where this one is sealed."""
    newest = _newest_of(run_dir.parent, _followers(run_dir.parent, without=run_dir))
    if (run_dir / STATEMENT).exists() or (newest and newest["run_id"] == run_dir.name):
        raise DrainkitError(f"{one_line(run_dir.name)} is sealed already; a run is sealed once")
    return newest


def _followers(
    reports_dir: Path, without: Path | None = None
) -> dict[tuple[str, ...], dict[str, str]]:
    """The links to the sealed runs of the folder, by the link to the run before each."""
    followers: dict[tuple[str, ...], dict[str, str]] = {}
    for run in sorted(reports_dir.iterdir()):
        if run == without or not RUN_ID.fullmatch(run.name):
            continue
        try:
            link = link_of(read_statement(run / STATEMENT)["predicate"]["previous"])
            followers[link_key(link)] = {
                "run_id": run.name, "statement_sha256": file_sha256(run / STATEMENT),
            }  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError):
            continue  # verify names it
    return followers


def _newest_of(
    reports_dir: Path, followers: dict[tuple[str, ...], dict[str, str]]
) -> dict[str, str] | None:
    """What chain.json names, then along the links.

    A crash between a statement and chain.json leaves chain.json behind; a chain.json that is gone
    or unreadable is no reason to leave no evidence (verify names it).
    """
    try:
        newest = read_chain(reports_dir)
    except ValueError:
        newest = None
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
