"""The figures: small, inert whatever events say, and no event binned across a limit. The
exploration: other limits give what deciding with them gives, at once; nothing for nobody."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drainkit.core.events import Decoder
from drainkit.core.frame import decide_frame, load_frame
from drainkit.core.policy import ACTIONS, Moments, Policy
from drainkit.core.values import RawEntry
from drainkit.demo import ALLOWLIST, sample_entries
from drainkit.safe import share
from drainkit.settings import load
from drainkit.views import figures
from drainkit.views.explore import SAMPLE, Exploration
from drainkit.views.figures import MAX_BINS, histogram, svg

NOW_MS = 1_800_000_000_000
POLICY = Policy(30.0, frozenset(ALLOWLIST), 0.6)


def raw(ms: int, number: int = 0, **fields: str) -> RawEntry:
    """An entry of BTCUSDT at 0.9, unless `fields` say otherwise."""
    pairs = {"symbol": "BTCUSDT", "confidence": "0.9", **fields}.items()
    return [b"%d-%d" % (ms, number), [part.encode() for pair in pairs for part in pair]]


def frame_of(entries: list[RawEntry], policy: Policy = POLICY) -> pd.DataFrame:
    frame = load_frame([entries], Decoder())
    return pd.concat([frame, decide_frame(frame, policy, NOW_MS * 1000)], axis=1)


@pytest.fixture(scope="module")
def backlog() -> pd.DataFrame:
    """The demo's backlog, all six hours of it."""
    return frame_of(sample_entries(NOW_MS))


@pytest.fixture(scope="module")
def shown(backlog: pd.DataFrame) -> dict[str, Any]:
    """Its figures."""
    return all_figures(backlog)


def all_figures(frame: pd.DataFrame, policy: Policy = POLICY) -> dict[str, Any]:
    """Every figure of the notebooks from one frame."""
    counts = {action: int((frame["action"] == action).sum()) for action in ACTIONS}
    by = {column: figures.by_category(frame, column) for column in ("symbol", "source", "side")}
    return {
        "age": figures.age(frame["age_sec"].to_numpy(), policy),
        "confidence": figures.confidence(frame["confidence"].to_numpy(), policy),
        **by,
        "overlap": figures.overlap(frame),
        "what_if": figures.what_if(frame, policy),
        "waterfall": figures.waterfall(counts),
        "pace": figures.pace(Moments(NOW_MS + np.arange(len(frame)) * 200), 5.0),
    }


def texts(value: object) -> Iterator[str]:
    """Every text in a figure, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from texts(part)


def drawn(figure: Any, axis: str = "y") -> int:
    """How many events the bars of a figure hold."""
    return sum(sum(bar[axis]) for bar in figure["data"])


def title(figure: Any) -> str:
    return str(figure["layout"]["title"]["text"])


numbers = st.floats(0, 1e6, allow_nan=False)
STEPS = st.sampled_from([0.01, 0.02, 1.0, 30.0, 7200.0])


@given(values=st.lists(numbers, max_size=60), limit=numbers, step=STEPS, over=st.booleans())
def test_no_event_is_binned_on_the_wrong_side_of_the_limit(
    values: list[float], limit: float, step: float, over: bool
) -> None:
    """The bins from 0 on hold just the events beyond the limit (a minimum: from it on), also by
    the float next to it."""
    # as many bins as a figure may have: the range is the caller's affair
    hairs = (np.nextafter(limit, -1), np.nextafter(limit, 1e9))
    near = np.array([limit, *hairs, *(limit + (v % 80 - 40) * step for v in values)])
    first, counts = histogram(near, limit, step, over=over)
    assert counts.sum() == len(near)
    beyond = (near > limit) if over else (near >= limit)
    assert counts[max(0, -first) :].sum() == beyond.sum()


@pytest.mark.parametrize("over", [True, False])
def test_decimal_confidences_fill_their_bins_evenly(over: bool) -> None:
    """Each hundredth from 0 to 1 lies in the bin that its decimal digits say: no comb, no hole."""
    values = np.array([n / 100 for n in range(100)])
    for limit in (0.6, 0.58, 0.29, 0.07):
        first, counts = histogram(values, limit, 0.01, over=over)
        assert counts.tolist() == [1] * 100, limit
        assert first == -round(limit * 100) - (1 if over else 0)


@settings(max_examples=25)
@given(limit=st.floats(1e-9, 1e5), ages=st.lists(st.floats(-1e3, 1e7), max_size=9))
def test_ages_of_any_size_need_few_bars(limit: float, ages: list[float]) -> None:
    """Whatever ages (minutes) and limit are, at most 82 bars hold all of them, and the limit is in
    sight."""
    figure = figures.age(np.array(ages) * 60, Policy(limit, None, 0.6))
    low, high = figure["layout"]["xaxis"]["range"]
    assert low < limit < high
    assert sum(len(bar["x"]) for bar in figure["data"]) <= MAX_BINS + 2
    assert drawn(figure) == len(ages)


def test_nothing_is_left_out_of_a_figure(backlog: pd.DataFrame, shown: dict[str, Any]) -> None:
    """Each figure's bars hold every event that has the value in question."""
    for name, column in (("age", "age_sec"), ("confidence",) * 2):
        assert drawn(shown[name]) == backlog[column].notna().sum()
    for name in ("symbol", "source", "side", "overlap"):
        assert drawn(shown[name], "x") == len(backlog)
    (pace,) = shown["pace"]["data"]
    width_sec = pace["x"][1] - pace["x"][0]
    assert sum(pace["y"]) * width_sec == pytest.approx(len(backlog))


