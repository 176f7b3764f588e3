"""Every parameter once: name, type, default, unit, check.

The command line, the environment (`DRAINKIT_*`), `drainkit.toml` and the notebooks all read this
one model. Precedence: flag, then environment, then `drainkit.toml`, then default; `given` records
which values somebody set, because a plan may fill in only what nobody did.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic import field_validator as check

from .errors import UsageError
from .safe import one_line

CONFIG_FILE = "drainkit.toml"
ENV_PREFIX = "DRAINKIT_"
DEFAULT_REDIS_URL = "redis://localhost:6379/0"
_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_SYMBOL = re.compile(r"[\x21-\x7e]{1,64}", re.ASCII)
_REDIS_SET = "redis:"
_COMMENT = re.compile(r"(^|\s)#.*")  # "#" itself may stand in a symbol
MAX_MIN = 5_256_000_000  # minutes; ten thousand years: still fits int64 microseconds
MAX_COUNT = 10**18 - 1


class Fields(BaseModel):
    """Names of the event's values, `[fields]` in drainkit.toml; dotted paths reach into JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    symbol: tuple[str, ...] = ("symbol",)
    side: tuple[str, ...] = ("side", "action", "direction")
    confidence: tuple[str, ...] = ("confidence",)
    timestamp: tuple[str, ...] = ("timestamp",)
    source: tuple[str, ...] = ("source",)

    @check("*", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list | tuple) or not names:
            raise ValueError("must be a field name or a list of field names")
        if not all(isinstance(name, str) and name and "" not in name.split(".") for name in names):
            raise ValueError("must be non-empty names such as payload.signal.confidence")
        return tuple(names)


