"""How far a drain is, in the contract's words."""

from __future__ import annotations

from drainkit.core.summary import Step, Summary, Tenths, entries_words, next_run_words
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
    """Done of all, rate of throttle, time left, passed; read again, it is the same step."""
    step = Step.of(summary_of(1001, 412, 10_001))
    assert step.line == "drained 1,001 of 10,001, 5.0/s of 5, 30 min left, 412 passed"
    assert Step.read(step.line) == step
    fast = Step.of(summary_of(1001, 3, 1001, throttle="none", seconds=1))
    assert fast.line == "drained 1,001 of 1,001, 1,000.0/s, 3 passed"
    at_once = Step.of(summary_of(250, 250, 250, throttle="none", seconds=0))
    assert at_once.line == "drained 250 of 250, 250 passed"  # in one millisecond: no rate
    assert Step.read("Not armed: approve is empty, so nothing was changed.") is None


def test_there_is_a_line_at_each_tenth() -> None:
    """Ten lines of a hundred events, whatever steps they come in; none without a total."""
    tenths = Tenths()
    steps = [Step.of(summary_of(done, 0, 100)) for done in range(1, 101)]
    assert [step.done for step in steps if tenths.is_next(step)] == [*range(10, 101, 10)]
    assert not Tenths().is_next(Step.of(summary_of(1, 0, 0)))


def test_entries_of_two_places_are_told_as_their_sum() -> None:
    """What an earlier drain left stands beside what is undelivered, wherever the sum stands."""
    told = "3,168 undelivered + 6 pending of this drain's own consumer = 3,174"
    assert entries_words("undelivered", 3174, 6) == told
    assert entries_words("undelivered", 3168, 0) == "3,168 undelivered"
    assert entries_words("pending", 6, 6) == "6 pending"
    assert next_run_words(3174, 500, 5) == "the first 500 of them, 100 s at 5 per second"
