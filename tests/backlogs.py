"""Backlogs: streams as the tests need them, and who reads and adds to them meanwhile."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

import redis
from conftest import intent
from servers import Server

Fields = Mapping[Any, Any] | Sequence[Any]
GROUP = "quantum:group:execution:trade.intent"
ME = "backlog_drain_1"
ALLOW = "BTCUSDT,ETHUSDT"
SYMBOLS = ("BTCUSDT", "ETHUSDT", "DOGEUSDT")


def backlog(now_ms: int, n: int, *, gap_ms: int = 100) -> list[tuple[str, dict[str, object]]]:
    """n entries that end at `now_ms`, some of them malformed, so that every filter drops some."""
    entries: list[tuple[str, dict[str, object]]] = []
    for i in range(n):
        ms = now_ms - (n - i) * gap_ms
        event: dict[str, object] = {
            "symbol": SYMBOLS[i % 3],
            "side": "BUY",
            "confidence": round((i * 37 % 100) / 100, 2),
            "timestamp": ms,
            "source": "ai-engine",
        }
        fields: dict[str, object] = {"payload": json.dumps(event)} if i % 2 else event
        if i % 17 == 5:
            fields = {"payload": "{broken"}
        entries.append((f"{ms}-{i % 3}", fields))
    return entries


def fill(
    where: Server | redis.Redis,
    stream: str | bytes,
    entries: Iterable[tuple[bytes | str | int, Fields]],
    *,
    group: str | None = None,
    position: str = "0-0",
) -> list[bytes]:
    """Puts entries with explicit ids into a stream and answers the ids.

    An id is bytes, text ("1700000000000-0") or milliseconds as int; fields are a mapping or the
    flat list field, value, field, value (so that a field can occur twice). `group` is created
    at `position` (on an empty stream too).
    """
    client: Any = where.client() if isinstance(where, Server) else where
    ids: list[bytes] = []
    left = iter(entries)
    while batch := list(islice(left, 2000)):
        # not in a transaction, and no retry: an id that is sent twice is refused the second time
        with client.pipeline(transaction=False) as pipe:
            for entry, fields in batch:
                flat = chain(*fields.items()) if isinstance(fields, Mapping) else fields
                pipe.execute_command(
                    "XADD", stream, f"{entry}-0" if isinstance(entry, int) else entry, *flat
                )
            ids.extend(pipe.execute())
    if group is not None:
        client.execute_command("XGROUP", "CREATE", stream, group, position, "MKSTREAM")
    return ids


def seed(server: Server, stream: str, n: int = 300, *, delivered: int = 100) -> list[str]:
    """A stream of n recent entries whose group has had the first `delivered`; answers the ids."""
    client = server.client()
    seconds, micros = client.time()
    entries = backlog(seconds * 1000 + micros // 1000, n)
    position = entries[delivered - 1][0] if delivered else "0-0"
    fill(client, stream, entries, group=GROUP, position=position)
    return [entry_id for entry_id, _ in entries]


def original_backlog() -> list[tuple[str, dict[str, object]]]:
    """The stream of the original report: 10,009 entries of history and the three after them."""
    first = 1766594572014 - 10_009
    told = [
        *((first + i, "CFXUSDT", 0.68, "trading-bot") for i in range(1, 10_010)),
        (1766602826755, "TESTUSDT", 0.75, "manual_test"),
        (1766602892766, "TESTUSDT", 0.99, "manual_test_phase_e"),
        (1766604066005, "RENDERUSDT", 0.72, "v35_probe"),
    ]
    return [
        (f"{ms}-0", {"symbol": symbol, "side": "BUY", "confidence": conf, "source": source})
        for ms, symbol, conf, source in told
    ]


@contextmanager
def producing(
    server: Server,
    stream: str,
    per_sec: float = math.inf,
    *,
    begin: threading.Event | None = None,
    **options: Any,
) -> Iterator[list[bytes]]:
    """A producer at work beside what is within; the ids that it adds, by XADD's `options`.

    With `begin` it waits until that is set.
    """
    ids: list[bytes] = []
    done = threading.Event()

    def produce() -> None:
        client: Any = server.client()
        if begin:
            begin.wait()
        started = time.monotonic()
        while not done.wait(0.002):
            while len(ids) < (time.monotonic() - started) * per_sec and not done.is_set():
                ids.append(client.xadd(stream, intent(), **options))

    thread = threading.Thread(target=produce)
    thread.start()
    try:
        yield ids
    finally:
        done.set()
        if begin:
            begin.set()
        thread.join()


def deliver(
    server: Server, stream: str, consumer: str | bytes, n: int, group: str = GROUP
) -> list[str]:
    """Delivers the next n entries to a consumer that never acknowledges them; answers their ids."""
    reply = server.ask("XREADGROUP", "GROUP", group, consumer, "COUNT", n, "STREAMS", stream, ">")
    return [entry[0].decode() for entry in (reply[0][1] if reply else ())]


def add_consumers(server: Server, stream: str, n: int) -> None:
    """n consumers of the group, c0 and on, that have nothing."""
    pipe = server.client().pipeline(transaction=False)
    for i in range(n):
        pipe.execute_command("XGROUP", "CREATECONSUMER", stream, GROUP, f"c{i}")
    pipe.execute()


def now_ms(server: Server) -> int:
    """The server's clock in milliseconds."""
    seconds, micros = server.ask("TIME")
    return int(seconds) * 1000 + int(micros) // 1000
