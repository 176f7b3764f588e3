"""The only writer of files: whole, or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import DrainkitError, UsageError
from .safe import one_line, without_formulas

if TYPE_CHECKING:
    import pyarrow as pa

_UNFINISHED = ".writing-"  # before the name of a file that is not whole yet


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a file whole or not at all; its mode is the umask's.

    Raises DrainkitError when the disk is full or broken, UsageError for a place that cannot be.
    """
    temporary = path.with_name(f"{_UNFINISHED}{secrets.token_hex(8)}")
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
        csv.write_csv(without_formulas(table), sink)
    else:
        raise UsageError(f"{one_line(path.name)}: the name must end in .parquet or .csv")
    write_bytes(path, memoryview(sink.getvalue()))


@contextmanager
def scratch(data: bytes) -> Iterator[int]:
    """The descriptor of a file without a name, for a program that reads files only."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        file.seek(0)
        yield file.fileno()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(folder: Path) -> Path:
    """A new folder, its parents made where they are missing; OSError where it cannot be."""
    folder.mkdir(parents=True)
    return folder


def remove_unfinished(folder: Path) -> None:
    """Remove what a process that was killed in the middle of a write left behind."""
    for path in folder.glob(f"{_UNFINISHED}*"):
        path.unlink()
