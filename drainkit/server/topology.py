"""Finds the primary that holds the stream: single server, Sentinel, Cluster, TLS, unix socket."""

from __future__ import annotations

import itertools
import math
import re
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import redis
from redis.backoff import NoBackoff
from redis.connection import Connection, ConnectionPool, parse_url
from redis.crc import key_slot
from redis.retry import Retry

from ..errors import SlotMovedError, UnreachableError, UsageError

T = TypeVar("T")
Place = tuple[str, int]  # host and port
CONNECT_TIMEOUT_SEC = 5.0
REPLY_TIMEOUT_SEC = 10.0
LONGEST_TIMEOUT_SEC = 86_400.0
HANGS_SEC = 1.5  # to connect, and again for a reply: a node of many that takes longer is left out
_OPTIONS: dict[str, Any] = {
    "protocol": 2,
    "decode_responses": False,
    "socket_read_size": 1 << 20,
    "retry": Retry(NoBackoff(), 0),  # redis-py's own would send a commit twice
    "retry_on_error": [],
    "socket_connect_timeout": CONNECT_TIMEOUT_SEC,
    "socket_timeout": REPLY_TIMEOUT_SEC,
}
URL_FORMS = (
    "redis://, rediss://, unix://, redis+sentinel://HOST:PORT,.../SERVICE or redis+cluster://"
)
REPLICA = "this Redis is a replica; point --redis-url at the primary"
# replies, though redis-py takes some of them for the end of a connection
ERROR_REPLIES = (
    redis.ResponseError,
    redis.AuthenticationError,
    redis.exceptions.AuthorizationError,
    redis.BusyLoadingError,
)
# what a server may say at login; any other text of it could repeat a password
_OTHER_TROUBLE = ("NOPERM", "DB index is out of range", "LOADING")
_AT_LOGIN = (*_OTHER_TROUBLE, "WRONGPASS", "without any password configured",
             "no password is set", "NOAUTH", "unknown command")  # fmt: skip
_SCHEMES = re.compile(r"(rediss?|unix|rediss?\+sentinel|rediss?\+cluster)://")


@dataclass(frozen=True)
class ServerInfo:
    """Who answered, as INFO says."""

    kind: str  # "redis", "valkey", ...
    version: str
    run_id: str  # the process's
    role: str  # "master" or "slave"
    cluster: bool
    replid: str = ""  # of its data's history: new whenever the data may have gone back
    was_replica: bool = False  # of another one, whose history it went on with

    @property
    def version_tuple(self) -> tuple[int, ...]:
        """The version for comparison, such as (6, 2, 14)."""
        return tuple(int(part) for part in re.findall(r"\d+", self.version)[:3])


def find(url: str) -> Connection:
    """The first connection that opens: the server, a Cluster's node, or Sentinel's primary."""
    if not _SCHEMES.match(url):
        raise UsageError(f"--redis-url must start with one of {URL_FORMS}")
    # a # or ? of the password's own: what follows would be taken for a host or an option
    query = url.partition("?")[2]
    if "#" in url or not re.fullmatch(r"(?:[A-Za-z_%\d]+=[^&]*(?:&|$))*", query):
        raise UsageError(
            "--redis-url: a # or ? of the password must be encoded; write %23 for #, %3F for ?, "
            "%2F for /, %40 for @"
        )
    scheme, _, rest = url.partition("://")
    if "+" not in scheme:
        return connect(url)
    base, _, topology = scheme.partition("+")
    login, hosts, path = _split(rest)
    if topology == "cluster":
        seeds = [f"{base}://{login}{seed}/{path}" for seed in hosts.split(",")]
        return connect(next(_answers(seeds, lambda seed, link: seed)))
    path, _, query = path.partition("?")
    service, _, db = path.partition("/")
    if not service:
        raise UsageError("--redis-url: name the service, redis+sentinel://HOST:PORT/SERVICE")
    options = f"?{query}" if query else ""
    place = _primary_of(service, [f"{base}://{seed}/0{options}" for seed in hosts.split(",")])
    return connect(f"{base}://{login}{netloc(*place)}/{db or 0}{options}")