class Limits(BaseModel):
    """What an unattended live run may do at most, `[limits]` in drainkit.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_events: int | None = Field(default=None, gt=0, strict=True)
    max_drained_ok: int | None = Field(default=None, ge=0, strict=True)
    max_drift: int | None = Field(default=None, ge=0, strict=True)


class Settings(BaseModel):
    """The validated parameters of one run; frozen, passed explicitly."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False)

    mode: Literal["dry-run", "live"] = Field("dry-run", description="dry-run changes nothing")
    allowlist: str | None = Field(
        None, description="symbols to let pass: A,B,C, or @file, or redis:KEY (a set); any symbol"
    )
    min_conf: float = Field(0.60, description="minimum confidence, 0..1")
    max_age_min: float = Field(30.0, description="maximum age, minutes")
    throttle: float | None = Field(5.0, description="events per second, or none")
    max_events: int | None = Field(500, description="events of this run, or all")
    redis_url: SecretStr = Field(
        SecretStr(DEFAULT_REDIS_URL), description="redis://, rediss://, unix://, redis+sentinel://"
    )
    stream: str = Field("quantum:stream:trade.intent", description="the stream's key")
    consumer_group: str = Field("quantum:group:execution:trade.intent", description="the group")
    consumer_name: str = Field("backlog_drain_1", description="the drain's own consumer")
    audit_stream: str | None = Field(None, description="key of the audit; <stream>.drain_audit")
    scope: Literal["undelivered", "pending", "history"] = Field(
        "undelivered", description="which entries: after, pending in, or before the position"
    )
    min_idle_min: float = Field(60.0, description="scope pending: idle at least, minutes")
    from_consumer: tuple[str, ...] = Field((), description="scope pending: only this consumer's")
    history_group: str | None = Field(
        None, description="scope history: its group; <consumer-group>.drain_history"
    )
    as_of: dt.datetime | None = Field(None, description="measure ages against this ISO 8601 time")
    plan: Path | None = Field(None, description="plan file or evidence folder")
    allow_active_consumers: bool = Field(False, description="drain beside a live consumer")
    reports_dir: Path = Field(Path("reports"), description="where evidence folders go")
    fields: Fields = Field(default_factory=Fields, description="names of the event's values")
    limits: Limits = Field(default_factory=Limits, description="limits of unattended live runs")

    _given: frozenset[str] = PrivateAttr(frozenset())

    @property
    def given(self) -> frozenset[str]:
        """Names that a flag, a variable or drainkit.toml set (not the defaults)."""
        return self._given

    @property
    def as_of_us(self) -> int | None:
        """`as_of` as microseconds since the epoch, UTC."""
        if self.as_of is None:
            return None
        return (self.as_of - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)

    @property
    def drain_group(self) -> str:
        """The group that the run reads and acknowledges in (scope history has its own)."""
        if self.scope != "history":
            return self.consumer_group
        return self.history_group or self._own_history_group

    @property
    def has_own_history_group(self) -> bool:
        """Whether the name of scope history's group says already that it is nobody else's."""
        return self.history_group in (None, self._own_history_group)

    @property
    def _own_history_group(self) -> str:
        return f"{self.consumer_group}.drain_history"

    @check("min_conf", "max_age_min", "min_idle_min", "throttle", mode="before")
    @classmethod
    def _number(cls, value: Any, info: Any) -> Any:
        if info.field_name == "throttle" and value in (None, "none"):
            return None
        return _to_number(value)

    @check("max_events", mode="before")
    @classmethod
    def _count(cls, value: Any) -> Any:
        if value in (None, "all"):
            return None
        if isinstance(value, str) and re.fullmatch(r"\d{1,40}", value, re.ASCII):
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError("must be an integer > 0, or all")
        return value

    @check("min_conf")
    @classmethod
    def _conf(cls, value: float) -> float:
        if not 0 <= value <= 1:
            raise ValueError("must be within 0..1")
        return value

    @check("max_age_min")
    @classmethod
    def _age(cls, value: float) -> float:
        if not 0 < value <= MAX_MIN:
            raise ValueError(f"must be > 0 minutes, at most {MAX_MIN:,}")
        return value

    @check("min_idle_min")
    @classmethod
    def _idle(cls, value: float) -> float:
        if not 0 <= value <= MAX_MIN:
            raise ValueError(f"must be >= 0 minutes, at most {MAX_MIN:,}")
        return value

    @check("throttle")
    @classmethod
    def _rate(cls, value: float | None) -> float | None:
        if value is not None and not 1e-6 <= value <= 1e9:
            raise ValueError("must be > 0 events per second (0.000001 to 1000000000), or none")
        return value

    @check("max_events")
    @classmethod
    def _positive(cls, value: int | None) -> int | None:
        if value is not None and not 1 <= value <= MAX_COUNT:
            raise ValueError(f"must be an integer > 0 (at most {MAX_COUNT:,}), or all")
        return value

    @check("stream", "consumer_group", "consumer_name", "audit_stream", "history_group")
    @classmethod
    def _key(cls, value: str | None) -> str | None:
        return None if value is None else _to_name(value)

    @check("plan", mode="before")
    @classmethod
    def _plan(cls, value: Any) -> Any:
        if not isinstance(value, str | Path | None) or value == "":
            raise ValueError("must be a plan file or an evidence folder")
        return value

    @check("fields", mode="before")
    @classmethod
    def _fields(cls, value: Any) -> Any:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except ValueError:
            raise ValueError("must be a table (in the environment: JSON)") from None

    @check("from_consumer", mode="before")
    @classmethod
    def _consumers(cls, value: Any) -> Any:
        names = value.split("\n") if isinstance(value, str) and value else value or ()
        if not isinstance(names, list | tuple):
            raise ValueError("must be a name or a list of names")
        # an entry of a consumer named twice would be read, and recorded, twice
        return tuple(dict.fromkeys(_to_name(name) for name in names))

    @check("allowlist", mode="before")
    @classmethod
    def _allowlist(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):  # a notebook's or TOML's list
            if not all(isinstance(symbol, str) for symbol in value):
                raise ValueError("must hold symbols (texts) only")
            value = ",".join(value)
        if value is not None and (not isinstance(value, str) or not value.strip(" ,")):
            raise ValueError("is given but empty; leave it out to let any symbol pass")
        if value is not None:
            allowlist_symbols(value)  # what is wrong with it shows before anything is connected to
        return value

    @check("as_of", mode="before")
    @classmethod
    def _time(cls, value: Any) -> Any:
        if value is None:
            return None
        try:
            time = value if isinstance(value, dt.datetime) else dt.datetime.fromisoformat(value)
            time = time.replace(tzinfo=dt.UTC) if time.tzinfo is None else time
            return time.astimezone(dt.UTC)
        except (TypeError, ValueError, OverflowError):
            raise ValueError("must be an ISO 8601 time such as 2025-12-24T19:49:58+00:00") from None

    @model_validator(mode="after")
    def _groups(self) -> Settings:
        if self.history_group == self.consumer_group:
            # it would be drained from its position on and then destroyed
            raise ValueError("must not be the consumer group: name a group of its own")
        return self

    @check("allow_active_consumers", mode="before")
    @classmethod
    def _flag(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return value
        if value in ("true", "false", "1", "0"):  # an environment variable or papermill's -p
            return value in ("true", "1")
        raise ValueError("must be true or false")


def load(
    flags: Mapping[str, Any],
    *,
    env_name: str | None = None,
    environ: Mapping[str, str] = os.environ,
    folder: Path | None = None,
    only: frozenset[str] | None = None,
) -> Settings:
    """Merge flags, environment, `drainkit.toml` in `folder` and defaults into checked settings.

    `flags` holds only what was really given. `env_name` picks `[env.NAME]` of the file, whose
    values become defaults. With `only`, all else has its default, whatever was set. Raises
    UsageError with one line for all problems.
    """
    env_name = env_name if env_name is not None else environ.get(f"{ENV_PREFIX}ENV")
    values = read_config((folder or Path()) / CONFIG_FILE, env_name, check_names=only is None)
    for name in Settings.model_fields:
        variable = f"{ENV_PREFIX}{name.upper()}"
        if variable in environ and name != "limits":
            values[name] = environ[variable]
    values.update(flags)
    return build({k: v for k, v in values.items() if only is None or k in only})


def unknown_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Variables that look like settings and are none: misspelt ones, probably."""
    known = {f"{ENV_PREFIX}{name.upper()}" for name in (*Settings.model_fields, "env")}
    return sorted(name for name in environ if name.startswith(ENV_PREFIX) and name not in known)


def build(values: Mapping[str, Any]) -> Settings:
    """Settings from explicit `values`; UsageError names each wrong one and says what it takes."""
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise UsageError("; ".join(_explain(item) for item in error.errors())) from None
    settings._given = frozenset(values)
    return settings


def read_config(path: Path, env_name: str | None, *, check_names: bool = True) -> dict[str, Any]:
    """The values of `drainkit.toml` with those of `[env.env_name]` laid over them."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if env_name is None:
            return {}
        raise UsageError(f"--env {one_line(env_name)}: there is no {CONFIG_FILE} here") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{CONFIG_FILE}: {one_line(str(error))}") from None
    tables = data.pop("env", {})
    if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
        raise UsageError(f"{CONFIG_FILE}: write environments as tables, [env.NAME]")
    if env_name is not None and env_name not in tables:
        known = ", ".join(sorted(tables)) or "none"
        raise UsageError(f"--env {one_line(env_name)}: no such table in {CONFIG_FILE}; has {known}")
    names = {name for table in (data, *tables.values()) for name in table}
    unknown = sorted(n for n in names if n.replace("-", "_") not in Settings.model_fields)
    if unknown and check_names:
        raise UsageError(f"{CONFIG_FILE}: unknown key {one_line(unknown[0])}; check its spelling")
    values = {**data, **(tables[env_name] if env_name is not None else {})}
    return {name.replace("-", "_"): value for name, value in values.items()}


def allowlist_symbols(spec: str, *, folder: Path | None = None) -> frozenset[str] | bytes:
    """The symbols that `spec` names, or the key (bytes) of the Redis set that holds them."""
    if spec.startswith(_REDIS_SET):
        key = spec.removeprefix(_REDIS_SET)
        if not key:
            raise UsageError("--allowlist redis:KEY names no key")
        return key.encode()
    if spec.startswith("@"):
        try:
            lines = ((folder or Path()) / spec[1:]).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise UsageError(f"--allowlist {one_line(spec)}: {reason}") from None
        return check_symbols([_COMMENT.sub("", line).strip() for line in lines], spec)
    return check_symbols([symbol.strip() for symbol in spec.split(",")], spec)


def check_symbols(symbols: list[str], spec: str) -> frozenset[str]:
    """The non-empty `symbols` as a set; an empty set or a symbol no event can have is an error."""
    found = frozenset(symbol for symbol in symbols if symbol)
    if not found:
        raise UsageError(
            f"--allowlist {one_line(spec)} holds no symbol; leave it out to let all pass"
        )
    for symbol in sorted(found):
        if not _SYMBOL.fullmatch(symbol):
            raise UsageError(f"--allowlist: {one_line(symbol)} is no symbol (1-64 printable ASCII)")
    return found


def _to_number(value: Any) -> float:
    if isinstance(value, str) and _DECIMAL.fullmatch(value):
        value = float(value)
    # bool is an int to Python, but a `true` in a number's place is a mistake
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("must be a number")
    return float(value)


def _to_name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must not be empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("must be UTF-8 text") from None
    return value


def _explain(item: Any) -> str:
    name = str(item["loc"][0]) if item["loc"] else "history_group"  # what is checked as a whole
    if item["type"] == "extra_forbidden":
        return f"{one_line('.'.join(map(str, item['loc'])))}: no such parameter; check its spelling"
    text = item["msg"].removeprefix("Value error, ")
    if item["type"] == "literal_error":
        text = "must be " + item["ctx"]["expected"].replace("'", "")
    # a URL may hold a password, so its value is never shown
    shown = item["loc"] and name != "redis_url"
    value = f" (not {one_line(repr(item['input']))})" if shown else ""
    where = f"--{name.replace('_', '-')}" if name not in ("fields", "limits") else f"[{name}]"
    return f"{where} {text}{value}"
