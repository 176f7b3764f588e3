"""All writing of files, and checking them later: run folder, plan, tables, statement, chain.

A sealed folder is checked by `drainkit verify`, or without drainkit by `sha256sum -c SHA256SUMS`.
Each statement names the one before it in its reports folder, and `chain.json` the newest, so that
a run that was removed is missed, the newest included.
"""

from __future__ import annotations

import datetime as dt
import errno
import fcntl
import getpass
import hashlib
import html
import json
import os
import platform
import re
import secrets
import socket
import subprocess
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DrainkitError, RefusedError, UsageError, one_line
from .plan import COLUMNS, Plan, empty_table, from_json, table_sha256

if TYPE_CHECKING:
    import pyarrow as pa

RUN_ID = re.compile(r"\d{8}T\d{6}Z-(dry-run|live)-[0-9a-f]{6}")
STATEMENT, SUMS, CHAIN, SIGNATURE = (
    "statement.json",
    "SHA256SUMS",
    "chain.json",
    "statement.json.sig",
)
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:drainkit:run:v1"
PACKAGES = (
    "drainkit", "redis", "hiredis", "numpy", "pandas", "pyarrow", "plotly", "papermill",
    "jupyterlab", "nbconvert", "msgspec",
)  # fmt: skip
_NAMESPACE = "drainkit"  # of signatures: one made for something else does not count
_WRITING = ".writing-"  # before the name of a file that is not whole yet


