"""Who works on a folder: a lock on the folder itself, which ends with its holder.

The run and the kernel of its live notebook hold a run's folder together (the kernel outlives a
killed run by a moment); who closes or removes it must hold it alone.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from ..errors import RefusedError


@contextmanager
def locked(folder: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """While this lasts, the folder is locked."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, how)
        yield
    finally:
        os.close(handle)


def working_on(run_dir: Path) -> AbstractContextManager[None]:
    """While this lasts, nobody closes the folder."""
    return locked(run_dir, fcntl.LOCK_SH)


@contextmanager
def alone_with(run_dir: Path) -> Iterator[None]:
    """Refuses a folder that somebody works on; while this lasts, nobody else does."""
    with ExitStack() as held:
        try:
            held.enter_context(locked(run_dir, fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError:
            raise RefusedError(
                f"{run_dir.name} is being worked on; wait until that run has ended"
            ) from None
        yield
