"""Whether the entries of a backlog can be read, and if not, why and what would help."""

from __future__ import annotations

import numpy as np

from ..core.events import decoder_of
from ..core.shapes import Findings, examine
from ..core.values import RawEntry
from ..ids import id_key, last_of, next_id
from ..server import reading, scopes
from ..server.connection import Server
from ..server.counting import sampled
from ..settings import Settings

SAMPLE = 500  # entries at most
TOO_MANY = 0.2  # of them unreadable: a live drain would be refused


def fields_of(server: Server, settings: Settings) -> Findings:
    """What the backlog's events hold, which fields are chosen, and what would mend them."""
    return examine(sample(server, settings), settings.fields)


def unreadable(server: Server, settings: Settings) -> Findings | None:
    """What is wrong with the backlog's events; None where at most a fifth cannot be read."""
    entries = sample(server, settings)
    bad = (decoder_of(settings).decode(entries).invalid > 0).sum()
    return examine(entries, settings.fields) if bad > TOO_MANY * len(entries) else None


def sample(server: Server, settings: Settings) -> list[RawEntry]:
    """Entries from all over what is undelivered; of the whole stream if nothing is."""
    info, settings = reading.stream_info(server), scopes.at_now(server, settings)
    last = info.boundary_id
    if settings.until is not None:
        last = min(last, last_of(settings.until), key=id_key)
    group = reading.positions(server).get(settings.consumer_group)
    for first in (next_id(group.position) if group else None, info.first_id):
        pages = sampled(server, first, last) if first and id_key(first) <= id_key(last) else ()
        if found := [entry for page in pages for entry in page]:
            # by chance: producers that take turns would keep time with equal steps
            rows = np.random.default_rng(0).permutation(len(found))[:SAMPLE]
            return [found[row] for row in sorted(rows.tolist())]
    return []