def new_run_id(mode: str, now_us: int) -> str:
    """YYYYMMDDTHHMMSSZ-<mode>-<6 hex>, from the server's time."""
    now = dt.datetime.fromtimestamp(now_us // 1_000_000, tz=dt.UTC)
    return f"{now:%Y%m%dT%H%M%SZ}-{mode}-{secrets.token_hex(3)}"


def open_run(reports_dir: Path, run_id: str) -> Path:
    """A new, empty folder for the run; its parents are made where they are missing."""
    folder = reports_dir / run_id
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        reason = one_line(error.strerror or "cannot be made")
        raise UsageError(f"--reports-dir {one_line(str(reports_dir))}: {reason}") from None
    return folder


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a file whole or not at all; its mode is the umask's.

    Raises DrainkitError when the disk is full or broken, UsageError for a place that cannot be.
    """
    temporary = path.with_name(f"{_WRITING}{secrets.token_hex(8)}")
    try:
        # not tempfile: its 0600 could only be widened by guessing at the umask
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        reason = one_line(error.strerror or "cannot be written")
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise DrainkitError(f"{one_line(str(path))}: {reason}; nothing was written") from None
        raise UsageError(f"{one_line(str(path))}: {reason}; choose another place") from None


def _sync_folder(folder: Path) -> None:
    # a rename is on disk only when its folder is
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, data: object) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=True) + "\n")


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table as Parquet (.parquet) or CSV (.csv), whole or not at all.

    In CSV a text cell that a spreadsheet would take for a formula gets an apostrophe before it
    (OWASP, CSV Injection: = + - @ tab CR LF and the full-width signs, also after blanks).
    """
    import pyarrow as pa
    from pyarrow import csv, parquet

    sink = pa.BufferOutputStream()
    if path.suffix == ".parquet":
        parquet.write_table(table, sink, compression="zstd")
    elif path.suffix == ".csv":
        csv.write_csv(_without_formulas(table), sink)
    else:
        raise UsageError(f"{one_line(path.name)}: the name must end in .parquet or .csv")
    write_bytes(path, memoryview(sink.getvalue()))


def _without_formulas(table: pa.Table) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    for index, field in enumerate(table.schema):
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
        if not any(is_text(kind) for is_text in texts):
            continue
        # a category's column is a dictionary: the CSV would hold its values as they are
        column = table.column(index).cast(pa.large_string())
        # a lone control character or a bidi mark would be acted on by who shows the file
        column = pc.replace_substring_regex(
            column, r"[\x00-\x08\x0b-\x1f\x7f\x{202a}-\x{202e}\x{2066}-\x{2069}]", "\ufffd"
        )
        # spreadsheets skip blanks; the last four are the full-width = + - @
        safe = pc.replace_substring_regex(
            column,
            r"^([\s\p{Z}\x{feff}]*[=+\-@\t\r\n\x{ff1d}\x{ff0b}\x{ff0d}\x{ff20}])",
            r"'\1",
        )
        table = table.set_column(index, field.name, safe)
    return table


# ---------------------------------------------------------------- plans


def decisions_path(plan_path: Path) -> Path:
    """Beside plan.json decisions.parquet, beside X.json X.decisions.parquet."""
    if plan_path.name == "plan.json":
        return plan_path.with_name("decisions.parquet")
    return plan_path.with_name(f"{plan_path.stem}.decisions.parquet")


def check_plan_path(path: Path) -> None:
    """Refuse a path that no plan can be written to."""
    if path.is_dir():
        raise UsageError(f"--plan {one_line(str(path))} is a folder; name a file in it to write to")


def save_plan(path: Path, plan: Plan, decisions: pa.Table) -> None:
    """Write the plan and, beside it, its decisions."""
    write_table(decisions_path(path), decisions)
    write_json(path, plan.to_json())


def load_plan(path: Path) -> tuple[Plan, pa.Table]:
    """A plan (file or evidence folder) and its decisions; refuses what its digest does not fit."""
    path = path / "plan.json" if path.is_dir() else path
    try:
        plan = from_json(path.read_text(encoding="utf-8"), path.name)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(f"--plan {one_line(str(path))}: {one_line(reason)}") from None
    beside = decisions_path(path)
    try:
        table, digest = _read_decisions(beside)
    except (OSError, ValueError, NotImplementedError):  # what pyarrow raises is one of these
        raise RefusedError(
            f"the plan's decisions, {one_line(beside.name)}, cannot be read"
        ) from None
    if tuple(table.column_names) != COLUMNS or digest != plan.decisions_sha256:
        raise RefusedError(f"{one_line(beside.name)} does not fit the plan's digest: it was edited")
    try:
        return plan, table.cast(empty_table().schema)  # another tool may have saved it otherwise
    except (ValueError, NotImplementedError):
        raise RefusedError(f"{one_line(beside.name)} has columns of other types") from None


def _read_decisions(path: Path) -> tuple[pa.Table, str]:
    from pyarrow import parquet

    # an open file: from a path pyarrow may take a folder or read columns out of folder names
    with path.open("rb") as file:
        table = parquet.ParquetFile(file).read()
    return table, table_sha256(table)


# ---------------------------------------------------------------- sealing


def seal(
    run_dir: Path,
    *,
    run: Mapping[str, Any],
    parameters: Mapping[str, Any],
    server: Mapping[str, Any],
    secret_words: Sequence[str] = (),
) -> str:
    """Write statement.json and SHA256SUMS; returns the statement's SHA-256 (hex).

    `run` is run.json, `parameters` hold no secrets, `server` says who answered. A secret (of 3
    characters or more) that got into a file all the same is struck out, and the statement says so.
    Raises DrainkitError for a run that the chain holds already.
    """
    for unfinished in run_dir.glob(f"{_WRITING}*"):
        unfinished.unlink()  # of a kernel that was killed while it wrote
    secret = _pattern(secret_words)
    struck = _strike_files(run_dir, secret)
    digests = {
        path.name: _sha256(path) for path in _files(run_dir) if path.name not in (STATEMENT, SUMS)
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
                "outcome": run.get("outcome"),
                "exit_code": run.get("exit_code"),
                "started_at": run.get("started_at"),
                "finished_at": run.get("finished_at"),
                "parameters": _strike(dict(parameters), secret),
                "versions": {
                    "python": platform.python_version(),
                    **_versions(),
                    "server": _strike(dict(server), secret),
                },
                "host": socket.gethostname(),
                "user": _user(),
                "secrets_struck_out_of": struck,
                "previous": previous,
            },
        }
        write_json(run_dir / STATEMENT, statement)
        digest = _sha256(run_dir / STATEMENT)
        lines = [f"{sha}  {name}\n" for name, sha in sorted({**digests, STATEMENT: digest}.items())]
        write_text(run_dir / SUMS, "".join(lines))
        write_json(run_dir.parent / CHAIN, {"run_id": run_dir.name, "statement_sha256": digest})
    return digest


def previous_digest(run_dir: Path) -> str | None:
    """The SHA-256 of the statement before this run's, as its own statement says."""
    previous = _link(_read_statement(run_dir / STATEMENT)["predicate"]["previous"])
    return previous["statement_sha256"] if previous else None


