"""Every parameter once: name, type, default, unit, check, and what its users need to know of it.

The command line's options, the notebooks' parameters, the settings table, the environment
(`DRAINKIT_*`), `drainkit.toml` and what a plan gives all derive from the fields of `Settings`.
"""

from __future__ import annotations

import datetime as dt
import json
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
from .kinds import (
    Allowlist,
    Count,
    Flag,
    Minutes,
    Name,
    Names,
    PlanPath,
    PositiveMinutes,
    Rate,
    Share,
    Time,
)
from .safe import one_line

DEFAULT_REDIS_URL = "redis://localhost:6379/0"


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


def _setting(
    default: Any,
    help_text: str,
    metavar: str = "",
    *,
    shown: str | None = None,
    notebook: bool = False,
    from_plan: bool = False,
) -> Any:
    """A parameter: `shown` is its default in words; `notebook`: notebooks have it too;
    `from_plan`: a live run with a plan takes the plan's."""
    more: dict[str, Any] = {
        "metavar": metavar, "shown": shown, "notebook": notebook, "from_plan": from_plan,
    }  # fmt: skip
    return Field(default, description=help_text, json_schema_extra=more)


class Settings(BaseModel):
    """The validated parameters of one run; frozen, passed explicitly."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False)

    mode: Literal["dry-run", "live"] = _setting(
        "dry-run", "dry-run changes nothing.", "dry-run|live"
    )
    allowlist: Allowlist = _setting(
        None, "Symbols that pass.", "A,B|@FILE|redis:KEY", shown="any", notebook=True
    )
    min_conf: Share = _setting(0.60, "Minimum confidence.", "0..1", shown="0.60", notebook=True)
    max_age_min: PositiveMinutes = _setting(30.0, "Maximum age, minutes.", "MIN", notebook=True)
    as_of: Time = _setting(
        None, "Measure ages against this ISO 8601 time.", "TIME", shown="now", notebook=True,
        from_plan=True,
    )  # fmt: skip
    throttle: Rate = _setting(
        5.0,
        "Events per second, or none; of drains at once the lowest holds.",
        "RATE",
        notebook=True,
        from_plan=True,
    )
    max_events: Count = _setting(
        500, "Events of this run, or all.", "N", notebook=True, from_plan=True
    )
    redis_url: SecretStr = _setting(
        SecretStr(DEFAULT_REDIS_URL),
        "",
        "URL",
        shown=f"$DRAINKIT_REDIS_URL, else {DEFAULT_REDIS_URL}",
    )
    stream: Name = _setting("quantum:stream:trade.intent", "", "KEY", notebook=True)
    consumer_group: Name = _setting(
        "quantum:group:execution:trade.intent", "", "NAME", notebook=True
    )
    consumer_name: Name = _setting(
        "backlog_drain_1", "The drain's consumer.", "NAME", notebook=True
    )
    audit_stream: Name | None = _setting(
        None, "", "KEY", shown="<stream>.drain_audit", notebook=True
    )
    scope: Literal["undelivered", "pending", "history"] = _setting(
        "undelivered", "Which entries.", "undelivered|pending|history", notebook=True
    )
    min_idle_min: Minutes = _setting(
        60.0, "Scope pending: idle at least, minutes.", "MIN", from_plan=True
    )
    from_consumer: Names = _setting((), "Scope pending: only this one.", "NAME", from_plan=True)
    history_group: Name | None = _setting(
        None, "", "NAME", shown="<consumer-group>.drain_history", from_plan=True
    )
    plan: PlanPath = _setting(None, "Dry run: write this plan. Live: apply exactly it.", "PATH")
    allow_active_consumers: Flag = _setting(
        False, "Drain although another consumer of the group is active."
    )
    reports_dir: Path = _setting(Path("reports"), "", "DIR")
    fields: Fields = Field(default_factory=Fields, description="names of the event's values")
    limits: Limits = Field(default_factory=Limits, description="limits of unattended live runs")

    _given: frozenset[str] = PrivateAttr(frozenset())
    _asked: frozenset[str] = PrivateAttr(frozenset())

    @property
    def given(self) -> frozenset[str]:
        """Names that a flag, a variable or drainkit.toml set (not the defaults)."""
        return self._given

    @property
    def asked(self) -> frozenset[str]:
        """Names that the command itself, or a notebook's cell, set."""
        return self._asked

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

    @check("fields", mode="before")
    @classmethod
    def _fields(cls, value: Any) -> Any:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except ValueError:
            raise ValueError("must be a table (in the environment: JSON)") from None

    @model_validator(mode="after")
    def _groups(self) -> Settings:
        if self.history_group == self.consumer_group:
            # it would be drained from its position on and then destroyed
            raise ValueError("must not be the consumer group: name a group of its own")
        return self


def facts(name: str) -> Mapping[str, Any]:
    """What a parameter's users know of it: metavar, help, default in words, notebook, from_plan."""
    field = Settings.model_fields[name]
    more = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    words = more.get("shown") or (
        None if field.default in (None, ()) else shown(name, field.default)
    )
    return {**more, "help": field.description or "", "shown": words}


def shown(name: str, value: Any) -> str:
    """A parameter's value in words; the one place that says none, all, any symbol."""
    if value is None:
        return {"throttle": "none", "max_events": "all", "allowlist": "any symbol"}.get(name, "")
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dt.datetime):
        return value.isoformat()
    if isinstance(value, list | tuple | frozenset):
        return ", ".join(map(str, sorted(value) if isinstance(value, frozenset) else value))
    return str(value)


#: Parameters that notebooks have, and those that a live run takes from its plan.
NOTEBOOK = tuple(n for n in Settings.model_fields if facts(n).get("notebook"))
FROM_PLAN = tuple(n for n in Settings.model_fields if facts(n).get("from_plan"))


def build(values: Mapping[str, Any], *, asked: frozenset[str] | None = None) -> Settings:
    """Settings from explicit `values`; UsageError names each wrong one and says what it takes.

    `asked`: those of them that the command or a notebook's cell set; None: all.
    """
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise UsageError("; ".join(_explain(item) for item in error.errors())) from None
    settings._given = frozenset(values)
    settings._asked = settings._given if asked is None else asked
    return settings


def _explain(item: Any) -> str:
    name = str(item["loc"][0]) if item["loc"] else "history_group"  # what is checked as a whole
    if item["type"] == "extra_forbidden":
        return f"{one_line('.'.join(map(str, item['loc'])))}: no such parameter; check its spelling"
    text = item["msg"].removeprefix("Value error, ")
    if item["type"] == "literal_error":
        text = "must be " + item["ctx"]["expected"].replace("'", "")
    # a URL may hold a password, so its value is never shown
    is_shown = item["loc"] and name != "redis_url"
    value = f" (not {one_line(repr(item['input']))})" if is_shown else ""
    where = f"--{name.replace('_', '-')}" if name not in ("fields", "limits") else f"[{name}]"
    return f"{where} {text}{value}"
