"""Garbage collection pauses while a verb reads, and is as it was afterwards."""

from __future__ import annotations

import gc
import subprocess
import sys
from contextlib import suppress

from drainkit.late import collection_paused


def test_it_is_as_it_was_also_after_an_error() -> None:
    """Within the block nothing is collected; afterwards it is on or off as before."""
    with collection_paused():  # so within this one it was off before
        with suppress(ZeroDivisionError), collection_paused():
            raise ZeroDivisionError
        assert not gc.isenabled()
    assert gc.isenabled()


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
