"""The audit stream, as read."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

from ..core.audit import AuditRecord, parse
from ..core.policy import ACTIONS
from ..core.values import RawEntry
from . import reading
from .connection import Server
from .reading import id_key, pairs


def pages(server: Server, first: str = reading.FIRST_ID) -> Iterator[list[RawEntry]]:
    """The audit stream's entries from an id on, in pages."""
    return reading.pages(server, server.keys.audit, first, reading.LAST_ID)


def run_records(server: Server, run_ids: set[str]) -> Iterator[AuditRecord]:
    """The audit records of some runs, from the time that the earliest of their ids tells on."""
    if not run_ids:
        return
    start = dt.datetime.strptime(min(run_ids)[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
    # a second earlier: the clock of audit ids and TIME can differ a little
    first = f"{max(0, int(start.timestamp() * 1000) - 1000)}-0"
    for page in pages(server, first):
        for entry in page:
            record = parse(entry)
            if record.run_id in run_ids:
                yield record


def audit_counts(server: Server) -> dict[str, int]:
    """Audit entries by action; an action that nobody knows counts as "other"."""
    counts = dict.fromkeys((*ACTIONS, "other"), 0)
    for page in pages(server):
        for entry in page:
            action = parse(entry).action
            counts[action if action in counts else "other"] += 1
    return counts


def last_ms(server: Server, key: bytes) -> int:
    """The milliseconds of a stream's last-generated-id; 0 where there is no such stream."""
    if not server.call("EXISTS", key):
        return 0
    info = pairs(server.call("XINFO", "STREAM", key))
    return id_key(info["last-generated-id"])[0]
