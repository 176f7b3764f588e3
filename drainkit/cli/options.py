"""The options that commands share, and the settings made of them."""

from __future__ import annotations

import datetime as dt
import shlex
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ..settings import Settings

F = TypeVar("F", bound=Callable[..., Any])
option = click.option


def stack(options: list[Callable[[F], F]]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


DEBUG = click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")


def setting(*names: str) -> list[Any]:
    """The options of these settings; what they are stands in settings.py."""
    from ..settings import Settings, facts, outside

    options = []
    for name in names:
        known = facts(name)
        default = f"[{known['shown']}]" if known["shown"] else ""
        flag = (f"--{outside(name)}", name)
        words = " ".join(part for part in (known["help"], default) if part)
        if Settings.model_fields[name].default is False:
            options.append(option(*flag, is_flag=True, default=None, help=known["help"]))
        else:
            many = Settings.model_fields[name].default == ()
            options.append(option(*flag, metavar=known["metavar"], multiple=many, help=words))
    return options


WHERE: list[Any] = [
    *setting("redis_url", "stream"),
    option("--env", "env_name", metavar="NAME", help="Table [env.NAME] of drainkit.toml."),
    DEBUG,
]
OPERATOR: Any = setting("operator")[0]
GROUP = setting("consumer_group")
SCOPE = setting("scope", "min_idle_min", "from_consumer", "history_group", "until", "from_")
POLICY = setting("allowlist", "min_conf", "max_age_min", "as_of")
DRAIN: list[Any] = [
    *setting("mode"),
    *POLICY,
    *setting("throttle", "max_events"),
    *GROUP,
    *setting("consumer_name", "audit_stream"),
    *SCOPE,
    OPERATOR,
    *setting("plan"),
    option("--yes", is_flag=True, help="Live: do not ask."),
    *setting("allow_active_consumers", "allow_invalid"),
]


def settings_of(flags: dict[str, Any], env_name: str | None = None) -> Settings:
    """Checked settings from the options that were really given."""
    from ..settings import outside, shown
    from ..settings.config import load, unknown_variables

    for name in unknown_variables():
        click.echo(f"drainkit: {name} is not a setting; ignored. Check its spelling", err=True)
    settings = load(_given(flags), env_name=env_name)
    for name in ("as_of", "until", "from_"):
        with suppress(TypeError, ValueError):  # not given, or no time
            if dt.datetime.fromisoformat(flags.get(name)).tzinfo is None:  # type: ignore[arg-type]
                taken = shown(name, getattr(settings, name))
                click.echo(
                    f"drainkit: --{outside(name)} without an offset is UTC: {taken}", err=True
                )
    return settings


def as_given(command: str, flags: dict[str, Any], env_name: str | None) -> str:
    """The options that were given to `status`, for the command that it names; no password."""
    from ..safe import address, one_line
    from ..settings import outside

    is_same = command.startswith(("run", "status"))
    names = [name for name in flags if is_same or name in ("redis_url", "stream")]
    given = {f"--{outside(name)}": str(flags[name]) for name in names if flags[name]}
    if address(url := given.get("--redis-url", "")) != url:
        del given["--redis-url"]  # a login, or options, that are not to be shown
    if env_name:
        given["--env"] = env_name
    return "".join(
        f" {option} {shlex.quote(one_line(value, 4096))}"
        for option, value in given.items()
        if option not in command
    )


def switch_settings(flags: dict[str, Any], env_name: str | None) -> Settings:
    """Only where the stream is: no mistake elsewhere may stand in the kill switch's way."""
    from ..settings.config import load

    return load(
        _given(flags), env_name=env_name, only=frozenset({"redis_url", "stream", "operator"})
    )


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None and value != ()}
