"""Commands for a person at a desk: the demo, the notebooks, JupyterLab."""

from __future__ import annotations

import os
import shlex
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from . import BLAS_THREADS, IS_BLAS_GIVEN
from .draining import run_and_tell
from .program import DEBUG, GROUP, JSON, WHERE, command, option, settings_of
from .terminal import connected, emit, tell

if TYPE_CHECKING:
    from ..demo import EmbeddedServer
    from ..settings import Settings

_FOLDER = "drainkit-notebooks"
_DEMO_REPORTS = "demo-reports"
_BINARY = option("--server", "binary", metavar="PROGRAM",
                 help="Demo: a redis-server. [the bundled Valkey]")  # fmt: skip


@command(_BINARY,
         option("--reports-dir", metavar="DIR", default=_DEMO_REPORTS, help=f"[{_DEMO_REPORTS}]"),
         option("--serve", is_flag=True, help="Drain nothing; keep the server until interrupted."),
         DEBUG, JSON)  # fmt: skip
def demo(binary: str | None, reports_dir: str, serve: bool, as_json: bool) -> int:
    """See it work: a sample backlog on a server of its own, through the whole pipeline."""
    from .. import demo as demo_data
    from ..demo import EmbeddedServer
    from ..pipeline.notebooks import check_installed

    if not serve:
        check_installed()
    with EmbeddedServer(binary) as embedded:
        settings = _filled(embedded, reports_dir, as_json=as_json)
        if not serve:
            return run_and_tell(settings, as_json, yes=True)
        at = f"--redis-url {shlex.quote(embedded.url)}"
        allowed = ",".join(demo_data.ALLOWLIST[:3])
        # the sample's dead consumers are a moment old
        run = (f"drainkit run {at} --allow-active-consumers --allowlist {allowed} "
               f"--reports-dir {_DEMO_REPORTS}")  # fmt: skip
        commands = [f"drainkit status {at}", f"drainkit lab {at}", run,
                    f"{run} --mode live --throttle 100 --max-events all"]  # fmt: skip
        data = {"redis_url": embedded.url, "stream": settings.stream, "next": commands}
        emit(as_json, data, f"The server: {embedded.url}", "In another terminal:",
             *(f"  {c}" for c in commands), "Ctrl-C ends it.")  # fmt: skip
        sys.stdout.flush()
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:  # the way to end it, so nothing went wrong
            return 0


@command(click.argument("folder", metavar="DIR"),
         option("--force", is_flag=True, help="Replace notebooks there that differ."),
         DEBUG, JSON)  # fmt: skip
def notebooks(folder: str, force: bool, as_json: bool) -> None:
    """Copy the notebooks into DIR, to work with them there.

    \b
    Examples:
      drainkit notebooks my-notebooks
      drainkit run --notebooks-dir my-notebooks
    """
    from ..pipeline.notebooks import copy_to

    done = copy_to(Path(folder), force=force)
    data = {"folder": folder, "copied": done.copied, "unchanged": done.equal}
    last = f"{folder} holds all notebooks. drainkit lab {shlex.quote(folder)} opens them."
    emit(as_json, data, *(f"copied {name}" for name in done.copied), last)


class _Lab(click.Command):
    """A command that hands all that follows `--` on."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own, further = args, []
        if "--" in args:
            at = args.index("--")
            own, further = args[:at], args[at + 1 :]
        ctx.obj = further
        return super().parse_args(ctx, own)


@command(click.argument("folder", metavar="", default=_FOLDER, required=False),
         option("--demo", "is_demo", is_flag=True,
                help="A server with a sample backlog, while Lab runs."),
         option("--run", "sealed", metavar="RUN_DIR",
                help="Open 01 of a sealed run (a folder or a URL); no server is asked."),
         option("--no-browser", is_flag=True, help="Open no browser; Lab prints its address."),
         _BINARY, *WHERE, *GROUP, click.pass_context,
         cls=_Lab, options_metavar="[OPTIONS] [DIR] [-- ARGS]")  # fmt: skip
def lab(ctx: click.Context, /, folder: str, is_demo: bool, sealed: str | None, no_browser: bool,
        binary: str | None, **flags: Any) -> None:  # fmt: skip
    """JupyterLab on the notebooks in DIR (drainkit-notebooks), copied there where missing.

    Notebooks that were changed stay as they are. ARGS go to `jupyter lab`.

    \b
    Examples:
      drainkit lab --demo
      drainkit lab --redis-url redis://localhost:6379/0 --stream my:stream
      drainkit lab my-notebooks -- --port=9999
      drainkit lab --run reports/20260101T000000Z-live-0a1b2c
    """
    from ..evidence.seal import is_sealed
    from ..pipeline.notebooks import check_installed, copy_to, of_sealed
    from ..settings.config import config_variable, kernel_variables

    check_installed()
    home = Path(folder)
    further = ["--no-browser"] * no_browser + list(ctx.obj)
    others = [*flags.values(), sealed if is_demo else None]
    if (is_demo or sealed is not None) and any(value is not None for value in others):
        alone = "--demo" if is_demo else "--run"
        raise UsageError(f"{alone} has settings of its own; leave the others out")
    if sealed is not None and not is_sealed(sealed):
        raise UsageError(f"--run {sealed} is not a sealed run; name its folder or URL")
    variables: dict[str, str] = {}
    with ExitStack() as stack_:
        if is_demo:
            from ..demo import EmbeddedServer

            for name in [name for name in os.environ if name.startswith("DRAINKIT_")]:
                del os.environ[name]  # the demo's settings are all there is
            embedded = stack_.enter_context(EmbeddedServer(binary))
            settings = _filled(embedded, _DEMO_REPORTS, as_json=True)
            embedded.outlive_exec()
            variables = kernel_variables(settings)
        elif sealed is None:
            settings = settings_of(flags)
            os.environ.update(config_variable())
            with connected(settings):  # before a person waits for a browser
                variables = kernel_variables(settings)
        done = copy_to(home, keep=True)
        for name in done.kept:
            tell(f"{name} in {folder} was changed, and stays as it is", err=True)
        if sealed is not None:
            further.append(of_sealed(sealed, home))
        _become_lab(home, variables, further)


def _become_lab(home: Path, variables: dict[str, str], further: list[str]) -> None:
    """Replace this process by JupyterLab in `home`; its kernels get the variables."""
    # -P: no module that lies in the folder is Lab's (a calendar.py), and so reads the URL
    program = [sys.executable, "-P", "-m", "jupyterlab", *further]
    os.environ.update(variables)
    if not IS_BLAS_GIVEN:
        os.environ.pop(BLAS_THREADS, None)
    if os.geteuid() == 0 and "--allow-root" not in further:
        tell("JupyterLab refuses root: be another user, or end the command with -- --allow-root",
             err=True)  # fmt: skip
    os.chdir(home)
    os.execv(program[0], program)  # noqa: S606 - a list, and no shell


def _filled(embedded: EmbeddedServer, reports_dir: str, *, as_json: bool) -> Settings:
    """The demo's settings, once the server holds the sample backlog; shows its state."""
    from .. import demo
    from ..operations.first import as_text
    from ..operations.state import baseline
    from ..server.connection import Server

    settings = demo.settings_of(embedded.url, reports_dir)
    with Server(embedded.url, settings.stream) as server:
        demo.fill(server, stream=settings.stream, group=settings.consumer_group,
                     consumer=settings.consumer_name)  # fmt: skip
        tell(*as_text(baseline(server)), "", err=as_json)
    return settings
