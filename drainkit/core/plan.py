"""The plan: what a dry run decided, with a digest that no edit survives.

Pure: no Redis, no clock, no files. draining/plan_files.py keeps it, draining/run.py holds it
against a server. The contract, section 7.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, ClassVar

from pydantic import TypeAdapter, ValidationError

from ..errors import RefusedError, UsageError
from ..ids import id_key
from ..late import pa, pc
from ..safe import one_line
from ..settings import FROM_PLAN, Settings, build, outside, shown
from .events import Decoder, Events
from .frame import record_batch, word_counts
from .policy import ACTIONS, Decisions, Policy, decide, other_failed, reasons
from .values import RawEntry, no_constant

VERSION = 3  # 3: audit stream, environment, server, unreadable; a digest of the decisions' bytes
COLUMNS = (  # `invalid`: what made the event invalid, empty for one that is not
    "id", "event_time", "age_sec", "symbol", "side", "confidence", "source", "action", "reason",
    "failed", "payload_sha256", "invalid", "time_source", "missing",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Everything that decides the outcome of the live run that applies it."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}

    version: int
    run_id: str  # of the dry run that made it
    created_at: str  # ISO 8601 UTC, the server's clock
    stream: str
    consumer_group: str
    consumer_name: str
    scope: str
    position: str  # the consumer group's last-delivered-id
    history_position: str | None  # scope history: where its own group stands
    boundary_id: str
    policy: dict[str, Any]  # max_age_min, allowlist (sorted, or null for any), min_conf
    throttle: float | None  # events per second; null: none
    max_events: int | None  # null: all
    as_of: str | None
    until: str | None  # an ISO 8601 time or an entry id; the boundary lies at most there
    from_: str | None
    min_idle_min: float
    from_consumer: list[str]
    history_group: str | None
    audit_stream: str
    environment: str | None  # the table of drainkit.toml (--env)
    server: str  # its address, without user and password
    fields: dict[str, list[str] | bool]  # [fields] of drainkit.toml
    counts: dict[str, int]  # by action
    unreadable: dict[str, int]  # events by what makes them invalid, whichever filter drops them
    total_read: int
    first_id: str | None
    last_id: str | None
    decisions_sha256: str  # of the decisions file's bytes; "" where none was written
    digest: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, in the order of the fields."""
        return asdict(self)

    def laid_under(self, settings: Settings) -> Settings:
        """The settings with what the plan gives; refuses what was asked for and differs.

        Throttle, as_of, audit stream and the like are the plan's, whatever drainkit.toml or the
        environment say; another value given with the command, or in a notebook's cell, is refused,
        and so is a plan that was made for another environment.
        """
        if settings.env != self.environment:
            raise RefusedError(
                f"environment: the plan has {self.environment or 'none'}, asked for "
                f"{settings.env or 'none'}; make a new plan"
            )
        layer = {
            **{n: getattr(self, n) for n in ("stream", "consumer_group", "scope", "consumer_name")},
            **{n: self.policy[n] for n in ("max_age_min", "min_conf", "allowlist")},
            **{n: getattr(settings, n) for n in settings.model_fields_set},
            **{n: getattr(self, n) for n in FROM_PLAN},
            "fields": {**self.fields, "only": True},
        }
        found = build(layer, asked=settings.asked)
        for name in [n for n in FROM_PLAN if n in settings.asked]:
            planned, asked = getattr(found, name), getattr(settings, name)
            if planned != asked:
                planned, asked = (shown(name, one) or "none" for one in (planned, asked))
                raise RefusedError(
                    f"{outside(name)}: the plan has {planned}, asked for {asked}; leave it out, or "
                    "make a new plan"
                )
        return found


def seal(plan: Plan) -> Plan:
    """The plan with the digest of all the rest of it."""
    return replace(plan, digest=digest_of(plan.to_json()))


