"""The run ledger in Redis: a typed entry for each thing that a run, or an operator, leaves there.

The fields' names are known here alone. Anybody who may write to the ledger could have put anything
there: what cannot be read as one of these is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import ClassVar

import msgspec

from ..core.summary import RUN_ID
from ..errors import RefusedError
from ..safe import text
from . import reading, writing
from .connection import Server


@dataclass(frozen=True)
class Start:
    """A live run begins to drain."""

    event: ClassVar[str] = "start"
    run_id: str
    scope: str
    consumer_group: str  # the group that it drains: scope history has its own
    consumer: str
    boundary_id: str
    throttle: float | None  # events per second; None: none
    max_events: int | None  # None: all
    plan_digest: str  # "" without a plan
    at: str  # ISO 8601 UTC, the server's clock
    host: str = ""
    pid: int = 0
    operator: str = ""
    approvers: str = ""  # identities that signed the plan; none of them holds a comma
    from_id: str = reading.FIRST_ID  # scope pending: no entry before this is the run's
    audit_id: str = reading.FIRST_ID  # the audit's last id then: the run's records come after it
    audit_stream: str = ""  # "" for the usual one
    folder: str = ""  # `run`: the absolute path where it will be sealed; "" for a plain drain


@dataclass(frozen=True)
class End:
    """A live run closed its books."""

    event: ClassVar[str] = "end"
    run_id: str
    scope: str
    consumer_group: str
    consumer: str
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


@dataclass(frozen=True)
class Sealed:
    """A live run's evidence was sealed."""

    event: ClassVar[str] = "evidence"
    run_id: str
    statement_sha256: str
    folder: str = ""  # where it was sealed: an absolute path, or a URL
    host: str = ""


@dataclass(frozen=True)
class Stopped:
    """The kill switch was set."""

    event: ClassVar[str] = "stop"
    operator: str
    at: str
    reason: str


@dataclass(frozen=True)
class Resumed:
    """The kill switch was lifted."""

    event: ClassVar[str] = "resume"
    operator: str
    at: str
    reason: str  # that it had been set for


@dataclass(frozen=True)
class Trimmed:
    """Entries that no group needed were removed."""

    event: ClassVar[str] = "trim"
    operator: str
    at: str
    entries: int
    floor: str  # the first id that stayed
    bound: str  # what held it there: group, age or end
    archive: str = ""  # the file's name; "" without one


@dataclass(frozen=True)
class Deleted:
    """Dead consumers were removed."""

    event: ClassVar[str] = "consumers_delete"
    operator: str
    at: str
    consumer_group: str
    removed: int
    kept: int


OfRun = Start | End | Sealed
Entry = OfRun | Stopped | Resumed | Trimmed | Deleted
_KINDS: dict[str, type[Entry]] = {
    kind.event: kind for kind in (Start, End, Sealed, Stopped, Resumed, Trimmed, Deleted)
}
_WORDS = {"throttle": "none", "max_events": "all"}  # for None


def append(server: Server, entry: Entry) -> None:
    """Add an entry at the ledger's end."""
    values = {f.name: getattr(entry, f.name) for f in fields(entry)}
    shown = {n: _WORDS.get(n, "") if v is None else str(v) for n, v in values.items()}
    writing.add_to_ledger(server, {"event": entry.event, **shown})


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
    for page in reading.pages(server, server.keys.runs, reading.FIRST_ID, reading.LAST_ID):
        for _, flat in page:
            found = _read(flat)
            if found is not None:
                yield found


def lost(server: Server) -> int:
    """How many entries the ledger had and lacks; 0 where the server does not count (6.2)."""
    if not server.call("EXISTS", server.keys.runs):
        return 0
    key = server.keys.runs
    return reading.stream_in(key, server.call("XINFO", "STREAM", key)).gone or 0


def entries_of(server: Server, run_id: str) -> list[OfRun]:
    """What the ledger has of one run, oldest first."""
    return [e for e in entries(server) if isinstance(e, OfRun) and e.run_id == run_id]


def newest_run(server: Server) -> str:
    """The run that the ledger's newest entry of a run is about; "" where there is none."""
    for _, flat in reading.newest(server, server.keys.runs, 100):
        found = _read(flat)
        if isinstance(found, OfRun):
            return found.run_id
    return ""


def last_ends(server: Server) -> list[End]:
    """The newest end of each group and outcome, oldest first."""
    found: dict[tuple[str, str], End] = {}
    if reading.type_of(server, server.keys.runs) == "stream":
        for entry in entries(server):
            if isinstance(entry, End):
                found.pop(key := (entry.consumer_group, entry.outcome), None)  # to be the newest
                found[key] = entry
    return [*found.values()]


def starts_of(server: Server, plan_digest: str) -> list[Start]:
    """The starts of this very plan's runs, oldest first."""
    return [e for e in entries(server) if isinstance(e, Start) and e.plan_digest == plan_digest]


def _read(flat: list[bytes]) -> Entry | None:
    texts = [text(part) for part in flat]
    found = dict(zip(texts[::2], texts[1::2], strict=True))
    kind = _KINDS.get(found.get("event", ""))
    if kind is None:
        return None
    if kind in (Start, End, Sealed) and not RUN_ID.fullmatch(found.get("run_id", "")):
        return None
    values = {n: None if v == _WORDS.get(n) else v for n, v in found.items()}
    try:
        return msgspec.convert(values, kind, strict=False)  # numbers are texts there
    except msgspec.ValidationError:
        return None
