"""A proxy between a client and a server that breaks the connection in chosen ways, and a slow one.

The former reads RESP on both sides, so a fault hits exactly one request, also in a pipeline: the
requests before it get their replies, and what the server did or did not do is certain.
"""

from __future__ import annotations

import asyncio
import math
import threading
import uuid
from asyncio import StreamReader, StreamWriter
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from servers import Running

FaultKind = Literal[
    "cut_before",  # the connection ends; the server never sees the request
    "cut_after",  # the server executes the request; the connection ends without a reply
    "half_reply",  # the server executes it; half of its reply comes, then the connection ends
    "delay_request",  # the request reaches the server `delay_sec` late, even if the client left
    "delay_reply",  # the server executes it at once; the reply comes `delay_sec` late
    "black_hole",  # the request and all that follow on its connection vanish; it stays open
    "none",
]
LIMIT_BYTES = 1 << 20  # read ahead

T = TypeVar("T")


async def frame(source: StreamReader) -> bytes:
    """The next RESP value (RESP2 and RESP3), whole; EOFError at the connection's end."""
    line = await source.readuntil(b"\r\n")
    kind, follow = line[:1], 0
    if kind in b"$=!":
        length = int(line[1:])
        return line + (await source.readexactly(length + 2) if length >= 0 else b"")
    if kind in b"*~>":
        follow = int(line[1:])
    elif kind in b"%|":  # attributes stand before the value they describe
        follow = 2 * int(line[1:]) + (kind == b"|")
    elif kind not in b"+-:_,#(":
        raise ValueError(f"no RESP: {line[:40]!r}")
    return line + b"".join([await frame(source) for _ in range(follow)])


async def _close(*writers: StreamWriter) -> None:
    for writer in writers:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


@dataclass
class _Fault:
    kind: FaultKind
    match: bytes = b""
    nth: int = 1
    times: int | None = 1
    delay_sec: float = 0.0
    seen: int = field(default=0, init=False)


class Relay(Running):
    """Listens on a unix socket beside that of `upstream`, and passes on; in a thread."""

    def __init__(self, upstream: Path) -> None:
        self.upstream = upstream
        self.socket = upstream.with_name(f"p{uuid.uuid4().hex[:6]}")
        self.url = f"unix://{self.socket}?db=0"
        self._running: set[asyncio.Future[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        start = asyncio.start_unix_server(self._serve, self.socket, limit=LIMIT_BYTES)
        self._listener = self._do(start)

    def pumps(
        self, client: tuple[StreamReader, StreamWriter], server: tuple[StreamReader, StreamWriter]
    ) -> list[Coroutine[Any, Any, None]]:
        """What passes requests on, and what replies; the first that ends, ends the connection."""
        raise NotImplementedError

    def cut_all(self) -> None:
        """Ends all connections that are open now."""

        async def cut() -> None:
            for pump in self._running:
                pump.cancel()

        self._do(cut())

    def stop(self) -> None:
        async def end() -> None:
            self._listener.close()
            while others := asyncio.all_tasks() - {asyncio.current_task()}:
                for pump in self._running:
                    pump.cancel()
                await asyncio.wait(others, timeout=0.1)

        self._do(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()

    def _do(self, what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(20)

    async def _serve(self, *client: Any) -> None:
        try:
            server = await asyncio.open_unix_connection(str(self.upstream), limit=LIMIT_BYTES)
        except OSError:  # as a client sees a server that is down behind a real proxy
            await _close(client[1])
            return
        pumps = {*map(asyncio.ensure_future, self.pumps(client, server))}
        self._running |= pumps
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        await asyncio.wait(pumps)
        self._running -= pumps
        await _close(client[1], server[1])


class SlowLink(Relay):
    """A network with a round trip: each byte comes half of it later."""

    def __init__(self, upstream: Path, round_trip_sec: float) -> None:
        self._delay_sec = round_trip_sec / 2 - 0.0005  # an event loop wakes up so much late
        super().__init__(upstream)

    def pumps(self, client: Any, server: Any) -> list[Coroutine[Any, Any, None]]:
        return [self._late(client[0], server[1]), self._late(server[0], client[1])]

    async def _late(self, source: StreamReader, sink: StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await source.read(LIMIT_BYTES):
                self._loop.call_later(self._delay_sec, sink.write, chunk)
            await asyncio.sleep(self._delay_sec)


class Proxy(Relay):
    """Without an armed fault it passes everything on. It knows RESP without MONITOR and SUBSCRIBE,
    whose replies belong to no request.
    """

    def __init__(self, upstream: Path) -> None:
        self.fired = 0  #: requests hit by the fault armed last
        self._fault: _Fault | None = None
        self._hit = threading.Event()
        super().__init__(upstream)

    def arm(self, kind: FaultKind, **how: Any) -> None:
        """From now on: the `nth` request that contains `match`, and the ones that match after
        it until `times` are hit (None: until `disarm`); delays are of `delay_sec`. Replaces what
        was armed before.

        Mind that a new connection's own requests (HELLO, CLIENT SETINFO) match `b""` too.
        """
        self._fault, self.fired = _Fault(kind, **how), 0
        self._hit.clear()

    def disarm(self) -> None:
        """Passes everything on again, on new connections and on those not already broken."""
        self._fault = None

    def wait_fired(self, timeout_sec: float = 20.0) -> None:
        """Waits until a request was hit; raises TimeoutError when none is."""
        if not self._hit.wait(timeout_sec):
            raise TimeoutError("the armed fault hit no request")

    def pumps(self, client: Any, server: Any) -> list[Coroutine[Any, Any, None]]:
        return [self._one_by_one(*client, *server)]

    def _match(self, request: bytes) -> _Fault | None:
        fault = self._fault
        if fault is None or fault.match not in request:
            return None
        fault.seen += 1
        last = math.inf if fault.times is None else fault.nth + fault.times
        if not fault.nth <= fault.seen < last:
            return None
        self.fired += 1
        self._hit.set()
        return fault

    async def _one_by_one(
        self, asked: StreamReader, answer: StreamWriter, replies: StreamReader, ask: StreamWriter
    ) -> None:
        """Each request and its reply, of a pipeline too; it ends where the connection is to end."""
        with suppress(OSError, EOFError):
            while True:
                request = await frame(asked)
                fault = self._match(request) or _Fault("none")
                if fault.kind == "cut_before":
                    return
                if fault.kind == "black_hole":
                    await asyncio.Event().wait()
                if fault.kind == "delay_request":
                    await asyncio.sleep(fault.delay_sec)
                ask.write(request)
                while (reply := await frame(replies)).startswith(b">"):  # belongs to no request
                    answer.write(reply)
                if fault.kind == "half_reply":
                    answer.write(reply[: len(reply) // 2])
                if fault.kind in ("cut_after", "half_reply"):
                    return
                if fault.kind == "delay_reply":
                    await asyncio.sleep(fault.delay_sec)
                answer.write(reply)
                await answer.drain()
