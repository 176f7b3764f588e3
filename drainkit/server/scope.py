"""Names of groups and consumers, which need not be UTF-8, and the scope of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..ids import FIRST_ID
from ..safe import text


class Name(str):
    """A group's or consumer's name: text to show, and the bytes that the server knows it by.

    Names need not be UTF-8. What is shown of such a one may look like another's name, but is equal
    to none: names are compared by their bytes, also with a text of the settings.
    """

    raw: bytes

    def __new__(cls, raw: bytes, shown: str | None = None) -> Name:
        """The name that the server gave as `raw`."""
        name = super().__new__(cls, text(raw) if shown is None else shown)
        name.raw = raw
        return name

    def __getnewargs__(self) -> tuple[bytes, str]:  # type: ignore[override] # for copies
        return (self.raw, str(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and self.raw == raw_name(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:  # a text's own, where it is one
        return hash(self.raw.decode("utf-8", "replace"))


def told_apart(names: Sequence[bytes]) -> list[Name]:
    """The names of one list; where some look alike, one that is not UTF-8 shows its bytes too."""
    looks = Counter(map(text, names))
    found = []
    for raw in names:
        seen = text(raw)
        is_clear = looks[seen] == 1 or seen.encode() == raw
        found.append(Name(raw, None if is_clear else f"{seen} (bytes {raw.hex()})"))
    return found


def named(names: Iterable[Name], given: str) -> Name | None:
    """The name that a user means: the one of just these bytes, else the one that is shown so."""
    there = list(names)
    return next((n for n in there if n == given), None) or next(
        (n for n in there if str(n) == given), None
    )


def raw_name(name: str) -> bytes:
    """The bytes to send for a name that came from the server or from the settings."""
    return name.raw if isinstance(name, Name) else name.encode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Scope:
    """Where a run reads: group, start and boundary, fixed when the run starts."""

    name: str
    group: str
    consumer_group: str  # to which `group` belongs: itself, or scope history's
    consumer: str
    position: str  # of `group`; scope history: of its own group, or where that would start
    group_position: str  # of the consumer group itself
    boundary: str
    group_exists: bool
    min_idle_ms: int
    from_consumers: tuple[str, ...]
    first: str = FIRST_ID  # with --from: what comes before it is not of this scope


def not_ours(group: str) -> str:
    """What to say of a group that scope history may not use."""
    return (
        f"--history-group {group}: drainkit did not make this group, and it would be "
        "destroyed in the end; name one that does not exist yet"
    )
