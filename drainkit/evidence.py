"""All writing of files: run folder, plan, statement, verify."""

from __future__ import annotations

import datetime as dt
import secrets


def new_run_id(mode: str, now_us: int) -> str:
    """YYYYMMDDTHHMMSSZ-<mode>-<6 hex>, from the server's time."""
    now = dt.datetime.fromtimestamp(now_us // 1_000_000, tz=dt.UTC)
    return f"{now:%Y%m%dT%H%M%SZ}-{mode}-{secrets.token_hex(3)}"
