"""Finds the primary that holds the stream: single server, Sentinel, Cluster, TLS, unix socket."""

from __future__ import annotations

import re
import urllib.parse
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import (
    Connection,
    ConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.crc import key_slot
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from ..errors import RefusedError, SlotMovedError, UnreachableError, UsageError

CONNECT_TIMEOUT_SEC = 5.0
REPLY_TIMEOUT_SEC = 10.0
# redis-py's own retries would send a commit twice
_TIMEOUTS: dict[str, Any] = {
    "retry": Retry(NoBackoff(), 0),
    "retry_on_error": [],
    "socket_connect_timeout": CONNECT_TIMEOUT_SEC,
    "socket_timeout": REPLY_TIMEOUT_SEC,
}
URL_FORMS = (
    "redis://, rediss://, unix://, redis+sentinel://HOST:PORT,.../SERVICE or redis+cluster://"
)
# replies, though redis-py takes some of them for the end of a connection
ERROR_REPLIES = (
    redis.ResponseError,
    redis.AuthenticationError,
    redis.exceptions.AuthorizationError,
    redis.BusyLoadingError,
)
_AT_LOGIN: dict[str, type[redis.RedisError]] = {
    "NOPERM": redis.ResponseError,
    "DB index is out of range": redis.ResponseError,
    "LOADING": redis.BusyLoadingError,
    "WRONGPASS": redis.AuthenticationError,
    "without any password configured": redis.AuthenticationError,
    "no password is set": redis.AuthenticationError,
    "NOAUTH": redis.AuthenticationError,
    "unknown command": redis.AuthenticationError,
}
_SCHEMES = re.compile(r"(rediss?|unix|rediss?\+sentinel|rediss?\+cluster)://")


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


def find(url: str) -> Connection:
    """The first connection that opens: the server, a Cluster's node, or Sentinel's primary."""
    if not _SCHEMES.match(url):
        raise UsageError(f"--redis-url must start with one of {URL_FORMS}")
    scheme, _, rest = url.partition("://")
    if "+" not in scheme:
        return connect(url)
    base, _, topology = scheme.partition("+")
    _check_password(url)
    login, hosts, path = _split(rest)
    if topology == "cluster":
        return _first_answering([f"{base}://{login}{seed}/{path}" for seed in hosts.split(",")])
    path, _, query = path.partition("?")
    service, _, db = path.partition("/")
    if not service:
        raise UsageError("--redis-url: name the service, redis+sentinel://HOST:PORT/SERVICE")
    options = f"?{query}" if query else ""
    host, port = _primary_of(service, [f"{base}://{seed}/0{options}" for seed in hosts.split(",")])
    return connect(f"{base}://{login}{_netloc(host, port)}/{db or 0}{options}")


def _primary_of(service: str, urls: list[str]) -> tuple[str, int]:
    """Where the service's primary is, as the first of the Sentinels that answers says."""
    seeds = [parse_url(url) for url in urls]
    options = {k: v for k, v in seeds[0].items() if k not in ("host", "port", "db")}
    options |= {"ssl": options.pop("connection_class", None) is SSLConnection, **_TIMEOUTS}
    places = [(seed.get("host", "localhost"), seed.get("port", 26379)) for seed in seeds]
    try:
        with _login():
            return Sentinel(places, sentinel_kwargs=options).discover_master(service)  # type: ignore
    except MasterNotFoundError as error:
        if " : " in str(error):  # the text after it says which Sentinels did not answer
            raise redis.ConnectionError("no Sentinel answers") from error
        raise UnreachableError(f"Sentinel knows no service {service}; check the URL") from None


def owner_node(url: str, link: Connection, key: bytes) -> Connection:
    """A connection to the Cluster node that serves `key`; `link` leads to any of its nodes."""
    if not url.startswith("unix:"):
        host, port = _slot_owner(link, key)
        link.disconnect()
        return node(url, host, port)
    try:  # a socket leads to one node only
        link.send_command("EXISTS", key)
        link.read_response()
    except redis.exceptions.MovedError:
        raise UsageError(
            "--redis-url: this socket is that of a Cluster's node which does not serve the "
            "stream's slot; name the node by host and port"
        ) from None
    return link


def node(url: str, host: str, port: int) -> Connection:
    """A connection to one Cluster node with the URL's own login and TLS options."""
    scheme, _, rest = url.partition("://")
    login, seeds, path = _split(rest)
    first = urllib.parse.urlsplit(f"//{seeds.split(',')[0]}").hostname or "localhost"
    return connect(f"{scheme.partition('+')[0]}://{login}{_netloc(host or first, port)}/{path}")


def _split(rest: str) -> tuple[str, str, str]:
    """What follows `://` as login (with its @), hosts, and path with options."""
    place, mark, options = rest.partition("?")
    credentials, at, tail = place.rpartition("@")
    hosts, _, path = tail.partition("/")
    return credentials + at, hosts, path + mark + options


def connect(url: str) -> Connection:
    """A connection as the URL says; UsageError for a URL that means nothing to redis-py."""
    _check_options(url)
    try:
        pool = ConnectionPool(
            protocol=2,
            decode_responses=False,
            socket_read_size=1 << 20,
            **{**_TIMEOUTS, **parse_url(url)},
        )
        link = pool.make_connection()
    except (ValueError, TypeError, AttributeError):
        # the message may quote a part of the URL, and so of the password
        raise UsageError(f"--redis-url is not valid; write {URL_FORMS}") from None
    if not isinstance(link, Connection | SSLConnection | UnixDomainSocketConnection):
        raise UsageError(f"--redis-url is not valid; write {URL_FORMS}")
    with _login():
        link.connect()  # type: ignore[no-untyped-call]
    return link  # type: ignore[return-value]


@contextmanager
def _login() -> Iterator[None]:
    """The errors of a login; a server may repeat what it was told, so no other text is shown."""
    try:
        yield
    except redis.exceptions.InvalidResponse:
        raise redis.exceptions.InvalidResponse from None
    except (*ERROR_REPLIES, ValueError) as error:  # redis-py reads some replies, MOVED say
        said = f"{getattr(error, 'status_code', None)} {error}"
        known = next((text for text in _AT_LOGIN if text in said), "what it says is not shown")
        raise _AT_LOGIN.get(known, redis.AuthenticationError)(known) from None


def _check_password(url: str) -> None:
    """Refuse a password's own # or ?: what follows would be taken for a host or an option."""
    query = url.partition("?")[2]
    if "#" in url or not re.fullmatch(r"(?:[A-Za-z_%\d]+=[^&]*(?:&|$))*", query):
        raise UsageError(
            "--redis-url: a # or ? of the password stands as it is; write %23 for #, %3F for ?, "
            "%2F for /, %40 for @"
        )


def _check_options(url: str) -> None:
    """Refuse what redis-py would take for something else, or what drainkit does not speak."""
    _check_password(url)
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        raise UsageError(f"--redis-url is not valid; write {URL_FORMS}") from None
    if parts.scheme != "unix" and not re.fullmatch(r"/?\d*", parts.path):
        raise UsageError("--redis-url: what follows the host must be the database's number")
    if "protocol" in urllib.parse.parse_qs(parts.query):
        raise UsageError("--redis-url: leave out protocol=; drainkit speaks RESP2")


def _first_answering(urls: list[str]) -> Connection:
    """A connection to the first of `urls` that answers."""
    failures: deque[Exception] = deque(maxlen=1)
    for url in urls:
        try:
            return connect(url)
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            failures.append(error)
    raise failures[0]


def read_info(link: Connection) -> ServerInfo:
    """Who is at the other end, as INFO says."""
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


def _slot_owner(link: Connection, key: bytes) -> tuple[str, int]:
    slot = key_slot(key)
    link.send_command("CLUSTER", "SLOTS")
    for first, last, (host, port, *_), *_ in link.read_response(disable_decoding=True):
        if first <= slot <= last:
            return (host or b"").decode(), int(port)
    raise SlotMovedError("no node of the Cluster serves the stream's slot; check the Cluster")


def hash_tag(key: bytes) -> bytes:
    """The tag that decides a key's slot (redis.io, Cluster specification), or b""."""
    _, opened, rest = key.partition(b"{")
    tag, closed, _ = rest.partition(b"}")
    return tag if opened and closed else b""


def _netloc(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
