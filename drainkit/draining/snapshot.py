"""What 01 of a run read, kept in the run's folder: 02 plans from it, and it goes.

The plan says what was seen, with the scope as it was then; 03 holds each entry against the server.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import msgspec

from .. import files
from ..core.events import Events
from ..core.frame import event_schema, record_batch
from ..core.plan import payload_hashes
from ..core.values import RawEntry
from ..server import reading
from ..server.scope import Scope
from .dry import Page
from .job import Job

NAME = "events.parquet"
_SCOPE, _SETTINGS = b"scope", b"settings"


@contextmanager
def keeping(
    job: Job, folder: Path | None
) -> Iterator[Callable[[Sequence[RawEntry], Events], None]]:
    """A function that keeps entries and their events, as many as the dry run takes.

    With `folder` None it keeps nothing.
    """
    import pyarrow as pa

    if folder is None:
        yield lambda *_: None
        return
    left = sys.maxsize if job.max_events is None else job.max_events
    seen = {_SCOPE: msgspec.json.encode(asdict(job.scope)), _SETTINGS: _settings(job)}
    schema = event_schema().append(pa.field("payload_sha256", pa.binary(32))).with_metadata(seen)
    with files.TableWriter(files.interim(folder, NAME), schema) as out:

        def keep(entries: Sequence[RawEntry], events: Events) -> None:
            nonlocal left
            if left:
                batch = record_batch(events.part(slice(left)))
                hashes = payload_hashes(entries[:left])
                out.write(pa.table([*batch.columns, hashes], schema=schema))
                left -= len(batch)

        yield keep


def kept(job: Job, folder: Path) -> tuple[Job, Iterator[Page] | None]:
    """The job with the scope that 01 saw, and what it read; as it is, and None, where it read
    nothing by these settings."""
    from pyarrow import parquet

    path = files.interim(folder, NAME)
    seen = parquet.read_schema(path).metadata if path.exists() else {}
    if seen.get(_SETTINGS) != _settings(job):
        return job, None
    scope = msgspec.json.decode(seen[_SCOPE], type=Scope)
    return replace(job, scope=scope), _pages(path)


def drop(folder: Path) -> None:
    """Remove what was kept, once it is used."""
    files.remove(files.interim(folder, NAME))


def _pages(path: Path) -> Iterator[Page]:
    import pyarrow as pa

    with files.parquet_file(path) as stored:
        for group in range(stored.num_row_groups):
            for batch in stored.read_row_group(group).to_batches(reading.PAGE_ENTRIES):
                events = Events.from_arrow(pa.Table.from_batches([batch]))
                yield Page(events, sha256=batch.column("payload_sha256"))


def _settings(job: Job) -> bytes:
    return job.settings.model_dump_json(exclude={"redis_url"}).encode()
