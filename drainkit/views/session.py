"""What all notebooks share: tables, parameters checked, a connection, settings as understood.

A notebook opens its class with `globals()`: names that its parameters cell does not have are
refused, values are checked by settings, and the URL comes from the environment alone. What a
notebook leaves at None is as drainkit.toml and the environment say.
"""

from __future__ import annotations

import ast
import html
import json
import os
from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import pandas as pd
from IPython.display import Markdown
from pydantic import TypeAdapter, ValidationError

from .. import files, safe
from ..core.policy import ACTIONS, COLOURS, NAMES
from ..core.summary import RUN_ID, Summary
from ..draining.plan_files import PLAN, PlanFile
from ..draining.run import Run, resolve
from ..errors import UsageError
from ..operations.state import group_rows, known
from ..server.connection import Server
from ..settings import NOTEBOOK, Settings, load, shown

pd.set_option("display.html.use_mathjax", False)  # a plain frame's `$` is no formula either
SAMPLE_ROWS = 8
DEFAULT_URL_ENV = "DRAINKIT_REDIS_URL"
EXTRA = ("redis_url_env", "run_dir")
GROUP_COLUMNS = (
    "group", "position", "undelivered", "pending", "history", "lost", "lag reported", "consumers",
)  # fmt: skip
NUMBERS = ("integer", "floating", "mixed-integer-float")


class Table(pd.DataFrame):
    """A DataFrame that shows itself for a reader: text to the left, numbers with separators, and
    nothing where there is nothing. All of it is escaped, and each text one safe line."""

    def _repr_html_(self) -> str:
        named = not isinstance(self.index, pd.RangeIndex)
        frame = self.reset_index(names=str(self.index.name or "")) if named else self
        right = [pd.api.types.infer_dtype(frame[name]) in NUMBERS for name in frame]
        return str(macros().table([*frame], frame.itertuples(index=False), right))


@cache
def macros() -> Any:
    """The macros of views.html.j2, which escape whatever they are given."""
    from jinja2 import Environment, PackageLoader

    pages = Environment(loader=PackageLoader(__package__, ""), autoescape=True)
    return pages.get_template("views.html.j2").make_module({
        "untypeset": safe.UNTYPESET, "line": safe.one_line,
        "unescape": html.unescape, "share": safe.share, "names": NAMES, "colours": COLOURS,
    })  # fmt: skip


def markdown(text: str) -> Markdown:
    """Text as a notebook shows it."""
    return Markdown(text)  # type: ignore[no-untyped-call]


def listed(values: Mapping[str, Any], column: str, name: str) -> Table:
    """A table of one column, its rows by name."""
    return Table({column: values.values()}, index=pd.Index(values, name=name))


def cell(value: Any) -> Any:
    """A value of a group; whole numbers stay such, which a table sets to the right."""
    return value if type(value) is int else known(value)


def groups_frame(state: Mapping[str, Any]) -> Table:
    """The groups of a state (or of a baseline.json), one row each; what is unknown says so."""
    rows = [[cell(row[name]) for name in GROUP_COLUMNS] for row in group_rows(state)]
    return Table(pd.DataFrame(rows, columns=[*GROUP_COLUMNS]).set_index("group"))


def check_names(names: Mapping[str, Any], extra: Iterable[str] = ()) -> None:
    """Refuse a name that the notebook's parameters cell does not have: a misspelt one.

    What papermill injects stands in a cell of its own, which begins with "# Parameters".
    """
    known = every = {*NOTEBOOK, *EXTRA, *extra}
    given = set[str]()
    for source in map(str, names.get("In", [])):
        try:
            nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
        except SyntaxError:  # a cell of magics is not one of parameters
            continue
        stored = {node.id for node in nodes if isinstance(node.ctx, ast.Store)}
        if source.startswith("# Parameters"):
            given |= stored
        elif "redis_url_env" in stored:  # what stood there before it was run again counts no more
            given, known = stored, every & stored
    for name in given:
        if name not in known or name not in names:
            raise UsageError(f"{name}: no such parameter; check its spelling")


