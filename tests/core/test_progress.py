"""How far a drain is, in the contract's words."""

from __future__ import annotations

from drainkit.core.progress import Tenths, progress_line
from drainkit.core.summary import Summary
from drainkit.settings import build


def summary_of(
    done: int, passed: int, total: int, *, throttle: object = 5, seconds: int = 200
) -> Summary:
    settings = build({"mode": "live", "throttle": throttle})
    summary = Summary.opened(settings, run_id="r", boundary="1-0", now_us=10**15)
    summary.total_read, summary.drained_ok, summary.expected = done, passed, total
    summary.pace.note(0, done - 1)
    summary.pace.note(seconds * 1000, 1)
    return summary


def test_the_line_is_the_contracts() -> None:
    """Done of all, rate of throttle, time left, passed."""
    line = progress_line(summary_of(1001, 412, 10_001))
    assert line == "drained 1,001 of 10,001, 5.0/s of 5, 30 min left, 412 passed"
    fast = progress_line(summary_of(1001, 3, 1001, throttle="none", seconds=1))
    assert fast == "drained 1,001 of 1,001, 1,000.0/s, 3 passed"


def test_there_is_a_line_at_each_tenth() -> None:
    """Ten lines of a hundred events, whatever steps they come in; none without a total."""
    tenths = Tenths()
    lines = [tenths.line(summary_of(done, 0, 100)) for done in range(1, 101)]
    assert [line.split()[1] for line in lines if line] == [str(n) for n in range(10, 101, 10)]
    assert Tenths().line(summary_of(1, 0, 0)) is None
