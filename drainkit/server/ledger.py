"""The side streams, as read: the run ledger, and the audit.

The ledger has a typed entry for each thing that a run, or an operator, leaves there; the fields'
names are known here alone. Anybody who may write to the ledger could have put anything
there: what cannot be read as one of these is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import numpy as np

from ..core.frame import word_counts
from ..core.policy import ACTIONS, audit_ms, audit_table
from ..core.summary import RUN_ID, Summary
from ..errors import RefusedError
from ..ids import FIRST_ID, LAST_ID, id_key, next_id
from ..late import collection_paused, pa, pc
from ..safe import text
from . import reading, writing
from .connection import Server

RunId = Annotated[str, msgspec.Meta(pattern=rf"\A{RUN_ID.pattern}\Z")]


class _Entry(msgspec.Struct, frozen=True, tag_field="event"):
    """What is common to the ledger's entries: the field `event` names the kind."""


class _OfDrain(_Entry, frozen=True):
    run_id: RunId
    scope: str
    consumer_group: str  # the group that it drains: scope history has its own
    consumer: str


class Start(_OfDrain, frozen=True, tag="start"):
    """A live run begins to drain."""

    boundary_id: str
    throttle: float | None  # events per second; None: none
    max_events: int | None  # None: all
    plan_digest: str  # "" without a plan
    at: str  # ISO 8601 UTC, the server's clock
    host: str = ""
    pid: int = 0
    operator: str = ""
    approvers: str = ""  # identities that signed the plan; none of them holds a comma
    from_id: str = FIRST_ID  # scope pending: no entry before this is the run's
    audit_id: str = FIRST_ID  # the audit's last id then: the run's records come after it
    audit_stream: str = ""  # "" for the usual one
    folder: str = ""  # `run`: the absolute path where it will be sealed; "" for a plain drain


class End(_OfDrain, frozen=True, tag="end"):
    """A live run closed its books."""

    outcome: str
    total_read: int
    at: str
    boundary_id: str = ""
    dropped_missing: int = 0
    dropped_old: int = 0
    dropped_invalid: int = 0
    dropped_not_allowlisted: int = 0
    dropped_low_conf: int = 0
    drained_ok: int = 0
    vanished: int = 0
    remaining: str = ""  # "" where it is not known
    operator: str = ""


class Sealed(_Entry, frozen=True, tag="evidence"):
    """A live run's evidence was sealed."""

    run_id: RunId
    statement_sha256: str
    folder: str = ""  # where it was sealed: an absolute path, or a URL
    host: str = ""


class Stopped(_Entry, frozen=True, tag="stop"):
    """The kill switch was set."""

    operator: str
    at: str
    reason: str


class Resumed(Stopped, frozen=True, tag="resume"):
    """The kill switch was lifted; `reason` is what it had been set for."""


class Trimmed(_Entry, frozen=True, tag="trim"):
    """Entries that no group needed were removed."""

    operator: str
    at: str
    entries: int
    floor: str  # the first id that stayed
    archive: str = ""  # the file's name; "" without one


class Deleted(_Entry, frozen=True, tag="consumers_delete"):
    """Dead consumers were removed."""

    operator: str
    at: str
    consumer_group: str
    removed: int
    kept: int


OfRun = Start | End | Sealed
Entry = OfRun | Stopped | Resumed | Trimmed | Deleted


def check(server: Server) -> None:
    """Refuse to do what could not be noted, because the ledger's key holds something else."""
    kind = reading.type_of(server, server.keys.runs)
    if kind not in ("stream", "none"):
        raise RefusedError(
            f"{text(server.keys.runs)} is a {kind}, not a stream, so nothing can be "
            "noted there; rename it"
        )


def entries(server: Server) -> Iterator[Entry]:
    """The ledger's entries that can be read, oldest first."""
    for page in reading.pages(server, server.keys.runs, FIRST_ID, LAST_ID):
        yield from filter(None, (_read(flat) for _, flat in page))


def entries_of(server: Server, run_id: str) -> list[OfRun]:
    """What the ledger has of one run, oldest first."""
    return [e for e in entries(server) if isinstance(e, OfRun) and e.run_id == run_id]


