"""The command line: parse, call one verb, print, exit. Results to stdout, the rest to stderr.

Here are the program, the options that its commands share, and the settings made of them.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click
from click import Option

from ..late import late
from ..settings import VARIABLES, Settings, facts, load, outside, shown
from .terminal import tell_error

if TYPE_CHECKING:
    from ..server import connection
else:
    (connection,) = late("drainkit.server", "connection")

# Each thread of OpenBLAS spins for a while once numpy is imported: a quarter of a short command's
# CPU, and nothing here multiplies matrices. What the user says of it holds, and JupyterLab, where
# people may well multiply some, is started without it.
OURS = {"OPENBLAS_NUM_THREADS"} - os.environ.keys()
os.environ |= dict.fromkeys(OURS, "1")

YES = Option(["--yes"], is_flag=True, help="Do not ask.")
DEBUG = Option(["--debug"], is_flag=True, expose_value=False, help="Show tracebacks.")
COMMON: list[click.Parameter] = [
    DEBUG,
    Option(["--json"], is_flag=True, expose_value=False, help="One JSON object on stdout.",
           callback=lambda context, _, given: context.meta.update(json=given)),
]  # fmt: skip


program = click.Group(
    params=[DEBUG],
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Drain a stale Redis stream backlog safely: read, filter, acknowledge, audit.

    It never trades: drained means acknowledged and audited, nothing else.

    \b
    Examples:
      drainkit demo                                 see it work, on a server of its own
      drainkit status                               how it stands, what to do next
      drainkit drain --allowlist BTCUSDT,ETHUSDT    dry run: what would happen
      drainkit drain --mode live --yes --throttle 5 --max-events 500
    """,
)
click.version_option(package_name="drainkit")(program)


class Argument(click.Argument):
    """One that is not empty: a variable that is not set names no file, and not this folder."""

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """The value, or values, as its type."""
        if "" in (value if self.nargs == -1 else [value]):
            raise click.BadParameter("must not be empty", ctx, self)
        return super().type_cast_value(ctx, value)


def command(
    *params: click.Parameter, **known: Any
) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a function a command of the program, with these options and arguments in this order."""
    return program.command(params=[*params], **known)


def setting(*names: str) -> list[Option]:
    """The options of these settings, as settings/ declares them."""
    options = []
    for name in names:
        known, default = facts(name), Settings.model_fields[name].default
        shape: dict[str, Any] = {"metavar": known["metavar"], "multiple": default == ()}
        if default is False:
            shape = {"is_flag": True, "default": None}
        elif known["shown"]:
            shape["help"] = f"{known['help']} [{known['shown']}]".strip()
        options.append(Option([f"--{outside(name)}", name], **{"help": known["help"], **shape}))
    return options


_ENV = Option(["--env"], metavar="NAME", help="Table [env.NAME] of drainkit.toml.")
WHERE = [*setting("redis_url", "stream"), _ENV, *COMMON]
AUDIT, OPERATOR = setting("audit_stream", "operator")
GROUP = setting("consumer_group")
SCOPE = setting("scope", "min_idle_min", "from_consumer", "history_group", "until", "from_")
POLICY = setting("allowlist", "min_conf", "max_age_min", "as_of")
DRAIN = [*setting("mode"), *POLICY, *setting("throttle", "max_events"), *GROUP]
DRAIN += [*setting("consumer_name"), AUDIT, *SCOPE, OPERATOR, *setting("plan")]
DRAIN += [Option(["--yes"], is_flag=True, help="Live: do not ask.")]
DRAIN += setting("allow_active_consumers", "allow_invalid")


def settings_of(flags: dict[str, Any], *, only: frozenset[str] | None = None) -> Settings:
    """Checked settings from the options that were really given; with `only`, just of these names.

    A mistake elsewhere must not keep the kill switch from working.
    """
    for name in sorted(os.environ.keys() - VARIABLES) if only is None else ():
        if name.startswith("DRAINKIT_"):
            tell_error(f"{name} is not a setting; ignored. Check its spelling")
    given = {n: v for n, v in flags.items() if v is not None and v != () and n != "env"}
    settings = load(given, env_name=flags.get("env"), only=only)
    for name in ("as_of", "until", "from_"):
        with suppress(TypeError, ValueError):  # not given, or no time
            if dt.datetime.fromisoformat(given.get(name)).tzinfo is None:  # type: ignore[arg-type]
                time = shown(name, getattr(settings, name))
                tell_error(f"--{outside(name)} without an offset is UTC: {time}")
    return settings


@contextmanager
def connected(
    flags: dict[str, Any], *, only: frozenset[str] | None = None
) -> Iterator[tuple[Settings, connection.Server]]:
    """The settings of these options, and a connection to their server, closed at the end."""
    settings = settings_of(flags, only=only)
    with connection.Server.of(settings) as server:
        yield settings, server