def digest_of(plan: Mapping[str, Any]) -> str:
    """ "sha256:..." over a plan's JSON without its digest, with sorted keys and no spaces."""
    content = {name: value for name, value in plan.items() if name != "digest"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def from_json(text: str, where: str) -> Plan:
    """A plan from a file's text.

    Raises UsageError if it is no plan, RefusedError naming the point if a key is missing, unknown,
    doubled or of another type, or if the content does not fit the digest.
    """
    data = parse(text, where)
    if type(data.get("version")) is int and data["version"] != VERSION:
        raise RefusedError(
            f"the plan is of version {data['version']}, not {VERSION}; make a new one"
        )
    for kind, of in ((Plan, "key"), (Policy, "policy")):
        try:
            TypeAdapter(kind).validate_json(json.dumps(data if kind is Plan else data["policy"]))
        except ValidationError as error:
            point = ".".join(map(str, error.errors()[0]["loc"])) or "JSON"
            raise RefusedError(
                f"the plan's {of} {one_line(point, 80)} is missing, unknown or not of the type it "
                "must be: it was edited"
            ) from None
    symbols = data["policy"]["allowlist"]
    if symbols is not None and symbols != sorted(set(symbols)):
        raise RefusedError("the plan's policy allowlist is not sorted: it was edited")
    check_digest(data)
    return Plan(**data)


def parse(text: str, where: str) -> dict[str, Any]:
    """The JSON of a plan, of whatever version; UsageError if it is none."""
    try:
        data = json.loads(text, object_pairs_hook=_without_doubles, parse_constant=no_constant)
    except (ValueError, RecursionError):
        raise UsageError(f"{where} is no JSON; name a plan or an evidence folder") from None
    if not isinstance(data, dict) or "digest" not in data:
        raise UsageError(f"{where} is no plan; name a plan or an evidence folder")
    return data


def check_digest(data: Mapping[str, Any]) -> None:
    """Refuse a plan of whatever version whose content does not fit its digest."""
    if data["digest"] != digest_of(data):
        raise RefusedError("the plan does not fit its digest: it was edited; make a new one")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # a reader sees the first of two equal keys, the parser takes the last: the digest would fit
    # a plan that says something else to who approves it
    found = dict(pairs)
    if len(found) < len(pairs):
        ((double, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise RefusedError(f"the plan has the key {double} twice: it was edited")
    return found


def differences(
    plan: Plan, *, stream: str, consumer_group: str, scope: str, policy: Policy
) -> list[str]:
    """One line for each point in which the plan is for something else than asked for."""
    points: dict[str, tuple[Any, Any]] = {
        "stream": (plan.stream, stream),
        "consumer group": (plan.consumer_group, consumer_group),
        "scope": (plan.scope, scope),
        **{f"policy {n}": (plan.policy[n], value) for n, value in policy.as_dict().items()},
    }

    def told(value: Any, other: Any) -> str:  # of long lists the difference must not be cut off
        if isinstance(value, list):
            return f"{some(sorted({*value} - {*(other or ())}))} besides"
        return "any symbol" if value is None else one_line(repr(value), 80)

    return [
        f"{name}: the plan has {told(then, now)}, asked for {told(now, then)}"
        for name, (then, now) in points.items()
        if then != now
    ]


def allowlist_notes(allowlist: Collection[str] | None, symbols: Collection[str]) -> list[str]:
    """What is a slip of the pen in an allowlist: symbols that are none of the events'."""
    absent = sorted({*(allowlist or ())} - {*symbols}) if symbols else []
    return [f"allowlist: in no event: {some(absent)}"] if absent else []


def some(symbols: Sequence[str]) -> str:
    """The first of many symbols, and how many more there are."""
    shown = one_line(", ".join(symbols[:5]), 100) or "none"
    return shown if len(symbols) <= 5 else f"{shown} and {len(symbols) - 5:,} more"


@cache
def decisions_schema() -> pa.Schema:
    """The columns of a decisions table (COLUMNS): those of events, and what was decided."""
    events, policy = Decoder().decode([]), Policy(0, None, 0)
    return decisions_table(payload_hashes([]), events, decide(events, policy, 0), policy).schema


def payload_hashes(entries: Sequence[RawEntry]) -> pa.Array:
    """The SHA-256 (binary(32)) over each entry's raw fields and values; null for a body gone.

    The bytes: the decimal lengths of all parts, separated by commas, a colon, all parts.
    """

    def digest(raw: Sequence[bytes]) -> bytes:
        lengths = ",".join(map(str, map(len, raw)))
        return hashlib.sha256(b"%b:%b" % (lengths.encode(), b"".join(raw))).digest()

    bodies = [entry[1] for entry in entries]
    return pa.array([None if raw is None else digest(raw) for raw in bodies], pa.binary(32))


def decisions_table(
    hashes: pa.Array, events: Events, decisions: Decisions, policy: Policy
) -> pa.Table:
    """One row for each event (COLUMNS): what it is, what was decided and why."""
    batch = record_batch(events, replace(decisions, failed=other_failed(decisions)))
    reason, texts = reasons(events, decisions, policy)
    columns = {
        **dict(zip(batch.schema.names, batch.columns, strict=True)),
        "reason": pa.array(texts, pa.string()).take(pa.array(reason)).dictionary_encode(),
        "payload_sha256": hashes,
    }
    return pa.table({name: columns[name] for name in COLUMNS})


class Tally:
    """What a plan says of its decisions, counted from them as they come."""

    def __init__(self) -> None:
        self._counts, self._unreadable = Counter[str](), Counter[str]()
        self._first: str | None = None
        self._last: str | None = None
        self._newest = (0, 0)  # the largest id

    def add(self, table: pa.Table) -> None:
        """The next rows; the columns id, action and invalid are looked at."""
        if not len(table):
            return
        self._counts.update(word_counts(table["action"]))
        self._unreadable.update(word_counts(table["invalid"]))
        self._first = self._first or table["id"][0].as_py()
        self._last = table["id"][-1].as_py()
        self._newest = max(self._newest, newest(table["id"]))

    def said(self) -> dict[str, Any]:
        """The plan's own fields that follow from the decisions."""
        return {
            "counts": {action: self._counts[action] for action in ACTIONS},
            "unreadable": {reason: n for reason, n in sorted(self._unreadable.items()) if reason},
            "total_read": self._counts.total(),
            "first_id": self._first,
            "last_id": self._last,
        }

    def check(self, plan: Plan) -> None:
        """Refuse a plan that says otherwise of its decisions."""
        odd = [name for name, value in self.said().items() if getattr(plan, name) != value]
        if self._counts.keys() - set(ACTIONS):
            odd.append("counts")
        if self._newest > id_key(plan.boundary_id):
            odd.append("boundary_id")
        if plan.max_events is not None and self._counts.total() > plan.max_events:
            odd.append("max_events")
        if odd:
            raise RefusedError(
                f"the plan does not fit its own decisions ({', '.join(dict.fromkeys(odd))}): it "
                "was edited; make a new one"
            )


def newest(ids: pa.ChunkedArray) -> tuple[int, int]:
    """The largest of the ids; ValueError where one of them is no id."""
    parts = pc.split_pattern(ids, "-", max_splits=1)
    ms = pc.list_element(parts, 0).cast(pa.uint64())
    last = pc.max(ms)
    seq = pc.max(pc.list_element(parts.filter(pc.equal(ms, last)), 1).cast(pa.uint64()))
    return int(last.as_py()), int(seq.as_py())
