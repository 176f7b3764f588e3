"""report.html, from a folder's files alone: the finding first, honest, inert, in one file."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drainkit.core.policy import ACTIONS
from drainkit.pipeline import checks, report
from drainkit.pipeline import records as records_of
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
    built = report.build(folder)
    page = Page(built).text
    assert "(98&nbsp;%) had passed" in built  # a number and its unit stay in one line
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


OLD_DRIFT = [
    {"id": f"{i}-0", "planned": "drained_ok", "happened": "dropped_old"} for i in range(50)
]
NEW_DRIFT = [
    {"planned": "drained_ok", "happened": "dropped_old", "events": 1250},
    {"planned": "drained_ok", "happened": "vanished", "events": 7},
]


@pytest.mark.parametrize(
    ("drift", "told"),
    [(OLD_DRIFT, "their turn: 50."), (NEW_DRIFT, "their turn: 1,257."), ([], "Each event met"),
     (None, "was not determined")],
)  # fmt: skip
def test_drift_is_told(folder: Path, drift: Any, told: str) -> None:
    """Drift stands there by (planned, happened) with its counts, in either form of run.json."""
    put(folder, "run.json", {**RUN, "drift": drift, "vanished": 7 if drift is NEW_DRIFT else 0})
    page = Page(report.build(folder)).text
    assert told in page
    if drift is NEW_DRIFT:
        assert "drained_ok dropped_old 1,250" in page
        assert "drained_ok vanished 7" in page
        assert (
            "1,257 met another fate than planned, 1,250 of them by growing too old. 7 had" in page
        )
    assert ("drift.parquet" in page) is False
    (folder / "drift.parquet").touch()
    assert ("drift.parquet names each" in Page(report.build(folder)).text) is bool(drift)


def records(n: int = 2000, *, first_ms: int = 1000, per_second: float = 5.0) -> pa.Table:
    """The audit of RUN: each record at its turn."""
    actions = [action for action, count in COUNTS.items() for _ in range(count)][:n]
    return pa.table({
        "audit_id": [f"{first_ms + int(i * 1000 / per_second)}-{i}" for i in range(n)],
        "original_id": [f"5-{i}" for i in range(n)],
        "symbol": ["BTCUSDT"] * n, "age_sec": [90.0] * n, "confidence": [0.7] * n,
        "action": actions, "reason": ["because"] * n,
    })  # fmt: skip


def verdicts(folder: Path) -> dict[str, str]:
    """The checks of the built report, claim to verdict."""
    names = ("run.json", "plan.json", "baseline.json", "after.json")
    run, plan, before, after = (json.loads((folder / n).read_text()) for n in names)
    audit = records_of.read(folder / "audit.parquet", run["boundary_id"])
    found = {c.claim: c.verdict for c in checks.checks_of(run, plan, before, after, audit)}
    page = Page(report.build(folder)).text
    assert all(f"{claim} {verdict}" in page for claim, verdict in found.items())
    return found


AUDITED, MET = "Each read entry was audited once", "The plan was met, or what differs is explained"
PENDING, OTHERS = "Pending has not grown", "Other groups were not touched"
PACE, BOUNDARY = "The throttle was kept", "Nothing after the boundary was touched"
LENGTH, ORDER = "The stream was not shortened", "No path to an order"


def test_a_good_run_meets_all_criteria(folder: Path) -> None:
    """Eight criteria, each met; the worst second is told."""
    pq.write_table(records(), folder / "audit.parquet")
    assert verdicts(folder) == dict.fromkeys(
        (AUDITED, MET, PENDING, OTHERS, PACE, BOUNDARY, LENGTH, ORDER), "yes"
    )
    assert "The worst second holds 5 events, 5 are allowed." in Page(report.build(folder)).text


def wrong(claim: str, folder: Path) -> str:
    """Make one criterion fail, or unknown; answers the verdict to expect."""
    after, table, run = state(), records(), dict(RUN)
    if claim == AUDITED:
        ids = ["5-0", *table["original_id"].to_pylist()[:-1]]
        table = table.set_column(1, "original_id", pa.array(ids))
    elif claim == MET:
        item = {"planned": "dropped_old", "happened": "drained_ok", "events": 1}
        run["drift"] = [item]
    elif claim == PENDING:
        after["groups"][0]["pending"] = 1
    elif claim == OTHERS:
        after["groups"].append({**after["groups"][0], "name": "new"})
    elif claim == PACE:
        table = records(per_second=6.01)
    elif claim == BOUNDARY:
        table = table.set_column(1, "original_id", pa.array([f"9-{i}" for i in range(2000)]))
    elif claim == LENGTH:
        after["stream"]["length"] -= 1
    put(folder, "after.json", after)
    put(folder, "run.json", run)
    pq.write_table(table, folder / "audit.parquet")
    return "explained" if claim == LENGTH else "no"


@pytest.mark.parametrize("claim", [AUDITED, MET, PENDING, OTHERS, PACE, BOUNDARY, LENGTH])
def test_each_criterion_can_fail(folder: Path, claim: str) -> None:
    """What is wrong shows at its own criterion, and at no other."""
    expected = wrong(claim, folder)
    found = verdicts(folder)
    assert found.pop(claim) == expected
    assert set(found.values()) == {"yes"}


def test_what_is_not_known_is_not_met(folder: Path) -> None:
    """Without the files that a criterion rests on it is unknown, never met."""
    put(folder, "run.json", {k: v for k, v in RUN.items() if k != "drift"})
    for name in ("baseline.json", "after.json"):
        put(folder, name, {})
    (folder / "audit.parquet").unlink()
    found = verdicts(folder)
    assert found.pop(ORDER) == "yes"
    assert set(found.values()) == {"unknown"}


def test_the_header_names_the_run(folder: Path) -> None:
    """Date, server, operator, run, digest; the parameters; the audit's length before and after."""
    for name, entries in (("baseline.json", 0), ("after.json", 2000)):
        server = {"kind": "valkey", "version": "9.1.2", "maxmemory": 10**8, "on_disk": False,
                  "maxmemory_policy": "allkeys-lru", "may_evict": True}  # fmt: skip
        put(folder, name, {**state(), "server": server, "audit_entries": entries})
    put(folder, "run.json", {**RUN, "operator": "ada"})
    as_of = "2025-12-24T19:49:58+00:00"
    put(folder, "plan.json", {**PLAN, "max_events": 500, "as_of": as_of, "until": "9-9"})
    page = Page(report.build(folder))
    for part in ("date 1 January 2026, 00:00:00 UTC", "server valkey 9.1.2", "operator ada",
                 "may evict any key (allkeys-lru, maxmemory 100.0 MB)", "kept nothing on disk",
                 f"run {RUN['run_id']}", "plan digest sha256:00", "max events 500",
                 "ages measured 24 December 2025, 19:49:58 UTC", "until 9-9",
                 "The audit stream held 0 entries before and 2,000 after.",
                 "the stream's length 10,012", "undelivered, counted 2,000"):  # fmt: skip
        assert part in page.text
    targets = {attrs.get("id") for _, attrs in page.tags}
    inner = [str(a["href"]) for tag, a in page.tags if tag == "a" and str(a["href"])[0] == "#"]
    assert len(inner) >= 8
    assert {link[1:] for link in inner} <= targets


