"""A run's folder: how its files are read, who works on it, its seal; and the chain of runs.

Each statement names the run before it, chain.json the newest. Passwords are struck out before the
seal, where one can have got in: what drainkit writes from checked values alone (plan, summary,
tables) cannot hold one and keeps its bytes; what a notebook put out, what the server said, and
whatever else lies in the folder, may.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar

import msgspec

from .. import files
from ..core.summary import RUN_ID
from ..errors import DrainkitError, RefusedError, UsageError
from ..safe import one_line, secret_pattern, strike, strike_text
from ..settings.kinds import is_url, os_user
from ..signing import OF_STATEMENT, sign, signer

STATEMENT, SUMS, CHAIN = "statement.json", "SHA256SUMS", "chain.json"
SIGNATURE, APPROVALS, RUN_JSON = "statement.json.sig", "plan.json.sig", "run.json"
#: What the statement repeats of run.json.
OF_RUN = (
    "boundary_id", "total_read", "outcome", "exit_code", "started_at", "finished_at", "operator",
    "plan_digest", "environment", "server", "approver_keys", "approvals_required",
)  # fmt: skip
PACKAGES = (
    "drainkit", "redis", "hiredis", "numpy", "pandas", "pyarrow", "plotly", "papermill",
    "jupyterlab", "nbconvert", "msgspec",
)  # fmt: skip
FIRST = "first"  # in the place of a digest: before the first run there is no statement
_CHECKED = ("plan.json", RUN_JSON)
_Kind = TypeVar("_Kind")


class Link(TypedDict):
    """A run, as chain.json and the run after it name it."""

    run_id: str
    statement_sha256: str


class _Subject(TypedDict):
    name: str
    digest: dict[str, str]


class _Predicate(msgspec.Struct):
    """What is read again of a predicate; statements of 65c9fb9 lack what has a value here."""

    run_id: str
    parameters: dict[str, Any]
    previous: Link | None
    approvers: list[str]
    operator: str | None
    started_at: str | None
    finished_at: str | None
    signed_by: str | None = None
    user: str | None = None
    plan_digest: str | None = None
    approver_keys: dict[str, str] | None = None
    approvals_required: int | None = None


class _Statement(msgspec.Struct):
    type: Literal["https://in-toto.io/Statement/v1"] = msgspec.field(name="_type")
    subject: list[_Subject]
    predicate: _Predicate


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


def parse(data: bytes, kind: type[_Kind]) -> _Kind:
    """JSON of this kind (whatever msgspec takes); ValueError for any other."""
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError:
        raise ValueError("nested too deep") from None


def read_or(path: Path, otherwise: Any, kind: Any = None) -> Any:
    """JSON of a plain file if it is of this kind, or of that of `otherwise`; else that."""
    with suppress(OSError, ValueError):
        return parse(files.read_plain(path), kind or type(otherwise))
    return otherwise


def statement_of(data: bytes) -> dict[str, Any]:
    """A statement from the file's bytes; ValueError where it is none of ours."""
    found: dict[str, Any] = parse(data, dict)
    msgspec.convert(found, _Statement)
    return found


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


