"""verdicts.json of a run whose 04 left none, from the files of its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import files
from ..core.verdicts import Json, Recorded, verdicts
from ..draining.plan_files import PlanFile
from ..errors import DrainkitError
from ..evidence.statement import RUN_JSON, read_json

VERDICTS = "verdicts.json"


def read(path: Path) -> Any:
    """A JSON file of the folder; an empty object where it cannot be read."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def write_verdicts(folder: Path) -> None:
    """Judge the run by what its folder holds; what that does not tell is unknown."""
    run, before, after = (read(folder / n) for n in (RUN_JSON, "baseline.json", "after.json"))
    try:
        planned = PlanFile.load(folder)
    except (DrainkitError, OSError):
        planned = None
    plan = {} if planned is None else planned.plan.to_json()
    found = verdicts(run, plan, before, after, _recorded(folder, run, planned))
    files.write_json(folder / VERDICTS, [verdict._asdict() for verdict in found])


def _recorded(folder: Path, run: Json, planned: PlanFile | None) -> Recorded | None:
    import pyarrow as pa

    parts = None if planned is None else lambda: planned.blocks(("id", "action"))
    recorded = Recorded(folder.name, str(run.get("boundary_id")), parts)
    try:
        with files.parquet_file(folder / "audit.parquet") as stored:
            for batch in stored.iter_batches(10_000):
                recorded.add(pa.Table.from_batches([batch]))
        # no server says which entries without a record are gone: as many as the run counted
        recorded.finish(lambda lacking: lacking[: int(run.get("vanished") or 0)])
    except (DrainkitError, OSError, ValueError):  # pyarrow's own errors are children of these
        return None
    return recorded