def _primary_of(service: str, urls: list[str]) -> Place:
    """Where the service's primary is, as the latest failover has it that most Sentinels know of.

    One that is cut off from the others goes on telling of the primary before it.
    """

    def ask(_: str, link: Connection) -> dict[bytes, bytes] | None:
        link.send_command("SENTINEL", "MASTER", service)
        try:
            reply = link.read_response(disable_decoding=True)
        except redis.ResponseError:
            return None
        return dict(zip(reply[::2], reply[1::2], strict=True))

    answers = list(itertools.islice(_answers(urls, ask), len(urls) // 2 + 1))
    known = [answer for answer in answers if answer]
    if not known:
        raise UnreachableError(f"Sentinel knows no service {service}; check the URL")
    found = max(known, key=lambda answer: int(answer[b"config-epoch"]))
    if b"o_down" in found[b"flags"]:
        raise redis.ConnectionError("the primary is down, as Sentinel says")
    return found[b"ip"].decode(), int(found[b"port"])


def _answers(urls: list[str], ask: Callable[[str, Connection], T]) -> Iterator[T]:
    """What `ask` gets to know at each url that answers; at least one does.

    One that hangs costs HANGS_SEC where there are others.
    """
    failure: Exception | None = None
    answers = 0
    for url in urls:
        try:
            link = connect(url, HANGS_SEC if len(urls) > 1 else None)
            answer = ask(url, link)
            link.disconnect()
        except (redis.RedisError, OSError) as error:
            failure = error
        else:
            answers += 1
            yield answer
    if failure is not None and not answers:
        raise failure


def owner_node(url: str, link: Connection, key: bytes) -> Connection:
    """A connection to the Cluster node that serves `key`; `link` leads to any of its nodes."""
    if url.startswith("unix:"):  # a socket leads to one node only
        return link
    slot = key_slot(key)
    link.send_command("CLUSTER", "SLOTS")
    found = slots(link.read_response(disable_decoding=True), link.host)
    place = next((place for first, last, place in found if first <= slot <= last), None)
    if place is None:
        raise SlotMovedError("no node of the Cluster serves the stream's slot; check it")
    link.disconnect()
    return node(url, *place)


def node(url: str, host: str, port: int, patience_sec: float | None = None) -> Connection:
    """A connection to one Cluster node with the URL's own login and TLS options."""
    scheme, _, rest = url.partition("://")
    login, _, path = _split(rest)
    base = scheme.partition("+")[0]
    return connect(f"{base}://{login}{netloc(host, port)}/{path}", patience_sec)


def _split(rest: str) -> tuple[str, str, str]:
    """What follows `://` as login (with its @), hosts, and path with options."""
    place, mark, options = rest.partition("?")
    credentials, at, tail = place.rpartition("@")
    hosts, _, path = tail.partition("/")
    return credentials + at, hosts, path + mark + options


def connect(url: str, patience_sec: float | None = None) -> Connection:
    """A connection as the URL says; UsageError for a URL that means nothing to redis-py.

    `patience_sec`: how long it may take at most, and each reply.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme != "unix" and not re.fullmatch(r"/?\d*", parts.path):
            raise UsageError("--redis-url: what follows the host must be the database's number")
        if "protocol" in urllib.parse.parse_qs(parts.query):
            raise UsageError("--redis-url: leave out protocol=; drainkit speaks RESP2")
        options = {**_OPTIONS, **parse_url(url)}
        for name in ("socket_connect_timeout", "socket_timeout"):
            if not 0 < options[name] <= LONGEST_TIMEOUT_SEC:
                raise UsageError(f"--redis-url: {name} must be above 0, in seconds")
            options[name] = min(options[name], patience_sec or math.inf)
        link = cast(Connection, ConnectionPool(**options).make_connection())
    except (ValueError, TypeError, AttributeError):
        # the message may quote a part of the URL, and so of the password
        raise UsageError(f"--redis-url is not valid; write {URL_FORMS}") from None
    try:
        link.connect()
    except redis.exceptions.InvalidResponse:
        raise redis.exceptions.InvalidResponse from None
    except (*ERROR_REPLIES, ValueError) as error:  # redis-py reads some replies, MOVED say
        said = f"{getattr(error, 'status_code', None)} {error}"
        known = next((text for text in _AT_LOGIN if text in said), "what it says is not shown")
        is_login = known not in _OTHER_TROUBLE
        raise (redis.AuthenticationError if is_login else redis.ResponseError)(known) from None
    return link


def read_info(link: Connection) -> ServerInfo:
    """Who is at the other end, as INFO says."""
    link.send_command("INFO")
    text = link.read_response(disable_decoding=True).decode("utf-8", "replace")
    values = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    kind = values.get("server_name", "redis")
    version = values.get(f"{kind}_version") or values.get("redis_version", "0")
    run_id, is_cluster = values.get("run_id", ""), values.get("cluster_enabled") == "1"
    replid = values.get("master_replid") or run_id
    return ServerInfo(kind, version, run_id, values.get("role", ""), is_cluster, replid,
                      bool(values.get("master_replid2", "").strip("0")))  # fmt: skip


def slots(reply: list[Any], asked: str) -> Iterator[tuple[int, int, Place]]:
    """A Cluster's ranges of slots, as a reply of CLUSTER SLOTS says, and where their primaries are.

    A node without a name is at the host that was asked (unknown-endpoint); one whose host name
    nobody set (`?`) is at its address.
    """
    for first, last, (host, port, _, *more), *_ in reply:
        facts = dict(zip(more[0][::2], more[0][1::2], strict=True)) if more else {}
        shown = facts.get(b"ip") if host == b"?" else host
        yield first, last, (shown.decode() if shown else asked, int(port))


def has_handed_over(
    url: str, key: bytes, place: Place, before: ServerInfo, now: ServerInfo
) -> bool:
    """Whether the server that was at `place` gave the slot away, with all that was in it.

    It did if it is still what it was and a primary, and itself says whose the slot is.
    One that was replaced after a failure became a replica, or still takes the slot for its
    own: then what it did last may be lost.
    """
    try:
        old = node(url, *place)
        info = read_info(old)
        owner = owner_node(url, old, key)
        owner_info = read_info(owner)
        owner.disconnect()
    except (redis.RedisError, OSError, UnreachableError):
        return False
    return (info.replid, info.role, owner_info.replid) == (before.replid, "master", now.replid)


def netloc(host: str, port: int) -> str:
    """Host and port as a URL has them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
