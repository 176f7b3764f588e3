"""`run --all-streams`: one run for each stream, one summary."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from ..safe import one_line
from .terminal import Table, confirm, connected, emit, stop_signals

if TYPE_CHECKING:
    from ..pipeline.many import Outcome
    from ..settings import Settings


def run_many(settings: Settings, pattern: str, address: str | None,
             one: Callable[..., dict[str, Any]], as_json: bool, *, sign_key: str | None,
             yes: bool) -> int:  # fmt: skip
    """Run each stream of the pattern, print all together; the worst exit code."""
    from ..pipeline import many

    many.check_settings(settings)
    if address is not None:
        if sign_key is not None:
            raise UsageError("--sign-key: the key is not where Dask runs; leave out --dask")
        if settings.mode == "live":
            confirm(f"Drain every stream of {one_line(pattern)} without being asked again?", yes)
    with connected(settings, anywhere=True) as server:
        streams, missed = many.streams_of(server, settings, pattern)
    left = len(streams)

    def tell(outcome: Outcome) -> None:
        nonlocal left
        left -= 1
        shown = f"{one_line(outcome.stream)}: {outcome.outcome}, {left:,} to go"
        click.echo(shown if not outcome.error else f"{shown}: {one_line(outcome.error)}", err=True)

    for outcome in missed:
        click.echo(f"{one_line(outcome.stream)}: {one_line(outcome.error or '')}", err=True)
    with stop_signals() as stopping:
        if address is None:
            outcomes = many.run_in_turn(
                settings, streams, lambda s: one(s, stopping=stopping), tell=tell,
                stopping=stopping,
            )  # fmt: skip
        else:
            outcomes = many.run_with_dask(settings, streams, address, tell=tell, stopping=stopping)
        found = many.summary(pattern, settings, [*missed, *outcomes])
    emit(as_json, found, Table(many.HEAD, many.rows(found)), many.last_line(found))
    return int(found["exit_code"])
