"""What is started beside a run: its kernels, forked, apart from each other, and gone with it; and
the demo's server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
from jupyter_core.utils import run_sync
from servers import wait_until

from drainkit.pipeline.kernels import Forked, Kernels


def has_ended(process: psutil.Process) -> bool:
    """Whether a process ended; its zombie counts, for the system may be slow to take it away."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_kernels_are_apart_and_end_with_the_run(tmp_path: Path) -> None:
    """Each has a session of its own and listens on files of the run's, not on a port that another
    program may take first; one may die, and none outlives the run, from its first moment on, before
    it answers. A killed parent ends its kernels, and the next one has a new parent."""
    startup = tmp_path / "profile_default" / "startup"
    startup.mkdir(parents=True)
    seen = tmp_path / "seen"
    (startup / "00.py").write_text(f"open({str(seen)!r}, 'w')\nimport time\ntime.sleep(100)")
    with Kernels() as kernels:
        managers = [kernels.start(os.environ) for _ in range(2)]
        first, second = (manager.provisioner.process for manager in managers)
        assert isinstance(first, Forked)
        assert len({os.getsid(pid) for pid in (os.getpid(), first.pid, second.pid)}) == 3

        def files() -> set[str]:
            places = {str(one.laddr) for one in second.net_connections("unix")}
            return {place for place in places if "/drainkit-" in place}

        wait_until("it listens", lambda: len(files()) == 5, timeout_sec=30)
        first.send_signal(signal.SIGKILL)
        assert first.wait(10) is None
        assert first.poll() == 0
        assert second.poll() is None
        (parent := psutil.Process(second.ppid())).kill()
        wait_until("they ended", lambda: has_ended(parent) and has_ended(second))
        managers.append(kernels.start({**os.environ, "IPYTHONDIR": str(tmp_path)}))
        wait_until("it starts", seen.exists, timeout_sec=60)
    wait_until("it ended", lambda: has_ended(managers[-1].provisioner.process))
    for manager in managers:
        run_sync(manager.shutdown_kernel)(now=True)


def test_the_embedded_server_is_private_and_gone_with_its_parent() -> None:
    """Nobody but this user reaches the demo's server: no TCP port, a private folder. SIGKILL of the
    process that started it ends the server, and its folder is removed."""
    code = (
        "from drainkit.demo import EmbeddedServer\nimport time\n"
        "with EmbeddedServer() as server:\n print(server.url, flush=True)\n time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    url = parent.stdout.readline()
    folder = Path(url.removeprefix("unix://").partition("?")[0]).parent
    started = psutil.Process(parent.pid).children(recursive=True)
    assert str(folder) in {process.cwd() for process in started}
    assert folder.stat().st_mode & 0o077 == 0
    assert not [c for p in started for c in p.net_connections("inet") if c.status == "LISTEN"]
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    wait_until("the server is gone", lambda: all(map(has_ended, started)))
    wait_until("its folder is gone", lambda: not folder.exists())


def test_a_kernels_imports_are_frozen_and_few() -> None:
    """What a kernel imports is never walked again; a grammar that nobody needs is not built. All of
    Arrow takes the system's allocator, its Parquet files too, which heed no `set_memory_pool`."""
    code = (
        "import gc, sys; from drainkit.views import forking; forking.main()\n"
        "print(gc.get_freeze_count(), gc.isenabled(), 'nbformat' in sys.modules, "
        "'lark' in sys.modules, 'rfc3987_syntax' in sys.modules)\n"
        "import io, pyarrow as pa; from pyarrow import parquet\n"
        "parquet.write_table(pa.table({'a': range(10_000)}), io.BytesIO())\n"
        "own = [getattr(pa, f'{name}_memory_pool') for name in pa.supported_memory_backends() "
        "if name != 'system']\n"
        "print(pa.system_memory_pool().max_memory() > 0, sum(pool().max_memory() for pool in own))"
    )
    said = subprocess.run([sys.executable, "-c", code], input="", capture_output=True, text=True,
                          timeout=60, check=True)  # fmt: skip
    frozen, *rest = said.stdout.split()
    assert int(frozen) > 50_000
    assert rest == ["True", "True", "False", "False", "True", "0"]
