"""Where to cut a stream into parts of about equal size, without reading it as a whole.

A stream has no index by rank, so a few entries at both ends of ever smaller spans of ids tell how
dense each span is. Where that does not explain the stream's length (a burst in a quiet month), the
ids are counted one by one. In any case the parts hold each entry exactly once.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ..core.values import RawEntry
from ..safe import text
from .connection import Server
from .reading import FIRST_ID, PAGE_BYTES, StreamInfo, entry_bytes, id_key, pages, stream_info

SAMPLE = 32  # entries at each end of a span
SAMPLE_BYTES = 1 << 20  # about so much at most
FINENESS = 16  # spans of a part; one that is estimated too large is wrong by a share of this
PROBES = 8  # for each of those spans, and never more than read a quarter of the stream
WRONG = 0.1  # a share of the length by which the estimate may differ from it
COUNTED = 20_000  # entries; so many are counted at once
SPREAD = (64, 4, 25)  # a sample's places, how often each is read at most, and entries each time
_SEQUENCES = 1 << 64


@dataclass(order=True)
class _Span:
    """Ids from `first` to `last`, as numbers, and about how many entries have them."""

    weight: float = field(init=False)  # the heap's first is the largest
    first: int
    last: int
    entries: float
    is_exact: bool

    def __post_init__(self) -> None:
        self.weight = 0.0 if self.is_exact else -self.entries


def split(server: Server, n: int) -> list[tuple[str, str]]:
    """The stream's n parts in order: the first and the last id of each, both included.

    The last part ends at the boundary of now. A part without entries may end before it begins.
    """
    info = stream_info(server)
    last = _number(info.boundary_id)
    if not info.length or info.first_id is None:
        return [(_id(last + 1), _id(last))] * n
    first = _number(info.first_id)
    spans = _spans(server, first, last, info.length, n) if info.length > COUNTED else []
    if abs(sum(span.entries for span in spans) - info.length) <= info.length * WRONG:
        cuts = _cuts(spans, n)
    else:
        cuts = _counted_cuts(server, info, n)
    cuts = [first, *cuts, *[last + 1] * (n - len(cuts))]
    return [(_id(start), _id(max(end - 1, 0))) for start, end in pairwise(cuts)]


def sampled(server: Server, first: str, last: str) -> Iterator[list[RawEntry]]:
    """Some 5,000 entries from all over a range of ids, none twice; all, of a small one.

    Places of equal span are read; what goes on after what was read there is cut into places again,
    so that most entries come from where most are, be it a burst in a quiet month.
    """
    places, times, most = SPREAD
    spans, count = [(_number(first), _number(last))], 1
    for _ in range(times):
        cut = [part for span in spans for part in _equal(*span, places // len(spans))]
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
        count = max(1, min(most, PAGE_BYTES // places // max(map(entry_bytes, read))))


def _equal(first: int, last: int, n: int) -> list[tuple[int, int]]:
    """The span in up to n parts, each of at least one id."""
    n = max(1, min(n, last - first + 1))
    cuts = [first + (last - first + 1) * i // n for i in range(n + 1)]
    return [(a, b - 1) for a, b in pairwise(cuts)]


def _spans(server: Server, first: int, last: int, length: int, n: int) -> list[_Span]:
    """The ids in spans that each hold a small share of a part, or are known exactly."""
    spans = [_probe(server, first, last, SAMPLE)]
    small = length / (n * FINENESS)
    for _ in range(min(PROBES * n * FINENESS, length // (8 * SAMPLE))):
        if spans[0].is_exact or spans[0].entries <= small:
            break
        largest = heapq.heappop(spans)
        middle = (largest.first + largest.last) // 2
        for a, b in ((largest.first, middle), (middle + 1, largest.last)):
            heapq.heappush(spans, _probe(server, a, b, SAMPLE))
    return sorted(spans, key=lambda span: span.first)


def _probe(server: Server, first: int, last: int, count: int) -> _Span:
    """What a few entries at both ends of a span say about it."""
    ends = (_id(first), _id(last))
    front, back = server.pipeline(
        [("XRANGE", server.stream, *ends, "COUNT", count),
         ("XREVRANGE", server.stream, *reversed(ends), "COUNT", count)]
    )  # fmt: skip
    if len(front) < count or not front:
        return _Span(first, last, len(front), is_exact=True)
    low = [_number(entry[0]) for entry in front]
    high = [_number(entry[0]) for entry in back]
    if low[-1] >= high[-1]:  # the two samples meet
        return _Span(low[0], high[0], len({*low, *high}), is_exact=True)
    most = SAMPLE_BYTES // entry_bytes(front)
    if most < count > 2:  # large entries: fewer of them say enough
        return _probe(server, low[0], high[0], max(2, most))
    gaps = (low[-1] - low[0], high[0] - high[-1])
    inner = high[-1] - low[-1]
    density = sum((count - 1) / max(gap, 1) for gap in gaps) / 2
    return _Span(low[0], high[0], 2 * count + inner * density, is_exact=False)


def _cuts(spans: Sequence[_Span], n: int) -> list[int]:
    """The numbers at which the parts after the first begin."""
    total = sum(span.entries for span in spans)
    cuts: list[int] = []
    before = 0.0
    for span in spans:
        while len(cuts) < n - 1 and before + span.entries >= (goal := total * (len(cuts) + 1) / n):
            share = (goal - before) / span.entries if span.entries else 0.0
            # in whole numbers: an id has twice the digits that a float holds
            at = span.first + (span.last - span.first + 1) * int(share * 2**30) // 2**30
            cuts.append(at)
        before += span.entries
    return cuts


def _counted_cuts(server: Server, info: StreamInfo, n: int) -> list[int]:
    """The same by counting: bodies travel too, but nothing of them is decoded or kept."""
    cuts: list[int] = []
    before = 0
    for page in pages(server, server.stream, FIRST_ID, info.boundary_id, ahead=True):
        while len(cuts) < n - 1 and (at := info.length * (len(cuts) + 1) // n) < before + len(page):
            cuts.append(_number(page[at - before][0]))
        before += len(page)
    return cuts


def _number(entry_id: str | bytes) -> int:
    ms, sequence = id_key(text(entry_id) if isinstance(entry_id, bytes) else entry_id)
    return ms * _SEQUENCES + sequence


def _id(number: int) -> str:
    ms, sequence = divmod(number, _SEQUENCES)
    return f"{ms}-{sequence}"
