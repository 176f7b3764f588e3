"""report.html, from a folder's files alone: the finding first, honest, inert, in one file."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drainkit.core.policy import ACTIONS
from drainkit.pipeline import report
from drainkit.views import figures

HOSTILE = "<script>x</script>\u202e'\"><img src=x onerror=y>\x1b[31m"
COUNTS = dict(zip(ACTIONS, (1, 20, 2, 3, 4, 1970), strict=True))
RUN = {
    "run_id": "20260101T000000Z-live-abc123", "mode": "live", "scope": "undelivered",
    "stream": "s", "consumer_group": "g", "boundary_id": "9-9", "total_read": 2000, **COUNTS,
    "errors": 0, "remaining": 0, "started_at": "2026-01-01T00:00:00+00:00",
    "finished_at": "2026-01-01T00:06:40+00:00", "elapsed_sec": 400.0, "events_per_sec": 5.0,
    "outcome": "done", "exit_code": 0, "pending_own": 0, "drift": [],
}  # fmt: skip
PLAN = {
    "policy": {"max_age_min": 30, "min_conf": 0.6, "allowlist": ["A", "B"]}, "throttle": 5.0,
    "total_read": 2000, "first_id": "1-1", "last_id": "9-9", "digest": "sha256:00",
    "counts": COUNTS,
}  # fmt: skip


class Page(HTMLParser):
    """What a reader would see of a page, and what its tags hold."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._silent = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._silent += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of a live run, small."""
    put(tmp_path, "run.json", RUN)
    put(tmp_path, "plan.json", PLAN)
    for name in ("baseline.json", "after.json"):
        put(tmp_path, name, state())
    actions = [action for action, n in COUNTS.items() for _ in range(n)]
    pq.write_table(pa.table({"action": actions}), tmp_path / "audit.parquet")
    figure = json.loads(figures.waterfall(COUNTS).to_json())
    output = {"output_type": "display_data", "data": {report.PLOTLY_JSON: figure}, "metadata": {}}
    put(tmp_path, "02_dry_run.ipynb", {"cells": [{"cell_type": "code", "outputs": [output] * 2}]})
    return tmp_path


def put(folder: Path, name: str, data: object) -> None:
    (folder / name).write_text(json.dumps(data))


def state(name: str = "g") -> dict[str, Any]:
    return {
        "stream": {"name": "s", "length": 10_012, "first_id": "1-0", "last_id": "9-9",
                   "boundary_id": "9-9", "entries_added": 10_012},
        "groups": [{
            "name": name, "position": "1-0", "consumers": 35, "pending": 0, "entries_read": None,
            "lag_reported": None, "backlog": {"undelivered": 2000, "pending": 0, "history": 8012},
            "consumer_list": [], "why": "Because.",
        }],
    }  # fmt: skip


def test_it_follows_the_original_report(folder: Path) -> None:
    """The six parts stand in the original's order, and the finding comes before all else."""
    page = Page(report.build(folder)).text
    parts = ("Executive summary", "2,000 entries were audited and acknowledged", "Baseline",
             "Dry run", "Live drain", "Verification", "Metrics", "SHA256SUMS")  # fmt: skip
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    assert "1,970 of them (98 %) had passed every filter" in page
    assert "at most 30 minutes old" in page
    assert "one of the 2 on the allowlist" in page
    assert "They agree." in page
    assert "lag reported" in page
    assert "unknown" in page


@pytest.mark.parametrize(("outcome", "mode"), [("failed", "live"), ("interrupted", "dry-run")])
def test_a_run_that_ended_early_says_so_first(folder: Path, outcome: str, mode: str) -> None:
    """A failed run's report says why, and whether anything was changed, in its first sentence."""
    put(folder, "run.json", {**RUN, "outcome": outcome, "mode": mode, "error": "the kernel died"})
    built = report.build(folder)
    page = Page(built)
    verdict = next(attrs["class"] for tag, attrs in page.tags if "verdict" in str(attrs))
    assert verdict == "verdict bad"
    assert f"The run ended early ({outcome}): the kernel died." in page.text
    said = "Nothing was changed." if mode == "dry-run" else "the same command goes on from there"
    assert said in page.text


