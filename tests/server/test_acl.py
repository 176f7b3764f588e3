"""Least privilege: what `drainkit acl` prints is enough, and not more, on every server."""

from __future__ import annotations

import re

import pytest
from backlogs import GROUP, seed
from books import PASSWORD, ask, at, audit, everything, make_user
from conftest import ROOT, Cli
from servers import Server

READING = [
    ("status",),
    ("fields",),
    ("check",),
    ("check", "--format", "prometheus", "--all-streams", "quantum:stream:*"),
    ("consumers",),
    ("trim",),
    ("export", "backlog.parquet"),
]
# every one of them must be denied to the analyst; {s} is the stream
WRITING = """
XADD {s} * a b|XDEL {s} 1-1|XTRIM {s} MAXLEN 0|XACK {s} {g} 1-1|XCLAIM {s} {g} c 0 1-1
XAUTOCLAIM {s} {g} c 0 0|XREADGROUP GROUP {g} c STREAMS {s} >|XGROUP CREATE {s} x 0
XGROUP DESTROY {s} {g}|XGROUP SETID {s} {g} 0|XGROUP CREATECONSUMER {s} {g} c
XGROUP DELCONSUMER {s} {g} c|XSETID {s} 9-9|DEL {s}|UNLINK {s}|RENAME {s} y|RENAMENX {s} y
COPY {s} y|EXPIRE {s} 1|PEXPIRE {s} 1|PERSIST {s}|MOVE {s} 1|SET {s} x|SETNX z x|GETDEL {s}
GETSET z x|APPEND z x|INCR z|DECR z|LPUSH z x|RPUSH z x|SADD z x|ZADD z 1 x|HSET z a b|HDEL z a
PFADD z x|SETRANGE z 0 x|BITFIELD z SET u8 0 1|GEOADD z 1 1 x|FLUSHDB|FLUSHALL|SWAPDB 0 1
EVAL return(1) 0|SCRIPT FLUSH|CONFIG SET maxmemory 1|SHUTDOWN|SAVE|BGSAVE|BGREWRITEAOF
REPLICAOF NO ONE|DEBUG SLEEP 0|ACL SETUSER x|CLIENT KILL ID 1|RESTORE z 0 x|PUBLISH c x
SORT {s} STORE z|GETEX z|LMOVE z y LEFT LEFT
"""
# and these to whoever drains: the stream stays, and so does all that is not drainkit's
BEYOND_A_DRAIN = """
XDEL {s} 1-1|XTRIM {s} MAXLEN 0|DEL {s}|UNLINK {s}|SET {s} x|RENAME {s} y|RENAMENX {s} y
COPY {s} y|EXPIRE {s} 1|PERSIST {s}|MOVE {s} 1|XSETID {s} 9-9|XCLAIM {s} {g} c 0 1-1
XAUTOCLAIM {s} {g} c 0 0|XGROUP DELCONSUMER {s} {g} c|XGROUP SETID {s} {g} 0
XGROUP CREATECONSUMER {s} {g} c|GET another|SETNX another x|XADD another * a b|XLEN another
XREADGROUP GROUP {g} c STREAMS another >|XACK another {g} 1-1|HSET another a b|GETDEL another
EVAL return(redis.call('XDEL',KEYS[1],'1-1')) 1 {s}|EVAL return(redis.call('GET','another')) 0
EVAL return(redis.call('DEL',KEYS[1])) 1 {s}|EVALSHA abc 0|SCRIPT FLUSH|FLUSHALL|FLUSHDB
SWAPDB 0 1|CONFIG GET *|CONFIG SET maxmemory 1|SHUTDOWN|SAVE|BGSAVE|REPLICAOF NO ONE
DEBUG SLEEP 0|ACL SETUSER x|ACL LIST|CLIENT KILL ID 1|KEYS *|MONITOR|RESTORE z 0 x|PUBLISH c x
DEL {s}.drain_audit|XTRIM {s}.drain_audit MAXLEN 0|XDEL {s}.drain_runs 1-1|DEL {s}.drain_stop
"""
GROUPS = "XGROUP CREATE {s} x 0|XGROUP CREATE {s} x 0 MKSTREAM|XGROUP DESTROY {s} {g}"
# and these to who cleans up
BEYOND_CLEANING = """
XDEL {s} 1-1|DEL {s}|UNLINK {s}|SET {s} x|RENAME {s} y|RENAMENX {s} y|COPY {s} y
EXPIRE {s} 1|PERSIST {s}|MOVE {s} 1|XSETID {s} 9-9|XCLAIM {s} {g} c 0 1-1|XAUTOCLAIM {s} {g} c 0 0
XACK {s} {g} 1-1|XREADGROUP GROUP {g} c STREAMS {s} >|XGROUP SETID {s} {g} 0
XGROUP CREATECONSUMER {s} {g} c|XADD {s}.drain_audit * a b|HSET {s}.drain_state a b
SETNX {s}.drain_stop x|GETDEL {s}.drain_stop|GET another|XTRIM another MAXLEN 0|XADD another * a b
XGROUP DELCONSUMER another {g} c|EVAL return(redis.call('XDEL',KEYS[1],'1-1')) 1 {s}
EVAL return(redis.call('DEL',KEYS[1])) 1 {s}|EVALSHA abc 0|SCRIPT FLUSH|FLUSHALL|FLUSHDB|SWAPDB 0 1
CONFIG GET *|CONFIG SET maxmemory 1|SHUTDOWN|SAVE|REPLICAOF NO ONE|DEBUG SLEEP 0|ACL SETUSER x
CLIENT KILL ID 1|KEYS *|RESTORE z 0 x|PUBLISH c x
"""


