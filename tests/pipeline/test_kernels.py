"""A run's kernels: forked, apart from each other, gone with the run."""

from __future__ import annotations

import os
import signal

import psutil

from drainkit.pipeline.kernels import Kernels
from drainkit.pipeline.warm import Forked


def test_kernels_are_apart_and_end_with_the_run() -> None:
    """Each kernel has a session of its own, one may die, and none outlives the run."""
    with Kernels(dict(os.environ)) as kernels:
        managers = [kernels.start() for _ in range(2)]
        first, second = (manager.provisioner.process for manager in managers)
        assert isinstance(first, Forked)
        assert len({os.getsid(pid) for pid in (os.getpid(), first.pid, second.pid)}) == 3
        first.send_signal(signal.SIGKILL)
        assert first.wait(10) is None
        assert first.poll() == 0
        assert second.poll() is None
    gone, _ = psutil.wait_procs([second], timeout=30)
    assert gone
    for manager in managers:
        kernels.end(manager)
