"""drainkit: drain a stale Redis stream backlog safely, and keep the evidence.

    from drainkit import Server, dry_run, load_settings, resolve

    settings = load_settings({"allowlist": "BTCUSDT,ETHUSDT"})
    with Server.of(settings) as server:
        print(dry_run(server, resolve(server, settings)))

Names are imported when they are first used, so that `drainkit --help` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import load as load_settings
    from .core.events import Decoder, Events
    from .core.policy import ACTIONS, Policy, decide
    from .core.summary import Summary, new_run_id
    from .draining.dry import dry_run
    from .draining.job import resolve
    from .errors import DrainkitError, RefusedError, UnreachableError, UsageError
    from .operations.ranges import IdRange, load_range, ranges
    from .server.connection import Server
    from .settings import Settings

__all__ = [
    "ACTIONS",
    "Decoder",
    "DrainkitError",
    "Events",
    "IdRange",
    "Policy",
    "RefusedError",
    "Server",
    "Settings",
    "Summary",
    "UnreachableError",
    "UsageError",
    "decide",
    "dry_run",
    "load_range",
    "load_settings",
    "new_run_id",
    "ranges",
    "resolve",
]

_HOMES = {
    "core.events": ("Decoder", "Events"),
    "core.policy": ("ACTIONS", "Policy", "decide"),
    "core.summary": ("Summary", "new_run_id"),
    "draining.dry": ("dry_run",),
    "draining.job": ("resolve",),
    "errors": ("DrainkitError", "RefusedError", "UnreachableError", "UsageError"),
    "operations.ranges": ("IdRange", "load_range", "ranges"),
    "server.connection": ("Server",),
    "settings": ("Settings",),
}


def __getattr__(name: str) -> Any:
    if name == "load_settings":
        return import_module(".config", __name__).load
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
