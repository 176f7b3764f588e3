"""The checks of a run as data: each claim of a safe drain, its verdict, and what that rests on.

They are computed once; notebook 04, verdicts.json and the report show them. What neither the server
nor the files tell is "unknown", never a pass.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from ..ids import is_id
from ..late import pa, pc
from ..safe import one_line
from .audit import Moments, audit_ms
from .frame import word_counts
from .policy import ACTIONS
from .progress import amount
from .reconciliation import Matched, Matching, Parts, reconcile

YES, NO, EXPLAINED, UNKNOWN = "yes", "no", "explained", "unknown"
AUDITED = "Each read entry was audited once"
PENDING = "Pending has not grown"
OTHERS = "Other groups were not touched"
BOUNDARY = "Nothing after the boundary was touched"
BOOKS = {AUDITED, PENDING, OTHERS, BOUNDARY}  # books with a "no" at one of these do not balance
Json = Mapping[str, Any]


class Verdict(NamedTuple):
    """One claim of a safe drain, as verdicts.json has it."""

    claim: str
    verdict: str  # YES, NO, EXPLAINED, UNKNOWN
    because: str


class Recorded:
    """The audit records of a run, taken in part by part, and held against its plan."""

    def __init__(self, run_id: str, boundary: str, planned: Parts | None) -> None:
        self.counts = Counter[str]()  # by action
        self.moments = Moments()
        self.earlier = 0  # records of earlier runs of the same plan
        self.beyond = 0  # records of entries after the boundary
        self.matched = Matched()
        self._matching, self._run_id, self._boundary = Matching(planned), run_id, boundary

    @property
    def rows(self) -> int:
        """How many records this run has."""
        return self.counts.total()

    def add(self, part: pa.Table) -> pa.Table:
        """Take in the next records (core.audit.audit_schema); answers those of this run."""
        told = part.select(["original_id", "action", "reason"])
        self._matching.add(told.rename_columns(["id", "action", "reason"]))
        own = part.filter(pc.equal(part["run_id"], self._run_id))
        self.earlier += len(part) - len(own)
        self.counts.update(word_counts(own["action"]))
        self.moments.add(audit_ms(own))
        if is_id(self._boundary):
            later = pc.greater(_padded(own["original_id"]), _padded([self._boundary])[0])
            self.beyond += pc.sum(later).as_py() or 0
        return own

    def finish(self, vanished: Callable[[list[str]], Collection[str]] | None = None) -> None:
        """All were added. `vanished` says which planned entries without a record were deleted."""
        self.matched = self._matching.finish(vanished)


def _padded(ids: Any) -> pa.Array:
    """Entry ids as texts that sort as Redis orders them; null for what is no id."""
    texts = ids if isinstance(ids, pa.ChunkedArray) else pa.array(ids, pa.string())
    parts = pc.extract_regex(texts, r"^(?P<ms>\d+)-(?P<seq>\d+)$")
    digits = [pc.utf8_lpad(pc.struct_field(parts, [k]), 20, "0") for k in (0, 1)]
    return pc.binary_join_element_wise(*digits, "")


def left_of(run: Json, plan: Json, recorded: Recorded | None) -> int:
    """How many entries of the plan have no record yet, by whichever of its runs."""
    if not plan or recorded is None:
        return 0
    vanished = max(recorded.matched.vanished, int(run.get("vanished") or 0))
    return max(0, int(plan["total_read"]) - recorded.rows - recorded.earlier - vanished)


def verdicts(
    run: Json,
    plan: Json,
    before: Json,
    after: Json,
    recorded: Recorded | None,
    *,
    consumer: str = "",
    unacknowledged: Sequence[str] = (),
) -> list[Verdict]:
    """What a reader would otherwise have to check by hand, in the order of importance.

    `run` and `plan` as their files say (empty: there is none), `before` and `after` the server's
    state; `unacknowledged` are recorded entries that the group holds as pending.
    """
    live = run.get("mode") == "live"
    others = _others(run, plan, before, after, consumer)
    found = [_pending(run, before, after, unacknowledged), others]
    if live:
        found = [_audited(run, plan, recorded), _met(run, plan, recorded), *found,
                 _pace(run, recorded), _boundary(run, recorded)]  # fmt: skip
    else:
        found.append(_untouched(before, after))
    return [*found, _length(before, after), _NO_ORDER]


_NO_ORDER = Verdict(
    "No path to an order",
    YES,
    "drainkit speaks to Redis only and has no exchange client; statement.json lists what was "
    "installed beside it.",
)
_UNREAD = "The audit records could not be read."


def _audited(run: Json, plan: Json, recorded: Recorded | None) -> Verdict:
    if recorded is None:
        return Verdict(AUDITED, UNKNOWN, _UNREAD)
    left, matched, counts = left_of(run, plan, recorded), recorded.matched, recorded.counts
    findings = []
    if run.get("finished_at"):
        counts = Counter({action: int(run.get(action) or 0) for action in ACTIONS})
    elif left:
        run_id = one_line(str(run.get("run_id")))
        findings.append(f"run {run_id} left no summary, and {left:,} planned entries are open")
    if left and run.get("remaining") != 0:  # it is not done yet
        matched = Matched(matched.twice)
    findings += reconcile(matched, audited=recorded.counts, counts=counts)
    if findings:
        return Verdict(AUDITED, NO, "; ".join(findings))
    earlier = f"; {recorded.earlier:,} more by earlier runs of the plan" if recorded.earlier else ""
    told = f"{amount(counts.total())} read, {recorded.rows:,} records, none twice{earlier}."
    return Verdict(AUDITED, YES, told)


def _met(run: Json, plan: Json, recorded: Recorded | None) -> Verdict:
    claim = "The plan was met, or what differs is explained"
    drift, vanished = run.get("drift"), int(run.get("vanished") or 0)
    told = []
    if left := left_of(run, plan, recorded):
        told.append(f"{left:,} of {plan['total_read']:,} planned entries were not drained.")
    elif not plan or drift is None:
        return Verdict(claim, UNKNOWN, "Plan and outcome were not compared.")
    fates = Counter[str]()
    for item in drift or ():
        fates[str(item["happened"])] += int(item["events"])
    if changed := fates.total() - fates["vanished"]:
        aged = fates["dropped_old"]
        how = "all" if aged == changed else f"{aged:,} of them"
        told.append(f"{changed:,} met another fate than planned, {how} by growing too old.")
    if vanished:
        told.append(f"{vanished:,} had been deleted by others before their turn.")
    if not told:
        return Verdict(claim, YES, "Each event met the fate that the plan foresaw.")
    is_explained = not left and changed == fates["dropped_old"]
    return Verdict(claim, EXPLAINED if is_explained else NO, " ".join(told))


def group_of(state: Json, name: object) -> Json:
    """One group of baseline.json or after.json; empty where it is not there."""
    return next((g for g in state.get("groups", ()) if g.get("name") == name), {})


def _pending(run: Json, before: Json, after: Json, unacknowledged: Sequence[str]) -> Verdict:
    group, own = run.get("consumer_group"), run.get("pending_own")
    if unacknowledged:
        told = f"{len(unacknowledged):,} audited entries are pending in the group, first "
        return Verdict(PENDING, NO, told + one_line(unacknowledged[0]))
    if own:
        return Verdict(PENDING, NO, f"{own:,} entries are still pending for the drain's consumer")
    old, new = group_of(before, group).get("pending"), group_of(after, group).get("pending")
    if old is None or new is None:
        return Verdict(PENDING, UNKNOWN, "The group was not read before and after the run.")
    told = f"{old:,} before, {new:,} after."
    if new > old:
        told += " None is the drain's own: they were delivered to other consumers meanwhile."
        return Verdict(PENDING, EXPLAINED, told)
    return Verdict(PENDING, YES, told)


def _others(run: Json, plan: Json, before: Json, after: Json, consumer: str) -> Verdict:
    """Traces of a drain in groups that are not its own; their own consumers may move them."""
    if not before or not after:
        return Verdict(OTHERS, UNKNOWN, "The groups were not read before and after the run.")
    group = str(run.get("consumer_group"))
    # that of scope history is the drain's own; it ends with the last batch
    own = {group, plan.get("history_group") or f"{group}.drain_history"}
    old, new = ({g["name"]: g for g in state["groups"] if g["name"] not in own}
                for state in (before, after))  # fmt: skip
    names = {name: one_line(str(name)) for name in [*old, *new]}
    findings = [f"group {names[name]} appeared during the run" for name in new.keys() - old.keys()]
    findings += [f"group {names[name]} went during the run" for name in old.keys() - new.keys()]
    moved = []
    for name in sorted(new.keys() & old.keys()):
        was, now = old[name], new[name]
        if consumer in _consumers(now) - _consumers(was):
            findings.append(f"group {names[name]} now has a consumer {one_line(consumer)}")
        if any(was[key] != now[key] for key in ("position", "pending")):
            moved.append(f"{names[name]} from {was['position']} to {now['position']}, pending "
                         f"{was['pending']:,} to {now['pending']:,}")  # fmt: skip
    if findings:
        return Verdict(OTHERS, NO, "; ".join(sorted(findings)))
    both = len(new)
    if moved:
        told = f"{both - len(moved):,} of {both:,} are as they were. Their own consumers moved: "
        return Verdict(OTHERS, EXPLAINED, told + "; ".join(moved))
    told = f"{both:,} others: positions and pending as before." if both else "There is none."
    return Verdict(OTHERS, YES, told)


def _consumers(group: Json) -> set[str]:
    return {consumer["name"] for consumer in group.get("consumer_list", ())}


def _pace(run: Json, recorded: Recorded | None) -> Verdict:
    claim, throttle = "The throttle was kept", run.get("throttle")
    if recorded is None:
        return Verdict(claim, UNKNOWN, _UNREAD)
    worst = recorded.moments.busiest_second()
    told = f"The worst second holds {amount(worst, 'events')}"
    if not throttle:
        return Verdict(claim, YES, f"{told}; no throttle was set.")
    limit = math.ceil(throttle)
    return Verdict(claim, YES if worst <= limit else NO, f"{told}, {limit:,} are allowed.")


def _boundary(run: Json, recorded: Recorded | None) -> Verdict:
    edge = one_line(str(run.get("boundary_id")))
    if recorded is None or not is_id(edge):
        return Verdict(BOUNDARY, UNKNOWN, _UNREAD if recorded is None else "It is not known.")
    if recorded.beyond:
        return Verdict(BOUNDARY, NO, f"{recorded.beyond:,} records are of entries after {edge}.")
    return Verdict(BOUNDARY, YES, f"No record is of an entry after {edge}.")


def _untouched(before: Json, after: Json) -> Verdict:
    claim = "Nothing was written"
    old, new = before.get("audit_entries"), after.get("audit_entries")
    if old is None or new is None:
        return Verdict(claim, UNKNOWN, "The audit stream's length is not known.")
    if old != new:
        told = f"The audit stream's length went from {old:,} to {new:,}: another run."
        return Verdict(claim, EXPLAINED, told)
    return Verdict(claim, YES, f"The audit stream holds {new:,} entries, as before.")


def _length(before: Json, after: Json) -> Verdict:
    claim = "The stream was not shortened"
    if not before or not after:
        return Verdict(claim, UNKNOWN, "The stream was not read before and after the run.")
    old, new = before["stream"]["length"], after["stream"]["length"]
    told = f"{old:,} entries before, {new:,} after. A drain deletes nothing"
    if new >= old:
        return Verdict(claim, YES, f"{told}.")
    return Verdict(claim, EXPLAINED, f"{told}: others deleted or trimmed meanwhile.")
