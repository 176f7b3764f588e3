"""A wrong mapping does not bury a backlog: what cannot be read is not acknowledged in bulk."""

from __future__ import annotations

import pytest
from backlogs import GROUP, fill, now_ms
from books import at, audit
from conftest import Cli, intent, one_line_error
from servers import Server

from drainkit.views.analyse_backlog import Analysis


def odd(server: Server, stream: str, bad: int, good: int, *, age_ms: int = 1000) -> None:
    """A backlog of events with percentages as confidence, then of good ones."""
    first = now_ms(server) - age_ms - bad - good
    entries = [(first + i, intent(confidence="78%" if i < bad else 0.8)) for i in range(bad + good)]
    fill(server, stream, entries, group=GROUP)


@pytest.mark.parametrize(
    ("command", "age_ms"),
    [("drain", 1000), ("drain", 4_000_000), ("drain --plan", 4_000_000), ("run", 1000)],
)
def test_unreadable_is_refused(
    valkey: Server, stream: str, cli: Cli, command: str, age_ms: int
) -> None:
    """600 events with "78%" as confidence, too old or not: a live drain is refused (4) with the
    reason and `drainkit fields`, and audits nothing; --allow-invalid lets it go on."""
    odd(valkey, stream, 600, 10, age_ms=age_ms)
    every = (*at(valkey, stream), "--max-events", "all", "--throttle", "none")
    verb, *plan = command.replace("--plan", "--plan plan.json").split()
    if plan:
        assert cli("drain", *every, *plan).rc == 0
    live = (verb, "--mode", "live", "--yes", *every, *plan)
    refused = cli(*live)
    assert (refused.rc, audit(valkey, stream)) == (4, []), refused
    for words in ("600 of 610 events cannot be read: confidence not a number (600)",
                  "drainkit fields", "--allow-invalid"):  # fmt: skip
        assert words in refused.err
    if verb == "drain":
        assert cli(*live, "--allow-invalid").rc == 0
        assert len(audit(valkey, stream)) == 610


@pytest.mark.parametrize(
    ("bad", "good", "most", "code"),
    [(19, 1, 99, 0), (20, 80, 100, 0), (21, 79, 100, 4), (30, 970, 100, 4), (20, 0, 19, 0)],
)
def test_a_fifth_and_twenty_are_the_limits(
    valkey: Server, stream: str, cli: Cli, bad: int, good: int, most: int, code: int
) -> None:
    """Refused are more than a fifth, at least 20, of the entries that this drain would take."""
    odd(valkey, stream, bad, good)
    run = cli("drain", "--mode", "live", "--yes", "--json", *at(valkey, stream), "--max-events",
              most, "--throttle", "none")  # fmt: skip
    assert run.rc == code, run.err
    if code:
        assert f"{bad} of " in one_line_error(run.err)
        return
    assert len(audit(valkey, stream)) == min(bad + good, most)


def test_a_slip_of_the_allowlist_is_named(
    valkey: Server, stream: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A symbol of the list that is in no event, and one that is there in another letter case:
    said by the dry run (text and JSON) and 01 (the card: test_terminal.py). The dry run says also
    how many good signals a live run would acknowledge, and that it executes none."""
    odd(valkey, stream, 2, 7)
    given = ("drain", *at(valkey, stream), "--allowlist")
    notes = cli(*given, "btcusdt,BTCUSD,ETHUSDT", "--json").json()["notes"]
    assert notes == [
        "allowlist: other letter case than in events: btcusdt (events have BTCUSDT)",
        "allowlist: in no event: BTCUSD, ETHUSDT",
    ]
    said = cli(*given, "btcusdt,BTCUSD,ETHUSDT").out
    assert all(f"Note: {note}" in said for note in notes)
    plain = cli(*given, "BTCUSDT").out
    assert "allowlist:" not in plain
    assert "acknowledges 7 good signals and executes none of them" in plain
    monkeypatch.setenv("DRAINKIT_REDIS_URL", valkey.url)
    view = Analysis.open({"stream": stream, "allowlist": "btcusdt,BTCUSD,ETHUSDT"})
    assert all(note in view.bottom_line().data for note in notes)
    told = Analysis.open({"stream": stream}).bottom_line().data
    assert "still good signals, which a drain acknowledges and does **not** execute" in told
