"""Garbage collection pauses while a verb reads, and is as it was afterwards."""

from __future__ import annotations

import gc
import subprocess
import sys
from contextlib import suppress

import pytest

from drainkit.late import collection_paused


@pytest.mark.parametrize("enabled", [True, False])
def test_it_is_as_it_was_also_after_an_error(enabled: bool) -> None:
    """Within the block nothing is collected; afterwards it is on or off as before."""
    if not enabled:
        gc.disable()
    try:
        with suppress(ZeroDivisionError), collection_paused():
            assert not gc.isenabled()
            raise ZeroDivisionError
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def printed(code: str) -> list[str]:
    """What an interpreter of its own prints."""
    said = subprocess.run([sys.executable, "-c", code], input="", capture_output=True, text=True,
                          timeout=60, check=True)  # fmt: skip
    return said.stdout.split()


def test_a_kernels_imports_are_frozen_and_few() -> None:
    """What a kernel imports is never walked again; a grammar that nobody needs is not built."""
    code = (
        "import gc, sys; from drainkit.views import forking; forking.main(); "
        "print(gc.get_freeze_count(), gc.isenabled(), 'nbformat' in sys.modules, "
        "'lark' in sys.modules, 'rfc3987_syntax' in sys.modules)"
    )
    frozen, *rest = printed(code)
    assert int(frozen) > 50_000
    assert rest == ["True", "True", "False", "False"]


def test_all_of_arrow_takes_the_systems_allocator() -> None:
    """Also its Parquet files, which do not heed `set_memory_pool`."""
    code = (
        "from drainkit.late import give_back_buffers; give_back_buffers()\n"
        "import io, pyarrow as pa; from pyarrow import parquet\n"
        "parquet.write_table(pa.table({'a': range(10_000)}), io.BytesIO())\n"
        "own = [getattr(pa, f'{name}_memory_pool') for name in pa.supported_memory_backends() "
        "if name != 'system']\n"
        "print(pa.system_memory_pool().max_memory() > 0, sum(pool().max_memory() for pool in own))"
    )
    assert printed(code) == ["True", "0"]
