"""The audit stream, as read."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..core.audit import audit_table
from ..core.collection import collection_paused
from ..core.policy import ACTIONS
from ..core.values import RawEntry
from . import reading
from .connection import Server
from .reading import id_key, pairs

if TYPE_CHECKING:
    import pyarrow as pa


def pages(server: Server, first: str = reading.FIRST_ID) -> Iterator[list[RawEntry]]:
    """The audit stream's entries from an id on, in pages."""
    return reading.pages(server, server.keys.audit, first, reading.LAST_ID)


def run_tables(server: Server, run_ids: set[str]) -> Iterator[pa.Table]:
    """The audit records of some runs as tables (core.audit.audit_schema), in the audit's order.

    They are read from the time on that the earliest of the run ids tells.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if not run_ids:
        return
    start = dt.datetime.strptime(min(run_ids)[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
    # a second earlier: the clock of audit ids and TIME can differ a little
    first = f"{max(0, int(start.timestamp() * 1000) - 1000)}-0"
    wanted = pa.array(sorted(run_ids), pa.string())
    for page in pages(server, first):
        table = audit_table(page)
        yield table.filter(pc.is_in(table["run_id"], value_set=wanted))


def run_counts(server: Server, run_ids: set[str], column: str = "action") -> Counter[str]:
    """How many records some runs have, by the values of a column."""
    counts = Counter[str]()
    with collection_paused():
        for table in run_tables(server, run_ids):
            counts.update(values_of(table[column]))
    return counts


def values_of(column: pa.ChunkedArray) -> dict[str, int]:
    """How often each value occurs."""
    import pyarrow.compute as pc

    return {pair["values"]: pair["counts"] for pair in pc.value_counts(column).to_pylist()}


def audit_counts(server: Server) -> dict[str, int]:
    """Audit entries by action; an action that nobody knows counts as "other"."""
    counts = dict.fromkeys((*ACTIONS, "other"), 0)
    with collection_paused():
        for page in pages(server):
            for action, n in values_of(audit_table(page)["action"]).items():
                counts[action if action in counts else "other"] += n
    return counts


def last_ms(server: Server, key: bytes) -> int:
    """The milliseconds of a stream's last-generated-id; 0 where there is no such stream."""
    if not server.call("EXISTS", key):
        return 0
    info = pairs(server.call("XINFO", "STREAM", key))
    return id_key(info["last-generated-id"])[0]
