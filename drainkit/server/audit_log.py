"""The audit stream, as read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..core.audit import audit_table, parse
from ..core.collection import collection_paused
from ..core.policy import ACTIONS
from ..core.summary import RUN_ID
from ..core.values import RawEntry
from ..errors import RefusedError
from ..safe import text
from . import ledger, reading
from .connection import Server
from .reading import StreamInfo, id_key

if TYPE_CHECKING:
    import pyarrow as pa


def pages(server: Server, first: str = reading.FIRST_ID) -> Iterator[list[RawEntry]]:
    """The audit stream's entries from an id on, in pages."""
    return reading.pages(server, server.keys.audit, first, reading.LAST_ID)


def run_tables(server: Server, run_ids: set[str]) -> Iterator[pa.Table]:
    """The audit records of some runs as tables (core.audit.audit_schema), in the audit's order.

    They are read from where the audit ended when the first of them began, as the ledger has it: the
    time in a run id may be by a clock that has gone back since.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if not run_ids:
        return
    begun: dict[str, str] = {}
    for entry in ledger.entries(server):
        if isinstance(entry, ledger.Start):
            begun.setdefault(entry.run_id, entry.audit_id)  # 03 may begin again
    first = min((begun.get(run_id, reading.FIRST_ID) for run_id in run_ids), key=id_key)
    wanted = pa.array(sorted(run_ids), pa.string())
    for page in pages(server, reading.next_id(first)):
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


def check_owner(server: Server, audit: StreamInfo, known: str) -> None:
    """Refuse an audit stream that holds another stream's records: they could not be told apart.

    `known`: its last id as of this stream's last commit; "" where there was none.
    """
    if not audit.length or (known and id_key(audit.boundary_id) <= id_key(known)):
        return  # nobody's, or a commit of this stream was the last
    run_id = parse(reading.newest(server, server.keys.audit, 1)[0]).run_id
    if RUN_ID.fullmatch(run_id) and not any(
        isinstance(e, ledger.OfRun) and e.run_id == run_id for e in ledger.entries(server)
    ):
        raise RefusedError(
            f"the audit stream {text(server.keys.audit)} holds records of run "
            f"{run_id}, which this stream's ledger does not know: it belongs "
            "to another stream; choose another --audit-stream, or rename it"
        )
