"""What a terminal sees, and what a pipe gets: the same words; hostile values are shown, never
obeyed, nor in CSV. What these do in report.html and in notebooks is tried in test_browser.py.
"""

from __future__ import annotations

import csv
import json
import os
import pty
import sys
import termios
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from threading import Thread
from typing import Any

import pytest
from backlogs import GROUP, ME, deliver, fill, now_ms, seed
from books import ask, at
from conftest import Cli, CliResult, intent
from servers import Server

from drainkit.cli import terminal
from drainkit.cli.terminal import Table

LIVE = ("--mode", "live", "--throttle", "none")
OnTerminal = Callable[..., tuple[int, str]]


@pytest.fixture
def on_a_terminal(cli: Cli) -> OnTerminal:
    """Runs a command on a terminal of so many columns; exit code, and all that was on it."""

    def run(*args: object, columns: int = 100, answer: str = "y\n", **env: str) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (30, columns))
        own = {"COLUMNS": "", "TERM": "xterm", **env}  # as wide as the terminal
        process = cli.start(*args, env=own, terminal=theirs)
        os.close(theirs)
        said = bytearray()

        def read() -> None:
            with suppress(OSError):  # the other end is closed
                while True:
                    said.extend(os.read(ours, 4096))

        reader = Thread(target=read)
        reader.start()
        os.write(ours, answer.encode())
        code = process.wait(120)
        reader.join(10)
        os.close(ours)
        return code, said.decode().replace("\r\n", "\n")

    return run


def test_the_question_comes_last_with_all_that_it_is_about(
    valkey: Server, stream: str, on_a_terminal: OnTerminal
) -> None:
    """A live drain shows server, stream, group, scope, entries, what would pass, then asks. The
    card says the sum of what is undelivered and what its own consumer left."""
    seed(valkey, stream, 30, delivered=10)
    deliver(valkey, stream, ME, 6)
    waiting = "14 undelivered + 6 pending of this drain's own consumer = 20"
    what = ("drain", *LIVE, *at(valkey, stream), "--allowlist", "BTCUSDT,XRPUSTD")
    code, said = on_a_terminal(*what, NO_COLOR="1", answer="n\n", columns=120)
    card, question = said.split("Acknowledge and audit 20 of 20 entries? [y/N]")
    assert code == 4
    for name, value in (("Server", "valkey 9"), ("Keeps", "has kept nothing on disk"),
                        ("Stream", stream), ("Group", GROUP),
                        ("Scope", "undelivered, after "), ("Entries", "20 (at most 500)"),
                        ("Would pass", "still good signals, acknowledged and NOT executed"),
                        ("Note", "allowlist: in no event: XRPUSTD"), ("Waiting", waiting),
                        ("Environment", "none"), ("Audit", f"{stream}.drain_audit"),
                        ("Duration", "as fast"), ("Digest", "none: ")):  # fmt: skip
        assert any(name in line and value in line for line in card.splitlines()), (name, card)
    assert "good signals will be acknowledged and not executed" in card
    assert "not confirmed" in question
    pending = (*what, "--scope", "pending", "--min-idle-min", "0")
    _, narrow = on_a_terminal(*pending, NO_COLOR="1", answer="n\n", columns=66)
    assert "pending, up to " in narrow  # it lies before the position
    asked = narrow.split("\u256f\n")[1].splitlines()  # below the card
    assert asked[1].startswith("Acknowledge and"), asked  # no word is broken by the terminal's edge


def test_a_terminal_has_whole_words_and_a_pipe_whole_lines(
    valkey: Server, stream: str, cli: Cli, on_a_terminal: OnTerminal
) -> None:
    """The same words: wrapped between them, coloured unless NO_COLOR is set; plain in a pipe."""
    entries = [(1_790_000_000_000 + n, intent()) for n in range(30)]
    fill(valkey, stream, entries, group=GROUP, position="1790000000009-0")
    command = ("status", "--all", *at(valkey, stream))
    piped = cli(*command, env={"FORCE_COLOR": "1"}).out
    code, coloured = on_a_terminal(*command, columns=60)
    _, plain = on_a_terminal(*command, columns=60, NO_COLOR="1")
    assert code == 0
    assert "\x1b" in coloured
    assert "\x1b" not in piped + plain
    assert max(map(len, piped.splitlines())) > 100
    words = [line for line in plain.splitlines() if not line.startswith("Next (")]  # to be pasted
    assert max(map(len, words)) <= 60
    why = next(line for line in piped.splitlines() if line.startswith("  Why: "))
    assert " ".join(why.split()) in " ".join(plain.split())