def test_one_wrong_clock_does_not_squeeze_the_rest() -> None:
    """An event of 2014 among those of the last hour is told of, but the axis stays at hours."""
    frame = frame_of([raw(1_400_000_000_000), *sample_entries(NOW_MS)[9000:]])
    age = figures.age(frame["age_sec"].to_numpy(), POLICY)
    assert max(x for bar in age["data"] for x in bar["x"]) < 24 * 60
    assert "the last bar also holds 1 up to 4,630 d" in age["layout"]["xaxis"]["title"]["text"]


# ---------------------------------------------------------------- what they say


def test_titles_say_the_finding(backlog: pd.DataFrame, shown: dict[str, Any]) -> None:
    """The numbers in the titles are those of the frame, of all its events; one is no plural."""
    found = {name: title(figure) for name, figure in shown.items()}
    old = (backlog["age_sec"] > 1800).mean()
    assert found["age"] == f"{100 * old:.0f} % of the events are older than 30 min"
    ok = backlog[backlog["action"] == "drained_ok"]
    symbols = ok["symbol"].astype(str).value_counts()
    whole = (backlog["symbol"].astype(str) == symbols.index[0]).sum()
    said = f"most that pass are of {symbols.index[0]}, {symbols.iloc[0]:,} of {whole:,}"
    assert found["symbol"] == f"By symbol: {said}"
    assert found["waterfall"].startswith(f"{len(ok):,} of {len(backlog):,} events pass")
    assert found["what_if"].startswith(f"{len(ok):,} would pass as set")
    assert found["pace"] == "The busiest second holds 5 events (5 allowed)"
    bad = [raw(NOW_MS, k, confidence="") for k in range(99)]
    few = frame_of([*bad, raw(NOW_MS, 99, confidence="0.1")])["confidence"].to_numpy()
    assert title(figures.confidence(few, POLICY)).startswith("1 % of the events")
    one = frame_of([raw(NOW_MS - 1)])
    figure = figures.by_category(one, "symbol")
    assert figure["data"][0]["hovertext"] == ["BTCUSDT, passes: 1 event"]
    assert title(all_figures(one)["waterfall"]).startswith("1 of 1 event passes")


