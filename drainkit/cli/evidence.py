"""Commands about evidence."""

from __future__ import annotations

import click

from ..errors import DrainkitError, UsageError
from ..safe import one_line
from .options import DEBUG, JSON, option, stack
from .program import program
from .terminal import emit


@program.command()
@click.argument("path")
@option("--redis-url", metavar="URL", help="Also ask this server's run ledger.")
@option("--allowed-signers", metavar="FILE", help="Who may approve and sign (ssh-keygen).")
@option("--identity", metavar="NAME", help="Who must have signed the statement.")
@stack([DEBUG, JSON])
def verify(path: str, redis_url: str | None, allowed_signers: str | None, identity: str | None,
           as_json: bool) -> int:  # fmt: skip
    """Check evidence: RUN_DIR, or REPORTS_DIR with the chain over all its runs."""
    from pathlib import Path

    from ..evidence import approval
    from ..evidence.remote import local_copy
    from ..evidence.signature import verify_signature
    from ..evidence.verify import is_run, verify_reports, verify_run

    folder = click.get_current_context().with_resource(local_copy(path))
    if not folder.is_dir():
        raise UsageError(f"{one_line(path)} is no folder; name an evidence or a reports folder")
    if identity is not None and allowed_signers is None:
        raise UsageError("--identity needs --allowed-signers, which says what its key is")
    if allowed_signers is not None and not Path(allowed_signers).is_file():
        raise UsageError(f"--allowed-signers {one_line(allowed_signers)} is no file")
    found = {folder.name: verify_run(folder)} if is_run(folder) else verify_reports(folder)
    runs_found = [name for name in found if name != "chain"]
    if redis_url is not None:
        from ..evidence.ledgers import missing_runs, verify_ledger

        for name, findings in verify_ledger(redis_url, folder, found).items():
            found.setdefault(name, []).extend(findings)
        if not is_run(folder) and (gone := missing_runs(redis_url, folder, runs_found)):
            found.setdefault("chain", []).extend(gone)
    for name in runs_found if allowed_signers is not None else []:
        run_dir = folder if is_run(folder) else folder / name
        found[name] += approval.problems(run_dir, Path(str(allowed_signers)))
        if identity is None:
            continue
        try:
            verify_signature(run_dir, Path(str(allowed_signers)), str(identity))
        except DrainkitError as error:
            found[name].append(f"not signed by {one_line(str(identity))}: {error}")
    bad = [f"{name}: {finding}" for name, findings in found.items() for finding in findings]
    emit(as_json, {"ok": not bad, "findings": found},
         "\n".join(bad) or f"All well: {len(runs_found)} run(s), every file as it was sealed."
         )  # fmt: skip
    return 1 if bad else 0
