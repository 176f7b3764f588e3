"""The events of a scope, decided at one moment."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd

from ..core.collection import collection_paused, give_back_freed
from ..core.events import decoder_of
from ..core.frame import FrameBuilder
from ..core.policy import ACTIONS, decide
from ..draining.handover import Handover
from ..draining.job import Job
from ..server import scopes
from ..server.connection import Server
from ..settings import Settings

MOST_ROWS = 2_000_000  # a backlog up to so many events is a DataFrame as a whole
ROWS_OF_MORE = 1_000_000  # of a larger one: at most so many rows, evenly spread


class Backlog:
    """All events of a scope counted by action; as a DataFrame all of them, or one in `step`.

    `counted`: how many there may be. `hand_on`: a run's folder, whose 02 plans from what was read.
    """

    def __init__(
        self,
        server: Server,
        settings: Settings,
        job: Job,
        *,
        at_us: int,
        counted: int,
        hand_on: Path | None,
    ) -> None:
        if counted > MOST_ROWS:  # a run that goes on, or one with --until, has fewer
            counted = scopes.remaining(server, job.scope)
        self.step = 1 if counted <= MOST_ROWS else math.ceil(counted / ROWS_OF_MORE)
        self.total = 0  # events of the scope
        self.symbols = set[str]()  # that occur in them
        self.counts = np.zeros(len(ACTIONS), np.int64)  # by action
        self.frame = self._read(server, settings, job, at_us, hand_on)
        give_back_freed()

    @collection_paused()
    def _read(
        self, server: Server, settings: Settings, job: Job, at_us: int, hand_on: Path | None
    ) -> pd.DataFrame:
        """The entries of the scope as a DataFrame; in a run they are handed on to 02."""
        decoder = decoder_of(settings)
        builder = FrameBuilder(decoder)
        builder.add(nothing := decoder.decode([]), decide(nothing, job.policy, at_us))
        with Handover(server, job, hand_on) as out:
            for page in scopes.scope_entries(server, job.scope):
                events = decoder.decode(page)
                out.add(page, events)
                self.symbols |= events.symbols_here()
                del page  # or two pages would be in memory
                decisions = decide(events, job.policy, at_us)
                self.counts += np.bincount(decisions.action, minlength=len(ACTIONS))
                if self.step > 1:
                    rows = slice(-self.total % self.step, None, self.step)
                    decisions = decisions.part(rows)
                self.total += len(events)
                builder.add(events.part(rows) if self.step > 1 else events, decisions)
        return builder.frame()
