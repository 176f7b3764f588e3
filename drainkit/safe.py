"""Texts from outside, made fit to show; passwords struck out.

Two nets. `redact` knows a URL by its form. `keep_secret` makes the passwords themselves known, and
no text made fit to show in this process holds them, even one that a server sent.
"""

from __future__ import annotations

import html
import json
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from html.entities import html5
from pathlib import Path
from typing import Any

#: The classes by which MathJax, old and new, leaves an element alone: `$` is no formula here.
UNTYPESET = "tex2jax_ignore mathjax_ignore"
# a password typed with spaces still is one: all up to the last @ of the text
_LOGIN = re.compile(r"((?:rediss?|unix|sentinel|cluster)://)(.*)@(\S*)", re.DOTALL)
_OTHER_LOGIN = re.compile(r"(:/+)\S*@")  # one slash: a URL that was taken for a path
# of a URL that is not Redis's (a store's, its endpoint's) no option is worth showing
_OTHER_OPTIONS = re.compile(
    r"(?<![\w+.-])(?!(?:rediss?|unix|sentinel|cluster)\b)([\w+.-]+:/+[^\s?#]*[?#])\S+"
)
# as redis-py reads their names (`pass%77ord` is `password`); to the next blank, for & or # may
# belong to the value
_SECRET_NAMES = "|".join(
    "".join(f"(?:{c}|%(?:25)*(?:{ord(c):x}|{ord(c.upper()):x}))" for c in name)
    for name in ("password", "ssl_password", "username")
)
_SECRET_OPTION = re.compile(rf"([?&](?:{_SECRET_NAMES})=)\S*", re.IGNORECASE)
# what is before a password in a text: in a URL; after its option's name, in an AUTH command
_BEFORE_IN_URL = "(?<=://)|(?<=:)"
_BEFORE_IN_TEXT = """(?<=password=)|(?<=password=['"])|(?<=password['"]: ['"])|(?<=auth )"""
_MIN_SECRET = 3  # characters; a shorter one is looked for only where a password can be
_ESCAPES = {"\n": "n", "\r": "r", "\t": "t"} | {c: c for c in "\"'`/\\"}  # of JSON, of Python
_kept: dict[str, re.Pattern[str] | None] = {}  # passwords that this process knows


def redact(text: str) -> str:
    """`text` without the users and passwords of the URLs in it."""
    if ":/" in text:
        # an @ in an option's value: what follows it belongs to the password
        text = _LOGIN.sub(
            lambda m: f"{m[1]}***" + ("" if _SECRET_OPTION.search(m[2]) else f"@{m[3]}"), text
        )
        text = _OTHER_LOGIN.sub(r"\1***@", text)
        text = _OTHER_OPTIONS.sub(r"\1***", text)
    return _SECRET_OPTION.sub(r"\1***", text)


def one_line(text: str, limit: int = 200, end: int = 0) -> str:
    """`text` fit for one line of a terminal or a log: no control, bidi or unprintable characters.

    Escapes are Python's (`\\x1b`), so that what was there can still be read; of more than `limit`
    characters the first and the last `end` stay. Secrets are struck out, since every text from
    outside goes through here.
    """
    safe: str = struck(redact(text))
    if not safe.isprintable():
        safe = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in safe)
    return safe if len(safe) <= limit else f"{safe[: limit - 3 - end]}...{safe[len(safe) - end :]}"


def verbatim(text: str) -> str:
    """A text from outside for Markdown: within backticks nothing of it is markup."""
    return "`" + one_line(text, 600).replace("`", "'") + "`"


def label(text: object) -> str:
    """A text from outside, fit for a label."""
    # plotly would show &quot; literally; without "<" there is no tag that a quote could end
    return html.escape(one_line(str(text), 40), quote=False)


def text(raw: bytes) -> str:
    """A name from the server as text; what is not UTF-8 is shown as escapes."""
    return raw.decode("utf-8", "backslashreplace")


def share(part: int, whole: int) -> str:
    """`part` of `whole` in percent, as a reader says it."""
    if not whole:
        return "none"
    percent = 100 * part / whole
    if 0 < percent < 1:
        return "under 1 %"
    return "over 99 %" if 99.5 <= percent < 100 else f"{percent:.0f} %"


def address(url: str) -> str:
    """A server's URL without user, password and options but the database."""
    place, _, options = redact(url).replace("***@", "").partition("?")
    db = re.search(r"(?<![^&])db=\d+", options)
    return one_line(f"{place}?{db[0]}" if db else place)