def test_an_audit_that_says_otherwise_is_shown(folder: Path) -> None:
    """Where the run and the audit differ, the report says that they do."""
    pq.write_table(pa.table({"action": ["drained_ok"] * 1999}), folder / "audit.parquet")
    page = Page(report.build(folder)).text
    assert "They do not agree" in page
    (folder / "audit.parquet").write_bytes(b"PAR1 no more")
    assert "audit records could not be read" in Page(report.build(folder)).text


def test_drift_is_told(folder: Path) -> None:
    """Every event with another fate is counted, the first are listed."""
    drift = [
        {"id": f"{i}-0", "planned": "drained_ok", "happened": "dropped_old"} for i in range(50)
    ]
    put(folder, "run.json", {**RUN, "drift": drift})
    page = Page(report.build(folder)).text
    assert "growing too old before their turn: 50" in page
    assert "19-0" in page
    assert "20-0" not in page


@pytest.mark.parametrize("kept", [(), ("run.json",), ("plan.json", "run.json")])
def test_it_is_built_from_whatever_there_is(folder: Path, kept: tuple[str, ...]) -> None:
    """A run that failed at its first step has a report as well."""
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()
    page = Page(report.build(folder)).text
    for part in ("Executive summary", "Baseline", "Dry run", "Verification", "Metrics"):
        assert part in page


def test_no_text_from_outside_is_markup(folder: Path) -> None:
    """Names of groups, streams, symbols, errors and files stay text, without bidi or controls."""
    run = {**RUN, "stream": HOSTILE, "consumer_group": HOSTILE, "error": HOSTILE, "outcome": "no"}
    run["drift"] = [{"id": HOSTILE, "planned": HOSTILE, "happened": HOSTILE}]
    put(folder, "run.json", run)
    policy = {**PLAN["policy"], "allowlist": [HOSTILE]}  # type: ignore[dict-item]
    put(folder, "plan.json", {**PLAN, "policy": policy, "digest": HOSTILE})
    for name in ("baseline.json", "after.json"):
        put(folder, name, state(HOSTILE))
    (folder / "<img src=x onerror=y>.txt").touch()
    built = report.build(folder)
    page = Page(built)
    assert "<script>x</script>" in page.text  # shown, as text
    assert all(tag != "img" for tag, _ in page.tags)
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    put(folder, "run.json", RUN)
    put(folder, "plan.json", PLAN)
    harmless = Page(report.build(folder))
    scripts = [[tag for tag, _ in each.tags].count("script") for each in (page, harmless)]
    assert scripts[0] == scripts[1]
    assert "\u202e" not in built
    assert "\x1b" not in built


def test_it_is_one_file_that_fetches_nothing(folder: Path) -> None:
    """plotly.js is inside, once; no tag loads anything; the page's own policy forbids it too."""
    built = report.build(folder)
    page = Page(built)
    assert len(re.findall(r"plotly\.js v\d", built)) == 1
    assert built.count("Plotly.newPlot(") >= 2
    assert not [tag for tag, _ in page.tags if tag in ("link", "img", "iframe", "object", "embed")]
    assert not [attrs for tag, attrs in page.tags if tag == "script" and attrs.get("src")]
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert {"plan.json", "statement.json", "SHA256SUMS"} <= set(links)
    assert not [link for link in links if "/" in str(link) or ":" in str(link)]
    (policy,) = [
        attrs["content"] for tag, attrs in page.tags
        if attrs.get("http-equiv") == "Content-Security-Policy"
    ]  # fmt: skip
    assert str(policy).startswith("default-src 'none'")
    figure_labels = [attrs["aria-label"] for tag, attrs in page.tags if tag == "figure"]
    assert figure_labels == ["1,970 of 2,000 events pass (98 %)"] * 2