def test_what_has_no_row_of_its_own_counts() -> None:
    """Of events that name no source, or have a rare symbol, a title says that most pass there. A
    symbol called "(none)" is a row of its own, and long names do not merge."""
    entries = [raw(NOW_MS - i, symbol=f"S{i % 20}", confidence="0.1") for i in range(100)]
    frame = frame_of([*entries, raw(NOW_MS, 1, symbol="RARE")], Policy(30.0, None, 0.6))
    by = {name: title(figures.by_category(frame, name)) for name in ("source", "symbol")}
    assert by == {
        "source": "By source: most that pass are of (none), 1 of 101",
        "symbol": "By symbol: most that pass are of (9 others), 1 of 41",
    }
    names = ["(none)", "(others)", *[f"{'L' * 50}{i}" for i in range(13)]]
    entries = [raw(NOW_MS - i, symbol=name) for i, name in enumerate(names)]
    (bars,) = figures.by_category(frame_of(entries, Policy(30.0, None, 0.6)), "symbol")["data"]
    assert bars["x"] == [1] * 12 + [3]
    assert len(set(bars["y"])) == 13


def test_what_if_agrees_with_the_policy() -> None:
    """Each cell of the heat map is what deciding with those limits gives, also at a limit."""
    edge = [NOW_MS - 1_800_000, NOW_MS - 300_000, NOW_MS - 300_001]
    entries = [raw(ms, 9, confidence=c) for ms in edge for c in ("0.6", "0.1")]
    frame = frame_of([*sample_entries(NOW_MS, n=2000), *entries])
    (cells,) = figures.what_if(frame, POLICY)["data"]
    assert cells["y"][:4] == ["5 min", "10 min", "15 min", "30 min"]
    ages = [POLICY.max_age_min * factor for factor in (1 / 6, 1 / 3, 1 / 2, 1, 2, 4, 8, 24, 48)]
    for age, row in zip(ages, cells["z"], strict=True):
        for confidence, passing in zip(map(float, cells["x"]), row, strict=True):
            policy = Policy(age, POLICY.allowlist, confidence)
            decided = decide_frame(frame[frame.columns[:9]], policy, NOW_MS * 1000)
            assert passing == (decided["action"] == "drained_ok").sum()


def test_no_text_of_an_event_is_markup() -> None:
    """Tags, links, bidi and control characters of events arrive in a figure as inert text, and in
    its picture."""
    hostile = ["</svg><script>x</script>", "<a/href='javascript:x'>y</a>", "<b>bold</b>",
               "\u202eevil", "\x1b[31mred", "&lt;i&gt;", "=1+1"]  # fmt: skip
    for column in ("symbol", "source", "side"):
        entries = [raw(NOW_MS - 70 + i, **{column: hostile[i % len(hostile)]}) for i in range(70)]
        figure = figures.by_category(frame_of(entries), column)
        found = list(texts(figure))
        assert not [text for text in found if "<" in text or not text.isprintable()]
        assert any("&lt;script&gt;" in text for text in found)
        assert hostile[0] in list(ElementTree.fromstring(svg(figure)).itertext())  # noqa: S314


def test_no_figure_grows_with_the_backlog(backlog: pd.DataFrame, shown: dict[str, Any]) -> None:
    """A million events make no figure more than 20 % larger than 10,012 do."""
    many = all_figures(backlog.sample(1_000_000, replace=True, random_state=1).reset_index())
    for name, figure in many.items():
        assert len(json.dumps(figure)) <= 1.2 * len(json.dumps(shown[name])), name


# ---------------------------------------------------------------- the throttle, measured


@given(st.lists(st.integers(0, 5000), max_size=80))
def test_the_busiest_second_is_found_wherever_it_starts(offsets: list[int]) -> None:
    """As many as the fullest window [t, t + 1000 ms) over all starts t holds."""
    times = sorted(offsets)
    brute = max((sum(t <= u < t + 1000 for u in times) for t in times), default=0)
    assert Moments(np.array(times, dtype=np.int64)).busiest_second() == brute