def _pattern(words: Sequence[str]) -> re.Pattern[str] | None:
    """What finds the words, also as JSON (once and twice), HTML and URLs write them."""
    forms: set[str] = set()
    for word in words:
        if len(word) < 3:  # it would strike out half the file
            continue
        escaped = json.dumps(word)[1:-1]
        forms |= {word, escaped, json.dumps(escaped)[1:-1], repr(word)[1:-1], html.escape(word)}
        forms |= {json.dumps(word, ensure_ascii=False)[1:-1], html.escape(word, quote=False)}
        forms |= {urllib.parse.quote(word), urllib.parse.quote(word, safe="")}
    # the longest first, or the end of an escaped one would stay
    longest = sorted(forms, key=lambda form: (-len(form), form))
    return re.compile("|".join(map(re.escape, longest))) if longest else None


def _strike(value: Any, secret: re.Pattern[str] | None) -> Any:
    """The value without the secret in any text of it; keys and numbers stay, so it stays JSON."""
    if secret is None:
        return value
    if isinstance(value, str):
        return secret.sub("***", value)
    if isinstance(value, Mapping):
        return {key: _strike(item, secret) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strike(item, secret) for item in value]
    return value


def _strike_files(run_dir: Path, secret: re.Pattern[str] | None) -> list[str]:
    """Strike the secret out of every text file; returns the names of those that held it."""
    struck = []
    for path in _files(run_dir) if secret else ():
        try:
            before = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue  # Parquet
        after = _strike_text(before, secret, is_json=path.suffix in (".json", ".ipynb"))
        if after != before:
            write_text(path, after)
            struck.append(path.name)
    return struck


def _strike_text(text: str, secret: re.Pattern[str] | None, *, is_json: bool) -> str:
    if is_json:
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            pass
        else:
            after = _strike(data, secret)
            return text if after == data else json.dumps(after, indent=1) + "\n"
    return str(_strike(text, secret))


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
            link = _link(_read_statement(run / STATEMENT)["predicate"]["previous"])
            followers[_key(link)] = {
                "run_id": run.name, "statement_sha256": _sha256(run / STATEMENT),
            }  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError):
            continue  # verify names it
    try:
        newest = _read_chain(run_dir.parent)
    except ValueError:
        newest = None
    if newest is not None and newest["run_id"] == run_dir.name:
        raise DrainkitError(f"{one_line(run_dir.name)} is sealed already; a run is sealed once")
    while (after := followers.pop(_key(newest), None)) is not None:
        newest = after
    return newest


def _key(link: dict[str, str] | None) -> tuple[str, ...]:
    return () if link is None else (link["run_id"], link["statement_sha256"])


def _link(data: Any) -> dict[str, str] | None:
    """A link of the chain from JSON, None for the start; ValueError where it is neither."""
    if data is None:
        return None
    names = ("run_id", "statement_sha256")
    if not isinstance(data, dict) or not all(isinstance(data.get(n), str) for n in names):
        raise ValueError("no link")
    return {name: data[name] for name in names}


def _read_chain(reports_dir: Path) -> dict[str, str] | None:
    """What chain.json names; None without one; ValueError where it cannot be read."""
    try:
        link = _link(json.loads((reports_dir / CHAIN).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, RecursionError) as error:
        raise ValueError("not readable") from error
    if link is None:
        raise ValueError("no link")
    return link


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


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.is_symlink())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------- verifying


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's: by its name, or by what is in it."""
    return bool(RUN_ID.fullmatch(folder.name)) or any(
        (folder / name).exists() for name in (STATEMENT, SUMS, "run.json")
    )


def verify_run(run_dir: Path) -> list[str]:
    """What does not fit, one line for each file changed, missing or added; empty: all does."""
    there = _listing(run_dir)
    findings: list[str] = []
    sums = _read_sums(run_dir / SUMS, findings)
    subjects = _read_subjects(run_dir / STATEMENT, findings)
    if sums is None and subjects is None:
        return findings
    if sums is not None and subjects is not None:
        listed = {name: sha for name, sha in sums.items() if name != STATEMENT}
        findings += [
            f"changed: {STATEMENT} and {SUMS} differ on {one_line(name)}"
            for name in sorted(listed.keys() | subjects.keys())
            if listed.get(name) != subjects.get(name)
        ]
    claims = [claim for claim in (sums, subjects) if claim is not None]
    known = {name for claim in claims for name in claim}
    for name in sorted(known):
        if name not in there:
            findings.append(f"missing: {one_line(name)}")
        elif problem := _problem(there[name], {c[name] for c in claims if name in c}):
            findings.append(f"changed: {one_line(name)}{problem}")
    for name in sorted(there.keys() - known - {STATEMENT, SUMS, SIGNATURE}):
        kind = "" if _is_plain(there[name]) else " (no plain file)"
        findings.append(f"added: {one_line(name)}{kind}")
    if SIGNATURE in there and STATEMENT in there:
        findings += _signature_problem(run_dir)
    return list(dict.fromkeys(findings))


