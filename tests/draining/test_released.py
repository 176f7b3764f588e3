"""Entries released by XNACK (Redis 8.8): pending, of consumer "", idle for -1 ms.

No server of these tests is an 8.8: rows are made as 8.8 answers, around the real script.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from backlogs import deliver, seed
from books import ask, audit, pending
from faults import attempt, complete, rehearse
from servers import Server

from drainkit.server import writing
from drainkit.server.connection import Server as Link

# what XPENDING answers in a script: entries of consumer "dead" are nobody's
AS_8_8 = """
local call_ = redis.call
local redis = setmetatable({call = function(name, ...)
  local reply = call_(name, ...)
  if name == 'XPENDING' then
    for _, row in ipairs(reply) do
      if row[2] == 'dead' then row[2] = '' row[3] = -1 end
    end
  end
  return reply
end}, {__index = redis})
"""
real_script, real_call = writing.script, Link.call


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that consumer "dead" holds is released, as 8.8 would say; idle filters let it through."""

    @cache
    def script(name: str) -> str:
        return AS_8_8 + real_script(name)

    def call(self: Link, *args: Any) -> Any:
        if args[0] != "XPENDING" or len(args) == 3:
            return real_call(self, *args)
        if args[3] == "IDLE":
            args = (*args[:3], *args[5:])
        rows = real_call(self, *args)
        return [[row[0], b"", -1, row[3]] if row[1] == b"dead" else row for row in rows]

    monkeypatch.setattr(writing, "script", script)
    monkeypatch.setattr(Link, "call", call)


@pytest.mark.usefixtures("released")
def test_released_entries_are_drained_as_idle(server: Server, stream: str) -> None:
    """Planned, drained and audited by scope pending whatever --min-idle-min says."""
    ids = seed(server, stream, 150, delivered=100)[100:]
    assert deliver(server, stream, b"dead", 50) == ids
    options = {"scope": "pending", "min_idle_min": 60}
    assert rehearse(server.url, stream, **options)["total_read"] == 50
    run = complete(server.url, stream, **options)
    assert (run.books["total_read"], run.books["remaining"]) == (50, 0)
    assert [r["original_id"] for r in audit(server, stream)] == ids
    assert pending(server, stream) == 0


@pytest.mark.usefixtures("released")
def test_a_run_that_leaves_what_it_promised_is_not_done(
    valkey: Server, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If commits do not take what the reads promise, the run says so and exits 1."""
    seed(valkey, stream, 150, delivered=100)
    deliver(valkey, stream, b"dead", 50)
    stubborn = AS_8_8.replace("row[3] = -1", "row[3] = 0")
    monkeypatch.setattr(writing, "script", lambda name: stubborn + real_script(name))
    run = attempt(valkey.url, stream, scope="pending", min_idle_min=60)
    assert run.rc == 1
    assert "50 idle entries" in run.error
    assert run.books["outcome"] == "failed"
    assert run.books["remaining"] == 50
    assert ask(valkey, "EXISTS", f"{stream}.drain_audit") == 0
