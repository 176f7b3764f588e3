"""report.html: one self-contained file without a script, that opens offline and reads on paper.

This module gathers what the folder's files hold; report.html.j2 says how it looks. Every text from
outside becomes one line without control characters and is escaped. Figures are the pictures (SVG)
that the executed notebooks hold of their own.
"""

from __future__ import annotations

import shlex
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from .. import files
from ..core.policy import ACTIONS, COLOURS, NAMES
from ..core.reconciliation import Recorded
from ..core.summary import approvers_words, entries_words
from ..core.verdicts import Json, group_of, verdicts
from ..draining.plan_files import PlanFile
from ..errors import DrainkitError
from ..evidence.seal import RUN_JSON, STATEMENT, SUMS, read_or
from ..late import pa
from ..operations.state import own_pending
from ..safe import one_line, share
from ..server.scopes import keeping_words
from .notebooks import NOTEBOOKS

VERDICTS = "verdicts.json"
PLOTLY, SVG = "application/vnd.plotly.v1+json", "image/svg+xml"  # a figure of ours is in both
MAX_TEXT = 900  # characters of any text from outside
MAX_FIGURES = 150_000  # characters of all figures; our own need a fifth of that


def build(folder: Path) -> str:
    """The report of a run's folder as HTML, from what is in the folder alone."""
    import jinja2
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        is_text = isinstance(value, str) and not isinstance(value, Markup)
        return one_line(value, MAX_TEXT) if is_text else "" if value is None else value

    def number(value: Any) -> str:
        known = f"{value:,}" if isinstance(value, int) else str(value)
        return "unknown" if value is None else known

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, finalize=shown,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(n=number, share=share)
    names = {"run": RUN_JSON, "plan": "plan.json", "before": "baseline.json", "after": "after.json"}
    told: dict[str, Any] = {key: read_or(folder / name, {}) for key, name in names.items()}
    figures, analysed = _figures(folder)
    # what lies beside the report; the last two come when the run is sealed
    beside = sorted({*(p.name for p in folder.iterdir() if p.is_file()), SUMS, STATEMENT})
    return environment.get_template("report.html.j2").render(
        **told, folder=folder.name, checks=read_or(folder / VERDICTS, []), figures=figures,
        analysed=analysed, beside=beside, actions=ACTIONS, meanings=NAMES, colours=COLOURS,
        group_of=group_of, own_pending=own_pending, quote=shlex.quote,
        entries_words=entries_words, approvers_words=approvers_words, keeping_words=keeping_words,
    )  # fmt: skip


def _figures(folder: Path) -> tuple[dict[str, list[Any]], Json]:
    """The pictures of each executed notebook, and what 01 noted of its moment."""
    from markupsafe import Markup

    found: dict[str, list[Any]] = {}
    left = MAX_FIGURES
    noted: Json = {}
    for name in NOTEBOOKS:
        cells = read_or(folder / f"{name}.ipynb", {}).get("cells", [])
        outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
        found[name] = []
        for data in outputs:
            picture = "".join(data.get(SVG, ""))  # a notebook may hold a text as its lines
            if PLOTLY in data and 0 < len(picture) <= left:
                left -= len(picture)
                found[name].append(Markup(picture))  # noqa: S704 - escaped when it was drawn
                noted = data[PLOTLY]["layout"].get("meta") or noted
    return found, noted


def write_verdicts(folder: Path) -> None:
    """Judge a run that 04 did not by what its folder holds; what that does not tell is unknown."""
    names = (RUN_JSON, "baseline.json", "after.json")
    run, before, after = (read_or(folder / name, {}) for name in names)
    planned = parts = None
    with suppress(DrainkitError, OSError):
        planned = PlanFile.load(folder)
        parts = partial(planned.blocks, ("id", "action"))
    recorded = Recorded(folder.name, str(run.get("boundary_id")), parts)
    known: Recorded | None = recorded
    try:
        with files.parquet_file(folder / "audit.parquet") as stored:
            for batch in stored.iter_batches(10_000):
                recorded.add(pa.Table.from_batches([batch]))
        # no server says which entries without a record are gone: as many as the run counted
        recorded.finish(lambda lacking: lacking[: int(run.get("vanished") or 0)])
    except (DrainkitError, OSError, ValueError):  # pyarrow's own errors are children of these
        known = None
    plan = {} if planned is None else planned.plan.to_json()
    found = verdicts(run, plan, before, after, known)
    files.write_json(folder / VERDICTS, [verdict._asdict() for verdict in found])