def _listing(folder: Path) -> dict[str, Path]:
    try:
        return {path.name: path for path in sorted(folder.iterdir())}
    except OSError as error:
        reason = one_line(error.strerror or "cannot be read")
        raise UsageError(f"{one_line(str(folder))}: {reason}; name a folder of evidence") from None


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _problem(path: Path, digests: set[str]) -> str | None:
    """What is wrong with a file that must have just these digests; "": its content."""
    if not _is_plain(path):
        return " (no plain file any more)"
    try:
        return None if {_sha256(path)} == digests else " (its SHA-256 is another)"
    except OSError:
        return " (not readable)"


def _signature_problem(run_dir: Path) -> list[str]:
    # without the signers' list nobody can say who signed, but a signature of other bytes shows
    if not _is_plain(run_dir / SIGNATURE):
        return [f"added: {SIGNATURE} (no plain file)"]
    try:
        _ssh_keygen(
            "-Y", "check-novalidate", "-n", _NAMESPACE, "-s", str(run_dir / SIGNATURE),
            stdin=_statement_bytes(run_dir),
        )  # fmt: skip
    except DrainkitError as error:
        return [f"changed: {SIGNATURE} does not fit {STATEMENT} ({error})"]
    return []


def _read_sums(path: Path, findings: list[str]) -> dict[str, str] | None:
    try:
        if not _is_plain(path) and path.exists():
            raise OSError(errno.EINVAL, "no plain file")
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        findings.append(f"missing: {SUMS} (the run was never sealed, or it was removed)")
        return None
    except (OSError, UnicodeDecodeError):
        findings.append(f"changed: {SUMS} (not readable)")
        return None
    sums: dict[str, str] = {}
    if lines[-1] != "":
        findings.append(f"changed: {SUMS} (its last line has no end)")
    for line in lines[:-1] if lines[-1] == "" else lines:
        match = re.fullmatch(r"([0-9a-f]{64})  ([^/]+)", line)
        if match is None or match.group(2) in sums or match.group(2) in (".", ".."):
            findings.append(f"changed: {SUMS} (line {one_line(repr(line), 80)})")
        else:
            sums[match.group(2)] = match.group(1)
    if STATEMENT not in sums:
        findings.append(f"changed: {SUMS} (does not list {STATEMENT})")
    return sums


