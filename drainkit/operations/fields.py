"""Whether the newest entries of a stream can be read, and if not, why and what would help."""

from __future__ import annotations

from ..core.shapes import SAMPLE, Unreadable, unreadable
from ..server import reading
from ..server.connection import Server
from ..settings import Settings


def newest_unreadable(server: Server, settings: Settings) -> Unreadable | None:
    """What is wrong with the newest entries; None where most of them can be read."""
    return unreadable(reading.newest(server, server.stream, SAMPLE), settings.fields)
