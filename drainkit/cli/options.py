"""The options that commands share, and the settings made of them."""

from __future__ import annotations

from collections.abc import Callable
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
WHERE: list[Any] = [
    option(
        "--redis-url", metavar="URL", help="[$DRAINKIT_REDIS_URL, else redis://localhost:6379/0]"
    ),
    option("--stream", metavar="KEY", help="[quantum:stream:trade.intent]"),
    option("--env", "env_name", metavar="NAME", help="Table [env.NAME] of drainkit.toml."),
    DEBUG,
]
GROUP: list[Any] = [
    option("--consumer-group", metavar="NAME", help="[quantum:group:execution:trade.intent]"),
]
SCOPE: list[Any] = [
    option("--scope", metavar="undelivered|pending|history", help="Which entries. [undelivered]"),
    option("--min-idle-min", metavar="MIN", help="Scope pending: idle at least, minutes. [60]"),
    option("--from-consumer", multiple=True, metavar="NAME", help="Scope pending: only this one."),
    option("--history-group", metavar="NAME", help="[<consumer-group>.drain_history]"),
]
POLICY: list[Any] = [
    option("--allowlist", metavar="A,B|@FILE|redis:KEY", help="Symbols that pass. [any]"),
    option("--min-conf", metavar="0..1", help="Minimum confidence. [0.60]"),
    option("--max-age-min", metavar="MIN", help="Maximum age, minutes. [30]"),
    option("--as-of", metavar="TIME", help="Measure ages against this ISO 8601 time. [now]"),
]
DRAIN: list[Any] = [
    option("--mode", metavar="dry-run|live", help="dry-run changes nothing. [dry-run]"),
    *POLICY,
    option("--throttle", metavar="RATE", help="Events per second, or none. [5]"),
    option("--max-events", metavar="N", help="Events of this run, or all. [500]"),
    *GROUP,
    option("--consumer-name", metavar="NAME", help="The drain's consumer. [backlog_drain_1]"),
    option("--audit-stream", metavar="KEY", help="[<stream>.drain_audit]"),
    *SCOPE,
    option("--plan", metavar="PATH", help="Dry run: write this plan. Live: apply exactly it."),
    click.option("--yes", is_flag=True, help="Live: do not ask."),
    click.option("--allow-active-consumers", is_flag=True, default=None,
                 help="Drain although another consumer of the group is active."),
]  # fmt: skip


def settings_of(flags: dict[str, Any], env_name: str | None = None) -> Settings:
    """Checked settings from the options that were really given."""
    from ..settings import load, unknown_variables

    for name in unknown_variables():
        click.echo(f"drainkit: {name} is no setting and is ignored; check its spelling", err=True)
    return load(_given(flags), env_name=env_name)


def switch_settings(flags: dict[str, Any], env_name: str | None) -> Settings:
    """Only where the stream is: no mistake elsewhere may stand in the kill switch's way."""
    from ..settings import load

    return load(_given(flags), env_name=env_name, only=frozenset({"redis_url", "stream"}))


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None and value != ()}
