"""The command line: parse, call one verb, print, exit. Results to stdout, the rest to stderr."""

from __future__ import annotations

import errno
import gc
import signal
import sys
import traceback
from typing import NoReturn

import click

from ..errors import DrainkitError, InterruptedRunError, UsageError
from . import desk, draining, operations, review  # noqa: F401 - they add their commands
from .options import program
from .terminal import interrupt, safe_streams, tell, tell_error


def main() -> NoReturn:
    """Run the program and exit with a code of the contract."""
    debug = "--debug" in sys.argv
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
        code = _fail(UsageError(f"{words}; see drainkit --help"), debug)
    except (click.Abort, KeyboardInterrupt):
        code = _fail(InterruptedRunError("interrupted"), debug)
    except DrainkitError as error:
        code = _fail(error, debug)
    except Exception as error:
        odd = DrainkitError(f"unexpected {type(error).__name__}: {error}; --debug shows where")
        odd.__cause__ = error
        code = _fail(odd, debug)
    sys.stdout.flush()
    if stdout.lost is not None:
        code = code or 1
        if not isinstance(stdout.lost, BrokenPipeError):  # the reader of a pipe left: as he wishes
            tell_error(f"the result could not be printed: {stdout.lost.strerror}")
    gc.freeze()  # else the interpreter's last collections walk all that was imported: 0.04 s
    sys.exit(code if isinstance(code, int) else 0)


def _fail(error: DrainkitError, debug: bool) -> int:
    if debug:  # a traceback holds what servers and libraries say
        tell(*traceback.format_exc().splitlines(), err=True)
    cause: BaseException | None = error  # it may lie far below, in whatever words
    while cause is not None and getattr(cause, "errno", 0) not in (errno.EMFILE, errno.ENFILE):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        error = DrainkitError("too few open files are allowed here; raise `ulimit -n`")
    tell_error(error)
    return error.exit_code
