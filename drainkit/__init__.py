"""drainkit: drain a stale Redis stream backlog safely, and keep the evidence.

    from drainkit import Server, dry_run, load_settings, resolve

    settings = load_settings({"allowlist": "BTCUSDT,ETHUSDT"})
    with Server.of(settings) as server:
        print(dry_run(resolve(server, settings)))

The house: an owner for each concept, and folders that say what their code may touch. Each imports
only from those before it (a test holds it).

    late.py        large packages imported late, memory given back while reading
    safe.py        texts from outside made fit to show; passwords struck out
    errors.py      one class for each exit code; what is told in it made fit to show
    ids.py         entry ids as Redis orders them
    files.py       the only writer of files: whole, or not at all
    signing.py     the only caller of ssh-keygen: signatures made and checked
    settings/      every parameter once, with all that its users need to know of it
    core/          decides, and touches nothing: no Redis, no clock, no files
    server/        the only code that talks to Redis; writing.py alone changes anything there
    draining/      dry run and live drain, by hand or by a timer
    operations/    what an operator asks between drains
    evidence/      seals a run's folder, verifies it later, signs it
    demo.py        a sample backlog on a private server
    views/         what each notebook shows; runs inside a kernel
    pipeline/      runs the notebooks in kernels, writes the report, closes the evidence
    cli/           parse, call one verb, print, exit

Names are imported when they are first used, so that `drainkit --help` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .draining.dry import dry_run
    from .draining.run import resolve
    from .errors import DrainkitError, RefusedError, UnreachableError, UsageError
    from .operations.events import IdRange, load_range, ranges
    from .server.connection import Server
    from .settings import Settings
    from .settings import load as load_settings

__all__ = [
    "DrainkitError", "IdRange", "RefusedError", "Server", "Settings", "UnreachableError",
    "UsageError", "dry_run", "load_range", "load_settings", "ranges", "resolve",
]  # fmt: skip
_HOMES = {
    "draining.dry": ("dry_run",),
    "draining.run": ("resolve",),
    "errors": ("DrainkitError", "RefusedError", "UnreachableError", "UsageError"),
    "operations.events": ("IdRange", "load_range", "ranges"),
    "server.connection": ("Server",),
    "settings": ("Settings",),
}


def __getattr__(name: str) -> Any:
    if name == "load_settings":
        return import_module(".settings", __name__).load
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
