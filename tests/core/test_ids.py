"""Entry ids and the bounds made of them."""

from __future__ import annotations

import datetime as dt

import pytest

from drainkit.ids import FIRST_ID, bound, first_of, id_key, last_of, next_id, previous_id

TOP = 2**64 - 1


@pytest.mark.parametrize("entry", ["0-1", "5-10", f"5-{TOP}", "6-0", "1766602826755-3"])
def test_the_id_before_is_the_one_whose_next_it_is(entry: str) -> None:
    """previous_id and next_id undo one another, across milliseconds too; 0-0 is the end."""
    assert next_id(previous_id(entry)) == entry
    assert id_key(previous_id(entry)) < id_key(entry)
    assert previous_id(FIRST_ID) == FIRST_ID


def test_a_time_bounds_its_whole_millisecond() -> None:
    """A time as --until reaches to the last id of its millisecond, as --from from its first."""
    for value in ("2025-12-24T19:49:58.664912+00:00", "2025-12-24T20:49:58.664912+01:00",
                  "2025-12-24T19:49:58.664912",
                  dt.datetime(2025, 12, 24, 19, 49, 58, 664912)):  # fmt: skip
        text = bound(value)
        assert text == "2025-12-24T19:49:58.664912+00:00"
        assert last_of(text) == f"1766605798664-{TOP}"
        assert first_of(text) == "1766605798664-0"
    assert bound("0001766605798664-07") == "1766605798664-7"
    assert last_of("1766605798664-7") == first_of("1766605798664-7") == "1766605798664-7"


@pytest.mark.parametrize(
    "value",
    ["", "yesterday", "1766605798664", "20251224", "1-", "-1", "1-2-3", f"1-{TOP + 1}", "٣-٣",
     "1969-12-31T23:59:59Z", "9999-12-31T23:59:59-10:00", 5, True, b"1-1", dt.date(2025, 12, 24)],
)  # fmt: skip
def test_what_is_neither_is_refused(value: object) -> None:
    """Digits alone mean a date or an id, so they are refused like all else that is neither."""
    with pytest.raises(ValueError, match="ISO 8601 time such as"):
        bound(value)
