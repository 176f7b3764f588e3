"""What browser tests share: a Chromium that reaches one place only, and events that try to act."""

from __future__ import annotations

import json
import time

from books import seed
from conftest import Fill
from playwright.sync_api import Browser, Page, Request
from servers import Server

HOSTILE = (
    "<script>window.pwned=1</script>",
    "<img/src=x/onerror=window.pwned=1>",
    "<a/href='javascript:window.pwned=1'>x</a>",
    '"><svg/onload=window.pwned=1>',
    "=HYPERLINK('http://203.0.113.9')",
    "</script><script>window.pwned=1</script>",
)


class Watched:
    """A page that reaches only `inside`, and remembers what went wrong."""

    def __init__(self, browser: Browser, inside: str) -> None:
        self.page: Page = browser.new_page(viewport={"width": 1200, "height": 1600})
        self.outside: list[str] = []
        self.failed: list[str] = []
        self.errors: list[str] = []
        self._inside = inside
        self.page.route("**/*", self._decide)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("requestfailed", self._note)

    def _decide(self, route: object, request: Request) -> None:
        if request.url.startswith((self._inside, "data:", "blob:")):
            route.continue_()  # type: ignore[attr-defined]
        else:
            self.outside.append(request.url)
            route.abort()  # type: ignore[attr-defined]

    def _note(self, request: Request) -> None:
        self.failed.append(request.url)


def hostile_backlog(server: Server, stream: str, fill: Fill) -> None:
    """A recent backlog in which symbols, sides and sources try to get out of their place."""
    seed(server, stream, fill, 400)
    now = int(time.time() * 1000)
    entries = []
    for i, text in enumerate(HOSTILE * 10):
        event = {"symbol": text.replace(" ", ""), "side": text, "source": text + "\u202e\x1b[31m"}
        fields = {"payload": json.dumps({**event, "confidence": 0.9})}
        entries.append((now + i, fields))
    entries.append((now + 1000, {"payload": "<script>window.pwned=1</script>"}))
    fill(server, stream, entries)
