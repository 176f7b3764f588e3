"""How entries are read: one by one, with every filter's verdict; or a sample, and its fields."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..core.audit import audit_table
from ..core.events import Decoder, Events
from ..core.fields import Findings, examine, places, shown
from ..core.policy import ACTIONS, Decisions, Policy, decide, reasons
from ..core.timestamps import NO_TIME, TIME_SOURCES, id_times_us, iso
from ..core.values import INVALID_REASONS, RawEntry
from ..errors import RefusedError, UsageError
from ..ids import FIRST_ID, id_key, is_id, next_id
from ..late import pa, pc
from ..safe import one_line, text
from ..server import ledger, reading, scopes
from ..server.connection import Server
from ..server.counting import sampled
from ..settings import Settings

SAMPLE = 500  # entries at most
TOO_MANY = 0.2  # of them unreadable: a live drain would be refused
MAX_AUDIT_RECORDS = 1_000_000  # searched for the entries; beyond that the answer says so


def show(
    server: Server, settings: Settings, policy: Policy, ids: Sequence[str], *, now_us: int
) -> list[dict[str, Any]]:
    """All that is known of single entries, JSON-ready; reads only.

    Raises UsageError for what is not an entry id, RefusedError if an entry is neither in the stream
    nor pending nor audited.
    """
    for entry_id in ids:
        if not is_id(entry_id):
            raise UsageError(f"{entry_id} is no entry id; write one such as 1766602826755-0")
    wanted = [entry_id.encode() for entry_id in ids]
    entries = reading.bodies(server, wanted)
    audits, decoder = _audits(server, wanted), Decoder(settings.fields)
    found = []
    for entry in entries:
        groups = list(_groups(server, entry[0].decode()))
        audit = audits[entry[0]]
        if entry[1] is None and not audit["records"] and not any(g["pending"] for g in groups):
            raise RefusedError(
                f"entry {text(entry[0])} is not in the stream, not pending and not "
                f"among the {audit['searched']:,} audit records searched; check the id"
            )
        events = decoder.decode([entry])
        texts = [text(part) for part in entry[1] or ()]
        pairs = [list(pair) for pair in zip(texts[::2], texts[1::2], strict=True)]
        found.append(judged(events, decide(events, policy, now_us), policy) | {
            "fields": None if entry[1] is None else pairs,
            # JSON can hold numbers that JSON cannot write again: as text each can be shown
            "places": [
                vars(p) | {"raw": text(p.raw) if isinstance(p.raw, bytes) else repr(p.raw)}
                for p in places(settings.fields, entry, events)
            ],
            "groups": groups, "audit": audit,
        })  # fmt: skip
    return found


def judged(events: Events, decisions: Decisions, policy: Policy) -> dict[str, Any]:
    """What is known of a single event without its entry."""
    time_us, age_us = int(events.event_time_us[0]), int(decisions.age_us[0])
    id_us, confidence = int(id_times_us(events.ids)[0]), float(events.confidence[0])
    known = time_us != NO_TIME
    values: dict[str, Any] = {name: shown(events, name) for name in ("symbol", "side", "source")}
    values["confidence"] = None if np.isnan(confidence) else confidence
    filters = [{"filter": "dropped_missing", "passes": False, "says": "the entry's body is gone"}]
    if not events.missing[0]:
        symbol, allowed = events.symbol(0), policy.allowlist
        says = {
            "dropped_missing": "the entry's body is there",
            "dropped_old": f"age {age_us / 1e6:.2f} s, limit {policy.max_age_us / 1e6:.2f} s"
            if age_us != NO_TIME else "no usable time to judge",
            "dropped_invalid": INVALID_REASONS[int(events.invalid[0])] or
            "every value can be read",
            "dropped_not_allowlisted": "any symbol passes" if allowed is None else
            f"{'no valid symbol' if symbol is None else symbol}, {len(allowed):,} are allowed",
            "dropped_low_conf": "no valid confidence to judge" if np.isnan(confidence) else
            f"confidence {confidence!r}, minimum {policy.min_conf!r}",
        }  # fmt: skip
        failed = int(decisions.failed[0])
        filters = [  # in the order in which they decide: whether the event passes, and why
            {"filter": action, "passes": not failed >> place & 1, "says": says[action]}
            for place, action in enumerate(ACTIONS[:-1])
        ]
    return {
        "id": events.ids[0].decode(),
        "id_time": None if id_us == NO_TIME else iso(id_us),
        "fields": None,
        "values": values,
        "places": [],
        "event_time": iso(time_us) if known else None,
        "decided_at": iso(time_us + age_us) if known else None,
        "time_source": TIME_SOURCES[int(events.time_source[0])],
        "age_sec": round(age_us / 1e6, 2) if known else None,
        "action": ACTIONS[int(decisions.action[0])],
        "reason": reasons(events, decisions, policy)[0],
        "filters": filters,
    }


def _groups(server: Server, entry_id: str) -> Iterator[dict[str, Any]]:
    """What each group has to do with the entry."""
    for group in reading.positions(server).values():
        rows = next(reading.pending_ids(server, group.name, entry_id, first=entry_id), [])
        yield {
            "name": str(group.name),
            "position": group.position,
            "delivered": id_key(entry_id) <= id_key(group.position),
            "pending": {"consumer": str(rows[0][1]), "idle_ms": rows[0][2]} if rows else None,
        }


def _audits(server: Server, wanted: Sequence[bytes]) -> dict[bytes, dict[str, Any]]:
    """The audit records of each entry, searched in one pass.

    An entry is audited after it was added: with ids that are times the search begins a minute
    before the oldest (clocks differ), else at the audit's beginning. It ends after
    MAX_AUDIT_RECORDS; `complete` is false then.
    """
    times = id_times_us(list(wanted))
    start_ms = max(0, int(times.min()) // 1000 - 60_000) if (times != NO_TIME).all() else 0
    first = f"{start_ms}-0" if start_ms else FIRST_ID
    records: dict[bytes, list[dict[str, Any]]] = {entry_id: [] for entry_id in wanted}
    searched, complete, ids = 0, True, pa.array([entry_id.decode() for entry_id in wanted])
    for page in ledger.audit_pages(server, first):
        if searched >= MAX_AUDIT_RECORDS:
            complete = False
            break
        searched += len(page)
        table = audit_table(page)
        found = table.filter(pc.is_in(table["original_id"], value_set=ids))
        for record in found.to_pylist():
            records[record["original_id"].encode()].append(record)
    told = {"searched_from": first, "searched": searched, "complete": complete}
    return {entry_id: {**told, "records": found} for entry_id, found in records.items()}


def rows_of(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What `show` found of one entry as rows of (part, name, text), every text one safe line.

    `body` is what to say where it was not kept.
    """
    rows: list[tuple[str, str, Any]] = [("entry", "id", found["id"])]
    rows.append(("entry", "id's time", found["id_time"] or "no time"))
    if found["fields"] is None:
        rows.append(("field", "(body)", found.get("body", "gone: trimmed or deleted")))
    rows += [("field", name, value) for name, value in found["fields"] or []]
    there = {place["value"] for place in found["places"]}
    for name, value in found["values"].items():
        lacking = "not valid" if name in there else "none" if "body" in found else "not found"
        rows.append(("value", name, lacking if value is None else value))
    age = "" if found["age_sec"] is None else f", {found['age_sec']:,.2f} s old"
    rows.append(("value", "event time", f"{found['event_time']}{age}, by {found['time_source']}"))
    rows += [
        ("found at", place["value"],
         f"{place['where']} = {place['raw']}" + ("  (this one counts)" if place["counts"] else ""))
        for place in found["places"]
    ]  # fmt: skip
    rows += [
        ("filter", verdict["filter"], f"{'passes' if verdict['passes'] else 'FAILS'}: "
         f"{verdict['says']}")
        for verdict in found["filters"]
    ]  # fmt: skip
    at = f"as of {found['decided_at'][:19]}: " if found["decided_at"] else ""
    rows.append(("decision", found["action"], at + found["reason"]))
    for group in found["groups"]:
        pending = group["pending"]
        state = "delivered" if group["delivered"] else "not delivered yet"
        if pending:
            state += f", pending for {pending['consumer']}, idle {pending['idle_ms'] / 1000:,.0f} s"
        rows.append(("group", group["name"], state))
    audit = found["audit"]
    for record in audit["records"]:
        rows.append(("audit", record["action"], f"recorded at {record['drained_at_ts']} in "
                     f"{record['consumer_group']}, run {record['run_id']}: "
                     f"{record['reason']}"))  # fmt: skip
    if not audit["records"]:
        whole = "" if audit["complete"] else ", the search ended there"
        rows.append(("audit", "none", f"{audit['searched']:,} records searched{whole}"))
    return [(part, one_line(str(name), 60), one_line(str(value), 2000))
            for part, name, value in rows]  # fmt: skip


def fields_of(server: Server, settings: Settings) -> Findings:
    """What the backlog's events hold, which fields are chosen, and what would mend them."""
    return examine(sample(server, settings), settings.fields)


def unreadable(server: Server, settings: Settings) -> Findings | None:
    """What is wrong with the backlog's events; None where at most a fifth cannot be read."""
    entries = sample(server, settings)
    bad = (Decoder(settings.fields).decode(entries).invalid > 0).sum()
    return examine(entries, settings.fields) if bad > TOO_MANY * len(entries) else None


def sample(server: Server, settings: Settings) -> list[RawEntry]:
    """Entries from all over what is undelivered; of the whole stream if nothing is."""
    info, settings = reading.stream_info(server), scopes.at_now(server, settings)
    last = min(info.boundary_id, settings.last_id, key=id_key)
    group = reading.positions(server).get(settings.consumer_group)
    for first in (next_id(group.position) if group else None, info.first_id):
        pages = sampled(server, first, last) if first and id_key(first) <= id_key(last) else ()
        if found := [entry for page in pages for entry in page]:
            # by chance: producers that take turns would keep time with equal steps
            rows = np.random.default_rng(0).permutation(len(found))[:SAMPLE]
            return [found[row] for row in sorted(rows.tolist())]
    return []
