"""The dry run: decides without a trace, makes the plan, and says what holds a live one back.

In a run's folder 01 keeps what it read: 02 plans from that, with the scope as it was then, and it
goes. The plan says what was seen, and 03 holds each entry against the server.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from .. import files
from ..core import plan as plans
from ..core.events import Decoder, Events
from ..core.frame import event_schema, record_batch
from ..core.plan import Plan, payload_hashes
from ..core.policy import ACTIONS, Decisions, Policy, decide
from ..core.summary import Summary
from ..core.values import INVALID_REASONS, iso
from ..errors import RefusedError, UsageError
from ..ids import next_id
from ..late import collection_paused, pa
from ..safe import text
from ..server import reading, scopes
from ..server.connection import Server
from ..server.counting import count
from ..server.keys import Scope
from ..server.scopes import Seen
from ..settings import Limits, Settings
from .plan_files import PlanFile, decisions_path
from .run import Progress, Run, check

KEPT = "events.parquet"
MANY_UNREADABLE = 20  # events; fewer of them bury nothing
_SCOPE, _SETTINGS = b"scope", b"settings"
_SAME = ("stream", "consumer_group", "consumer_name", "throttle", "max_events", "until", "from_",
         "min_idle_min", "history_group")  # fmt: skip


def plan_run(
    run: Run,
    path: Path | None,
    *,
    pages: Iterable[Page] | None = None,
    on_table: Callable[[pa.Table], None] | None = None,
    on_progress: Progress | None = None,
) -> tuple[Summary, Plan]:
    """A dry run and its plan, saved at `path` (None: nowhere) with its decisions as they come.

    `pages`: the entries, where they were read already. `on_table` gets each page's decisions too
    (plan.COLUMNS).
    """
    if path is not None and path.exists() and not path.is_file():  # before the decisions are there
        raise UsageError(f"--plan {path} is no plain file; name one to write to")
    beside, tally = path and decisions_path(path), plans.Tally()
    takers = [tally.add, *([on_table] if on_table else [])]

    def keep(page: Page, decided: Decisions) -> None:
        table = plans.decisions_table(page[1](), page[0], decided, run.policy)
        for take in takers:
            take(table)

    with ExitStack() as stack:
        if beside is not None:
            out = files.table_writer(beside, plans.decisions_schema())
            takers.append(stack.enter_context(out))
        summary = dry_run(run, pages=pages, on_page=keep, on_progress=on_progress)
    settings, scope = run.settings, run.scope
    plan = plans.seal(Plan(
        version=plans.VERSION, run_id=run.run_id, created_at=summary.started_at, scope=scope.name,
        position=scope.group_position, boundary_id=scope.boundary, policy=run.policy.as_dict(),
        history_position=scope.position if scope.name == "history" else None,
        as_of=None if settings.as_of_us is None else iso(settings.as_of_us),
        from_consumer=list(settings.from_consumer), audit_stream=text(run.server.keys.audit),
        environment=settings.env, server=summary.server or "", fields=settings.fields.as_dict(),
        decisions_sha256=files.file_sha256(beside, sys.maxsize) if beside else "",
        **{name: getattr(settings, name) for name in _SAME}, **tally.said(),
    ))  # fmt: skip
    if path is not None:
        files.write_json(path, plan.to_json())
        summary.plan_path, summary.plan_digest = str(path), plan.digest
    return summary, plan


def turn_times_us(first: int, n: int, *, start_us: int, settings: Settings) -> np.ndarray:
    """When the throttled live run would decide events `first` to `first + n` (int64, us)."""
    if settings.as_of_us is not None:
        return np.full(n, settings.as_of_us, dtype=np.int64)
    turns = np.arange(first, first + n, dtype=np.float64) * 1e6 / (settings.throttle or np.inf)
    return start_us + turns.astype(np.int64)


#: Events of a dry run, and what gives the hashes of their entries' payloads.
Page = tuple[Events, Callable[[], "pa.Array"]]


@collection_paused()
def dry_run(
    run: Run,
    *,
    pages: Iterable[Page] | None = None,
    on_page: Callable[[Page, Decisions], None] | None = None,
    on_progress: Progress | None = None,
) -> Summary:
    """Decide every entry of the scope as the live run would; writes nothing.

    `pages`: the same entries, where they were read already.
    """
    summary, start_us = run.begin(), run.server.clock_us()
    invalid, symbols = np.zeros(len(INVALID_REASONS), np.int64), set[str]()
    for page in _read_pages(run) if pages is None else pages:
        events, first = page[0], summary.total_read
        times = turn_times_us(first, len(events), start_us=start_us, settings=run.settings)
        decisions = decide(events, run.policy, times)
        summary.count(decisions)
        symbols |= events.symbols_here()
        invalid += np.bincount(events.invalid, minlength=len(INVALID_REASONS))
        if on_page:
            on_page(page, decisions)
        if on_progress:
            on_progress(summary)
        del page, events  # or two pages would be in memory
    summary.unreadable = {INVALID_REASONS[i]: int(invalid[i]) for i in np.flatnonzero(invalid) if i}
    summary.notes = plans.allowlist_notes(run.policy.allowlist, symbols) or None
    return run.close()


def _read_pages(run: Run) -> Iterator[Page]:
    decoder, left = Decoder(run.settings.fields), run.max_events or sys.maxsize
    for page in scopes.scope_entries(run.server, run.scope):
        entries = page[:left]
        yield decoder.decode(entries), partial(payload_hashes, entries)
        left -= len(entries)
        if not left:
            return


# ---------------------------------------------------------------- what 01 reads, for 02


def look(run: Run, at_us: int, folder: Path | None) -> Iterator[tuple[Events, Decisions]]:
    """The scope's events as decided at one moment.

    In a run's `folder` as many as the dry run takes are kept for it.
    """
    decoder, left = Decoder(run.settings.fields), run.max_events or sys.maxsize
    seen = {_SCOPE: msgspec.json.encode(asdict(run.scope)), _SETTINGS: _settings(run)}
    schema = event_schema().append(pa.field("payload_sha256", pa.binary(32))).with_metadata(seen)
    with ExitStack() as stack:
        if folder is not None:
            write = stack.enter_context(files.table_writer(files.interim(folder, KEPT), schema))
        for page in scopes.scope_entries(run.server, run.scope):
            events = decoder.decode(page)
            if folder is not None and left:
                batch = record_batch(events.part(slice(left)))
                columns = [*batch.columns, payload_hashes(page[:left])]
                write(pa.table(columns, schema=schema))
                left -= len(batch)
                del batch, columns
            del page  # or two pages would be in memory
            yield events, decide(events, run.policy, at_us)


def kept(run: Run, folder: Path) -> Iterator[Page] | None:
    """What 01 read, with its scope from now on the run's; None where it read by other settings.

    It goes with its last page, or at once.
    """
    from pyarrow import parquet

    path = files.interim(folder, KEPT)
    seen = parquet.read_schema(path).metadata if path.exists() else {}
    if seen.get(_SETTINGS) != _settings(run):
        files.remove(path)
        return None
    run.scope = msgspec.json.decode(seen[_SCOPE], type=Scope)

    def pages() -> Iterator[Page]:
        with files.parquet_file(path) as stored:
            for group in range(stored.num_row_groups):
                for batch in stored.read_row_group(group).to_batches(reading.PAGE_ENTRIES):
                    events = Events.from_arrow(pa.Table.from_batches([batch]))
                    yield events, partial(batch.column, "payload_sha256")
        files.remove(path)

    return pages()


def _settings(run: Run) -> bytes:
    return run.settings.model_dump_json(exclude={"redis_url"}).encode()


# ---------------------------------------------------------------- what holds a live drain back


def nothing_to_do(settings: Settings, over: int) -> str | None:
    """Why a scheduled run has nothing to do; None where its scope holds more than `over` entries.

    A live run needs every limit in drainkit.toml.
    """
    missing = [name for name, value in settings.limits if value is None]
    if missing and settings.mode == "live":
        raise RefusedError(
            f"an unattended live run needs [limits] in drainkit.toml; add {', '.join(missing)}"
        )
    with Server.of(settings) as server:
        left = scopes.left(server, scopes.open_scope(server, settings)).fresh
    return None if left > over else f"nothing to do: the backlog of {left:,} is not over {over:,}"


def check_limits(limits: Limits, counts: Mapping[str, int], *, drift: int = 0) -> None:
    """Refuse a plan that goes beyond the limits; `counts` are its events by action."""
    total, passed = sum(counts.get(action, 0) for action in ACTIONS), counts.get("drained_ok", 0)
    values = {"max_events": total, "max_drained_ok": passed, "max_drift": drift}
    for name, limit in limits:
        if limit is not None and values[name] > limit:
            raise RefusedError(
                f"beyond the limits of drainkit.toml: {name} is {limit:,}, this run would be "
                f"{values[name]:,}; nothing was drained"
            )


def check_readable(settings: Settings, entries: int, unreadable: Mapping[str, int]) -> None:
    """Refuse to drain what is mostly not understood: a wrong mapping would bury the backlog.

    `unreadable` are the events by what is wrong with them, whichever filter drops them first.
    """
    odd = sum(unreadable.values())
    if odd < MANY_UNREADABLE or odd * 5 <= entries or settings.allow_invalid:
        return
    reasons = ", ".join(f"{reason} ({n:,})" for reason, n in unreadable.items())
    raise RefusedError(
        f"{odd:,} of {entries:,} events cannot be read: {reasons}; drainkit fields shows what "
        "would help; --allow-invalid acknowledges them all the same"
    )


def check_run(run: Run) -> Seen | None:
    """What holds back a live drain that no person was asked about.

    Returns what `check` found, unless a long look over the backlog came after it.
    """
    settings, seen = run.settings, check(run)  # what would be refused is refused before that look
    if run.planned is not None:
        check_planned(run.server, settings, run.planned)
        return None
    if all(value is None for _, value in settings.limits):
        few = min(seen.info.length, run.max_events or sys.maxsize)
        scope = scopes.current(run.server, run.scope, seen)
        if few >= MANY_UNREADABLE and scope.name == "undelivered" and not seen.has_own:
            first, most = next_id(scope.position), MANY_UNREADABLE - 1
            few, is_all = count(run.server, seen.info, first, scope.boundary, most=most)
            run.opening = (scope.position, few) if is_all else None  # counted for good
        if few < MANY_UNREADABLE or settings.allow_invalid:  # too few could hold it back
            return seen
    found = dry_run(run.rehearsal())
    check_readable(settings, found.total_read, found.unreadable)
    check_limits(settings.limits, vars(found))
    return None


def check_planned(server: Server, settings: Settings, planned: PlanFile) -> None:
    """What holds back a live drain of a plan that no person was asked about."""
    plan = planned.plan
    check_readable(settings, plan.total_read, plan.unreadable)
    policy = Policy(float(plan.policy["max_age_min"]), None, 0)
    drift, first, now_us = 0, 0, server.now_us()
    for block in planned.blocks(("event_time", "action")):
        # too old at their turns, and not as planned
        turns = turn_times_us(first, len(block), start_us=now_us, settings=settings)
        times = block["event_time"].cast(pa.int64()).fill_null(sys.maxsize).to_numpy()
        is_drift = turns - times > policy.max_age_us
        is_drift &= ~np.isin(block["action"].to_numpy(), ("dropped_old", "dropped_missing"))
        drift, first = drift + int(is_drift.sum()), first + len(block)
    check_limits(settings.limits, plan.counts, drift=drift)
