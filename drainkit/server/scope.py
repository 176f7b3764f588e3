"""What a scope is: where a run reads, fixed when the run starts."""

from __future__ import annotations

from dataclasses import dataclass

from ..ids import FIRST_ID
from ..safe import one_line


@dataclass(frozen=True)
class Scope:
    """Where a run reads: group, start and boundary, fixed when the run starts."""

    name: str
    group: str
    consumer_group: str  # to which `group` belongs: itself, or scope history's
    consumer: str
    position: str  # of `group`; scope history: where its own group stands or would start
    group_position: str  # of the consumer group itself
    boundary: str
    group_exists: bool
    min_idle_ms: int
    from_consumers: tuple[str, ...]
    first: str = FIRST_ID  # with --from: what comes before it is not of this scope


def not_ours(group: str) -> str:
    """What to say of a group that scope history may not use."""
    return (
        f"--history-group {one_line(group)}: drainkit did not make this group, and it would be "
        "destroyed in the end; name one that does not exist yet"
    )
