"""The run ledger in Redis."""

from __future__ import annotations

from collections.abc import Iterator

from ..core.summary import RUN_ID
from ..safe import text
from . import reading
from .connection import Server


def entries(server: Server) -> Iterator[dict[str, str]]:
    """The ledger's entries as texts, oldest first; `id` is their own."""
    for page in reading.pages(server, server.keys.runs, reading.FIRST_ID, reading.LAST_ID):
        for entry_id, fields in page:
            texts = [text(part) for part in fields]
            yield {"id": text(entry_id), **dict(zip(texts[::2], texts[1::2], strict=True))}


def runs_of(server: Server, plan_digest: str) -> list[dict[str, str]]:
    """The ledger's entries of the starts of this very plan's runs, oldest first."""
    return [
        entry
        for entry in entries(server)
        if entry.get("event") == "start"
        and entry.get("plan_digest") == plan_digest
        and RUN_ID.fullmatch(entry.get("run_id", ""))
    ]