def _read_statement(path: Path) -> dict[str, Any]:
    """The statement; ValueError where it is none."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ValueError("no plain file")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(data, dict) or data.get("_type") != STATEMENT_TYPE:
        raise ValueError("no statement")
    return data


def _read_subjects(path: Path, findings: list[str]) -> dict[str, str] | None:
    try:
        statement = _read_statement(path)
        pairs = [(str(s["name"]), str(s["digest"]["sha256"])) for s in statement["subject"]]
    except FileNotFoundError:
        findings.append(f"missing: {STATEMENT} (the run was never sealed, or it was removed)")
        return None
    except (OSError, ValueError, KeyError, TypeError):
        findings.append(f"changed: {STATEMENT} (not readable as an in-toto statement)")
        return None
    for name, _ in pairs:
        if "/" in name or name in (".", "..", STATEMENT, SUMS):
            findings.append(f"changed: {STATEMENT} (subject {one_line(repr(name), 80)})")
    return dict(pairs)


def verify_reports(reports_dir: Path) -> dict[str, list[str]]:
    """Findings by run folder, and under "chain" those of the chain over the runs."""
    runs = [
        path
        for path in _listing(reports_dir).values()
        if path.is_dir() and RUN_ID.fullmatch(path.name)
    ]
    found = {run.name: verify_run(run) for run in runs}
    found["chain"] = _verify_chain(reports_dir, runs)
    return found


def _verify_chain(reports_dir: Path, runs: Sequence[Path]) -> list[str]:
    findings: list[str] = []
    digests: dict[str, str] = {}
    links: dict[str, dict[str, str] | None] = {}  # by the run, or chain.json, that holds the link
    for run in runs:
        try:
            predicate = _read_statement(run / STATEMENT)["predicate"]
            links[run.name] = _link(predicate["previous"])
            digests[run.name] = _sha256(run / STATEMENT)
        except (KeyError, TypeError, ValueError):
            findings.append(f"changed: {run.name} names no run before it (its {STATEMENT})")
            continue
        except OSError:
            continue  # verify_run names it
        if predicate.get("run_id") != run.name:
            other = one_line(str(predicate.get("run_id")), 80)
            findings.append(f"renamed: {run.name} holds the evidence of {other}")
    firsts = sorted(name for name, link in links.items() if link is None)
    if len(firsts) > 1:
        findings.append(f"forked: {', '.join(firsts)} each claim to be the first run")
    try:
        newest = _read_chain(reports_dir)
    except ValueError:
        findings.append(f"changed: {CHAIN} (not readable)")
    else:
        if newest is not None:
            links[CHAIN] = newest
        elif runs:
            findings.append(f"missing: {CHAIN}, which names the newest run")
        else:
            findings.append(f"missing: there is no run in {one_line(reports_dir.name)}")
    return findings + _broken_links(reports_dir, links, digests)


def _broken_links(
    reports_dir: Path, links: Mapping[str, dict[str, str] | None], digests: Mapping[str, str]
) -> list[str]:
    findings: list[str] = []
    followers: dict[str, str] = {}
    for name, link in links.items():
        if link is None:
            continue
        before = link["run_id"]
        shown = one_line(before, 80)
        if not RUN_ID.fullmatch(before) or not (reports_dir / before).is_dir():
            findings.append(f"removed: run {shown}, which {name} names as the one before it")
        elif digests.get(before) != link["statement_sha256"]:
            findings.append(f"changed: the statement of {shown} is not the one that {name} names")
        if before in followers:
            findings.append(f"forked: {name} and {followers[before]} both follow {shown}")
        followers[before] = name
    findings += [
        f"left out: nothing follows {name}, and {CHAIN} does not name it"
        for name in sorted(digests)
        if name not in followers
    ]
    return findings


def statement_digest(run_dir: Path) -> str:
    """The statement's SHA-256 (hex), as the run ledger in Redis keeps it."""
    try:
        return _sha256(run_dir / STATEMENT)
    except OSError:
        raise _unsealed(run_dir) from None


# ---------------------------------------------------------------- signatures


def check_sign_key(key: Path) -> None:
    """Refuse a key that could not sign in the end, before anything is drained."""
    if not key.is_file():
        raise UsageError(f"--sign-key {one_line(str(key))} is no file")
    try:
        _ssh_keygen("-Y", "sign", "-n", _NAMESPACE, "-f", str(key), stdin=b"")
    except DrainkitError as error:
        raise UsageError(f"--sign-key {one_line(str(key))} cannot sign: {error}") from None


def sign(run_dir: Path, key: Path) -> Path:
    """Sign the statement with an SSH key (`ssh-keygen -Y sign`); returns the signature's path."""
    signature = run_dir / SIGNATURE
    said = _ssh_keygen(
        "-Y", "sign", "-n", _NAMESPACE, "-f", str(key), stdin=_statement_bytes(run_dir)
    )
    write_bytes(signature, said)
    return signature


def verify_signature(run_dir: Path, allowed_signers: Path, identity: str) -> None:
    """Check the statement's signature; raises DrainkitError if it is not `identity`'s."""
    _ssh_keygen(
        "-Y", "verify", "-n", _NAMESPACE, "-f", str(allowed_signers), "-I", identity,
        "-s", str(run_dir / SIGNATURE), stdin=_statement_bytes(run_dir),
    )  # fmt: skip


def _statement_bytes(run_dir: Path) -> bytes:
    try:
        return (run_dir / STATEMENT).read_bytes()
    except OSError:
        raise _unsealed(run_dir) from None


def _unsealed(run_dir: Path) -> DrainkitError:
    return DrainkitError(f"{one_line(run_dir.name)} has no {STATEMENT}: it was never sealed")


def _ssh_keygen(*arguments: str, stdin: bytes) -> bytes:
    """What ssh-keygen answers on stdout; DrainkitError where it refuses."""
    command = ["ssh-keygen", *arguments]
    try:
        return subprocess.run(command, input=stdin, capture_output=True, check=True).stdout
    except FileNotFoundError:
        raise DrainkitError("ssh-keygen is not installed; it signs and checks statements") from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).decode("utf-8", "replace").strip()
        raise DrainkitError(f"ssh-keygen refuses: {one_line(said)}") from None
