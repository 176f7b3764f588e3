"""What can go wrong, one class for each exit code of the contract.

Every message is one line that says what to do next. Messages may reach terminals, notebooks
and reports, so nobody puts a URL with a password or a raw event value into one.
"""

from __future__ import annotations

import re

# user and password before the last @ of a URL's host part, and those among its options
_SECRETS = (
    # a password typed with spaces still is one: all up to the last @
    (re.compile(r"((?:rediss?|unix|sentinel|cluster)://).*@", re.DOTALL), r"\1***@"),
    (re.compile(r"(?<=://)\S*@"), "***@"),
    (re.compile(r"(?<=[?&])((?:ssl_)?password|username)=[^&\s]*"), r"\1=***"),
)


class DrainkitError(Exception):
    """Something failed, or the books do not balance (exit code 1)."""

    exit_code = 1


class UsageError(DrainkitError):
    """A flag, parameter, variable or configuration file is wrong (exit code 2)."""

    exit_code = 2


class UnreachableError(DrainkitError):
    """Redis cannot be reached, refuses the login, or was lost on the way (exit code 3)."""

    exit_code = 3


class RefusedError(DrainkitError):
    """Going on would not be safe, so nothing more was done (exit code 4)."""

    exit_code = 4


class InterruptedRunError(DrainkitError):
    """SIGINT or SIGTERM: the commit in flight was finished, then the run ended (exit code 130)."""

    exit_code = 130


def error_of(exit_code: int, message: str) -> DrainkitError:
    """The error that stands for an exit code of the contract."""
    kinds = (UsageError, UnreachableError, RefusedError, InterruptedRunError)
    kind = next((kind for kind in kinds if kind.exit_code == exit_code), DrainkitError)
    return kind(message)


def redact(text: str) -> str:
    """`text` without the users and passwords of the URLs in it."""
    for pattern, shown in _SECRETS:
        text = pattern.sub(shown, text)
    return text


def one_line(text: str, limit: int = 200) -> str:
    """`text` fit for one line of a terminal or a log: no control, bidi or unprintable characters.

    Escapes are Python's (`\\x1b`), so that what was there can still be read; longer than `limit`
    characters is cut. Secrets in URLs are redacted, since every message goes through here.
    """
    safe = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in redact(text))
    return safe if len(safe) <= limit else safe[: limit - 3] + "..."
