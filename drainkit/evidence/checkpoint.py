"""A keeper's checkpoint: three lines, kept by somebody else, that a chain must go on from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..files import read_plain, write_text
from .statement import Link

_FORM = re.compile(r"drainkit checkpoint v1\n([1-9]\d{0,8})\n([0-9a-f]{64})\n?")


def read(path: Path) -> tuple[int, str] | None:
    """How many runs there were, and the newest one's digest; None where there is no file."""
    try:
        found = _FORM.fullmatch(read_plain(path.resolve()).decode("ascii"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        found = None
    if found is None:
        raise UsageError(f"--checkpoint {path} is not a drainkit checkpoint")
    return int(found[1]), found[2]


def findings(known: tuple[int, str] | None, chain: Sequence[Link]) -> list[str]:
    """What became of the run that the checkpoint names, if it is not where it was."""
    if known is None:
        return []
    place, digest = known
    if place <= len(chain) and chain[place - 1]["statement_sha256"] == digest:
        return []
    what = f"the checkpoint's run {place:,} (statement {digest[:12]}...)"
    for at, link in enumerate(chain, 1):
        if link["statement_sha256"] == digest:
            changed = "removed before it" if at < place else "put in before it"
            return [f"{what} is run {at:,} now, {link['run_id']}: {changed}"]
    if len(chain) < place:
        return [
            f"removed: {what} is not in the chain, which has {len(chain):,} runs; "
            f"{place - len(chain):,} were removed, or the chain was made anew"
        ]
    return [
        f"made anew: {what} is not in the chain, whose run {place:,} is "
        f"{chain[place - 1]['run_id']}; a run up to there was changed, put in between, put in "
        "another order or removed, and the rest sealed anew"
    ]


def move_on(path: Path, chain: Sequence[Link]) -> None:
    """Name the newest run of a chain that is well."""
    write_text(path, f"drainkit checkpoint v1\n{len(chain)}\n{chain[-1]['statement_sha256']}\n")
