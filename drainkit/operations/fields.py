"""Whether the entries of a backlog can be read, and if not, why and what would help."""

from __future__ import annotations

from ..core.events import decoder_of
from ..core.shapes import Findings, examine
from ..core.values import RawEntry
from ..ids import id_key, last_of, next_id
from ..server import reading, scopes
from ..server.connection import Server
from ..server.splitting import spread
from ..settings import Settings

SAMPLE = 500  # entries
TOO_MANY = 0.2  # of them unreadable: a live drain would be refused


def fields_of(server: Server, settings: Settings) -> Findings:
    """What the backlog's events hold, which fields are chosen, and what would mend them."""
    return examine(sample(server, settings), settings.fields)


def unreadable(server: Server, settings: Settings) -> Findings | None:
    """What is wrong with the backlog's events; None where at most a fifth cannot be read."""
    entries = sample(server, settings)
    bad = (decoder_of(settings).decode(entries).invalid > 0).sum()
    return examine(entries, settings.fields) if bad > TOO_MANY * len(entries) else None


def sample(server: Server, settings: Settings, most: int = SAMPLE) -> list[RawEntry]:
    """Entries spread evenly over all that is undelivered; of the whole stream if nothing is."""
    info, settings = reading.stream_info(server), scopes.at_now(server, settings)
    last = info.boundary_id
    if settings.until is not None:
        last = min(last, last_of(settings.until), key=id_key)
    group = reading.positions(server).get(settings.consumer_group)
    found = spread(server, next_id(group.position), last, most) if group else []
    return found or spread(server, info.first_id or reading.FIRST_ID, last, most)
