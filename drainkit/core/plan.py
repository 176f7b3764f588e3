"""The plan: what a dry run decided, with a digest that no edit survives.

Pure: no Redis, no clock, no files. evidence.py writes and reads it, apply.py holds it against a
server. The contract, section 7.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from ..errors import RefusedError, UsageError
from ..safe import one_line
from .events import Events
from .policy import ACTIONS, FAILED_NAMES, Decisions, Policy, other_failed, reason_codes
from .timestamps import NO_TIME
from .values import INVALID_REASONS, RawEntry

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 2  # 2: until, from_; dictionary columns, binary hashes, a digest by blocks
BLOCK = 65_536  # rows under one digest
COLUMNS = (
    "id",
    "event_time",
    "age_sec",
    "symbol",
    "side",
    "confidence",
    "source",
    "action",
    "reason",
    "failed",
    "payload_sha256",
    "invalid",  # what made the event invalid, empty for one that is not
)


@dataclass(frozen=True)
class Plan:
    """Everything that decides the outcome of the live run that applies it."""

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
    fields: dict[str, list[str]]
    counts: dict[str, int]  # by action
    total_read: int
    first_id: str | None
    last_id: str | None
    decisions_sha256: str  # over the content of the decisions, not over a file's bytes
    digest: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, in the order of the fields."""
        return asdict(self)


def seal(plan: Plan) -> Plan:
    """The plan with the digest of all the rest of it."""
    return replace(plan, digest=digest_of(plan))


