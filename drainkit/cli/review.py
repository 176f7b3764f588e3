"""Commands that look closely: single entries, fields, two runs, a plan to approve, evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .cards import fields_blocks, plan_card
from .options import (
    AUDIT,
    DEBUG,
    GROUP,
    JSON,
    POLICY,
    WHERE,
    YES,
    command,
    option,
    setting,
    settings_of,
)
from .terminal import Table, confirm, connected, emit, tell, tell_error


@command(click.argument("ids", nargs=-1, required=True, metavar="ID ..."),
         *POLICY, *GROUP, AUDIT, *WHERE, JSON)  # fmt: skip
def show(ids: tuple[str, ...], as_json: bool, **flags: Any) -> None:
    """Single entries: raw fields, decoded values and where each was found, every verdict.

    The audit is searched from a minute before the oldest of the ids on.

    \b
    Examples:
      drainkit show 1766602826755-0
      drainkit show 1766602826755-0 --allowlist BTCUSDT --as-of 2025-12-24T19:49:58Z --json
    """
    from ..core.timestamps import iso
    from ..operations import entry
    from ..operations.ranges import Lens

    settings = settings_of(flags)
    with connected(settings) as server:
        lens = Lens.of(server, settings)
        found = entry.show(server, settings, lens.policy, ids, now_us=lens.at_us)
    data = {"stream": settings.stream, "decided_at": iso(lens.at_us),
            "policy": lens.policy.as_dict(), "entries": found}  # fmt: skip
    head = ("part", "name", "value")
    emit(as_json, data, *(Table(head, entry.rows_of(one), one["id"]) for one in found))


@command(*GROUP, *WHERE, JSON)
def fields(as_json: bool, **flags: Any) -> None:
    """Which fields the backlog's events have, which are chosen, and a [fields] that was tried.

    It looks at up to 500 entries, spread over all that is undelivered. The lines for drainkit.toml
    are tried on them by the decoder that a drain uses; lines that mend nothing are left out.
    """
    from ..operations.entry import fields_of

    settings = settings_of(flags)
    with connected(settings) as server:
        found = fields_of(server, settings)
    emit(as_json, {"stream": settings.stream, **found.as_dict()}, *fields_blocks(found))


@command(click.argument("first", metavar="RUN"), click.argument("second", metavar="RUN"),
         DEBUG, JSON)  # fmt: skip
def diff(first: str, second: str, as_json: bool) -> None:
    """Two plans or evidence folders: differing settings, and events that met another fate.

    Of a live run's folder it takes what happened (audit.parquet), else what was planned.

    \b
    Examples:
      drainkit diff monday.json tuesday.json
      drainkit diff reports/20260101T000000Z-dry-run-abc123 reports/20260101T000500Z-live-def456
    """
    from ..draining import comparison

    found = comparison.compare(*(comparison.read_side(Path(path)) for path in (first, second)))
    emit(as_json, found, *comparison.as_text(found).splitlines())


@command(click.argument("plan", metavar="PLAN"),
         option("--sign-key", metavar="KEY", required=True, help="Your SSH key (ssh-keygen)."),
         YES, DEBUG, JSON)  # fmt: skip
def approve(plan: str, sign_key: str, yes: bool, as_json: bool) -> None:
    """A second person's signature under a plan (a file or an evidence folder).

    It shows the plan, asks, and adds an SSH signature of its digest to <plan>.sig beside it. Where
    drainkit.toml has [approval], a live drain needs as many as it says, none its operator's.

    \b
    Example:
      drainkit approve plan.json --sign-key ~/.ssh/id_ed25519
    """
    from ..draining.plan_files import PlanFile
    from ..signing import add_signature

    found = PlanFile.load(Path(plan)).plan
    tell(plan_card(found), err=True)
    confirm("Approve this plan?", yes, "this signs the plan")
    path, keys = add_signature(Path(plan), found.digest, Path(sign_key))
    data = {"plan": plan, "plan_digest": found.digest, "signatures": str(path), "keys": keys}
    many = "signatures" if len(keys) > 1 else "signature"
    emit(as_json, data, f"Approved {found.digest} by {keys[-1]}: {path} holds {len(keys)} {many}.")


@command(click.argument("path"),
         option("--redis-url", metavar="URL", help="Also ask this server's run ledger."),
         *setting("stream"),
         option("--allowed-signers", metavar="FILE", help="Who may approve and sign (ssh-keygen)."),
         option("--identity", metavar="NAME", help="Who must have signed the statement."),
         option("--checkpoint", metavar="FILE",
                help="A keeper's lines that the chain must go on from."),
         DEBUG, JSON)  # fmt: skip
def verify(path: str, redis_url: str | None, stream: str | None, allowed_signers: str | None,
           identity: str | None, checkpoint: str | None, as_json: bool) -> int:  # fmt: skip
    """Check evidence: RUN_DIR, or REPORTS_DIR with the chain over all its runs.

    With --redis-url the server's run ledgers decide which live runs there must be: those of the
    streams that the runs name, and of --stream. With --checkpoint the chain must hold the run that
    FILE names at its place; where all is well FILE is written, or moves on to the newest run.
    """
    from ..evidence import verify as evidence

    signers = None if allowed_signers is None else Path(allowed_signers)
    kept = None if checkpoint is None else Path(checkpoint)
    found = evidence.verify(path, redis_url, signers, identity,
                            streams=_streams(redis_url, stream), checkpoint=kept)  # fmt: skip
    runs = len(found.findings.keys() - {"chain"})
    well = f"All well: {runs} run(s), every file as it was sealed."
    if found.archived:
        well += f" {len(found.archived)} archived: only the statement is left."
    data = {"ok": not found.bad, "findings": found.findings, "archived": found.archived,
            "drains": found.drains}  # fmt: skip
    drains = [f"live drain without evidence: {line}" for line in found.drains]
    emit(as_json, data, *drains, *(found.bad or [well]))
    return 1 if found.bad else 0


@command(click.argument("reports", metavar="[REPORTS_DIR]", default="reports"),
         option("--redis-url", metavar="URL",
                help="Also live runs that this server's ledger has alone."),
         *setting("stream"),
         option("--html", metavar="FILE", help="Also write them as a page, without a script."),
         DEBUG, JSON)  # fmt: skip
def runs(reports: str, redis_url: str | None, stream: str | None, html: str | None,
         as_json: bool) -> None:  # fmt: skip
    """All runs, newest first; whether the seal of each holds.

    Live runs without evidence (a plain drain, or a folder that is gone) are in the ledgers that
    --redis-url asks: those of the streams that the runs name, and of --stream.
    """
    from .. import files
    from ..evidence import runs as evidence

    found, odd = evidence.runs(reports, redis_url, _streams(redis_url, stream))
    for line in odd:
        tell_error(line)
    if html is not None:
        files.write_text(Path(html), evidence.page(found, reports, Path(html)))
    emit(as_json, {"runs": found}, *evidence.lines(found))


def _streams(redis_url: str | None, stream: str | None) -> tuple[str, ...]:
    """The stream whose ledger a server is asked for, as the settings say where none is given."""
    from ..settings.config import load

    return () if redis_url is None else (load({} if stream is None else {"stream": stream}).stream,)
