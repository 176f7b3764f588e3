"""The command line: parse, call one verb, print, exit. Results to stdout, the rest to stderr.

Here are the program, the options that its commands share, and the settings made of them.
"""

from __future__ import annotations

import datetime as dt
import errno
import gc
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ..errors import DrainkitError, InterruptedRunError, UsageError
from .terminal import interrupt, safe_streams, tell, tell_error

if TYPE_CHECKING:
    from ..settings import Settings

option = click.option
YES = option("--yes", is_flag=True, help="Do not ask.")
DEBUG = option("--debug", is_flag=True, expose_value=False, help="Show tracebacks.")
COMMON: list[Any] = [
    DEBUG,
    option("--json", is_flag=True, expose_value=False, help="One JSON object on stdout.",
           callback=lambda context, _, given: context.meta.update(json=given)),
]  # fmt: skip
# in the order of the contract, not of the alphabet
_ORDER = (
    "demo", "status", "fields", "drain", "run", "verify", "runs", "stop", "resume", "check",
    "consumers", "trim", "export", "restore", "show", "diff", "approve", "notebooks", "lab", "acl",
)  # fmt: skip


class _Program(click.Group):
    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each with its whole summary; click would cut it."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, self.commands[name].get_short_help_str(limit=200)) for name in _ORDER]
            )


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="drainkit")
@DEBUG
def program() -> None:
    """Drain a stale Redis stream backlog safely: read, filter, acknowledge, audit.

    It never trades: drained means acknowledged and audited, nothing else.

    \b
    Examples:
      drainkit demo                                 see it work, on a server of its own
      drainkit status                               how it stands, what to do next
      drainkit drain --allowlist BTCUSDT,ETHUSDT    dry run: what would happen
      drainkit drain --mode live --yes --throttle 5 --max-events 500
    """


def command(
    *parameters: Callable[[Any], Any], **known: Any
) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a function a command of the program, with these options and arguments in this order."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        for parameter in reversed(parameters):
            function = parameter(function)
        made: click.Command = program.command(**known)(function)
        return made

    return decorate


def setting(*names: str) -> list[Any]:
    """The options of these settings, as settings/ declares them."""
    from ..settings import Settings, facts, outside

    options = []
    for name in names:
        known, default = facts(name), Settings.model_fields[name].default
        shape: dict[str, Any] = {"metavar": known["metavar"], "multiple": default == ()}
        if default is False:
            shape = {"is_flag": True, "default": None}
        elif known["shown"]:
            shape["help"] = f"{known['help']} [{known['shown']}]".strip()
        options.append(option(f"--{outside(name)}", name, **{"help": known["help"], **shape}))
    return options


_ENV = option("--env", metavar="NAME", help="Table [env.NAME] of drainkit.toml.")
WHERE: list[Any] = [*setting("redis_url", "stream"), _ENV, *COMMON]
AUDIT, OPERATOR = setting("audit_stream", "operator")
GROUP = setting("consumer_group")
SCOPE = setting("scope", "min_idle_min", "from_consumer", "history_group", "until", "from_")
POLICY = setting("allowlist", "min_conf", "max_age_min", "as_of")
DRAIN: list[Any] = [*setting("mode"), *POLICY, *setting("throttle", "max_events"), *GROUP]
DRAIN += [*setting("consumer_name"), AUDIT, *SCOPE, OPERATOR, *setting("plan")]
DRAIN += [option("--yes", is_flag=True, help="Live: do not ask.")]
DRAIN += setting("allow_active_consumers", "allow_invalid")


def settings_of(flags: dict[str, Any], *, only: frozenset[str] | None = None) -> Settings:
    """Checked settings from the options that were really given; with `only`, just of these names.

    A mistake elsewhere must not keep the kill switch from working.
    """
    from ..settings import load, outside, shown, unknown_variables

    for name in unknown_variables() if only is None else ():
        tell_error(f"{name} is not a setting; ignored. Check its spelling")
    given = {n: v for n, v in flags.items() if v is not None and v != () and n != "env"}
    settings = load(given, env_name=flags.get("env"), only=only)
    for name in ("as_of", "until", "from_"):
        with suppress(TypeError, ValueError):  # not given, or no time
            if dt.datetime.fromisoformat(given.get(name)).tzinfo is None:  # type: ignore[arg-type]
                time = shown(name, getattr(settings, name))
                tell_error(f"--{outside(name)} without an offset is UTC: {time}")
    return settings


def as_given(command: str, flags: dict[str, Any]) -> str:
    """The options that were given to `status`, for the command that it names; no password."""
    from ..safe import address, one_line
    from ..settings import outside

    is_same = command.startswith(("run", "status"))
    names = [n for n in flags if is_same or n in ("redis_url", "stream", "env")]
    given = {f"--{outside(name)}": str(flags[name]) for name in names if flags[name]}
    if address(url := given.get("--redis-url", "")) != url:
        del given["--redis-url"]  # a login, or options, that are not to be shown
    return "".join(
        f" {option} {shlex.quote(one_line(value, 4096))}"
        for option, value in given.items()
        if option not in command
    )


def main() -> NoReturn:
    """Run the program and exit with a code of the contract."""
    stdout = safe_streams()
    # a scheduler's SIGTERM ends a program that waits for a server just as Ctrl-C does
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        code = program(prog_name="drainkit", standalone_mode=False) or 0
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:  # its message is the help
        click.echo(error.format_message(), err=True)
        code = error.exit_code
    except click.ClickException as error:
        words = error.format_message().removesuffix(".")
        if isinstance(error, click.NoSuchOption) and error.option_name in ("--live", "--dry-run"):
            words = f"no option {error.option_name}: write --mode {error.option_name[2:]}"
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
    cause: BaseException | None = error  # it may lie far below, in whatever words
    while cause is not None and getattr(cause, "errno", 0) not in (errno.EMFILE, errno.ENFILE):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        error = DrainkitError("too few open files are allowed here; raise `ulimit -n`")
    tell_error(error)
    called = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    if called == "check" and not isinstance(error, InterruptedRunError):
        return 3  # the monitoring convention: unknown
    return error.exit_code
