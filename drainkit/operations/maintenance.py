"""Clean up safely: dead consumers, trimming, archive and restore.

What a list shows is checked again inside the step that removes (commit.py), because a consumer can
come back and a group can fall behind between the two.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import files
from ..core.timestamps import EARLIEST_ID_MS, iso
from ..core.values import RawEntry
from ..errors import DrainkitError, RefusedError, UsageError
from ..safe import one_line, text
from ..server import ledger, reading, writing
from ..server.connection import Server
from ..server.reading import StreamInfo
from ..server.topology import check_primary
from ..settings.kinds import os_user

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_CONSUMERS = 500  # removed in one step: 4 ms of the server
TRIM_ENTRIES = 1000
TRIM_BYTES = 512 << 10  # so many, or one entry, in a removing step: it reads what it removes
DAY_MS = 86_400_000


@dataclass(frozen=True)
class DeadConsumer:
    """A consumer that has been idle at least the threshold, and why it must stay ("": it need not).

    Its pending entries would be lost with it, so only an empty one is removable.
    """

    name: str
    pending: int
    idle_ms: int
    why_kept: str


def dead_consumers(server: Server, group: str, *, min_idle_ms: int) -> list[DeadConsumer]:
    """The group's consumers that have been idle at least `min_idle_ms`, in the server's order."""
    reading.position_of(server, group)
    return [
        DeadConsumer(
            c.name, c.pending, c.idle_ms, _why_kept("pending", c.pending) if c.pending else ""
        )
        for c in reading.consumers(server, group)
        if c.idle_ms >= min_idle_ms
    ]


def remove_consumers(
    server: Server,
    group: str,
    names: Sequence[str],
    *,
    min_idle_ms: int,
    operator: str | None = None,
) -> tuple[list[str], dict[str, str]]:
    """Remove what is safe to remove now; returns the names removed, and why each other stayed.

    In a group of more than `writing.MAX_LISTED` consumers, how long each idles is as of a list that
    is taken first; what is pending is looked up in the removing step in any case. The ledger notes
    what was removed, with the operator (else the OS user).
    """
    check_primary(server.info)
    ledger.check(server)
    removed: list[str] = []
    kept: dict[str, str] = {}
    there = {reading.raw_name(c.name): c.idle_ms for c in reading.consumers(server, group)}
    known = len(there) > writing.MAX_LISTED
    if known:
        for name in names:
            idle_ms = there.get(reading.raw_name(name))
            if idle_ms is None or idle_ms < min_idle_ms:
                kept[name] = _why_kept("gone" if idle_ms is None else "active", idle_ms or 0)
        names = [name for name in names if name not in kept]
    for first in range(0, len(names), BATCH_CONSUMERS):
        batch = names[first : first + BATCH_CONSUMERS]
        outcomes = writing.remove_consumers(
            server, group, batch, min_idle_ms=None if known else min_idle_ms
        )
        for name, (status, number) in zip(batch, outcomes, strict=True):
            if status == "removed":
                removed.append(name)
            else:
                kept[name] = _why_kept(status, number)
    if removed:
        with _said(f"{len(removed):,} consumers were removed"):
            at, who = iso(server.now_us()), operator or os_user()
            ledger.append(server, ledger.Deleted(who, at, group, len(removed), len(kept)))
    return removed, kept


@contextmanager
def _said(done: str) -> Iterator[None]:
    """Add to an error what was done before it."""
    try:
        yield
    except DrainkitError as error:
        error.args = (f"{error} ({done} before)",)
        raise


def _why_kept(status: str, number: int) -> str:
    if status == "pending":
        what = f"{number:,} pending" if number else "pending"
        return f"{what} entries would be lost; drain --scope pending takes them first"
    if status == "active":
        return f"it came back: active {number / 1000:.0f} s ago"
    return "it is gone already"


@dataclass(frozen=True)
class TrimPlan:
    """What a trim may remove now: everything before `floor`, and what sets that floor."""

    floor: str  # the first id that stays
    bound: str  # what holds it there: "group", "age" or "end" (of the stream)
    group_floor: str  # where the groups would hold it
    age_floor: str | None  # where the age would; None: it does not matter
    held_by: dict[str, str]  # group -> why it holds the trim at the floor
    entries: int  # how many lie before the floor, counted
    length: int  # of the stream now
    groups: int


def trim_plan(
    server: Server, *, without_groups: bool = False, keep_days: float | None = None
) -> TrimPlan:
    """The floor: the lowest of, per group, its smallest pending id and the id after its position.

    With `keep_days` nothing younger than so many days goes either. Refuses a stream without groups
    unless `without_groups`: nothing would say what is needed.
    """
    info = reading.stream_info(server)
    groups = reading.positions(server)
    if not groups and not without_groups:
        raise RefusedError(writing.TRIM_REFUSALS["no_groups"])
    floors = {name: _floor(server, name, group) for name, group in groups.items()}
    # a group set beyond the stream's end must not give away entries that are yet to come
    end = min(reading.next_id(info.boundary_id), reading.LAST_ID, key=reading.id_key)
    by_group = min([end, *(needed for needed, _ in floors.values())], key=reading.id_key)
    by_age = None if keep_days is None else _age_floor(server, info, keep_days)
    floor = min(by_group, by_age or by_group, key=reading.id_key)
    bound = "age" if floor != by_group else "end" if floor == end else "group"
    held_by = {name: why for name, (needed, why) in floors.items() if needed == floor != end}
    return TrimPlan(
        floor=floor,
        bound=bound,
        group_floor=by_group,
        age_floor=by_age,
        held_by=held_by if bound == "group" else {},
        entries=sum(len(page) for page in entries_before(server, floor)),
        length=info.length,
        groups=len(groups),
    )


def _age_floor(server: Server, info: StreamInfo, keep_days: float) -> str:
    """The first id that is younger than so many days; ids that are not times are refused."""
    now_ms = server.now_us() // 1000
    if info.first_id is not None and info.last_id is not None:
        first_ms, last_ms = (reading.id_key(end)[0] for end in (info.first_id, info.last_id))
        if first_ms < EARLIEST_ID_MS or last_ms > now_ms + DAY_MS:
            odd = info.first_id if first_ms < EARLIEST_ID_MS else info.last_id
            raise RefusedError(
                f"--keep-days: the stream's ids are not times ({odd}), so nothing says how old an "
                "entry is; leave it out"
            )
    return f"{max(0, now_ms - math.floor(keep_days * DAY_MS))}-0"


def _floor(server: Server, name: str, group: reading.Group) -> tuple[str, str]:
    """The first id that the group still needs, and why."""
    after = reading.next_id(group.position)
    if group.pending:
        lowest = reading.lowest_pending(server, name)
        if lowest is not None and reading.id_key(lowest) < reading.id_key(after):
            entry = text(lowest)
            return entry, f"{entry} is delivered but not acknowledged ({group.pending:,} pending)"
    return after, f"nothing after its position {group.position} is delivered"


def entries_before(server: Server, floor: str) -> Iterator[list[RawEntry]]:
    """Pages of the entries before `floor`, oldest first."""
    for page in reading.pages(server, server.stream, reading.FIRST_ID, floor, page=TRIM_ENTRIES):
        kept = [entry for entry in page if reading.id_key(entry[0]) < reading.id_key(floor)]
        if kept:
            yield kept


def trim(
    server: Server,
    plan: TrimPlan,
    *,
    archive: Path | None = None,
    without_groups: bool = False,
    operator: str | None = None,
) -> int:
    """Remove the entries before the plan's floor, archived first; returns how many.

    Each batch is removed by its own ids, and only if no group needs one of them by then. With an
    archive just its entries are removed, and none unless it was written and can be read. The
    ledger notes what was removed, and the operator (else the OS user).
    """
    check_primary(server.info)
    ledger.check(server)
    if plan.groups > writing.MAX_LISTED:
        raise RefusedError(
            f"the stream has {plan.groups:,} groups; to judge more than {writing.MAX_LISTED:,} in "
            "the removing step would hold up the server: destroy those that nobody uses first"
        )
    if archive is not None:
        _write_archive(archive, entries_before(server, plan.floor))
        batches = (
            ([entry.encode() for entry in batch["id"].to_pylist()], batch.nbytes)
            for batch in _read_archive(archive)
        )
    else:
        batches = (
            ([entry[0] for entry in page], len(page) * reading.entry_bytes(page))
            for page in entries_before(server, plan.floor)
        )
    removed, failure = 0, None
    for ids in _steps(batches):
        try:
            removed += writing.trim(server, ids, without_groups=without_groups)
        except DrainkitError as error:
            # what was archived and not removed is in both places: nothing is lost
            failure = error
            break
    with _said(f"{removed:,} entries were removed"):
        if removed:
            at, who = iso(server.now_us()), operator or os_user()
            kept = archive.name if archive else ""
            ledger.append(server, ledger.Trimmed(who, at, removed, plan.floor, plan.bound, kept))
        if failure is not None:
            raise failure
    return removed


def _steps(batches: Iterator[tuple[list[bytes], int]]) -> Iterator[list[bytes]]:
    """Batches, given with their bytes, in the parts that are removed in one step."""
    for ids, n_bytes in batches:
        size = max(1, len(ids) * TRIM_BYTES // n_bytes)
        yield from (ids[first : first + size] for first in range(0, len(ids), size))


def check_archive(path: Path) -> None:
    """Refuse a name that is no Parquet file's, or a file that is there already."""
    if path.suffix != ".parquet":
        raise UsageError(f"--archive {one_line(path.name)}: the name must end in .parquet")
    if path.exists():
        raise RefusedError(f"--archive {one_line(str(path))} exists already; choose another name")


