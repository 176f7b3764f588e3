"""A stream in parts, each of which a process of its own can load: Dask, Ray, a process pool."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..core.events import Decoder
from ..core.frame import decide_frame, load_frame
from ..core.policy import Policy
from ..errors import UsageError
from ..server import reading, scopes
from ..server.connection import Server
from ..server.counting import split
from ..settings import Fields, Settings
from ..settings.config import load

if TYPE_CHECKING:
    import pandas as pd

BASE = (
    "id", "event_time", "time_source", "symbol", "side", "source", "confidence", "invalid",
    "missing",
)  # fmt: skip
DECIDED = ("age_sec", "action", "failed")
_OPEN = ("symbol", "side", "source")  # their values differ from part to part


@dataclass(frozen=True)
class Lens:
    """How all parts are looked at: field names, policy, and the moment that ages refer to."""

    fields: Fields
    policy: Policy
    at_us: int  # microseconds since the epoch

    @classmethod
    def of(cls, server: Server, settings: Settings) -> Lens:
        """As the settings and the server say now; the allowlist is read once."""
        at_us = server.now_us() if settings.as_of_us is None else settings.as_of_us
        policy = Policy(settings.max_age_min, scopes.allowlist(server, settings), settings.min_conf)
        return cls(settings.fields, policy, at_us)


@dataclass(frozen=True)
class IdRange:
    """A part of a stream: the entries from `first` to `last`, both included.

    `lens` comes from `ranges`, so that all parts are decided alike wherever they are loaded;
    without it the settings and the moment of the process that loads the part count.
    """

    stream: str
    first: str
    last: str
    lens: Lens | None = field(default=None, repr=False)


def ranges(url_env: str, stream: str, n: int) -> list[IdRange]:
    """The stream as it is now in `n` equal parts; its ids are counted once.

    `url_env` is the name of the environment variable that holds the server's URL (a replica will
    do). Every entry lies in exactly one part; a part may be empty. Policy (`max_age_min`,
    `min_conf`, `allowlist`) and field names are those of `drainkit.toml` and the environment here.
    Raises UsageError for a wrong argument, RefusedError where there is no such stream.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise UsageError(f"ranges: n must be a number of parts, 1 or more (not {n!r})")
    with Server.of(settings := _settings(url_env, stream)) as server:
        parts = split(server, n)
        lens = Lens.of(server, settings)
    return [IdRange(stream, first, last, lens) for first, last in parts]


def load_range(
    part: IdRange, url_env: str = "DRAINKIT_REDIS_URL", columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """One part as a DataFrame with the columns of `Analysis.frame`, or just `columns`; reads only.

    Every part has the same column types: `symbol`, `side` and `source` are texts here, because
    their categories would differ from part to part; `time_source`, `invalid`, `action` and `failed`
    are categories, the same ones in each. What was trimmed since is not in it. It works as
    `dask.dataframe.from_map(drainkit.load_range, drainkit.ranges(...))`.
    """
    wanted = _columns(columns)
    settings = _settings(url_env, part.stream)
    with Server.of(settings, part.stream) as server:
        lens = part.lens or Lens.of(server, settings)
        pages = reading.pages(server, server.stream, part.first, part.last, ahead=True)
        frame = load_frame(pages, Decoder(lens.fields))
    if set(wanted) & set(DECIDED):
        decided = decide_frame(frame, lens.policy, lens.at_us)
        for name in DECIDED:
            frame[name] = decided[name]
    for name in set(wanted) & set(_OPEN):
        frame[name] = frame[name].astype(frame["id"].dtype)
    return frame[wanted]


def _columns(columns: Sequence[str] | None) -> list[str]:
    known = (*BASE, *DECIDED)
    wanted = list(known) if columns is None else [*columns]
    for name in wanted:
        if name not in known:
            raise UsageError(f"load_range: no column {name}; there are {known}")
    return wanted


def _settings(url_env: str, stream: str) -> Settings:
    """The settings of this process, for the server that the variable names."""
    if "://" in url_env:
        raise UsageError("url_env takes the name of an environment variable, never a URL")
    url = os.environ.get(url_env)
    if not url:
        raise UsageError(f"the environment variable {url_env} is not set; set it")
    return load({"redis_url": url, "stream": stream})
