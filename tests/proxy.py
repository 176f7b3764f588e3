"""A proxy between a client and a server that breaks the connection in chosen ways.

It reads RESP on both sides, so a fault hits exactly one request, also in a pipeline: the
requests before it get their replies, and what the server did or did not do is certain.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from servers import Running

FaultKind = Literal[
    "cut_before",  # the connection ends; the server never sees the request
    "cut_after",  # the server executes the request; the connection ends without a reply
    "half_reply",  # the server executes it; half of its reply comes, then the connection ends
    "delay_request",  # the request reaches the server `delay_sec` late, even if the client left
    "delay_reply",  # the server executes it at once; the reply comes `delay_sec` late
    "black_hole",  # the request and all that follow on its connection vanish; it stays open
]

_LINE_TYPES = b"+-:_,#("
_BULK_TYPES = b"$=!"
_ITEMS = {ord("*"): 1, ord("~"): 1, ord(">"): 1, ord("%"): 2, ord("|"): 2}


def frame_end(data: bytes | bytearray, start: int = 0) -> int | None:
    """The offset behind the RESP value (RESP2 and RESP3) at `start`; None when incomplete."""
    open_values = 1
    at = start
    while open_values:
        newline = data.find(b"\r\n", at)
        if newline < 0:
            return None
        kind, line = data[at], data[at + 1 : newline]
        at = newline + 2
        open_values -= 1
        if kind in _BULK_TYPES:
            length = int(line)
            at += length + 2 if length >= 0 else 0
            if at > len(data):
                return None
        elif kind in _ITEMS:
            open_values += max(0, int(line)) * _ITEMS[kind]
            open_values += kind == ord("|")  # attributes stand before the value they describe
        elif kind not in _LINE_TYPES:
            raise ValueError(f"no RESP: {bytes(data[start : start + 40])!r}")
    return at


def frames(buffer: bytearray) -> Iterator[bytes]:
    """Takes the complete RESP values off the front of `buffer`."""
    while buffer and (end := frame_end(buffer)) is not None:
        yield bytes(buffer[:end])
        del buffer[:end]


@dataclass
class _Fault:
    kind: FaultKind
    match: bytes
    nth: int
    times: int | None
    delay_sec: float
    seen: int = 0


@dataclass(eq=False)
class _Connection:
    client: socket.socket
    server: socket.socket
    #: what to do with the reply of each request that is under way, oldest first
    awaited: deque[_Fault | None] = field(default_factory=deque)
    idle: threading.Condition = field(default_factory=threading.Condition)
    closed: threading.Event = field(default_factory=threading.Event)

    def close(self) -> None:
        self.closed.set()
        with self.idle:
            self.idle.notify_all()
        for end in (self.client, self.server):
            # wakes the thread that reads it, which close() alone does not
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Proxy(Running):
    """Listens on a unix socket (`listen`), and talks to `upstream`.

    Without an armed fault it passes everything on. It knows RESP without MONITOR and SUBSCRIBE,
    whose replies belong to no request.
    """

    def __init__(self, upstream: Path, listen: Path) -> None:
        self.upstream = upstream
        self.fired = 0  #: requests hit by the fault armed last
        self._fault: _Fault | None = None
        self._lock = threading.Lock()
        self._hit = threading.Event()
        self._closing = threading.Event()
        self._connections: list[_Connection] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(listen))
        self._listener.listen()
        self.url = f"unix://{listen}?db=0"
        self._run(self._accept)

    def arm(
        self,
        kind: FaultKind,
        *,
        match: bytes = b"",
        nth: int = 1,
        times: int | None = 1,
        delay_sec: float = 0.0,
    ) -> None:
        """From now on: the `nth` request that contains `match`, and the ones that match after
        it until `times` are hit (None: until `disarm`). Replaces what was armed before.

        Mind that a new connection's own requests (HELLO, CLIENT SETINFO) match `b""` too.
        """
        with self._lock:
            self._fault = _Fault(kind, match, nth, times, delay_sec)
            self.fired = 0
            self._hit.clear()

    def disarm(self) -> None:
        """Passes everything on again, on new connections and on those not already broken."""
        with self._lock:
            self._fault = None

    def wait_fired(self, timeout_sec: float = 20.0) -> None:
        """Waits until a request was hit; raises TimeoutError when none is."""
        if not self._hit.wait(timeout_sec):
            raise TimeoutError("the armed fault hit no request")

    def cut_all(self) -> None:
        """Ends all connections that are open now."""
        for connection in list(self._connections):
            connection.close()

    def stop(self) -> None:
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(20)
        self.cut_all()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive(), "a thread of the proxy does not end"
        for connection in self._connections:
            connection.client.close()
            connection.server.close()

    # ------------------------------------------------------------ threads

    def _run(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = self._connect()
            except OSError:  # as a client sees a server that is down behind a real proxy
                client.close()
                continue
            connection = _Connection(client, server)
            self._connections.append(connection)
            self._run(self._pump_requests, connection)
            self._run(self._pump_replies, connection)

    def _connect(self) -> socket.socket:
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(str(self.upstream))
        except OSError:
            server.close()
            raise
        return server

    def _pump_requests(self, connection: _Connection) -> None:
        buffer = bytearray()
        with contextlib.suppress(OSError):
            while chunk := connection.client.recv(1 << 16):
                buffer += chunk
                for request in frames(buffer):
                    if not self._handle(connection, request):
                        return
        if not connection.closed.is_set():
            connection.close()

    def _handle(self, connection: _Connection, request: bytes) -> bool:
        """Passes one request on, or not; False when nothing more is to be read."""
        fault = self._match(request)
        if fault is not None:
            # what came before in the same pipeline gets its replies first
            with connection.idle:
                connection.idle.wait_for(
                    lambda: not connection.awaited or connection.closed.is_set(), 20
                )
            self._hit.set()
            if fault.kind == "cut_before":
                connection.close()
                return False
            if fault.kind == "black_hole":
                connection.closed.wait()
                return False
            if fault.kind == "delay_request":
                self._closing.wait(fault.delay_sec)
        connection.awaited.append(fault)
        connection.server.sendall(request)
        # what follows in the same pipeline must not run: the connection is about to end
        return fault is None or fault.kind not in ("cut_after", "half_reply")

    def _match(self, request: bytes) -> _Fault | None:
        with self._lock:
            fault = self._fault
            if fault is None or fault.match not in request:
                return None
            fault.seen += 1
            last = None if fault.times is None else fault.nth + fault.times
            if fault.seen < fault.nth or (last is not None and fault.seen >= last):
                return None
            self.fired += 1
            return fault

    def _pump_replies(self, connection: _Connection) -> None:
        buffer = bytearray()
        with contextlib.suppress(OSError):
            while chunk := connection.server.recv(1 << 16):
                buffer += chunk
                for reply in frames(buffer):
                    if not self._deliver(connection, reply):
                        connection.close()
                        return
        connection.close()

    def _deliver(self, connection: _Connection, reply: bytes) -> bool:
        """Hands one reply to the client, or not; False when the connection is to end."""
        is_push = reply.startswith(b">")
        fault = None if is_push else connection.awaited[0]
        if fault is not None and fault.kind == "cut_after":
            return False
        if fault is not None and fault.kind == "half_reply":
            connection.client.sendall(reply[: len(reply) // 2])
            return False
        if fault is not None and fault.kind == "delay_reply":
            self._closing.wait(fault.delay_sec)
        connection.client.sendall(reply)
        if not is_push:
            with connection.idle:
                connection.awaited.popleft()
                connection.idle.notify_all()
        return True


class SlowLink:
    """A network with a round trip to a server's unix socket: each byte comes half of it later."""

    def __init__(self, upstream: Path, round_trip_sec: float) -> None:
        self._upstream, self._delay_sec = upstream, round_trip_sec / 2
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(self._upstream))
                self._sockets += [client, server]
                for source, sink in ((client, server), (server, client)):
                    late: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
                    threading.Thread(target=self._take, args=(source, late), daemon=True).start()
                    threading.Thread(target=self._give, args=(sink, late), daemon=True).start()

    def _take(self, source: socket.socket, late: queue.SimpleQueue[tuple[float, bytes]]) -> None:
        chunk = b"-"
        while chunk:
            try:
                chunk = source.recv(1 << 16)
            except OSError:
                chunk = b""
            late.put((time.monotonic() + self._delay_sec, chunk))

    @staticmethod
    def _give(sink: socket.socket, late: queue.SimpleQueue[tuple[float, bytes]]) -> None:
        with contextlib.suppress(OSError):
            while True:
                due, chunk = late.get()
                time.sleep(max(0.0, due - time.monotonic()))
                if not chunk:
                    sink.shutdown(socket.SHUT_RDWR)
                    return
                sink.sendall(chunk)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._sockets:
            one.close()
