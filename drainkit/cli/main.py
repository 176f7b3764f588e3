"""The command line: parse, call one verb, print, exit. Results to stdout, the rest to stderr."""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from typing import NoReturn

import click

from ..errors import DrainkitError, InterruptedRunError, UsageError
from ..safe import one_line
from . import desk, draining, evidence, operations, review, switch  # noqa: F401 - they add their commands
from .program import program
from .terminal import interrupt, tell_error


def main() -> NoReturn:
    """Run the program and exit with a code of the contract."""
    debug = "--debug" in sys.argv
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
        code = _fail(UsageError(f"{error.format_message()}; see drainkit --help"), debug)
    except (click.Abort, KeyboardInterrupt):
        code = _fail(InterruptedRunError("interrupted"), debug)
    except DrainkitError as error:
        code = _fail(error, debug)
    except BrokenPipeError:
        # the reader of stdout went away (| head); nothing is wrong with what was done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        name = type(error).__name__
        code = _fail(DrainkitError(f"unexpected {name}: {error}; --debug shows where"), debug)
    sys.stdout.flush()
    gc.freeze()  # else the interpreter's last collections walk all that was imported: 0.04 s
    sys.exit(code if isinstance(code, int) else 0)


def _fail(error: DrainkitError, debug: bool) -> int:
    if debug:  # a traceback holds what servers and libraries say
        for line in traceback.format_exc().splitlines():
            click.echo(one_line(line, 10_000), err=True)
    tell_error(error)
    return error.exit_code