def secret_words(url: str) -> list[str]:
    """The passwords of a URL, as written and as decoded."""
    found = set()
    rest = url.partition("://")[2] or url
    # all before the last @, and before the last @ of the host's part: a # or ? in a password that
    # was not encoded makes these two different
    for part in (rest, re.split("[/?#]", rest, maxsplit=1)[0]):
        if login := part.rpartition("@")[0]:
            found.add(login.partition(":")[2] or login)
    for name, value in urllib.parse.parse_qsl(url.partition("?")[2]):
        if _SECRET_OPTION.match(f"?{name}=") and name.lower() != "username":
            found.add(value)
    return sorted({word for w in found if w for word in (w, urllib.parse.unquote(w))})


def keep_secret(words: Iterable[str], known: str = "") -> None:
    """Strike these passwords out of all that is made fit to show from now on.

    `known`: texts that hold none, such as the names of streams and groups.
    """
    _kept.update({w: secret_pattern([w], known) for w in words if known or w not in _kept})


def struck(value: Any) -> Any:
    """The value without the passwords that this process knows."""
    for word in sorted(_kept, key=len, reverse=True):
        value = strike(value, _kept[word])
    return value


def secret_pattern(words: Iterable[str], known: str = "") -> re.Pattern[str] | None:
    """What finds the passwords, in whatever mixture of JSON, HTML, URL and Python's escapes.

    A password that occurs in `known` (texts that cannot hold one), or is a word of drainkit, is an
    ordinary word, and so is a very short one: it is found only where a password can be, as in
    `:word@` or `password=word`.
    """
    parts: list[str] = []
    in_place: list[str] = []
    # the longest first, or the end of another would stay
    for word in sorted(filter(None, words), key=lambda word: (-len(word), word)):
        is_plain_word = len(word) < _MIN_SECRET or word in known or word in _own_text()
        (in_place if is_plain_word else parts).append("".join(map(_written, word)))
    if in_place:
        found = "|".join(in_place)
        parts += [f"(?:{_BEFORE_IN_URL})(?:{found})(?=@)",
                  rf"(?i:{_BEFORE_IN_TEXT})(?:{found})(?!\w)"]  # fmt: skip
    return re.compile("|".join(parts)) if parts else None


def _written(c: str) -> str:
    """A pattern for a character, plain or escaped, once or repeatedly."""
    if c.isascii() and c.isalnum():  # these are never escaped
        return c
    code, slash = ord(c), r"\\\\*"
    units = c.encode("utf-16-be", "surrogatepass").hex()
    utf8 = [f"{byte:02x}" for byte in c.encode("utf-8", "surrogatepass")]
    forms = [
        re.escape(c),
        slash + slash.join(f"(?i:u{units[k : k + 4]})" for k in range(0, len(units), 4)),
        slash + f"(?i:x{code:02x}|U{code:08x})",
        slash + slash.join(f"(?i:x{byte})" for byte in utf8),
        "".join(f"%(?:25)*(?i:{byte})" for byte in utf8),
        f"&(?:amp;)*#(?:0*{code}|(?i:x0*{code:x}));",
        *(rf"&(?:amp;)*{name}" for name, its in html5.items() if its == c and name[-1] == ";"),
        *([r"\+"] if c == " " else []),
        *([slash + re.escape(_ESCAPES[c])] if c in _ESCAPES else []),
    ]
    return f"(?:{'|'.join(forms)})"


@cache
def _own_text() -> str:
    """drainkit's own words: its code and its notebooks."""
    package = Path(__file__).parent
    notebooks = [*package.glob("notebooks/*.ipynb"), *package.parent.glob("notebooks/*.ipynb")]
    paths = [*package.glob("**/*.py"), *package.glob("**/*.j2"), *notebooks]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def strike(value: Any, secret: re.Pattern[str] | None) -> Any:
    """The value without the secret in any text of it; numbers stay, so it stays JSON."""
    if secret is None:
        return value
    if isinstance(value, str):
        return secret.sub("***", value)
    if isinstance(value, Mapping):
        return {strike(key, secret): strike(item, secret) for key, item in value.items()}
    return [strike(item, secret) for item in value] if isinstance(value, list | tuple) else value


def strike_text(text: str, secret: re.Pattern[str] | None, *, is_json: bool) -> str:
    """A file's text without the secret; JSON that holds none stays as it was written."""
    with suppress(ValueError, RecursionError):
        if is_json:
            after = strike(data := json.loads(text), secret)
            return text if after == data else json.dumps(after, indent=1) + "\n"
    return str(strike(text, secret))
