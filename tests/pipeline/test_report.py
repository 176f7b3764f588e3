"""report.html, from a folder's files alone: the finding first, honest, inert, in one small file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup

from drainkit.core.policy import ACTIONS
from drainkit.pipeline import report
from drainkit.views import figures

HOSTILE = "<script>x</script>\u202e'\"><img src=x onerror=y>\x1b[31m"
COUNTS = dict(zip(ACTIONS, (1, 20, 2, 3, 4, 1970), strict=True))
RUN = {
    "run_id": "20260101T000000Z-live-abc123", "mode": "live", "scope": "undelivered",
    "stream": "s", "consumer_group": "g", "boundary_id": "9-9", "total_read": 2000, **COUNTS,
    "errors": 0, "remaining": 0, "started_at": "2026-01-01T00:00:00+00:00",
    "finished_at": "2026-01-01T00:06:50+00:00", "elapsed_sec": 400.0, "events_per_sec": 5.0,
    "outcome": "done", "exit_code": 0, "pending_own": 0, "drift": [], "operator": "ada",
}  # fmt: skip
PLAN = {
    "policy": {"max_age_min": 30, "min_conf": 0.6, "allowlist": ["A", "B"]}, "throttle": 5.0,
    "total_read": 2000, "first_id": "1-1", "last_id": "9-9", "digest": "sha256:00",
    "counts": {**COUNTS, "drained_ok": 1975}, "created_at": "2026-01-01T00:00:08+00:00",
    "consumer_name": "c", "scope": "undelivered", "as_of": None, "max_events": 500, "until": "9-9",
}  # fmt: skip
CHECKS = [
    {"claim": "The plan was met", "verdict": "explained", "because": "5 grew too old."},
    {"claim": "Pending has not grown", "verdict": "yes", "because": "0 before, 0 after."},
]
ANALYSED = {"at": "2026-01-01T00:00:04+00:00", "entries": 2006, "pass": 1981}


def built(folder: Path) -> BeautifulSoup:
    """The page, but for its style."""
    page = BeautifulSoup(report.build(folder), "html.parser")
    page.style.decompose()  # type: ignore[union-attr]
    return page


def text(folder: Path) -> str:
    """What a reader would see of the page."""
    return " ".join(built(folder).get_text(" ").split())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of a live run, small."""
    before = state()
    before["groups"][0]["consumer_list"] = [{"name": "c", "pending": 6, "idle_ms": 1}]
    told = {"run.json": RUN, "plan.json": PLAN, "verdicts.json": CHECKS, "baseline.json": before,
            "after.json": {**state(), "audit_entries": 2000}}  # fmt: skip
    for name, data in told.items():
        put(tmp_path, name, data)
    figure = figures.waterfall(COUNTS)
    figure["layout"]["meta"] = ANALYSED
    shown = {"output_type": "display_data", "data": figure.bundle()}
    cell = {"cell_type": "code", "outputs": [shown] * 2}
    put(tmp_path, "01_analyse_backlog.ipynb", {"cells": [cell]})
    return tmp_path


def put(folder: Path, name: str, data: object) -> None:
    (folder / name).write_text(json.dumps(data))


def state(*names: str) -> dict[str, Any]:
    groups = [
        {"name": name, "position": "1-0", "consumers": 35, "pending": 0, "entries_read": None,
         "lag_reported": None, "backlog": {"undelivered": 2000, "pending": 0, "history": 8012},
         "consumer_list": [], "why": "Because."}
        for name in names or ("g",)
    ]  # fmt: skip
    return {
        "server": {"kind": "valkey", "version": "9.1.2"}, "audit_entries": 0, "groups": groups,
        "stream": {"name": "s", "length": 10_012, "first_id": "1-0", "last_id": "9-9",
                   "boundary_id": "9-9", "entries_added": 10_012},
    }  # fmt: skip


def test_the_finding_comes_first(folder: Path) -> None:
    """The verdict and the checks before all else, then the run's names and the original's parts.
    Each number that passes (waiting, analysed, planned, happened) has its moment in one table. It
    is one file: figures are pictures, nothing runs or is loaded, the page's own policy forbids it.
    """
    page = text(folder)
    parts = (
        "Executive summary", "2,000 entries were audited and acknowledged",
        "1,970 of them (98 %) had passed every filter: still good signals, acknowledged and not "
        "executed", "2 checks : 1 explained, 1 yes", "date 2026-01-01 00:00:00 UTC",
        "server valkey 9.1.2 operator ada", f"run {RUN['run_id']}", "plan digest sha256:00",
        "at most 30 minutes old", "one of the 2 on the allowlist",
        "The plan was met explained 5 grew too old.", "max events 500",
        "ages measured at each decision until 9-9", "Baseline", "unknown", "Dry run",
        "waiting: 2,000 undelivered + 6 pending of this drain's own consumer = 2,006 "
        "2026-01-01 00:00:00 UTC 2,006",
        "analysed, all at one moment 2026-01-01 00:00:04 UTC 2,006 1,981",
        "planned, each at its turn from 2026-01-01 00:00:08 UTC on, at the throttle 2,000 "
        "1,975",
        "happened, each at its turn until 2026-01-01 00:06:50 UTC 2,000 1,970",
        "Live drain", "drained_ok 1,975 1,970", "Verification",
        "The audit stream held 0 entries before and 2,000 after.", "Metrics",
        "finished_at 2026-01-01T00:06:50+00:00 the books of the drain were closed",
        "elapsed_sec 400.0 of the drain or dry run alone", "SHA256SUMS",
    )  # fmt: skip
    at = 0
    for part in parts:
        at = page.find(part, at)
        assert at >= 0, part
    there = built(folder)
    assert all(there.find(id=link["href"][1:]) for link in there.select("a[href^='#']"))
    links = {link["href"] for link in there.select("a:not([href^='#'])")}
    assert {"plan.json", "verdicts.json", "statement.json", "SHA256SUMS"} <= links
    assert not [link for link in links if re.search("[/:]", link)]
    assert there.find_all(["script", "link", "img", "iframe", "object", "embed"]) == []
    assert len(there.find_all("svg")) == 2
    (policy,) = there.select("meta[http-equiv='Content-Security-Policy']")
    assert policy["content"].startswith("default-src 'none'; script-src 'none';")