def commands_of(table: str, stream: str) -> list[list[str]]:
    commands = [c for line in table.split("\n") for c in line.split("|") if c]
    return [[word.format(s=stream, g=GROUP) for word in c.split()] for c in commands]


def denied(url: str, *command: str) -> bool:
    import redis

    with redis.Redis.from_url(url) as client:
        try:
            client.execute_command(*command)
        except redis.exceptions.NoPermissionError:
            return True
        except redis.ResponseError as error:
            # what a script may not do is said in other words, and in others again by 6.2
            said = "NOPERM|ACL failure in script|can't run this|can't access at least one"
            return re.search(said, str(error)) is not None
        return False


def test_the_analyst_reads_all_and_writes_nothing(server: Server, stream: str, cli: Cli) -> None:
    """All that reads works for the analyst and leaves keys, groups, consumers and the change count
    as they were, dry runs of every scope too; 60 writing commands are denied."""
    seed(server, stream)
    ask(server, "XREADGROUP", "GROUP", GROUP, "dead", "COUNT", 5, "STREAMS", stream, ">")
    url = make_user(cli, server, stream, "analyst")
    before = everything(server)
    for command in READING:
        cli.done(*command, "--redis-url", url, "--stream", stream, secret=PASSWORD)
    for scope, n in (("undelivered", 195), ("pending", 5), ("history", 105)):
        dry = cli.done("drain", "--json", "--scope", scope, "--max-events", "all", "--min-idle-min",
                       "0", "--redis-url", url, "--stream", stream)  # fmt: skip
        assert dry.json()["total_read"] == n
    commands = commands_of(WRITING, stream)
    assert len(commands) >= 40
    for command in commands:
        assert denied(url, *command), command
    assert everything(server) == before


def prepare(server: Server, stream: str) -> None:
    """300 entries, 100 of them delivered long ago, 5 pending; and a key of others."""
    seed(server, stream)
    ask(server, "XREADGROUP", "GROUP", GROUP, "dead", "COUNT", 5, "STREAMS", stream, ">")
    ask(server, "XGROUP", "CREATECONSUMER", stream, GROUP, "idle")
    ask(server, "XADD", "another", "1-1", "a", "b")
    ask(server, "XGROUP", "CREATE", "another", GROUP, "0")


def drain(url: str, stream: str, scope: str) -> tuple[str, ...]:
    return ("drain", "--mode", "live", "--yes", "--throttle", "none", "--max-events", "all",
            "--scope", scope, "--min-idle-min", "0", "--allow-active-consumers",
            "--redis-url", url, "--stream", stream)  # fmt: skip


def assert_denied(server: Server, url: str, stream: str, *tables: str) -> None:
    commands = [command for table in tables for command in commands_of(table, stream)]
    assert len(commands) >= 40
    for command in commands:
        assert denied(url, *command), command
    assert ask(server, "XLEN", stream) == 300


def state_of(server: Server, stream: str) -> dict[bytes, bytes]:
    """All that drains remember, but the pace, which forgets by itself."""
    flat = ask(server, "HGETALL", f"{stream}.drain_state")
    found = dict(zip(flat[::2], flat[1::2], strict=True))
    found.pop(b"pace")
    return found


