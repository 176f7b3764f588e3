"""Every parameter once: name, type, default, unit, check, and what its users need to know of it.

The command line's options, the notebooks' parameters, the settings table, the environment
(`DRAINKIT_*`), `drainkit.toml` and what a plan gives all derive from the fields of `Settings`.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, ValidationError
from pydantic import field_validator as check

from .. import ids
from ..errors import UsageError
from ..safe import keep_secret, one_line, secret_words
from . import kinds as k

CONFIG_FILE = "drainkit.toml"
CONFIG_VARIABLE = "DRAINKIT_CONFIG"  # the file's path, for who works in another folder
DEFAULT_REDIS_URL = "redis://localhost:6379/0"
USUAL_FIELDS: dict[str, tuple[str, ...]] = {
    "symbol": ("symbol",),
    "side": ("side", "action", "direction"),
    "confidence": ("confidence",),
    "timestamp": ("timestamp", "ts", "ts_epoch", "time", "event_time", "created_at",
                  "generated_at", "timestamp_ms"),
    "source": ("source",),
}  # fmt: skip
_ANY_US = 4 * 10**15  # of two ages one is the earlier at any moment
_OF_THE_FILE = ("limits", "approval")  # what holds a run back stands in drainkit.toml alone
# what a kernel gets by other ways, or what is not a notebook's affair
_NOT_FOR_KERNELS = {"redis_url", "mode", "plan", "reports_dir", "notebooks_dir", *_OF_THE_FILE}


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False)


class Fields(_Table):
    """Where an event's values are found: names in order of preference, dotted ones reach into JSON.

    `[fields]` in drainkit.toml adds names before the usual ones; what it names beside `only = true`
    replaces them. Of the timestamps all count, so their order says nothing. An object that a dotted
    name reaches into (`payload.signal.symbol`) is a place of timestamps too. The lists of an object
    of this class are always complete: it is its own dump read again.
    """

    symbol: tuple[str, ...] = USUAL_FIELDS["symbol"]
    side: tuple[str, ...] = USUAL_FIELDS["side"]
    confidence: tuple[str, ...] = USUAL_FIELDS["confidence"]
    timestamp: tuple[str, ...] = USUAL_FIELDS["timestamp"]
    source: tuple[str, ...] = USUAL_FIELDS["source"]
    confidence_percent: bool = Field(default=False, strict=True)  # 0..100, a trailing % allowed
    only: bool = Field(default=True, strict=True)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        try:
            given = json.loads(given) if isinstance(given, str) else given
        except ValueError:
            raise ValueError("must be a table (in the environment: JSON)") from None
        if not isinstance(given, dict):
            return given
        lists = {name: [*k.field_names(v)] for name, v in given.items() if name in USUAL_FIELDS}
        is_only = given.get("only", False) is not False
        if not is_only:
            lists = {name: [*names, *USUAL_FIELDS[name]] for name, names in lists.items()}
        if not is_only or "timestamp" not in lists:
            times = lists.get("timestamp", [*USUAL_FIELDS["timestamp"]])
            paths = [n for value, names in lists.items() if value != "timestamp" for n in names]
            inside = sorted({path.rpartition(".")[0] for path in paths} - {"", "payload", "data"})
            found = (f"{place}.{time}" for place in inside for time in times if "." not in time)
            lists["timestamp"] = [*times, *found]
        unique = {name: tuple(dict.fromkeys(names)) for name, names in lists.items()}
        return {**given, **unique, "only": given.get("only") or True}

    def ranks(self, value: str) -> list[tuple[str, ...]]:
        """The names of one value by rank: each added one, in whatever place, before a usual one."""
        names, usual = getattr(self, value), USUAL_FIELDS[value]
        added = len(names)
        while added and names[added - 1] in usual:
            added -= 1
        return [rank for rank in (names[:added], names[added:]) if rank]

    def as_dict(self) -> dict[str, list[str] | bool]:
        """The complete lists, as a plan keeps them; the percentages only where there are any."""
        found = self.model_dump(mode="json", exclude={"only"})
        return {name: value for name, value in found.items() if value}


class Limits(_Table):
    """What an unattended live run may do at most, `[limits]` in drainkit.toml."""

    max_events: int | None = Field(default=None, gt=0, strict=True)
    max_drained_ok: int | None = Field(default=None, ge=0, strict=True)
    max_drift: int | None = Field(default=None, ge=0, strict=True)


class Approval(_Table):
    """Who must have approved a live run's plan, `[approval]` in drainkit.toml."""

    allowed_signers: Path  # ssh-keygen's ALLOWED SIGNERS; relative to drainkit.toml's folder
    required: int = Field(default=1, gt=0, strict=True)  # different people, without the operator


