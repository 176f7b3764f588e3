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

# user and password before the last @ of a URL's host part, and those among its options
_SECRETS = (
    # a password typed with spaces still is one: all up to the last @
    (re.compile(r"((?:rediss?|unix|sentinel|cluster)://).*@", re.DOTALL), r"\1***@"),
    (re.compile(r"(?<=://)\S*@"), "***@"),
    (re.compile(r"(?<=[?&])((?:ssl_)?password|username)=[^&\s]*"), r"\1=***"),
)


def verbatim(text: str) -> str:
    """A text from outside for Markdown: within backticks nothing of it is markup."""
    return "`" + one_line(text, 600).replace("`", "'") + "`"


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


def secret_pattern(words: Sequence[str]) -> re.Pattern[str] | None:
    """What finds the words, also as JSON (once and twice), HTML and URLs write them."""
    forms: set[str] = set()
    for word in words:
        if len(word) < 3:  # it would strike out half the file
            continue
        escaped = json.dumps(word)[1:-1]
        forms |= {word, escaped, json.dumps(escaped)[1:-1], repr(word)[1:-1], html.escape(word)}
        forms |= {json.dumps(word, ensure_ascii=False)[1:-1], html.escape(word, quote=False)}
        forms |= {urllib.parse.quote(word), urllib.parse.quote(word, safe="")}
    # the longest first, or the end of an escaped one would stay
    longest = sorted(forms, key=lambda form: (-len(form), form))
    return re.compile("|".join(map(re.escape, longest))) if longest else None


def strike(value: Any, secret: re.Pattern[str] | None) -> Any:
    """The value without the secret in any text of it; keys and numbers stay, so it stays JSON."""
    if secret is None:
        return value
    if isinstance(value, str):
        return secret.sub("***", value)
    if isinstance(value, Mapping):
        return {key: strike(item, secret) for key, item in value.items()}
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
    netloc = url.partition("://")[2].rpartition("@")[0]
    if netloc:
        found.add(netloc.partition(":")[2] or netloc)
    query = urllib.parse.parse_qs(url.partition("?")[2])
    for name in ("password", "ssl_password"):
        found.update(query.get(name, []))
    return sorted({word for w in found if w for word in (w, urllib.parse.unquote(w))})


def text(raw: bytes) -> str:
    """A name from the server as text; what is no UTF-8 is shown as escapes."""
    return raw.decode("utf-8", "backslashreplace")