@pytest.mark.parametrize("rate", [0.3, 0.5, 1.0, 2.5, 5.0, 60.0])
@pytest.mark.parametrize("n", [2, 50, 700])
def test_an_even_pace_never_looks_too_fast(rate: float, n: int) -> None:
    """No bar of a drain that kept its throttle rises above the throttle's line."""
    audit_ms = NOW_MS + np.ceil(np.arange(n) * 1000 / rate).astype(np.int64)
    figure = figures.pace(Moments(audit_ms), rate)
    line = figure["layout"]["shapes"][0]["y0"]
    assert rate <= line < rate + 1
    (bars,) = figure["data"]
    assert max(bars["y"]) <= line + 1e-9
    assert len(bars["y"]) <= MAX_BINS + 1


def test_a_broken_throttle_is_said() -> None:
    """The title gives the measured number beside the allowed one, or the gap below 1/s."""
    for gap_ms, rate, said in ((180, 5.0, "6 events (5 allowed)"), (1, None, "no throttle"),
                               (1500, 0.5, "1.5 s apart (at least 2.0 s")):  # fmt: skip
        figure = figures.pace(Moments(NOW_MS + np.arange(20) * gap_ms), rate)
        assert said in title(figure)


@pytest.mark.parametrize(
    ("part", "whole", "said"),
    [(0, 0, "none"), (0, 9, "0 %"), (1, 1000, "under 1 %"), (1, 2, "50 %"),
     (9999, 10_000, "over 99 %"), (994, 1000, "99 %"), (7, 7, "100 %")],
)  # fmt: skip
def test_a_share_is_not_rounded_to_all_or_nothing(part: int, whole: int, said: str) -> None:
    """100 % is all of them and 0 % none."""
    assert share(part, whole) == said


# ---------------------------------------------------------------- light, dark, and without plotly


def test_figures_are_readable_on_any_paper(backlog: pd.DataFrame, shown: dict[str, Any]) -> None:
    """The paper is transparent, and text stands out from white and from JupyterLab's dark alike. A
    bar says in a sentence from where to where it reaches and how many events it holds."""
    for name, figure in shown.items():
        layout = figure["layout"]
        assert layout["paper_bgcolor"] == layout["plot_bgcolor"] == "rgba(0,0,0,0)"
        grey = int(layout["font"]["color"].removeprefix("#")[:2], 16) / 255
        text = ((grey + 0.055) / 1.055) ** 2.4  # its luminance (WCAG 2)
        assert min(1.05 / (text + 0.05), (text + 0.05) / 0.0556) > 4.2
        assert not set(texts(layout)) & {"#000000", "black", "#222222", "white", "#ffffff"}
        for trace in figure["data"]:
            assert "hovertext" in trace or "<extra></extra>" in trace["hovertemplate"], name
    minutes = backlog["age_sec"][backlog["age_sec"] < 3600] / 60
    held = ((minutes > 29) & (minutes <= 30)).sum()
    young = figures.age(minutes.to_numpy() * 60, POLICY)["data"][0]
    assert young["hovertext"][-1] == f"29 to 30 min: {held:,} events"


def test_a_page_without_plotly_has_a_picture(shown: dict[str, Any]) -> None:
    """Each figure is also an SVG: well formed, with its title and every bar. Without any event each
    is there too, says so, and has no axis of made-up numbers."""
    for some in (shown, empty := all_figures(frame_of([]))):
        for name, figure in some.items():
            picture = ElementTree.fromstring(svg(figure))  # noqa: S314 - our own
            tags = Counter(element.tag.rpartition("}")[2] for element in picture.iter())
            assert set(tags) <= {"svg", "title", "text", "rect", "line"}, name
            words = [element.text for element in picture.iter()]
            assert title(figure) in words
            assert ("no events" in words) == (some is empty and name != "what_if"), name
            bars = sum(len(t["x"]) for t in figure["data"] if t["type"] == "bar")
            cells = sum(len(row) for t in figure["data"] for row in t.get("z", ()))
            assert tags["rect"] >= bars + cells, name


