"""The only writer of files: whole, or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .errors import DrainkitError, RefusedError, UnwritableError, UsageError
from .late import pa, pc

if TYPE_CHECKING:
    from pyarrow import parquet

ROW_GROUP = 65_536  # rows; what is read of a Parquet file at once
ROW_GROUP_BYTES = 8 << 20  # about; large rows make smaller groups, or one would hold gigabytes
CHUNK = 1 << 20  # bytes that are copied at once
MAX_BYTES = 2 << 30  # of a file of evidence; a larger one is refused, never read
MAX_TEXT_BYTES = 4 << 20  # of one that is read as a whole; as JSON it can take 25 times as much
_UNFINISHED = ".writing-"  # before the name of a file that does not stay under it
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# spreadsheets skip blanks; the last four are the full-width = + - @
_FORMULA = r"^([\s\p{Z}\x{feff}]*[=+\-@\t\r\n\x{ff1d}\x{ff0b}\x{ff0d}\x{ff20}])"
# a lone control character or a bidi mark would be acted on by who shows the file
_CONTROLS = r"[\x00-\x08\x0b-\x1f\x7f\x{202a}-\x{202e}\x{2066}-\x{2069}]"


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """An OSError in one line that names the file."""
    try:
        yield
    except FileExistsError:
        raise RefusedError(f"{path} exists already; choose another name") from None
    except OSError as error:
        reason = error.strerror or "cannot be written"
        if error.errno == errno.ENOTEMPTY:
            raise RefusedError(f"{path} is not empty; choose another folder") from None
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise DrainkitError(f"{path}: {reason}; free some room") from None
        raise UnwritableError(f"{path}: {reason}; choose another place") from None


@contextmanager
def _unfinished(path: Path, flags: int) -> Iterator[tuple[Path, int]]:
    """A new file (or folder: O_DIRECTORY) under another name beside `path`, and its descriptor;
    removed unless renamed. A killed process leaves it there; in a run's folder the seal removes it.
    """
    own = path.parent / f"{_UNFINISHED}{secrets.token_hex(8)}"  # also of "", "." and "/"
    with _told(path):
        if flags & os.O_DIRECTORY:
            own.mkdir()
        # not tempfile: its 0600 could only be widened by guessing at the umask
        handle = os.open(own, flags | os.O_CLOEXEC, 0o666)
    try:
        yield own, handle
    finally:
        os.close(handle)
        remove(own)


def _sync_folders(*folders: Path) -> None:
    for folder in folders:  # a rename is on disk only when its folder is
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _whole(path: Path, *, new: bool = False) -> Iterator[IO[bytes]]:
    """A file to write into, under another name until the block ends; an error leaves nothing.

    With `new` it never takes another file's place, also not of one that came meanwhile; nor ever
    that of a device or a pipe: root could, even of /dev/null.
    """
    with _told(path):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise OSError(errno.EINVAL, "is no plain file")
    with _unfinished(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as (own, handle):
        file = os.fdopen(handle, "wb", closefd=False)
        try:
            yield file
            with _told(path):
                file.flush()
                os.fsync(handle)
                if new:
                    path.touch(exist_ok=False)
                own.replace(path)
                _sync_folders(path.parent)
        finally:
            with suppress(OSError):  # what could not be flushed is not wanted any more
                file.close()


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that becomes `folder` when the block ends without an error.

    Until then it stands beside it under another name; an error leaves nothing. Raises RefusedError
    where something stands in `folder` already, UsageError for a place that cannot be.
    """
    folder = folder.resolve()  # a link to a folder stays a link
    with _told(folder):
        if folder.exists() and any(folder.iterdir()):
            raise OSError(errno.ENOTEMPTY, "not empty")
    with _unfinished(folder, os.O_RDONLY | os.O_DIRECTORY) as (own, _):
        yield own
        with _told(folder):
            _sync_folders(*own.glob("**/"), own)
            own.rename(folder)  # takes the place of an empty folder, never of a full one
            _sync_folders(folder.parent)