@pytest.mark.parametrize(
    ("changed", "failed", "told"),
    [
        ({"outcome": "failed", "error": "the kernel died"}, "yes",
         "The run ended early (failed): the kernel died. 2,000 entries had been audited"),
        ({"outcome": "interrupted", "mode": "dry-run"}, "yes", "Nothing was changed."),
        ({}, "no", "not met: Pending has not grown (0 before, 0 after)"),
    ],
)  # fmt: skip
def test_errors_come_first(folder: Path, changed: dict[str, Any], failed: str, told: str) -> None:
    """An early end and a check that fails stand at the head, in another colour."""
    put(folder, "run.json", {**RUN, **changed})
    put(folder, "verdicts.json", [CHECKS[0], {**CHECKS[1], "verdict": failed}])
    assert [e["class"] for e in built(folder).select(".verdict")] == [["verdict", "bad"]]
    assert told in text(folder).partition("date 2026")[0]


def test_drift_and_what_to_do_next(folder: Path) -> None:
    """Drift by fate. Remaining, pending, history and dead consumers, each with a command fit for a
    shell."""
    after = state("g;reboot")
    after["groups"][0].update(pending=40, backlog={"undelivered": 7, "pending": 40, "history": 9})
    after["groups"][0]["consumer_list"] = [{"name": "x", "pending": 0, "idle_ms": 3_600_000}]
    put(folder, "after.json", after)
    drift = {"planned": "drained_ok", "happened": "dropped_old", "events": 1250}
    put(folder, "run.json", {**RUN, "consumer_group": "g;reboot", "remaining": 7, "drift": [drift]})
    page = text(folder)
    assert "met another fate than planned: 1,250." in page
    assert "drained_ok dropped_old 1,250" in page
    at = "--stream s --consumer-group 'g;reboot'"
    for command in (f"run --mode live --scope undelivered {at}", f"run --scope pending {at}",
                    f"run --scope history {at}", f"consumers {at}", "verify "):  # fmt: skip
        assert f"drainkit {command}" in page
    put(folder, "run.json", {**RUN, "mode": "dry-run"})
    assert "drainkit run --mode live --plan" in text(folder)


def test_it_is_built_from_whatever_there_is(folder: Path) -> None:
    """Without a drift that was determined, and of a run that failed at its first step."""
    put(folder, "run.json", {k: v for k, v in RUN.items() if k != "drift"})
    assert "was not determined" in text(folder)
    for kept in (("plan.json", "run.json"), ("run.json",), ()):
        for path in folder.iterdir():
            if path.name not in kept:
                path.unlink()
        page = text(folder)
        for part in ("Executive summary", "Baseline", "Dry run", "Verification", "Metrics"):
            assert part in page, (kept, part)


def test_no_text_from_outside_is_markup(folder: Path) -> None:
    """Names of groups, streams, errors and files stay text, without bidi or controls;
    however many and long they are, the page stays below 300 KB."""
    run = {**RUN, "stream": HOSTILE, "consumer_group": HOSTILE, "error": HOSTILE, "outcome": "no",
           "operator": HOSTILE, "boundary_id": HOSTILE, "scope": HOSTILE}  # fmt: skip
    run["drift"] = [{"planned": HOSTILE, "happened": HOSTILE, "events": 1}]
    put(folder, "run.json", run)
    policy = {**PLAN["policy"], "allowlist": [HOSTILE] * 5000}  # type: ignore[dict-item]
    put(folder, "plan.json", {**PLAN, "policy": policy, "digest": HOSTILE})
    put(folder, "verdicts.json", [{"claim": HOSTILE, "verdict": "no", "because": HOSTILE * 999}])
    for name, position in (("baseline.json", "1-0"), ("after.json", "2-0")):
        groups = state(HOSTILE, *(f"{HOSTILE * 99}{i}" for i in range(3000)))
        for group in groups["groups"]:
            group["position"] = position
        put(folder, name, groups)
    (folder / "<img src=x onerror=y>.txt").touch()
    page, made = built(folder), report.build(folder)
    assert "<script>x</script>" in text(folder)  # shown, as text
    assert page.find_all(["img", "script"]) == []
    assert not [name for e in page.find_all(True) for name in e.attrs if name.startswith("on")]
    assert "\u202e" not in made
    assert "\x1b" not in made
    assert len(made.encode()) < 300_000