def test_drift_is_a_table_by_planned_and_happened(capsys: pytest.CaptureFixture[str]) -> None:
    """However many events met another fate, each pair is one row; the original lines follow."""
    drift = [{"planned": "drained_ok", "happened": "dropped_old", "events": 1234}]
    result = {"mode": "live", "events_per_sec": 5.0, "drift": drift, "evidence": "reports/x"}
    terminal.emit(result, *terminal.report(result))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Drift: 1,234 events")
    assert "drift.parquet" in lines[0]
    assert lines[2].split() == ["1,234", "drained_ok", "dropped_old"]
    assert lines[3] == "Mode: LIVE"
    assert lines[-1] == "Evidence: reports/x"


def test_an_own_stream_is_read_by_a_table_to_paste(valkey: Server, stream: str, cli: Cli) -> None:
    """Of nested signals with sub-models, and flat ones, `fields` names the paths of the whole
    backlog; live refuses to drain them, and with its lines pasted it drains them all."""
    now = int(ask(valkey, "TIME")[0]) * 1000
    payload = {"signal": {"models": {"m": {"confidence": 0.2}}, "pair": "BTCUSDT",
                          "confidence": "81%"}}  # fmt: skip
    nested, flat = {"payload": json.dumps(payload)}, {"ticker": "ETHUSDT", "score": 93}
    mine = [(now - 1500 + i, nested if i < 700 or i % 2 else flat) for i in range(1300)]
    fill(valkey, stream, mine, group=GROUP)
    said = cli("fields", *at(valkey, stream)).out
    found = cli("fields", "--json", *at(valkey, stream)).json()
    assert found["unreadable"] == found["entries"] == found["readable"] > 250
    assert found["snippet"] in said
    chosen = {path["path"]: path["entries"] for path in found["fields"]["symbol"]}
    assert abs(chosen["ticker"] / found["entries"] - 300 / len(mine)) < 0.1
    assert "m.confidence" not in found["snippet"]
    assert "m.confidence" in said
    live = ("drain", *LIVE, "--yes", *at(valkey, stream), "--max-events", "all", "--json")
    assert cli(*live).rc == 4
    (cli.cwd / "drainkit.toml").write_text(said[said.index("[fields]") :])
    assert cli("status", *at(valkey, stream), "--json").json()["decided"]["unreadable"] == {}
    last = f"{mine[-1][0]}-0"
    (one,) = cli("show", last, *at(valkey, stream), "--json").json()["entries"]
    counting = {place["where"] for place in one["places"] if place["counts"]}
    assert counting == {"payload.signal.pair", "payload.signal.confidence"}
    everything = ("--max-events", "all", "--throttle", "none")
    assert cli("drain", "--plan", "p.json", *everything, *at(valkey, stream)).rc == 0
    (cli.cwd / "drainkit.toml").unlink()  # the plan knows how its events are read
    done = cli("drain", *LIVE[:2], "--yes", "--plan", "p.json", *at(valkey, stream), "--json")
    assert done.json()["drained_ok"] == len(mine)


def test_an_interrupt_that_gets_lost_ends_the_drain_all_the_same() -> None:
    """Where Python drops the exception of Ctrl-C, the drain that begins then ends at once."""
    try:
        with suppress(KeyboardInterrupt):
            terminal.interrupt()
        with terminal.signals() as stopping:
            assert stopping.is_set()
    finally:
        stopping.clear()


