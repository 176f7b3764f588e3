"""The baseline: what the server holds, counted, and why a backlog is large or small."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from . import stream
from .errors import one_line
from .server import Server
from .stream import Backlog, Group, StreamInfo

SAMPLES = 3


def baseline(server: Server, key: str) -> dict[str, Any]:
    """Stream, groups with counted backlog, consumers and pending, as one JSON-ready object."""
    raw = key.encode()
    info = stream.stream_info(server, raw)
    groups = stream.groups(server, info)
    return {
        "stream": asdict(info),
        "groups": [
            {
                **asdict(group),
                "consumer_list": [asdict(c) for c in stream.consumers(server, raw, group.name)],
                "why": why(info, group),
            }
            for group in groups
        ],
        "samples": samples(server, raw),
    }


def samples(server: Server, key: bytes) -> list[dict[str, Any]]:
    """The newest entries, every value as one safe line."""
    newest = server.call("XREVRANGE", key, "+", "-", "COUNT", SAMPLES)
    return [
        {"id": stream.text(entry_id), "fields": [one_line(stream.text(part)) for part in fields]}
        for entry_id, fields in newest
    ]


def why(info: StreamInfo, group: Group) -> str:
    """In words and numbers, why the group's backlog is as large or small as it is."""
    backlog = group.backlog or Backlog(0, 0, 0)
    undelivered, pending, history = backlog.undelivered, backlog.pending, backlog.history
    if not info.length:
        return "The stream holds no entry."
    parts = [
        f"Of the stream's {info.length:,} entries, {undelivered:,} lie after the group's position "
        f"{group.position} and can still be read through it (scope undelivered)."
    ]
    if history:
        parts.append(
            f"The other {history:,} lie at or before it: delivered once, or skipped when the group "
            "was made; the group itself never reads them again (scope history)."
        )
    if pending:
        parts.append(f"{pending:,} were delivered but never acknowledged (scope pending).")
    lag = group.lag_reported
    if lag is None:
        parts.append("Redis does not know the lag; the count is exact.")
    elif lag != undelivered:
        parts.append(f"Redis reports a lag of {lag:,}, which is wrong; the count is exact.")
    return " ".join(parts)


def as_text(status: dict[str, Any]) -> str:
    """The baseline for a terminal."""
    info = status["stream"]
    lines = [
        f"Stream: {one_line(info['name'])}",
        f"  Length: {info['length']:,}   First: {info['first_id']}   Last: {info['last_id']}   "
        f"Boundary: {info['boundary_id']}",
    ]
    for group in status["groups"]:
        backlog, lag = group["backlog"], group["lag_reported"]
        lines += [
            f"Group: {one_line(group['name'])}",
            f"  Position: {group['position']}   Consumers: {group['consumers']}   "
            f"Entries read: {_known(group['entries_read'])}",
            f"  Backlog counted: {backlog['undelivered']:,} undelivered, {backlog['pending']:,} "
            f"pending, {backlog['history']:,} history   Lag reported: {_known(lag)}",
            f"  Why: {group['why']}",
        ]
        waiting = [c for c in group["consumer_list"] if c["pending"]]
        lines += [
            f"  Consumer {one_line(c['name'])}: {c['pending']:,} pending, "
            f"idle {c['idle_ms'] / 1000:,.0f} s"
            for c in sorted(waiting, key=lambda c: -c["pending"])[:10]
        ]
    if not status["groups"]:
        lines.append("No group reads this stream.")
    lines += [f"Newest: {e['id']}  {one_line(' '.join(e['fields']))}" for e in status["samples"]]
    return "\n".join(lines)


def _known(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"
