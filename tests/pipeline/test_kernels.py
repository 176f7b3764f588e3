"""A run's kernels: forked, apart from each other, gone with the run."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import psutil
import pytest
from servers import wait_until

from drainkit.pipeline.kernels import Forked, Kernels


def test_kernels_are_apart_and_end_with_the_run() -> None:
    """Each kernel has a session of its own, one may die, and none outlives the run."""
    with Kernels() as kernels:
        managers = [kernels.start(os.environ) for _ in range(2)]
        first, second = (manager.provisioner.process for manager in managers)
        assert isinstance(first, Forked)
        assert len({os.getsid(pid) for pid in (os.getpid(), first.pid, second.pid)}) == 3
        first.send_signal(signal.SIGKILL)
        assert first.wait(10) is None
        assert first.poll() == 0
        assert second.poll() is None
    wait_until("it ended", lambda: has_ended(second))
    for manager in managers:
        kernels.end(manager)


def test_a_kernel_that_still_starts_ends_with_the_run(tmp_path: Path) -> None:
    """A kernel ends with its run from its first moment on, not only once it answers."""
    startup = tmp_path / "profile_default" / "startup"
    startup.mkdir(parents=True)
    seen = tmp_path / "seen"
    (startup / "00.py").write_text(f"open({str(seen)!r}, 'w')\nimport time\ntime.sleep(100)")
    with Kernels() as kernels:
        manager = kernels.start({**os.environ, "IPYTHONDIR": str(tmp_path)})
        wait_until("it starts", seen.exists, timeout_sec=60)
    wait_until("it ended", lambda: has_ended(manager.provisioner.process))
    kernels.end(manager)


def test_a_parent_that_was_killed_has_a_successor() -> None:
    """A killed parent ends its kernels, and the run of the next stream has kernels all the same."""
    with Kernels() as kernels:
        first = kernels.start(os.environ)
        psutil.Process(first.provisioner.process.ppid()).kill()
        wait_until("it ended", lambda: has_ended(first.provisioner.process))
        second = kernels.start(os.environ)
        assert second.provisioner.process.poll() is None
        for manager in (first, second):
            kernels.end(manager)


def has_ended(process: psutil.Process) -> bool:
    """Whether a process ended; its zombie counts, for the system may be slow to take it away."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("is_short", [True, False])
def test_a_kernel_takes_no_tcp_port_that_another_program_may_take_first(
    monkeypatch: pytest.MonkeyPatch, is_short: bool
) -> None:
    """A kernel listens on files of the run's own; on ports only where names would be too long."""
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        scratch = Path(short, "" if is_short else "x" * 100)
        scratch.mkdir(exist_ok=True)
        monkeypatch.setattr(tempfile, "tempdir", str(scratch))
        with Kernels() as kernels:
            manager = kernels.start(os.environ)
            kernel = psutil.Process(manager.provisioner.process.pid)

            def files() -> set[str]:
                places = {one.laddr for one in kernel.net_connections("unix")}
                return {place for place in places if place.startswith(str(scratch))}

            def ports() -> int:
                return len(kernel.net_connections("tcp"))

            wait_until("it listens", lambda: len(files()) == 5 or ports() > 5, timeout_sec=30)
            assert bool(files()) == is_short
            kernels.end(manager)
        assert not [*scratch.iterdir()]
