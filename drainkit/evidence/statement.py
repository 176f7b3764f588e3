"""A run's folder: its files, how JSON is read from them, who works on it; the chain of runs.

Each statement names the run before it, chain.json the newest.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from ..core.summary import RUN_ID
from ..errors import RefusedError, UsageError
from ..files import read_plain
from ..safe import one_line
from ..settings.kinds import is_url

STATEMENT, SUMS, CHAIN = "statement.json", "SHA256SUMS", "chain.json"
SIGNATURE, APPROVALS, RUN_JSON = "statement.json.sig", "plan.json.sig", "run.json"
Link = Mapping[str, str]  # to a run: run_id, statement_sha256
FIRST = "first"  # in the place of a digest: before the first run there is no statement
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"


def is_sealed(place: str) -> bool:
    """Whether a place is one sealed run's: a folder with its statement, or a URL named so."""
    if is_url(place):
        return bool(RUN_ID.fullmatch(place.rstrip("/").rpartition("/")[2]))
    return is_plain(Path(place) / STATEMENT)


def listing(folder: Path) -> dict[str, Path]:
    """What is in a folder, by name."""
    try:
        return {path.name: path for path in sorted(folder.iterdir(), key=lambda p: p.name)}
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise UsageError(f"{folder}: {reason}; name a folder of evidence") from None


def run_dirs(reports_dir: Path) -> list[Path]:
    """What is named like a run."""
    return [path for name, path in listing(reports_dir).items() if RUN_ID.fullmatch(name)]


def plain_files(folder: Path) -> list[Path]:
    return [path for path in listing(folder).values() if is_plain(path)]


def is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def read_json(path: Path) -> Any:
    """JSON of a plain file; ValueError for anything that two readers could read differently."""
    return json_of(read_plain(path))


def read_or(path: Path, otherwise: Any) -> Any:
    """JSON of a plain file if it is of the type of `otherwise`, else that."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return otherwise
    return found if isinstance(found, type(otherwise)) else otherwise


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


# ---------------------------------------------------------------- who works on it
#
# A lock on the folder itself, which ends with its holder. The run and the kernel of its live
# notebook hold it together (the kernel outlives a killed run by a moment); who closes or removes
# the folder must hold it alone.


@contextmanager
def locked(folder: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """While this lasts, the folder is locked; RefusedError where that was not to be waited for."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, how)
        except BlockingIOError:
            raise RefusedError(
                f"{folder.name} is being worked on; wait until that run has ended"
            ) from None
        yield
    finally:
        os.close(handle)


def working_on(run_dir: Path) -> AbstractContextManager[None]:
    """While this lasts, nobody closes the folder."""
    return locked(run_dir, fcntl.LOCK_SH)


def alone_with(run_dir: Path) -> AbstractContextManager[None]:
    """Refuses a folder that somebody works on; while this lasts, nobody else does."""
    return locked(run_dir, fcntl.LOCK_EX | fcntl.LOCK_NB)


# ---------------------------------------------------------------- the chain of runs


def walk(links: Mapping[str, Link], start: Link | None = None) -> list[Link]:
    """The chain from `start` on, or from the first run on; `links`: to each run, by `key_of`."""
    found = [] if start is None else [start]
    at, met = key_of(start), set[str]()
    while at not in met and (link := links.get(at)) is not None:
        met.add(at)
        found.append(link)
        at = link["statement_sha256"]
    return found


def key_of(before: Link | None) -> str:
    """The digest of the run before; FIRST where there is none."""
    return FIRST if before is None else before["statement_sha256"]


def newest(links: Mapping[str, Link], start: Link | None = None) -> Link | None:
    """The last link of the chain."""
    return next(reversed(walk(links, start)), None)


def read_chain(reports_dir: Path) -> Link | None:
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


def newest_in(reports_dir: Path, without: Path | None = None) -> Link | None:
    """The run sealed last: what chain.json names, then along the links.

    A crash between a statement and chain.json leaves chain.json behind; a chain.json that is gone
    or unreadable is no reason to leave no evidence (verify names it).
    """
    start, links = None, dict[str, Link]()
    with suppress(ValueError):
        start = read_chain(reports_dir)
    for run in run_dirs(reports_dir):
        if run == without:
            continue
        with suppress(OSError, ValueError, KeyError):
            data = read_plain(run / STATEMENT)
            before = link_of(statement_of(data)["predicate"]["previous"])
            digest = hashlib.sha256(data).hexdigest()
            links[key_of(before)] = {"run_id": run.name, "statement_sha256": digest}
    return newest(links, start)
