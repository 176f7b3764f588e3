"""Who works on a run's folder: a lock on the folder itself, which ends with its holder.

The run and the kernel of its live notebook hold it together (the kernel outlives a killed run by
a moment); who closes or removes the folder must hold it alone.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import RefusedError
from ..safe import one_line


@contextmanager
def working_on(run_dir: Path) -> Iterator[None]:
    """While this lasts, nobody closes the folder."""
    handle = os.open(run_dir, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


@contextmanager
def alone_with(run_dir: Path) -> Iterator[None]:
    """Refuses a folder that somebody works on; while this lasts, nobody else does."""
    handle = os.open(run_dir, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(
                f"{one_line(run_dir.name)} is being worked on; wait until that run has ended"
            ) from None
        yield
    finally:
        os.close(handle)