def checked(name: str, value: Any, kind: Any) -> Any:
    """A parameter of one notebook alone, as its kind; a quoted "5" or "false" is understood."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        why = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(f"{name} {why}") from None


class Session:
    """Checked parameters, a connection, and the run's folder where there is one."""

    mode: ClassVar[str] = "dry-run"
    extra: ClassVar[Mapping[str, tuple[Any, Any]]] = {}  # own parameters: kind and default
    is_of_run: ClassVar[bool] = True  # whether it is a step of a run
    adopts_plan: ClassVar[bool] = False  # whether the plan in run_dir says what the settings are
    summary: Summary | None = None  # of a dry run or a live drain
    given: dict[str, Any]  # the values of `extra`

    def __init__(
        self, settings: Settings, server: Server, run_dir: Path | None, planned: PlanFile | None
    ) -> None:
        self.settings, self.server = settings, server  # `planned`: the plan in run_dir
        self.run_dir, self.planned = run_dir, planned
        # the run whose folder this is, and its boundary; None: the notebook stands alone
        name = run_dir.name if run_dir else ""
        self.folder_run_id = name if RUN_ID.fullmatch(name) else None
        self.before = self.noted("baseline.json") if self.is_of_run else {}
        before = self.before if self.folder_run_id else {}
        self.boundary = str(before["stream"]["boundary_id"]) if before else None

    @classmethod
    def open(cls, names: Mapping[str, Any]) -> Self:
        """Open with a notebook's `globals()`; a plan that is followed is loaded once."""
        check_names(names, cls.extra)
        given = {name: names[name] for name in NOTEBOOK if names.get(name) is not None}
        variable = names.get("redis_url_env") or DEFAULT_URL_ENV
        if not isinstance(variable, str) or "://" in variable:
            raise UsageError("redis_url_env takes the name of a variable, never a URL")
        if variable != DEFAULT_URL_ENV:  # which is read in any case
            if not os.environ.get(variable):
                raise UsageError(f"the environment variable {variable} is not set; set it")
            given["redis_url"] = os.environ[variable]
        settings, planned = load({**given, "mode": cls.mode}), None
        run_dir = names.get("run_dir") or None
        if run_dir is not None and not (isinstance(run_dir, str) and Path(run_dir).is_dir()):
            raise UsageError(f"run_dir {run_dir} is not a folder; make it, or leave it out")
        folder = Path(run_dir) if run_dir else None
        is_named = cls.adopts_plan or RUN_ID.fullmatch(folder.name if folder else "")
        if cls.is_of_run and folder and is_named and (folder / PLAN).exists():
            planned = PlanFile.load(folder)
            settings = planned.plan.laid_under(settings) if cls.adopts_plan else settings
        own = {n: checked(n, names.get(n, d), kind) for n, (kind, d) in cls.extra.items()}
        session = cls(settings, Server.of(settings), folder, planned)
        session.given = own
        return session

    @cached_property
    def job(self) -> Run:
        """The run that a drain with these settings is; run id and boundary are the folder's."""
        run_id, boundary = self.folder_run_id, self.boundary
        return resolve(self.server, self.settings, run_id=run_id, boundary=boundary)

    def noted(self, name: str) -> dict[str, Any]:
        """What a JSON file of run_dir holds; empty where there is none."""
        path = self.run_dir and self.run_dir / name  # of any size: groups have many consumers
        found = json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else {}
        return found if isinstance(found, dict) else {}

    def write_summary(self, summary: Summary) -> None:
        """run.json, where there is a folder."""
        if self.run_dir is not None:
            files.write_json(self.run_dir / "run.json", summary.as_dict())

    def settings_table(self) -> Table:
        """The parameters as understood, without secrets."""
        values = {name: shown(name, getattr(self.settings, name)) for name in NOTEBOOK}
        values |= self._more_settings()
        rows = {name: safe.one_line(value) for name, value in values.items() if value}
        return listed(rows, "value", "parameter")

    def _more_settings(self) -> dict[str, str]:
        info = self.server.info
        found = {
            "server": f"{info.kind} {info.version} at {self.server.shown_url}",
            "run_dir": str(self.run_dir or "(none: nothing is written)"),
        }
        if self.is_of_run:  # the allowlist as read now, from a file or a set too
            found["allowlist"] = shown("allowlist", self.job.policy.allowlist)
            whose = "the run's" if self.boundary else "this notebook's own"
            found["boundary"] = f"{self.job.scope.boundary} ({whose})"
        return found

    def counts_table(self) -> Table:
        """Events by action, with shares."""
        counts = [getattr(self.summary, action) if self.summary else 0 for action in ACTIONS]
        shares = [safe.share(n, sum(counts)) for n in counts]
        return Table({"events": counts, "share": shares}, index=pd.Index(ACTIONS, name="action"))
