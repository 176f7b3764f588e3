"""Counts, samples and cuts a stream by reading as few entries as it can.

Redis's own lag can be wrong, so entries are counted. XINFO STREAM tells length and both ends in one
atomic reply: all or none of a stream is known without reading. In the middle of a stream the
entries of the range and those around it are read alternately: the smaller side ends first, and the
length gives the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, pairwise

from ..core.values import RawEntry
from ..ids import id_key, next_id, previous_id
from ..late import collection_paused
from ..safe import text
from . import reading
from .connection import Server
from .reading import Backlog, Group, StreamInfo

SPREAD = (64, 4, 25)  # a sample's places, how often each is read at most, and entries each time
_SEQUENCES = 1 << 64
Pages = Iterator[Sequence[RawEntry]]


def count(
    server: Server, info: StreamInfo, first: str, last: str, *, most: int | None = None
) -> tuple[int, bool]:
    """How many entries lay from `first` to `last` when `info` was read, and whether that is all.

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
    inside = outside = 0
    with collection_paused():
        while page := next(within, None):
            inside += len(page)
            if most is not None and inside > most:
                return most + 1, False
            del page  # or two pages would be in memory
            if not (page := next(around, None)):
                # if none was deleted since, and it is the same stream, its length gives the rest;
                # 6.2 does not count what is deleted: there nothing at all may differ
                now = reading.stream_info(server)
                is_whole = now == info or (
                    (now.entries_added or 0) >= (info.entries_added or 1)
                    and id_key(now.boundary_id) >= id_key(info.boundary_id)
                    and (now.first_id, now.max_deleted_id, now.gone)
                    == (info.first_id, info.max_deleted_id, info.gone)
                )
                return info.length - outside if is_whole else inside + sum(map(len, within)), True
            outside += len(page)
    return inside, True


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


@collection_paused()
def split(server: Server, n: int) -> list[tuple[str, str]]:
    """The stream's n equal parts in order: the first and the last id of each, both included.

    The last part ends at the boundary of now. A part without entries ends before it begins.
    """
    info, before = reading.stream_info(server), 0
    begins = [info.first_id or next_id(info.boundary_id)]
    read = reading.pages(server, server.stream, begins[0], info.boundary_id, ahead=True)
    with closing(read) as pages:
        for page in pages:
            while len(begins) < n and (at := info.length * len(begins) // n) < before + len(page):
                begins.append(text(page[at - before][0]))
            if len(begins) == n:  # the last part is whatever follows
                break
            before += len(page)
    begins += [next_id(info.boundary_id)] * (n + 1 - len(begins))
    return [(begin, previous_id(end)) for begin, end in pairwise(begins)]


def sampled(server: Server, first: str, last: str) -> Iterator[list[RawEntry]]:
    """Some 5,000 entries from all over a range of ids, none twice; all, of a small one.

    Places of equal span are read; what goes on after what was read there is cut into places again,
    so that most entries come from where most are, be it a burst in a quiet month.
    """
    places, times, most = SPREAD
    spans, count = [(_number(first), _number(last))], 1
    for _ in range(times):
        cut = []
        for low, high in spans:  # each in up to so many parts, each of at least one id
            parts = max(1, min(places // len(spans), high - low + 1))
            ends = [low + (high - low + 1) * i // parts for i in range(parts + 1)]
            cut += [(a, b - 1) for a, b in pairwise(ends)]
        found: list[list[RawEntry]] = server.pipeline(
            [("XRANGE", server.stream, _id(a), _id(b), "COUNT", count) for a, b in cut]
        )
        spans = [
            (_number(page[-1][0]) + 1, end)
            for (_, end), page in zip(cut, found, strict=True)
            if len(page) == count and _number(page[-1][0]) < end
        ]
        read = [page for page in found if page]
        yield from read
        if not spans:
            return
        largest = max(map(reading.size_of, chain.from_iterable(read)))
        count = max(1, min(most, reading.PAGE_BYTES // places // largest))


def _number(entry_id: str | bytes) -> int:
    ms, sequence = id_key(entry_id)
    return ms * _SEQUENCES + sequence


def _id(number: int) -> str:
    ms, sequence = divmod(number, _SEQUENCES)
    return f"{ms}-{sequence}"
