"""`drainkit` and `python -m drainkit`: it imports the command line and runs it."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from importlib.util import find_spec
from typing import NoReturn

from .errors import InterruptedRunError, UsageError


def main() -> NoReturn:
    """Run the command line; interrupted while it is still imported, end at once."""
    if find_spec("fcntl") is None:  # the locks of evidence and of scheduled runs
        sys.stderr.write("drainkit: no fcntl here, which locks files; on Windows use WSL\n")
        sys.exit(UsageError.exit_code)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    from .cli import desk, draining, operations  # noqa: F401 - they add their commands
    from .cli.program import main as command_line

    command_line()


def _end(*_: object) -> NoReturn:
    with suppress(OSError):
        os.write(2, b"drainkit: interrupted\n")  # by no object that an import may have half made
    os._exit(InterruptedRunError.exit_code)


if __name__ == "__main__":
    main()
