"""All writing of files, and checking them later: run folder, plan, tables, statement, chain.

A sealed folder is checked by `drainkit verify`, or without drainkit by `sha256sum -c SHA256SUMS`.
Each statement names the one before it in its reports folder, and `chain.json` the newest, so that
a run that was removed is missed, the newest included.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import getpass
import hashlib
import json
import os
import platform
import re
import secrets
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DrainkitError, RefusedError, UsageError, one_line
from .plan import COLUMNS, Plan, from_json, table_sha256

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
_TEXT_FILES = (".json", ".ipynb", ".html", ".csv", ".txt", ".log")


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


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    except OSError as error:
        reason = one_line(error.strerror or "cannot be written")
        raise UsageError(f"{one_line(str(path))}: {reason}; choose another place") from None
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, data: object) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=True) + "\n")


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table as Parquet (.parquet) or CSV (.csv), whole or not at all.

    In CSV a text cell that a spreadsheet would take for a formula gets an apostrophe before it
    (OWASP, CSV Injection).
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
    write_bytes(path, sink.getvalue().to_pybytes())


def _without_formulas(table: pa.Table) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    for index, field in enumerate(table.schema):
        if not pa.types.is_string(field.type) and not pa.types.is_large_string(field.type):
            continue
        column = table.column(index)
        # a lone control character or a bidi mark would be acted on by who shows the file
        column = pc.replace_substring_regex(
            column, r"[\x00-\x08\x0b-\x1f\x7f\x{202a}-\x{202e}\x{2066}-\x{2069}]", "\ufffd"
        )
        safe = pc.replace_substring_regex(column, r"^(\s*[=+\-@\t\r])", r"'\1")
        table = table.set_column(index, field.name, safe)
    return table


# ---------------------------------------------------------------- plans


def decisions_path(plan_path: Path) -> Path:
    """Beside plan.json decisions.parquet, beside X.json X.decisions.parquet."""
    if plan_path.name == "plan.json":
        return plan_path.with_name("decisions.parquet")
    return plan_path.with_name(f"{plan_path.stem}.decisions.parquet")


def save_plan(path: Path, plan: Plan, decisions: pa.Table) -> None:
    """Write the plan and, beside it, its decisions."""
    write_table(decisions_path(path), decisions)
    write_json(path, plan.to_json())


def load_plan(path: Path) -> tuple[Plan, pa.Table]:
    """A plan (file or evidence folder) and its decisions; refuses what its digest does not fit."""
    from pyarrow import ArrowException, parquet

    path = path / "plan.json" if path.is_dir() else path
    try:
        plan = from_json(path.read_text(encoding="utf-8"), path.name)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(f"--plan {one_line(str(path))}: {one_line(reason)}") from None
    beside = decisions_path(path)
    try:
        table = parquet.read_table(beside)
    except (OSError, ArrowException, ValueError):
        raise RefusedError(
            f"the plan's decisions, {one_line(beside.name)}, cannot be read"
        ) from None
    if tuple(table.column_names) != COLUMNS or table_sha256(table) != plan.decisions_sha256:
        raise RefusedError(f"{one_line(beside.name)} does not fit the plan's digest: it was edited")
    return plan, table


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

    `run` is run.json, `parameters` hold no secrets, `server` says who answered. A secret that got
    into a file all the same is struck out, and the statement says so.
    """
    struck = _strike_out(run_dir, secret_words)
    digests = {
        path.name: _sha256(path) for path in _files(run_dir) if path.name not in (STATEMENT, SUMS)
    }
    with _locked(run_dir.parent):
        chain = _read_chain(run_dir.parent)
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
                "parameters": dict(parameters),
                "versions": {
                    "python": platform.python_version(),
                    **_versions(),
                    "server": dict(server),
                },
                "host": os.environ.get("DRAINKIT_EVIDENCE_HOST") or socket.gethostname(),
                "user": os.environ.get("DRAINKIT_EVIDENCE_USER") or _user(),
                "secrets_struck_out_of": struck,
                "previous": chain,
            },
        }
        write_json(run_dir / STATEMENT, statement)
        digest = _sha256(run_dir / STATEMENT)
        lines = [f"{sha}  {name}\n" for name, sha in sorted({**digests, STATEMENT: digest}.items())]
        write_text(run_dir / SUMS, "".join(lines))
        write_json(run_dir.parent / CHAIN, {"run_id": run_dir.name, "statement_sha256": digest})
    return digest


def _strike_out(run_dir: Path, words: Sequence[str]) -> list[str]:
    struck = []
    for path in _files(run_dir):
        if path.suffix not in _TEXT_FILES:
            continue
        before = path.read_bytes()
        after = before
        for word in words:
            if len(word) >= 3:  # a shorter one would strike out half the file
                after = after.replace(word.encode(), b"***")
        if after != before:
            write_bytes(path, after)
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


