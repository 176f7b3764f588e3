"""Kinds of parameters: what comes from a flag, a file or a notebook's cell as a checked value.

Each raises ValueError with what it takes; the settings make one line of it.
"""

from __future__ import annotations

import datetime as dt
import math
import os
import pwd
import re
import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, StringConstraints

from ..errors import UsageError
from ..ids import bound
from ..safe import one_line

MAX_MIN = 5_256_000_000  # minutes; ten thousand years: still fits int64 microseconds
MAX_COUNT = 10**18 - 1

STORES = ("s3", "s3a", "gs", "gcs")  # they write an object only if it is missing
# one slash too: a slip of the pen, which pyarrow takes for a URL where it is a folder's name
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_WHOLE = re.compile(r"\d{1,40}", re.ASCII)
_SYMBOL = re.compile(r"[\x21-\x7e]{1,64}", re.ASCII)
REDIS_SET = "redis:"
_NOT_IN_NAMES = {'"', "\\", *map(chr, range(32))}  # the JSON decoder cannot look for these
_COMMENT = re.compile(r"(^|\s)#.*")  # "#" itself may stand in a symbol


def _number(
    least: float, most: float, words: str, none: str | None = None, *, whole: bool = False
) -> BeforeValidator:
    """A number within two limits, as digits too; `none` is a word for None."""

    def look(value: Any) -> float | None:
        if none is not None and value in (None, none):
            return None
        kind: Any = int if whole else float
        if isinstance(value, str) and (_WHOLE if whole else _DECIMAL).fullmatch(value):
            value = kind(value)
        # bool is an int to Python, but a `true` in a number's place is a mistake
        is_number = isinstance(value, (int, kind)) and not isinstance(value, bool)
        if not is_number or not least <= value <= most:  # nan is within none
            raise ValueError(f"must be {words}")
        return kind(value)  # type: ignore[no-any-return]

    return BeforeValidator(look)


def _to_name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must not be empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("must be UTF-8 text") from None
    return value


def os_user() -> str:
    """The name of the user who runs this process, whatever variables say, or its number."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def _to_time(value: Any) -> dt.datetime | None:
    if value is None:
        return None
    try:
        time = value if isinstance(value, dt.datetime) else dt.datetime.fromisoformat(value)
        time = time.replace(tzinfo=dt.UTC) if time.tzinfo is None else time
        return time.astimezone(dt.UTC)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("must be an ISO 8601 time such as 2025-12-24T19:49:58+00:00") from None


def _to_names(value: Any) -> tuple[str, ...]:
    names = value.split("\n") if isinstance(value, str) else value or ()
    if not isinstance(names, list | tuple):
        raise ValueError("must be a name or a list of names")
    # an entry of a consumer named twice would be read, and recorded, twice
    return tuple(dict.fromkeys(_to_name(name) for name in names))


def field_names(value: Any) -> tuple[str, ...]:
    """The names of `[fields]`, one or several."""
    names = _to_names(value)
    if not names or any("" in name.split(".") or {*name} & _NOT_IN_NAMES for name in names):
        raise ValueError(
            "must be names such as payload.signal.confidence, without quotes, backslashes and "
            "control characters"
        )
    return names


def _to_allowlist(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, list | tuple):  # a notebook's or TOML's list
        if not all(isinstance(symbol, str) for symbol in value):
            raise ValueError("must hold symbols (texts) only")
        value = ",".join(value)
    if not isinstance(value, str) or not value.strip(" ,"):
        raise ValueError("is given but empty; leave it out to let any symbol pass")
    if value == REDIS_SET:
        raise ValueError("redis:KEY names no key")
    return value


def is_url(place: object) -> bool:
    """Whether a place is written as a URL, known or not: never the name of a folder."""
    return isinstance(place, str) and _URL.match(place) is not None


def store_problem(url: str) -> str | None:
    """Why evidence cannot be kept at this URL; None if it can."""
    scheme, _, rest = url.partition(":")
    if (scheme := scheme.lower()) not in STORES:
        return f"cannot keep evidence at {scheme}://; name a folder or s3://BUCKET/PREFIX"
    if "@" in rest or "?" in rest or not rest.startswith("//") or not rest.strip("/"):
        return f"must be {scheme}://BUCKET/PREFIX alone; key and secret belong in the environment"
    return None


def _to_place(value: Any) -> Any:
    if not is_url(value):
        return Path(_to_name(value)) if isinstance(value, str) else value
    if problem := store_problem(value):
        raise ValueError(problem)
    return value


_RATES = "a number > 0 of events per second (0.000001 to 1000000000), or none"
_COUNTS = f"an integer > 0 (at most {MAX_COUNT:,}), or all"
Share = Annotated[float, _number(0, 1, "a number within 0..1, as 0.60 for 60 %")]
Amount = Annotated[float, _number(0, sys.float_info.max, "a number, 0 or more")]
Minutes = Annotated[float, _number(0, MAX_MIN, f"a number >= 0 of minutes, at most {MAX_MIN:,}")]
PositiveMinutes = Annotated[
    float, _number(math.ulp(0), MAX_MIN, f"a number > 0 of minutes, at most {MAX_MIN:,}")
]
Rate = Annotated[float | None, _number(1e-6, 1e9, _RATES, none="none")]
Count = Annotated[int | None, _number(1, MAX_COUNT, _COUNTS, none="all", whole=True)]
Name = Annotated[str, BeforeValidator(_to_name)]
Operator = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200),
    AfterValidator(one_line),
]  # fmt: skip
Time = Annotated[dt.datetime | None, BeforeValidator(_to_time)]
Bound = Annotated[str | None, BeforeValidator(lambda v: None if v is None else bound(v))]
Names = Annotated[tuple[str, ...], BeforeValidator(_to_names)]
Allowlist = Annotated[str | None, BeforeValidator(_to_allowlist)]
Place = Annotated[Path | str, BeforeValidator(_to_place)]  # a folder, or a store's URL
FilePath = Annotated[
    Path | None, BeforeValidator(lambda v: v if isinstance(v, Path | None) else _to_name(v))
]


def allowlist_symbols(spec: str) -> frozenset[str]:
    """The symbols that `spec`, or the file that it names, holds."""
    if spec.startswith("@"):
        try:
            # a BOM is no part of the first symbol
            lines = Path(spec[1:]).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise UsageError(f"--allowlist {spec}: {reason}") from None
        return check_symbols([_COMMENT.sub("", line).strip() for line in lines], spec)
    return check_symbols([symbol.strip() for symbol in spec.split(",")], spec)


def check_symbols(symbols: list[str], spec: str) -> frozenset[str]:
    """The non-empty `symbols` as a set; an empty set or a symbol no event can have is an error."""
    found = frozenset(symbol for symbol in symbols if symbol)
    if not found:
        raise UsageError(f"--allowlist {spec} holds no symbol; leave it out to let all pass")
    for symbol in sorted(found):
        if not _SYMBOL.fullmatch(symbol):
            raise UsageError(f"--allowlist: {symbol} is not a symbol (1-64 printable ASCII)")
    return found
