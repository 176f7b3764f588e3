"""Least-privilege ACL rules for who looks (analyst) and who drains (drainer).

Scripts run with their caller's rights, so what a script may do is what these rules say. From 7.0 on
keys are granted for reading or per command (selectors); Redis 6.2 knows neither, so there a
drainer could also add to the stream. No rule lets anybody trim, delete or overwrite it: the kill
switch is set by SETNX and lifted by GETDEL, which leave keys of other types alone.
"""

from __future__ import annotations

import re

from .connection import Keys
from .topology import ServerInfo

READING = (
    "ping", "select", "info", "time", "type", "exists", "xinfo", "xrange", "xrevrange", "xlen",
    "xpending", "get", "hget", "hgetall", "smembers", "scan", "cluster|keyslot", "cluster|slots",
)  # fmt: skip
DRAINING = ("eval", "xreadgroup", "xack", "xgroup|create", "xgroup|destroy")


def rules(
    keys: Keys, info: ServerInfo, *, allowlist_key: bytes | None = None
) -> dict[str, list[str]]:
    """The rules of "analyst" and "drainer", ready for `ACL SETUSER name on >password ...`."""
    side = [keys.audit, keys.runs, keys.stop, keys.state]
    looked_at = [keys.stream, *side, *([allowlist_key] if allowlist_key else [])]
    fresh = ["resetkeys", "resetchannels", "-@all"]
    reading = [f"+{name}" for name in READING]
    draining = [f"+{name}" for name in DRAINING]
    if info.version_tuple < (7, 0):
        seen = [f"~{_pattern(key)}" for key in looked_at]
        writing = ["+xadd", "+hset", "+setnx", "+getdel"]
        return {
            "analyst": [*fresh, *seen, *reading],
            "drainer": [*fresh, *seen, *reading, *draining, *writing],
        }
    readable = [f"%R~{_pattern(key)}" for key in looked_at]
    audit, runs, stop, state = (f"~{_pattern(key)}" for key in side)
    # EVAL needs all its keys at once; what the script then calls is checked call by call
    scripted = [f"~{_pattern(keys.stream)}", audit, runs, stop, state]
    allowed = [f"%R~{_pattern(allowlist_key)}"] if allowlist_key else []
    selectors = [f"({audit} {runs} +xadd)", f"({state} +hset)", f"({stop} +setnx +getdel)"]
    return {
        "analyst": [*fresh, *readable, *reading],
        "drainer": [*fresh, *scripted, *allowed, *reading, *draining, *selectors],
    }


def _pattern(key: bytes) -> str:
    """The key as a pattern that fits nothing else; white space, which no rule may hold, is `?`."""
    text = re.sub(r"([*?\[\]\\^])", r"\\\1", key.decode("utf-8", "backslashreplace"))
    return re.sub(r"[\s\x00]", "?", text, flags=re.ASCII)
