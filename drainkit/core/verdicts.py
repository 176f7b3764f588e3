"""The checks of a run as data: each claim of a safe drain, its verdict, and what that rests on.

They are computed once; notebook 04, verdicts.json and the report show them. What neither the server
nor the files tell is "unknown", never a pass.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..ids import is_id
from ..safe import one_line
from .policy import ACTIONS
from .reconciliation import Recorded, reconcile
from .summary import amount

YES, NO, EXPLAINED, UNKNOWN = "yes", "no", "explained", "unknown"
AUDITED = "Each read entry was audited once"
PENDING = "Pending has not grown"
OTHERS = "Other groups were not touched"
BOUNDARY = "Nothing after the boundary was touched"
BOOKS = {AUDITED, PENDING, OTHERS, BOUNDARY}  # books with a "no" at one of these do not balance
_THROTTLE = "The throttle was kept"
_NO_ORDER = (
    "drainkit speaks to Redis only and has no exchange client; statement.json lists what was "
    "installed beside it."
)
Json = Mapping[str, Any]
Told = tuple[str, str]  # verdict, because


class Verdict(NamedTuple):
    """One claim of a safe drain, as verdicts.json has it."""

    claim: str
    verdict: str  # YES, NO, EXPLAINED, UNKNOWN
    because: str


def left_of(run: Json, plan: Json, recorded: Recorded | None) -> int:
    """How many entries of the plan have no record yet, by whichever of its runs."""
    if not plan or recorded is None:
        return 0
    vanished = max(recorded.vanished, int(run.get("vanished") or 0))
    done = recorded.counts.total() + recorded.earlier
    return max(0, int(plan["total_read"]) - done - vanished)


def group_of(state: Json, name: object) -> Json:
    """One group of baseline.json or after.json; empty where it is not there."""
    return next((g for g in state.get("groups", ()) if g.get("name") == name), {})


def verdicts(
    run: Json, plan: Json, before: Json, after: Json, recorded: Recorded | None, *,
    consumer: str = "", unacknowledged: Sequence[str] = (),
) -> list[Verdict]:  # fmt: skip
    """What a reader would otherwise have to check by hand, in the order of importance.

    `run` and `plan` as their files say (empty: there is none), `before` and `after` the server's
    state; `unacknowledged` are recorded entries that the group holds as pending.
    """
    found: dict[str, Told] = {PENDING: _pending(run, before, after, unacknowledged)}
    found[OTHERS] = _others(run, plan, before, after, consumer)
    told: Told = UNKNOWN, "The audit stream's length is not known."
    if run.get("mode") == "live":
        left = left_of(run, plan, recorded)
        unread: Told = UNKNOWN, "The audit records could not be read."
        by_audit = dict.fromkeys((AUDITED, _THROTTLE, BOUNDARY), unread)
        if recorded is not None:
            by_audit = _by_audit(run, recorded, left)
        met = {"The plan was met, or what differs is explained": _met(run, plan, left)}
        found = {AUDITED: by_audit.pop(AUDITED), **met, **found, **by_audit}
    else:
        old, new = before.get("audit_entries"), after.get("audit_entries")
        if None not in (old, new):
            why = "" if old == new else ": another run wrote"
            told = EXPLAINED if why else YES, f"{old:,} records before, {new:,} after{why}."
        found["Nothing was written"] = told
    told = UNKNOWN, "The stream was not read before and after the run."
    if before and after:
        old, new = before["stream"]["length"], after["stream"]["length"]
        why = ": others deleted or trimmed meanwhile" if new < old else ""
        told = EXPLAINED if why else YES, f"{old:,} entries before, {new:,} after{why}."
    found["The stream was not shortened"] = told
    found["No path to an order"] = YES, _NO_ORDER
    return [Verdict(claim, *told) for claim, told in found.items()]


def _by_audit(run: Json, recorded: Recorded, left: int) -> dict[str, Told]:
    worst, throttle = recorded.moments.busiest_second(), run.get("throttle")
    told = f"The worst second holds {amount(worst, 'events')}"
    pace: Told = YES, f"{told}; no throttle was set."
    if throttle:
        limit = math.ceil(throttle)
        pace = YES if worst <= limit else NO, f"{told}, {limit:,} are allowed."
    edge = one_line(str(run.get("boundary_id")))
    kept: Told = YES, f"No record is of an entry after {edge}."
    if not is_id(edge):
        kept = UNKNOWN, "It is not known."
    elif recorded.later:
        kept = NO, f"{recorded.later:,} records are of entries after {edge}."
    return {AUDITED: _audited(run, recorded, left), _THROTTLE: pace, BOUNDARY: kept}


def _audited(run: Json, recorded: Recorded, left: int) -> Told:
    counts, findings = recorded.counts, []
    if run.get("finished_at"):
        counts = Counter({action: int(run.get(action) or 0) for action in ACTIONS})
    elif left:
        run_id = one_line(str(run.get("run_id")))
        findings.append(f"run {run_id} left no summary, and {left:,} planned entries are open")
    # what an interrupted run left may have been drained by others since
    is_all = run.get("remaining") == 0 and run.get("outcome") != "interrupted"
    findings += reconcile(recorded, counts, is_done=not left or is_all)
    if findings:
        return NO, "; ".join(findings)
    earlier = f"; {recorded.earlier:,} more by earlier runs of the plan" if recorded.earlier else ""
    return (
        YES,
        f"{amount(counts.total())} read, {recorded.counts.total():,} records, none twice{earlier}.",
    )


def _met(run: Json, plan: Json, left: int) -> Told:
    drift, vanished, told = run.get("drift"), int(run.get("vanished") or 0), []
    if left:
        told.append(f"{left:,} of {plan['total_read']:,} planned entries were not drained.")
    elif not plan or drift is None:
        return UNKNOWN, "Plan and outcome were not compared."
    fates = Counter[str]()
    for item in drift or ():
        fates[str(item["happened"])] += int(item["events"])
    aged = fates["dropped_old"]
    if changed := fates.total() - fates["vanished"]:
        how = "all" if aged == changed else f"{aged:,} of them"
        told.append(f"{changed:,} met another fate than planned, {how} by growing too old.")
    if vanished:
        told.append(f"{vanished:,} had been deleted by others before their turn.")
    if not told:
        return YES, "Each event met the fate that the plan foresaw."
    return EXPLAINED if not left and changed == aged else NO, " ".join(told)


def _pending(run: Json, before: Json, after: Json, unacknowledged: Sequence[str]) -> Told:
    if unacknowledged:
        told = f"{len(unacknowledged):,} audited entries are pending in the group, first "
        return NO, told + one_line(unacknowledged[0])
    if own := run.get("pending_own"):
        return NO, f"{own:,} entries are still pending for the drain's consumer"
    group = run.get("consumer_group")
    old, new = (group_of(state, group).get("pending") for state in (before, after))
    if old is None or new is None:
        return UNKNOWN, "The group was not read before and after the run."
    told = f"{old:,} before, {new:,} after."
    if new <= old:
        return YES, told
    why = "None is the drain's own: they were delivered to other consumers meanwhile."
    return EXPLAINED, f"{told} {why}"


def _others(run: Json, plan: Json, before: Json, after: Json, consumer: str) -> Told:
    """Traces of a drain in groups that are not its own; their own consumers may move them."""
    if not before or not after:
        return UNKNOWN, "The groups were not read before and after the run."
    group = str(run.get("consumer_group"))
    # that of scope history is the drain's own; it ends with the last batch
    own = {group, plan.get("history_group") or f"{group}.drain_history"}
    old, new = ({g["name"]: g for g in state["groups"] if g["name"] not in own}
                for state in (before, after))  # fmt: skip
    findings = [f"group {one_line(str(name))} {'went' if name in old else 'appeared'} during "
                "the run" for name in old.keys() ^ new.keys()]  # fmt: skip
    moved: list[str] = []
    for key in sorted(new.keys() & old.keys()):
        was, now, name = old[key], new[key], one_line(str(key))
        had, has = ({c["name"] for c in g.get("consumer_list", ())} for g in (was, now))
        if consumer in has - had:
            findings.append(f"group {name} now has a consumer {one_line(consumer)}")
        if any(was[point] != now[point] for point in ("position", "pending")):
            moved.append(name)
    if findings:
        return NO, "; ".join(sorted(findings))
    told = f"{len(new) - len(moved):,} of {len(new):,} others are as they were"
    if moved:
        return EXPLAINED, f"{told}; their own consumers moved {', '.join(moved)}."
    return YES, f"{told}: position and pending." if new else "There is no other group."
