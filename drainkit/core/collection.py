"""Python's garbage collection, out of the way of reading.

Millions of new, acyclic objects make the collector walk the whole heap again and again, and the
heap of a notebook holds pandas and plotly: it cost a quarter of a run.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """No collection within the block (also a decorator); afterwards it is as it was before."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
