"""Texts from outside, made fit to show; passwords struck out."""

from __future__ import annotations

import html
import json
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

# a password typed with spaces still is one: all up to the last @ of the text
_LOGIN = re.compile(r"((?:rediss?|unix|sentinel|cluster)://)(.*)@(\S*)", re.DOTALL)
_OTHER_LOGIN = re.compile(r"(?<=://)\S*@")
_SECRET_OPTIONS = {"password", "ssl_password", "username"}
_OPTION = re.compile(r"[?&]([\w%+.-]+)=")
_VALUE = re.compile(r"\S*")  # to the next blank: it may hold an & or a # that nobody encoded
# where a password stands in a text: in a URL, after its option's name, in an AUTH command
_BEFORE_SECRETS = (
    "://", ":", "password=", "password='", 'password="', "password': '", 'password": "', "auth ",
)  # fmt: skip
_MIN_SECRET = 3  # characters; a shorter one is looked for only where a password stands
# what the notebook format itself writes: never an event's text, never a secret
_FORMAT_KEYS = {"cell_type", "output_type", "id", "name", "mimetype", "nbformat"}


def verbatim(text: str) -> str:
    """A text from outside for Markdown: within backticks nothing of it is markup."""
    return "`" + one_line(text, 600).replace("`", "'") + "`"


def redact(text: str) -> str:
    """`text` without the users and passwords of the URLs in it."""
    text = _LOGIN.sub(_without_login, text)
    return _without_options(_OTHER_LOGIN.sub("***@", text))


def _without_login(found: re.Match[str]) -> str:
    scheme, login, rest = found.groups()
    # an @ in an option's value: what follows it belongs to the password
    in_option = any(_option_name(name) in _SECRET_OPTIONS for name in _OPTION.findall(login))
    return f"{scheme}***" if in_option else f"{scheme}***@{rest}"


def _without_options(text: str) -> str:
    """The text without the values of a URL's options that are secret, however they are written."""
    for option in _OPTION.finditer(text):
        if _option_name(option.group(1)) in _SECRET_OPTIONS:
            rest = _VALUE.sub("***", text[option.end() :], count=1)
            return text[: option.end()] + _without_options(rest)
    return text


def _option_name(written: str) -> str:
    """An option's name as redis-py reads it (`pass%77ord` is `password`)."""
    return urllib.parse.unquote_plus(urllib.parse.unquote_plus(written)).lower()


def one_line(text: str, limit: int = 200) -> str:
    """`text` fit for one line of a terminal or a log: no control, bidi or unprintable characters.

    Escapes are Python's (`\\x1b`), so that what was there can still be read; longer than `limit`
    characters is cut. Secrets in URLs are redacted, since every message goes through here.
    """
    safe = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in redact(text))
    return safe if len(safe) <= limit else safe[: limit - 3] + "..."


def address(url: str) -> str:
    """A server's URL without user, password and options but the database."""
    place, _, options = redact(url).replace("***@", "").partition("?")
    db = re.search(r"(?<![^&])db=\d+", options)
    return one_line(f"{place}?{db[0]}" if db else place)


def without_formulas(table: pa.Table) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    for index, field in enumerate(table.schema):
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
        if not any(is_text(kind) for is_text in texts):
            continue
        # a category's column is a dictionary: the CSV would hold its values as they are
        column = table.column(index).cast(pa.large_string())
        # a lone control character or a bidi mark would be acted on by who shows the file
        column = pc.replace_substring_regex(
            column, r"[\x00-\x08\x0b-\x1f\x7f\x{202a}-\x{202e}\x{2066}-\x{2069}]", "\ufffd"
        )
        # spreadsheets skip blanks; the last four are the full-width = + - @
        safe = pc.replace_substring_regex(
            column,
            r"^([\s\p{Z}\x{feff}]*[=+\-@\t\r\n\x{ff1d}\x{ff0b}\x{ff0d}\x{ff20}])",
            r"'\1",
        )
        table = table.set_column(index, field.name, safe)
    return table


