"""A stream in parts: every entry in one part, about equal, loaded anywhere, decided alike."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pandas as pd
import pytest
from backlogs import GROUP, backlog, fill, now_ms, seed
from books import ask, everything, make_user
from clusters import SentinelSetup
from conftest import Cli, intent, lacking
from servers import Server

import drainkit
from drainkit import IdRange, RefusedError, UsageError, load_range, load_settings, ranges
from drainkit.core.events import Decoder
from drainkit.core.frame import decide_frame, load_frame
from drainkit.ids import LAST_ID, id_key
from drainkit.server import reading

URL = "SCALE_TEST_URL"
TEXTS = ["symbol", "side", "source"]


@pytest.fixture
def url(valkey: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The clean Valkey, its URL in the environment."""
    monkeypatch.setenv(URL, valkey.url)
    return valkey


def assert_same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Equal row for row, and in the order of the columns; texts may be categories there."""
    for name in TEXTS:
        expected[name] = expected[name].astype(found[name].dtype)
    pd.testing.assert_frame_equal(found.reset_index(drop=True), expected)


N = 3_000
MONTH_MS = 2_592_000_000
#: Ids of many kinds of stream, by the time of now in ms.
SHAPES: dict[str, Callable[[int], list[str]]] = {
    "even": lambda now: [f"{now - N + i}-0" for i in range(N)],
    "one millisecond": lambda now: [f"{now}-{i}" for i in range(N)],
    "no times": lambda now: [f"{i}-1" for i in range(1, N)],
    "bursts in a quiet month": lambda now: [
        f"{now - MONTH_MS + ms}-7" for ms in sorted(
            {*random.Random(1).sample(range(MONTH_MS), 200),
             *range(700_000_000, 700_001_500), *range(2_000_000_000, 2_000_001_500)}
        )
    ],
    **{f"{n}": lambda now, n=n: [f"{now + i}-0" for i in range(n)] for n in (0, 1, 5)},
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_parts_are_of_equal_size(url: Server, stream: str, shape: str) -> None:
    """Each entry is in exactly one of n parts, in order, and no part is larger than another by two;
    an empty one has every column, and what is added later is in none."""
    ids = SHAPES[shape](now_ms(url))
    fill(url, stream, [(one, intent()) for one in ids], group=GROUP)
    before = everything(url)
    parts = ranges(URL, stream, 6)
    assert everything(url) == before
    fill(url, stream, [(id_key(ids[-1])[0] + 1 if ids else 1, intent())])
    frames = [load_range(part, URL) for part in parts]
    assert [entry_id for frame in frames for entry_id in frame["id"]] == ids
    assert max(map(len, frames)) - min(map(len, frames)) < 2
    assert len({tuple(frame.dtypes.astype(str).items()) for frame in frames}) == 1


def test_who_only_reads_may_split_and_load(
    sentinel: SentinelSetup, stream: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The read-only user can do all of it, and on a replica too."""
    fill(sentinel.primary, stream, [(i, intent()) for i in range(1, 101)], group=GROUP)
    ask(sentinel.primary, "WAIT", 1, 5000)
    url = make_user(cli, sentinel.primary, stream, "analyst")
    for one in (url, sentinel.replica.url):
        monkeypatch.setenv(URL, one)
        assert sum(len(load_range(part, URL)) for part in ranges(URL, stream, 3)) == 100


def test_parts_are_decided_alike(url: Server, stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Policy and moment are those of `ranges`, not of the process that loads; by hand its own."""
    monkeypatch.setenv("DRAINKIT_MAX_AGE_MIN", "0.001")
    monkeypatch.setenv("DRAINKIT_AS_OF", "2030-01-01T00:00:00")
    seed(url, stream, 30, delivered=0)
    (part,) = ranges(URL, stream, 1)
    monkeypatch.delenv("DRAINKIT_MAX_AGE_MIN")
    monkeypatch.delenv("DRAINKIT_AS_OF")
    frame = load_range(part, URL)
    assert set(frame["action"]) == {"dropped_old"}
    assert frame["age_sec"].min() > 86_400 * 30
    by_hand = load_range(IdRange(stream, part.first, part.last), URL)
    assert by_hand["id"].tolist() == frame["id"].tolist()
    assert by_hand["age_sec"].max() < 3_600


def test_columns_are_chosen_and_checked(url: Server, stream: str) -> None:
    """Just the columns asked for, in that order; a wrong one, and wrong arguments, are refused."""
    seed(url, stream, 30, delivered=0)
    (part,) = ranges(URL, stream, 1)
    assert list(load_range(part, URL, ["action", "id"]).columns) == ["action", "id"]
    assert list(load_range(part, URL, ["symbol"]).columns) == ["symbol"]
    for wrong in (
        lambda: load_range(part, URL, ["no_such"]),
        lambda: load_range(part, "redis://:secret@host"),
        lambda: load_range(part, "NOT_SET_ANYWHERE"),
        lambda: ranges(URL, stream, 0),
        lambda: ranges(URL, stream, True),
    ):
        with pytest.raises(UsageError) as refused:
            wrong()
        assert "secret" not in str(refused.value)
    with pytest.raises(RefusedError):
        ranges(URL, "no:such:stream", 2)


# ---------------------------------------------------------------- several processes


@pytest.mark.filterwarnings("default")  # Dask's own
def test_several_processes_see_the_same_as_one(url: Server, stream: str) -> None:
    """Dask's from_map on two processes is load_frame and decide_frame row for row, malformed rows
    too, also where entries were trimmed; without Dask the standard library's pool does the same."""
    try:
        import dask
        import dask.dataframe as dd
    except ImportError:
        lacking("dask (drainkit[dask])")
    entries = backlog(now_ms(url), 3_000)
    # a symbol that only the first part has: categories would not fit together
    entries[0] = (entries[0][0], intent("ONLYHERE", source="x"))
    fill(url, stream, entries)
    parts = ranges(URL, stream, 5)
    assert parts[0].lens is not None
    empty = IdRange(stream, "9-0", "8-0", parts[0].lens)
    lens, settings = parts[0].lens, load_settings({"redis_url": url.url, "stream": stream})
    with drainkit.Server.of(settings) as link:  # what 01 makes of the whole stream
        pages = reading.pages(link, link.stream, "0-0", LAST_ID)
        frame = load_frame(pages, Decoder(settings.fields))
    frame = frame.join(decide_frame(frame, lens.policy, lens.at_us))
    assert (frame["invalid"].astype(str) != "").sum() == 177
    with (
        ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool,
        dask.config.set({"scheduler": "processes", "pool": pool,
                         "dataframe.convert-string": False}),  # else texts become another kind
    ):  # fmt: skip
        alone = pd.concat(pool.map(load_range, parts, [URL] * 5))
        ddf = dd.from_map(load_range, [*parts, empty], url_env=URL)
        assert ddf["action"].cat.known
        whole, means, counts = dask.compute(
            ddf, ddf.groupby("symbol")["confidence"].mean(), ddf["action"].value_counts()
        )
        for found in (alone, whole):
            assert_same(found, frame.copy())
        assert means["ONLYHERE"] == pytest.approx(0.8)
        assert counts.to_dict() == frame["action"].value_counts().to_dict()
        ask(url, "XTRIM", stream, "MAXLEN", 2_500)
        assert_same(ddf.compute(), frame[500:].reset_index(drop=True))
