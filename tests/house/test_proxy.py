"""The tests' proxy does what it is told, on real connections."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
import servers
from hypothesis import given
from hypothesis import strategies as st
from proxy import Proxy, frame_end, frames
from redis.backoff import NoBackoff
from redis.retry import Retry
from servers import Server


def _through(proxy: Proxy, **options: Any) -> redis.Redis:
    return redis.Redis.from_url(proxy.url, retry=Retry(NoBackoff(), 0), **options)


StartProxy = Callable[..., Proxy]


@pytest.mark.parametrize("tcp", [False, True])
def test_without_a_fault_everything_passes(
    server: Server, start_proxy: StartProxy, tcp: bool
) -> None:
    """Pipelines, large values and every reply type pass unchanged, in RESP2 and RESP3."""
    proxy = start_proxy(server, tcp=tcp)
    for protocol in (2, 3):
        with _through(proxy, protocol=protocol) as client, client.pipeline() as pipe:
            big = os.urandom(3_000_000)
            pipe.set("big", big).get("big").get("none").hset("h", mapping={"a": "1"})
            pipe.hgetall("h").xadd("s", {"a": "1"}, id=b"%d-0" % protocol).xrange("s")
            replies = pipe.execute()
            assert replies[1] == big
            assert replies[2] is None
            assert replies[4] == {b"a": b"1"}
            assert replies[6][-1] == (b"%d-0" % protocol, {b"a": b"1"})
    assert proxy.commands[b"XADD"] == 2
    assert proxy.requests > 14


@pytest.mark.parametrize("kind", ["cut_before", "cut_after", "half_reply", "black_hole"])
def test_a_fault_hits_the_nth_matching_request(
    valkey: Server, start_proxy: StartProxy, kind: Any
) -> None:
    """The third INCR is hit, none before or after; it ran exactly where the fault says so."""
    proxy = start_proxy(valkey)
    proxy.arm(kind, match=b"INCR", nth=3)
    with _through(proxy, socket_timeout=0.5) as client:
        assert client.incr("n") == 1
        assert client.set("other", "x")
        assert client.incr("n") == 2
        with pytest.raises((redis.ConnectionError, redis.TimeoutError)):
            client.incr("n")
        assert proxy.fired == 1
        ran = kind in ("cut_after", "half_reply")
        assert valkey.client().get("n") == (b"3" if ran else b"2")
        assert client.incr("n") == (4 if ran else 3)
    assert proxy.fired == 1


@pytest.mark.parametrize(("kind", "ran"), [("cut_before", 2), ("cut_after", 3)])
def test_in_a_pipeline_the_requests_before_get_their_replies(
    valkey: Server, start_proxy: StartProxy, kind: Any, ran: int
) -> None:
    """Of five pipelined requests the third is hit: two replies come, the last two never run."""
    proxy = start_proxy(valkey)
    with _through(proxy) as client:
        client.ping()
        connection = client.connection_pool.get_connection()
        proxy.arm(kind, match=b"RPUSH", nth=3)
        connection.send_packed_command(
            connection.pack_commands([("RPUSH", "list", number) for number in range(5)])
        )
        assert [connection.read_response(), connection.read_response()] == [1, 2]
        with pytest.raises(redis.ConnectionError):
            connection.read_response()
        client.connection_pool.release(connection)
    assert valkey.client().llen("list") == ran


def test_half_a_reply_is_half_a_reply(valkey: Server, start_proxy: StartProxy) -> None:
    """The client gets the first half of the bytes and then the end of the connection."""
    valkey.client().set("key", "0123456789")
    proxy = start_proxy(valkey)
    with _through(proxy) as client:
        connection = client.connection_pool.get_connection()
        proxy.arm("half_reply", match=b"GET")
        connection.send_command("GET", "key")
        servers.wait_until("it is hit", lambda: proxy.fired == 1)
        wire = connection._sock
        assert wire is not None
        received = b""
        while chunk := wire.recv(100):
            received += chunk
        assert received == b"$10\r\n012"  # 8 of 17 bytes
        client.connection_pool.release(connection)


@pytest.mark.parametrize("kind", ["delay_request", "delay_reply"])
def test_a_delay_delays_the_request_or_the_reply(
    valkey: Server, start_proxy: StartProxy, kind: Any
) -> None:
    """A client that gave up waiting: its request ran at once, or runs after it has left."""
    proxy = start_proxy(valkey)
    with _through(proxy, socket_timeout=0.2) as client:
        client.ping()
        proxy.arm(kind, match=b"SET", delay_sec=0.6)
        with pytest.raises(redis.TimeoutError):
            client.set("key", "value")
        assert (valkey.client().get("key") is not None) == (kind == "delay_reply")
    servers.wait_until("it ran", lambda: valkey.client().get("key") == b"value")


def test_a_delay_in_time_only_slows(valkey: Server, start_proxy: StartProxy) -> None:
    """A delay shorter than the client's patience changes the time and nothing else."""
    proxy = start_proxy(valkey)
    with _through(proxy) as client:
        client.ping()
        proxy.arm("delay_reply", match=b"GET", delay_sec=0.3)
        began = time.monotonic()
        assert client.get("none") is None
        assert time.monotonic() - began >= 0.3


