"""The files of a run's evidence, as JSON is read from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.summary import RUN_ID
from ..files import read_plain
from ..safe import one_line
from ..settings.kinds import is_url

STATEMENT, SUMS, CHAIN, SIGNATURE, APPROVALS, RUN_JSON = (
    "statement.json",
    "SHA256SUMS",
    "chain.json",
    "statement.json.sig",
    "plan.json.sig",
    "run.json",
)
Link = Mapping[str, str]  # to a run: run_id, statement_sha256
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"


def is_sealed(place: str) -> bool:
    """Whether a place is one sealed run's: a folder with its statement, or a URL named so."""
    if is_url(place):
        return bool(RUN_ID.fullmatch(place.rstrip("/").rpartition("/")[2]))
    return is_plain(Path(place) / STATEMENT)


def plain_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if is_plain(path))


def is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def read_json(path: Path) -> Any:
    """JSON of a plain file; ValueError for anything that two readers could read differently."""
    return json_of(read_plain(path))


def json_of(data: bytes) -> Any:
    """JSON from bytes; ValueError for anything that two readers could read differently."""
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_once_each)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands in it twice")
    return found


def statement_of(data: bytes) -> dict[str, Any]:
    """A statement with its predicate from the file's bytes; ValueError where it is none."""
    found = json_of(data)
    if not isinstance(found, dict) or found.get("_type") != STATEMENT_TYPE:
        raise ValueError("not an in-toto statement")
    if not isinstance(found.get("predicate"), dict):
        raise ValueError("no predicate")
    return found


def link_of(data: Any) -> Link | None:
    """A link of the chain from JSON, None for the start; ValueError where it is neither."""
    if data is None:
        return None
    names = ("run_id", "statement_sha256")
    if not isinstance(data, dict) or not all(isinstance(data.get(n), str) for n in names):
        raise ValueError("not a link")
    return {name: data[name] for name in names}


def sums_of(digests: Mapping[str, str]) -> bytes:
    """SHA256SUMS of these files, as `sha256sum --check` reads it."""
    lines = [f"{sha}  {name}\n" for name, sha in sorted(digests.items())]
    return "".join(lines).encode("utf-8", "backslashreplace")


def shown(value: Any, limit: int = 80) -> str:
    """A value from evidence in a line of a finding; whatever it is, briefly and soon."""
    if isinstance(value, dict | list):
        return f"({type(value).__name__})"
    # cut first: to look for passwords in megabytes can take hours
    return one_line(str(value)[: 50 * limit], limit)
