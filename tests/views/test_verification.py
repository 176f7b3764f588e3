"""04's own checks: what it notices when the server says otherwise than the run."""

from __future__ import annotations

import json
from collections.abc import Iterator

import books
import pytest
from backlogs import GROUP, ME, deliver, seed
from books import ask, at, wait_for
from conftest import Cli
from servers import Server

from drainkit import files
from drainkit.draining.plan_files import PlanFile
from drainkit.errors import DrainkitError, UsageError
from drainkit.operations.state import baseline
from drainkit.server.connection import Server as Link
from drainkit.views.boards import Maintenance, Monitor
from drainkit.views.dry_run import DryRun
from drainkit.views.live_drain import LiveDrain
from drainkit.views.session import Session
from drainkit.views.verify import Verification

OTHER = "quantum:group:other"


@pytest.fixture
def drained(
    valkey: Server, stream: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A stream with two groups after a live drain, its baseline and summary beside it."""
    seed(valkey, stream)
    ask(valkey, "XGROUP", "CREATE", stream, OTHER, "0-0")
    with Link(valkey.url, stream) as link:
        files.write_json(cli.cwd / "baseline.json", baseline(link))
    run = cli.done(*books.live(valkey, stream))
    files.write_json(cli.cwd / "run.json", run.json())
    monkeypatch.setenv("DRAINKIT_REDIS_URL", valkey.url)
    return stream


def verify(stream: str, cli: Cli) -> Verification:
    found = Verification.open({"stream": stream, "run_dir": str(cli.cwd)})
    found.server.close()
    return found


def judged(cli: Cli) -> dict[str, tuple[str, str]]:
    """verdicts.json as 04 wrote it: verdict and reason by claim."""
    listed = json.loads((cli.cwd / "verdicts.json").read_text())
    return {one["claim"]: (one["verdict"], one["because"]) for one in listed}


AUDITED, OTHERS = "Each read entry was audited once", "Other groups were not touched"
MET = "The plan was met, or what differs is explained"


def test_04_finds_what_the_server_says(drained: str, cli: Cli, valkey: Server) -> None:
    """After an ordinary drain each check holds, in verdicts.json as in the notebook, and the table
    of the audit names its rows. Other groups may move by their own consumers: that is explained,
    with from where to where. What the server says otherwise is found, and the notebook ends with
    it; a doubled record also by 04 alone, which looks at the newest run."""
    check = verify(drained, cli)
    assert check.findings == []
    assert "The books balance" in check.bottom_line().data
    found = judged(cli)
    assert found.pop(MET)[0] == "unknown"  # a drain without a plan
    assert {verdict for verdict, _ in found.values()} == {"yes"}
    assert found[AUDITED][1] == "200 entries read, 200 records, none twice."
    assert all(reason in check.verdicts_table()._repr_html_() for _, reason in found.values())
    assert ">drained_ok<" in check.counts_table()._repr_html_()
    check.assert_balanced()

    deliver(valkey, drained, "its-own", 5, group=OTHER)
    assert verify(drained, cli).findings == []
    verdict, because = judged(cli)[OTHERS]
    assert (verdict, "0 of 1 others are as they were" in because) == ("explained", True)

    ask(valkey, "XGROUP", "CREATECONSUMER", drained, OTHER, ME)
    ask(valkey, "XGROUP", "CREATE", drained, "surprise", "$")
    ask(valkey, "XGROUP", "SETID", drained, GROUP, "0-0")
    deliver(valkey, drained, "someone", 101)
    said = "; ".join(verify(drained, cli).findings)
    assert f"group {OTHER} now has a consumer {ME}; group surprise" in said
    assert "1 audited entries are pending in the group" in said
    key = f"{drained}.drain_audit"
    (_, fields), (second, _) = ask(valkey, "XRANGE", key, "-", "+", "COUNT", 2)
    ask(valkey, "XDEL", key, second)
    assert "the run counted" in "; ".join(verify(drained, cli).findings)
    ask(valkey, "XADD", key, "*", *fields)
    check = Verification.open({"stream": drained})
    check.server.close()
    assert "more than once" in "; ".join(check.findings)
    with pytest.raises(DrainkitError, match="do not balance"):
        check.assert_balanced()


# ---------------------------------------------------------------- plans, run more than once


@pytest.fixture
def planned(valkey: Server, stream: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> str:
    """A stream whose dry run through notebook 02 left a plan of 30 entries in the folder."""
    seed(valkey, stream, 30, delivered=0)
    monkeypatch.setenv("DRAINKIT_REDIS_URL", valkey.url)
    dry = DryRun.open({"stream": stream, "throttle": 20, "run_dir": str(cli.cwd)})
    dry.server.close()
    return stream


def live(stream: str, cli: Cli, **more: object) -> LiveDrain:
    digest = PlanFile.load(cli.cwd / "plan.json").plan.digest
    given = {"stream": stream, "run_dir": str(cli.cwd), "approve": digest, **more}
    return LiveDrain.open(given)


def test_a_run_that_died_and_its_second(planned: str, cli: Cli, valkey: Server) -> None:
    """After SIGKILL there is no summary: 04 says what is open, not that nothing was drained. Once a
    second run of the plan ended it, what the first drained counts: 04 sees every entry, once."""
    plan = ("--plan", "plan.json", *at(valkey, planned))
    process = cli.start("drain", "--mode", "live", "--yes", *plan)
    wait_for(valkey, planned, 8)
    process.kill()
    cli.finish(process)
    check = verify(planned, cli)
    assert any("left no summary" in finding for finding in check.findings)
    assert "do not balance" in check.bottom_line().data
    run = cli.done("run", "--mode", "live", "--yes", "--json", *plan).json()
    assert 0 < run["total_read"] < 30
    executed = (cli.cwd / run["evidence"] / "04_verify.ipynb").read_text()
    assert "30 entries read, audited and acknowledged by all runs" in executed


@pytest.mark.parametrize("is_one_kernel", [True, False])
def test_the_live_notebook_run_twice_is_balanced(
    planned: str, cli: Cli, valkey: Server, is_one_kernel: bool
) -> None:
    """The second run finds nothing left to do, and 04 finds the plan drained, once, at the plan's
    throttle; in one kernel or in two both have one run id, and the summary counts what both
    drained. The state before is the first one's: what another group did is explained; without its
    file it is not known. One that lost its server tells neither what remains nor of any drift."""
    ask(valkey, "XGROUP", "CREATE", planned, OTHER, "0-0")
    for drain in [live(planned, cli)] * 2 if is_one_kernel else (live(planned, cli) for _ in "12"):
        drain.run()
        drain.server.close()
    deliver(valkey, planned, "c", 3, group=OTHER)
    check = verify(planned, cli)
    assert check.findings == []
    assert "30 entries" in check.bottom_line().data
    assert check.change_table().loc[GROUP, "position before"] == "0-0"
    assert judged(cli)[OTHERS][0] == "explained"
    assert drain.summary.total_read == 30
    assert "(20 allowed)" in check.pace()["layout"]["title"]["text"]
    drain.summary.remaining = drain.summary.drift = None
    assert "How many remain is not known" in drain.bottom_line().data
    assert "not known" in drain.drift_table().data
    (cli.cwd / "baseline.json").unlink()
    assert "position before" not in verify(planned, cli).change_table().columns
    assert judged(cli)[OTHERS][0] == "unknown"


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("board", "given", "named"),
    [
        (DryRun, {"run_dir": 20251224}, "run_dir"),
        (DryRun, {"run_dir": ["x"]}, "run_dir"),
        (Monitor, {"pattern": ["x"]}, "pattern"),
        (Maintenance, {"min_idle_min": float("nan")}, "min_idle_min"),
        (Maintenance, {"min_idle_min": float("inf")}, "min_idle_min"),
        (LiveDrain, {"throttle": -1}, "throttle must be"),
        # what papermill makes of -p max_events false
        (LiveDrain, {"max_events": False}, "max-events must be"),
        (LiveDrain, {"redis_url_env": "redis://x:y@z"}, "never a URL"),
    ],
)
def test_wrong_parameters_are_named(
    valkey: Server, monkeypatch: pytest.MonkeyPatch, board: type[Session],
    given: dict[str, object], named: str,
) -> None:  # fmt: skip
    """Wrong kinds and values are refused in one line, as bad usage, by the checks that the command
    line has."""
    monkeypatch.setenv("DRAINKIT_REDIS_URL", valkey.url)
    with pytest.raises(UsageError, match=named):
        board.open({"stream": "s", **given})
