"""Counts entries by reading as few of them as it can: Redis's own lag can be wrong.

XINFO STREAM tells length and both ends in one atomic reply, so all or none of a stream is known
without reading. In the middle of a stream the entries of the range and those around it are read
alternately: the smaller side ends first, and the length tells the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain

from ..core.collection import collection_paused
from ..core.values import RawEntry
from . import reading
from .connection import Server
from .reading import Backlog, Group, StreamInfo, id_key, next_id, previous_id

Pages = Iterator[Sequence[RawEntry]]


def count_between(server: Server, first: str, last: str) -> int:
    """How many entries lie from `first` to `last`, both included; exact."""
    if id_key(first) > id_key(last):
        return 0
    return count(server, reading.stream_info(server), first, last)[0]


def count(
    server: Server, info: StreamInfo, first: str, last: str, *, most: int | None = None
) -> tuple[int, bool]:
    """How many entries lay from `first` to `last` when `info` was told, and whether that is all.

    With `most` it ends as soon as there are more, and answers `most` + 1 and False.
    """
    if info.first_id is None or info.last_id is None:
        return 0, True
    low, high, end = id_key(first), id_key(last), id_key(info.last_id)
    if low > min(high, end) or high < id_key(info.first_id):
        return 0, True
    head = id_key(info.first_id) < low  # is anything before the range, is anything after it
    tail = high < end
    if not head and not tail:
        return info.length, True
    read = partial(reading.pages, server, server.stream)
    around: Pages = chain(
        read(info.first_id, previous_id(first), newest_first=True) if head else (),
        read(next_id(last), info.last_id) if tail else (),
    )
    within: Pages = read(first, min(last, info.last_id, key=id_key))
    return _read(server, info, within, around, most)


@collection_paused()
def _read(
    server: Server, info: StreamInfo, within: Pages, around: Pages, most: int | None
) -> tuple[int, bool]:
    """Read the range and what is around it alternately, until one of them ends."""
    inside = outside = 0
    while True:
        if not (page := next(within, None)):
            return inside, True
        inside += len(page)
        if most is not None and inside > most:
            return most + 1, False
        del page
        if not (page := next(around, None)):
            break
        outside += len(page)
    if reading.stream_info(server).has_all_of(info):  # else its length says too much
        return info.length - outside, True
    return inside + sum(map(len, within)), True


def groups(server: Server, info: StreamInfo, *, most: int | None = None) -> list[Group]:
    """Every group with its backlog up to the boundary that `info` holds, counted in one pass.

    With `most` no more undelivered entries are counted than that: where there are more, neither
    they nor the history, which is the rest, are known.
    """
    found = list(reading.positions(server).values())
    undelivered: dict[str, int | None] = {}
    after, counted, is_all = info.boundary_id, 0, True
    for position in sorted({group.position for group in found}, key=id_key, reverse=True):
        if is_all:  # what lies between it and the one before it, which is further on
            left = None if most is None else most - counted
            more, is_all = count(server, info, next_id(position), after, most=left)
            counted, after = counted + more, min(position, after, key=id_key)
        undelivered[position] = counted if is_all else None
    states = []
    for group in found:
        new = undelivered[group.position]
        # length and boundary come from one reply, so the rest of the stream is history
        backlog = Backlog(new, group.pending, None if new is None else max(0, info.length - new))
        states.append(dataclasses.replace(group, backlog=backlog))
    return states
