"""Names that are not what they seem: groups that are somebody's, names twice, names in no UTF-8."""

from __future__ import annotations

import re

from backlogs import GROUP, ME, deliver, seed
from books import ask, at, live, pending, recorded
from conftest import Cli
from servers import Server

from drainkit.draining.run import resolve
from drainkit.server import writing
from drainkit.server.connection import Server as Link
from drainkit.server.keys import Name, raw_name
from drainkit.settings import build

ODD = b"w\xff\n\xe9"  # no UTF-8
SHOWN = "w\\xff\n\\xe9"  # as JSON has it; a name of its own, too


# ---------------------------------------------------------------- names given twice


def test_a_consumer_named_twice_is_drained_once(server: Server, stream: str, cli: Cli) -> None:
    """--from-consumer w --from-consumer w: each entry gets one record, and the dry run says so."""
    seed(server, stream, 30, delivered=0)
    ids = deliver(server, stream, b"w", 7)
    twice = ("--scope", "pending", "--min-idle-min", "0", "--from-consumer", "w",
             "--from-consumer", "w")  # fmt: skip
    dry = cli("drain", "--json", *at(server, stream), *twice).json()
    run = cli(*live(server, stream), *twice).json()
    assert dry["total_read"] == run["total_read"] == 7
    assert recorded(server, stream) == ids


def test_a_batch_with_an_entry_twice_records_it_once(server: Server, stream: str) -> None:
    """The commit script itself writes no second record, whoever owns the entry."""
    seed(server, stream, 10, delivered=0)
    for owner in (b"w", ME.encode()):
        before = len(recorded(server, stream))
        (entry,) = deliver(server, stream, owner, 1)
        settings = build({"redis_url": server.url, "stream": stream, "scope": "pending",
                          "min_idle_min": 0})  # fmt: skip
        with Link(server.url, stream) as link:
            job = resolve(link, settings)
            record = [entry, "S", "1.00", "0.5", "drained_ok", ""]
            batch = writing.Batch([[entry.encode(), []]] * 2, owners=[Name(owner)] * 2)
            writing.send_commit(
                link, job.scope, batch, [[value] * 2 for value in record], drained_at="now",
                rate=None, run_id="run", deadline_us=link.now_us() + 10**7, audit_id="0-0",
            )  # fmt: skip
            found = writing.receive_commit(link)
        assert found.done
        assert recorded(server, stream)[before:] == [entry]


# ---------------------------------------------------------------- names in no UTF-8


def test_pending_of_a_consumer_with_an_odd_name(server: Server, stream: str, cli: Cli) -> None:
    """They are planned and drained like others, and --from-consumer takes the name as shown."""
    seed(server, stream, 30, delivered=0)
    ids = deliver(server, stream, ODD, 5) + deliver(server, stream, b"w", 3)
    scope = ("--scope", "pending", "--min-idle-min", "0")
    dry = cli("drain", "--json", *at(server, stream), *scope).json()
    only = cli(*live(server, stream), *scope, "--from-consumer", SHOWN).json()
    run = cli(*live(server, stream), *scope).json()
    assert (dry["total_read"], only["total_read"], run["total_read"]) == (8, 5, 3)
    assert sorted(recorded(server, stream)) == ids
    assert pending(server, stream) == 0


def test_a_dead_consumer_with_an_odd_name_is_removed(server: Server, stream: str, cli: Cli) -> None:
    """consumers --delete removes it, and lists it as one safe line."""
    seed(server, stream, 5, delivered=0)
    ask(server, "XGROUP", "CREATECONSUMER", stream, GROUP, ODD)
    command = ("consumers", *at(server, stream), "--min-idle-min", "0")
    assert "\\xff" in cli(*command).out
    run = cli(*command, "--delete", "--yes", "--json")
    assert run.json()["removed"] == [SHOWN]
    assert ask(server, "XINFO", "CONSUMERS", stream, GROUP) == []


def test_a_group_with_an_odd_name_hides_nothing(server: Server, stream: str, cli: Cli) -> None:
    """status, check and trim count a group whose name is no UTF-8 like any other."""
    seed(server, stream, 30, delivered=20)
    ask(server, "XGROUP", "CREATE", stream, ODD, "0")
    ask(server, "XREADGROUP", "GROUP", ODD, ODD, "COUNT", 2, "STREAMS", stream, ">")
    groups = {g["name"]: g for g in cli("status", "--json", *at(server, stream)).json()["groups"]}
    assert groups[SHOWN]["backlog"] == {"undelivered": 28, "pending": 2, "history": 2}
    assert groups[SHOWN]["consumer_list"][0]["name"] == SHOWN
    assert cli("status", *at(server, stream)).rc == 0
    checked = cli("check", "--json", *at(server, stream), "--max-backlog", "20")
    assert checked.rc == 2
    texts = [f["text"] for f in checked.json()["findings"] if f["group"] == SHOWN]
    assert any(re.match("(28|more than 20) entries undelivered", text) for text in texts)
    assert cli("check", "--format", "prometheus", *at(server, stream)).rc == 0
    held = cli("trim", "--json", *at(server, stream)).json()
    assert (held["entries"], list(held["held_by"])) == (0, [SHOWN])


def test_names_that_look_alike_are_two(server: Server, stream: str, cli: Cli) -> None:
    """Two groups, and two consumers, of which one is shown as the other is written."""
    ids = seed(server, stream, 30, delivered=0)
    for i, raw in enumerate((ODD, SHOWN.encode())):
        ask(server, "XGROUP", "CREATE", stream, raw, ids[9 + i])
        for j, consumer in enumerate((ODD, SHOWN.encode())):
            deliver(server, stream, consumer, 2 + i + j, raw)  # type: ignore[arg-type]
    shown = cli("status", "--json", *at(server, stream)).json()["groups"][1:]
    checked = cli("check", "--json", *at(server, stream)).json()["streams"][0]["groups"][1:]
    # Redis keeps groups in the order of their bytes
    for found in (shown, checked):
        assert [g["backlog"]["undelivered"] for g in found] == [12, 15]
        assert [sorted(g["pending_by_consumer"].values()) for g in found] == [[3, 4], [2, 3]]
    assert len({g["name"] for g in checked} | {SHOWN}) == 2
    text = cli("check", "--format", "prometheus", *at(server, stream)).out
    lines = [line.partition("} ")[0] for line in text.splitlines() if "{" in line]
    assert len(lines) == len(set(lines))
    where = ("--consumer-group", SHOWN)
    drained = cli(*live(server, stream), "--allow-active-consumers", *where).json()
    assert (drained["total_read"], pending(server, stream, SHOWN)) == (12, 7)
    taken = ("--scope", "pending", "--min-idle-min", "0", *where, "--from-consumer")
    assert cli(*live(server, stream), *taken, SHOWN).json()["total_read"] == 4
    other = next(n for n in checked[0]["pending_by_consumer"] if n != SHOWN)
    assert cli(*live(server, stream), *taken, other).json()["total_read"] == 3
    assert pending(server, stream, ODD) == 5  # type: ignore[arg-type]


def test_a_name_is_sent_as_it_came(server: Server) -> None:
    """A copied name keeps its bytes; a text is sent as UTF-8."""
    import copy
    import pickle

    name = Name(ODD)
    for same in (name, copy.deepcopy(name), pickle.loads(pickle.dumps(name))):  # noqa: S301
        assert raw_name(same) == ODD
    assert raw_name("é") == "é".encode()
