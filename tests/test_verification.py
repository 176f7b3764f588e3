"""04's own checks: what it notices when the server says otherwise than the run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from books import GROUP, ME, ask, seed
from conftest import Cli, Fill
from servers import Server

from drainkit import evidence, notebook, status
from drainkit.server import Server as Link

OTHER = "quantum:group:other"


@pytest.fixture
def drained(
    valkey: Server, stream: str, fill: Fill, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A stream with two groups after a live drain, its baseline and summary beside it."""
    seed(valkey, stream, fill)
    ask(valkey, "XGROUP", "CREATE", stream, OTHER, "0-0")
    with Link(valkey.url, stream) as link:
        evidence.write_json(cli.cwd / "baseline.json", status.baseline(link, stream))
    run = cli("drain", "--mode", "live", "--yes", "--json", "--throttle", "none", "--redis-url",
              valkey.url, "--stream", stream)  # fmt: skip
    assert run.rc == 0, run.err
    evidence.write_json(cli.cwd / "run.json", run.json())
    monkeypatch.setenv("DRAINKIT_REDIS_URL", valkey.url)
    return stream


def verify(stream: str, cli: Cli) -> notebook.Verification:
    found = notebook.Verification.open({"stream": stream, "run_dir": str(cli.cwd)})
    found.server.close()
    return found


def test_balanced_books_are_found_balanced(drained: str, cli: Cli) -> None:
    """After an ordinary drain there is no finding, and the other group is as it was."""
    check = verify(drained, cli)
    assert check.findings == []
    assert "The books balance" in check.bottom_line().data
    assert "1 of 1 other groups are as they were" in check.others_line().data
    check.assert_balanced()


def test_an_audited_entry_that_is_pending_is_found(drained: str, cli: Cli, valkey: Server) -> None:
    """An entry with a record that the group still holds is named: it was not acknowledged."""
    ask(valkey, "XGROUP", "SETID", drained, GROUP, "0-0")
    ask(valkey, "XREADGROUP", "GROUP", GROUP, "someone", "COUNT", 101, "STREAMS", drained, ">")
    check = verify(drained, cli)
    assert len(check.findings) == 1
    assert check.findings[0].startswith("1 audited entries are pending in the group")
    with pytest.raises(Exception, match="do not balance"):
        check.assert_balanced()


def test_a_lost_record_is_found(drained: str, cli: Cli, valkey: Server) -> None:
    """A record that is gone from the audit stream shows in the counts."""
    audit = f"{drained}.drain_audit"
    ask(valkey, "XDEL", audit, ask(valkey, "XRANGE", audit, "-", "+", "COUNT", 1)[0][0])
    assert any("the run counted" in finding for finding in verify(drained, cli).findings)


def test_traces_in_other_groups_are_found(drained: str, cli: Cli, valkey: Server) -> None:
    """The drain's consumer in another group, and a new group, are named; others may move."""
    ask(valkey, "XREADGROUP", "GROUP", OTHER, "its-own", "COUNT", 5, "STREAMS", drained, ">")
    check = verify(drained, cli)
    assert check.findings == []
    told = check.others_line().data
    assert "0 of 1 other groups are as they were" in told
    assert "pending 0 to 5" in told
    ask(valkey, "XGROUP", "CREATECONSUMER", drained, OTHER, ME)
    ask(valkey, "XGROUP", "CREATE", drained, "surprise", "$")
    findings = verify(drained, cli).findings
    assert f"group {OTHER} now has a consumer {ME}" in findings
    assert "group surprise appeared during the run" in findings
