"""The parent of a run's kernels: it imports once what each of them would import.

It reads from stdin, a line for each kernel, its arguments and environment; it forks the kernel and
prints its process id. It ends when its stdin does, with the run, however that ended; its kernels
end with it.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
from importlib import import_module

#: What a kernel imports beside what our modules do.
IMPORTED = (
    "nbformat", "ipykernel.kernelapp", "ipykernel.debugger", "IPython.core.completerlib",
    "IPython.core.oinspect", "IPython.extensions.storemagic", "pyarrow.pandas_compat", "sqlite3",
    "tornado.platform.asyncio", "tornado.queues",
)  # fmt: skip


def main() -> None:
    """Import, then fork a kernel for each line of stdin."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they are for the run, which blocked them here
        signal.signal(number, lambda *_: None)  # and not SIG_IGN: a kernel's own programs get it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    from ..late import give_back_buffers

    give_back_buffers()  # before anything else imports Arrow
    # as in pipeline.notebooks; and nobody debugs these kernels, each of which would import debugpy
    for unwanted in ("rfc3987_syntax", "debugpy"):
        sys.modules.setdefault(unwanted, None)  # type: ignore[arg-type]
    for name in IMPORTED:
        import_module(name)
    from ipykernel.kernelapp import IPKernelApp

    from . import analyse_backlog, dry_run, live_drain, verify  # noqa: F401
    from .session import macros

    macros()  # made by the first figure and the first table of a process
    sys.modules.pop("rfc3987_syntax")
    signal.signal(signal.SIGUSR1, live_drain.stop)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    gc.collect()
    gc.freeze()  # the kernels' collectors leave all this alone
    its_end, life = os.pipe()  # nobody writes: it ends when this process does
    for line in sys.stdin:
        arguments, env = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.close(life)
            # ipykernel has a thread for this too, but only once its kernel is made
            threading.Thread(target=_end_with_parent, args=[its_end], daemon=True).start()
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for standard in range(3):
                os.dup2(null, standard)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.environ.clear()
            os.environ.update(env)
            IPKernelApp.launch_instance(argv=arguments)
            sys.exit()
        try:
            print(pid, flush=True)
        except BrokenPipeError:
            os._exit(1)  # the run was killed meanwhile


def _end_with_parent(its_end: int) -> None:
    os.read(its_end, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
