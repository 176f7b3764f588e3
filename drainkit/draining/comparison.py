"""Two runs side by side: the settings that differ, and the events that met another fate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import files
from ..core.plan import some
from ..errors import RefusedError, UsageError
from ..safe import one_line
from .plan_files import PlanFile

AUDIT, RUN = "audit.parquet", "run.json"
# what names a plan or follows from its events; all the rest decided what became of them
_NOT_SETTINGS = {
    "version", "run_id", "created_at", "counts", "unreadable", "total_read", "first_id", "last_id",
    "decisions_sha256", "digest",
}  # fmt: skip
_SOURCES = {"planned": "as a dry run planned it", "outcome": "as the live run's audit has it"}


@dataclass(frozen=True)
class Side:
    """One of the two runs, and what became of each event."""

    path: str
    run_id: str
    source: str  # "planned": the decisions of a dry run; "outcome": the audit of a live run
    settings: Mapping[str, Any]  # of its plan, by dotted name
    fates: Mapping[str, str]  # action by entry id


def read_side(path: Path) -> Side:
    """A plan file, or an evidence folder: of a live run what happened, else what was planned.

    Raises UsageError for what is neither, RefusedError for a plan that was edited and for a live
    run without a readable audit.
    """
    planned = PlanFile.load(path)
    said = planned.plan.to_json()
    settings = {name: value for name, value in said.items() if name not in _NOT_SETTINGS}
    settings |= {f"policy.{name}": value for name, value in settings.pop("policy").items()}
    run: Any = {}
    if path.is_dir() and (path / RUN).exists():  # drain makes a plan in a folder without it
        try:
            run = json.loads((path / RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            raise UsageError(f"{path / RUN} cannot be read; name an evidence folder") from None
    run_id, source, names = planned.plan.run_id, "planned", ["id", "action"]
    if not isinstance(run, dict) or run.get("mode") != "live":
        table = planned.table(names)
    else:
        run_id, source, names = str(run.get("run_id")), "outcome", ["original_id", "action"]
        try:
            with files.parquet_file(path / AUDIT) as stored:
                table = stored.read(columns=names)
        except (OSError, ValueError, KeyError, NotImplementedError):
            raise RefusedError(
                f"{path / AUDIT} of a live run cannot be read; drainkit run --close completes it"
            ) from None
    ids, actions = (map(str, table[name].to_pylist()) for name in names)
    return Side(str(path), run_id, source, settings, dict(zip(ids, actions, strict=True)))


def compare(a: Side, b: Side) -> dict[str, Any]:
    """What differs, JSON-ready: settings, and other fates of events; null: in one run only."""
    met: dict[tuple[Any, Any], list[str]] = {}  # events by their two fates
    for entry in {**a.fates, **b.fates}:
        met.setdefault((a.fates.get(entry), b.fates.get(entry)), []).append(entry)
    settings = {name: (a.settings.get(name), b.settings.get(name))
                for name in {**a.settings, **b.settings}}  # fmt: skip
    return {
        **{name: {"path": one.path, "run_id": one.run_id, "source": one.source,
                  "events": len(one.fates)} for name, one in (("a", a), ("b", b))},
        "settings": [{"name": name, "a": one, "b": other}
                     for name, (one, other) in settings.items() if one != other],
        "in_both": sum(len(ids) for fates, ids in met.items() if None not in fates),
        "same_fate": sum(len(ids) for (one, other), ids in met.items() if one == other),
        "other_fate": [{"a": one, "b": other, "events": len(ids), "first_id": ids[0]}
                       for (one, other), ids in met.items() if one != other],
    }  # fmt: skip


def as_text(found: Mapping[str, Any]) -> str:
    """What differs, for a terminal."""
    lines = [
        f"{name.upper()}: {found[name]['path']}, run {found[name]['run_id']}: "
        f"{found[name]['events']:,} events, {_SOURCES[found[name]['source']]}"
        for name in ("a", "b")
    ]
    lines.append("Settings that differ:" if found["settings"] else "No setting differs.")
    lines += [f"  {row['name']}: {_difference(row['a'], row['b'])}" for row in found["settings"]]
    lines.append(f"Of {found['in_both']:,} events in both, {found['same_fate']:,} met the same "
                 f"fate, {found['in_both'] - found['same_fate']:,} another.")  # fmt: skip
    lines += [f"  {row['a'] or 'not in A'} -> {row['b'] or 'not in B'}: {row['events']:,}, first "
              f"{row['first_id']}" for row in found["other_fate"]]  # fmt: skip
    return "\n".join(one_line(line, 10_000) for line in lines)


def _difference(a: Any, b: Any) -> str:
    if isinstance(a, list) and isinstance(b, list) and {*a} != {*b}:
        more, less = some(sorted({*b} - {*a})), some(sorted({*a} - {*b}))
        return f"B has {more} besides, and not {less}"
    texts = (", ".join(map(str, one)) if isinstance(one, list) else str(one) for one in (a, b))
    return " | ".join("none" if text == "None" else text for text in texts)
