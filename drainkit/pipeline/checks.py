"""The list of checks at the head of a report: claims, verdicts, and what they rest on.

From the files of the folder alone. What they do not hold is "unknown", never a pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.policy import ACTIONS
from .records import Records

YES, NO, UNKNOWN, EXPLAINED = "yes", "no", "unknown", "explained"
Json = Mapping[str, Any]


@dataclass(frozen=True)
class Check:
    """One claim of a safe drain."""

    claim: str
    verdict: str  # YES, NO, UNKNOWN, EXPLAINED
    because: str


def checks_of(
    run: Json, plan: Json, before: Json, after: Json, audit: Records | None
) -> list[Check]:
    """What a reader would otherwise have to check by hand, in the order of importance."""
    live = run.get("mode") == "live"
    found = [_audited(run, audit), _met(run, plan)] if live else []
    found += [_pending(run, before, after), _others(run, before, after)]
    if live:
        found += [_pace(run, plan, audit), _boundary(run, audit)]
    else:
        found.append(_untouched(before, after))
    return [*found, _length(before, after), NO_ORDER]


NO_ORDER = Check(
    "No path to an order",
    YES,
    "drainkit speaks to Redis only and has no exchange client; statement.json lists what was "
    "installed beside it.",
)


def _audited(run: Json, audit: Records | None) -> Check:
    claim = "Each read entry was audited once"
    if audit is None:
        return Check(claim, UNKNOWN, "The audit records could not be read.")
    read = int(run.get("total_read") or 0)
    counts = all(audit.counts[action] == run.get(action, 0) for action in ACTIONS)
    if audit.doubled:
        return Check(claim, NO, f"{audit.doubled:,} records are of an entry recorded already.")
    if audit.rows != read or not counts:
        return Check(
            claim,
            NO,
            f"The run says {read:,} entries, the audit holds {audit.rows:,} records. They do not "
            "agree: this run's numbers cannot be trusted.",
        )
    return Check(claim, YES, f"{read:,} entries read, {audit.rows:,} records, none twice.")


def _met(run: Json, plan: Json) -> Check:
    claim = "The plan was met, or what differs is explained"
    drift, vanished = drift_of(run), int(run.get("vanished") or 0)
    if not plan or drift is None:
        return Check(claim, UNKNOWN, "Plan and outcome were not compared.")
    changed = sum(events for *_, events in drift)
    gone = f" {vanished:,} had been deleted by others before their turn." if vanished else ""
    if not changed and not vanished:
        return Check(claim, YES, "Each event met the fate that the plan foresaw.")
    aged = sum(events for _, happened, events in drift if happened == "dropped_old")
    others = sum(e for _, happened, e in drift if happened not in ("dropped_old", "vanished"))
    how = "all" if aged == changed else f"{aged:,} of them"
    told = f"{changed:,} met another fate than planned, {how} by growing too old."
    return Check(claim, NO if others else EXPLAINED, told + gone)


def drift_of(run: Json) -> list[tuple[str, str, int]] | None:
    """(planned, happened, events), from either form that run.json has had; None: not compared."""
    listed = run.get("drift")
    if not isinstance(listed, list):
        return None
    counted: dict[tuple[str, str], int] = {}
    for item in listed:
        pair = (str(item.get("planned")), str(item.get("happened")))
        counted[pair] = counted.get(pair, 0) + int(item.get("events", 1))
    return [(*pair, events) for pair, events in sorted(counted.items(), key=lambda kv: -kv[1])]


def group_of(state: Json, name: object) -> Json:
    """One group of baseline.json or after.json; empty where it is not there."""
    return next((g for g in state.get("groups", ()) if g.get("name") == name), {})


def _pending(run: Json, before: Json, after: Json) -> Check:
    claim = "Pending has not grown"
    group = run.get("consumer_group")
    old, new = group_of(before, group).get("pending"), group_of(after, group).get("pending")
    if old is None or new is None:
        return Check(claim, UNKNOWN, "The group was not read before and after the run.")
    told = f"{old:,} before, {new:,} after."
    if own := run.get("pending_own"):
        return Check(claim, NO, f"{told} {own:,} of them are the drain's own, unfinished.")
    if new > old:
        return Check(claim, NO, f"{told} None of them is the drain's own.")
    return Check(claim, YES, told)


def _others(run: Json, before: Json, after: Json) -> Check:
    claim = "Other groups were not touched"
    if not before or not after:
        return Check(claim, UNKNOWN, "The groups were not read before and after the run.")
    own = run.get("consumer_group")
    old = {g["name"]: g for g in before["groups"] if g["name"] != own}
    new = {g["name"]: g for g in after["groups"] if g["name"] != own}
    # the group of scope history is the drain's own; it ends with the last batch
    foreign = {name for name in new.keys() ^ old.keys() if not name.endswith(".drain_history")}
    if foreign:
        return Check(claim, NO, f"Appeared or went during the run: {', '.join(sorted(foreign))}.")
    both = new.keys() & old.keys()
    moved = [n for n in sorted(both) if _state(new[n]) != _state(old[n])]
    if moved:
        told = ", ".join(moved)
        return Check(claim, EXPLAINED, f"Read on by consumers of their own meanwhile: {told}.")
    told = f"{len(both):,} others: positions and pending as before." if both else "There is none."
    return Check(claim, YES, told)


def _state(group: Json) -> tuple[object, object]:
    return group["position"], group["pending"]


def throttle_of(run: Json, plan: Json) -> float | None:
    """Events per second, of the run or else its plan; None: none."""
    found = run.get("throttle", plan.get("throttle"))
    return float(found) if found else None


def _pace(run: Json, plan: Json, audit: Records | None) -> Check:
    claim = "The throttle was kept"
    throttle = throttle_of(run, plan)
    if audit is None or audit.worst_second is None:
        return Check(claim, UNKNOWN, "The audit records could not be read.")
    worst = f"The worst second holds {audit.worst_second:,} events"
    if throttle is None:
        return Check(claim, YES, f"{worst}; no throttle was set.")
    limit = math.ceil(throttle)
    told = f"{worst}, {limit:,} are allowed."
    return Check(claim, YES if audit.worst_second <= limit else NO, told)


def _boundary(run: Json, audit: Records | None) -> Check:
    claim = "Nothing after the boundary was touched"
    if audit is None:
        return Check(claim, UNKNOWN, "The audit records could not be read.")
    edge = run.get("boundary_id")
    if audit.beyond:
        return Check(claim, NO, f"{audit.beyond:,} records are of entries after {edge}.")
    return Check(claim, YES, f"No record is of an entry after {edge}.")


def _untouched(before: Json, after: Json) -> Check:
    claim = "Nothing was written"
    if not before or not after:
        return Check(claim, UNKNOWN, "The server was not read before and after the run.")
    old, new = before.get("audit_entries"), after.get("audit_entries")
    if old is None or new is None:
        return Check(claim, UNKNOWN, "The audit stream's length is not known.")
    if old != new:
        return Check(
            claim, EXPLAINED, f"The audit stream grew from {old:,} to {new:,}: another run."
        )
    return Check(claim, YES, f"The audit stream holds {new:,} entries, as before.")


def _length(before: Json, after: Json) -> Check:
    claim = "The stream was not shortened"
    if not before or not after:
        return Check(claim, UNKNOWN, "The stream was not read before and after the run.")
    old, new = before["stream"]["length"], after["stream"]["length"]
    told = f"{old:,} entries before, {new:,} after."
    if new >= old:
        return Check(claim, YES, f"{told} A drain deletes nothing.")
    return Check(
        claim, EXPLAINED, f"{told} A drain deletes nothing: others deleted or trimmed meanwhile."
    )
