"""Clean up safely: dead consumers, and entries that no group needs, archived first if need be.

What a list shows is checked again inside the step that removes (server/writing.py), because a
consumer can come back and a group can fall behind between the two.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from .. import errors, files
from ..core.values import EARLIEST_ID_MS, RawEntry, iso
from ..errors import DrainkitError, RefusedError, UsageError
from ..ids import FIRST_ID, LAST_ID, id_key, next_id, previous_id
from ..late import pa
from ..safe import text
from ..server import counting, ledger, reading, writing
from ..server.connection import Server
from ..server.topology import REPLICA

BATCH_CONSUMERS = 500  # removed in one step: 4 ms of the server
TRIM_ENTRIES = 1000
TRIM_BYTES = 512 << 10  # so many, or one entry, in a removing step: it reads what it removes
DAY_MS = 86_400_000
Step = TypeVar("Step")


def dead_consumers(server: Server, group: str, *, min_idle_ms: int) -> list[dict[str, Any]]:
    """The group's consumers that have been idle at least `min_idle_ms`, in the server's order.

    JSON-ready: name, pending, idle_ms, and why_kept ("": it can be removed).
    """
    reading.positions(server, wanted=group)
    return [
        vars(c) | {"why_kept": _why_kept("pending", c.pending) if c.pending else ""}
        for c in reading.consumers(server, group)
        if c.idle_ms >= min_idle_ms
    ]


def _why_kept(status: str, number: int) -> str:
    return {
        "pending": f"{f'{number:,} ' if number else ''}pending entries would be lost; "
        "drain --scope pending takes them first",
        "active": f"it came back: active {number / 1000:.0f} s ago",
        "gone": "it is gone already",
    }[status]


def remove_consumers(
    server: Server, group: str, names: Sequence[str], *, min_idle_ms: int, operator: str,
    stopping: threading.Event | None = None,
) -> tuple[list[str], dict[str, str]]:  # fmt: skip
    """Remove what is safe to remove now; returns the names removed, and why each other stayed.

    Idle times of a group with more than `writing.MAX_LISTED` consumers are of a list read just
    before; what is pending is looked up in the removing step in any case. The ledger gets what was
    removed, with the operator, also if `stopping` or an error ends it.
    """
    if server.info.role != "master":
        raise RefusedError(REPLICA)
    ledger.check(server)
    idle_ms: dict[str, int] = {c.name: c.idle_ms for c in reading.consumers(server, group)}
    is_listed = len(idle_ms) > writing.MAX_LISTED
    removed: list[str] = []
    kept = {
        name: _why_kept("active" if name in idle_ms else "gone", idle_ms.get(name, 0))
        for name in names if is_listed and idle_ms.get(name, -1) < min_idle_ms
    }  # fmt: skip
    left = [name for name in names if name not in kept]
    # where the list is known, each removal is checked against the list of groups
    size = max(1, BATCH_CONSUMERS // len(reading.positions(server) if is_listed else "1"))

    def remove(step: Sequence[str]) -> int:
        least, n = None if is_listed else min_idle_ms, len(removed)
        found = writing.remove_consumers(server, group, step, min_idle_ms=least)
        for name, (status, number) in zip(step, found, strict=True):
            if status == "removed":
                removed.append(name)
            else:
                kept[name] = _why_kept(status, number)
        return len(removed) - n

    _by_steps(
        server, "consumers", stopping,
        (left[first : first + size] for first in range(0, len(left), size)), remove,
        lambda step: len({*step} - {c.name for c in reading.consumers(server, group)}),
        lambda n: ledger.Deleted(operator, iso(server.now_us()), group, n, len(kept)),
    )  # fmt: skip
    return removed, kept


def _by_steps(
    server: Server, what: str, stopping: threading.Event | None, steps: Iterable[Step],
    remove: Callable[[Step], int], look: Callable[[Step], int], note: Callable[[int], ledger.Entry],
) -> int:  # fmt: skip
    """Remove step by step; whatever ends it, ledger and error say how many were removed.

    `look` says how many of a step are gone, where the reply to it was lost.
    """
    removed, under_way = 0, None
    failure: DrainkitError | None = None
    try:
        for step in _until(stopping, steps):
            under_way = step
            removed += remove(step)
            under_way = None
    except DrainkitError as error:
        failure = error
        with suppress(DrainkitError):
            if under_way is not None and isinstance(error, errors.ConnectionLostError):
                server.reconnect()
                removed += look(under_way)
    try:
        if removed:
            writing.add_to_ledger(server, note(removed))
        if failure is not None:
            raise failure
    except DrainkitError as error:
        error.args = (f"{error} ({removed:,} {what} were removed before)",)
        raise
    return removed


def _until(stopping: threading.Event | None, steps: Iterable[Step]) -> Iterator[Step]:
    for step in steps:
        if stopping is not None and stopping.is_set():
            raise errors.InterruptedRunError("interrupted")
        yield step


@dataclass(frozen=True)
class TrimPlan:
    """What a trim may remove now: everything before `floor`, and what sets that floor."""

    floor: str  # the first id that stays
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
    info, groups = reading.stream_info(server), reading.positions(server)
    if not groups and not without_groups:
        raise RefusedError(writing.REFUSALS["no_groups"])
    floors: dict[str, tuple[str, str]] = {}  # by group the first id that it still needs, and why
    for name, group in groups.items():
        after = next_id(group.position)
        floors[name] = after, f"nothing after its position {group.position} is delivered"
        lowest = reading.lowest_pending(server, name) if group.pending else None
        if lowest is not None and id_key(lowest) < id_key(after):
            entry, pending = text(lowest), f"({group.pending:,} pending)"
            floors[name] = entry, f"{entry} is delivered but not acknowledged {pending}"
    # a group set beyond the stream's end must not give away entries that are yet to come
    end = min(next_id(info.boundary_id), LAST_ID, key=id_key)
    floor = min([end, *(needed for needed, _ in floors.values())], key=id_key)
    if keep_days is not None:
        now_ms = server.now_us() // 1000
        for odd in filter(None, (info.first_id, info.last_id)):
            if not EARLIEST_ID_MS <= id_key(odd)[0] <= now_ms + DAY_MS:
                raise RefusedError(
                    f"--keep-days: the stream's ids are not times ({odd}), so nothing says how old "
                    "an entry is; leave it out"
                )
        by_age = f"{max(0, now_ms - math.floor(keep_days * DAY_MS))}-0"
        floor = min(floor, by_age, key=id_key)
    held_by = {name: why for name, (needed, why) in floors.items() if needed == floor != end}
    entries, _ = counting.count(server, info, FIRST_ID, previous_id(floor))
    return TrimPlan(floor, held_by, entries, info.length, len(groups))


def trim(
    server: Server, plan: TrimPlan, *, operator: str, archive: Path | None = None,
    without_groups: bool = False, stopping: threading.Event | None = None,
) -> int:  # fmt: skip
    """Remove the entries before the plan's floor, archived first; returns how many.

    Each batch is removed by its own ids, and only if no group needs one of them by then. With an
    archive just the entries are removed that are read from it, once it is whole. The ledger gets
    what was removed, and the operator, also if `stopping` or an error ends it early. What was
    archived and not removed is then in both places.
    """
    if server.info.role != "master":
        raise RefusedError(REPLICA)
    ledger.check(server)
    if plan.groups > writing.MAX_LISTED:
        raise RefusedError(writing.REFUSALS["many_groups"].format(writing.MAX_LISTED))
    last = previous_id(plan.floor)
    pages = reading.pages(server, server.stream, FIRST_ID, last, page=TRIM_ENTRIES)
    entries: Iterator[RawEntry] = chain.from_iterable(pages)
    if archive is not None:
        check_archive(archive)
        schema = pa.schema([("id", pa.string()), ("fields", pa.list_(pa.binary()))])
        # a new file, whole on the disk: of two that write one name at once one is refused
        with files.table_writer(archive, schema, new=True) as write:
            for page in _until(stopping, pages):
                columns = [[text(entry[0]) for entry in page], [entry[1] for entry in page]]
                write(pa.Table.from_batches([pa.record_batch(columns, schema)]))
        entries = _archived(archive)
    name = archive.name if archive else ""
    return _by_steps(
        server, "entries", stopping, _steps(entries),
        lambda ids: writing.trim(server, ids, without_groups=without_groups),
        lambda ids: sum(fields is None for _, fields in reading.bodies(server, ids)),
        lambda n: ledger.Trimmed(operator, iso(server.now_us()), n, plan.floor, name),
    )  # fmt: skip


def _steps(entries: Iterable[RawEntry]) -> Iterator[list[bytes]]:
    """The entries' ids, in the parts that are removed in one step."""
    ids, room = list[bytes](), TRIM_BYTES
    for entry in entries:
        size = reading.size_of(entry)
        if ids and (size > room or len(ids) == TRIM_ENTRIES):
            yield ids
            ids, room = [], TRIM_BYTES
        ids.append(entry[0])
        room -= size
    if ids:
        yield ids


def check_archive(path: Path) -> None:
    """Refuse a name without .parquet, or a file that exists already."""
    if path.suffix != ".parquet":
        raise UsageError(f"--archive {path.name}: the name must end in .parquet")
    if path.exists():
        raise RefusedError(f"--archive {path} exists already; choose another name")


def _archived(path: Path) -> Iterator[RawEntry]:
    """The entries of an archive, ids and raw fields (field, value, ...; any bytes)."""
    with files.parquet_file(path) as file:
        for group in range(file.num_row_groups):  # of large entries it holds few
            for batch in file.iter_batches(TRIM_ENTRIES, row_groups=[group]):
                yield from ([row["id"].encode(), row["fields"]] for row in batch.to_pylist())
