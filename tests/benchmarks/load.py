"""Loading and deciding the backlog, what `drainkit --help` costs, and how it grows; prints tables.

python tests/benchmarks/load.py [--entries 1000000] [--rounds 3] [--kind redis] [--sizes 10000 ...]
"""

from __future__ import annotations

import argparse
import json
import resource
import socket
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import rig
from rig import KEY, Result, measured


def drainkit(url: str, entries: str) -> Result:
    """The frame of the analysis notebook, and its decision as a step of its own."""
    import numpy as np
    import pandas as pd
    import pyarrow.compute  # noqa: F401 - the bare imports, which memory is measured above

    from drainkit.core.events import Events, decoder_of
    from drainkit.core.frame import decide_frame, load_frame
    from drainkit.core.policy import Policy, decide
    from drainkit.server import reading
    from drainkit.server.connection import Server
    from drainkit.settings import build

    settings = build({"redis_url": url, "stream": KEY})
    rules = Policy(rig.MAX_AGE_MIN, frozenset(rig.ALLOWLIST), rig.MIN_CONF)
    result: Result = {}
    with Server(url, KEY) as server:
        now_us = server.now_us()
        with measured(result):
            pages = reading.pages(
                server, KEY.encode(), reading.FIRST_ID, reading.LAST_ID, ahead=True
            )
            frame = load_frame(pages, decoder_of(settings))
    assert isinstance(frame, pd.DataFrame)
    assert len(frame) == int(entries)
    result["frame_mb"] = frame.memory_usage(deep=True).sum() / 2**20
    decided: Result = {}
    events = Events.from_frame(frame)
    with measured(decided):
        decisions = decide(events, rules, now_us)
    result["decide_sec"] = decided["sec"]
    with measured(decided):
        actions = decide_frame(frame, rules, now_us)["action"]
    result["decide_frame_sec"] = decided["sec"]
    assert np.array_equal(actions.cat.codes, decisions.action)
    return result


def lean(url: str, entries: str) -> Result:
    """A lean plain loop: xrange by 1,000, json, a list of tuples, a DataFrame, parsed times."""
    import pandas as pd
    import redis

    result: Result = {}
    client = redis.Redis.from_url(url)
    rows: list[tuple[object, ...]] = []
    with measured(result):
        first = "-"
        while page := client.xrange(KEY, min=first, count=1000):
            for entry_id, fields in page:
                rows.append((entry_id.decode(), *_values(fields)))
            first = b"(" + page[-1][0]
        names = ["id", "symbol", "side", "confidence", "timestamp", "source"]
        frame = pd.DataFrame(rows, columns=names)
        frame["confidence"] = pd.to_numeric(frame["confidence"], errors="coerce")
        numbers = pd.to_numeric(frame["timestamp"], errors="coerce")
        texts = frame["timestamp"].where(numbers.isna())
        frame["event_time"] = pd.to_datetime(
            texts, format="ISO8601", utc=True, errors="coerce"
        ).fillna(pd.to_datetime(numbers, unit="ms", utc=True))
    assert len(frame) == int(entries)
    client.close()
    return result


def _values(fields: dict[bytes, bytes]) -> tuple[object, ...]:
    body = fields.get(b"payload") or fields.get(b"data")
    try:
        if body is None:
            found = {name.decode(): value.decode() for name, value in fields.items()}
        else:
            found = json.loads(body)
        get = found.get
    except (ValueError, AttributeError):
        return (None,) * 5
    return get("symbol"), get("side"), get("confidence"), get("timestamp"), get("source")


