"""Commands for a person at a desk: evidence, single entries, two runs, a plan to approve; the demo,
the notebooks, JupyterLab.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from click import Option

from .. import files, signing
from ..errors import UsageError
from ..late import late
from ..settings import Settings, config_variable, kernel_variables, load
from . import AUDIT, COMMON, GROUP, OURS, POLICY, WHERE, YES, Argument, command, connected, setting
from .draining import run_notebooks, tell_run
from .terminal import Table, confirm, emit, plan_rows, tell, tell_error

if TYPE_CHECKING:
    from .. import demo as sample
    from ..core import values
    from ..draining import plan_files
    from ..evidence import seal
    from ..evidence import verify as evidence
    from ..operations import events, state
    from ..pipeline import notebooks as books
    from ..server import connection
else:
    sample, values, plan_files = late("drainkit", "demo", "core.values", "draining.plan_files")
    seal, evidence = late("drainkit.evidence", "seal", "verify")
    events, state = late("drainkit.operations", "events", "state")
    books, connection = late("drainkit", "pipeline.notebooks", "server.connection")

_LEDGER = [Option(["--redis-url"], metavar="URL", help="Also ask this server's run ledger."),
           *setting("stream")]  # fmt: skip


def _streams(redis_url: str | None, stream: str | None) -> tuple[str, ...]:
    """The stream whose ledger a server is asked for, as the settings say where none is given."""
    return () if redis_url is None else (load({} if stream is None else {"stream": stream}).stream,)


@command(Argument(["path"]), *_LEDGER,
         Option(["--allowed-signers"], metavar="FILE", type=Path,
                help="Who may approve and sign (ssh-keygen)."),
         Option(["--checkpoint"], metavar="FILE", type=Path,
                help="A keeper's lines that the chain must go on from."),
         *COMMON)  # fmt: skip
def verify(path: str, redis_url: str | None, stream: str | None, allowed_signers: Path | None,
           checkpoint: Path | None) -> int:  # fmt: skip
    """Check evidence: a run's, or a folder of runs and their chain.

    PATH is RUN_DIR or REPORTS_DIR. With --redis-url the server's run ledgers decide which live runs
    there must be: those of the streams that the runs name, and of --stream. With --checkpoint the
    chain must hold the run that FILE names at its place; where all is well FILE is written, or
    moves on to the newest run.
    """
    found = evidence.verify(path, redis_url, allowed_signers,
                            streams=_streams(redis_url, stream), checkpoint=checkpoint)  # fmt: skip
    runs = len(found.findings.keys() - {"chain"})
    well = f"All well: {runs} run(s), every file as it was sealed."
    if found.archived:
        well += f" {len(found.archived)} archived: only the statement is left."
    data = {"ok": not found.bad, "findings": found.findings, "archived": found.archived,
            "drains": found.drains}  # fmt: skip
    drains = [f"live drain without evidence: {line}" for line in found.drains]
    emit(data, *drains, *(found.bad or [well]))
    return 1 if found.bad else 0


@command(Argument(["reports"], metavar="[REPORTS_DIR]", required=False), *_LEDGER,
         Option(["--html"], metavar="FILE", type=Path,
                help="Also write them as a page, without a script."),
         *COMMON)  # fmt: skip
def runs(reports: str | None, redis_url: str | None, stream: str | None, html: Path | None) -> None:
    """All runs, newest first; whether the seal of each holds.

    Live runs without evidence (a plain drain, or a folder that is gone) are in the ledgers that
    --redis-url asks: those of the streams that the runs name, and of --stream.
    """
    place = "reports" if reports is None else reports
    has_none = reports is None and redis_url and not Path(place).exists()  # who only uses `drain`
    known = _streams(redis_url, stream)
    found, odd = evidence.runs(None if has_none else place, redis_url, known)
    for line in odd:
        tell_error(line)
    if html is not None:
        files.write_text(html, evidence.page(found, place, html))
    emit({"runs": found}, *evidence.lines(found))


@command(Argument(["ids"], nargs=-1, required=True, metavar="ID ..."),
         *POLICY, *GROUP, AUDIT, *WHERE)  # fmt: skip
def show(ids: tuple[str, ...], **flags: Any) -> None:
    """Single entries: fields, values, every filter's verdict.

    Raw fields, decoded values, and where each was found. The audit is searched from a minute before
    the oldest of the ids on.

    \b
    Examples:
      drainkit show 1766602826755-0
      drainkit show 1766602826755-0 --allowlist BTCUSDT --as-of 2025-12-24T19:49:58Z --json
    """
    with connected(flags) as (settings, server):
        lens = events.Lens.of(server, settings)
        found = events.show(server, settings, lens.policy, ids, now_us=lens.at_us)
    data = {"stream": settings.stream, "decided_at": values.iso(lens.at_us),
            "policy": lens.policy.as_dict(), "entries": found}  # fmt: skip
    head = ("part", "name", "value")
    emit(data, *(Table(head, events.rows_of(one), one["id"]) for one in found))


@command(Argument(["first"], metavar="RUN"), Argument(["second"], metavar="RUN"), *COMMON)
def diff(first: str, second: str) -> None:
    """How two plans or evidence folders differ.

    Differing settings, and events that met another fate. Of a live run's folder it takes what
    happened (audit.parquet), else what was planned.

    \b
    Examples:
      drainkit diff monday.json tuesday.json
      drainkit diff reports/20260101T000000Z-dry-run-abc123 reports/20260101T000500Z-live-def456
    """
    found = plan_files.compare(*(plan_files.read_side(Path(path)) for path in (first, second)))
    emit(found, *plan_files.as_text(found).splitlines())


@command(Argument(["plan"], metavar="PLAN", type=Path),
         Option(["--sign-key"], metavar="KEY", required=True, type=Path,
                help="Your SSH key (ssh-keygen)."),
         YES, *COMMON)  # fmt: skip
def approve(plan: Path, sign_key: Path, yes: bool) -> None:
    """A second person's signature under a plan.

    PLAN is a file or an evidence folder. It shows the plan, asks, and adds an SSH signature of its
    digest to <plan>.sig beside it. Where drainkit.toml has [approval], a live drain needs as many
    as it says, none its operator's.

    \b
    Example:
      drainkit approve plan.json --sign-key ~/.ssh/id_ed25519
    """
    found = plan_files.PlanFile.load(plan).plan
    made = f"{found.created_at} by {found.run_id}, at {found.server}"
    rows = [*plan_rows(found), ("Made", made), ("Digest", found.digest)]
    tell(Table((), rows, "Plan"), err=True)
    confirm("Approve this plan?", yes, "this signs the plan")
    path, keys = signing.add_signature(plan, found.digest, sign_key)
    data = {"plan": str(plan), "plan_digest": found.digest, "signatures": str(path), "keys": keys}
    many = "signatures" if len(keys) > 1 else "signature"
    emit(data, f"Approved {found.digest} by {keys[-1]}: {path} holds {len(keys)} {many}.")


# ---------------------------------------------------------------- demo, notebooks, Lab

_FOLDER, _DEMO_REPORTS = "drainkit-notebooks", "demo-reports"


def _filled(embedded: sample.EmbeddedServer) -> Settings:
    """The demo's settings, once the server holds the sample backlog; shows its state."""
    settings = sample.settings_of(embedded.url, _DEMO_REPORTS)
    with connection.Server.of(settings) as server:
        sample.fill(server, settings)
        tell(*state.as_text(state.baseline(server)), "", err=True)
    return settings


