"""What is heavy, made light: large packages imported late, memory given back while reading."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any


class _Late:
    """A module that is imported when something of it is first used: often none is."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(import_module(self._name), attribute)
        setattr(self, attribute, found)  # from now on it is simply there
        return found


def late(package: str, *names: str) -> list[Any]:
    """Modules of a package of drainkit, imported when something of them is first used."""
    return [_Late(f"{package}.{name}") for name in names]


if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc
else:
    pd, pa, pc = _Late("pandas"), _Late("pyarrow"), _Late("pyarrow.compute")

__all__ = ["collection_paused", "give_back_buffers", "give_back_freed", "late", "pa", "pc", "pd"]


@contextmanager
def collection_paused() -> Iterator[None]:
    """No garbage collection within the block (also a decorator); then it is as it was before.

    Millions of new, acyclic objects make the collector walk the whole heap again and again, and the
    heap of a notebook holds pandas and plotly: it cost a quarter of a run.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def give_back_buffers() -> None:
    """From now on Arrow takes its buffers from the system's allocator, and has one thread.

    Its own allocator keeps what was freed, and each thread has a heap: 100 MB for each process.
    """
    # its Parquet files heed this alone, and only if it is set when Arrow is imported
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
    # the thread of the other one: from Python 3.12 on a fork beside a thread is warned of
    os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"
    pa.set_memory_pool(pa.system_memory_pool())
    pa.set_cpu_count(1)


def give_back_freed() -> None:
    """Give the system back now what was freed in between, as far as its allocator can.

    By itself the allocator gives back the end of its heap alone: 50 MB stay after a million
    entries were read.
    """
    pa.default_memory_pool().release_unused()  # of the system's allocator: malloc_trim
