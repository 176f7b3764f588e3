"""What 01 read, handed on to 02 through the run's folder, so that it need not be read again.

02 takes it only if the scope is where it was and the stream still has all that it had when 01 began
to read; else it reads by itself. The file goes before the folder is sealed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from .. import files
from ..core.events import Events
from ..core.frame import event_schema, record_batch
from ..core.plan import payload_hashes
from ..core.values import RawEntry
from ..server import reading, recorded, scopes
from ..server.connection import Server
from ..server.reading import StreamInfo
from .dry import Page
from .job import Job

NAME = "read.parquet"
_PROOF = b"proof"


class Handover:
    """Writes the first entries of the scope, as many as the dry run takes; a context manager.

    With `folder` None, or where they could not be taken anyway, it writes nothing.
    """

    def __init__(self, server: Server, job: Job, folder: Path | None) -> None:
        self._out: files.TableWriter | None = None
        self._left = job.max_events
        self._open = ExitStack()
        proof = None if folder is None else _proof(server, job)
        if folder is not None and proof is not None:
            schema = _schema().with_metadata({_PROOF: json.dumps(proof).encode()})
            self._out = files.TableWriter(files.interim(folder, NAME), schema)

    def __enter__(self) -> Self:
        if self._out is not None:
            self._open.enter_context(self._out)
        return self

    def __exit__(self, *failure: Any) -> None:
        self._open.__exit__(*failure)

    def add(self, entries: Sequence[RawEntry], events: Events) -> None:
        """The next entries, and the same decoded."""
        import pyarrow as pa

        if self._out is None or self._left == 0:
            return
        n = len(entries) if self._left is None else min(self._left, len(entries))
        self._left = None if self._left is None else self._left - n
        table = pa.Table.from_batches([record_batch(events).slice(0, n)])
        hashes = payload_hashes(entries[:n])
        self._out.write(table.append_column("payload_sha256", hashes).cast(_schema()))


def handed_on(server: Server, job: Job, folder: Path) -> Iterator[Page] | None:
    """What 01 left in the folder, a row group at a time; None if it is not there, or not proven."""
    from pyarrow import parquet

    path = files.interim(folder, NAME)
    try:
        proof = parquet.read_schema(path).metadata[_PROOF]
        if not _holds(json.loads(proof), _proof(server, job)):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return _pages(path)


def drop(folder: Path) -> None:
    """Remove what was handed on, once it is used."""
    files.remove(files.interim(folder, NAME))


def _pages(path: Path) -> Iterator[Page]:
    import pyarrow as pa

    with files.parquet_file(path) as stored:
        for group in range(stored.num_row_groups):
            for batch in stored.read_row_group(group).to_batches(reading.PAGE_ENTRIES):
                table = pa.Table.from_batches([batch])
                yield Page(Events.from_arrow(table), sha256=batch.column("payload_sha256"))


def _schema() -> Any:
    import pyarrow as pa

    return event_schema().append(pa.field("payload_sha256", pa.binary(32)))


def _proof(server: Server, job: Job) -> dict[str, Any] | None:
    """What must hold still when the entries are taken; None where it cannot be told so easily."""
    scope = job.scope
    if scope.name == "pending" or any(scopes.own_ids(server, scope)):
        return None
    return {
        "stream": asdict(reading.stream_info(server)),
        "server": server.info.replid,
        "scope": json.loads(json.dumps(asdict(scope))),
        "recorded": recorded.token(server),
        "fields": job.settings.fields.as_dict(),
        "max_events": job.max_events,
    }


def _holds(then: dict[str, Any], now: dict[str, Any] | None) -> bool:
    if now is None:
        return False
    before, after = StreamInfo(**then.pop("stream")), StreamInfo(**now.pop("stream"))
    return then == now and after.has_all_of(before)