@command(Option(["--serve"], is_flag=True, help="Drain nothing: keep the server until Ctrl-C."),
         *COMMON)  # fmt: skip
def demo(serve: bool) -> int:
    """See it work: a sample backlog on a server of its own.

    It goes through the whole pipeline; the evidence is in demo-reports/.
    """
    if not serve:
        books.check_installed()
    with sample.EmbeddedServer() as embedded:
        settings = _filled(embedded)
        if not serve:
            return tell_run(run_notebooks(settings, yes=True))
        at = f"--redis-url {shlex.quote(embedded.url)}"
        # the sample's dead consumers are a moment old
        run = (f"drainkit run {at} --allow-active-consumers --allowlist "
               f"{','.join(sample.ALLOWLIST[:3])} --reports-dir {_DEMO_REPORTS}")  # fmt: skip
        commands = [f"drainkit status {at}", f"drainkit lab {at}", run,
                    f"{run} --mode live --throttle 100 --max-events all"]  # fmt: skip
        data = {"redis_url": embedded.url, "stream": settings.stream, "next": commands}
        emit(data, f"The server: {embedded.url}", "In another terminal:",
             *(f"  {c}" for c in commands), "Ctrl-C ends it.")  # fmt: skip
        with suppress(KeyboardInterrupt):  # the way to end it, so nothing went wrong
            sys.stdout.flush()
            signal.pause()
        return 0


