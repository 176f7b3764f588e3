"""The statement of a run and the chain of runs, as they stand in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import DrainkitError
from ..files import file_sha256, read_plain
from ..safe import one_line

STATEMENT, SUMS, CHAIN, SIGNATURE, RUN_JSON = (
    "statement.json",
    "SHA256SUMS",
    "chain.json",
    "statement.json.sig",
    "run.json",
)
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"


def link_key(link: dict[str, str] | None) -> tuple[str, ...]:
    return () if link is None else (link["run_id"], link["statement_sha256"])


def link_of(data: Any) -> dict[str, str] | None:
    """A link of the chain from JSON, None for the start; ValueError where it is neither."""
    if data is None:
        return None
    names = ("run_id", "statement_sha256")
    if not isinstance(data, dict) or not all(isinstance(data.get(n), str) for n in names):
        raise ValueError("not a link")
    return {name: data[name] for name in names}


def read_chain(reports_dir: Path) -> dict[str, str] | None:
    """What chain.json names; None without one; ValueError where it cannot be read."""
    try:
        link = link_of(read_json(reports_dir / CHAIN))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError("not readable") from error
    if link is None:
        raise ValueError("not a link")
    return link


def plain_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.is_symlink())


def is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def read_json(path: Path) -> Any:
    """JSON of a plain file; ValueError for anything that two readers could read differently."""
    try:
        return json.loads(read_plain(path).decode("utf-8"), object_pairs_hook=_once_each)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands in it twice")
    return found


def read_statement(path: Path) -> dict[str, Any]:
    """The statement; ValueError where it is not one."""
    data = read_json(path)
    if not isinstance(data, dict) or data.get("_type") != STATEMENT_TYPE:
        raise ValueError("not an in-toto statement")
    return data


def statement_digest(run_dir: Path) -> str:
    """The statement's SHA-256 (hex), as the run ledger in Redis keeps it."""
    try:
        return file_sha256(run_dir / STATEMENT)
    except OSError:
        raise _unsealed(run_dir) from None


def statement_bytes(run_dir: Path) -> bytes:
    try:
        return read_plain(run_dir / STATEMENT)
    except OSError:
        raise _unsealed(run_dir) from None


def _unsealed(run_dir: Path) -> DrainkitError:
    return DrainkitError(f"{one_line(run_dir.name)} has no {STATEMENT}: it was never sealed")