def _setting(default: Any, help: str, metavar: str = "", uses: str = "", shown: str = "") -> Any:
    """A parameter: `shown` is its default in words; `uses` says who else has it.

    "notebook": notebooks do; "plan": a live run with a plan takes the plan's.
    """
    more: dict[str, Any] = {"metavar": metavar, "shown": shown, "uses": uses.split()}
    first = {"default_factory": default} if callable(default) else {"default": default}
    return Field(**first, description=help, json_schema_extra=more)


class Settings(_Table):
    """The validated parameters of one run; frozen, passed explicitly."""

    # fmt: off
    mode: Literal["dry-run", "live"] = _setting(
        "dry-run", "dry-run changes nothing.", "dry-run|live")
    allowlist: k.Allowlist = _setting(
        None, "Symbols that pass.", "A,B|@FILE|redis:KEY", "notebook", shown="any")
    min_conf: k.Share = _setting(0.60, "Minimum confidence.", "0..1", "notebook", shown="0.60")
    max_age_min: k.PositiveMinutes = _setting(30.0, "Maximum age, minutes.", "MIN", "notebook")
    as_of: k.Time = _setting(
        None, "Measure ages against this ISO 8601 time.", "TIME", "notebook plan", shown="now")
    throttle: k.Rate = _setting(
        5.0, "Events per second, or none; of drains at once the lowest holds.", "RATE",
        "notebook plan")
    max_events: k.Count = _setting(500, "Events of this run, or all.", "N", "notebook plan")
    redis_url: SecretStr = _setting(
        SecretStr(DEFAULT_REDIS_URL), "", "URL",
        shown=f"$DRAINKIT_REDIS_URL, else {DEFAULT_REDIS_URL}")
    stream: k.Name = _setting("quantum:stream:trade.intent", "", "KEY", "notebook")
    consumer_group: k.Name = _setting(
        "quantum:group:execution:trade.intent", "", "NAME", "notebook")
    consumer_name: k.Name = _setting("backlog_drain_1", "The drain's consumer.", "NAME", "notebook")
    audit_stream: k.Name | None = _setting(
        None, "", "KEY", "notebook plan", shown="<stream>.drain_audit")
    scope: Literal["undelivered", "pending", "history"] = _setting(
        "undelivered", "Which entries.", "undelivered|pending|history", "notebook")
    min_idle_min: k.Minutes = _setting(
        60.0, "Scope pending: idle at least, minutes.", "MIN", "plan")
    from_consumer: k.Names = _setting((), "Scope pending: only this one.", "NAME", "plan")
    history_group: k.Name | None = _setting(
        None, "", "NAME", "plan", shown="<consumer-group>.drain_history")
    until: k.Bound = _setting(
        None, "No entry after this ISO 8601 time (UTC), entry id, or age (30m, 2h, 1d).",
        "TIME|ID|AGE", "notebook plan")
    # to users it is `from`, which Python keeps for itself
    from_: k.Bound = _setting(
        None, "Scopes pending, history: no entry before this.", "TIME|ID|AGE", "notebook plan")
    plan: k.FilePath = _setting(None, "Dry run: write this plan. Live: apply exactly it.", "PATH")
    allow_active_consumers: bool = _setting(
        False, "Drain although another consumer of the group is active.")
    allow_invalid: bool = _setting(
        False, "Live: drain although more than a fifth of the events cannot be read.")
    operator: k.Operator = _setting(
        k.os_user, "Who answers for it; stands in the ledger.", "NAME", shown="the OS user")
    reports_dir: k.Place = _setting(Path("reports"), "", "DIR|s3://BUCKET/PREFIX")
    notebooks_dir: k.FilePath = _setting(
        None, "Notebooks of your own.", "DIR", shown="the packaged ones")
    # fmt: on
    fields: Fields = Field(default_factory=Fields, description="names of the event's values")
    limits: Limits = Field(default_factory=Limits, description="limits of unattended live runs")
    approval: Approval | None = Field(None, description="who must have approved a live run's plan")
    env: str | None = Field(None, description="the table of drainkit.toml that was chosen")

    _asked: frozenset[str] = PrivateAttr(frozenset())
    _symbols: frozenset[str] | bytes | None = PrivateAttr(None)

    @property
    def asked(self) -> frozenset[str]:
        """Names that the command itself, or a notebook's cell, set."""
        return self._asked

    @property
    def symbols(self) -> frozenset[str] | bytes | None:
        """The allowlist as read when the settings were made, or a Redis set's key; None: any."""
        return self._symbols

    @property
    def as_of_us(self) -> int | None:
        """`as_of` as microseconds since the epoch, UTC."""
        if self.as_of is None:
            return None
        return (self.as_of - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)

    @property
    def bounds(self) -> tuple[str, str]:
        """The first and last id that `from_` and `until` let through, ages made times before."""
        first = ids.FIRST_ID if self.from_ is None else ids.first_of(self.from_)
        return first, ids.LAST_ID if self.until is None else ids.last_of(self.until)

    @check("history_group")
    @classmethod
    def _history_group(cls, value: str | None, info: Any) -> str | None:
        if value == info.data.get("consumer_group"):
            # it would be drained from its position on and then destroyed
            raise ValueError("must not be the consumer group: name a group of its own")
        return value

    @check("from_")
    @classmethod
    def _from(cls, value: str | None, info: Any) -> str | None:
        until = info.data.get("until")
        if value and info.data.get("scope") == "undelivered":
            raise ValueError("is for scopes pending and history only: a group cannot skip")
        if value and until:
            # a time and an age are held against each other once the server's clock is known
            first, last = (ids.at_moment(bound, _ANY_US) for bound in (value, until))
            if (first == value) == (last == until) and ids.lies_after(first, last):
                raise ValueError("lies after --until")
        return value