def write_chunks(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write a file as it comes, whole or not at all; its mode is the umask's.

    Raises DrainkitError when the disk is full or broken, UnwritableError for an impossible place.
    """
    with _whole(path) as file, _told(path):
        for chunk in chunks:
            file.write(chunk)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write bytes as `write_chunks` does."""
    write_chunks(path, [data])


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as `write_chunks` does."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def json_bytes(data: object) -> bytes:
    """JSON as `write_json` writes it."""
    return (json.dumps(data, indent=1, ensure_ascii=True) + "\n").encode()


def write_json(path: Path, data: object) -> None:
    """Write JSON as `write_chunks` does."""
    write_bytes(path, json_bytes(data))


@contextmanager
def table_writer(
    path: Path, schema: pa.Schema, *, words: Sequence[str] | bool = True, new: bool = False
) -> Iterator[Callable[[pa.Table], None]]:
    """Takes a table as it comes, as Parquet (.parquet) or CSV (.csv), whole or not at all.

    The file gets its name when the block ends without an error. For Parquet rows are held until
    they make a row group. In CSV a text cell that a spreadsheet would take for a formula gets an
    apostrophe before it (OWASP, CSV Injection: = + - @ tab CR LF and the full-width signs, also
    after blanks). `words`, if told, are the columns of few texts, again and again; only they get
    dictionaries in Parquet. With `new` a file that is there by then is refused.
    """
    if path.suffix not in (".parquet", ".csv"):
        raise UsageError(f"{path.name}: the name must end in .parquet or .csv")
    from pyarrow import csv, parquet

    is_csv, held, size = path.suffix == ".csv", list[pa.Table](), 0

    def flush() -> None:
        nonlocal size
        table = pa.concat_tables(held)
        held.clear()
        size, table = 0, _without_formulas(table) if is_csv else table.unify_dictionaries()
        with _told(path):
            # the rows beyond are the rest of a page: no row group of their own
            sink.write_table(table, 2 * ROW_GROUP)

    def write(table: pa.Table) -> None:
        nonlocal size
        held.append(table)
        size += max(table.nbytes, len(table) * ROW_GROUP_BYTES // ROW_GROUP)
        if is_csv or size >= ROW_GROUP_BYTES:
            flush()

    with _whole(path, new=new) as file:
        with _told(path):
            if is_csv:
                sink: Any = csv.CSVWriter(file, _without_formulas(schema.empty_table()).schema)
            else:
                sink = parquet.ParquetWriter(file, schema, compression="zstd", use_dictionary=words)
        try:
            yield write
            if sum(map(len, held)):
                flush()
            with _told(path):
                sink.close()
        finally:
            with suppress(Exception):  # else its footer would be written to a closed file
                sink.close()


def _without_formulas(table: pa.Table) -> pa.Table:
    for index, field in enumerate(table.schema):
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if kind in (pa.string(), pa.large_string(), pa.string_view()):
            # a category's column is a dictionary: the CSV would hold its values as they are
            column = table.column(index).cast(pa.large_string())
            column = pc.replace_substring_regex(column, _CONTROLS, "\ufffd")
            column = pc.replace_substring_regex(column, _FORMULA, r"'\1")
            table = table.set_column(index, field.name, column)
    return table


def write_table(path: Path, table: pa.Table) -> None:
    """Write a whole table as `table_writer` does."""
    with table_writer(path, table.schema) as write:
        write(table)


@contextmanager
def parquet_file(path: Path) -> Iterator[parquet.ParquetFile]:
    """A Parquet file open for reading; raises OSError, and pyarrow's errors."""
    from pyarrow import parquet

    # an open file: from a path pyarrow may take a folder or read columns out of folder names
    with path.open("rb") as file:
        # reading ahead takes 45 MB, and more the longer it goes on
        yield parquet.ParquetFile(file, pre_buffer=False)


@contextmanager
def scratch(data: bytes) -> Iterator[int]:
    """The descriptor of a file without a name, for a program that reads files only."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        yield file.fileno()


def open_plain(path: Path, most_bytes: int = MAX_BYTES) -> FileIO:
    """A plain file, opened for reading; OSError for a link, a pipe, a device, or a larger file.

    Nothing waits for a pipe, and of a device nothing is read.
    """
    file = FileIO(os.open(path, _READ))
    found = os.fstat(file.fileno())  # of what was opened: the path may lead elsewhere by now
    if stat.S_ISREG(found.st_mode) and found.st_size <= most_bytes:
        return file
    file.close()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a plain file")
    raise OSError(errno.EFBIG, f"larger than {most_bytes >> 20:,} MiB, so not read")


def read_plain(path: Path) -> bytes:
    """The bytes of a plain file of moderate size; OSError for any other."""
    with open_plain(path, MAX_TEXT_BYTES) as file:
        return file.read()


def file_sha256(path: Path, most_bytes: int = MAX_BYTES) -> str:
    """The SHA-256 (hex) of a plain file; OSError for any other, and for a larger one."""
    digest = hashlib.sha256()
    with open_plain(path, most_bytes) as file:
        while part := file.read(CHUNK):  # file_digest clears 256 KB for each
            digest.update(part)
    return digest.hexdigest()


def make_folder(folder: Path) -> Path:
    """A new folder, its parents made where they are missing; DrainkitError where it cannot be."""
    with _told(folder):
        folder.mkdir(parents=True)
    return folder


def remove(path: Path) -> None:
    """Remove a file, or a folder and all that can be removed in it, if there is one."""
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder and all that is in it, and the folder above if nothing else is there."""
    shutil.rmtree(folder)
    with suppress(OSError):
        folder.parent.rmdir()


def interim(folder: Path, name: str) -> Path:
    """A file of a run's folder that is there for a while; `remove_unfinished` removes it too."""
    return folder / f"{_UNFINISHED}{name}"


def remove_unfinished(folder: Path) -> None:
    """Remove interim files, and what a process that was killed in a write left behind."""
    for path in folder.glob(f"{_UNFINISHED}*"):
        if not path.is_dir():  # one of `whole_folder`, which removes its own
            path.unlink()