@command(Argument(["folder"], metavar="DIR"),
         Option(["--force"], is_flag=True, help="Replace notebooks there that differ."),
         *COMMON)  # fmt: skip
def notebooks(folder: str, force: bool) -> None:
    """Copy the notebooks into DIR, to work with them there.

    \b
    Examples:
      drainkit notebooks my-notebooks
      drainkit run --notebooks-dir my-notebooks
    """
    done = books.copy_to(Path(folder), force=force)
    data = {how: [name for name, one in done.items() if one == how]
            for how in ("copied", "unchanged")}  # fmt: skip
    last = f"{folder} holds all notebooks. drainkit lab {shlex.quote(folder)} opens them."
    emit({"folder": folder, **data}, *(f"copied {name}" for name in data["copied"]), last)


@command(Argument(["words"], metavar="", nargs=-1),
         Option(["--demo", "is_demo"], is_flag=True,
                help="A server with a sample backlog, while Lab runs."),
         Option(["--run", "sealed"], metavar="RUN_DIR",
                help="Open 01 of a sealed run (a folder or a URL); no server is asked."),
         *WHERE[:-1], *GROUP, options_metavar="[OPTIONS] [DIR] [-- ARGS]")  # fmt: skip
def lab(words: tuple[str, ...], is_demo: bool, sealed: str | None, **flags: Any) -> None:
    """JupyterLab on the notebooks, copied where missing.

    DIR is drainkit-notebooks. Notebooks that were changed stay as they are. ARGS go to `jupyter
    lab`.

    \b
    Examples:
      drainkit lab --demo
      drainkit lab --redis-url redis://localhost:6379/0 --stream my:stream
      drainkit lab my-notebooks -- --port=9999
      drainkit lab --run reports/20260101T000000Z-live-0a1b2c
    """
    books.check_installed()
    further = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
    folder, *odd = [*words[: len(words) - len(further)]] or [_FOLDER]
    if odd:
        raise UsageError(f"lab takes one folder, not {odd[0]} too; -- stands before Jupyter's ARGS")
    others = [*flags.values(), sealed if is_demo else None]
    if (is_demo or sealed is not None) and any(value is not None for value in others):
        alone = "--demo" if is_demo else "--run"
        raise UsageError(f"{alone} has settings of its own; leave the others out")
    if sealed is not None and not seal.is_sealed(sealed):
        raise UsageError(f"--run {sealed} is not a sealed run; name its folder or URL")
    variables: dict[str, str] = {}
    with ExitStack() as stack:
        if is_demo:
            for name in [name for name in os.environ if name.startswith("DRAINKIT_")]:
                del os.environ[name]  # the demo's settings are all there is
            embedded = stack.enter_context(sample.EmbeddedServer())
            variables = kernel_variables(_filled(embedded))
            embedded.outlive_exec()
        elif sealed is None:
            with connected(flags) as (settings, _):  # before a person waits for a browser
                variables = config_variable() | kernel_variables(settings)
        for name, how in books.copy_to(Path(folder), keep=True).items():
            if how == "kept":
                tell(f"{name} in {folder} was changed, and stays as it is", err=True)
        if sealed is not None:
            further.append(books.of_sealed(sealed, Path(folder)))
        os.environ.update(variables)
        for name in OURS:
            os.environ.pop(name, None)
        os.chdir(folder)
        # -P: no module that lies in the folder is Lab's (a calendar.py), and so reads the URL
        program = [sys.executable, "-P", "-m", "jupyterlab", *further]
        os.execv(program[0], program)  # noqa: S606 - a list, and no shell