def _read_chain(reports_dir: Path) -> dict[str, str] | None:
    try:
        data = json.loads((reports_dir / CHAIN).read_text(encoding="utf-8"))
        return {"run_id": str(data["run_id"]), "statement_sha256": str(data["statement_sha256"])}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        # fail closed for the auditor, but a run must still leave its evidence
        return {"run_id": "unreadable", "statement_sha256": ""}


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
    findings: list[str] = []
    sums = _read_sums(run_dir / SUMS, findings)
    subjects = _read_subjects(run_dir / STATEMENT, findings)
    if not sums and not subjects:
        return findings
    there = {path.name: path for path in sorted(run_dir.iterdir())}
    for name, path in there.items():
        if path.is_symlink() or not path.is_file():
            findings.append(f"added: {one_line(name)} (no plain file)")
    expected = {**subjects, **{n: d for n, d in sums.items() if n == STATEMENT}}
    for name in sorted(expected.keys() | sums.keys()):
        if expected.get(name) != sums.get(name):
            findings.append(f"changed: {STATEMENT} and {SUMS} differ on {one_line(name)}")
        if name not in there:
            findings.append(f"missing: {one_line(name)}")
        elif there[name].is_file() and _sha256(there[name]) != expected.get(name, sums.get(name)):
            findings.append(f"changed: {one_line(name)}")
    known = {*expected, *sums, STATEMENT, SUMS, SIGNATURE}
    findings += [f"added: {one_line(name)}" for name in there if name not in known]
    return list(dict.fromkeys(findings))


def _read_sums(path: Path, findings: list[str]) -> dict[str, str]:
    sums: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        findings.append(f"missing: {SUMS} (the run was never sealed, or it was removed)")
        return sums
    except (OSError, UnicodeDecodeError):
        findings.append(f"changed: {SUMS} (not readable)")
        return sums
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
    data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or data.get("_type") != STATEMENT_TYPE:
        raise ValueError("no statement")
    return data


def _read_subjects(path: Path, findings: list[str]) -> dict[str, str]:
    try:
        statement = _read_statement(path)
        subjects = {str(s["name"]): str(s["digest"]["sha256"]) for s in statement["subject"]}
    except FileNotFoundError:
        findings.append(f"missing: {STATEMENT} (the run was never sealed, or it was removed)")
        return {}
    except (OSError, ValueError, KeyError, TypeError):
        findings.append(f"changed: {STATEMENT} (not readable as an in-toto statement)")
        return {}
    return subjects


def verify_reports(reports_dir: Path) -> dict[str, list[str]]:
    """Findings by run folder, and under "chain" those of the chain over the runs."""
    runs = [
        path
        for path in sorted(reports_dir.iterdir())
        if path.is_dir() and RUN_ID.fullmatch(path.name)
    ]
    found = {run.name: verify_run(run) for run in runs}
    found["chain"] = _verify_chain(reports_dir, runs)
    return found


def _verify_chain(reports_dir: Path, runs: Sequence[Path]) -> list[str]:
    findings: list[str] = []
    digests: dict[str, str] = {}
    previous: dict[str, dict[str, str] | None] = {}
    for run in runs:
        try:
            previous[run.name] = _read_statement(run / STATEMENT)["predicate"]["previous"]
            digests[run.name] = _sha256(run / STATEMENT)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # verify_run names it
    links: list[tuple[str, dict[str, str]]] = [(n, p) for n, p in previous.items() if p]
    newest = _read_chain(reports_dir)
    if newest is not None:
        links.append((CHAIN, newest))
    elif runs:
        findings.append(f"missing: {CHAIN}, which names the newest run")
    followers: dict[str, str] = {}
    for name, link in links:
        before = str(link.get("run_id"))
        if not (reports_dir / before).is_dir() or not RUN_ID.fullmatch(before):
            findings.append(
                f"removed: run {one_line(before)}, which {name} names as the one before it"
            )
        elif digests.get(before) != link.get("statement_sha256"):
            findings.append(f"changed: the statement of {before} is not the one that {name} names")
        if before in followers:
            findings.append(
                f"forked: {name} and {followers[before]} both follow {one_line(before)}"
            )
        followers[before] = name
    firsts = sorted(name for name, link in previous.items() if not link)
    if len(firsts) > 1:
        findings.append(f"forked: {', '.join(firsts)} each claim to be the first run")
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
        raise DrainkitError(
            f"{one_line(run_dir.name)} has no {STATEMENT}: it was never sealed"
        ) from None


# ---------------------------------------------------------------- signatures


def sign(run_dir: Path, key: Path) -> Path:
    """Sign the statement with an SSH key (`ssh-keygen -Y sign`); returns the signature's path."""
    signature = run_dir / SIGNATURE
    signature.unlink(missing_ok=True)
    _ssh_keygen("-Y", "sign", "-n", "drainkit", "-f", str(key), str(run_dir / STATEMENT))
    return signature


def verify_signature(run_dir: Path, allowed_signers: Path, identity: str) -> None:
    """Check the statement's signature; raises DrainkitError if it is not `identity`'s."""
    _ssh_keygen(
        "-Y", "verify", "-n", "drainkit", "-f", str(allowed_signers), "-I", identity,
        "-s", str(run_dir / SIGNATURE), stdin=(run_dir / STATEMENT).read_bytes(),
    )  # fmt: skip


def _ssh_keygen(*arguments: str, stdin: bytes | None = None) -> None:
    try:
        subprocess.run(["ssh-keygen", *arguments], input=stdin, capture_output=True, check=True)
    except FileNotFoundError:
        raise DrainkitError("ssh-keygen is not installed; it signs and checks statements") from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).decode("utf-8", "replace").strip()
        raise DrainkitError(f"ssh-keygen refuses: {one_line(said)}") from None
