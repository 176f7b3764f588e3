"""What all notebooks share: parameters checked, a connection, the job."""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import pandas as pd

from ..core.summary import RUN_ID, new_run_id
from ..draining.job import prepare
from ..errors import UsageError
from ..safe import one_line
from ..server.connection import Server
from ..settings import Settings, load

PARAMETERS = (
    "stream", "consumer_group", "consumer_name", "audit_stream", "scope", "allowlist", "min_conf",
    "max_age_min", "throttle", "max_events", "as_of",
)  # fmt: skip
EXTRA = ("redis_url_env", "run_dir", "approve")


def check_names(names: Mapping[str, Any], extra: tuple[str, ...] = ()) -> None:
    """Refuse a name that no notebook knows, injected by papermill or typed: a misspelt one."""
    known = (*PARAMETERS, *EXTRA, *extra)
    for source in map(str, names.get("In", [])):
        if not source.startswith(("# Parameters", "redis_url_env =")):
            continue
        nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
        for name in (node.id for node in nodes if isinstance(node.ctx, ast.Store)):
            if name not in known or name not in names:
                raise UsageError(f"{one_line(name)}: no such parameter; check its spelling")


class Session:
    """Checked parameters, a connection, and the job that a drain with them would be."""

    mode = "dry-run"
    extra: ClassVar[tuple[str, ...]] = ()  # parameters of this notebook alone

    def __init__(self, settings: Settings, server: Server, run_dir: Path | None) -> None:
        self.settings = settings
        self.server = server
        self.run_dir = run_dir
        run_id = new_run_id(self.mode, server.now_us())
        if run_dir is not None and RUN_ID.fullmatch(run_dir.name):
            run_id = run_dir.name
        self.job = prepare(server, settings, run_id)

    @classmethod
    def open(cls, names: Mapping[str, Any]) -> Self:
        """Open with a notebook's `globals()`."""
        check_names(names, cls.extra)
        variable = names.get("redis_url_env") or "DRAINKIT_REDIS_URL"
        if not isinstance(variable, str) or "://" in variable:
            raise UsageError("redis_url_env takes the name of a variable, never a URL")
        url = os.environ.get(variable)
        if not url:
            raise UsageError(f"the environment variable {one_line(variable)} is not set; set it")
        given = {name: names[name] for name in PARAMETERS if names.get(name) is not None}
        settings = load({**given, "mode": cls.mode, "redis_url": url})
        run_dir = names.get("run_dir") or None
        if run_dir is not None and not (isinstance(run_dir, str) and Path(run_dir).is_dir()):
            raise UsageError(
                f"run_dir {one_line(str(run_dir))} is no folder; make it, or leave it out"
            )
        server = Server.of(settings)
        return cls(settings, server, Path(run_dir) if run_dir else None)

    def settings_table(self) -> pd.DataFrame:
        """The parameters as understood, without secrets."""
        values = {name: getattr(self.settings, name) for name in PARAMETERS}
        values["throttle"] = self.settings.throttle or "none"
        values["max_events"] = self.settings.max_events or "all"
        values["allowlist"] = "any symbol" if self.job.policy.allowlist is None else ", ".join(
            sorted(self.job.policy.allowlist)
        )  # fmt: skip
        info = self.server.info
        values["server"] = f"{info.kind} {info.version} at {self.server.shown_url}"
        values["run_dir"] = str(self.run_dir or "(none: nothing is written)")
        rows = {name: one_line(str(value)) for name, value in values.items() if value is not None}
        return pd.DataFrame({"value": rows.values()}, index=pd.Index(rows, name="parameter"))

    def now_us(self) -> int:
        """The moment that ages are measured against: as_of, or the server's now."""
        as_of = self.settings.as_of_us
        return self.server.now_us() if as_of is None else as_of

    def files(self) -> pd.DataFrame:
        """What this run has written so far."""
        paths = sorted(self.run_dir.iterdir()) if self.run_dir else []
        sizes = {one_line(path.name): path.stat().st_size for path in paths if path.is_file()}
        return pd.DataFrame({"bytes": sizes.values()}, index=pd.Index(sizes, name="file"))
