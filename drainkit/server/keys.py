"""Names of groups and consumers, a run's scope, the stream's side keys, and who may use them how.

ACL rules are least privilege by role: analyst, drainer, historian, janitor. Scripts run with their
caller's rights, so what a script may do is what these rules say. From 7.0 on keys are granted for
reading or per command (selectors); Redis 6.2 knows neither, so there a drainer could also add to
the stream, and a janitor trim the ledger. No rule lets a drainer trim, delete or overwrite the
stream: the kill switch is set by SETNX and lifted by GETDEL, which leave keys of other types alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from redis.crc import key_slot

from ..errors import RefusedError, UsageError
from ..ids import FIRST_ID
from ..safe import text
from .topology import ServerInfo

READING = (
    "ping", "select", "info", "time", "type", "exists", "xinfo", "xrange", "xrevrange", "xlen",
    "xpending", "get", "hget", "hmget", "hgetall", "zrangebylex", "zcard", "smembers", "scan",
    "cluster|keyslot", "cluster|slots",
)  # fmt: skip
DRAINING = ("eval", "xreadgroup", "xack")
HISTORY = ("xgroup|create", "xgroup|destroy")
RECORDING = ("zadd", "zrem", "zremrangebylex")
CLEANING = ("eval", "xgroup|delconsumer", "xtrim")

#: What no rule can forbid a role, on any server; a line each.
NOT_FORBIDDEN = (
    "no rule looks at arguments: who may add to the audit or the run ledger can also empty it "
    "(XADD audit MAXLEN 0) or write what never was",
    "who may XREADGROUP can also take what others have (CLAIM, from 8.4 on) or read for another "
    "group of the stream; who may XACK can acknowledge what was never audited",
    "a historian can destroy any group of the stream, a drainer write the drains' common state "
    "(pace, what is recorded), and who may EVAL hold the server with a script that does not end",
)


NOT_OURS = (
    "--history-group {}: drainkit did not make this group for {}, and it would be destroyed in the "
    "end; name one that does not exist yet"
)
_WITH_BYTES = re.compile(r" \(bytes ((?:[0-9a-f]{2})+)\)\Z")


def name_of(raw: bytes) -> str:
    """A group's or consumer's name as text, by which `raw_name` knows it again.

    Names need not be UTF-8. One that is not is shown with its bytes, so that no two look alike.
    """
    shown = text(raw)
    is_clear = shown.encode() == raw and not _WITH_BYTES.search(shown)
    return shown if is_clear else f"{shown} (bytes {raw.hex()})"


def raw_name(name: str) -> bytes:
    """The bytes to send for a name that came from the server (`name_of`) or from the settings."""
    found = _WITH_BYTES.search(name)
    return bytes.fromhex(found[1]) if found else name.encode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Scope:
    """Where a run reads: group, start and boundary, fixed when the run starts."""

    name: str
    group: str
    consumer_group: str  # to which `group` belongs: itself, or scope history's
    consumer: str
    position: str  # of `group`; scope history: of its own group, or where that would start
    group_position: str  # of the consumer group itself
    boundary: str
    group_exists: bool
    min_idle_ms: int
    from_consumers: tuple[str, ...]
    first: str = FIRST_ID  # with --from: what comes before it is not of this scope

    @property
    def in_state(self) -> str:
        """What the state calls scope history of this consumer group with this group (ids.lua)."""
        return f"{self.consumer_group}\0{self.group}"


@dataclass(frozen=True)
class Keys:
    """The stream and its side keys; all in one slot, so that one script may touch them."""

    stream: bytes
    audit: bytes
    runs: bytes  # the run ledger
    stop: bytes  # the kill switch
    state: bytes  # pace of all drains together, and how far scope history came
    recorded: bytes  # which entries have their audit record (lua/recorded.lua)


def side_keys(stream: bytes, audit_stream: str | None, *, is_cluster: bool) -> Keys:
    """The keys of a stream; on a Cluster they must share its slot, so that one script may use all.

    A Cluster's slot is that of the hash tag (redis.io, Cluster specification).
    """
    base = stream
    if is_cluster and not re.search(rb"^[^{]*\{[^}]+\}", base):  # else it has a hash tag
        if b"}" in base:
            raise RefusedError(
                "the stream's name has a } and no hash tag, so on a Cluster no key can share "
                "its slot, and acknowledging and auditing could not be one step"
            )
        base = b"{" + base + b"}"
    audit = audit_stream.encode() if audit_stream else base + b".drain_audit"
    suffixes = (b".drain_runs", b".drain_stop", b".drain_state", b".drain_recorded")
    side = [base + suffix for suffix in suffixes]
    if audit in (stream, *side):
        raise UsageError("--audit-stream: this key has another use; name a key of its own")
    for key in (audit, *side) if is_cluster else ():
        check_slot(stream, key)
    return Keys(stream, audit, *side)


def check_slot(stream: bytes, key: bytes) -> None:
    """Refuse a key that is in another slot of a Cluster than the stream."""
    if key_slot(key) != key_slot(stream):
        raise RefusedError(
            f"{text(key)} is in another Cluster slot than the stream, so both could not be used in "
            "one step; give it a name with the stream's hash tag"
        )


def rules(
    keys: Keys, info: ServerInfo, *, allowlist_key: bytes | None = None
) -> dict[str, list[str]]:
    """Each role's rules, ready for `ACL SETUSER name on >password ...`."""
    side = (keys.audit, keys.runs, keys.stop, keys.state, keys.recorded)
    looked_at = [_pattern(key) for key in (keys.stream, *side, allowlist_key) if key]
    stream, audit, runs, stop, state, recorded, *allowlist = (f"~{key}" for key in looked_at)
    if info.version_tuple < (7, 0):
        seen = used = [stream, audit, runs, stop, state, recorded, *allowlist]
        writing = [f"+{name}" for name in ("xadd", "hset", "setnx", "getdel", *RECORDING)]
        # on 6.2 a key is granted to every command, so a janitor gets only what he needs
        cleaned, noting = [stream, runs], ["+xadd"]
    else:
        seen = [f"%R~{key}" for key in looked_at]
        # EVAL needs all its keys at once; what the script then calls is checked call by call
        used = [stream, audit, runs, stop, state, recorded, *seen[6:]]
        writing = [f"({audit} {runs} +xadd)", f"({state} +hset)", f"({stop} +setnx +getdel)",
                   f"({recorded} {' '.join(f'+{name}' for name in RECORDING)})"]  # fmt: skip
        cleaned, noting = [stream, *seen[1:6]], [f"({runs} +xadd)"]
    roles: tuple[tuple[str, list[str], tuple[str, ...], list[str]], ...] = (
        ("analyst", seen, (), []),
        ("drainer", used, DRAINING, writing),
        ("historian", used, (*DRAINING, *HISTORY), writing),
        ("janitor", cleaned, CLEANING, noting),
    )
    return {
        role: ["resetkeys", "resetchannels", "-@all", *granted,
               *(f"+{name}" for name in (*READING, *commands)), *added]
        for role, granted, commands, added in roles
    }  # fmt: skip


def _pattern(key: bytes) -> str:
    """The key as a pattern that fits nothing else; white space, which no rule may hold, is `?`."""
    text = re.sub(r"([*?\[\]\\^])", r"\\\1", key.decode("utf-8", "backslashreplace"))
    return re.sub(r"[\s\x00]", "?", text, flags=re.ASCII)
