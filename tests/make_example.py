"""Makes reports/example: the original report's drain, replayed.

Run it in a checkout with the development environment:  .venv/bin/python tests/make_example.py
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from pathlib import Path

import redis
from backlogs import GROUP, fill, original_backlog

from drainkit.demo import EmbeddedServer
from drainkit.evidence import seal
from drainkit.pipeline import runner
from drainkit.settings import build

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "reports" / "example"
MAKING = ROOT / "reports" / "making"  # a folder of its own: the example follows no other run


def main() -> None:
    os.chdir(ROOT)
    # the example says nothing of the machine that made it
    socket.gethostname = lambda: "example-host"
    seal.os_user = lambda: "operator"
    folder = replay()
    shutil.rmtree(EXAMPLE, ignore_errors=True)
    folder.rename(EXAMPLE)
    shutil.rmtree(MAKING)


def replay() -> Path:
    """The drain of the original report on a server of its own; answers the evidence folder."""
    with EmbeddedServer() as embedded:
        # a path that is the same wherever the example is made
        settings = build(
            {
                "mode": "live",
                "redis_url": embedded.url,
                "allowlist": "BTCUSDT,ETHUSDT,SOLUSDT,RENDERUSDT",
                "as_of": "2025-12-24T19:49:58+00:00",
                "operator": "operator",
                "reports_dir": str(MAKING.relative_to(ROOT)),
            }
        )
        with redis.Redis.from_url(embedded.url) as client:
            position = "1766594572014-0"
            fill(client, settings.stream, original_backlog(), group=GROUP, position=position)
        result = runner.run(settings, confirm=lambda *_: None, on_line=print)
    if result["exit_code"] != 0:
        sys.exit(str(result.get("error")))
    return Path(result["evidence"])


if __name__ == "__main__":
    main()