def test_the_first_screen_is_one_screen(
    valkey: Server, cli: Cli, on_a_terminal: OnTerminal
) -> None:
    """With all there is to say, and a long name, status has at most 15 rows of 80 columns."""
    stream, group = "quantum:stream:trade.intent.of.many.words", "quantum:group:" + "execution." * 9
    now = now_ms(valkey) - 10_000
    entries = [(now + i, intent(symbol=f"SYMBOL{i % 9}USDT" * 4)) for i in range(1200)]
    fill(valkey, stream, [*entries, *((now + i, {"x": i}) for i in range(1200, 1400))], group=group)
    ask(valkey, "CONFIG", "SET", "maxmemory", 10**9)
    ask(valkey, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    where = (*at(valkey, stream), "--consumer-group", group)
    drain = cli.start("drain", "--mode", "live", "--yes", "--max-events", 1000, *where)
    while not ask(valkey, "EXISTS", f"{stream}.drain_audit"):
        assert drain.poll() is None, cli.finish(drain)
    ask(valkey, "SET", f"{stream}.drain_stop", '{"reason": "' + "no more of it " * 9 + '"}')
    cli.finish(drain)
    start = {
        "event": "start", "run_id": "20260101T000000Z-live-abc123", "consumer_group": group,
        "consumer": "c", "scope": "undelivered", "boundary_id": "9-0", "throttle": "5",
        "max_events": "all", "at": "2026-01-01T00:00:00Z", "plan_digest": "",
    }  # fmt: skip
    ask(valkey, "XADD", f"{stream}.drain_runs", "*", *chain(*start.items()))
    for columns in (80, 100):
        code, said = on_a_terminal("status", *where, columns=columns, NO_COLOR="1")
        lines = said.removeprefix("y\n").splitlines()
        rows = [line[i : i + columns] for line in lines for i in range(0, len(line), columns)]
        assert (code, len(rows) <= 15) == (0, True), said
        starts = ("CRITICAL: ", "Stream: ", "Group: ", "Backlog: ", "Would pass now: ",
                  "Unreadable: ", "Died: ", "Last run: ", "Stopped: ", "Server: ",
                  "Next (when its reason is gone): drainkit resume --redis-url ")  # fmt: skip
        for start in starts:
            assert sum(row.startswith(start) for row in rows) == 1, (start, said)


def test_markup_is_text_and_a_command_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """What rich reads as markup is shown as it is: in a line, a table and a card. On a narrow
    terminal a long command stays one line, so that it can be pasted."""
    name = "[red]a[/link][link=http://x]b[/red]:boom:[1]"
    table, card = Table(("name",), [[name]], name), Table((), [[name, "x"]], name)
    ours, theirs = pty.openpty()
    with os.fdopen(ours), os.fdopen(theirs, "w") as terminal_of_80:
        monkeypatch.setattr(sys, "stdout", terminal_of_80)
        monkeypatch.setenv("NO_COLOR", "1")
        terminal.tell(f"drainkit run {'--option value ' * 20}", "a " * 90, name, table, card)
        said = os.read(ours, 65536).decode()
    assert said.count(name) == 5
    lines = said.splitlines()
    assert [line.count("--option") for line in lines if "--option" in line] == [20]
    assert sum("a a" in line for line in lines) == 3


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
    # a number that JSON can hold and not write again
    entries.append((now + len(entries), {"payload": f'{{"confidence": 1{"0" * 400}}}'}))
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
    """Status, check, show, trim, consumers, dry run and live run of hostile events print no raw
    escape; no cell of an exported CSV is a formula, and no line of it begins one; the audit is
    plain: it has only validated values."""
    n = hostile_stream(valkey, stream)
    where = at(valkey, stream)
    many = ("drain", "--throttle", "none", "--max-events", "all", *where, *as_json)
    ids = [entry[0].decode() for entry in ask(valkey, "XRANGE", stream, "-", "+")]
    for args in (("status", "--all"), ("check",), ("show", *ids), ("trim",), ("consumers",)):
        run = cli(*args, *where, *as_json)
        assert run.rc in ((0, 1, 2) if args[0] == "check" else (0,)), run.err
        assert_plain(run)
    assert_plain(cli.done(*many))
    cli.done("export", "out.csv", *where)
    with (cli.cwd / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == n
    starts = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
    assert not [cell for row in rows for cell in row.values() if cell.startswith(starts)]
    said = {text for row in rows for pair in json.loads(row["fields"]) for text in pair}
    assert set(HOSTILE) <= said  # nothing is left out: every value can be read
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