def secret_pattern(words: Sequence[str], known: str = "") -> re.Pattern[str] | None:
    """What finds the passwords, also as JSON (once and twice), HTML and URLs write them.

    A password that stands in `known` (texts that cannot hold one) is an ordinary word, and so is a
    very short one: it is found only where a password can stand, as in `:word@` or `password=word`.
    """
    anywhere: set[str] = set()
    in_place: set[str] = set()
    for word in filter(None, words):
        is_plain_word = len(word) < _MIN_SECRET or word in known
        (in_place if is_plain_word else anywhere).update(_written_forms(word))
    parts = [_any_of(anywhere)] if anywhere else []
    if in_place:
        before = "|".join(f"(?<={re.escape(text)})" for text in _BEFORE_SECRETS[2:])
        login = "|".join(f"(?<={re.escape(text)})" for text in _BEFORE_SECRETS[:2])
        found = _any_of(in_place)
        parts.append(rf"(?:{login})(?:{found})(?=@)|(?i:{before})(?:{found})(?!\w)")
    return re.compile("|".join(parts)) if parts else None


def _written_forms(word: str) -> set[str]:
    escaped = json.dumps(word)[1:-1]
    forms = {word, escaped, json.dumps(escaped)[1:-1], repr(word)[1:-1], html.escape(word)}
    forms |= {json.dumps(word, ensure_ascii=False)[1:-1], html.escape(word, quote=False)}
    return forms | {urllib.parse.quote(word), urllib.parse.quote(word, safe="")}


def _any_of(forms: set[str]) -> str:
    # the longest first, or the end of an escaped one would stay
    return "|".join(map(re.escape, sorted(forms, key=lambda form: (-len(form), form))))


def strike(value: Any, secret: re.Pattern[str] | None) -> Any:
    """The value without the secret in any text of it; keys and numbers stay, so it stays JSON."""
    if secret is None:
        return value
    if isinstance(value, str):
        return secret.sub("***", value)
    if isinstance(value, Mapping):
        return {
            key: item if key in _FORMAT_KEYS else strike(item, secret)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [strike(item, secret) for item in value]
    return value


def strike_text(text: str, secret: re.Pattern[str] | None, *, is_json: bool) -> str:
    if is_json:
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            pass
        else:
            after = strike(data, secret)
            return text if after == data else json.dumps(after, indent=1) + "\n"
    return str(strike(text, secret))


def label(text: object) -> str:
    """A text from outside, fit for a label."""
    # plotly would show &quot; as it stands; without "<" there is no tag that a quote could end
    return html.escape(one_line(str(text), 40), quote=False)


def share(part: int, whole: int) -> str:
    """`part` of `whole` in percent, as a reader says it."""
    if not whole:
        return "none"
    percent = 100 * part / whole
    if 0 < percent < 1:
        return "under 1 %"
    return "over 99 %" if 99.5 <= percent < 100 else f"{percent:.0f} %"


def secret_words(url: str) -> list[str]:
    """The passwords of a URL, as written and as decoded."""
    found = set()
    rest = url.partition("://")[2]
    # what stands before the last @, and before the last @ of the host's part: a # or ? in a
    # password that nobody encoded makes these two different
    for part in (rest, re.split("[/?#]", rest, maxsplit=1)[0]):
        if login := part.rpartition("@")[0]:
            found.add(login.partition(":")[2] or login)
    for name, value in urllib.parse.parse_qsl(url.partition("?")[2]):
        if _option_name(name) in _SECRET_OPTIONS - {"username"}:
            found.add(value)
    return sorted({word for w in found if w for word in (w, urllib.parse.unquote(w))})


def text(raw: bytes) -> str:
    """A name from the server as text; what is no UTF-8 is shown as escapes."""
    return raw.decode("utf-8", "backslashreplace")
