"""For every interpreter that a test starts: nbformat is imported in a tenth of its time.

As drainkit.pipeline.kernels: jsonschema would build a grammar, 1.5 s of CPU.
"""

import sys

sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
