"""Least privilege: what `drainkit acl` prints is enough, and not more, on every server."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import redis
from backlogs import GROUP
from books import PASSWORD, ledger_of, make_user
from conftest import ROOT, Cli
from place import Place
from servers import Server

READING = [
    ("status",), ("fields",), ("check",), ("consumers",), ("trim",), ("export", "backlog.parquet"),
    ("check", "--format", "prometheus", "--all-streams", "quantum:stream:*"),
]  # fmt: skip
# Which roles must not: nobody; a(nalyst), d(rainer), h(istorian), j(anitor). {s} is the stream.
DENIED = {
    "adhj": """
XDEL {s} 1-1|XCLAIM {s} {g} c 0 1-1|XAUTOCLAIM {s} {g} c 0 0|XGROUP SETID {s} {g} 0
XGROUP CREATECONSUMER {s} {g} c|XSETID {s} 9-9|DEL {s}|UNLINK {s}|RENAME {s} y|RENAMENX {s} y
COPY {s} y|EXPIRE {s} 1|PEXPIRE {s} 1|PERSIST {s}|MOVE {s} 1|SET {s} x|GETDEL another
SETNX another x|HSET another a b|XADD another * a b|XACK another {g} 1-1
XREADGROUP GROUP {g} c STREAMS another >|XTRIM another MAXLEN 0
FLUSHDB|FLUSHALL|SWAPDB 0 1|SCRIPT FLUSH|CONFIG SET maxmemory 1|SHUTDOWN
SAVE|BGSAVE|BGREWRITEAOF|REPLICAOF NO ONE|DEBUG SLEEP 0|ACL SETUSER x|CLIENT KILL ID 1
RESTORE z 0 x|PUBLISH c x|EVALSHA abc 0|XDEL {s}.drain_runs 1-1|DEL {s}.drain_stop
DEL {s}.drain_audit|XTRIM {s}.drain_audit MAXLEN 0|LPUSH z x|SADD z x|ZADD z 1 x|INCR z
EVAL return(redis.call('XDEL',KEYS[1],'1-1')) 1 {s}|EVAL return(redis.call('DEL',KEYS[1])) 1 {s}
""",
    "a": """
XADD {s} * a b|XTRIM {s} MAXLEN 0|XACK {s} {g} 1-1|XREADGROUP GROUP {g} c STREAMS {s} >
XGROUP CREATE {s} x 0|XGROUP DESTROY {s} {g}|XGROUP DELCONSUMER {s} {g} c|GETDEL {s}|SETNX z x
GETSET z x|APPEND z x|DECR z|RPUSH z x|HSET z a b|HDEL z a|PFADD z x|SETRANGE z 0 x
BITFIELD z SET u8 0 1|GEOADD z 1 1 x|EVAL return(1) 0|SORT {s} STORE z|GETEX z|LMOVE z y LEFT LEFT
""",
    "dh": """
XTRIM {s} MAXLEN 0|XGROUP DELCONSUMER {s} {g} c|GET another|XLEN another|CONFIG GET *|ACL LIST
EVAL return(redis.call('GET','another')) 0|KEYS *|MONITOR
""",
    "dj": "XGROUP CREATE {s} x 0|XGROUP CREATE {s} x 0 MKSTREAM|XGROUP DESTROY {s} {g}",
    "j": """
XACK {s} {g} 1-1|XREADGROUP GROUP {g} c STREAMS {s} >|XADD {s}.drain_audit * a b|GET another
HSET {s}.drain_state a b|SETNX {s}.drain_stop x|GETDEL {s}.drain_stop|CONFIG GET *|KEYS *
XGROUP DELCONSUMER another {g} c
""",
}


def denied(client: Any, *command: str) -> bool:
    try:
        client.execute_command(*command)
    except redis.exceptions.NoPermissionError:
        return True
    except redis.ResponseError as error:
        # what a script may not do is said in other words, and in others again by 6.2
        said = "NOPERM|ACL failure in script|can't run this|can't access at least one"
        return re.search(said, str(error)) is not None
    return False


def assert_denied(place: Place, url: str, role: str) -> None:
    """More than 50 commands that are not the role's."""
    tables = [table for roles, table in DENIED.items() if role[0] in roles]
    commands = [*chain(*(line.split("|") for line in "\n".join(tables).split("\n") if line))]
    if place.server.kind != "redis62" and role != "historian":
        commands.append("XADD {s} * a b")  # 6.2 cannot grant a command for some keys only
    assert len(commands) >= 55
    with redis.Redis.from_url(url) as client:
        for command in commands:
            words = [word.format(s=place.stream, g=GROUP) for word in command.split()]
            assert denied(client, *words), command
    assert place.alter("XLEN") == 300


def prepare(place: Place) -> None:
    """300 entries, 100 of them delivered long ago, 5 pending; and a key of others."""
    place.seed()
    place.deliver("dead", 5)
    place.ask("XGROUP", "CREATECONSUMER", place.stream, GROUP, "idle")
    place.ask("XADD", "another", "1-1", "a", "b")
    place.ask("XGROUP", "CREATE", "another", GROUP, "0")


