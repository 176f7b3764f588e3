"""The kill switch: stop and resume."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click

from ..errors import DrainkitError, UsageError
from ..safe import one_line
from .options import JSON, OPERATOR, WHERE, option, stack, switch_settings
from .program import program
from .terminal import connected, emit


@contextmanager
def _noting() -> Iterator[None]:
    """The ledger must not stand in the kill switch's way: say what went wrong, and go on."""
    try:
        yield
    except DrainkitError as error:
        click.echo(f"drainkit: it is done, but the ledger does not have it: {error}", err=True)


@program.command()
@option("--reason", required=True, metavar="TEXT", help="Why; kept with the switch.")
@stack([OPERATOR, *WHERE, JSON])
def stop(reason: str, env_name: str | None, as_json: bool, **flags: Any) -> None:
    """Set the kill switch: from now on no drain of the stream acknowledges anything."""
    from ..core.timestamps import iso
    from ..server import keeping, ledger, reading, writing

    if not reason.strip():
        raise UsageError("--reason: say why; it is kept with the switch")
    settings = switch_settings(flags, env_name)
    operator = settings.operator
    with connected(settings) as server:
        # a drain of a misspelt stream would go on, and somebody would think that it does not
        reading.stream_info(server)
        is_set = writing.stop(server, reason=reason, operator=operator, now_us=server.now_us())
        if is_set:
            with _noting():
                at = iso(server.now_us())
                ledger.append(server, ledger.Stopped(operator, at, one_line(reason, 600)))
        before = None if is_set else reading.stop_switch(server)
        kept: dict[str, Any] = {"may_evict": None}
        with suppress(DrainkitError):
            kept = keeping.keeping(server)
    if warning := keeping.eviction_words(kept):
        click.echo(f"drainkit: {warning}; drains go on if the switch is gone", err=True)
    data = {
        "stream": settings.stream,
        "stopped": True,
        "reason": reason,
        "operator": operator,
        "was_stopped": not is_set,
        "may_be_evicted": kept["may_evict"],
    }
    said = "Stopped" if before is None else f"It was stopped before ({before})"
    emit(as_json, data, f"{said}: no drain of {one_line(settings.stream)} goes on. "
         "drainkit resume lifts it.")  # fmt: skip


@program.command()
@stack([OPERATOR, *WHERE, JSON])
def resume(env_name: str | None, as_json: bool, **flags: Any) -> None:
    """Lift the kill switch."""
    from ..core.timestamps import iso
    from ..server import ledger, writing

    settings = switch_settings(flags, env_name)
    with connected(settings) as server:
        lifted = writing.resume(server)
        if lifted is not None:
            with _noting():
                at = iso(server.now_us())
                ledger.append(server, ledger.Resumed(settings.operator, at, lifted.reason))
    data = {"stream": settings.stream, "stopped": False, "was_stopped": lifted is not None,
            "operator": settings.operator}  # fmt: skip
    was = str(lifted).replace("is set", "was set", 1)
    emit(as_json, data, "It was not stopped." if lifted is None else f"Resumed: {was}.")