def outside(name: str) -> str:
    """A parameter's name on the command line; `from_` has its underscore for Python alone."""
    return name.rstrip("_").replace("_", "-")


def facts(name: str) -> Mapping[str, Any]:
    """What a parameter's users know of it: metavar, help, default in words, uses."""
    field = Settings.model_fields[name]
    more: Any = field.json_schema_extra or {}
    words = more.get("shown") or (field.default not in (None, ()) and shown(name, field.default))
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
NOTEBOOK = tuple(n for n in Settings.model_fields if "notebook" in facts(n).get("uses", ()))
FROM_PLAN = tuple(n for n in Settings.model_fields if "plan" in facts(n).get("uses", ()))
_NAMES = {outside(name): name for name in Settings.model_fields}
_VARIABLES = {name: f"DRAINKIT_{out.replace('-', '_').upper()}"
              for out, name in _NAMES.items() if name not in _OF_THE_FILE}  # fmt: skip
VARIABLES = {*_VARIABLES.values(), CONFIG_VARIABLE}


def build(values: Mapping[str, Any], *, asked: frozenset[str] | None = None) -> Settings:
    """Settings from explicit `values`; UsageError names each wrong one and says what it takes.

    `asked`: those of them that the command or a notebook's cell set; None: all.
    """
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise UsageError("; ".join(_explain(item) for item in error.errors())) from None
    own = settings.model_dump_json(exclude={"redis_url"})
    keep_secret(secret_words(settings.redis_url.get_secret_value()), own)
    if (spec := settings.allowlist) is not None:
        key = spec.removeprefix(k.REDIS_SET).encode()
        settings._symbols = key if spec.startswith(k.REDIS_SET) else k.allowlist_symbols(spec)
    settings._asked = frozenset(values) if asked is None else asked
    return settings


def _explain(item: Any) -> str:
    name = str(item["loc"][0])
    if item["type"] == "extra_forbidden":
        return f"{'.'.join(map(str, item['loc']))}: no such parameter; check its spelling"
    text = item["msg"].removeprefix("Value error, ")
    if item["type"] == "literal_error":
        text = "must be " + item["ctx"]["expected"].replace("'", "")
    # a URL may hold a password, so its value is never shown
    is_shown = name != "redis_url" and not k.is_url(item["input"])
    value = f" (not {one_line(repr(item['input']))})" if is_shown else ""
    where = f"--{outside(name)}"
    if name in ("fields", *_OF_THE_FILE):
        where = f"[{name}]" + "".join(f" {part}:" for part in item["loc"][1:2])
    return f"{where} {text}{value}"


