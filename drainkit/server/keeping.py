"""Whether the server has room for a drain's records, and keeps them, by its INFO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import RefusedError
from ..safe import one_line
from . import scopes
from .connection import Server
from .keys import Scope

# an audit record, with a reason of usual length and without the group's name; and one more id of
# scope pending among what is recorded (measured on 6.2, 7.0 and Valkey 9.1)
RECORD_BYTES, PENDING_BYTES = 220, 190
MARGIN = 1.25
WORK_BYTES = 1 << 20  # what scripts, requests and replies take for a moment (measured: 0.95 MB)


def keeping(server: Server) -> dict[str, Any]:
    """JSON-ready; None: INFO does not say."""
    return keeping_in(b"\n".join(server.pipeline([("INFO", "memory"), ("INFO", "persistence")])))


def keeping_in(info: bytes) -> dict[str, Any]:
    """As `keeping`, from what INFO said."""
    lines = info.decode("utf-8", "replace").splitlines()
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    most, used, aof, saves = (
        int(values[name]) if values.get(name, "").isdecimal() else None
        for name in ("maxmemory", "used_memory", "aof_enabled", "rdb_saves")
    )
    policy = values.get("maxmemory_policy")
    is_known = most is not None and policy is not None
    may_evict = bool(most) and str(policy).startswith("allkeys") if is_known else None
    return {
        "maxmemory": most,
        "used_memory": used,
        "maxmemory_policy": policy,
        "may_evict": may_evict,
        "on_disk": True if aof else None if None in (aof, saves) else bool(saves),
    }


def eviction_words(kept: Mapping[str, Any]) -> str:
    """What is to be said of keys that the server may remove; "" where it removes none."""
    if kept["may_evict"] is None:
        return "whether the server may evict keys is unknown: its INFO does not say"
    policy = f"{one_line(str(kept['maxmemory_policy']))}, maxmemory {_size(kept['maxmemory'] or 0)}"
    words = f"the server may evict any key ({policy}): audit, ledger and kill switch may be lost"
    return words if kept["may_evict"] else ""


def keeping_words(kept: Mapping[str, Any]) -> list[str]:
    """What is to be said before something is trusted to the server; nothing where all is well."""
    if "may_evict" not in kept:  # a baseline of an older version
        return []
    disk = {
        None: "whether the server keeps anything on disk is unknown: its INFO does not say",
        False: "the server has kept nothing on disk since it started (no append-only file, no "
        "snapshot): a crash loses audit and ledger",
        True: "",
    }
    return [words for words in (eviction_words(kept), disk[kept["on_disk"]]) if words]


def check_room(server: Server, scope: Scope, max_events: int | None, memory: bytes) -> None:
    """Refuse a drain whose records would not fit into what `maxmemory` leaves, as INFO told."""
    kept = keeping_in(memory)
    if not kept["maxmemory"] or kept["used_memory"] is None:
        return
    left = max(0, kept["maxmemory"] - kept["used_memory"])
    one = RECORD_BYTES + len(scope.group) + PENDING_BYTES * (scope.name == "pending")
    if max_events is not None and max_events * one * MARGIN + WORK_BYTES <= left:
        return  # there is no need to count
    events = scopes.remaining(server, scope)
    events = min(events, max_events or events)
    if (needed := round(events * one * MARGIN) + WORK_BYTES) > left:
        raise RefusedError(
            f"the records of {events:,} events need about {_size(needed)} of memory, and maxmemory "
            f"leaves {_size(left)}; raise maxmemory, or take less with --max-events"
        )


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes >= 1e7 else f"{n_bytes / 1e3:,.0f} KB"
