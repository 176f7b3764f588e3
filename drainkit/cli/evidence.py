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
@stack([DEBUG, JSON])
def verify(path: str, redis_url: str | None, stream: str | None, allowed_signers: str | None,
           identity: str | None, as_json: bool) -> int:  # fmt: skip
    """Check evidence: RUN_DIR, or REPORTS_DIR with the chain over all its runs.

    With --redis-url the server's run ledgers decide which live runs there must be: those of the
    streams that the runs name, and of --stream.
    """
    from pathlib import Path

    from ..evidence import verify as evidence
    from ..settings.config import load

    streams: tuple[str, ...] = ()
    if redis_url is not None:
        streams = (load({} if stream is None else {"stream": stream}).stream,)
    signers = None if allowed_signers is None else Path(allowed_signers)
    found = evidence.verify(path, redis_url, signers, identity, streams=streams)
    bad = [f"{name}: {finding}" for name, findings in found.items() for finding in findings]
    runs = len(found.keys() - {"chain"})
    emit(as_json, {"ok": not bad, "findings": found},
         "\n".join(bad) or f"All well: {runs} run(s), every file as it was sealed."
         )  # fmt: skip
    return 1 if bad else 0