def log_in(place: Place, role: str) -> tuple[str, tuple[str, ...]]:
    """The role's URL, and the options that name it."""
    url = make_user(place.cli, place.server, place.stream, role)
    return url, ("--redis-url", url, "--stream", place.stream)


def drain(place: Place, where: tuple[str, ...], scope: str) -> Any:
    return place.lived("--scope", scope, "--min-idle-min", "0", "--allow-active-consumers", *where)


def test_the_analyst_reads_all_and_writes_nothing(place: Place) -> None:
    """All that reads works for the analyst and leaves keys, groups, consumers and the change count
    as they were, dry runs of every scope too; 70 commands are denied, and a live drain,
    which says what to do. `acl` says beside its four roles what no rule can forbid."""
    prepare(place)
    shown = place.says("acl")
    roles = [line.split()[2] for line in shown.out.splitlines()]
    assert roles == ["analyst", "drainer", "historian", "janitor"]
    assert all(words in shown.err for words in ("MAXLEN 0", "CLAIM", "any group", "EVAL"))
    url, where = log_in(place, "analyst")
    before = place.everything()
    ((entry, _),) = place.alter("XRANGE", "-", "+", "COUNT", 1)
    for command in (*READING, ("show", entry.decode())):
        place.cli.done(*command, *where, secret=PASSWORD)
    for scope, n in (("undelivered", 195), ("pending", 5), ("history", 105)):
        dry = place.dry("--scope", scope, "--max-events", "all", "--min-idle-min", "0", *where)
        assert dry["total_read"] == n
    assert "drainkit acl" in place.refused("--allow-active-consumers", *where)
    assert_denied(place, url, "analyst")
    assert place.everything() == before


@pytest.mark.parametrize("role", ["drainer", "historian"])
def test_the_drainer_drains_and_can_do_no_more(place: Place, role: str) -> None:
    """What is undelivered or pending, stop and resume work without any XGROUP; history does not,
    but for the historian, who may make and end a group, and do no more."""
    prepare(place)
    url, where = log_in(place, role)
    place.cli.done("stop", "--reason", "x", *where)
    assert drain(place, where, "undelivered").rc == 4
    place.cli.done("resume", *where)
    for scope in ("pending", "undelivered"):
        assert drain(place, where, scope).rc == 0
    assert len(place.audit()) == 5 + 195
    known = f"audit:{place.side('audit')}"
    state = ("HMGET", place.side("state"), known, "recorded", "life", f"history_of:{GROUP}")
    before = place.ask(*state)
    run = drain(place, where, "history")
    if role == "drainer":
        assert (run.rc, "drainkit acl" in run.err) == (4, True)
        assert place.ask(*state) == before
    else:
        assert (run.rc, len(place.audit())) == (0, 300)
    assert PASSWORD not in run.out + run.err
    assert_denied(place, url, role)


def test_the_janitor_cleans_up(place: Place) -> None:
    """consumers --delete and trim --apply work for the janitor and leave their ledger entries."""
    prepare(place)
    url, where = log_in(place, "janitor")
    assert_denied(place, url, "janitor")
    for command, removed in ((("consumers", "--delete", "--min-idle-min", "0"), ["idle"]),
                             (("trim", "--apply"), 100)):  # fmt: skip
        run = place.cli.done(*command, *where, "--operator", "jo", "--yes", "--json",
                             secret=PASSWORD)  # fmt: skip
        assert run.json()["removed"] == removed
    told = [[*entry.values()][:2] for entry in ledger_of(place.server, place.stream)]
    assert told == [["consumers_delete", "jo"], ["trim", "jo"]]


def test_rules_fit_odd_stream_names(valkey: Server, cli: Cli) -> None:
    """Glob characters in a stream's name are no pattern, and open no other stream."""
    Place(valkey, "axxb", cli).seed(5, 5)
    for name in ("a*b", "with space", "br[a]cket", "back\\slash", "q'uo\"te"):
        place = Place(valkey, name, cli)
        place.seed(5, 5)
        url, where = log_in(place, "analyst")
        cli.done("status", *where)
        assert cli("status", "--redis-url", url, "--stream", "axxb").rc == 4


@pytest.mark.slow
def test_the_reading_notebooks_run_for_the_analyst(valkey: Server, cli: Cli) -> None:
    """The notebooks that only read (01, 02 and 04 of a dry run, the monitor) need no more than the
    analyst's rules."""
    place = Place(valkey, "quantum:stream:trade.intent", cli)
    place.seed()
    env = {"DRAINKIT_REDIS_URL": log_in(place, "analyst")[0]}
    before = place.everything()
    cli.done("run", env=env, secret=PASSWORD)
    done = cli.papermill(ROOT / "notebooks" / "monitor.ipynb", "out.ipynb", env=env)
    assert done.rc == 0, done.err
    assert place.everything() == before
    assert PASSWORD not in Path(cli.cwd / "out.ipynb").read_text() + done.out + done.err
