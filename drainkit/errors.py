"""What can go wrong, one class for each exit code of the contract.

Every message is one line that says what to do next. Texts from outside may be put in as they are:
when shown, it is fit for terminals, notebooks and reports, and holds no password.
"""

from __future__ import annotations

import re
import signal

from .safe import one_line

#: They end a run in order; SIGHUP, of a terminal that is gone, unless it is ignored (nohup).
SIGNALS = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
    SIGNALS.append(signal.SIGHUP)

_FLAG = re.compile(r"--(?=[a-z])([a-z-]+)")
_URL_FLAG = re.compile(r"--redis-url( \(or DRAINKIT_REDIS_URL\))?")


class DrainkitError(Exception):
    """Something failed, or the books do not balance (exit code 1)."""

    exit_code = 1

    def __str__(self) -> str:
        return one_line(super().__str__(), 600, end=200)

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of it: one line, in the words of a notebook, which has no flags.

        The text itself stays, so that `drainkit run` can show it on a terminal.
        """
        text = _URL_FLAG.sub("DRAINKIT_REDIS_URL", str(self))
        text = text.replace("run the same command again", "run this cell again")
        words = _FLAG.sub(lambda flag: flag[1].replace("-", "_"), text)
        note = " (here a line of drainkit.toml, or a parameter if this notebook has it)"
        note *= words != text
        return [f"{type(self).__name__}: {words}{note}"]


class UsageError(DrainkitError):
    """A flag, parameter, variable or configuration file is wrong (exit code 2)."""

    exit_code = 2


class UnwritableError(UsageError):
    """A file cannot be written where it should be (exit code 2; 1 where a run was under way)."""


class UnreachableError(DrainkitError):
    """Redis cannot be reached, refuses the login, or was lost on the way (exit code 3)."""

    exit_code = 3


class RefusedError(DrainkitError):
    """Going on would not be safe, so nothing more was done (exit code 4)."""

    exit_code = 4


class InterruptedRunError(DrainkitError):
    """One of SIGNALS: the commit in flight was finished, then the run ended (exit code 130)."""

    exit_code = 130


class StoppedError(RefusedError):
    """The kill switch is set: `drainkit resume` lifts it."""


class ConnectionLostError(UnreachableError):
    """The connection broke or timed out: whether the last command ran is unknown."""


class ReplyTooLargeError(DrainkitError):
    """A reply holds more bytes than its reader has room for; the connection was dropped."""


class ServerBusyError(UnreachableError):
    """The server answers, but did not run the command and will later (LOADING, BUSY)."""


class SlotMovedError(UnreachableError):
    """The command did not run: the Cluster serves the stream elsewhere now."""


def error_class(mark: int | str) -> type[DrainkitError]:
    """The first class with this exit code, or name (of a kernel's error); else DrainkitError."""
    if mark == "KeyboardInterrupt":
        return InterruptedRunError
    kinds = [DrainkitError]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
    return next((kind for kind in kinds if mark in (kind.exit_code, kind.__name__)), DrainkitError)
