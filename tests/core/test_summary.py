"""The books: the pace by the audit's milliseconds, and books that are closed more than once."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from drainkit.core.summary import Pace, Summary
from drainkit.errors import RefusedError
from drainkit.settings import build

NOTES = st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 50)), max_size=30)


def pace_of(notes: list[tuple[int, int]]) -> Pace:
    pace = Pace()
    for ms, n in sorted(notes):
        pace.note(ms, n)
    return pace


@given(NOTES)
def test_the_rate_is_what_came_before_the_last_millisecond(notes: list[tuple[int, int]]) -> None:
    """(records before the last ms) / (last - first), rounded down; 0 where both are one."""
    rate = pace_of(notes).events_per_sec()
    times = [ms for ms, _ in notes]
    if not times or min(times) == max(times):
        assert rate == 0
        return
    before = sum(n for ms, n in notes if ms < max(times))
    exact = before / ((max(times) - min(times)) / 1000)
    assert exact - 0.0101 <= rate <= exact


@given(st.integers(1, 2000), st.integers(2, 500))
def test_an_even_pace_is_never_above_its_throttle(rate: int, n: int) -> None:
    """Events a turn apart, by milliseconds rounded up, never look faster than the throttle."""
    gap_ms = 1000 / rate
    due = [-(-k * gap_ms // 1) for k in range(n)]
    assert all(b >= a for a, b in pairwise(due))
    assert pace_of([(int(ms), 1) for ms in due]).events_per_sec() <= rate


def test_books_read_and_closed_again_keep_times_and_rate() -> None:
    """What `as_dict` wrote is the same after `read`; a later failure adds only itself."""
    settings = build({"mode": "live", "stream": "s"})
    summary = Summary.opened(settings, run_id="r", boundary="1-0", now_us=10**15)
    summary.pace.note(1000, 5)
    summary.pace.note(2000, 1)
    summary.close(None, 10**15 + 1_500_000)
    again = Summary.read(summary.as_dict())
    assert again.as_dict() == summary.as_dict()
    again.close(RefusedError("late"), 10**15 + 9_000_000)
    assert (again.events_per_sec, again.elapsed_sec, again.outcome) == (5.0, 1.5, "refused")
