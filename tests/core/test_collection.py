"""Garbage collection pauses while a verb reads, and is as it was afterwards."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from drainkit.core.events import Decoder
from drainkit.core.frame import load_frame
from drainkit.late import collection_paused


@pytest.mark.parametrize("enabled", [True, False])
def test_it_is_as_it_was_also_after_an_error(enabled: bool) -> None:
    """Within nothing is collected; afterwards it is on or off as before, whatever happened."""
    if not enabled:
        gc.disable()

    @collection_paused()
    def failing() -> None:
        assert not gc.isenabled()
        raise ZeroDivisionError

    try:
        with pytest.raises(ZeroDivisionError):
            failing()
        assert gc.isenabled() is enabled
    finally:
        gc.enable()


def test_reading_a_frame_is_not_collected() -> None:
    """Pages are decoded while the collector pauses."""
    seen = []

    def pages() -> Iterator[list[list[object]]]:
        seen.append(gc.isenabled())
        yield [[b"1-0", [b"symbol", b"BTCUSDT"]]]

    assert len(load_frame(pages(), Decoder())) == 1  # type: ignore[arg-type]
    assert seen == [False]
    assert gc.isenabled()


def test_a_kernels_imports_are_frozen_and_few() -> None:
    """What a kernel imports is never walked again; a grammar that nobody needs is not built."""
    code = (
        "import gc, sys; from drainkit.views import forking; forking.main(); "
        "print(gc.get_freeze_count(), gc.isenabled(), 'nbformat' in sys.modules, "
        "'lark' in sys.modules, 'rfc3987_syntax' in sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], input="", capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    frozen, *rest = said.stdout.split()
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
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert said.stdout.split() == ["True", "0"]