def test_faults_are_switched_at_run_time(valkey: Server, start_proxy: StartProxy) -> None:
    """A fault without end hits every request until it is disarmed, from another thread too."""
    proxy = start_proxy(valkey)
    with _through(proxy) as client:
        client.ping()
        proxy.arm("cut_before", match=b"PING", times=None)
        for _ in range(3):
            with pytest.raises(redis.ConnectionError):
                client.ping()
        assert proxy.fired == 3
        proxy.disarm()
        assert client.ping()
        proxy.arm("cut_after", match=b"PING")
        other = threading.Timer(0.05, proxy.arm, ["cut_before"], {"match": b"GET"})
        other.start()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        other.join()
        with pytest.raises(redis.ConnectionError):
            client.get("none")
        proxy.wait_fired()
        proxy.cut_all()
        assert client.get("none") is None
    proxy.arm("cut_before")
    with pytest.raises(TimeoutError):
        proxy.wait_fired(0)


_values = st.recursive(
    st.one_of(
        st.integers(-(2**63), 2**63 - 1).map(lambda number: b":%d\r\n" % number),
        st.sampled_from([b"+OK\r\n", b"-ERR no\r\n", b"$-1\r\n", b"*-1\r\n", b"_\r\n", b"#t\r\n"]),
        st.binary(max_size=40).map(lambda data: b"$%d\r\n%b\r\n" % (len(data), data)),
        st.text("ab", max_size=9).map(
            lambda data: b"=%d\r\ntxt:%b\r\n" % (len(data) + 4, data.encode())
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda items: b"*%d\r\n" % len(items) + b"".join(items)),
        st.lists(inner, max_size=4).map(lambda items: b">%d\r\n" % len(items) + b"".join(items)),
        st.lists(st.tuples(inner, inner), max_size=3).map(
            lambda pairs: b"%%%d\r\n" % len(pairs) + b"".join(k + v for k, v in pairs)
        ),
        st.tuples(inner, inner, inner).map(lambda three: b"|1\r\n" + b"".join(three)),
    ),
    max_leaves=12,
)


@given(st.lists(_values, max_size=4), st.binary(max_size=3))
def test_frames_are_found_whole_and_only_whole(values: list[bytes], rest: bytes) -> None:
    """Values in a row are cut apart exactly, and no proper beginning of one passes for it."""
    buffer = bytearray(b"".join(values) + b"$9\r\n" + rest)
    assert list(frames(buffer)) == values
    assert buffer == b"$9\r\n" + rest
    for value in values:
        assert all(frame_end(value[:length]) is None for length in range(len(value)))
