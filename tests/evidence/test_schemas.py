"""The JSON Schemas in drainkit/schemas are true of real output."""

from __future__ import annotations

from backlogs import deliver, seed
from books import at, live
from conftest import Cli
from schemas import holds, schema
from servers import Server

from drainkit.evidence.verify import ROW


def test_real_output_is_as_the_schemas_say(valkey: Server, stream: str, cli: Cli) -> None:
    """What dry and live drains print and, of a stream drained in part and stopped, status, check
    and runs; a schema names each key there is (of evidence: test_pipeline.py)."""
    where = at(valkey, stream)
    seed(valkey, stream, 60, delivered=20)
    deliver(valkey, stream, "c", 3)
    holds("drain", cli.done("drain", "--json", *where).json())
    holds("drain", cli.done(*live(valkey, stream, "--max-events", 7,
                                  "--allow-active-consumers")).json())  # fmt: skip
    holds("status", cli("status", "--json", *where).json())
    cli.done("stop", "--reason", "x", *where)
    assert cli(*live(valkey, stream)).rc == 4
    (cli.cwd / "reports").mkdir()
    for command in ("status", "check"):
        holds(command, cli(command, "--json", *where).json())
    holds("runs", cli("runs", "--json", *where).json())
    assert [*schema("runs")["properties"]["runs"]["items"]["properties"]] == [*ROW]
