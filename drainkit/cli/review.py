"""Commands that let a person look closely: single entries, two runs, a plan to approve."""

from __future__ import annotations

from typing import Any

import click

from ..safe import one_line
from .cards import fields_blocks, plan_card
from .options import DEBUG, GROUP, JSON, POLICY, WHERE, option, settings_of, stack
from .program import program
from .terminal import Table, confirm, connected, emit, tell


@program.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID ...")
@stack([*POLICY, *GROUP,
        option("--audit-stream", metavar="KEY", help="[<stream>.drain_audit]"),
        *WHERE, JSON])  # fmt: skip
def show(ids: tuple[str, ...], env_name: str | None, as_json: bool, **flags: Any) -> None:
    """Single entries: raw fields, decoded values and where each was found, every verdict.

    The audit is searched from a minute before the oldest of the ids on.

    \b
    Examples:
      drainkit show 1766602826755-0
      drainkit show 1766602826755-0 --allowlist BTCUSDT --as-of 2025-12-24T19:49:58Z --json
    """
    from ..core.policy import Policy
    from ..core.timestamps import iso
    from ..operations import entry
    from ..server.scopes import allowlist

    settings = settings_of(flags, env_name)
    with connected(settings) as server:
        policy = Policy(settings.max_age_min, allowlist(server, settings), settings.min_conf)
        at_us = settings.as_of_us if settings.as_of_us is not None else server.now_us()
        found = entry.show(server, settings, policy, ids, now_us=at_us)
    data = {"stream": settings.stream, "decided_at": iso(at_us), "policy": policy.as_dict(),
            "entries": found}  # fmt: skip
    head = ("part", "name", "value")
    emit(as_json, data, *(Table(head, entry.rows_of(one), one["id"]) for one in found))


@program.command()
@stack([*GROUP, *WHERE, JSON])
def fields(env_name: str | None, as_json: bool, **flags: Any) -> None:
    """Which fields the backlog's events have, which are chosen, and a [fields] that was tried.

    It looks at up to 500 entries, spread over all that is undelivered. The lines for drainkit.toml
    are tried on them by the decoder that a drain uses; lines that mend nothing are left out.
    """
    from ..operations.fields import fields_of

    settings = settings_of(flags, env_name)
    with connected(settings) as server:
        found = fields_of(server, settings)
    emit(as_json, {"stream": settings.stream, **found.as_dict()}, *fields_blocks(found))


@program.command()
@click.argument("first", metavar="RUN")
@click.argument("second", metavar="RUN")
@stack([DEBUG, JSON])
def diff(first: str, second: str, as_json: bool) -> None:
    """Two plans or evidence folders: differing settings, and events that met another fate.

    Of a live run's folder it takes what happened (audit.parquet), else what was planned.

    \b
    Examples:
      drainkit diff monday.json tuesday.json
      drainkit diff reports/20260101T000000Z-dry-run-abc123 reports/20260101T000500Z-live-def456
    """
    from pathlib import Path

    from ..draining import comparison

    found = comparison.compare(*(comparison.read_side(Path(path)) for path in (first, second)))
    emit(as_json, found, comparison.as_text(found))


@program.command()
@click.argument("plan", metavar="PLAN")
@stack([option("--sign-key", metavar="KEY", required=True, help="Your SSH key (ssh-keygen)."),
        click.option("--yes", is_flag=True, help="Do not ask."), DEBUG, JSON])  # fmt: skip
def approve(plan: str, sign_key: str, yes: bool, as_json: bool) -> None:
    """A second person's signature under a plan (a file or an evidence folder).

    It shows the plan, asks, and adds an SSH signature of its digest to <plan>.sig beside it. Where
    drainkit.toml has [approval], a live drain needs as many as it says, none its operator's.

    \b
    Example:
      drainkit approve plan.json --sign-key ~/.ssh/id_ed25519
    """
    from pathlib import Path

    from ..draining.plan_files import PlanFile
    from ..signing import add_signature

    found = PlanFile.load(Path(plan)).plan
    tell(plan_card(found), err=True)
    confirm("Approve this plan?", yes, "this signs the plan")
    path, keys = add_signature(Path(plan), found.digest, Path(sign_key))
    data = {"plan": plan, "plan_digest": found.digest, "signatures": str(path), "keys": keys}
    emit(as_json, data, f"Approved {found.digest} by {keys[-1]}: {one_line(str(path))} holds "
         f"{len(keys)} signature{'s' if len(keys) > 1 else ''}.")  # fmt: skip