def newest_run(server: Server) -> str:
    """The run that the ledger's newest entry of a run is about; "" where there is none."""
    found = (_read(flat) for _, flat in reading.newest(server, server.keys.runs, 100))
    return next((entry.run_id for entry in found if isinstance(entry, OfRun)), "")


def starts_of(server: Server, plan_digest: str) -> list[Start]:
    """The starts of this very plan's runs, oldest first."""
    return [e for e in entries(server) if isinstance(e, Start) and e.plan_digest == plan_digest]


def _read(flat: list[bytes]) -> Entry | None:
    """The entry of its fields; None where they are not those of any kind."""
    texts = [text(part) for part in flat]
    found = dict(zip(texts[::2], texts[1::2], strict=True))
    values = {n: None if v == writing.NONE_WORDS.get(n) else v for n, v in found.items()}
    try:
        entry: Entry = msgspec.convert(values, Entry, strict=False)  # numbers are texts there
    except msgspec.ValidationError:
        return None
    return entry


def note_end(server: Server, start: Start, summary: Summary, at: str, vanished: int = 0) -> None:
    """The ledger's entry that the books of a run are closed."""
    same = ("run_id", "scope", "consumer_group", "consumer", "boundary_id", "operator")
    found: dict[str, Any] = {name: getattr(start, name) for name in same}
    found |= {name: getattr(summary, name) for name in ("outcome", "total_read", *ACTIONS)}
    left = "" if summary.remaining is None else str(summary.remaining)
    writing.add_to_ledger(server, End(**found, remaining=left, at=at, vanished=vanished))


# ---------------------------------------------------------------- the audit stream


def run_tables(server: Server, run_ids: set[str]) -> Iterator[pa.Table]:
    """The audit records of some runs as tables (core.policy.audit_schema), in the audit's order.

    They are read from where the audit ended when the first of them began, as the ledger has it: the
    time in a run id may be by a clock that has gone back since.
    """
    if not run_ids:
        return
    begun: dict[str, str] = {}
    for entry in entries(server):
        if isinstance(entry, Start):
            begun.setdefault(entry.run_id, entry.audit_id)  # 03 may begin again
    first = min((begun.get(run_id, FIRST_ID) for run_id in run_ids), key=id_key)
    wanted = pa.array(sorted(run_ids), pa.string())
    for page in reading.pages(server, server.keys.audit, next_id(first), LAST_ID):
        table = audit_table(page)
        yield table.filter(pc.is_in(table["run_id"], value_set=wanted))


def run_counts(server: Server, run_ids: set[str]) -> Counter[str]:
    """How many records each of some runs has."""
    counts = Counter[str]()
    with collection_paused():
        for table in run_tables(server, run_ids):
            counts.update(word_counts(table["run_id"]))
    return counts


def audit_counts(server: Server) -> dict[str, int]:
    """Audit entries by action; an action that nobody knows counts as "other"."""
    counts = dict.fromkeys((*ACTIONS, "other"), 0)
    with collection_paused():
        for page in reading.pages(server, server.keys.audit, FIRST_ID, LAST_ID):
            for action, n in word_counts(audit_table(page)["action"]).items():
                counts[action if action in counts else "other"] += n
    return counts


def check_owner(server: Server) -> None:
    """Refuse an audit stream that holds another stream's records: nobody could tell them apart."""
    last = audit_table(reading.newest(server, server.keys.audit, 1))
    run_id = last["run_id"][0].as_py()
    if RUN_ID.fullmatch(run_id) and not entries_of(server, run_id):
        raise RefusedError(
            f"the audit stream {text(server.keys.audit)} holds records of run "
            f"{run_id}, which this stream's ledger does not know: it belongs "
            "to another stream; choose another --audit-stream, or rename it"
        )


def recount(server: Server, summary: Summary) -> None:
    """Take a run's counts, and its pace, from the audit itself."""
    counts: Counter[str] = Counter()
    summary.pace = type(summary.pace)()
    for part in run_tables(server, {summary.run_id}):
        counts.update(word_counts(part["action"]))
        times, records = np.unique(audit_ms(part), return_counts=True)
        for ms, n in zip(times.tolist(), records.tolist(), strict=True):
            summary.pace.note(ms, n)
    for action in ACTIONS:
        setattr(summary, action, counts[action])
    summary.total_read = summary.audit_records = sum(counts.values())
    summary.events_per_sec = summary.pace.events_per_sec()
