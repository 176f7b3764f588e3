"""Decided events, counted by action, and as a DataFrame."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ..core.collection import collection_paused, give_back_freed
from ..core.events import Decoder, Events, decoder_of
from ..core.frame import FrameBuilder
from ..core.policy import ACTIONS, Decisions, Policy, decide
from ..draining.dry import keeping
from ..draining.run import Run
from ..server import scopes

MOST_ROWS = 2_000_000  # so many events are a DataFrame as a whole
ROWS_OF_MORE = 1_000_000  # of more: at most so many rows, evenly spread
Decided = Iterable[tuple[Events, Decisions]]


class Backlog:
    """All events of `pages` counted by action; as a DataFrame all of them, or one in `step`.

    `counted`: how many there may be.
    """

    @collection_paused()
    def __init__(self, pages: Decided, counted: int) -> None:
        self.step = 1 if counted <= MOST_ROWS else math.ceil(counted / ROWS_OF_MORE)
        self.total = 0  # events
        self.symbols = set[str]()  # that occur in them
        self.counts = np.zeros(len(ACTIONS), np.int64)  # by action
        builder = FrameBuilder(decoder := Decoder())
        builder.add(nothing := decoder.decode([]), decide(nothing, Policy(0, None, 0), 0))
        for events, decisions in pages:
            self.counts += np.bincount(decisions.action, minlength=len(ACTIONS))
            self.symbols |= events.symbols_here()
            rows = slice(-self.total % self.step, None, self.step)
            self.total += len(events)
            builder.add(events.part(rows), decisions.part(rows))
            del events, decisions  # or two pages would be in memory
        self.frame = builder.frame()
        give_back_freed()


def waiting(run: Run, at_us: int, run_dir: Path | None) -> Iterator[tuple[Events, Decisions]]:
    """The scope's events as decided at one moment; in a run's folder they are kept for 02."""
    decoder = decoder_of(run.settings)
    with keeping(run, run_dir) as keep:
        for page in scopes.scope_entries(run.server, run.scope):
            keep(page, events := decoder.decode(page))
            del page  # or two pages would be in memory
            yield events, decide(events, run.policy, at_us)
