"""Commands about evidence."""

from __future__ import annotations

import click

from .options import DEBUG, JSON, option, setting, stack
from .program import program
from .terminal import emit


@program.command()
@click.argument("path")
@option("--redis-url", metavar="URL", help="Also ask this server's run ledger.")
@stack(setting("stream"))
@option("--allowed-signers", metavar="FILE", help="Who may approve and sign (ssh-keygen).")
@option("--identity", metavar="NAME", help="Who must have signed the statement.")
@option("--checkpoint", metavar="FILE", help="A keeper's lines that the chain must go on from.")
@stack([DEBUG, JSON])
def verify(path: str, redis_url: str | None, stream: str | None, allowed_signers: str | None,
           identity: str | None, checkpoint: str | None, as_json: bool) -> int:  # fmt: skip
    """Check evidence: RUN_DIR, or REPORTS_DIR with the chain over all its runs.

    With --redis-url the server's run ledgers decide which live runs there must be: those of the
    streams that the runs name, and of --stream. With --checkpoint the chain must hold the run that
    FILE names at its place; where all is well FILE is written, or moves on to the newest run.
    """
    from pathlib import Path

    from ..evidence import verify as evidence
    from ..settings.config import load

    streams: tuple[str, ...] = ()
    if redis_url is not None:
        streams = (load({} if stream is None else {"stream": stream}).stream,)
    signers = None if allowed_signers is None else Path(allowed_signers)
    kept = None if checkpoint is None else Path(checkpoint)
    found = evidence.verify(path, redis_url, signers, identity, streams=streams, checkpoint=kept)
    runs = len(found.findings.keys() - {"chain"})
    well = f"All well: {runs} run(s), every file as it was sealed."
    if found.archived:
        well += f" {len(found.archived)} archived: only the statement is left."
    emit(as_json,
         {"ok": not found.bad, "findings": found.findings, "archived": found.archived,
          "drains": found.drains},
         *(f"live drain without evidence: {line}" for line in found.drains),
         "\n".join(found.bad) or well)  # fmt: skip
    return 1 if found.bad else 0


@program.command()
@click.argument("reports", metavar="[REPORTS_DIR]", default="reports")
@option("--redis-url", metavar="URL", help="Also live runs that this server's ledger has alone.")
@stack(setting("stream"))
@option("--html", metavar="FILE", help="Also write them as a page, without a script.")
@stack([DEBUG, JSON])
def runs(reports: str, redis_url: str | None, stream: str | None, html: str | None,
         as_json: bool) -> None:  # fmt: skip
    """All runs, newest first; whether the seal of each holds.

    Live runs without evidence (a plain drain, or a folder that is gone) are in the ledgers that
    --redis-url asks: those of the streams that the runs name, and of --stream.
    """
    from pathlib import Path

    from .. import files
    from ..evidence import runs as evidence
    from ..settings.config import load

    streams: tuple[str, ...] = ()
    if redis_url is not None:
        streams = (load({} if stream is None else {"stream": stream}).stream,)
    found, odd = evidence.runs(reports, redis_url, streams)
    for line in odd:
        click.echo(f"drainkit: {line}", err=True)
    if html is not None:
        files.write_text(Path(html), evidence.page(found, reports, Path(html)))
    emit(as_json, {"runs": found}, "\n".join(evidence.lines(found)))