# ---------------------------------------------------------------- flags, environment, drainkit.toml


def load(
    flags: Mapping[str, Any],
    *,
    env_name: str | None = None,
    environ: Mapping[str, str] = os.environ,
    only: frozenset[str] | None = None,
) -> Settings:
    """Merge flags, environment, `drainkit.toml` and defaults into checked settings.

    `flags` holds only what was really given. `env_name` picks `[env.NAME]` of the file, whose
    values become defaults. With `only`, all else has its default, whatever was set. Raises
    UsageError with one line for all problems.
    """
    env_name = env_name if env_name is not None else environ.get(_VARIABLES["env"])
    path = Path(environ.get(CONFIG_VARIABLE) or CONFIG_FILE)
    if CONFIG_VARIABLE in environ and not path.is_file():
        raise UsageError(f"{CONFIG_VARIABLE}: {path} is not a file")
    values = read_config(path, env_name, check_names=only is None)
    for name, variable in _VARIABLES.items():
        if variable in environ:
            values[name] = environ[variable]
    values.update(flags if env_name is None else {"env": env_name, **flags})
    kept = {name: value for name, value in values.items() if only is None or name in only}
    return build(kept, asked=frozenset(flags))


def read_config(path: Path, env_name: str | None, *, check_names: bool = True) -> dict[str, Any]:
    """The values of `drainkit.toml` with those of `[env.env_name]` laid over them."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if env_name is None:
            return {}
        raise UsageError(f"--env {env_name}: there is no {CONFIG_FILE} here") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{CONFIG_FILE}: {error}") from None
    tables = data.pop("env", {})
    if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
        raise UsageError(f"{CONFIG_FILE}: write environments as tables, [env.NAME]")
    if env_name is not None and env_name not in tables:
        known = ", ".join(sorted(tables)) or "none"
        raise UsageError(f"--env {env_name}: no such table in {CONFIG_FILE}; has {known}")
    unknown = {name for table in (data, *tables.values()) for name in table
               if outside(name) not in _NAMES}  # fmt: skip
    if unknown and check_names:
        raise UsageError(f"{CONFIG_FILE}: unknown key {min(unknown)}; check its spelling")
    values = dict(data)
    for name, value in tables[env_name].items() if env_name is not None else ():
        # of a table ([fields], [limits]) what is not said anew holds on: no limit gets lost
        is_table = isinstance(value, dict) and isinstance(data.get(name), dict)
        values[name] = data[name] | value if is_table else value
    allowlist, approval = values.get("allowlist"), values.get("approval")
    if isinstance(allowlist, str) and allowlist.startswith("@"):  # beside the file that names it
        values["allowlist"] = f"@{path.parent / allowlist[1:]}"
    if isinstance(approval, dict) and "allowed_signers" in approval:
        beside = path.parent / str(approval["allowed_signers"])
        values["approval"] = {**approval, "allowed_signers": beside}
    return {_NAMES[outside(n)]: value for n, value in values.items() if n not in unknown}


def config_variable() -> dict[str, str]:
    """The variable that lets a kernel read the drainkit.toml that holds here; empty without one."""
    path = Path(os.environ.get(CONFIG_VARIABLE) or CONFIG_FILE).resolve()
    return {CONFIG_VARIABLE: str(path)} if path.exists() else {}


def kernel_variables(settings: Settings) -> dict[str, str]:
    """The settings that were given, as variables: a kernel's folder may have no drainkit.toml."""
    found = {"DRAINKIT_REDIS_URL": settings.redis_url.get_secret_value()}
    for name in sorted(settings.model_fields_set - _NOT_FOR_KERNELS):
        value = getattr(settings, name)
        if name == "fields":
            text = value.model_dump_json(exclude_unset=True)
        elif value is None:  # of an allowlist there is no word for "any symbol"
            text = shown(name, value) if name != "allowlist" else ""
        elif isinstance(value, tuple):
            text = "\n".join(value)
        elif name == "allowlist" and value.startswith("@"):
            text = f"@{Path(value[1:]).resolve()}"
        else:
            text = value.isoformat() if hasattr(value, "isoformat") else str(value)
        if text:
            found[_VARIABLES[name]] = text
    return found
