"""The stream's side keys, and the slot that they share on a Cluster."""

from __future__ import annotations

from dataclasses import dataclass

from redis.crc import key_slot

from ..errors import RefusedError, UsageError
from ..safe import text
from .topology import hash_tag


@dataclass(frozen=True)
class Keys:
    """The stream and its side keys; all in one slot, so that one script may touch them."""

    stream: bytes
    audit: bytes
    runs: bytes  # the run ledger
    stop: bytes  # the kill switch
    state: bytes  # pace of all drains together, and how far scope history came
    recorded: bytes  # which entries have their audit record (lua/recorded.lua)


def side_keys(stream: bytes, audit_stream: str | None, *, is_cluster: bool) -> Keys:
    """The keys of a stream; on a Cluster they must share its slot, so that one script may use all.

    A Cluster's slot is that of the hash tag (redis.io, Cluster specification).
    """
    base = stream
    if is_cluster and not hash_tag(base):
        if b"}" in base:
            raise RefusedError(
                "the stream's name has a } and no hash tag, so on a Cluster no key can share "
                "its slot, and acknowledging and auditing could not be one step"
            )
        base = b"{" + base + b"}"
    audit = audit_stream.encode() if audit_stream else base + b".drain_audit"
    suffixes = (b".drain_runs", b".drain_stop", b".drain_state", b".drain_recorded")
    side = [base + suffix for suffix in suffixes]
    if audit in (stream, *side):
        raise UsageError("--audit-stream: this key has another use; name a key of its own")
    for key in (audit, *side) if is_cluster else ():
        check_slot(stream, key)
    return Keys(stream, audit, *side)


def check_slot(stream: bytes, key: bytes) -> None:
    """Refuse a key that is in another slot of a Cluster than the stream."""
    if key_slot(key) != key_slot(stream):
        raise RefusedError(
            f"{text(key)} is in another Cluster slot than the stream, so both could not be used in "
            "one step; give it a name with the stream's hash tag"
        )