def test_the_drainer_drains_and_can_do_no_more(server: Server, stream: str, cli: Cli) -> None:
    """What is undelivered or pending, stop and resume work without any XGROUP; history does not."""
    prepare(server, stream)
    url = make_user(cli, server, stream, "drainer")
    where = ("--redis-url", url, "--stream", stream)
    assert cli("stop", "--reason", "x", *where).rc == 0
    assert cli(*drain(url, stream, "undelivered")).rc == 4
    assert cli("resume", *where).rc == 0
    for scope in ("pending", "undelivered"):
        run = cli.done(*drain(url, stream, scope), secret=PASSWORD)
    state = state_of(server, stream)
    run = cli(*drain(url, stream, "history"), secret=PASSWORD)
    assert (run.rc, "drainkit acl" in run.err) == (4, True)
    assert state_of(server, stream) == state
    assert len(audit(server, stream)) == 5 + 195
    assert_denied(server, url, stream, BEYOND_A_DRAIN, GROUPS)
    if server.kind != "redis62":  # 6.2 cannot grant a command for some keys only
        assert denied(url, "XADD", stream, "*", "a", "b")


def test_the_historian_drains_history_too(server: Server, stream: str, cli: Cli) -> None:
    """Every scope works for the historian, who may make and end a group, and do no more."""
    prepare(server, stream)
    url = make_user(cli, server, stream, "historian")
    for scope in ("pending", "undelivered", "history"):
        cli.done(*drain(url, stream, scope), secret=PASSWORD)
    assert_denied(server, url, stream, BEYOND_A_DRAIN)


def test_the_janitor_cleans_up(server: Server, stream: str, cli: Cli) -> None:
    """consumers --delete and trim --apply work for the janitor and leave their ledger entries."""
    prepare(server, stream)
    url = make_user(cli, server, stream, "janitor")
    assert_denied(server, url, stream, BEYOND_CLEANING, GROUPS)
    if server.kind != "redis62":
        assert denied(url, "XADD", stream, "*", "a", "b")
    where = ("--redis-url", url, "--stream", stream, "--operator", "jo", "--yes", "--json")
    run = cli("consumers", "--delete", "--min-idle-min", "0", *where, secret=PASSWORD)
    assert (run.rc, run.json()["removed"]) == (0, ["idle"]), run
    run = cli("trim", "--apply", *where, secret=PASSWORD)
    assert (run.rc, run.json()["removed"]) == (0, 100), run
    entries = ask(server, "XRANGE", f"{stream}.drain_runs", "-", "+")
    assert [fields[1] for _, fields in entries] == [b"consumers_delete", b"trim"]
    assert [fields[3] for _, fields in entries] == [b"jo", b"jo"]


def test_acl_says_what_no_rule_can_forbid(valkey: Server, stream: str, cli: Cli) -> None:
    """The four roles come with a line on what their rules leave open."""
    seed(valkey, stream, 5, delivered=5)
    shown = cli("acl", *at(valkey, stream))
    assert [line.split()[2] for line in shown.out.splitlines()] == [
        "analyst", "drainer", "historian", "janitor",
    ]  # fmt: skip
    for words in ("MAXLEN 0", "CLAIM", "any group", "EVAL"):
        assert words in shown.err


def test_a_missing_permission_is_exit_code_4(valkey: Server, stream: str, cli: Cli) -> None:
    """The analyst who tries a live drain is refused with what to do, and nothing changes."""
    seed(valkey, stream)
    url = make_user(cli, valkey, stream, "analyst")
    before = everything(valkey)
    assert "drainkit acl" in cli.fails(
        4, "drain", "--mode", "live", "--yes", "--redis-url", url, "--stream", stream
    )
    assert everything(valkey) == before


@pytest.mark.parametrize("name", ["a*b", "with space", "br[a]cket", "back\\slash", "q'uo\"te"])
def test_rules_fit_odd_stream_names(valkey: Server, cli: Cli, name: str) -> None:
    """Glob characters in a stream's name are no pattern, and open no other stream."""
    seed(valkey, name)
    seed(valkey, "axxb")
    url = make_user(cli, valkey, name, "analyst")
    assert cli("status", "--redis-url", url, "--stream", name).rc == 0
    assert cli("status", "--redis-url", url, "--stream", "axxb").rc == 4


def test_the_reading_notebooks_run_for_the_analyst(valkey: Server, cli: Cli) -> None:
    """The notebooks that only read (01, 02 and 04 of a dry run, the monitor) need no more than the
    analyst's rules."""
    stream = "quantum:stream:trade.intent"
    seed(valkey, stream)
    url = make_user(cli, valkey, stream, "analyst")
    before = everything(valkey)
    cli.done("run", env={"DRAINKIT_REDIS_URL": url}, secret=PASSWORD)
    notebook = ROOT / "notebooks" / "monitor.ipynb"
    done = cli.papermill(notebook, "out.ipynb", env={"DRAINKIT_REDIS_URL": url})
    assert done.rc == 0, done.err
    assert everything(valkey) == before
    assert PASSWORD not in (cli.cwd / "out.ipynb").read_text() + done.out + done.err
