"""One run for each stream of a pattern, one after another, or as tasks of a Dask cluster.

A stream's failure stops no other. Whether a run of a lost worker drained anything is told by its
ledger and audit; the same command again goes on where it ended.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import (
    DrainkitError,
    InterruptedRunError,
    RefusedError,
    UnreachableError,
    UsageError,
)
from ..safe import one_line, text
from ..server import reading
from ..server.connection import Server
from ..settings import Settings

SUMS = (
    "total_read", "dropped_old", "dropped_not_allowlisted", "dropped_low_conf", "dropped_invalid",
    "dropped_missing", "drained_ok", "errors", "remaining",
)  # fmt: skip
# from good to bad: refused may be meant so, what failed is to be looked at first
_BADNESS = (0, 4, 2, 3, 1, 130)


@dataclass(frozen=True)
class Outcome:
    """How the run of one stream ended; `result` is its run.json, where it came to one."""

    stream: str
    exit_code: int
    outcome: str
    error: str | None
    result: dict[str, Any]

    @classmethod
    def of(cls, stream: str, result: dict[str, Any]) -> Outcome:
        """Of a run that came to its end, however it ended."""
        code = int(result.get("exit_code") or 0)
        return cls(stream, code, str(result.get("outcome")), result.get("error"), result)

    @classmethod
    def failed(cls, stream: str, error: DrainkitError) -> Outcome:
        """Of a run that did not begin, or whose end nobody saw."""
        word = {130: "interrupted", 4: "refused"}.get(error.exit_code, "failed")
        return cls(stream, error.exit_code, word, str(error), {})

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: the run's summary, with stream and end in any case."""
        return {**self.result, **{k: v for k, v in asdict(self).items() if k != "result"}}


RunOne = Callable[[Settings], dict[str, Any]]  # runs one stream; its run.json
Tell = Callable[[Outcome], None]


def check_settings(settings: Settings) -> None:
    """Refuse what is of one stream only."""
    for name in ("plan", "audit_stream"):
        if getattr(settings, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} belongs to one stream; leave out --all-streams")


def streams_of(server: Server, settings: Settings, pattern: str) -> tuple[list[str], list[Outcome]]:
    """The pattern's streams that have the consumer group; RefusedError where there is none.

    With them, for what could not be asked (a node that hangs), how that ended: it stops no other.
    A name that is not UTF-8 cannot be given as a parameter, and is refused too: no stream that
    waits to be drained is left out in silence.
    """
    found: list[str] = []
    names, missed = reading.find_streams(server, pattern)
    outcomes = [Outcome.failed(one_line(pattern), error) for error in missed]
    for raw in names:
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            raise RefusedError(
                f"{text(raw)}: the stream's name is not UTF-8; use a narrower pattern"
            ) from None
        try:
            with Server.of(settings, name) as one:
                if settings.consumer_group in reading.positions(one):
                    found.append(name)
        except UnreachableError as error:
            outcomes.append(Outcome.failed(name, error))
    if not found and not outcomes:
        raise RefusedError(
            f"--all-streams {pattern}: no stream has the group "
            f"{settings.consumer_group}; check pattern and --consumer-group"
        )
    return found, outcomes


def settings_for(settings: Settings, stream: str) -> Settings:
    """The same settings for another stream."""
    return settings.model_copy(update={"stream": stream})


def run_in_turn(
    settings: Settings,
    streams: list[str],
    run_one: RunOne,
    *,
    tell: Tell,
    stopping: threading.Event,
) -> Iterator[Outcome]:
    """Run the streams one after another; after an interruption the rest is told as not run."""
    for stream in streams:
        if stopping.is_set():
            error = InterruptedRunError("not run: interrupted before its turn")
            outcome = Outcome.failed(stream, error)
        else:
            try:
                outcome = Outcome.of(stream, run_one(settings_for(settings, stream)))
            except Exception as error:
                outcome = Outcome.failed(stream, as_told(error))
            if outcome.exit_code == InterruptedRunError.exit_code:
                stopping.set()  # at a question: the others are not to be asked for
        tell(outcome)
        yield outcome


def as_told(error: Exception) -> DrainkitError:
    """Any error as one line: no stream's end may stop another."""
    if isinstance(error, DrainkitError):
        return error
    return DrainkitError(f"unexpected {type(error).__name__}: {error}")


def summary(pattern: str, settings: Settings, outcomes: list[Outcome]) -> dict[str, Any]:
    """All runs together, JSON-ready: counts added up, the worst exit code, each run below."""
    sums = {name: sum(int(outcome.result.get(name) or 0) for outcome in outcomes) for name in SUMS}
    worst = max((o.exit_code for o in outcomes), key=_badness, default=0)
    return {
        "pattern": pattern, "mode": settings.mode, "consumer_group": settings.consumer_group,
        "exit_code": worst, "done": sum(not o.exit_code for o in outcomes),
        "not_done": [o.stream for o in outcomes if o.exit_code],
        **sums, "streams": [outcome.as_dict() for outcome in outcomes],
    }  # fmt: skip


def _badness(code: int) -> int:
    return _BADNESS.index(code) if code in _BADNESS else _BADNESS.index(1)


HEAD = ("Stream", "Outcome", "Exit", "Read", "Drained OK", "Remaining", "Evidence or reason")


def rows(found: dict[str, Any]) -> list[list[object]]:
    """The same, a row of HEAD for each stream; every text is one safe line."""
    return [
        [
            one_line(run["stream"], 60), str(run["outcome"]), run["exit_code"],
            *("-" if run.get(name) is None else run[name] for name in
              ("total_read", "drained_ok", "remaining")),
            one_line(str(run.get("error") or run.get("evidence") or "")),
        ]
        for run in found["streams"]
    ]  # fmt: skip


def last_line(found: dict[str, Any]) -> str:
    """The sum of all streams."""
    return (
        f"{found['done']:,} of {len(found['streams']):,} streams done: {found['total_read']:,} "
        f"read, {found['drained_ok']:,} drained OK, {found['remaining']:,} remaining."
    )
