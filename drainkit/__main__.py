"""`drainkit` and `python -m drainkit`: it imports the command line and runs it."""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from contextlib import suppress
from importlib.util import find_spec
from typing import NoReturn

from .errors import SIGNALS, DrainkitError, InterruptedRunError, UsageError


def main() -> NoReturn:
    """Run the command line and exit with a code of the contract.

    Interrupted while it is still imported, it ends at once.
    """
    if find_spec("fcntl") is None:  # the locks of evidence and of scheduled runs
        sys.stderr.write("drainkit: no fcntl here, which locks files; on Windows use WSL\n")
        sys.exit(UsageError.exit_code)
    for number in SIGNALS:
        signal.signal(number, _end)
    import click

    from .cli import desk, draining, operations, program, terminal  # noqa: F401 - add commands

    stdout = terminal.safe_streams()
    # a scheduler's SIGTERM ends a program that waits for a server just as Ctrl-C does
    for number in SIGNALS:
        signal.signal(number, terminal.interrupt)
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
            terminal.tell_error(f"the result could not be printed: {stdout.lost.strerror}")
    gc.freeze()  # else the interpreter's last collections walk all that was imported: 0.04 s
    sys.exit(code if isinstance(code, int) else 0)


def _end(*_: object) -> NoReturn:
    with suppress(OSError):
        os.write(2, b"drainkit: interrupted\n")  # by no object that an import may have half made
    os._exit(InterruptedRunError.exit_code)


def _fail(error: DrainkitError) -> int:
    from .cli.terminal import tell, tell_error

    if "--debug" in sys.argv:  # a traceback holds what servers and libraries say
        tell(*traceback.format_exc().splitlines(), err=True)
    tell_error(error)
    called = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    if called == "check" and not isinstance(error, InterruptedRunError):
        return 3  # the monitoring convention: unknown
    return error.exit_code


if __name__ == "__main__":
    main()
