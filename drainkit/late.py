"""Large packages, imported when something of them is first used: a command mostly needs none."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc
else:

    class _Late:
        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            found = getattr(import_module(self._name), attribute)
            setattr(self, attribute, found)  # from now on it is simply there
            return found

    pd, pa, pc = _Late("pandas"), _Late("pyarrow"), _Late("pyarrow.compute")

__all__ = ["pa", "pc", "pd"]
