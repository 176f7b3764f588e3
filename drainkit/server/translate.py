"""Error replies of Redis as drainkit's errors, each one line that says what to do."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

import redis

from ..errors import (
    ConnectionLostError,
    DrainkitError,
    RefusedError,
    ReplyTooLargeError,
    ServerBusyError,
    SlotMovedError,
    UnreachableError,
    UsageError,
)

# the request did not run: the slot is elsewhere, half moved, or served by nobody
# (redis-py's MovedError is an AskError)
SLOT_ERRORS = (
    redis.exceptions.AskError,
    redis.exceptions.TryAgainError,
    redis.exceptions.ClusterDownError,
)

# code in the reply -> the error it becomes and what it says; the first that fits counts
_CODES: tuple[tuple[str, type[DrainkitError], str], ...] = (
    (
        "NOPERM|ACL failure|can't run this command",
        RefusedError,
        "Redis denies a command; grant what `drainkit acl` prints",
    ),
    ("READONLY", RefusedError, "this Redis is a read-only replica; point --redis-url at a primary"),
    ("no such key", RefusedError, "the stream is gone; check --stream and the database number"),
    ("NOGROUP", RefusedError, "the stream or the group is gone; check --stream, --consumer-group"),
    ("WRONGTYPE", RefusedError, "a key is not of the type it must have; check --audit-stream"),
    ("LOADING|BUSY", ServerBusyError, "Redis is busy (it loads, or a script runs); try again"),
    (
        "DB index is out of range",
        UsageError,
        "--redis-url names a database that this server does not have",
    ),
    ("OOM", DrainkitError, "Redis is out of memory (maxmemory) and refuses writes; free some"),
    ("MISCONF", DrainkitError, "Redis cannot save to disk and refuses writes; see its log"),
    ("NOREPLICAS", DrainkitError, "Redis has too few replicas and refuses writes; see its log"),
)


def translate(error: redis.ResponseError) -> DrainkitError:
    """The drainkit error for an error reply; what was asked did not run."""
    if isinstance(error, SLOT_ERRORS):
        return SlotMovedError(
            "the Cluster does not serve the stream's slot now; run the same command again"
        )
    # redis-py strips the code from some messages and not from others, and 6.2 wraps the errors of
    # a script in text of its own ("Error running script ... -OOM"), so the text is searched
    by_class = {
        redis.exceptions.NoPermissionError: "NOPERM",
        redis.exceptions.ReadOnlyError: "READONLY",
        redis.exceptions.OutOfMemoryError: "OOM",
    }
    code = next((text for kind, text in by_class.items() if isinstance(error, kind)), "")
    text = f"{code} {getattr(error, 'status_code', None) or ''} {error}"
    for codes, kind, message in _CODES:
        if re.search(rf"\b({codes})\b", text):
            return kind(f"{message} ({error})")
    return DrainkitError(f"Redis says: {error}")


@contextlib.contextmanager
def translated(shown_url: str, lost: Callable[[], None]) -> Iterator[None]:
    """Turn redis-py's exceptions into drainkit's; `lost` is called for a link of no more use."""
    try:
        yield
    except redis.ResponseError as error:
        raise translate(error) from error
    except ReplyTooLargeError:  # its rest would be taken for the next reply
        lost()
        raise
    except (redis.AuthenticationError, redis.exceptions.AuthorizationError) as error:
        raise UnreachableError(
            f"Redis at {shown_url} refuses the login ({error}); "
            "check user and password in DRAINKIT_REDIS_URL"
        ) from error
    except redis.BusyLoadingError as error:
        raise ServerBusyError("Redis is loading its data; try again in a while") from error
    except redis.exceptions.InvalidResponse as error:
        lost()
        raise UnreachableError(
            f"what answers at {shown_url} does not speak Redis's protocol; "
            "check host, port and TLS in --redis-url"
        ) from error
    except (redis.RedisError, OSError) as error:
        lost()
        reason = str(error).rstrip(".") or type(error).__name__
        advice = "check that it runs and --redis-url (or DRAINKIT_REDIS_URL)"
        if "closed by server" in str(error):
            advice = "its log says why: it ended, or this client (client-output-buffer-limit?)"
        raise ConnectionLostError(
            f"cannot reach Redis at {shown_url}: {reason}; {advice}"
        ) from error
