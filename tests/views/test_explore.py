"""The exploration: other limits give what deciding with them gives, at once; nothing for nobody."""

from __future__ import annotations

import asyncio
import html
import re
import shlex
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_figures import NOW_MS, POLICY, frame_of, raw

from drainkit.core.frame import decide_frame
from drainkit.core.policy import Policy
from drainkit.demo import sample_entries
from drainkit.settings.config import load
from drainkit.views.explore import SAMPLE, Exploration


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """Events of every kind, some of them exactly at a limit."""
    edge = [
        raw(NOW_MS - ms, 9, symbol=symbol, confidence=confidence)
        for ms in (-30_000, 0, 300_000, 300_001, 1_800_000, 21_600_000, 21_600_001)
        for confidence in ("0.6", "0.29", "1", "0", "7")
        for symbol in ("BTCUSDT", "a b", "NEW")
    ]
    found = frame_of([*sample_entries(NOW_MS, n=3000), *edge, [b"%d-1" % NOW_MS, None]])
    assert found["action"].nunique() == 6
    return found


def explored(frame: pd.DataFrame, policy: Policy = POLICY, **given: object) -> Exploration:
    """An exploration with these settings."""
    return Exploration(frame, policy, load(given, environ={}), str, at_us=NOW_MS * 1000)


@pytest.mark.parametrize("allowed", [None, ["BTCUSDT"], []])
def test_other_limits_are_decided(frame: pd.DataFrame, allowed: list[str] | None) -> None:
    """Wherever the sliders stand, counts by action, the framed cell and what becomes of each event
    of the table are the decision's; the what-if keeps its rows and columns."""
    shown = explored(frame)
    shown.which.value, shown.symbols.value = allowed is not None, allowed or []
    shapes = set()
    for age in range(0, len(shown.age.options), 7):
        for confidence in range(0, len(shown.confidence.options), 29):
            shown.age.value, shown.confidence.value = age, confidence
            decided = decide_frame(frame[frame.columns[:9]], shown.policy, NOW_MS * 1000)
            counts = decided["action"].value_counts()
            rows = re.findall(r'action="(\w+)">.*?<td>([\d,]+)</td>', shown.counts.value, re.S)
            assert {action: int(n.replace(",", "")) for action, n in rows} == counts.to_dict()
            (framed,) = re.findall(r"outline[^>]*>([\d,]+)</td>", shown.what_if.value)
            assert int(framed.replace(",", "")) == counts["drained_ok"]
            becomes = shown.table.df["what becomes of it"]
            assert (becomes == "passes").sum() == counts["drained_ok"]
            shapes.add((shown.what_if.value.count("<tr>"), shown.what_if.value.count("<td")))
    assert len(shapes) == 1


def test_a_million_events_follow_a_slider_at_once(frame: pd.DataFrame) -> None:
    """At 1,000,000 events of any age and confidence, what a slider moves at once takes 200 ms."""
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
            shown.age.value = place
            took.append(time.process_time() - started)

    asyncio.run(move())
    assert sorted(took)[2] < 0.2
    assert f"{len(many):,} events" in shown.counts.value


def test_a_setting_can_be_pasted(frame: pd.DataFrame, tmp_path: Path) -> None:
    """The line is what a shell passes on to `drainkit run`, whatever symbols events made up."""
    (tmp_path / "allowed").write_text("BTCUSDT\n")
    given: dict[str, object] = {"allowlist": f"@{tmp_path}/allowed", "stream": "my stream"}
    policy = Policy(30.5, frozenset({"BTCUSDT"}), 0.123456789)
    shown = explored(frame, policy, **given)
    line, parameters = pasted(shown)
    words = shlex.split(line)
    assert words[words.index("--allowlist") + 1] == given["allowlist"]
    assert words[words.index("--min-conf") + 1] == "0.123456789"
    assert words[words.index("--stream") + 1] == "my stream"
    evil = "$(x)<script>`'"
    shown.symbols.options = [*shown.symbols.options, evil]
    shown.symbols.value = [evil, "BTCUSDT"]
    assert "<script>" not in shown.setting.value
    line, parameters = pasted(shown)
    words = shlex.split(line)
    assert words[words.index("--allowlist") + 1] == f"{evil},BTCUSDT"
    names: dict[str, object] = {}
    exec(parameters, names)  # noqa: S102 - what a person would paste into a cell
    assert names["allowlist"] == f"{evil},BTCUSDT"
    assert load({"allowlist": names["allowlist"]}, environ={}).allowlist
    shown.which.value = False
    assert "take the allowlist out" in shown.setting.value


def pasted(shown: Exploration) -> list[str]:
    """The command line and the parameters, as a browser shows them."""
    return [html.unescape(t) for t in re.findall("<pre>(.*?)</pre>", shown.setting.value, re.S)]


def test_the_sample_says_what_it_is_and_leaves_out_no_action(frame: pd.DataFrame) -> None:
    """Of many events a few thousand are shown, rare actions among them, and the number is told."""
    common = frame[frame["action"] == "dropped_old"]
    many = common.sample(20_000, replace=True, random_state=1)
    rare = frame[frame["action"] == "dropped_missing"]
    shown = explored(pd.concat([many, rare, many]).reset_index(drop=True))
    told = shown.widget.children[6].value
    rows = len(shown.table.df)
    assert f"<b>{rows:,} of {2 * len(many) + len(rare):,} events</b>" in told
    assert 4000 < rows <= SAMPLE
    assert "missing" in set(shown.table.df["what becomes of it"])
    assert not shown.table.df.isna().any().any()
