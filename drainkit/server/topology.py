"""Finds the primary that holds the stream: single server, Sentinel, Cluster, TLS, unix socket."""

from __future__ import annotations

import re
import urllib.parse
from collections import deque
from dataclasses import dataclass

import redis
from redis.backoff import NoBackoff
from redis.connection import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.retry import Retry

from ..errors import RefusedError, UnreachableError, UsageError

CONNECT_TIMEOUT_SEC = 5.0
REPLY_TIMEOUT_SEC = 10.0
URL_FORMS = (
    "redis://, rediss://, unix://, redis+sentinel://HOST:PORT,.../SERVICE or redis+cluster://"
)
SCHEMES = re.compile(r"(rediss?|unix|rediss?\+sentinel|rediss?\+cluster)://")


@dataclass(frozen=True)
class ServerInfo:
    """Who answered, as INFO says."""

    kind: str  # "redis", "valkey", ...
    version: str
    run_id: str  # changes when the server restarts or another one takes over
    role: str  # "master" or "slave"
    cluster: bool

    @property
    def version_tuple(self) -> tuple[int, ...]:
        """The version for comparison, such as (6, 2, 14)."""
        return tuple(int(part) for part in re.findall(r"\d+", self.version)[:3])


def check_primary(info: ServerInfo) -> None:
    """Refuse to write to a replica."""
    if info.role != "master":
        raise RefusedError("this Redis is a replica; point --redis-url at the primary")


def connect(url: str) -> Connection:
    _check_options(url)
    try:
        pool = ConnectionPool.from_url(
            url,
            protocol=2,
            decode_responses=False,
            retry=Retry(NoBackoff(), 0),
            retry_on_error=[],
            socket_connect_timeout=CONNECT_TIMEOUT_SEC,
            socket_read_size=1 << 20,
            **({} if "socket_timeout=" in url else {"socket_timeout": REPLY_TIMEOUT_SEC}),
        )
        link = pool.make_connection()
    except (ValueError, TypeError, AttributeError):
        # the message may quote a part of the URL, and so of the password
        raise UsageError(f"--redis-url is not valid; write {URL_FORMS}") from None
    if not isinstance(link, Connection | SSLConnection | UnixDomainSocketConnection):
        raise UsageError(f"--redis-url is not valid; write {URL_FORMS}")
    link.connect()  # type: ignore[no-untyped-call]
    return link  # type: ignore[return-value]


def _check_options(url: str) -> None:
    """Refuse what redis-py would take for something else, or what drainkit does not speak."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        raise UsageError(f"--redis-url is not valid; write {URL_FORMS}") from None
    if parts.scheme != "unix" and not re.fullmatch(r"/?\d*", parts.path):
        raise UsageError("--redis-url: what follows the host must be the database's number")
    if "protocol" in urllib.parse.parse_qs(parts.query):
        raise UsageError("--redis-url: leave out protocol=; drainkit speaks RESP2")


def first_answering(urls: list[str]) -> Connection:
    """A connection to the first of `urls` that answers."""
    failures: deque[Exception] = deque(maxlen=1)
    for url in urls:
        try:
            return connect(url)
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            failures.append(error)
    raise failures[0]


def read_info(link: Connection) -> ServerInfo:
    values: dict[str, str] = {}
    for section in ("server", "replication", "cluster"):
        link.send_command("INFO", section)
        text = link.read_response(disable_decoding=True).decode("utf-8", "replace")
        values |= dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    kind = values.get("server_name", "redis")
    version = values.get(f"{kind}_version") or values.get("redis_version", "0")
    return ServerInfo(
        kind=kind,
        version=version,
        run_id=values.get("run_id", ""),
        role=values.get("role", ""),
        cluster=values.get("cluster_enabled") == "1",
    )


def slot_owner(link: Connection, key: bytes) -> tuple[str, int]:
    link.send_command("CLUSTER", "KEYSLOT", key)
    slot = link.read_response()
    link.send_command("CLUSTER", "SLOTS")
    for first, last, (host, port, *_), *_ in link.read_response(disable_decoding=True):
        if first <= slot <= last:
            return (host or b"").decode(), int(port)
    raise UnreachableError("no node of the Cluster serves the stream's slot; check the Cluster")


def check_owner(link: Connection, key: bytes) -> None:
    """Refuse a node that does not serve the key: a socket does not lead to the one that does."""
    try:
        link.send_command("EXISTS", key)
        link.read_response()
    except redis.exceptions.MovedError:
        raise UsageError(
            "--redis-url: this socket is that of a Cluster's node which does not serve the "
            "stream's slot; name the node by host and port"
        ) from None


def hash_tag(key: bytes) -> bytes:
    """The tag that decides a key's slot (redis.io, Cluster specification), or b""."""
    _, opened, rest = key.partition(b"{")
    tag, closed, _ = rest.partition(b"}")
    return tag if opened and closed else b""


def netloc(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