@contextmanager
def locked(folder: Path, *, shared: bool = False, wait: bool = True) -> Iterator[None]:
    """While this lasts, the folder is locked; RefusedError where that was not to be waited for.

    The lock ends with its holder. A run and the kernel of its live notebook hold their folder
    together, `shared` (the kernel outlives a killed run by a moment); who closes the folder holds
    it alone.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        try:
            fcntl.flock(handle, how if wait else how | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(
                f"{folder.name} is being worked on; wait until that run has ended"
            ) from None
        yield
    finally:
        os.close(handle)


# ---------------------------------------------------------------- the chain of runs


def key_of(before: Link | None) -> str:
    """The digest of the run before; FIRST where there is none."""
    return FIRST if before is None else before["statement_sha256"]


def walk(links: Mapping[str, Link], start: Link | None = None) -> list[Link]:
    """The chain from `start` on, or from the first run on; `links`: to each run, by `key_of`."""
    found = [] if start is None else [start]
    at, met = key_of(start), set[str]()
    while at not in met and (link := links.get(at)) is not None:
        met.add(at)
        found.append(link)
        at = link["statement_sha256"]
    return found


def newest(links: Mapping[str, Link], start: Link | None = None) -> Link | None:
    """The last link of the chain."""
    return next(reversed(walk(links, start)), None)


def newest_in(reports_dir: Path) -> Link | None:
    """The run sealed last: what chain.json names, then along the links.

    A crash between a statement and chain.json leaves chain.json behind; a chain.json that is gone
    or unreadable is no reason to leave no evidence (verify names it).
    """
    links: dict[str, Link] = {}
    for run in run_dirs(reports_dir):
        with suppress(OSError, ValueError):
            data = files.read_plain(run / STATEMENT)
            before = key_of(statement_of(data)["predicate"]["previous"])
            digest = hashlib.sha256(data).hexdigest()
            links[before] = {"run_id": run.name, "statement_sha256": digest}
    return newest(links, read_or(reports_dir / CHAIN, None, Link))


# ---------------------------------------------------------------- sealing


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
    struck = _strike_files(run_dir, secret)
    # the key of a signature over nothing, for the one over the statement comes last
    signed_by = sign_key and signer(b"", sign(b"", sign_key, OF_STATEMENT), OF_STATEMENT)
    own = (STATEMENT, SUMS, SIGNATURE)
    digests = {p.name: files.file_sha256(p) for p in plain_files(run_dir) if p.name not in own}
    versions = {"python": platform.python_version(), **dict.fromkeys(PACKAGES)}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    with locked(run_dir.parent):  # of two that end together one follows the other: no fork
        previous = newest_in(run_dir.parent)
        if (run_dir / STATEMENT).exists() or (previous and previous["run_id"] == run_dir.name):
            raise DrainkitError(f"{run_dir.name} is sealed already; a run is sealed once")
        data = files.json_bytes({
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": n, "digest": {"sha256": sha}} for n, sha in digests.items()],
            "predicateType": "urn:drainkit:run:v1",
            "predicate": {
                "run_id": run_dir.name,
                **strike({name: run.get(name) for name in OF_RUN}, secret),
                "parameters": strike(dict(parameters), secret),
                "versions": {**versions, "server": strike(dict(server), secret)},
                "templates": [dict(template) for template in templates],
                "host": socket.gethostname(), "user": os_user(),
                "approvers": run.get("approvers") or [], "secrets_struck_out_of": struck,
                "signed_by": signed_by, "previous": previous,
            },
        })  # fmt: skip
        digest = hashlib.sha256(data).hexdigest()
        files.write_bytes(run_dir / SUMS, sums_of({**digests, STATEMENT: digest}))
        if sign_key is not None:
            files.write_bytes(run_dir / SIGNATURE, sign(data, sign_key, OF_STATEMENT))
        files.write_bytes(run_dir / STATEMENT, data)
        link: Link = {"run_id": run_dir.name, "statement_sha256": digest}
        files.write_json(run_dir.parent / CHAIN, link)
    return digest


def secret_of(run_dir: Path, words: Sequence[str]) -> re.Pattern[str] | None:
    """What finds the passwords in this run's files.

    A password that is a word of drainkit, or of this run (a stream's name), is found only where a
    password can stand: everywhere else it is that word.
    """
    checked = [read_or(run_dir / name, {}) for name in _CHECKED]
    # but for errors, which are free text
    texts = [json.dumps({**one, "error": None}, ensure_ascii=False) for one in checked]
    return secret_pattern(words, "\n".join(texts)) if any(words) else None


def _strike_files(run_dir: Path, secret: re.Pattern[str] | None) -> list[str]:
    """Strike the secret out of the files that can hold it; returns the names of those that did."""
    struck = []
    for path in plain_files(run_dir) if secret else ():
        if path.name in (*_CHECKED, STATEMENT, SUMS) or path.suffix in (".parquet", ".sig"):
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
