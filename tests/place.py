"""One stream on one server, and who works there: what tests of drains share."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import backlogs
import books
import faults
import pytest
from backlogs import GROUP, ME
from conftest import Cli, CliResult
from faults import Attempt
from servers import KINDS, Server, pairs

from drainkit.draining.dry import dry_run
from drainkit.draining.run import resolve
from drainkit.server.connection import Server as Link
from drainkit.settings import build

#: Tests that need no other server than the bundled one.
BUNDLED = pytest.mark.parametrize("place", ["valkey"], indirect=True)


@dataclass
class Place:
    """A stream of the test's own."""

    server: Server
    stream: str
    cli: Cli
    url: str = ""  #: where users connect; the server's own
    base: str = ""  #: of the side keys' names; the stream's

    def __post_init__(self) -> None:
        self.url, self.base = self.url or self.server.url, self.base or self.stream

    # ---------------------------------------------------------------- what is there

    def ask(self, *command: str | bytes | int) -> Any:
        return self.server.ask(*command)

    def alter(self, command: str, *arguments: str | bytes | int) -> Any:
        """A command whose key is the stream."""
        return self.server.ask(command, self.stream, *arguments)

    def side(self, name: str) -> str:
        """A key of drainkit's: audit, runs, state, recorded, stop."""
        return f"{self.base}.drain_{name}"

    def seed(self, n: int = 300, delivered: int = 100) -> list[str]:
        return backlogs.seed(self.server, self.stream, n, delivered=delivered)

    def fill(self, entries: Any, position: str | None = "0-0") -> list[bytes]:
        """Entries, and the group at `position` (None: no group)."""
        group = None if position is None else GROUP
        at = position or "0-0"
        return backlogs.fill(self.server, self.stream, entries, group=group, position=at)

    def deliver(self, consumer: str | bytes, n: int, group: Any = GROUP) -> list[str]:
        return backlogs.deliver(self.server, self.stream, consumer, n, group)

    def set_position(self, entry: str) -> None:
        self.ask("XGROUP", "SETID", self.stream, GROUP, entry)

    @property
    def position(self) -> str:
        return self.groups[GROUP]

    @property
    def groups(self) -> dict[str, str]:
        """Each group's position, in the order in which Redis tells them."""
        rows = (pairs(row[:8]) for row in self.ask("XINFO", "GROUPS", self.stream))
        return {row[b"name"].decode(): row[b"last-delivered-id"].decode() for row in rows}

    def now_ms(self) -> int:
        return backlogs.now_ms(self.server)

    def audit(self, key: str | None = None) -> list[dict[str, str]]:
        return books.audit(self.server, self.stream, key or self.side("audit"))

    def recorded(self) -> list[str]:
        return [record["original_id"] for record in self.audit()]

    def waiting(self, *consumer: str) -> list[tuple[str, str]]:
        """What is pending in the group (for a consumer): id and owner."""
        rows = self.ask("XPENDING", self.stream, GROUP, "-", "+", 10**5, *consumer)
        return [(row[0].decode(), row[1].decode()) for row in rows]

    def everything(self) -> dict[str, Any]:
        return books.everything(self.server)

    def wait_for(self, n: int, timeout_sec: float = 60) -> None:
        """Until drains have recorded that many."""
        books.wait_for(self.server, self.stream, n, self.side("audit"), timeout_sec)

    # ---------------------------------------------------------------- by the command line

    @property
    def where(self) -> tuple[str, ...]:
        return ("--redis-url", self.url, "--stream", self.stream)

    def says(self, command: str, *options: object, **how: Any) -> CliResult:
        """A command about the stream."""
        return self.cli(command, *self.where, *options, **how)

    def dry(self, *options: object) -> Any:
        """The summary of a dry run that ended with 0."""
        return self.cli.done("drain", "--json", *self.where, *options).json()

    def lived(self, *options: object) -> CliResult:
        """A live drain of all, as fast as it goes; the options come last and win."""
        return self.cli(*self._live(options))

    def live(self, *options: object) -> Any:
        """The summary of such a drain that ended with 0."""
        return self.cli.done(*self._live(options)).json()

    def refused(self, *options: object) -> str:
        """The line of such a drain that was refused (4)."""
        return self.cli.fails(4, *self._live(options))

    def start(self, *options: object) -> subprocess.Popen[str]:
        return self.cli.start(*self._live(options))

    def _live(self, options: tuple[object, ...]) -> tuple[object, ...]:
        return books.live(self.server, self.stream, *self.where, *options)

    # ---------------------------------------------------------------- in this process

    def attempt(self, url: str = "", **options: Any) -> Attempt:
        return faults.attempt(url or self.url, self.stream, **options)

    def complete(self, url: str = "", **options: Any) -> Attempt:
        return faults.complete(url or self.url, self.stream, **options)

    def rehearse(self, **options: Any) -> dict[str, Any]:
        """The summary of one dry run."""
        given = {"redis_url": self.url, "stream": self.stream, "max_events": "all", **options}
        settings = build(given)
        with Link.of(settings) as link:
            return dry_run(resolve(link, settings)).as_dict()

    # ---------------------------------------------------------------- the books

    def settled(self, expected: Any, *attempts: Attempt, key: str | None = None) -> None:
        """Each has one record, no other has; nothing of ours is pending, each run's counts true."""
        records = self.audit(key)
        faults.assert_once(records, expected)
        assert self.waiting(ME) == []
        for one in attempts:
            books.assert_counts(records, one.summary)

    def balanced(self, summary: dict[str, Any]) -> None:
        books.assert_books_balance(self.server, self.stream, summary)


@pytest.fixture
def own_place(start_server: Callable[..., Server], stream: str, cli: Cli) -> Callable[..., Place]:
    """A place on a server of the test's own: `own_place("redis", port=True, config={...})`."""
    return lambda kind, **options: Place(start_server(kind, **options), stream, cli)


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> faults.Clock:
    """The clock of servers that the test starts."""
    return faults.Clock(tmp_path, monkeypatch)


@pytest.fixture(params=KINDS)
def place(
    request: pytest.FixtureRequest, clean: Callable[[str], Server], stream: str, cli: Cli
) -> Place:
    """A place on a clean server, once of each kind."""
    return Place(clean(request.param), stream, cli)
