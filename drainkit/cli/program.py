"""The command line: parse, call one verb, print, exit. Results to stdout, the rest to stderr.

Here are the program, the options that its commands share, and the settings made of them.
"""

from __future__ import annotations

import datetime as dt
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click import Option

from ..errors import DrainkitError, InterruptedRunError, UsageError
from ..late import late
from ..settings import VARIABLES, Settings, facts, load, outside, shown
from .terminal import interrupt, safe_streams, tell, tell_error

if TYPE_CHECKING:
    from ..server import connection
else:
    (connection,) = late("drainkit.server", "connection")

YES = Option(["--yes"], is_flag=True, help="Do not ask.")
DEBUG = Option(["--debug"], is_flag=True, expose_value=False, help="Show tracebacks.")
COMMON: list[click.Parameter] = [
    DEBUG,
    Option(["--json"], is_flag=True, expose_value=False, help="One JSON object on stdout.",
           callback=lambda context, _, given: context.meta.update(json=given)),
]  # fmt: skip


class _Program(click.Group):
    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """In the order of their definition, each with its whole summary; click would cut it."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, it.get_short_help_str(limit=200)) for name, it in self.commands.items()]
            )


program = _Program(
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


def main() -> NoReturn:
    """Run the program and exit with a code of the contract."""
    stdout = safe_streams()
    # a scheduler's SIGTERM ends a program that waits for a server just as Ctrl-C does
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        code = program(prog_name="drainkit", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:  # its message is the help
        click.echo(error.format_message(), err=True)
        code = error.exit_code
    except click.ClickException as error:
        words = error.format_message().removesuffix(".")
        code = _fail(UsageError(f"{words}; see drainkit --help"))
    except (click.Abort, KeyboardInterrupt):
        code = _fail(InterruptedRunError("interrupted"))
    except DrainkitError as error:
        code = _fail(error)
    except Exception as error:
        odd = DrainkitError(f"unexpected {type(error).__name__}: {error}; --debug shows where")
        odd.__cause__ = error
        code = _fail(odd)
    sys.stdout.flush()
    if stdout.lost is not None:
        code = code or 1
        if not isinstance(stdout.lost, BrokenPipeError):  # the reader of a pipe left: as he wishes
            tell_error(f"the result could not be printed: {stdout.lost.strerror}")
    gc.freeze()  # else the interpreter's last collections walk all that was imported: 0.04 s
    sys.exit(code if isinstance(code, int) else 0)


def _fail(error: DrainkitError) -> int:
    if "--debug" in sys.argv:  # a traceback holds what servers and libraries say
        tell(*traceback.format_exc().splitlines(), err=True)
    tell_error(error)
    called = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    if called == "check" and not isinstance(error, InterruptedRunError):
        return 3  # the monitoring convention: unknown
    return error.exit_code