# ---------------------------------------------------------------- the exploration


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """Events of every kind, some of them exactly at a limit."""
    edge = [
        raw(NOW_MS - ms, 9, symbol=symbol, confidence=confidence)
        for ms in (-30_000, 0, 300_000, 300_001, 1_800_000, 21_600_000, 21_600_001)
        for confidence in ("0.6", "0.29", "1", "0", "7")
        for symbol in ("BTCUSDT", "a b", "NEW")
    ]
    found = frame_of([*sample_entries(NOW_MS, n=1000), *edge, [b"%d-1" % NOW_MS, None]])
    assert found["action"].nunique() == 6
    return found


def explored(frame: pd.DataFrame, policy: Policy = POLICY, **given: object) -> Exploration:
    """An exploration with these settings, and the allowlist as it was read."""
    given = {"allowlist": sorted(policy.allowlist or ()) or None, **given}
    analysis: Any = SimpleNamespace(
        frame=frame,
        policy=policy,
        settings=load(given, environ={}),
        backlog=SimpleNamespace(step=1),
    )
    return Exploration(analysis)


@pytest.mark.parametrize("allowed", ["", "BTCUSDT", "BTCUSDT, NO"])
def test_other_limits_are_decided(frame: pd.DataFrame, allowed: str) -> None:
    """Wherever the sliders stand, counts by action and what becomes of each event of the table are
    the decision's."""
    shown = explored(frame)
    shown.symbols.value = allowed
    symbols = frozenset(allowed.split(", ")) if allowed else None
    for age, confidence in ((0, 0), (7, 58), (15, 29), (30, 87), (len(shown.age.options) - 1, 100)):
        shown.age.index, shown.confidence.index = age, confidence
        policy = Policy(shown.age.value, symbols, shown.confidence.value)
        decided = decide_frame(frame[frame.columns[:9]], policy, NOW_MS * 1000)
        counts = decided["action"].value_counts()
        rows = re.findall(r'action="(\w+)">.*?<td>([\d,]+)</td>', shown.counts.value, re.S)
        assert {action: int(n.replace(",", "")) for action, n in rows} == counts.to_dict()
        becomes = shown.table.df["what becomes of it"]
        assert (becomes == "passes").sum() == counts["drained_ok"]


def test_a_million_events_follow_a_slider_at_once(frame: pd.DataFrame) -> None:
    """At 1,000,000 events of any age and confidence, what a slider moves at once takes 200 ms; the
    table says which sample it shows."""
    many = frame.sample(1_000_000, replace=True, random_state=1).reset_index(drop=True)
    noise = np.random.default_rng(1)
    many["event_time"] = pd.to_datetime(
        NOW_MS * 1000 - noise.integers(0, 90_000_000_000, len(many)), unit="us", utc=True
    )
    many["confidence"] = noise.uniform(0, 1, len(many))
    shown = explored(many)
    took = []

    async def move() -> None:  # as in a kernel: the table follows later
        for place in range(3, 8):
            started = time.process_time()
            shown.age.index = place
            took.append(time.process_time() - started)

    asyncio.run(move())
    assert sorted(took)[2] < 0.2
    assert f"{len(many):,} events" in shown.counts.value
    # of so many a few thousand are in the table, rare actions among them, and the number is told
    rows = shown.table.df
    assert f"<b>{len(rows):,} of {len(many):,} events</b>" in shown.told.value
    assert SAMPLE <= len(rows) <= SAMPLE + 50 * len(ACTIONS)
    assert (rows["what becomes of it"] == "missing").any()
    assert not rows.isna().any().any()


def test_a_typed_allowlist_is_held_against_the_rules(frame: pd.DataFrame, tmp_path: Path) -> None:
    """As long as it is as it was given, a file's symbols stay; what is no symbol is refused, as
    text."""
    given = f"@{tmp_path}/allowed"
    (tmp_path / "allowed").write_text("BTCUSDT\n")
    policy = Policy(30.5, frozenset({"BTCUSDT"}), 0.123456789)
    shown = explored(frame, policy, allowlist=given)
    assert shown.policy == policy
    shown.symbols.value = "<b>a b</b>"
    assert "&lt;b&gt;a b&lt;/b&gt; is not a symbol" in shown.counts.value
    shown.symbols.value = ""
    assert shown.policy.allowlist is None
