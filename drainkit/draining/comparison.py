"""Two runs side by side: the settings that differ, and the events that met another fate."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import filterfalse
from os.path import commonprefix
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
    """What differs, JSON-ready: settings, fates of the events in both, and events in one only."""
    sides = {"a": a, "b": b}
    both = [entry for entry in a.fates if entry in b.fates]
    others: dict[tuple[str, str], list[str]] = {}
    for entry in both:
        if a.fates[entry] != b.fates[entry]:
            others.setdefault((a.fates[entry], b.fates[entry]), []).append(entry)
    found: dict[str, Any] = {
        name: {"path": one.path, "run_id": one.run_id, "source": one.source,
               "events": len(one.fates)}
        for name, one in sides.items()
    }  # fmt: skip
    found["settings"] = [
        {"name": name, "a": a.settings.get(name), "b": b.settings.get(name)}
        for name in {**a.settings, **b.settings}
        if a.settings.get(name) != b.settings.get(name)
    ]
    found |= {"in_both": len(both), "same_fate": len(both) - sum(map(len, others.values()))}
    found["other_fate"] = [
        {"a": before, "b": after, "events": len(ids), "first_id": ids[0]}
        for (before, after), ids in sorted(others.items())
    ]
    for name, one in sides.items():
        ids = [*filterfalse(set(both).__contains__, one.fates)]
        found[f"only_in_{name}"] = {
            "events": len(ids), "first_id": ids[0] if ids else None,
            "by_action": dict(sorted(Counter(map(one.fates.__getitem__, ids)).items())),
        }  # fmt: skip
    return found


_SOURCES = {"planned": "as a dry run planned it", "outcome": "as the live run's audit has it"}


def as_text(found: Mapping[str, Any]) -> str:
    """What differs, for a terminal."""
    lines = [
        f"{name.upper()}: {found[name]['path']}, run {found[name]['run_id']}: "
        f"{found[name]['events']:,} events, {_SOURCES[found[name]['source']]}"
        for name in ("a", "b")
    ]
    lines.append("Settings that differ:" if found["settings"] else "No setting differs.")
    lines += [f"  {row['name']}: {_difference(row['a'], row['b'])}" for row in found["settings"]]
    others = found["in_both"] - found["same_fate"]
    lines.append(f"Of {found['in_both']:,} events in both, {found['same_fate']:,} met the same "
                 f"fate, {others:,} another.")  # fmt: skip
    lines += [f"  {row['a']} -> {row['b']}: {row['events']:,}, first {row['first_id']}"
              for row in found["other_fate"]]  # fmt: skip
    for name in ("a", "b"):
        if (only := found[f"only_in_{name}"])["events"]:
            by = ", ".join(f"{n:,} {action}" for action, n in only["by_action"].items())
            lines.append(f"Only in {name.upper()}: {only['events']:,} ({by}), first "
                         f"{only['first_id']}")  # fmt: skip
    return "\n".join(one_line(line, 10_000) for line in lines)


def _difference(a: Any, b: Any) -> str:
    if isinstance(a, list) and isinstance(b, list):
        more, less = sorted(set(b) - set(a)), sorted(set(a) - set(b))
        if more or less:
            return f"B has {some(more)} besides, and not {some(less)}"
        a, b = ", ".join(map(str, a)), ", ".join(map(str, b))
    texts = ["none" if value is None else str(value) for value in (a, b)]
    # what both begin with is left out where it would push the difference out of sight
    start = max(0, len(commonprefix(texts)) - 40)  # noqa: RUF071 (texts, not paths)
    return " | ".join("..." * bool(start) + one_line(text[start:], 100) for text in texts)
