"""Hostile values on the terminal and in CSV: shown, never obeyed.

What they do in report.html and in notebooks is tried in a browser, in test_browser.py.
"""

from __future__ import annotations

import csv
import json
import unicodedata
from typing import Any

import pytest
from backlogs import GROUP, ME, fill
from books import ask, at
from conftest import Cli, CliResult, intent
from servers import Server

ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m"
BIDI = "\u202egpj.exe\u2066"
#: what one may find in a stream that others write to
HOSTILE = [
    ESCAPES, BIDI, "a\r\nDrained OK: 9999", "\x00\x08\x7f\u2028\u2029\ufeff",
    "<script>alert(1)</script>", '=HYPERLINK("http://x","y")', "+1+1", "-1+1", "@SUM(A1)",
    "\t=1+1", "\r=1+1", "\uff1d1+1", "|calc", "%0A=1", '"; DROP TABLE x; --',
    "{0.__class__} %s %(x)s {{7*7}} ${jndi:ldap://x}", "\ud7ff\U0001f4a3", "\\x1b[2J",
]  # fmt: skip


def hostile_stream(server: Server, name: str) -> int:
    """Every hostile text in every place of an event, some as bytes that are no text at all."""
    entries: list[tuple[int, dict[Any, Any]]] = []
    now = int(ask(server, "TIME")[0]) * 1000
    for text in HOSTILE:
        for field in ("symbol", "side", "source", "confidence", "timestamp", text):
            entries.append((now + len(entries), {**intent(), field: text}))
        entries.append((now + len(entries), {"payload": json.dumps(intent(text, side=text))}))
    raw = [b"\xff\xfe\x1b[2J", b"\xc3\x28", "\ud800".encode("utf-8", "surrogatepass")]
    for part in raw:
        entries.append((now + len(entries), {"symbol": part, "confidence": "0.9", "source": part}))
    fill(server, name, entries, group=GROUP)
    return len(entries)


def assert_plain(run: CliResult) -> None:
    """Nothing that a terminal obeys: no control, format or surrogate characters but line ends."""
    for text in (run.out, run.err):
        odd = [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")]
        assert set(odd) <= {"\n"}, ascii(text)
        assert "\x1b" not in text
    # a value with a line end in it must not make a line of its own
    assert [line for line in run.out.splitlines() if line.startswith("Drained OK: 9999")] == []


@pytest.mark.parametrize("as_json", [(), ("--json",)], ids=["text", "json"])
def test_hostile_events_shown(
    valkey: Server, stream: str, cli: Cli, as_json: tuple[str, ...]
) -> None:
    """Status, check, trim, consumers, dry run and live run of hostile events print no raw escape;
    the audit is plain: it has only validated values."""
    n = hostile_stream(valkey, stream)
    where = at(valkey, stream)
    many = ("drain", "--throttle", "none", "--max-events", "all", *where, *as_json)
    for args in (("status", "--all"), ("check",), ("trim",), ("consumers",)):
        run = cli(*args, *where, *as_json)
        assert run.rc in ((0, 1, 2) if args[0] == "check" else (0,)), run.err
        assert_plain(run)
    assert_plain(cli.done(*many))
    allowed = ("--allow-invalid", "--allowlist", "BTCUSDT,<script>alert(1)</script>")
    run = cli.done(*many, "--mode", "live", "--yes", *allowed)
    assert_plain(run)
    if as_json:
        assert run.json()["total_read"] == n
        assert run.json()["drained_ok"] > 0
    records = ask(valkey, "XRANGE", f"{stream}.drain_audit", "-", "+")
    assert len(records) == n
    assert all(part.decode("ascii").isprintable() for _, fields in records for part in fields)
    assert ask(valkey, "XPENDING", stream, GROUP, "-", "+", 10, ME) == []


def test_hostile_names_on_the_terminal(valkey: Server, cli: Cli) -> None:
    """Streams, groups and consumers with hostile names are shown escaped, in errors too; what is
    printable is a symbol like any other."""
    text = ESCAPES + BIDI + "\r\nDrained OK: 9999=1+1{0.x}%s"
    stream, group = f"s{text}", f"g{text}"
    fill(valkey, stream, [(1, intent()), (2, intent())], group=group)
    ask(valkey, "XREADGROUP", "GROUP", group, f"c{text}", "COUNT", 1, "STREAMS", stream, ">")
    where = at(valkey, stream)
    known = ("drain", *where, "--consumer-group", group)
    for args, rc in (
        (("status", "--all", *where), 0),
        (("check", *where, "--group", group), 3),  # ids that are no times
        (("consumers", *where, "--consumer-group", group), 0),
        (("trim", *where), 0),
        (("acl", *where), 0),
        (("drain", *where, "--consumer-group", f"other{text}"), 4),
        (("drain", *at(valkey, f"missing{text}")), 4),
        ((*known, "--mode", "live", "--yes"), 4),  # the consumer is active
        ((*known, "--allowlist", text), 2),
        ((*known, "--allowlist", "=1+1{0.x}%s"), 0),
        ((*known, "--as-of", text), 2),
        ((*known, "--min-conf", text), 2),
        ((*known, "--scope", "pending", "--from-consumer", f"no{text}"), 4),
        (("stop", *where, "--reason", text), 0),
        ((*known, "--mode", "live", "--yes"), 4),
        (("resume", *where), 0),
    ):
        run = cli(*args)
        assert run.rc == rc, (args, run.err)
        assert_plain(run)
        if run.rc in (2, 4):
            assert run.err.count("\n") == 1


def test_hostile_events_in_csv(valkey: Server, stream: str, cli: Cli) -> None:
    """No cell of an exported CSV is a formula, and no line of it begins one."""
    n = hostile_stream(valkey, stream)
    cli.done("export", "out.csv", *at(valkey, stream))
    with (cli.cwd / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == n
    cells = [cell for row in rows for cell in row.values()]
    starts = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
    assert [cell for cell in cells if cell.startswith(starts)] == []
    said = {text for row in rows for pair in json.loads(row["fields"]) for text in pair}
    assert set(HOSTILE) <= said  # nothing is left out: every value can be read
