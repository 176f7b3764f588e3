"""Plan files: plan.json and, beside it, the decisions and the approvals; two of them compared."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

from ..core.plan import COLUMNS, Plan, Tally, allowlist_notes, decisions_schema, from_json, some
from ..errors import RefusedError, UsageError
from ..files import CHUNK, parquet_file, write_bytes, write_chunks, write_json
from ..late import give_back_freed, pa
from ..safe import one_line
from ..settings import Settings
from ..settings.kinds import os_user
from ..signing import load_signatures, required_approvals, signatures_path

PLAN, DECISIONS = "plan.json", "decisions.parquet"


def decisions_path(plan_path: Path) -> Path:
    """Beside plan.json decisions.parquet, beside X.json X.decisions.parquet."""
    name = DECISIONS if plan_path.name == PLAN else f"{plan_path.stem}.{DECISIONS}"
    return plan_path.with_name(name)


@dataclass(frozen=True)
class PlanFile:
    """A plan with its decisions and approvals; the decisions are read as they are asked for.

    They are the bytes that the digest stands for, and say what the plan says of them, or it is
    refused; so is a file that changes while it is read.
    """

    plan: Plan
    _path: Path
    _decisions: Path
    _seen: tuple[int, ...]  # what tells the file of decisions from any other, and from a later one

    @classmethod
    def load(cls, path: Path) -> PlanFile:
        """A plan, by its file or its evidence folder; refuses one that was edited."""
        path = path / PLAN if path.is_dir() else path
        beside = decisions_path(path)
        try:
            if not path.is_file():
                raise FileNotFoundError(0, "there is no such file")
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise UsageError(f"{path}: {reason}; name a plan or an evidence folder here") from None
        tally = Tally()
        with _opened(beside) as file:
            plan = from_json(text, path.name)
            found = cls(plan, path, beside, _mark(file))
            if hashlib.file_digest(file, "sha256").hexdigest() != plan.decisions_sha256:
                found._refuse()
            for block in found.blocks(("id", "action", "invalid")):
                tally.add(block)
            tally.check(plan)
        give_back_freed()
        return found

    @classmethod
    def of_run(cls, settings: Settings) -> tuple[Settings, PlanFile | None]:
        """The plan that a live run was told to apply, and the settings with what it gives."""
        if settings.plan is None or settings.mode != "live":
            return settings, None
        planned = cls.load(settings.plan)
        return planned.plan.laid_under(settings), planned

    @cached_property
    def signatures(self) -> bytes:
        """The approvals beside it; empty without any."""
        return load_signatures(self._path)

    def blocks(self, columns: Sequence[str] = COLUMNS) -> Iterator[pa.Table]:
        """Some columns of the decisions, a row group at a time."""
        from pyarrow import parquet

        with _opened(self._decisions) as file:
            # reading ahead takes 45 MB, and more the longer it goes on
            stored = parquet.ParquetFile(file, pre_buffer=False)
            if not stored.schema_arrow.equals(decisions_schema()):
                raise RefusedError(f"{self._decisions.name} has columns of other types")
            for group in range(stored.num_row_groups):
                block = stored.read_row_group(group, columns=list(columns))
                if _mark(file) != self._seen:
                    self._refuse()
                yield block.select(columns)

    def table(self, columns: Sequence[str] = COLUMNS) -> pa.Table:
        """All rows of some columns."""
        schema = pa.schema([decisions_schema().field(name) for name in columns])
        return pa.concat_tables([schema.empty_table(), *self.blocks(columns)])

    def notes(self) -> list[str]:
        """What looks like a slip of the pen in its allowlist."""
        columns = (block["symbol"] for block in self.blocks(("symbol",)))
        symbols = {symbol for column in columns for symbol in column.unique().to_pylist()} - {None}
        return allowlist_notes(self.plan.policy["allowlist"], symbols)

    def approvers(self, settings: Settings) -> dict[str, str]:
        """Who approved the plan, with their keys; empty where nobody has to.

        Raises RefusedError if the settings ask for approvals and they are too few.
        """
        if (wanted := settings.approval) is None:
            return {}
        return required_approvals(
            self.plan.digest, self.signatures, wanted.allowed_signers, wanted.required,
            own={settings.operator, os_user()},
        )  # fmt: skip

    def copy_to(self, folder: Path) -> None:
        """The same plan, to the byte, as that of an evidence folder."""
        with _opened(self._decisions) as file:
            write_chunks(folder / DECISIONS, iter(partial(file.read, CHUNK), b""))
        write_json(folder / PLAN, self.plan.to_json())
        if self.signatures:
            write_bytes(signatures_path(folder), self.signatures)

    def _refuse(self) -> NoReturn:
        raise RefusedError(f"{self._decisions.name} does not fit the plan's digest: it was edited")


def _mark(file: BufferedReader) -> tuple[int, ...]:
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    """The file of decisions, its errors told in one line."""
    try:
        if not path.is_file():
            raise FileNotFoundError
        with path.open("rb") as file:
            yield file
    except (OSError, ValueError, NotImplementedError):  # what pyarrow raises is one of these
        raise RefusedError(
            f"the plan's decisions, {path.name}, cannot be read: send both files"
        ) from None


# ---------------------------------------------------------------- two runs side by side

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

    about: Mapping[str, Any]  # path, run_id, number of events, and the source of their fates:
    # "planned", the decisions of a dry run, or "outcome", the audit of a live run
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
            with parquet_file(path / AUDIT) as stored:
                table = stored.read(columns=names)
        except (OSError, ValueError, KeyError, NotImplementedError):
            raise RefusedError(
                f"{path / AUDIT} of a live run cannot be read; drainkit run --close completes it"
            ) from None
    ids, actions = (map(str, table[name].to_pylist()) for name in names)
    fates = dict(zip(ids, actions, strict=True))
    about = {"path": str(path), "run_id": run_id, "source": source, "events": len(fates)}
    return Side(about, settings, fates)


def compare(a: Side, b: Side) -> dict[str, Any]:
    """What differs, JSON-ready: settings, and other fates of events; null: in one run only."""
    met: dict[tuple[Any, Any], list[str]] = {}  # events by their two fates
    for entry in {**a.fates, **b.fates}:
        met.setdefault((a.fates.get(entry), b.fates.get(entry)), []).append(entry)
    settings = {name: (a.settings.get(name), b.settings.get(name))
                for name in {**a.settings, **b.settings}}  # fmt: skip
    return {
        "a": a.about,
        "b": b.about,
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