def test_plan_and_outcome_are_bridged(folder: Path) -> None:
    """From the backlog over the dry run and the plan to the outcome, with what passes at each."""
    made = pd.Timestamp("2026-01-01T00:00:00Z")
    before = state()
    before["groups"][0]["consumer_list"] = [{"name": "c", "pending": 6, "idle_ms": 1}]
    put(folder, "baseline.json", before)
    plan = {**PLAN, "created_at": made.isoformat(), "consumer_group": "g", "consumer_name": "c",
            "scope": "undelivered", "as_of": None}  # fmt: skip
    put(folder, "plan.json", plan)
    ages_min, failed = [29.0, 30.0, 30.1, 10.0], ["", "", "", "low confidence"]
    decisions = pa.table({
        "id": [f"5-{i}" for i in range(4)],
        "event_time": pa.array([made - pd.Timedelta(minutes=m) for m in ages_min],
                               pa.timestamp("us", tz="UTC")),
        "action": ["drained_ok", "dropped_old", "dropped_old", "dropped_old"], "failed": failed,
    })  # fmt: skip
    pq.write_table(decisions, folder / "decisions.parquet")
    page = Page(report.build(folder)).text
    assert "2,000 undelivered + 6 pending of this drain's own consumer = 2,006" in page
    assert "dry run, all decided at once 2,000 2" in page
    assert "plan, each decided at its turn 2,000 1,970" in page
    assert "outcome 2,000 1,970" in page


def test_few_events_are_all_there_and_of_many_some_of_each_action(folder: Path) -> None:
    """The original listed its three events; of 2,000 the first three of each action are shown."""
    pq.write_table(records(), folder / "audit.parquet")
    page = Page(report.build(folder)).text
    assert "audit.parquet holds all 2,000" in page
    for action, count in COUNTS.items():
        assert page.count(f"1.5 0.7 {action} because") == min(3, count)
    pq.write_table(records(3), folder / "audit.parquet")
    page = Page(report.build(folder)).text
    assert "All 3 events." in page
    assert [f"5-{i} BTCUSDT" in page for i in range(4)] == [True, True, True, False]


def test_what_to_do_next_names_commands(folder: Path) -> None:
    """Remaining, pending, history and dead consumers, each with a command fit for a shell."""
    after = state("g;reboot")
    after["groups"][0].update(pending=40, backlog={"undelivered": 7, "pending": 40, "history": 9})
    after["groups"][0]["consumer_list"] = [{"name": "x", "pending": 0, "idle_ms": 3_600_000}]
    put(folder, "after.json", after)
    put(folder, "run.json", {**RUN, "consumer_group": "g;reboot", "remaining": 7})
    page = Page(report.build(folder)).text
    at = "--stream s --consumer-group 'g;reboot'"
    for command in (f"run --mode live --scope undelivered {at}", f"run --scope pending {at}",
                    f"run --scope history {at}", f"consumers {at}", "verify "):  # fmt: skip
        assert f"drainkit {command}" in page
    put(folder, "run.json", {**RUN, "mode": "dry-run"})
    assert "drainkit run --mode live --plan" in Page(report.build(folder)).text


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
    run = {**RUN, "stream": HOSTILE, "consumer_group": HOSTILE, "error": HOSTILE, "outcome": "no",
           "operator": HOSTILE, "boundary_id": HOSTILE, "scope": HOSTILE}  # fmt: skip
    table = pa.table({name: [HOSTILE] for name in ("original_id", "symbol", "action", "reason")})
    pq.write_table(table, folder / "audit.parquet")
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
    assert not [link for link in links if re.search("[/:]", str(link))]
    (policy,) = [
        attrs["content"] for tag, attrs in page.tags
        if attrs.get("http-equiv") == "Content-Security-Policy"
    ]  # fmt: skip
    assert str(policy).startswith("default-src 'none'")
    figure_labels = [attrs["aria-label"] for tag, attrs in page.tags if tag == "figure"]
    assert figure_labels == ["1,970 of 2,000 events pass (98 %)"] * 2
