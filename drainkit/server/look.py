"""What a live drain has to know before it begins and when it ends, by one request (look.lua)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import RefusedError
from ..ids import FIRST_ID
from ..safe import text
from . import writing
from .audit_log import Extent
from .connection import Server
from .reading import Group, StopSwitch, StreamInfo, groups_in, pairs, stream_in
from .scope import Scope
from .writing import MAX_LISTED, REFUSALS


@dataclass(frozen=True)
class Seen:
    """Stream, group and side keys as of one moment."""

    now_us: int
    kinds: Mapping[bytes, str]  # by key, as TYPE says
    switch: StopSwitch | None
    info: StreamInfo
    groups: Mapping[str, Group]
    audit: Extent
    audit_known: str  # the audit's last id as of the last commit; "" before the first
    history_done: str  # where scope history's last commit left the scope's group
    has_own: bool  # whether entries are pending for the scope's consumer
    memory: bytes  # INFO memory


def look(server: Server, scope: Scope) -> Seen:
    """How stream, the scope's group and the side keys are now; writes nothing.

    A stream that is gone is refused.
    """
    keys = server.keys
    names = (keys.stream, keys.audit, keys.stop, keys.state, keys.recorded, keys.runs)
    told = (scope.group, scope.consumer, MAX_LISTED)
    reply = writing.evaluate(server, "look", names, *told)
    if reply == [b"many_groups"]:
        raise RefusedError(REFUSALS["many_groups"].format(MAX_LISTED))
    now_us, kinds, switch, info, audit, groups, known, done, own, memory = reply
    if not info:
        raise RefusedError(REFUSALS["gone"])
    types = dict(zip(names, map(text, kinds), strict=True))
    extent = Extent(gone=0)
    if audit:
        of = pairs(audit)
        added, length = of.get("entries-added"), of["length"]
        gone = None if added is None else added - length
        extent = Extent(text(of["last-generated-id"]), length, gone)
    odd = types[keys.stop] not in ("none", "string")
    return Seen(
        now_us=int(now_us),
        kinds=types,
        switch=StopSwitch.odd(server, types[keys.stop]) if odd
        else StopSwitch.read(switch) if types[keys.stop] == "string" else None,
        info=stream_in(server, info),
        groups=groups_in(groups),
        audit=extent,
        audit_known=text(known),
        history_done=text(done) or FIRST_ID,
        has_own=own > 0,
        memory=memory,
    )  # fmt: skip