def _write_archive(path: Path, pages: Iterator[list[RawEntry]]) -> None:
    """Ids and raw fields (field, value, ...; any bytes) as Parquet, page by page, and read back."""
    import pyarrow as pa

    check_archive(path)
    schema, written = _archive_schema(), 0
    with files.TableWriter(path, schema) as out:
        for page in pages:
            columns = [[text(entry[0]) for entry in page], [entry[1] for entry in page]]
            out.write(pa.Table.from_batches([pa.record_batch(columns, schema)]))
            written += len(page)
    if sum(batch.num_rows for batch in _read_archive(path)) != written:
        raise DrainkitError(f"{one_line(str(path))} is not what was written; nothing was removed")


def _archive_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([("id", pa.string()), ("fields", pa.list_(pa.binary()))])


def _read_archive(path: Path) -> Iterator[pa.RecordBatch]:
    """The archive in batches of a trim's size; UsageError where it cannot be read, or is none."""
    import pyarrow as pa

    try:
        with files.parquet_file(path) as file:
            if not file.schema_arrow.equals(_archive_schema()):
                raise UsageError(
                    f"{one_line(path.name)} is no archive of drainkit trim (id, fields)"
                )
            for group in range(file.num_row_groups):  # of large entries it holds few
                yield from file.iter_batches(TRIM_ENTRIES, row_groups=[group])
    except (OSError, pa.ArrowException, ValueError) as error:
        raise UsageError(f"{one_line(str(path))} cannot be read: {one_line(str(error))}") from None


def restore(server: Server, key: str, path: Path) -> int:
    """Put an archive's entries with their ids into the new stream `key`; returns how many.

    The groups of the old stream are not part of an archive, so the new one has none.
    """
    check_primary(server.info)
    batches = list(itertools.islice(archive := _read_archive(path), 1))  # refused before it writes
    if reading.type_of(server, key.encode()) != "none":
        raise RefusedError(f"{one_line(key)} exists already; restore into a new --stream")
    try:
        return sum(
            writing.add_entries(
                server, key.encode(), ([r["id"].encode(), r["fields"]] for r in batch.to_pylist())
            )
            for batch in itertools.chain(batches, archive)
        )
    except DrainkitError as error:
        error.args = (f"{error} ({one_line(key)} holds a part: delete it and restore again)",)
        raise