def digest_of(plan: Plan) -> str:
    """ "sha256:..." over the plan without its digest, as JSON with sorted keys and no spaces."""
    content = {name: value for name, value in plan.to_json().items() if name != "digest"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def from_json(text: str, where: str) -> Plan:
    """A plan from a file's text.

    Raises UsageError if it is no plan, RefusedError naming the point if a key is missing, unknown,
    doubled or of another type, or if the content does not fit the digest.
    """
    try:
        data = json.loads(text, object_pairs_hook=_without_doubles, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise UsageError(
            f"{one_line(where)} is no JSON; name a plan or an evidence folder"
        ) from None
    if not isinstance(data, dict) or "digest" not in data:
        raise UsageError(f"{one_line(where)} is no plan; name a plan or an evidence folder")
    if type(data.get("version")) is int and data["version"] != VERSION:
        raise RefusedError(
            f"the plan is of version {data['version']}, not {VERSION}; make a new one"
        )
    odd = sorted(set(data) ^ {field.name for field in fields(Plan)})
    if odd:
        raise RefusedError(
            f"the plan's key {one_line(odd[0])} is missing or unknown: it was edited"
        )
    _check_types(text, data)
    plan = Plan(**data)
    if plan.digest != digest_of(plan):
        raise RefusedError("the plan does not fit its digest: it was edited; make a new one")
    return plan


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # a reader sees the first of two equal keys, the parser takes the last: the digest would fit
    # a plan that says something else to who approves it
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise RefusedError(f"the plan has the key {one_line(double)} twice: it was edited")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _check_types(text: str, data: dict[str, Any]) -> None:
    try:
        TypeAdapter(Plan).validate_json(text, strict=True)
        policy = data["policy"]
        if set(policy) != {field.name for field in fields(Policy)}:
            raise RefusedError("the plan's policy has a missing or unknown key: it was edited")
        TypeAdapter(Policy).validate_json(json.dumps(policy), strict=True)
    except ValidationError as error:
        at = error.errors()[0]["loc"]
        point = f"key {one_line(str(at[0]), 80)}" if at else "JSON"
        raise RefusedError(
            f"the plan's {point} is not of the type it must be: it was edited"
        ) from None
    symbols = policy["allowlist"]
    if symbols is not None and symbols != sorted(set(symbols)):
        raise RefusedError("the plan's policy allowlist is not sorted: it was edited")


def differences(
    plan: Plan, *, stream: str, consumer_group: str, scope: str, policy: Policy
) -> list[str]:
    """One line for each point in which the plan is for something else than asked for."""
    found = [
        f"{name}: the plan has {one_line(repr(planned), 80)}, asked for {one_line(repr(asked), 80)}"
        for name, planned, asked in (
            ("stream", plan.stream, stream),
            ("consumer group", plan.consumer_group, consumer_group),
            ("scope", plan.scope, scope),
            ("policy max_age_min", plan.policy.get("max_age_min"), policy.max_age_min),
            ("policy min_conf", plan.policy.get("min_conf"), policy.min_conf),
        )
        if planned != asked
    ]
    planned_list, asked_list = plan.policy.get("allowlist"), policy.as_dict()["allowlist"]
    if planned_list != asked_list:
        found.append(f"policy allowlist: {_list_change(planned_list, asked_list)}")
    return found


def _list_change(planned: Any, asked: Any) -> str:
    if planned is None or asked is None:
        return f"the plan has {_size(planned)}, asked for {_size(asked)}"
    more, less = sorted(set(asked) - set(planned)), sorted(set(planned) - set(asked))
    return f"added {_some(more)}; removed {_some(less)}"


def _some(symbols: list[str]) -> str:
    shown = one_line(", ".join(symbols[:5]), 100) or "none"
    return shown if len(symbols) <= 5 else f"{shown} and {len(symbols) - 5} more"


def _size(symbols: Any) -> str:
    return "any symbol" if symbols is None else f"{len(symbols)} symbols"


def payload_sha256(raw: Sequence[bytes] | None) -> bytes | None:
    """SHA-256 over an entry's raw fields and values; None for an entry whose body is gone.

    The bytes: the decimal lengths of all parts, separated by commas, a colon, all parts.
    """
    if raw is None:
        return None
    lengths = ",".join(map(str, map(len, raw)))
    return hashlib.sha256(b"%b:%b" % (lengths.encode(), b"".join(raw))).digest()


def decisions_schema() -> pa.Schema:
    """The columns of a decisions table (COLUMNS)."""
    import pyarrow as pa

    words = pa.dictionary(pa.int32(), pa.string())
    kinds = {
        "id": pa.string(), "event_time": pa.timestamp("us", tz="UTC"), "age_sec": pa.float64(),
        "confidence": pa.float64(), "payload_sha256": pa.binary(32),
    }  # fmt: skip
    return pa.schema([(name, kinds.get(name, words)) for name in COLUMNS])


def payload_hashes(entries: Sequence[RawEntry]) -> pa.Array:
    """The hash of each entry's payload (binary(32))."""
    import pyarrow as pa

    return pa.array([payload_sha256(entry[1]) for entry in entries], pa.binary(32))


def decisions_table(
    hashes: pa.Array, events: Events, decisions: Decisions, policy: Policy
) -> pa.Table:
    """One row for each event (COLUMNS): what it is, what was decided and why."""
    import pyarrow as pa

    known = events.event_time_us != NO_TIME
    times = pa.array(events.event_time_us, mask=~known)
    reason, texts = reason_codes(events, decisions, policy)

    def words(codes: np.ndarray, values: Sequence[str]) -> pa.DictionaryArray:
        indices = pa.array(codes.astype(np.int32), mask=codes < 0)
        return pa.DictionaryArray.from_arrays(indices, pa.array(values, pa.string()))

    columns = {
        "id": pa.array(events.ids, pa.binary()).cast(pa.string()),
        "event_time": times.cast(pa.timestamp("us", tz="UTC")),
        "age_sec": pa.array(np.where(known, decisions.age_us, 0) / 1e6, mask=~known),
        "symbol": words(events.symbol_code, events.symbols),
        "side": words(events.side_code, events.sides),
        "confidence": pa.array(events.confidence, mask=np.isnan(events.confidence)),
        "source": words(events.source_code, events.sources),
        "action": words(decisions.action.astype(np.int32), ACTIONS),
        "reason": pa.array(texts, pa.string()).take(pa.array(reason)).dictionary_encode(),
        "failed": words(other_failed(decisions).astype(np.int32), FAILED_NAMES),
        "payload_sha256": hashes,
        "invalid": words(events.invalid.astype(np.int32), INVALID_REASONS),
    }
    return pa.table([columns[name] for name in COLUMNS], decisions_schema())


def as_decisions(table: pa.Table) -> pa.Table:
    """Columns of a decisions table with the types that they must have; see decisions_schema.

    Raises ValueError or NotImplementedError where a column cannot be that.
    """
    import pyarrow as pa

    def cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
        if column.type == kind:
            return column
        if pa.types.is_dictionary(kind):
            return column.cast(pa.string()).dictionary_encode()
        return column.cast(kind)

    schema = pa.schema([decisions_schema().field(name) for name in table.column_names])
    return pa.table([cast(table[field.name], field.type) for field in schema], schema)


class TableDigest:
    """SHA-256 over the content of a decisions table that comes in parts: `add`, then `hexdigest`.

    It is made over digests of blocks of BLOCK rows, so no more than a block is held. In a block
    each column is framed by its name and kind, then fixed-width values or lengths and bytes, so
    neither parts, dictionary encoding nor the Parquet writer's version matter. Null and NaN count
    as the same: pandas keeps no difference.
    """

    def __init__(self) -> None:
        self._parts: list[pa.Table] = []
        self._held = 0
        self._whole = hashlib.sha256()
        self.rows = 0
        self.blocks: list[bytes] = []  # the digests of those that are whole

    def add(self, table: pa.Table) -> None:
        """The next rows."""
        self.rows += len(table)
        while self._held + len(table) >= BLOCK:
            room = BLOCK - self._held
            self._parts.append(table.slice(0, room))
            self._close_block()
            table = table.slice(room)
        if len(table) or not self._parts:  # an empty table has columns too
            self._parts.append(table)
            self._held += len(table)

    def hexdigest(self) -> str:
        """The digest of all rows; nothing can be added any more."""
        if self._held or not self.rows:
            self._close_block()
        self._whole.update(b"%d rows" % self.rows)
        return self._whole.hexdigest()

    def _close_block(self) -> None:
        import pyarrow as pa

        self.blocks.append(block_sha256(pa.concat_tables(self._parts)))
        self._whole.update(self.blocks[-1])
        self._parts, self._held = [], 0


def block_sha256(table: pa.Table) -> bytes:
    """The digest of one block of a decisions table; see TableDigest."""
    import pyarrow as pa

    digest = hashlib.sha256(b"%d rows" % table.num_rows)
    for field in table.schema:
        column = table.column(field.name)
        numeric, timed = pa.types.is_floating(field.type), pa.types.is_timestamp(field.type)
        # without the kind, a column of 0.0 and one of empty texts would be the same bytes
        kind = b"float" if numeric else b"time" if timed else b"text"
        digest.update(b"\0" + field.name.encode() + b"\0" + kind + b"\0")
        if numeric:
            values = column.to_numpy(zero_copy_only=False).astype("<f8")
            digest.update(np.where(np.isnan(values), np.nan, values).tobytes())
        elif timed:
            whole = column.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).fill_null(NO_TIME)
            digest.update(whole.to_numpy().astype("<i8").tobytes())
        else:
            for part in _frames(column):
                digest.update(part)
    return digest.digest()


def _frames(column: pa.ChunkedArray) -> list[bytes | memoryview]:
    """Lengths (-1 for null) and then all bytes of a column of texts or bytes."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_fixed_size_binary(column.type):
        column = column.cast(pa.binary())
    parts = column.cast(pa.large_binary())
    lengths = pc.fill_null(pc.binary_length(parts), -1).to_numpy().astype("<i8")
    frames: list[bytes | memoryview] = [lengths.tobytes()]
    for chunk in parts.fill_null(b"").chunks:
        _, starts, data = chunk.buffers()
        if data is not None and len(chunk):
            at = np.frombuffer(starts, dtype=np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
            frames.append(memoryview(data)[int(at[0]) : int(at[-1])])
    return frames