def raw_socket(url: str, entries: str) -> Result:
    """The same pages read from a socket and thrown away: the server alone."""
    from drainkit.server.reading import PAGE_ENTRIES

    host, port = url.removeprefix("redis://").partition("/")[0].split(":")
    ids = _page_ends(url, PAGE_ENTRIES)
    result: Result = {}
    with socket.create_connection((host, int(port))) as link:
        buffer = memoryview(bytearray(1 << 20))
        # an ECHO after each page tells where it ends, so that nothing need be parsed
        mark = b"$9\r\npage-over\r\n"
        with measured(result):
            for first in ids:
                link.sendall(b"XRANGE %b (%b + COUNT %d\r\n" % (KEY.encode(), first, PAGE_ENTRIES))
                link.sendall(b"ECHO page-over\r\n")
                tail = b""
                while not tail.endswith(mark):
                    n = link.recv_into(buffer)
                    tail = (tail + bytes(buffer[max(0, n - 32) : n]))[-32:]
    result["pages"] = len(ids)
    assert len(ids) == -(-int(entries) // PAGE_ENTRIES)
    return result


def _page_ends(url: str, page: int) -> list[bytes]:
    import redis

    ends = [b"0-0"]
    with redis.Redis.from_url(url) as client:
        while found := client.xrange(KEY, min=b"(" + ends[-1], count=page):
            ends.append(found[-1][0])
    return ends[:-1]


def help_() -> Result:
    """CPU seconds of `drainkit --help`, measured as those of an ended child."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    program = Path(sys.executable).parent / "drainkit"
    subprocess.run([program, "--help"], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"cpu_sec": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


WORKS = {"drainkit": drainkit, "lean": lean, "raw": raw_socket}


def compare(server: Any, n: int, rounds: int) -> None:
    """Ours, the lean loop and the server alone, side by side."""

    def run(name: str) -> Result:
        return rig.child(Path(__file__), name, server.tcp_url, str(n))

    found = rig.in_turns(
        {name: lambda name=name: run(name) for name in WORKS},  # type: ignore[misc]
        rounds,
    )
    ours, plain, alone = found["drainkit"], found["lean"], found["raw"]
    help_sec = rig.in_turns({"help": help_}, max(3, rounds))["help"]["cpu_sec"]
    print(rig.title(server) + f" of {rounds}\n")
    per_million = 1e6 / n
    rig.table(
        [
            (f"load {n:,}: lean plain loop", f"{plain['sec']:.2f} s",
             f"{plain['sec'] / ours['sec']:.1f} times ours", "at least 4.5"),
            (f"load {n:,}: server alone", f"{alone['sec']:.2f} s",
             f"ours is {ours['sec'] / alone['sec']:.1f} times it", "at most 3"),
            (f"load {n:,}: drainkit", f"{ours['sec']:.2f} s",
             f"{n / ours['sec']:,.0f} entries/s", ""),
            ("load: memory above the imports, per million", f"{ours['peak_mb']:.0f} MB",
             f"{ours['peak_mb'] * per_million:.0f} MB (lean loop "
             f"{plain['peak_mb'] * per_million:.0f})", "at most 120 MB"),
            ("load: the frame itself", f"{ours['frame_mb']:.0f} MB", "", ""),
            (f"decide {n:,} events", f"{ours['decide_sec']:.3f} s", "", "at most 0.3 s"),
            (f"decide {n:,} rows of the frame, as a frame",
             f"{ours['decide_frame_sec']:.3f} s", "", ""),
            ("drainkit --help, CPU", f"{help_sec:.2f} s", "", "at most 0.3 s"),
        ],
        ("Work", "Median", "Ratio", "Target"),
    )  # fmt: skip


def scale(kind: str, sizes: list[int], rounds: int) -> None:
    """How the cost grows: the load and a live drain of backlogs of several sizes."""
    import live

    rows = []
    for n in sizes:
        with rig.filled_server(kind, n) as server:
            runs = [rig.child(Path(__file__), "drainkit", server.tcp_url, str(n))
                    for _ in range(rounds)]  # fmt: skip
            load_sec = statistics.median(run["sec"] for run in runs)
            load_mb = statistics.median(run["peak_mb"] for run in runs)
            drain = live.measure(server, n, ["drainkit"], rounds)["drainkit"]
        rows.append((f"{n:,}", f"{load_sec:.2f} s", f"{load_sec / n * 1e6:.2f} us",
                     f"{load_mb:.0f} MB", f"{drain['sec']:.2f} s",
                     f"{drain['sec'] / n * 1e6:.2f} us", f"{drain['peak_mb']:.1f} MB"))  # fmt: skip
    rig.table(rows, ("Entries", "Load", "each", "memory", "Live drain", "each", "memory"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kind", default="redis")
    sizes = [10_000, 100_000, 1_000_000, 3_000_000]
    parser.add_argument("--sizes", type=int, nargs="+", default=sizes)
    given = parser.parse_args()
    with rig.filled_server(given.kind, given.entries) as server:
        compare(server, given.entries, given.rounds)
    scale(given.kind, given.sizes, given.rounds)


if __name__ == "__main__":
    if not rig.as_child(WORKS):
        main()
